"""The GPUs of this host as admission and placement see them, from the probe's snapshots."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.fit import Card
from utils.gpu import Gpu, GpuProbe, GpuSnapshot
from utils.gpu_visible import visible

FIRST_LOOK_SECONDS = 5.0
REFRESH_SECONDS = 2.0
STALE_SECONDS = 30.0
"""Age past which memory that was seen free is no ground to start a task on."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """The GPUs that `cuda_visible_devices` leaves to this service."""

    probe: GpuProbe
    cuda_visible_devices: str | None

    def gpus(self) -> tuple[Gpu, ...]:
        """Return what is known of the GPUs now, without waiting."""
        return self._visible(self.probe.snapshot())

    def cards(self) -> list[Card]:
        """Return the GPUs for admission; waits, a moment, where nobody has looked yet."""
        snapshot = self.probe.snapshot()
        if snapshot.stale and not snapshot.gpus:
            snapshot = self.probe.refresh(FIRST_LOOK_SECONDS)
        return cards_of(self._visible(snapshot))

    def free_cards(self) -> list[Card]:
        """Return the GPUs for placement, looked at anew; none while NVML has not answered for long."""
        if self._is_old(self.probe.snapshot()):
            return []  # not waited for: scheduling would stand still at every look while NVML hangs
        snapshot = self.probe.refresh(REFRESH_SECONDS)
        if self._is_old(snapshot):
            return []
        return cards_of(self._visible(snapshot))

    def reasons(self) -> list[str]:
        """Return what is wrong with the GPUs, in words."""
        snapshot = self.probe.snapshot()
        silent = [f"the GPUs cannot be looked at: {snapshot.reason}"] if snapshot.stale and snapshot.gpus else []
        return silent + [f"GPU {index} is lost: {reason}" for index, reason in snapshot.lost]

    @staticmethod
    def _is_old(snapshot: GpuSnapshot) -> bool:
        return snapshot.stale and snapshot.age(time.monotonic()) > STALE_SECONDS

    def _visible(self, snapshot: GpuSnapshot) -> tuple[Gpu, ...]:
        return visible(snapshot.gpus, self.cuda_visible_devices, snapshot.lost)


def cards_of(gpus: Sequence[Gpu]) -> list[Card]:
    """Return GPUs as placement sees them; one of unknown capability counts as too old for anything new."""
    return [Card(gpu.uuid, gpu.free_gib, gpu.total_gib, _number(gpu.capability)) for gpu in gpus]


def _number(capability: tuple[int, int] | None) -> float:
    return capability[0] + capability[1] / 10 if capability else 0.0
