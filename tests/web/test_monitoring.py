"""The shipped dashboard and alert rules ask for what there is: metrics, labels and values of a real scrape."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.scheduler import LOCK_NAME, _note_look
from tests.conftest import ROOT, needs_package
from tests.web.conftest import Service
from tests.web.test_metrics import library, scrape, with_gpus  # noqa: F401 - fixtures
from utils.process import try_lock

FOLDER = ROOT / "configs" / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ADDED = {"instance", "job", "le"}
"""Labels that Prometheus adds, and that of a histogram's bounds."""

OPEN_VALUES = ADDED | {"route", "status"}
"""Labels whose values a scrape of an idle service does not all show."""

VARIABLES = {"$__rate_interval": "5m", "$__range": "6h", "$instance": ".*", "$engine": ".*"}


def asked() -> Iterator[tuple[str, str]]:
    """Yield where each expression stands, and the expression as Prometheus gets it."""
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    queries = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
    queries += [(note["name"], note["expr"]) for note in DASHBOARD["annotations"]["list"]]
    for title, query in queries:
        for name, value in VARIABLES.items():
            query = query.replace(name, value)
        yield title, query


ASKED = list(asked())


@pytest.fixture
def told(with_gpus: Service) -> dict[str, dict[str, set[str]]]:  # noqa: F811
    """The labels of each series of a scrape, with their values."""
    service = with_gpus
    service.client.get("/docs")
    lock = try_lock(service.settings.data_dir / LOCK_NAME)  # what a scheduler would hold, and write
    _note_look(lock)
    seen: dict[str, dict[str, set[str]]] = {"up": {"job": set()}}
    for sample in scrape(service.client).samples:
        for label, value in sample.labels.items():
            seen.setdefault(sample.name, {}).setdefault(label, set()).add(value)
        seen.setdefault(sample.name, {})
    os.close(lock)
    return seen


def selectors(query: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the series that a query names, with the values that it asks for of their labels."""
    for name, matchers in re.findall(r"\b(live_avatar_\w+|up)\b(?:\{([^}]*)\})?", query):
        found = re.findall(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"', matchers)
        assert len(found) == len(matchers.split(",") if matchers else []), matchers
        yield name, dict(found)


def test_every_series_and_label_that_is_asked_for_is_told(told: dict[str, dict[str, set[str]]]) -> None:
    for place, query in ASKED:
        series = list(selectors(query))
        assert series, place
        for name, matchers in series:
            assert name in told, (place, name)
            assert matchers.keys() <= told[name].keys() | ADDED, (place, name)
            for label, values in ((label, values) for label, values in matchers.items() if label not in OPEN_VALUES):
                for value in values.split("|"):
                    assert value == ".*" or value in told[name][label], (place, label, value)
        known = {label for name, _ in series for label in told[name]} | ADDED
        for labels in re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", query):
            assert {label.strip() for label in labels.split(",")} <= known, (place, labels)


def test_legends_and_annotations_name_labels_that_are_left(told: dict[str, dict[str, set[str]]]) -> None:
    texts = [(t["expr"], re.findall(r"{{(\w+)}}", t["legendFormat"])) for p in PANELS for t in p["targets"]]
    texts += [(rule["expr"], re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))) for rule in RULES]
    for query, labels in texts:
        outermost = re.match(r"\s*(?:histogram_quantile\([\d.]+, )?(?:sum|max|min)(?: by \(([^)]*)\))?\s*\(", query)
        if outermost:
            left = {label.strip() for label in (outermost[1] or "").split(",")} - {"le"}
        else:
            left = {label for name, _ in selectors(query) for label in told[name]} | ADDED
        assert set(labels) <= left, (query, labels)


def test_brackets_and_quotes_are_balanced() -> None:
    for place, query in ASKED:
        bare = re.sub(r'"[^"]*"', "", query)
        assert '"' not in bare, place
        stack: list[str] = []
        for sign in bare:
            if sign in "([{":
                stack.append({"(": ")", "[": "]", "{": "}"}[sign])
            elif sign in ")]}":
                assert stack, place
                assert stack.pop() == sign, place
        assert not stack, place


def test_counters_are_asked_for_by_their_increase() -> None:
    for place, query in ASKED:
        for match in re.finditer(r"(\w+)\((live_avatar_\w+_(?:total|bucket|sum|count)\b)", query):
            assert match[1] in ("rate", "increase"), (place, match[0])
        counters = re.findall(r"live_avatar_\w+_(?:total|bucket|sum|count)\b", query)
        assert len(counters) == len(re.findall(r"(?:rate|increase)\(\s*live_avatar_", query)), place


def test_every_metric_that_is_told_is_drawn_or_watched(told: dict[str, dict[str, set[str]]]) -> None:
    used = {re.sub(r"_(bucket|sum|count)$", "", name) for _, query in ASKED for name, _ in selectors(query)}
    there = {re.sub(r"_(bucket|sum|count)$", "", name) for name in told}
    assert there <= used, there - used


def test_panels_lie_side_by_side_and_say_what_they_show() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        assert len(panel["description"]) > 10, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert {source["uid"] for source in sources} == {"${datasource}"}, "of whatever Grafana it is imported into"
    for one, other in combinations((panel["gridPos"] for panel in DASHBOARD["panels"]), 2):
        apart = (
            one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        )  # fmt: skip
        assert apart, (one, other)
        assert one["x"] + one["w"] <= 24


def test_every_alert_says_how_urgent_it_is_and_what_to_do() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert len(rule["annotations"]["description"]) > 20


@pytest.fixture
def promtool() -> str:
    return str(Path(needs_package("prometheus")).with_name("promtool"))


def run(*command: str, folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_reads_the_rules_the_queries_and_the_scrape_configuration(promtool: str, tmp_path: Path) -> None:
    run(promtool, "check", "rules", str(FOLDER / "alerts.yml"), folder=tmp_path)
    queries = [{"record": f"panel:{number}", "expr": query} for number, (_, query) in enumerate(ASKED)]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": queries}]}))
    run(promtool, "check", "rules", "panels.yml", folder=tmp_path)
    text = (FOLDER / "prometheus.yml").read_text()
    for path in ("/etc/prometheus/live-avatar-alerts.yml", "/etc/prometheus/live-avatar.key"):
        assert path in text
        text = text.replace(path, str(FOLDER / "alerts.yml"))
    (tmp_path / "prometheus.yml").write_text(text)
    run(promtool, "check", "config", "prometheus.yml", folder=tmp_path)


def test_alerts_fire_when_they_should_and_not_before(promtool: str) -> None:
    run(promtool, "test", "rules", "alerts_test.yml", folder=Path(__file__).parent)


def test_a_real_scrape_passes_prometheus_own_lint(promtool: str, with_gpus: Service) -> None:  # noqa: F811
    text = with_gpus.client.get("/metrics").data
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
