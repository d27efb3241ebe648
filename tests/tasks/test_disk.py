"""A small real disk, filled at each point: an honest end, nothing left, and on again once there is room."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from task_manager import TaskManager
from tasks import retention, scheduler
from tasks.clock import BEAT
from tasks.disk import FIXED_BYTES, Ballast, Demand, Disk, free_bytes, is_full
from tasks.health import DISK_FULL
from tasks.model import ErrorCode, OutputFormat, Phase, Status
from tasks.retention import Sweeper
from tasks.store import utc_now
from tests.tasks.conftest import Bench, wait_until
from utils.file_handler import StorageFull
from utils.plan import VideoPlan

MIB = 2**20
SMALL = {"disk": {"reserve_bytes": 0, "ballast_bytes": MIB}}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB and 400 files, mounted where the bench keeps its data."""
    folder = tmp_path / "data"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m,nr_inodes=400", "tmpfs", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """Take all room but `leave` bytes."""
    filler = folder / "filler"
    with filler.open("ab") as file:
        while (room := (free_bytes(folder) - leave) // 4096 * 4096) > 0:
            with suppress(OSError):  # the service took some of it just now
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, room)
    return filler


def fill_files(folder: Path, leave: int) -> Path:
    """Let the disk have room for bytes, and for only so many more files and folders."""
    crowd = folder / "crowd"
    crowd.mkdir()
    for number in range(os.statvfs(folder).f_favail - leave):
        (crowd / str(number)).touch()
    return crowd


def left_behind(folder: Path) -> list[str]:
    """The files of tasks but their inputs and logs, all results and all unfinished work."""
    kept = {"image.png", "audio.wav", "engine.log", "runner.log", "spec.json", "finish.json", "lock", "started"}
    tops = [folder / name for name in ("tasks", "results", "tmp")]
    return [str(path) for top in tops for path in top.rglob("*") if path.is_file() and path.name not in kept]


def test_the_demand_of_a_video_grows_with_its_pixels_and_seconds() -> None:
    one = Demand.of(VideoPlan(7, 250, 640, 384))
    assert one.bytes == 250 * 640 * 384 // 8 + 10 * 3 * 24_000 + FIXED_BYTES
    assert Demand(2, 500, 500 * 640 * 384).bytes == 2 * one.bytes


def test_what_accepted_tasks_may_still_write_counts(small_disk: Path, bench: Bench) -> None:
    manager = bench.open("hang", SMALL)
    manager.disk.restore_ballast()  # else the sweeper takes that room, at any time
    before = manager.store.demand()
    task = bench.submit(manager)
    grown = manager.store.demand()
    assert (before, grown) == (Demand(), Demand.of(task.plan))
    manager.disk = Disk(
        manager.disk.folder, free_bytes(manager.disk.folder) - grown.bytes * 3 // 2, manager.disk.ballast
    )
    with pytest.raises(StorageFull):
        bench.submit(manager)
    manager.delete(task.id, task.tenant)
    assert bench.ended(manager, task).status is Status.CANCELLED
    manager.check_room(grown.bytes)


def test_the_ballast_takes_its_room_at_once_and_gives_it_when_a_write_found_none(small_disk: Path) -> None:
    ballast = Ballast(small_disk / "ballast", MIB)
    before = free_bytes(small_disk)
    assert ballast.restore()
    assert before - free_bytes(small_disk) >= MIB
    filler = fill(small_disk)
    ballast.lend(lambda: (small_disk / "status").write_bytes(b"x" * 4096))
    assert not ballast.path.exists()
    fill(small_disk)
    assert not ballast.restore()
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", "status"], "a half ballast was left"
    filler.unlink()
    assert ballast.restore()


@pytest.mark.parametrize("output", [OutputFormat.MP4, OutputFormat.WEBM])
def test_a_disk_that_fills_while_a_task_runs_fails_it_and_the_next_one_succeeds(
    small_disk: Path, bench: Bench, output: OutputFormat
) -> None:
    small = bench.video
    bench.video = bench.folder / "large.mp4"  # more than the ballast, by a box that players skip
    bench.video.write_bytes(small.read_bytes() + struct.pack(">I4s", 3 * MIB, b"free") + bytes(3 * MIB - 8))
    go = bench.folder / "go"
    manager = bench.open("when_told", SMALL, env={"FAKE_GO": str(go)})
    manager.disk.restore_ballast()
    task = bench.submit(manager, output_format=output)
    bench.until(manager, task, lambda seen: seen.phase is Phase.GENERATING)
    filler = fill(small_disk)
    go.touch()
    ended = bench.ended(manager, task)
    assert (ended.status, ended.failure and ended.failure.code) == (Status.FAILED, ErrorCode.DISK_FULL)
    assert left_behind(small_disk) == []
    filler.unlink()
    manager.disk.restore_ballast()
    assert DISK_FULL not in manager.health().reasons
    again = bench.ended(manager, bench.submit(manager, output_format=output))
    assert again.status is Status.COMPLETED, again.failure


@pytest.mark.parametrize("leave", [0, 4096, 16 * 1024, 64 * 1024])
def test_a_submit_to_a_disk_that_fills_is_refused_or_ends_honestly(small_disk: Path, bench: Bench, leave: int) -> None:
    manager = bench.open("copy", SMALL)
    manager.check_room = lambda wanted: None  # type: ignore[method-assign]  # as if the disk had filled since
    manager.disk.restore_ballast()
    filler = fill(small_disk, leave)
    try:
        ended = bench.ended(manager, bench.submit(manager))
        assert ended.status is Status.COMPLETED or ended.failure.code is ErrorCode.DISK_FULL, ended.failure
        assert ended.status is Status.COMPLETED or left_behind(small_disk) == []
    except Exception as error:
        assert is_full(error), error
        assert manager.store.counts()[Status.QUEUED] == 0
        assert left_behind(small_disk) == []
    filler.unlink()
    assert bench.ended(manager, bench.submit(manager)).status is Status.COMPLETED


@pytest.mark.parametrize("leave", [0, *(pytest.param(leave, marks=pytest.mark.long) for leave in range(1, 10))])
def test_a_task_that_finds_no_room_for_a_file_of_its_own_fails_and_the_next_one_succeeds(
    small_disk: Path, bench: Bench, leave: int
) -> None:
    first = bench.open("copy", SMALL)
    for name in (scheduler.LOCK_NAME, retention.LOCK_NAME, first.folders.wake):  # there is no room for them later
        wait_until((small_disk / name).exists, str(name))
    bench.stop(first)
    manager = TaskManager(*bench.load("copy", SMALL))
    bench.managers.append(manager)
    task = bench.submit(manager)
    crowd = fill_files(small_disk, leave)
    bench.start(manager)
    ended = bench.ended(manager, task)
    assert ended.status is Status.COMPLETED or ended.failure.code is ErrorCode.DISK_FULL, ended.failure
    assert leave or ended.status is Status.FAILED
    assert ended.status is Status.COMPLETED or left_behind(small_disk) == []
    shutil.rmtree(crowd)
    assert bench.ended(manager, bench.submit(manager)).status is Status.COMPLETED


def test_who_cannot_schedule_for_want_of_a_file_does_so_once_there_is_room(small_disk: Path, bench: Bench) -> None:
    manager = TaskManager(*bench.load("copy", SMALL))
    bench.managers.append(manager)
    task = bench.submit(manager)
    crowd = fill_files(small_disk, 0)
    bench.start(manager)
    threading.Event().wait(0.1)  # for its first try, which leaves no trace to wait for
    assert {DISK_FULL, "no process schedules tasks at present"} <= set(manager.health().reasons)
    shutil.rmtree(crowd)
    assert bench.ended(manager, task).status is Status.COMPLETED


def test_a_service_starts_on_a_full_disk_and_tells_what_it_has(small_disk: Path, bench: Bench) -> None:
    manager = bench.open("copy", SMALL)
    task = bench.ended(manager, bench.submit(manager))
    manager.disk.restore_ballast()
    bench.stop(manager)
    manager.store.close()  # the last connection: the next one needs room for the log of the database
    bench.managers.clear()
    filler = fill(small_disk)
    manager = bench.open("copy", {"disk": {**SMALL["disk"], "reserve_bytes": MIB}})
    assert manager.view(task.id, task.tenant).task == task
    assert DISK_FULL in manager.health().reasons
    with pytest.raises(StorageFull):
        bench.submit(manager)
    assert manager.delete(task.id, task.tenant) is None
    filler.unlink()
    assert bench.ended(manager, bench.submit(manager)).status is Status.COMPLETED


def test_what_expired_goes_on_a_disk_that_is_full_to_the_last_block(small_disk: Path, bench: Bench) -> None:
    """A sweep notes what it does before it does it: without room for that, nothing would ever make room."""
    manager = bench.open("copy", SMALL)
    task = bench.ended(manager, bench.submit(manager))
    bench.stop(manager)  # else its own sweep may note the true time once more
    manager.store.state.set(BEAT, None)  # else the clock looks wrong, for the machine knows that no two days went by
    assert manager.disk.ballast.restore()
    fill(small_disk)
    later = utc_now() + timedelta(days=2)
    Sweeper(manager.store, manager.folders, manager.disk, manager.retention, lambda: later).sweep()
    assert not manager.folders.inputs(task.id).exists()
