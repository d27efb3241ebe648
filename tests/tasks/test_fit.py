"""Requests on hardware: Live Avatar's arithmetic, the shipped table's choices, and what is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from config_loader import load_engines, load_settings
from tasks.fit import Card, Fit, Portrait, adapt, choose_profile, needed_gib, what_would_fit
from tasks.model import Params
from tests.conftest import make_task

LIVE = load_engines(load_settings()).engine("live_avatar")
WIDE = Portrait(1920, 1080)
GIB = 2**30


def params(size: str = "704*384", steps: int = 4, online: bool = False) -> Params:
    return replace(make_task().params, size=size, sample_steps=steps, enable_online_decode=online)


def fleet(count: int, gib: float, capability: float) -> list[Card]:
    return [Card(f"GPU-{n}", gib, gib, capability) for n in range(count)]


def chosen(count: int, gib: float, capability: float, policy: str = "latency", **wish: object) -> Fit | None:
    return choose_profile(LIVE.profiles, params(**wish), WIDE, fleet(count, gib, capability), policy)


def cache_bytes(width: int, height: int) -> float:
    """The key-value cache of one denoising step: 40 layers, two tensors, 5120 channels of bf16."""
    return 40 * 2 * (width * height / 256 * 48 / 4) * 5120 * 2


def row(name: str) -> tuple:
    return next(profile for profile in LIVE.profiles if profile.name == name).builds


@pytest.mark.parametrize(("width", "height"), [(704, 384), (640, 384), (384, 256)])
def test_the_table_s_memory_is_live_avatar_s_arithmetic(width: int, height: int) -> None:
    step = cache_bytes(width, height) / GIB
    bf16, fp8, t5 = 33e9 / GIB, 17e9 / GIB, 11e9 / GIB
    alone, gang = 2.3e9 / GIB, 2.5e9 / GIB  # conditions and buffers

    def needed(profile: str, build: int) -> float:
        return needed_gib(row(profile)[build], width, height)

    assert needed("single_80gb", 0) == pytest.approx(bf16 / 2 + alone + 4 * step, rel=0.01)
    assert needed("single_80gb", 1) == pytest.approx(bf16 + alone + 4 * step, rel=0.01)
    assert needed("tpp_5gpu", 0) == pytest.approx(bf16 + t5 + gang + step, rel=0.01)
    assert needed("tpp_5gpu_fp8_48gb", 0) == pytest.approx(fp8 + t5 + gang + step, rel=0.01)
    assert needed("tpp_4gpu", 0) == needed("tpp_5gpu_fp8_48gb", 0)
    assert needed("tpp_4gpu", 1) == needed("tpp_5gpu", 0)


def test_one_80gb_card_needs_56_gib_in_fp8_and_72_in_bf16() -> None:
    fp8, bf16 = row("single_80gb")
    assert needed_gib(fp8, 704, 384) == pytest.approx(56, abs=0.5)
    assert needed_gib(bf16, 704, 384) == pytest.approx(72, abs=0.5)


@pytest.mark.parametrize(
    ("count", "gib", "capability", "profile", "args", "size", "steps"),
    [
        (1, 79.1, 8.0, "single_80gb", (), "704*384", 4),
        (1, 75.0, 8.0, None, (), "", 0),
        (1, 79.1, 9.0, "single_80gb", ("--fp8",), "704*384", 4),
        (1, 62.5, 8.9, "single_80gb", ("--fp8",), "704*384", 4),
        (1, 60.0, 9.0, "single_fp8_60gb", ("--fp8",), "688*368", 4),
        (1, 47.5, 8.9, "single_fp8_48gb", ("--fp8", "--offload_kv_cache"), "384*256", 3),
        (1, 44.3, 8.9, "single_fp8_48gb", ("--fp8", "--offload_kv_cache"), "384*256", 3),
        (1, 47.5, 8.6, None, (), "", 0),
        (1, 23.5, 8.9, None, (), "", 0),
        (4, 79.1, 8.0, "tpp_4gpu", (), "704*384", 3),
        (4, 44.3, 8.9, "tpp_4gpu", ("--fp8",), "704*384", 3),
        (4, 23.5, 8.9, None, (), "", 0),
        (5, 79.1, 8.0, "tpp_5gpu", (), "704*384", 4),
        (5, 44.3, 8.9, "tpp_5gpu_fp8_48gb", ("--fp8",), "704*384", 4),
        (5, 44.3, 8.6, None, (), "", 0),
        (8, 79.1, 9.0, "tpp_5gpu", (), "704*384", 4),
        (0, 0.0, 0.0, None, (), "", 0),
    ],
)
def test_the_shipped_table_on_fleets(
    count: int, gib: float, capability: float, profile: str | None, args: tuple[str, ...], size: str, steps: int
) -> None:
    fit = chosen(count, gib, capability)
    if profile is None:
        assert fit is None
        return
    assert fit is not None
    assert (fit.profile.name, fit.build.args) == (profile, args)
    assert (fit.params.size, fit.params.sample_steps) == (size, steps)
    changed = {adjustment.field for adjustment in fit.adjustments}
    assert changed == {name for name, same in (("size", size == "704*384"), ("sample_steps", steps == 4)) if not same}


def test_the_profiles_are_shipped_in_their_order_of_preference() -> None:
    names = ["tpp_5gpu", "tpp_5gpu_fp8_48gb", "tpp_4gpu", "single_80gb", "single_fp8_60gb", "single_fp8_48gb"]
    assert [profile.name for profile in LIVE.profiles] == names
    assert [profile.name for profile in LIVE.profiles if profile.experimental] == ["tpp_4gpu"]


def test_a_request_that_one_gpu_can_run_whole_is_not_lowered_for_throughput() -> None:
    assert chosen(5, 79.1, 9.0, "throughput").profile.name == "single_80gb"


def test_tpp_sets_the_steps_up_and_down_and_drops_online_decode_each_told() -> None:
    up = chosen(5, 79.1, 9.0, steps=2, online=True)
    assert [(a.field, a.before, a.after) for a in up.adjustments] == [
        ("sample_steps", 2, 4),
        ("enable_online_decode", True, False),
    ]
    down = chosen(4, 79.1, 9.0)
    assert [(a.field, a.before, a.after) for a in down.adjustments] == [("sample_steps", 4, 3)]
    assert all(adjustment.reason for adjustment in (*up.adjustments, *down.adjustments))


def test_fewer_steps_than_the_cap_are_left_alone() -> None:
    capped = next(profile for profile in LIVE.profiles if profile.name == "single_fp8_48gb")
    assert adapt(capped, params(steps=2))[1] == ()
    assert [a.after for a in adapt(capped, params(steps=4))[1]] == [3]


def test_a_small_portrait_needs_less_memory() -> None:
    small = choose_profile(LIVE.profiles, params(), Portrait(100, 100), fleet(1, 40.0, 9.0), "latency")
    assert (small.profile.name, small.params.size) == ("single_80gb", "704*384")


def test_a_mixed_fleet_forms_no_gang_of_two_builds() -> None:
    mixed = [
        *fleet(2, 79.1, 9.0),
        *(replace(card, uuid=f"old-{card.uuid}", capability=8.0) for card in fleet(2, 79.1, 8.0)),
    ]
    assert choose_profile(LIVE.profiles, params(), WIDE, mixed, "latency").profile.name == "single_80gb"


def test_what_would_fit_names_every_profile_with_its_memory() -> None:
    text = what_would_fit(LIVE.profiles, WIDE, "704*384")
    for words in (
        "tpp_5gpu: 5 GPUs, each with 59 GiB",
        "single_80gb: 1 GPU with 62 GiB free of compute capability 8.9",
        "or 76 GiB",
    ):
        assert words in text
