"""The picture of the layout, held: imports point down, modules stay small, nothing is made at import."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("web", "tasks", "engines", "utils")
MODULES = ("app", "api_schema", "task_manager", "config_loader", "client")
MAY_IMPORT = {
    "app": {"web", "api_schema", "task_manager", "config_loader", "tasks", "utils"},
    "web": {"web", "api_schema", "task_manager", "config_loader", "tasks", "utils"},
    "api_schema": {"task_manager", "config_loader", "tasks", "utils"},
    "task_manager": {"config_loader", "tasks", "utils"},
    "config_loader": {"tasks", "utils"},
    "tasks": {"tasks", "utils"},
    "engines": {"engines", "utils"},
    "utils": {"utils"},
    "client": set(),
}
LINES = {"client": 700}
"""What a module may have in place of 400: the client is one file, so that people can copy it to another machine."""
SOURCES = sorted(
    path
    for top in (*PACKAGES, *(f"{name}.py" for name in MODULES))
    for path in ([ROOT / top] if top.endswith(".py") else (ROOT / top).rglob("*.py"))
)


def imported(tree: ast.AST) -> set[str]:
    """Return the top-level names of all modules that a source imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "absolute imports only"
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_and_modules_stay_small(path: Path) -> None:
    source = path.read_text("utf-8")
    own = imported(ast.parse(source)) & {*PACKAGES, *MODULES, "tests", "scripts"}
    top = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert own <= MAY_IMPORT[top], f"{top} must not import {sorted(own - MAY_IMPORT[top])}"
    assert len(source.splitlines()) <= LINES.get(top, 400)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_environment_is_read_at_the_entries_only(path: Path) -> None:
    reads = any(
        isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") and getattr(node.value, "id", "") == "os"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
    )
    entries = {
        "client.py",
        "config_loader.py",
        "tasks/runner.py",
        "tasks/spawner.py",
        "engines/preview/main.py",
        "engines/preview/progress.py",
    }
    relative = str(path.relative_to(ROOT))
    assert not reads or relative in entries or relative.startswith("engines/")


def test_the_web_process_never_imports_torch() -> None:
    assert not any("torch" in imported(ast.parse(path.read_text("utf-8"))) for path in SOURCES)
