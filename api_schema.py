"""Requests and answers as they travel. The OpenAPI document is made of these models, so what it says is what is sent.

Requests are checked strictly: `"50"`, `50.0` and `true` are no integers, and a field nobody knows is an error.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    RootModel,
    StringConstraints,
    WithJsonSchema,
)
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from tasks.model import ErrorCode, OutputFormat, Phase, Status
from tasks.outbox import Delivery
from utils.urls import MAX_URL

VERSION = "0.1.0"
"""Of the service, as `/api/v1/health` and the OpenAPI document tell it."""

MAX_PROMPT = 2000
MAX_SOURCE = 4096
"""Characters of `image_path` and `audio_path`: a path or a URL."""

_CONTROL = r"\u0000-\u0008\u000b-\u001f\u007f-\u009f"
PROMPT_PATTERN = f"^[^{_CONTROL}]*[^\\s{_CONTROL}][^{_CONTROL}]*$"
"""Something to read, and no control character but newline and tab."""

TASK_ID = "gen_[0-9]{8}_[0-9a-f]{16}"

# --- requests ---------------------------------------------------------------------------------------------------------


def _prompt(value: str) -> str:
    if re.search(f"[{_CONTROL}]", value):
        raise PydanticCustomError("said", "must not hold control characters other than newline and tab")
    trimmed = value.strip()
    if not 1 <= len(trimmed) <= MAX_PROMPT:
        raise PydanticCustomError("said", "must be 1 to 2,000 characters long after trimming")
    return trimmed


Prompt = Annotated[
    str,
    AfterValidator(_prompt),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_PROMPT, "pattern": PROMPT_PATTERN}),
]
Source = Annotated[str, StringConstraints(min_length=1, max_length=MAX_SOURCE)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
_AN_URL: JsonDict = {"format": "uri", "pattern": "^[Hh][Tt][Tt][Pp][Ss]?://"}  # and more rules: utils.urls
WebhookUrl = Annotated[str, Field(min_length=1, max_length=MAX_URL, json_schema_extra=_AN_URL)]
Size = Literal["720*400", "704*384", "688*368", "384*256"]
PriorityName = Literal["low", "normal", "high"]
MediaKind = Literal["image", "audio"]


class Ask(BaseModel):
    """What clients send. Strict, and without unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class GenerateFields(Ask):
    """All of a generate request but its two media."""

    prompt: Prompt = Field(description="What the video shows. Some engines ignore it and say so in `notes`.")
    size: Size = Field("688*368", description="The video's area in pixels; the aspect follows the image.")
    num_clip: int = Field(50, ge=1, le=10_000, description="At most this many clips; never longer than the audio.")
    sample_steps: int = Field(4, ge=1, le=4)
    output_format: Literal["mp4", "webm"] = "mp4"
    seed: int | None = Field(None, ge=0, le=2**32 - 1, description="Null: random, then reported in `params`.")
    enable_online_decode: bool = Field(False, description="Less memory build-up on long videos.")
    engine: Annotated[str, StringConstraints(min_length=1, max_length=64)] = Field(
        "auto", description="`auto`, or the name of a configured engine (see /api/v1/health)."
    )
    priority: PriorityName = "normal"
    webhook_url: WebhookUrl | None = Field(
        None, description="An http(s) URL that is told of the task's end; see Webhooks."
    )
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] = Field(
        default_factory=dict, description="Returned as given."
    )


_SOURCE_RULE = "A path that /api/v1/upload returned, an http(s) URL, or a path under a configured input folder."


_GENERATE_EXAMPLE: JsonDict = {
    "prompt": "A friendly presenter speaks to the camera.",
    "image_path": "/uploads/image/3f0c9d2be41a4c7f8a55d0b6e2917c34.png",
    "audio_path": "https://example.com/speech.wav",
    "size": "704*384",
    "metadata": {"order": "42"},
}


