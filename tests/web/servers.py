"""Real servers on free loopback ports, for what only sockets and other processes show."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flask import Flask
from werkzeug.serving import make_server

from tests.conftest import ROOT

# Like configs/gunicorn.conf.py, but without a scheduler: what happens to a task is the test's to say.
CONFIG = """
worker_class, threads, keepalive, graceful_timeout = "web.worker.Worker", 96, 5, 120
control_socket_disable = True
def post_worker_init(worker):
    worker.app.wsgi().extensions["waiting"].stop_when(lambda: not worker.alive)
"""


@contextmanager
def gunicorn(folder: Path, **settings: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run the application under gunicorn with its data in `folder`/data; yield the port and the process."""
    config = folder / "gunicorn_for_tests.py"
    config.write_text(CONFIG)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AVATAR_")}
    environment = {**kept, "AVATAR_DATA_DIR": str(folder / "data"), **settings}
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener, (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-c", str(config), "app:create_app()", "-b", f"fd://{listener.fileno()}"],
            cwd=ROOT, env=environment, pass_fds=(listener.fileno(),), stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            # The socket listens already: the first answer comes as soon as the worker is there.
            assert get(listener.getsockname()[1], "/docs")[0] == 200, (folder / "server.log").read_text()
            yield listener.getsockname()[1], process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the master and its workers
            process.wait()


@contextmanager
def werkzeug(app: Flask) -> Iterator[int]:
    """Run the application under Werkzeug's server in this process; yield the port."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.port
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def get(port: int, path: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes, float]:
    """Return status, headers, body, and the seconds it took."""
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=90)
    try:
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read(), time.monotonic() - began
    finally:
        connection.close()
