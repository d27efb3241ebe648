"""The OpenAPI 3.1 document: the operations listed here, the shapes taken from the very models that requests are checked
by and answers made of."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import api_schema as wire
from web import examples
from web.callers import Need
from web.errors import HTTP, Code, Problem

Json = dict[str, Any]

BINARY: Json = {"type": "string", "format": "binary"}
TEXT: Json = {"type": "string"}
_INTEGER: Json = {"type": "integer"}
_EVENT: Json = {
    "description": "Each event of the stream.", "type": "object", "required": ["event", "id", "data"],
    "properties": {"event": {"enum": ["task", "log"]}, "id": TEXT, "data": TEXT},
}  # fmt: skip
_HEADERS: Mapping[str, Json] = {
    "X-Request-ID": {"description": "The request's id, as in the log.", "schema": TEXT},
    "Location": {"description": "The task's address.", "schema": TEXT},
    "ETag": {"description": "For If-None-Match.", "schema": TEXT},
    "Retry-After": {"description": "Seconds after which to ask again.", "schema": _INTEGER},
    "RateLimit": {"description": "Requests left (`r`), and seconds until there is another (`t`).", "schema": TEXT},
    "RateLimit-Policy": {"description": "Requests (`q`) in a window of seconds (`w`).", "schema": TEXT},
    "X-Log-Offset": {"description": "Where to go on reading.", "schema": _INTEGER},
    "Content-Range": {"description": "Which bytes these are.", "schema": TEXT},
    "Accept-Ranges": {"description": "`bytes`.", "schema": TEXT},
    "WWW-Authenticate": {"description": "`Bearer`.", "schema": TEXT},
    "Allow": {"description": "Methods of this address.", "schema": TEXT},
}
_REQUEST_HEADERS: Mapping[str, Json] = {
    "Idempotency-Key": {
        "description": "The same key with the same request returns the first answer again, until 24 h after the end.",
        "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    },
    "If-None-Match": {"description": "An entity tag; 304 while it holds.", "schema": TEXT},
    "Last-Event-ID": {
        "description": "The id of the last event that came: goes on behind it. Any other text: from the beginning.",
        "schema": TEXT,
    },
    "Range": {"description": "One range of bytes; any other is ignored.", "schema": TEXT},
}
_SCHEMES: Json = {
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "Also good as a bearer token."},
    "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
}
_ERROR_HEADERS: Mapping[int, tuple[str, ...]] = {
    401: ("WWW-Authenticate",), 405: ("Allow",), 416: ("Content-Range",),
    429: ("Retry-After", "RateLimit", "RateLimit-Policy"), 503: ("Retry-After",),
}  # fmt: skip

_LIMIT_HEADERS = ("RateLimit", "RateLimit-Policy")
_ONLY_OF: Mapping[Code, tuple[str, ...]] = {
    Code.QUEUE_FULL: ("generate",), Code.NO_HARDWARE: ("generate",), Code.DRAINING: ("generate", "upload"),
    Code.QUOTA_EXCEEDED: ("generate", "upload"), Code.ALREADY_ENDED: ("cancelTask",), Code.NOT_READY: ("getResult",),
}  # fmt: skip
"""Errors that only these operations answer, while others answer the same status for another reason."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One success of an operation: its content by media type (a model or a schema) and its headers."""

    says: str
    content: Mapping[str, type[BaseModel] | Json]
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one address. `errors` are the statuses it may answer besides 401, 403, 405, 429, 500 and 503.

    `need` is what it asks of its caller where authentication is on, as in app.ROUTES.
    """

    id: str
    says: str
    tag: str = "tasks"
    need: Need
    replies: Mapping[int, Reply]
    errors: tuple[int, ...] = ()
    query: type[wire.Ask] = wire.NoQuery
    leads_to: tuple[str, ...] = ()
    """Operations on the task that a success names."""
    body: Mapping[str, type[wire.Ask]] | None = None
    headers: tuple[str, ...] = ()


def _json(says: str, model: type[BaseModel], *headers: str) -> Reply:
    return Reply(says, {"application/json": model}, headers)


_FILE = {"video/mp4": BINARY, "video/webm": BINARY, "image/jpeg": BINARY}
_FILE_HEADERS = ("ETag", "Accept-Ranges")

OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("POST", "/api/v1/generate"): Operation(
        id="generate", need="generate", says="Make a portrait speak: queue a task",
        body={"application/json": wire.GenerateRequest, "multipart/form-data": wire.GenerateForm},
        headers=("Idempotency-Key",),
        replies={201: _json("The task is queued.", wire.Accepted, "Location")}, errors=(400, 413, 415, 422, 503, 507),
        leads_to=("getTask", "getLog", "cancelTask", "deleteTask"),
    ),
    ("POST", "/api/v1/upload"): Operation(
        id="upload", tag="media", need="generate", says="Store an image or a recording for later tasks",
        body={"multipart/form-data": wire.UploadForm},
        replies={201: _json("It is stored.", wire.UploadAnswer)}, errors=(400, 413, 415, 503, 507),
    ),
    ("GET", "/api/v1/task/{task_id}"): Operation(
        id="getTask", need="read", says="A task, now or when it has changed", query=wire.TaskQuery,
        headers=("If-None-Match",),
        replies={
            200: _json("The task.", wire.TaskAnswer, "ETag", "Retry-After"),
            304: Reply("It has not changed.", {}, ("ETag", "Retry-After")),
        },
        errors=(400, 404, 410, 503, 507),
    ),
    ("DELETE", "/api/v1/task/{task_id}"): Operation(
        id="deleteTask", need="generate", says="Cancel a task, or remove an ended one",
        replies={
            200: _json("It was queued and is cancelled.", wire.TaskAnswer),
            202: _json("It runs and is being cancelled.", wire.TaskAnswer),
            204: Reply("It had ended; its record, inputs and outputs are gone.", {}),
        },
        errors=(400, 404, 410, 503, 507),
    ),
    ("POST", "/api/v1/task/{task_id}/cancel"): Operation(
        id="cancelTask", need="generate", says="Cancel a task; one that has ended by itself is left as it is",
        replies={
            200: _json("It is cancelled: it was queued, or somebody cancelled it before.", wire.TaskAnswer),
            202: _json("It runs and is being cancelled.", wire.TaskAnswer),
        },
        errors=(400, 404, 409, 410, 503, 507),
    ),
    ("GET", "/api/v1/task/{task_id}/log"): Operation(
        id="getLog", need="read", says="The engine's log, from a byte on, also while it runs", query=wire.LogQuery,
        replies={200: Reply("Text, at most 1 MiB.", {"text/plain": TEXT}, ("X-Log-Offset",))},
        errors=(400, 404, 410, 503, 507),
    ),
    ("GET", "/api/v1/task/{task_id}/events"): Operation(
        id="getEvents", need="read", says="The task at each change and the lines of its log, as server-sent events",
        headers=("Last-Event-ID",),
        replies={
            200: Reply(
                "`task` has the task as GET returns it, `log` lines of the engine's log. A `task` that has ended comes "
                "last. Comments show that the stream lives.",
                {"text/event-stream": _EVENT},
            ),
            204: Reply("The event of that id told the end: there is nothing to come.", {}),
        },
        errors=(400, 404, 410, 503, 507),
    ),
    ("GET", "/api/v1/tasks"): Operation(
        id="listTasks", need="read", says="Tasks, newest first", query=wire.TasksQuery,
        replies={200: _json("A page of tasks.", wire.TasksAnswer)}, errors=(400, 503),
    ),
    ("GET", "/results/{task_id}/{name}"): Operation(
        id="getResult", need="link", says="A published video or its poster", query=wire.ResultQuery,
        headers=("Range", "If-None-Match"),
        replies={
            200: Reply("The file.", _FILE, _FILE_HEADERS),
            206: Reply("The range.", _FILE, (*_FILE_HEADERS, "Content-Range")),
            304: Reply("It has not changed.", {}, ("ETag",)),
        },
        errors=(400, 404, 409, 410, 416, 503),
    ),
    ("GET", "/api/v1/health"): Operation(
        id="getHealth", tag="service", need="open", says="Whether new tasks can be run now",
        replies={
            200: _json("They can.", wire.HealthReply),
            503: _json("They cannot; `reasons` tells why.", wire.HealthReply),
        },
        errors=(400,),
    ),
    ("GET", "/api/v1/openapi.json"): Operation(
        id="getOpenApi", tag="service", need="open", says="This document",
        replies={200: Reply("OpenAPI 3.1.", {"application/json": {"type": "object"}})},
    ),
    ("GET", "/metrics"): Operation(
        id="getMetrics", tag="service", need="metrics",
        says="Metrics for Prometheus; needs the scope `metrics`, or an address that may do without",
        replies={200: Reply("Text of Prometheus' format 0.0.4.", {"text/plain": TEXT})}, errors=(400, 404),
    ),
    ("GET", "/"): Operation(
        id="getPage", tag="service", need="open", says="The web page", headers=("If-None-Match",),
        replies={
            200: Reply("A page.", {"text/html": TEXT}, ("ETag",)),
            304: Reply("It has not changed.", {}, ("ETag",)),
        },
    ),
    ("GET", "/docs"): Operation(
        id="getDocs", tag="service", need="open", says="This document as a page",
        replies={200: Reply("A page.", {"text/html": TEXT})},
    ),
}  # fmt: skip


_WEBHOOK_HEADERS: Mapping[str, Json] = {
    "webhook-id": {"description": "Of the message, the same at each attempt: told twice, it is one message."},
    "webhook-timestamp": {"description": "Of the attempt, seconds since 1970."},
    "webhook-signature": {
        "description": "`v1,` and the base64 HMAC-SHA256 of `id.timestamp.body`; several, separated by spaces, while "
        "a secret is rotated. As Standard Webhooks."
    },
}


def _webhook() -> Json:
    """Return what the service itself sends, as OpenAPI 3.1 has it."""
    parameters = [
        {"name": name, "in": "header", "required": True, **said, "schema": TEXT}
        for name, said in _WEBHOOK_HEADERS.items()
    ]
    return {
        "operationId": "taskEnded", "tags": ["webhooks"], "summary": "A task with a `webhook_url` has ended",
        "parameters": parameters,
        "requestBody": {
            "required": True,
            "content": {"application/json": _content(_reference(wire.TaskEnded), examples.of_webhook())},
        },
        "responses": {
            "2XX": {"description": "It has arrived."},
            "410": {"description": "It is not sent again."},
            "default": {"description": "It is sent again, later each time, for about a day; `Retry-After` counts."},
        },
    }  # fmt: skip


def document(engines: Sequence[str], secured: bool = False) -> Json:
    """Return the document of a service that has `engines`, and asks for credentials where it is `secured`."""
    schemas = _schemas()
    for name in ("GenerateRequest", "GenerateForm"):
        schemas[name]["properties"]["engine"]["enum"] = ["auto", *engines]
    paths: Json = {}
    for (method, path), operation in OPERATIONS.items():
        told = _LIMIT_HEADERS if secured and operation.need != "open" else ()
        described = _operation(path, operation, schemas, told)
        paths.setdefault(path, {})[method.lower()] = described | (_security(operation.need) if secured else {})
    for query in {operation.query for operation in OPERATIONS.values()}:
        del schemas[query.__name__]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Live Avatar", "version": wire.VERSION,
            "description": "A portrait and a recording become a talking video. HEAD works wherever GET does.",
        },
        "servers": [{"url": "/"}],
        "paths": paths, "webhooks": {"taskEnded": {"post": _webhook()}},
        "components": {"schemas": schemas} | ({"securitySchemes": _SCHEMES} if secured else {}),
    }  # fmt: skip


def _schemas() -> Json:
    """Return the JSON schema of every model, by its name."""
    asked: set[type[BaseModel]] = {operation.query for operation in OPERATIONS.values()}
    sent: set[type[BaseModel]] = {Problem, wire.TaskEnded}
    for operation in OPERATIONS.values():
        asked |= set((operation.body or {}).values())
        contents = [content for reply in operation.replies.values() for content in reply.content.values()]
        sent |= {content for content in contents if isinstance(content, type)}
    inputs = [(model, "validation") for model in sorted(asked, key=lambda model: model.__name__)]
    outputs = [(model, "serialization") for model in sorted(sent, key=lambda model: model.__name__)]
    _, found = models_json_schema([*inputs, *outputs], ref_template="#/components/schemas/{model}")  # type: ignore[list-item]
    schemas: Json = found["$defs"]
    _as_form(schemas["GenerateForm"], {"image": BINARY, "audio": BINARY})
    _as_form(schemas["UploadForm"], {"file": BINARY}, required=("file",))
    return schemas


def _as_form(schema: Json, files: Json, required: tuple[str, ...] = ()) -> None:
    """Turn a model of text fields into that of the form: with its files, and without null, which no form can say."""
    fields = {name: _not_null(field) for name, field in schema["properties"].items() if field.get("type") != "null"}
    schema["properties"] = {**files, **fields}
    schema["required"] = [*required, *schema.get("required", [])]


def _not_null(schema: Json) -> Json:
    """Return the schema of a field that is left out rather than null."""
    bare = {key: copy.deepcopy(value) for key, value in schema.items() if key != "anyOf"}
    if bare.get("default", ...) is None:
        del bare["default"]
    for choice in schema.get("anyOf", []):
        if choice != {"type": "null"}:
            bare |= choice
    return bare


def _operation(path: str, operation: Operation, schemas: Json, told: tuple[str, ...]) -> Json:
    responses = {
        str(status): _reply(reply, told, examples.of_reply(operation.id, status))
        for status, reply in operation.replies.items()
    }
    for status in sorted({401, 403, 405, 429, 500, 503, *operation.errors} - set(operation.replies)):
        responses[str(status)] = _error(status, operation.id)
    if operation.leads_to:
        where = {"parameters": {"task_id": "$response.body#/task_id"}}
        first = str(min(operation.replies))
        responses[first]["links"] = {name: {"operationId": name, **where} for name in operation.leads_to}
    described: Json = {
        "operationId": operation.id, "tags": [operation.tag],
        "summary": operation.says, "parameters": _parameters(path, operation, schemas),
        "responses": responses,
    }  # fmt: skip
    if operation.body:
        content = {
            kind: _content(_reference(model), examples.of_body(operation.id, kind))
            for kind, model in operation.body.items()
        }
        described["requestBody"] = {"required": True, "content": content}
    return described


def _security(need: Need) -> Json:
    """Either credential will do; none where a signed link or the client's address does, or for everyone."""
    return {"security": [{"key": []}, {"token": []}, *([{}] if need in ("link", "metrics", "open") else [])]}


