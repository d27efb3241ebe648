"""Real runners around stand-in engines: what ends how, and that nothing is left behind."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import sys
import threading
import time
import wave
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from task_manager import TaskGone, TaskManager
from tasks import slot
from tasks.attempt import Attempt
from tasks.model import ErrorCode, Event, OutputFormat, Phase, Status, Task
from tasks.scheduler import look_at_office, why_not_scheduled
from tasks.spec import AttemptSpec
from tasks.submission import PreparedInput
from tasks.wake import ring
from tests.conftest import PATIENCE, ROOT
from tests.tasks.conftest import FRAMES, Bench, is_gone, wait_until, write_video
from utils.media import AudioFacts, ImageFacts
from utils.process import is_locked, try_lock


def test_a_video_as_planned_is_published_whole(bench: Bench) -> None:
    manager = bench.open()
    task = bench.ended(manager, bench.submit(manager))
    assert task.status is Status.COMPLETED, task.failure
    video = task.result.video
    assert (video.frames, video.video_codec, video.audio_codec, task.progress) == (FRAMES, "h264", "aac", 1.0)
    assert manager.result_file(task, "video.mp4").stat().st_size == video.size_bytes
    assert manager.result_file(task, "poster.jpg").read_bytes()[:3] == b"\xff\xd8\xff"
    head = manager.result_file(task, "video.mp4").read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")
    assert len(bench.starts_of(task)) == 1


def test_an_engine_that_only_makes_mp4_still_delivers_webm(bench: Bench) -> None:
    manager = bench.open()
    task = bench.ended(manager, bench.submit(manager, output_format=OutputFormat.WEBM))
    assert task.status is Status.COMPLETED, task.failure
    assert (task.result.video.video_codec, task.result.video.audio_codec) == ("vp9", "opus")
    assert task.result.video.frames == FRAMES
    assert task.result.video_name == "video.webm"


@pytest.mark.parametrize(
    ("behaviour", "code", "words"),
    [
        ("fail", ErrorCode.ENGINE_FAILED, "status 3: RuntimeError: no such file"),
        ("nothing", ErrorCode.ENGINE_OUTPUT_INVALID, "no video"),
        ("garbage", ErrorCode.ENGINE_OUTPUT_INVALID, "cannot be used"),
        ("two", ErrorCode.ENGINE_OUTPUT_INVALID, "2 videos"),
        ("truncated", ErrorCode.ENGINE_OUTPUT_INVALID, ""),
    ],
)
def test_what_an_engine_did_wrong_is_said(bench: Bench, behaviour: str, code: ErrorCode, words: str) -> None:
    manager = bench.open(behaviour)
    task = bench.ended(manager, bench.submit(manager))
    assert (task.status, task.failure.code, task.result) == (Status.FAILED, code, None)
    assert words in task.failure.message
    assert str(bench.folder) not in task.failure.message + task.failure.log_excerpt
    assert not manager.folders.result(task.id, 1).exists()
    assert task.attempt == 1, "an engine that fails by itself is not tried again"


def test_a_failure_that_the_profile_names_is_tried_again_and_told(bench: Bench) -> None:
    manager = bench.open("fail", retry_on=["engine_failed"])
    task = bench.ended(manager, bench.submit(manager))
    assert (task.status, task.failure.code, task.attempt) == (Status.FAILED, ErrorCode.ENGINE_FAILED, 2)
    assert [note.code for note in task.notes] == ["retried"]
    assert len(bench.starts_of(task)) == 2


@pytest.mark.parametrize(("frames", "sound"), [(FRAMES + 1, True), (FRAMES - 1, True), (FRAMES, False)])
def test_a_video_of_another_length_or_without_sound_is_refused(bench: Bench, frames: int, sound: bool) -> None:
    bench.video = write_video(bench.folder / "other.mp4", frames, sound)
    manager = bench.open()
    task = bench.ended(manager, bench.submit(manager))
    assert (task.status, task.failure.code) == (Status.FAILED, ErrorCode.ENGINE_OUTPUT_INVALID)


def test_an_engine_that_muxes_by_itself_may_pass_the_plan(bench: Bench) -> None:
    bench.video = write_video(bench.folder / "longer.mp4", FRAMES + 15)
    manager = bench.open(extra_frames=15)
    assert bench.ended(manager, bench.submit(manager)).status is Status.COMPLETED


def test_a_script_that_cannot_start_is_a_failure_with_a_reason(bench: Bench) -> None:
    script = bench.folder / "broken.sh"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    manager = bench.open(script=str(script))
    task = bench.ended(manager, bench.submit(manager))
    assert (task.status, task.failure.code) == (Status.FAILED, ErrorCode.ENGINE_FAILED)
    assert "cannot be started" in task.failure.message


def test_a_silent_engine_is_stopped_and_called_hung(bench: Bench) -> None:
    manager = bench.open("hang", silence_timeout_seconds=0.7)
    task = bench.ended(manager, bench.submit(manager))
    assert (task.status, task.failure.code) == (Status.FAILED, ErrorCode.ENGINE_HUNG)
    assert bench.left_of(task) == []


def test_an_engine_that_was_paused_with_its_runner_is_not_called_hung(bench: Bench) -> None:
    go, limit = bench.folder / "go", 3.0
    manager = bench.open(
        "when_told", {"runner": {"heartbeat_seconds": 0.1, "poll_seconds": 0.05}}, silence_timeout_seconds=limit,
        env={"FAKE_GO": str(go)},
    )  # fmt: skip
    task = bench.until(manager, bench.submit(manager), lambda seen: seen.phase is Phase.GENERATING and seen.runner)
    runner, engine = psutil.Process(task.runner.pid), psutil.Process(int(bench.starts_of(task)[0][3]))
    runner.suspend()
    engine.suspend()
    time.sleep(limit + 0.5)  # the pause itself
    beat = manager.folders.attempt(task.id, 1) / "started"
    pulse = beat.stat().st_mtime_ns
    runner.resume()  # and hears nothing of its engine yet
    wait_until(lambda: beat.stat().st_mtime_ns != pulse, "the runner's next beat")
    engine.resume()
    go.touch()
    assert bench.ended(manager, task).status is Status.COMPLETED


@pytest.mark.parametrize(("looked_after", "counts"), [(59.0, 59.0), (61.5, 61.5), (3600.0, 62.0)])
def test_all_of_a_silence_counts_but_what_a_look_came_too_late(
    monkeypatch: pytest.MonkeyPatch, looked_after: float, counts: float
) -> None:
    """Also where the row, and with it the engine, is looked at once a minute."""
    attempt = Attempt.__new__(Attempt)
    attempt.spec = SimpleNamespace(poll_seconds=60.0)
    attempt.follower = SimpleNamespace(read=list, bytes_read=0)
    attempt.listened = attempt.sign_of_life = 100.0
    attempt.log_size = 0
    monkeypatch.setattr("tasks.attempt.time", SimpleNamespace(monotonic=lambda: 100.0 + looked_after))
    attempt._listen(SimpleNamespace(read=list, closed=False, log_bytes=lambda: 0))
    assert 100.0 + looked_after - attempt.sign_of_life == counts


def test_a_runner_that_cannot_look_for_its_engine_s_processes_looks_again_and_ends_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory may be short just when an engine ends; a video of hours is not to be made again for that."""
    outcomes = [OSError(errno.ENOMEM, "Cannot allocate memory"), OSError(errno.ENFILE, "Too many open files"), True]

    def kill(**given: object) -> bool:
        outcome = outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    monkeypatch.setattr("tasks.engine_process.kill_all", kill)
    for name in ("_listen", "_beat", "_reap_orphans"):
        monkeypatch.setattr(Attempt, name, lambda *given: None)
    monkeypatch.setattr(Attempt, "_ending", lambda attempt, engine, status: status)
    attempt = Attempt.__new__(Attempt)
    attempt.spec, attempt.folder = SimpleNamespace(marks={}), tmp_path
    assert attempt._work(SimpleNamespace(poll=lambda: 7)) == 7
    assert not outcomes


