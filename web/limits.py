"""How often a caller may ask: so many submissions, uploads and reads in a minute, counted by tenant.

Callers without credentials are counted by address; of IPv6 by /64, which is what one customer of a provider gets. Each
web worker counts for itself and gives its share of the limit, unless there is a Redis where all count together; while
that is away, the workers' shares hold. Wrong credentials are counted by address, so that nobody guesses at full speed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, Literal

from flask import Flask, Response, g, request
from flask_limiter import Limiter, RequestLimit
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from config_loader import Settings
from web.auth import ANONYMOUS
from web.callers import Need, current_caller
from web.errors import ApiError, Code

Group = Literal["generate", "uploads", "reads"]
Handler = Callable[..., Response]

_REDIS_SECONDS = 0.5
"""How long a request waits for Redis before the worker counts for itself. Later ones do not wait: one asks again after
a second, then after two, and so on up to half a minute."""

_MINUTE = 60


class Limits:
    """Guards handlers. Make it before who calls is found out: it refuses a guesser before that."""

    def __init__(self, app: Flask, settings: Settings) -> None:
        limits, redis = settings.limits, settings.limits.redis_url.get_secret_value()
        self._per_minute: dict[Group, int] = {
            "generate": limits.generate, "uploads": limits.uploads, "reads": limits.reads,
        }  # fmt: skip
        self._workers = settings.workers
        self._limiter = Limiter(
            _who, app=app, strategy="moving-window", storage_uri=redis or "memory://",
            storage_options=_redis_options() if redis else {}, in_memory_fallback_enabled=bool(redis),
        )  # fmt: skip
        self._shared = bool(redis)
        self._refusals = RateLimitItemPerMinute(self._share(limits.refusals))
        self._refused = MovingWindowRateLimiter(MemoryStorage())
        app.before_request(self._stop_guessing)
        app.after_request(self._count_refusal)
        app.after_request(self._tell)

    def guard(self, handler: Handler, need: Need, rule: str) -> Handler:
        """Return the handler of a route, counted in the route's group after who calls is known."""
        if need == "open":
            return handler
        group = _group(need, rule)
        guarded: Handler = self._limiter.shared_limit(lambda: f"{self._rate(group)}/minute", scope=group)(handler)
        return guarded

    def _rate(self, group: Group) -> int:
        all_count_together = self._shared and self._limiter.limiter.storage is self._limiter.storage
        return self._per_minute[group] if all_count_together else self._share(self._per_minute[group])

    def _share(self, number: int) -> int:
        return max(1, number // self._workers)

    def _tell(self, response: Response) -> Response:
        """Say what is left, in the fields of the IETF's draft on RateLimit header fields."""
        limit = self._limiter.current_limit
        if limit is None:
            return response
        name = limit.request_args[-1]
        response.headers["RateLimit-Policy"] = f'"{name}";q={limit.limit.amount};w={_MINUTE}'
        left = _left(limit)
        if left is not None:
            response.headers["RateLimit"] = f'"{name}";r={left[0]};t={left[1]}'
        if limit.breached:
            response.headers["Retry-After"] = str(left[1] if left else _MINUTE)
        return response

    # --- wrong credentials ---------------------------------------------------------------------------------------

    def _stop_guessing(self) -> None:
        if not _brings_credentials() or self._refused.test(self._refusals, _address()):
            return
        seconds = _seconds(self._refused.get_window_stats(self._refusals, _address()).reset_time)
        g.refusals_told = {
            "RateLimit-Policy": f'"refusals";q={self._refusals.amount};w={_MINUTE}',
            "RateLimit": f'"refusals";r=0;t={seconds}',
        }
        text = "too many requests with credentials that are not valid came from this address; try again later"
        raise ApiError(Code.RATE_LIMITED, text, retry_after=seconds)

    def _count_refusal(self, response: Response) -> Response:
        response.headers.extend(g.get("refusals_told", {}))
        if response.status_code == 401 and _brings_credentials():
            self._refused.hit(self._refusals, _address())
        return response


def _redis_options() -> dict[str, Any]:
    # The client would try several times, each as long as this.
    timeouts = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), _REDIS_SECONDS)
    return {**timeouts, "retry": Retry(NoBackoff(), 0)}


def _group(need: Need, rule: str) -> Group:
    if need != "generate":
        return "reads"
    return "uploads" if rule.endswith("/upload") else "generate"


def _brings_credentials() -> bool:
    sent = "Authorization" in request.headers or "X-API-Key" in request.headers
    return sent or (request.endpoint == "get_result" and "signature" in request.args)


def _who() -> str:
    caller = current_caller()
    if caller is None or caller is ANONYMOUS:
        return f"address {_address()}"
    return f"tenant {caller.tenant}"


def _address() -> str:
    return network(request.remote_addr or "")


def network(address: str) -> str:
    """Return what is counted as one caller: an IPv4 address, an IPv6 network of 64 bits; other texts as they are."""
    try:
        known = ip_address(address)
    except ValueError:
        return address
    if isinstance(known, IPv6Address) and known.ipv4_mapped:
        known = known.ipv4_mapped
    return str(ip_network((known, 64 if known.version == 6 else 32), strict=False))


def _left(limit: RequestLimit) -> tuple[int, int] | None:
    """Return how many requests are left, and seconds until there is another; None where Redis has just gone."""
    try:
        return max(0, limit.remaining), _seconds(limit.reset_at)
    except RedisError:  # the next request finds that out, and counts here
        return None


def _seconds(moment: float) -> int:
    return max(1, math.ceil(moment - time.time()))
