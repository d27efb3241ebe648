"""A short round of chaos; `make chaos` is a long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.driver import Chaos


@pytest.mark.parametrize("mount", [True, pytest.param(False, marks=pytest.mark.long)])
def test_random_kills_lose_no_task_run_none_twice_and_leave_nothing(tmp_path: Path, mount: bool) -> None:
    report = Chaos(tmp_path, seed=20261122, workers=2, mount=mount).run(kills=8)
    print(report)
    assert report.violations == [], str(report)
    assert report.kills.total() >= 8