def test_an_engine_that_only_talks_is_stopped_at_its_time(bench: Bench) -> None:
    manager = bench.open("chatter", run_timeout_seconds=0.8, silence_timeout_seconds=5.0)
    task = bench.ended(manager, bench.submit(manager))
    assert (task.status, task.failure.code) == (Status.FAILED, ErrorCode.TIMED_OUT)


def test_cancelling_a_queued_task_takes_it_out_of_the_queue(bench: Bench) -> None:
    manager = bench.open("hang", settings={"slots": {"cpu": 1}})
    first, second = bench.submit(manager), bench.submit(manager)
    bench.until(manager, first, lambda task: task.status is Status.PROCESSING)
    assert manager.delete(second.id, "default").task.status is Status.CANCELLED
    manager.delete(first.id, "default")
    bench.ended(manager, first)
    assert bench.starts_of(second) == []


def cancel(bench: Bench, manager: TaskManager, task: Task) -> tuple[Task, float, float]:
    """Cancel a task that generates; return it, the seconds it took, and those of them after its engine's own exit."""
    task = bench.until(manager, task, lambda seen: seen.phase is Phase.GENERATING)
    engines = [process for process in bench.processes_of(task) if os.getsid(process.pid) == process.pid]
    engine = min(engines, key=lambda process: process.create_time())
    exited: list[float] = []
    watcher = threading.Thread(target=lambda: (select.select([pidfd], [], []), exited.append(time.monotonic())))
    pidfd = os.pidfd_open(engine.pid)
    watcher.start()
    began = time.monotonic()
    view = manager.delete(task.id, "default")
    assert (view.task.status, view.task.cancel_requested) == (Status.PROCESSING, True)
    task = bench.ended(manager, task)
    told = time.monotonic()
    assert bench.left_of(task) == [], "when it says so, no process is left"
    watcher.join(PATIENCE)
    os.close(pidfd)
    print(f"cancelled {told - began:.2f} s after DELETE, {told - exited[0]:.2f} s after the engine's exit")
    assert (task.status, task.failure) == (Status.CANCELLED, None)
    return task, told - began, told - exited[0]


