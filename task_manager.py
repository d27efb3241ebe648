"""The TaskManager: what the web layer, and anyone else, can do with tasks.

Submitting writes the inputs, then the row, then rings the scheduler; all reading is of rows and files. The scheduler
thread (tasks.scheduler) is started by the server's configuration alone, so that commands and tests start nothing.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from config_loader import Settings, engine_environment
from tasks.admission import Admission
from tasks.clock import stopped_reason
from tasks.deliverer import Deliverer
from tasks.disk import Demand, Disk, is_full
from tasks.estimate import Work, expected_work, queue_wait
from tasks.folders import Folders
from tasks.hardware import Hardware
from tasks.health import Examiner, Health
from tasks.idempotency import IdempotencyKey
from tasks.launch import Launcher
from tasks.model import Event, LostRace, Params, Phase, Status, Task
from tasks.outbox import Message
from tasks.placement import Host
from tasks.profile import EngineTable
from tasks.retention import Sweeper
from tasks.scheduler import Scheduler
from tasks.spawner import ROOT
from tasks.spec import LOG_FILE
from tasks.store import Store, utc_now
from tasks.submission import Submission
from tasks.survey import Survey, Surveyor
from tasks.turns import NOTHING_AHEAD, Backlog
from tasks.wake import ring
from utils.failpoint import Point, reach
from utils.file_handler import StorageFull, link_or_copy, remove_if_possible, sync
from utils.gpu import GpuProbe
from utils.urls import FetchError, check_url

log = logging.getLogger("manager")

_RACES = 20

T = TypeVar("T")


class TaskUnknown(Exception):
    """There is no such task for this tenant."""


class TaskGone(Exception):
    """The task existed and was deleted or has expired."""


class ResultNotReady(Exception):
    """The task has no result (yet)."""


class AlreadyEnded(Exception):
    """The task ended before it could be cancelled; the text says how."""


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task and what follows from the queue: `queue_position` from 1, and seconds to the end from `updated_at`.

    `expires_at` follows from its end and from the settings; `message` is how far its end has been told.
    """

    task: Task
    queue_position: int | None
    eta_seconds: float | None
    expires_at: datetime | None = None
    message: Message | None = None

    @property
    def tag(self) -> str:
        """It changes with the row and with the position, not with the clock."""
        return _tag(self.task.version, self.queue_position or 0)

    @property
    def ended(self) -> bool:
        return self.task.status.ended


