"""Makes the simulated NVML, and the machines it tells of. See nvml.c.

A program sees it when its environment holds `environment(library, machine)`, whether it asks through pynvml or itself:
the real pynvml loads "libnvidia-ml.so.1" from LD_LIBRARY_PATH.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

SONAME = "libnvidia-ml.so.1"
DRIVER = "580.95.05"

# Codes of nvml.h.
NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED, FUNCTION_NOT_FOUND = 3, 4, 9, 13
GPU_IS_LOST, RESET_REQUIRED, LIB_RM_VERSION_MISMATCH, UNKNOWN = 15, 16, 18, 999


@dataclass(frozen=True)
class FakeProcess:
    """A process on a GPU; None where NVML shall not tell what it uses."""

    pid: int
    used_gib: float | None = None


@dataclass(frozen=True)
class FakeMig:
    """A MIG instance, in a slot of its GPU; without a name, as drivers tell it that have none for instances."""

    slot: int
    uuid: str
    total_gib: float
    free_gib: float | None = None
    name: str = ""
    processes: tuple[FakeProcess, ...] = ()


@dataclass(frozen=True)
class FakeGpu:
    """A GPU as NVML shall tell it. All of it is free where nothing else is said; `lost` is the code of the loss."""

    uuid: str
    name: str = "NVIDIA H100 80GB HBM3"
    total_gib: float = 80.0
    free_gib: float | None = None
    reserved_gib: float = 0.0
    capability: tuple[int, int] = (9, 0)
    processes: tuple[FakeProcess, ...] = ()
    lost: int = 0
    load: int | None = None  # percent
    mig_slots: int | None = None  # MIG mode is on where there is a number
    mig: tuple[FakeMig, ...] = ()


def fleet(count: int, total_gib: float = 80.0, name: str = "NVIDIA H100 80GB HBM3") -> list[FakeGpu]:
    """Return GPUs of one kind, told apart by their UUIDs."""
    return [FakeGpu(f"GPU-{index:08x}-0000-4000-8000-000000000000", name, total_gib) for index in range(count)]


def build(folder: Path) -> Path:
    """Compile the library into `folder`, and return its path. Skips the test where there is no compiler, not in CI."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have a C compiler: the simulated NVML is written in C")
        pytest.skip("no C compiler here: the simulated NVML is written in C")
    library = folder / SONAME
    source = Path(__file__).with_name("nvml.c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{SONAME}"]
    made = subprocess.run(
        [*command, "-o", str(library), str(source)], capture_output=True, text=True, timeout=200, check=False
    )
    assert made.returncode == 0, made.stderr
    return library


def environment(library: Path, machine: Path) -> dict[str, str]:
    """Return the variables with which a program finds `machine`'s GPUs."""
    return {"LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML": str(machine)}


def write(
    path: Path,
    gpus: Iterable[FakeGpu] = (),
    *,
    driver: str = DRIVER,
    fail: Mapping[str, int] | None = None,
    hang: Iterable[str] = (),
    crash: Iterable[str] = (),
    calls: Path | None = None,
) -> Path:
    """Describe a machine in `path`, at once for all who look. The functions are named as in C, with their version.

    `fail` maps them to the codes that they return; those in `hang` return when the machine is written anew without;
    those in `crash` end the process. `calls` is a file in which all calls are noted.
    """
    lines = [f"driver {driver}", *(f"fail {name} {code}" for name, code in (fail or {}).items())]
    lines += [f"hang {name}" for name in hang] + [f"crash {name}" for name in crash]
    lines += [f"calls {calls}"] if calls else []
    for gpu in gpus:
        lines += ["gpu", *_device(gpu), f"reserved {_bytes(gpu.reserved_gib)}"]
        lines += [f"capability {gpu.capability[0]} {gpu.capability[1]}", f"lost {gpu.lost}"]
        lines += [f"load {gpu.load}"] if gpu.load is not None else []
        lines += [f"slots {gpu.mig_slots}"] if gpu.mig_slots is not None else []
        for part in gpu.mig:
            lines += [f"mig {part.slot}", *_device(part)]
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text("\n".join(lines) + "\n")
    temporary.replace(path)
    return path


def _device(one: FakeGpu | FakeMig) -> list[str]:
    free = one.total_gib if one.free_gib is None else one.free_gib
    told = [f"name {one.name}", f"uuid {one.uuid}", f"total {_bytes(one.total_gib)}", f"free {_bytes(free)}"]
    used = [(each.pid, -1 if each.used_gib is None else _bytes(each.used_gib)) for each in one.processes]
    return told + [f"process {pid} {size}" for pid, size in used]


def _bytes(gib: float) -> int:
    return round(gib * 2**30)
