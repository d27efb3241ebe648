"""Which queued task goes where, now. Pure: no clock, no file, no process; busy slots are derived from running rows.

Tasks are looked at in the order of turn, and one that cannot start lets others pass, so that no GPU stays idle for
want of company. A gang that has waited longer than `patience` is passed no more: the free GPUs that it could use are
kept for it until it has enough. So no task waits for ever, and no fitting task waits while its GPUs are idle except for
such a gang.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tasks.fit import Card, able, gang, in_order, runs_unchanged
from tasks.model import Task
from tasks.profile import Build, EngineTable, Profile


@dataclass(frozen=True, slots=True)
class Host:
    """What one machine can run side by side. `policy` is "latency" or "throughput", see tasks.fit.

    Of the `cards`, those that are `settling` still wait for the memory of a task that ended. Of each tenant,
    `tenant_running` tasks may run at once (0: any number); its further ones hold nobody up.
    """

    cpu_slots: int
    cards: tuple[Card, ...] = ()
    policy: str = "latency"
    patience: timedelta = timedelta(minutes=10)
    settling: frozenset[str] = frozenset()
    tenant_running: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """A task, how it runs, and where: a CPU slot, or GPUs by UUID."""

    task: Task
    profile: Profile
    build: Build | None
    slot: str
    gpus: tuple[str, ...] = ()


def choose(
    queued: Iterable[Task], running: Sequence[Task], host: Host, table: EngineTable, now: datetime
) -> list[Placement]:
    """Return the placements to make now: tasks of `queued`, which is in the order of turn, on what nobody holds.

    Of `queued` no more is taken than can matter: nothing where nothing is free.
    """
    busy_slots = {task.slot for task in running}
    busy_cards = host.settling.union(*(task.gpus for task in running))
    slots = [slot for slot in cpu_slots(host) if slot not in busy_slots]
    cards = [card for card in host.cards if card.uuid not in busy_cards]
    placed = []
    of_tenant = Counter(task.tenant for task in running)
    waiting = iter(queued)
    while (slots or cards) and (task := next(waiting, None)) is not None:
        if host.tenant_running and of_tenant[task.tenant] >= host.tenant_running:
            continue
        placement = _place(task, slots, cards, host, table)
        if placement is not None:
            placed.append(placement)
            of_tenant[task.tenant] += 1
            slots = [slot for slot in slots if slot != placement.slot]
            cards = [card for card in cards if card.uuid not in placement.gpus]
        elif now - task.submit_time > host.patience:
            cards = _keep(task, cards, host, table)
    return placed


def _place(task: Task, slots: list[str], cards: list[Card], host: Host, table: EngineTable) -> Placement | None:
    for profile in _profiles(task, host, table):
        if profile.gpus == 0:
            if slots:
                return Placement(task, profile, None, slots[0])
            continue
        found = gang(profile, task.plan.width, task.plan.height, cards)
        if found is not None:
            build, members = found
            return Placement(task, profile, build, "gpu", tuple(card.uuid for card in members))
    return None


def _profiles(task: Task, host: Host, table: EngineTable) -> list[Profile]:
    """Return the profiles on which the task may run: what was promised with the 201 needs no further change there."""
    engine = table.engine(task.engine)
    if engine is None:
        return []
    ordered = sorted(in_order(engine.profiles, host.policy), key=lambda profile: profile.name != task.profile)
    return [profile for profile in ordered if runs_unchanged(profile, task.params)]


def _keep(task: Task, cards: list[Card], host: Host, table: EngineTable) -> list[Card]:
    """Return the free cards without those that are kept for an impatient task until it has enough of them."""
    width, height = task.plan.width, task.plan.height
    for profile in _profiles(task, host, table):
        for build in profile.builds:
            suitable = {card.uuid for card in able(profile, build, width, height, [card.idle for card in host.cards])}
            if len(suitable) >= profile.gpus:
                kept = [card for card in cards if card.uuid in suitable][: profile.gpus]
                return [card for card in cards if card not in kept]
    return cards


def cpu_slots(host: Host) -> list[str]:
    return [f"cpu-{number}" for number in range(host.cpu_slots)]