class TaskManager:
    """All verbs on tasks. Opens the store and makes the data folders; starts nothing before `start`."""

    def __init__(self, settings: Settings, table: EngineTable) -> None:
        self.folders = Folders(settings.data_dir)
        self.folders.make()
        quotas = replace(settings.quotas.policy(), input_bytes=self.folders.input_bytes)
        self.store = Store(
            settings.database_url, settings.data_dir, busy_seconds=settings.database_busy_seconds,
            ballast_bytes=settings.disk.ballast_bytes, tenant_quotas=quotas,
        )  # fmt: skip
        self.retention = settings.retention.policy()
        self.disk = Disk(settings.data_dir, settings.disk.reserve_bytes, self.store.ballast)
        self._settings, self._table = settings, table
        self._environment = engine_environment(settings)
        self._hardware = Hardware(GpuProbe(), self._environment.get("CUDA_VISIBLE_DEVICES"))
        self._admission = Admission(
            table=table, root=ROOT, home=settings.live_avatar_home, cpu_slots=settings.slots.cpu,
            allow_fallback=settings.engines.allow_fallback, policy=settings.gpus.policy, cards=self._hardware.cards,
        )  # fmt: skip
        self._scheduler: Scheduler | None = None
        self._deliverer: Deliverer | None = None

    def tell_with(self, body_of: Callable[[str], bytes]) -> None:
        """Let `start` also start the telling of webhooks; `body_of` makes of a task's id what is sent."""
        if self._settings.webhooks.enabled:
            self._deliverer = Deliverer(self.store, self.folders.data, self._settings.webhooks, body_of)

    # --- the scheduler -------------------------------------------------------------------------------------------

    def start(self, closing: Callable[[], bool] = lambda: False) -> None:
        """Start this process's scheduler thread; of all on the host one schedules, and none that is `closing`."""
        runner = self._settings.runner
        launcher = Launcher(
            self.folders, self._environment, self._settings.database_url, runner.max_attempts,
            runner.heartbeat_seconds, runner.poll_seconds, self._settings.failpoint, runner.limits.policy(),
        )  # fmt: skip
        self._scheduler = Scheduler(
            self.store, launcher, self._table, self._host, max_attempts=runner.max_attempts,
            lease_seconds=runner.lease_seconds, release_seconds=self._settings.gpus.release_seconds,
            work_of=self._work_of, closing=closing,
        )  # fmt: skip
        self._scheduler.start()
        self._sweeper = self.sweeper()
        self._sweeper.start()
        self._hardware.probe.start()
        if self._deliverer is not None:
            self._deliverer.start()

    def stop(self) -> None:
        """Stop scheduling; runners go on, and the next scheduler adopts them."""
        if self._scheduler is not None:
            self._scheduler.stop()
            self._sweeper.stop()
            self._hardware.probe.stop()
            if self._deliverer is not None:
                self._deliverer.stop()

    def sweeper(self) -> Sweeper:
        """Return what removes expired things; at rest."""
        return Sweeper(self.store, self.folders, self.disk, self.retention)

    def _host(self, with_gpus: bool) -> Host:
        gpus = self._settings.gpus
        cards = tuple(self._hardware.free_cards()) if with_gpus else ()
        return Host(
            self._settings.slots.cpu, cards, gpus.policy, timedelta(seconds=gpus.patience_seconds),
            tenant_running=self._settings.quotas.running_tasks,
        )  # fmt: skip

    # --- accepting -----------------------------------------------------------------------------------------------

    def check_engine(self, name: str) -> None:
        """Raise UnknownEngine or NoHardware when no task could be submitted for this engine."""
        self._admission.check(name)

    def check_webhook(self, url: str) -> None:
        """Raise FetchError, whose text is for the user, for a URL that will never be told."""
        if not self._settings.webhooks.enabled:
            raise FetchError("webhooks are not sent here")
        check_url(url, self._settings.webhooks.policy())

    def check_room(self, wanted_bytes: int) -> None:
        """Raise StorageFull where this, beside all that accepted tasks may still write, leaves less than the reserve.

        A task that runs counts in full: how much of it is written already is not known. Of two requests at once both
        may pass; the reserve is for that, too.
        """
        self.disk.check(self.store.demand().bytes + wanted_bytes)

    def submit(self, submission: Submission, answer: Callable[[TaskView], str]) -> TaskView:
        """Accept a task: its inputs on disk, its row, its idempotency key with `answer`'s text, and a ring.

        Raises UnknownEngine, NoHardware, StorageFull; QueueFull of tasks.store; AlreadyAccepted and KeyReused of
        tasks.idempotency; QuotaExceeded of tasks.quotas.
        """
        key = self._key(submission)
        draft = self._draft(submission)
        self.check_room(Demand.of(draft.plan).bytes)
        with self._inputs(draft.id, submission):
            task, position = self.store.add(
                lambda ahead, now: self._accepted(draft, ahead, now),
                lambda task, position: answer(TaskView(task, position, task.estimated_seconds)),
                priority=int(submission.priority), max_queued=self._settings.queue.max_queued,
                tenant=submission.tenant, key=key,
            )  # fmt: skip
        reach(Point.ROW_COMMITTED)
        ring(self.folders.wake)
        return TaskView(task, position, task.estimated_seconds)

    def _key(self, submission: Submission) -> IdempotencyKey | None:
        if submission.idempotency_key is None:
            return None
        key = IdempotencyKey(submission.idempotency_key, submission.fingerprint(), submission.asked)
        self.store.check_key(submission.tenant, key)  # a retry is answered without copying its files
        return key

    def _draft(self, submission: Submission) -> Task:
        """Return the task as far as it is known before its turn in the queue is."""
        now = utc_now()
        params = Params(
            prompt=submission.prompt, size=submission.size, num_clip=submission.num_clip,
            sample_steps=submission.sample_steps, output_format=submission.output_format,
            seed=secrets.randbelow(2**32) if submission.seed is None else submission.seed,
            enable_online_decode=submission.enable_online_decode,
        )  # fmt: skip
        portrait = submission.portrait()
        route = self._admission.route(submission.engine, params, portrait)
        fit = route.fit
        draft = Task(
            id=f"gen_{now:%Y%m%d}_{secrets.token_hex(8)}", seq=0, tenant=submission.tenant, status=Status.QUEUED,
            version=1, attempt=0, cancel_requested=False, priority=submission.priority, engine=route.engine.name,
            profile=fit.profile.name, params=fit.params, plan=submission.plan(fit.params.size),
            adjustments=fit.adjustments, notes=route.notes,
            metadata=submission.metadata, submit_time=now, updated_at=now, start_time=None, finish_time=None,
            work_seconds=0.0, estimated_seconds=0.0, phase=Phase.QUEUED, progress=0.0, eta_seconds=None, slot=None,
            gpus=(), runner=None, heartbeat_at=None, failure=None, result=None, webhook_url=submission.webhook_url,
        )  # fmt: skip
        return replace(draft, work_seconds=self._work_of(draft).total)

    def _accepted(self, draft: Task, ahead: Backlog, now: datetime) -> Task:
        wait = self._wait(draft, ahead)
        return replace(draft, submit_time=now, updated_at=now, estimated_seconds=wait + draft.work_seconds)

    def _wait(self, task: Task, ahead: Backlog) -> float:
        """Return the expected seconds until a queued task starts."""
        mine = self._table.profile(task.engine, task.profile)
        known = [(self._table.profile(*kind), seconds) for kind, seconds in ahead.seconds.items()]
        backlog = [(profile, seconds) for profile, seconds in known if profile is not None]
        return queue_wait(backlog, mine, self._settings.slots.cpu, len(self._hardware.gpus())) if mine else 0.0

    def _work_of(self, task: Task) -> Work:
        profile = self._table.profile(task.engine, task.profile)
        if profile is None:
            return Work(0.0, task.work_seconds)
        learned = self.store.learned(f"{task.engine}/{profile.name}")
        return expected_work(profile.estimate, learned, task.plan, task.params.sample_steps)

    @contextmanager
    def _inputs(self, task_id: str, submission: Submission) -> Iterator[None]:
        """Put the inputs where the runner will look; they are gone again when the task is not accepted."""
        folder = self.folders.inputs(task_id)
        try:
            folder.mkdir(parents=True)
            link_or_copy(submission.image.path, folder / "image.png")
            link_or_copy(submission.audio.path, folder / "audio.wav")
            for named in (folder, folder.parent, self.folders.tasks):
                sync(named)  # before the row: after a power cut no task may be there without its inputs
            reach(Point.INPUTS_WRITTEN)
            yield
        except BaseException as error:
            if not self._is_accepted(task_id):
                remove_if_possible(folder.parent)
            if is_full(error):
                raise StorageFull from error
            raise

    def _is_accepted(self, task_id: str) -> bool:
        """Say whether there is a row, for a commit that raised may have been made; where nobody can tell, that it is.

        Inputs without a row are found by the sweep.
        """
        with suppress(DBAPIError):
            return self.store.get(task_id) is not None
        return True

    # --- reading -------------------------------------------------------------------------------------------------

    def view(self, task_id: str, tenant: str | None) -> TaskView:
        """Return one task of a tenant (None: of any). Raises TaskUnknown or TaskGone."""
        found = self.store.get_with_backlog(task_id)
        if found is None or tenant not in (None, found[0].tenant):
            raise TaskGone if found is None and self.store.ended.was_deleted(task_id, tenant) else TaskUnknown
        return self._view(*found, self._messages(found[0]).get(task_id))

    def page(
        self, tenant: str | None, statuses: Sequence[Status], limit: int, before_seq: int | None
    ) -> list[TaskView]:
        """Return up to `limit` of a tenant's (None: of all) tasks, newest first, of any of `statuses` (none: all)."""
        found = self.store.page(tenant, statuses, limit, before_seq)
        messages = self._messages(*(task for task, _ in found))
        return [self._view(task, ahead, messages.get(task.id)) for task, ahead in found]

    def tags(self, task_ids: Collection[str]) -> dict[str, str]:
        """Return the tags of those of `task_ids` that there are, of one moment."""
        return {task_id: _tag(*moment) for task_id, moment in self.store.moments(list(task_ids)).items()}

    def _messages(self, *found: Task) -> Mapping[str, Message]:
        """Return what there is to tell of these tasks, by id."""
        told = [task.id for task in found if task.webhook_url is not None and task.status.ended]
        return self.store.outbox.of(told) if told else {}

    def _view(self, task: Task, ahead: Backlog, message: Message | None = None) -> TaskView:
        if task.status is not Status.QUEUED:
            return TaskView(task, None, task.eta_seconds, self.retention.expires_at(task.finish_time), message)
        wait = self._wait(task, ahead)
        waited = (utc_now() - task.updated_at).total_seconds()
        return TaskView(task, ahead.tasks + 1, max(0.0, waited) + wait + task.work_seconds)

    def log_file(self, task: Task) -> Path | None:
        """Return the engine's log of the latest attempt, None while there is none. Raises TaskGone if expired."""
        path = self.log_path(task.id, task.attempt)
        if path.is_file():
            return path
        if task.status.ended and task.attempt and not self.folders.attempts(task.id).exists():
            raise TaskGone
        return None

    def log_path(self, task_id: str, attempt: int) -> Path:
        """Return where the engine's log of an attempt lies, or will."""
        return self.folders.attempt(task_id, attempt) / LOG_FILE

    def result_file(self, task: Task, name: str) -> Path:
        """Return a published file. Raises ResultNotReady, or FileNotFoundError for a name that was not published."""
        if task.result is None:
            raise ResultNotReady
        if name not in (task.result.video_name, task.result.poster_name):
            raise FileNotFoundError(name)
        return self.folders.result(task.id, task.attempt) / name

    def health(self) -> Health:
        """Return what this host can do now."""
        stopped = self.store.condition.ask(lambda: stopped_reason(self.store.state))
        return Examiner(self.store, self._admission, self._hardware, self.disk).look([stopped] if stopped else [])

    def survey(self) -> Survey:
        """Return what the metrics tell of this host and of all tasks."""
        return Surveyor(self.store, self._hardware, self.disk).look()

    def profile_names(self) -> list[tuple[str, str]]:
        """Return the (engine, profile) pairs of the engine table."""
        return sorted(self._table.names)

    def engine_names(self) -> list[str]:
        """Return the names of the configured engines."""
        return [engine.name for engine in self._table.engines]

    def engine_titles(self) -> dict[str, str]:
        """Return what the configured engines are called, by name."""
        return {engine.name: engine.title for engine in self._table.engines}

    # --- ending --------------------------------------------------------------------------------------------------

    def cancel(self, task_id: str, tenant: str | None) -> TaskView:
        """Cancel a queued task, ask a processing one to end; one that is cancelled already stays as it is.

        Raises AlreadyEnded for a completed or failed one, TaskUnknown or TaskGone.
        """
        return self._insist(task_id, tenant, self._cancel)

    def delete(self, task_id: str, tenant: str | None) -> TaskView | None:
        """Cancel a task that has not ended, remove an ended one (then None). Raises TaskUnknown or TaskGone."""
        return self._insist(task_id, tenant, lambda view: self._remove(view) if view.ended else self._cancel(view))

    def _insist(self, task_id: str, tenant: str | None, act: Callable[[TaskView], T]) -> T:
        """Do `act` to the task as it is, however often it starts, tells progress or ends in between."""
        for _ in range(_RACES):
            with suppress(LostRace):
                return act(self.view(task_id, tenant))
        raise LostRace(f"task {task_id} changed {_RACES} times while it was to be ended")

    def _cancel(self, view: TaskView) -> TaskView:
        task = view.task
        if task.status is Status.QUEUED:
            ended = self.store.happen(task, Event.CANCEL)
            return self._view(ended, NOTHING_AHEAD, self._messages(ended).get(ended.id))
        if task.status is Status.PROCESSING:
            return self._view(self.store.request_cancel(task), NOTHING_AHEAD)
        if task.status is not Status.CANCELLED:
            raise AlreadyEnded(f"the task has already ended: it is {task.status}")
        return view

    def _remove(self, view: TaskView) -> None:
        self.store.ended.delete(view.task)
        reach(Point.RECORD_DELETED)
        self.folders.remove_task(view.task.id)


def _tag(version: int, position: int) -> str:
    return f"{version}-{position}"