class GenerateRequest(GenerateFields):
    """Body of `POST /api/v1/generate` as JSON."""

    model_config = ConfigDict(json_schema_extra={"examples": [_GENERATE_EXAMPLE]})

    image_path: Source = Field(description=_SOURCE_RULE)
    audio_path: Source = Field(description=_SOURCE_RULE)


class GenerateForm(GenerateFields):
    """Fields of `POST /api/v1/generate` as a form: a medium that is not sent as a file part is named by path."""

    image_path: Source | None = Field(None, description=_SOURCE_RULE + " In place of `image`.")
    audio_path: Source | None = Field(None, description=_SOURCE_RULE + " In place of `audio`.")


class UploadForm(Ask):
    """Fields of `POST /api/v1/upload` beside the file."""

    type: MediaKind = Field(description="What the bytes are, whatever the file's name says.")


class NoQuery(Ask):
    """The query of a route that takes none."""


class TaskQuery(Ask):
    wait: int | None = Field(
        None, ge=1, le=60, description="Seconds to hold the answer until the task has changed. Ended tasks never wait."
    )


class TasksQuery(Ask):
    status: tuple[Status, ...] = Field((), description="Repeated or comma-separated; none: all.")
    limit: int = Field(50, ge=1, le=200)
    cursor: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        None, description="`next_cursor` of the page before."
    )


class LogQuery(Ask):
    offset: int = Field(0, ge=0, le=2**63 - 1, description="Bytes of the log to skip.")


class ResultQuery(Ask):
    download: Literal["0", "1"] = Field("0", description="`1`: as an attachment.")
    expires: int | None = Field(None, ge=0, lt=2**40, description="Of a signed link: until when, seconds since 1970.")
    signature: str | None = Field(None, max_length=64, description="Of a signed link.")


# --- answers ----------------------------------------------------------------------------------------------------------


def rfc3339(moment: datetime) -> str:
    """Return an aware time as UTC with microseconds, ending in Z."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


Time = Annotated[
    datetime, PlainSerializer(rfc3339, return_type=str), WithJsonSchema({"type": "string", "format": "date-time"})
]
Seconds = Annotated[float, PlainSerializer(lambda value: round(value, 3), return_type=float)]
TaskId = Annotated[str, Field(pattern=f"^{TASK_ID}$", examples=["gen_20261122_9f2c4e7ab81d40c6"])]


class Answer(BaseModel):
    """What the service sends. Every field is always there; what does not apply is null."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_serialization_defaults_required=True)


class Plan(Answer):
    """The video as it will be published."""

    clips: int
    frames: int
    video_seconds: Seconds
    width: int
    height: int
    fps: int


class AdjustmentAnswer(Answer):
    """A request field that was changed to what the hardware can do."""

    field: str
    before: Any = Field(serialization_alias="from")
    after: Any = Field(serialization_alias="to")
    reason: str


class NoteAnswer(Answer):
    """Something to know about the result that is not an adjustment."""

    code: str
    message: str


class Accepted(Answer):
    """Answer to an accepted generate request."""

    task_id: TaskId
    status: Status
    submit_time: Time
    estimated_duration: Seconds = Field(description="Expected seconds until the result, queue included.")
    queue_position: int | None = Field(description="From 1; null once the task has started.")
    engine: str
    profile: str
    status_url: str
    plan: Plan
    adjustments: list[AdjustmentAnswer]
    notes: list[NoteAnswer]


class ParamsAnswer(Answer):
    """What the engine is given."""

    prompt: str
    size: str
    num_clip: int
    sample_steps: int
    output_format: OutputFormat
    seed: int
    enable_online_decode: bool


class VideoAnswer(Answer):
    """Facts of the published video, read from the file."""

    width: int
    height: int
    fps: float
    frames: int
    size_bytes: int
    sha256: str
    video_codec: str
    audio_codec: str


class AttemptAnswer(Answer):
    """One try to tell of a task's end: the status that was answered, or why there was none."""

    at: Time
    ms: int = Field(description="Milliseconds that it took.")
    status_code: int | None
    error: str | None


