"""Which engine and profile take a request, and what of it must be lowered: decided once, when it is accepted.

Admission looks at what the hardware could do if nothing ran on it; whether it can now is placement's question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.fit import Card, Fit, Portrait, choose_profile, what_would_fit
from tasks.model import Note, Params
from tasks.profile import Engine, EngineTable, Profile


class UnknownEngine(Exception):
    """No engine of this name is configured."""

    def __init__(self, engine: str, known: Sequence[str]) -> None:
        super().__init__(f"no engine of this name; there are: {', '.join(['auto', *known])}")
        self.engine = engine


class NoHardware(Exception):
    """No configured hardware can ever run the request; the text says what would fit."""


@dataclass(frozen=True, slots=True)
class Route:
    """The engine that takes a request, how, and what is to be told with it."""

    engine: Engine
    fit: Fit

    @property
    def notes(self) -> tuple[Note, ...]:
        if not self.fit.profile.experimental:
            return self.engine.notes
        return (*self.engine.notes, Note("experimental", f"the profile {self.fit.profile.name} is experimental"))


@dataclass(frozen=True, slots=True)
class Admission:
    """What this host is: its table, its CPU slots, its engines' home (the Live Avatar checkout), and its GPUs."""

    table: EngineTable
    root: Path
    home: Path | None
    cpu_slots: int
    allow_fallback: bool
    policy: str
    cards: Callable[[], Sequence[Card]]

    def engines(self, name: str) -> list[Engine]:
        """Return the engines that a request for `name` may take, in the table's order. Raises UnknownEngine."""
        known = [engine.name for engine in self.table.engines]
        if name != "auto":
            if name not in known:
                raise UnknownEngine(name, known)
            return [engine for engine in self.table.engines if engine.name == name]
        return [engine for engine in self.table.engines if self.allow_fallback or not engine.fallback]

    def check(self, name: str) -> None:
        """Raise UnknownEngine, or NoHardware where no request at all could run."""
        engines = self.engines(name)
        if all(self.why_not(engine) for engine in engines):
            raise NoHardware(self._words(engines) + self._instead(engines))

    def route(self, name: str, params: Params, portrait: Portrait) -> Route:
        """Return what takes the request. Raises UnknownEngine or NoHardware."""
        engines = self.engines(name)
        for engine in engines:
            if self.why_not(engine):
                continue
            profiles = self._runnable(engine)
            fit = choose_profile(profiles, params, portrait, self._idle_cards(profiles), self.policy)
            if fit is not None:
                return Route(engine, fit)
        wanted = [f"{engine.name} needs {what_would_fit(engine.profiles, portrait, params.size)}" for engine in engines]
        raise NoHardware("; ".join(wanted) + f". {self._have()}")

    def why_not(self, engine: Engine) -> str:
        """Return why an engine can run nothing here, or an empty text."""
        if missing := self._missing(engine):
            return missing
        profiles = self._runnable(engine)
        if not profiles:
            return "the script of every profile is missing"
        reasons = [self.profile_why_not(profile) for profile in profiles]
        return "" if "" in reasons else reasons[-1]

    def profile_why_not(self, profile: Profile) -> str:
        """Return why a profile can run nothing here, or an empty text."""
        if profile.gpus == 0:
            return "" if self.cpu_slots else "no CPU slots are configured (slots.cpu)"
        # A usual picture: one of 64x64 pixels would fit nearly anywhere.
        params, portrait = Params.smallest(), Portrait(1600, 900)
        smallest = choose_profile([profile], params, portrait, self._idle_cards([profile]), self.policy)
        return "" if smallest else f"it needs {what_would_fit([profile], portrait, params.size)}"

    def _runnable(self, engine: Engine) -> list[Profile]:
        return [profile for profile in engine.profiles if (self.root / profile.script).is_file()]

    def _missing(self, engine: Engine) -> str:
        if not engine.weights:
            return ""
        if self.home is None:
            return "LIVE_AVATAR_HOME is not set"
        gone = [name for name in engine.weights if not _has_content(self.home / name)]
        return f"weights are missing or empty: {', '.join(gone)}" if gone else ""

    def _words(self, engines: Sequence[Engine]) -> str:
        return "; ".join(f"{engine.name}: {self.why_not(engine)}" for engine in engines) or "no engine may take it"

    def _instead(self, refused: Sequence[Engine]) -> str:
        able = [engine.name for engine in self.table.engines if engine not in refused and not self.why_not(engine)]
        return f"; asked for by name, {' or '.join(able)} can run here" if able else ""

    def _idle_cards(self, profiles: Sequence[Profile]) -> list[Card]:
        """Return the GPUs with nothing on them; nobody is asked for them where no profile wants any."""
        return [card.idle for card in self.cards()] if any(profile.gpus for profile in profiles) else []

    def _have(self) -> str:
        cards = self.cards()
        if not cards:
            return "This host has no GPU"
        return "This host has " + ", ".join(
            f"{card.total_gib:.0f} GiB (capability {card.capability:g})" for card in cards
        )


def _has_content(path: Path) -> bool:
    try:
        return any(path.iterdir()) if path.is_dir() else path.stat().st_size > 0
    except OSError:
        return False
