"""Where files lie: in one place from which results can be published, and on the disk before a row tells of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from task_manager import TaskManager
from tasks.finish import _reveal
from tasks.folders import Folders
from tasks.model import Task
from tasks.trouble import DataRefused
from tests.tasks.conftest import Bench


@pytest.fixture(params=[["-t", "tmpfs", "tmpfs"], ["--bind", "elsewhere"]], ids=["another disk", "the same disk again"])
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The folder of results, on which something is mounted."""
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "data" / "results"
    folder.mkdir(parents=True)
    made = subprocess.run(
        ["mount", *request.param, str(folder)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    if made.returncode:
        pytest.skip(f"nothing can be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_data_folder_in_two_mounts_is_refused_before_a_video_is_made_in_vain(mounted: Path) -> None:
    with pytest.raises(DataRefused, match="no result could be published"):
        Folders(mounted.parent).make()
    assert list(mounted.iterdir()) == []


def test_a_data_folder_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").symlink_to("elsewhere")
    Folders(tmp_path / "data").make()
    assert (tmp_path / "elsewhere" / "results").is_dir()


@pytest.fixture
def durable(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """The folders and files that this process made durable so far."""
    synced: set[Path] = set()
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink())

    monkeypatch.setattr(os, "fsync", fsync)
    return synced


def test_a_power_cut_takes_no_input_of_a_task_whose_row_it_left(bench: Bench, durable: set[Path]) -> None:
    manager = TaskManager(*bench.load())
    bench.managers.append(manager)
    real, before_the_row = manager.store.add, set()

    def add(*given: Any, **named: Any) -> tuple[Task, int]:
        before_the_row.update(durable)
        return real(*given, **named)

    bench.monkeypatch.setattr(manager.store, "add", add)
    inputs = manager.folders.inputs(bench.submit(manager).id)
    assert {inputs, inputs.parent, manager.folders.tasks} <= before_the_row


def test_a_power_cut_takes_no_result_that_was_revealed(tmp_path: Path, durable: set[Path]) -> None:
    staging, results = tmp_path / "publish", tmp_path / "results" / "gen" / "1"
    for folder in (staging, tmp_path / "results"):
        folder.mkdir()
    (staging / "video.mp4").touch()
    _reveal(staging, results)
    assert {staging / "video.mp4", staging, results.parent, results.parent.parent} <= durable