class WebhookAnswer(Answer):
    """How far the end of a task has been told."""

    url: str
    message_id: str = Field(description="The header `webhook-id` of each attempt.")
    status: Delivery = Field(description="`failed`: given up.")
    attempts: int = Field(description="Since the end, or since it was last asked for anew.")
    next_attempt_at: Time | None = Field(description="Null before the task's end, and once it is told or given up.")
    deliveries: list[AttemptAnswer] = Field(description="The last attempts, the oldest first.")


class TaskAnswer(Accepted):
    """A task as it is now."""

    start_time: Time | None
    finish_time: Time | None
    updated_at: Time
    progress: float = Field(ge=0, le=1, description="Never falls within an attempt.")
    phase: Phase
    eta_seconds: Seconds | None = Field(description="Expected seconds to the end, counted from `updated_at`.")
    attempt: int
    cancel_requested: bool
    priority: PriorityName
    params: ParamsAnswer
    metadata: dict[str, str]
    expires_at: Time | None = Field(
        description="From then on the task, its files and its log may be gone (410). Null until it ended, or for ever."
    )
    output_video_url: str | None
    poster_url: str | None
    duration_seconds: Seconds | None = Field(description="Of the video.")
    processing_seconds: Seconds | None
    video: VideoAnswer | None
    error: str | None = Field(description="One line a person can act on, where the task failed.")
    error_code: ErrorCode | None
    log_excerpt: str | None = Field(description="The last lines of the engine's log, where the task failed.")
    webhook: WebhookAnswer | None = Field(description="Null where no `webhook_url` was given.")


class TaskEnded(Answer):
    """What a `webhook_url` is sent, once for each task, as often as it takes."""

    type: Literal["task.completed", "task.failed", "task.cancelled"]
    timestamp: Time = Field(description="When the task ended.")
    data: TaskAnswer


class TasksAnswer(Answer):
    """A page of tasks, newest first."""

    tasks: list[TaskAnswer]
    next_cursor: str | None = Field(description="Null on the last page.")


class ImageMedia(Answer):
    """An image as engines will see it, in pixels."""

    width: int
    height: int


class AudioMedia(Answer):
    """A recording as engines will see it."""

    seconds: float
    sample_rate: int
    channels: int
    samples: int


class UploadAnswer(Answer):
    """A medium that was stored; `path` goes into a generate request. Size and hash are of the bytes as sent."""

    path: str
    type: MediaKind
    size_bytes: int
    sha256: str
    media: ImageMedia | AudioMedia


class EngineAnswer(Answer):
    """An engine, whether it can run here, and if not, why."""

    name: str
    title: str
    available: bool
    reason: str
    profiles: list[str]


class GpuAnswer(Answer):
    """A GPU, or an instance of one in MIG mode; memory in GiB, `processes` those that compute on it, anyone's.

    `state`: free; busy with a task; settling, while an ended task's memory is on its way back; held, where it did not
    come back in time and the GPU is used for what is free on it.
    """

    index: int
    name: str
    uuid: str
    total_gib: float
    free_gib: float
    capability: str | None
    processes: int
    mig: bool
    state: Literal["free", "busy", "settling", "held"]


class QueueAnswer(Answer):
    queued: int
    processing: int


HealthStatus = Literal["healthy", "degraded", "draining"]


class HealthSummary(Answer):
    """Whether new tasks can be run now: what anyone may know."""

    status: HealthStatus
    model_loaded: bool
    version: str


class HealthAnswer(HealthSummary):
    """Whether new tasks can be run now, and why not."""

    engines: list[EngineAnswer]
    gpus: list[GpuAnswer]
    queue: QueueAnswer
    reasons: list[str]
    warnings: list[str] = Field(description="What else needs a look, but keeps no task from running.")


class HealthReply(RootModel[HealthAnswer | HealthSummary]):
    """All of it, or what is told to callers without credentials where others need some."""
