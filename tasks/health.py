"""What this host can do now, as `/api/v1/health` tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from tasks.admission import Admission
from tasks.disk import Disk
from tasks.hardware import Hardware
from tasks.model import Status
from tasks.scheduler import why_not_scheduled
from tasks.settling import STATE_NAME, from_state, states
from tasks.store import Store
from utils.gpu import Gpu

NO_ENGINE = "no engine can run on this machine"
DISK_FULL = "the disk of the data folder is full"


@dataclass(frozen=True, slots=True)
class EngineState:
    name: str
    title: str
    available: bool
    reason: str
    profiles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Health:
    """`reasons` why new tasks cannot be run now; none of them: healthy. `warnings` say what else needs a look."""

    engines: tuple[EngineState, ...]
    queued: int
    processing: int
    model_loaded: bool
    gpus: tuple[Gpu, ...]
    gpu_states: Mapping[str, str]
    """By UUID, see tasks.settling; a GPU that is not named is free."""
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Examiner:
    """Looks at the parts of a service."""

    store: Store
    admission: Admission
    hardware: Hardware
    disk: Disk

    def look(self, warnings: Sequence[str] = ()) -> Health:
        """Return what this host can do now."""
        ask = self.store.condition.ask
        counts = ask(self.store.counts) or {}
        engines = self._engines()
        against = [] if any(engine.available for engine in engines) else [NO_ENGINE]
        against += filter(None, [why_not_scheduled(self.disk.folder)])
        against += [] if self.disk.has_room() else [DISK_FULL]
        against += filter(None, [self.store.condition.reason()])
        against += self.hardware.reasons()
        busy = [uuid for task in ask(self.store.processing) or () for uuid in task.gpus]
        settling = ask(partial(self.store.state.get, STATE_NAME))
        return Health(
            engines, counts.get(Status.QUEUED, 0), counts.get(Status.PROCESSING, 0), False, self.hardware.gpus(),
            states(from_state(settling), busy), tuple(against), tuple(warnings),
        )  # fmt: skip

    def _engines(self) -> tuple[EngineState, ...]:
        table = self.admission.table.engines
        reasons = {engine.name: self.admission.why_not(engine) for engine in table}
        return tuple(
            EngineState(e.name, e.title, not reasons[e.name], reasons[e.name], tuple(p.name for p in e.profiles))
            for e in table
        )
