"""Whatever goes wrong in Live Avatar, its launch scripts end as the specification of the wrapped program says."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.model import Phase
from tests.fakes.live_avatar.build import LORA
from tests.fakes.live_avatar.rig import FOUR, MULTI, RANKS, SINGLE, Rig, Run
from utils.plan import plan_video
from utils.video import VideoError, inspect_video

SCRIPTS = [SINGLE, MULTI, FOUR]
OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory."


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.sweep()


def defect(run: Run) -> str:
    try:
        facts = inspect_video(run.video)
    except (VideoError, FileNotFoundError) as error:
        return str(error)
    plan = plan_video(size="384*256", num_clip=50, image_width=160, image_height=96, audio_seconds=1.0)
    return "" if facts.frames >= plan.frames else f"{facts.frames} of {plan.frames} frames"


FALSE_SUCCESSES = {
    "missing_audio_track": ("holds 1 video and 0 audio streams", r"ERROR: merge_video_audio failed with error"),
    "truncated": ("cut off", r"INFO: save_video failed, error: .*Broken pipe"),
    "disk_full": ("cut off", r"INFO: save_video failed, error: .*No space left on device"),
    "short": ("22 of 25 frames", r"INFO: Merge completed"),
    "no_file": ("No such file", r"INFO: Finished\."),
}
"""What is wrong with the result although the exit status is 0, and what one GPU's log says of it."""


@pytest.mark.parametrize("fake", FALSE_SUCCESSES)
def test_status_0_on_one_gpu_is_no_proof_of_a_video(rig: Rig, fake: str) -> None:
    wrong, line = FALSE_SUCCESSES[fake]
    run = rig.run(SINGLE, fake=fake)
    assert run.code == 0
    assert re.search(line, run.log)
    assert wrong in defect(run)
    assert "video_temp.mp4" not in run.files


@pytest.mark.parametrize("fake", ["disk_full"])
def test_status_0_on_five_gpus_is_no_proof_of_a_video_and_only_the_merge_is_told(rig: Rig, fake: str) -> None:
    run = rig.run(MULTI, fake=fake)
    assert run.code == 0
    assert FALSE_SUCCESSES[fake][0] in defect(run)
    assert "[default4]:ERROR:root:merge_video_audio failed with error" in run.log
    assert "save_video failed" not in run.log


@pytest.mark.parametrize(
    ("fake", "cause"),
    [
        ("missing_audio_track", "FileNotFoundError: [Errno 2] No such file or directory: 'ffmpeg'"),
        ("disk_full", "OSError: [Errno 28] No space left on device"),
        ("no_file", "FileNotFoundError: [Errno 2] No such file or directory"),
    ],
)
def test_on_four_gpus_a_video_that_could_not_be_saved_is_a_failure_with_its_cause(
    rig: Rig, fake: str, cause: str
) -> None:
    run = rig.run(FOUR, fake=fake)
    assert (run.code, run.files) == (1, [])
    assert run.cause.startswith(cause)


