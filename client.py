#!/usr/bin/env python3
"""Talking videos from the command line or from Python, through the HTTP API of a Live Avatar service.

    python3 client.py generate --image me.png --audio speech.wav --prompt "She smiles." -o out.mp4

    task = Client("http://127.0.0.1:5000").generate(image="me.png", audio="speech.wav", prompt="She smiles.")
    if task.wait().status == "completed":
        task.download("out.mp4")

One file that needs Python 3.11 and nothing else: copy it to where it is wanted. Redirects are not followed, no proxy is
used, and the API key is sent to the service's own address only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

SERVER = "http://127.0.0.1:5000"
FAILED, REFUSED, LATER, CANCELLED, LOCAL, INTERRUPTED, CLOSED = 1, 3, 4, 5, 6, 130, 141
EXIT_STATUS = """exit status:
  0    done
  1    the task failed
  2    the command line is not right
  3    the service refuses the request
  4    the service is away, or asks to come again later
  5    the task was cancelled
  6    a file or a value on this machine is at fault
  130  interrupted; a task that was submitted goes on
  141  whoever read the output has closed it"""
ANSWER_SECONDS = 300.0
"""How long the service may be silent: it answers a submit when it has fetched and decoded the media."""

PIECE = 2**16
T = TypeVar("T")

# --- what goes wrong --------------------------------------------------------------------------------------------------


class ClientError(Exception):
    """What went wrong, in words. `exit_status` is the command's; where `passing`, trying again may help."""

    exit_status, passing = LOCAL, False
    retry_after: int | None = None
    answer: Mapping[str, Any] = {}


class Unreachable(ClientError):
    """There is no service, or the connection to it was lost."""

    exit_status, passing = LATER, True


class Interrupted(ClientError):
    """Someone pressed Ctrl-C."""

    exit_status = INTERRUPTED


class ServiceError(ClientError):
    """The service says no: HTTP `status`, `code` for programs, `fields` with what is wrong, all of its `answer`."""

    def __init__(self, response: HTTPResponse, answer: Mapping[str, Any]) -> None:
        self.status, self.answer = response.status, answer
        self.code = str(answer.get("error_code", f"http_{self.status}"))
        self.fields = _fields(answer.get("errors"))
        after = response.headers.get("Retry-After", "")
        self.retry_after = int(after) if after.isdecimal() else None
        # Hardware that is not there does not come by waiting.
        later = self.status == 429 or (self.status >= 500 and self.code != "no_hardware")
        self.exit_status = LATER if later else REFUSED
        self.passing = later and (self.retry_after is not None or self.status in (502, 504))
        where = response.headers.get("Location") if self.status // 100 == 3 else None
        told = f"the service says that it is at {where}" if where else f"HTTP status {self.status} {response.reason}"
        super().__init__(str(answer.get("detail", told)))


def _fields(errors: Any) -> dict[str, str]:
    """Return what is wrong with which field; whatever stands between may answer in shapes of its own."""
    told = [item for item in errors if isinstance(item, dict)] if isinstance(errors, list) else []
    return {str(item["field"]): str(item["message"]) for item in told if {"field", "message"} <= item.keys()}


@contextmanager
def _locally() -> Iterator[None]:
    """Keep what this machine refuses apart from what the network does: both raise OSError."""
    try:
        yield
    except OSError as error:
        raise ClientError(f"{error.filename or 'a file'}: {error.strerror or error}") from error


# --- for programs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Task:
    """A task as it was when the service was asked; `answer` is all that was told. The methods ask anew."""

    client: Client = field(repr=False, compare=False)
    answer: Mapping[str, Any] = field(repr=False)
    task_id: str
    status: str
    phase: str
    progress: float
    queue_position: int | None
    seconds_left: float | None

    @property
    def ended(self) -> bool:
        return self.status in ("completed", "failed", "cancelled")

    def wait(self) -> Task:
        """Return the task once it has ended, well or not."""
        return deque(self.client.follow(self.task_id), maxlen=1)[0]

    def cancel(self) -> Task:
        return self.client.cancel(self.task_id)

    def download(self, path: str | Path) -> None:
        self.client.download(self.task_id, path)


