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
import uuid
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
IMAGE, AUDIO = ROOT / "samples" / "portrait.png", ROOT / "samples" / "speech.wav"
OUTPUT = ROOT / "demo-output"
START_SECONDS, JOB_SECONDS = 60, 600


def main() -> int:
    """Run the demo; return 0 when the video is there."""
    with tempfile.TemporaryDirectory(prefix="avatar-demo-") as data, socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        print(f"starting the service on {url}")
        with (Path(data) / "server.log").open("wb") as log:
            server = _start(listener, Path(data), log)
        try:
            return _job(url)
        except (OSError, TimeoutError, RuntimeError) as error:
            print(f"the demo failed: {error}\n--- the service's log ---", file=sys.stderr)
            print((Path(data) / "server.log").read_text(errors="replace")[-4000:], file=sys.stderr)
            return 1
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
            print("the service has stopped")


def _start(listener: socket.socket, data: Path, log: Any) -> subprocess.Popen[bytes]:
    # The service inherits the listening socket: no other program can take the port in between.
    own = {"AVATAR_DATA_DIR": str(data), "AVATAR_CONFIG": "default", "WEB_CONCURRENCY": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AVATAR_")}
    command = [sys.executable, "-m", "gunicorn", "-c", "configs/gunicorn.conf.py", "-b", f"fd://{listener.fileno()}"]
    return subprocess.Popen(
        [*command, "app:create_app()"],
        cwd=ROOT,
        env={**kept, **own},
        pass_fds=(listener.fileno(),),
        stdout=log,
        stderr=log,
    )


def _job(url: str) -> int:
    _wait_until_healthy(url)
    print(f"submitting {IMAGE.relative_to(ROOT)} and {AUDIO.relative_to(ROOT)}")
    task = _submit(url)
    print(f"task {task['task_id']}: {task['plan']['video_seconds']:g} s of video by engine {task['engine']}")
    task = _follow(url, task)
    if task["status"] != "completed":
        raise RuntimeError(f"the task is {task['status']}: {task.get('error')}")
    OUTPUT.mkdir(exist_ok=True)
    video = OUTPUT / Path(task["output_video_url"]).name
    with urllib.request.urlopen(url + task["output_video_url"], timeout=60) as answer:
        video.write_bytes(answer.read())
    _describe(video, task)
    return 0


def _wait_until_healthy(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/api/v1/health", timeout=5) as answer:
                if json.load(answer)["status"] == "healthy":
                    return
        except urllib.error.HTTPError:
            time.sleep(0.05)  # up, but not scheduling yet
    raise TimeoutError(f"the service was not healthy within {START_SECONDS} s")


def _submit(url: str) -> dict[str, Any]:
    fields = {"prompt": "A friendly presenter speaks to the camera.", "size": "704*384"}
    body, kind = _multipart(fields, {"image": IMAGE, "audio": AUDIO})
    request = urllib.request.Request(f"{url}/api/v1/generate", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"the submit was refused: {error.read().decode(errors='replace')}") from error


def _multipart(fields: dict[str, str], files: dict[str, Path]) -> tuple[bytes, str]:
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n'.encode() for n, v in fields.items()
    ]
    for name, path in files.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{path.name}"\r\n\r\n'
        parts += [head.encode(), path.read_bytes(), b"\r\n"]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


def _follow(url: str, task: dict[str, Any]) -> dict[str, Any]:
    deadline, tag = time.monotonic() + JOB_SECONDS, ""
    while time.monotonic() < deadline:
        request = urllib.request.Request(
            f"{url}{task['status_url']}?wait=30", headers={"If-None-Match": tag} if tag else {}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                task, tag = json.load(answer), answer.headers["ETag"]
        except urllib.error.HTTPError as error:
            if error.code != 304:
                raise
        _draw(task)
        if task["status"] in ("completed", "failed", "cancelled"):
            print()
            return task
    raise TimeoutError(f"the task had not ended after {JOB_SECONDS} s")


def _draw(task: dict[str, Any]) -> None:
    filled = round(task["progress"] * 30)
    eta = f", about {task['eta_seconds']:.0f} s left" if task.get("eta_seconds") is not None else ""
    print(
        f"\r[{'#' * filled}{'.' * (30 - filled)}] {task['progress']:4.0%} {task['phase']}{eta}".ljust(78),
        end="",
        flush=True,
    )


def _describe(video: Path, task: dict[str, Any]) -> None:
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
