"""Answers: what the layers below know, in the shapes of api_schema, and the responses that carry them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

from flask import Response

from api_schema import (
    VERSION,
    Accepted,
    AdjustmentAnswer,
    Answer,
    AttemptAnswer,
    EngineAnswer,
    GpuAnswer,
    HealthAnswer,
    HealthStatus,
    HealthSummary,
    NoteAnswer,
    ParamsAnswer,
    Plan,
    PriorityName,
    QueueAnswer,
    TaskAnswer,
    UploadAnswer,
    VideoAnswer,
    WebhookAnswer,
)
from task_manager import TaskView
from tasks.drain import Drain
from tasks.health import Health
from tasks.model import Priority, Result, Task
from tasks.outbox import Delivery, message_id
from tasks.uploads import Upload
from utils.gpu import Gpu
from web.links import Links

JSON = "application/json"

_PRIORITY_NAMES: Mapping[Priority, PriorityName] = {
    Priority.LOW: "low",
    Priority.NORMAL: "normal",
    Priority.HIGH: "high",
}


class Shown:
    """A task as it was seen, and as all are told of it who see it at that moment."""

    def __init__(self, view: TaskView, links: Links) -> None:
        self.view, self._links = view, links

    @property
    def tag(self) -> str:
        """Return what the entity tag says."""
        return self.view.tag

    @property
    def ended(self) -> bool:
        return self.view.task.status.ended

    @cached_property
    def body(self) -> str:
        """Return the task as JSON."""
        return task_answer(self.view, self._links).model_dump_json(by_alias=True)


def respond(answer: Answer, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Send an answer. Clients may keep it, but must ask whether it still holds."""
    return respond_text(answer.model_dump_json(by_alias=True), status, headers)


def respond_text(body: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """Send an answer that is JSON already."""
    return Response(body, status, {"Cache-Control": "private, no-cache", **(headers or {})}, content_type=JSON)


def status_url(task_id: str) -> str:
    return f"/api/v1/task/{task_id}"


def accepted(view: TaskView) -> Accepted:
    """Return what a client is told when its task is accepted."""
    return Accepted(**_basics(view))


def task_answer(view: TaskView, links: Links) -> TaskAnswer:
    """Return a task as it is now."""
    task = view.task
    return TaskAnswer(
        **_basics(view), **_outcome(task, links), start_time=task.start_time, finish_time=task.finish_time,
        updated_at=task.updated_at, progress=task.progress, phase=task.phase, eta_seconds=view.eta_seconds,
        attempt=task.attempt, cancel_requested=task.cancel_requested, priority=_PRIORITY_NAMES[task.priority],
        params=ParamsAnswer(**asdict(task.params)), metadata=dict(task.metadata), expires_at=view.expires_at,
        webhook=_webhook(view),
    )  # fmt: skip


def _webhook(view: TaskView) -> WebhookAnswer | None:
    task, message = view.task, view.message
    if task.webhook_url is None:
        return None
    return WebhookAnswer(
        url=task.webhook_url, message_id=message_id(task.id),
        status=message.status if message else Delivery.PENDING, attempts=message.attempts if message else 0,
        next_attempt_at=message.next_attempt_at if message else None,
        deliveries=[AttemptAnswer(**asdict(one)) for one in message.deliveries] if message else [],
    )  # fmt: skip


def upload_answer(upload: Upload) -> UploadAnswer:
    """Return what a client is told of what it uploaded."""
    facts = asdict(upload)
    return UploadAnswer.model_validate(
        {name: facts[name] for name in ("path", "size_bytes", "sha256", "media")} | {"type": upload.kind}
    )


def health_answer(health: Health, draining: Drain | None) -> HealthAnswer:
    """Return whether new tasks can be run now."""
    reasons = [str(draining)] if draining else []
    reasons += health.reasons
    status: HealthStatus = "draining" if draining else "degraded" if reasons else "healthy"
    return HealthAnswer(
        status=status, model_loaded=health.model_loaded, version=VERSION,
        engines=[EngineAnswer.model_validate(asdict(engine)) for engine in health.engines],
        gpus=[_gpu(gpu, health.gpu_states.get(gpu.uuid, "free")) for gpu in health.gpus],
        queue=QueueAnswer(queued=health.queued, processing=health.processing), reasons=reasons,
        warnings=list(health.warnings),
    )  # fmt: skip


def summary(known: HealthAnswer) -> HealthSummary:
    """Return of the health what anyone may know."""
    return HealthSummary(status=known.status, model_loaded=known.model_loaded, version=known.version)


def _gpu(gpu: Gpu, state: str) -> GpuAnswer:
    capability = ".".join(map(str, gpu.capability)) if gpu.capability else None
    return GpuAnswer(
        index=gpu.index,
        name=gpu.name,
        uuid=gpu.uuid,
        total_gib=gpu.total_gib,
        free_gib=gpu.free_gib,
        capability=capability,
        processes=len(gpu.processes),
        mig=gpu.mig,
        state=state,
    )


def _basics(view: TaskView) -> dict[str, Any]:
    task, plan = view.task, view.task.plan
    return {
        "task_id": task.id, "status": task.status, "submit_time": task.submit_time,
        "estimated_duration": task.estimated_seconds, "queue_position": view.queue_position, "engine": task.engine,
        "profile": task.profile, "status_url": status_url(task.id),
        "plan": Plan(
            clips=plan.clips, frames=plan.frames, video_seconds=plan.video_seconds, width=plan.width,
            height=plan.height, fps=plan.fps,
        ),
        "adjustments": [AdjustmentAnswer(**asdict(adjustment)) for adjustment in task.adjustments],
        "notes": [NoteAnswer(code=note.code, message=note.message) for note in task.notes],
    }  # fmt: skip


def _outcome(task: Task, links: Links) -> dict[str, Any]:
    """Return the fields that only an ended task has; all are null before."""
    took = (task.finish_time - task.start_time) if task.finish_time and task.start_time else None
    failure, result = task.failure, task.result
    return _files(task.id, result, links) | {
        "processing_seconds": took.total_seconds() if took and result else None,
        "error": failure.message if failure else None, "error_code": failure.code if failure else None,
        "log_excerpt": failure.log_excerpt if failure else None,
    }  # fmt: skip


def _files(task_id: str, result: Result | None, links: Links) -> dict[str, Any]:
    if result is None:
        return dict.fromkeys(("output_video_url", "poster_url", "duration_seconds", "video"))
    video = asdict(result.video)
    seconds = video.pop("duration_seconds")
    return {
        "output_video_url": links.link(task_id, result.video_name),
        "poster_url": links.link(task_id, result.poster_name),
        "duration_seconds": seconds, "video": VideoAnswer(**video),
    }  # fmt: skip
