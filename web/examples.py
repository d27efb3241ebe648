"""Examples for the OpenAPI document: one for each kind of success, one for each error code.

They are made of the models that answers are made of, so that one which no longer fits fails where it is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel

import api_schema as wire
from tasks.model import ErrorCode, OutputFormat, Phase, Status
from tasks.outbox import Delivery
from utils.plan import plan_video
from web.errors import HTTP, Code, Problem

Json = dict[str, Any]
Named = Mapping[str, Any]
"""Examples of one place, by a short name."""

_ID = "gen_20261122_9f2c4e7ab81d40c6"
PATH_PARTS: Mapping[str, str] = {"task_id": _ID, "name": "video.mp4"}
"""Of addresses. Other parameters have none: the page would send them with every request that is tried there."""

_SUBMITTED = datetime(2026, 11, 22, 10, 15, 4, 250_000, UTC)
_SHA256 = "9b74c9897bac770ffc029102a200c5de5f3e1f0cfb7c2d1d6f6e0c2b8a2d9b41"
_IMAGE = "/uploads/image/3f0c9d2be41a4c7f8a55d0b6e2917c34.png"
_AUDIO = "/uploads/audio/b81d40c69f2c4e7a0b6e2917c343f0c9.wav"
_PLANNED = plan_video(size="704*384", num_clip=50, image_width=704, image_height=384, audio_seconds=9.6)
_PLAN = wire.Plan(**asdict(_PLANNED), video_seconds=_PLANNED.video_seconds)
_LOG = """\
Load model from ckpt/Wan2.2-S2V-14B
clip 1 of 5 is done
clip 2 of 5 is done
"""


def _task(seconds: float, **changes: Any) -> wire.TaskAnswer:
    """Return the example's task, so many seconds after it was submitted."""
    values: Json = {
        "task_id": _ID, "status": Status.QUEUED, "submit_time": _SUBMITTED, "estimated_duration": 162.0,
        "queue_position": None, "engine": "live_avatar", "profile": "single_80gb",
        "status_url": f"/api/v1/task/{_ID}",
        "plan": _PLAN,
        "adjustments": [], "notes": [], "start_time": None, "finish_time": None,
        "updated_at": _SUBMITTED + timedelta(seconds=seconds), "progress": 0.0, "phase": Phase.QUEUED,
        "eta_seconds": None, "attempt": 0, "cancel_requested": False, "priority": "normal",
        "params": wire.ParamsAnswer(
            prompt="A friendly presenter speaks to the camera.", size="704*384", num_clip=50, sample_steps=4,
            output_format=OutputFormat.MP4, seed=420_000, enable_online_decode=False,
        ),
        "metadata": {"order": "42"}, "expires_at": None, "output_video_url": None, "poster_url": None,
        "duration_seconds": None, "processing_seconds": None, "video": None, "error": None, "error_code": None,
        "log_excerpt": None, "webhook": None,
    }  # fmt: skip
    return wire.TaskAnswer(**values | changes)


