"""The NVIDIA GPUs of this machine, through NVML. Knows no task.

NVML may hang. Behind a card that fell off the bus a call waits inside the kernel driver, in uninterruptible sleep: no
thread can be taken out of it, and a process with one thread in it outlives even SIGKILL, with its port and its locks.
So this process never calls NVML, not in a thread either. A child process does, which inherits nothing but two pipes:
- While NVML hangs, `snapshot` goes on telling what was last seen, and this process can end at any time. The child
  ends then as well: a thread of it waits for the end of its standard input.
- A crash in NVML costs a child. So does a driver of another version, whose library only a new process can load.
- There is one child. A silent one is killed and, once it is dead, replaced: hung ones do not pile up.
The child keeps NVML open between sweeps, because without persistence mode opening it wakes sleeping cards for seconds.
It opens it anew after an error and, while a card is lost, now and then.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, TypeVar

import pynvml

log = logging.getLogger("gpu")

_T = TypeVar("_T")
Lost = tuple[tuple[int, str], ...]  # the index and the trouble of each GPU that is there but cannot be used
_GIVE_UP_DEADLINES = 12  # a silent child is replaced after so many deadlines: slow is not hung
_IDLE_INTERVALS = 15  # where there is no driver it is looked for less often, and no child waits meanwhile
_REOPEN_SWEEPS = 15  # while a card is lost, NVML is opened anew after so many sweeps
_STOP_SECONDS = 1.0

# What a person can do about an error, where its name does not say it.
_ADVICE = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver here: libnvidia-ml.so.1 is not installed",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is installed but not loaded",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the loaded NVIDIA driver and its library differ in version: reboot",
    pynvml.NVML_ERROR_NO_PERMISSION: "this user may not open /dev/nvidia*",
    pynvml.NVML_ERROR_GPU_IS_LOST: "lost: it fell off the bus or stopped answering; reboot",
    pynvml.NVML_ERROR_RESET_REQUIRED: "needs a reset: nvidia-smi --gpu-reset, or reboot",
}
_GONE = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED, pynvml.NVML_ERROR_UNKNOWN)


class GpuProcess(NamedTuple):
    """A process that computes on a GPU, ours or a stranger's; `used_gib` is None where NVML does not tell it."""

    pid: int
    used_gib: float | None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device a process can be given: a GPU, or a MIG instance of one. Memory in GiB, free less what is reserved.

    `index` is NVML's, in the order of the PCI bus; MIG instances share that of their GPU, whose UUID is `board`.
    `load` is the share of the last moment in which it computed, 0 to 1; None where NVML does not tell, as of instances.
    """

    index: int
    name: str
    uuid: str
    total_gib: float
    free_gib: float
    capability: tuple[int, int] | None = None
    processes: tuple[GpuProcess, ...] = ()
    mig: bool = False
    board: str = ""
    load: float | None = None


@dataclass(frozen=True, slots=True)
class GpuSnapshot:
    """What NVML told when it was asked at `taken_at` (monotonic seconds).

    `reason` says why there are no `gpus`; of a `stale` snapshot, why there is no newer one.
    """

    gpus: tuple[Gpu, ...] = ()
    lost: Lost = ()
    driver: str | None = None
    reason: str = ""
    taken_at: float = 0.0
    stale: bool = False

    def age(self, now: float) -> float:
        """Return how many seconds before `now` (monotonic) this was asked for."""
        return max(0.0, now - self.taken_at)


def look(timeout: float = 30.0) -> GpuSnapshot:
    """Look at the GPUs once, for at most `timeout` seconds (and one for the end); a `stale` answer is none."""
    once = GpuProbe(deadline_seconds=timeout)
    try:
        with once._changed:  # the first sweep waits for this, so that it is the one that is waited for
            once.start()
            return once.refresh(timeout)
    finally:
        once.stop()


class _View(NamedTuple):
    """All that `snapshot` needs, replaced as a whole: it can then be read without a lock."""

    last: GpuSnapshot
    asked_at: float | None = None  # since when an answer is awaited
    trouble: str = ""  # why the last sweep gave nothing


class GpuProbe:
    """Looks at the GPUs every `interval_seconds`, in a thread and a child process of its own (see the module).

    A sweep that takes longer than `deadline_seconds` makes snapshots `stale` until it is answered. Does nothing before
    `start`; after `stop` it cannot be started again.
    """

    def __init__(self, interval_seconds: float = 2.0, deadline_seconds: float = 5.0) -> None:
        self._interval, self._deadline = interval_seconds, deadline_seconds
        self._view = _View(GpuSnapshot(reason="NVML has not answered yet", taken_at=time.monotonic(), stale=True))
        self._changed = threading.Condition()
        self._begun = self._done = self._wanted = 0  # sweeps, by number
        self._stopping = False
        self._child: _Child | None = None
        self._thread = threading.Thread(target=self._run, name="gpu-probe", daemon=True)
        self._told = ""

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and its child; those that the kernel holds are left behind."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            if self._child is not None:
                self._child.process.kill()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def snapshot(self) -> GpuSnapshot:
        """Return what was last seen, at once."""
        last, asked_at, trouble = self._view
        silent = 0.0 if asked_at is None else time.monotonic() - asked_at
        if silent > self._deadline:
            trouble = f"NVML has not answered for {silent:.0f} s"
        return replace(last, stale=True, reason=trouble) if trouble else last

    def refresh(self, timeout: float) -> GpuSnapshot:
        """Look anew, for at most `timeout` seconds, and return what was seen; where nothing was, what `snapshot` does.

        It was looked anew if `taken_at` is not before this call; a `stale` answer is an old one.
        """
        with self._changed:
            self._wanted = sweep = self._begun + 1
            self._changed.notify_all()
            if self._thread.is_alive():
                self._changed.wait_for(lambda: self._done >= sweep or self._stopping, timeout)
        return self.snapshot()

    def _run(self) -> None:
        while not self._stopping:
            pause = self._sweep()
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._wanted > self._begun, pause)
        if self._child is not None:
            self._child.end()

    def _sweep(self) -> float:
        """Look once; return the seconds after which to look again."""
        with self._changed:
            self._begun += 1
            asked_at, before = time.monotonic(), self._view.last
            self._view = self._view._replace(asked_at=asked_at)
        try:
            last, trouble = replace(_decoded(self._answer()), taken_at=asked_at), ""
        except (OSError, ValueError, TypeError, KeyError) as error:
            last, trouble = before, f"the GPUs cannot be read: {error}"
        absent = not trouble and last.driver is None
        if self._child is not None and (trouble or absent):
            self._child.end()
            self._child = None
        with self._changed:
            self._view, self._done = _View(last, trouble=trouble), self._begun
            self._changed.notify_all()
        self._tell(trouble or last.reason or "; ".join(f"GPU {index}: {why}" for index, why in last.lost))
        return self._interval * (_IDLE_INTERVALS if absent and before.driver is None else 1)

    def _answer(self) -> bytes:
        """Ask the child, and wait until it has answered or is sure to hang. Raises OSError."""
        with self._changed:
            if self._stopping:
                raise OSError("stopped")
            child = self._child = self._child or _Child()
        os.write(child.stdin, b"\n")
        if not child.answers_within(self._deadline):
            self._tell("NVML does not answer")
        return child.answer(self._deadline * (_GIVE_UP_DEADLINES - 1))

    def _tell(self, trouble: str) -> None:
        """Log what is wrong, when that changes."""
        if trouble != self._told and not self._stopping:
            self._told = trouble
            log.info("%s", trouble or "the GPUs can be read again")


class _Child:
    """The process that looks at NVML, for the one that asks: a line for a line, from `_answer_until_the_end`."""

    def __init__(self) -> None:
        # -P: the modules beside this file are not the child's. A session of its own: no signals from a terminal.
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        assert self.process.stdin and self.process.stdout  # noqa: S101
        self.stdin, self._stdout = self.process.stdin.fileno(), self.process.stdout
        self._poll = select.poll()
        self._poll.register(self._stdout, select.POLLIN)

    def answers_within(self, seconds: float) -> bool:
        return bool(self._poll.poll(seconds * 1000))

    def answer(self, seconds: float) -> bytes:
        if not self.answers_within(seconds):
            raise TimeoutError("NVML hangs")
        line = self._stdout.readline()
        if not line.endswith(b"\n"):
            raise ChildProcessError(f"the process that looks at NVML has ended, with code {self.end()}")
        return line

    def end(self) -> int:
        """Kill it, wait until it is dead, as long as that takes, and return its exit code."""
        with self.process:
            self.process.kill()
        return self.process.returncode


def _decoded(line: bytes) -> GpuSnapshot:
    told = json.loads(line)
    for gpu in told["gpus"]:
        gpu["capability"] = tuple(gpu["capability"]) if gpu["capability"] else None
        gpu["processes"] = tuple(GpuProcess(*process) for process in gpu["processes"])
    gpus, lost = tuple(Gpu(**gpu) for gpu in told["gpus"]), tuple((index, why) for index, why in told["lost"])
    return GpuSnapshot(gpus, lost, told["driver"], told["reason"])


class _Nvml:
    """NVML in the child, kept open between sweeps."""

    _sweeps = 0  # since it was opened; 0: it is not open

    def look(self) -> GpuSnapshot:
        """Return all that NVML tells. May never return."""
        try:
            if not self._sweeps:
                pynvml.nvmlInit()
            self._sweeps += 1
            driver = _text(pynvml.nvmlSystemGetDriverVersion())
            devices = [_devices(index) for index in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            self._close()
            return GpuSnapshot(reason=_ADVICE.get(error.value, str(error)))
        gpus = tuple(gpu for usable in devices if not isinstance(usable, str) for gpu in usable)
        lost = tuple((index, why) for index, why in enumerate(devices) if isinstance(why, str))
        if lost and self._sweeps >= _REOPEN_SWEEPS:
            self._close()
        reason = "" if gpus else "no GPU can be used" if lost else f"the NVIDIA driver {driver} has no GPU"
        return GpuSnapshot(gpus, lost, driver, reason)

    def _close(self) -> None:
        if self._sweeps:
            self._sweeps = 0
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()


def _devices(index: int) -> list[Gpu] | str:
    """Return a GPU, or, when it is in MIG mode and not to be used as a whole, its instances; or why it is lost."""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        whole = _gpu(index, handle, "NVIDIA GPU")
        if _optional(lambda: pynvml.nvmlDeviceGetMigMode(handle)[0], 0) == 0:
            return [whole]
        return _instances(handle, whole) or "in MIG mode, but no instance has been made"
    except pynvml.NVMLError as error:
        return _ADVICE.get(error.value, str(error))


def _instances(handle: Any, whole: Gpu) -> list[Gpu]:
    parts = []
    for slot in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with contextlib.suppress(pynvml.NVMLError_NotFound, pynvml.NVMLError_InvalidArgument):  # an empty slot
            part = _gpu(whole.index, pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot), f"{whole.name} MIG")
            parts.append(replace(part, capability=whole.capability, mig=True, board=whole.uuid))
    return parts


def _gpu(index: int, handle: Any, fallback_name: str) -> Gpu:
    name = _text(_optional(lambda: pynvml.nvmlDeviceGetName(handle), fallback_name))
    uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
    # Version 2 counts what the driver keeps for itself apart; drivers before 510 know version 1 only.
    newer = _optional(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2), None)
    memory = newer or pynvml.nvmlDeviceGetMemoryInfo(handle)
    capability = _optional(lambda: pynvml.nvmlDeviceGetCudaComputeCapability(handle), None)
    load = _optional(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100, None)
    free, own = _gib(memory.free), _processes(handle)
    return Gpu(index, name, uuid, _gib(memory.total), free, capability, own, board=uuid, load=load)


def _processes(handle: Any) -> tuple[GpuProcess, ...]:
    told: list[Any] = _optional(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle), [])
    return tuple(GpuProcess(one.pid, None if one.usedGpuMemory is None else _gib(one.usedGpuMemory)) for one in told)


def _optional(ask: Callable[[], _T], otherwise: _T) -> _T:
    """Return the answer, or `otherwise` where NVML has none; raises only what means that the GPU is gone."""
    try:
        return ask()
    except pynvml.NVMLError as error:
        if error.value in _GONE:
            raise
        return otherwise


def _gib(size: int) -> float:
    return round(size / 2**30, 2)


def _text(told: str | bytes) -> str:
    return told.decode("utf-8", "replace") if isinstance(told, bytes) else told


def _answer_until_the_end() -> None:
    """Answer every line of standard input with a snapshot, a line of JSON, until the input ends."""
    questions: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        for question in iter(sys.stdin.buffer.readline, b""):
            questions.put(question)
        os._exit(0)  # nobody is left to ask; the main thread may hang in NVML

    threading.Thread(target=read, daemon=True).start()
    nvml = _Nvml()
    while questions.get():
        sys.stdout.buffer.write(json.dumps(asdict(nvml.look())).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _answer_until_the_end()
