"""Metrics of a real service with several web workers: exact, whoever answers, is killed or restarted."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import urllib3

from tests.e2e.conftest import Service
from tests.web.scrapes import Scrape

WORKERS, EACH = 4, 10


def scrape(run: Service) -> Scrape:
    status, text = run.call("GET", "/metrics")
    assert status == 200
    return Scrape.of(text.decode())


def workers(run: Service) -> list[psutil.Process]:
    return psutil.Process(run.process.pid).children()


@contextmanager
def alone(run: Service, one: psutil.Process) -> Iterator[None]:
    """Let one worker answer all requests."""
    others = [worker for worker in workers(run) if worker.pid != one.pid]
    for other in others:
        other.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while any(other.status() != psutil.STATUS_STOPPED for other in others):  # until then it may accept one more
        assert time.monotonic() < deadline
        time.sleep(0.005)
    try:
        yield
    finally:
        for other in others:
            other.send_signal(signal.SIGCONT)


def ask(run: Service, times: int) -> None:
    """Ask so often, each time on a connection of its own."""
    for _ in range(times):
        with urllib3.PoolManager(retries=False, timeout=60) as http:
            assert http.request("GET", f"{run.url}/api/v1/tasks?limit=1").status == 200


def until(run: Service, holds: Callable[[Scrape], bool]) -> Scrape:
    deadline = time.monotonic() + 60
    while not holds(seen := scrape(run)):
        assert time.monotonic() < deadline, run.log()
        time.sleep(0.02)
        run.http.clear()  # who answered last may be about to end
    return seen


def test_sums_are_exact_over_workers_and_survive_a_kill_and_a_reload_and_totals_a_restart(
    service: Callable[..., Service], portrait: Path, voice: Path
) -> None:
    run = service(WORKERS)
    until(run, lambda seen: seen.value("web_workers") == WORKERS)
    run.http.clear()  # the next connections are for whoever is awake
    for worker in workers(run):
        with alone(run, worker):
            ask(run, EACH)
    tasks = "/api/v1/tasks"
    seen = scrape(run)
    assert seen.value("http_requests_total", route=tasks, method="GET", status="200") == WORKERS * EACH
    assert seen.value("http_request_duration_seconds_count", route=tasks) == WORKERS * EACH

    killed = workers(run)[:2]
    for worker in killed:
        worker.kill()
    psutil.wait_procs(killed, timeout=30)
    run.http.clear()  # connections to the dead
    after = until(run, lambda seen: seen.value("web_workers") == WORKERS and len(workers(run)) == WORKERS)
    assert after.value("http_requests_total", route=tasks) == WORKERS * EACH
    assert after.value("in_progress", kind="request") == 1, "what was open in the dead is not any more"
    ask(run, EACH)
    assert scrape(run).value("http_requests_total", route=tasks) == (WORKERS + 1) * EACH

    old = {worker.pid for worker in workers(run)}
    run.process.send_signal(signal.SIGHUP)
    reloaded = until(
        run, lambda seen: old.isdisjoint(worker.pid for worker in workers(run)) and seen.value("web_workers") == WORKERS
    )
    assert reloaded.value("http_requests_total", route=tasks) == (WORKERS + 1) * EACH, "a reload forgets nothing"

    accepted = run.submit(str(portrait), str(voice), engine="fake")
    assert run.ended(accepted["task_id"])["status"] == "completed"
    own = {"engine": "fake", "profile": "only"}
    before = scrape(run)
    assert before.value("tasks_finished_total", **own, status="completed") == before.value("attempts_total", **own) == 1
    for name in ("attempt_waiting", "task_loading", "task_rendering"):
        assert before.value(f"{name}_seconds_count", **own) == 1
    assert before.value("scheduler_held") == 1
    assert before.value("scheduler_silent_seconds") < 30

    run.kill()
    run.start()
    again = scrape(run)
    assert again.value("tasks_finished_total", **own, status="completed") == 1
    assert again.value("task_rendering_seconds_sum", **own) == before.value("task_rendering_seconds_sum", **own)
    assert again.requests() == 0, "requests are counted from the start"
