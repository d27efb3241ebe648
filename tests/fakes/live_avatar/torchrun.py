"""A stand-in for torchrun: starts the ranks of one job and behaves as torch 2.x's does when they, or it, end.

Every worker is a session of its own. SIGTERM or SIGINT stops the workers (SIGTERM, and SIGKILL after
LIVE_AVATAR_FAKE_KILL_AFTER seconds, 30 as in the real one) and ends with 1; SIGKILL leaves them behind. A rank that
fails takes the others along, and the table that says so does not hold the cause. The environment of upstream's
programs (torch, tqdm) is the folder `site`.

Unlike the real one, it forks its ranks from itself with all that they import at hand: five interpreters that start side
by side would cost more than everything else in a run.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from types import CodeType, FrameType, ModuleType
from typing import NoReturn, TextIO

HERE = os.path.dirname(os.path.abspath(__file__))
VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"
PACKAGES = os.path.join(os.path.dirname(os.path.dirname(sys.executable)), "lib", VERSION, "site-packages")
POLL_SECONDS = 0.02
STDOUT, STDERR = 1, 2
STOPPING = (signal.SIGTERM, signal.SIGINT)
FOR_RANKS = ("dataclasses", "datetime", "importlib.util", "json", "logging", "marshal", "traceback", "wave")
"""What every rank imports of the standard library."""


class Stopped(Exception):
    """The signal that torchrun got."""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("torchrun", allow_abbrev=False)
    parser.add_argument("--standalone", action="store_true")
    parser.add_argument("--nproc-per-node", "--nproc_per_node", type=int, default=1)
    parser.add_argument("--nnodes", default="1:1")
    parser.add_argument("--master-addr", "--master_addr", default="127.0.0.1")
    parser.add_argument("--master-port", "--master_port", type=int, default=29500)
    parser.add_argument("--max-restarts", "--max_restarts", type=int, default=0)
    parser.add_argument("--log-dir", "--log_dir")
    parser.add_argument("-r", "--redirects", default="0")
    parser.add_argument("-t", "--tee", default="0")
    parser.add_argument("training_script")
    parser.add_argument("training_script_args", nargs=argparse.REMAINDER)
    return parser.parse_args(argv)


def streams(text: str, ranks: int) -> dict[int, int]:
    """`3` or `0:1,1:3` as bits (1 stdout, 2 stderr) of each rank."""
    if text.isdigit():
        return dict.fromkeys(range(ranks), int(text))
    named = dict(tuple(map(int, part.split(":"))) for part in text.split(","))
    return {rank: named.get(rank, 0) for rank in range(ranks)}


def listen(args: argparse.Namespace) -> socket.socket:
    """Hold the port at which the ranks meet; a fixed one that is taken ends the job."""
    store = socket.socket()
    try:
        told = os.environ.get("LIVE_AVATAR_FAKE", "").split(",")
        if "port_in_use" in told or "--prompt=fake:port_in_use" in args.training_script_args:
            raise OSError
        store.bind(("127.0.0.1", 0 if args.standalone else args.master_port))
        store.listen()
    except OSError:
        print(
            "Traceback (most recent call last):\n"
            "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. "
            f"port: {args.master_port}, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use",
            file=sys.stderr,
        )
        sys.exit(1)
    return store


def tail(header: str, path: str, target: TextIO, done: threading.Event) -> None:
    """Copy lines as they come; as in the real one, the reader takes a carriage return for the end of a line."""
    with open(path, errors="replace") as file:
        while True:
            last = done.is_set()
            line = file.readline()
            if line:
                target.write(header + line)
                target.flush()
            elif last:
                return
            else:
                time.sleep(POLL_SECONDS)


class Rank:
    """A forked worker, with as much of subprocess.Popen as torchrun uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self, options: int = os.WNOHANG) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def become_rank(code: CodeType, argv: list[str], environment: dict[str, str], outputs: dict[int, TextIO | None]) -> int:
    """Run the program in the forked child as an interpreter of its own would; return its exit status."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    for stream, file in outputs.items():
        if file is not None:
            os.dup2(file.fileno(), stream)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # as a child of subprocess.Popen
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = argv
    sys.path[:1] = [os.path.dirname(os.path.abspath(argv[0])), *environment["PYTHONPATH"].split(":")]
    sys.modules["__main__"] = program = ModuleType("__main__")
    program.__file__ = argv[0]
    try:
        exec(code, program.__dict__)
    except SystemExit as ended:
        if ended.code is not None and not isinstance(ended.code, int):
            print(ended.code, file=sys.stderr)
            return 1
        return ended.code or 0
    except BaseException as error:
        trace = error.__traceback__
        sys.excepthook(type(error), error, trace and trace.tb_next)
        return 1
    return 0


class Workers:
    """The ranks of one job."""

    def __init__(self, args: argparse.Namespace, port: int) -> None:
        self.args, self.port, self.count = args, port, args.nproc_per_node
        self.run_id = str(uuid.uuid4()) if args.standalone else "none"
        self.processes: list[Rank] = []
        self.tails: list[threading.Thread] = []
        self.ended = threading.Event()
        self.redirects, self.tees = streams(args.redirects, self.count), streams(args.tee, self.count)
        self.logs = ""
        if any((*self.redirects.values(), *self.tees.values())):
            base = args.log_dir or tempfile.mkdtemp(prefix="torchelastic_")
            os.makedirs(base, exist_ok=True)
            self.logs = tempfile.mkdtemp(prefix=f"{self.run_id}_", dir=base)

    def start(self) -> None:
        for name in FOR_RANKS:
            __import__(name)
        with open(self.args.training_script, "rb") as file:
            code = compile(file.read(), self.args.training_script, "exec")
        # Before there is any other thread, and with no signal in between: a fork copies both.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        for rank in range(self.count):
            self.processes.append(self.fork(rank, code))
        for thread in self.tails:
            thread.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)

    def fork(self, rank: int, code: CodeType) -> Rank:
        outputs = {stream: self.output(rank, stream) for stream in (STDOUT, STDERR)}
        pid = os.fork()
        if pid == 0:
            self.run(code, self.environment(rank), outputs)
        for file in outputs.values():
            if file is not None:
                file.close()
        return Rank(pid)

    def run(self, code: CodeType, environment: dict[str, str], outputs: dict[int, TextIO | None]) -> NoReturn:
        status = 1
        try:
            argv = [self.args.training_script, *self.args.training_script_args]
            status = become_rank(code, argv, environment, outputs)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)

    def environment(self, rank: int) -> dict[str, str]:
        own = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.count, "LOCAL_WORLD_SIZE": self.count,
            "GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.port,
            "TORCHELASTIC_RUN_ID": f"{self.run_id}-{self.port}", "TORCHELASTIC_RESTART_COUNT": 0,
            "PYTHONPATH": f"{HERE}/site:{PACKAGES}",
        }  # fmt: skip
        threads = {"OMP_NUM_THREADS": "1"} if self.count > 1 else {}
        return {**threads, **os.environ, **{name: str(value) for name, value in own.items()}}

    def output(self, rank: int, stream: int) -> TextIO | None:
        if not (self.redirects[rank] | self.tees[rank]) & stream:
            return None
        folder = os.path.join(self.logs, "attempt_0", str(rank))
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, "stdout.log" if stream == STDOUT else "stderr.log")
        file = open(path, "w")  # noqa: SIM115 - the worker's for as long as it lives
        if self.tees[rank] & stream:
            target = sys.stdout if stream == STDOUT else sys.stderr
            self.tails.append(
                threading.Thread(target=tail, args=(f"[default{rank}]:", path, target, self.ended), daemon=True)
            )
        return file

    def wait(self) -> list[tuple[int, Rank]]:
        """Return the ranks that had failed when the first was found so; none when all ended well."""
        while True:
            statuses = [process.poll() for process in self.processes]
            if failed := [(rank, self.processes[rank]) for rank, status in enumerate(statuses) if status]:
                return failed
            if all(status == 0 for status in statuses):
                return []
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        for process in self.processes:
            process.send(signal.SIGTERM)
        until = time.monotonic() + float(os.environ.get("LIVE_AVATAR_FAKE_KILL_AFTER", "30"))
        while any(process.poll() is None for process in self.processes) and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        for process in self.processes:
            process.send(signal.SIGKILL)
            process.poll(options=0)

    def close(self) -> None:
        self.ended.set()
        for thread in self.tails:
            thread.join()


def tell_failure(script: str, failed: list[tuple[int, Rank]]) -> None:
    """Say who failed as torchrun does: of those that it found dead at one look, the first in order is the cause."""
    line, rule = "=" * 60, "-" * 60
    (rank, process), *others = failed
    rows = [row(number, *other) for number, other in enumerate(others, 1)]
    print(
        f"E1122 12:00:00.000000 1 torch/distributed/elastic/multiprocessing/api.py:874] failed (exitcode: "
        f"{process.returncode}) local_rank: {rank} (pid: {process.pid}) of binary: {sys.executable}\n"
        "Traceback (most recent call last):\n"
        f"torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n{line}\n{script} FAILED\n{rule}\n"
        f"Failures:\n{''.join(rows) or '  <NO_OTHER_FAILURES>' + chr(10)}{rule}\n"
        f"Root Cause (first observed failure):\n{row(0, rank, process)}{line}",
        file=sys.stderr,
    )


def row(number: int, rank: int, process: Rank) -> str:
    status = process.returncode or 0
    trace = f"Signal {-status} ({signal.Signals(-status).name}) received by PID {process.pid}" if status < 0 else (
        "To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html"
    )  # fmt: skip
    return (
        f"[{number}]:\n  rank      : {rank} (local_rank: {rank})\n  exitcode  : {status} (pid: {process.pid})\n"
        f"  error_file: <N/A>\n  traceback : {trace}\n"
    )


def raise_stopped(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def main() -> int:
    args = parse(sys.argv[1:])
    for number in STOPPING:
        signal.signal(number, raise_stopped)
    with listen(args) as store:
        workers = Workers(args, store.getsockname()[1])
        try:
            workers.start()
            failed = workers.wait()
        except Stopped as stopped:
            print(f"W1122 Received {stopped} death signal, shutting down workers", file=sys.stderr)
            workers.stop()
            workers.close()
            print(
                "torch.distributed.elastic.multiprocessing.api.SignalException: "
                f"Process {os.getpid()} got signal: {stopped}", file=sys.stderr,
            )  # fmt: skip
            return 1
        if failed:
            workers.stop()
        workers.close()
        if failed:
            tell_failure(args.training_script, failed)
        return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
