"""A warm process from which runners are forked.

Importing the database and media libraries takes a Python process half a second and more; a runner that is forked from
one that has them starts in milliseconds. The spawner has one thread, so a fork copies it whole; it keeps nothing of a
runner, which leads its own session; and it ends when the scheduler that started it ends, leaving its runners alone.

The scheduler's side is Spawner, the other side is `main`. A request is one JSON message with the attempt's lock as an
attached descriptor; the answer is the runner's pid. Before the first one it says that it is ready.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tasks.spec import FAILPOINT_VARIABLE
from utils.failpoint import Point, arm, reach
from utils.process import die_with_parent

ROOT = Path(__file__).resolve().parent.parent

_REQUEST_BYTES = 128 * 1024
_ANSWER_SECONDS = 5.0
"""A fork takes milliseconds; a spawner that was stopped is replaced, for the scheduler waits meanwhile."""

_START_SECONDS = 60.0
"""Its imports take longer than that answer on a busy machine, and a spawner replaced before they are done never is."""


class SpawnError(OSError):
    """No runner could be started."""


@dataclass(slots=True)
class Spawner:
    """The scheduler's end. Starts its process when first needed, and anew when it was killed. For one thread."""

    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _channel: socket.socket | None = field(default=None, init=False)
    _ready: bool = field(default=False, init=False)

    def warm_up(self) -> None:
        """Start the process, so that the first task finds it ready."""
        self._connected()

    def be_ready(self) -> None:
        """Wait until the process can fork, starting it where it was killed. Raises SpawnError where it cannot be."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        try:
            self._ready_channel()
        except OSError as error:
            self.close()
            raise SpawnError(f"the spawner does not start: {error}") from error

    def spawn(self, folder: Path, environment: Mapping[str, str], lock: int) -> int:
        """Start a runner for the attempt in `folder`, handing it the lock; return its pid. Raises SpawnError."""
        request = json.dumps({"folder": str(folder), "environment": dict(environment)}).encode()
        try:
            return self._ask(request, lock)
        except OSError:
            self.close()  # killed since the last task: once more with a new one
        try:
            return self._ask(request, lock)
        except OSError as error:
            self.close()
            raise SpawnError(f"the spawner does not answer: {error}") from error

    def close(self) -> None:
        """End the process; runners go on."""
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._channel = None
        self._ready = False

    def _ask(self, request: bytes, lock: int) -> int:
        channel = self._ready_channel()
        socket.send_fds(channel, [request], [lock])
        return int(self._answer(channel))

    def _ready_channel(self) -> socket.socket:
        channel = self._connected()
        if not self._ready:
            channel.settimeout(_START_SECONDS)
            self._answer(channel)
            channel.settimeout(_ANSWER_SECONDS)
            self._ready = True
        return channel

    @staticmethod
    def _answer(channel: socket.socket) -> bytes:
        answer = channel.recv(64)
        if not answer:
            raise ConnectionResetError("the spawner has ended")
        return answer

    def _connected(self) -> socket.socket:
        if self._channel is not None:
            return self._channel
        # SEQPACKET keeps messages apart; timeouts keep a stopped spawner from stopping the scheduler.
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _REQUEST_BYTES)
        command = [sys.executable, "-m", "tasks.spawner", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), start_new_session=True
            )
        self._channel = ours
        return ours


def main(argv: list[str]) -> int:
    """Fork a runner for each request on the socket `argv[1]`, until its other end is closed."""
    # While it is stopped it sees no channel close, and holds the lock of an attempt that it was asked for.
    die_with_parent(signal.SIGKILL)
    _import_for_runners()
    gc.freeze()  # what was imported stays: no collection in a runner touches, and so copies, its pages
    channel = socket.socket(fileno=int(argv[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # runners that end need no waiting for
    # Its scheduler died while it started or forked (EPIPE), or ended before it read an answer (ECONNRESET).
    with suppress(BrokenPipeError, ConnectionResetError):
        channel.send(b"ready")
        _fork_on_request(channel)
    return 0


def _fork_on_request(channel: socket.socket) -> None:
    while True:
        request, descriptors, _, _ = socket.recv_fds(channel, _REQUEST_BYTES, 1)
        if not request:
            return
        asked = json.loads(request)
        arm(asked["environment"].get(FAILPOINT_VARIABLE, ""))  # for itself and for the runner
        pid = os.fork()
        if pid == 0:
            channel.close()
            _become_runner(Path(asked["folder"]), asked["environment"], descriptors[0])
        os.close(descriptors[0])
        reach(Point.RUNNER_FORKED)
        channel.send(str(pid).encode())


def _import_for_runners() -> None:
    """Import all that runners will need, to what the libraries import when they first use it.

    A new version may replace this one's folder, with its Python environment, while a runner still works.
    """
    import av.subtitles.stream  # noqa: F401 - imported by av when it opens a container
    import PIL.Image

    import tasks.runner  # noqa: F401 - and through it the rest

    PIL.Image.preinit()


def _become_runner(folder: Path, environment: dict[str, str], lock: int) -> None:
    """Turn the forked child into the runner of one attempt; never returns."""
    status = 70
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _log_to(folder / "runner.log")
        os.environ.clear()
        os.environ.update(environment)
        os.set_inheritable(lock, False)
        from tasks.runner import run

        status = run(folder)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def _log_to(path: Path) -> None:
    """Send what is written to stdout and stderr to the file; where the disk has no room for it, leave them as they are.

    The runner has more to tell than its log: that the disk is full, in its task's row.
    """
    try:
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    except OSError as error:
        print(f"{path} cannot be written: {error.strerror}", file=sys.stderr)  # noqa: T201 - the spawner's own log
        return
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
