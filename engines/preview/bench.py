"""`python -m engines.preview.bench`: how fast the engine is, against real time and against its own encoder alone.

Each run makes the whole video of ten seconds of speech (opening, face search, listening, drawing, encoding), then
encodes the same frames and the same sound again from memory. The best of the runs counts; process start does not. The
exit code is 1 when a limit is missed. The limits are for two idle cores; the processor times tell what is the engine's
own where others are at work.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")

import av
import cv2

from engines.preview.job import Job, make_preview, prepare
from engines.preview.progress import Progress
from engines.preview.recording import Recording, open_recording
from engines.preview.video import Format, Video
from utils.plan import VideoPlan

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
SIZE = "704*384"
SECONDS = 10
MIN_SPEED = 8.0
MAX_RATIO = 1.7


@dataclass(frozen=True, slots=True, order=True)
class Cost:
    """Seconds on the wall and of all processors."""

    wall: float
    processor: float


class _Silent(Progress):
    """Reports nothing: lines between the figures would have to be read around."""

    def log(self, text: str) -> None:
        pass


def main(arguments: list[str]) -> int:
    """Print the figures of one portrait; return 0 when both limits hold."""
    parser = argparse.ArgumentParser(prog="engines.preview.bench")
    parser.add_argument("--image", type=Path, default=SAMPLES / "portrait.png")
    parser.add_argument("--audio", type=Path, default=SAMPLES / "speech.wav")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--format", choices=("mp4", "webm"), default="mp4")
    given = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    av.logging.set_level(None)
    with tempfile.TemporaryDirectory() as folder:
        audio = ten_seconds(given.audio, Path(folder) / "speech.wav")
        job = Job(given.image, audio, SIZE, num_clip=9, seed=0, output_dir=Path(folder), format=given.format)
        return _report(*measure(job, given.runs))


def ten_seconds(source: Path, target: Path) -> Path:
    """Write SECONDS of the WAV at `source`, repeated where it is shorter, to `target` and return that."""
    with open_recording(source) as recording, wave.open(str(target), "wb") as out:
        out.setnchannels(recording.channels)
        out.setsampwidth(2)
        out.setframerate(recording.rate)
        left = SECONDS * recording.rate
        while left:
            samples = recording.read(0, min(left, recording.length))
            out.writeframes(samples.tobytes())
            left -= len(samples)
    return target


def measure(job: Job, runs: int) -> tuple[VideoPlan, Cost, Cost]:
    """Return the plan and the least cost of the whole job and of encoding alone."""
    silent = _Silent(None)
    with open_recording(job.audio) as recording:
        plan, scene = prepare(job, recording, silent, _go_on)
        unused = job.output_dir / "encoded"
        with Video(unused, job.format, plan, recording) as video:
            made = [video.frame() for _ in range(plan.frames)]
        for index, (_, planes) in enumerate(made):
            scene.draw(index, planes)
        frames = [frame for frame, _ in made]
        jobs, encodings = [], []
        for _ in range(runs):
            jobs.append(_cost(lambda: make_preview(job, silent, _go_on)))
            encodings.append(_cost(lambda: _encode(unused, job.format, plan, recording, frames)))
    return plan, min(jobs), min(encodings)


def _encode(path: Path, kind: Format, plan: VideoPlan, recording: Recording, frames: list[av.VideoFrame]) -> None:
    with Video(path, kind, plan, recording) as video:
        for frame in frames:
            video.write(frame)
        video.close()


def _cost(work: Callable[[], object]) -> Cost:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - wall, time.process_time() - processor)


def _go_on() -> None:
    pass


def _report(plan: VideoPlan, job: Cost, encoding: Cost) -> int:
    speed, ratio = plan.video_seconds / job.wall, job.wall / encoding.wall
    print(f"{plan.frames} frames of {plan.width} x {plan.height}, {plan.video_seconds:.2f} s")
    print(f"whole job      {job.wall:6.3f} s   {speed:5.1f} x real time   (at least {MIN_SPEED:.0f})")
    print(f"encoding alone {encoding.wall:6.3f} s   job / encoding {ratio:4.2f}   (at most {MAX_RATIO})")
    print(f"processor time {job.processor:6.3f} s and {encoding.processor:.3f} s")
    return 0 if speed >= MIN_SPEED and ratio <= MAX_RATIO else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
