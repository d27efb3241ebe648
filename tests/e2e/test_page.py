"""The page in a real Chromium before a real service, as the people meet it for whom it is made."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Browser, Page, Route

from tests.conftest import ROOT
from tests.e2e.browser import SETTLE, Visit, chromium, visit
from tests.e2e.conftest import write_portrait, write_voice
from tests.e2e.studio import Studio, opened
from tests.web.conftest import Serve, serve  # noqa: F401 - a fixture
from tests.web.servers import werkzeug
from utils.plan import SIZES, clips_in_audio, fit_size, plan_video

SAMPLES = (ROOT / "samples" / "portrait.png", ROOT / "samples" / "speech.wav")
WATCH_PROGRESS = """() => {
  window.seen = [];
  const look = () => {
    const meter = document.querySelector("#stage progress[aria-label=Progress][value]");
    if (meter && window.seen.at(-1) !== meter.value) window.seen.push(meter.value);
  };
  const all = {subtree: true, childList: true, attributes: true};
  new MutationObserver(look).observe(document.querySelector("#stage"), all);
}"""
PLAY = """(video) => new Promise((resolve, reject) => {
  video.addEventListener("timeupdate", () => video.currentTime > 0.3 && resolve(video.currentTime));
  video.play().catch(reject);
})"""
LATE = """(() => {
  const { decode } = HTMLImageElement.prototype;
  HTMLImageElement.prototype.decode = function () {
    return new Promise((resolve) => { window.look = resolve; }).then(() => decode.call(this));
  };
})()"""
"""Lets the page look at a picture only when `look` is called."""
DRAWN = "(image) => image.decode().then(() => image.naturalWidth)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, ready_video: Path, browser: Browser) -> Iterator[Studio]:
    with opened(tmp_path_factory.mktemp("studio"), ready_video, browser) as made:
        yield made


def test_a_visitor_drops_two_files_watches_it_being_made_and_plays_it(studio: Studio) -> None:
    with studio.visit() as guest:
        page = guest.open()
        guest.drop("#prompt", SAMPLES[0], studio.voice)  # wherever they fall, each goes where it belongs
        page.wait_for_selector("#image-drop img.portrait")
        page.wait_for_selector("#audio-drop .sound")
        guest.until("#clips-means", "Your whole 1 s recording")
        assert guest.says("#clips-means") == "Your whole 1 s recording becomes 1 s of video. Clips used: 1."
        page.fill("#prompt", "a person speaks")
        page.check("input[name=size][value='384*256']")
        assert guest.says("#summary") == "384 × 256 · 1 s · MP4"
        page.select_option("#engine", "preview")
        page.evaluate(WATCH_PROGRESS)
        page.click("#submit")
        page.wait_for_selector("#stage video")
        seen = page.evaluate("window.seen")
        assert seen == sorted(seen), seen
        assert [request for request in guest.sent("/api/v1/task/") if request.url.endswith("/events")]
        assert page.locator("#stage video").evaluate(PLAY) > 0.3
        guest.until("#stage .notes", "CPU preview")
        assert page.title() == "Completed · Live Avatar"
        guest.until("#gallery .item", "a person speaks")
        assert page.locator("#gallery .item img").evaluate(DRAWN) > 100
        guest.is_accessible("dark")
        page.click("#language")
        assert guest.says("h1") == "让人像开口说话"
        guest.until("#stage .badge", "已完成")
        guest.is_as_wide_as(360)
    (task,) = studio.run.call("GET", "/api/v1/tasks")[1]["tasks"]
    assert (task["status"], task["metadata"]["image_name"]) == ("completed", "portrait.png")


def test_the_bar_moves_on_as_the_task_does(studio: Studio) -> None:
    with studio.visit() as guest:
        page = guest.open(f"/#/task/{studio.submit('paced')}")
        page.evaluate(WATCH_PROGRESS)
        page.wait_for_function("() => window.seen.length >= 3")
        studio.go.touch()
        page.wait_for_selector("#stage video")
        seen = page.evaluate("window.seen")
        assert seen == sorted(seen), seen


def test_a_finished_video_is_shared_downloaded_made_again_and_deleted(studio: Studio) -> None:
    with studio.visit("status of 404", "status of 410", permissions=["clipboard-read", "clipboard-write"]) as guest:
        task = studio.submit("preview", output_format="webm", prompt="once upon a time")
        page = guest.open(f"/#/task/{task}")
        page.wait_for_selector("#stage video")
        page.click("#stage .actions button:has-text('Copy link')")
        guest.is_told("Anyone who has it can watch until")
        shared = page.evaluate("navigator.clipboard.readText()")
        assert studio.run.http.request("GET", shared, headers={}).status == 200
        with page.expect_download() as download:
            page.click("#stage .actions a")
        assert download.value.suggested_filename.endswith(".webm")
        page.click("#stage .actions button:has-text('Try other settings')")
        form = "form => ['prompt', 'clips', 'engine', 'seed'].map((id) => document.getElementById(id).value)"
        seed = str(studio.run.task(task)["params"]["seed"])
        assert page.locator("#form").evaluate(form) == ["once upon a time", "50", "preview", seed]
        assert page.is_checked("input[name=format][value=webm]")
        page.click(f"#gallery [data-id={task}] [data-act=open]")
        page.click("#stage .actions .tool")
        page.click("#confirm [value=no]")
        page.click("#stage .actions .tool")
        page.click("#confirm [value=yes]")
        guest.until("#stage", "Your video appears here")
        guest.until("#history-empty", "Videos you make will show up here.")
        guest.open(f"/?again#/task/{task}")
        guest.until("#stage", "This video is gone")
        assert studio.run.call("GET", f"/api/v1/task/{task}")[0] == 410


def test_a_video_that_cannot_be_loaded_comes_by_itself_once_it_can(studio: Studio) -> None:
    with studio.visit("ERR_FAILED") as guest:
        task = studio.submit("copies")
        studio.run.ended(task)
        guest.context.route("**/results/**", lambda route: route.abort())
        page = guest.open(f"/#/task/{task}")
        page.wait_for_selector("#gallery .no-poster")
        page.wait_for_function("() => document.querySelector('#stage video')?.error")
        guest.context.unroute("**/results/**")
        page.wait_for_function("() => document.querySelector('#stage video').readyState > 0")


def test_a_log_is_shown_as_its_end_in_plain_lines(studio: Studio) -> None:
    with studio.visit() as guest:
        page = guest.open()
        said = "\x1b[31mloading\x1b[0m\r\n10 %\r50 %\r100 %\ndone\tat\x07 last\r"
        plain = "async (text) => (await import('/static/js/log.js')).plain(text)"
        assert page.evaluate(plain, said) == "loading\n100 %\ndone\tat last"
        end = "async (text) => (await import('/static/js/log.js')).endOf(text)"
        lines = "".join(f"line {number}\n" for number in range(20_000))
        shown = page.evaluate(end, lines)
        assert shown.startswith("…\nline ") and lines.endswith(shown[2:]) and len(shown) <= 100_002
        assert page.evaluate(end, "short") == "short"


def test_a_running_task_tells_its_log_its_time_and_what_was_changed_and_is_cancelled(studio: Studio) -> None:
    with studio.visit("ERR_INTERNET_DISCONNECTED") as guest:
        page = guest.open()
        guest.fill(studio.portrait, studio.voice, "talks")
        page.click("#submit")
        guest.until("#stage .changes", "Denoising steps: 3 instead of 4 (it knows no more).")
        guest.until("#stage .badge", "Processing")
        page.click("#stage summary:has-text('Engine log')")
        guest.until("#stage .log", "still here")
        lines = len(guest.says("#stage .log").splitlines())
        left = remaining(guest)
        page.wait_for_function(
            "([lines, left]) => document.querySelector('#stage .log').textContent.split('\\n').length > lines + 3 && "
            "parseInt(document.querySelector('#stage .eta').textContent.match(/[0-9]+/)?.[0]) < left",
            arg=[lines, left],
        )
        queued = studio.submit("talks", prompt="the second in line")
        guest.until("#gallery .item", "the second in line")
        page.click(f"#gallery [data-id={queued}] [data-act=open]")
        guest.until("#stage .facts", "No. 1")
        guest.is_accessible("light", "zh")
        page.click("#stage .actions button:has-text('Cancel')")
        guest.until("#confirm", "It leaves the queue")
        page.click("#confirm [value=yes]")
        guest.until("#stage .verdict", "Cancelled")
        page.click("#gallery .item:not(.current) [data-act=open]")
        guest.until("#stage .badge", "Processing")
        guest.context.set_offline(True)
        guest.until("#stage .notice", "Can't reach the service.")
        guest.context.set_offline(False)
        page.locator("#stage .notice").wait_for(state="hidden")
        page.click("#stage .actions button:has-text('Cancel')")
        page.click("#confirm [value=yes]")
        guest.until("#stage .verdict", "Cancelled")


def test_cancelling_what_has_just_ended_removes_nothing_and_says_so(studio: Studio) -> None:
    with studio.visit("status of 409") as guest:
        page = guest.open()
        guest.fill(studio.portrait, studio.voice, "talks")
        page.click("#submit")
        guest.until("#stage .badge", "Processing")
        page.click("#stage .actions button:has-text('Cancel')")
        guest.until("#confirm", "Cancel this video?")
        problem = {"error_code": "already_ended", "detail": "the task has already ended: it is completed"}
        page.route("**/cancel", lambda route: route.fulfill(status=409, json=problem))
        page.click("#confirm [value=yes]")
        guest.is_told("It had already ended.")
        assert not [request for request in guest.asked if request.method == "DELETE"]


def remaining(guest: Visit) -> int:
    found = re.search(r"\d+", guest.says("#stage .eta"))
    assert found
    return int(found[0])


def test_a_failed_task_says_why_and_what_to_do(studio: Studio) -> None:
    with studio.visit() as guest:
        page = guest.open()
        guest.fill(studio.portrait, studio.voice, "breaks")
        page.click("#submit")
        guest.until("#stage .verdict", "The engine stopped with an error")
        guest.until("#stage .verdict", "Try once more")
        guest.until("#stage .said", "the engine ended with status 3")
        guest.until("#stage .log", "RuntimeError: no such file")
        guest.is_accessible("light")
        page.click("#language")
        guest.until("#stage .verdict", "引擎出错退出")
        page.click("#stage .actions .primary")  # tries again with what is here still: nothing is uploaded twice
        page.click("#submit")
        guest.until("#stage .badge", "失败")
        page.locator("#gallery .item").nth(1).wait_for()
        assert len(guest.sent("/api/v1/upload")) == 2
        assert len(guest.sent("/api/v1/generate")) == 2


def test_a_reload_still_shows_whose_video_is_on_its_way(studio: Studio) -> None:
    shown = "#stage .pane img.frame-main"
    with studio.visit() as guest:
        page = guest.open()
        guest.fill(studio.portrait, studio.voice, "talks")
        page.click("#submit")
        guest.until("#stage .badge", "Processing")
        page.wait_for_function("() => sessionStorage.getItem('portraits')")
        page.reload()
        assert page.locator(shown).evaluate(DRAWN) == 384
        assert page.locator("#gallery .item img").evaluate(DRAWN) == 384
        assert page.evaluate("sessionStorage.getItem('portraits').length") < 150_000
        assert page.evaluate("Object.keys(localStorage)") == []
        page.click("#gallery [data-act=again]")
        assert page.locator("#image-drop img.portrait").evaluate(DRAWN) == 384
        assert "384 × 256 · uploaded before" in guest.says("#image-drop .drop-facts")
        page.click("#gallery [data-act=open]")
        page.click("#stage .actions button:has-text('Cancel')")
        page.click("#confirm [value=yes]")
        guest.until("#stage .verdict", "Cancelled")
        page.click("#stage .actions .tool")
        page.click("#confirm [value=yes]")
        guest.until("#history-empty", "Videos you make will show up here.")
        # The list may say so before the answer to what removed it has come.
        page.wait_for_function("() => sessionStorage.getItem('portraits') === null")


def test_the_portraits_kept_for_a_reload_are_few_small_and_the_key_s(studio: Studio) -> None:
    with studio.visit() as guest:
        page = guest.open()
        kept = page.evaluate(
            """async () => {
                const {keepPicture, keptPictures} = await import("/static/js/thumbs.js");
                const portrait = "/static/example/portrait.png";
                for (let at = 0; at < 30; at += 1) await keepPicture(`/uploads/image/${at}.png`, portrait);
                await keepPicture("/uploads/image/none.png", "/static/js/main.js");
                return [...keptPictures()].map(([path]) => path);
            }"""
        )
        assert kept == [f"/uploads/image/{number}.png" for number in range(6, 30)]
        assert page.evaluate("sessionStorage.getItem('portraits').length") < 2_000_000
        page.evaluate("sessionStorage.setItem('portraits', '{')")
        page.reload()
        guest.until("#history-empty", "Videos you make will show up here.")
        page.evaluate("sessionStorage.setItem('portraits', '[]')")
        page.click("#key-button")
        page.click("#key-forget")
        assert page.evaluate("sessionStorage.getItem('portraits')") is None


def test_the_form_is_told_as_a_command_that_works_when_pasted(studio: Studio, tmp_path: Path) -> None:
    names = {"image": 'it\'s me, "front"; 1.png', "audio": "voice.wav"}
    for source, name in zip((studio.portrait, studio.voice), names.values(), strict=True):
        (tmp_path / name).write_bytes(source.read_bytes())
    prompt = '@once $(exit 3) `x` "quoted" it\'s < fine'
    with studio.visit(permissions=["clipboard-read", "clipboard-write"]) as guest:
        page = guest.open()
        page.click("#as-command summary")
        guest.until("#command", 'image=@"portrait.png"')
        guest.fill(tmp_path / names["image"], tmp_path / names["audio"], "copies", prompt)
        page.fill("#clips", "1")
        page.check("input[name=format][value=webm]")
        guest.is_accessible("dark", "zh")
        page.click("#command-copy")
        guest.is_told("Command copied.")
        command = page.evaluate("navigator.clipboard.readText()")
        key = page.evaluate("sessionStorage.getItem('api-key')")
        assert key not in command
        done = subprocess.run(
            ["sh", "-c", f"{command} -sf"],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "AVATAR_API_KEY": key},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        task = studio.run.task(json.loads(done.stdout)["task_id"])
        params = task["params"]
        assert (params["prompt"], params["num_clip"], params["size"]) == (prompt, 1, "384*256")
        assert (task["engine"], params["output_format"]) == ("copies", "webm")


def test_a_card_of_the_history_tells_the_phase_that_the_task_is_in(studio: Studio) -> None:
    with studio.visit() as guest:
        task = studio.submit("talks")
        now = studio.run.until(task, lambda one: one["status"] == "processing")
        listed = {"tasks": [{**now, "phase": "loading_model"}], "next_cursor": None}
        guest.page.route("**/api/v1/tasks?*", lambda route: route.fulfill(json=listed))
        guest.open()
        guest.until("#gallery .badge", "Loading model")
        listed["tasks"] = [{**now, "phase": "generating"}]
        guest.until("#gallery .badge", "Generating")


@pytest.mark.parametrize("address", ["/", "/#/service"])
def test_what_is_pressed_while_a_task_gets_on_is_clicked_and_keeps_the_focus(studio: Studio, address: str) -> None:
    link = "#gallery [data-act=open]" if address == "/" else "#service-body .rows a"
    said = "#gallery .badge" if address == "/" else "#service-body .rows:has(a) .row-end"
    with studio.visit() as guest:
        task = studio.submit("talks")
        now = studio.run.until(task, lambda one: one["status"] == "processing")
        listed = {"tasks": [{**now, "progress": 0.25}], "next_cursor": None}
        guest.page.route("**/api/v1/tasks?*", lambda route: route.fulfill(json=listed))
        page = guest.open(address)
        guest.until(said, "25 %")
        page.hover(link)
        page.mouse.down()
        listed["tasks"] = [{**now, "progress": 0.5}]
        guest.until(said, "50 %")
        assert page.locator(link).evaluate("(link) => link === document.activeElement")
        page.mouse.up()
        page.wait_for_url(f"**/#/task/{task}")


def test_who_presses_a_task_that_ends_in_the_view_of_the_service_is_led_to_no_other(studio: Studio) -> None:
    with studio.visit(viewport={"width": 1280, "height": 2000}) as guest:  # else what is left moves under the pointer
        task = studio.submit("talks")
        now = studio.run.until(task, lambda one: one["status"] == "processing")
        listed = {"tasks": [{**now, "progress": 0.25}, {**now, "task_id": "gen_of_another"}], "next_cursor": None}
        guest.page.route("**/api/v1/tasks?*", lambda route: route.fulfill(json=listed))
        page = guest.open("/#/service")
        guest.until("#service-body .rows:has(a) .row-end", "25 %")
        page.evaluate("addEventListener('click', ({ target }) => { window.led = target.closest('a')?.href; })")
        page.hover("#service-body .rows a")
        page.mouse.down()
        del listed["tasks"][0]
        page.wait_for_selector("#service-body .rows li:first-child a[href$=gen_of_another]")
        page.mouse.up()
        assert page.evaluate("window.led ?? null") is None


def test_on_a_phone_no_word_stands_over_the_button_that_sends(studio: Studio) -> None:
    with studio.visit(viewport={"width": 360, "height": 740}) as guest:
        page = guest.open()
        page.click("#language")
        box = "(element) => element.getBoundingClientRect().toJSON()"
        brand, tools = page.locator(".brand").evaluate(box), page.locator(".tools").evaluate(box)
        assert abs((brand["top"] + brand["bottom"]) - (tools["top"] + tools["bottom"])) < 8  # in one line
        page.click("#language")
        guest.drop("#studio .hero", ROOT / "README.md")
        toast = guest.is_told("is neither a picture nor a recording")
        assert toast["bottom"] < page.locator("#submit").evaluate(box)["top"]
        page.click("#submit")
        problem, ideas = page.locator("#prompt-problem, #ideas").evaluate_all(f"(both) => both.map({box})")
        assert problem["bottom"] <= ideas["top"]  # right at the field
        page.set_input_files("#image", studio.portrait)
        page.wait_for_selector("#image-drop.full")
        assert page.is_hidden("#stage .example")


def test_what_cannot_work_is_told_before_anything_is_sent(studio: Studio, tmp_path: Path) -> None:
    narrow = write_portrait(tmp_path / "narrow.png", (500, 80))
    heavy = tmp_path / "heavy.png"
    heavy.write_bytes(studio.portrait.read_bytes() + bytes(300_000))
    text = tmp_path / "text.png"
    text.write_bytes(b"not a picture")
    short = write_voice(tmp_path / "short.wav", 0.1)
    with studio.visit() as guest:
        page = guest.open()
        page.click("#submit")
        assert guest.says("#image-problem") == "Add a portrait."
        assert guest.says("#audio-problem") == "Add a recording."
        assert guest.says("#prompt-problem") == "Describe the video in a few words."
        guest.is_accessible("dark", "zh")
        for path, problem in [
            (narrow, "at most four times"),
            (heavy, "the limit is 300 KB"),
            (text, "can't be opened"),
        ]:
            page.set_input_files("#image", path)
            guest.until("#image-problem", problem)
        page.set_input_files("#audio", short)
        guest.until("#audio-problem", "shorter than 0.2 s")
        guest.drop("#prompt", ROOT / "README.md")
        guest.is_told("“README.md” is neither a picture nor a recording.")
        page.fill("#clips", "0")
        page.select_option("#engine", "live_avatar")
        guest.until("#engine-problem", "LIVE_AVATAR_HOME is not set")
        page.click("#more summary")
        page.fill("#seed", "-1")
        page.click("#more summary")
        page.click("#submit")
        assert page.locator("#more").get_attribute("open") is not None  # else what is wrong would be out of sight
        assert guest.says("#num_clip-problem") == "Enter a whole number from 1 to 10,000."
        assert guest.says("#seed-problem") == "Enter a whole number from 0 to 4,294,967,295."
        assert not guest.sent("/api/v1/upload")


def test_what_the_service_refuses_stands_at_its_field(studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "noise.mp3").write_bytes(b"\xff\xfbnot a recording" * 99)
    with studio.visit("status of 400") as guest:
        page = guest.open()
        guest.fill(studio.portrait, studio.voice)
        page.set_input_files("#audio", tmp_path / "noise.mp3")
        guest.until("#audio-problem", "Your browser can't play this file.")
        page.click("#submit")
        guest.until("#audio-problem", "the format of this file is not known")
        assert "bad" in str(page.get_attribute("#audio-drop", "class")) and page.locator(".problem.doubt").count() == 0
        assert page.evaluate("document.activeElement.id") == "audio"
        guest.until("#stage", "Your video appears here")


def test_the_history_is_filtered_searched_and_read_on(studio: Studio) -> None:
    with studio.visit() as guest:
        failed = studio.submit("breaks", prompt="this one fails")
        studio.run.ended(failed)
        studio.submit("talks", prompt="this one runs")
        for number in range(24):
            studio.submit("talks", prompt=f"number {number} waits")
        page = guest.open()
        items = page.locator("#gallery .item")
        page.wait_for_function("() => document.querySelectorAll('#gallery .item').length === 24")
        page.click("#history-more")
        page.wait_for_function("() => document.querySelectorAll('#gallery .item').length === 26")
        guest.is_as_wide_as(390)
        page.fill("#search", "number 2")
        assert items.count() == 5
        page.fill("#search", "nobody said this")
        guest.until("#history-empty", "No videos match.")
        page.fill("#search", "")
        page.click("#filters button:has-text('Failed')")
        page.wait_for_function("() => document.querySelectorAll('#gallery .item').length === 1")
        assert items.get_attribute("data-id") == failed
        page.click("#filters button:has-text('In progress')")
        page.wait_for_function("() => document.querySelectorAll('#gallery .item').length > 20")
        guest.open("/#/service")
        guest.until("#service-body .rows", "this one runs")
        guest.is_accessible("dark")


class Held:
    """Answers to the page that are kept back until a test lets them go."""

    def __init__(self, guest: Visit, pattern: str, answer: Callable[[Route], dict[str, Any] | None]) -> None:
        """`answer` says what a request is answered; None: what the service says."""
        self.page, self.answer = guest.page, answer
        self.holds: Callable[[str], bool] = lambda url: False
        self.routes: list[Route] = []
        guest.page.route(pattern, self.take)

    def take(self, route: Route) -> None:
        if self.holds(route.request.url):
            self.routes.append(route)
        else:
            self.send(route)

    def send(self, route: Route) -> None:
        answer = self.answer(route)
        if answer is None:
            route.continue_()
        else:
            route.fulfill(json=answer)

    def caught(self) -> None:
        """Wait until one is held, and hold no more."""
        deadline = time.monotonic() + 60
        while not self.routes:
            assert time.monotonic() < deadline, "nothing was asked"
            self.page.wait_for_timeout(20)
        self.holds = lambda url: False

    def let_go(self) -> None:
        """Answer what is held, and give the page the time to take it up."""
        while self.routes:
            self.send(self.routes.pop())
        self.page.evaluate("fetch('/static/img/icon.svg').then((answer) => answer.text())")  # comes behind it
        self.page.evaluate(SETTLE)


def listing(studio: Studio, number: int) -> Callable[[Route], dict[str, Any]]:
    """Return what answers for a list of so many tasks."""
    one = studio.run.task(studio.submit("talks"))
    tasks = [{**one, "task_id": f"gen_20261122_{at:016x}"} for at in range(number)]

    def answer(route: Route) -> dict[str, Any]:
        asked = {key: text[0] for key, text in parse_qs(urlsplit(route.request.url).query).items()}
        begin, most = int(asked.get("cursor", 0)), int(asked["limit"])
        cursor = str(begin + most) if begin + most < number else None
        return {"tasks": [] if asked.get("status") == "failed" else tasks[begin : begin + most], "next_cursor": cursor}

    return answer


def test_what_is_read_on_in_the_list_stays_whatever_answer_was_on_its_way(studio: Studio) -> None:
    with studio.visit() as guest:
        held = Held(guest, "**/api/v1/tasks?*", listing(studio, 30))
        page = guest.open()
        items = page.locator("#gallery .item")
        items.nth(23).wait_for()
        held.holds = lambda url: "cursor" not in url
        held.caught()
        page.click("#history-more")
        items.nth(29).wait_for()
        with page.expect_request("**/api/v1/tasks?limit=30"):
            held.let_go()
        assert items.count() == 30


def test_a_long_list_stays_whole_when_it_is_read_anew(studio: Studio) -> None:
    with studio.visit() as guest:
        answer = listing(studio, 250)
        guest.page.route("**/api/v1/tasks?*", lambda route: route.fulfill(json=answer(route)))
        page = guest.open()
        items = page.locator("#gallery .item")
        for shown in range(24, 250, 24):
            items.nth(shown - 1).wait_for()
            page.click("#history-more")
        items.nth(249).wait_for()
        with page.expect_request("**/api/v1/tasks?*limit=50*"):  # what the first two hundred leave
            pass
        page.evaluate(SETTLE)
        assert items.count() == 250


def test_an_answer_for_another_filter_or_key_is_not_shown(studio: Studio) -> None:
    with studio.visit() as guest:
        held = Held(guest, "**/api/v1/tasks?*", listing(studio, 30))
        page = guest.open()
        items = page.locator("#gallery .item")
        items.nth(23).wait_for()
        held.holds = lambda url: "cursor" in url
        page.click("#history-more")
        held.caught()
        page.click("#filters button:has-text('Failed')")
        guest.until("#history-empty", "No videos match.")
        held.let_go()
        assert items.count() == 0
        page.click("#filters button:has-text('All')")
        items.nth(23).wait_for()
        held.holds = lambda url: True
        held.caught()
        page.click("#key-button")
        page.click("#key-forget")
        assert items.count() == 0
        held.let_go()
        assert items.count() == 0


def test_an_engine_that_was_chosen_before_its_state_was_known_is_still_told_as_unavailable(studio: Studio) -> None:
    with studio.visit() as guest:
        held = Held(guest, "**/api/v1/health", lambda route: None)
        held.holds = lambda url: True
        page = guest.open()
        held.caught()
        page.select_option("#engine", "live_avatar")
        held.let_go()
        guest.until("#engine-problem", "LIVE_AVATAR_HOME is not set")
        page.select_option("#engine", "auto")
        assert guest.says("#engine-problem") == ""


def test_an_upload_that_fails_leaves_the_video_alone_that_was_opened_meanwhile(studio: Studio) -> None:
    with studio.visit("status of 507") as guest:
        task = studio.submit("talks")
        held = Held(guest, "**/api/v1/upload", lambda route: None)
        held.holds = lambda url: True
        page = guest.open()
        guest.fill(studio.portrait, studio.voice)
        page.click("#submit")
        held.caught()
        page.click(f"#gallery [data-id={task}] [data-act=open]")
        guest.until("#stage .actions", "Cancel")
        problem = {"title": "Full", "status": 507, "detail": "no room", "error_code": "insufficient_storage"}
        held.routes[0].fulfill(status=507, content_type="application/problem+json", body=json.dumps(problem))
        page.locator("#submit[aria-disabled=false]").wait_for()
        page.evaluate(SETTLE)
        assert page.locator("#stage .actions").filter(has_text="Cancel").count() == 1


def test_the_focus_stays_at_the_buttons_of_a_file_that_is_still_looked_at(studio: Studio) -> None:
    with studio.visit() as guest:
        guest.context.add_init_script(LATE)
        page = guest.open()
        page.set_input_files("#image", studio.portrait)
        page.wait_for_function("() => window.look")
        page.focus("#image-drop .drop-tools .button >> nth=1")
        page.evaluate("window.look()")
        guest.until("#image-drop .drop-facts", "384 × 256")
        page.keyboard.press("Enter")
        page.locator("#image-drop.full").wait_for(state="detached")
        has_focus(page, "image")


def test_a_file_that_is_still_looked_at_gives_way_to_what_is_taken_over(studio: Studio) -> None:
    with studio.visit() as guest:
        studio.submit("talks")
        guest.context.add_init_script(LATE)
        page = guest.open()
        page.set_input_files("#image", studio.portrait)
        page.wait_for_function("() => window.look")
        page.click("#gallery [data-act=again]")  # its portrait was sent by another page, so none is taken over
        page.locator("#image-drop.full").wait_for(state="detached")
        page.evaluate("window.look()")
        page.evaluate(SETTLE)
        assert page.locator("#image-drop.full").count() == 0


def test_all_of_it_is_done_with_the_keyboard_alone(studio: Studio) -> None:
    with studio.visit() as guest:
        page = guest.open()
        keys = page.keyboard
        page.on("filechooser", lambda _: None)  # or else it is only just heard of while the key is pressed
        guest.tab_to(".skip")
        keys.press("Enter")
        has_focus(page, "main")
        for kind, file in (("image", SAMPLES[0]), ("audio", studio.voice)):
            guest.tab_to(f"#{kind}")
            with page.expect_file_chooser() as chooser:
                keys.press("Enter")
            chooser.value.set_files(file)
            page.wait_for_selector(f"#{kind}-drop.full")
        guest.tab_to("#prompt")
        keys.type("a person speaks")
        guest.tab_to("input[name=size]")
        keys.press("ArrowRight")
        assert page.is_checked("input[name=size][value='384*256']")
        guest.tab_to("#clips")
        keys.press("ControlOrMeta+a")
        keys.type("1")
        guest.tab_to("#engine")
        keys.press("t")  # talks; more letters count as one word only while they come fast
        assert page.input_value("#engine") == "talks"
        guest.tab_to("#submit")
        keys.press("Enter")
        guest.until("#stage .badge", "Processing")
        guest.tab_to("#stage .actions .button")
        keys.press("Enter")
        keys.press("Escape")  # keeps it
        keys.press("Enter")
        guest.tab_to("#confirm [value=yes]")
        keys.press("Enter")
        guest.until("#stage .verdict", "Cancelled")
        has_focus(page, "stage")
        guest.tab_to("#stage .tool")
        keys.press("Enter")
        guest.tab_to("#confirm [value=yes]")
        keys.press("Enter")
        guest.until("#history-empty", "Videos you make will show up here.")
        has_focus(page, "stage")


def has_focus(page: Page, element: str) -> None:
    """Wait until an element has the focus: it comes with the next frame, or with an answer."""
    page.wait_for_function("(id) => document.activeElement.id === id", arg=element)


def test_a_voice_is_recorded_with_the_microphone(studio: Studio) -> None:
    with studio.visit(permissions=["microphone"]) as guest:
        page = guest.open()
        page.click("#record")
        page.wait_for_function("() => parseFloat(document.querySelector('.drop-live strong')?.textContent) > 0.5")
        page.click("#record")
        guest.until("#audio-drop .drop-facts", "recording.wav")
        # First it tells that the file is being checked.
        page.locator("#audio-drop .drop-facts small").filter(has_text=re.compile(r"^\s*(0\.[5-9] s|[1-9])")).wait_for()
        page.locator("#audio-drop .sound .wave-bar").nth(71).wait_for()
        assert page.locator("#audio-drop .sound .wave-bar").count() == 72
        page.set_input_files("#image", studio.portrait)
        page.fill("#prompt", "a beep")
        page.fill("#clips", "1")  # it may have become long
        page.select_option("#engine", "preview")
        page.click("#submit")
        page.wait_for_selector("#stage video")  # the service takes it for what it is


def test_a_key_is_asked_for_refused_and_kept_as_long_as_the_tab(studio: Studio) -> None:
    with visit(studio.browser, studio.run.url, ("status of 401",)) as guest:
        page = guest.open()
        guest.fill(studio.portrait, studio.voice, "copies")
        page.click("#submit")
        page.wait_for_selector("#key-dialog[open]")
        guest.is_accessible("light", "zh")
        page.fill("#key", "la_nobody_has_this_one")
        page.keyboard.press("Enter")
        guest.until("#key-problem", "The service did not accept this key.")
        key = studio.key()
        page.fill("#key", key)
        page.keyboard.press("Enter")
        page.locator("#key-needed").wait_for(state="hidden")
        page.click("#submit")  # nothing of the form was lost
        page.wait_for_selector("#stage video")
        assert page.evaluate("sessionStorage.getItem('api-key')") == key
        assert key not in page.evaluate("JSON.stringify(localStorage) + document.cookie")
        another = guest.context.new_page()
        another.goto(studio.run.url)
        assert another.is_visible("#key-needed")
        page.click("#key-button")
        page.click("#key-forget")
        assert page.is_visible("#key-needed")
        assert page.locator("#gallery .item").count() == 0
    assert not [request for request in guest.asked if key in request.url]


@pytest.mark.parametrize("stream", ["works", pytest.param("breaks", marks=pytest.mark.long), "is refused"])
def test_a_stream_of_events_is_followed_to_the_end_or_polling_takes_over(studio: Studio, stream: str) -> None:
    with studio.visit("status of 404", "net::ERR") as guest:
        task = studio.submit("copies")
        ended = studio.run.ended(task)
        begun = {
            **ended,
            "status": "processing",
            "phase": "generating",
            "progress": 0.25,
            "start_time": ended["submit_time"],
        }
        events = [
            f": hello\r\n\r\nid: 1\r\nevent: task\r\ndata: {json.dumps(begun)}\r\n\r\n",
            f"id: 2\nevent: task\ndata: {json.dumps(ended)}\n\n",
        ]
        resumed: list[str | None] = []

        def answer(route: Route) -> None:
            resumed.append(route.request.headers.get("last-event-id"))
            if stream == "is refused":
                route.fulfill(status=404, json={"error_code": "not_found"})
            elif stream == "breaks" and len(resumed) > 1:
                route.abort()
            else:
                route.fulfill(content_type="text/event-stream", body=events[min(len(resumed), 2) - 1])

        guest.page.route("**/events", answer)
        nothing = {"tasks": [], "next_cursor": None}  # else the history would know the end before the stream tells it
        guest.page.route("**/api/v1/tasks?*", lambda route: route.fulfill(json=nothing))
        guest.page.route(guest.url + "/", with_events)
        page = guest.open()
        page.evaluate("(task) => { location.hash = `#/task/${task}` }", task)
        page.wait_for_selector("#stage video")
    assert resumed == {"works": [None, "1"], "breaks": [None, "1", "1", "1"], "is refused": [None]}[stream]


def with_events(route: Route) -> None:
    """Serve the page as a service does that offers the stream."""
    answer = route.fetch()
    route.fulfill(response=answer, body=answer.text().replace("&quot;events&quot;: false", "&quot;events&quot;: true"))


@pytest.mark.long
def test_the_page_of_the_api_shows_each_route_without_another_host(studio: Studio) -> None:
    with visit(studio.browser, studio.run.url) as guest:
        page = guest.open("/docs")
        page.locator(".opblock").nth(10).wait_for()
        page.click(
            "#operations-tasks-generate button.opblock-summary-control, .opblock-post button.opblock-summary-control"
        )
        guest.until(".opblock-body", "audio_path")


def test_the_page_plans_as_the_service_does(serve: Serve, browser: Browser) -> None:  # noqa: F811
    sides = [(64, 64), (8192, 2100), (1056, 576), (576, 1056), (333, 777), (100, 400), (1920, 1080), (389, 257)]
    lengths = [0.2, 0.28, 1.0, 1.92, 1.93, 11.6, 12.09, 59.999, 3600.04]
    with werkzeug(serve().app) as port, visit(browser, f"http://127.0.0.1:{port}", ("503",)) as guest:
        page = guest.open()
        assert page.is_hidden("#key-button")  # where nobody needs one
        planned = page.evaluate(
            """async ([sizes, sides, lengths]) => {
                const plan = await import("/static/js/plan.js");
                const fit = (area) => sides.map(([width, height]) => plan.fitSize(area, width, height));
                return [
                    Object.values(sizes).map(fit),
                    lengths.map((seconds) => [plan.clipsInAudio(seconds), plan.planTime(7, seconds)]),
                ];
            }""",
            [SIZES, sides, lengths],
        )
    for area, fitted in zip(SIZES.values(), planned[0], strict=True):
        assert [tuple(size[::-1]) for size in fitted] == [fit_size(area, height, width) for width, height in sides]
    for seconds, (clips, shown) in zip(lengths, planned[1], strict=True):
        plan = plan_video(size="384*256", num_clip=7, image_width=64, image_height=64, audio_seconds=seconds)
        assert clips == clips_in_audio(seconds)
        assert (shown["clips"], shown["frames"]) == (plan.clips, plan.frames)


def test_areas_that_come_to_the_same_video_are_one_choice(serve: Serve, browser: Browser) -> None:  # noqa: F811
    portrait = ROOT / "samples" / "portrait.png"
    fitted = {name: fit_size(area, 576, 1056)[::-1] for name, area in SIZES.items()}
    assert fitted["720*400"] == fitted["704*384"]
    with werkzeug(serve().app) as port, visit(browser, f"http://127.0.0.1:{port}", ("503",)) as guest:
        page = guest.open()
        sizes = page.locator("#sizes label:visible strong")
        sizes.first.wait_for()
        assert sizes.count() == len(SIZES)
        page.set_input_files("#image", portrait)
        page.wait_for_selector("#sizes input[value='720*400']", state="hidden")
        assert sorted(sizes.all_inner_texts()) == sorted(f"{width} × {height}" for width, height in {*fitted.values()})
        page.reload()
        page.check("input[name=size][value='720*400']")
        page.set_input_files("#image", portrait)
        page.wait_for_selector("#sizes input[value='704*384']", state="hidden")
        assert page.is_checked("#sizes input[value='720*400']")


@pytest.mark.timeout(600)  # axe-core looks at much, again and again
@pytest.mark.long
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_state_is_accessible_in_all_colours_and_languages(studio: Studio, theme: str, language: str) -> None:
    with studio.visit() as guest:
        for width in (1360, 390):
            guest.is_as_wide_as(width)
            page = guest.open(f"/?{width}")
            guest.is_accessible(theme, language)
            page.click("#submit")
            page.click("#more summary")
            guest.is_accessible(theme, language)
            for engine, state in (("preview", "completed"), ("breaks", "failed"), ("talks", "processing")):
                guest.fill(studio.portrait, studio.voice, engine)
                page.click("#submit")
                page.wait_for_selector(f"#stage .badge.{state}")
                page.locator("#stage summary").last.click()
                guest.is_accessible(theme, language)
            page.click("#stage .actions .button")
            guest.is_accessible(theme, language)
            page.click("#confirm [value=yes]")
            page.wait_for_selector("#stage .badge.cancelled")
            guest.is_accessible(theme, language)
            guest.open("/#/service")
            guest.until("#service-body .panel", "CPU")
            guest.is_accessible(theme, language)