def check_cancels(bench: Bench, manager: TaskManager, submit: Callable[[], Task], limit: float) -> None:
    """Check that a cancel takes less than `limit`, and less than a second from its engine's exit.

    Up to three are measured: a machine that stands still for a moment adds to a measurement and never takes from it.
    """
    measured = []
    while not any(seconds < limit and after_exit < 1.0 for seconds, after_exit in measured):
        assert len(measured) < 3, f"(seconds, seconds after the engine's exit): {measured}"
        measured.append(cancel(bench, manager, submit())[1:])


@pytest.mark.alone
@pytest.mark.parametrize(("behaviour", "limit"), [("hang", 2.0), ("stubborn", 1.0 + 2.0)])
def test_cancelled_means_that_no_process_is_left(bench: Bench, behaviour: str, limit: float) -> None:
    """Also where the engine ignores SIGTERM for its grace of 1 s and a grandchild left the session."""
    manager = bench.open(behaviour)

    def submit() -> Task:
        task = bench.submit(manager)
        if behaviour == "stubborn":
            bench.until(manager, task, lambda seen: seen.phase is Phase.GENERATING)
            assert len(bench.processes_of(task)) == 2  # the engine and its grandchild
        return task

    check_cancels(bench, manager, submit, limit)


@pytest.mark.alone
def test_the_preview_is_cancelled_within_two_seconds(bench: Bench) -> None:
    """Of a speech so long that it is still at it whenever the cancel comes."""
    manager = bench.open(script=str(ROOT / "scripts" / "preview.sh"), grace_seconds=5.0)
    portrait = PreparedInput(ROOT / "samples" / "portrait.png", ImageFacts(1056, 576), "i")
    speech = PreparedInput(bench.folder / "long.wav", repeated(ROOT / "samples" / "speech.wav", 15, bench.folder), "a")
    wanted = {"image": portrait, "audio": speech, "size": "704*384", "num_clip": 900}
    check_cancels(bench, manager, lambda: bench.submit(manager, **wanted), 2.0)