def _parameters(path: str, operation: Operation, schemas: Json) -> list[Json]:
    parts = {"task_id": {"type": "string", "pattern": f"^{wire.TASK_ID}$"}, "name": {"type": "string"}}
    found = [
        {"name": name, "in": "path", "required": True, "schema": schema, "example": examples.PATH_PARTS[name]}
        for name, schema in parts.items()
        if f"{{{name}}}" in path
    ]
    for name, schema in schemas[operation.query.__name__].get("properties", {}).items():
        bare = _not_null(schema)
        says = bare.pop("description", "")
        # As forms send it; an empty value counts as none.
        found.append({"name": name, "in": "query", "description": says, "allowEmptyValue": True, "schema": bare})
    found += [{"name": name, "in": "header", **_REQUEST_HEADERS[name]} for name in operation.headers]
    return found


def _reply(reply: Reply, told: tuple[str, ...], shown: Json) -> Json:
    content = {kind: _content(_reference(shape), shown) for kind, shape in reply.content.items()}
    return _response(reply.says, content, (*reply.headers, *told))


def _error(status: int, operation: str) -> Json:
    codes = [code for code in Code if HTTP[code] == status and operation in _ONLY_OF.get(code, (operation,))]
    content = {"application/problem+json": _content(_reference(Problem), examples.of_error(operation, codes))}
    return _response(f"error_code: {', '.join(codes)}", content, _ERROR_HEADERS.get(status, ()))


def _response(says: str, content: Json, headers: tuple[str, ...]) -> Json:
    response: Json = {"description": says, "headers": {name: _HEADERS[name] for name in ("X-Request-ID", *headers)}}
    return response | ({"content": content} if content else {})


def _content(schema: Json, shown: Json) -> Json:
    return {"schema": schema} | ({"examples": shown} if shown else {})


def _reference(shape: type[BaseModel] | Json) -> Json:
    return {"$ref": f"#/components/schemas/{shape.__name__}"} if isinstance(shape, type) else dict(shape)
