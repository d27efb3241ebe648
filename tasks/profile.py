"""The table of engines as values: which script makes a video on which hardware, and what it is known to cost.

`configs/engines.yaml` is its file form; config_loader reads and checks it. An engine has profiles in order of
preference, and a profile is one row: needs, script, and what the runner must know to follow, judge and stop it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from tasks.model import ErrorCode, Note, OutputFormat, Phase
from utils.plan import SIZES

_STRICT = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class _Checked:
    """Marks a text that `check` must pass. It makes pydantic, with which the file is read, tell which one did not."""

    check: Callable[[str], str]

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        function = {"type": "no-info", "function": self.check}
        return {"type": "function-after", "function": function, "schema": handler(source)}


@dataclass(frozen=True, slots=True)
class _Between:
    """Marks a number that must lie between two others, both included; `nan` and `inf` never do."""

    least: float
    most: float

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        return {"type": "function-after", "function": {"type": "no-info", "function": self}, "schema": handler(source)}

    def __call__(self, number: float) -> float:
        if not self.least <= number <= self.most:
            raise ValueError(f"must be between {self.least:,} and {self.most:,}")
        return number


def _known_size(text: str) -> str:
    if text not in SIZES:
        raise ValueError(f"no such size: {text}; there are: {', '.join(SIZES)}")
    return text


def _regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from error
    return text


Size = Annotated[str, _Checked(_known_size)]
Regex = Annotated[str, _Checked(_regular_expression)]
Seconds = Annotated[float, _Between(0, 365 * 86_400)]
Rate = Annotated[float, _Between(0, 1_000_000)]
Few = Annotated[int, _Between(1, 1_000)]
Share = Annotated[float, _Between(0, 0.99)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """First guesses of what a task costs, until finished tasks correct them (see tasks.estimate).

    All in seconds. The two rates hold at 704x384 and scale with the number of pixels.
    """

    __pydantic_config__: ClassVar = _STRICT
    load_seconds: Seconds = 1.0
    seconds_per_frame: Rate = 0.0
    seconds_per_clip_step: Rate = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """How a profile runs on GPUs of at least `capability`, with what memory on each of them.

    `base_gib` is needed whatever the size, `gib_per_megapixel` for each 10^6 pixels of the video. `margin` is the share
    of the free memory that must stay free.
    """

    __pydantic_config__: ClassVar = _STRICT
    capability: Rate = 0.0
    args: tuple[str, ...] = ()
    base_gib: Rate
    gib_per_megapixel: Rate = 0.0
    margin: Share = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Patterns:
    """How to read progress from an engine that does not speak the contract's lines.

    `files` are globs below the attempt's folder (none: the engine's log). A line that matches `phases[p]` begins phase
    p; one that matches `step` and ends in a newline, not in a carriage return, is one more finished step of
    `generating`, of which each clip has `steps_per_clip`. The group of `loading` is how many per cent are loaded.
    """

    __pydantic_config__: ClassVar = _STRICT
    files: tuple[str, ...] = ()
    phases: dict[Phase, Regex] = field(default_factory=dict)
    loading: Regex = ""
    step: Regex = ""
    steps_per_clip: Few = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One way to run an engine.

    `script` is relative to the project root (or absolute) and obeys scripts/README.md; `args` follow the contract's
    own arguments. `output_formats` are what the script can write by itself when told `--output_format`; for any other
    format it makes an mp4 and the runner transcodes. `extra_frames` is by how many frames the video may pass the plan;
    of an engine with another frame rate than the plan's, `seconds_tolerance` above 0 judges the length instead: by how
    many seconds it may differ.
    `gpus` 0 is a CPU slot; else `builds` tell what each GPU must have, the first whose capability all GPUs reach.
    `steps` is forced, `max_steps` and `max_size` cap; where memory is short a request's size may fall to one of
    `fall_to`, and after running out of memory to the next smaller of `oom_sizes`. What fails with one of `retry_on` is
    tried again, within `runner.max_attempts`; any other failure is final. Timeouts in seconds; 0 means none.
    `silence_timeout_seconds` is how long the engine may say nothing, `first_clip_silence_seconds` how long until its
    first clip is done, for loading and compiling are silent (0: the same).
    """

    __pydantic_config__: ClassVar = _STRICT
    name: str
    script: str
    args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    gpus: Annotated[int, _Between(0, 1_000)] = 0
    builds: tuple[Build, ...] = ()
    steps: Few | None = None
    steps_reason: str = "this hardware runs a fixed number of steps"
    max_steps: Few | None = None
    online_decode: bool = True
    max_size: Size = ""
    fall_to: tuple[Size, ...] = ()
    oom_sizes: tuple[Size, ...] = ()
    retry_on: tuple[ErrorCode, ...] = ()
    experimental: bool = False
    output_formats: tuple[OutputFormat, ...] = ()
    extra_frames: Annotated[int, _Between(0, 1_000_000)] = 0
    seconds_tolerance: Seconds = 0.0
    grace_seconds: Seconds = 10.0
    run_timeout_seconds: Seconds = 0.0
    silence_timeout_seconds: Seconds = 0.0
    first_clip_silence_seconds: Seconds = 0.0
    estimate: Estimate = field(default_factory=Estimate)
    progress: Patterns = field(default_factory=Patterns)

    def __post_init__(self) -> None:
        if bool(self.gpus) != bool(self.builds):
            raise ValueError("builds are for profiles with gpus, and every one of those needs some")


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
    weights: tuple[str, ...] = ()
    """Files and folders below the engine's home that must exist and not be empty."""
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineTable:
    """The enabled engines in the order of the file."""

    engines: tuple[Engine, ...]

    def engine(self, name: str) -> Engine | None:
        return next((engine for engine in self.engines if engine.name == name), None)

    @property
    def names(self) -> list[tuple[str, str]]:
        """All (engine, profile) pairs."""
        return [(engine.name, profile.name) for engine in self.engines for profile in engine.profiles]

    def profile(self, engine: str, profile: str) -> Profile | None:
        found = self.engine(engine)
        return next((row for row in found.profiles if row.name == profile), None) if found else None