def repeated(speech: Path, times: int, folder: Path) -> AudioFacts:
    """Write the recording into `long.wav` of the folder, so many times over."""
    with wave.open(str(speech)) as short, wave.open(str(folder / "long.wav"), "wb") as long:
        told, samples = short.getparams(), short.getnframes()
        long.setparams(told)
        long.writeframes(short.readframes(samples) * times)
    return AudioFacts(times * samples / told.framerate, told.framerate, told.nchannels, times * samples)


def test_a_child_that_a_finished_engine_left_is_killed(bench: Bench) -> None:
    manager = bench.open("leave_a_child")
    task = bench.ended(manager, bench.submit(manager))
    assert task.status is Status.COMPLETED, task.failure
    assert bench.left_of(task) == []


def test_progress_reaches_the_row_at_most_once_a_second_and_at_each_phase(bench: Bench) -> None:
    go = bench.folder / "go"
    manager = bench.open("when_told", env={"FAKE_GO": str(go)})
    began = time.monotonic()
    task = bench.submit(manager)
    seen = []

    def look(now: Task) -> int:
        seen.append((now.version, now.phase, now.progress))
        return len({version for version, phase, _ in seen if phase is Phase.GENERATING})

    bench.until(manager, task, lambda now: look(now) >= 3)
    go.touch()
    bench.until(manager, task, lambda now: look(now) > 0 and now.status.ended)
    passed = time.monotonic() - began
    told = sorted(set(seen))
    # The first at the change of phase, and from there on one for each second that went by at most.
    assert 3 <= look(manager.view(task.id, "default").task) <= 1 + passed
    assert [progress for _, _, progress in told] == sorted(progress for _, _, progress in told)
    assert told[-1][1:] == (Phase.DONE, 1.0)


def test_the_engine_sees_its_contract_and_nothing_more(bench: Bench) -> None:
    bench.monkeypatch.setenv("LD_PRELOAD", "")
    bench.monkeypatch.setenv("BASH_ENV", "/dev/null")
    bench.monkeypatch.setenv("PYTHONPATH", "/nowhere")
    bench.monkeypatch.setenv("SECRET_TOKEN", "canary")
    bench.monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    bench.monkeypatch.setenv("EXTRA_ONE", "passed on")
    prompt = '--save_file=/etc/x; $(touch x) `id` \'a\' "b" *\n@progress {"phase": "done"}'
    manager = bench.open("dump", settings={"engine_env_passthrough": "EXTRA_*"}, args=["--fp8", "x y"])
    task = bench.ended(manager, bench.submit(manager, prompt=prompt, seed=7, enable_online_decode=True))
    assert task.status is Status.COMPLETED, task.failure
    folder = manager.folders.attempt(task.id, 1)
    seen = json.loads((folder / "seen.json").read_text())
    inputs = manager.folders.inputs(task.id)
    assert seen["argv"] == [
        f"--prompt={prompt}", f"--image={inputs}/image.png", f"--audio={inputs}/audio.wav", "--size=384*256",
        "--num_clip=50", "--sample_steps=4", "--seed=7", f"--output_dir={folder}/out", "--enable_online_decode",
        "--fp8", "x y",
    ]  # fmt: skip
    assert seen["cwd"] == str(folder)
    environ = seen["environ"]
    assert (environ["AVATAR_TASK_ID"], environ["AVATAR_ATTEMPT"]) == (task.id, "1")
    assert (environ["HF_HUB_OFFLINE"], environ["EXTRA_ONE"]) == ("1", "passed on")
    assert Path(environ["AVATAR_PYTHON"]).exists()
    absent = {"LD_PRELOAD", "BASH_ENV", "PYTHONPATH", "SECRET_TOKEN", "AVATAR_DATABASE_URL", "AVATAR_ATTEMPT_LOCK_FD"}
    assert absent.isdisjoint(environ)
    assert list(bench.folder.glob("**/x")) == []


