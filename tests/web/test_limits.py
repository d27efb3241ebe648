"""Too much of anything: bodies with and without a length, files, parts, decoders. Nothing is kept of any."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.web.conftest import Serve, Service, build, close, form, png, wav
from tests.web.servers import get, gunicorn, werkzeug
from utils.file_handler import StorageFull
from utils.media import MediaUnavailable, normalise

GENERATE, UPLOAD = "/api/v1/generate", "/api/v1/upload"
HEAD = b'--B\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
FORM_TYPE = "multipart/form-data; boundary=B"


def test_a_file_past_its_own_limit_is_413_and_names_the_field(serve: Serve) -> None:
    service = serve(inputs={"max_image_bytes": 5000, "max_audio_bytes": 50_000})
    answer = service.client.post(GENERATE, data=form(image=(io.BytesIO(bytes(5001)), "x")))
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (413, "image")
    # An upload tells its type where it likes, also after the file.
    for fields in ({"type": "image", "file": bytes(5001)}, {"file": bytes(5001), "type": "image"}):
        sent = {name: (io.BytesIO(value), "x") if isinstance(value, bytes) else value for name, value in fields.items()}
        answer = service.client.post(UPLOAD, data=sent)
        assert (answer.status_code, answer.json["errors"][0]["field"]) == (413, "file")
    assert service.files() == []


def test_a_text_field_past_its_limit_is_413_and_names_the_field(spotless: Service) -> None:
    answer = spotless.client.post(GENERATE, data=form(prompt="x" * (2**17 + 1)))
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (413, "prompt")


def test_more_parts_than_there_are_fields_are_refused(spotless: Service) -> None:
    part = b'--B\r\nContent-Disposition: form-data; name="type"\r\n\r\nimage\r\n'
    answer = spotless.client.post(UPLOAD, data=part * 5000 + b"--B--\r\n", content_type=FORM_TYPE)
    assert answer.status_code == 413


def test_a_part_header_without_end_is_refused(spotless: Service) -> None:
    answer = spotless.client.post(UPLOAD, data=b"--B\r\nX: " + b"y" * 2**19, content_type=FORM_TYPE)
    assert answer.status_code == 413


def test_a_json_body_past_its_limit_is_413_before_it_is_read(spotless: Service) -> None:
    class Unread(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            pytest.fail("read")

    body = {"wsgi.input": Unread(), "CONTENT_LENGTH": str(2**20 + 1)}
    answer = spotless.client.post(GENERATE, content_type="application/json", environ_overrides=body)
    assert (answer.status_code, answer.json["error_code"]) == (413, "too_large")


def test_a_file_goes_to_disk_as_it_arrives(service: Service) -> None:
    stored: list[int] = []

    left = [HEAD, *[bytes(2**16)] * 64, b"\r\n--B--\r\n"]

    class Watchful:
        """A body of 4 MiB that looks at the disk each time that it is asked for more."""

        def read(self, size: int = -1) -> bytes:
            scratch = service.manager.folders.scratch.rglob("sent-*")
            stored.append(sum(path.stat().st_size for path in scratch))
            return left.pop(0) if left else b""

    body = {"wsgi.input": Watchful(), "wsgi.input_terminated": True, "CONTENT_TYPE": FORM_TYPE}
    answer = service.client.post(GENERATE, environ_overrides=body)
    assert answer.status_code == 400  # no prompt, no audio
    behind = [number * 2**16 - size for number, size in enumerate(stored[1:-1])]
    assert max(behind) <= 4 * 2**16, "more than four reads were held in memory"
    assert service.files() == []


def test_the_disk_that_is_full_is_507_and_leaves_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise StorageFull

    for where in ("web.body.save_stream", "web.inputs.normalise", "web.inputs.link_or_copy"):
        with monkeypatch.context() as patched:
            patched.setattr(where, fail)
            answer = service.client.post(UPLOAD, data={"type": "image", "file": (io.BytesIO(png()), "x")})
            assert (answer.status_code, answer.json["error_code"]) == (507, "storage_full"), where
        assert service.files() == []


def test_an_upload_whose_row_cannot_be_written_leaves_no_file(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise StorageFull

    monkeypatch.setattr(service.manager.store.uploads, "add", fail)
    answer = service.client.post(UPLOAD, data={"type": "image", "file": (io.BytesIO(png()), "x")})
    assert answer.status_code == 507
    assert service.files() == []


def test_a_decoder_that_cannot_be_started_is_a_503_to_come_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise MediaUnavailable("no processes left")

    monkeypatch.setattr("web.inputs.normalise", fail)
    answer = service.client.post(GENERATE, data=form())
    assert (answer.status_code, answer.json["error_code"]) == (503, "busy")
    assert answer.headers["Retry-After"]
    assert service.files() == []


def test_whoever_waits_too_long_for_a_decoder_is_told_to_come_again(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, decoding, go_on = serve(inputs={"decoders": 1}), threading.Event(), threading.Event()

    def slow(*args: object) -> None:
        decoding.set()
        go_on.wait(30)
        raise MediaUnavailable("enough")

    monkeypatch.setattr("web.inputs.normalise", slow)
    monkeypatch.setattr("web.inputs.DECODER_WAIT_SECONDS", 0.05)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(service.app.test_client().post, GENERATE, data=form())
        assert decoding.wait(30)
        answer = service.client.post(GENERATE, data=form())
        go_on.set()
        first.result(30)
    assert (answer.status_code, answer.json["error_code"]) == (503, "busy")
    assert answer.headers["Retry-After"]
    assert service.files() == []


def test_a_tenant_whose_media_take_long_leaves_a_decoder_to_the_others(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, decoding, go_on = (
        serve(inputs={"decoders": 2}, auth={"enabled": True}),
        threading.Event(),
        threading.Event(),
    )
    greedy, other = ({"X-API-Key": service.manager.store.keys.create(tenant)[1]} for tenant in ("greedy", "other"))

    def slow_at_first(*args: Any) -> Any:
        if not decoding.is_set():
            decoding.set()
            go_on.wait(30)
        return normalise(*args)

    monkeypatch.setattr("web.inputs.normalise", slow_at_first)
    monkeypatch.setattr("web.inputs.DECODER_WAIT_SECONDS", 0.05)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(service.app.test_client().post, GENERATE, data=form(), headers=greedy)
        assert decoding.wait(30)
        answers = [service.client.post(GENERATE, data=form(), headers=who).status_code for who in (greedy, other)]
        go_on.set()
        assert (answers, first.result(30).status_code) == ([503, 201], 201)
    assert service.client.post(GENERATE, data=form(), headers=greedy).status_code == 201


# --- over sockets -----------------------------------------------------------------------------------------------------

IMAGE_BYTES, AUDIO_BYTES = 100_000, 200_000
Server = tuple[int, Service]


@pytest.fixture(scope="module", params=["gunicorn", "werkzeug"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Each of the two servers: its port, and a service that sees the same data."""
    folder = tmp_path_factory.mktemp(request.param)
    limits = {"max_image_bytes": IMAGE_BYTES, "max_audio_bytes": AUDIO_BYTES}
    service = build(folder / "data", {"inputs": limits})
    variables = {f"AVATAR_INPUTS__{name.upper()}": str(value) for name, value in limits.items()}
    with contextlib.ExitStack() as stack:
        if request.param == "werkzeug":
            port = stack.enter_context(werkzeug(service.app))
        else:
            port, _ = stack.enter_context(gunicorn(folder, **variables))
        yield port, service
    close(service)


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    """A server in whose data a test must leave nothing."""
    yield running
    assert running[1].files() == []


