"""Rows of the tasks table to Task values and back; the only place where a task is a dict."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Row

from tasks.model import (
    Adjustment,
    ErrorCode,
    Failure,
    Note,
    OutputFormat,
    Params,
    Phase,
    Priority,
    Result,
    RunnerId,
    Status,
    Task,
    Video,
)  # fmt: skip
from utils.plan import VideoPlan

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

_PLAIN = (
    "id", "seq", "tenant", "version", "attempt", "cancel_requested", "engine", "profile", "metadata", "submit_time",
    "updated_at", "start_time", "finish_time", "work_seconds", "estimated_seconds", "progress", "eta_seconds", "slot",
    "heartbeat_at", "webhook_url",
)  # fmt: skip


def task_from_row(row: Row[Any]) -> Task:
    """Return the Task that a full row of the tasks table stands for."""
    values = row._mapping
    params, failure, result, runner = values["params"], values["failure"], values["result"], values["runner"]
    return Task(
        **{name: values[name] for name in _PLAIN},
        status=Status(values["status"]),
        phase=Phase(values["phase"]),
        priority=Priority(values["priority"]),
        params=_known(Params, {**params, "output_format": OutputFormat(params["output_format"])}),
        plan=_known(VideoPlan, values["plan"]),
        adjustments=tuple(_known(Adjustment, item) for item in values["adjustments"]),
        notes=tuple(_known(Note, item) for item in values["notes"]),
        gpus=tuple(values["gpus"] or ()),
        runner=_known(RunnerId, runner) if runner else None,
        failure=_known(Failure, {**failure, "code": ErrorCode(failure["code"])}) if failure else None,
        result=_known(Result, {**result, "video": _known(Video, result["video"])}) if result else None,
    )


def _known(kind: type[T], told: dict[str, Any]) -> T:
    """Return the value of which `told` has the fields, and perhaps some that a later release added."""
    return kind(**{field.name: told[field.name] for field in fields(kind) if field.name in told})


def row_from_task(task: Task) -> dict[str, Any]:
    """Return the column values of `task`, without `seq`, which the database gives."""
    values = {name: getattr(task, name) for name in _PLAIN if name != "seq"}
    return values | {
        "metadata": dict(task.metadata),
        "status": task.status.value,
        "phase": task.phase.value,
        "priority": int(task.priority),
        "params": asdict(task.params),
        "plan": asdict(task.plan),
        "adjustments": [asdict(item) for item in task.adjustments],
        "notes": [asdict(item) for item in task.notes],
        "gpus": list(task.gpus),
        "runner": asdict(task.runner) if task.runner else None,
        "failure": asdict(task.failure) if task.failure else None,
        "result": asdict(task.result) if task.result else None,
    }


def changes(before: Task, after: Task) -> dict[str, Any]:
    """Return the columns in which the two differ: a later release may keep more in the others than this one reads."""
    old = row_from_task(before)
    return {name: value for name, value in row_from_task(after).items() if value != old[name]}
