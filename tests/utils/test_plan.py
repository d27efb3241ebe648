"""Live Avatar's arithmetic, against what its own code gave."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from utils.plan import SIZES, clips_in_audio, fit_size, plan_video

WIDE, TALL, SQUARE = (1080, 1920), (1920, 1080), (1000, 1000)


@pytest.mark.parametrize(
    ("size", "image", "width", "height"),
    [
        ("720*400", WIDE, 704, 384), ("720*400", TALL, 384, 704), ("720*400", SQUARE, 512, 512),
        ("704*384", WIDE, 704, 384), ("704*384", TALL, 384, 704), ("704*384", SQUARE, 512, 512),
        ("688*368", WIDE, 640, 384), ("688*368", TALL, 384, 640), ("688*368", SQUARE, 448, 448),
        ("384*256", WIDE, 384, 256), ("384*256", TALL, 256, 384), ("384*256", SQUARE, 256, 256),
        ("688*368", (772, 828), 512, 448), ("704*384", (100, 100), 128, 128),
    ],
)  # fmt: skip
def test_the_output_size_is_live_avatar_s(size: str, image: tuple[int, int], width: int, height: int) -> None:
    assert fit_size(SIZES[size], *image) == (height, width)


@pytest.mark.parametrize(("seconds", "clips"), [(11.6, 7), (0.2, 1), (1.92, 1), (2.0, 2), (60.0, 32)])
def test_the_clips_are_those_that_hold_the_recording_s_end(seconds: float, clips: int) -> None:
    assert clips_in_audio(seconds) == clips


@pytest.mark.parametrize(
    ("seconds", "num_clip", "clips", "frames"),
    [(11.6, 50, 7, 290), (11.6, 2, 2, 93), (0.2, 50, 1, 5), (0.28, 50, 1, 7), (1.92, 50, 1, 45), (1.0, 1, 1, 25)],
)
def test_frames_are_cut_to_the_recording_or_to_the_clips(
    seconds: float, num_clip: int, clips: int, frames: int
) -> None:
    plan = plan_video(size="688*368", num_clip=num_clip, image_width=1920, image_height=1080, audio_seconds=seconds)
    assert (plan.clips, plan.frames, plan.video_seconds) == (clips, frames, frames / 25)


@given(st.sampled_from(list(SIZES)), st.integers(64, 8192), st.integers(64, 8192))
def test_every_accepted_image_gets_a_size_within_the_area(size: str, width: int, height: int) -> None:
    assume(max(width, height) <= 4 * min(width, height))
    fitted_height, fitted_width = fit_size(SIZES[size], height, width)
    assert fitted_height * fitted_width <= SIZES[size]
    assert fitted_height % 64 == fitted_width % 64 == 0
    assert min(fitted_height, fitted_width) >= 64


@given(st.floats(0.2, 20_000), st.integers(1, 10_000))
def test_a_video_never_outlasts_its_recording_by_a_frame(seconds: float, num_clip: int) -> None:
    plan = plan_video(size="384*256", num_clip=num_clip, image_width=640, image_height=480, audio_seconds=seconds)
    assert 1 <= plan.frames <= plan.clips * 48 - 3
    assert plan.video_seconds <= seconds + 1e-6


def test_an_unknown_size_and_too_short_a_recording_are_refused() -> None:
    with pytest.raises(ValueError, match="size"):
        plan_video(size="1280*720", num_clip=1, image_width=64, image_height=64, audio_seconds=1.0)
    with pytest.raises(ValueError, match="shorter"):
        clips_in_audio(0.01)
