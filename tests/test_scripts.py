"""The shell scripts: without a finding of shellcheck, and executable; and what `make audit` looks at by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_clean_and_executable(script: Path) -> None:
    found = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), script], capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0, found.stdout
    assert os.access(script, os.X_OK)


def test_make_audit_finds_nothing_before_it_asks_the_network_and_looks_at_the_rules_on_security() -> None:
    recipe = (ROOT / "Makefile").read_text().split("\naudit:")[1].splitlines()
    words = recipe[1].split()
    ruff = str(Path(sys.executable).with_name(Path(words[0]).name))
    assert words[1:] == ["check", "."]
    found = subprocess.run([ruff, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stdout
    assert '"S"' in (ROOT / "pyproject.toml").read_text().split("select = ")[1].splitlines()[0]
