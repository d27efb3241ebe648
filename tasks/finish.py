"""From an engine's output folder to published files: verify, convert where needed, poster, hash, one rename.

A reader sees a result folder whole or not at all. The ending of an attempt is kept in a file beside the log until the
row has it, so that a database that cannot be reached costs no work.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.disk import is_full
from tasks.estimate import Lesson
from tasks.model import (
    Adjustment,
    ErrorCode,
    Event,
    Facts,
    Failure,
    Lowered,
    Note,
    OutputFormat,
    Params,
    Result,
    Video,
)
from tasks.spec import FINISH_FILE, OUTPUT_FOLDER, STAGING_FOLDER, AttemptSpec
from tasks.verdict import DISK_FULL, Output, Planned, excerpt_of, judge_output
from utils.failpoint import Point, reach
from utils.file_handler import remove_if_possible, sync, write_atomic
from utils.plan import VideoPlan
from utils.video import (
    VideoError,
    VideoFacts,
    VideoStopped,
    inspect_video,
    is_faststart,
    to_faststart,
    to_webm,
    write_poster,
)

log = logging.getLogger("finish")

POSTER_NAME = "poster.jpg"
_VIDEO_SUFFIXES = {".mp4", ".webm"}


class Unusable(Exception):
    """The engine's output is not a result; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Abandoned(Exception):
    """`should_stop` said so before the result was published."""


def publish(spec: AttemptSpec, log_tail: str, should_stop: Callable[[], bool]) -> Result:
    """Verify the attempt's video and publish it under `spec.results`. Raises Unusable or Abandoned."""
    try:
        return _publish(spec, log_tail, should_stop)
    except VideoStopped:
        raise Abandoned from None
    except VideoError as error:
        text = f"the engine's video cannot be used: {error}"
        raise Unusable(Failure(ErrorCode.ENGINE_OUTPUT_INVALID, text, excerpt_of(log_tail))) from error
    except OSError as error:
        if is_full(error):
            raise Unusable(Failure(ErrorCode.DISK_FULL, DISK_FULL, excerpt_of(log_tail))) from error
        raise


def _publish(spec: AttemptSpec, log_tail: str, should_stop: Callable[[], bool]) -> Result:
    made, facts = _verified(spec, log_tail)
    reach(Point.VERIFIED)
    staging = Path(spec.folder) / STAGING_FOLDER
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    video = staging / f"video.{spec.params.output_format}"
    _bring_into_form(made, facts, video, should_stop)
    write_poster(video, staging / POSTER_NAME)
    final = facts if facts.container == spec.params.output_format else inspect_video(video)
    described = _describe(video, final)
    if should_stop():
        raise Abandoned
    reach(Point.STAGED)
    _reveal(staging, Path(spec.results))
    reach(Point.REVEALED)
    shutil.rmtree(Path(spec.folder) / OUTPUT_FOLDER, ignore_errors=True)
    return Result(video.name, POSTER_NAME, described)


def _verified(spec: AttemptSpec, log_tail: str) -> tuple[Path, VideoFacts]:
    folder = Path(spec.folder) / OUTPUT_FOLDER
    videos = [path for path in sorted(folder.iterdir()) if _is_result(path)] if folder.is_dir() else []
    facts, output = None, Output(len(videos))
    if len(videos) == 1:
        try:
            facts = inspect_video(videos[0])
            output = Output(1, facts.frames, facts.duration_seconds)
        except VideoError as error:
            output = Output(1, defect=str(error))
    planned = Planned(spec.plan.frames, spec.extra_frames, spec.plan.video_seconds, spec.seconds_tolerance)
    failure = judge_output(output, planned, log_tail, spec.limits.file_bytes)
    if failure is not None or facts is None:
        raise Unusable(failure or Failure(ErrorCode.ENGINE_OUTPUT_INVALID, "no video"))
    return videos[0], facts


def _is_result(path: Path) -> bool:
    """Hidden files and links are not results: an engine writes under a hidden name and renames when done."""
    return path.suffix in _VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file() and not path.is_symlink()


def _bring_into_form(made: Path, facts: VideoFacts, video: Path, should_stop: Callable[[], bool]) -> None:
    if video.suffix == ".webm" and facts.container != OutputFormat.WEBM:
        to_webm(made, video, should_stop=should_stop)
    elif video.suffix == ".mp4" and not is_faststart(made):
        to_faststart(made, video)
    else:
        made.rename(video)


def _describe(video: Path, facts: VideoFacts) -> Video:
    with video.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Video(
        width=facts.width, height=facts.height, fps=facts.fps, frames=facts.frames,
        duration_seconds=facts.duration_seconds, size_bytes=video.stat().st_size, sha256=digest,
        video_codec=facts.video_codec, audio_codec=facts.audio_codec,
    )  # fmt: skip


def discard(folder: Path, results: Path) -> None:
    """Remove all that an attempt without a result made, published or not; its log stays.

    What cannot be removed is left to the sweep, for it must keep no end from its row.
    """
    for path in (results, folder / STAGING_FOLDER, folder / OUTPUT_FOLDER):
        remove_if_possible(path)
    with suppress(OSError):  # other attempts published there, or nobody did
        results.parent.rmdir()


def _reveal(staging: Path, results: Path) -> None:
    """Make the staged files durable, then visible, in that order."""
    for path in staging.iterdir():
        sync(path)
    sync(staging)
    results.parent.mkdir(parents=True, exist_ok=True)
    staging.rename(results)
    for folder in (results.parent, results.parent.parent):  # the task's, and the one that names it
        sync(folder)


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended, as it goes into the row."""

    event: Event
    facts: Facts
    lesson: Lesson | None = None

    def save(self, folder: Path) -> None:
        write_atomic(folder / FINISH_FILE, json.dumps(asdict(self)).encode())

    @staticmethod
    def load(folder: Path) -> Ending | None:
        """Return the ending that a runner left in an attempt's folder, or None where there is none to be understood."""
        try:
            raw = json.loads((folder / FINISH_FILE).read_bytes())
            lesson = Lesson(**raw["lesson"]) if raw["lesson"] else None
            return Ending(Event(raw["event"]), _facts(raw["facts"]), lesson)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # Of another release, or of a disk that failed: a new attempt costs less than a task that never ends.
            log.error("the end that is kept in %s cannot be understood: %r", folder, error)
            return None


def _facts(raw: dict[str, Any]) -> Facts:
    failure, result, lowered = raw["failure"], raw["result"], raw["lowered"]
    return Facts(
        failure=Failure(**{**failure, "code": ErrorCode(failure["code"])}) if failure else None,
        result=Result(**{**result, "video": Video(**result["video"])}) if result else None,
        lowered=_lowered(lowered) if lowered else None,
        notes=tuple(Note(**note) for note in raw["notes"]),
    )


def _lowered(raw: dict[str, Any]) -> Lowered:
    params = {**raw["params"], "output_format": OutputFormat(raw["params"]["output_format"])}
    return Lowered(Params(**params), VideoPlan(**raw["plan"]), Adjustment(**raw["adjustment"]))
