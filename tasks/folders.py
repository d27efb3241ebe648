"""Where the files of the service lie. One data folder, one file system, so that publishing is a rename."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tasks.spec import LOCK_FILE
from tasks.trouble import DataRefused
from utils.file_handler import remove_if_possible
from utils.process import is_locked

_NOBODY = ".nobody-has-this-name"


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders under `data`."""

    data: Path

    @property
    def uploads(self) -> Path:
        return self.data / "uploads"

    @property
    def tasks(self) -> Path:
        """Inputs, attempts and logs, a folder for each task."""
        return self.data / "tasks"

    @property
    def results(self) -> Path:
        """Published files, `<task>/<attempt>/<name>`."""
        return self.data / "results"

    @property
    def scratch(self) -> Path:
        """Files that are being made; whatever is left here belongs to nobody."""
        return self.data / "tmp"

    @property
    def slots(self) -> Path:
        return self.data / "slots"

    @property
    def parts(self) -> tuple[Path, ...]:
        """The folders in which the service keeps files; no request may name one of them."""
        return self.uploads, self.tasks, self.results, self.scratch, self.slots

    @property
    def wake(self) -> Path:
        """The FIFO through which anyone wakes the scheduler."""
        return self.data / "wake"

    def inputs(self, task_id: str) -> Path:
        return self.tasks / task_id / "inputs"

    def input_bytes(self, task_id: str, is_new: bool = False) -> int:
        """Return what the inputs of a task take; of a file that has other names, such as an upload's, its share.

        A new task's have a name more for as long as its request lasts.
        """
        total = 0
        with suppress(FileNotFoundError), os.scandir(self.inputs(task_id)) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    found = Path(entry.path).lstat()  # a scan's own knows nothing of links on every system
                    total += found.st_size // max(1, found.st_nlink - is_new)
        return total

    def attempts(self, task_id: str) -> Path:
        return self.tasks / task_id / "attempts"

    def attempt(self, task_id: str, attempt: int) -> Path:
        return self.attempts(task_id) / str(attempt)

    def is_held(self, task_id: str, attempt: int) -> bool:
        """Say whether any process, a runner or the scheduler that is about to start one, still holds the attempt."""
        return is_locked(self.attempt(task_id, attempt) / LOCK_FILE)

    def result(self, task_id: str, attempt: int) -> Path:
        return self.results / task_id / str(attempt)

    def upload(self, path: str) -> Path:
        """Return the file of an upload, which clients know as `/uploads/<kind>/<name>`."""
        return self.uploads / path.removeprefix("/uploads/")

    def remove_task(self, task_id: str) -> None:
        """Remove all files of a task, whose row is gone already; what is being read stays readable.

        What cannot be removed is an orphan, for which sweeps look.
        """
        remove_if_possible(self.results / task_id)
        remove_if_possible(self.tasks / task_id)

    def make(self) -> None:
        """Make what is missing. Raises DataRefused where that cannot be done, or where no result could be published."""
        try:
            for folder in (self.uploads / "image", self.uploads / "audio", *self.parts):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataRefused(
                f"the data folder {self.data} cannot be made or written: {error.strerror} ({error.filename}); "
                "set data_dir (AVATAR_DATA_DIR) to a folder of this user"
            ) from error
        if not _can_rename(self.tasks, self.results):
            raise DataRefused(
                f"nothing can be renamed from {self.tasks} to {self.results}, so no result could be published: mount "
                "one file system for the whole data folder, and set data_dir (AVATAR_DATA_DIR) to it"
            )


def _can_rename(source: Path, target: Path) -> bool:
    """Say whether files of one folder can be renamed into another, without one: the disk may be full.

    The kernel looks at the mounts before it looks for the file, and they may be two of one file system.
    """
    try:
        (source / _NOBODY).rename(target / _NOBODY)
    except OSError as error:
        return error.errno != errno.EXDEV and source.stat().st_dev == target.stat().st_dev
    return True
