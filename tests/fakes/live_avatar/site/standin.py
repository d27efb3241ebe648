"""What the stand-in's parts share: what it was told to do wrong, its diary, and upstream's arithmetic.

Variables: LIVE_AVATAR_FAKE names what goes wrong (several: with commas), LIVE_AVATAR_FAKE_RANK the rank that it
happens to, LIVE_AVATAR_FAKE_SECONDS_PER_BLOCK how long a block takes, LIVE_AVATAR_FAKE_GO the file without which the
third block does not begin, LIVE_AVATAR_FAKE_CALLS the file that gets a line of JSON for every start. The first two
may come with the prompt instead, as `fake:oom,slow@2`, so that each job of one service fails in a way of its own.

| LIVE_AVATAR_FAKE | what happens | end |
|---|---|---|
| oom, oom_load | torch.OutOfMemoryError in the second block, or while the network loads | 1 |
| oom_once | as oom in an attempt's first run (AVATAR_ATTEMPT 1, or LIVE_AVATAR_FAKE_MARK not there yet) | 1, then 0 |
| one_rank_dies, rank_killed | one rank raises, or is killed, in its second block | 1 |
| nccl_error, port_in_use | the ranks cannot meet | 1 |
| hang_load, hang_block | waits for ever | - |
| slow | 0.3 s a block | 0 |
| ignores_sigterm | hangs in its second block and minds no SIGTERM | - |
| grandchild | leaves a process in a session of its own that minds no SIGTERM | 0 |
| missing_audio_track | no ffmpeg to merge the sound with | 0 |
| truncated, disk_full | the encoder dies half way, for no reason or for want of space | 0 |
| short | half of the frames | 0 |
| no_file | nothing is saved | 0 |

What else goes wrong does so for real: weights that are not there, a LoRA that is none, sizes, steps and clips that do
not fit, files that cannot be read.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from typing import Any

_BY_PROMPT = "".join(word.removeprefix("--prompt=fake:") for word in sys.argv if word.startswith("--prompt=fake:"))
_TOLD, _, _TOLD_RANK = _BY_PROMPT.partition("@")
MODES = set(filter(None, (_TOLD or os.environ.get("LIVE_AVATAR_FAKE", "")).split(",")))
RANK = int(os.environ.get("RANK", "0"))
UNFIT_RANK = int(_TOLD_RANK or os.environ.get("LIVE_AVATAR_FAKE_RANK", "0"))
FOR_EVER = 3600.0


def note(**said: Any) -> None:
    """Add a line to the diary, in one write, for other ranks and jobs do so too."""
    path = os.environ.get("LIVE_AVATAR_FAKE_CALLS")
    if path:
        line = json.dumps({"rank": RANK, "pid": os.getpid(), **said}) + "\n"
        with open(path, "ab", buffering=0) as file:
            file.write(line.encode())


def note_start(form: str) -> None:
    note(event="start", form=form, argv=sys.argv[1:], environ=dict(os.environ), cwd=os.getcwd())


def wanted(mode: str) -> bool:
    return mode in MODES and RANK == UNFIT_RANK


def _first_run() -> bool:
    mark = os.environ.get("LIVE_AVATAR_FAKE_MARK")
    if not mark:
        return os.environ.get("AVATAR_ATTEMPT", "1") == "1"
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _out_of_memory() -> None:
    import torch

    raise torch.OutOfMemoryError(
        f"CUDA out of memory. Tried to allocate 2.60 GiB. GPU {RANK} has a total capacity of 79.10 GiB of which "
        "1.18 GiB is free. Including non-PyTorch memory, this process has 77.90 GiB memory in use."
    )


def while_loading() -> None:
    if wanted("hang_load"):
        time.sleep(FOR_EVER)
    if wanted("oom_load"):
        _out_of_memory()
    if wanted("grandchild"):
        import subprocess

        code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=True)


def in_block(number: int) -> None:
    """Spend the time of one block of this rank, counted from 0 over the whole video, and go wrong in the second."""
    if number == 1:
        _go_wrong()
    go = os.environ.get("LIVE_AVATAR_FAKE_GO")
    while number == 2 and go and not os.path.exists(go):
        time.sleep(0.02)
    time.sleep(float(os.environ.get("LIVE_AVATAR_FAKE_SECONDS_PER_BLOCK", "0.3" if "slow" in MODES else "0")))


def _go_wrong() -> None:
    if wanted("oom") or (wanted("oom_once") and _first_run()):
        _out_of_memory()
    if wanted("one_rank_dies"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if wanted("rank_killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if "ignores_sigterm" in MODES:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("stand-in: minds no SIGTERM from now on")
        time.sleep(FOR_EVER)
    if wanted("hang_block"):
        time.sleep(FOR_EVER)


def clips_of(seconds: float, infer_frames: int, num_clip: int | None) -> int:
    """How many clips are made of a recording: upstream's encode_audio, and its cut to what was asked for."""
    samples = math.ceil(seconds * 16000)
    windows = (samples - 400) // 320 + 1
    if windows < 1:
        raise RuntimeError("Calculated padded input size per channel is smaller than the kernel size")
    features = int(windows / 50 * 30)
    need = int(features / (infer_frames * 1.2)) + 1
    clips = need if num_clip is None or num_clip > need else num_clip
    if clips <= 0:
        raise ValueError("torch.cat(): expected a non-empty list of Tensors")
    return clips


def output_size(area: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of the video: both multiples of 64, the aspect of the image, not more than the area."""
    smallest, largest = 0.1, 1.0
    if height * width > area:
        linear, constant = 63 * (height + width), 63 * 63 - area
        root = math.sqrt(linear**2 - 2 * height * width * constant)
        smallest, largest = (root - linear) / (2 * height * width), math.sqrt(area / (height * width))
    for part in range(100):
        scale = largest - (largest - smallest) * part / 100
        rows, columns = (-(-int(side * scale) // 64) * 64 for side in (height, width))
        if rows * columns <= area:
            return rows, columns
    raise ValueError("no size fits")


def check_cache(height: int, width: int, room: int) -> None:
    """The cache of conditions is of a fixed length; tokens of reference and motion that pass it do not fit."""
    need = int(height * width / 256 * 2.5)
    if need > room:
        raise RuntimeError(
            f"The expanded size of the tensor ({room}) must match the existing size ({need}) at non-singleton "
            f"dimension 1.  Target sizes: [1, {room}, 40, 128].  Tensor sizes: [{need}, 40, 128]"
        )


def read_weights(path: str) -> None:
    """torch.load, as far as its refusals go."""
    with open(path, "rb") as file:
        if not file.read(1):
            raise EOFError("Ran out of input")


def read_safetensors(path: str) -> None:
    """Refuse what is no safetensors file: a length of eight bytes and as much JSON."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, os.path.getsize(path)))
    try:
        json.loads(header)
    except ValueError:
        kind = type("SafetensorError", (Exception,), {"__module__": "safetensors_rust"})
        raise kind("Error while deserializing header: header too large") from None