def post(port: int, path: str, kind: str, body: object, headers: dict[str, str]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the refusal may come before all is sent
        connection.request("POST", path, body, {"Content-Type": kind, **headers}, encode_chunked=True)
    answer = connection.getresponse()
    status, content = answer.status, answer.read()
    # The connection is sane: what is left of the body is never taken for the next request.
    with contextlib.suppress(ConnectionError, http.client.RemoteDisconnected):
        connection.request("GET", "/api/v1/tasks")
        assert connection.getresponse().status == 200
    connection.close()
    assert get(port, "/api/v1/tasks")[0] == 200
    return status, content


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "with its length"])
@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        (GENERATE, "application/json", b'{"prompt":"' + b"x" * 2**20 + b'"}'),
        (GENERATE, FORM_TYPE, HEAD + bytes(IMAGE_BYTES + 1) + b"\r\n--B--\r\n"),
        (GENERATE, FORM_TYPE, b"x" * (2**20 + IMAGE_BYTES + AUDIO_BYTES + 1)),
    ],
    ids=["JSON", "file", "form"],
)
def test_a_body_past_its_limit_is_413(server: Server, path: str, kind: str, body: bytes, chunked: bool) -> None:
    port, _ = server
    pieces = (body[start : start + 2**16] for start in range(0, len(body), 2**16))
    headers = {"Transfer-Encoding": "chunked"} if chunked else {}
    status, content = post(port, path, kind, pieces if chunked else body, headers)
    assert (status, b'"error_code":"too_large"' in content) == (413, True)


