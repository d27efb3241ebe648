"""The shared numbers: who counts where, and what stays when a worker goes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from web.tally import BOUNDS, OTHER, Open, Tally


def counted(tally: Tally) -> dict[tuple[str, str, str], int]:
    return {(method, route, status): number for method, route, status, number in tally.requests()}


def test_a_seat_keeps_what_was_counted_at_it_and_forgets_what_was_open() -> None:
    tally = Tally(["/a"], seats=2)
    first, second = tally.seat(), tally.seat()
    for seat in (first, second):
        seat.sit_down()
        seat.count("GET", "/a", 200, 0.2)
        seat.change(Open.REQUEST, 1)
    assert (tally.workers(), tally.open(Open.REQUEST)) == (2, 2)
    first.leave()
    assert (tally.workers(), tally.open(Open.REQUEST)) == (1, 1)
    again = tally.seat()
    again.sit_down()
    again.count("GET", "/a", 200, 0.3)
    assert counted(tally) == {("GET", "/a", "200"): 3}
    assert tally.workers() == 2


def test_seats_run_out_and_come_back() -> None:
    tally = Tally(["/a"], seats=2)
    taken = [tally.seat(), tally.seat()]
    assert tally.seat() is None
    taken[1].leave()
    assert tally.seat() is not None


def test_threads_lose_no_count() -> None:
    seat = Tally(["/a"], seats=1).first_seat()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(4000):
            pool.submit(seat.count, "GET", "/a", 200, 0.25)
    assert counted(seat.tally) == {("GET", "/a", "200"): 4000}
    ((method, route, durations),) = seat.tally.durations()
    assert (method, route, durations.seconds) == ("GET", "/a", 1000.0)
    assert durations.counts[BOUNDS.index(0.25)] == sum(durations.counts) == 4000, "a bound is part of what is under it"


@pytest.mark.parametrize(("seconds", "place"), [(0.0, 0), (0.005, 0), (0.0051, 1), (60.0, 12), (61.0, 13)])
def test_a_duration_falls_under_its_bound(seconds: float, place: int) -> None:
    seat = Tally(["/a"], seats=1).first_seat()
    seat.count("GET", "/a", 200, seconds)
    ((_, _, durations),) = seat.tally.durations()
    assert durations.counts.index(1) == place


def test_what_nobody_foresaw_is_folded_together() -> None:
    seat = Tally(["/a"], seats=1).first_seat()
    for method, route, status in (("BREW", "/b", 299), ("MELT", None, 799), ("GET", "/a", 200)):
        seat.count(method, route, status, None)
    assert counted(seat.tally) == {(OTHER, OTHER, OTHER): 2, ("GET", "/a", "200"): 1}
    assert list(seat.tally.durations()) == []


def test_what_goes_on_is_over_whatever_ends_it() -> None:
    seat = Tally([], seats=1).first_seat()
    with pytest.raises(KeyError), seat.during(Open.DECODER):
        assert seat.tally.open(Open.DECODER) == 1
        raise KeyError
    assert seat.tally.open(Open.DECODER) == 0
