"""Progress of engines that do not speak the contract's lines: read from their logs, by the table's patterns.

A progress bar redraws its line with carriage returns and ends it with a newline; only the ended line is a finished
step. Phases only go forward: a line of an earlier phase that comes late, from another process, changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.engine_process import Progress
from tasks.model import Phase
from tasks.profile import Patterns

_ORDER = list(Phase)
_CHUNK = 2**20
_LONGEST = 2**16
_MOST_LOADED = 0.9
"""What a full bar of loading stands for: the weights are read, but moved, merged or compiled they are not yet."""


@dataclass(slots=True)
class _Tail:
    """One file that grows: how far it was read, and the piece of a line that had not ended there."""

    path: Path
    offset: int = 0
    rest: bytes = b""

    def pieces(self) -> Iterator[tuple[str, bool]]:
        """Yield what came since the last call, as (text, whether it ended in a newline)."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                new = file.read(_CHUNK)
        except OSError:  # the engine removed it: there is nothing new, and nothing wrong with its work
            return
        self.offset += len(new)
        *ended, self.rest = re.split(rb"(\r\n|[\r\n])", self.rest + new)
        self.rest = self.rest[-_LONGEST:]
        for text, end in zip(ended[::2], ended[1::2], strict=True):
            yield text.decode("utf-8", "replace"), end != b"\r"


class LogFollower:
    """Follows the logs of one attempt. `clips` of the plan tell how many steps there will be."""

    def __init__(self, folder: Path, log: Path, patterns: Patterns, clips: int) -> None:
        self._folder, self._log, self._patterns = folder, log, patterns
        self._phases = [(phase, re.compile(text)) for phase, text in patterns.phases.items()]
        self._step = re.compile(patterns.step) if patterns.step else None
        self._loading = re.compile(patterns.loading) if patterns.loading else None
        self._total = max(1, clips * patterns.steps_per_clip)
        self._phase, self._steps, self._loaded = Phase.PREPARING, 0, 0.0
        self._tails: dict[Path, _Tail] = {}

    @property
    def bytes_read(self) -> int:
        return sum(tail.offset for tail in self._tails.values())

    def read(self) -> list[Progress]:
        """Return what the logs say that they did not say at the last call."""
        if not self._phases and self._step is None:
            return []
        for path in self._files():
            self._tails.setdefault(path, _Tail(path))
        return [
            said for tail in self._tails.values() for text, ended in tail.pieces() for said in self._take(text, ended)
        ]

    def _files(self) -> list[Path]:
        if not self._patterns.files:
            return [self._log] if self._log.exists() else []
        return sorted({path for glob in self._patterns.files for path in self._folder.glob(glob)})

    def _take(self, text: str, ended: bool) -> Iterator[Progress]:
        for phase, pattern in self._phases:
            if _ORDER.index(phase) > _ORDER.index(self._phase) and pattern.search(text):
                self._phase = phase
                yield Progress(phase, 0.0)
        yield from self._take_loading(text)
        if ended and self._step is not None and self._step.search(text) and self._steps < self._total:
            self._steps += 1
            if self._phase is Phase.GENERATING:
                yield Progress(self._phase, self._steps / self._total)

    def _take_loading(self, text: str) -> Iterator[Progress]:
        """Several bars may load one after the other: only what passes the furthest of them is told."""
        if self._loading is None or self._phase is not Phase.LOADING_MODEL:
            return
        found = self._loading.search(text)
        share = min(float(found[1]) / 100, 1.0) * _MOST_LOADED if found else 0.0
        if share > self._loaded:
            self._loaded = share
            yield Progress(Phase.LOADING_MODEL, share)
