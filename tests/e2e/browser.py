"""A real Chromium on the page, and what is held of every visit: no error, no breach of its policy, no other host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, sync_playwright

from tests.conftest import needs_package

PATIENCE_MS = 30_000
ARGUMENTS = (
    "--disable-background-networking", "--mute-audio", "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
)  # fmt: skip
_WATCH = "document.addEventListener('securitypolicyviolation', (event) => console.error('CSP: ' + event.blockedURI))"


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
    hosts: set[str] = field(default_factory=set)

    def note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(f"{message.text} ({message.location.get('url')})")

    def asked(self, request: Request) -> None:
        if not request.url.startswith(("blob:", "data:")):
            self.hosts.add(urlsplit(request.url).netloc)

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
        self.page.set_input_files("#image", portrait)
        self.page.set_input_files("#audio", voice)
        self.page.fill("#prompt", prompt)
        self.page.check("input[name=size][value='384*256']", force=True)
        self.page.select_option("#engine", engine)
        self.page.wait_for_selector("#image-drop img.portrait")
        self.page.wait_for_selector("#audio-drop .sound")

    def says(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def until(self, selector: str, text: str) -> None:
        """Wait until an element says this."""
        self.page.locator(selector).filter(has_text=text).first.wait_for()


@contextmanager
def visit(browser: Browser, url: str, failures: tuple[str, ...] = (), **context: Any) -> Iterator[Visit]:
    """Visit the page; hold afterwards that nothing went wrong but what `failures` names."""
    made = browser.new_context(**{"locale": "en-US", "color_scheme": "light", **context})
    made.set_default_timeout(PATIENCE_MS)
    made.add_init_script(_WATCH)
    page = made.new_page()
    one = Visit(made, page, url)
    page.on("console", one.note)
    page.on("pageerror", lambda error: one.errors.append(str(error)))
    made.on("request", one.asked)
    try:
        yield one
        unexpected = [error for error in one.errors if not any(known in error for known in failures)]
        assert not unexpected
        assert one.hosts <= {urlsplit(url).netloc}
    finally:
        made.close()
