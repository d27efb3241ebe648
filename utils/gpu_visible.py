"""Which GPUs a value of CUDA_VISIBLE_DEVICES leaves. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from utils.gpu import Gpu, Lost


def visible(gpus: Sequence[Gpu], cuda_visible_devices: str | None, lost: Lost = ()) -> tuple[Gpu, ...]:
    """Return the GPUs that a value of CUDA_VISIBLE_DEVICES leaves, in its order, by CUDA's rules.

    Unset (None) leaves all; an empty value or -1 none. The first entry decides between numbers, `GPU-` and `MIG-`
    UUIDs, of which any unambiguous beginning will do; the first entry that names nothing ends the list; one named twice
    leaves none. Numbers are NVML's, which are CUDA's under CUDA_DEVICE_ORDER=PCI_BUS_ID; by default it counts from the
    fastest, which differs where there are several models, and there only UUIDs are sure.

    Two things are this service's, which hands devices on by UUID: an entry for a GPU in MIG mode gives all its
    instances (CUDA would use the first), and while GPUs are `lost`, an entry that may mean one of them ends nothing.
    """
    if cuda_visible_devices is None:
        return tuple(gpus)
    entries = [entry.strip() for entry in cuda_visible_devices.split(",")]
    kind = entries[0][:4] if entries[0].startswith(("GPU-", "MIG-")) else ""
    chosen: list[Gpu] = []
    for entry in entries:
        named = _by_uuid(gpus, kind, entry) if kind else [gpu for gpu in gpus if gpu.index == _number(entry)]
        if any(gpu in chosen for gpu in named):
            return ()
        missing = entry.startswith(kind) if kind else _number(entry) in dict(lost)
        if not named and not (lost and missing):
            break
        chosen += named
    return tuple(chosen)


def _number(entry: str) -> int:
    """Return the number that the entry begins with, as C reads it ("1st" is 1); -1 where there is none."""
    match = re.match(r"[+-]?[0-9]+", entry)
    return int(match[0]) if match else -1


def _by_uuid(gpus: Sequence[Gpu], kind: str, entry: str) -> list[Gpu]:
    names = {gpu: gpu.board if gpu.mig and kind == "GPU-" else gpu.uuid for gpu in gpus}
    named = [gpu for gpu, name in names.items() if entry.startswith(kind) and name.startswith(entry)]
    return named if len({names[gpu] for gpu in named}) == 1 else []
