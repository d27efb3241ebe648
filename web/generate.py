"""Accepting work: a generate request from its body to its task, and an upload from its body to its row."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from flask import Flask, Response, request

from api_schema import GenerateFields, GenerateForm, GenerateRequest, UploadForm
from task_manager import TaskManager, TaskView
from tasks import drain
from tasks.idempotency import AlreadyAccepted
from tasks.model import OutputFormat, Priority
from tasks.submission import Submission
from utils.media_kinds import Kind
from utils.urls import FetchError
from web import answers
from web.body import Form, SentFile, content_type, read_form, read_json
from web.callers import current_tenant
from web.errors import DRAIN_RETRY_SECONDS, ApiError, Code, FieldError, Invalid, invalid
from web.inputs import Inputs, Source
from web.parse import parse_json, parse_text

KINDS: tuple[Kind, ...] = ("image", "audio")
_KEY = re.compile(r"[\x20-\x7e]{1,255}")


def register(app: Flask) -> None:
    """Answer a repeated submission as the first one was."""
    app.register_error_handler(AlreadyAccepted, lambda again: _created(again.answer))


def generate(manager: TaskManager, inputs: Inputs) -> Response:
    """Queue the task that the request at hand asks for. Raises ApiError and what `TaskManager.submit` raises."""
    key = idempotency_key()
    _refuse_while_draining(manager, key)
    if key is None:  # a repetition is answered whatever is waiting
        manager.store.check_quotas(current_tenant())
    if key is None or content_type() != "application/json":  # a repeated submit by paths needs no room for its answer
        manager.check_room(_announced_bytes(inputs))
    with inputs.folder() as folder:
        fields, sources = _read_generate(inputs, folder)
        asked = _asked(fields, sources)
        if key is not None:  # what a repetition names may be gone: it is answered before anything of that is looked at
            manager.store.check_asked(current_tenant(), key, asked)
        _check_webhook(manager, fields.webhook_url)
        manager.check_engine(fields.engine)
        media = inputs.prepare(sources, folder, current_tenant())
        submission = Submission(
            tenant=current_tenant(), prompt=fields.prompt, size=fields.size, num_clip=fields.num_clip,
            sample_steps=fields.sample_steps, output_format=OutputFormat(fields.output_format), seed=fields.seed,
            enable_online_decode=fields.enable_online_decode, engine=fields.engine,
            priority=Priority[fields.priority.upper()], metadata=fields.metadata, image=media["image"],
            audio=media["audio"], idempotency_key=key, webhook_url=fields.webhook_url, asked=asked,
        )  # fmt: skip
        return _created(_body(manager.submit(submission, _body)))


def _check_webhook(manager: TaskManager, url: str | None) -> None:
    """Raise Invalid for a URL that will never be told of anything."""
    if url is None:
        return
    try:
        manager.check_webhook(url)
    except FetchError as error:
        raise invalid("webhook_url", str(error)) from None


def upload(manager: TaskManager, inputs: Inputs) -> Response:
    """Store the medium that the request at hand sends. Raises ApiError."""
    _refuse_while_draining(manager, None)
    manager.store.check_quotas(current_tenant(), _announced_bytes(inputs))
    manager.check_room(_announced_bytes(inputs))
    with inputs.folder() as folder:
        form = read_form(folder, frozenset(UploadForm.model_fields), {"file": max(inputs.max_bytes.values())})
        kind = parse_text(UploadForm, form.fields).type
        sent = form.files.get("file")
        if sent is None:
            raise invalid("file", "is required")
        inputs.refuse_large(kind, "file", sent)
        stored = inputs.accept(kind, sent, folder, current_tenant())
    return answers.respond(answers.upload_answer(stored), 201)


def _announced_bytes(inputs: Inputs) -> int:
    """Return how many bytes the body at hand may bring; a chunked one says nothing before it has come."""
    return min(request.content_length or 0, sum(inputs.max_bytes.values()))


def idempotency_key() -> str | None:
    """Return the request's Idempotency-Key, if it has one. Raises Invalid."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not _KEY.fullmatch(key):
        raise invalid("Idempotency-Key", "must be 1 to 255 printable ASCII characters")
    return key


def _refuse_while_draining(manager: TaskManager, key: str | None) -> None:
    """Raise ApiError while the service drains, before any of the body is read.

    The repetition of an accepted request passes: it starts nothing, and gets the answer that its first one may have
    lost to the very restart that is being prepared.
    """
    if drain.current(manager.store.state) is None:
        return
    if key is None or not manager.store.knows_key(current_tenant(), key):
        text = "the service takes no new work at present; try again later"
        raise ApiError(Code.DRAINING, text, retry_after=DRAIN_RETRY_SECONDS)


def _read_generate(inputs: Inputs, folder: Path) -> tuple[GenerateFields, list[Source]]:
    if content_type() == "application/json":
        asked = parse_json(GenerateRequest, read_json())
        named = {"image": asked.image_path, "audio": asked.audio_path}
        return asked, [Source(kind, f"{kind}_path", named[kind]) for kind in KINDS]
    form = read_form(folder, frozenset(GenerateForm.model_fields), inputs.max_bytes)
    fields = parse_text(GenerateForm, form.fields)
    return fields, _form_sources(form, {"image": fields.image_path, "audio": fields.audio_path})


def _asked(fields: GenerateFields, sources: list[Source]) -> str:
    """Return the sha256 of a request's words: of its fields, and of each medium what it names, or the file it sends."""
    media = {item.field: item.given if isinstance(item.given, str) else item.given.saved.sha256 for item in sources}
    words = json.dumps([fields.model_dump(mode="json"), media], sort_keys=True)
    return hashlib.sha256(words.encode()).hexdigest()


def _form_sources(form: Form, paths: dict[Kind, str | None]) -> list[Source]:
    """Return where each medium of a form comes from: its file part or its path, one of the two."""
    errors, sources = [], []
    for kind in KINDS:
        given: list[SentFile | str] = [item for item in (form.files.get(kind), paths[kind]) if item is not None]
        if len(given) == 1:
            sources.append(Source(kind, kind if kind in form.files else f"{kind}_path", given[0]))
        else:
            message = f"give either the file part {kind} or {kind}_path" if given else "is required"
            errors.append(FieldError(field=kind, message=message))
    if errors:
        raise Invalid(*errors)
    return sources


def _body(view: TaskView) -> str:
    return answers.accepted(view).model_dump_json(by_alias=True)


def _created(body: str) -> Response:
    return answers.respond_text(body, 201, {"Location": json.loads(body)["status_url"]})
