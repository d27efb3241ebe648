"""What the documents show works when pasted: one service for all of it."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import av
import pytest
import urllib3
from standardwebhooks.webhooks import Webhook

from tests.conftest import ROOT
from tests.docs.pages import all_pages, blocks
from tests.e2e.browser import PATIENCE_MS, chromium
from tests.e2e.conftest import Service, portrait, service, voice  # noqa: F401 - fixtures
from tests.ports import reserved
from tests.tasks.conftest import ready_video  # noqa: F401 - a fixture

RECEIVERS = {"example: receiver.py", "example: receiver.mjs"}
LOCAL = "http://127.0.0.1:5000"


def script_of(page: str, mark: str) -> str:
    """Return the blocks of a page with this mark as one script: later ones use what earlier ones set."""
    return "\n".join(block.text for block in blocks(page) if block.mark == mark)


def run_in(folder: Path, program: list[str], script: str, url: str) -> str:
    """Run a script of the documents beside the samples and return what it said."""
    folder.mkdir()
    for name in ("samples", "client.py"):
        (folder / name).symlink_to(ROOT / name)
    done = subprocess.run(
        [*program, script.replace(LOCAL, url)],
        cwd=folder,
        env={
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "AVATAR_URL": url,
        },
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_the_walk(folder: Path, said: str) -> None:
    assert (folder / "video.mp4").read_bytes()[4:8] == b"ftyp"
    assert (folder / "poster.jpg").read_bytes()[:3] == b"\xff\xd8\xff"
    assert '"status":"completed"' in (folder / "task.json").read_text().replace(": ", ":")
    assert "made 301 frames" in said
    assert said.count("gen_") >= 5


@pytest.mark.timeout(600)  # it makes half a dozen videos
def test_what_the_documents_show_works_when_pasted(service: Callable[..., Service], tmp_path: Path) -> None:  # noqa: F811
    run = service(1)
    bash = ["bash", "-eu", "-o", "pipefail", "-c"]
    said = run_in(tmp_path / "walk", bash, script_of("README.md", "walk-through"), run.url)
    check_the_walk(tmp_path / "walk", said)
    for page in all_pages():
        for kind, program in (("bash", bash), ("python", [sys.executable, "-c"])):
            if script := script_of(page, f"run: {kind}"):
                run_in(tmp_path / f"{page.replace('/', '-')}-{kind}", program, script, run.url)
    with av.open(str(tmp_path / "docs-quick-start.md-python" / "talking.mp4")) as video:
        assert video.streams.video[0].frames == 45
    assert (tmp_path / "docs-api.md-bash" / "gone.json").exists()


def test_the_script_that_wraps_a_model_hands_on_what_it_gets(tmp_path: Path) -> None:
    (tmp_path / "wrap.sh").write_text(script_of("docs/wrapping-a-model.md", "engine"), "utf-8")
    (tmp_path / "my-model").write_text('#!/bin/sh\nprintf "<%s>" "$@"\n', "utf-8")
    (tmp_path / "my-model").chmod(0o755)
    given = {"prompt": "--out=$(id)", "image": "/in/a b.png", "audio": "/in/a.wav", "seed": "1", "output_dir": "/out"}
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "AVATAR_PROGRESS_FD": "2",
        "AVATAR_PLAN_SECONDS": "1.8",
    }
    arguments = [f"--{name}={value}" for name, value in given.items()]
    done = subprocess.run(
        ["bash", tmp_path / "wrap.sh", *arguments], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "<--still></in/a b.png><--voice></in/a.wav><--seconds><1.8><--out></out/video.mp4>"
    assert done.stderr.startswith("@progress {")


@pytest.mark.long
def test_the_page_of_the_guide_waits_and_plays_the_video_from_another_origin(
    service: Callable[..., Service],  # noqa: F811
    portrait: Path,  # noqa: F811
    voice: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    (tmp_path / "site").mkdir()
    files = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), files) as site, chromium() as browser:
        Thread(target=site.serve_forever, daemon=True).start()
        origin = f"http://127.0.0.1:{site.server_port}"
        run = service(1, AVATAR_CORS__ORIGINS=origin)
        text = script_of("docs/api.md", "example: page").replace(LOCAL, run.url)
        (tmp_path / "site" / "index.html").write_text(text, "utf-8")
        task = run.submit(run.upload("image", portrait), run.upload("audio", voice), engine="fake")
        page = browser.new_page()
        page.goto(f"{origin}/?task={task['task_id']}")
        page.wait_for_function("video.readyState === 4", timeout=PATIENCE_MS)
        assert page.inner_text("#told") == "completed, 100 %"
        site.shutdown()


SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
BODY = b'{"type": "task.completed", "data": {"task_id": "gen_1", "output_video_url": null}}'


@pytest.fixture(params=sorted(RECEIVERS))
def receiver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A receiver of the documents, running: its address and its process."""
    name = request.param.removeprefix("example: ")
    program = sys.executable if name.endswith(".py") else shutil.which("node")
    if program is None:
        pytest.skip("node is not installed, which would run the receiver in JavaScript")
    (tmp_path / name).write_text(script_of("docs/webhooks.md", request.param), "utf-8")
    with reserved() as port:
        environment = {"PATH": os.environ["PATH"], "WEBHOOK_SECRET": SECRET, "PORT": str(port)}
        running = subprocess.Popen([program, tmp_path / name], env=environment, stdout=subprocess.PIPE, text=True)
        yield f"http://127.0.0.1:{port}/hook", running
        running.kill()
        running.wait(30)


def signed(body: bytes, moment: datetime, message_id: str = "msg_1") -> dict[str, str]:
    """Return the headers of a message as the library of Standard Webhooks signs it."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": f"v1,bm90IHRoaXM= {Webhook(SECRET).sign(message_id, moment, body.decode())}",
    }


def test_the_receivers_take_what_is_signed_once_and_nothing_else(receiver: tuple[str, subprocess.Popen[str]]) -> None:
    url, running = receiver
    now = datetime.now(UTC)
    wait_until_it_listens(url)
    old, good = signed(BODY, now - timedelta(seconds=400)), signed(BODY, now)
    for headers, body in [(old, BODY), (good, BODY + b" "), ({}, BODY), ({**good, "webhook-id": "msg_2"}, BODY)]:
        assert urllib3.request("POST", url, body=body, headers=headers, retries=False).status == 401
    for _ in range(2):
        assert urllib3.request("POST", url, body=BODY, headers=good, retries=False).status == 204
    other = signed(BODY.replace(b"gen_1", b"gen_2"), now, "msg_3")
    body = BODY.replace(b"gen_1", b"gen_2")
    assert urllib3.request("POST", url, body=body, headers=other, retries=False).status == 204
    running.terminate()
    said = running.stdout.read().splitlines() if running.stdout else []
    assert [line.split()[:2] for line in said] == [["task.completed", "gen_1"], ["task.completed", "gen_2"]]


def wait_until_it_listens(url: str) -> None:
    host, _, port = url.removeprefix("http://").partition("/")[0].partition(":")
    deadline = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=60).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_no_mark_of_an_example_is_misspelt() -> None:
    known = {"", "walk-through", "life-cycle", "engine", "run: bash", "run: python", "example: page", *RECEIVERS}
    assert {block.mark for page in all_pages() for block in blocks(page)} <= known
