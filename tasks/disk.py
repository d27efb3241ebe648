"""Room on the disk of the data folder: how much there is, what accepted tasks may still need, and a last reserve.

Three lines of defence. A request is refused (507) while what it and all accepted tasks may write would leave less than
the reserve. What runs out all the same fails honestly with ENOSPC. And the ballast, a file that is only there to be
removed, gives room to the last write of a status, and to a sweep's, on a disk that is filled to the last block.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from tasks.trouble import Trouble, trouble_of
from utils.file_handler import FULL, StorageFull, if_possible, remove_tree
from utils.plan import FPS, VideoPlan

log = logging.getLogger("disk")

T = TypeVar("T")

BALLAST_FILE = "ballast"

PEAK_BITS_PER_PIXEL = 1.0
SOUND_BYTES_A_SECOND = 3 * 24_000
FIXED_BYTES = 2 * 2**20
"""What a task writes at its peak: the engine's file, the copy into which it is published, and what is neither.

A picture of a talking head takes 0.05 to 0.15 bit a pixel in H.264 at CRF 23 and in VP9, and some 0.5 at the quality
of an engine's own first file; sound is at most 192 kbit/s in each of up to three files. The rest is for log, poster,
row and the engine's small files. On purpose too much: a task that is refused costs less than one that fails at its end.
"""

_NO_ROOM_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Demand:
    """Work that will write: how many tasks, and their frames and pixels (over all frames) in all."""

    tasks: int = 0
    frames: int = 0
    pixels: int = 0

    @staticmethod
    def of(plan: VideoPlan) -> Demand:
        return Demand(1, plan.frames, plan.frames * plan.width * plan.height)

    @property
    def bytes(self) -> int:
        """At most how many bytes it should write at its peak."""
        sound = self.frames / FPS * SOUND_BYTES_A_SECOND
        return int(self.pixels * PEAK_BITS_PER_PIXEL / 8 + sound) + self.tasks * FIXED_BYTES


@dataclass(frozen=True, slots=True)
class Ballast:
    """A preallocated file of `size` bytes, given up when a status could not be written else."""

    path: Path
    size: int = 0

    def lend(self, work: Callable[[], T]) -> T:
        """Do `work`; where the disk is full, once more in the room that the ballast held."""
        try:
            return work()
        except (DBAPIError, sqlite3.Error, OSError) as error:
            if not is_full(error):
                raise
        self._release()
        return work()

    def _release(self) -> None:
        with suppress(FileNotFoundError):  # another process was first: then there may be room already
            self.path.unlink()
            log.error("the disk is full: its last reserve is given up, for the status of a task or a sweep")

    def restore(self) -> bool:
        """Take the room anew where it is missing and there is room; say whether it is there now."""
        if self.size == 0 or (self.path.exists() and self.path.stat().st_size == self.size):
            return self.size > 0
        making = self.path.with_name(f".{self.path.name}.new")
        try:
            descriptor = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
            try:
                os.posix_fallocate(descriptor, 0, self.size)
            finally:
                os.close(descriptor)
            making.rename(self.path)
        except FileNotFoundError:
            return self.path.exists()  # another thread was doing the same
        except OSError as error:
            remove_tree(making)
            if error.errno not in (*FULL, errno.EFBIG, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            return False
        return True


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system of `folder`, of which `reserve_bytes` are to stay free."""

    folder: Path
    reserve_bytes: int
    ballast: Ballast

    def check(self, wanted_bytes: int) -> None:
        """Raise StorageFull where `wanted_bytes` more would leave less than the reserve."""
        if free_bytes(self.folder) - wanted_bytes < self.reserve_bytes:
            raise StorageFull

    def has_room(self) -> bool:
        """Say whether the reserve is there."""
        return free_bytes(self.folder) >= self.reserve_bytes and not _is_out_of_inodes(self.folder)

    def restore_ballast(self) -> None:
        """Put the ballast back once there is room for it beside the reserve."""
        if self.ballast.path.exists() or free_bytes(self.folder) >= self.reserve_bytes + self.ballast.size:
            self.ballast.restore()


def free_bytes(folder: Path) -> int:
    """Return how many bytes this user may still write to the file system of `folder`."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def is_exhausted(folder: Path) -> bool:
    """Say whether nothing more can be written at `folder`."""
    return free_bytes(folder) < _NO_ROOM_BYTES or _is_out_of_inodes(folder)


def is_full(error: BaseException) -> bool:
    """Say whether an error means that the disk, or a quota, is used up."""
    return trouble_of(error) is Trouble.FULL or (isinstance(error, OSError) and error.errno in FULL)


def _is_out_of_inodes(folder: Path) -> bool:
    disk = os.statvfs(folder)
    return disk.f_files > 0 and disk.f_favail == 0


def tree_bytes(path: Path) -> int:
    """Return the bytes of all files below `path`; what vanishes meanwhile, or cannot be read, counts nothing."""
    total = 0
    with if_possible(), os.scandir(path) as entries:
        for entry in entries:
            with if_possible():
                is_folder = entry.is_dir(follow_symlinks=False)
                total += tree_bytes(Path(entry.path)) if is_folder else entry.stat(follow_symlinks=False).st_size
    return total
