"""All that the metrics tell of one host and its database, looked at without waiting for anything that may hang."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from tasks.census import Census
from tasks.disk import Disk, free_bytes
from tasks.hardware import Hardware
from tasks.scheduler import Office, look_at_office
from tasks.settling import states
from tasks.store import Store
from utils.gpu import Gpu


@dataclass(frozen=True, slots=True)
class GpuLook:
    """The GPUs as last seen, `age_seconds` ago; `lost` of them cannot be used."""

    gpus: tuple[Gpu, ...]
    states: Mapping[str, str]
    """By UUID, see tasks.settling; a GPU that is not named is free."""
    lost: int
    age_seconds: float
    stale: bool


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of the data folder's disk; `ballast` is what is there of it."""

    free: int
    reserve: int
    ballast: int
    full_ballast: int


@dataclass(frozen=True, slots=True)
class Survey:
    """`census` is None where the database cannot be read; `writable` whether it could be written."""

    census: Census | None
    writable: bool
    office: Office
    hardware: GpuLook
    room: Room


@dataclass(frozen=True, slots=True)
class Surveyor:
    """Looks at the parts of a service."""

    store: Store
    hardware: Hardware
    disk: Disk

    def look(self) -> Survey:
        """Return what there is now. A database that is locked costs some seconds, as it does health."""
        census = self.store.condition.ask(self.store.census)
        return Survey(
            census, self.store.condition.reason() is None, look_at_office(self.disk.folder), self._gpus(census),
            self._room(),
        )  # fmt: skip

    def _gpus(self, census: Census | None) -> GpuLook:
        snapshot = self.hardware.probe.snapshot()
        busy = [uuid for task in census.running for uuid in task.gpus] if census else []
        known = states(census.loans if census else {}, busy)
        return GpuLook(self.hardware.gpus(), known, len(snapshot.lost), snapshot.age(time.monotonic()), snapshot.stale)

    def _room(self) -> Room:
        ballast = self.disk.ballast
        try:
            there = ballast.path.stat().st_size
        except FileNotFoundError:
            there = 0
        return Room(free_bytes(self.disk.folder), self.disk.reserve_bytes, there, ballast.size)
