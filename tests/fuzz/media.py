"""Mutated pictures and recordings, uploaded to a real service: none may crash it, hang it or pass its limits."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import urllib3

from tests.e2e.conftest import Service
from tests.fuzz.mutants import mutants
from utils.media import AudioFacts, MediaError, MediaLimits, read_facts

_WORKERS, _DECODERS, _CLIENTS = 2, 2, 4
_DECODE_SECONDS = 20.0
_ANSWER_SECONDS = _DECODE_SECONDS + 10.0  # what comes beside the decoding: the upload, and a wait for a decoder
_BUSY_SECONDS = 5 * _ANSWER_SECONDS  # by then a decoder is free, whatever the others sent
_SETTINGS = {
    "AVATAR_INPUTS__DECODE_SECONDS": str(_DECODE_SECONDS), "AVATAR_INPUTS__DECODERS": str(_DECODERS),
    "AVATAR_DISK__RESERVE_BYTES": "0",
}  # fmt: skip
_DEATH = re.compile(r"the media child died with status (-?[0-9]+ on a \w+)")
_MEANT = (201, 400, 413, 415)


@dataclass
class Report:
    """What was answered how often, and the most that it took."""

    answers: Counter[int] = field(default_factory=Counter)
    refused_with: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    slowest: float = 0.0
    most_bytes: int = 0
    most_decoders: int = 0
    died: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        counts = ", ".join(f"{status}: {count}" for status, count in sorted(self.answers.items()))
        lines = [
            f"{self.answers.total()} mutated files in {self.seconds:.0f} seconds ({counts})",
            f"slowest answer {self.slowest:.1f} s; largest decoder {self.most_bytes / 2**20:.0f} MiB; "
            f"at most {self.most_decoders} decoders at once; decoders that a file killed: {dict(self.died) or 'none'}",
            *(f"  {count:5d} {sentence}" for sentence, count in self.refused_with.most_common(12)),
        ]
        return "\n".join([*lines, *(f"FAILURE: {line}" for line in self.failures[:20])])


def fuzz(folder: Path, count: int, seed: int) -> Report:
    """Upload so many mutants to a service in `folder`; look at answers and decoders, and at all at the end."""
    run, report = Service(folder, _SETTINGS, _WORKERS), Report()
    try:
        run.start()
        master = run.processes()[0]
        workers = {process.pid for process in master.children()}
        calm = threading.Event()
        watcher = threading.Thread(target=_watch, args=(master, report, calm), daemon=True)
        watcher.start()
        began = time.monotonic()
        files = _Shared(mutants(seed, count))
        with ThreadPoolExecutor(_CLIENTS) as clients:
            http = urllib3.PoolManager(maxsize=_CLIENTS, retries=False, timeout=_ANSWER_SECONDS * 2)
            jobs = [clients.submit(_upload_all, http, run.url, files, report) for _ in range(_CLIENTS)]
        for job in jobs:
            job.result()
        report.seconds = time.monotonic() - began
        calm.set()
        watcher.join()
        report.failures += _wrong(run, workers) + _over_limits(report)
        report.died.update(_DEATH.findall((run.folder / "server.log").read_text(errors="replace")))
    finally:
        run.clean_up()
    return report


class _Shared:
    """Hands the mutants to several threads, each as it is made: all at once would not fit into memory."""

    def __init__(self, files: Iterator[tuple[int, str, bytes]]) -> None:
        self._files, self._lock, self._began = files, threading.Lock(), time.monotonic()

    def __iter__(self) -> Iterator[tuple[int, str, bytes]]:
        while (file := self._next()) is not None:
            yield file

    def _next(self) -> tuple[int, str, bytes] | None:
        with self._lock:
            file = next(self._files, None)
            if file and file[0] % 1000 == 0:
                print(f"file {file[0]} after {time.monotonic() - self._began:.0f} s", flush=True)
            return file


def _upload_all(http: urllib3.PoolManager, url: str, files: _Shared, report: Report) -> None:
    for file in files:
        _upload(http, url, file, report)


def _upload(http: urllib3.PoolManager, url: str, mutant: tuple[int, str, bytes], report: Report) -> None:
    """Upload one mutant until it is answered other than that all decoders are busy."""
    number, kind, data = mutant
    given_up = time.monotonic() + _BUSY_SECONDS
    while True:
        began = time.monotonic()
        fields = {"type": kind, "file": (f"file.{kind}", data)}
        try:
            answer = http.request("POST", f"{url}/api/v1/upload", fields=fields)
        except urllib3.exceptions.HTTPError as error:
            report.failures.append(f"mutant {number} was not answered: {error}")
            return
        if answer.status != 503 or time.monotonic() > given_up:
            break
        time.sleep(0.1)
    seconds = time.monotonic() - began
    report.answers[answer.status] += 1
    report.slowest = max(report.slowest, seconds)
    if answer.status != 201:
        report.refused_with[answer.json().get("detail", "")[:100]] += 1
    if answer.status not in _MEANT or seconds > _ANSWER_SECONDS:
        report.failures.append(
            f"mutant {number} ({kind}): {answer.status} after {seconds:.1f} s: {answer.data[:300]!r}"
        )


def _watch(master: psutil.Process, report: Report, calm: threading.Event) -> None:
    """Note how many decoders there are at once, and how large they get."""
    while not calm.wait(0.05):
        sizes = []
        for process in master.children(recursive=True):
            with suppress(psutil.Error):
                if any("media_child" in part for part in process.cmdline()):
                    sizes.append(process.memory_info().rss)
        report.most_decoders = max(report.most_decoders, len(sizes))
        report.most_bytes = max(report.most_bytes, *sizes, 0)


def _over_limits(report: Report) -> list[str]:
    found = []
    if report.most_bytes > MediaLimits().memory_bytes:
        found.append(f"a decoder took {report.most_bytes} bytes")
    if report.most_decoders > _WORKERS * _DECODERS:
        found.append(f"{report.most_decoders} decoders ran at once")
    return found


def _wrong(run: Service, workers: set[int]) -> list[str]:
    """Return what is wrong after all: a dead worker, a bug in the log, a file too many, a decoder left over."""
    status, health = run.call("GET", "/api/v1/health")
    found = [f"health is {status}: {health}"] if status != 200 else []
    now = {process.pid for process in run.processes()[0].children()}
    found += [f"process {pid} died" for pid in workers - now]
    log = (run.folder / "server.log").read_text(errors="replace")
    found += [line[:300] for line in log.splitlines() if "Traceback" in line or '"status": 500' in line]
    found += [f"left over: {path}" for path in (run.data / "tmp").iterdir()]
    stored = list(run.data.glob("uploads/*/*"))
    told = log.count('"route": "/api/v1/upload", "status": 201')
    if len(stored) != told:
        found.append(f"{told} uploads were accepted, and {len(stored)} files are there")
    found += [f"not canonical, or past its limits: {path}" for path in stored if not _is_canonical(path)]
    for process in psutil.Process(run.process.pid).children(recursive=True):  # type: ignore[union-attr]
        with suppress(psutil.Error):
            if any("media_child" in part for part in process.cmdline()):
                found.append(f"decoder {process.pid} is left over")
    return found


def _is_canonical(path: Path) -> bool:
    """Say whether a stored file is what its name says, of a size that is accepted, and no byte longer or shorter."""
    limits = MediaLimits()
    try:
        facts = read_facts(path, "image" if path.suffix == ".png" else "audio")
    except MediaError:
        return False
    if isinstance(facts, AudioFacts):
        size = 44 + facts.samples * facts.channels * 2
        seconds = limits.min_audio_seconds <= facts.seconds <= limits.max_audio_seconds
        return seconds and 8000 <= facts.sample_rate <= 48_000 and path.stat().st_size == size
    sides = sorted((facts.width, facts.height))
    return limits.min_image_side <= sides[0] and sides[1] <= min(limits.max_image_side, limits.max_aspect * sides[0])
