"""Files named by strangers and files written by the service: open, save, link, replace, remove.

Theory: a path is checked by walking it. Every component is opened relative to the descriptor of the one before, without
following links, and the caller reads from the descriptor that was checked; between a check of a *name* and its use
another process can exchange what the name means. Files the service writes appear whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

log = logging.getLogger("files")

NOT_THERE = "there is no such file in the folders this service may read"
"""One sentence for absent, forbidden and odd alike: an answer must not tell which files exist."""

MAX_PATH_BYTES = 4096
MAX_DEPTH = 64
_CHUNK = 1 << 18
_FILE_MODE = 0o640
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OWN_WANT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What this process or the machine lacks: such an error says nothing of the file at which it was met."""

_REFUSED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EISDIR,
            errno.ENXIO, errno.ENODEV, errno.EINVAL)  # fmt: skip
_NO_LINKS_HERE = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class PathRefused(ValueError):
    """The path names nothing that a caller may read. The text is for the user and holds no path."""

    def __init__(self) -> None:
        super().__init__(NOT_THERE)


class TooLarge(ValueError):
    """The stream holds more bytes than allowed. The text is for the user."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the file is larger than {readable_bytes(max_bytes)}")
        self.max_bytes = max_bytes


class StorageFull(OSError):
    """No room is left on the disk, or the quota is used up (ENOSPC, EDQUOT)."""

    def __init__(self) -> None:
        super().__init__(errno.ENOSPC, "no storage is left")


class Readable(Protocol):
    """What `save_stream` reads from: at most `size` bytes a call, empty at the end."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class SavedFile:
    """What was written: the number of bytes and their SHA-256 in lower-case hex."""

    size_bytes: int
    sha256: str