_STARTED = {"start_time": _SUBMITTED + timedelta(seconds=2), "attempt": 1}
_QUEUED = _task(0, queue_position=3, eta_seconds=162.0)
_RUNNING = _task(90, **_STARTED, status=Status.PROCESSING, phase=Phase.GENERATING, progress=0.45, eta_seconds=70.0)
_ENDED: Json = {
    **_STARTED, "phase": Phase.DONE, "finish_time": _SUBMITTED + timedelta(seconds=158),
    "expires_at": _SUBMITTED + timedelta(days=7, seconds=158), "processing_seconds": 156.0,
}  # fmt: skip
_COMPLETED = _task(
    158, **_ENDED, status=Status.COMPLETED, progress=1.0, output_video_url=f"/results/{_ID}/video.mp4",
    poster_url=f"/results/{_ID}/poster.jpg", duration_seconds=_PLAN.video_seconds,
    video=wire.VideoAnswer(
        width=704, height=384, fps=25.0, frames=_PLAN.frames, size_bytes=1_482_133, sha256=_SHA256, video_codec="h264",
        audio_codec="aac",
    ),
)  # fmt: skip
_FAILED = _task(
    158, **_ENDED, status=Status.FAILED, progress=0.2, error_code=ErrorCode.OOM,
    error="the GPU ran out of memory: choose a smaller size, or a larger GPU",
    log_excerpt="torch.OutOfMemoryError: CUDA out of memory.",
)  # fmt: skip
_EVENTS: Mapping[str, Json] = {
    "a change": {"event": "task", "id": "12-0:1:0", "data": _RUNNING.model_dump_json(by_alias=True)},
    "lines of the log": {"event": "log", "id": "12-0:1:80", "data": _LOG.rstrip("\n")},
}
_CANCELLED = _task(158, **_ENDED, status=Status.CANCELLED, progress=0.2, cancel_requested=True)
_CANCELLING = _RUNNING.model_copy(update={"cancel_requested": True})
_UNSTARTED = _task(1, status=Status.CANCELLED, phase=Phase.DONE, finish_time=_SUBMITTED + timedelta(seconds=1))

_HOOK = wire.WebhookAnswer(
    url="https://example.com/hooks/avatar", message_id=f"msg_{_ID}", status=Delivery.PENDING, attempts=0,
    next_attempt_at=None, deliveries=[],
)  # fmt: skip
_TRIED = wire.AttemptAnswer(at=_SUBMITTED + timedelta(seconds=158), ms=412, status_code=503, error=None)
_TOLD = _COMPLETED.model_copy(
    update={
        "webhook": _HOOK.model_copy(
            update={
                "status": Delivery.DELIVERED, "attempts": 2,
                "deliveries": [
                    _TRIED, wire.AttemptAnswer(at=_TRIED.at + timedelta(seconds=5), ms=96, status_code=204, error=None)
                ],
            }
        )
    }
)  # fmt: skip


def _ended(task: wire.TaskAnswer) -> wire.TaskEnded:
    """Return what is sent of an ended task at the first attempt."""
    first = _HOOK.model_copy(update={"attempts": 1, "next_attempt_at": task.updated_at + timedelta(seconds=30)})
    return wire.TaskEnded.model_validate(
        {
            "type": f"task.{task.status}", "timestamp": task.finish_time,
            "data": task.model_copy(update={"webhook": first}),
        }
    )  # fmt: skip


_ACCEPTED = wire.Accepted(**{name: getattr(_QUEUED, name) for name in wire.Accepted.model_fields})
_LOWERED = _ACCEPTED.model_copy(
    update={
        "profile": "single_fp8_48gb",
        "adjustments": [
            wire.AdjustmentAnswer(
                field="size", before="704*384", after="384*256", reason="single_fp8_48gb has no memory for more"
            )
        ],
    }
)

_SUMMARY: Json = {"status": "healthy", "model_loaded": False, "version": wire.VERSION}
_HEALTH: Json = {
    **_SUMMARY,
    "engines": [
        wire.EngineAnswer(name="live_avatar", title="Live Avatar", available=True, reason="", profiles=["single_80gb"])
    ],
    "gpus": [
        wire.GpuAnswer(
            index=0, name="NVIDIA H100 80GB HBM3", uuid="GPU-5f1c1c5e-0f0e-4b7e-9d43-7a1f0a1f5a11", total_gib=79.6,
            free_gib=79.1, capability="9.0", processes=0, mig=False, state="free",
        )
    ],
    "queue": wire.QueueAnswer(queued=2, processing=1), "reasons": [], "warnings": [],
}  # fmt: skip
_DEGRADED: Json = {
    **_HEALTH, "status": "degraded", "reasons": ["no process schedules tasks at present"],
    "warnings": ["the clock of this host jumped; nothing that expired is removed until it is right again"],
}  # fmt: skip


