"""What the scheduler hands a runner: everything about one attempt, as one JSON file in the attempt's folder.

No secret is in it; the database's URL comes by the environment.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.engine_limits import EngineLimits
from tasks.model import OutputFormat, Params, Phase
from tasks.profile import Estimate, Patterns
from utils.plan import VideoPlan

SPEC_FILE = "spec.json"
LOG_FILE = "engine.log"
LOCK_FILE = "lock"
FINISH_FILE = "finish.json"
CGROUP_FILE = "cgroup"
BEAT_FILE = "started"
"""Made by the first runner of the attempt; its time of change is the runner's pulse where the database is locked."""

OUTPUT_FOLDER = "out"
STAGING_FOLDER = "publish"

DATABASE_VARIABLE = "AVATAR_DATABASE_URL"
"""Tells the runner where the rows are; its engine must not see it."""

FAILPOINT_VARIABLE = "AVATAR_FAILPOINT"
"""Tells the runner which fail point is armed, in tests; its engine must not see it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSpec:
    """One attempt of one task. Paths are absolute; times in seconds, 0 meaning no limit."""

    task_id: str
    attempt: int
    argv: list[str]
    folder: str
    results: str
    slot_locks: list[str]
    lock_folder: str
    wake: str
    profile: str
    plan: VideoPlan
    extra_frames: int
    seconds_tolerance: float
    params: Params
    adjusted: bool
    """Whether an earlier attempt ran out of memory, after which there is no second retry."""
    oom_sizes: list[str]
    retry_on: list[str]
    """Error codes after which the task is queued again; none at its last attempt."""
    progress: Patterns
    estimate: Estimate
    expected_load: float
    expected_generate: float
    grace_seconds: float
    run_timeout_seconds: float
    silence_timeout_seconds: float
    first_clip_silence_seconds: float
    heartbeat_seconds: float
    poll_seconds: float
    limits: EngineLimits

    def save(self) -> None:
        path = Path(self.folder) / SPEC_FILE
        path.write_text(json.dumps(asdict(self), ensure_ascii=True), "utf-8")

    @staticmethod
    def load(folder: Path) -> AttemptSpec:
        raw = json.loads((folder / SPEC_FILE).read_text("utf-8"))
        raw["plan"] = VideoPlan(**raw["plan"])
        raw["estimate"] = Estimate(**raw["estimate"])
        raw["limits"] = EngineLimits(**raw["limits"]).within_own()
        params = raw["params"]
        raw["params"] = Params(**{**params, "output_format": OutputFormat(params["output_format"])})
        progress = raw["progress"]
        phases = {Phase(phase): text for phase, text in progress["phases"].items()}
        raw["progress"] = Patterns(**{**progress, "phases": phases, "files": tuple(progress["files"])})
        return AttemptSpec(**raw)

    def silence_limit(self, phase: Phase, fraction: float) -> float:
        """Return how many seconds the engine may be silent when it is `fraction` (0 to 1) through `phase`; 0: for ever.

        It is longer until the first clip is done, when networks are loaded and compiled, and while the video is
        decoded and saved, which one GPU does of all clips without a line: there by what the whole should take.
        """
        usual = self.silence_timeout_seconds
        first = max(usual, self.first_clip_silence_seconds)
        if not usual or (phase is Phase.GENERATING and fraction * self.plan.clips > 1):
            return usual
        return first + self.expected_generate if phase is Phase.ENCODING else first

    @staticmethod
    def cgroup(folder: Path) -> Path | None:
        """Return the cgroup that the runner of the attempt in `folder` made for its engine, None where it did not."""
        try:
            return Path((folder / CGROUP_FILE).read_text("utf-8"))
        except FileNotFoundError:
            return None

    @property
    def marks(self) -> dict[str, str]:
        """The variables by which every process of this attempt can be told."""
        return {"AVATAR_TASK_ID": self.task_id, "AVATAR_ATTEMPT": str(self.attempt)}
