"""The command line of the preview engine: the engine contract's arguments, environment, signals and exit codes.

Exit 0: the video is in --output_dir. 1: bad input or damaged weights, one line on
stderr. 2: bad arguments. 143: stopped by SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")

import av
import cv2

from engines.preview.errors import BadInput, Stopped
from engines.preview.job import Job, make_preview
from engines.preview.networks import WrongWeights
from engines.preview.progress import Progress
from utils.plan import SIZES

STOPPED = 128 + signal.SIGTERM


def parse(arguments: Sequence[str]) -> Job:
    """Read the engine contract's arguments. The prompt, the steps and online decoding mean nothing to this engine."""
    parser = argparse.ArgumentParser(prog="engines.preview", allow_abbrev=False)
    parser.add_argument("--prompt", default="")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--size", choices=sorted(SIZES), required=True)
    parser.add_argument("--num_clip", type=_positive, required=True)
    parser.add_argument("--sample_steps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--enable_online_decode", action="store_true")
    parser.add_argument("--output_format", choices=("mp4", "webm"), default="mp4")
    given = parser.parse_args(arguments)
    return Job(
        image=given.image,
        audio=given.audio,
        size=given.size,
        num_clip=given.num_clip,
        seed=given.seed,
        output_dir=given.output_dir,
        format=given.output_format,
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def main(arguments: Sequence[str]) -> int:
    """Make one preview and return the exit code."""
    job = parse(arguments)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def check() -> None:
        if stop.is_set():
            raise Stopped

    cv2.setNumThreads(1)
    av.logging.set_level(None)
    try:
        make_preview(job, Progress.from_environment(os.environ), check)
    except Stopped:
        print("stopped before the video was whole", file=sys.stderr)
        return STOPPED
    except (BadInput, WrongWeights, OSError, av.FFmpegError) as error:
        print(f"preview: {error}".splitlines()[0], file=sys.stderr)
        return 1
    return 0
