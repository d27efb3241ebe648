"""Mutated pictures and recordings, uploaded to a real service: none may crash it, hang it or pass its limits.

The mutants come of the samples of this project, of other formats made from them, and of real portraits and voices where
AVATAR_TEST_INPUTS names a folder of some.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import psutil
import urllib3
from PIL import Image

from tests.conftest import ROOT
from tests.e2e.conftest import Service
from utils.media_kinds import MediaLimits

_WORKERS, _DECODERS, _CLIENTS = 2, 2, 4
_DECODE_SECONDS = 20.0
_ANSWER_SECONDS = _DECODE_SECONDS + 10.0  # what comes beside the decoding: the upload, and a wait for a decoder
_SETTINGS = {
    "AVATAR_INPUTS__DECODE_SECONDS": str(_DECODE_SECONDS), "AVATAR_INPUTS__DECODERS": str(_DECODERS),
    "AVATAR_DISK__RESERVE_BYTES": "0",
}  # fmt: skip
_MEANT = (201, 400, 413, 415)
_EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass
class Report:
    """What was answered how often, and the most that it took."""

    answers: Counter[int] = field(default_factory=Counter)
    refused_with: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    slowest: float = 0.0
    most_bytes: int = 0
    most_decoders: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        counts = ", ".join(f"{status}: {count}" for status, count in sorted(self.answers.items()))
        lines = [
            f"{self.answers.total()} mutated files in {self.seconds:.0f} seconds ({counts})",
            f"slowest answer {self.slowest:.1f} s; largest decoder {self.most_bytes / 2**20:.0f} MiB; "
            f"at most {self.most_decoders} decoders at once",
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
        watcher = threading.Thread(target=_watch, args=(master, report, calm))
        watcher.start()
        began = time.monotonic()
        with ThreadPoolExecutor(_CLIENTS) as clients:
            http = urllib3.PoolManager(maxsize=_CLIENTS, retries=False, timeout=_ANSWER_SECONDS * 2)
            for done in clients.map(lambda mutant: _upload(http, run.url, mutant, report), _mutants(seed, count)):
                if done % 1000 == 0:
                    print(f"{done} files after {time.monotonic() - began:.0f} s", flush=True)
        report.seconds = time.monotonic() - began
        calm.set()
        watcher.join()
        report.failures += _wrong(run, workers) + _over_limits(report)
    finally:
        run.clean_up()
    return report


def _upload(http: urllib3.PoolManager, url: str, mutant: tuple[int, str, bytes], report: Report) -> int:
    """Upload one mutant until it is answered other than that all decoders are busy."""
    number, kind, data = mutant
    for _ in range(200):
        began = time.monotonic()
        fields = {"type": kind, "file": (f"file.{kind}", data)}
        try:
            answer = http.request("POST", f"{url}/api/v1/upload", fields=fields)
        except urllib3.exceptions.HTTPError as error:
            report.failures.append(f"mutant {number} was not answered: {error}")
            return number
        if answer.status != 503:
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
    return number


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
    names = {path.name for path in run.data.glob("uploads/*/*")}
    told = log.count('"route": "/api/v1/upload", "status": 201')
    if len(names) != told:
        found.append(f"{told} uploads were accepted, and {len(names)} files are there")
    for process in psutil.Process(run.process.pid).children(recursive=True):  # type: ignore[union-attr]
        with suppress(psutil.Error):
            if any("media_child" in part for part in process.cmdline()):
                found.append(f"decoder {process.pid} is left over")
    return found


# --- mutants ----------------------------------------------------------------------------------------------------------


def _mutants(seed: int, count: int) -> Iterator[tuple[int, str, bytes]]:
    """Make the files, one after the other: number, what it is said to be, bytes. The same for the same seed."""
    chance, whole = random.Random(seed), _originals()
    for number in range(1, count + 1):
        kind, data = chance.choice(whole)
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            data = chance.choice(_MUTATIONS)(chance, data, chance.choice(whole)[1])
        if chance.random() < 0.05:
            kind = "audio" if kind == "image" else "image"
        yield number, kind, data


def _originals() -> list[tuple[str, bytes]]:
    """Return sound files: the samples, the same in other formats, and real ones where there are some."""
    portrait = Image.open(ROOT / "samples" / "portrait.png").convert("RGB").resize((320, 320))
    made = [("image", _picture(portrait, name)) for name in ("png", "jpeg", "webp")]
    made += [("audio", _sound(name, codec)) for name, codec in _SOUNDS]
    folder = Path(os.environ.get("AVATAR_TEST_INPUTS", ROOT.parent / "shared" / "inputs"))
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        kind = {".jpg": "image", ".png": "image", ".wav": "audio", ".mp3": "audio"}.get(path.suffix)
        if kind and path.stat().st_size < 2**20:
            made.append((kind, path.read_bytes()))
    return made


_SOUNDS = (("wav", "pcm_s16le"), ("flac", "flac"), ("ogg", "libopus"), ("mp3", "libmp3lame"), ("mp4", "aac"))


def _picture(picture: Image.Image, name: str) -> bytes:
    file = BytesIO()
    picture.save(file, name)
    return file.getvalue()


def _sound(name: str, codec: str) -> bytes:
    """Return two seconds of a sweep."""
    file, rate = BytesIO(), 48_000
    sweep = (np.sin(np.linspace(0, 1, 2 * rate) ** 2 * 8000) * 8000).astype(np.int16)
    with av.open(file, "w", format=name) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(sweep[None], format="s16", layout="mono")
        frame.sample_rate = rate
        fifo, resampler = av.AudioFifo(), av.AudioResampler(stream.format.name, "mono", rate)
        for part in resampler.resample(frame):
            fifo.write(part)
        for part in fifo.read_many(stream.codec_context.frame_size or 1024, partial=True):
            container.mux(stream.encode(part))
        container.mux(stream.encode())
    return file.getvalue()


def _flip(chance: random.Random, data: bytes, other: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 4, 32, 256))):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _cut(chance: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _lie(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """Write an extreme number where headers are."""
    width, changed = chance.choice((1, 2, 4)), bytearray(data)
    at = chance.randrange(max(1, min(len(data), 256) - width))
    number = chance.choice(_EXTREMES) & (256**width - 1)
    changed[at : at + width] = number.to_bytes(width, chance.choice(("little", "big")))
    return bytes(changed)


def _splice(chance: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: chance.randrange(len(data) + 1)] + other[chance.randrange(len(other) + 1) :]


def _drop(chance: random.Random, data: bytes, other: bytes) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + data[at + chance.choice((1, 7, 512, 4096)) :]


def _repeat(chance: random.Random, data: bytes, other: bytes) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + data[at : at + 512] * chance.choice((2, 16, 256)) + data[at:]


def _wipe(chance: random.Random, data: bytes, other: bytes) -> bytes:
    at, size = chance.randrange(len(data) + 1), chance.choice((4, 64, 4096))
    return data[:at] + chance.choice((b"\0", b"\xff")) * min(size, len(data) - at) + data[at + size :]


def _disguise(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """Put the head of one file onto the body of another."""
    size = chance.choice((4, 12, 64))
    return other[:size] + data[size:]


_MUTATIONS: tuple[Callable[[random.Random, bytes, bytes], bytes], ...] = (
    _flip, _flip, _cut, _lie, _lie, _splice, _drop, _repeat, _wipe, _disguise,
)  # fmt: skip
