"""A stand-in engine for tests: obeys the contract of scripts/README.md and does what FAKE_ENGINE tells it to.

`copy` delivers the video FAKE_VIDEO; every other behaviour is a way to go wrong. Each start is noted in FAKE_STARTS, a
line `<seconds since the epoch> <task> <attempt> <pid>`, so that tests can count starts and measure how soon they came.
Where FAKE_CLAIMS names a folder, it locks its task and its GPUs there for as long as it lives, and notes what another
process holds already.
"""

from __future__ import annotations

import os
import time

STARTED = time.time()

import fcntl
import json
import resource
import shutil
import signal
import subprocess
import sys

ARGUMENTS = dict(argument[2:].partition("=")[::2] for argument in sys.argv[1:])
OUTPUT = ARGUMENTS.get("output_dir", ".")
VIDEO = os.environ.get("FAKE_VIDEO", "")


def say(word: str, **said: object) -> None:
    os.write(int(os.environ["AVATAR_PROGRESS_FD"]), f"@{word} {json.dumps(said)}\n".encode())


def copy() -> int:
    say("progress", phase="generating", done=1, total=2)
    name = "." + os.path.basename(VIDEO)
    shutil.copy(VIDEO, os.path.join(OUTPUT, name))
    os.rename(os.path.join(OUTPUT, name), os.path.join(OUTPUT, name[1:]))
    return 0


def slow_copy() -> int:
    for done in range(1, 21):
        say("progress", phase="generating", done=done, total=20)
        time.sleep(float(os.environ.get("FAKE_SECONDS", "2")) / 20)
    return copy()


def when_told() -> int:
    """Get on, slower and slower, and deliver once the file FAKE_GO is there."""
    done = 0
    while not os.path.exists(os.environ["FAKE_GO"]):
        done += 1
        say("progress", phase="generating", done=done, total=done + 100)
        time.sleep(0.05)
    return copy()


def live() -> int:
    """Like when_told, and talk about it."""
    done = 0
    while not os.path.exists(os.environ["FAKE_GO"]):
        done += 1
        say("progress", phase="generating", done=done, total=done + 100)
        print(f"step {done} is done", flush=True)
        time.sleep(0.1)
    return copy()


def fail() -> int:
    print("loading weights")
    print(f"RuntimeError: no such file {OUTPUT}/weights.bin", file=sys.stderr)
    return 3


def nothing() -> int:
    return 0


def garbage() -> int:
    with open(os.path.join(OUTPUT, "video.mp4"), "wb") as file:
        file.write(b"not a video" * 100)
    return 0


def two() -> int:
    copy()
    shutil.copy(VIDEO, os.path.join(OUTPUT, "another.mp4"))
    return 0


def truncated() -> int:
    with open(VIDEO, "rb") as source, open(os.path.join(OUTPUT, "video.mp4"), "wb") as target:
        target.write(source.read()[: os.path.getsize(VIDEO) * 2 // 3])
    return 0


def hang() -> int:
    say("progress", phase="generating", done=1, total=100)
    time.sleep(600)
    return 0


def chatter() -> int:
    while True:
        print("still here", flush=True)
        time.sleep(0.1)


def stubborn() -> int:
    """Ignore SIGTERM, with a grandchild in a session of its own that does so too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
    return hang()


def escape() -> int:
    """Leave a process that nothing but its cgroup tells: another session, no parent, no environment."""
    child = "import os, time; os.fork() and os._exit(0); print(os.getpid(), flush=True); time.sleep(600)"
    command = [sys.executable, "-S", "-c", child]
    kept = "FAKE_KEEP_FILES" not in os.environ  # what a shell starts has all that the shell has open
    with subprocess.Popen(command, env={}, start_new_session=True, stdout=subprocess.PIPE, close_fds=kept) as made:
        pid = made.stdout.readline()
    with open(os.path.join(OUTPUT, "..", "escaped"), "wb") as file:
        file.write(pid)
    return hang()


def stubborn_copy() -> int:
    """Like stubborn, but it gets done where nobody stops it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    subprocess.Popen([sys.executable, "-S", "-c", child], start_new_session=True)
    return slow_copy()


def leave_a_child() -> int:
    """Succeed, but leave a process behind in a session of its own."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    return copy()


def remove_log() -> int:
    os.remove("engine.log")
    print("last words: nobody keeps this")
    return 4


def many_notes() -> int:
    for number in range(200):
        say("note", code=f"n{number}", message="again")
    return copy()


def dump() -> int:
    limits = {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in ("CORE", "FSIZE", "NOFILE")}
    seen = {"argv": sys.argv[1:], "environ": dict(os.environ), "cwd": os.getcwd(), "limits": limits, "nice": os.nice(0)}
    with open(os.path.join(OUTPUT, "..", "seen.json"), "w") as file:
        json.dump(seen, file)
    return copy()


def claim(name: str, folder: str) -> None:
    """Lock what no two processes may have at once; the lock ends with this process, however it ends."""
    descriptor = os.open(os.path.join(folder, name), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with open(os.path.join(folder, "taken-twice"), "a") as file:
            file.write(f"{name} {os.environ['AVATAR_TASK_ID']} {os.environ['AVATAR_ATTEMPT']} {os.getpid()}\n")


def main() -> int:
    with open(os.environ["FAKE_STARTS"], "a") as file:
        file.write(f"{STARTED:.6f} {os.environ['AVATAR_TASK_ID']} {os.environ['AVATAR_ATTEMPT']} {os.getpid()}\n")
    if "FAKE_CLAIMS" in os.environ:
        for name in [
            os.environ["AVATAR_TASK_ID"],
            *filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")),
        ]:
            claim(name, os.environ["FAKE_CLAIMS"])
    return int(globals()[os.environ.get("FAKE_ENGINE", "copy")]())


if __name__ == "__main__":
    sys.exit(main())
