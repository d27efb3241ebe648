"""What a runner is told: it survives the file, and how long an engine may be silent when."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.engine_limits import EngineLimits
from tasks.model import OutputFormat, Params, Phase
from tasks.profile import Estimate, Patterns
from tasks.spec import AttemptSpec
from utils.plan import VideoPlan


def spec(folder: Path, **changes: float) -> AttemptSpec:
    params = Params(
        prompt="p", size="384*256", num_clip=4, sample_steps=4, output_format=OutputFormat.MP4, seed=1,
        enable_online_decode=False,
    )  # fmt: skip
    return AttemptSpec(
        task_id="gen_1", attempt=1, argv=["a"], folder=str(folder), results="r", slot_locks=[], lock_folder="l",
        wake="w", profile="e/p", plan=VideoPlan(4, 189, 384, 256), extra_frames=0, seconds_tolerance=0.0,
        params=params, adjusted=False, oom_sizes=[], retry_on=[],
        progress=Patterns(files=("a",), phases={Phase.ENCODING: "x"}),
        estimate=Estimate(), expected_load=10.0, expected_generate=500.0, grace_seconds=1.0, run_timeout_seconds=0.0,
        heartbeat_seconds=1.0, poll_seconds=1.0, limits=EngineLimits(2**30, 100),
        **{"silence_timeout_seconds": 60.0, "first_clip_silence_seconds": 1800.0, **changes},
    )  # fmt: skip


def test_a_spec_survives_its_file(tmp_path: Path) -> None:
    spec(tmp_path).save()
    assert AttemptSpec.load(tmp_path) == spec(tmp_path)


@pytest.mark.parametrize(
    ("phase", "fraction", "limits", "seconds"),
    [
        (Phase.PREPARING, 0.0, {}, 1800.0),
        (Phase.LOADING_MODEL, 0.9, {}, 1800.0),
        (Phase.GENERATING, 0.0, {}, 1800.0),
        (Phase.GENERATING, 0.25, {}, 1800.0),
        (Phase.GENERATING, 0.3125, {}, 60.0),
        (Phase.ENCODING, 0.0, {}, 2300.0),
        (Phase.GENERATING, 0.0, {"first_clip_silence_seconds": 0.0}, 60.0),
        (Phase.ENCODING, 0.0, {"first_clip_silence_seconds": 0.0}, 560.0),
        (Phase.GENERATING, 0.0, {"silence_timeout_seconds": 0.0}, 0.0),
        (Phase.ENCODING, 0.0, {"silence_timeout_seconds": 0.0}, 0.0),
    ],
)
def test_silence_is_borne_longer_while_networks_load_and_compile_and_the_video_is_saved(
    tmp_path: Path, phase: Phase, fraction: float, limits: dict[str, float], seconds: float
) -> None:
    assert spec(tmp_path, **limits).silence_limit(phase, fraction) == seconds
