"""What a webhook says: the task as its owner would read it, with fresh links, under the name of its end."""

from __future__ import annotations

from api_schema import TaskEnded
from task_manager import TaskGone, TaskManager, TaskUnknown
from tasks.deliverer import MessageGone
from web import answers
from web.links import Links


def body(manager: TaskManager, links: Links, task_id: str) -> bytes:
    """Return the JSON that tells of a task's end; it is made anew for each attempt. Raises MessageGone."""
    try:
        view = manager.view(task_id, None)
    except (TaskGone, TaskUnknown):
        raise MessageGone(task_id) from None
    task = answers.task_answer(view, links)
    told = TaskEnded.model_validate({"type": f"task.{task.status}", "timestamp": task.finish_time, "data": task})
    return told.model_dump_json(by_alias=True).encode()
