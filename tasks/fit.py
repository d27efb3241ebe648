"""Whether a request fits a profile and a set of GPUs, and what of it must be lowered. Pure.

A request is adapted to a profile once, when it is accepted, and the client is told; later it may run on any profile
that needs no further change. Memory is in GiB (2^30 bytes), as NVML's bytes divided by 2^30.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tasks.model import Adjustment, Params
from tasks.profile import Build, Profile
from utils.plan import SIZES, VideoPlan, fit_size


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as placement sees it: memory that is free now, memory in all, and `capability` as in "8.9"."""

    uuid: str
    free_gib: float
    total_gib: float
    capability: float

    @property
    def idle(self) -> Card:
        """The same card with nothing on it."""
        return replace(self, free_gib=self.total_gib)


@dataclass(frozen=True, slots=True)
class Portrait:
    """The image of a request, in pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Fit:
    """A request as a profile would run it: on these cards, by this build, with these adjustments."""

    profile: Profile
    build: Build | None
    cards: tuple[Card, ...]
    params: Params
    adjustments: tuple[Adjustment, ...]


def needed_gib(build: Build, width: int, height: int) -> float:
    """Return the memory that each GPU must have for a video of `width` x `height` pixels, margin not counted."""
    return build.base_gib + build.gib_per_megapixel * width * height / 1e6


def build_for(profile: Profile, capability: float) -> Build | None:
    """Return the first build that GPUs of `capability` can run."""
    return next((build for build in profile.builds if capability >= build.capability), None)


def adapt(profile: Profile, params: Params) -> tuple[Params, tuple[Adjustment, ...]]:
    """Return the request as the profile must have it, whatever the memory, and what was changed."""
    changes: list[Adjustment] = []
    steps = profile.steps or min(params.sample_steps, profile.max_steps or params.sample_steps)
    if steps != params.sample_steps:
        reason = profile.steps_reason if profile.steps else f"{profile.name} runs at most {profile.max_steps} steps"
        changes.append(Adjustment("sample_steps", params.sample_steps, steps, reason))
    online = params.enable_online_decode and profile.online_decode
    if online != params.enable_online_decode:
        reason = f"{profile.name} decodes while it generates"
        changes.append(Adjustment("enable_online_decode", True, False, reason))
    return replace(params, sample_steps=steps, enable_online_decode=online), tuple(changes)


def fits(profile: Profile, params: Params, portrait: Portrait, cards: Sequence[Card]) -> Fit | None:
    """Return how the request runs on `profile.gpus` of `cards`, at the largest size that fits; None when none does.

    Only to sizes that the profile names is the request lowered.
    """
    adapted, changes = adapt(profile, params)
    if profile.gpus == 0:
        return Fit(profile, None, (), adapted, changes)
    for size in _sizes(profile, adapted.size):
        found = gang(profile, *_pixels(size, portrait), cards)
        if found is not None:
            build, members = found
            told = changes if size == adapted.size else (*changes, _smaller(profile, adapted.size, size))
            return Fit(profile, build, members, replace(adapted, size=size), told)
    return None


def _sizes(profile: Profile, wanted: str) -> list[str]:
    """Return the wanted size, or the profile's largest where that is more than it runs, and what it may fall to."""
    first = profile.max_size if profile.max_size and SIZES[wanted] > SIZES[profile.max_size] else wanted
    return [first, *(size for size in profile.fall_to if SIZES[size] < SIZES[first])]


def able(profile: Profile, build: Build, width: int, height: int, cards: Sequence[Card]) -> list[Card]:
    """Return those of `cards` that can hold their share of a video of `width` x `height` pixels, the tightest first."""
    needed = needed_gib(build, width, height)
    found = [
        card
        for card in cards
        if build_for(profile, card.capability) is build and card.free_gib * (1 - build.margin) >= needed
    ]
    return sorted(found, key=lambda card: (card.free_gib, card.uuid))


def gang(profile: Profile, width: int, height: int, cards: Sequence[Card]) -> tuple[Build, tuple[Card, ...]] | None:
    """Return a build, in the table's order, and the cards that run it together; None where too few can.

    Those cards are taken that have the least memory that is enough, so that larger ones stay for those who need them.
    """
    for build in profile.builds:
        members = able(profile, build, width, height, cards)
        if len(members) >= profile.gpus:
            return build, tuple(members[: profile.gpus])
    return None


def _pixels(size: str, portrait: Portrait) -> tuple[int, int]:
    height, width = fit_size(SIZES[size], portrait.height, portrait.width)
    return width, height


def runs_unchanged(profile: Profile, params: Params) -> bool:
    """Say whether the profile takes the request as it is."""
    return not adapt(profile, params)[1] and _sizes(profile, params.size)[0] == params.size


def _smaller(profile: Profile, wanted: str, size: str) -> Adjustment:
    return Adjustment("size", wanted, size, f"{profile.name} has no memory for more")


def choose_profile(
    profiles: Sequence[Profile], params: Params, portrait: Portrait, cards: Sequence[Card], policy: str
) -> Fit | None:
    """Return the first of `profiles` that could run the request on these cards, all of them idle.

    `policy` "latency" is the table's order; "throughput" prefers fewer GPUs for one task.
    """
    found = (fits(profile, params, portrait, cards) for profile in in_order(profiles, policy))
    return next((fit for fit in found if fit is not None), None)


def in_order(profiles: Sequence[Profile], policy: str) -> list[Profile]:
    """Return the profiles in the order of preference of a policy."""
    return sorted(profiles, key=lambda profile: profile.gpus) if policy == "throughput" else list(profiles)


def what_would_fit(profiles: Sequence[Profile], portrait: Portrait, size: str) -> str:
    """Return in words what hardware each profile needs for a request."""
    return "; ".join(_words(profile, portrait, size) for profile in profiles)


def _words(profile: Profile, portrait: Portrait, size: str) -> str:
    if profile.gpus == 0:
        return f"{profile.name}: a CPU slot"
    smallest = _sizes(profile, size)[-1]
    width, height = _pixels(smallest, portrait)
    wants = []
    for build in profile.builds:
        free = needed_gib(build, width, height) / (1 - build.margin)
        newer = f" of compute capability {build.capability:g} or newer" if build.capability else ""
        wants.append(f"{free:.0f} GiB free{newer}")
    count = f"{profile.gpus} GPUs, each with" if profile.gpus > 1 else "1 GPU with"
    return f"{profile.name}: {count} {' or '.join(wants)}"


def plan_at(plan: VideoPlan, size: str, portrait: Portrait) -> VideoPlan:
    """Return the plan at another size; its length does not depend on it."""
    width, height = _pixels(size, portrait)
    return replace(plan, width=width, height=height)