FAILURES: dict[str, tuple[dict[str, str], dict[str, int], str]] = {
    "out of memory in a block": ({"LIVE_AVATAR_FAKE": "oom"}, {SINGLE: 0, MULTI: 2, FOUR: 2}, OUT_OF_MEMORY),
    "out of memory while loading": ({"LIVE_AVATAR_FAKE": "oom_load"}, {SINGLE: 0, FOUR: 1}, OUT_OF_MEMORY),
    "one rank dies": (
        {"LIVE_AVATAR_FAKE": "one_rank_dies"}, {MULTI: 0, FOUR: 3}, "RuntimeError: CUDA error: an illegal memory",
    ),
    "NCCL fails": (
        {"LIVE_AVATAR_FAKE": "nccl_error"}, {SINGLE: 0, FOUR: 1}, "torch.distributed.DistBackendError: NCCL",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("what", "script"), [(what, script) for what, (_, ranks, _) in FAILURES.items() for script in ranks]
)
def test_a_rank_that_fails_ends_the_job_with_1_and_its_cause_in_the_log(rig: Rig, what: str, script: str) -> None:
    variables, ranks, cause = FAILURES[what]
    rig.variables |= {"LIVE_AVATAR_FAKE_RANK": str(ranks[script])}
    run = rig.run(script, fake=variables["LIVE_AVATAR_FAKE"])
    assert run.code == 1
    assert re.search(rf"^(\[default\d\]:)?\[rank{ranks[script]}\]: {re.escape(cause)}", run.log, re.M)
    assert run.cause.startswith(cause)
    assert "ChildFailedError" in run.log
    assert run.files == []
    assert rig.left() == []


@pytest.mark.parametrize("script", [MULTI, FOUR])
def test_a_rank_that_is_killed_ends_the_job(rig: Rig, script: str) -> None:
    rig.variables["LIVE_AVATAR_FAKE_RANK"] = "1"
    run = rig.run(script, fake="rank_killed")
    assert run.code == 1
    assert "ChildFailedError" in run.log
    assert rig.left() == []


@pytest.mark.parametrize("script", [SINGLE, FOUR])
def test_a_bad_picture_is_named_by_its_error(rig: Rig, script: str) -> None:
    rig.image.write_bytes(b"no picture")
    run = rig.run(script)
    assert run.code == 1
    assert run.cause.startswith("PIL.UnidentifiedImageError: cannot identify image file")


@pytest.mark.parametrize("script", [SINGLE, FOUR])
def test_a_lora_that_is_none_is_named_by_its_error(rig: Rig, script: str) -> None:
    (rig.home / LORA).write_bytes(b"no weights")
    run = rig.run(script)
    assert run.code == 1
    assert run.cause.startswith("safetensors_rust.SafetensorError: Error while deserializing header")


@pytest.mark.parametrize("script", [SINGLE, FOUR])
def test_a_port_that_is_taken_ends_torchrun_before_the_ranks(rig: Rig, script: str) -> None:
    run = rig.run(script, fake="port_in_use")
    assert (run.code, "EADDRINUSE" in run.log) == (1, True)
    assert rig.calls() == []


def test_out_of_memory_once_is_over_in_the_next_attempt(rig: Rig) -> None:
    assert rig.run(SINGLE, fake="oom_once").code == 1
    again = rig.run(SINGLE, fake="oom_once")
    assert (again.code, again.files) == (0, ["video.mp4"])


@pytest.mark.parametrize(("script", "fake"), [*((script, "hang_block") for script in SCRIPTS), (SINGLE, "hang_load")])
def test_sigterm_ends_a_job_that_hangs_and_leaves_no_process(rig: Rig, script: str, fake: str) -> None:
    rig.variables["LIVE_AVATAR_FAKE_KILL_AFTER"] = "600"
    job = rig.start(script, fake=fake)
    job.wait_for("Creating WanModel" if fake == "hang_load" else "complete prepare conditional inputs")
    assert len(rig.left()) == 1 + RANKS[script]
    run, seconds = job.terminate()
    assert (run.code, run.files) == (1, [])
    assert seconds < 35, "the runner would have killed it"
    assert rig.left() == []


@pytest.mark.parametrize("script", [SINGLE, FOUR])
def test_ranks_that_mind_no_sigterm_are_killed_by_torchrun(rig: Rig, script: str) -> None:
    rig.variables["LIVE_AVATAR_FAKE_KILL_AFTER"] = "0.5"
    job = rig.start(script, fake="ignores_sigterm")
    job.wait_for("minds no SIGTERM", RANKS[script])
    run, seconds = job.terminate()
    assert run.code == 1
    assert 0.5 <= seconds < 30, "it took what is usual, not what it was told"
    assert rig.left() == []


@pytest.mark.parametrize("script", [SINGLE, FOUR])
def test_the_sweep_finds_ranks_that_torchrun_left_and_their_children(rig: Rig, script: str) -> None:
    job = rig.start(script, fake="grandchild,ignores_sigterm")
    job.wait_for("minds no SIGTERM", RANKS[script])
    assert job.kill().code == -signal.SIGKILL
    assert len(rig.left()) == RANKS[script] + 1
    assert rig.sweep()
    assert rig.left() == []


def test_a_grandchild_that_outlives_a_success_is_found(rig: Rig) -> None:
    assert rig.run(SINGLE, fake="grandchild").code == 0
    assert len(rig.left()) == 1
    assert rig.sweep()
    assert rig.left() == []


def test_a_grandchild_of_rank_0_does_not_keep_four_gpus_waiting(rig: Rig) -> None:
    run = rig.run(FOUR, fake="grandchild")
    assert (run.code, run.files) == (0, ["video.mp4"])
    assert len(rig.left()) == 1


@pytest.mark.parametrize("state", ["closed", "full"])
def test_four_gpus_make_their_video_though_nobody_takes_their_progress(rig: Rig, state: str) -> None:
    rig.variables["LIVE_AVATAR_FAKE_SECONDS_PER_BLOCK"] = "0.05"
    wrapper = {
        "closed": ("bash", "-c", 'exec {AVATAR_PROGRESS_FD}>&-; exec "$@"', "-"),
        "full": (
            sys.executable, "-S", "-c",
            "import os, sys, contextlib\n"
            "fd = int(os.environ['AVATAR_PROGRESS_FD']); os.set_blocking(fd, False)\n"
            "with contextlib.suppress(BlockingIOError):\n"
            "    while os.write(fd, b'x' * 4096): pass\n"
            "os.execv(sys.argv[1], sys.argv[1:])",
        ),
    }[state]  # fmt: skip
    run = rig.start(FOUR, wrapper=wrapper).wait(listen=False)
    assert (run.code, run.files) == (0, ["video.mp4"]), run.log
    assert [said for said in run.progress if said.phase is Phase.GENERATING] == []
    assert ('@progress {"phase": "generating", "done": 4, "total": 4}' in run.log) == (state != "full")
