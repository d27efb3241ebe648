"""When a webhook is tried again, and when it is given up. Pure, but for the jitter that is passed in.

Its settings stand here and not in config_loader, for the schedule is what they are about.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from pydantic import BaseModel, ConfigDict, Field

from tasks.outbox import Delivery
from utils.net import FetchPolicy, Reply
from utils.setting_types import Delays, Networks

JITTER = 0.2
"""Waits differ by up to this part, so that what failed together is not tried together."""

_GONE = 410
_HEAD_BYTES = 4096


class WebhookSettings(BaseModel):
    """The section `webhooks` of the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = True
    allowed_networks: Networks = ()
    timeout_seconds: float = Field(15.0, gt=0, le=300)
    retry_seconds: Delays = (5, 30, 120, 600, 1800, 3600, 10_800, 21_600, 21_600, 21_600)
    concurrency: int = Field(32, ge=1, le=256)

    def policy(self) -> FetchPolicy:
        """Return what one attempt may do."""
        return FetchPolicy(
            _HEAD_BYTES, self.timeout_seconds, connect_timeout=self.timeout_seconds,
            allowed_networks=self.allowed_networks,
        )  # fmt: skip

    @property
    def lease(self) -> timedelta:
        """How long an attempt has before another may begin: its own time, and as much to record how it went."""
        return timedelta(seconds=2 * self.timeout_seconds)

    @property
    def longest(self) -> timedelta:
        """The longest wait between two attempts."""
        return max(self.lease, timedelta(seconds=max(self.retry_seconds, default=0) * (1 + JITTER)))


def after_attempt(
    settings: WebhookSettings, attempts: int, reply: Reply | None, now: datetime, vary: Callable[[float, float], float]
) -> tuple[Delivery, datetime | None]:
    """Return what becomes of a message after so many attempts, and when the next one is.

    `reply` None: there was none. `vary` draws a number between two. 2xx is an arrival; 410 says not to come again.
    """
    if reply is not None and 200 <= reply.status < 300:
        return Delivery.DELIVERED, None
    gone = reply is not None and reply.status == _GONE
    if gone or attempts > len(settings.retry_seconds):
        return Delivery.FAILED, None
    wait = timedelta(seconds=settings.retry_seconds[attempts - 1] * vary(1 - JITTER, 1 + JITTER))
    asked = _asked(reply.retry_after, now) if reply is not None else timedelta(0)
    return Delivery.PENDING, now + max(wait, min(asked, settings.longest))


def _asked(retry_after: str, now: datetime) -> timedelta:
    """Return how long a Retry-After asks to wait: seconds, or until a date; nothing where it is neither."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return timedelta(seconds=int(text[:9]))
    try:
        until = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the latter for a number of many digits
        return timedelta(0)
    return max(timedelta(0), until.replace(tzinfo=until.tzinfo or UTC) - now)
