"""What a task is, which states it can be in, and the only way from one to the next. Pure: no clock, no file.

The life of a task is the table TRANSITIONS. `advance` is the only code that makes a status; the store writes what it
returns, guarded by the status, version and attempt that it read, so that of two writers exactly one wins and the other
learns that it lost. "Cancel requested" is a flag on a processing task, not a status: the task is `cancelled` only when
no process of its engine is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import IntEnum, StrEnum

from utils.plan import VideoPlan


class Status(StrEnum):
    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self not in _HAS_EXIT


class Event(StrEnum):
    """What can happen to a task; the cause of each change of status."""

    CLAIM = "claim"  # the scheduler gave it a slot; its runner is about to start
    COMPLETE = "complete"  # the runner verified and published the video
    FAIL = "fail"  # the engine failed, or the last attempt was interrupted
    CANCEL = "cancel"  # it was cancelled before it started, or after its last process ended
    REQUEUE = "requeue"  # its runner died; another attempt is allowed


TRANSITIONS: Mapping[tuple[Status, Event], Status] = {
    (Status.QUEUED, Event.CLAIM): Status.PROCESSING,
    (Status.QUEUED, Event.CANCEL): Status.CANCELLED,
    (Status.PROCESSING, Event.COMPLETE): Status.COMPLETED,
    (Status.PROCESSING, Event.FAIL): Status.FAILED,
    (Status.PROCESSING, Event.CANCEL): Status.CANCELLED,
    (Status.PROCESSING, Event.REQUEUE): Status.QUEUED,
}
_HAS_EXIT = frozenset(status for status, _ in TRANSITIONS)


class Phase(StrEnum):
    QUEUED = "queued"
    PREPARING = "preparing"
    LOADING_MODEL = "loading_model"
    GENERATING = "generating"
    ENCODING = "encoding"
    DONE = "done"


class Priority(IntEnum):
    LOW = 0
    NORMAL = 1
    HIGH = 2


class OutputFormat(StrEnum):
    MP4 = "mp4"
    WEBM = "webm"


class ErrorCode(StrEnum):
    """Why a task failed, for programs; the sentence for people is the task's `error`."""

    OOM = "oom"
    ENGINE_FAILED = "engine_failed"
    ENGINE_OUTPUT_INVALID = "engine_output_invalid"
    ENGINE_HUNG = "engine_hung"
    TIMED_OUT = "timed_out"
    WEIGHTS_MISSING = "weights_missing"
    LORA_INVALID = "lora_invalid"
    NCCL_ERROR = "nccl_error"
    PORT_IN_USE = "port_in_use"
    DISK_FULL = "disk_full"
    INTERRUPTED = "interrupted"


OOM_REASON = "the GPU ran out of memory at the larger size"
"""The reason of the adjustment that a retry after running out of memory makes; there is one such retry."""


class IllegalTransition(Exception):
    """An event happened to a task whose status has no such exit."""


class LostRace(Exception):
    """Another writer changed the task first; whoever gets this stops and publishes nothing."""


class CancelWanted(Exception):
    """Completing came too late for a cancel that was asked for; what is published is to be removed, then told so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """What the engine is given, after adaptation to the hardware."""

    prompt: str
    size: str
    num_clip: int
    sample_steps: int
    output_format: OutputFormat
    seed: int
    enable_online_decode: bool

    @staticmethod
    def smallest() -> Params:
        """Return the request that needs least of any hardware."""
        return Params(
            prompt="-", size="384*256", num_clip=1, sample_steps=1, output_format=OutputFormat.MP4, seed=0,
            enable_online_decode=False,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Adjustment:
    """One request field that was changed to what the hardware can do."""

    field: str
    before: object
    after: object
    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something a person should know about the result that is not an adjustment."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """Facts of a published video, read from the file itself. `fps` in frames a second, `size_bytes` in bytes."""

    width: int
    height: int
    fps: float
    frames: int
    duration_seconds: float
    size_bytes: int
    sha256: str
    video_codec: str
    audio_codec: str


@dataclass(frozen=True, slots=True)
class Result:
    """The names of the published files within the task's result folder, and what the video is."""

    video_name: str
    poster_name: str
    video: Video


@dataclass(frozen=True, slots=True)
class Failure:
    code: ErrorCode
    message: str
    log_excerpt: str = ""


