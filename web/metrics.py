"""`GET /metrics`: requests counted as they are answered, and all else looked at when it is asked for.

What is in rows is read from them, so that it is the same whichever worker answers and outlives a restart. What happens
in a worker alone is in the tally that all share.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import cast

from flask import Flask, Response, g, request
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from werkzeug.exceptions import NotFound

from api_schema import VERSION
from config_loader import Settings
from task_manager import TaskManager
from web.families import Limits, families
from web.requests import ApiRequest
from web.tally import Open, Seat, Tally

SPARE_THREADS = 32
"""What gunicorn has more of than `http.max_waiters`: see configs/gunicorn.conf.py."""


class Metrics(Collector):
    """Counts requests at a seat of its own, until it is given one among others."""

    def __init__(self, app: Flask, manager: TaskManager, settings: Settings, routes: Sequence[str]) -> None:
        self._manager, self._enabled = manager, settings.metrics.enabled
        self._limits = Limits(
            version=VERSION, profiles=manager.profile_names(), max_queued=settings.queue.max_queued,
            cpu_slots=settings.slots.cpu, decoders=settings.inputs.decoders, waiters=settings.http.max_waiters,
            threads=settings.http.max_waiters + SPARE_THREADS,
        )  # fmt: skip
        self._seat = Tally(routes, seats=1).first_seat()
        self._seat.sit_down()
        app.before_request(self._began)
        app.after_request(self._answered)
        app.teardown_request(self._ended)

    def sit(self, seat: Seat) -> None:
        """Count at this seat from now on; before the first request."""
        self._seat = seat
        seat.sit_down()

    def during(self, what: Open) -> AbstractContextManager[None]:
        """Say that it goes on as long as the block does."""
        return self._seat.during(what)

    def answer(self) -> Response:
        """Answer with all metrics as text."""
        if not self._enabled:
            raise NotFound
        return Response(
            generate_latest(self), content_type=CONTENT_TYPE_PLAIN_0_0_4, headers={"Cache-Control": "no-store"}
        )

    def collect(self) -> Iterator[Metric]:
        """Yield what there is now. Called by prometheus_client."""
        return families(self._manager.survey(), self._seat.tally, self._limits)

    # --- counting --------------------------------------------------------------------------------------------------

    def _began(self) -> None:
        g.open = [Open.REQUEST, *([Open.LONG_POLL] if _is_held() else [])]
        for what in g.open:
            self._seat.change(what, 1)

    def _answered(self, response: Response) -> Response:
        started = cast(ApiRequest, request).started
        seconds = None if _is_held() else time.monotonic() - started
        route = request.url_rule.rule if request.url_rule else None
        self._seat.count(request.method, route, response.status_code, seconds)
        if response.mimetype == "text/event-stream":
            self._seat.change(Open.EVENT_STREAM, 1)
            response.call_on_close(lambda: self._seat.change(Open.EVENT_STREAM, -1))
        return response

    def _ended(self, error: BaseException | None) -> None:
        for what in g.pop("open", ()):
            self._seat.change(what, -1)


def _is_held() -> bool:
    """Say whether the request is one that waits for a change, as long as its caller likes."""
    return request.endpoint == "get_task" and "wait" in request.args
