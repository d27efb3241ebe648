"""When a message is tried again and when it is given up: a table of outcomes."""

from __future__ import annotations

from datetime import timedelta

import pytest

from config_loader import load_settings
from tasks.delivery import JITTER, WebhookSettings, after_attempt
from tasks.outbox import Delivery
from tests.conftest import NOON
from utils.net import Reply

SETTINGS = WebhookSettings(retry_seconds=(5, 30, 120))
IN_A_MINUTE = "Sun, 22 Nov 2026 12:01:00 GMT"


def middle(low: float, high: float) -> float:
    return (low + high) / 2


@pytest.mark.parametrize(
    ("attempts", "status", "retry_after", "becomes", "seconds"),
    [
        (1, 200, "", Delivery.DELIVERED, None),
        (4, 204, "", Delivery.DELIVERED, None),
        (1, 410, "", Delivery.FAILED, None),
        (1, None, "", Delivery.PENDING, 5),
        (2, 500, "", Delivery.PENDING, 30),
        (3, 302, "", Delivery.PENDING, 120),
        (4, 500, "", Delivery.FAILED, None),
        (9, None, "", Delivery.FAILED, None),  # it died in between, more than once
        (1, 404, "", Delivery.PENDING, 5),
        (1, 429, "60", Delivery.PENDING, 60),
        (1, 503, IN_A_MINUTE, Delivery.PENDING, 60),
        (1, 503, "1", Delivery.PENDING, 5),  # no sooner than the schedule
        (1, 503, "999999999999", Delivery.PENDING, 144),  # no later than its longest wait
        (1, 503, "-5", Delivery.PENDING, 5),
        (1, 503, "soon", Delivery.PENDING, 5),
        (1, 503, "²", Delivery.PENDING, 5),
        (1, 503, f"Mon, {'9' * 20} Jan 2024 00:00:00", Delivery.PENDING, 5),
        (1, 503, f"Mon, 01 Jan 2024 00:00:00 +{'9' * 20}", Delivery.PENDING, 5),
        (1, 503, f"Mon, 01 Jan 2024 00:00:00 +{'9' * 5000}", Delivery.PENDING, 5),
        (1, 503, "Sun, 22 Nov 2026 11:00:00 GMT", Delivery.PENDING, 5),
    ],
)
def test_what_becomes_of_a_message(
    attempts: int, status: int | None, retry_after: str, becomes: Delivery, seconds: float | None
) -> None:
    reply = None if status is None else Reply(status, retry_after)
    again_at = None if seconds is None else NOON + timedelta(seconds=seconds)
    assert after_attempt(SETTINGS, attempts, reply, NOON, middle) == (becomes, again_at)


def test_waits_differ_so_that_what_failed_together_is_not_tried_together() -> None:
    ends = [after_attempt(SETTINGS, 2, None, NOON, vary)[1] for vary in (min, max)]
    assert ends == [NOON + timedelta(seconds=30 * (1 + part)) for part in (-JITTER, JITTER)]


def test_messages_are_tried_for_about_a_day() -> None:
    settings = load_settings().webhooks
    assert settings == WebhookSettings()
    assert timedelta(hours=20) < timedelta(seconds=sum(settings.retry_seconds)) < timedelta(hours=28)
    assert list(settings.retry_seconds) == sorted(settings.retry_seconds)


def test_the_schedule_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVATAR_WEBHOOKS__RETRY_SECONDS", "1, 2.5")
    assert load_settings().webhooks.retry_seconds == (1.0, 2.5)


def test_without_a_schedule_there_is_one_attempt() -> None:
    settings = WebhookSettings(retry_seconds=())
    assert after_attempt(settings, 1, None, NOON, middle) == (Delivery.FAILED, None)
