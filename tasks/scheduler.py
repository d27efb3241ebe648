"""The scheduler: one thread in one process of a host, which gives slots to queued tasks and looks after their runners.

Every web process starts one; the holder of a file lock works and the others wait to take over. It sleeps until a ring
of the wake FIFO (a submit, an end) or the death of a runner, and looks at all rows every few seconds all the same, for
a ring may be lost.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from tasks import drain
from tasks.estimate import Work
from tasks.finish import Ending, discard
from tasks.launch import Launcher
from tasks.model import CancelWanted, ErrorCode, Event, Facts, Failure, LostRace, Task
from tasks.office import take_turns
from tasks.placement import Host, Placement, choose
from tasks.profile import EngineTable
from tasks.settling import STATE_NAME, Loans, from_state, lend, settle, settling, to_state
from tasks.spawner import SpawnError
from tasks.spec import AttemptSpec
from tasks.store import Store, utc_now
from tasks.wake import Bell, ring
from utils.failpoint import Point, reach
from utils.file_handler import FULL, OWN_WANT
from utils.process import boot_id, is_alive, is_locked, kill_all, watch

log = logging.getLogger("scheduler")

Beat = tuple[datetime | None, int | None]
"""What a runner last wrote into its row, and the pulse in its folder."""

LOCK_NAME = "scheduler.lock"

_STALLED_SECONDS = 20.0
"""The scheduler looks every few seconds; one that has not for so long was stopped, or its looks fail or do not end."""

_TAKEOVER_SECONDS = 0.5
_LOOK_SECONDS = 5.0
_SETTLE_SECONDS = 0.5
_RETRY_SECONDS = 1.0
_KILL_SECONDS = 5.0
_AHEAD = 200
"""How many queued tasks placement looks at: more than there will be free slots."""


class Scheduler:
    """Places queued tasks and reaps attempts whose runner died.

    `host` tells what there is now, with its GPUs looked at anew where that is asked for, `work_of` a task's
    expected work. Once `closing` is true nothing more is started.
    """

    def __init__(
        self,
        store: Store,
        launcher: Launcher,
        table: EngineTable,
        host: Callable[[bool], Host],
        *,
        max_attempts: int,
        lease_seconds: float,
        release_seconds: float,
        work_of: Callable[[Task], Work],
        closing: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store, self._launcher, self._table, self._host = store, launcher, table, host
        self._max_attempts, self._work_of = max_attempts, work_of
        self._lease_seconds, self._boot_id = lease_seconds, boot_id()
        self._closing = closing
        self._lock_file = launcher.folders.data / LOCK_NAME
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._watched: dict[tuple[str, int], int] = {}  # attempt -> pidfd of its runner
        self._heard: dict[tuple[str, int], tuple[Beat, float, float]] = {}
        """Of each attempt its last beats, for how many seconds they stayed the same, and when that was looked at."""
        self._release = timedelta(seconds=release_seconds)
        self._loans: Loans = {}

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
        take_turns(self._lock_file, self._stopping, _TAKEOVER_SECONDS, self._hold_office, log)

    def _hold_office(self, lock: int) -> None:
        """Schedule until stopped."""
        with ExitStack() as stack:
            bell = stack.enter_context(closing(Bell(self._launcher.folders.wake)))
            stack.callback(self._leave_office)
            self._launcher.spawner.warm_up()
            self._loans = from_state(self._store.state.get(STATE_NAME))
            log.info("this process schedules")
            self._schedule(bell, lock)

    def _leave_office(self) -> None:
        self._launcher.spawner.close()
        for attempt in list(self._watched):
            self._forget(attempt)

    def _schedule(self, bell: Bell, lock: int) -> None:
        _note_look(lock)
        while not self._stopping.is_set():
            bell.hush()  # before looking: a ring from here on leads to another look
            try:
                self._reap()
                self._place()
                _note_look(lock)
            except Exception:
                # The thread must outlive a database that is away; what it could not do it will see again.
                log.exception("scheduling failed, trying again")
                self._stopping.wait(_RETRY_SECONDS)
                continue
            self._wait(bell)

    def _wait(self, bell: Bell) -> None:
        """Wait for a ring, or the death of a runner, which makes its pidfd readable; `_LOOK_SECONDS` at most.

        Less while a GPU gives its memory back, of which nobody rings.
        """
        poller = select.poll()  # unlike select(), not confined to the first 1,024 descriptors of a busy server
        watched = {descriptor: attempt for attempt, descriptor in self._watched.items()}
        for descriptor in (bell.fileno(), *watched):
            poller.register(descriptor, select.POLLIN)
        for descriptor, _ in poller.poll((_SETTLE_SECONDS if settling(self._loans) else _LOOK_SECONDS) * 1000):
            if descriptor in watched:
                self._forget(watched[descriptor])  # it says so for ever, and another process may own the attempt

    # --- giving slots --------------------------------------------------------------------------------------------

    def _place(self) -> None:
        # Tasks whose profile left the table wait: the operator may bring it back.
        waiting = self._store.queue.engines() if self._may_start() else set[str]()
        if not waiting and not self._loans:
            return
        running = self._store.processing()
        busy = {uuid for task in running for uuid in task.gpus}
        # Looking at the GPUs takes its time: only where one may be given out, or was given back.
        look = bool(self._loans.keys() - busy) or self._want_gpus(waiting)
        host = self._settled(self._host(look), busy)
        queued = self._store.queue.next_up(_AHEAD, self._table.names) if waiting else ()
        for placement in choose(queued, running, host, self._table, utc_now()):
            self._launch(placement, host)

    def _may_start(self) -> bool:
        return not self._closing() and drain.current(self._store.state) is None

    def _settled(self, host: Host, busy: set[str]) -> Host:
        """Return the host with the GPUs marked whose memory is not back since their task ended."""
        loans = settle(self._loans, busy, host.cards, utc_now(), self._release)
        for uuid, loan in loans.items():
            if loan.overdue and not self._loans[uuid].overdue:
                log.error("GPU %s did not get its %.1f GiB back after a task; used as it is", uuid, loan.free_gib)
        self._note_loans(loans)
        return replace(host, settling=settling(loans))

    def _note_loans(self, loans: Loans) -> None:
        if loans != self._loans:
            self._store.state.set(STATE_NAME, to_state(loans))
            self._loans = loans

    def _launch(self, placement: Placement, host: Host) -> None:
        task = placement.task
        self._launcher.spawner.be_ready()  # while no runner can be started a task waits, and loses no attempt
        if placement.gpus:
            self._note_loans(lend(self._loans, host.cards, placement.gpus))
        try:
            lock = self._launcher.reserve(task.id, task.attempt + 1)
        except OSError as error:  # no room for a folder: else it would be tried at each look for ever
            if error.errno in OWN_WANT:  # for which no task is to blame
                raise
            with suppress(LostRace):
                self._fail_to_start(self._store.happen(task, Event.CLAIM, self._claim(placement)), error)
            return
        if lock is None:
            log.error("attempt %d of task %s is already held by a process", task.attempt + 1, task.id)
            return
        try:
            reach(Point.ATTEMPT_RESERVED)
            claimed = self._store.happen(task, Event.CLAIM, self._claim(placement))
            reach(Point.CLAIMED)
            pid = self._start(claimed, placement, lock)
            reach(Point.RUNNER_SPAWNED)
        except LostRace:
            log.info("task %s changed before it could start", task.id)
            return
        finally:
            os.close(lock)
        self._watch(claimed, pid)

    def _start(self, claimed: Task, placement: Placement, lock: int) -> int:
        """Spawn the runner; where that cannot be done, say so in the task, for no runner will."""
        try:
            return self._launcher.spawn(claimed, placement, self._work_of(claimed), lock)
        except SpawnError:
            raise  # a runner may have been forked all the same: the next look finds it, or an orphan
        except OSError as error:
            if error.errno not in OWN_WANT:
                self._fail_to_start(claimed, error)
            raise

    def _fail_to_start(self, claimed: Task, error: OSError) -> None:
        code = ErrorCode.DISK_FULL if error.errno in FULL else ErrorCode.ENGINE_FAILED
        text = f"the task could not be started: {error.strerror or error}"
        log.error("task %s: %s (%s)", claimed.id, text, error.filename)
        self._store.happen(claimed, Event.FAIL, Facts(failure=Failure(code, text)))

    def _want_gpus(self, names: Collection[str]) -> bool:
        engines = (self._table.engine(name) for name in names)
        return any(profile.gpus for engine in engines if engine for profile in engine.profiles)

    @staticmethod
    def _claim(placement: Placement) -> Facts:
        return Facts(slot=placement.slot, profile=placement.profile.name, gpus=placement.gpus)

    # --- looking after runners -----------------------------------------------------------------------------------

    def _watch(self, task: Task, pid: int) -> None:
        descriptor = watch(pid)
        if descriptor is not None:
            self._watched[task.id, task.attempt] = descriptor

    def _reap(self) -> None:
        """End or re-queue every processing task whose runner is gone; adopt every one whose runner lives."""
        running = {(task.id, task.attempt): task for task in self._store.processing()}
        for gone in (self._watched.keys() | self._heard.keys()) - running.keys():
            self._forget(gone)
            self._heard.pop(gone, None)
        away: DBAPIError | None = None
        for task in running.values():
            try:
                self._look_after(task)
            except DBAPIError as error:
                away = error  # the others all the same: the database may be held by a runner that is to be killed
            except Exception:
                # What is wrong with one attempt's files must hold up no other task; the next look tries it again.
                log.exception("attempt %d of task %s cannot be looked after", task.attempt, task.id)
        if away is not None:
            raise away

    def _look_after(self, task: Task) -> None:
        attempt, pid = (task.id, task.attempt), self._runner_of(task)
        # Either will do: a runner is locked before it has told its pid, and somebody may have removed the lock's file.
        if pid is None and not self._launcher.folders.is_held(task.id, task.attempt):
            self._forget(attempt)
            self._end_orphan(task)
            return
        if attempt not in self._watched and pid is not None:
            self._watch(task, pid)
        self._end_if_stuck(attempt, task)

    def _runner_of(self, task: Task) -> int | None:
        """Return the pid of the task's runner if that lives: pids are reused, and machines restart."""
        runner = task.runner
        lives = runner and runner.boot_id == self._boot_id and is_alive(runner.pid, runner.start_time)
        return runner.pid if runner and lives else None

    def _end_if_stuck(self, attempt: tuple[str, int], task: Task) -> None:
        """Kill a runner whose heart has long stopped beating (a SIGSTOP, a dead disk); then it is reaped like any.

        The silence is measured here, for a clock that is set forward must kill no runner; and from look to look, for
        where this process slept, as in a container that is paused, the runner did as well. Whoever holds the attempt's
        lock is killed: a runner may have been stopped before it could tell its pid, or a spawner before it forked.
        """
        now, beat = time.monotonic(), (task.heartbeat_at, self._launcher.pulse(task))
        last, silent, looked = self._heard.get(attempt, (None, 0.0, now))
        silent = silent + min(now - looked, _STALLED_SECONDS) if beat == last else 0.0
        self._heard[attempt] = beat, silent, now
        if silent > self._lease_seconds:
            log.error("the runner of task %s has been silent for %.0f s and is killed", task.id, silent)
            self._launcher.kill_holders(task)
            with suppress(ProcessLookupError):
                if (pid := self._runner_of(task)) is not None:
                    os.kill(pid, signal.SIGKILL)

    def _forget(self, attempt: tuple[str, int]) -> None:
        descriptor = self._watched.pop(attempt, None)
        if descriptor is not None:
            os.close(descriptor)

    def _end_orphan(self, task: Task) -> None:
        """Do what the dead runner of `task` can no longer do. Nothing of the attempt is left when its row says so."""
        marks = {"AVATAR_TASK_ID": task.id, "AVATAR_ATTEMPT": str(task.attempt)}
        folders = self._launcher.folders
        made = folders.attempt(task.id, task.attempt), folders.result(task.id, task.attempt)
        if not kill_all(below=None, marks=marks, deadline=_KILL_SECONDS, cgroup=AttemptSpec.cgroup(made[0])):
            log.error("processes of task %s outlived SIGKILL; its slot stays taken", task.id)
            return
        self._launcher.kill_holders(task)  # what shed its marks would keep the slot from the next task
        reach(Point.ORPHAN_KILLED)
        try:
            self._end_as_left(task, made)
        except LostRace:
            return  # the runner's last write came between
        log.warning("the runner of task %s, attempt %d, was gone", task.id, task.attempt)

    def _end_as_left(self, task: Task, made: tuple[Path, Path]) -> None:
        """Write the end that the runner kept in a file, or the verdict on one that kept none; files go before rows."""
        now = self._store.get(task.id)
        if now is None or (now.status, now.attempt) != (task.status, task.attempt):
            raise LostRace
        ending = Ending.load(made[0]) or Ending(*self._verdict_on_orphan(now))
        if ending.event is Event.COMPLETE:
            with suppress(CancelWanted):
                self._store.finish(task.id, task.attempt, ending.event, ending.facts, ending.lesson)
                return
            ending = Ending(Event.CANCEL, Facts())
        discard(*made)
        self._store.finish(task.id, task.attempt, ending.event, ending.facts)

    def _verdict_on_orphan(self, task: Task) -> tuple[Event, Facts]:
        if task.cancel_requested:
            return Event.CANCEL, Facts()
        if task.attempt < self._max_attempts:
            return Event.REQUEUE, Facts()
        text = f"interrupted {task.attempt} times: the process that ran it was killed, or the machine restarted"
        return Event.FAIL, Facts(failure=Failure(ErrorCode.INTERRUPTED, text))


