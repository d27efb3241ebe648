"""From exit status, log and file to an outcome: named cases."""

from __future__ import annotations

import pytest

from tasks.model import ErrorCode
from tasks.verdict import EXCERPT_LINES, Output, Planned, Stopped, excerpt_of, judge_exit, judge_output, redact


@pytest.mark.parametrize(
    ("status", "stopped", "log", "code", "words"),
    [
        (
            1,
            None,
            "loading\nValueError: no such voice\n",
            ErrorCode.ENGINE_FAILED,
            "status 1: ValueError: no such voice",
        ),
        (1, None, "", ErrorCode.ENGINE_FAILED, "status 1"),
        (-9, None, "", ErrorCode.ENGINE_FAILED, "SIGKILL"),
        (-11, None, "", ErrorCode.ENGINE_FAILED, "SIGSEGV"),
        (1, None, "OSError: [Errno 28] No space left on device", ErrorCode.DISK_FULL, "disk is full"),
        (
            1,
            None,
            "OSError: [Errno 27] File too large: 'out/a.mp4'",
            ErrorCode.ENGINE_FAILED,
            "of 4096 bytes (runner.l",
        ),
        (1, None, "run.sh: line 3: 77 File size limit exceeded", ErrorCode.ENGINE_FAILED, "runner.limits.file_bytes"),
        (-25, None, "", ErrorCode.ENGINE_FAILED, "runner.limits.file_bytes"),
        (153, None, "", ErrorCode.ENGINE_FAILED, "runner.limits.file_bytes"),
        (1, None, "torch.OutOfMemoryError: CUDA out of memory. Tried", ErrorCode.OOM, "out of memory"),
        (1, None, "[rank1]: DistBackendError: NCCL error\n[rank0]: CUDA out of memory", ErrorCode.OOM, "out of memory"),
        (1, None, "[rank2]: torch.distributed.DistBackendError: NCCL error in: x", ErrorCode.NCCL_ERROR, "NCCL"),
        (1, None, "RuntimeError: [Errno 98] EADDRINUSE", ErrorCode.PORT_IN_USE, "port"),
        (1, None, "FileNotFoundError: ckpt/Wan2.2-S2V-14B/Wan2.1_VAE.pth", ErrorCode.WEIGHTS_MISSING, "make doctor"),
        (
            1,
            None,
            "Merging LoRA weights from x\n[rank0]: safetensors_rust.SafetensorError: header too large",
            ErrorCode.LORA_INVALID,
            "LoRA",
        ),
        (
            1,
            None,
            "[rank0]: safetensors_rust.SafetensorError: header too large",
            ErrorCode.WEIGHTS_MISSING,
            "make doctor",
        ),
        (
            1,
            None,
            "[rank0]: AssertionError: At least 5 GPUs\nChildFailedError:\n  exit 1",
            ErrorCode.ENGINE_FAILED,
            "status 1: AssertionError: At least 5 GPUs",
        ),
        (1, None, "real cause\n============", ErrorCode.ENGINE_FAILED, "status 1: real cause"),
        (78, None, "live avatar: missing weights: ckpt/x is not there", ErrorCode.WEIGHTS_MISSING, "make doctor"),
        (1, None, "[rank0]: KeyError: '5'\n[rank0]: KeyError: '5'", ErrorCode.ENGINE_FAILED, "status 1"),
        (
            1,
            None,
            "[rank0]: ValueError: bad\n[rank1]: RuntimeError: Connection closed by peer",
            ErrorCode.ENGINE_FAILED,
            "ValueError: bad",
        ),
        (-15, Stopped.TIMED_OUT, "", ErrorCode.TIMED_OUT, "30 s"),
        (-15, Stopped.HUNG, "", ErrorCode.ENGINE_HUNG, "no sign of life for 30 s"),
        (0, Stopped.HUNG, "", ErrorCode.ENGINE_HUNG, "no sign of life"),
    ],
)
def test_a_failed_engine_gets_its_code_and_a_sentence(
    status: int, stopped: Stopped | None, log: str, code: ErrorCode, words: str
) -> None:
    failure = judge_exit(status, stopped, 30.0, log, file_bytes=4096)
    assert failure is not None
    assert failure.code is code
    assert words in failure.message
    assert "\n" not in failure.message


