"""GPUs as the real pynvml tells them of simulated machines, and a probe that nothing there can block or break."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from tests.fakes.nvml import build as nvml
from tests.fakes.nvml.build import FakeGpu, FakeMig, FakeProcess, fleet
from utils import gpu as module
from utils.gpu import Gpu, GpuProbe, GpuProcess, GpuSnapshot, look

# The deadline of tests that do not wait for it to pass; a sweep of a machine under load must fit.
AMPLE = 60.0
A100 = "NVIDIA A100-SXM4-80GB"
CARDS = {24.0: "NVIDIA GeForce RTX 4090", 48.0: "NVIDIA L40S", 80.0: A100}


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def machine(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that describes the simulated machine; until it is written the driver is not loaded."""
    path = tmp_path / "machine"
    for name, value in nvml.environment(library, path).items():
        monkeypatch.setenv(name, value)
    return path


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a probe's end be waited for until it comes: after its second a slow machine may not have ended the child."""
    monkeypatch.setattr(module, "_STOP_SECONDS", AMPLE)


@pytest.fixture
def resigned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no child that hangs be replaced, so that what is told of it stays the same however slow the test is."""
    monkeypatch.setattr(module, "_GIVE_UP_DEADLINES", 10**5)


@pytest.fixture
def started() -> Iterator[Callable[..., GpuProbe]]:
    """Starts probes, quick ones, and stops them in the end."""
    probes: list[GpuProbe] = []

    def start(interval_seconds: float = 0.05, deadline_seconds: float = AMPLE) -> GpuProbe:
        probes.append(GpuProbe(interval_seconds, deadline_seconds))
        probes[-1].start()
        return probes[-1]

    yield start
    for one in probes:
        one.stop()
    assert until(lambda: not children()), "a child outlived its probe"


def until(holds: Callable[[], bool], seconds: float = AMPLE) -> bool:
    """Wait until something holds; say whether it does."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def children(pid: int | None = None) -> list[psutil.Process]:
    """Return the processes that look at NVML for this one, or for another."""
    found = []
    for child in psutil.Process(pid).children():
        try:
            if module.__file__ in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


SWEEP = "nvmlDeviceGetCount_v2"
"""What is called once when the GPUs are looked at."""


def counted(calls: Path, name: str) -> int:
    return calls.read_text().splitlines().count(name)


# --- what is told ------------------------------------------------------------------------------------------------


def test_every_fleet_is_told_as_it_is(machine: Path, started: Callable[..., GpuProbe]) -> None:
    watched = started(interval_seconds=3600.0)
    for count, (total, name) in itertools.product((0, 1, 4, 5, 8), CARDS.items()):
        capability = (8, count)
        fakes = [
            replace(fake, free_gib=total - index, capability=capability)
            for index, fake in enumerate(fleet(count, total, name))
        ]
        nvml.write(machine, fakes)
        told = watched.refresh(AMPLE)
        assert told.gpus == tuple(
            Gpu(index, name, fake.uuid, total, total - index, capability, board=fake.uuid)
            for index, fake in enumerate(fakes)
        )
        assert (told.driver, told.lost, told.stale) == (nvml.DRIVER, (), False)
        assert told.reason == ("" if count else f"the NVIDIA driver {nvml.DRIVER} has no GPU")


def test_free_memory_is_less_than_total_by_what_is_reserved_and_used(machine: Path) -> None:
    nvml.write(machine, [FakeGpu("GPU-a", A100, 80.0, free_gib=79.1, reserved_gib=0.6)])
    (gpu,) = look().gpus
    assert (gpu.total_gib, gpu.free_gib) == (80.0, 79.1)


def test_processes_are_told_with_what_they_hold(machine: Path) -> None:
    busy = FakeGpu("GPU-a", free_gib=30.0, processes=(FakeProcess(4711, 41.5), FakeProcess(4712)))
    nvml.write(machine, [busy, FakeGpu("GPU-b")])
    first, second = look().gpus
    assert first.processes == (GpuProcess(4711, 41.5), GpuProcess(4712, None))
    assert second.processes == ()


def test_how_busy_a_gpu_is_is_told_where_nvml_tells_it(machine: Path) -> None:
    nvml.write(machine, [FakeGpu("GPU-a", load=85), FakeGpu("GPU-b")])
    assert [gpu.load for gpu in look().gpus] == [0.85, None]


