"""What no schema can say, for schemathesis: which media there are, how to prove who asks, and that time is short."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import requests
import schemathesis
from schemathesis.transport.serialization import Binary

KEY = {"X-API-Key": os.environ["FUZZ_KEY"]}
NOBODY = "http://127.0.0.1:9/told"
_ANSWERS = Path(os.environ["FUZZ_DATA"]) / "answers.txt"
_MEDIA = {kind: Path(os.environ[f"FUZZ_{kind.upper()}"]) for kind in ("image", "audio")}
_ONLY_OURS = ("cursor", "expires", "signature")  # only the service can make one that is good
_uploaded: dict[str, str] = {}
_removed: set[str] = set()


@schemathesis.auth()
class Credentials:
    """Every request proves who asks, except those that a check sends without to see them refused."""

    def get(self, case: schemathesis.Case, context: schemathesis.AuthContext) -> str:
        return KEY["X-API-Key"]

    def set(self, case: schemathesis.Case, data: str, context: schemathesis.AuthContext) -> None:
        case.headers = {**(case.headers or {}), "X-API-Key": data}


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    """Let requests that shall be good name media that exist."""
    if _shall_be_good(case):
        for name in _ONLY_OURS:
            case.query.pop(name, None)
        if case.query.get("wait"):
            case.query["wait"] = 1
        if isinstance(case.body, dict):
            _mend_body(case)
        if "Idempotency-Key" in (
            case.headers or {}
        ):  # one of its own for each request, or it is a 422, as it should be
            case.headers["Idempotency-Key"] = hashlib.sha256(repr(case.body).encode()).hexdigest()
        # These are no edits that a schema could judge: it cannot tell a picture from other bytes.
        case._record_starting_state()


def _mend_body(case: schemathesis.Case) -> None:
    for name, value in case.body.items():
        if isinstance(value, float):  # 4.0 is an integer to JSON Schema, and by contract none to the service
            case.body[name] = int(value)
    if case.body.get("webhook_url"):  # whether an address may be told is not for a schema to say
        case.body["webhook_url"] = NOBODY
    if case.path == "/api/v1/generate":
        for kind in _MEDIA:
            _name_media(case, kind)
    elif case.path == "/api/v1/upload" and case.body.get("type") in _MEDIA:
        case.body["file"] = Binary(_MEDIA[case.body["type"]].read_bytes())


def _shall_be_good(case: schemathesis.Case) -> bool:
    return case.meta is None or case.meta.generation.mode is schemathesis.GenerationMode.POSITIVE


def _name_media(case: schemathesis.Case, kind: str) -> None:
    sent, named = kind in case.body, f"{kind}_path" in case.body
    if sent and named:
        del case.body[f"{kind}_path"]  # one of them, as the contract has it
    if sent:
        case.body[kind] = Binary(_MEDIA[kind].read_bytes())
    else:
        case.body[f"{kind}_path"] = _upload(case, kind)


def _upload(case: schemathesis.Case, kind: str) -> str:
    """Return the path of a medium that was uploaded once."""
    if kind not in _uploaded:
        path = _MEDIA[kind]
        answer = requests.post(
            f"{case.operation.base_url.rstrip('/')}/api/v1/upload", headers=KEY, data={"type": kind},
            files={"file": (path.name, path.read_bytes())}, timeout=60,
        )  # fmt: skip
        answer.raise_for_status()
        _uploaded[kind] = answer.json()["path"]
    return _uploaded[kind]


@schemathesis.hook
def after_call(context: schemathesis.HookContext, case: schemathesis.Case, response: schemathesis.Response) -> None:
    """Count the answers."""
    with _ANSWERS.open("a") as file:
        file.write(f"{response.status_code}\n")

    if case.method == "DELETE" and response.status_code == 204:
        _removed.add(case.path_parameters["task_id"])


@schemathesis.check
def gone_after_removal(
    context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """What was removed (204) is gone; a task that was cancelled (200, 202) can still be looked at."""
    if case.method == "GET" and (case.path_parameters or {}).get("task_id") in _removed:
        assert response.status_code in (400, 401, 410), f"removed, and answered {response.status_code}"
