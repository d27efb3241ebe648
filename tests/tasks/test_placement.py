"""Who starts, now: a pure choice, by named cases and over random fleets and queues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from config_loader import load_engines, load_settings
from tasks.fit import Card, Portrait, choose_profile, gang, runs_unchanged
from tasks.model import Status, Task
from tasks.placement import Host, Placement, choose
from tasks.profile import EngineTable
from tests.conftest import NOON, make_task

TABLE: EngineTable = load_engines(load_settings())
LIVE = TABLE.engine("live_avatar")
SOON, LATE = NOON + timedelta(seconds=5), NOON + timedelta(hours=1)


def cards(count: int, gib: float = 79.0, capability: float = 9.0) -> tuple[Card, ...]:
    return tuple(Card(f"GPU-{number}", gib, gib, capability) for number in range(count))


def preview_queue(count: int) -> list[Task]:
    return [make_task(id=f"t{n}", seq=n) for n in range(1, count + 1)]


def live(number: int, profile: str, **changes: object) -> Task:
    """A queued Live Avatar task that was admitted for `profile`, at the largest size that it runs."""
    small = profile == "single_fp8_48gb"
    plan = replace(make_task().plan, width=384 if small else 704, height=256 if small else 384)
    params = replace(make_task().params, sample_steps=3 if profile in ("tpp_4gpu", "single_fp8_48gb") else 4)
    params = replace(params, size="384*256" if small else "704*384")
    base = {
        "id": f"t{number}",
        "seq": number,
        "engine": "live_avatar",
        "profile": profile,
        "plan": plan,
        "params": params,
    }
    return make_task(**(base | changes))


def cards_48gb(count: int) -> tuple[Card, ...]:
    """GPUs on which a video of the full size needs a gang, and a small one does not."""
    return cards(count, 47.5, 8.9)


def running(*tasks: tuple[str, Sequence[str]]) -> list[Task]:
    return [
        make_task(id=f"r{n}", status=Status.PROCESSING, slot=slot, gpus=tuple(gpus))
        for n, (slot, gpus) in enumerate(tasks)
    ]


def placed(found: list[Placement]) -> list[tuple[str, str, int]]:
    return [(item.task.id, item.profile.name, len(item.gpus)) for item in found]


def test_free_cpu_slots_go_to_the_tasks_whose_turn_it_is() -> None:
    found = choose(preview_queue(5), [], Host(cpu_slots=2), TABLE, SOON)
    assert [(item.task.id, item.slot) for item in found] == [("t1", "cpu-0"), ("t2", "cpu-1")]


def test_a_busy_cpu_slot_is_never_given_twice() -> None:
    found = choose(preview_queue(5), running(("cpu-0", ()), ("cpu-2", ())), Host(cpu_slots=3), TABLE, SOON)
    assert [item.slot for item in found] == ["cpu-1"]


def test_nothing_is_placed_without_a_slot() -> None:
    assert choose(preview_queue(3), running(("cpu-0", ())), Host(cpu_slots=1), TABLE, SOON) == []
    assert choose(preview_queue(3), [], Host(cpu_slots=0), TABLE, SOON) == []


def test_of_the_queue_no_more_is_read_than_can_matter() -> None:
    queue = iter(preview_queue(5))
    assert choose(queue, running(("cpu-0", ())), Host(cpu_slots=1), TABLE, SOON) == []
    assert len(choose(queue, running(("cpu-0", ())), Host(cpu_slots=3), TABLE, SOON)) == 2
    assert [task.id for task in queue] == ["t3", "t4", "t5"]


def test_eight_gpus_run_one_gang_of_five_and_three_single_ones() -> None:
    queue = [live(n, "tpp_5gpu") for n in range(1, 6)]
    found = choose(queue, [], Host(1, cards(8)), TABLE, SOON)
    assert placed(found) == [
        ("t1", "tpp_5gpu", 5),
        ("t2", "single_80gb", 1),
        ("t3", "single_80gb", 1),
        ("t4", "single_80gb", 1),
    ]
    given = [uuid for item in found for uuid in item.gpus]
    assert len(given) == len(set(given)) == 8


def test_throughput_gives_each_task_one_gpu() -> None:
    queue = [live(n, "single_80gb") for n in range(1, 4)]
    found = choose(queue, [], Host(1, cards(8), "throughput"), TABLE, SOON)
    assert placed(found) == [(f"t{n}", "single_80gb", 1) for n in range(1, 4)]


def test_memory_that_a_stranger_holds_is_respected() -> None:
    fleet = list(cards(2))
    fleet[0] = replace(fleet[0], free_gib=10.0)
    found = choose([live(1, "single_80gb"), live(2, "single_80gb")], [], Host(1, tuple(fleet)), TABLE, SOON)
    assert [(item.task.id, item.gpus) for item in found] == [("t1", ("GPU-1",))]


def test_gpus_of_running_tasks_are_not_given_again_however_much_memory_is_free() -> None:
    found = choose([live(1, "single_80gb")], running(("gpu", ["GPU-0"])), Host(1, cards(1)), TABLE, SOON)
    assert found == []


def test_what_was_promised_is_not_lowered_further_the_task_waits() -> None:
    """Four GPUs could run it in three steps, but it was accepted with four steps for five."""
    assert choose([live(1, "tpp_5gpu_fp8_48gb")], [], Host(1, cards_48gb(4)), TABLE, SOON) == []


def test_a_task_takes_another_profile_where_that_changes_nothing() -> None:
    """It was accepted for four GPUs, in three steps; one large GPU does the same, and is idle."""
    busy = running(("gpu", ["GPU-0", "GPU-1"]))
    assert placed(choose([live(1, "tpp_4gpu")], busy, Host(1, cards(4)), TABLE, SOON)) == [("t1", "single_80gb", 1)]


def test_small_tasks_pass_a_gang_that_cannot_start_yet() -> None:
    queue = [live(1, "tpp_4gpu"), live(2, "single_fp8_48gb")]
    busy = running(("gpu", ["GPU-0", "GPU-1"]))
    assert [item.task.id for item in choose(queue, busy, Host(1, cards_48gb(4)), TABLE, SOON)] == ["t2"]


def test_an_impatient_gang_is_passed_no_more() -> None:
    queue = [live(1, "tpp_4gpu"), live(2, "single_fp8_48gb", submit_time=LATE)]
    busy = running(("gpu", ["GPU-0", "GPU-1"]))
    assert choose(queue, busy, Host(1, cards_48gb(4)), TABLE, LATE) == []
    assert placed(choose(queue, [], Host(1, cards_48gb(4)), TABLE, LATE)) == [("t1", "tpp_4gpu", 4)]


def test_an_impatient_gang_keeps_no_gpus_that_it_could_not_use() -> None:
    mixed = (*cards_48gb(4), Card("GPU-small", 40.0, 40.0, 8.9))
    queue = [live(1, "tpp_4gpu"), live(2, "single_fp8_48gb", submit_time=LATE)]
    busy = running(("gpu", ["GPU-0", "GPU-1"]))
    assert [item.gpus for item in choose(queue, busy, Host(1, mixed), TABLE, LATE)] == [("GPU-small",)]


def test_the_tightest_gpu_that_is_enough_is_taken() -> None:
    fleet = (Card("GPU-big", 141.0, 141.0, 9.0), Card("GPU-fit", 79.0, 79.0, 9.0))
    assert choose([live(1, "single_80gb")], [], Host(1, fleet), TABLE, SOON)[0].gpus == ("GPU-fit",)


GPUS = st.builds(
    lambda number, gib, part, capability: Card(f"GPU-{number}", gib * part, gib, capability),
    st.integers(0, 7),
    st.sampled_from([23.5, 47.5, 79.1]),
    st.sampled_from([1.0, 1.0, 0.5, 0.05]),
    st.sampled_from([8.0, 8.9, 9.0]),
)
FLEETS = st.lists(GPUS, max_size=8, unique_by=lambda card: card.uuid)
WISHES = st.lists(st.tuples(st.sampled_from(["704*384", "384*256"]), st.integers(1, 4), st.booleans()), max_size=8)


def admitted(fleet: list[Card], wishes: list[tuple[str, int, bool]]) -> list[Task]:
    """Return the tasks that admission would queue on this fleet."""
    queue = []
    for number, (size, steps, online) in enumerate(wishes, 1):
        params = replace(make_task().params, size=size, sample_steps=steps, enable_online_decode=online)
        fit = choose_profile(LIVE.profiles, params, Portrait(1920, 1080), [card.idle for card in fleet], "latency")
        if fit is not None:
            width, height = {"704*384": (704, 384), "688*368": (640, 384), "384*256": (384, 256)}[fit.params.size]
            plan = replace(make_task().plan, width=width, height=height)
            queue.append(live(number, fit.profile.name, params=fit.params, plan=plan))
    return queue


@given(FLEETS, WISHES, st.booleans())
def test_no_gpu_is_given_twice_and_every_gang_has_its_memory(fleet: list[Card], wishes: list, late: bool) -> None:
    found = choose(admitted(fleet, wishes), [], Host(1, tuple(fleet)), TABLE, LATE if late else SOON)
    given_out = [uuid for item in found for uuid in item.gpus]
    assert len(given_out) == len(set(given_out))
    by_uuid = {card.uuid: card for card in fleet}
    for item in found:
        assert len(item.gpus) == item.profile.gpus
        assert runs_unchanged(item.profile, item.task.params)
        for uuid in item.gpus:
            needed = (
                item.build.base_gib + item.build.gib_per_megapixel * item.task.plan.width * item.task.plan.height / 1e6
            )
            assert by_uuid[uuid].free_gib * (1 - item.build.margin) >= needed


@given(FLEETS, WISHES)
def test_no_fitting_task_waits_while_its_gpus_are_idle(fleet: list[Card], wishes: list) -> None:
    queue = admitted(fleet, wishes)
    found = choose(queue, [], Host(1, tuple(fleet)), TABLE, SOON)
    taken = {uuid for item in found for uuid in item.gpus}
    idle = [card for card in fleet if card.uuid not in taken]
    for task in queue:
        if task.id not in {item.task.id for item in found}:
            own = TABLE.profile("live_avatar", task.profile)
            assert gang(own, task.plan.width, task.plan.height, idle) is None


@given(st.integers(4, 8), st.integers(1, 30))
def test_no_gang_starves_under_a_stream_of_small_tasks(count: int, seed: int) -> None:
    """Small tasks come for ever and one GPU is freed in each round: the gang starts all the same."""
    fleet, big = cards_48gb(count), live(1, "tpp_4gpu")
    busy = {card.uuid: number for number, card in enumerate(fleet)}  # each GPU runs a small task
    for round_number in range(2 * count):
        freed = sorted(busy)[(seed + round_number) % len(busy)] if busy else None
        busy.pop(freed, None)
        small = [live(100 + round_number * 10 + n, "single_fp8_48gb", submit_time=LATE) for n in range(count)]
        now_running = running(*(("gpu", [uuid]) for uuid in busy))
        found = choose([big, *small], now_running, Host(1, fleet), TABLE, LATE)
        if any(item.task.id == "t1" for item in found):
            return
        busy |= {uuid: 0 for item in found for uuid in item.gpus}
    raise AssertionError("the gang never started")


def test_a_gpu_that_settles_is_not_given_out() -> None:
    host = Host(1, cards(2), settling=frozenset({"GPU-0"}))
    placed = choose([live(1, "single_80gb"), live(2, "single_80gb")], [], host, TABLE, NOON)
    assert [placement.gpus for placement in placed] == [("GPU-1",)]


def test_a_tenant_at_its_quota_of_running_tasks_is_passed_over_and_holds_nobody_up() -> None:
    greedy = [make_task(id=f"g{n}", seq=n, tenant="greedy") for n in range(1, 4)]
    others = [make_task(id="o", seq=4, tenant="other")]
    host = Host(cpu_slots=4, tenant_running=2)
    one_runs = [make_task(id="r", status=Status.PROCESSING, tenant="greedy", slot="cpu-0")]
    found = choose([*greedy, *others], one_runs, host, TABLE, LATE)
    assert [(item.task.id, item.slot) for item in found] == [("g1", "cpu-1"), ("o", "cpu-2")]
    gang = [live(1, "tpp_4gpu", tenant="greedy"), live(2, "single_fp8_48gb", tenant="other")]
    busy = [make_task(id=f"r{n}", status=Status.PROCESSING, tenant="greedy", slot=f"cpu-{n}") for n in range(2)]
    found = choose(gang, busy, Host(4, cards_48gb(4), tenant_running=2), TABLE, LATE)
    assert [item.task.id for item in found] == ["t2"], "GPUs were kept for a task that may not start"