def test_notes_of_the_engine_reach_the_task(bench: Bench) -> None:
    script = bench.folder / "noting.sh"
    script.write_text(
        "#!/usr/bin/env bash\n"
        """echo '@note {"code": "no_face", "message": "none found"}' >&"$AVATAR_PROGRESS_FD"\n"""
        'cp "$FAKE_VIDEO" "${8#--output_dir=}/video.mp4"\n'
    )
    script.chmod(0o755)
    manager = bench.open(script=str(script))
    task = bench.ended(manager, bench.submit(manager))
    assert task.status is Status.COMPLETED, task.failure
    assert [note.code for note in task.notes] == ["no_face"]


def test_a_killed_runner_takes_its_engine_along_and_the_task_gets_another_attempt(bench: Bench) -> None:
    manager = bench.open("hang")
    task = bench.submit(manager)
    task = bench.until(manager, task, lambda seen: seen.phase is Phase.GENERATING and seen.runner is not None)
    engine = psutil.Process(int(bench.starts_of(task)[0][3]))
    os.kill(task.runner.pid, signal.SIGKILL)
    task = bench.until(
        manager, task, lambda seen: seen.attempt == 2 and seen.phase is Phase.GENERATING and seen.runner is not None
    )
    assert is_gone(engine)
    os.kill(task.runner.pid, signal.SIGKILL)
    task = bench.ended(manager, task)
    assert (task.status, task.failure.code, task.attempt) == (Status.FAILED, ErrorCode.INTERRUPTED, 2)
    assert bench.left_of(task) == []


def test_a_task_outlives_its_manager_and_the_next_one_adopts_it(bench: Bench) -> None:
    go = bench.folder / "go"
    first = bench.open("when_told", env={"FAKE_GO": str(go)})
    task = bench.submit(first)
    bench.until(first, task, lambda seen: seen.phase is Phase.GENERATING)
    bench.stop(first)
    second = bench.open("when_told")
    wait_until(lambda: second._scheduler is not None and (task.id, 1) in second._scheduler._watched, "the adoption")
    go.touch()
    ended = bench.ended(second, task)
    assert (ended.status, ended.attempt) == (Status.COMPLETED, 1)
    assert len(bench.starts_of(task)) == 1


def test_an_end_that_the_runner_could_not_record_is_recorded_for_it(bench: Bench) -> None:
    go = bench.folder / "go"
    manager = bench.open("when_told", env={"FAKE_GO": str(go)})
    task = bench.submit(manager)
    task = bench.until(manager, task, lambda seen: seen.runner is not None)
    # Hold the write lock, so that the runner can publish but not say so; then kill it while it tries.
    finish = manager.folders.attempt(task.id, 1) / "finish.json"
    with manager.store._writing.begin():
        go.touch()
        wait_until(finish.exists, "the end in a file")
        os.kill(task.runner.pid, signal.SIGKILL)
    task = bench.ended(manager, task)
    assert (task.status, task.attempt) == (Status.COMPLETED, 1)
    assert manager.result_file(task, "video.mp4").is_file()


def test_deleting_an_ended_task_removes_all_of_it(bench: Bench) -> None:
    manager = bench.open()
    task = bench.ended(manager, bench.submit(manager))
    assert manager.delete(task.id, "default") is None
    with pytest.raises(TaskGone):
        manager.view(task.id, "default")
    left = [path for path in manager.folders.data.rglob("*") if task.id in str(path)]
    assert left == []


