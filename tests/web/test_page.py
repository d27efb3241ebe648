"""How the page is served, and that its two languages say the same things. What it does is in tests/e2e/test_page.py."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.web.conftest import Serve, Service
from utils.plan import SIZES

STATIC = ROOT / "web" / "static"
SCRIPTS = sorted((STATIC / "js").glob("*.js"))


def facts(service: Service) -> dict[str, Any]:
    found = re.search(r'<meta name="service" content="([^"]*)">', service.client.get("/").text)
    assert found
    return dict(json.loads(html.unescape(found[1])))


def words(name: str) -> dict[str, str]:
    lines = re.findall(r'^  ("[^"]+"): (".*"),$', (STATIC / "js" / name).read_text("utf-8"), re.MULTILINE)
    return {json.loads(key): json.loads(text) for key, text in lines}


def test_the_page_and_all_its_files_are_served_from_here_and_asked_for_again(spotless: Service) -> None:
    index = spotless.client.get("/")
    assert index.headers["Content-Type"] == "text/html; charset=utf-8"
    assert not re.search(r"<script>|<style|\sstyle=|\son\w+=|https?://", index.text)
    named = re.findall(r'(?:src|href)="(/static/[^"]+)"', index.text)
    made = [f"/static/js/{path.name}" for path in SCRIPTS] + [
        "/static/example/portrait.png",
        "/static/example/speech.wav",
    ]
    assert len(named) == 7
    for path in ["/", *named, *made]:
        answer = spotless.client.get(path)
        assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-cache"), path
        again = spotless.client.get(path, headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.data) == (304, b""), path
        assert "javascript" in answer.mimetype or not path.endswith(".js")


def test_the_pages_policy_lets_it_run_its_own_scripts_and_ask_this_service_only(spotless: Service) -> None:
    rules = [
        rule.strip().partition(" ") for rule in spotless.client.get("/").headers["Content-Security-Policy"].split(";")
    ]
    policy = {name: value for name, _, value in rules}
    assert policy.pop("require-trusted-types-for") == "'script'"
    assert policy["default-src"] == policy["trusted-types"] == policy["frame-ancestors"] == "'none'"
    assert set(" ".join(policy.values()).split()) == {"'none'", "'self'", "blob:"}


@pytest.mark.parametrize(
    "name", ["index.html", "../page.py", "js/../index.html", "js", "docs/start.js", "%2e%2e/app.py", "js/main.js%00"]
)
def test_no_other_file_is_served(spotless: Service, name: str) -> None:
    assert spotless.client.get(f"/static/{name}").status_code == 404


def test_it_is_told_what_it_may_offer_before_anyone_has_a_key(serve: Serve) -> None:
    told = facts(serve(auth={"enabled": True}, inputs={"max_image_bytes": 12345}))
    assert (told["auth"], told["keys"], told["sizes"]) == (True, True, SIZES)
    assert told["limits"]["image_bytes"] == 12345
    assert [engine["name"] for engine in told["engines"]] == ["live_avatar", "preview"]


def test_a_visitor_may_go_without_a_key_where_anyone_may(serve: Serve) -> None:
    told = facts(serve(auth={"enabled": True, "allow_anonymous": True}))
    assert (told["auth"], told["keys"]) == (False, True)


def test_both_languages_say_everything_that_is_asked_for() -> None:
    english, chinese = words("en.js"), words("zh.js")
    assert set(english) == set(chinese)
    for key, text in english.items():
        assert set(re.findall(r"{\w+}", text)) == set(re.findall(r"{\w+}", chinese[key])), key
    sources = "".join(path.read_text("utf-8") for path in SCRIPTS) + (STATIC / "index.html").read_text("utf-8")
    asked = set(re.findall(r'\bt\("([a-z_.0-9]+)"', sources)) | set(
        re.findall(r'data-t(?:-[a-z-]+)?="([a-z_.0-9]+)"', sources)
    )
    assert len(asked) > 100
    assert asked <= set(english)


def test_every_code_of_an_error_or_of_a_failure_has_words() -> None:
    from tasks.model import ErrorCode, Phase, Status
    from web.errors import Code

    needed = (
        {f"api.{code}" for code in Code} | {f"status.{status}" for status in Status} | {f"phase.{one}" for one in Phase}
    )
    needed |= {f"fail.{code}.{part}" for code in ErrorCode for part in ("title", "advice")}
    assert needed <= set(words("en.js"))
