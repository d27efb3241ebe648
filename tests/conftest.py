"""What tests share: values of the model with sensible defaults, and where the trial inputs lie."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings

from tasks.model import OutputFormat, Params, Phase, Priority, Status, Task
from utils.plan import VideoPlan

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
PATIENCE = 60.0
"""Seconds after which what a test waits for is taken not to come: any process may stand still for some of them."""

# How long an example takes is the machine's affair: other tests run beside it.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests with a timeout of their own come first: a long one that is left for the end has the machine alone."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)


def needs_package(name: str) -> str:
    """Return the path of the program of this name, of a Debian package of the same name.

    Where it is missing the test is skipped; under CI it fails.
    """
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")  # which is not on everyone's PATH
    if found is not None:
        return found
    reason = f"{name} is not installed (apt-get install {name})"
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(reason)
    pytest.skip(reason)


def make_task(**changes: Any) -> Task:
    """Return a queued task; `changes` replace fields."""
    params = Params(
        prompt="a person speaks",
        size="384*256",
        num_clip=50,
        sample_steps=4,
        output_format=OutputFormat.MP4,
        seed=1,
        enable_online_decode=False,
    )
    values: dict[str, Any] = {
        "id": "gen_20261122_0000000000000001", "seq": 0, "tenant": "default", "status": Status.QUEUED, "version": 1,
        "attempt": 0, "cancel_requested": False, "priority": Priority.NORMAL, "engine": "preview",
        "profile": "preview_cpu", "params": params, "plan": VideoPlan(7, 290, 384, 256), "adjustments": (), "notes": (),
        "metadata": {}, "submit_time": NOON, "updated_at": NOON, "start_time": None, "finish_time": None,
        "work_seconds": 10.0, "estimated_seconds": 10.0, "phase": Phase.QUEUED, "progress": 0.0, "eta_seconds": None,
        "slot": None, "gpus": (), "runner": None, "heartbeat_at": None, "failure": None, "result": None,
    }  # fmt: skip
    return Task(**(values | changes))


@pytest.fixture
def task_factory() -> Callable[..., Task]:
    return make_task


@pytest.fixture(scope="session")
def trial_inputs() -> Path:
    """The folder of real portraits and voices, which is not part of the project."""
    folder = Path(os.environ.get("AVATAR_TEST_INPUTS", ROOT.parent / "shared" / "inputs"))
    if not folder.is_dir():
        pytest.skip("no trial inputs here: AVATAR_TEST_INPUTS names a folder of portraits and voices")
    return folder


def as_nobody(action: Callable[[], T]) -> T:
    """Return what `action` says where this user has no special rights: root may write everywhere."""
    if os.geteuid() != 0:
        return action()
    os.seteuid(65534)
    try:
        return action()
    finally:
        os.seteuid(0)
