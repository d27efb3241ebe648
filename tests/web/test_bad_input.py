"""Requests that are wrong: the answer names the field and nothing is kept (the fixture `spotless` holds that)."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.web.conftest import Serve, Service, form, png, wav

GENERATE, UPLOAD = "/api/v1/generate", "/api/v1/upload"
NO_UPLOAD = "/uploads/image/" + "0" * 32 + ".png"
GOOD = {"prompt": "a person speaks", "image_path": NO_UPLOAD, "audio_path": NO_UPLOAD.replace("image", "audio")}

FIELDS: list[tuple[str, Any, str]] = [
    ("prompt", "", "1 to 2,000"),
    ("prompt", " \n\t ", "1 to 2,000"),
    ("prompt", "x" * 2001, "1 to 2,000"),
    ("prompt", "a\u001b[31mb", "control"),
    ("prompt", "a\u0000b", "control"),
    ("prompt", "a\u0085b", "control"),
    ("prompt", 5, "string"),
    ("prompt", None, "string"),
    ("prompt", ["x"], "string"),
    ("size", "1x1", "must be"),
    ("size", "688x368", "must be"),
    ("size", 688, "must be"),
    ("num_clip", "5", "integer"),
    ("num_clip", 5.0, "integer"),
    ("num_clip", True, "integer"),
    ("num_clip", None, "integer"),
    ("num_clip", 0, "at least 1"),
    ("num_clip", 10_001, "at most 10000"),
    ("num_clip", 10**400, "at most 10000"),
    ("sample_steps", 5, "at most 4"),
    ("sample_steps", -1, "at least 1"),
    ("output_format", "avi", "must be"),
    ("output_format", "MP4", "must be"),
    ("seed", -1, "at least 0"),
    ("seed", 2**32, "at most 4294967295"),
    ("seed", "1", "integer"),
    ("enable_online_decode", 1, "true or false"),
    ("enable_online_decode", "true", "true or false"),
    ("engine", "warp_drive", "no engine of this name"),
    ("engine", "../preview", "no engine of this name"),
    ("engine", "", "at least 1"),
    ("engine", "e" * 65, "at most 64"),
    ("priority", "urgent", "must be"),
    ("priority", 1, "must be"),
    ("webhook_url", "", "at least 1"),
    ("webhook_url", 1, "string"),
    ("webhook_url", "https://example.com/" + "x" * 2048, "at most 2048"),
    ("webhook_url", "ftp://example.com/hook", "http"),
    ("webhook_url", "http://127.0.0.1/hook", "not public"),
    ("webhook_url", "http://[::ffff:10.0.0.1]/hook", "not public"),
    ("webhook_url", "http://169.254.169.254/latest", "not public"),
    ("webhook_url", "http://2130706433/", "unusual notation"),
    ("webhook_url", "https://user:word@example.com/", "credentials"),
    ("webhook_url", "https://example.com:6379/", "port 6379"),
    ("webhook_url", "https://example.com/\r\nX-A: b", "control characters"),
    ("metadata", [], "object"),
    ("metadata", "{}", "object"),
    ("metadata", {str(n): "" for n in range(17)}, "at most 16"),
    ("metadata.a", {"a": 1}, "string"),
    ("metadata.a", {"a": "v" * 513}, "at most 512"),
    ("metadata.a", {"a": {"b": "c"}}, "string"),
    ("ckpt_dir", "/models", "not a known field"),
    ("tenant", "other", "not a known field"),
    ("image", "x", "not a known field"),
    ("image_path", "", "at least 1"),
    ("image_path", NO_UPLOAD, "no such upload"),
    ("image_path", "/etc/passwd", "no such file"),
    ("image_path", "../../etc/passwd", "no such file"),
    ("image_path", "a\u0000b", "no such file"),
    ("image_path", "x" * 4096, "no such file"),
    ("image_path", "x" * 4097, "at most 4096"),
    ("image_path", "/proc/self/environ", "no such file"),
    ("image_path", "file:///etc/passwd", "http"),
    ("image_path", "ftp://example.com/a.png", "http"),
    ("image_path", "http://127.0.0.1/a.png", "not public"),
    ("image_path", "http://[::1]/a.png", "not public"),
    ("image_path", "http://169.254.169.254/latest/meta-data", "not public"),
    ("image_path", "http://2130706433/", "unusual"),
    ("image_path", "http://user:pass@example.com/", "credentials"),
    ("image_path", "http://example.com/a b", "spaces"),
]


@pytest.mark.parametrize(("field", "value", "says"), FIELDS, ids=lambda value: ascii(value)[:40])
def test_a_wrong_field_is_named_and_nothing_is_kept(spotless: Service, field: str, value: Any, says: str) -> None:
    answer = spotless.client.post(GENERATE, json=GOOD | {field.partition(".")[0]: value})
    assert answer.status_code == 400
    problem = answer.json
    assert problem["error"] == problem["detail"]
    assert "\n" not in problem["detail"]
    assert field in [error["field"] for error in problem["errors"]]
    assert says in next(error["message"] for error in problem["errors"] if error["field"] == field)
    assert str(spotless.settings.data_dir) not in answer.text


@pytest.mark.parametrize("missing", ["prompt", "image_path", "audio_path"])
def test_a_missing_field_is_named(spotless: Service, missing: str) -> None:
    answer = spotless.client.post(GENERATE, json={name: value for name, value in GOOD.items() if name != missing})
    assert answer.json["errors"] == [{"field": missing, "message": "is required"}]


BODIES: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("not JSON", b"prompt=x"),
    ("not an object", b'"x"'),
    ("null", b"null"),
    ("nested 100,000 deep", b"[" * 100_000),
    ("objects nested 100,000 deep", b'{"a":' * 100_000),
    ("an integer of 5,000 digits", b'{"num_clip":' + b"9" * 5000 + b"}"),
    ("not UTF-8", b'{"prompt":"\xff"}'),
    ("a lone surrogate", b'{"prompt":"\\ud800"}'),
    ("a lone surrogate as key", b'{"\\udfff":1}'),
    ("a byte order mark of UTF-16", '{"prompt":"x"}'.encode("utf-16")),
    ("cut off", json.dumps(GOOD).encode()[:-5]),
    ("twice", json.dumps(GOOD).encode() * 2),
    ("a comment", b'{"prompt":"x"} // hi'),
]


@pytest.mark.parametrize("body", [body for _, body in BODIES], ids=[name for name, _ in BODIES])
def test_a_body_that_is_no_json_object_is_refused(spotless: Service, body: bytes) -> None:
    answer = spotless.client.post(GENERATE, data=body, content_type="application/json")
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (400, "body")
    assert len(answer.data) < 1000


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e3", b"5e0", b"050", b"0x10"])
def test_numbers_that_are_no_integers_are_refused(spotless: Service, number: bytes) -> None:
    body = json.dumps(GOOD).encode()[:-1] + b',"num_clip":' + number + b"}"
    answer = spotless.client.post(GENERATE, data=body, content_type="application/json")
    assert (answer.status_code, answer.json["errors"][0]["field"]) in ((400, "num_clip"), (400, "body"))


def test_unknown_fields_by_the_thousand_are_refused_in_a_short_answer(spotless: Service) -> None:
    many = {f"unknown_{n}" * 3: n for n in range(20_000)}
    answer = spotless.client.post(GENERATE, json=many)
    assert answer.status_code == 400
    assert len(answer.json["errors"]) == 20
    assert len(answer.data) < 10_000


def test_a_huge_field_name_is_not_sent_back(spotless: Service) -> None:
    answer = spotless.client.post(GENERATE, json=GOOD | {"<script>\r\n" + "n" * 100_000: 1})
    assert answer.status_code == 400
    assert len(answer.data) < 2000
    assert not set("\r\n") & set(answer.json["errors"][0]["field"])


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx", "multipart/mixed", "x", "\xff"]
)
def test_another_content_type_is_415(spotless: Service, kind: str) -> None:
    for path in (GENERATE, UPLOAD):
        answer = spotless.client.post(path, data=json.dumps(GOOD), content_type=kind)
        assert (answer.status_code, answer.json["error_code"]) == (415, "unsupported_type")


# --- forms ------------------------------------------------------------------------------------------------------------

FORMS: list[tuple[str, dict[str, Any], str]] = [
    ("digits with a point", {"num_clip": "5.0"}, "num_clip"),
    ("digits with blanks", {"num_clip": " 5"}, "num_clip"),
    ("other digits", {"num_clip": "٥"}, "num_clip"),
    ("5,000 digits", {"num_clip": "9" * 5000}, "num_clip"),
    ("a boolean in capitals", {"enable_online_decode": "True"}, "enable_online_decode"),
    ("a boolean as a number", {"enable_online_decode": "1"}, "enable_online_decode"),
    ("metadata that are no JSON", {"metadata": "{order: 1}"}, "metadata"),
    ("metadata that are a list", {"metadata": "[]"}, "metadata"),
    ("metadata with NaN", {"metadata": '{"a": NaN}'}, "metadata"),
    ("metadata nested deep", {"metadata": "[" * 10_000}, "metadata"),
    ("metadata with a lone surrogate", {"metadata": '{"a": "\\ud800"}'}, "metadata"),
    ("an unknown field", {"ckpt_dir": "x"}, "ckpt_dir"),
    ("an unknown file", {"lora": (io.BytesIO(b"x"), "x")}, "lora"),
    ("a field twice", {"size": ["384*256", "384*256"]}, "size"),
    ("an image twice", {"image": [(io.BytesIO(b"x"), "a"), (io.BytesIO(b"x"), "b")]}, "image"),
    ("no image", {"image": None}, "image"),
    ("no audio", {"audio": None}, "audio"),
    ("an image as text", {"image": "portrait.png"}, "image"),
    ("a prompt as file", {"prompt": (io.BytesIO(b"x"), "prompt.txt")}, "prompt"),
    ("a file and a path", {"image_path": NO_UPLOAD}, "image"),
    ("an empty path", {"image": None, "image_path": ""}, "image_path"),
    ("an engine nobody has", {"engine": "x"}, "engine"),
    ("a webhook with a tab", {"webhook_url": "https://example.com/\t"}, "webhook_url"),
    ("a webhook of another kind", {"webhook_url": "https:example.com"}, "webhook_url"),
]


@pytest.mark.parametrize(("changes", "field"), [row[1:] for row in FORMS], ids=[row[0] for row in FORMS])
def test_a_wrong_field_of_a_form_is_named_and_nothing_is_kept(
    spotless: Service, changes: dict[str, Any], field: str
) -> None:
    fresh = {name: _again(value) for name, value in changes.items()}
    answer = spotless.client.post(GENERATE, data=form(**fresh), content_type="multipart/form-data")
    assert answer.status_code == 400, answer.text
    assert field in [error["field"] for error in answer.json["errors"]]


def _again(value: Any) -> Any:
    """Return a file of the table unread: parametrised values are shared."""
    if isinstance(value, list):
        return [_again(item) for item in value]
    return (io.BytesIO(value[0].getvalue()), value[1]) if isinstance(value, tuple) else value


PART = b'Content-Disposition: form-data; name="prompt"\r\n\r\nhi\r\n'
RAW_FORMS: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("no boundary in it", b"hello"),
    ("no end", b"--B\r\n" + PART),
    ("headers without end", b"--B\r\nContent-Disposition: form-data; name=prompt"),
    ("a part without disposition", b"--B\r\nX: y\r\n\r\nhi\r\n--B--\r\n"),
    ("a part without name", b"--B\r\nContent-Disposition: form-data\r\n\r\nhi\r\n--B--\r\n"),
    ("a file without name", b"--B\r\nContent-Disposition: form-data; filename=x\r\n\r\nhi\r\n--B--\r\n"),
    ("headers that are not UTF-8", b'--B\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nhi\r\n--B--\r\n'),
    ("a value that is not UTF-8", b'--B\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\r\n--B--\r\n'),
    ("no parts", b"--B--\r\n"),
    ("a nested form", b"--B\r\nContent-Type: multipart/mixed; boundary=C\r\n\r\n--C--\r\n--B--\r\n"),
]


@pytest.mark.parametrize("body", [body for _, body in RAW_FORMS], ids=[name for name, _ in RAW_FORMS])
@pytest.mark.parametrize("path", [GENERATE, UPLOAD])
def test_a_malformed_form_is_refused(spotless: Service, path: str, body: bytes) -> None:
    answer = spotless.client.post(path, data=body, content_type="multipart/form-data; boundary=B")
    assert answer.status_code == 400
    assert answer.json["errors"][0]["field"] is not None


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "b" * 201]
)
def test_a_form_without_a_usable_boundary_is_refused(spotless: Service, kind: str) -> None:
    assert spotless.client.post(GENERATE, data=b"--B--", content_type=kind).status_code == 400


# --- media ------------------------------------------------------------------------------------------------------------

MEDIA: list[tuple[str, str, bytes, str]] = [
    ("text as audio", "audio", b"hello, this is a text file\n" * 20, "text"),
    ("a truncated image", "image", png(400, 400)[:300], "cut off"),
    ("no bytes of audio", "audio", b"", "empty"),
    ("no bytes of image", "image", b"", "empty"),
    ("an image as audio", "audio", png(), "image"),
    ("audio as image", "image", wav(), "WAV"),
    ("a playlist as audio", "audio", b"#EXTM3U\nfile:///etc/passwd\n", "playlist"),
    ("an SVG as image", "image", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    ("audio too short", "audio", wav(0.1), "0.2"),
    ("an image too small", "image", png(63, 80), "64"),
    ("an image too narrow", "image", png(64, 300), "4"),
]


@pytest.mark.parametrize(("kind", "content", "says"), [row[1:] for row in MEDIA], ids=[row[0] for row in MEDIA])
def test_a_file_that_no_engine_could_use_is_refused_in_forms_and_uploads_alike(
    spotless: Service, kind: str, content: bytes, says: str
) -> None:
    answer = spotless.client.post(GENERATE, data=form(**{kind: (io.BytesIO(content), "file.bin")}))
    assert (answer.status_code, [error["field"] for error in answer.json["errors"]]) == (400, [kind])
    assert says in answer.json["detail"]
    answer = spotless.client.post(UPLOAD, data={"type": kind, "file": (io.BytesIO(content), "file.bin")})
    assert (answer.status_code, [error["field"] for error in answer.json["errors"]]) == (400, ["file"])
    assert says in answer.json["detail"]


def test_two_bad_media_are_both_named(spotless: Service) -> None:
    answer = spotless.client.post(GENERATE, data=form(image=(io.BytesIO(b"x"), "a"), audio=(io.BytesIO(b"x"), "b")))
    assert [error["field"] for error in answer.json["errors"]] == ["image", "audio"]


def test_an_upload_of_the_other_kind_is_refused(service: Service) -> None:
    stored = service.put("audio")
    answer = service.client.post(GENERATE, json={"prompt": "x", "image_path": stored, "audio_path": stored})
    assert answer.json["errors"] == [{"field": "image_path", "message": "this upload is of type audio, not image"}]


def test_an_upload_whose_file_is_gone_is_refused(service: Service) -> None:
    paths = {f"{kind}_path": service.put(kind) for kind in ("image", "audio")}
    (service.settings.data_dir / paths["audio_path"].removeprefix("/")).unlink()
    answer = service.client.post(GENERATE, json={"prompt": "x", **paths})
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (400, "audio_path")


def test_links_and_what_lies_beside_the_allowed_folder_are_refused(serve: Serve, tmp_path: Path) -> None:
    folder, beside = tmp_path / "allowed", tmp_path / "allowed-not"
    for path in (folder, beside):
        path.mkdir()
        (path / "me.png").write_bytes(png())
    (folder / "link.png").symlink_to(beside / "me.png")
    service = serve(inputs={"folders": [str(folder)]})
    for name in ("link.png", f"{beside}/me.png", f"{folder}/../allowed-not/me.png", f"{folder}", "."):
        answer = service.client.post(GENERATE, json=GOOD | {"image_path": name})
        assert (answer.status_code, answer.json["errors"][0]["field"]) == (400, "image_path"), name


def test_urls_are_refused_where_the_settings_say_so(serve: Serve) -> None:
    service = serve(inputs={"allow_urls": False})
    answer = service.client.post(GENERATE, json=GOOD | {"image_path": "https://example.com/a.png"})
    assert answer.json["errors"] == [{"field": "image_path", "message": "URLs are not allowed here"}]


@pytest.mark.parametrize("form_type", [{}, {"type": "video"}, {"type": "image", "name": "x"}])
def test_an_upload_needs_its_type_and_nothing_else(spotless: Service, form_type: dict[str, str]) -> None:
    answer = spotless.client.post(UPLOAD, data={**form_type, "file": (io.BytesIO(png()), "a.png")})
    assert answer.status_code == 400


def test_an_upload_without_a_file_is_refused(spotless: Service) -> None:
    answer = spotless.client.post(UPLOAD, data={"type": "image"}, content_type="multipart/form-data")
    assert answer.json["errors"] == [{"field": "file", "message": "is required"}]


# --- queries ----------------------------------------------------------------------------------------------------------

QUERIES: list[tuple[str, str]] = [
    ("limit=0", "limit"), ("limit=201", "limit"), ("limit=x", "limit"), ("limit=1.0", "limit"),
    ("limit=1&limit=2", "limit"), ("status=done", "status.0"), ("status=queued,nope", "status.1"),
    ("cursor=x", "cursor"), ("cursor=YmVmb3JlOi0x", "cursor"), ("cursor=" + "A" * 65, "cursor"),
    ("cursor=%00", "cursor"), ("cursor=%ff", "cursor"), ("statuss=queued", "statuss"), ("tenant=other", "tenant"),
    ("cursor=YmVmb3JlOjk5OTk5OTk5OTk5OTk5OTk5OTk", "cursor"),
]  # fmt: skip


@pytest.mark.parametrize(("query", "field"), QUERIES)
def test_a_wrong_query_is_named(spotless: Service, query: str, field: str) -> None:
    answer = spotless.client.get(f"/api/v1/tasks?{query}")
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (400, field)


@pytest.mark.parametrize("query", ["wait=0", "wait=61", "wait=-1", "wait=x", "wait=1e1", "Wait=1"])
def test_a_wrong_wait_is_named(service: Service, query: str) -> None:
    task = service.submit()
    answer = service.client.get(f"/api/v1/task/{task.id}?{query}")
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (400, query.partition("=")[0])


@pytest.mark.parametrize("offset", ["-1", "x", "9" * 30, str(2**63)])
def test_a_wrong_offset_is_named(service: Service, offset: str) -> None:
    answer = service.client.get(f"/api/v1/task/{service.submit().id}/log?offset={offset}")
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (400, "offset")
