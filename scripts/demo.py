"""The whole job once, as a client sees it: start the service, submit a portrait and a recording, wait, download.

Uses nothing but the HTTP API; everything it makes is in demo-output/ in the checkout, the service's own data in a
temporary folder that is gone afterwards.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from client import Client, ClientError, Task
from utils.process import die_with_parent

ROOT = Path(__file__).resolve().parent.parent
IMAGE, AUDIO = ROOT / "samples" / "portrait.png", ROOT / "samples" / "speech.wav"
OUTPUT = ROOT / "demo-output"
START_SECONDS, JOB_SECONDS = 60, 600


INTERRUPTED = 130
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, and what a terminal or a machine says that closes."""


def main() -> int:
    """Run the demo; return 0 when the video is there. However it ends, nothing that it started is left."""
    for number in ENDS:
        signal.signal(number, _interrupt)
    try:
        with tempfile.TemporaryDirectory(prefix="avatar-demo-") as data:
            return _with_service(Path(data))
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _with_service(data: Path) -> int:
    log = data / "server.log"
    try:
        with _service(data, log) as url:
            return _job(url)
    except (OSError, TimeoutError, RuntimeError, ClientError) as error:
        print(f"the demo failed: {error}\n--- the service's log ---", file=sys.stderr)
        print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
        return 1


def _prepare() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
    die_with_parent()


@contextmanager
def _service(data: Path, log: Path) -> Iterator[str]:
    """Run the service; yield its address."""
    # It inherits the listening socket, so that no other program can take the port in between. A Ctrl-C is not for it:
    # it is still needed to cancel the task.
    own = {"AVATAR_DATA_DIR": str(data), "AVATAR_CONFIG": "default", "WEB_CONCURRENCY": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AVATAR_")}
    with socket.create_server(("127.0.0.1", 0)) as listener, log.open("wb") as out:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        print(f"starting the service on {url}", flush=True)
        command = [
            sys.executable,
            "-m",
            "gunicorn",
            "-c",
            "configs/gunicorn.conf.py",
            "-b",
            f"fd://{listener.fileno()}",
        ]
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)  # until it is known what is to be stopped
        server = subprocess.Popen(
            [*command, "app:create_app()"], cwd=ROOT, env={**kept, **own}, pass_fds=(listener.fileno(),), stdout=out,
            stderr=out, start_new_session=True, preexec_fn=_prepare,
        )  # fmt: skip
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
        yield url
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)  # it is on its way out
        server.send_signal(signal.SIGTERM)
        server.wait(30)
        print("the service has stopped")


def _job(url: str) -> int:
    _wait_until_healthy(url)
    print(f"submitting {IMAGE.relative_to(ROOT)} and {AUDIO.relative_to(ROOT)}")
    task = Client(url).generate(IMAGE, AUDIO, "A friendly presenter speaks to the camera.", size="704*384")
    print(f"task {task.task_id}: {task.answer['plan']['video_seconds']:g} s of video by engine {task.answer['engine']}")
    try:
        task = _follow(task)
    except BaseException:
        with suppress(ClientError):
            task.cancel().wait()  # else its engine would go on in a folder that is about to go
        raise
    if task.status != "completed":
        raise RuntimeError(f"the task is {task.status}: {task.answer['error']}")
    OUTPUT.mkdir(exist_ok=True)
    video = OUTPUT / Path(urlsplit(task.answer["output_video_url"]).path).name
    task.download(video)
    _describe(video, task.answer)
    return 0


def _wait_until_healthy(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/api/v1/health", timeout=START_SECONDS) as answer:
                if json.load(answer)["status"] == "healthy":
                    return
        except urllib.error.HTTPError:
            time.sleep(0.05)  # up, but not scheduling yet
    raise TimeoutError(f"the service was not healthy within {START_SECONDS} s")


def _follow(task: Task) -> Task:
    deadline = time.monotonic() + JOB_SECONDS
    for now in task.client.follow(task.task_id):
        _draw(now)
        if time.monotonic() > deadline:
            raise TimeoutError(f"the task had not ended after {JOB_SECONDS} s")
    print()
    return now


def _draw(task: Task) -> None:
    filled = round(task.progress * 30)
    eta = f", about {task.seconds_left:.0f} s left" if task.seconds_left is not None else ""
    bar = f"[{'#' * filled}{'.' * (30 - filled)}] {task.progress:4.0%} {task.phase}{eta}"
    print(f"\r{bar}".ljust(78), end="", flush=True)


def _describe(video: Path, task: Mapping[str, Any]) -> None:
    facts = task["video"]
    print(f"\nvideo    {video}")
    print(f"size     {facts['width']}x{facts['height']}, {facts['frames']} frames at {facts['fps']:g} a second")
    print(f"length   {task['duration_seconds']:.2f} s, {facts['size_bytes'] / 1024:.0f} KiB")
    print(f"codecs   {facts['video_codec']} / {facts['audio_codec']}")
    print(f"made in  {task['processing_seconds']:.2f} s")
    for note in task["notes"]:
        print(f"note     {note['message']}")


if __name__ == "__main__":
    sys.exit(main())
