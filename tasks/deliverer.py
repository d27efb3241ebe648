"""The deliverer: one thread in one process of a host, which sends what is due in the outbox, each message by a thread.

Nothing waits for it: a receiver that is dead, slow or hostile costs one of a bounded number of threads for the time of
one attempt, and of these a tenant, and a host, only some. It looks when anything was written, when an attempt has
ended, and when the next turn comes.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from tasks.delivery import WebhookSettings, after_attempt
from tasks.model import LostRace
from tasks.office import take_turns
from tasks.outbox import PER_HOST, PER_TENANT, Attempt, Delivery, Message
from tasks.store import Store
from tasks.webhook_secrets import signature
from utils.failpoint import Point, reach
from utils.net import FetchError, Reply, post

log = logging.getLogger("webhooks")

LOCK_NAME = "webhooks.lock"

_LOOK_SECONDS = 0.25
_TAKEOVER_SECONDS = 1.0
_ADOPT_SECONDS = 60.0
_ADOPT_BACK = timedelta(minutes=10)
"""What a runner of another release ended is looked for so far back, once all has been looked at."""

_LEAVE_SECONDS = 1.0
"""How long a stop waits for attempts under way; what they would have told is told again."""


class MessageGone(Exception):
    """The task of a message was removed."""


class Deliverer:
    """Sends the messages of one store. `body_of` makes a body; it raises MessageGone where the task is no more."""

    def __init__(
        self,
        store: Store,
        folder: Path,
        settings: WebhookSettings,
        body_of: Callable[[str], bytes],
        send: Callable[..., Reply] = post,
        vary: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._store, self._outbox, self._settings = store, store.outbox, settings
        self._lock_file, self._body_of, self._send, self._vary = folder / LOCK_NAME, body_of, send, vary
        self._stopping, self._stirred = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
        self._guard = threading.Lock()
        self._under_way: dict[threading.Thread, Message] = {}
        self._adopted: datetime | None = None
        self._adopt_at = 0.0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Attempts under way are given a moment; a message whose outcome is not known is sent again."""
        self._stopping.set()
        self._stirred.set()
        if self._thread.is_alive():
            self._thread.join(5.0)
        ends = time.monotonic() + _LEAVE_SECONDS
        for thread in self._busy():
            thread.join(max(0.0, ends - time.monotonic()))

    # --- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        take_turns(self._lock_file, self._stopping, _TAKEOVER_SECONDS, self._deliver, log)

    def _deliver(self, _lock: int) -> None:
        """Send until stopped. May raise what the database does; then it is begun anew."""
        changed = self._store.changes()
        while not self._stopping.is_set():
            self._stirred.clear()  # before looking: what ends from here on leads to another look
            self._adopt()
            self._begin_due()
            turn = self._outbox.next_turn()
            while not (self._stirred.wait(_LOOK_SECONDS) or changed() or self._is_time(turn)):
                pass

    def _is_time(self, turn: datetime | None) -> bool:
        come = turn is not None and turn <= self._outbox.now()
        return come or time.monotonic() >= self._adopt_at or self._stopping.is_set()

    def _adopt(self) -> None:
        """Look for ends without a message, from time to time."""
        if time.monotonic() < self._adopt_at:
            return
        now = self._outbox.now()
        while found := self._outbox.adopt(self._adopted):
            log.info("%d tasks had ended without a message", found)
        self._adopted, self._adopt_at = now - _ADOPT_BACK, time.monotonic() + _ADOPT_SECONDS

    def _begin_due(self) -> None:
        for message in self._outbox.due(self._settings.longest):
            if self._stopping.is_set() or not self._has_room(message):
                continue
            try:
                claimed = self._outbox.claim(message, self._settings.lease)
            except LostRace:
                continue
            reach(Point.MESSAGE_CLAIMED)
            self._begin(claimed)

    def _has_room(self, message: Message) -> bool:
        with self._guard:
            under_way = list(self._under_way.values())
        tenants = Counter(one.tenant for one in under_way)
        hosts = Counter((one.tenant, one.host) for one in under_way)
        # One that is under way comes due again where it is asked for anew, or the clock jumps.
        return (
            len(under_way) < self._settings.concurrency
            and all(one.task_id != message.task_id for one in under_way)
            and tenants[message.tenant] < PER_TENANT
            and hosts[message.tenant, message.host] < PER_HOST
        )

    # --- one attempt ---------------------------------------------------------------------------------------------

    def _begin(self, claimed: Message) -> None:
        thread = threading.Thread(target=self._attempt, args=(claimed,), name="webhook", daemon=True)
        with self._guard:
            self._under_way[thread] = claimed
        try:
            thread.start()
        except RuntimeError:  # no more threads: its place must not stay taken
            with self._guard:
                del self._under_way[thread]
            raise

    def _busy(self) -> list[threading.Thread]:
        with self._guard:
            return list(self._under_way)

    def _attempt(self, claimed: Message) -> None:
        try:
            self._tell(claimed)
        except LostRace:
            pass  # the task was removed, or somebody asked for the message anew
        except Exception:
            # What is not recorded is tried again when the lease has run out.
            log.exception("the webhook of task %s was not told, or not recorded", claimed.task_id)
        finally:
            with self._guard:
                del self._under_way[threading.current_thread()]
            self._stirred.set()

    def _tell(self, claimed: Message) -> None:
        began, at = time.monotonic(), self._outbox.now()
        try:
            reply, error = self._exchange(claimed, at)
        except MessageGone:
            self._outbox.forget(claimed)
            return
        attempt = Attempt(at, round((time.monotonic() - began) * 1000), reply.status if reply else None, error)
        now = self._outbox.now()
        status, again_at = after_attempt(self._settings, claimed.attempts, reply, now, self._vary)
        reach(Point.MESSAGE_SENT)
        self._outbox.settle(claimed, attempt, status, again_at)
        if status is Delivery.FAILED:
            log.warning("the webhook of task %s is given up after %d attempts", claimed.task_id, claimed.attempts)

    def _exchange(self, claimed: Message, at: datetime) -> tuple[Reply | None, str | None]:
        """Send the message; return the answer, or why there was none. Raises MessageGone."""
        try:
            body = self._body_of(claimed.task_id)
            headers = self._headers(claimed, int(at.timestamp()), body)
            return self._send(claimed.url, body, headers, self._settings.policy()), None
        except MessageGone:
            raise
        except FetchError as error:
            return None, str(error)
        except Exception:  # counted as an attempt, so that it comes to an end
            log.exception("the message of task %s could not be made or sent", claimed.task_id)
            return None, "the service could not send the message"

    def _headers(self, claimed: Message, stamp: int, body: bytes) -> dict[str, str]:
        secrets = self._store.webhook_secrets.of(claimed.tenant)
        return {
            "Content-Type": "application/json",
            "webhook-id": claimed.id,
            "webhook-timestamp": str(stamp),
            "webhook-signature": signature(secrets, claimed.id, stamp, body),
        }
