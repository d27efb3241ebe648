"""The life of one attempt inside its runner: listen, tell, stop, judge, publish, and record the end.

One thread waits on the engine's progress pipe and on SIGCHLD, at most `poll_seconds` at a time, for the row's cancel
flag is looked up that often. Publishing runs in a second thread, so that a cancel and the heartbeat go on meanwhile. A
database that does not answer stops nothing: what could not be told is told later, and the end is kept in a file.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from tasks.disk import is_exhausted
from tasks.engine_process import EngineProcess, Progress, kill_engine
from tasks.estimate import Lesson, Work, lesson, pace
from tasks.finish import Abandoned, Ending, Unusable, discard, publish
from tasks.fit import Portrait, plan_at
from tasks.model import (
    OOM_REASON,
    Adjustment,
    CancelWanted,
    ErrorCode,
    Event,
    Facts,
    Failure,
    LostRace,
    Lowered,
    Note,
    Phase,
    RunnerId,
    Status,
)
from tasks.progress import LogFollower
from tasks.spec import BEAT_FILE, LOG_FILE, AttemptSpec
from tasks.store import Store
from tasks.verdict import DISK_FULL, Stopped, judge_exit, redact
from tasks.wake import ring
from utils.failpoint import Point, reach
from utils.media import ImageFacts, read_facts
from utils.plan import SIZES
from utils.process import boot_id, start_time

log = logging.getLogger("runner")

TELL_SECONDS = 1.0
"""Progress is written at most this often, except for a change of phase and notes, which are written at once."""

MAX_NOTES = 20
"""Notes of one engine that are passed on."""

_BUSY_SECONDS = 0.5
"""A locked database must not keep this process from its engine: what cannot be told now is told later."""
_MOMENT_SECONDS = 2.0  # later than it was due, a look was held up by what held up the engine as well: all were paused
_TAIL_BYTES = 64 * 1024
_RETRY_SECONDS = (0.1, 0.5, 1.0, 5.0, 15.0, 30.0)


class Attempt:
    """Owns one attempt until its end is recorded.

    `engine` was started at `began` (monotonic seconds), or is None when it could not start, for `problem`. `slot` is
    the descriptor that locks the slot.
    """

    def __init__(
        self,
        spec: AttemptSpec,
        url: str,
        engine: EngineProcess | None,
        problem: str,
        slot: list[int] | None,
        began: float,
    ) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        self.spec, self.engine, self.problem, self.slot = spec, engine, problem, slot
        self.folder = Path(spec.folder)
        self.store = Store(url, Path(spec.lock_folder), busy_seconds=_BUSY_SECONDS, prepare=False)
        self.work = Work(spec.expected_load, spec.expected_generate)
        self.began = self.phase_began = self.sign_of_life = self.listened = began
        self.phase, self.fraction, self.loaded = Phase.PREPARING, 0.0, None if engine else 0.0
        self.follower = LogFollower(self.folder, self.folder / LOG_FILE, spec.progress, spec.plan.clips)
        self.notes: list[Note] = []
        self.notes_taken = self.log_size = 0
        self.changed = self.urgent = False  # the claim has told of `preparing`
        self.stopped: Stopped | None = None
        self.kill_at: float | None = None
        self.next_tell = self.next_look = self.next_beat = self.began
        self.interrupted = self.publishing = False
        self.tell_pulse: Callable[[], None] = self._introduce  # until the database took that

    def run(self) -> int:
        """Return 0 when the end is recorded, 1 when it is left to the scheduler's reaper."""
        self._listen_to_signals()
        reach(Point.ENGINE_STARTED)
        self._try_to_tell(self.tell_pulse)
        reach(Point.INTRODUCED)
        try:
            ending = self._work(self.engine) if self.engine else Ending(Event.FAIL, Facts(failure=self._cannot_start()))
        except Exception:
            # A bug of ours: said as such, for another attempt would render for hours only to meet it again.
            log.exception("the runner failed")
            self._kill_all()
            text = "the service failed while it looked after the engine; its runner.log tells more"
            ending = Ending(Event.FAIL, Facts(failure=Failure(ErrorCode.ENGINE_FAILED, text)))
        if ending is None:
            log.info("attempt left: %s", self.stopped)
            self._discard()
            return 1
        return self._record(self._again(ending) or ending)

    # --- while the engine works ----------------------------------------------------------------------------------

    def _work(self, engine: EngineProcess) -> Ending | None:
        """Follow the engine to its end, then judge and publish; None when the attempt is no longer ours to end."""
        while (status := engine.poll()) is None:
            self._wait()
            self._listen(engine)
            self._look_after()
        self._listen(engine)
        reach(Point.ENGINE_ENDED)
        # Whatever the engine left running still holds memory, files and perhaps a GPU.
        while not self._kill_all():
            log.error("processes of the engine are left that SIGKILL did not end yet; the slot stays taken")
            self._beat(time.monotonic())
        self._reap_orphans()
        return self._ending(engine, status)

    def _wait(self) -> None:
        now = time.monotonic()
        deadline = min(self.next_look, self.kill_at if self.kill_at is not None else self.next_look)
        for key, _ in self.selector.select(max(0.0, deadline - now)):
            if key.data == "signal":
                with suppress(BlockingIOError):
                    self.wakeup.recv(512)

    def _listen(self, engine: EngineProcess) -> None:
        """Take in what the engine said; any byte of progress or log is a sign of life."""
        late = (now := time.monotonic()) - self.listened - self.spec.poll_seconds - _MOMENT_SECONDS
        self.sign_of_life, self.listened = self.sign_of_life + max(0.0, late), now
        said = [*engine.read(), *self.follower.read()]
        if engine.closed and engine.channel in self.selector.get_map():
            self.selector.unregister(engine.channel)
        size = engine.log_bytes() + self.follower.bytes_read
        if said or size != self.log_size:
            self.sign_of_life, self.log_size = time.monotonic(), size
        for word in said:
            self._take_note(word) if isinstance(word, Note) else self._take_progress(word)

    def _take_note(self, note: Note) -> None:
        if self.notes_taken < MAX_NOTES:
            self.notes_taken += 1
            self.notes.append(note)
            self.changed = self.urgent = True

    def _take_progress(self, said: Progress) -> None:
        if said.phase is not self.phase:
            self.phase, self.phase_began, self.urgent = said.phase, time.monotonic(), True
            if said.phase in (Phase.GENERATING, Phase.ENCODING) and self.loaded is None:
                self.loaded = self.phase_began - self.began
        self.fraction, self.changed = said.fraction, True

    def _look_after(self) -> None:
        """Once every `poll_seconds`: tell, look whether to stop, and stop for good what did not obey."""
        now = time.monotonic()
        if now >= self.next_look or self.urgent:
            self.next_look = now + self.spec.poll_seconds
            self._try_to_tell(self._look_at_row)
            if self.changed and (self.urgent or now >= self.next_tell):
                self._try_to_tell(self._tell_progress)
            self._beat(now)
        if (reason := self._reason_to_stop(now)) is not None and self.stopped is None:
            self._stop(reason, now)
        if self.kill_at is not None and now >= self.kill_at and self.engine is not None:
            self.engine.kill()
            self.kill_at = None

    def _reason_to_stop(self, now: float) -> Stopped | None:
        if self.interrupted:
            return Stopped.INTERRUPTED
        if self.publishing:
            return None
        if 0 < self.spec.run_timeout_seconds < now - self.began:
            return Stopped.TIMED_OUT
        if 0 < self.spec.silence_limit(self.phase, self.fraction) < now - self.sign_of_life:
            return Stopped.HUNG
        return None

    def _stop(self, reason: Stopped, now: float) -> None:
        log.info("stopping the engine: %s", reason.value)
        self.stopped, self.kill_at = reason, now + self.spec.grace_seconds
        if self.engine is not None:
            self.engine.terminate()

    # --- telling the row -----------------------------------------------------------------------------------------

    def _introduce(self) -> None:
        me = RunnerId(socket.gethostname(), boot_id(), os.getpid(), start_time(os.getpid()) or 0)
        self.store.note_runner(self.spec.task_id, self.spec.attempt, me)
        self.tell_pulse = lambda: self.store.beat(self.spec.task_id, self.spec.attempt)

    def _look_at_row(self) -> None:
        task = self.store.get(self.spec.task_id)
        if task is None or task.status is not Status.PROCESSING or task.attempt != self.spec.attempt:
            raise LostRace
        if task.cancel_requested and self.stopped is None:
            self._stop(Stopped.CANCELLED, time.monotonic())

    def _tell_progress(self) -> None:
        now = time.monotonic()
        at = pace(self.work, self.phase, self.fraction, now - self.began, now - self.phase_began)
        self.store.report(
            self.spec.task_id, self.spec.attempt, phase=self.phase, progress=at.progress, eta_seconds=at.eta_seconds,
            notes=self.notes,
        )  # fmt: skip
        self.notes = []
        self.changed = self.urgent = False
        self.next_tell, self.next_beat = now + TELL_SECONDS, now + self.spec.heartbeat_seconds

    def _beat(self, now: float) -> None:
        if now >= self.next_beat:
            self.next_beat = now + self.spec.heartbeat_seconds
            self._show_pulse()
            self._try_to_tell(self.tell_pulse)

    def _show_pulse(self) -> None:
        """Beat where no lock of the database is in the way: who holds it for long must not cost a healthy attempt."""
        with suppress(OSError):  # a folder that is gone or read-only: then the row's beat alone has to do
            os.utime(self.folder / BEAT_FILE)

    def _try_to_tell(self, tell: Callable[[], None]) -> None:
        try:
            tell()
        except LostRace:
            if self.stopped is not Stopped.LOST:
                self._stop(Stopped.LOST, time.monotonic())
        except DBAPIError as error:
            log.warning("the database does not answer, going on: %s", error.orig)

    # --- the end -------------------------------------------------------------------------------------------------

    def _ending(self, engine: EngineProcess, status: int) -> Ending | None:
        if self.stopped in (Stopped.LOST, Stopped.INTERRUPTED):
            return None
        if self.stopped is Stopped.CANCELLED:
            return Ending(Event.CANCEL, Facts())
        silence = self.spec.silence_limit(self.phase, self.fraction)
        limits = {Stopped.TIMED_OUT: self.spec.run_timeout_seconds, Stopped.HUNG: silence}
        tail = engine.log_tail(_TAIL_BYTES)
        limit = limits.get(self.stopped, 0.0) if self.stopped else 0.0
        full = is_exhausted(self.folder)  # an engine's last words, that it is, would lie on the full disk
        failure = judge_exit(status, self.stopped, limit, tail, full, self.spec.limits.file_bytes)
        if failure is not None:
            return self._smaller(failure) or Ending(Event.FAIL, Facts(failure=failure))
        return self._publish(tail, time.monotonic())

    def _smaller(self, failure: Failure) -> Ending | None:
        """Return the retry, at the next smaller size, of an attempt that ran out of GPU memory: once, and told."""
        params = self.spec.params
        sizes = [size for size in self.spec.oom_sizes if SIZES[size] < SIZES[params.size]]
        if failure.code is not ErrorCode.OOM or self.spec.adjusted or not sizes:
            return None
        image = read_facts(self.folder.parent.parent / "inputs" / "image.png", "image")
        if not isinstance(image, ImageFacts):
            raise TypeError("the task's image is no image")
        plan = plan_at(self.spec.plan, sizes[0], Portrait(image.width, image.height))
        log.warning("out of GPU memory at %s, trying %s", params.size, sizes[0])
        told = Adjustment("size", params.size, sizes[0], OOM_REASON)
        return Ending(Event.REQUEUE, Facts(lowered=Lowered(replace(params, size=sizes[0]), plan, told)))

    def _again(self, ending: Ending) -> Ending | None:
        """Return the retry of an attempt that failed as its profile says is worth another one."""
        failure = ending.facts.failure
        if failure is None or failure.code not in self.spec.retry_on:
            return None
        text = f"attempt {self.spec.attempt} ended in {failure.code} and is made again"
        log.warning("%s: %s", text, failure.message)
        return Ending(Event.REQUEUE, Facts(notes=(Note("retried", text),)))

    def _publish(self, tail: str, ended: float) -> Ending | None:
        """Verify and publish in a thread, while this one keeps looking at the row."""
        self.phase, self.phase_began, self.fraction = Phase.ENCODING, ended, 0.0
        self.changed = self.urgent = self.publishing = True
        outcome: Future[Ending] = Future()
        worker = threading.Thread(target=self._publish_into, args=(outcome, tail, self._lesson(ended)), name="publish")
        worker.start()
        while worker.is_alive():
            worker.join(self.spec.poll_seconds)
            self._look_after()
        if self.stopped in (Stopped.LOST, Stopped.INTERRUPTED):
            return None
        return outcome.result()

    def _publish_into(self, outcome: Future[Ending], tail: str, learned: Lesson) -> None:
        try:
            result = publish(self.spec, tail, should_stop=lambda: self.stopped is not None)
            outcome.set_result(Ending(Event.COMPLETE, Facts(result=result), learned))
        except Abandoned:
            outcome.set_result(Ending(Event.CANCEL, Facts()))
        except Unusable as error:
            outcome.set_result(Ending(Event.FAIL, Facts(failure=error.failure)))
        except BaseException as error:
            outcome.set_exception(error)

    def _lesson(self, ended: float) -> Lesson:
        spec, total = self.spec, ended - self.began
        load = total if self.loaded is None else self.loaded
        return lesson(spec.profile, spec.estimate, spec.plan, spec.params.sample_steps, load, total - load)

    def _cannot_start(self) -> Failure:
        if is_exhausted(self.folder):
            return Failure(ErrorCode.DISK_FULL, DISK_FULL)
        return Failure(ErrorCode.ENGINE_FAILED, self.problem)

    def _record(self, ending: Ending) -> int:
        """Write the end into the row, however long the database needs; a lost attempt publishes nothing."""
        ending = self._redacted(ending)
        if ending.event is not Event.COMPLETE:
            self._discard()  # first, for it may be what filled the disk
        try:
            self.store.ballast.lend(lambda: ending.save(self.folder))
        except OSError as error:
            log.error("the end cannot be kept in a file, the row alone has to do: %s", error.strerror)
        reach(Point.END_KEPT)
        for lock in self.slot or ():
            os.close(lock)  # before the row says so: the next runner shall not wait for this process to leave
        for pause in self._pauses():
            self._show_pulse()
            try:
                self.store.finish(self.spec.task_id, self.spec.attempt, ending.event, ending.facts, ending.lesson)
                break
            except CancelWanted:
                self._discard()  # before the row says so: a cancelled task has no result, whenever this process dies
                ending = Ending(Event.CANCEL, Facts())
            except LostRace:
                self._discard()
                return 1
            except DBAPIError as error:
                log.warning("the end is not recorded yet: %s", error.orig)
                threading.Event().wait(pause)
        else:
            return 1
        reach(Point.ROW_ENDED)
        ring(Path(self.spec.wake))
        return 0

    def _pauses(self) -> list[float]:
        """Retry for about a day; then the file in the attempt's folder is all there is."""
        return [*_RETRY_SECONDS, *[_RETRY_SECONDS[-1]] * (86_400 // int(_RETRY_SECONDS[-1]))]

    def _kill_all(self) -> bool:
        return kill_engine(self.folder, self.spec.marks)

    def _discard(self) -> None:
        discard(self.folder, Path(self.spec.results))

    def _redacted(self, ending: Ending) -> Ending:
        failure = ending.facts.failure
        if failure is None:
            return ending
        clean = Failure(failure.code, redact(failure.message), redact(failure.log_excerpt))
        return Ending(ending.event, Facts(failure=clean), ending.lesson)

    # --- parts ---------------------------------------------------------------------------------------------------

    def _listen_to_signals(self) -> None:
        self.wakeup, self._sender = socket.socketpair()  # kept: the descriptors must outlive this function
        self.wakeup.setblocking(False)
        self._sender.setblocking(False)
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._interrupt)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.wakeup, selectors.EVENT_READ, "signal")
        if self.engine is not None:
            self.selector.register(self.engine.channel, selectors.EVENT_READ, "progress")

    def _interrupt(self, number: int, frame: object) -> None:
        self.interrupted = True

    def _reap_orphans(self) -> None:
        """As subreaper this process inherits the engine's orphans; collect those that ended."""
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
