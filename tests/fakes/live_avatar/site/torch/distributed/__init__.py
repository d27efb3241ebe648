"""A stand-in for torch.distributed: the ranks of one job talk through Unix datagram sockets of the kernel's own names.

Like NCCL, a rank that waits for a message that nobody sends waits until the group's timeout; a message to a rank that
has ended raises what a secondary failure looks like.
"""

from __future__ import annotations

import marshal
import os
import socket
import sys
import time
import traceback
from collections import defaultdict, deque
from datetime import timedelta
from typing import Any

import standin

MEET_SECONDS = 60.0


class DistBackendError(RuntimeError):
    """torch.distributed.DistBackendError, by this name in a traceback."""


def _address(rank: int) -> str:
    return f"\0live-avatar-{os.environ['TORCHELASTIC_RUN_ID']}-{rank}"


class _Group:
    def __init__(self, rank: int, size: int, timeout: float) -> None:
        self.rank, self.size, self.timeout, self.met = rank, size, timeout, False
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(_address(rank))
        self.waiting: dict[tuple[int, str], deque[Any]] = defaultdict(deque)
        self.barrier()
        self.met = True

    def put(self, rank: int, kind: str, what: Any) -> None:
        data, until = marshal.dumps((self.rank, kind, what)), time.monotonic() + MEET_SECONDS
        while True:
            try:
                self.socket.sendto(data, _address(rank))
                return
            except ConnectionRefusedError:
                if self.met or time.monotonic() > until:
                    raise DistBackendError(
                        f"[{self.rank}] is setting up NCCL communicator: Connection closed by peer {rank}"
                    ) from None
                time.sleep(0.005)

    def take(self, rank: int, kind: str) -> Any:
        until = time.monotonic() + self.timeout
        while not self.waiting[rank, kind]:
            self.socket.settimeout(max(0.001, until - time.monotonic()))
            try:
                sender, found, what = marshal.loads(self.socket.recv(1 << 20))
            except TimeoutError:
                raise DistBackendError("Watchdog caught collective operation timeout") from None
            self.waiting[sender, found].append(what)
        self.socket.settimeout(None)
        return self.waiting[rank, kind].popleft()

    def barrier(self) -> None:
        others = range(1, self.size)
        if self.rank:
            self.put(0, "arrived", None)
            self.take(0, "go on")
        else:
            for rank in others:
                self.take(rank, "arrived")
            for rank in others:
                self.put(rank, "go on", None)


_group: _Group | None = None


def init_process_group(
    backend: str | None = None,
    init_method: str | None = None,
    timeout: timedelta = timedelta(minutes=10),
    world_size: int = -1,
    rank: int = -1,
) -> None:
    global _group
    own = int(os.environ["RANK"]) if rank < 0 else rank
    size = int(os.environ["WORLD_SIZE"]) if world_size < 0 else world_size
    sys.excepthook = _tell_rank
    standin.note(event="init_process_group", backend=backend, timeout_seconds=timeout.total_seconds())
    if standin.wanted("nccl_error"):
        raise DistBackendError(
            "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3356, unhandled system error "
            "(run with NCCL_DEBUG=INFO for details), NCCL version 2.27.3"
        )
    _group = _Group(own, size, timeout.total_seconds())


def _tell_rank(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    rank = os.environ["RANK"]
    sys.stderr.write("".join(f"[rank{rank}]: {line}\n" for line in text.rstrip().split("\n")))


def is_initialized() -> bool:
    return _group is not None


def _own() -> _Group:
    if _group is None:
        raise ValueError("Default process group has not been initialized, please make sure to call init_process_group.")
    return _group


def get_rank() -> int:
    return _own().rank


def get_world_size() -> int:
    return _own().size


def barrier() -> None:
    _own().barrier()


def send(what: Any, dst: int) -> None:
    _own().put(dst, "latents", what)


def recv(src: int) -> Any:
    return _own().take(src, "latents")


def broadcast_object_list(objects: list[Any], src: int = 0) -> None:
    group = _own()
    if group.rank == src:
        for rank in range(group.size):
            if rank != src:
                group.put(rank, "objects", objects)
    else:
        objects[:] = group.take(src, "objects")


def destroy_process_group() -> None:
    global _group
    _own().socket.close()
    _group = None
