"""From text to checked requests, with errors that name the field in words anyone understands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

from flask import request
from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json

from api_schema import Ask
from web.errors import MAX_ERRORS, ApiError, FieldError, Invalid, invalid

Model = TypeVar("Model", bound=Ask)

BODY = "body"
"""The name of the field when the body as a whole is at fault."""

_SHOWN = 64
_DIGITS = re.compile(r"-?[0-9]{1,20}")
_MESSAGES: Mapping[str, str] = {
    "missing": "is required",
    "extra_forbidden": "is not a known field",
    "none_required": "is not available",
    "int_type": "must be an integer",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "string_too_short": "must have at least {min_length} character(s)",
    "string_too_long": "must have at most {max_length} characters",
    "too_long": "must have at most {max_length} entries",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
}


def parse_json(model: type[Model], body: bytes) -> Model:
    """Check a JSON body. Raises Invalid."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(error) from None


def parse_query(model: type[Model]) -> Model:
    """Check the query of the request at hand. Raises Invalid."""
    pairs = [(name, value) for name, values in request.args.lists() for value in values if value != ""]
    return parse_text(model, pairs)


def parse_text(model: type[Model], pairs: Iterable[tuple[str, str]]) -> Model:
    """Check fields that came as text (a form, a query): decimal digits are integers, `true` and `false` booleans.

    Fields that hold several values may be repeated or separated by commas; objects are JSON. Raises Invalid.
    """
    values: dict[str, Any] = {}
    for name, text in pairs:
        kinds = _kinds(model, name)
        if tuple in kinds:
            values[name] = [*values.get(name, []), *filter(None, text.split(","))]
        elif name in values:
            raise invalid(shown(name), "is given more than once")
        else:
            values[name] = _typed(name, text, kinds)
    # Through JSON, so that a form is checked by the very rules of a JSON body.
    return parse_json(model, json.dumps(values).encode())


def _kinds(model: type[Ask], name: str) -> set[Any]:
    """Return what a field may be: {int, NoneType} of `int | None`, {dict} of `dict[str, str]`."""
    field = model.model_fields.get(name)
    if field is None:
        return {str}
    union = get_origin(field.annotation) is UnionType
    kinds = get_args(field.annotation) if union else (field.annotation,)
    return {get_origin(kind) or kind for kind in kinds}


def _typed(name: str, text: str, kinds: set[Any]) -> object:
    if int in kinds and _DIGITS.fullmatch(text):
        return int(text)
    if bool in kinds and text in ("true", "false"):
        return text == "true"
    if dict in kinds:
        try:
            return from_json(text, allow_inf_nan=False)
        except ValueError:
            raise invalid(name, "must be a JSON object") from None
    return text


def shown(name: object) -> str:
    """Return a client's field name fit to be shown: one short line."""
    text = "".join(character if character.isprintable() else "�" for character in str(name)[:_SHOWN])
    return text + ("…" if len(str(name)) > _SHOWN else "")


def _invalid(error: ValidationError) -> ApiError:
    details = error.errors(include_url=False, include_input=False)[:MAX_ERRORS]
    return Invalid(*(FieldError(field=_field(item), message=_message(item)) for item in details))


def _field(item: ErrorDetails) -> str:
    # pydantic marks an error of an object's key by a last part "[key]".
    return ".".join(shown(part) for part in item["loc"] if part != "[key]") or BODY


def _message(item: ErrorDetails) -> str:
    kind = item["type"]
    if kind == "json_invalid":
        return f"is not valid JSON: {item['ctx']['error']}"
    if kind in _MESSAGES:
        return _MESSAGES[kind].format(**item.get("ctx", {}))
    return item["msg"] if kind == "said" else "is not valid"