def test_a_chunked_form_within_its_limits_is_accepted(server: Server) -> None:
    port, service = server
    parts = [
        f'--B\r\nContent-Disposition: form-data; name="{name}"{rest}\r\n\r\n'.encode() + content + b"\r\n"
        for name, rest, content in (
            ("prompt", "", b"x"), ("image", '; filename="a"', png()), ("audio", '; filename="b"', wav()),
        )
    ]  # fmt: skip
    body = iter([*parts, b"--B--\r\n"])
    status, content = post(port, GENERATE, FORM_TYPE, body, {"Transfer-Encoding": "chunked"})
    assert status == 201
    for _ in ("cancel", "remove"):
        service.manager.delete(json.loads(content)["task_id"], "default")


def test_a_client_that_breaks_off_leaves_nothing(server: Server) -> None:
    port, _ = server
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest("POST", GENERATE)
    connection.putheader("Content-Type", FORM_TYPE)
    connection.putheader("Content-Length", "90000")
    connection.endheaders(HEAD + b"some")
    assert connection.sock is not None
    connection.sock.shutdown(1)  # no more will be sent; an answer may be
    status = connection.getresponse().status
    connection.close()
    assert status == 400


def test_a_malformed_chunk_is_no_bug(server: Server) -> None:
    port, _ = server
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest("POST", GENERATE)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders(b"zz\r\n{}\r\n0\r\n\r\n")
    assert connection.getresponse().status == 400
    connection.close()


def test_without_its_reserve_the_service_refuses_work_before_it_decodes_anything_and_goes_on_reading(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve(disk={"reserve_bytes": 2**60})
    task = service.complete(service.start(service.submit()))
    before = service.files()
    monkeypatch.setattr("web.inputs.normalise", None)
    sent = {"type": "image", "file": (io.BytesIO(png()), "x")}
    for answer in (service.client.post(GENERATE, data=form()), service.client.post(UPLOAD, data=sent)):
        assert (answer.status_code, answer.json["error_code"]) == (507, "storage_full")
    assert service.files() == before
    assert "disk" in " ".join(service.client.get("/api/v1/health").json["reasons"])
    told = service.client.get(f"/api/v1/task/{task.id}").json
    assert told["expires_at"] > told["finish_time"]
    assert service.client.get(told["output_video_url"]).status_code == 200
    service.manager.folders.remove_task(task.id)
    assert service.client.get(f"/api/v1/task/{task.id}/log").status_code == 410, "an ended task's log that is gone"
