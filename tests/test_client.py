"""The client as people and programs use it: the real command against a real service with authentication on."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from http.client import HTTPMessage, HTTPResponse
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml

import client
from client import Client, ClientError, ServiceError, Unreachable
from tests.conftest import ROOT
from tests.e2e.conftest import Service, portrait, voice  # noqa: F401 - fixtures
from tests.ports import reserved
from tests.tasks.conftest import ready_video  # noqa: F401 - a fixture
from web.errors import HTTP, Code

SECRET = "canary-jwt-secret-0123456789abcdef"
KEY = jwt.encode({"exp": int(time.time()) + 86_400, "sub": "u", "tenant": "acme"}, SECRET, "HS256")
PROMPT = "Elle sourit: “你好” 👋"


@dataclass
class Run:
    """How a command ended."""

    status: int
    out: str
    err: str


class Desk:
    """Where someone sits with client.py, a portrait and a recording; `go` lets the engine `told` end."""

    def __init__(self, service: Service, folder: Path, image: Path, audio: Path) -> None:
        self.service, self.folder, self.image, self.audio = service, folder, image, audio
        self.go = service.folder / "go"
        self.server = service.url
        self.environment = {"PATH": os.environ["PATH"], "AVATAR_API_KEY": KEY, "LANG": "C.UTF-8"}

    def command(self, *arguments: str) -> list[str]:
        at = [] if "--server" in arguments else ["--server", self.server]
        return ["env", "--default-signal=INT", sys.executable, str(ROOT / "client.py"), *arguments, *at]

    def run(self, *arguments: str, **environment: str) -> Run:
        made = subprocess.run(
            self.command(*arguments), cwd=self.folder, env=self.environment | environment, stdin=subprocess.DEVNULL,
            capture_output=True, timeout=120,
        )  # fmt: skip
        assert KEY.encode() not in made.stdout + made.stderr
        assert b"Traceback" not in made.stderr, made.stderr.decode()
        return Run(made.returncode, made.stdout.decode(), made.stderr.decode())

    @contextmanager
    def start(self, *arguments: str, **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command, environment = self.command(*arguments), self.environment
        with subprocess.Popen(command, cwd=self.folder, env=environment, **pipes | streams) as started:
            try:
                yield started
            finally:
                started.kill()

    def wish(self, engine: str = "quick", *more: str) -> list[str]:
        files = ["--image", str(self.image), "--audio", str(self.audio)]
        return ["generate", *files, "--prompt", PROMPT, "--engine", engine, *more]

    def submit(self, engine: str = "quick") -> str:
        run = self.run(*self.wish(engine, "--no-wait"))
        assert run.status == 0, run.err
        return run.out.strip()

    def library(self, **options: Any) -> Client:
        return Client(self.server, KEY, **options)


@pytest.fixture(scope="module")
def avatar(tmp_path_factory: pytest.TempPathFactory, ready_video: Path) -> Iterator[Service]:  # noqa: F811
    folder = tmp_path_factory.mktemp("service")
    (folder / "starts.txt").touch()
    shared = {"FAKE_VIDEO": str(ready_video), "FAKE_STARTS": str(folder / "starts.txt"), "FAKE_GO": str(folder / "go")}
    table = yaml.safe_load((ROOT / "configs" / "engines.yaml").read_text())
    for name, behaviour in {"quick": "copy", "told": "when_told", "broken": "fail"}.items():
        row = {"name": "only", "script": str(ROOT / "tests/fakes/engine.sh"), "grace_seconds": 1.0}
        row |= {
            "env": {**shared, "FAKE_ENGINE": behaviour},
            "estimate": {"load_seconds": 0.01, "seconds_per_frame": 1.0},
        }
        table["engines"][name] = {"profiles": [row]}
    (folder / "engines.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    environment = {
        "AVATAR_ENGINES__TABLE": str(folder / "engines.yaml"), "AVATAR_SLOTS__CPU": "4",
        "AVATAR_AUTH__ENABLED": "true", "AVATAR_AUTH__JWT_SECRET": SECRET, "AVATAR_INPUTS__MAX_IMAGE_BYTES": "2000000",
    }  # fmt: skip
    service = Service(folder, environment, 1).start()
    service.http.headers = {"X-API-Key": KEY}
    yield service
    service.clean_up()


@pytest.fixture
def desk(avatar: Service, tmp_path: Path, portrait: Path, voice: Path) -> Iterator[Desk]:  # noqa: F811
    (tmp_path / "desk").mkdir()
    found = Desk(avatar, tmp_path / "desk", portrait, voice)
    found.go.unlink(missing_ok=True)
    yield found
    found.go.touch()
    # The engines look for it from time to time: those that did not see it would go on beside the next test.
    until(lambda: not Client(avatar.url, KEY, patience=0).tasks("queued,processing"))


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def unsigned(task: client.Task) -> client.Task:
    """Return a task without the links to its files: they are signed anew every five minutes."""
    links = ("output_video_url", "poster_url")
    return replace(task, answer={name: told for name, told in task.answer.items() if name not in links})


def read_until(descriptor: int, words: bytes) -> bytes:
    """Return what comes from a stream up to the words."""
    seen, deadline = b"", time.monotonic() + 60
    while words not in seen:
        assert select.select([descriptor], [], [], max(0, deadline - time.monotonic()))[0], seen.decode()
        piece = os.read(descriptor, 4096)
        assert piece, seen.decode()
        seen += piece
    return seen


# --- what it does -----------------------------------------------------------------------------------------------------


def test_one_command_turns_a_portrait_and_a_recording_into_a_checked_video(desk: Desk) -> None:
    image = desk.image.rename(desk.folder / "肖像 é.png")
    desk.image = image
    more = ["--num-clip", "3", "--seed", "7", "--size", "384*256", "--metadata", "order=四 2", "--priority", "high"]
    run = desk.run(*desk.wish("preview", *more, "--enable-online-decode", "-o", "vidéo 1.mp4"))
    assert (run.status, run.out) == (0, "vidéo 1.mp4\n"), run.err
    assert "note: made by the CPU preview engine" in run.err
    # A video of a second may be past a phase between two looks; the last one is told in any case.
    assert "finishing, 100%" in run.err and len(run.err.splitlines()) < 20, "few lines where nobody sits at a terminal"
    assert "\r" not in run.err and "\x1b" not in run.err
    task = desk.library().tasks()[0]
    video, params = task.answer["video"], task.answer["params"]
    assert hashlib.sha256((desk.folder / "vidéo 1.mp4").read_bytes()).hexdigest() == video["sha256"]
    assert (params["prompt"], params["seed"], params["num_clip"], params["size"]) == (PROMPT, 7, 3, "384*256")
    assert params["enable_online_decode"] and task.answer["priority"] == "high"
    assert task.answer["metadata"] == {"order": "四 2"}
    assert [path.name for path in desk.folder.iterdir() if path != image] == ["vidéo 1.mp4"]


def test_every_command_has_words_for_people_and_one_document_for_programs(desk: Desk) -> None:
    task_id = desk.submit("told")
    assert task_id.startswith("gen_")
    listed = desk.run("list", "--limit", "1").out
    assert task_id in listed and PROMPT in listed
    assert "queued" in desk.run("status", task_id).out or "%" in desk.run("status", task_id).out
    assert json.loads(desk.run("list", "--status", "queued,processing", "--json").out)["tasks"][0]["task_id"] == task_id
    assert json.loads(desk.run("status", task_id, "--json").out)["task_id"] == task_id
    cancelled = desk.run("cancel", task_id, "--json")
    assert cancelled.status == 0
    assert json.loads(cancelled.out)["status"] == "cancelled" or json.loads(cancelled.out)["cancel_requested"]
    ended = desk.run("download", task_id, "--json")
    assert ended.status == client.CANCELLED
    assert json.loads(ended.out)["status"] == "cancelled"
    assert desk.run("cancel", task_id).out == "cancelled\n", "an ended task is left alone"
    assert desk.library().task(task_id).status == "cancelled"


def test_a_failed_task_is_told_with_the_end_of_its_log_and_leaves_no_file(desk: Desk) -> None:
    run = desk.run(*desk.wish("broken", "--json"))
    assert run.status == client.FAILED
    assert "failed: " in run.err and "(engine_failed)" in run.err
    assert "RuntimeError: no such file" in run.err
    told = json.loads(run.out)
    assert told["error_code"] == "engine_failed"
    assert not list(desk.folder.iterdir())
    assert desk.run("log", told["task_id"]).out.startswith("loading weights\n")


def test_the_log_is_followed_to_the_end_of_the_task(desk: Desk) -> None:
    task_id = desk.submit("told")
    with desk.start("log", "-f", task_id) as follower:
        until(lambda: desk.library().task(task_id).phase == "generating")
        assert follower.poll() is None
        desk.go.touch()
        assert follower.wait(60) == 0
    library = desk.library()
    assert "".join(library.log(task_id, follow=True)) == "".join(library.log(task_id))


def test_the_class_does_what_the_command_does(desk: Desk) -> None:
    task = desk.library().generate(desk.image, str(desk.audio), "she speaks", engine="quick", metadata={"a": "b"})
    ended = task.wait()
    assert (task.status, ended.status, ended.ended, ended.progress) == ("queued", "completed", True, 1.0)
    assert unsigned(ended.cancel()) == unsigned(ended.client.task(task.task_id)), "what has ended is left as it is"
    task.download(desk.folder / "own.mp4")
    assert (desk.folder / "own.mp4").stat().st_size == ended.answer["video"]["size_bytes"]
    with pytest.raises(AttributeError):
        task.status = "completed"  # type: ignore[misc]
    uploads = {kind: desk.service.upload(kind, path) for kind, path in (("image", desk.image), ("audio", desk.audio))}
    assert desk.library().generate(uploads["image"], uploads["audio"], "again", engine="quick").wait().ended


def test_the_same_idempotency_key_makes_no_second_task(desk: Desk) -> None:
    again = desk.wish("quick", "--no-wait", "--idempotency-key", "order-4711")
    assert desk.run(*again).out == desk.run(*again).out
    assert desk.run(*again, "--seed", "1").status == client.REFUSED
    with broken(desk, *[(b"POST", 0)] * 50):
        lost = desk.run(*again, "--patience", "1")
    assert lost.status == client.LATER and lost.err.endswith("no second task with --idempotency-key order-4711\n")


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_the_exit_status_follows_from_the_service_s_error_table() -> None:
    later = {
        Code.RATE_LIMITED, Code.QUOTA_EXCEEDED, Code.INTERNAL, Code.QUEUE_FULL, Code.BUSY, Code.DRAINING,
        Code.DATABASE_UNAVAILABLE, Code.STORAGE_FULL,
    }  # fmt: skip
    for code, status in HTTP.items():
        response = HTTPResponse.__new__(HTTPResponse)
        response.status, response.reason, response.headers = int(status), status.phrase, HTTPMessage()
        error = ServiceError(response, {"error_code": code.value, "detail": "no"})
        assert error.exit_status == (client.LATER if code in later else client.REFUSED), code
        assert error.code == code and not error.passing, "without a Retry-After nothing is known of later"


def test_a_refusal_names_each_field_and_has_a_status_of_its_own(desk: Desk) -> None:
    run = desk.run(*desk.wish("quick", "--size", "1*1", "--sample-steps", "9", "--json"))
    assert run.status == client.REFUSED
    assert "  size: must be " in run.err and "  sample_steps: must be at most 4" in run.err
    told = json.loads(run.out)
    assert (told["error_code"], told["status"], len(told["errors"])) == ("invalid_input", 400, 2)
    assert desk.run("status", "gen_20200101_0000000000000000").status == client.REFUSED
    unknown = desk.run("list", AVATAR_API_KEY="nobody-s")
    assert (unknown.status, unknown.err) == (client.REFUSED, "error: credentials are missing or not valid\n")
    assert desk.run(*desk.wish("quick", "--prompt", "\udcff")).status == client.REFUSED


def test_a_refusal_that_comes_before_all_was_sent_is_still_read(desk: Desk) -> None:
    desk.image.write_bytes(os.urandom(24_000_000))
    run = desk.run(*desk.wish())
    assert run.status == client.REFUSED, run.err
    assert "image: " in run.err


def test_what_is_wrong_on_this_machine_is_told_before_anything_is_sent(desk: Desk) -> None:
    before = len(desk.library().tasks(limit=200))
    os.mkfifo(desk.folder / "pipe")
    for arguments in (
        desk.wish("quick", "--image", "nowhere.png"),
        desk.wish("quick", "--image", "."),
        desk.wish("quick", "-o", "no/such/folder/a.mp4"),
        desk.wish("quick", "-o", "folder-that-is-not-there/"),
        desk.wish("quick", "-o", "pipe"),
        desk.wish("quick", "--api-key-file", "nowhere"),
        desk.wish("quick", "--idempotency-key", "ключ"),
        ["status", "../tasks"],
        ["list", "--server", "127.0.0.1:5000"],
        ["list", "--server", "http://me:secret@127.0.0.1"],
    ):
        run = desk.run(*arguments)
        assert (run.status, run.out) == (client.LOCAL, ""), (arguments, run)
    for arguments in (["generate"], ["frobnicate"], ["status"], desk.wish("quick", "--metadata", "x"), []):
        assert desk.run(*arguments).status == 2, arguments
    assert len(desk.library().tasks(limit=200)) == before


def test_a_video_takes_the_place_of_no_device_and_of_a_link_s_target(desk: Desk) -> None:
    """As root, `-o /dev/null` would leave the machine without it."""
    task_id = desk.submit()
    os.mkfifo(desk.folder / "pipe")
    (desk.folder / "link").symlink_to("kept.mp4")
    (desk.folder / "to-pipe").symlink_to("pipe")
    for output in ("pipe", "to-pipe"):
        run = desk.run("download", task_id, "-o", output)
        assert (run.status, "is no file that a video could take the place of" in run.err) == (client.LOCAL, True)
        with pytest.raises(ClientError, match="is no file"):
            desk.library().download(task_id, desk.folder / output)
    assert (desk.folder / "pipe").is_fifo()
    assert desk.run("download", task_id, "-o", "link").status == 0
    assert ((desk.folder / "link").is_symlink(), (desk.folder / "kept.mp4").stat().st_size > 0) == (True, True)


def test_a_service_that_was_never_there_is_told_at_once(desk: Desk) -> None:
    with reserved() as port:
        server = f"http://127.0.0.1:{port}"
        run = desk.run("list", "--server", server, "--json")
    assert run.status == client.LATER
    assert "Connection refused" in run.err and server in run.err
    assert "Connection refused" in json.loads(run.out)["error"]


@contextmanager
def scripted(*answers: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Answer one request after another with these bytes; yield the address and the requests' heads as they come."""
    heads: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        for answer in answers:
            with suppress(OSError), listener.accept()[0] as sock:
                heads.append(sock.recv(65536))
                sock.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heads
        listener.shutdown(socket.SHUT_RDWR)


