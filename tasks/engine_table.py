"""Reading configs/engines.yaml: which script runs on which hardware. What is wrong in it is told by line and key."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.profile import Engine, EngineTable
from utils.yaml_lines import Document, FileError, read_document

_MOST_ERRORS = 5


def read_engine_table(path: Path, root: Path) -> EngineTable:
    """Return the enabled engines of the file; scripts are relative to `root`. Raises FileError."""
    document = read_document(path)
    try:
        parsed = _TableFile.model_validate(_with_names(document.values))
    except ValidationError as error:
        wrong = [(item["loc"], item["msg"].removeprefix("Value error, ")) for item in error.errors()]
        raise FileError(_by_line(path, document, wrong)) from error
    enabled = [engine for engine in parsed.engines.values() if engine.enabled]
    if wrong := [*_wrong_names(parsed.engines), *_missing_scripts(enabled, root)]:
        raise FileError(_by_line(path, document, wrong))
    return EngineTable(tuple(enabled))


class _TableFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    engines: dict[str, Engine] = Field(min_length=1)


_Loc = tuple[str | int, ...]


def _with_names(raw: Any) -> Any:
    """The file's form as the code's: an engine's name and its notes are keys there and values here."""
    engines = raw.get("engines") if isinstance(raw, dict) else None
    if not isinstance(engines, dict):
        return {} if raw is None else raw
    return {**raw, "engines": {name: _with_name(name, body) for name, body in engines.items()}}


def _with_name(name: object, body: Any) -> Any:
    if not isinstance(body, dict):
        return body
    notes = body.get("notes", {})
    pairs = [{"code": code, "message": text} for code, text in notes.items()] if isinstance(notes, dict) else notes
    return {"name": name, **body, "notes": pairs}


def _wrong_names(engines: Mapping[str, Engine]) -> Iterator[tuple[_Loc, str]]:
    for name, engine in engines.items():
        if engine.name != name:
            yield ("engines", name, "name"), "an engine's name is its key in the table"
        seen: dict[str, int] = {}
        for index, profile in enumerate(engine.profiles):
            first = seen.setdefault(profile.name, index)
            if first != index:
                told = f"the name {profile.name!r} is used twice, first by profiles[{first}]"
                yield ("engines", name, "profiles", index), told


def _missing_scripts(engines: Iterable[Engine], root: Path) -> Iterator[tuple[_Loc, str]]:
    for engine in engines:
        for index, profile in enumerate(engine.profiles):
            script = root / profile.script  # an absolute one stays as it is
            if not script.is_file():
                told = "there is no such file"
            elif not os.access(script, os.X_OK):
                told = "the file is not executable"
            else:
                continue
            yield ("engines", engine.name, "profiles", index, "script"), f"{profile.script}: {told}"


def _by_line(path: Path, document: Document, wrong: Sequence[tuple[_Loc, str]]) -> str:
    """Return the first errors, each as `engines.yaml:37: engines.a.profiles[0].gpus: what is wrong`."""
    places = [(document.place(loc), text) for loc, text in wrong[:_MOST_ERRORS]]
    return "; ".join(f"{path.name}:{place.line}: {place.path}: {text}" for place, text in places)
