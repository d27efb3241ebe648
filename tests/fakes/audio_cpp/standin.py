"""Stand-ins for audiocpp_cli and for the ffmpeg behind it, without a network.

Arguments are read as the real command line reads them: an option takes the argument behind the first one that is its
name, wherever that stands. AUDIO_CPP_FAKE says what is left in --out-dir: `mp4` a finished video, `raw` what the real
program's file sink writes of its frames, `nothing`; or it is `hang`. AUDIO_CPP_FAKE_CALLS gets a line for each start.
"""

from __future__ import annotations

import json
import os
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FPS = 16


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def requested(name: str) -> str:
    behind = [value for flag, value in zip(sys.argv, sys.argv[1:], strict=False) if flag == "--request-option"]
    return dict(item.split("=", 1) for item in behind)[name]


def pictures() -> tuple[int, int, list[np.ndarray]]:
    width, height = int(requested("width")), int(requested("height"))
    frames = int(requested("num_clips")) * 48 - 3
    return width, height, [np.full((height, width, 3), number % 256, np.uint8) for number in range(frames)]


def write_mp4(path: str, frames: list[np.ndarray], seconds: float) -> None:
    with av.open(path, "w", format="mp4") as file:
        video = file.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = "yuv420p"
        sound = file.add_stream("aac", rate=48_000)
        for number, picture in enumerate(frames[: round(seconds * FPS)]):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        tone = av.AudioFrame.from_ndarray(np.zeros((1, round(seconds * 48_000)), np.float32), "fltp", "mono")
        tone.sample_rate = 48_000
        file.mux(sound.encode(tone))
        file.mux(sound.encode(None))


def note(program: str) -> None:
    with open(os.environ["AUDIO_CPP_FAKE_CALLS"], "a") as file:
        file.write(json.dumps({"program": program, "argv": sys.argv[2:]}) + "\n")


def cli() -> None:
    assert Path(option("--audio")).is_file()
    assert Path(requested("reference_image_path")).is_file()
    folder, left = Path(option("--out-dir")), os.environ["AUDIO_CPP_FAKE"]
    if left == "hang":
        time.sleep(600)
    if left == "nothing":
        return
    folder.mkdir(parents=True)
    width, height, frames = pictures()
    if left == "mp4":
        write_mp4(str(folder / "out.mp4"), frames, 1.0)
        return
    meta = {"format": "rgb24", "fps": str(FPS), "frames": str(len(frames)), "height": str(height), "width": str(width)}
    payload = b"".join(frame.tobytes() for frame in frames)
    told = {"id": "liveavatar_video_rgb24", "kind": "custom", "bytes": len(payload), "meta": meta}
    line = json.dumps({**told, "payload_hex": payload.hex()}, separators=(",", ":"))
    (folder / "liveavatar_video_rgb24.json").write_text(line + "\n")


def ffmpeg() -> None:
    width, height = map(int, option("-video_size").split("x"))
    raw = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(-1, height, width, 3)
    assert option("-framerate") == str(FPS)
    write_mp4(sys.argv[-1], list(raw), float(option("-t")))


if __name__ == "__main__":
    note(sys.argv[1])
    {"cli": cli, "ffmpeg": ffmpeg}[sys.argv[1]]()
