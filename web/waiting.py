"""Long polls and event streams: many requests that wait for a change of their task, one thread that looks for one.

A runner, or another web process, changes a row; SQLite tells of it by a counter (`Store.changes`). One thread in each
web process reads it every 50 ms while anyone waits. When it has moved, that thread reads the tags of all tasks that
are waited for at once, and wakes those whose task has another than they saw: of 200 who wait, a task that reports
progress several times a second wakes its own. Those look at it once for all of them, so that 200 who watch one task
cost one look a change. The same thread measures the logs that streams follow; a log that grows changes no row.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

log = logging.getLogger("web")

LOOK_SECONDS = 0.05
LOG_SECONDS = 0.5
"""How often logs are measured; what an engine writes meanwhile goes out together."""

TURN_SECONDS = 0.005
"""From one who is woken to the next: who watches can wait for the second that 200 take, a request shall not."""

SHARE = 4
"""How many places one tenant may hold for each that is free: of 256 that are 205, which leaves some for newcomers.

A part that follows what is free, and no fixed one: where there is one tenant it gets most, where there are many all get
about the same, and none has to be known before.
"""

RECOVERY_SECONDS = 1.0
"""Pause after the counter, or the tags, could not be read."""


class Seen(Protocol):
    """What there is to see under a key; it has changed where its tag has."""

    @property
    def tag(self) -> str: ...


S = TypeVar("S", bound=Seen)


class _Look(Generic[S]):
    """One look, made by the first who asks, for all whom the same change woke."""

    def __init__(self, look: Callable[[], S]) -> None:
        self._look, self._lock = look, threading.Lock()
        self._seen: S | None = None

    def seen(self) -> S:
        """Return what there is to see. Raises whatever looking raises, and then each who asks looks again."""
        with self._lock:
            if self._seen is None:
                self._seen = self._look()
            return self._seen


class Place(Generic[S]):
    """The place of one who waits. It looks (`see`), then waits for a change of what it saw (`wait`), and so on."""

    def __init__(
        self, key: str, tenant: str, look: _Look[S], stopped: Callable[[], bool], leave: Callable[[Place[S]], None]
    ) -> None:
        self.key, self.tenant = key, tenant
        self.tag: str | None = None
        self.log: tuple[Path, int] | None = None
        self._look: _Look[S] | None = look
        self._seen: S
        self._stopped, self._leave = stopped, leave
        self._lock = threading.Lock()
        self._woken = threading.Event()

    def see(self) -> S:
        """Return what there is to see; without looking again where nothing but the log has changed."""
        with self._lock:
            look, self._look = self._look, None
        if look is not None:
            self._seen = look.seen()
            self.tag = self._seen.tag
        return self._seen

    def wait(self, seconds: float, log: tuple[Path, int] | None = None) -> bool:
        """Wait until it is no more as it was seen, or `log` has another size than this; return False if it still is.

        A change between the look and the wait ends the wait at once. It may end without one.
        """
        self.log = log
        woken = self._woken.wait(max(seconds, 0.0))
        self._woken.clear()  # before the next look: whatever changes after that wakes again
        return woken and not self._stopped()

    @property
    def stopped(self) -> bool:
        """Whether all waiting is over."""
        return self._stopped()

    def wake(self, look: _Look[S] | None = None) -> None:
        """End the wait, or the next one; with a look, what there is to see has changed."""
        if look is not None:
            with self._lock:
                self._look = look
        self._woken.set()

    def leave(self) -> None:
        """Give the place back; a second time does nothing."""
        self._leave(self)


class Waiting(Generic[S]):
    """Holds up to `max_waiters` requests, `shared` between tenants. The thread starts with the first of them.

    `look` sees what there is under a key, `tags` gives the tags of many keys at once, without those that are gone.
    """

    def __init__(
        self,
        changes: Callable[[], Callable[[], bool]],
        tags: Callable[[Collection[str]], Mapping[str, str]],
        look: Callable[[str], S],
        max_waiters: int,
        shared: bool = False,
    ) -> None:
        self._changes, self._tags, self._look = changes, tags, look
        self._max_waiters, self._shared = max_waiters, shared
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._places: set[Place[S]] = set()
        self._stopped = False
        self._closing: Callable[[], bool] = lambda: False

    def until(self, key: str, enough: Callable[[S], bool], seconds: float, tenant: str = "") -> tuple[S, bool]:
        """Return what there is to see once that is `enough`, or what was seen last when `seconds` are over.

        The second value is true where the answer came at once because too many wait already. Whatever looking raises
        ends the wait.
        """
        deadline = time.monotonic() + seconds
        with self._one_place(key, tenant) as place:
            if place is None:
                return self._look(key), True
            while True:
                seen = place.see()
                if enough(seen) or not place.wait(deadline - time.monotonic()):
                    return seen, False

    def take(self, key: str, tenant: str = "") -> Place[S] | None:
        """Return a place, to be left by the caller; None where too many wait already, or too many of this tenant."""
        with self._condition:
            if not self._has_room(tenant):
                return None
            place = Place(key, tenant, self._new_look(key), lambda: self._stopped, self._leave)
            self._places.add(place)
            if self._stopped:
                place.wake()
            self._start()
            self._condition.notify_all()
            return place

    def stop_when(self, closing: Callable[[], bool]) -> None:
        """Stop by itself once `closing` is true: a server that shuts down waits for its requests, and so for ours."""
        self._closing = closing

    def stop(self) -> None:
        """End all waits, and let later ones end at once."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
        for place in self._taken():
            place.wake()

    @contextmanager
    def _one_place(self, key: str, tenant: str) -> Iterator[Place[S] | None]:
        place = self.take(key, tenant)
        try:
            yield place
        finally:
            if place is not None:
                place.leave()

    def _has_room(self, tenant: str) -> bool:
        free = self._max_waiters - len(self._places)
        held = sum(place.tenant == tenant for place in self._places) if self._shared else 0
        return free > 0 and held < SHARE * free

    def _leave(self, place: Place[S]) -> None:
        with self._condition:
            self._places.discard(place)

    def _taken(self) -> list[Place[S]]:
        with self._condition:
            return list(self._places)

    def _new_look(self, key: str) -> _Look[S]:
        return _Look(partial(self._look, key))

    # --- the thread ----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._watch, name="changes", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        changed: Callable[[], bool] | None = None
        measured = 0.0
        while self._wanted():
            pause = LOOK_SECONDS
            try:
                changed = changed or self._changes()
                if changed():
                    self._wake_changed()
            except Exception:
                # Without counter or tags all look for themselves, and late: better than never.
                log.exception("changes cannot be seen")
                changed, pause = None, RECOVERY_SECONDS
                self._wake(self._taken())
            if time.monotonic() >= measured + LOG_SECONDS:
                measured = time.monotonic()
                self._wake_readers()
            time.sleep(pause)

    def _wanted(self) -> bool:
        """Wait until anyone waits; return False when it is over."""
        if self._closing():
            self.stop()
        with self._condition:
            self._condition.wait_for(lambda: self._stopped or bool(self._places))
            return not self._stopped

    def _wake_changed(self) -> None:
        places = self._taken()
        now = self._tags({place.key for place in places})
        # One that has not looked yet has no tag, and so looks once more than it must.
        self._wake([place for place in places if place.tag != now.get(place.key)])

    def _wake(self, places: Collection[Place[S]]) -> None:
        looks = {key: self._new_look(key) for key in {place.key for place in places}}
        for place in _in_turns(places):
            place.wake(looks[place.key])

    def _wake_readers(self) -> None:
        followed = [(place, *place.log) for place in self._taken() if place.log is not None]
        sizes = {path: size_of(path) for path in {path for _, path, _ in followed}}
        for place in _in_turns([place for place, path, known in followed if sizes[path] != known]):
            place.wake()


def _in_turns(places: Collection[Place[S]]) -> Iterator[Place[S]]:
    """Yield all, with a pause after each.

    Python runs one thread at a time, and a request gives way at each of its dozens of system calls: beside a few
    threads that were woken together it waits for all of them at each, and takes ten times as long.
    """
    for place in places:
        yield place
        time.sleep(TURN_SECONDS)


def size_of(path: Path) -> int:
    """Return the bytes of a file; none where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