def test_the_excerpt_shows_the_line_that_told_the_cause() -> None:
    log = "torch.OutOfMemoryError: CUDA out of memory\n" + "\n".join(f"afterwards {n}" for n in range(100))
    assert "OutOfMemoryError" in judge_exit(1, None, 0.0, log).log_excerpt


def test_the_excerpt_shows_a_rank_s_error_and_not_only_torchrun_s_table_behind_it() -> None:
    log = "[rank2]: ValueError: bad\n" + "\n".join(f"  rank {n}" for n in range(100))
    failure = judge_exit(1, None, 0.0, log)
    assert failure is not None
    assert failure.message.endswith("status 1: ValueError: bad")
    assert "ValueError: bad" in failure.log_excerpt


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("[rank1]: RuntimeError: CUDA error: an illegal memory access", "RuntimeError: CUDA error"),
        ("[1]:\n  rank      : 3 (local_rank: 3)\n  exitcode  : -9 (pid: 7)", "SIGKILL"),
    ],
)
def test_what_the_other_ranks_say_of_nccl_is_an_echo_of_the_one_that_died(cause: str, words: str) -> None:
    echo = "[rank4]: torch.distributed.DistBackendError: NCCL error in: x, Connection closed by peer"
    for log in (f"{cause}\n{echo}", f"{echo}\n{cause}"):
        failure = judge_exit(1, None, 0.0, log)
        assert failure is not None
        assert (failure.code, words in failure.message) == (ErrorCode.ENGINE_FAILED, True), failure
    stopped = "[1]:\n  rank      : 3 (local_rank: 3)\n  exitcode  : -15 (pid: 7)"
    failure = judge_exit(1, None, 0.0, f"{echo}\n{stopped}")
    assert failure is not None
    assert failure.code is ErrorCode.NCCL_ERROR


def test_a_rank_that_was_killed_is_named_by_its_signal() -> None:
    log = "root cause\n[0]:\n  rank      : 3 (local_rank: 3)\n  exitcode  : -9 (pid: 7)\n  error_file: <N/A>\n===="
    failure = judge_exit(1, None, 0.0, log)
    assert failure is not None
    assert "process 3 of it was killed by SIGKILL (often: the machine ran out of memory)" in failure.message


def test_the_excerpt_of_a_bad_lora_ends_at_its_error_and_not_where_merging_began() -> None:
    log = "Merging LoRA weights from x\n" + "frame\n" * 30 + "[rank0]: safetensors_rust.SafetensorError: bad header\n"
    failure = judge_exit(1, None, 0.0, log)
    assert failure is not None
    assert (failure.code, "bad header" in failure.log_excerpt) == (ErrorCode.LORA_INVALID, True)


def test_exit_0_means_look() -> None:
    assert judge_exit(0, None, 0.0, "all fine") is None


@pytest.mark.parametrize(
    ("output", "planned", "words"),
    [
        (Output(0), Planned(100), "no video"),
        (Output(2), Planned(100), "2 videos"),
        (Output(1, defect="it has no audio stream"), Planned(100), "no audio stream"),
        (Output(1, frames=99), Planned(100, 15), "99 frames where 100"),
        (Output(1, frames=101), Planned(100), "101 frames where 100"),
        (Output(1, frames=116), Planned(100, 15), "116 frames where 100"),
        (Output(1, 64, 4.5), Planned(100, 0, 4.0, 0.3), "4.50 s long where 4.00 s"),
        (Output(1, 100, 3.6), Planned(100, 0, 4.0, 0.3), "3.60 s long where 4.00 s"),
    ],
)
def test_an_output_that_is_not_as_planned_is_refused(output: Output, planned: Planned, words: str) -> None:
    failure = judge_output(output, planned, log_tail="")
    assert failure is not None
    assert failure.code is ErrorCode.ENGINE_OUTPUT_INVALID
    assert words in failure.message


