"""One video on four GPUs, through the Gradio module of Alibaba-Quark/LiveAvatar (written against 9c2c38d).

Started by torchrun in every rank, in upstream's Python environment and with its checkout as working folder. So this
file imports the standard library, torch and upstream's own modules, and nothing of the service.

Upstream's `minimal_inference/s2v_streaming_interact.py` insists on five GPUs. `minimal_inference/gradio_app.py` does
not, and its functions need no Gradio, only its name to import. They are made for a server that never ends, though:

- A failure is told to the log and becomes None. When one rank fails alone, the others wait for it for ever. So the
  first rank whose log tells a failure says why and ends with 1; torchrun then stops the others.
- The ranks but the first sit in `worker_loop()` for good. So they hold the reading end of a FIFO of which rank 0 holds
  the writing end: when rank 0 has ended they end too, with 0 if the video is there.
- Idle ranks wait inside a broadcast, and upstream's process group gives up on one after ten minutes, less than a long
  video takes to save. An existing group is kept, so the driver makes one that is patient.
- Bars of all ranks run into each other. So `tqdm` becomes a counter in the pipeline's module, and rank 0 tells a block
  done whenever one of its bars is: four in each clip of 48 frames.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import math
import os
import re
import select
import shutil
import sys
import threading
import traceback
import wave
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

PATIENCE = timedelta(days=7)
FRAMES_PER_BLOCK = 12
FAILURES = re.compile(
    r"Error during generation: |\[Rank \d+\] Error in worker loop: |save_video failed|merge_video_audio failed"
)


@dataclass(frozen=True)
class Job:
    """What `gradio_app.py` does not read from its command line. Paths are absolute."""

    prompt: str
    image: str
    audio: str
    save_file: Path
    fifo: Path


def read_command_line(argv: list[str]) -> Job:
    """Take the job out of `argv` and leave the rest in `sys.argv`, where upstream's parser looks."""
    parser = argparse.ArgumentParser("driver", allow_abbrev=False)
    for name in ("--prompt", "--image", "--audio", "--save_file", "--save_dir"):
        parser.add_argument(name, required=True)
    own, rest = parser.parse_known_args(argv)
    sys.argv = ["gradio_app.py", f"--save_dir={own.save_dir}", *rest]
    folder = Path(own.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    # An empty prompt is none to upstream's worker ranks: they would leave rank 0 to wait for them.
    return Job(own.prompt or " ", own.image, own.audio, Path(own.save_file), folder / "rank0")


# --- telling -------------------------------------------------------------------------------------------------------


class Channel:
    """The contract's progress lines. They never make the video wait: a line that nobody takes is dropped."""

    def __init__(self) -> None:
        # torchrun starts its workers without the descriptors that it inherited, but it still holds them itself.
        path = f"/proc/{os.getppid()}/fd/{os.environ.get('AVATAR_PROGRESS_FD')}"
        self._descriptor: int | None = None
        with contextlib.suppress(OSError):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)

    def progress(self, phase: str, done: int = 0, total: int = 0) -> None:
        line = "@progress " + json.dumps({"phase": phase, "done": done, "total": total})
        if self._descriptor is None:
            print(line, flush=True)
            return
        with contextlib.suppress(OSError):
            os.write(self._descriptor, line.encode() + b"\n")


class Blocks:
    """Stands for `tqdm` in the pipeline's module: hands the steps through, and counts what is done."""

    def __init__(self, total: int, channel: Channel | None) -> None:
        self._done, self._total, self._channel = 0, total, channel

    def __call__(self, steps: Iterable[Any], *_: Any, **__: Any) -> Iterator[Any]:
        yield from steps
        self._done += 1
        if self._channel is not None:
            self._channel.progress("generating", min(self._done, self._total), self._total)


