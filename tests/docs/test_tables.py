"""Tables and drawings say what the code says: settings, errors, reasons, the life cycle."""

from __future__ import annotations

import os
import re
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from config_loader import environment_names
from scripts import docs
from tasks import clock, condition, health
from tasks.clock import ClockGuard, counted
from tasks.drain import Drain
from tasks.hardware import Hardware
from tasks.model import TRANSITIONS, ErrorCode, Status
from tasks.scheduler import LOCK_NAME, why_not_scheduled
from tests.docs.pages import READMES, blocks, rows, section, text_of
from tests.tasks.conftest import Notebook
from utils.gpu import Gpu, GpuProbe, GpuSnapshot
from utils.process import try_lock
from web.errors import HTTP

OPERATING = (
    ("docs/operating.md", "## What the health says", "## Why a task failed"),
    ("docs/zh-CN/operating.md", "## 健康检查说了什么", "## 任务为什么失败"),
)


@pytest.mark.parametrize("path", [str(path) for path in docs.files()])
def test_what_make_docs_writes_is_up_to_date(path: str) -> None:
    assert text_of(path) == docs.files()[Path(path)], f"run `make docs`: {path} is not what the code says"


@pytest.mark.parametrize("page", ["docs/configuration.md", "docs/zh-CN/configuration.md"])
def test_every_setting_is_documented_once_and_nothing_else(page: str) -> None:
    told = [row[0].strip("`") for row in rows(text_of(page))]
    assert sorted(told) == sorted(environment_names())


def test_every_setting_says_what_it_is_for_and_every_group_what_it_is_about() -> None:
    groups = docs.groups()
    silent = [setting.key for group in groups for setting in group.settings if not setting.says]
    silent += [group.key for group in groups if not group.says and group.key != docs.SERVICE]
    assert not silent, f"configs/default.yaml has no comment behind {silent}"


def test_every_setting_has_a_meaning_in_chinese() -> None:
    assert not docs.untranslated(), f"docs/zh-CN/settings.yaml lacks {docs.untranslated()}"
    assert not docs.outdated_translations()


def test_every_alert_is_told_in_chinese_of_the_same_labels() -> None:
    told = docs.alert_translations()["rules"]
    assert set(told) == set(docs.rules()), "docs/zh-CN/alerts.yaml is not of the rules that there are"
    for name, rule in docs.rules().items():
        assert set(told[name]) == {"says", "do"}
        assert sorted(labels(told[name]["says"])) == sorted(labels(docs.summary_of(rule))), name


def labels(told: str) -> list[str]:
    return re.findall(r"\*\w+\*", told)


def test_the_drawing_of_the_life_cycle_has_every_status_and_every_arrow() -> None:
    drawn = text_of("docs/img/life-cycle.svg")
    assert set(re.findall(r'class="name"[^>]*>(\w+)<', drawn)) == {str(status) for status in Status}
    events = re.findall(r'class="event"[^>]*>(\w+)<', drawn)
    assert sorted(events) == sorted(["submit", *(str(event) for _, event in TRANSITIONS)])


@pytest.mark.parametrize(("page", "heading"), [("docs/api.md", "## Errors"), ("docs/zh-CN/api.md", "## 错误")])
def test_every_error_is_in_the_guide_with_its_status_and_no_other(page: str, heading: str) -> None:
    told = rows(section(text_of(page), heading), "")
    found = {(row[1].strip("`"), int(row[0])) for row in told if row[0].isdigit()}
    assert found == {(code.value, status.value) for code, status in HTTP.items()}


@pytest.mark.parametrize(("page", "heading"), [(page, heading) for page, _, heading in OPERATING])
def test_every_cause_of_a_failure_is_told_and_no_other(page: str, heading: str) -> None:
    told = [row[0].strip("`") for row in rows(section(text_of(page), heading)) if row[0] != "`error_code`"]
    assert sorted(told) == sorted(code.value for code in ErrorCode)


