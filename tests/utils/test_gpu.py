"""Which GPUs a value of CUDA_VISIBLE_DEVICES leaves to the service."""

from __future__ import annotations

import pytest

from utils.gpu import Gpu, GpuSnapshot
from utils.gpu_visible import visible

A, B, C = (Gpu(index, "GPU", f"GPU-{start}-0000", 80.0, 80.0) for index, start in enumerate(("aa11", "aa22", "bb33")))
SLICED = "GPU-cc44-0000"
M1, M2 = (Gpu(3, "MIG", f"MIG-{start}-0000", 20.0, 20.0, mig=True, board=SLICED) for start in ("dd55", "dd66"))
ALL = (A, B, C, M1, M2)


@pytest.mark.parametrize(
    ("value", "left"),
    [
        (None, ALL),
        ("", ()),
        (" ", ()),
        ("-1", ()),
        ("none", ()),
        ("0", (A,)),
        ("2,0", (C, A)),
        (" 1 , 2 ", (B, C)),
        ("+1,2nd", (B, C)),
        ("0,2,-1,1", (A, C)),
        ("0,9,1", (A,)),
        ("9,0", ()),
        ("0,,1", (A,)),
        ("0,GPU-bb33,1", (A,)),
        ("1,1", ()),
        ("0,1,0", ()),
        ("3", (M1, M2)),
        ("3,0", (M1, M2, A)),
        ("3,3", ()),
        ("GPU-bb33-0000", (C,)),
        ("GPU-bb,GPU-aa1", (C, A)),
        ("GPU-bb, GPU-aa1", (C, A)),
        ("GPU-aa,GPU-bb", ()),
        ("GPU-bb,GPU-aa,GPU-aa1", (C,)),
        ("GPU-bb,GPU-ff,GPU-aa1", (C,)),
        ("GPU-bb,0", (C,)),
        ("GPU-bb,MIG-dd55", (C,)),
        ("GPU-bb,GPU-bb33", ()),
        ("gpu-bb", ()),
        ("GPU-cc", (M1, M2)),
        ("MIG-dd66,MIG-dd55", (M2, M1)),
        ("MIG-dd", ()),
        ("MIG-dd55,GPU-aa1", (M1,)),
        ("MIG-dd55,MIG-dd55", ()),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(value: str | None, left: tuple[Gpu, ...]) -> None:
    assert visible(ALL, value) == left


@pytest.mark.parametrize(
    ("value", "left"),
    [
        ("0,1,2", (A, C)),
        ("1", ()),
        ("0,9,2", (A,)),
        ("0,-1,2", (A,)),
        ("GPU-aa1,GPU-aa22-0000,GPU-bb", (A, C)),
        ("GPU-aa1,2,GPU-bb", (A,)),
    ],
)
def test_a_lost_gpu_takes_no_other_out_of_the_list(value: str, left: tuple[Gpu, ...]) -> None:
    assert visible((A, C), value, lost=((1, "it fell off the bus"),)) == left


def test_age_counts_from_when_it_was_asked() -> None:
    snapshot = GpuSnapshot(taken_at=100.0)
    assert snapshot.age(107.5) == 7.5
    assert snapshot.age(99.0) == 0.0
