"""Live Avatar's launch scripts on one, four and five ranks of the stand-in: one verified video, exact progress."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.model import Phase
from tests.fakes.live_avatar.build import LORA
from tests.fakes.live_avatar.rig import FOUR, MULTI, SINGLE, Rig, Run, finished_bars, write_media
from utils.plan import plan_video
from utils.video import inspect_video

SCRIPTS = [SINGLE, MULTI, FOUR]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.sweep()


def succeeded(run: Run) -> Run:
    assert run.code == 0, run.log
    assert run.files == ["video.mp4"]
    return run


@pytest.mark.parametrize(
    ("script", "size", "width", "height", "seconds", "num_clip"),
    [
        (SINGLE, "704*384", 828, 772, 1.0, 50),
        (SINGLE, "384*256", 100, 100, 5.0, 2),
        (MULTI, "688*368", 300, 500, 1.0, 50),
        (FOUR, "720*400", 160, 90, 3.85, 50),
    ],
)
def test_the_only_file_is_a_video_of_the_planned_size_and_length(
    rig: Rig, script: str, size: str, width: int, height: int, seconds: float, num_clip: int
) -> None:
    write_media(rig.folder, seconds, width, height)
    run = succeeded(rig.run(script, size=size, num_clip=num_clip))
    plan = plan_video(
        size=size, num_clip=num_clip, image_width=width, image_height=height, audio_seconds=seconds
    )  # fmt: skip
    facts = inspect_video(run.video)
    assert (facts.width, facts.height, facts.fps) == (plan.width, plan.height, 25)
    assert (facts.video_codec, facts.audio_codec, facts.container) == ("h264", "aac", "mp4")
    assert plan.frames <= facts.frames <= plan.frames + 15


def test_the_stand_in_keeps_the_frames_that_upstream_was_seen_to_keep(rig: Rig) -> None:
    write_media(rig.folder, 11.6)
    assert inspect_video(succeeded(rig.run(SINGLE)).video).frames == 292


@pytest.mark.parametrize(("seconds", "clips"), [(1.0, 1), (3.9, 3)])
def test_every_block_ends_one_bar_in_the_log_of_one_gpu(rig: Rig, seconds: float, clips: int) -> None:
    write_media(rig.folder, seconds)
    assert finished_bars(succeeded(rig.run(SINGLE)).log) == 4 * clips


def test_every_block_ends_one_bar_in_the_file_of_rank_0_of_five(rig: Rig) -> None:
    write_media(rig.folder, 3.9)
    run = succeeded(rig.run(MULTI))
    assert finished_bars(run.rank(0)) == 4 * 3
    assert "INFO: Finished." in run.rank(0, "stdout")
    assert "[default4]:denoising video done" in run.log


@pytest.mark.parametrize(("seconds", "clips"), [(1.0, 1), (3.9, 3)])
def test_every_block_is_one_line_of_progress_on_four_gpus(rig: Rig, seconds: float, clips: int) -> None:
    write_media(rig.folder, seconds)
    told = succeeded(rig.run(FOUR)).progress
    phases = [said.phase for said in told]
    assert phases == [Phase.LOADING_MODEL, *[Phase.GENERATING] * (1 + 4 * clips), Phase.ENCODING]
    fractions = [said.fraction for said in told if said.phase is Phase.GENERATING]
    assert fractions == pytest.approx([block / (4 * clips) for block in range(4 * clips + 1)])


def test_bars_of_four_gpus_do_not_reach_the_log(rig: Rig) -> None:
    run = succeeded(rig.run(FOUR))
    assert "[default3]:INFO:root:Merge completed" in run.log
    assert [line for line in run.log.splitlines() if "%|" in line and "checkpoint shards" not in line] == []


def test_no_rank_of_four_is_left_and_none_would_have_given_up_waiting(rig: Rig) -> None:
    succeeded(rig.run(FOUR))
    assert rig.left() == []
    assert [call["timeout_seconds"] for call in rig.calls("init_process_group")] == [7 * 24 * 3600] * 4


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_checkout_that_may_not_be_written_is_enough(rig: Rig, script: str) -> None:
    folders = [rig.home, *(path for path in rig.home.rglob("*") if path.is_dir() and not path.is_symlink())]
    before = sorted(rig.home.rglob("*"))
    for folder in folders:
        folder.chmod(0o555)
    # Root may write everywhere, unless it is without its privileges.
    wrapper = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
    run = rig.run(script, wrapper=wrapper)
    for folder in folders:
        folder.chmod(0o755)
    succeeded(run)
    assert sorted(rig.home.rglob("*")) == before


def test_two_jobs_at_once_do_not_collide(rig: Rig) -> None:
    jobs = [rig.start(script) for script in (FOUR, MULTI)]
    for job in jobs:
        succeeded(job.wait())


def test_an_old_file_is_not_taken_for_the_new_one(rig: Rig) -> None:
    old = rig.folder / "attempts" / "1" / "out"
    job = rig.start(SINGLE, fake="no_file", output_dir=old.parent.parent / "shared")
    assert job.wait().code == 0
    (rig.folder / "attempts" / "shared" / "video.mp4").write_bytes(b"old")
    (rig.folder / "attempts" / "shared" / "video_temp.mp4").write_bytes(b"older")
    rig.start(SINGLE, fake="no_file", output_dir=old.parent.parent / "shared").wait()
    assert list((rig.folder / "attempts" / "shared").iterdir()) == []


def test_relative_paths_are_taken_from_the_working_folder(rig: Rig) -> None:
    run = succeeded(rig.run(SINGLE, image="../../image.png", audio="../../audio.wav", output_dir="out"))
    assert inspect_video(run.video).frames == 27


@pytest.mark.parametrize("value", ["/elsewhere/my lora.safetensors", "named.safetensors"])
def test_another_lora_is_passed_as_a_file(rig: Rig, value: str) -> None:
    path = rig.folder / value.lstrip("/") if value.startswith("/") else rig.home / value
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((rig.home / LORA).read_bytes())
    rig.variables["LIVE_AVATAR_LORA"] = str(path) if value.startswith("/") else value
    succeeded(rig.run(SINGLE))
    assert f"--lora_path_dmd={path}" in rig.calls()[0]["argv"]