def _plain(value: BaseModel | str | Json) -> Any:
    return value.model_dump(mode="json", by_alias=True) if isinstance(value, BaseModel) else value


_REPLIES: Mapping[tuple[str, int], Mapping[str, BaseModel | str | Json]] = {
    ("generate", 201): {"as asked": _ACCEPTED, "lowered to what the hardware can do": _LOWERED},
    ("upload", 201): {
        "an image": wire.UploadAnswer(
            path=_IMAGE, type="image", size_bytes=412_077, sha256=_SHA256, media=wire.ImageMedia(width=768, height=768)
        ),
        "a recording": wire.UploadAnswer(
            path=_AUDIO, type="audio", size_bytes=307_244, sha256=_SHA256,
            media=wire.AudioMedia(seconds=9.6, sample_rate=16_000, channels=1, samples=153_600),
        ),
    },
    ("getTask", 200): {
        "queued": _QUEUED, "processing": _RUNNING, "completed": _COMPLETED, "failed": _FAILED, "cancelled": _CANCELLED,
        "completed and told": _TOLD,
    },
    ("cancelTask", 200): {"it was queued": _UNSTARTED, "it had been cancelled": _CANCELLED},
    ("cancelTask", 202): {"it runs": _CANCELLING},
    ("deleteTask", 200): {"it was queued": _UNSTARTED},
    ("deleteTask", 202): {"it runs": _CANCELLING},
    ("getLog", 200): {"so far": _LOG},
    ("getEvents", 200): _EVENTS,
    ("listTasks", 200): {
        "a page": wire.TasksAnswer(tasks=[_RUNNING, _COMPLETED], next_cursor="MjAyNjExMjI"),
        "none": wire.TasksAnswer(tasks=[], next_cursor=None),
    },
    ("getHealth", 200): {
        "all": wire.HealthReply(wire.HealthAnswer(**_HEALTH)),
        "without credentials": wire.HealthReply(wire.HealthSummary(**_SUMMARY)),
    },
    ("getOpenApi", 200): {
        "without its contents": {
            "openapi": "3.1.0", "info": {"title": "Live Avatar", "version": wire.VERSION}, "paths": {},
        },
    },
    ("getHealth", 503): {"why not": wire.HealthReply(wire.HealthAnswer(**_DEGRADED))},
}  # fmt: skip

_ASKED: Mapping[tuple[str, str], Named] = {
    ("generate", "application/json"): {
        "uploaded files": {
            "prompt": "A friendly presenter speaks to the camera.", "image_path": _IMAGE, "audio_path": _AUDIO,
        },
        "from URLs, as webm": {
            "prompt": "She smiles.", "image_path": "https://example.com/portrait.jpg",
            "audio_path": "https://example.com/speech.mp3", "size": "720*400", "output_format": "webm",
            "seed": 7, "metadata": {"order": "42"}, "webhook_url": "https://example.com/hooks/avatar",
        },
    },
    ("generate", "multipart/form-data"): {
        "files and wishes": {
            "prompt": "A friendly presenter speaks to the camera.", "image": "(portrait.png)", "audio": "(speech.wav)",
            "size": "704*384",
        },
        "a new file and an uploaded one": {"prompt": "She smiles.", "image": "(portrait.png)", "audio_path": _AUDIO},
    },
    ("upload", "multipart/form-data"): {
        "an image": {"type": "image", "file": "(portrait.png)"},
        "a recording": {"type": "audio", "file": "(speech.wav)"},
    },
}  # fmt: skip