class _Form:
    """A multipart/form-data body; its files are read while it is sent, as often as it is sent."""

    def __init__(self, texts: Mapping[str, str], files: Mapping[str, Path]) -> None:
        self.boundary = uuid.uuid4().hex
        # What is no text on the command line is sent as it is, to be refused.
        self.parts: list[bytes | Path] = [
            self._head(name) + text.encode(errors="surrogateescape") + b"\r\n" for name, text in texts.items()
        ]
        for name, path in files.items():
            self.parts += [self._head(f'{name}"; filename="{name}'), path, b"\r\n"]
        self.parts.append(f"--{self.boundary}--\r\n".encode())
        with _locally():
            self.length = sum(len(part) if isinstance(part, bytes) else part.stat().st_size for part in self.parts)

    def _head(self, name: str) -> bytes:
        return f'--{self.boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()

    def __iter__(self) -> Iterator[bytes]:
        left = self.length
        for part in self.parts:
            for piece in [part] if isinstance(part, bytes) else _pieces(part):
                left -= len(piece)
                if left < 0:
                    break
                yield piece
        if left:
            raise ClientError("a file changed while it was sent, or is not a regular one")


def _pieces(path: Path) -> Iterator[bytes]:
    with _locally(), path.open("rb") as file:
        yield from iter(partial(file.read, PIECE), b"")


def _target(path: str | Path) -> Path:
    """Return the file that is to become a video: a link's target, and never a device, a pipe or a folder."""
    path = Path(path)
    with _locally():
        if path.exists() and not path.is_file():
            raise ClientError(f"{path}: is no file that a video could take the place of")
        return path.resolve() if path.is_symlink() else path


_Reply = tuple[HTTPResponse, dict[str, Any]]


