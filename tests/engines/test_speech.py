"""The voice's curves: shut in silence and in steady noise, open in speech, the same however it is recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.preview.recording import open_recording
from engines.preview.speech import BLOCK_FRAMES, Speech, listen
from tests.engines.conftest import SPEECH, speech, write_wav

RATE = 16_000
SECONDS = np.arange(6 * RATE) / RATE
random = np.random.default_rng(3)


def heard(folder: Path, samples: NDArray[np.floating], rate: int = RATE) -> Speech:
    path = write_wav(folder / "in.wav", samples, rate)
    with open_recording(path) as recording:
        return listen(recording, int(recording.seconds * 25), 25)


STEADY = {
    "silence": np.zeros(6 * RATE),
    "hiss": 0.2 * random.standard_normal(6 * RATE),
    "faint hiss": 0.002 * random.standard_normal(6 * RATE),
    "tone": 0.5 * np.sin(2 * np.pi * 440 * SECONDS),
    "hum": 0.3 * np.sin(2 * np.pi * 200 * SECONDS) + 0.2 * np.sin(2 * np.pi * 600 * SECONDS),
    "constant": np.full(6 * RATE, 0.5),
}


@pytest.mark.parametrize("sound", STEADY)
def test_no_steady_sound_holds_the_mouth_open(tmp_path: Path, sound: str) -> None:
    curves = heard(tmp_path, STEADY[sound])
    assert curves.open[5:-5].max() < 0.12
    assert curves.open[5:-5].mean() < 0.04


def test_speech_opens_and_shuts_the_mouth(tmp_path: Path) -> None:
    curves = heard(tmp_path, *speech(10))
    assert curves.open.max() > 0.9
    assert (curves.open > 0.5).mean() > 0.15
    assert (curves.open < 0.1).mean() > 0.1
    assert curves.wide.min() < -0.1
    assert curves.wide.max() > 0.1


def test_every_curve_stays_in_its_range_and_counts_the_frames(tmp_path: Path) -> None:
    curves = heard(tmp_path, *speech(7.3))
    for curve, low in ((curves.open, 0), (curves.loud, 0), (curves.wide, -1)):
        assert curve.shape == (182,)
        assert curve.min() >= low
        assert curve.max() <= 1.001
        assert np.isfinite(curve).all()


def test_a_quiet_speaker_moves_as_much_as_a_loud_one(tmp_path: Path) -> None:
    samples, rate = speech(8)
    loud, quiet = heard(tmp_path, samples, rate), heard(tmp_path, samples * 0.15, rate)
    assert np.abs(loud.open - quiet.open).mean() < 0.05


def test_speech_over_a_fan_still_drives_the_mouth(tmp_path: Path) -> None:
    samples, rate = speech(10)
    clean = heard(tmp_path, samples, rate)
    noisy = heard(tmp_path, samples + 0.01 * random.standard_normal(len(samples)).astype(np.float32), rate)
    assert np.corrcoef(clean.open, noisy.open)[0, 1] > 0.8


def test_the_mouth_rests_in_the_pauses(tmp_path: Path) -> None:
    samples, rate = speech(4)
    curves = heard(tmp_path, np.concatenate((samples, np.zeros(2 * rate), samples)), rate)
    assert curves.open[104:146].max() < 0.1
    assert curves.open[:96].max() > 0.8


def test_the_rate_and_the_channels_of_the_recording_do_not_matter(tmp_path: Path) -> None:
    samples, rate = speech(6)
    as_recorded = heard(tmp_path, samples, rate)
    places = np.arange(6 * 48_000) / 48_000 * rate
    dense = np.interp(places, np.arange(len(samples)), samples)
    stereo = heard(tmp_path, np.stack([dense, dense], axis=1), 48_000)
    assert np.corrcoef(as_recorded.open, stereo.open)[0, 1] > 0.97


def test_the_mouth_opens_with_the_sound_not_after_it(tmp_path: Path) -> None:
    burst = 0.5 * np.sin(2 * np.pi * 300 * SECONDS) * (SECONDS % 1 > 0.5)
    curves = heard(tmp_path, burst)
    onsets = np.flatnonzero((curves.open[1:] > 0.3) & (curves.open[:-1] <= 0.3)) + 1
    assert len(onsets) == 6
    assert all(abs(onset - 25 * (index + 0.5)) <= 1.5 for index, onset in enumerate(onsets))


def test_blocks_leave_no_trace_in_the_curves() -> None:
    """A long recording is measured in blocks; the frames around their borders must not know."""
    frames = BLOCK_FRAMES + 50
    with open_recording(SPEECH) as recording:
        whole = listen(recording, frames, 25)
        border = recording.rate * BLOCK_FRAMES // 25
        assert recording.length > border
        assert np.array_equal(recording.read(border - 7, border + 7)[7:], recording.read(border, border + 7))
    assert whole.open.shape == (frames,)


def test_what_lies_outside_the_recording_is_silence() -> None:
    with open_recording(SPEECH) as recording:
        inside = recording.read(0, 10)
        assert np.array_equal(recording.read(-5, 10)[5:], inside)
        assert not recording.read(-5, 0).any()
        past = recording.read(recording.length - 3, recording.length + 4)
        assert past.shape == (7, 1)
        assert not past[3:].any()
        assert not recording.read(recording.length + 100, recording.length + 110).any()
