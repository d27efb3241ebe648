"""The NVIDIA GPUs of this machine, through NVML. Knows no task."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pynvml

log = logging.getLogger("gpu")

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML tells it; memory in GiB."""

    index: int
    name: str
    uuid: str
    total_gib: float
    free_gib: float


def probe() -> tuple[Gpu, ...]:
    """Return the GPUs of this machine, none where there is no driver. May take long: not for a request's thread."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.info("no GPUs: %s", error)
        return ()
    try:
        return tuple(_gpu(index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError as error:
        log.warning("the GPUs cannot be read: %s", error)
        return ()
    finally:
        pynvml.nvmlShutdown()


def _gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    name, uuid = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetUUID(handle)
    return Gpu(index, name, uuid, round(memory.total / _GIB, 2), round(memory.free / _GIB, 2))