def test_finished_tasks_correct_the_estimate_and_a_restart_keeps_it(bench: Bench) -> None:
    manager = bench.open(estimate={"load_seconds": 5000.0, "seconds_per_frame": 2.0})
    first = bench.submit(manager)
    bench.ended(manager, first)
    bench.stop(manager)
    again = bench.open(estimate={"load_seconds": 5000.0, "seconds_per_frame": 2.0})
    second = bench.submit(again)
    assert first.estimated_seconds > 5000.0
    assert second.estimated_seconds < 500.0


def test_only_one_of_two_managers_schedules_and_the_other_takes_over(bench: Bench) -> None:
    first = bench.open()
    second = bench.open()
    tasks = [bench.submit(second) for _ in range(3)]
    for task in tasks:
        assert bench.ended(second, task).status is Status.COMPLETED
    first.stop()
    task = bench.ended(second, bench.submit(second))
    assert task.status is Status.COMPLETED
    assert len(bench.starts.read_text().splitlines()) == 4


def test_an_engine_that_removes_its_log_is_judged_all_the_same(bench: Bench) -> None:
    manager = bench.open("remove_log")
    task = bench.ended(manager, bench.submit(manager))
    assert (task.status, task.failure.code) == (Status.FAILED, ErrorCode.ENGINE_FAILED)
    assert "last words" in task.failure.message
    assert task.attempt == 1


def test_a_chatty_engine_s_notes_are_bounded(bench: Bench) -> None:
    manager = bench.open("many_notes")
    task = bench.ended(manager, bench.submit(manager))
    assert task.status is Status.COMPLETED, task.failure
    assert len(task.notes) == 20


def test_a_stopped_runner_is_killed_and_its_task_tried_again(bench: Bench) -> None:
    (bench.folder / "elsewhere").mkdir()
    (bench.folder / "data").symlink_to("elsewhere")  # as an operator moves a data folder to a larger disk
    manager = bench.open("hang", settings={"runner": {"heartbeat_seconds": 0.2, "poll_seconds": 0.05}})
    task = bench.until(manager, bench.submit(manager), lambda seen: seen.runner is not None)
    os.kill(task.runner.pid, signal.SIGSTOP)
    bench.lose_patience(manager, task)
    task = bench.until(manager, task, lambda seen: seen.attempt == 2 and seen.runner is not None)
    manager.delete(task.id, "default")
    assert bench.ended(manager, task).status is Status.CANCELLED


def test_a_killed_or_stopped_spawner_is_replaced(bench: Bench) -> None:
    manager = bench.open()
    assert bench.ended(manager, bench.submit(manager)).status is Status.COMPLETED
    for number in (signal.SIGKILL, signal.SIGSTOP):
        os.kill(bench.spawner.pid, number)
        bench.spawner.own._channel.settimeout(1.0)  # else one that is stopped would be waited for like a slow one
        task = bench.ended(manager, bench.submit(manager))
        assert (task.status, task.attempt) == (Status.COMPLETED, 1)
        assert len(bench.starts_of(task)) == 1


