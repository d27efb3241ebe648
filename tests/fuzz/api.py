"""A real service with authentication on, and schemathesis over the document that it serves: all checks, all phases."""

from __future__ import annotations

import os
import subprocess
import sys
import wave
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from tests.conftest import ROOT
from tests.e2e.conftest import Service
from tests.tasks.conftest import write_video

_HERE = Path(__file__).parent
_UNLIMITED = str(10**9)
_SETTINGS = {
    "AVATAR_AUTH__ENABLED": "true", "AVATAR_INPUTS__ALLOW_URLS": "false", "AVATAR_QUEUE__MAX_QUEUED": _UNLIMITED,
    "AVATAR_WEBHOOKS__ALLOWED_NETWORKS": "127.0.0.0/8", "AVATAR_SLOTS__CPU": "2",
    "AVATAR_LIMITS__GENERATE": _UNLIMITED, "AVATAR_LIMITS__UPLOADS": _UNLIMITED,
    "AVATAR_LIMITS__READS": _UNLIMITED, "AVATAR_LIMITS__REFUSALS": _UNLIMITED,
}  # fmt: skip


_SCOPES = [word for scope in ("generate", "read", "metrics") for word in ("--scope", scope)]


@dataclass(frozen=True)
class Report:
    """What schemathesis said, and what the service made of it."""

    status: int
    said: str
    answers: Counter[int]
    failures: list[str]

    @property
    def is_good(self) -> bool:
        return self.status == 0 and not self.failures

    def __str__(self) -> str:
        counts = ", ".join(f"{status}: {count}" for status, count in sorted(self.answers.items()))
        wrong = [f"FAILURE: {line}" for line in self.failures]
        return "\n".join([self.said, f"{self.answers.total()} requests were answered ({counts})", *wrong])


ALL_PHASES = "examples,coverage,fuzzing,stateful"


def fuzz(folder: Path, seed: int, *, phases: str = ALL_PHASES, seconds: int = 0, examples: int = 0) -> Report:
    """Start a service in `folder`, send it generated requests, and look at what is left of it.

    It goes on for so many `seconds`; or does so much work: `examples` of each phase, however long they take.
    """
    bound = ["--max-time", str(seconds)] if seconds else ["--max-examples", str(examples)]
    run = Service(folder, {**_SETTINGS, "AVATAR_ENGINES__TABLE": str(_engines(folder))}, workers=2)
    environment = {**_media(folder), "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks", "FUZZ_DATA": str(folder)}
    key = _key(run)
    try:
        run.start()
        command = [
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(_HERE / "schemathesis.toml"), "run",
            f"{run.url}/api/v1/openapi.json", "--phases", phases, "--seed", str(seed), *bound,
            "--continue-on-failure",
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **environment, "FUZZ_KEY": key}, capture_output=True, text=True,
            timeout=seconds + 300, check=False,
        )  # fmt: skip
        failures = _wrong(run)
    finally:
        run.clean_up()
    return Report(done.returncode, done.stdout + done.stderr, _answers(folder), failures)


def _engines(folder: Path) -> Path:
    """Write a table of one engine, which is done at once."""
    (folder / "starts.txt").touch()
    env = {
        "FAKE_ENGINE": "copy", "FAKE_VIDEO": str(write_video(folder / "ready.mp4")),
        "FAKE_STARTS": str(folder / "starts.txt"),
    }  # fmt: skip
    row = {"name": "only", "script": str(ROOT / "tests/fakes/engine.sh"), "grace_seconds": 1.0, "env": env}
    path = folder / "engines.yaml"
    path.write_text(yaml.safe_dump({"engines": {"fake": {"profiles": [row]}}}))
    return path


def _media(folder: Path) -> dict[str, str]:
    """Make a portrait and a voice, and return where they are."""
    image, audio = folder / "portrait.png", folder / "voice.wav"
    Image.new("RGB", (64, 64), "navy").save(image)
    with wave.open(str(audio), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.zeros(16_000, "<i2").tobytes())
    return {"FUZZ_IMAGE": str(image), "FUZZ_AUDIO": str(audio)}


def _key(run: Service) -> str:
    """Make an API key as an operator does."""
    made = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "app", "keys", "create", "--tenant", "fuzz", *_SCOPES], cwd=ROOT,
        env={**os.environ, **run.environment, "AVATAR_DATA_DIR": str(run.data)}, capture_output=True, text=True,
        timeout=60, check=True,
    )  # fmt: skip
    return next(word for word in made.stdout.split() if word.startswith("la_"))


def _wrong(run: Service) -> list[str]:
    """Return what is wrong with the service after all that: it must still be well, and have met no bug."""
    status, health = run.call("GET", "/api/v1/health")
    found = [f"health is {status}: {health}"] if status != 200 else []
    log = (run.folder / "server.log").read_text(errors="replace")
    return found + [line[:500] for line in log.splitlines() if "Traceback" in line or '"status": 500' in line]


def _answers(folder: Path) -> Counter[int]:
    return Counter(map(int, (folder / "answers.txt").read_text().split()))
