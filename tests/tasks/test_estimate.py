"""Estimates and progress: formulas by named cases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.estimate import Learned, Lesson, Work, expected_work, lesson, pace, queue_wait
from tasks.model import Phase
from tasks.profile import Build, Estimate, Profile
from utils.plan import VideoPlan

PLAN = VideoPlan(clips=4, frames=100, width=704, height=384)
RATES = Estimate(load_seconds=2.0, seconds_per_frame=0.1, seconds_per_clip_step=1.0)


def test_work_is_loading_plus_frames_plus_clips_times_steps() -> None:
    work = expected_work(RATES, None, PLAN, steps=3)
    assert (work.load, work.generate) == (2.0, pytest.approx(100 * 0.1 + 4 * 3 * 1.0))


def test_work_scales_with_pixels_but_loading_does_not() -> None:
    half = VideoPlan(clips=4, frames=100, width=352, height=384)
    work = expected_work(RATES, None, half, steps=3)
    assert (work.load, work.generate) == (2.0, pytest.approx(11.0))


def learn(*lessons: Lesson) -> Learned:
    known = Learned.nothing(lessons[0])
    for taught in lessons:
        known = known.after(taught)
    return known


def test_a_lesson_turns_the_next_estimate_towards_what_was_seen() -> None:
    once = learn(lesson("p", RATES, PLAN, 3, load=4.0, generate=44.0))
    assert (once.samples, once.load_seconds, once.rate_factor) == (1, 4.0, pytest.approx(2.0))
    assert expected_work(RATES, once, PLAN, 3).generate == pytest.approx(44.0)
    twice = once.after(lesson("p", RATES, PLAN, 3, load=4.0, generate=22.0))
    assert (twice.samples, twice.rate_factor) == (2, pytest.approx(1.5))


def test_many_lessons_converge_on_the_truth() -> None:
    known = Learned("p", 1, 10.0, 5.0)
    for _ in range(20):
        known = known.after(Lesson("p", 2.0, 1.0, guess=60.0, first_load=1.0))
    assert known.load_seconds == pytest.approx(2.0, rel=0.01)
    assert known.rate_factor == pytest.approx(1.0, rel=0.01)


def test_tiny_tasks_whose_time_is_all_fixed_cost_do_not_spoil_the_rate() -> None:
    good = learn(lesson("p", RATES, PLAN, 3, load=2.0, generate=22.0))
    tiny = VideoPlan(clips=1, frames=5, width=64, height=64)
    for _ in range(10):
        good = good.after(lesson("p", RATES, tiny, 1, load=2.0, generate=1.0))
    assert good.rate_factor == pytest.approx(1.0, rel=0.5)


def test_a_profile_without_rates_teaches_no_infinite_factor() -> None:
    assert lesson("p", Estimate(), PLAN, 4, load=1.0, generate=3.0).rate_factor == 1.0


WORK = Work(load=10.0, generate=90.0)


@pytest.mark.parametrize(
    ("phase", "fraction", "elapsed", "in_phase", "progress", "eta"),
    [
        (Phase.PREPARING, 0.0, 0.0, 0.0, 0.0, 100.0),
        (Phase.LOADING_MODEL, 0.5, 5.0, 5.0, 0.049, 95.0),
        (Phase.GENERATING, 0.0, 10.0, 0.0, 0.098, 90.0),
        (Phase.GENERATING, 0.5, 55.0, 45.0, 0.539, 45.0),
        # Twice as slow as guessed: at the half, half of the correction is believed.
        (Phase.GENERATING, 0.5, 100.0, 90.0, 0.539, 67.5),
        (Phase.ENCODING, 1.0, 100.0, 1.0, 0.998, 0.0),
    ],
)
def test_pace(phase: Phase, fraction: float, elapsed: float, in_phase: float, progress: float, eta: float) -> None:
    at = pace(WORK, phase, fraction, elapsed, in_phase)
    assert at.progress == pytest.approx(progress, abs=1e-3)
    assert at.eta_seconds == pytest.approx(eta, abs=1e-6)


@given(
    st.floats(0, 1e4), st.floats(0, 1e4), st.sampled_from(Phase), st.floats(-1, 2), st.floats(0, 1e5), st.floats(0, 1e5)
)
def test_pace_stays_in_range(
    load: float, gen: float, phase: Phase, fraction: float, elapsed: float, in_phase: float
) -> None:
    at = pace(Work(load, gen), phase, fraction, elapsed, in_phase)
    assert 0.0 <= at.progress <= 1.0
    assert at.eta_seconds >= 0.0


CPU = Profile(name="cpu", script="x")
SINGLE = Profile(name="single", script="x", gpus=1, builds=(Build(base_gib=1.0),))
GANG = Profile(name="gang", script="x", gpus=5, builds=(Build(base_gib=1.0),))


def test_tasks_of_the_cpu_wait_for_one_anothers_slots_only() -> None:
    backlog = [(CPU, 60.0), (GANG, 1000.0)]
    assert queue_wait(backlog, CPU, cpu_slots=3, gpus=8) == 20.0
    assert queue_wait(backlog, CPU, cpu_slots=0, gpus=8) == 60.0


def test_tasks_on_gpus_share_the_gpus_each_by_what_it_holds() -> None:
    backlog = [(CPU, 60.0), (SINGLE, 80.0), (GANG, 16.0)]
    assert queue_wait(backlog, SINGLE, cpu_slots=1, gpus=8) == (80.0 + 5 * 16.0) / 8
    assert queue_wait(backlog, GANG, cpu_slots=1, gpus=0) == (80.0 + 5 * 16.0) / 5
