"""The page of the API in a real Chromium: in the colours of the reader, and read by anyone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
from playwright.sync_api import Browser, Page

from tests.e2e.browser import Visit, chromium, visit
from tests.e2e.conftest import Service
from tests.e2e.studio import JWT_SECRET

GENERATE = "button.opblock-summary-control:has-text('/api/v1/generate')"
COLOURED = """(colours) => [document.body, document.querySelector(".opblock")]
    .every((element, index) => getComputedStyle(element).backgroundColor === colours[index])"""
LIGHT, DARK = ["rgb(245, 243, 238)", "rgb(255, 254, 251)"], ["rgb(18, 17, 16)", "rgb(27, 26, 24)"]
"""Of the ground and of a card on it."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a service is that knows keys and needs none."""
    keys = {"AVATAR_AUTH__ENABLED": "true", "AVATAR_AUTH__ALLOW_ANONYMOUS": "true"}
    run = Service(tmp_path_factory.mktemp("docs"), keys, workers=1)
    try:
        yield run.start().url
    finally:
        run.clean_up()


def opened(guest: Visit) -> Page:
    """Open the page and wait for its routes."""
    page = guest.open("/docs")
    page.locator(".opblock").nth(10).wait_for()
    return page


def turns(page: Page, colours: list[str]) -> None:
    """Wait until the page has these colours: they come with the next frame."""
    page.wait_for_function(COLOURED, arg=colours)


def test_it_is_as_dark_as_the_system_and_follows_it(browser: Browser, url: str) -> None:
    with visit(browser, url, color_scheme="dark") as guest:
        page = opened(guest)
        turns(page, DARK)
        page.emulate_media(color_scheme="light")
        turns(page, LIGHT)
        page.wait_for_function("() => !document.documentElement.classList.contains('dark-mode')")


def test_the_choice_of_colours_and_language_is_one_for_both_pages(browser: Browser, url: str) -> None:
    with visit(browser, url) as guest:
        page = guest.open()
        for _ in range(2):  # auto, light, dark
            page.click("#theme")
        page.click("#language")
        page.click(".bar nav a[href='/docs']")
        page.locator(".opblock").nth(10).wait_for()
        turns(page, DARK)
        assert guest.says(".bar nav a[aria-current]") == "API 文档"
        page.wait_for_selector("#theme[aria-label='配色：深色']")
        page.click("#theme")
        turns(page, LIGHT)
        page.click(".bar nav a:has-text('创作')")
        page.wait_for_selector("#theme[aria-label='配色：跟随系统']")


@pytest.mark.timeout(600)  # axe-core looks at much, again and again
@pytest.mark.parametrize("theme", [pytest.param("light", marks=pytest.mark.long), "dark"])
def test_all_of_it_is_accessible_and_fits_a_phone(browser: Browser, url: str, theme: str) -> None:
    with visit(browser, url, color_scheme=theme) as guest:
        page = opened(guest)
        guest.sees_no_barrier()
        page.click(GENERATE)
        page.wait_for_selector(".responses-wrapper")
        guest.sees_no_barrier()
        page.click(".try-out__btn")
        page.wait_for_selector("textarea[aria-label='Request body']")
        page.click(".models-control")
        page.click("section.models .json-schema-2020-12-accordion >> nth=3")
        for width in (390, 360):
            guest.is_as_wide_as(width)
            guest.sees_no_barrier()
        page.click(".btn.authorize")
        page.wait_for_selector(".modal-ux")
        guest.sees_no_barrier()


def test_a_request_is_tried_out_and_its_answer_shown(browser: Browser, url: str) -> None:
    with visit(browser, url) as guest:
        page = opened(guest)
        page.click("button.opblock-summary-control:has-text('/api/v1/health')")
        page.click(".try-out__btn")
        page.click(".btn.execute")
        guest.until(".live-responses-table .response-col_status", "200")
        guest.until(".live-responses-table pre", '"status"')
        ink = "(button) => getComputedStyle(button).color"  # axe-core is not sure what it stands on
        assert page.locator(".download-contents").evaluate(ink) == "rgb(255, 255, 255)"
        guest.sees_no_barrier()


def test_the_key_given_to_the_page_is_sent_here_too(browser: Browser, tmp_path: Path) -> None:
    run = Service(tmp_path, {"AVATAR_AUTH__ENABLED": "true", "AVATAR_AUTH__JWT_SECRET": JWT_SECRET}, workers=1)
    claims = {"exp": int(time.time()) + 3600, "sub": "u", "tenant": "acme"}
    try:
        with visit(browser, run.start().url, ("status of 401",), jwt.encode(claims, JWT_SECRET, "HS256")) as guest:
            for answer in ("200", "401"):
                page = opened(guest)
                page.wait_for_selector(f".btn.authorize.{'locked' if answer == '200' else 'unlocked'}")
                page.click("button.opblock-summary-control:has-text('/api/v1/tasks')")
                page.click(".try-out__btn")
                page.click(".btn.execute")
                guest.until(".live-responses-table .response-col_status", answer)
                guest.context.add_init_script("sessionStorage.removeItem('api-key')")
    finally:
        run.clean_up()


def test_an_address_leads_to_its_operation(browser: Browser, url: str) -> None:
    with visit(browser, url) as guest:
        page = guest.open("/docs#/tasks/generate")
        page.wait_for_selector(".opblock.is-open")
        assert guest.says(".opblock.is-open .opblock-summary-path").strip().endswith("/generate")


def test_it_is_used_with_the_keyboard_alone(browser: Browser, url: str) -> None:
    with visit(browser, url) as guest:
        page = opened(guest)
        guest.tab_to(".skip")
        guest.tab_to("#theme")
        guest.tab_to(GENERATE.replace(":has-text('/api/v1/generate')", ""))
        page.keyboard.press("Enter")
        page.wait_for_selector(".opblock.is-open .responses-wrapper")
