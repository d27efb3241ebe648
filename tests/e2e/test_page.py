"""The page in a real Chromium before a real service, as the people meet it for whom it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.conftest import ROOT
from tests.e2e.browser import chromium, visit
from tests.e2e.conftest import Service
from tests.web.conftest import Serve, serve  # noqa: F401 - a fixture
from tests.web.servers import werkzeug
from utils.plan import SIZES, clips_in_audio, fit_size, plan_video

PORTRAIT, SPEECH = ROOT / "samples" / "portrait.png", ROOT / "samples" / "speech.wav"
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def test_a_visitor_drops_two_files_watches_it_being_made_and_plays_it(
    service: Callable[..., Service], browser: Browser, portrait: Path, voice: Path
) -> None:
    run = service(fake={"output_formats": ["mp4"]})
    with visit(browser, run.url, viewport={"width": 1360, "height": 900}) as guest:
        page = guest.open()
        page.click("#submit")  # nothing is sent of an empty form: each field says what it needs
        assert guest.says("#image-problem") == "A portrait is needed."
        assert guest.says("#prompt-problem")
        guest.drop("#prompt", PORTRAIT, voice)  # wherever they fall, each goes where it belongs
        page.wait_for_selector("#image-drop img.portrait")
        page.wait_for_selector("#audio-drop .sound")
        assert guest.says("#image-problem") == guest.says("#audio-problem") == ""
        assert guest.says("#clips-means") == "Your 1 s recording fits whole: 1 s of video, clips needed: 1."
        page.fill("#prompt", "a person speaks")
        page.check("input[name=size][value='384*256']", force=True)
        page.select_option("#engine", "preview")
        page.evaluate(WATCH_PROGRESS)
        page.click("#submit")
        page.wait_for_selector("#stage video")
        seen = page.evaluate("window.seen")
        assert len(seen) >= 3 and seen == sorted(seen), seen
        assert page.locator("#stage video").evaluate(PLAY) > 0.3
        guest.until("#stage .notes", "CPU preview")
        guest.until("#gallery .item", "a person speaks")
        assert (
            page.locator("#gallery .item img").evaluate("(image) => image.decode().then(() => image.naturalWidth)")
            > 100
        )
        page.click("#language")
        assert guest.says("h1") == "让人像开口说话"
        guest.until("#stage .badge", "已完成")
        ground = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(ground)
        page.emulate_media(color_scheme="dark")
        assert page.evaluate(ground) != light
        page.set_viewport_size({"width": 360, "height": 780})
        assert page.evaluate("document.documentElement.scrollWidth") == 360
    (task,) = run.call("GET", "/api/v1/tasks")[1]["tasks"]
    assert (task["status"], task["metadata"]["image_name"]) == ("completed", "portrait.png")


def test_the_page_plans_as_the_service_does(serve: Serve, browser: Browser) -> None:  # noqa: F811
    sides = [(64, 64), (8192, 2100), (1056, 576), (576, 1056), (333, 777), (100, 400), (1920, 1080), (389, 257)]
    lengths = [0.2, 0.28, 1.0, 1.92, 1.93, 11.6, 12.09, 59.999, 3600.04]
    with werkzeug(serve().app) as port, visit(browser, f"http://127.0.0.1:{port}", ("503",)) as guest:
        page = guest.open()
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
