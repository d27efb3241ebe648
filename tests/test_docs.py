"""The READMEs say what the code does: routes, statuses, the life cycle; all else of the documents is in tests/docs."""

from __future__ import annotations

import re

import pytest
import yaml

import client
from app import ROUTES
from tasks.model import Status, life_cycle_mermaid
from tests.docs.pages import READMES, rows, section, text_of


def told(name: str, heading: str) -> set[str]:
    """Return the first cells of the table under a heading."""
    return {row[0].strip("`") for row in rows(section(text_of(name), heading))}


@pytest.mark.parametrize(("name", "heading"), list(zip(READMES, ("## Routes", "## 路由"), strict=True)))
def test_every_route_is_in_the_readme_and_no_other(name: str, heading: str) -> None:
    assert told(name, heading) == {f"{method} {rule}" for method, rule, _, _ in ROUTES}


@pytest.mark.parametrize(
    ("name", "heading"), list(zip(READMES, ("## The life of a task", "## 任务的一生"), strict=True))
)
def test_the_life_cycle_and_the_statuses_are_the_code_s(name: str, heading: str) -> None:
    text = text_of(name)
    assert told(name, heading) == {status.value for status in Status}
    assert f"```mermaid\n{life_cycle_mermaid()}\n```" in text


@pytest.mark.parametrize("name", ["docs/client.md", "docs/zh-CN/client.md"])
def test_the_commands_of_the_client_and_its_exit_statuses_are_all_told(name: str) -> None:
    found = {row[0].strip("`"): row[1] for row in rows(text_of(name))}
    statuses = {line.split()[0] for line in client.EXIT_STATUS.splitlines()[1:]}
    assert {cell.split()[0] for cell in found} == {*client.COMMANDS, *statuses}
    if name == "docs/client.md":
        assert all(f"  {status:<4} {found[status]}" in client.EXIT_STATUS for status in statuses)


def test_ci_runs_the_readme_s_test_command() -> None:
    assert "```bash\nmake test\n```" in text_of("README.md")
    assert text_of(".ci/run").strip().splitlines()[-1] == "exec make test"


def test_all_requirements_are_pinned_and_the_constraints_agree() -> None:
    constrained = set(text_of("constraints.txt").split())
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in text_of(name).splitlines():
            if line and not line.startswith(("#", "-r")):
                assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][^=]*", line), line
                assert line.lower().replace("_", "-") in {pin.lower().replace("_", "-") for pin in constrained}, line


@pytest.mark.parametrize("name", ["docs/wrapping-a-model.md", "docs/zh-CN/wrapping-a-model.md"])
def test_the_example_of_wrapping_a_model_is_part_of_the_shipped_row(name: str) -> None:
    example = yaml.safe_load(text_of(name).split("```yaml\n")[1].split("```")[0])["audio_cpp"]
    shipped = yaml.safe_load(text_of("configs/engines.yaml"))["engines"]["audio_cpp"]
    (told,), (row,) = example.pop("profiles"), shipped.pop("profiles")
    assert (example, told) == (shipped, {key: row[key] for key in told})
