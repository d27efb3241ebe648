"""The table of engines as values: which script makes a video on which hardware, and what it is known to cost.

`configs/engines.yaml` is its file form; config_loader reads and checks it. An engine has profiles in order of
preference, and a profile is one row: needs, script, and what the runner must know to judge and stop it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from tasks.model import Note, OutputFormat

_STRICT = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """First guesses of what a task costs, until finished tasks correct them (see tasks.estimate).

    All in seconds. The two rates hold at 704x384 and scale with the number of pixels.
    """

    __pydantic_config__: ClassVar = _STRICT
    load_seconds: float = 1.0
    seconds_per_frame: float = 0.0
    seconds_per_clip_step: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One way to run an engine.

    `script` is relative to the project root (or absolute) and obeys scripts/README.md; `args` follow the contract's
    own arguments. `output_formats` are what the script can write by itself when told `--output_format`; for any other
    format it makes an mp4 and the runner transcodes. `extra_frames` is by how many frames the video may pass the plan.
    Timeouts in seconds; 0 means none.
    """

    __pydantic_config__: ClassVar = _STRICT
    name: str
    script: str
    args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    output_formats: tuple[OutputFormat, ...] = ()
    extra_frames: int = 0
    grace_seconds: float = 10.0
    run_timeout_seconds: float = 0.0
    silence_timeout_seconds: float = 0.0
    estimate: Estimate = field(default_factory=Estimate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A program that makes videos. `notes` are told with every task that it runs."""

    __pydantic_config__: ClassVar = _STRICT
    name: str
    profiles: tuple[Profile, ...]
    title: str = ""
    enabled: bool = True
    fallback: bool = False
    """A stand-in that `engine: auto` may use only where the settings allow a fallback."""
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineTable:
    """The enabled engines in the order of the file."""

    engines: tuple[Engine, ...]

    def engine(self, name: str) -> Engine | None:
        return next((engine for engine in self.engines if engine.name == name), None)

    def profile(self, engine: str, profile: str) -> Profile | None:
        found = self.engine(engine)
        return next((row for row in found.profiles if row.name == profile), None) if found else None
