"""Who may fetch and decode now: no tenant takes all places, few wait, and a place is given back however it was used."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from config_loader import load_settings
from tests.conftest import ROOT
from tests.web.conftest import Serve
from utils.net import FetchError
from web.inputs import FETCHES, WAITING
from web.places import AllBusy, Places

CONF = ROOT / "configs" / "gunicorn.conf.py"
BODY = {"prompt": "p", "image_path": "https://example.com/a.png", "audio_path": "https://example.com/a.wav"}


@contextmanager
def held(places: Places, *tenants: str) -> Iterator[None]:
    with ExitStack() as stack:
        for tenant in tenants:
            stack.enter_context(places.place(tenant, 0))
        yield


def is_open(places: Places, tenant: str, seconds: float = 0) -> bool:
    try:
        with places.place(tenant, seconds):
            return True
    except AllBusy:
        return False


def test_no_tenant_has_all_places_and_all_together_no_more_than_there_are() -> None:
    places = Places(3, 2)
    with held(places, "a", "a"):
        assert (is_open(places, "a"), is_open(places, "b")) == (False, True)
        with held(places, "b"):
            assert not is_open(places, "c")
    assert is_open(places, "a")


def test_a_place_is_given_back_when_its_use_fails() -> None:
    places = Places(1, 1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), places.place("a", 0):
            1 / 0  # noqa: B018
    assert is_open(places, "a")


def test_few_may_wait_and_one_tenant_s_do_not_keep_others_from_waiting() -> None:
    places = Places(1, 1, waiting=2, each_waiting=1)
    with ThreadPoolExecutor(2) as pool:
        with held(places, "a"):
            waiting = [pool.submit(is_open, places, tenant, 100) for tenant in ("a", "b")]
            deadline = time.monotonic() + 30
            while places._wait.total() < 2:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            began = time.monotonic()
            assert [is_open(places, tenant, 100) for tenant in ("a", "b", "c")] == [False] * 3
            assert time.monotonic() - began < 60, "it waited for what it must not wait for"
        assert [future.result(30) for future in waiting] == [True, True]
    with held(places, "a"):
        assert not is_open(places, "a", 0.01)
    assert places._wait.total() == 0


def test_all_that_fetches_decodes_and_waits_leaves_threads_to_requests_that_do_not() -> None:
    beside_long_polls = re.search(r"^threads = _settings.http.max_waiters \+ (\d+)$", CONF.read_text(), re.MULTILINE)
    assert beside_long_polls is not None
    assert FETCHES + WAITING + load_settings().inputs.decoders < int(beside_long_polls[1])


def test_slow_urls_of_one_tenant_hold_no_more_than_its_share_of_the_threads(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("web.inputs.FETCHES", 2)
    service, fetching, go_on = serve(auth={"enabled": True}), threading.Event(), threading.Event()
    greedy, other = ({"X-API-Key": service.manager.store.keys.create(tenant)[1]} for tenant in ("greedy", "other"))

    def slow_at_first(*args: object) -> None:
        if not fetching.is_set():
            fetching.set()
            go_on.wait(30)
        raise FetchError("the URL's server cannot be reached")

    monkeypatch.setattr("web.inputs.fetch", slow_at_first)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(service.app.test_client().post, "/api/v1/generate", json=BODY, headers=greedy)
        assert fetching.wait(30)
        answers = [service.client.post("/api/v1/generate", json=BODY, headers=who) for who in (greedy, other)]
        go_on.set()
        assert [answer.status_code for answer in (*answers, first.result(30))] == [503, 400, 400]
    assert answers[0].headers["Retry-After"]
    assert service.files() == []