class Client:
    """Talks to one service; every error is a ClientError.

    A service that was reached before is asked again for `patience` seconds where it does not answer, or asks to come
    again within that time; `on_trouble` is told why, each time. A repeated submit is known by its idempotency key.
    """

    def __init__(
        self, server: str = SERVER, api_key: str | None = None, patience: float = 600.0,
        on_trouble: Callable[[ClientError], None] = lambda error: None,
    ) -> None:  # fmt: skip
        if not re.fullmatch(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?(/[\w.~/-]*)?", server, re.ASCII):
            raise ClientError("the address of the service must look like https://avatar.example.com")
        self.server, self.patience, self._on_trouble = server.rstrip("/"), patience, on_trouble
        self._key = None if api_key is None else _token(api_key, "the API key")
        self.reached = False

    def generate(
        self, image: str | Path, audio: str | Path, prompt: str, idempotency_key: str | None = None,
        **options: str | int | Mapping[str, str] | None,
    ) -> Task:  # fmt: skip
        """Submit a task. `image` and `audio` are files of this machine, http(s) URLs, or paths of uploads.

        `options` are the API's: size, num_clip, sample_steps, output_format, seed, enable_online_decode, engine,
        priority, metadata, webhook_url. None leaves one to the service.
        """
        texts, files = {"prompt": prompt}, {}
        for name, source in (("image", image), ("audio", audio)):
            if isinstance(source, str) and re.match(r"https?://|/uploads/(image|audio)/", source):
                texts[f"{name}_path"] = source
            else:
                files[name] = Path(source)
        given = {name: value for name, value in options.items() if value is not None}
        texts |= {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
        form = _Form(texts, files)
        headers = {
            "Content-Type": f"multipart/form-data; boundary={form.boundary}", "Content-Length": str(form.length),
            "Idempotency-Key": _token(idempotency_key or uuid.uuid4().hex, "the idempotency key"),
        }  # fmt: skip
        return self._task(*self._patiently(lambda: self._call("POST", "generate", headers, form)))

    def task(self, task_id: str) -> Task:
        return self._task(*self._get(_task_path(task_id)))

    def tasks(self, status: str = "", limit: int = 20) -> list[Task]:
        """Return the newest tasks, 200 at most; `status` names one or several, separated by commas."""
        response, page = self._get(f"tasks?{urlencode({'status': status, 'limit': limit}, errors='replace')}")
        return [self._task(response, answer) for answer in page["tasks"]]

    def follow(self, task_id: str, seconds: int = 30) -> Iterator[Task]:
        """Yield the task now, at each change and at least every so many seconds, until it has ended."""
        path, tag, answer = _task_path(task_id), "", dict[str, Any]()
        while True:
            began = time.monotonic()
            query, headers = (f"?wait={seconds}", {"If-None-Match": tag}) if tag else ("", {})
            response, news = self._get(path + query, headers)
            tag, answer = response.headers.get("ETag", tag), news or answer
            task = self._task(response, answer)
            yield task
            if task.ended:
                return
            # No news come early where too many wait already, and when the service is about to stop.
            early = not news and time.monotonic() - began < seconds / 2
            time.sleep(2.0 if early or not tag else 0.2)

    def cancel(self, task_id: str) -> Task:
        """Ask a task to end. One that has ended is left as it is."""
        path = f"{_task_path(task_id)}/cancel"
        try:
            return self._task(*self._patiently(lambda: self._call("POST", path)))
        except ServiceError as error:
            if error.code != "already_ended":
                raise
        return self.task(task_id)

    def log(self, task_id: str, follow: bool = False) -> Iterator[str]:
        """Yield the engine's log in pieces; with `follow`, what is written until the task has ended."""
        offset, attempt = 0, None
        for task in self.follow(task_id, 1) if follow else [self.task(task_id)]:
            if attempt != task.answer["attempt"]:
                offset, attempt = 0, task.answer["attempt"]
            while True:
                response, answer = self._get(f"{_task_path(task_id)}/log?offset={offset}")
                offset = int(response.headers.get("X-Log-Offset", offset))
                if not answer["text"]:
                    break
                yield answer["text"]

    def download(self, task_id: str, path: str | Path) -> None:
        """Fetch the video of a completed task, and check it. What came before a connection broke is gone on with."""
        path, task = _target(path), self.task(task_id)
        facts = task.answer["video"]
        if facts is None:
            raise ClientError(f"the task has no video: it is {task.status}")
        part = path.with_name(f".{path.name}.{task_id}.part")
        while _size(part) < facts["size_bytes"]:
            link = self.task(task_id).answer["output_video_url"]  # a signed one is good for a while only
            self._patiently(partial(self._append, link, part))
        with _locally():
            with part.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != facts["sha256"]:
                part.unlink()
                raise ClientError(f"{path}: what came is not the video; try again")
            part.replace(path)

    # --- requests ---

    def _append(self, link: str, part: Path) -> None:
        """Fetch what the file lacks, or some of it. Raises Unreachable where nothing came."""
        before, lost = _size(part), Unreachable(f"{self.server}: the connection was lost")
        try:
            with self._exchange("GET", link, {"Range": f"bytes={before}-"}) as response:
                if response.status not in (200, 206):
                    raise ServiceError(response, _json(response))
                with _locally():
                    file = part.open("ab" if response.status == 206 else "wb")
                with file:
                    while piece := response.read(PIECE):
                        with _locally():
                            file.write(piece)
        except Unreachable as error:
            lost = error
        if _size(part) <= before:
            raise lost

    def _patiently(self, attempt: Callable[[], T]) -> T:
        """Try until there is an answer or no hope."""
        deadline, pause = time.monotonic() + self.patience, 0.25
        while True:
            try:
                return attempt()
            except ClientError as error:
                pause = error.retry_after or min(pause * 2, 10)
                if not (error.passing and self.reached and time.monotonic() + pause <= deadline):
                    raise
                self._on_trouble(error)
                time.sleep(pause)

    def _get(self, path: str, headers: Mapping[str, str] | None = None) -> _Reply:
        return self._patiently(lambda: self._call("GET", path, headers))

    def _call(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, form: _Form | None = None
    ) -> _Reply:
        with self._exchange(method, f"/api/v1/{path}", headers or {}, form) as response:
            answer = _json(response)
        if response.status // 100 != 2 and response.status != 304:
            raise ServiceError(response, answer)
        if "X-Request-ID" not in response.headers:  # which each of its answers has
            raise self._another()
        return response, answer

    def _another(self) -> ClientError:
        return ClientError(f"{self.server} is not the address of a Live Avatar service")

    @contextmanager
    def _exchange(
        self, method: str, link: str, headers: Mapping[str, str], form: _Form | None = None
    ) -> Iterator[HTTPResponse]:
        """Send one request on a connection of its own. What the network does becomes Unreachable."""
        url, own = urlsplit(link if "://" in link else self.server + link), urlsplit(self.server)
        if self._key and (url.scheme, url.netloc) == (own.scheme, own.netloc):
            headers = {**headers, "Authorization": f"Bearer {self._key}"}
        kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
        connection = kind(str(url.hostname), url.port, timeout=ANSWER_SECONDS)
        try:
            connection.connect()
            self.reached = True
            with suppress(BrokenPipeError, ConnectionResetError):  # a refusal may have come before all was sent
                connection.request(method, url._replace(scheme="", netloc="").geturl(), form, headers)
            response = connection.getresponse()
            if response.length is None and not response.chunked:  # headers that were cut off look whole
                raise HTTPException("the connection was lost")
            yield response
        except (OSError, HTTPException) as error:
            raise Unreachable(f"{self.server}: {error or type(error).__name__}") from error
        finally:
            connection.close()

    def _task(self, response: HTTPResponse, answer: Mapping[str, Any]) -> Task:
        if not answer.keys() >= {"task_id", "status", "queue_position"}:
            raise self._another()
        return Task(
            self, answer, answer["task_id"], answer["status"], answer.get("phase", "queued"),
            answer.get("progress", 0.0), answer["queue_position"], _seconds_left(response, answer),
        )  # fmt: skip


def _task_path(task_id: str) -> str:
    if not re.fullmatch("[A-Za-z0-9_-]+", task_id):
        raise ClientError(f"{task_id!r} is not the id of a task")
    return f"task/{task_id}"


def _token(text: str, what: str) -> str:
    """Return what goes into a header; the error does not show it."""
    if not re.fullmatch("[\x21-\x7e]+", text):
        raise ClientError(f"{what} is empty, or has spaces or other characters than those of ASCII")
    return text


def _size(path: Path) -> int:
    with _locally():
        return path.stat().st_size if path.exists() else 0


def _json(response: HTTPResponse) -> dict[str, Any]:
    """Return the answer's JSON, or its text as the one member of an object; an empty object for no answer."""
    body = response.read()
    if "json" in response.headers.get_content_type():
        with suppress(ValueError, TypeError):
            return dict(json.loads(body))
    return {} if response.status == 304 else {"text": body.decode(errors="replace")}


def _seconds_left(response: HTTPResponse, answer: Mapping[str, Any]) -> float | None:
    """Return what is left of `eta_seconds`, which counts from `updated_at`, by the service's own clock."""
    if answer.get("eta_seconds") is None or "Date" not in response.headers:
        return None
    since = parsedate_to_datetime(response.headers["Date"]) - datetime.fromisoformat(answer["updated_at"])
    return float(max(0.0, answer["eta_seconds"] - max(0.0, since.total_seconds())))


# --- for people -------------------------------------------------------------------------------------------------------

PHASES = {"queued": "waiting", "loading_model": "loading the model", "done": "finishing"}


class Screen:
    """Tells on stderr how it goes: on a terminal in a line that is redrawn, elsewhere in few lines."""

    def __init__(self) -> None:
        self.live, self._last = sys.stderr.isatty() and os.environ.get("TERM") != "dumb", ""

    def say(self, text: str, end: str = "\n") -> None:
        """Print a text, in the place of the bar; what could steer a terminal is not passed on."""
        plain = "".join(sign if sign.isprintable() or sign in "\n\t" else "?" for sign in text)
        print("\r\x1b[K" * self.live + plain, end=end, file=sys.stderr, flush=True)

    def once(self, text: str, rest: str = "") -> None:
        """Print a text unless it was the last one."""
        if text != self._last:
            self._last = text
            self.say(text + rest)

    def show(self, task: Task) -> None:
        """Show how far a task is."""
        ending = ", to be cancelled" if task.answer["cancel_requested"] else ""
        phase = PHASES.get(task.phase, task.phase) + _place(task) + ending
        if self.live:
            self._last = ""
            self.say(self._bar(phase, task.progress, f" {task.progress:4.0%}{_rest(task)}"), end="")
        else:
            self.once(f"{phase}, {int(task.progress * 10) * 10}%", _rest(task))

    @staticmethod
    def _bar(before: str, progress: float, after: str) -> str:
        room = (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1  # 0 where nobody said how wide it is
        width = min(40, room - len(before) - len(after) - 1)
        full, empty = "━─" if "utf" in sys.stderr.encoding.lower() else "#."
        done = round(progress * width)
        return (before + (" " + full * done + empty * (width - done) if width >= 5 else "") + after)[:room]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def _place(task: Task) -> str:
    return f", number {task.queue_position} in line" if task.queue_position else ""


def _rest(task: Task) -> str:
    return "" if task.seconds_left is None else f", about {_clock(task.seconds_left)} left"


def _state(task: Task) -> str:
    if task.status == "failed":
        return f"failed: {task.answer['error']} ({task.answer['error_code']})"
    phase = PHASES.get(task.phase, task.phase)
    return task.status if task.ended else f"{phase} {task.progress:.0%}{_place(task)}{_rest(task)}"


def _start(task: Task) -> str:
    """Return the beginning of a task's prompt."""
    prompt = " ".join(task.answer["params"]["prompt"].split())
    return prompt if len(prompt) <= 40 else f"{prompt[:39]}…"


class Command:
    """One run of the command line. Each public method but `run` is a command, and returns the exit status."""

    client: Client

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked, self.screen, self.submitting = asked, Screen(), False
        self.task_id = getattr(asked, "task_id", "")

    def run(self) -> int:
        try:
            self.client = self._client()
            status: int = getattr(self, self.asked.command)()
            sys.stdout.flush()
        except (ClientError, KeyboardInterrupt) as error:
            return self._failed(error if isinstance(error, ClientError) else Interrupted("interrupted"))
        return status

    def generate(self) -> int:
        asked = self.asked
        options = {name: getattr(asked, name) for name in (option.replace("-", "_") for option in OPTIONS)}
        if asked.output.endswith(".webm") and not asked.output_format:
            options["output_format"] = "webm"
        if not asked.no_wait:
            self._check_output(Path(asked.output))
        self.screen.say(f"submitting to {self.client.server}")
        self.submitting = True
        task = self.client.generate(
            asked.image, asked.audio, asked.prompt, asked.idempotency_key, metadata=dict(asked.metadata), **options
        )
        self.task_id, plan = task.task_id, task.answer["plan"]
        self.screen.say(f"task {self.task_id}: {plan['video_seconds']:g} s, {plan['width']}x{plan['height']}")
        for item in task.answer["adjustments"]:
            self.screen.say(f"adjusted: {item['field']} is {item['to']}, not {item['from']}: {item['reason']}")
        for note in task.answer["notes"]:
            self.screen.say(f"note: {note['message']}")
        return self._print(task.answer, self.task_id) if asked.no_wait else self.download()

    def _check_output(self, output: Path) -> None:
        """Find out before hours of work whether their video could be kept."""
        folder = output if output.is_dir() or self.asked.output.endswith("/") else _target(output).parent
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise ClientError(f"{folder}: is not there, or cannot be written to")

    def download(self) -> int:
        self._check_output(Path(self.asked.output))
        task = self._ended()
        if task.status == "completed":
            path = Path(self.asked.output)
            if path.is_dir():
                path /= f"{self.task_id}.{task.answer['params']['output_format']}"
            task.download(path)
            self.screen.say(f"made in {_clock(task.answer['processing_seconds'])}")
            return self._print(task.answer, str(path))
        self.screen.say(f"task {self.task_id} {_state(task)}")
        if task.answer["log_excerpt"]:
            self.screen.say(f"the end of its log:\n{task.answer['log_excerpt'].rstrip()}")
        self._print(task.answer)
        return FAILED if task.status == "failed" else CANCELLED

    def status(self) -> int:
        task = self.client.task(self.task_id)
        return self._print(task.answer, _state(task))

    def list(self) -> int:
        tasks = self.client.tasks(self.asked.status, self.asked.limit)
        rows = [f"{task.task_id}  {task.answer['submit_time'][:16]}Z  {_state(task)}  {_start(task)}" for task in tasks]
        return self._print({"tasks": [task.answer for task in tasks]}, *rows)

    def cancel(self) -> int:
        task = self.client.cancel(self.task_id)
        return self._print(task.answer, _state(task) if task.ended else "being cancelled")

    def log(self) -> int:
        for text in self.client.log(self.task_id, self.asked.follow):
            print(text, end="", flush=True)
        return 0

    def _client(self) -> Client:
        key = os.environ.get("AVATAR_API_KEY") or None
        if self.asked.api_key_file:
            with _locally():
                key = Path(self.asked.api_key_file).read_text(errors="replace").strip()
        return Client(
            self.asked.server, key, self.asked.patience, lambda error: self.screen.once(f"{error}; trying again")
        )

    def _ended(self) -> Task:
        """Follow the task to its end. A Ctrl-C asks what to do; a second one leaves the task alone."""
        while True:
            try:
                for task in self.client.follow(self.task_id, 2 if self.screen.live else 30):
                    self.screen.show(task)
                self.screen.say("", end="")  # in the place of the bar
                return task
            except KeyboardInterrupt:
                if not (self.screen.live and sys.stdin and sys.stdin.isatty()):
                    raise
                self.screen.say("cancel the task? [y/N; Ctrl-C: leave, and let it go on] ", end="")
                reply = sys.stdin.readline()
                if not reply:  # Ctrl-D
                    raise
                if reply.strip().lower() in ("y", "yes"):
                    self.client.cancel(self.task_id)

    def _print(self, answer: Mapping[str, Any], *lines: str) -> int:
        """Print the result: for programs what the service said, else some lines."""
        for line in [json.dumps(answer)] if getattr(self.asked, "json", False) else lines:
            print(line)
        return 0

    def _failed(self, error: ClientError) -> int:
        """Say what went wrong, and how to go on."""
        self.screen.say(f"error: {error}" if error.exit_status != INTERRUPTED else str(error))
        fields = error.fields if isinstance(error, ServiceError) and len(error.fields) > 1 else {}
        for name, message in fields.items():
            self.screen.say(f"  {name}: {message}")
        if error.retry_after:
            self.screen.say(f"try again in {_clock(error.retry_after)}")
        if error.exit_status != REFUSED:
            self.screen.say(self._how_to_go_on(isinstance(error, Unreachable | Interrupted)), end="")
        self._print({"error": str(error), "task_id": self.task_id or None, **error.answer})
        return error.exit_status

    def _how_to_go_on(self, without_answer: bool) -> str:
        asked = self.asked
        if asked.command not in ("generate", "download"):
            return ""
        if self.task_id:
            output = [] if asked.output == "." else ["-o", asked.output]
            words = ["python3", sys.argv[0], "download", self.task_id, *output, "--server", self.client.server]
            return f"the task is left as it is; to go on: {shlex.join(words)}\n"
        if self.submitting and self.client.reached and without_answer:
            known = "whether it was accepted is not known; the same command makes no second task with"
            return f"{known} --idempotency-key {asked.idempotency_key}\n"
        return ""


COMMANDS = {
    "generate": "submit a portrait, a recording and a prompt, wait, and fetch the video",
    "download": "wait for a task to end, and fetch its video",
    "status": "tell how a task is",
    "list": "list the newest tasks",
    "cancel": "end a task that waits or runs",
    "log": "print what the engine of a task has written",
}
OPTIONS: Mapping[str, dict[str, Any]] = {
    "size": {"metavar": "W*H", "help": "720*400, 704*384, 688*368 or 384*256: an area; the image gives the aspect"},
    "num-clip": {"metavar": "N", "type": int, "help": "at most so many clips"},
    "sample-steps": {"metavar": "N", "type": int, "help": "1 to 4: more is better, and slower"},
    "output-format": {"metavar": "FORMAT", "help": "mp4 or webm"},
    "seed": {"metavar": "N", "type": int, "help": "that of an earlier task makes its video again"},
    "engine": {"metavar": "NAME", "help": "auto, or an engine of the service"},
    "priority": {"metavar": "HOW", "help": "low, normal or high"},
    "webhook-url": {"metavar": "URL", "help": "an address to be told of the end"},
    "enable-online-decode": {"action": "store_const", "const": True, "help": "less memory on long videos"},
}
"""Of a submit, as the service calls them but for the hyphens."""


def _pair(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _parser() -> argparse.ArgumentParser:
    shape: dict[str, Any] = {"epilog": EXIT_STATUS, "formatter_class": argparse.RawDescriptionHelpFormatter}
    whole = argparse.ArgumentParser(description="Make talking videos with a Live Avatar service.", **shape)
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {name: commands.add_parser(name, help=told, description=told, **shape) for name, told in COMMANDS.items()}
    _add_wishes(parsers["generate"])
    for name in ("download", "status", "cancel", "log"):
        parsers[name].add_argument("task_id", metavar="TASK", help="its id, gen_...")
    for name in ("generate", "download"):
        parsers[name].add_argument("-o", "--output", metavar="PATH", default=".", help="the video's file or folder (.)")
    parsers["list"].add_argument("--status", metavar="S[,S]", default="", help="only tasks with one of these")
    parsers["list"].add_argument("--limit", metavar="N", type=int, default=20, help="1 to 200 (20)")
    parsers["log"].add_argument("-f", "--follow", action="store_true", help="go on until the task has ended")
    for name, command in parsers.items():
        if name != "log":
            command.add_argument("--json", action="store_true", help="print what the service says, as one line of JSON")
        address = os.environ.get("AVATAR_URL") or SERVER
        command.add_argument("--server", metavar="URL", default=address, help=f"else AVATAR_URL, else {SERVER}")
        command.add_argument("--api-key-file", metavar="FILE", help="else AVATAR_API_KEY is the key, if one is needed")
        command.add_argument("--patience", metavar="S", type=float, default=600.0, help="seconds to try again (600)")
    return whole


def _add_wishes(command: argparse.ArgumentParser) -> None:
    for name in ("image", "audio"):
        command.add_argument(f"--{name}", metavar="SOURCE", required=True, help="a file, a URL or an upload's path")
    command.add_argument("--prompt", metavar="TEXT", required=True, help="what the video shows")
    for name, how in OPTIONS.items():
        command.add_argument(f"--{name}", **how)
    command.add_argument("--metadata", metavar="KEY=VALUE", type=_pair, action="append", default=[], help="repeatable")
    command.add_argument("--idempotency-key", metavar="K", default=uuid.uuid4().hex, help="repeated: no second task")
    command.add_argument("--no-wait", action="store_true", help="print the task's id instead of waiting")


def main() -> int:
    """Run the command line; return its exit status."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed; a connection must not get its number
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        getattr(sys, name).reconfigure(errors="backslashreplace")
    try:
        return Command(_parser().parse_args()).run()
    except KeyboardInterrupt:  # while it was saying how it ended
        return INTERRUPTED
    except OSError as error:  # of the output: what the network or a file does is a ClientError
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the rest goes at exit
        if isinstance(error, BrokenPipeError):
            return CLOSED
        print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
        return LOCAL


if __name__ == "__main__":
    sys.exit(main())
