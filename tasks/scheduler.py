"""The scheduler: one thread in one process of a host, which gives slots to queued tasks and looks after their runners.

Every web process starts one; the holder of a file lock works and the others wait to take over. It sleeps until a ring
of the wake FIFO (a submit, an end) or the death of a runner, and looks at all rows every few seconds all the same, for
a ring may be lost.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable

from tasks.estimate import Work
from tasks.finish import Ending
from tasks.launch import Launcher
from tasks.model import ErrorCode, Event, Facts, Failure, LostRace, Task
from tasks.placement import Host, Placement, choose
from tasks.profile import EngineTable
from tasks.store import Store, utc_now
from tasks.wake import Bell, ring
from utils.process import kill_all, start_time, try_lock, watch

log = logging.getLogger("scheduler")

LOCK_NAME = "scheduler.lock"

_TAKEOVER_SECONDS = 0.5
_LOOK_SECONDS = 5.0
_CHORES_SECONDS = 300.0
_RETRY_SECONDS = 1.0
_KILL_SECONDS = 5.0
_AHEAD = 200
"""How many queued tasks placement looks at: more than there will be free slots."""


class Scheduler:
    """Places queued tasks and reaps attempts whose runner died.

    `host` tells what there is now, with its GPUs looked at anew where that is asked for, `work_of` a task's
    expected work; `chores` is called every few minutes by the
    process that schedules.
    """

    def __init__(
        self,
        store: Store,
        launcher: Launcher,
        table: EngineTable,
        host: Callable[[bool], Host],
        *,
        max_attempts: int,
        work_of: Callable[[Task], Work],
        chores: Callable[[], None],
    ) -> None:
        self._store, self._launcher, self._table, self._host = store, launcher, table, host
        self._max_attempts, self._work_of, self._chores = max_attempts, work_of, chores
        self._lock_file = launcher.folders.data / LOCK_NAME
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._watched: dict[tuple[str, int], int] = {}  # attempt -> pidfd of its runner

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; runners go on."""
        self._stopping.set()
        ring(self._launcher.folders.wake)
        if self._thread.is_alive():
            self._thread.join(5.0)

    # --- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (lock := try_lock(self._lock_file)) is None:
            if self._stopping.wait(_TAKEOVER_SECONDS):
                return
        bell = Bell(self._launcher.folders.wake)
        try:
            log.info("this process schedules")
            self._launcher.spawner.warm_up()
            self._schedule(bell)
        finally:
            bell.close()
            self._launcher.spawner.close()
            for descriptor in self._watched.values():
                os.close(descriptor)
            os.close(lock)

    def _schedule(self, bell: Bell) -> None:
        next_chores = time.monotonic()
        while not self._stopping.is_set():
            bell.hush()  # before looking: a ring from here on leads to another look
            try:
                if time.monotonic() >= next_chores:
                    next_chores = time.monotonic() + _CHORES_SECONDS
                    self._chores()
                self._reap()
                self._place()
            except Exception:
                # The thread must outlive a database that is away; what it could not do it will see again.
                log.exception("scheduling failed, trying again")
                self._stopping.wait(_RETRY_SECONDS)
                continue
            self._wait(bell)

    def _wait(self, bell: Bell) -> None:
        """Wait for a ring, or the death of a runner, which makes its pidfd readable; `_LOOK_SECONDS` at most."""
        poller = select.poll()  # unlike select(), not confined to the first 1,024 descriptors of a busy server
        for descriptor in (bell.fileno(), *self._watched.values()):
            poller.register(descriptor, select.POLLIN)
        poller.poll(_LOOK_SECONDS * 1000)

    # --- giving slots --------------------------------------------------------------------------------------------

    def _place(self) -> None:
        queued = [task for task in self._store.queued(_AHEAD) if self._known(task)]
        if not queued:
            return
        for placement in choose(
            queued, self._store.processing(), self._host(self._want_gpus(queued)), self._table, utc_now()
        ):
            self._launch(placement)

    def _launch(self, placement: Placement) -> None:
        task = placement.task
        lock = self._launcher.reserve(task.id, task.attempt + 1)
        if lock is None:
            log.error("attempt %d of task %s is already held by a process", task.attempt + 1, task.id)
            return
        try:
            claimed = self._store.happen(task, Event.CLAIM, self._claim(placement))
            pid = self._launcher.spawn(claimed, placement, self._work_of(claimed), lock)
        except LostRace:
            log.info("task %s changed before it could start", task.id)
            return
        finally:
            os.close(lock)
        self._watch(claimed, pid)

    def _want_gpus(self, queued: list[Task]) -> bool:
        engines = (self._table.engine(name) for name in {task.engine for task in queued})
        return any(profile.gpus for engine in engines if engine for profile in engine.profiles)

    @staticmethod
    def _claim(placement: Placement) -> Facts:
        return Facts(slot=placement.slot, profile=placement.profile.name, gpus=placement.gpus)

    def _known(self, task: Task) -> bool:
        """Where the table changed since the task was accepted, it waits: the operator may bring the profile back."""
        if self._table.profile(task.engine, task.profile) is not None:
            return True
        log.error("task %s needs profile %s/%s, which is not in the table", task.id, task.engine, task.profile)
        return False

    # --- looking after runners -----------------------------------------------------------------------------------

    def _watch(self, task: Task, pid: int) -> None:
        descriptor = watch(pid)
        if descriptor is not None:
            self._watched[task.id, task.attempt] = descriptor

    def _reap(self) -> None:
        """End or re-queue every processing task whose runner is gone; adopt every one whose runner lives."""
        running = {(task.id, task.attempt): task for task in self._store.processing()}
        for gone in self._watched.keys() - running.keys():
            self._forget(gone)
        for attempt, task in running.items():
            if not self._launcher.lives(task):
                self._forget(attempt)
                self._end_orphan(task)
            elif attempt not in self._watched and task.runner and start_time(task.runner.pid) == task.runner.start_time:
                self._watch(task, task.runner.pid)

    def _forget(self, attempt: tuple[str, int]) -> None:
        descriptor = self._watched.pop(attempt, None)
        if descriptor is not None:
            os.close(descriptor)

    def _end_orphan(self, task: Task) -> None:
        """Do what the dead runner of `task` can no longer do. Nothing of the attempt is left when its row says so."""
        marks = {"AVATAR_TASK_ID": task.id, "AVATAR_ATTEMPT": str(task.attempt)}
        if not kill_all(below=None, marks=marks, deadline=_KILL_SECONDS):
            log.error("processes of task %s outlived SIGKILL; its slot stays taken", task.id)
            return
        ending = Ending.load(self._launcher.folders.attempt(task.id, task.attempt))
        try:
            if ending is not None:
                self._store.finish(task.id, task.attempt, ending.event, ending.facts, ending.learned)
            else:
                self._store.happen(task, *self._verdict_on_orphan(task))
        except LostRace:
            return  # the runner's last write came between
        log.warning("the runner of task %s, attempt %d, was gone", task.id, task.attempt)

    def _verdict_on_orphan(self, task: Task) -> tuple[Event, Facts]:
        if task.cancel_requested:
            return Event.CANCEL, Facts()
        if task.attempt < self._max_attempts:
            return Event.REQUEUE, Facts()
        text = f"interrupted {task.attempt} times: the process that ran it was killed, or the machine restarted"
        return Event.FAIL, Facts(failure=Failure(ErrorCode.INTERRUPTED, text))
