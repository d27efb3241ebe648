"""Lips follow the voice, by the metric that reads the finished file alone (sync_metric.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from tests.engines.conftest import PORTRAIT, Run, make, speech, write_wav
from tests.engines.sync_metric import Curve, correlate, frames, lip_openings, measure, voice_levels

MIN_R, MAX_LAG, MIN_MARGIN = 0.70, 1, 0.3


@pytest.fixture(scope="module")
def sample_lips(sample_run: Run) -> Curve:
    return lip_openings(frames(sample_run.video))


def test_the_shipped_portrait_speaks_in_sync(sample_run: Run, sample_lips: Curve) -> None:
    sync = correlate(sample_lips, voice_levels(sample_run.video))
    assert sync.r >= 0.75
    assert abs(sync.lag) <= MAX_LAG
    assert sync.r - sync.control >= MIN_MARGIN


def test_the_metric_tells_a_wrong_voice_and_a_late_one(sample_run: Run, sample_lips: Curve) -> None:
    """Without this, a metric that always says yes would pass every portrait."""
    voice = voice_levels(sample_run.video)
    assert correlate(sample_lips, voice[::-1]).r < 0.35
    assert correlate(sample_lips, np.roll(voice, 6)).r < 0.5
    assert abs(correlate(sample_lips, np.roll(voice, -5)).lag) == 5


@pytest.mark.parametrize("name", ["boy", "fashion_blogger", "livestream_2"])
def test_real_portraits_speak_in_sync(trial_png: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    audio = write_wav(tmp_path / "voice.wav", *speech(8, start=2))
    sync = measure(make(tmp_path, trial_png(name), audio, size="704*384"))
    assert sync.r >= MIN_R
    assert abs(sync.lag) <= MAX_LAG
    assert sync.r - sync.control >= MIN_MARGIN


def test_a_portrait_without_a_findable_face_still_gives_a_video(
    engine: Callable[..., Run], trial_png: Callable[[str], Path], tmp_path: Path
) -> None:
    audio = write_wav(tmp_path / "voice.wav", *speech(1.6))
    run = engine(trial_png("dwarven_blacksmith"), audio)
    assert run.code == 0, run.err
    assert [note["code"] for note in run.said("note")] == ["no_face"]
    with av.open(str(run.video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 40


def test_silence_keeps_the_lips_shut(tmp_path: Path) -> None:
    audio = write_wav(tmp_path / "silence.wav", np.zeros(32_000), 16_000)
    lips = lip_openings(frames(make(tmp_path, PORTRAIT, audio, size="704*384")))
    assert len(lips) == 50
    # In speech this portrait's lips go from 0.0023 to 0.0131.
    assert lips.max() < 0.0035
    assert np.ptp(lips) < 0.0012
