"""What is accepted, and what is answered: forms, JSON, uploads, folders, URLs, and the same request twice."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tasks.admission import NoHardware
from tasks.model import Event
from tasks.store import utc_now
from tests.web.conftest import Serve, Service, form, png, wav

GENERATE = "/api/v1/generate"


def upload(client: FlaskClient, kind: str, content: bytes) -> dict[str, Any]:
    answer = client.post("/api/v1/upload", data={"type": kind, "file": (io.BytesIO(content), "x")})
    assert answer.status_code == 201, answer.text
    return dict(answer.json)


def request_of(service: Service) -> dict[str, Any]:
    """Return a JSON request whose media are uploads."""
    return {"prompt": "a person speaks", "image_path": service.put("image"), "audio_path": service.put("audio")}


def test_a_form_with_two_files_is_queued(service: Service) -> None:
    answer = service.client.post(GENERATE, data=form(num_clip="1", metadata='{"order": "é"}', seed="7", size="384*256"))
    assert answer.status_code == 201
    body = answer.json
    assert answer.headers["Location"] == body["status_url"] == f"/api/v1/task/{body['task_id']}"
    assert (body["status"], body["queue_position"], body["engine"]) == ("queued", 1, "preview")
    assert body["plan"] == {"clips": 1, "frames": 12, "video_seconds": 0.48, "width": 128, "height": 128, "fps": 25}
    assert {note["code"] for note in body["notes"]} >= {"preview", "prompt_unused"}
    task = service.client.get(body["status_url"]).json
    assert task["params"] == {
        "prompt": "a person speaks", "size": "384*256", "num_clip": 1, "sample_steps": 4, "output_format": "mp4",
        "seed": 7, "enable_online_decode": False,
    }  # fmt: skip
    assert task["metadata"] == {"order": "é"}
    assert {name: task[name] for name in body} == body
    assert service.files() == [
        f"tasks/{body['task_id']}", f"tasks/{body['task_id']}/inputs", f"tasks/{body['task_id']}/inputs/audio.wav",
        f"tasks/{body['task_id']}/inputs/image.png",
    ]  # fmt: skip


def test_who_is_accepted_is_told_so_though_the_disk_fails_to_remove_what_is_not_needed_any_more(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr("utils.file_handler.shutil.rmtree", fail)
    answer = service.client.post(GENERATE, data=form())
    assert answer.status_code == 201
    assert service.client.get(answer.json["status_url"]).json["status"] == "queued"


def test_uploads_are_canonical_and_are_not_decoded_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = png()
    stored = upload(service.client, "image", sent)
    assert (stored["size_bytes"], stored["sha256"]) == (len(sent), hashlib.sha256(sent).hexdigest())
    assert stored["media"] == {"width": 96, "height": 80}
    asked = request_of(service)
    monkeypatch.setattr("web.inputs.normalise", lambda *args: pytest.fail("decoded again"))
    answer = service.client.post(GENERATE, json=asked)
    assert answer.status_code == 201
    inputs = service.manager.folders.inputs(answer.json["task_id"])
    path = service.settings.data_dir / asked["image_path"].removeprefix("/")
    assert (inputs / "image.png").read_bytes() == path.read_bytes()


def test_the_type_of_an_upload_is_what_its_bytes_are(client: FlaskClient) -> None:
    answer = client.post("/api/v1/upload", data={"type": "audio", "file": (io.BytesIO(wav()), "portrait.png")})
    assert (answer.status_code, answer.json["type"]) == (201, "audio")
    assert answer.json["media"] == {"seconds": 0.5, "sample_rate": 16000, "channels": 1, "samples": 8000}


def test_files_and_paths_may_be_mixed_in_a_form(service: Service) -> None:
    answer = service.client.post(GENERATE, data=form(audio=None, audio_path=service.put("audio")))
    assert answer.status_code == 201


def test_a_file_of_an_allowed_folder_may_be_named(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "allowed"
    (folder / "deep").mkdir(parents=True)
    (folder / "me.png").write_bytes(png())
    (folder / "deep" / "a.wav").write_bytes(wav())
    service = serve(inputs={"folders": [str(folder)]})
    for audio in (f"{folder}/deep/a.wav", "deep/a.wav"):
        asked = {"prompt": "x", "image_path": f"{folder}/me.png", "audio_path": audio}
        assert service.client.post(GENERATE, json=asked).status_code == 201


class _Media(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = {"/me.png": png(), "/a.wav": wav()}.get(self.path, b"")
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def media_url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Media) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_urls_are_fetched_from_allowed_networks(serve: Serve, media_url: str) -> None:
    service = serve(inputs={"allowed_networks": ["127.0.0.0/8"]})
    asked = {"prompt": "x", "image_path": f"{media_url}/me.png", "audio_path": f"{media_url}/a.wav"}
    assert service.client.post(GENERATE, json=asked).status_code == 201
    asked["audio_path"] = f"{media_url}/none.wav"
    answer = service.client.post(GENERATE, json=asked)
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (400, "audio_path")


def test_a_newline_of_a_form_is_one_character(client: FlaskClient) -> None:
    answer = client.post(GENERATE, data=form(prompt="  first\r\nsecond\r\n"))
    assert client.get(answer.json["status_url"]).json["params"]["prompt"] == "first\nsecond"


def test_a_seed_that_was_not_given_is_random_and_told(service: Service) -> None:
    asked = request_of(service)
    seeds = [
        service.client.get(service.client.post(GENERATE, json=asked).json["status_url"]).json["params"]["seed"]
        for _ in range(3)
    ]
    assert len(set(seeds)) > 1


def test_an_empty_file_input_of_a_browser_counts_as_absent(service: Service) -> None:
    sent = form(audio=(io.BytesIO(b""), ""), audio_path=service.put("audio"))
    boundary = "----x"
    parts = []
    for name, value in sent.items():
        content, file = (
            (value[0].read(), f'; filename="{value[1]}"') if isinstance(value, tuple) else (value.encode(), "")
        )
        parts.append(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content)
    body = b"\r\n".join([*parts, f"--{boundary}--\r\n".encode()])
    answer = service.client.post(GENERATE, data=body, content_type=f"multipart/form-data; boundary={boundary}")
    assert answer.status_code == 201


def test_real_portraits_and_voices_are_taken(client: FlaskClient, trial_inputs: Path) -> None:
    kinds = {".jpg": "image", ".png": "image", ".wav": "audio", ".mp3": "audio"}
    found = [path for path in sorted(trial_inputs.iterdir()) if path.suffix in kinds]
    assert found
    for path in found:
        stored = upload(client, kinds[path.suffix], path.read_bytes())
        assert stored["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


# --- the same request twice -------------------------------------------------------------------------------------------


def test_a_repeated_key_gets_the_first_answer_also_after_the_end_and_a_restart(serve: Serve) -> None:
    service = serve()
    asked, key = request_of(service), {"Idempotency-Key": "k-1"}
    first = service.client.post(GENERATE, json=asked, headers=key)
    again = service.client.post(GENERATE, json=asked, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.data == first.data
    assert again.headers["Location"] == first.headers["Location"]
    task = service.manager.store.get(first.json["task_id"])
    service.manager.store.happen(task, Event.CANCEL)
    restarted = serve()
    last = restarted.client.post(GENERATE, json=asked, headers=key)
    assert last.data == first.data
    assert len(restarted.client.get("/api/v1/tasks").json["tasks"]) == 1
    assert len([name for name in restarted.files() if name.count("/") == 1 and name.startswith("tasks/")]) == 1


def test_a_key_is_of_the_contents_not_of_the_way_they_came(service: Service) -> None:
    asked, key = request_of(service), {"Idempotency-Key": "k"}
    first = service.client.post(GENERATE, json=asked, headers=key)
    assert service.client.post(GENERATE, data=form(), headers=key).data == first.data


@pytest.mark.parametrize("form_too", [False, True])
def test_a_repeated_key_gets_the_first_answer_though_what_the_request_names_is_gone(
    service: Service, monkeypatch: pytest.MonkeyPatch, form_too: bool
) -> None:
    """Uploads expire before a task that waits long does, and hardware may be away after a restart."""
    asked, key = request_of(service) | {"metadata": {"b": "2", "a": "1"}}, {"Idempotency-Key": "k"}

    def post() -> TestResponse:
        if form_too:
            words = asked | {"metadata": json.dumps(asked["metadata"])}
            return service.client.post(GENERATE, data=words, content_type="multipart/form-data", headers=key)
        return service.client.post(GENERATE, json=asked, headers=key)

    first = post()
    assert first.status_code == 201
    for path in service.manager.store.uploads.expire(utc_now() + timedelta(days=1), 10):
        service.manager.folders.upload(path).unlink()

    def refuse(engine: str) -> None:
        raise NoHardware("away")

    monkeypatch.setattr(service.manager, "check_engine", refuse)
    again = post()
    assert (again.status_code, again.data) == (201, first.data)
    asked["num_clip"] = 3
    assert post().status_code == 503, "another request is looked at like any"
    assert service.queued() == 1


def test_a_key_with_another_request_is_refused(service: Service) -> None:
    asked, key = request_of(service), {"Idempotency-Key": "k"}
    service.client.post(GENERATE, json=asked, headers=key)
    answer = service.client.post(GENERATE, json=asked | {"num_clip": 3}, headers=key)
    assert (answer.status_code, answer.json["error_code"]) == (422, "key_reused")


def test_a_refused_request_uses_no_key_up(service: Service) -> None:
    asked, key = request_of(service), {"Idempotency-Key": "k"}
    assert service.client.post(GENERATE, json=asked | {"num_clip": 0}, headers=key).status_code == 400
    assert service.client.post(GENERATE, json=asked, headers=key).status_code == 201


def test_of_two_requests_with_one_key_at_once_one_makes_the_task(service: Service) -> None:
    body, key = json.dumps(request_of(service)), {"Idempotency-Key": "k"}

    def post(_: int) -> bytes:
        client = service.app.test_client()
        return client.post(GENERATE, data=body, content_type="application/json", headers=key).data

    with ThreadPoolExecutor(4) as pool:
        answers = set(pool.map(post, range(4)))
    assert len(answers) == 1
    assert service.queued() == 1


@pytest.mark.parametrize("key", ["", "é", "k" * 256, "a\tb"])
def test_a_key_that_is_no_printable_ascii_is_refused(client: FlaskClient, key: str) -> None:
    answer = client.post(GENERATE, json={}, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (400, "Idempotency-Key")
