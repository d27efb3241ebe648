"""The documents say what the code does: routes, settings, statuses, the life cycle, the commands."""

from __future__ import annotations

import re

import pytest
import yaml

import client
from app import ROUTES
from config_loader import environment_names
from tasks.model import Status, life_cycle_mermaid
from tests.conftest import ROOT

READMES = ("README.md", "README.zh-CN.md")


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def rows_after(text: str, heading: str) -> dict[str, list[str]]:
    """Return the rows of the first table under the heading: first cell -> the others."""
    part = text.split(heading, 1)[1].split("\n## ", 1)[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("| `")
    ]
    return {row[0].strip("`"): row[1:] for row in rows}


@pytest.mark.parametrize(("name", "heading"), list(zip(READMES, ("## Routes", "## 路由"), strict=True)))
def test_every_route_is_in_the_readme_and_no_other(name: str, heading: str) -> None:
    assert set(rows_after(text_of(name), heading)) == {f"{method} {rule}" for method, rule, _, _ in ROUTES}


@pytest.mark.parametrize(("name", "heading"), list(zip(READMES, ("## Settings", "## 设置"), strict=True)))
def test_every_setting_is_in_the_readme_with_its_default(name: str, heading: str) -> None:
    told = rows_after(text_of(name), heading)
    assert set(told) == environment_names()
    defaults = yaml.safe_load((ROOT / "configs" / "default.yaml").read_text())
    for variable, cells in told.items():
        if variable == "AVATAR_CONFIG":
            continue
        value: object = defaults
        variable = {"WEB_CONCURRENCY": "AVATAR_WORKERS"}.get(variable, variable)
        for key in variable.removeprefix("AVATAR_").lower().split("__"):
            value = value[key]  # type: ignore[index]
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        assert cells[0].strip("`") in ((shown,) if value not in ("", None, []) else ("none", "无")), variable


@pytest.mark.parametrize(
    ("name", "heading"), list(zip(READMES, ("## The life of a task", "## 任务的一生"), strict=True))
)
def test_the_life_cycle_and_the_statuses_are_the_code_s(name: str, heading: str) -> None:
    text = text_of(name)
    assert set(rows_after(text, heading)) == {status.value for status in Status}
    assert f"```mermaid\n{life_cycle_mermaid()}\n```" in text


@pytest.mark.parametrize(("name", "heading"), list(zip(READMES, ("## The command line", "## 命令行"), strict=True)))
def test_the_commands_of_the_client_and_its_exit_statuses_are_all_told(name: str, heading: str) -> None:
    told = rows_after(text_of(name), heading)
    statuses = {line.split()[0] for line in client.EXIT_STATUS.splitlines()[1:]}
    assert {cell.split()[0] for cell in told} == {*client.COMMANDS, *statuses}
    if name == "README.md":
        assert all(f"  {status:<4} {told[status][0]}" in client.EXIT_STATUS for status in statuses)


@pytest.mark.parametrize("name", READMES)
def test_every_link_to_a_file_leads_somewhere(name: str) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", text_of(name))
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


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


@pytest.mark.parametrize("name", READMES)
def test_the_example_of_wrapping_a_model_is_part_of_the_shipped_row(name: str) -> None:
    example = yaml.safe_load(text_of(name).split("```yaml\n")[1].split("```")[0])["audio_cpp"]
    shipped = yaml.safe_load(text_of("configs/engines.yaml"))["engines"]["audio_cpp"]
    (told,), (row,) = example.pop("profiles"), shipped.pop("profiles")
    assert (example, told) == (shipped, {key: row[key] for key in told})