def count_blocks(audio: str, num_clip: int, infer_frames: int) -> int:
    """Return how many blocks rank 0 will denoise.

    The clips are those of upstream's `encode_audio` and `get_audio_embed_bucket_fps`: one feature for 320 samples at
    16 kHz after a window of 400, resampled from 50 to 30 a second, and the clip that holds the end.
    """
    with wave.open(audio) as file:
        samples = math.ceil(file.getnframes() / file.getframerate() * 16_000)
    features = int(((samples - 400) // 320 + 1) / 50 * 30)
    clips = min(num_clip, int(features / (infer_frames * 1.2)) + 1)
    return clips * (infer_frames // FRAMES_PER_BLOCK)


# --- ending --------------------------------------------------------------------------------------------------------


def leave(status: int) -> NoReturn:
    """End at once: what torch and NCCL do at an ordinary exit waits for the other ranks."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def fail(message: str, save_file: Path) -> NoReturn:
    """Say why, each line with the rank before it as torch writes them, the cause last; then end with 1.

    Once the video has its name, though, all that can fail is the last exchange with ranks that have ended already.
    """
    if save_file.exists():
        leave(0)
    told = traceback.format_exc() if sys.exc_info()[0] is not None else f"RuntimeError: {message}"
    rank = os.environ["RANK"]
    sys.stderr.write("".join(f"[rank{rank}]: {line}\n" for line in told.rstrip().split("\n")))
    leave(1)


class Listener(logging.Handler):
    """Hears what upstream tells only to its log, in the thread and at the moment in which it happens."""

    def __init__(self, save_file: Path, saves: bool) -> None:
        super().__init__()
        self._save_file, self._channel = save_file, Channel() if saves else None

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if FAILURES.match(message):
            fail(message, self._save_file)
        if self._channel is not None and message.startswith("Saving generated video to "):
            self._channel.progress("encoding")


def hold(fifo: Path) -> int:
    """Rank 0: take the writing end. It closes when this process ends, however it ends."""
    return os.open(fifo, os.O_RDWR | os.O_CLOEXEC)


def release(writer: int) -> None:
    """Rank 0: let the others go. The byte is for the case that a process which outlives this one has a copy."""
    os.write(writer, b".")


def follow(fifo: Path, save_file: Path) -> None:
    """The other ranks: end when rank 0 lets go, with 0 if the video is there."""
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def wait() -> None:
        poll = select.poll()
        poll.register(reader, select.POLLIN)  # or the writer's end; a FIFO that had no writer yet tells neither
        poll.poll()
        leave(0 if save_file.exists() else 1)

    threading.Thread(target=wait, daemon=True).start()


# --- upstream ------------------------------------------------------------------------------------------------------


def import_upstream() -> ModuleType:
    """Import the Gradio module from the working folder. The name of Gradio is all that it needs at import."""
    sys.path[0] = str(Path.cwd())  # in place of this file's folder, which is the service's
    sys.modules.setdefault("gradio", module_from_spec(ModuleSpec("gradio", None)))
    return importlib.import_module("minimal_inference.gradio_app")


def meet() -> None:
    """Make the process group that upstream then keeps."""
    torch, distributed = (importlib.import_module(name) for name in ("torch", "torch.distributed"))
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group(
        backend="nccl", init_method="env://", timeout=PATIENCE,
        rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]),
    )  # fmt: skip


def load(upstream: Any, job: Job) -> argparse.Namespace:
    """Load the model in this rank, and from then on hear what goes wrong."""
    args: argparse.Namespace = upstream._parse_args()
    upstream.initialize_pipeline(args, upstream.training_config_parser(args.training_config))
    saves = upstream.global_rank == upstream.global_save_rank
    if saves:
        logging.getLogger().setLevel(logging.INFO)  # a failure to save is told at this level
    logging.getLogger().addHandler(Listener(job.save_file, saves))
    return args


def count_in_pipeline(upstream: Any, blocks: Blocks) -> None:
    pipeline = sys.modules[type(upstream.wan_s2v_pipeline).__module__]
    vars(pipeline)["tqdm"] = blocks


def make_video(upstream: Any, args: argparse.Namespace, job: Job) -> None:
    """Rank 0: have all ranks compute, then give the file its name."""
    made = upstream.run_single_sample(
        job.prompt, job.image, job.audio, args.num_clip, args.sample_steps, args.sample_guide_scale,
        args.infer_frames, args.size, args.base_seed, args.sample_solver,
    )  # fmt: skip
    if not made:
        fail("upstream returned no video and no reason", job.save_file)
    hidden = job.save_file.with_name("." + job.save_file.name)
    shutil.move(made, hidden)
    hidden.replace(job.save_file)


def run(job: Job) -> NoReturn:
    with contextlib.suppress(FileExistsError):
        os.mkfifo(job.fifo, 0o600)
    if os.environ["RANK"] == "0":
        lead(job)
    follow(job.fifo, job.save_file)
    upstream = import_upstream()
    meet()
    load(upstream, job)
    count_in_pipeline(upstream, Blocks(0, None))
    upstream.worker_loop()
    fail("upstream's worker loop has ended", job.save_file)


def lead(job: Job) -> NoReturn:
    """Rank 0."""
    writer, channel = hold(job.fifo), Channel()
    channel.progress("loading_model")
    upstream = import_upstream()
    meet()
    args = load(upstream, job)
    total = count_blocks(job.audio, args.num_clip, args.infer_frames)
    count_in_pipeline(upstream, Blocks(total, channel))
    channel.progress("generating", 0, total)
    make_video(upstream, args, job)
    release(writer)
    leave(0)


if __name__ == "__main__":
    given = read_command_line(sys.argv[1:])
    try:
        run(given)
    except Exception as error:
        fail(str(error), given.save_file)
