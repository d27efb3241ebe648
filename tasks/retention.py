"""What expires, and how it goes: rows first, then files, so that no row ever promises a file that is gone.

A task's record, inputs, logs and result go together when its time is over: record out, tombstone in, in one
transaction, then its folders. A crash in between leaves folders without a row, which the search for orphans removes by
their age. Inputs and logs may go earlier by themselves. Only what ended is looked at, in the order of its end: a
position in that order is kept for each step, so a sweep costs what is new, not what there is. A thread of its own does
it, in one process of a host; nothing waits for it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import accumulate, islice
from pathlib import Path

from tasks.clock import ClockGuard
from tasks.disk import Disk, tree_bytes
from tasks.ended import EndedTask
from tasks.folders import Folders
from tasks.model import Status
from tasks.office import take_turns
from tasks.policy import Policy
from tasks.spec import OUTPUT_FOLDER, STAGING_FOLDER
from tasks.store import Store, utc_now
from utils.file_handler import if_possible, remove_if_possible

log = logging.getLogger("retention")

LOCK_NAME = "retention.lock"

_BATCH = 100
_SLICE = 500
"""Tasks in one transaction; names of a folder that are looked up at once."""

_PAUSE_SECONDS = 0.005
"""Between batches, so that whoever answers requests in this process gets its turn."""

_TAKEOVER_SECONDS = 5.0
_SETTLE_AFTER = timedelta(seconds=60)
"""By then the writer of an end has committed it, and its runner has left."""

_ORPHAN_AGE = timedelta(hours=1)
"""A folder without a row may be a submit that goes on; not after this."""

_SEARCH_EVERY = timedelta(hours=6)


class Sweeper:
    """Removes what expired, counts what is kept, and puts the ballast back. `start` makes the thread."""

    def __init__(
        self, store: Store, folders: Folders, disk: Disk, policy: Policy, now: Callable[[], datetime] = utc_now,
        guard: ClockGuard | None = None,
    ) -> None:  # fmt: skip
        self._store, self._folders, self._disk, self._policy = store, folders, disk, policy
        self._guard = guard or ClockGuard(store.state, now)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)
        self._next_search: datetime | None = None
        self._told = ""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the batch at hand."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    # --- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        take_turns(self._folders.data / LOCK_NAME, self._stopping, _TAKEOVER_SECONDS, self._keep_sweeping, log)

    def _keep_sweeping(self, _lock: int) -> None:
        while not self._stopping.is_set():
            self._sweep_or_log()
            self._stopping.wait(self._policy.sweep_every.total_seconds())

    def _sweep_or_log(self) -> None:
        try:
            self.sweep()
        except Exception:
            # A database that is away or a disk that fails must not end the thread: what was left out comes next time.
            log.exception("the sweep failed, trying again")

    def sweep(self) -> None:
        """Do one round. Nothing is removed while the clock is not to be trusted.

        On a full disk it is done once more with the ballast's room: it writes before it removes, and what it removes
        may be all that could ever make room.
        """
        self._disk.restore_ballast()
        self._store.ballast.lend(self._go_round)

    def _go_round(self) -> None:
        reason = self._guard.beat()
        if reason != self._told:
            log.warning(reason or "what expired is removed again")
            self._told = reason
        if reason:
            return
        self._store.ended.forget_old_keys()
        self._step("settled", _SETTLE_AFTER, self._settle)
        self._expire_tasks()
        if self._guard.held:
            return
        self._step("inputs", self._policy.inputs, lambda task: remove_if_possible(self._folders.inputs(task.id)))
        self._step("logs", self._policy.logs, lambda task: remove_if_possible(self._folders.attempts(task.id)))
        self._keep_to_quota()
        self._expire_uploads()
        self._search_orphans()
        self._disk.restore_ballast()

    def _now(self) -> datetime:
        """Return the time of this sweep, which the guard found to be right."""
        return self._guard.checked

    # --- ended tasks ---------------------------------------------------------------------------------------------

    def _expire_tasks(self) -> None:
        if self._policy.results is not None:
            limit = self._now() - self._policy.results
            for batch in self._batches(lambda: self._store.ended.until(limit, _BATCH)):
                if self._are_too_old(batch):
                    return
                self._remove(batch)

    def _are_too_old(self, expired: list[EndedTask]) -> bool:
        """Say whether some were not there when all that ended so long ago was settled: then their age is wrong."""
        late = [task for task in expired if task.stored_bytes is None]
        if late:
            log.warning("%d tasks ended under a wrong time", len(late))
            self._guard.distrust()
            self._store.ended.note_bytes({task.id: self._bytes(task.id) for task in late})
        return bool(late)

    def _keep_to_quota(self) -> None:
        """Remove the tasks that ended first until what is kept fits."""
        if not self._policy.max_bytes:
            return
        over = self._store.ended.total_bytes() - self._policy.max_bytes
        if over <= 0:
            return
        # Only what was counted: a task that has just ended is not given up before anyone could fetch it.
        limit = self._now() - _SETTLE_AFTER
        for batch in self._batches(lambda: self._store.ended.until(limit, _BATCH)):
            surplus = _first_worth(batch, over)
            log.warning("the quota is used up: %d ended tasks are removed before their time", len(surplus))
            self._remove(surplus)
            over -= sum(task.stored_bytes or 0 for task in surplus)
            if over <= 0:
                return

    def _remove(self, ended: list[EndedTask]) -> None:
        for task in self._store.ended.remove(ended):
            self._folders.remove_task(task.id)

    def _settle(self, task: EndedTask) -> None:
        """Remove what an attempt that was cut off may have left of a result."""
        if task.status is not Status.COMPLETED:
            remove_if_possible(self._folders.results / task.id)
        for path in _entries(self._folders.results / task.id):
            if path != self._folders.result(task.id, task.attempt):
                remove_if_possible(path)
        for attempt in _entries(self._folders.attempts(task.id)):
            for name in (OUTPUT_FOLDER, STAGING_FOLDER):
                remove_if_possible(attempt / name)

    def _step(self, name: str, after: timedelta | None, act: Callable[[EndedTask], None]) -> None:
        """Do `act`, and count the bytes anew, for each task that ended `after` ago since the last time."""
        if after is None:
            return
        fact = f"retention_{name}"
        limit = self._now() - after
        for batch in self._batches(lambda: self._store.ended.until(limit, _BATCH, self._position(fact))):
            for task in batch:
                act(task)
            self._store.ended.note_bytes({task.id: self._bytes(task.id) for task in batch})
            last = batch[-1]
            self._store.state.set(fact, {"ended": _microseconds(last.finish_time), "seq": last.seq})

    def _position(self, fact: str) -> tuple[datetime, int] | None:
        """Return how far a step has come, None where it has to begin anew.

        So it has where that was noted under a clock that ran ahead: all that ends until then would be passed over.
        """
        kept = self._store.state.get(fact)
        if kept is None:
            return None
        ended = _EPOCH + timedelta(microseconds=kept["ended"])
        return (ended, kept["seq"]) if ended <= self._now() else None

    def _batches(self, more: Callable[[], list[EndedTask]]) -> Iterator[list[EndedTask]]:
        while not self._stopping.is_set() and (batch := more()):
            yield batch
            self._stopping.wait(_PAUSE_SECONDS)

    def _bytes(self, task_id: str) -> int:
        return tree_bytes(self._folders.tasks / task_id) + tree_bytes(self._folders.results / task_id)

    # --- uploads and orphans -------------------------------------------------------------------------------------

    def _expire_uploads(self) -> None:
        if self._policy.uploads is None:
            return
        limit = self._now() - self._policy.uploads
        while not self._stopping.is_set() and (paths := self._store.uploads.expire(limit, _BATCH)):
            for path in paths:
                remove_if_possible(self._folders.upload(path))

    def _search_orphans(self) -> None:
        """From time to time, remove files that nothing knows of; of the unfinished ones at each sweep."""
        self._remove_old(self._folders.scratch, lambda names: set())
        now = self._now()
        if self._next_search is not None and now < self._next_search:
            return
        self._next_search = now + _SEARCH_EVERY
        if self._policy.records is not None:
            self._store.ended.forget_tombstones(now - self._policy.records)
        while not self._stopping.is_set() and self._store.outbox.forget_orphans():
            self._stopping.wait(_PAUSE_SECONDS)
        for folder in (self._folders.tasks, self._folders.results):
            self._remove_old(folder, self._store.known)
        for kind in ("image", "audio"):
            self._remove_old(self._folders.uploads / kind, partial(self._known_uploads, kind))

    def _known_uploads(self, kind: str, names: list[str]) -> set[str]:
        paths = self._store.uploads.known([f"/uploads/{kind}/{name}" for name in names])
        return {path.rpartition("/")[2] for path in paths}

    def _remove_old(self, folder: Path, known: Callable[[list[str]], set[str]]) -> None:
        """Remove the old entries of `folder` whose names are not `known`, a slice at a time."""
        oldest = self._now().timestamp() - _ORPHAN_AGE.total_seconds()
        with os.scandir(folder) as entries:
            names = (entry.name for entry in entries)
            while not self._stopping.is_set() and (some := list(islice(names, _SLICE))):
                for name in set(some) - known(some):
                    with if_possible():
                        if _last_change(folder / name) < oldest:
                            log.info("removing %s, which nothing knows of", name)
                            remove_if_possible(folder / name)
                self._stopping.wait(_PAUSE_SECONDS)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _first_worth(ended: list[EndedTask], wanted_bytes: int) -> list[EndedTask]:
    """Return the first of `ended` that keep `wanted_bytes` together, or all."""
    before = accumulate((task.stored_bytes or 0 for task in ended), initial=0)
    return [task for task, so_far in zip(ended, before, strict=False) if so_far < wanted_bytes]


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _entries(folder: Path) -> Iterable[Path]:
    found = list[Path]()
    with if_possible():  # it may lie on a part of the disk that failed: the others wait for no repair
        found += folder.iterdir()
    return sorted(found)


def _last_change(path: Path) -> float:
    """Return when `path`, or what lies directly in it, was last written."""
    newest = path.lstat().st_mtime
    for entry in _entries(path):
        with if_possible():
            newest = max(newest, entry.lstat().st_mtime)
    return newest
