"""The real application on a data folder of the test's own, a client that holds each answer against the served OpenAPI
document, small media, and tasks that go through their lives without an engine."""

from __future__ import annotations

import hashlib
import io
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image
from werkzeug.test import TestResponse

from app import create_app
from config_loader import Settings, load_engines, load_settings
from task_manager import TaskManager
from tasks.model import Event, Facts, Result, Task, Video
from tasks.uploads import Upload
from tests.conftest import NOON, make_task
from utils.file_handler import stored_name
from web.inputs import SUFFIXES
from web.openapi import document

CLAIM = Facts(slot="cpu-0", profile="preview_cpu")
VIDEO = Video(
    width=384, height=256, fps=25.0, frames=10, duration_seconds=0.4, size_bytes=1000, sha256="0" * 64,
    video_codec="h264", audio_codec="aac",
)  # fmt: skip
DONE = Facts(result=Result("video.mp4", "poster.jpg", VIDEO))


def png(width: int = 96, height: int = 80, shade: int = 90) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (shade, 120, 150)).save(out, "PNG")
    return out.getvalue()


def wav(seconds: float = 0.5, rate: int = 16_000) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(b"\x10\x20" * int(seconds * rate))
    return out.getvalue()


MEDIA: dict[str, tuple[bytes, dict[str, Any]]] = {
    "image": (png(), {"width": 96, "height": 80}),
    "audio": (wav(), {"seconds": 0.5, "sample_rate": 16_000, "channels": 1, "samples": 8000}),
}


def form(**changes: Any) -> dict[str, Any]:
    """Return a generate form that is accepted; `changes` replace fields, None removes one."""
    fields = {
        "prompt": "a person speaks",
        "image": (io.BytesIO(png()), "me.png"),
        "audio": (io.BytesIO(wav()), "a.wav"),
    }
    return {name: value for name, value in (fields | changes).items() if value is not None}


OPTIONAL = {"Retry-After", "Accept-Ranges", "RateLimit", "RateLimit-Policy"}


class CheckedClient(FlaskClient):
    """A client for which an answer that the OpenAPI document does not describe is a failure."""

    served: dict[str, Any] = document(["preview"])

    def open(self, *args: Any, **kwargs: Any) -> TestResponse:
        response = super().open(*args, **kwargs)
        if response.request.method in ("GET", "POST", "DELETE"):
            check_described(self.application, response)
        return response


def check_described(app: Flask, response: TestResponse) -> None:
    """Hold an answer against what the document says of its operation."""
    assert response.headers["X-Request-ID"]
    adapter = app.url_map.bind("localhost")
    if not adapter.test(response.request.path, response.request.method):
        assert response.status_code in (403, 404, 405)
        return check_content(response, {"$ref": "#/components/schemas/Problem"})
    rule, _ = adapter.match(response.request.path, response.request.method, return_rule=True)
    path = rule.rule.replace("<", "{").replace(">", "}")
    if path in ("/docs/{name}", "/static/{path:name}"):  # the files of pages
        return None
    operation = CheckedClient.served["paths"][path][response.request.method.lower()]
    described = operation["responses"].get(str(response.status_code))
    assert described, f"{response.status} is not described: {response.text[:300]}"
    unnamed = set(described["headers"]) - set(response.headers.keys()) - OPTIONAL
    assert not unnamed, f"missing headers: {unnamed}"
    if response.data:
        assert response.mimetype in described["content"]
        check_content(response, described["content"][response.mimetype]["schema"])
    return None


def check_content(response: TestResponse, schema: dict[str, Any]) -> None:
    if "json" in response.mimetype:
        whole = schema | {"components": CheckedClient.served["components"]}
        jsonschema.validate(response.json, whole, jsonschema.Draft202012Validator)


@dataclass(frozen=True)
class Service:
    """One application with its client and its data."""

    app: Flask
    settings: Settings
    manager: TaskManager
    client: FlaskClient

    def submit(self, number: int = 1, **changes: Any) -> Task:
        """Queue a task without media."""
        draft = make_task(id=f"gen_20261122_{number:016x}", **changes)
        task, _ = self.manager.store.add(
            lambda ahead, now: replace(draft, submit_time=now, updated_at=now), lambda task, position: "{}",
            priority=int(draft.priority), max_queued=1000, tenant=draft.tenant,
        )  # fmt: skip
        return task

    def start(self, task: Task) -> Task:
        return self.manager.store.happen(task, Event.CLAIM, CLAIM)

    def complete(self, task: Task, video: bytes = b"0123456789") -> Task:
        """End a started task with published files."""
        folder = self.manager.folders.result(task.id, task.attempt)
        folder.mkdir(parents=True)
        (folder / "video.mp4").write_bytes(video)
        (folder / "poster.jpg").write_bytes(b"poster")
        return self.manager.store.finish(task.id, task.attempt, Event.COMPLETE, DONE)

    def put(self, kind: str) -> str:
        """Store an upload as if it had been sent and decoded; return its path."""
        content, facts = MEDIA[kind]
        path = f"/uploads/{kind}/{stored_name(SUFFIXES[kind])}"
        (self.settings.data_dir / path.removeprefix("/")).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        self.manager.store.uploads.add(Upload(path, "default", kind, digest, len(content), facts, NOON))
        return path

    def files(self) -> list[str]:
        """Return all files of requests: everything but the database, locks and pipes."""
        folders = self.manager.folders
        kept = (folders.uploads, folders.tasks, folders.results, folders.scratch)
        made = {folders.uploads / "image", folders.uploads / "audio"}
        found = {path for top in kept for path in top.rglob("*")} - made
        return sorted(str(path.relative_to(folders.data)) for path in found)

    def queued(self) -> int:
        return self.manager.health().queued


Serve = Callable[..., Service]


def build(data: Path, overrides: dict[str, Any]) -> Service:
    settings = load_settings({"data_dir": str(data), **overrides})
    app = create_app(settings, _with_a_key(settings) if settings.auth.enabled else None)
    app.test_client_class = CheckedClient
    return Service(app, settings, app.extensions["task_manager"], app.test_client())


def _with_a_key(settings: Settings) -> TaskManager:
    """Return a manager under which the service may start: someone has credentials."""
    manager = TaskManager(settings, load_engines(settings))
    if not settings.auth.takes_tokens and not manager.store.keys.all():
        manager.store.keys.create("first")
    return manager


def close(service: Service) -> None:
    service.app.extensions["waiting"].stop()
    service.manager.store.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Return a function that makes a service; its arguments are settings."""
    made: list[Service] = []

    def one_more(**overrides: Any) -> Service:
        made.append(build(tmp_path / "data", overrides))
        return made[-1]

    yield one_more
    for service in made:
        close(service)


@pytest.fixture
def service(serve: Serve) -> Service:
    return serve()


@pytest.fixture
def client(service: Service) -> FlaskClient:
    return service.client


@pytest.fixture(scope="session")
def shared_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = build(tmp_path_factory.mktemp("spotless") / "data", {})
    yield service
    close(service)


@pytest.fixture
def spotless(shared_service: Service) -> Iterator[Service]:
    """A service, shared for speed, in which a test must leave nothing: no file and no task."""
    before = shared_service.files(), shared_service.queued()
    yield shared_service
    assert (shared_service.files(), shared_service.queued()) == before, "something was kept"
