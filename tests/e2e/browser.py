"""A real Chromium on the page, and what is held of every visit: no error, no breach of its policy, no other host."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import axe_playwright_python
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, sync_playwright

from tests.conftest import needs_package

PATIENCE_MS = 60_000
ARGUMENTS = (
    "--disable-background-networking", "--mute-audio", "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
)  # fmt: skip
_WATCH = "document.addEventListener('securitypolicyviolation', (event) => console.error('CSP: ' + event.blockedURI))"
_HEAR = """(() => {
  window.toasts = []; // each that was seen and where: it may be gone before a test looks
  const hear = (node) => node.matches?.(".toast") && node.checkVisibility()
    && window.toasts.push({text: node.textContent, box: node.getBoundingClientRect().toJSON()});
  new MutationObserver((changes) => changes.forEach(({addedNodes}) => addedNodes.forEach(hear)))
    .observe(document, {childList: true, subtree: true});
})()"""
_SIGN_IN = "try { sessionStorage.setItem('api-key', KEY) } catch { /* about:blank has no storage */ }"
_AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf-8")
SETTLE = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
_LOOK = """async () => (await axe.run(document, {resultTypes: ["violations"]})).violations
    .filter(({impact}) => impact === "serious" || impact === "critical")
    .map(({id, nodes}) => id + ": " + nodes.map((node) => node.html.slice(0, 160)).join(" | "))"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Debian's Chromium without a screen, its microphone a beep."""
    program = needs_package("chromium")
    arguments = [*ARGUMENTS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]  # it refuses root in a sandbox
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """One visitor with one tab."""

    context: BrowserContext
    page: Page
    url: str
    errors: list[str] = field(default_factory=list)
    asked: list[Request] = field(default_factory=list)

    def note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(f"{message.text} ({message.location.get('url')})")

    def hosts(self) -> set[str]:
        urls = [request.url for request in self.asked]
        return {urlsplit(url).netloc for url in urls if not url.startswith(("blob:", "data:"))}

    def sent(self, path: str) -> list[Request]:
        """Return the requests whose path begins so."""
        return [request for request in self.asked if urlsplit(request.url).path.startswith(path)]

    def open(self, address: str = "/") -> Page:
        self.page.goto(self.url + address)
        return self.page

    def drop(self, selector: str, *files: Path) -> None:
        """Drag files from outside the browser over an element and let them go there."""
        box = self.page.locator(selector).bounding_box()
        assert box
        session = self.context.new_cdp_session(self.page)
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
            session.send("Input.dispatchDragEvent", {"type": kind, "data": data, **place})
        session.detach()

    def fill(self, portrait: Path, voice: Path, engine: str = "preview", prompt: str = "a person speaks") -> None:
        """Fill in the form, without sending it."""
        # While all sizes are there: of those that come to the same video of the portrait, the chosen one is left.
        self.page.check("input[name=size][value='384*256']")
        self.page.set_input_files("#image", portrait)
        self.page.set_input_files("#audio", voice)
        self.page.fill("#prompt", prompt)
        self.page.select_option("#engine", engine)
        self.page.wait_for_selector("#image-drop img.portrait")
        self.page.wait_for_selector("#audio-drop .sound .button")

    def is_told(self, text: str) -> dict[str, float]:
        """Wait until a message that goes by itself has said this; return where it stood."""
        told = "(text) => window.toasts.find((toast) => toast.text.includes(text))?.box"
        return dict(self.page.wait_for_function(told, arg=text).json_value())

    def tab_to(self, selector: str) -> None:
        """Press Tab until this has the focus, and hold that each stop on the way is seen to have it."""
        for _ in range(80):
            self.page.keyboard.press("Tab")
            focus = self.page.locator(":focus")
            assert focus.count() == 1, "the focus is lost"
            if focus.evaluate("(element, selector) => element.matches(selector)", selector):
                return
        raise AssertionError(f"Tab never comes to {selector}")

    def says(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def until(self, selector: str, text: str) -> None:
        """Wait until an element says this."""
        self.page.locator(selector).filter(has_text=text).first.wait_for()

    def is_accessible(self, theme: str, language: str = "en") -> None:
        """Hold that axe-core finds nothing serious or critical in the page as it is now, in these colours and words."""
        self.speak(language)
        self.page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
        self.sees_no_barrier()
        self.page.emulate_media(color_scheme="light")
        self.speak("en")

    def sees_no_barrier(self) -> None:
        """Hold that axe-core finds nothing serious or critical in what is shown just now."""
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(_AXE)
        self.page.evaluate(SETTLE)  # the colours of what is on the page follow with the next frames
        found = self.page.evaluate(_LOOK)
        lang_and_scheme = "[document.documentElement.lang, matchMedia('(prefers-color-scheme: dark)').matches]"
        assert not found, (self.page.evaluate(lang_and_scheme), found)

    def speak(self, language: str) -> None:
        """Change the language, also where a dialog lies over the button."""
        if not self.page.evaluate("document.documentElement.lang").startswith(language):
            self.page.evaluate("document.querySelector('#language').click()")

    def is_as_wide_as(self, pixels: int) -> None:
        """Hold that nothing hangs out at the side of a screen of this width."""
        self.page.set_viewport_size({"width": pixels, "height": 800})
        self.page.wait_for_function("(pixels) => innerWidth === pixels", arg=pixels)
        assert self.page.evaluate("document.documentElement.scrollWidth") == pixels


@contextmanager
def visit(browser: Browser, url: str, failures: tuple[str, ...] = (), key: str = "", **context: Any) -> Iterator[Visit]:
    """Visit the page; hold afterwards that nothing went wrong but what `failures` names."""
    usual = {"locale": "en-US", "color_scheme": "light", "reduced_motion": "reduce"}
    made = browser.new_context(**{**usual, "viewport": {"width": 1360, "height": 900}, **context})
    made.set_default_timeout(PATIENCE_MS)
    made.add_init_script(_WATCH)
    made.add_init_script(_HEAR)
    if key:
        made.add_init_script(_SIGN_IN.replace("KEY", json.dumps(key)))
    page = made.new_page()
    one = Visit(made, page, url)
    page.on("console", one.note)
    page.on("pageerror", lambda error: one.errors.append(str(error)))
    made.on("request", lambda request: one.asked.append(request))
    try:
        yield one
        unexpected = [error for error in one.errors if not any(known in error for known in failures)]
        assert not unexpected, unexpected
        assert one.hosts() <= {urlsplit(url).netloc}
    finally:
        made.close()
