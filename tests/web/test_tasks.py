"""Reading tasks: shapes by status, entity tags, pages, logs; and the three meanings of DELETE."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.model import Adjustment, ErrorCode, Event, Facts, Failure, Note, Phase, Priority, Status, Task
from tasks.store import LostRace
from tests.web.conftest import Service
from web.tasks import read_log

BROKEN = Facts(failure=Failure(ErrorCode.OOM, "the GPU's memory is too small for this size", "CUDA out of memory"))
UNKNOWN = "gen_20261122_ffffffffffffffff"


def url(task: Task | str, rest: str = "") -> str:
    return f"/api/v1/task/{task if isinstance(task, str) else task.id}{rest}"


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_a_queued_task_tells_its_position_and_no_result(service: Service) -> None:
    service.submit(1)
    low = service.submit(2, priority=Priority.LOW)
    service.submit(3, priority=Priority.HIGH)
    shown = service.client.get(url(low)).json
    assert (shown["status"], shown["phase"], shown["queue_position"]) == ("queued", "queued", 3)
    assert (shown["priority"], shown["attempt"], shown["progress"]) == ("low", 0, 0.0)
    assert shown["eta_seconds"] >= 30.0  # two tasks of 10 s before its own 10 s
    null = ("start_time", "finish_time", "output_video_url", "poster_url", "video", "error", "error_code", "expires_at")
    assert {name: shown[name] for name in null} == dict.fromkeys(null)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", shown["submit_time"])


def test_a_completed_task_tells_what_was_made(service: Service) -> None:
    task = service.complete(service.start(service.submit()))
    shown = service.client.get(url(task)).json
    assert (shown["status"], shown["phase"], shown["progress"]) == ("completed", "done", 1.0)
    assert shown["output_video_url"] == f"/results/{task.id}/video.mp4"
    assert shown["poster_url"] == f"/results/{task.id}/poster.jpg"
    assert shown["duration_seconds"] == 0.4
    assert shown["processing_seconds"] == pytest.approx((task.finish_time - task.start_time).total_seconds(), abs=1e-3)
    assert shown["video"] == {
        "width": 384, "height": 256, "fps": 25.0, "frames": 10, "size_bytes": 1000, "sha256": "0" * 64,
        "video_codec": "h264", "audio_codec": "aac",
    }  # fmt: skip
    assert (shown["queue_position"], shown["eta_seconds"]) == (None, None)


def test_a_failed_task_tells_why(service: Service) -> None:
    task = service.start(service.submit())
    service.manager.store.finish(task.id, 1, Event.FAIL, BROKEN)
    shown = service.client.get(url(task)).json
    assert (shown["status"], shown["error_code"]) == ("failed", "oom")
    assert shown["error"] == "the GPU's memory is too small for this size"
    assert shown["log_excerpt"] == "CUDA out of memory"
    assert (shown["processing_seconds"], shown["output_video_url"]) == (None, None)


def test_adjustments_say_from_and_to(service: Service) -> None:
    adjusted = Adjustment("sample_steps", 4, 3, "4-GPU TPP runs one step per DiT GPU")
    task = service.submit(adjustments=(adjusted,), notes=(Note("no_face", "no face was found"),))
    shown = service.client.get(url(task)).json
    assert shown["adjustments"] == [
        {"field": "sample_steps", "from": 4, "to": 3, "reason": "4-GPU TPP runs one step per DiT GPU"}
    ]
    assert shown["notes"] == [{"code": "no_face", "message": "no face was found"}]


# --- unknown, gone, ill-formed ----------------------------------------------------------------------------------------

ILL_FORMED = [
    "x", "gen_20261122_000000000000000", "gen_20261122_00000000000000011", "gen_20261122_000000000000000A",
    "gen_20261122_0000000000000001%0A", "gen_20261122_0000000000000001%00", "..%2f..%2fetc",
    "gen_٢0261122_0000000000000001",
    "g" * 5000, "%ff%fe", "gen_20261122_0000000000000001'--",
]  # fmt: skip


@pytest.mark.parametrize("task_id", [*ILL_FORMED, UNKNOWN])
@pytest.mark.parametrize("rest", ["", "/log"])
def test_an_unknown_and_an_ill_formed_id_are_the_same_404(spotless: Service, task_id: str, rest: str) -> None:
    for method in (spotless.client.get, spotless.client.delete):
        answer = method(url(task_id, rest))
        assert answer.status_code in (404, 405)
        if answer.status_code == 404:
            assert answer.json["error_code"] == "not_found"


def test_no_row_is_looked_for_under_an_ill_formed_id(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.manager.store, "get_with_backlog", lambda task_id: pytest.fail("looked for"))
    for task_id in ("x", "gen_20261122_0000000000000001%0A"):
        for path in (url(task_id), url(task_id, "/log"), f"/results/{task_id}/video.mp4"):
            assert service.client.get(path).status_code == 404
        assert service.client.delete(url(task_id)).status_code == 404


def test_another_tenants_task_is_a_404_with_the_body_of_an_unknown_one(service: Service) -> None:
    other = service.complete(service.start(service.submit(tenant="other")))
    for rest in (url("{}"), url("{}", "/log"), "/results/{}/video.mp4"):
        theirs, unknown = (service.client.get(rest.format(name)) for name in (other.id, UNKNOWN))
        same = [{**answer.json, "request_id": ""} for answer in (theirs, unknown)]
        assert theirs.status_code == 404
        assert same[0] == same[1]
    assert service.client.delete(url(other)).status_code == 404
    assert service.client.get("/api/v1/tasks").json["tasks"] == []


# --- entity tags ------------------------------------------------------------------------------------------------------


def test_a_tag_holds_until_the_row_or_the_position_changes(service: Service) -> None:
    first, second = service.submit(1), service.submit(2)
    shown = service.client.get(url(second))
    tag = {"If-None-Match": shown.headers["ETag"]}
    held = service.client.get(url(second), headers=tag)
    assert (held.status_code, held.data, held.headers["ETag"]) == (304, b"", shown.headers["ETag"])
    service.start(first)
    moved = service.client.get(url(second), headers=tag)
    assert (moved.status_code, moved.json["queue_position"]) == (200, 1)
    assert moved.headers["ETag"] != shown.headers["ETag"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [("*", 304), ('"0-0", {}', 304), ("W/{}", 304), ('"0-0"', 200), ("", 200), ("{}x", 200), ("\x7f,,,\"", 200)],
)  # fmt: skip
def test_tags_are_compared_weakly_and_in_lists(service: Service, sent: str, status: int) -> None:
    task = service.submit()
    tag = service.client.get(url(task)).headers["ETag"].removeprefix("W/")
    answer = service.client.get(url(task), headers={"If-None-Match": sent.format(tag)})
    assert answer.status_code == status


def test_a_task_that_goes_on_hints_when_to_ask_again(service: Service) -> None:
    queued, running = service.submit(1), service.start(service.submit(2))
    long = service.start(service.submit(3, work_seconds=3000.0))
    hints = [service.client.get(url(task)).headers["Retry-After"] for task in (queued, running, long)]
    assert all(1 <= int(hint) <= 30 for hint in hints)
    assert hints[2] == "30"
    ended = service.complete(running)
    assert "Retry-After" not in service.client.get(url(ended)).headers


# --- pages ------------------------------------------------------------------------------------------------------------


def numbers(answer: dict[str, list[dict[str, str]]]) -> list[int]:
    return [int(task["task_id"][-16:], 16) for task in answer["tasks"]]


def test_pages_follow_one_another_to_the_end(service: Service) -> None:
    for number in range(1, 6):
        service.submit(number)
    seen, query = [], "limit=2"
    while True:
        page = service.client.get(f"/api/v1/tasks?{query}").json
        seen.append(numbers(page))
        if page["next_cursor"] is None:
            break
        service.submit(100 + len(seen))  # what comes in between shifts nothing
        query = f"limit=2&cursor={page['next_cursor']}"
    assert seen == [[5, 4], [3, 2], [1]]


def test_pages_may_be_narrowed_to_statuses(service: Service) -> None:
    service.submit(1)
    service.start(service.submit(2))
    service.manager.store.happen(service.submit(3), Event.CANCEL)
    for query, expected in [
        ("status=queued", [1]), ("status=queued,processing", [2, 1]), ("status=cancelled&status=queued", [3, 1]),
        ("status=&limit=&cursor=", [3, 2, 1]), ("status=failed", []),
    ]:  # fmt: skip
        assert numbers(service.client.get(f"/api/v1/tasks?{query}").json) == expected, query


# --- logs -------------------------------------------------------------------------------------------------------------


def write_log(service: Service, task: Task, text: bytes) -> None:
    folder = service.manager.folders.attempt(task.id, task.attempt)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "engine.log").open("ab") as file:
        file.write(text)


def test_a_log_is_read_on_from_where_it_ended(service: Service) -> None:
    task = service.start(service.submit())
    assert service.client.get(url(task, "/log")).headers["X-Log-Offset"] == "0"
    write_log(service, task, b"first\n")
    answer = service.client.get(url(task, "/log"))
    assert (answer.text, answer.headers["X-Log-Offset"]) == ("first\n", "6")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    write_log(service, task, b"second\n")
    answer = service.client.get(url(task, "/log?offset=6"))
    assert (answer.text, answer.headers["X-Log-Offset"]) == ("second\n", "13")
    assert service.client.get(url(task, "/log?offset=13")).data == b""


def test_a_log_shorter_than_the_offset_is_a_new_one(service: Service) -> None:
    task = service.start(service.submit())
    write_log(service, task, b"short\n")
    answer = service.client.get(url(task, "/log?offset=1000"))
    assert (answer.text, answer.headers["X-Log-Offset"]) == ("short\n", "6")


def test_a_log_in_whose_place_an_engine_put_a_link_is_empty_and_follows_it_nowhere(
    service: Service, tmp_path: Path
) -> None:
    task = service.start(service.submit())
    (tmp_path / "secret").write_text("secret")
    write_log(service, task, b"")
    log = service.manager.folders.attempt(task.id, task.attempt) / "engine.log"
    log.unlink()
    log.symlink_to(tmp_path / "secret")
    answer = service.client.get(url(task, "/log"))
    assert (answer.status_code, answer.text, answer.headers["X-Log-Offset"]) == (200, "", "0")


def test_a_log_that_goes_while_it_is_asked_for_is_gone(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    task = service.complete(service.start(service.submit()))
    write_log(service, task, b"log")
    found = service.manager.log_file(task)

    def goes(asked: Task) -> Path | None:
        monkeypatch.undo()
        shutil.rmtree(service.manager.folders.attempts(task.id))
        return found

    monkeypatch.setattr(service.manager, "log_file", goes)
    assert service.client.get(url(task, "/log")).status_code == 410


def test_a_long_log_comes_in_pieces(service: Service) -> None:
    task, offset, read = service.start(service.submit()), 0, b""
    whole = b"".join(b"%07d\n" % number for number in range(200_000))
    write_log(service, task, whole)
    while piece := service.client.get(url(task, f"/log?offset={offset}")):
        if not piece.data:
            break
        assert len(piece.data) <= 2**20
        read, offset = read + piece.data, int(piece.headers["X-Log-Offset"])
    assert read == whole


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("é".encode()[:1], b""), (b"a" + "€".encode()[:2], b"a"), (b"a" + "😀".encode()[:3], b"a"),
        ("é€😀".encode(), "é€😀".encode()), (b"\x80\x80\x80\x80", b"\x80\x80\x80\x80"), (b"\xff", b"\xff"), (b"", b""),
    ],
)  # fmt: skip
def test_a_character_that_is_half_written_waits(service: Service, written: bytes, text: bytes) -> None:
    task = service.start(service.submit())
    write_log(service, task, written)
    path = service.manager.log_file(task)
    assert path is not None
    assert read_log(path, 0) == (text, len(text))


# --- DELETE -----------------------------------------------------------------------------------------------------------


def test_a_queued_task_is_cancelled(service: Service) -> None:
    task = service.submit()
    answer = service.client.delete(url(task))
    assert (answer.status_code, answer.json["status"]) == (200, "cancelled")
    assert service.queued() == 0


def test_a_processing_task_is_asked_to_end(service: Service) -> None:
    task = service.start(service.submit())
    for _ in range(2):
        answer = service.client.delete(url(task))
        assert (answer.status_code, answer.json["status"]) == (202, "processing")
        assert answer.json["cancel_requested"] is True


def test_an_ended_task_is_removed_with_all_its_files(service: Service) -> None:
    task = service.complete(service.start(service.submit()))
    write_log(service, task, b"log")
    answer = service.client.delete(url(task))
    assert (answer.status_code, answer.data) == (204, b"")
    assert service.files() == []
    for path in (url(task), url(task, "/log"), f"/results/{task.id}/video.mp4"):
        gone = service.client.get(path)
        assert (gone.status_code, gone.json["error_code"]) == (410, "gone")
    assert service.client.delete(url(task)).status_code == 410


def test_a_task_that_changes_all_the_time_is_a_503_not_a_bug(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    task = service.start(service.submit())

    def lose(*args: object) -> None:
        raise LostRace

    monkeypatch.setattr(service.manager.store, "request_cancel", lose)
    answer = service.client.delete(url(task))
    assert (answer.status_code, answer.json["error_code"]) == (503, "busy")
    assert answer.headers["Retry-After"]


# --- cancel -----------------------------------------------------------------------------------------------------------


def test_cancelling_a_task_that_waits_or_runs_may_be_repeated(service: Service) -> None:
    waits, runs = service.submit(1), service.start(service.submit(2))
    for _ in range(2):
        answer = service.client.post(url(waits, "/cancel"))
        assert (answer.status_code, answer.json["status"]) == (200, "cancelled")
        answer = service.client.post(url(runs, "/cancel"))
        assert (answer.status_code, answer.json["status"], answer.json["cancel_requested"]) == (202, "processing", True)


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_cancelling_never_removes_what_has_ended(service: Service, status: str) -> None:
    task = service.start(service.submit())
    if status == "completed":
        service.complete(task)
    else:
        failure = Failure(ErrorCode.ENGINE_FAILED, "it broke")
        service.manager.store.finish(task.id, task.attempt, Event.FAIL, Facts(failure=failure))
    before = service.files()
    answer = service.client.post(url(task, "/cancel"))
    assert (answer.status_code, answer.json["error_code"]) == (409, "already_ended")
    assert answer.json["detail"] == f"the task has already ended: it is {status}"
    assert service.client.get(url(task)).json["status"] == status
    assert service.files() == before


def test_what_completes_while_it_is_to_be_cancelled_keeps_its_video(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = service.start(service.submit())
    request_cancel = service.manager.store.request_cancel

    def late(seen: Task) -> Task:
        service.complete(task)
        return request_cancel(seen)

    monkeypatch.setattr(service.manager.store, "request_cancel", late)
    assert service.client.post(url(task, "/cancel")).status_code == 409
    assert service.client.get(f"/results/{task.id}/video.mp4").status_code == 200


def test_cancelling_what_is_not_there_tells_unknown_from_gone(service: Service) -> None:
    assert service.client.post("/api/v1/task/gen_20261122_0000000000000001/cancel").status_code == 404
    task = service.complete(service.start(service.submit()))
    service.client.delete(url(task))
    assert service.client.post(url(task, "/cancel")).status_code == 410
    assert service.client.get(url(task, "/cancel")).status_code == 405


# --- health -----------------------------------------------------------------------------------------------------------


def test_health_counts_and_says_why_it_is_not_well(service: Service) -> None:
    service.submit(1)
    service.start(service.submit(2))
    answer = service.client.get("/api/v1/health")
    # No scheduler runs in this test, and the service says so.
    assert (answer.status_code, answer.json["status"]) == (503, "degraded")
    assert any("schedules" in reason for reason in answer.json["reasons"])
    assert answer.json["queue"] == {"queued": 1, "processing": 1}
    assert [engine["name"] for engine in answer.json["engines"]] == ["live_avatar", "preview"]


def test_health_is_well_where_nothing_is_wrong(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    well = replace(service.manager.health(), reasons=())
    monkeypatch.setattr(service.manager, "health", lambda: well)
    answer = service.client.get("/api/v1/health")
    assert (answer.status_code, answer.json["status"], answer.json["reasons"]) == (200, "healthy", [])


def test_head_tells_the_length_without_the_content(service: Service) -> None:
    task = service.complete(service.start(service.submit()))
    for path in (f"/results/{task.id}/video.mp4", url(task), "/api/v1/tasks", "/docs"):
        answer = service.client.head(path)
        assert (answer.status_code, answer.data) == (200, b"")
        assert answer.headers["Content-Length"] == str(len(service.client.get(path).data))


def test_every_status_and_phase_of_the_model_is_one_of_the_document(service: Service) -> None:
    schemas = service.client.get("/api/v1/openapi.json").json["components"]["schemas"]
    assert schemas["Status"]["enum"] == [status.value for status in Status]
    assert schemas["Phase"]["enum"] == [phase.value for phase in Phase]
    assert schemas["ErrorCode"]["enum"] == [code.value for code in ErrorCode]