def test_an_old_driver_is_asked_in_the_old_way(machine: Path) -> None:
    newer = ("nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetMigMode")
    nvml.write(
        machine, [FakeGpu("GPU-a", free_gib=70.0, processes=(FakeProcess(1, 1.0),))],
        fail=dict.fromkeys(newer, nvml.FUNCTION_NOT_FOUND),
    )  # fmt: skip
    assert look().gpus == (Gpu(0, "NVIDIA H100 80GB HBM3", "GPU-a", 80.0, 70.0, (9, 0), board="GPU-a"),)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (nvml.DRIVER_NOT_LOADED, "the NVIDIA driver is installed but not loaded"),
        (nvml.LIB_RM_VERSION_MISMATCH, "the loaded NVIDIA driver and its library differ in version: reboot"),
        (nvml.NO_PERMISSION, "this user may not open /dev/nvidia*"),
        (nvml.UNKNOWN, "Unknown Error"),
        (4242, "simulated error 4242"),
    ],
)
def test_a_driver_that_cannot_be_used_is_told_with_the_reason(machine: Path, code: int, reason: str) -> None:
    nvml.write(machine, fleet(4), fail={"nvmlInitWithFlags": code})
    told = look()
    assert (told.gpus, told.driver, told.reason, told.stale) == ((), None, reason, False)


def test_without_a_driver_there_are_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file that is no library keeps the loader from finding one elsewhere.
    (tmp_path / nvml.SONAME).touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    told = look()
    assert (told.gpus, told.driver, told.stale) == ((), None, False)
    assert told.reason == "no NVIDIA driver here: libnvidia-ml.so.1 is not installed"
    assert look().gpus == ()


# --- lost GPUs, MIG ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (nvml.GPU_IS_LOST, "lost: it fell off the bus or stopped answering; reboot"),
        (nvml.RESET_REQUIRED, "needs a reset: nvidia-smi --gpu-reset, or reboot"),
        (nvml.UNKNOWN, "Unknown Error"),
    ],
)
def test_a_lost_gpu_is_told_and_the_others_stay(machine: Path, code: int, reason: str) -> None:
    gpus = fleet(5)
    gpus[2] = replace(gpus[2], lost=code)
    nvml.write(machine, gpus)
    told = look()
    assert [gpu.index for gpu in told.gpus] == [0, 1, 3, 4]
    assert [gpu.uuid for gpu in told.gpus] == [gpus[index].uuid for index in (0, 1, 3, 4)]
    assert told.lost == ((2, reason),)
    assert (told.reason, told.stale) == ("", False)


def test_a_gpu_that_is_lost_half_way_through_is_not_half_told(machine: Path) -> None:
    nvml.write(machine, fleet(1), fail={"nvmlDeviceGetComputeRunningProcesses_v3": nvml.GPU_IS_LOST})
    told = look()
    assert told.gpus == ()
    assert [index for index, _ in told.lost] == [0]
    assert told.reason == "no GPU can be used"


def test_a_gpu_comes_and_goes_while_it_is_looked_at(machine: Path, started: Callable[..., GpuProbe]) -> None:
    well = fleet(4)
    nvml.write(machine, well)
    watched = started()
    assert len(watched.refresh(AMPLE).gpus) == 4
    nvml.write(machine, [*well[:3], replace(well[3], lost=nvml.GPU_IS_LOST)])
    told = watched.refresh(AMPLE)
    assert (len(told.gpus), [index for index, _ in told.lost]) == (3, [3])
    nvml.write(machine, well)
    told = watched.refresh(AMPLE)
    assert (len(told.gpus), told.lost) == (4, ())


def test_while_a_gpu_is_lost_nvml_is_opened_anew_now_and_then(
    machine: Path, tmp_path: Path, started: Callable[..., GpuProbe]
) -> None:
    calls = tmp_path / "calls"
    nvml.write(machine, [*fleet(1), FakeGpu("GPU-b", lost=nvml.GPU_IS_LOST)], calls=calls)
    watched = started(interval_seconds=0.01)
    assert until(lambda: calls.exists() and counted(calls, "nvmlInitWithFlags") >= 3)
    watched.stop()
    names = [name for name in calls.read_text().splitlines() if name in ("nvmlInitWithFlags", "nvmlShutdown", SWEEP)]
    while_open = [*[SWEEP] * module._REOPEN_SWEEPS, "nvmlShutdown"]
    assert names[: 2 * (1 + len(while_open))] == 2 * ["nvmlInitWithFlags", *while_open]