@pytest.mark.parametrize(
    ("output", "planned"),
    [
        (Output(1, 100), Planned(100)),
        (Output(1, 100), Planned(100, 15)),
        (Output(1, 115), Planned(100, 15)),
        (Output(1, 64, 4.0), Planned(100, 0, 4.0, 0.3)),
        (Output(1, 68, 4.25), Planned(100, 0, 4.0, 0.3)),
    ],
)
def test_the_planned_frames_or_length_and_an_allowed_overshoot_pass(output: Output, planned: Planned) -> None:
    assert judge_output(output, planned, "") is None


@pytest.mark.parametrize(
    ("log", "code", "words"),
    [
        ("INFO: save_video failed, error: [Errno 28] No space left on device", ErrorCode.DISK_FULL, "free some space"),
        ("ERROR: merge_video_audio failed with error: no 'ffmpeg'", ErrorCode.ENGINE_OUTPUT_INVALID, "ffmpeg"),
        (
            "INFO: save_video failed, error: [Errno 27] File too large",
            ErrorCode.ENGINE_OUTPUT_INVALID,
            "its limit of 9 b",
        ),
        (
            "ERROR: Command 'ffmpeg' died with <Signals.SIGXFSZ: 25>",
            ErrorCode.ENGINE_OUTPUT_INVALID,
            "its limit of 9 b",
        ),
        ("INFO: save_video failed, error: [Errno 32] Broken pipe", ErrorCode.ENGINE_OUTPUT_INVALID, "not save"),
        ("all fine", ErrorCode.ENGINE_OUTPUT_INVALID, "its log"),
    ],
)
def test_what_is_wrong_with_an_output_is_explained_by_the_log(log: str, code: ErrorCode, words: str) -> None:
    failure = judge_output(Output(0), Planned(100), f"{log}\n" + "more\n" * 100, file_bytes=9)
    assert failure is not None
    assert (failure.code, words in failure.message) == (code, True), failure.message
    assert (log in failure.log_excerpt) == (log != "all fine")


def test_an_excerpt_is_the_last_lines_without_control_characters() -> None:
    log = "\n".join(f"line {n}" for n in range(100)) + "\r\x1b[31mred\x1b[0m \x07bell\n\n"
    lines = excerpt_of(log).splitlines()
    assert len(lines) == EXCERPT_LINES
    assert lines[-1] == "red bell"
    assert max(map(len, excerpt_of("x" * 5000).splitlines())) <= 300


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("open /srv/tasks/t/in.wav and '/opt/a b/c.pth'", "open …/in.wav and '…/a b/c.pth'"),
        ("FileNotFoundError: /opt/secret/LiveAvatar/ckpt.pth", "FileNotFoundError: …/ckpt.pth"),
        ('File "/usr/lib/python3/x.py", line 3', 'File "…/x.py", line 3'),
        ("see https://example.com/a/b for 1/2 of it", "see https://example.com/a/b for 1/2 of it"),
        ("ckpt/Wan2.2/config.json", "ckpt/Wan2.2/config.json"),
    ],
)
def test_no_folder_of_the_server_is_shown(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_a_full_disk_is_seen_although_its_message_could_not_be_written() -> None:
    failure = judge_exit(1, None, 0.0, "", disk_full=True)
    assert failure is not None
    assert failure.code is ErrorCode.DISK_FULL


def test_a_file_past_its_limit_is_no_full_disk_and_no_setting_is_blamed_that_sets_none() -> None:
    failure = judge_exit(-25, None, 0.0, "", disk_full=True, file_bytes=0)
    assert failure is not None
    assert failure.code is ErrorCode.ENGINE_FAILED
    assert "as many bytes as the service may write" in failure.message