def test_a_service_that_asks_to_come_again_is_asked_again_within_patience() -> None:
    full = (
        b"HTTP/1.1 503 SERVICE UNAVAILABLE\r\nRetry-After: 1\r\nContent-Type: application/problem+json\r\n"
        b'Content-Length: 46\r\n\r\n{"error_code": "queue_full", "detail": "full"}'
    )
    fine = (
        b"HTTP/1.1 200 OK\r\nX-Request-ID: 1\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n"
        b'{"tasks": []}'
    )
    told: list[ClientError] = []
    with scripted(full, fine) as (url, heads):
        began = time.monotonic()
        assert Client(url, on_trouble=told.append).tasks() == []
        assert time.monotonic() - began >= 1
        assert [str(error) for error in told] == ["full"] and len(heads) == 2
    for patience in (float("nan"), 0.5):
        with scripted(full, fine) as (url, heads), pytest.raises(ServiceError) as refused:
            Client(url, patience=patience).tasks()
    assert (refused.value.code, refused.value.retry_after, refused.value.exit_status) == ("queue_full", 1, client.LATER)
    other = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\n<p/>"
    with scripted(other) as (url, heads), pytest.raises(ClientError, match="not the address of a Live Avatar service"):
        Client(url).tasks()


@pytest.mark.parametrize(
    ("status", "body", "exit_status"),
    [
        (404, b'{"errors": ["Not Found"]}', client.REFUSED),
        (422, b'{"errors": [{"loc": 1}], "detail": [{}]}', client.REFUSED),
        (502, b"[1]", client.LATER),
        (200, b"null", client.LOCAL),
        (200, b'{"task_id": "gen_1"}', client.LOCAL),
    ],
)
def test_an_answer_of_something_else_is_an_error_in_words(status: int, body: bytes, exit_status: int) -> None:
    head = f"HTTP/1.1 {status} X\r\nX-Request-ID: 1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with scripted(f"{head}\r\n\r\n".encode() + body) as (url, _), pytest.raises(ClientError) as failed:
        Client(url, patience=0).task("gen_1")
    assert failed.value.exit_status == exit_status


