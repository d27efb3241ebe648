"""What clients see while the database of a running service does not do its work."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.tasks.test_upgrade import spoil
from tests.web.conftest import Serve, Service, form

HEALTH, TASKS = "/api/v1/health", "/api/v1/tasks"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of all writers."""
    with closing(sqlite3.connect(path)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        yield


def reasons(service: Service) -> str:
    answer = service.client.get(HEALTH)
    assert answer.status_code == 503  # no scheduler runs in these tests
    return " ".join(answer.json["reasons"])


def test_while_another_process_keeps_the_lock_writing_is_a_503_and_reading_goes_on(serve: Serve) -> None:
    service = serve(database_busy_seconds=0.3)
    queued, ended = service.submit(1), service.complete(service.start(service.submit(2)))
    path = service.settings.data_dir / "avatar.db"
    assert "locked" not in reasons(service)
    with locked(path):
        for call in (
            lambda: service.client.post("/api/v1/generate", data=form()),
            lambda: service.client.post("/api/v1/upload", data={"type": "image", "file": form()["image"]}),
            lambda: service.client.delete(f"/api/v1/task/{queued.id}"),
            lambda: service.client.delete(f"/api/v1/task/{ended.id}"),
        ):
            began = time.monotonic()
            answer = call()
            assert (answer.status_code, answer.json["error_code"]) == (503, "busy")
            assert int(answer.headers["Retry-After"]) > 0
            assert time.monotonic() - began < 60, "it waited for a lock that never comes free"
        for seen in (f"/api/v1/task/{queued.id}", f"/results/{ended.id}/video.mp4", TASKS):
            assert service.client.get(seen).status_code == 200
        assert "the database is locked by another process" in reasons(service)
    assert "locked" not in reasons(service)
    assert service.client.delete(f"/api/v1/task/{queued.id}").json["status"] == "cancelled"
    assert service.client.post("/api/v1/generate", data=form()).status_code == 201


def test_damage_that_shows_later_is_a_503_that_tells_no_insides_and_stays_in_the_health(service: Service) -> None:
    tasks = [service.submit(number) for number in range(60)]
    path = service.settings.data_dir / "avatar.db"
    service.manager.store.close()  # else the rows would be answered from memory
    kept = path.read_bytes()
    assert "damaged" not in reasons(service)
    service.manager.store.close()
    spoil(path)
    statuses = set()
    for url in [TASKS + "?limit=200", *(f"/api/v1/task/{task.id}" for task in tasks)]:
        answer = service.client.get(url)
        statuses.add(answer.status_code)
        if answer.status_code != 200:
            assert (answer.status_code, answer.json["error_code"]) == (503, "database_unavailable")
            assert answer.headers["Retry-After"]
            assert "malformed" not in answer.text
            assert str(path.parent) not in answer.text
    assert 503 in statuses
    told = reasons(service)
    assert "the database is damaged: stop the service and restore a backup" in told
    assert str(path.parent) not in json.dumps(told)
    service.manager.store.close()
    path.write_bytes(kept)
    assert "damaged" in reasons(service), "who met damage once must not call the service healthy again by itself"


def test_a_database_that_vanishes_is_not_made_anew_by_the_health(service: Service) -> None:
    service.manager.store.close()
    path = service.settings.data_dir / "avatar.db"
    path.rename(path.with_name("away.db"))
    assert "the database cannot be reached" in reasons(service)
