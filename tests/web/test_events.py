"""Event streams: what comes and in which order, that nothing is lost or doubled, and that no stream holds anyone up."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tasks.model import Event as Happening
from tasks.model import Facts, Phase, Task
from tests.web.conftest import Service, build, close
from tests.web.servers import get, gunicorn
from web.log_lines import PIECE_BYTES, read_lines

SOON = 45.0
"""Seconds within which what is awaited must have come; on a busy machine too."""

PLACES = 4
BEAT = 0.4
"""The heartbeat of the hasty server, in seconds: it gives a client up that takes nothing for twice as long."""
_numbers = itertools.count(1)


@dataclass
class Told:
    """One event as the HTML standard has it parsed."""

    name: str
    id: str
    data: str

    @property
    def task(self) -> dict[str, Any]:
        assert self.name == "task"
        return dict(json.loads(self.data))


@dataclass
class Reader:
    """Reads one stream."""

    connection: http.client.HTTPConnection
    answer: http.client.HTTPResponse
    comments: int = 0
    retry: str = ""
    lines: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Told]:
        """Yield events until the stream ends."""
        name, id_, data = "message", "", list[str]()
        for raw in iter(self.answer.readline, b""):
            line = raw.decode().removesuffix("\n")
            assert "\r" not in line
            kind, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:
                if data:
                    yield Told(name, id_, "\n".join(data))
                name, data = "message", []
            elif kind == "":
                self.comments += 1
            elif kind == "event":
                name = value
            elif kind == "data":
                data.append(value)
            elif kind == "id":
                id_ = value
            else:
                assert kind == "retry"
                self.retry = value

    def take(self, number: int) -> list[Told]:
        found = list(itertools.islice(iter(self), number))
        assert len(found) == number, found
        return found


@dataclass(frozen=True)
class Server:
    """The real server with authentication on, and its data as seen from beside it."""

    port: int
    folder: Path
    service: Service
    key: str
    other: str

    def submit(self, **changes: Any) -> Task:
        return self.service.submit(next(_numbers), tenant="acme", **changes)

    @contextmanager
    def events(self, task: Task, last_id: str | None = None, method: str = "GET") -> Iterator[Reader]:
        """Open a stream, once there is a place: that of a client that has just gone is taken a little longer."""
        deadline = time.monotonic() + SOON
        while True:
            reader = self.ask_once(task, last_id, method)
            if reader.answer.status != 503:
                break
            reader.connection.close()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        try:
            yield reader
        finally:
            reader.connection.close()

    def ask_once(self, task: Task, last_id: str | None = None, method: str = "GET") -> Reader:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SOON)
        resume = {} if last_id is None else {"Last-Event-ID": last_id}
        connection.request(method, events_of(task), headers={"X-API-Key": self.key, **resume})
        return Reader(connection, connection.getresponse())

    def all(self, task: Task, last_id: str | None = None) -> list[Told]:
        """Return all events of an ended task."""
        with self.events(task, last_id) as reader:
            return list(reader)

    def shown(self, task: Task) -> str:
        return get(self.port, f"/api/v1/task/{task.id}", {"X-API-Key": self.key})[2].decode()

    def write(self, task: Task, text: bytes) -> None:
        folder = self.service.manager.folders.attempt(task.id, task.attempt)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "engine.log").open("ab") as file:
            file.write(text)

    def report(self, task: Task, progress: float) -> None:
        self.service.manager.store.report(
            task.id, task.attempt, phase=Phase.GENERATING, progress=progress, eta_seconds=9.0
        )

    @contextmanager
    def all_places(self, task: Task) -> Iterator[None]:
        """Take all places there are, as they become free."""
        with ExitStack() as stack:
            for _ in range(PLACES):
                assert stack.enter_context(self.events(task)).answer.status == 200
            yield


def events_of(task: Task) -> str:
    return f"/api/v1/task/{task.id}/events"


def lines_of(events: list[Told]) -> list[str]:
    return [line for event in events if event.name == "log" for line in event.data.split("\n")]


def unsigned(text: str) -> str:
    """Return what was told of a task without the signatures of its links: they change every five minutes."""
    return re.sub(r"\?expires=\d+&signature=[\w-]+", "", text)


def plain(events: list[Told]) -> list[Told]:
    return [replace(event, data=unsigned(event.data)) for event in events]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose clients may stall for half a minute."""
    with serving(tmp_path_factory.mktemp("events")) as found:
        yield found


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that soon notices what only shows in silence."""
    with serving(tmp_path_factory.mktemp("hasty"), AVATAR_HTTP__HEARTBEAT_SECONDS=str(BEAT)) as found:
        yield found


@contextmanager
def serving(folder: Path, **settings: str) -> Iterator[Server]:
    service = build(folder / "data", {"auth": {"enabled": True}})
    keys = [service.manager.store.keys.create(name, frozenset({"generate", "read"}), None)[1] for name in ("acme", "o")]
    own = {
        "AVATAR_AUTH__ENABLED": "true", "AVATAR_HTTP__MAX_WAITERS": str(PLACES), "AVATAR_LIMITS__READS": "100000",
    }  # fmt: skip
    with gunicorn(folder, **own, **settings) as (port, _):
        yield Server(port, folder, service, *keys)
    close(service)


# --- what comes -------------------------------------------------------------------------------------------------------


def test_changes_and_lines_come_as_they_happen_and_the_end_comes_last(server: Server) -> None:
    task = server.submit()
    with server.events(task) as reader:
        headers = reader.answer.headers
        assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert (headers["Cache-Control"], headers["X-Accel-Buffering"]) == ("no-store", "no")
        (queued,) = reader.take(1)
        assert (queued.task["status"], queued.task["queue_position"]) == ("queued", 1)
        task = server.service.start(task)
        (started,) = reader.take(1)
        assert (started.task["status"], started.data) == ("processing", server.shown(task))
        server.write(task, b"one\ntwo\nthr")
        (log,) = reader.take(1)
        assert (log.name, log.data) == ("log", "one\ntwo")
        server.report(task, 0.5)
        (half,) = reader.take(1)
        assert half.task["progress"] == 0.5
        server.write(task, b"ee\nlast, without an end")
        server.service.complete(task)
        rest = list(reader)
    assert lines_of(rest) == ["three", "last, without an end"]
    assert [event.name for event in rest].count("task") == 1
    assert (rest[-1].task["status"], unsigned(rest[-1].data)) == ("completed", unsigned(server.shown(task)))
    assert get(server.port, rest[-1].task["output_video_url"])[0] == 200
    assert 1000 <= int(reader.retry) < 3000


def test_an_ended_task_is_told_whole_log_first_and_whoever_saw_it_is_told_to_stop(server: Server) -> None:
    task = server.service.start(server.submit())
    server.write(task, b"one\n\ntwo\n")
    server.service.complete(task)
    events = server.all(task)
    assert [event.name for event in events] == ["log", "task"]
    assert events[0].data == "one\n\ntwo"
    with server.events(task, events[-1].id) as reader:
        assert (reader.answer.status, reader.answer.read()) == (204, b"")
    for nonsense in ("", "x", "0", "1-0:2:0", "1-0:1:0:0", "-1-0:1:0", "²-0:1:0", f"{'9' * 19}-0:1:0", "9" * 4000):
        assert plain(server.all(task, nonsense)) == plain(events), nonsense


def test_a_queued_task_hears_of_its_position_and_of_a_cancel_before_it_began(server: Server) -> None:
    first, second = server.submit(), server.submit()
    with server.events(second) as reader:
        position = reader.take(1)[0].task["queue_position"]
        server.service.manager.store.happen(first, Happening.CANCEL)
        assert reader.take(1)[0].task["queue_position"] == position - 1
        server.service.manager.store.happen(second, Happening.CANCEL)
        assert [event.task["status"] for event in reader] == ["cancelled"]


def test_a_new_attempt_is_told_before_its_log_and_after_all_of_the_old_one_s(server: Server) -> None:
    store, task = server.service.manager.store, server.service.start(server.submit())
    server.write(task, b"first attempt\n")
    with server.events(task) as reader:
        seen = reader.take(2)
        last = seen[-1].id
    server.write(task, b"died here")
    again = server.service.start(store.finish(task.id, 1, Happening.REQUEUE, Facts()))
    server.write(again, b"second attempt\n")
    with server.events(task, last) as reader:
        rest, told, new = reader.take(3)
        assert (rest.data, told.task["attempt"], new.data) == ("died here", 2, "second attempt")
        assert [event.id.split(":")[1] for event in (rest, told, new)] == ["1", "1", "2"]
    store.finish(task.id, 2, Happening.CANCEL, Facts())
    assert lines_of(server.all(task, told.id)) == ["second attempt"]
    assert [event.name for event in server.all(task, new.id)] == ["task"]


@pytest.mark.parametrize("seed", range(2))
def test_a_reader_that_breaks_off_again_and_again_misses_nothing_and_sees_nothing_twice(
    server: Server, seed: int
) -> None:
    rng, task = random.Random(seed), server.service.start(server.submit())
    written = [f"line {number} {'é' * rng.randrange(9)}" for number in range(150)]
    text = "".join(f"{line}\n" for line in written).encode()

    def work() -> None:
        at = 0
        while at < len(text):
            size = rng.randrange(1, 400)
            server.write(task, text[at : at + size])
            at += size
            server.report(task, at / len(text) * 0.9)
            time.sleep(0.02)
        server.service.complete(task)

    worker = threading.Thread(target=work)
    worker.start()
    events, deadline = list[Told](), time.monotonic() + 150
    while not (events and events[-1].name == "task" and events[-1].task["status"] == "completed"):
        assert time.monotonic() < deadline
        with server.events(task, events[-1].id if events else None) as reader:
            events += itertools.islice(reader, rng.randrange(1, 4))
    worker.join()
    assert lines_of(events) == written
    versions = [int(event.id.split("-")[0]) for event in events if event.name == "task"]
    assert versions == sorted(set(versions))
    for number, event in enumerate(events):
        assert lines_of(server.all(task, event.id) if number < len(events) - 1 else []) == lines_of(
            events[number + 1 :]
        )


def test_no_line_of_a_log_forges_an_event_or_breaks_the_stream(server: Server) -> None:
    task = server.service.start(server.submit())
    forged = b"a\r\rdata: x\r\nevent: task\nid: 9-9:9:9\n\n\n:\nretry: 1\n"
    forged += b"\x1b[31mred\x1b[0m\x1b\x00\x9b\xc2\x85\xe2\x80\xa8end\n"
    server.write(task, forged)
    server.service.complete(task)
    log, told = server.all(task)
    assert told.task["status"] == "completed"
    assert log.data.split("\n") == [
        "a", "", "data: x", "event: task", "id: 9-9:9:9", "", "", ":", "retry: 1", "red\ufffd\u2028end",
    ]  # fmt: skip


def test_a_long_log_comes_in_pieces_of_whole_lines(server: Server) -> None:
    task = server.service.start(server.submit())
    written = [f"{number} " + "x" * (number % 300) for number in range(3000)]
    server.write(task, "\n".join(written).encode())
    server.service.complete(task)
    events = server.all(task)
    assert lines_of(events) == written
    assert 3 < len(events) < 30
    assert lines_of(server.all(task, events[1].id)) == lines_of(events[2:])


@pytest.mark.parametrize(
    ("text", "complete", "lines", "end"),
    [
        (b"", False, (), 0),
        (b"part", False, (), 0),
        (b"part", True, ("part",), 4),
        (b"one\npart", False, ("one",), 4),
        (b"one\r", False, (), 0),
        (b"one\r", True, ("one",), 4),
        (b"one\r\ntwo\r", False, ("one",), 5),
        (b"\r 10%\r 20%\r 30%", False, ("", " 10%", " 20%"), 11),
        ("é\n".encode(), False, ("é",), 3),
        (b"\xff\tx\n", False, ("\ufffd\tx",), 4),
    ],
)
def test_lines_are_whole(tmp_path: Path, text: bytes, complete: bool, lines: tuple[str, ...], end: int) -> None:
    (tmp_path / "log").write_bytes(text)
    piece = read_lines(tmp_path / "log", 0, complete)
    assert (piece.lines, piece.end, piece.size) == (lines, end, len(text))


def test_a_line_without_end_comes_in_pieces_of_whole_characters(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"x" + "é".encode() * PIECE_BYTES)
    piece = read_lines(tmp_path / "log", 0, False)
    assert (piece.end, piece.lines) == (PIECE_BYTES - 1, ("x" + "é" * (PIECE_BYTES // 2 - 1),))


# --- who may, and how many --------------------------------------------------------------------------------------------


def test_another_tenant_s_events_are_unknown_and_a_head_does_not_hang(server: Server) -> None:
    task = server.service.start(server.submit())
    for key, status in ((server.other, 404), ("la_nonsense", 401)):
        assert get(server.port, events_of(task), {"X-API-Key": key})[0] == status
    assert get(server.port, events_of(task))[0] == 401
    assert get(server.port, events_of(task) + "?x=1", {"X-API-Key": server.key})[0] == 400
    assert get(server.port, "/api/v1/task/gen_20261122_ffffffffffffffff/events", {"X-API-Key": server.key})[0] == 404
    with server.events(task, method="HEAD") as reader:
        assert reader.answer.status == 200
        assert reader.answer.headers["Content-Type"].startswith("text/event-stream")
        assert reader.answer.read() == b""


def test_a_stream_ends_soon_after_its_key_was_revoked(hasty: Server) -> None:
    server, keys = hasty, hasty.service.manager.store.keys
    made, key = keys.create("acme", frozenset({"read"}), None)
    task = server.service.start(server.submit())
    with replace(server, key=key).events(task) as reader:
        reader.take(1)
        keys.revoke(made.id)
        assert list(reader) == []
    assert get(server.port, events_of(task), {"X-API-Key": key})[0] == 401


def test_past_the_places_a_stream_is_503_and_a_place_is_free_once_its_client_has_gone(hasty: Server) -> None:
    server, task = hasty, hasty.service.start(hasty.submit())
    for _ in range(2):
        with server.all_places(task):
            refused = server.ask_once(task)
            assert refused.answer.status == 503
            assert int(refused.answer.headers["Retry-After"]) > 0
            assert json.loads(refused.answer.read())["error_code"] == "busy"
            refused.connection.close()
            status, _, _, took = get(server.port, f"/api/v1/task/{task.id}?wait=60", {"X-API-Key": server.key})
            assert (status, took < SOON) == (200, True)


def test_a_silent_stream_is_kept_alive_by_comments(hasty: Server) -> None:
    task = hasty.service.start(hasty.submit())
    began = time.monotonic()  # before the silence, however late this comes to read of it
    with hasty.events(task) as reader:
        reader.take(1)
        for line in iter(reader.answer.readline, b""):
            reader.comments += line == b":\n"
            if reader.comments == 3:
                break
        assert reader.comments == 3
        assert 2.5 * BEAT < time.monotonic() - began < SOON


def test_a_client_that_reads_nothing_holds_its_place_no_longer_than_two_heartbeats(hasty: Server) -> None:
    server, task = hasty, hasty.service.start(hasty.submit())
    server.write(task, b"x" * 99 + b"\n")
    for _ in range(16):
        server.write(task, (b"y" * 999 + b"\n") * 1000)
    with server.all_places(task):
        pass
    request = f"GET {events_of(task)} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {server.key}\r\n\r\n".encode()
    deaf = []
    while len(deaf) < PLACES:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(request)
        if sock.recv(12) == b"HTTP/1.1 200":
            deaf.append(sock)
        else:
            sock.close()
    with server.all_places(server.service.start(server.submit())):
        pass
    for sock in deaf:
        sock.close()
    logged = (server.folder / "server.log").read_text()
    assert "Traceback" not in logged
    assert "Socket error" not in logged


# --- how it ends ------------------------------------------------------------------------------------------------------


def test_a_stream_ends_when_the_record_is_deleted_and_coming_again_is_410(server: Server) -> None:
    task = server.service.start(server.submit())
    with server.events(task) as reader:
        reader.take(1)
        store = server.service.manager.store
        store.ended.delete(store.finish(task.id, 1, Happening.CANCEL, Facts()))
        assert [event.task["status"] for event in reader] in ([], ["cancelled"])
    with server.events(task, "1-0:1:0") as reader:
        assert reader.answer.status == 410


def test_a_server_that_is_told_to_stop_ends_its_streams(service: Service, tmp_path: Path) -> None:
    task = service.start(service.submit())
    with gunicorn(tmp_path) as (port, process):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SOON)
        connection.request("GET", events_of(task))
        reader = Reader(connection, connection.getresponse())
        reader.take(1)
        process.send_signal(signal.SIGTERM)
        assert list(reader) == []
        connection.close()
        assert process.wait(60) == 0  # by itself: gunicorn would wait for 120 s before it gave up


def test_the_document_tells_what_is_sent(service: Service) -> None:
    task = service.complete(service.start(service.submit()))
    answer = service.client.get(events_of(task))
    last = answer.text.rpartition("id: ")[2].split("\n")[0]
    assert answer.status_code == 200
    assert service.client.get(events_of(task), headers={"Last-Event-ID": last}).status_code == 204
    assert service.client.get(events_of(task) + "?x=1").status_code == 400