_DETAILS: Mapping[Code, str] = {
    Code.INVALID_INPUT: "prompt: is required",
    Code.UNAUTHORIZED: "credentials are missing or not valid",
    Code.FORBIDDEN: "these credentials lack the scope generate",
    Code.NOT_FOUND: "there is no such task",
    Code.METHOD_NOT_ALLOWED: "this address does not take this method",
    Code.NOT_READY: "the task has no result yet",
    Code.ALREADY_ENDED: "the task has already ended: it is completed",
    Code.GONE: "the task was deleted or has expired",
    Code.TOO_LARGE: "image: the file is larger than 20 MiB",
    Code.UNSUPPORTED_TYPE: "send application/json or multipart/form-data",
    Code.RANGE_NOT_SATISFIABLE: "the range lies outside the file",
    Code.KEY_REUSED: "this Idempotency-Key was used with another request",
    Code.RATE_LIMITED: "too many requests; try again later",
    Code.QUOTA_EXCEEDED: "20 tasks of one tenant may wait; try again later",
    Code.INTERNAL: "the service has failed; its log tells more under this request_id",
    Code.QUEUE_FULL: "as many tasks wait as are allowed; try again later",
    Code.BUSY: "too many media are being decoded; try again",
    Code.NO_HARDWARE: "no engine can run on this machine",
    Code.DRAINING: "the service takes no new work at present; try again later",
    Code.DATABASE_UNAVAILABLE: "the database cannot be used at present; the health tells why",
    Code.STORAGE_FULL: "no storage is left on the server",
}

_DETAILS_OF: Mapping[tuple[str, Code], str] = {
    ("upload", Code.INVALID_INPUT): "type: is required",
    ("upload", Code.TOO_LARGE): "file: the file is larger than 20 MiB",
    ("upload", Code.UNSUPPORTED_TYPE): "send multipart/form-data",
    ("upload", Code.QUOTA_EXCEEDED): "10737418240 bytes may be stored for one tenant; delete tasks that have ended",
    ("getTask", Code.INVALID_INPUT): "wait: must be at least 1",
    ("cancelTask", Code.INVALID_INPUT): "force: is not a known field",
    ("deleteTask", Code.INVALID_INPUT): "force: is not a known field",
    ("getLog", Code.INVALID_INPUT): "offset: must be at least 0",
    ("listTasks", Code.INVALID_INPUT): "limit: must be at most 200",
    ("getResult", Code.INVALID_INPUT): "download: must be '0' or '1'",
    ("getResult", Code.UNAUTHORIZED): "the link has expired or is not valid",
    ("getHealth", Code.INVALID_INPUT): "verbose: is not a known field",
}
"""Where an operation says it otherwise."""


def of_reply(operation: str, status: int) -> Json:
    """Return the examples of an operation's success, as OpenAPI has them; empty where it has no body to show."""
    return _named({name: _plain(value) for name, value in _REPLIES.get((operation, status), {}).items()})


def of_body(operation: str, content: str) -> Json:
    """Return the examples of what an operation is sent."""
    return _named(_ASKED.get((operation, content), {}))


def of_webhook() -> Json:
    """Return an example of each kind of message."""
    told = (_ended(task) for task in (_COMPLETED, _FAILED, _CANCELLED))
    return _named({one.type: _plain(one) for one in told})


def of_error(operation: str, codes: Iterable[Code]) -> Json:
    """Return an example of each of the error codes, as the operation answers it."""
    return _named({code.value: _problem(operation, code) for code in codes})


def _problem(operation: str, code: Code) -> Any:
    detail = _DETAILS_OF.get((operation, code), _DETAILS[code])
    told = Problem(
        type="about:blank", title=HTTP[code].phrase, status=HTTP[code].value, detail=detail, error=detail,
        error_code=code, request_id="9f4dd3bd1d3c44b6a6c5b9a0f1f0a8d2",
    ).model_dump(mode="json", exclude_none=True)  # fmt: skip
    if code in (Code.INVALID_INPUT, Code.TOO_LARGE):
        field, _, message = detail.partition(": ")
        told["errors"] = [{"field": field, "message": message}]
    return told


def _named(values: Named) -> Json:
    return {name: {"value": value} for name, value in values.items()}
