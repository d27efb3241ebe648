"""The document says what the service does, and the page shows it without another host."""

from __future__ import annotations

import re
from io import BytesIO
from typing import Any

import jsonschema
import pytest

from api_schema import GenerateRequest
from app import ROUTES
from tests.web.conftest import Service
from utils.plan import SIZES
from web.docs import _FILES
from web.errors import HTTP, PROBLEM, Code


@pytest.fixture
def document(spotless: Service) -> dict[str, Any]:
    answer = spotless.client.get("/api/v1/openapi.json")
    assert (answer.status_code, answer.mimetype) == (200, "application/json")
    return dict(answer.json)


def test_every_route_is_described_and_nothing_else(document: dict[str, Any]) -> None:
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    routes = {(method, re.sub(r"<(?:path:)?(\w+)>", r"{\1}", rule)) for method, rule, _, _ in ROUTES}
    assert routes - described == {("GET", "/docs/{name}"), ("GET", "/static/{name}")}  # the pages' own files
    assert described <= routes


def test_every_status_of_an_error_is_described_somewhere(document: dict[str, Any]) -> None:
    described = {status for item in document["paths"].values() for one in item.values() for status in one["responses"]}
    assert {str(status.value) for status in HTTP.values()} <= described


def test_its_schemas_are_json_schemas_and_its_references_lead_somewhere(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    references = set(re.findall(r"'\$ref': '#/components/schemas/(\w+)'", str(document)))
    assert references <= set(document["components"]["schemas"])
    assert set(document["components"]["schemas"]) - references == set()


def test_its_examples_are_accepted_by_the_models(document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["GenerateRequest"]
    assert schema["examples"]
    for example in schema["examples"]:
        GenerateRequest.model_validate(example)
        whole = schema | {"components": document["components"]}
        jsonschema.validate(example, whole, jsonschema.Draft202012Validator)


def test_it_names_the_engines_and_sizes_there_are(document: dict[str, Any]) -> None:
    fields = document["components"]["schemas"]["GenerateRequest"]["properties"]
    assert fields["engine"]["enum"] == ["auto", "live_avatar", "preview"]
    assert fields["size"]["enum"] == list(SIZES)


def test_a_form_takes_files_where_json_takes_paths(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert {"image", "audio", "image_path", "audio_path"} <= set(schemas["GenerateForm"]["properties"])
    assert schemas["GenerateForm"]["required"] == ["prompt"]
    assert set(schemas["GenerateRequest"]["required"]) == {"prompt", "image_path", "audio_path"}
    assert set(schemas["UploadForm"]["required"]) == {"file", "type"}


def test_the_page_and_all_it_refers_to_are_served_from_here(spotless: Service) -> None:
    page = spotless.client.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    references = re.findall(r'(?:src|href)="(/[^"]*)"', page.text)
    assert {f"/docs/{name}" for name in _FILES} <= set(references)
    for reference in references:
        answer = spotless.client.get(reference)
        assert answer.status_code == 200, reference
        assert len(answer.data) > 100
    assert not re.search(r"<script>|<style|\son\w+=|https?://", page.text)


def test_the_pages_policy_allows_no_other_host_and_nothing_inline(spotless: Service) -> None:
    policy = dict(
        part.strip().split(" ", 1)
        for part in spotless.client.get("/docs").headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert not re.search("unsafe|https?:|[*]", " ".join(policy.values()))


@pytest.mark.parametrize("name", ["docs.css", "start.js"])
def test_what_a_release_may_change_is_asked_for_at_each_visit(spotless: Service, name: str) -> None:
    answer = spotless.client.get(f"/docs/{name}")
    assert answer.headers["Cache-Control"] == "no-cache"
    assert spotless.client.get(f"/docs/{name}", headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304


@pytest.mark.parametrize(
    "name", ["__init__.py", "..", "%2e%2e%2fdocs.py", "swagger-ui.js", "start.js%00", "index.html"]
)
def test_no_other_file_is_served_beside_the_page(spotless: Service, name: str) -> None:
    assert spotless.client.get(f"/docs/{name}").status_code == 404


def test_every_answer_and_every_body_that_is_text_has_examples_that_fit_its_schema(document: dict[str, Any]) -> None:
    shown: dict[str, set[str]] = {}
    for item in document["paths"].values():
        for operation in item.values():
            bodies = [*operation["responses"].values(), operation.get("requestBody", {})]
            for kind, content in ((k, c) for body in bodies for k, c in body.get("content", {}).items()):
                if kind.endswith("json") or kind.startswith("multipart/"):
                    assert content["examples"], (operation["operationId"], kind)
                schema = content["schema"] | {"components": document["components"]}
                for name, example in content.get("examples", {}).items():
                    jsonschema.validate(example["value"], schema, jsonschema.Draft202012Validator)
                    shown.setdefault(kind, set()).add(name)
    assert shown["application/problem+json"] == {code.value for code in Code}


def test_every_part_of_an_address_has_an_example_that_fits(document: dict[str, Any]) -> None:
    parts = [part for item in document["paths"].values() for one in item.values() for part in one["parameters"]]
    parts = [part for part in parts if part["in"] == "path"]
    assert parts
    for part in parts:
        jsonschema.validate(part["example"], part["schema"], jsonschema.Draft202012Validator)


def test_an_operation_tells_of_the_errors_that_it_can_answer_and_of_no_other(document: dict[str, Any]) -> None:
    def told(method: str, path: str, status: str) -> set[str]:
        return set(document["paths"][path][method]["responses"][status]["content"][PROBLEM]["examples"])

    of_all = {"busy", "database_unavailable"}
    assert told("get", "/api/v1/task/{task_id}", "503") == of_all
    assert told("post", "/api/v1/upload", "503") == of_all | {"draining"}
    assert told("post", "/api/v1/generate", "503") == of_all | {"draining", "no_hardware", "queue_full"}
    assert told("get", "/api/v1/tasks", "429") == {"rate_limited"}
    assert told("post", "/api/v1/upload", "429") == {"rate_limited", "quota_exceeded"}


TASK = "/api/v1/task/{task_id}"


@pytest.mark.parametrize(
    ("method", "path", "query", "options"),
    [
        ("POST", "/api/v1/generate", "", {"json": {"image_path": "/a", "audio_path": "/b"}}),
        ("POST", "/api/v1/generate", "", {"data": b"x", "content_type": "text/plain"}),
        ("POST", "/api/v1/upload", "", {"data": {"file": (BytesIO(b"x"), "a.png")}}),
        ("POST", "/api/v1/upload", "", {"data": b"x", "content_type": "text/plain"}),
        ("GET", TASK, "", {}),
        ("GET", TASK, "?wait=0", {}),
        ("DELETE", TASK, "?force=1", {}),
        ("POST", f"{TASK}/cancel", "?force=1", {}),
        ("POST", f"{TASK}/cancel", "", {}),
        ("GET", f"{TASK}/log", "?offset=-1", {}),
        ("GET", "/api/v1/tasks", "?limit=500", {}),
        ("GET", "/results/{task_id}/{name}", "?download=yes", {}),
        ("GET", "/api/v1/health", "?verbose=1", {}),
    ],
)
def test_the_errors_that_are_shown_are_those_that_are_sent(
    document: dict[str, Any], spotless: Service, method: str, path: str, query: str, options: dict[str, Any]
) -> None:
    operation = document["paths"][path][method.lower()]
    named = {part["name"]: part["example"] for part in operation["parameters"] if part["in"] == "path"}
    answer = spotless.client.open(path.format_map(named) + query, method=method, **options)
    shown = operation["responses"][str(answer.status_code)]["content"][PROBLEM]["examples"]
    assert shown[answer.json["error_code"]]["value"] | {"request_id": ""} == answer.json | {"request_id": ""}