# --- connections that break -------------------------------------------------------------------------------------------


class Proxy:
    """Passes connections on to a service. The first answers to requests that begin with a word are broken off.

    `breaks` has pairs of that word and after how many bytes; `heads` are the requests that came.
    """

    def __init__(self, port: int, *breaks: tuple[bytes, int]) -> None:
        self.service, self.breaks, self.heads = port, list(breaks), list[bytes]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._pass, args=(self._listener.accept()[0],), daemon=True).start()

    def _pass(self, near: socket.socket) -> None:
        with near, suppress(OSError), socket.create_connection(("127.0.0.1", self.service)) as far:
            head = near.recv(65536)
            self.heads.append(head)
            far.sendall(head)
            threading.Thread(target=self._up, args=(near, far), daemon=True).start()
            left = 2**40
            if self.breaks and head.startswith(self.breaks[0][0]):
                left = self.breaks.pop(0)[1]
            while left > 0 and (piece := far.recv(min(left, 4096))):
                near.sendall(piece)
                left -= len(piece)
            with suppress(OSError):
                near.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _up(near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while piece := near.recv(65536):
                far.sendall(piece)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def broken(desk: Desk, *breaks: tuple[bytes, int]) -> Iterator[Proxy]:
    proxy = Proxy(desk.service.port, *breaks)
    desk.server = proxy.url
    yield proxy
    desk.server = desk.service.url
    proxy.close()


def test_a_connection_that_breaks_anywhere_costs_nothing(desk: Desk) -> None:
    before = len(desk.library().tasks(limit=200))
    post, get, result = b"POST /api/v1/generate", b"GET /api/v1/task", b"GET /results"
    with broken(desk, (post, 0), (post, 30), (get, 0), (get, 50), (result, 0), (result, 1500), (result, 40)) as proxy:
        run = desk.run(*desk.wish("quick", "-o", "got.mp4"))
    assert run.status == 0, run.err
    assert not proxy.breaks, "each of the breaks was met"
    tasks = desk.library().tasks(limit=200)
    assert len(tasks) == before + 1, "the submit was repeated, the task was not"
    digest = hashlib.sha256((desk.folder / "got.mp4").read_bytes()).hexdigest()
    assert digest == tasks[0].answer["video"]["sha256"]
    ranges = [head.split(b"Range: bytes=")[1].split(b"\r")[0] for head in proxy.heads if head.startswith(result)]
    assert ranges[0] == ranges[1] == b"0-"
    assert 0 < int(ranges[2].rstrip(b"-")) == int(ranges[3].rstrip(b"-")) < tasks[0].answer["video"]["size_bytes"]


def test_a_download_goes_on_where_an_earlier_one_ended_and_is_checked(desk: Desk) -> None:
    library = desk.library()
    task = library.generate(desk.image, desk.audio, "x", engine="quick").wait()
    task.download(desk.folder / "whole.mp4")
    whole = (desk.folder / "whole.mp4").read_bytes()
    part = desk.folder / f".own.mp4.{task.task_id}.part"
    part.write_bytes(whole[:1000])
    with broken(desk) as proxy:
        assert desk.run("download", task.task_id, "-o", "own.mp4").status == 0
    assert (desk.folder / "own.mp4").read_bytes() == whole
    assert any(b"Range: bytes=1000-" in head for head in proxy.heads)
    part.write_bytes(b"?" * 1000)
    (desk.folder / "own.mp4").write_bytes(b"an earlier one")
    wrong = desk.run("download", task.task_id, "-o", "own.mp4")
    assert wrong.status == client.LOCAL and "is not the video" in wrong.err
    assert (desk.folder / "own.mp4").read_bytes() == b"an earlier one"
    assert desk.run("download", task.task_id).out == f"{task.task_id}.mp4\n"


def test_a_restart_of_the_service_is_waited_for(desk: Desk) -> None:
    with desk.start(*desk.wish("told", "-o", "late.mp4")) as waiting:
        assert waiting.stderr and waiting.stdout
        read_until(waiting.stderr.fileno(), b"generating")
        desk.service.kill()
        read_until(waiting.stderr.fileno(), b"trying again")
        desk.service.start()
        desk.go.touch()
        assert waiting.wait(120) == 0
        assert waiting.stdout.read() == b"late.mp4\n"


def test_patience_has_an_end_that_tells_how_to_go_on(desk: Desk) -> None:
    task_id = desk.submit()
    with broken(desk, *[(b"GET", 0)] * 50):
        run = desk.run("download", task_id, "--patience", "1", "-o", "x y.mp4")
    assert run.status == client.LATER
    assert f"download {task_id} -o 'x y.mp4' --server" in run.err
    with pytest.raises(Unreachable), broken(desk, *[(b"GET", 0)] * 50):
        desk.library(patience=0).task(task_id)


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


@contextmanager
def at_terminal(desk: Desk, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a command whose streams are a terminal; yield it and the side where someone sits."""
    person, terminal = pty.openpty()
    with desk.start(*arguments, stdin=terminal, stdout=terminal, stderr=terminal) as started:
        os.close(terminal)
        yield started, person
    os.close(person)


def task_at(words: bytes) -> str:
    return words.split(b"task ")[1][:29].decode()


def test_ctrl_c_at_a_terminal_asks_and_yes_cancels(desk: Desk) -> None:
    with at_terminal(desk, *desk.wish("told")) as (started, person):
        seen = read_until(person, b"generating " + "━".encode())  # of a terminal that does not know its size
        started.send_signal(signal.SIGINT)
        read_until(person, b"cancel the task?")
        termios.tcsetwinsize(person, (24, 40))
        os.write(person, b"n\n")  # upon which the bar is drawn anew
        read = read_until(person, b" left")  # and perhaps some of how it is drawn next
        shown = read[: read.index(b" left") + 5].decode().split("\x1b[K")[-1]
        assert shown.startswith("generating ") and "─" in shown and len(shown) < 40
        started.send_signal(signal.SIGINT)
        read_until(person, b"cancel the task?")
        os.write(person, b"y\n")
        read_until(person, b"cancelled\r\n")
        assert started.wait(60) == client.CANCELLED
    assert desk.library().task(task_at(seen)).status == "cancelled"


def test_a_second_ctrl_c_leaves_the_task_alone_and_tells_how_to_pick_it_up(desk: Desk) -> None:
    with at_terminal(desk, *desk.wish("told")) as (started, person):
        task_id = task_at(read_until(person, b"generating "))
        started.send_signal(signal.SIGINT)
        read_until(person, b"cancel the task?")
        started.send_signal(signal.SIGINT)
        read_until(person, f"download {task_id} --server".encode())
        assert started.wait(60) == client.INTERRUPTED
    assert desk.library().task(task_id).status == "processing"
    desk.go.touch()
    assert desk.run("download", task_id).status == 0


def test_an_interrupt_without_a_terminal_leaves_the_task_alone(desk: Desk) -> None:
    with desk.start(*desk.wish("told", "--json")) as started:
        assert started.stderr and started.stdout
        task_id = task_at(read_until(started.stderr.fileno(), b"generating"))
        started.send_signal(signal.SIGINT)
        assert started.wait(60) == client.INTERRUPTED
        assert json.loads(started.stdout.read()) == {"error": "interrupted", "task_id": task_id}
        assert f"download {task_id}".encode() in started.stderr.read()
    assert not desk.library().task(task_id).answer["cancel_requested"]


# --- the key, the streams, the file -----------------------------------------------------------------------------------


def test_the_key_is_in_no_process_list_and_goes_to_no_other_host(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    desk.environment.pop("AVATAR_API_KEY")
    assert desk.run("list").status == client.REFUSED
    with desk.start(*desk.wish("told", "--api-key-file", str(tmp_path / "key"))) as started:
        assert started.stderr
        read_until(started.stderr.fileno(), b"generating")
        assert KEY.encode() not in Path(f"/proc/{started.pid}/cmdline").read_bytes()
        started.kill()
    with scripted(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") as (there, strange):
        moved = f"HTTP/1.1 307 Moved\r\nLocation: {there}/x\r\nContent-Length: 0\r\n\r\n".encode()
        with scripted(moved) as (here, own):
            with pytest.raises(ServiceError, match=there):  # told, not followed
                Client(here, KEY, patience=0).tasks()
            assert KEY.encode() in own[0] and not strange
            Client(here, KEY, patience=0)._append(f"{there}/elsewhere.mp4", tmp_path / "part")
            assert len(strange) == 1 and KEY.encode() not in strange[0]
    with pytest.raises(ClientError) as refused:
        Client(api_key=f"{KEY}\n")
    assert KEY not in str(refused.value)


def test_output_that_nobody_reads_or_that_cannot_be_encoded_is_no_crash(desk: Desk) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    submitted = desk.run(*desk.wish("quick", "--no-wait"), **ascii_only)
    assert desk.library().task(submitted.out.strip()).answer["params"]["prompt"] == PROMPT
    for encoding in (ascii_only, {"PYTHONIOENCODING": "latin-1"}):
        listed = desk.run("list", **encoding)
        assert listed.status == 0 and submitted.out.strip() in listed.out
    odd = os.fsdecode(b"portr\xe4t.png")
    shutil.copy(desk.image, desk.folder / odd)
    assert desk.run(*desk.wish("quick", "--image", odd, "-o", os.fsdecode(b"\xff.mp4"))).status == 0
    assert (desk.folder / os.fsdecode(b"\xff.mp4")).exists()
    reading, writing = os.pipe()
    os.close(reading)
    with desk.start("list", stdout=writing) as started:
        os.close(writing)
        assert started.stderr
        assert (started.wait(60), started.stderr.read()) == (client.CLOSED, b"")
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *desk.command("list")], env=desk.environment, timeout=60
    )
    assert closed.returncode == 0
    with Path("/dev/full").open("wb") as full, desk.start("list", stdout=full) as started:
        assert started.stderr
        assert started.wait(60) == client.LOCAL
        assert started.stderr.read().startswith(b"error: ")


def test_one_file_copied_elsewhere_is_enough(tmp_path: Path) -> None:
    copied = shutil.copy(ROOT / "client.py", tmp_path / "client.py")
    run = subprocess.run([sys.executable, "-I", "-S", copied, "--help"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0
    assert client.EXIT_STATUS in run.stdout
    tree = ast.parse(Path(copied).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {str(name).partition(".")[0] for name in modules} <= sys.stdlib_module_names