def no_interpreter(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    os.kill(bench.spawner.pid, signal.SIGKILL)


def no_descriptor(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def used_up(path: Path) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr("tasks.launch.try_lock", used_up)


@pytest.mark.parametrize("want", [no_interpreter, no_descriptor])
def test_while_no_runner_can_be_started_a_task_waits_loses_no_attempt_and_health_tells(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, want: Callable[[Bench, pytest.MonkeyPatch], None]
) -> None:
    monkeypatch.setattr("tasks.scheduler._STALLED_SECONDS", 1.5)
    manager = bench.open()
    wait_until(lambda: look_at_office(manager.folders.data).silent_seconds is not None, "the first look")
    want(bench, monkeypatch)
    task = bench.submit(manager)
    wait_until(lambda: any("its log tells what fails" in reason for reason in manager.health().reasons), "the word")
    assert manager.view(task.id, task.tenant).task == task
    monkeypatch.undo()
    ended = bench.ended(manager, task)
    assert (ended.status, ended.attempt) == (Status.COMPLETED, 1)


def test_a_task_is_not_to_blame_for_descriptors_that_are_used_up_as_it_is_started(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, failed = AttemptSpec.save, list[str]()

    def save_or_fail(spec: AttemptSpec) -> None:
        if not failed:
            failed.append(spec.folder)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), spec.folder)
        save(spec)

    monkeypatch.setattr(AttemptSpec, "save", save_or_fail)
    manager = bench.open()
    task = bench.ended(manager, bench.submit(manager))
    assert (task.status, task.attempt, len(failed)) == (Status.COMPLETED, 2, 1)


def test_a_scheduler_that_looks_no_more_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    manager, free = bench.open(), threading.Event()
    assert bench.ended(manager, bench.submit(manager)).status is Status.COMPLETED  # so it has begun to look
    assert manager.health().reasons == ()
    monkeypatch.setattr("tasks.scheduler._STALLED_SECONDS", 0.5)
    monkeypatch.setattr(manager.store, "processing", lambda: free.wait(2 * PATIENCE) and [])
    ring(manager.folders.wake)
    try:
        wait_until(lambda: "has not got through a look" in why_not_scheduled(manager.folders.data), "the word")
    finally:
        monkeypatch.undo()
        free.set()
    assert bench.ended(manager, bench.submit(manager)).status is Status.COMPLETED


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_bell_that_is_no_fifo_is_mended_or_told(bench: Bench, kind: str) -> None:
    data = bench.folder / "data"
    data.mkdir()
    (data / "wake").mkdir() if kind == "folder" else (data / "wake").touch()
    manager = bench.open()
    task = bench.submit(manager)
    if kind == "folder":
        # For as long as it takes to try, it holds the lock of who schedules.
        wait_until(lambda: "no process schedules tasks at present" in manager.health().reasons, "the word")
        (data / "wake").rmdir()
    assert bench.ended(manager, task).status is Status.COMPLETED


def test_a_slot_that_is_still_held_is_waited_for(bench: Bench) -> None:
    manager = bench.open()
    held = try_lock(manager.folders.slots / "cpu-0.lock")
    task = bench.submit(manager)
    task = bench.until(manager, task, lambda seen: seen.status is Status.PROCESSING)
    assert bench.starts_of(task) == []
    os.close(held)
    assert bench.ended(manager, task).status is Status.COMPLETED


def test_a_task_that_waits_for_its_slot_is_cancelled_at_once(bench: Bench) -> None:
    manager = bench.open()
    held = try_lock(manager.folders.slots / "cpu-0.lock")
    task = bench.until(manager, bench.submit(manager), lambda seen: seen.status is Status.PROCESSING)
    manager.delete(task.id, "default")
    ended = bench.ended(manager, task, slot.WAIT_SECONDS / 2)
    assert (ended.status, bench.starts_of(task)) == (Status.CANCELLED, [])
    os.close(held)


def test_a_runner_that_waits_for_its_slot_leaves_when_it_lost_its_attempt(bench: Bench) -> None:
    manager = bench.open()
    held = try_lock(manager.folders.slots / "cpu-0.lock")
    task = bench.until(manager, bench.submit(manager), lambda seen: seen.status is Status.PROCESSING)
    lock = manager.folders.attempt(task.id, 1) / "lock"
    assert is_locked(lock)
    bench.stop(manager)
    manager.store.happen(manager.view(task.id, "default").task, Event.REQUEUE)
    wait_until(lambda: not is_locked(lock), "the runner's leave", slot.WAIT_SECONDS / 2)
    os.close(held)
    assert manager.view(task.id, "default").task.status is Status.QUEUED
    assert bench.starts_of(task) == []