class _Looked(GpuProbe):
    """A probe that has seen what it is told."""

    def __init__(self, seen: GpuSnapshot) -> None:
        self._seen = seen

    def snapshot(self) -> GpuSnapshot:
        return self._seen


def _reasons(folder: Path) -> list[str]:
    """Return every reason that the code gives for a health that is not good."""
    unscheduled = why_not_scheduled(folder)
    lock = try_lock(folder / LOCK_NAME)
    assert lock is not None
    (folder / LOCK_NAME).write_text(f"{time.monotonic() - 1000:020.3f}\n")
    stalled = why_not_scheduled(folder)
    os.close(lock)
    card = Gpu(
        index=0, name="", uuid="GPU-0", total_gib=80.0, free_gib=80.0, capability=(9, 0), processes=(), mig=False
    )
    seen = GpuSnapshot((card,), ((1, "fell off the bus"),), "550", "NVML hangs", time.monotonic(), stale=True)
    return [
        str(Drain(datetime.now(UTC), "a new driver")),
        health.NO_ENGINE,
        unscheduled,
        stalled,
        health.DISK_FULL,
        *condition.REASONS.values(),
        *Hardware(_Looked(seen), None).reasons(),
    ]


def _warnings() -> list[str]:
    """Return every warning: of a clock that jumps, and of one that is right again."""
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    guard = ClockGuard(Notebook(), lambda: now[0], counted)
    guard.beat()
    now[0] += 2 * clock.JUMP
    jumped = guard.beat()
    now[0] -= 2 * clock.JUMP
    return [jumped, guard.beat()]


@pytest.mark.parametrize(("page", "heading"), [(page, heading) for page, heading, _ in OPERATING])
def test_every_reason_and_warning_of_the_health_is_told_and_no_other(page: str, heading: str, tmp_path: Path) -> None:
    said = _reasons(tmp_path) + _warnings()
    assert all(said)
    states = ("healthy", "degraded", "draining", "status")
    told = [row[0].strip("`") for row in rows(section(text_of(page), heading)) if row[0].strip("`") not in states]
    patterns = [re.compile(re.escape(one).replace("…", ".+")) for one in told]
    for one in said:
        assert [pattern for pattern in patterns if pattern.fullmatch(one)], f"{page} does not tell: {one}"
    for pattern in patterns:
        assert any(pattern.fullmatch(one) for one in said), f"the code does not say: {pattern.pattern}"


@pytest.mark.parametrize("name", ["api.md", "webhooks.md"])
def test_the_chinese_page_shows_the_code_that_the_english_one_shows(name: str) -> None:
    """Of which the tests run each line; what is said beside a command is in the language of its page."""
    english, chinese = (
        [(block.kind, re.sub(r" +# .*", "", block.text)) for block in blocks(page)] for page in twins(name)
    )
    assert english == chinese


@pytest.mark.parametrize("name", ["api.md", "webhooks.md", "architecture.md"])
def test_the_tables_of_the_chinese_page_have_the_rows_of_the_english_ones(name: str) -> None:
    shapes = [[line.count("|") for line in text_of(page).splitlines() if line.startswith("|")] for page in twins(name)]
    assert shapes[0] == shapes[1]
    keys = [[re.findall(r"`[^`]+`", row[0]) for row in rows(text_of(page))] for page in twins(name)]
    assert keys[0] == keys[1]


def twins(name: str) -> tuple[str, str]:
    return f"docs/{name}", f"docs/zh-CN/{name}"


def test_the_chinese_walk_is_the_english_one() -> None:
    english, chinese = (
        text_of(name).split("<!-- walk-through -->")[1].split("```bash\n")[1].split("```")[0] for name in READMES
    )
    without = [re.sub(r"(?m)^#.*$", "", walk) for walk in (english, chinese)]
    assert without[0] == without[1]
