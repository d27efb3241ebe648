"""How long a task takes, and how far it is. Pure.

A task's work is `load + pixels/PIXELS * factor * (frames * seconds_per_frame + clips * steps * seconds_per_clip_step)`:
loading does not depend on the size, denoising is linear in clips and steps, decoding and drawing in frames, all of them
in pixels. The coefficients start as the engine table's guesses; each finished task corrects `load` and `factor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tasks.model import Phase
from tasks.profile import Estimate, Profile
from utils.plan import VideoPlan

PIXELS = 704 * 384
"""The picture, in pixels, for which the table's rates hold."""

_WEIGHT = 0.3
"""How much a finished task outweighs what was known, once three have finished."""

_SURE_SECONDS = 1.0
"""Guessed seconds of generating from which on a task's rate counts fully: of a shorter one, most is fixed cost."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one finished task teaches: seconds to its first frame, actual over guessed rate, and the guess in seconds.

    `first_load` is what was expected before any task had finished.
    """

    profile: str
    load_seconds: float
    rate_factor: float
    guess: float
    first_load: float


@dataclass(frozen=True, slots=True)
class Learned:
    """What finished tasks taught about a profile: seconds until the first frame, and actual over guessed rate."""

    profile: str
    samples: int
    load_seconds: float
    rate_factor: float

    @staticmethod
    def nothing(lesson: Lesson) -> Learned:
        return Learned(lesson.profile, 0, lesson.first_load, 1.0)

    def after(self, lesson: Lesson) -> Learned:
        """Return what is known after one more task: at first the mean of all, then the newer ones count more."""
        weight = max(_WEIGHT, 1 / (self.samples + 1))
        sure = min(1.0, lesson.guess / _SURE_SECONDS) ** 2
        return replace(
            self,
            samples=self.samples + 1,
            load_seconds=self.load_seconds + weight * (lesson.load_seconds - self.load_seconds),
            rate_factor=self.rate_factor + weight * sure * (lesson.rate_factor - self.rate_factor),
        )


@dataclass(frozen=True, slots=True)
class Work:
    """Expected seconds of one task: before the first frame, and from it to the end."""

    load: float
    generate: float

    @property
    def total(self) -> float:
        return self.load + self.generate


def expected_work(estimate: Estimate, learned: Learned | None, plan: VideoPlan, steps: int) -> Work:
    """Return the expected work in seconds of making `plan` in `steps` denoising steps."""
    generate = _guess(estimate, plan, steps)
    if learned is None:
        return Work(estimate.load_seconds, generate)
    return Work(learned.load_seconds, generate * learned.rate_factor)


def lesson(profile: str, estimate: Estimate, plan: VideoPlan, steps: int, load: float, generate: float) -> Lesson:
    """Return what a task teaches that took `load` seconds to its first frame and `generate` seconds from there."""
    guess = _guess(estimate, plan, steps)
    return Lesson(profile, load, generate / guess if guess > 0 else 1.0, guess, estimate.load_seconds)


def _guess(estimate: Estimate, plan: VideoPlan, steps: int) -> float:
    share = plan.width * plan.height / PIXELS
    return share * (plan.frames * estimate.seconds_per_frame + plan.clips * steps * estimate.seconds_per_clip_step)


@dataclass(frozen=True, slots=True)
class Pace:
    """Where an attempt stands: `progress` 0 to 1 of the whole task, and the seconds that are left."""

    progress: float
    eta_seconds: float


_PUBLISHING = 0.02
"""The share of the whole that verifying and publishing gets, so that a bar never waits at 100 %."""


def pace(work: Work, phase: Phase, fraction: float, elapsed: float, in_phase: float) -> Pace:
    """Return the pace of an attempt that is `fraction` (0 to 1) through `phase`.

    `elapsed` and `in_phase` are seconds since the attempt and the phase began. While frames come, the seen rate takes
    over from the guess in proportion to what is done. A share of the bar belongs to loading as it does of the time.
    """
    fraction = min(max(fraction, 0.0), 1.0)
    loading = work.load / work.total if work.total > 0 else 0.0
    if phase in (Phase.QUEUED, Phase.PREPARING, Phase.LOADING_MODEL):
        part = max(fraction, min(0.95, elapsed / work.load)) if work.load > 0 else fraction
        return Pace(loading * part * (1 - _PUBLISHING), max(0.0, work.load - elapsed) + work.generate)
    if phase is Phase.GENERATING:
        guessed = work.generate * (1 - fraction)
        seen = in_phase / fraction * (1 - fraction) if fraction > 0 else guessed
        left = fraction * seen + (1 - fraction) * guessed
        return Pace((loading + (1 - loading) * fraction) * (1 - _PUBLISHING), left)
    return Pace(1 - _PUBLISHING + _PUBLISHING * fraction * 0.9, _PUBLISHING * work.generate * (1 - fraction))


def queue_wait(backlog: Sequence[tuple[Profile, float]], mine: Profile, cpu_slots: int, gpus: int) -> float:
    """Return the expected seconds until a task of profile `mine` starts, after `backlog`: seconds of work by profile.

    Tasks on the CPU wait for one another's slots only, and those on GPUs for GPUs, of which each holds as many as its
    profile says: work divided by what there is. Which tasks will really run side by side is not foreseen.
    """
    kind = [(profile, seconds) for profile, seconds in backlog if bool(profile.gpus) == bool(mine.gpus)]
    if mine.gpus == 0:
        return sum(seconds for _, seconds in kind) / max(cpu_slots, 1)
    return sum(profile.gpus * seconds for profile, seconds in kind) / max(gpus, mine.gpus)
