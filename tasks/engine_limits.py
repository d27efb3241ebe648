"""What the kernel lets an engine use: the size of each file it writes, open files, no dump of its memory; and how far
it stands back where processors are short."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """For each process of an engine: bytes of one file, and open files; 0: as many as the service itself may.

    `nice` is added to the service's own: whoever polls shall not wait for those who compute.
    """

    file_bytes: int = 0
    open_files: int = 0
    nice: int = 0

    def within_own(self) -> EngineLimits:
        """Return the limits, none above what this process may hand on: root could raise that, and must not."""
        return EngineLimits(
            _within(self.file_bytes, resource.RLIMIT_FSIZE), _within(self.open_files, resource.RLIMIT_NOFILE),
            self.nice,
        )  # fmt: skip

    def apply(self) -> None:
        """Limit this process, and whatever it starts, for good. Between fork and exec: it allocates next to nothing."""
        os.nice(self.nice)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would be as large as the model
        if self.file_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_bytes, self.file_bytes))
        if self.open_files:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self.open_files, self.open_files))


NO_LIMITS = EngineLimits()


def _within(wanted: int, kind: int) -> int:
    _, most = resource.getrlimit(kind)
    return wanted if most == resource.RLIM_INFINITY else min(wanted, most)