def test_a_gpu_in_mig_mode_is_its_instances(machine: Path) -> None:
    parts = (
        FakeMig(0, "MIG-a", 40.0, 39.5, f"{A100} MIG 3g.40gb", (FakeProcess(99, 0.5),)),
        FakeMig(3, "MIG-b", 20.0),
    )
    whole = FakeGpu("GPU-b", A100, capability=(8, 0))
    nvml.write(machine, [FakeGpu("GPU-a", A100, capability=(8, 0), mig_slots=7, mig=parts), whole])
    told = look()
    assert told.gpus == (
        Gpu(0, f"{A100} MIG 3g.40gb", "MIG-a", 40.0, 39.5, (8, 0), (GpuProcess(99, 0.5),), mig=True, board="GPU-a"),
        Gpu(0, f"{A100} MIG", "MIG-b", 20.0, 20.0, (8, 0), mig=True, board="GPU-a"),
        Gpu(1, A100, "GPU-b", 80.0, 80.0, (8, 0), board="GPU-b"),
    )
    assert told.lost == ()


def test_a_gpu_in_mig_mode_without_instances_cannot_be_used(machine: Path) -> None:
    nvml.write(machine, [FakeGpu("GPU-a", A100, mig_slots=7), FakeGpu("GPU-b", A100)])
    told = look()
    assert [gpu.uuid for gpu in told.gpus] == ["GPU-b"]
    assert told.lost == ((0, "in MIG mode, but no instance has been made"),)


# --- looking again and again -------------------------------------------------------------------------------------


def test_nothing_is_started_before_start_and_nothing_is_left_after_stop(machine: Path) -> None:
    nvml.write(machine, fleet(1))
    watched = GpuProbe(0.05, AMPLE)
    asked = time.monotonic()
    before = watched.refresh(AMPLE)
    assert time.monotonic() - asked < AMPLE / 2
    assert (before.gpus, before.stale, before.reason) == ((), True, "NVML has not answered yet")
    assert not children()
    assert all(thread.name != "gpu-probe" for thread in threading.enumerate())
    watched.start()
    assert watched.refresh(AMPLE).gpus
    assert len(children()) == 1
    watched.stop()
    assert not children()
    assert all(thread.name != "gpu-probe" for thread in threading.enumerate())
    asked = time.monotonic()
    assert watched.refresh(AMPLE).gpus, "what was last seen stays"
    assert time.monotonic() - asked < AMPLE / 2


def test_changes_are_seen_without_being_asked_for(machine: Path, started: Callable[..., GpuProbe]) -> None:
    nvml.write(machine, fleet(1))
    watched = started()
    assert until(lambda: len(watched.snapshot().gpus) == 1)
    nvml.write(machine, fleet(5))
    assert until(lambda: len(watched.snapshot().gpus) == 5)


def test_refresh_sees_memory_that_was_freed_just_before(machine: Path, started: Callable[..., GpuProbe]) -> None:
    watched = started(interval_seconds=3600.0)
    for free in (2.0, 79.0, 40.0):
        nvml.write(machine, [FakeGpu("GPU-a", free_gib=free)])
        asked = time.monotonic()
        told = watched.refresh(AMPLE)
        assert [gpu.free_gib for gpu in told.gpus] == [free]
        assert told.taken_at >= asked


def test_nvml_is_opened_once_and_shut_before_it_is_opened_again(
    machine: Path, tmp_path: Path, started: Callable[..., GpuProbe]
) -> None:
    calls = tmp_path / "calls"
    nvml.write(machine, fleet(1), calls=calls)
    watched = started(interval_seconds=3600.0)
    for _ in range(5):
        assert watched.refresh(AMPLE).gpus
    assert (counted(calls, "nvmlInitWithFlags"), counted(calls, "nvmlShutdown")) == (1, 0)
    nvml.write(machine, fleet(1), calls=calls, fail={"nvmlDeviceGetCount_v2": nvml.UNKNOWN})
    told = watched.refresh(AMPLE)
    assert (told.gpus, told.reason, told.stale) == ((), "Unknown Error", False)
    assert (counted(calls, "nvmlInitWithFlags"), counted(calls, "nvmlShutdown")) == (1, 1)
    nvml.write(machine, fleet(1), calls=calls)
    assert watched.refresh(AMPLE).gpus
    assert (counted(calls, "nvmlInitWithFlags"), counted(calls, "nvmlShutdown")) == (2, 1)


