"""What the documents name exists: files, headings, settings, addresses, commands; and what they show compiles."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import click
import pytest
import yaml
from flask import Flask

from app import ROUTES
from config_loader import environment_names, load_settings
from scripts.docs import groups
from tests.conftest import ROOT
from tests.docs.pages import all_pages, anchors, blocks, links, prose, section, text_of, told_pages
from web import commands

EVERY = pytest.mark.parametrize("name", all_pages())
PRESENT = pytest.mark.parametrize("name", told_pages())


@EVERY
def test_every_link_leads_to_a_file_and_a_heading(name: str) -> None:
    for path, anchor in links(name):
        assert path.is_relative_to(ROOT), path
        assert path.exists(), path
        if anchor:
            assert anchor in anchors(str(path.relative_to(ROOT))), f"{path.name}#{anchor}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), ["README.md"]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            found = [path for path, _ in links(name) if path.suffix == ".md"]
            waiting += [str(path.relative_to(ROOT)) for path in found]
    assert set(all_pages()) <= reached | {"samples/README.md"}


@cache
def sources() -> str:
    """Return the code in which variables are named that are no settings."""
    paths = [*(ROOT / "tasks").glob("*.py"), *(ROOT / "scripts").glob("*.sh"), *ROOT.glob("*.py")]
    return "\n".join(path.read_text("utf-8") for path in paths)


@PRESENT
def test_every_variable_that_is_named_exists(name: str) -> None:
    for variable in re.findall(r"\b(?:LIVE_)?AVATAR_[A-Z0-9_]*[A-Z0-9]\b(?!_?[*<…])", text_of(name)):
        known = variable in environment_names() or variable.startswith("AVATAR_TEST_")
        assert known or re.search(rf"\b{variable}\b", sources()), variable


@cache
def setting_keys() -> set[str]:
    known = groups()
    return {group.key for group in known} | {setting.key for group in known for setting in group.settings}


@PRESENT
def test_every_setting_that_is_named_by_its_key_exists(name: str) -> None:
    keys = setting_keys()
    tops = {key.partition(".")[0] for key in keys if "." in key}
    for key in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", prose(name)):
        if key.partition(".")[0] in tops and not key.endswith((".yaml", ".md")):
            assert key in keys, key


@PRESENT
def test_every_address_that_is_named_is_a_route(name: str) -> None:
    rules = [(method, re.compile(re.sub(r"<path:\w+>|<\w+>", "[^?]+", rule))) for method, rule, _, _ in ROUTES]
    asked = re.findall(r"(?:\b(GET|HEAD|POST|PUT|DELETE) )?(?<![a-z<])(/api/v1/[^\s\"'`)|,;:?]*)", text_of(name))
    asked += re.findall(r"\b(GET|POST|DELETE) (/[^\s\"'`)|,;:?]*)", text_of(name))
    for method, path in asked:
        wanted = "GET" if method == "HEAD" else method
        found = [one for one, rule in rules if rule.fullmatch(path.rstrip("."))]
        assert wanted in found if wanted else found, f"{method} {path}"


@cache
def own_commands() -> click.Group:
    app = Flask("documents")
    commands.register(app, load_settings())
    return app.cli


def parse(group: click.Group, words: list[str], whole: bool) -> None:
    """Parse a command without running it; one that is not `whole` may lack its arguments."""
    with click.Context(group) as context:
        found, command, rest = group.resolve_command(context, words)
    if isinstance(command, click.Group) and rest:
        parse(command, rest, whole)
    elif command is not None and not isinstance(command, click.Group):
        try:
            command.make_context(found, rest)
        except click.MissingParameter:
            if whole:
                raise


@PRESENT
def test_every_command_that_is_named_parses(name: str) -> None:
    shown = [(block.text, True) for block in blocks(name)]
    for text, whole in [*shown, (prose(name), False)]:
        for line in re.findall(r"flask --app app ([^\n`]*)", text):
            words = shlex.split(re.split(r" +#| && | (?=\()|[).](?=[\s).]|$)", line)[0])
            if words and not words[0].startswith(("…", "...")):
                parse(own_commands(), words, whole)


@pytest.mark.parametrize("name", ["docs/deployment.md", "docs/zh-CN/deployment.md"])
def test_the_environment_file_of_a_server_is_good_as_it_stands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As systemd reads it: a line is a comment as a whole or not at all."""
    (text,) = [block.text for block in blocks(name) if block.text.startswith("AVATAR_CONFIG=")]
    for line in text.splitlines():
        if not line.startswith("#"):
            monkeypatch.setenv(*line.split("=", 1))
    http = load_settings().http
    assert [str(one) for one in http.trusted_proxies] == ["127.0.0.1/32"]
    assert (http.trusted_hosts[-1], http.accel_prefix) == ("127.0.0.1", "/_results/")


@PRESENT
def test_every_make_target_that_is_named_exists(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    named = re.findall(r"`(?:[A-Z_]+=\S+ )*make ([a-z-]+)", prose(name))
    named += [word for block in blocks(name) for word in re.findall(r"^make ([a-z-]+)", block.text, re.MULTILINE)]
    assert set(named) <= targets, set(named) - targets


@EVERY
def test_every_block_of_code_is_of_its_language(name: str, tmp_path: Path) -> None:
    for block in blocks(name):
        match block.kind:
            case "python":
                compile(block.text, name, "exec")
            case "json":
                json.loads(block.text)
            case "yaml":
                yaml.safe_load(block.text)
            case "bash":
                subprocess.run(["bash", "-n"], input=block.text, text=True, check=True, timeout=60)
            case kind:
                assert kind in ("", "html", "js", "mermaid"), f"no test knows {kind}"


@pytest.mark.parametrize("name", [name for name in all_pages() if re.search(r"```(js|html)\n", text_of(name))])
def test_every_script_for_browsers_and_node_compiles(name: str, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed, which would compile the examples in JavaScript")
    scripts = [block.text for block in blocks(name) if block.kind == "js"]
    pages = [block.text for block in blocks(name) if block.kind == "html"]
    scripts += [script for page in pages for script in re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)]
    assert scripts
    for script in scripts:
        (tmp_path / "example.mjs").write_text(script, "utf-8")
        done = subprocess.run([node, "--check", tmp_path / "example.mjs"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


@EVERY
def test_the_drawings_are_there_and_have_words_for_who_cannot_see_them(name: str) -> None:
    for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text_of(name)):
        drawing = ((ROOT / name).parent / target).read_text("utf-8")
        assert len(words) > 20
        assert "<title" in drawing
        assert "prefers-color-scheme: dark" in drawing


@pytest.mark.parametrize("twin", [name for name in all_pages() if name.startswith("docs/zh-CN/")])
def test_a_chinese_page_and_its_english_twin_lead_to_each_other(twin: str) -> None:
    name = twin.replace("zh-CN/", "")
    assert (ROOT / twin) in [path for path, _ in links(name)]
    assert (ROOT / name) in [path for path, _ in links(twin)]


def test_what_has_not_run_on_gpus_is_said() -> None:
    assert "None of this has run on real GPUs with the real weights yet" in text_of("docs/gpu-server.md")
    assert "尚未在真实 GPU 和真实权重上运行过" in text_of("docs/zh-CN/gpu-server.md")
    assert "has not been run" in section(text_of("docs/deployment.md"), "## Containers")