@dataclass(frozen=True, slots=True)
class RunnerId:
    """Which process owns an attempt. A pid alone is not an identity: pids are reused, hosts reboot."""

    host: str
    boot_id: str
    pid: int
    start_time: int  # clock ticks since boot, field 22 of /proc/<pid>/stat


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One row. Times are aware UTC datetimes; `seq` orders tasks as they were submitted."""

    id: str
    seq: int
    tenant: str
    status: Status
    version: int
    attempt: int
    cancel_requested: bool
    priority: Priority
    engine: str
    profile: str
    params: Params
    plan: VideoPlan
    adjustments: tuple[Adjustment, ...]
    notes: tuple[Note, ...]
    metadata: Mapping[str, str]
    submit_time: datetime
    updated_at: datetime
    start_time: datetime | None
    finish_time: datetime | None
    work_seconds: float
    """Expected seconds of processing, without waiting."""
    estimated_seconds: float
    """Expected seconds from submission to the result, as told in the 201."""
    phase: Phase
    progress: float
    eta_seconds: float | None
    """Expected seconds from `updated_at` to the end; None while queued (then it follows from the queue)."""
    slot: str | None
    gpus: tuple[str, ...]
    """UUIDs of the GPUs that an attempt holds; none once it ended, and none for a CPU slot."""
    runner: RunnerId | None
    heartbeat_at: datetime | None
    failure: Failure | None
    result: Result | None
    webhook_url: str | None = None


@dataclass(frozen=True, slots=True)
class Lowered:
    """What the next attempt gets after the last one ran out of memory."""

    params: Params
    plan: VideoPlan
    adjustment: Adjustment


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What an event brings along; fields that the event does not need stay None."""

    slot: str | None = None
    profile: str | None = None
    gpus: tuple[str, ...] = ()
    lowered: Lowered | None = None
    failure: Failure | None = None
    result: Result | None = None
    notes: tuple[Note, ...] = field(default_factory=tuple)


def advance(task: Task, event: Event, now: datetime, facts: Facts | None = None) -> Task:
    """Return the task as it is after `event`; its times never run backwards, whatever `now` is.

    Raises IllegalTransition when the task's status has no such exit, ValueError when the event lacks its facts.
    """
    facts = facts or Facts()
    target = TRANSITIONS.get((task.status, event))
    if target is None:
        raise IllegalTransition(f"{event} of a task that is {task.status}")
    # A clock that was set back must not make a task end before it began: it would have expired before it was seen.
    now = max(now, task.start_time or task.submit_time)
    after = replace(task, status=target, version=task.version + 1, updated_at=now, notes=task.notes + facts.notes)
    return _ARRIVALS[target](after, now, facts)


def _to_processing(task: Task, now: datetime, facts: Facts) -> Task:
    if facts.slot is None or facts.profile is None:
        raise ValueError("a claim needs a slot and a profile")
    return replace(
        task, attempt=task.attempt + 1, start_time=now, phase=Phase.PREPARING, progress=0.0, heartbeat_at=now,
        slot=facts.slot, profile=facts.profile, gpus=facts.gpus, eta_seconds=task.work_seconds, runner=None,
    )  # fmt: skip


def _to_queued(task: Task, now: datetime, facts: Facts) -> Task:
    waiting = replace(
        task, phase=Phase.QUEUED, progress=0.0, start_time=None, eta_seconds=None, slot=None, gpus=(), runner=None,
        heartbeat_at=None,
    )  # fmt: skip
    if facts.lowered is None:
        return waiting
    lowered = facts.lowered
    told = (*task.adjustments, lowered.adjustment)
    return replace(waiting, params=lowered.params, plan=lowered.plan, adjustments=told)


def _to_completed(task: Task, now: datetime, facts: Facts) -> Task:
    if facts.result is None:
        raise ValueError("a completion needs a result")
    return replace(_ended(task, now), phase=Phase.DONE, progress=1.0, result=facts.result)


def _to_failed(task: Task, now: datetime, facts: Facts) -> Task:
    if facts.failure is None:
        raise ValueError("a failure needs a reason")
    return replace(_ended(task, now), failure=facts.failure)


def _to_cancelled(task: Task, now: datetime, facts: Facts) -> Task:
    return _ended(task, now)


def _ended(task: Task, now: datetime) -> Task:
    return replace(task, phase=Phase.DONE, finish_time=now, eta_seconds=None, slot=None, gpus=(), heartbeat_at=None)


_ARRIVALS = {
    Status.PROCESSING: _to_processing,
    Status.QUEUED: _to_queued,
    Status.COMPLETED: _to_completed,
    Status.FAILED: _to_failed,
    Status.CANCELLED: _to_cancelled,
}


def life_cycle_mermaid() -> str:
    """Render TRANSITIONS as the Mermaid state diagram that the README shows."""
    lines = ["stateDiagram-v2", "    [*] --> queued: submit"]
    lines += [f"    {before} --> {after}: {event}" for (before, event), after in TRANSITIONS.items()]
    lines += [f"    {status} --> [*]" for status in Status if status.ended]
    return "\n".join(lines)
