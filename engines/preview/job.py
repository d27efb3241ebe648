"""One preview from its inputs to the published file. Knows no arguments, environment or signals: see main.py."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from engines.preview.errors import BadInput
from engines.preview.face import Face, Mesher, find_face
from engines.preview.meter import MeterScene
from engines.preview.portrait import Pixels, fit, open_portrait
from engines.preview.progress import Progress
from engines.preview.recording import Recording, open_recording
from engines.preview.render import Scene, drawn
from engines.preview.speech import Speech, listen
from engines.preview.talking import TalkingScene
from engines.preview.video import Format, Video
from utils.plan import VideoPlan, plan_video


@dataclass(frozen=True, slots=True)
class Job:
    """What one preview is made of; `size` is a key of utils.plan.SIZES."""

    image: Path
    audio: Path
    size: str
    num_clip: int
    seed: int
    output_dir: Path
    format: Format = "mp4"


def make_preview(job: Job, progress: Progress, check: Callable[[], None]) -> Path:
    """Make the video and return its path; `check` is called often and may raise to end the work.

    The file appears under its final name only when it is whole. Raises BadInput.
    """
    started = time.monotonic()
    progress.phase("preparing", 0, 0)
    with open_recording(job.audio) as recording:
        plan, scene = prepare(job, recording, progress, check)
        path = _write(job, plan, scene, recording, progress, check)
    took = time.monotonic() - started
    speed = plan.video_seconds / took
    progress.log(f"made {plan.frames} frames ({plan.video_seconds:.2f} s) in {took:.2f} s: {speed:.1f} x real time")
    return path


def prepare(job: Job, recording: Recording, progress: Progress, check: Callable[[], None]) -> tuple[VideoPlan, Scene]:
    """Return what the video will be and the scene that draws its frames. Raises BadInput."""
    # Loading the mesh network, listening and searching each take about as long: side by side they cost half.
    with ThreadPoolExecutor(2) as pool:
        mesh_network = pool.submit(Mesher)
        rgb = open_portrait(job.image)
        plan = _plan(job, rgb, recording)
        picture = fit(rgb, plan.width, plan.height)
        hearing = pool.submit(listen, recording, plan.frames, plan.fps, check)
        progress.log(f"making {plan.frames} frames of {plan.width} x {plan.height} pixels")
        progress.phase("loading_model", 0, 0)
        face = find_face(picture, check, mesh_network.result)
        return plan, _scene(picture, face, hearing.result(), plan, job.seed, progress)


def _plan(job: Job, rgb: Pixels, recording: Recording) -> VideoPlan:
    height, width = rgb.shape[:2]
    try:
        return plan_video(
            size=job.size,
            num_clip=job.num_clip,
            image_width=width,
            image_height=height,
            audio_seconds=recording.seconds,
        )
    except ValueError as error:
        raise BadInput(str(error)) from error


def _scene(picture: Pixels, face: Face | None, speech: Speech, plan: VideoPlan, seed: int, progress: Progress) -> Scene:
    if face is None:
        progress.note("no_face", "No face was found in the portrait: the video shows it with a speech meter.")
        return MeterScene(picture, speech, plan, seed)
    progress.log(f"face found by the {face.stage} search, presence {face.presence:.2f}")
    if face.stage == "weak":
        progress.note("weak_face", "The face was found with little certainty: its mouth moves, its eyes do not blink.")
    return TalkingScene(picture, face, speech, plan, seed)


def _write(
    job: Job,
    plan: VideoPlan,
    scene: Scene,
    recording: Recording,
    progress: Progress,
    check: Callable[[], None],
) -> Path:
    job.output_dir.mkdir(parents=True, exist_ok=True)
    # Not a video's suffix: whoever looks for the result must never find half of one.
    unfinished = job.output_dir / f".unfinished-{os.getpid()}.part"
    try:
        with (
            Video(unfinished, job.format, plan, recording) as video,
            drawn(scene, plan.frames, video.frame) as frames,
        ):
            for done, frame in enumerate(frames, start=1):
                check()
                video.write(frame)
                progress.phase("generating", done, plan.frames)
            progress.phase("encoding", plan.frames, plan.frames)
            video.close()
        final = job.output_dir / f"video.{job.format}"
        unfinished.replace(final)
    finally:
        unfinished.unlink(missing_ok=True)
    return final