def test_without_a_driver_no_child_waits_and_one_is_looked_for_less_often(
    machine: Path, tmp_path: Path, started: Callable[..., GpuProbe]
) -> None:
    calls = tmp_path / "calls"
    nvml.write(machine, fail={"nvmlInitWithFlags": nvml.DRIVER_NOT_LOADED}, calls=calls)
    rare = started(interval_seconds=3600.0)
    assert until(lambda: not rare.snapshot().stale)
    assert not children()
    rare.stop()
    calls.unlink()
    began = time.monotonic()
    watched = started(interval_seconds=0.1)
    assert until(lambda: calls.exists() and counted(calls, "nvmlInitWithFlags") >= 2)
    assert time.monotonic() - began > 10 * 0.1
    nvml.write(machine, fleet(8))
    assert until(lambda: len(watched.snapshot().gpus) == 8)


def test_trouble_is_logged_when_it_begins_and_ends(
    machine: Path, started: Callable[..., GpuProbe], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gpu")
    nvml.write(machine, [*fleet(1), FakeGpu("GPU-b", lost=nvml.GPU_IS_LOST)])
    watched = started()
    for _ in range(3):
        watched.refresh(AMPLE)
    nvml.write(machine, fleet(1))
    for _ in range(3):
        watched.refresh(AMPLE)
    watched.stop()
    assert [record.getMessage() for record in caplog.records] == [
        "GPU 1: lost: it fell off the bus or stopped answering; reboot",
        "the GPUs can be read again",
    ]


# --- NVML that hangs or crashes ----------------------------------------------------------------------------------

EVERY_CALL = [
    "nvmlInitWithFlags", "nvmlSystemGetDriverVersion", "nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetComputeRunningProcesses_v3",
]  # fmt: skip


def thousand_snapshots(watched: GpuProbe) -> GpuSnapshot:
    """Return a snapshot, after seeing that none waits for NVML: a thousand would, for its deadline of 0.2 s each."""
    began = time.monotonic()
    for _ in range(1000):
        told = watched.snapshot()
    assert time.monotonic() - began < 100
    return told


def test_nvml_that_hangs_at_the_start_blocks_nobody_and_is_read_when_it_comes_back(
    machine: Path, started: Callable[..., GpuProbe]
) -> None:
    nvml.write(machine, fleet(4), hang=["nvmlInitWithFlags"])
    watched = started(deadline_seconds=0.2)
    assert until(lambda: watched.snapshot().reason.startswith("NVML has not answered for"))
    told = thousand_snapshots(watched)
    assert (told.gpus, told.stale) == ((), True)
    nvml.write(machine, fleet(4))
    assert until(lambda: len(watched.snapshot().gpus) == 4 and not watched.snapshot().stale)


@pytest.mark.usefixtures("resigned")
@pytest.mark.parametrize("call", EVERY_CALL[1:])
def test_while_nvml_hangs_the_last_snapshot_stays_and_ages(
    machine: Path, tmp_path: Path, started: Callable[..., GpuProbe], call: str
) -> None:
    nvml.write(machine, fleet(4))
    watched = started(deadline_seconds=0.3)
    assert until(lambda: len(watched.snapshot().gpus) == 4 and not watched.snapshot().stale)
    calls = tmp_path / "calls"
    nvml.write(machine, fleet(4), hang=[call], calls=calls)
    assert until(lambda: calls.exists() and counted(calls, call) == 1), "it hangs"
    assert until(lambda: watched.snapshot().stale)
    told = thousand_snapshots(watched)
    assert len(told.gpus) == 4
    assert told.driver == nvml.DRIVER
    assert "NVML has not answered for" in told.reason
    assert told.age(time.monotonic()) >= 0.3
    assert watched.snapshot().taken_at == told.taken_at
    nvml.write(machine, fleet(5))
    assert until(lambda: len(watched.snapshot().gpus) == 5 and not watched.snapshot().stale)
    assert watched.snapshot().reason == ""


@pytest.mark.usefixtures("resigned")
def test_refresh_waits_no_longer_than_it_may(machine: Path, tmp_path: Path, started: Callable[..., GpuProbe]) -> None:
    nvml.write(machine, fleet(1))
    watched = started(deadline_seconds=0.5)
    assert until(lambda: bool(watched.snapshot().gpus))
    calls = tmp_path / "calls"
    nvml.write(machine, fleet(1), hang=[SWEEP], calls=calls)
    assert until(lambda: calls.exists() and counted(calls, SWEEP) == 1), "it hangs"
    assert until(lambda: watched.snapshot().stale)
    asked = time.monotonic()
    told = watched.refresh(0.8)
    assert 0.8 <= time.monotonic() - asked < AMPLE / 2
    assert told.stale
    assert told.taken_at < asked


def test_looking_once_asks_once(machine: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    nvml.write(machine, fleet(2), calls=calls)
    assert len(look().gpus) == 2
    assert (counted(calls, "nvmlInitWithFlags"), counted(calls, "nvmlDeviceGetCount_v2")) == (1, 1)
    assert not children()


def test_looking_once_ends_though_nvml_hangs(machine: Path) -> None:
    nvml.write(machine, fleet(1), hang=["nvmlInitWithFlags"])
    asked = time.monotonic()
    told = look(2.0)
    assert time.monotonic() - asked < 2.0 * module._GIVE_UP_DEADLINES - 2.0, "it waited until the child was given up"
    assert (told.gpus, told.stale) == ((), True)
    assert "NVML has not answered" in told.reason
    assert not children()


def test_a_child_that_stays_silent_is_replaced_by_one(machine: Path, started: Callable[..., GpuProbe]) -> None:
    nvml.write(machine, fleet(1))
    watched = started(deadline_seconds=0.2)
    assert until(lambda: bool(watched.snapshot().gpus))
    nvml.write(machine, fleet(1), hang=["nvmlInitWithFlags", "nvmlDeviceGetCount_v2"])
    seen: list[psutil.Process] = []

    def another() -> bool:
        living = children()
        assert len(living) <= 1
        seen.extend(child for child in living if child not in seen)
        return len(seen) >= 2

    assert until(another)
    assert not seen[0].is_running()
    told = watched.snapshot()
    assert (len(told.gpus), told.stale) == (1, True)
    nvml.write(machine, fleet(1))
    assert until(lambda: not watched.snapshot().stale)


def test_a_crash_in_nvml_costs_a_child_and_no_more(machine: Path, started: Callable[..., GpuProbe]) -> None:
    nvml.write(machine, fleet(4))
    watched = started()
    assert len(watched.refresh(AMPLE).gpus) == 4
    nvml.write(machine, fleet(4), crash=["nvmlDeviceGetName"])
    told = watched.refresh(AMPLE)
    assert (len(told.gpus), told.stale) == (4, True)
    assert told.reason == "the GPUs cannot be read: the process that looks at NVML has ended, with code -11"
    nvml.write(machine, fleet(5))
    assert until(lambda: len(watched.snapshot().gpus) == 5 and not watched.snapshot().stale)


def test_stop_ends_a_child_that_hangs(machine: Path, started: Callable[..., GpuProbe]) -> None:
    nvml.write(machine, fleet(1), hang=["nvmlInitWithFlags"])
    watched = started()
    assert until(lambda: bool(children()))
    asked = time.monotonic()
    watched.stop()
    assert time.monotonic() - asked < AMPLE / 2
    assert not children()


def test_the_child_holds_nothing_of_the_process_that_asks(machine: Path, started: Callable[..., GpuProbe]) -> None:
    nvml.write(machine, fleet(1))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.set_inheritable(True)
        started(interval_seconds=3600.0).refresh(AMPLE)  # from here on it looks at nothing, with no file open for that
        (child,) = children()
        assert os.getsid(child.pid) == child.pid, "a terminal's Ctrl-C is not for it"
        held = [str(entry.readlink()) for entry in Path(f"/proc/{child.pid}/fd").iterdir()]
    assert sorted(target.partition(":")[0] for target in held) == ["/dev/null", "pipe", "pipe"]


WATCHER = """
import sys, time
from utils import gpu
gpu._GIVE_UP_DEADLINES = 10**5
watched = gpu.GpuProbe(0.05, 0.2)
watched.start()
while "has not answered for" not in watched.snapshot().reason:
    time.sleep(0.01)
print("hangs", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [False, True], ids=["exits", "is killed"])
def test_a_process_ends_while_nvml_hangs_and_its_child_with_it(machine: Path, killed: bool) -> None:
    nvml.write(machine, fleet(1), hang=["nvmlInitWithFlags"])
    with subprocess.Popen(
        [sys.executable, "-c", WATCHER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as watcher:
        assert watcher.stdin and watcher.stdout and watcher.stderr
        assert watcher.stdout.readline() == b"hangs\n"
        (child,) = children(watcher.pid)
        if killed:
            watcher.kill()
        watcher.stdin.close()
        code = watcher.wait(AMPLE)
        assert code == (-9 if killed else 0)
        assert watcher.stderr.read() == b""
        assert until(lambda: not child.is_running())