def readable_bytes(count: int) -> str:
    """Return `count` bytes as a person writes it: `20 MiB`, `1.5 KiB`, `300 bytes`."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f}".removesuffix(".0") + f" {unit}"
    return f"{count} bytes"


@contextlib.contextmanager
def if_possible() -> Iterator[None]:
    """Pass over what is gone, or cannot be read. Raises OSError where this process has not what it takes to look."""
    try:
        yield
    except OSError as error:
        if error.errno in OWN_WANT:
            raise


# -- reading what a request names ----------------------------------------------------------------------------------


def open_under(folder: Path, relative: str) -> BinaryIO:
    """Open the regular file `relative` below `folder` for reading.

    No component below `folder` may be a link, `..` or a mount of devices; FIFOs and devices are never waited for.
    Raises PathRefused; other OSErrors (descriptors used up, a failing disk) pass.
    """
    parts = _safe_parts(relative)
    try:
        with contextlib.ExitStack() as opened:
            here = _keep(opened, os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            for part in parts[:-1]:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                here = _keep(opened, os.open(part, flags, dir_fd=here))
            # O_NONBLOCK: the open of a FIFO without a writer would otherwise never return.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return _regular(os.open(parts[-1], flags, dir_fd=here))
    except OSError as error:
        if error.errno in _REFUSED:
            raise PathRefused from None
        raise


def open_allowed(folders: Sequence[Path], path: str) -> BinaryIO:
    """Open the regular file that `path` names: absolute under one of `folders`, or relative to one of them.

    The first folder that has it wins. Raises PathRefused with the same text whether it is absent or forbidden.
    """
    for folder in folders:
        relative = _relative_to(folder, path)
        if relative is None:
            continue
        with contextlib.suppress(PathRefused):
            return open_under(folder, relative)
    raise PathRefused


def _safe_parts(relative: str) -> tuple[str, ...]:
    try:
        encoded = os.fsencode(relative)
    except UnicodeEncodeError:
        raise PathRefused from None
    pieces = relative.split("/")
    bad = any(piece in ("", ".", "..") or len(os.fsencode(piece)) > 255 for piece in pieces)
    if bad or b"\0" in encoded or len(encoded) > MAX_PATH_BYTES or len(pieces) > MAX_DEPTH:
        raise PathRefused
    return tuple(pieces)


def _relative_to(folder: Path, path: str) -> str | None:
    if not path.startswith("/"):
        return path
    prefix = str(PurePosixPath(folder)).rstrip("/") + "/"
    return path.removeprefix(prefix) if path.startswith(prefix) else None


def _keep(opened: contextlib.ExitStack, descriptor: int) -> int:
    opened.callback(os.close, descriptor)
    return descriptor


def _regular(descriptor: int) -> BinaryIO:
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise PathRefused


# -- writing -------------------------------------------------------------------------------------------------------


def save_stream(stream: Readable, destination: Path, max_bytes: int) -> SavedFile:
    """Write all of `stream` to the new file `destination`, durably, and say what was written.

    Raises TooLarge past `max_bytes`, StorageFull, FileExistsError, and whatever the stream raises. Except where the
    file existed before, nothing is left behind.
    """
    digest, size = hashlib.sha256(), 0
    with _storage(), created(destination) as file:
        while chunk := stream.read(_CHUNK):
            size += len(chunk)
            if size > max_bytes:
                raise TooLarge(max_bytes)
            digest.update(chunk)
            file.write(chunk)
    sync(destination.parent)
    return SavedFile(size, digest.hexdigest())


@contextlib.contextmanager
def created(destination: Path) -> Iterator[BinaryIO]:
    """Create `destination`, which must not exist, for writing; its bytes are durable when the block ends.

    When the block fails in any way, the file is removed again.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(destination, flags, _FILE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        destination.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _storage() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in FULL and not isinstance(error, StorageFull):
            raise StorageFull from error
        raise


def sync(path: Path) -> None:
    """Make the bytes of a file, or the names in a folder, durable.

    A new file is lost in a power cut until its folder is written, too.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(source: Path, destination: Path) -> None:
    """Give `source` the second name `destination`; copy it where the filesystem gives no hard links.

    `destination` must not exist. Raises StorageFull, FileExistsError, FileNotFoundError.
    """
    with _storage():
        try:
            os.link(source, destination, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS_HERE:
                raise
        else:
            return
        with source.open("rb") as reading, created(destination) as writing:
            shutil.copyfileobj(reading, writing, _CHUNK)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, so that a reader, or a machine that lost power, sees the old or the new, never a part.

    Raises StorageFull; then the old content stands.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    with _storage():
        with created(temporary) as file:
            file.write(data)
        try:
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


def stored_name(suffix: str) -> str:
    """Return a new name nobody can guess, `[a-z0-9]{32}` and `suffix` (`.png`); nothing of the user's is in it.

    Raises ValueError for a suffix that is not a dot and 1 to 8 of `[a-z0-9]`.
    """
    if not re.fullmatch(r"\.[a-z0-9]{1,8}", suffix):
        raise ValueError(f"{suffix!r} is not a suffix of a stored file")
    return secrets.token_hex(16) + suffix


# -- removing ------------------------------------------------------------------------------------------------------


def remove_tree(path: Path) -> None:
    """Remove `path` and all below it. Links are removed, never followed; what is already gone is fine.

    Folders that their maker closed, as caches of some tools are, are opened. Raises OSError.
    """
    try:
        if stat.S_ISDIR(path.lstat().st_mode):
            try:
                shutil.rmtree(path)
            except PermissionError:
                _open_folders(path)
                shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        # A second remover (sweep and DELETE at once) took part of it: go on until nothing is left.
        if os.path.lexists(path):
            remove_tree(path)


def remove_if_possible(path: Path) -> None:
    """Remove like `remove_tree`, where one that cannot be removed must hold up nothing else: that is logged."""
    try:
        remove_tree(path)
    except OSError as error:
        log.error("%s cannot be removed: %s", path, error)


def _open_folders(folder: Path) -> None:
    folder.chmod(0o700)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _open_folders(Path(entry.path))
