"""The child process that decodes: limited, alone, killed in time; and what its death means to the caller."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from utils import media
from utils.file_handler import PathRefused, StorageFull
from utils.media import AudioFacts, ImageFacts, MediaError, MediaJob, MediaLimits, MediaUnavailable, normalise

ROOT = Path(__file__).resolve().parents[2]
LIMITS = MediaLimits()


@pytest.fixture
def portrait(tmp_path: Path) -> Path:
    Image.new("RGB", (100, 100)).save(tmp_path / "portrait", "PNG")
    return tmp_path / "portrait"


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    with wave.open(str(tmp_path / "voice"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(8000))
    return tmp_path / "voice"


def destinations(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("portrait", "voice", "fake.py"))


@contextlib.contextmanager
def child_that(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Iterator[None]:
    """Put a hand-written program in the child's place; it sees `order` (the argument) and `say`."""
    head = """import sys, json, os, time
order = json.loads(sys.argv[2])
def say(message): os.write(1, (json.dumps(message) + chr(10)).encode())
"""
    (folder / "fake.py").write_text(head + body)
    monkeypatch.setattr(media, "BOOT", f"exec(open({str(folder / 'fake.py')!r}).read())")
    yield


def test_one_child_does_all_jobs_of_a_request_in_order(
    tmp_path: Path, portrait: Path, voice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    real = subprocess.Popen

    def counted(*args: object, **kwargs: object) -> subprocess.Popen[bytes]:
        started.append(args)
        return real(*args, **kwargs)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(subprocess, "Popen", counted)
    jobs = [
        MediaJob("audio", voice, tmp_path / "1"),
        MediaJob("image", voice, tmp_path / "2"),
        MediaJob("image", portrait, tmp_path / "3"),
    ]
    first, second, third = normalise(jobs, LIMITS)
    assert first == AudioFacts(0.5, 8000, 1, 4000)
    assert isinstance(second, MediaError)
    assert third == ImageFacts(100, 100)
    assert destinations(tmp_path) == ["1", "3"]
    assert len(started) == 1


PROBE = """
import sys; sys.path.insert(0, sys.argv[1])
import json, os, resource, socket, subprocess
from utils import media_child
from utils.media_kinds import MediaLimits
media_child._limit(MediaLimits(memory_bytes=400 << 20, cpu_seconds=7.5, max_audio_seconds=10, max_image_pixels=100))
media_child._load("image"); media_child._load("audio")
media_child._close_doors()
def fails(action):
    try: action()
    except (OSError, MemoryError) as error: return type(error).__name__ + " " + str(getattr(error, "errno", ""))
    return "worked"
print(json.dumps({
    "open": fails(lambda: open("/etc/passwd")),
    "socket": fails(lambda: socket.socket()),
    "process": fails(lambda: subprocess.run(["/bin/true"])),
    "memory": fails(lambda: bytearray(500 << 20)),
    "cpu": resource.getrlimit(resource.RLIMIT_CPU),
    "size": resource.getrlimit(resource.RLIMIT_FSIZE)[1],
    "core": resource.getrlimit(resource.RLIMIT_CORE),
    "no_new_privs": __import__("ctypes").CDLL(None).prctl(39, 0, 0, 0, 0),
    "environment": sorted(os.environ),
    "nice": os.nice(0),
}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits and prctl as Linux has them")
def test_the_child_can_open_nothing_connect_to_nothing_and_start_nothing() -> None:
    done = subprocess.run([sys.executable, "-I", "-c", PROBE, str(ROOT)],
                          capture_output=True, env=media.ENVIRONMENT, timeout=60, check=True)  # fmt: skip
    found = json.loads(done.stdout)
    assert found == {
        "open": f"OSError {errno.EMFILE}",
        "socket": f"OSError {errno.EMFILE}",
        "process": f"OSError {errno.EMFILE}",
        "memory": "MemoryError ",
        "cpu": [8, 9],
        "size": 10 * 192_000 + 400 + 2**20,
        "core": [0, 0],
        "no_new_privs": 1,
        "environment": sorted(media.ENVIRONMENT),
        "nice": min(os.nice(0) + 5, 19),
    }


def test_no_environment_reaches_the_child(tmp_path: Path, portrait: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "json.py").write_text("raise SystemExit('taken over')")
    for name in ("PYTHONPATH", "PYTHONHOME"):
        monkeypatch.setenv(name, str(tmp_path / "evil"))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "evil" / "json.py"))
    monkeypatch.chdir(tmp_path / "evil")
    assert normalise([MediaJob("image", portrait, tmp_path / "out")], LIMITS) == [ImageFacts(100, 100)]


def test_a_child_that_hangs_is_killed_with_all_below_it_at_the_deadline(
    tmp_path: Path, portrait: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nap, hangs, left = f"4242.{os.getpid()}", tmp_path / "hangs", list[float]()
    body = f"import subprocess\nsay({{'ready': 1}})\nsubprocess.Popen(['sleep', '{nap}'])\nos.mkdir({str(hangs)!r})"
    read = media._read_until_end

    def read_once_it_hangs(child: subprocess.Popen[bytes], deadline: float) -> bytes:
        """Let the time of a child run from there on: its start takes what the machine makes of it."""
        left.append(deadline - time.monotonic())
        while not hangs.exists():
            assert child.poll() is None
            time.sleep(0.01)
        hangs.rmdir()
        return read(child, time.monotonic() + 0.5)

    monkeypatch.setattr(media, "_read_until_end", read_once_it_hangs)
    with child_that(tmp_path, monkeypatch, f"{body}\ntime.sleep(4242)"):
        jobs = [MediaJob("image", portrait, tmp_path / name) for name in ("a", "b")]
        outcomes = normalise(jobs, MediaLimits(wall_seconds=1.0))
    assert max(left) <= 1.0
    assert ["too" in str(outcome) and isinstance(outcome, MediaError) for outcome in outcomes] == [True, True]
    assert destinations(tmp_path) == []
    gone = [process for process in psutil.process_iter(["cmdline"]) if nap in (process.info["cmdline"] or [])]
    assert psutil.wait_procs(gone, timeout=60)[1] == []


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("os.kill(os.getpid(), 11)", "cut off or damaged"),
        ("os._exit(3)", "cut off or damaged"),
        ("os.kill(os.getpid(), 24)", "too long"),
        ("os.kill(os.getpid(), 14)", "too long"),
        ("os.kill(os.getpid(), 9)", "too much"),
    ],
)
def test_a_job_that_kills_the_child_is_refused_and_the_others_are_still_done(
    tmp_path: Path, portrait: Path, voice: Path, monkeypatch: pytest.MonkeyPatch, body: str, text: str
) -> None:
    # The fake dies on images and passes recordings, whichever comes first.
    program = f"""
say({{'ready': 1}})
for job in order['jobs']:
    if job['kind'] == 'image': {body}
    say({{'facts': [1.0, 8000, 1, 8000]}})
"""
    with child_that(tmp_path, monkeypatch, program):
        jobs = [
            MediaJob("audio", voice, tmp_path / "1"),
            MediaJob("image", portrait, tmp_path / "2"),
            MediaJob("audio", voice, tmp_path / "3"),
        ]
        first, second, third = normalise(jobs, LIMITS)
    assert first == third == AudioFacts(1.0, 8000, 1, 8000)
    assert isinstance(second, MediaError)
    assert text in str(second)
    assert destinations(tmp_path) == ["1", "3"]


def test_a_picture_that_needs_too_much_memory_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (6000, 6000)).save(tmp_path / "portrait", "PNG", compress_level=1)
    job = MediaJob("image", tmp_path / "portrait", tmp_path / "out")
    (outcome,) = normalise([job], MediaLimits(memory_bytes=220 << 20))
    assert "memory" in str(outcome)
    assert destinations(tmp_path) == []


def test_a_picture_that_needs_too_much_processor_is_refused(tmp_path: Path) -> None:
    Image.effect_noise((4000, 4000), 50).save(tmp_path / "portrait", "PNG", compress_level=0)
    job = MediaJob("image", tmp_path / "portrait", tmp_path / "out")
    (outcome,) = normalise([job], MediaLimits(cpu_seconds=1))
    assert "too long" in str(outcome)
    assert destinations(tmp_path) == []


def test_a_child_that_does_not_start_is_the_services_fault(
    tmp_path: Path, portrait: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with child_that(tmp_path, monkeypatch, "sys.exit(1)"), pytest.raises(MediaUnavailable):
        normalise([MediaJob("image", portrait, tmp_path / "out")], LIMITS)
    assert destinations(tmp_path) == []


def test_a_child_that_talks_without_end_is_stopped(
    tmp_path: Path, portrait: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with child_that(tmp_path, monkeypatch, "while True: say({'refused': 'x' * 60000})"):
        (outcome,) = normalise([MediaJob("image", portrait, tmp_path / "out")], MediaLimits(wall_seconds=60))
    assert isinstance(outcome, MediaError)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_not_the_mediums_fault_and_leaves_nothing(
    tmp_path: Path, portrait: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    program = f"say({{'ready': 1}})\nfor job in order['jobs']: say({{'errno': {number}}})"
    with child_that(tmp_path, monkeypatch, program), pytest.raises(StorageFull):
        normalise([MediaJob("image", portrait, tmp_path / name) for name in ("a", "b")], LIMITS)
    assert destinations(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_the_child_tells_a_full_disk_from_a_bad_picture(portrait: Path) -> None:
    with portrait.open("rb") as source, open("/dev/full", "wb") as full:
        job = {"kind": "image", "source": source.fileno(), "destination": full.fileno()}
        order = json.dumps({"limits": {}, "jobs": [job]})
        done = subprocess.run([sys.executable, "-I", "-c", media.BOOT, str(ROOT), order], capture_output=True,
                              pass_fds=[source.fileno(), full.fileno()], timeout=60, check=True)  # fmt: skip
    assert [json.loads(line) for line in done.stdout.splitlines()] == [{"ready": True}, {"errno": errno.ENOSPC}]


def test_a_source_must_be_a_regular_file_and_a_destination_new(tmp_path: Path, portrait: Path) -> None:
    os.mkfifo(tmp_path / "voice")
    with pytest.raises(PathRefused):
        normalise([MediaJob("audio", tmp_path / "voice", tmp_path / "out")], LIMITS)
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        normalise(
            [MediaJob("image", portrait, tmp_path / "new"), MediaJob("image", portrait, tmp_path / "out")], LIMITS
        )
    assert destinations(tmp_path) == ["out"]
    assert (tmp_path / "out").read_bytes() == b"old"


def test_many_threads_decode_at_once_without_mixing_descriptors(tmp_path: Path, portrait: Path) -> None:
    outcomes: list[object] = []

    def work(number: int) -> None:
        outcomes.extend(normalise([MediaJob("image", portrait, tmp_path / f"out{number}")], LIMITS))

    before = len(list(Path("/proc/self/fd").iterdir()))
    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert outcomes == [ImageFacts(100, 100)] * 6
    assert len(list(Path("/proc/self/fd").iterdir())) == before