def _note_look(lock: int) -> None:
    """Write into the lock's file when its holder last got through a look, or began.

    By the clock that nobody can set and all processes share.
    """
    with suppress(OSError):  # a full disk: it is told as such
        os.pwrite(lock, f"{time.monotonic():020.3f}\n".encode(), 0)


@dataclass(frozen=True, slots=True)
class Office:
    """Whether a process schedules the tasks of a data folder; seconds since it last looked, where that is known."""

    held: bool
    silent_seconds: float | None = None


def look_at_office(folder: Path) -> Office:
    """Return whether tasks are looked after on the data folder at present."""
    path = folder / LOCK_NAME
    if not is_locked(path):
        return Office(False)
    try:
        return Office(True, max(0.0, time.monotonic() - float(path.read_text())))
    except (OSError, ValueError):
        return Office(True)  # the lock has just been made, or is of another version


def why_not_scheduled(folder: Path) -> str:
    """Say why no queued task starts on the data folder at present, or nothing."""
    office = look_at_office(folder)
    if not office.held:
        return "no process schedules tasks at present"
    since = office.silent_seconds
    if since is None or since < _STALLED_SECONDS:
        return ""
    return (
        f"the process that schedules tasks has not got through a look at them for {since:.0f} s: its log tells what "
        "fails; gunicorn ends one that hangs"
    )
