"""A short round of chaos; `make chaos` is a long one."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.driver import Chaos


def test_random_kills_lose_no_task_run_none_twice_and_leave_nothing(tmp_path: Path) -> None:
    report = Chaos(tmp_path, seed=20261122, workers=2).run(kills=8)
    print(report)
    assert report.violations == [], str(report)
    assert report.kills.total() >= 8
