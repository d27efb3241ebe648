"""Paths of strangers, files of the service."""

from __future__ import annotations

import errno
import io
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import as_nobody
from utils import file_handler
from utils.file_handler import (
    NOT_THERE,
    PathRefused,
    SavedFile,
    StorageFull,
    TooLarge,
    link_or_copy,
    open_allowed,
    open_under,
    remove_if_possible,
    remove_tree,
    save_stream,
    stored_name,
    write_atomic,
)


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """An allowed folder with `a.wav`, `deep/b.wav` and hostile neighbours; `secret` lies beside it."""
    folder = tmp_path / "inside"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.wav").write_bytes(b"a")
    (folder / "deep" / "b.wav").write_bytes(b"b")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "inside-too").mkdir()
    (tmp_path / "inside-too" / "a.wav").write_bytes(b"other")
    (folder / "link.wav").symlink_to(tmp_path / "secret")
    (folder / "good-link.wav").symlink_to("a.wav")
    (folder / "folder-link").symlink_to(tmp_path)
    (folder / "null").symlink_to("/dev/null")
    os.mkfifo(folder / "fifo.wav")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
    return folder


def test_a_file_below_the_folder_is_read_from_the_descriptor_that_was_checked(inside: Path) -> None:
    with open_under(inside, "deep/b.wav") as file:
        (inside / "deep" / "b.wav").unlink()
        (inside / "deep" / "b.wav").symlink_to("/etc/passwd")
        assert file.read() == b"b"


HOSTILE = {
    "absent": "nothing.wav",
    "empty": "",
    "dot": ".",
    "parent": "../secret",
    "parent in the middle": "deep/../a.wav",
    "parent behind a link": "folder-link/secret",
    "encoded parent": "%2e%2e/secret",
    "double slash": "deep//b.wav",
    "trailing slash": "a.wav/",
    "file as folder": "a.wav/b",
    "folder": "deep",
    "absolute": "/etc/passwd",
    "process environment": "/proc/self/environ",
    "NUL": "a.wav\0.png",
    "trailing newline": "a.wav\n",
    "over-long name": "x" * 300,
    "over-long path": "d/" * 3000 + "a.wav",
    "deep path": "d/" * 70 + "a.wav",
    "over-long in bytes": "ä" * 200,
    "lone surrogate": "\ud800",
    "link to a secret": "link.wav",
    "link to a neighbour": "good-link.wav",
    "link to a device": "null",
    "FIFO without a writer": "fifo.wav",
    "socket": "socket",
}


@pytest.mark.parametrize("path", HOSTILE.values(), ids=HOSTILE.keys())
def test_every_odd_path_is_refused_with_one_sentence_that_holds_no_path(inside: Path, path: str) -> None:
    with pytest.raises(PathRefused) as below:
        open_under(inside, path)
    with pytest.raises(PathRefused) as allowed:
        open_allowed([inside], path)
    assert str(below.value) == str(allowed.value) == NOT_THERE


def test_an_absolute_path_must_lie_under_an_allowed_folder_by_whole_components(inside: Path, tmp_path: Path) -> None:
    with open_allowed([tmp_path / "none", inside], f"{inside}/a.wav") as file:
        assert file.read() == b"a"
    for path in (f"{tmp_path}/inside-too/a.wav", f"{inside}/../secret", f"/{inside}/a.wav", str(inside), f"{inside}/"):
        with pytest.raises(PathRefused):
            open_allowed([inside], path)


def test_a_relative_path_is_looked_for_in_each_allowed_folder_in_turn(inside: Path, tmp_path: Path) -> None:
    with open_allowed([tmp_path / "none", tmp_path / "inside-too", inside], "a.wav") as file:
        assert file.read() == b"other"
    with open_allowed([tmp_path / "inside-too", inside], "deep/b.wav") as file:
        assert file.read() == b"b"
    with pytest.raises(PathRefused):
        open_allowed([], "a.wav")


def test_used_up_descriptors_are_not_the_callers_fault(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="Too many"):
        open_under(inside, "a.wav")


def test_refusals_leave_no_descriptor_open(inside: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in HOSTILE.values():
        with pytest.raises(PathRefused):
            open_under(inside, path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_saved_stream_is_counted_and_hashed(tmp_path: Path) -> None:
    saved = save_stream(io.BytesIO(b"abc"), tmp_path / "f", 3)
    assert saved == SavedFile(3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    assert (tmp_path / "f").read_bytes() == b"abc"
    assert (tmp_path / "f").stat().st_mode & 0o007 == 0


class _Endless:
    def read(self, size: int) -> bytes:
        return bytes(size)


class _Breaks:
    def __init__(self, error: BaseException) -> None:
        self._steps: Iterator[bytes] = iter([b"begin"])
        self._error = error

    def read(self, _size: int) -> bytes:
        for step in self._steps:
            return step
        raise self._error


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (_Endless(), TooLarge),
        (_Breaks(ConnectionResetError()), ConnectionResetError),
        (_Breaks(KeyboardInterrupt()), KeyboardInterrupt),
        (_Breaks(OSError(errno.ENOSPC, "")), StorageFull),
        (_Breaks(OSError(errno.EDQUOT, "")), StorageFull),
    ],
)
def test_a_save_that_fails_leaves_nothing(tmp_path: Path, stream: _Endless, error: type[BaseException]) -> None:
    with pytest.raises(error):
        save_stream(stream, tmp_path / "f", 1 << 20)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_apart_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull):
        save_stream(io.BytesIO(b"x"), tmp_path / "f", 10)
    with pytest.raises(StorageFull):
        write_atomic(tmp_path / "g", b"x")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_never_written_over_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / "dangling").symlink_to(tmp_path / "elsewhere")
    for name in ("f", "dangling"):
        with pytest.raises(FileExistsError):
            save_stream(io.BytesIO(b"new"), tmp_path / name, 10)
    assert (tmp_path / "f").read_bytes() == b"old"
    assert not (tmp_path / "elsewhere").exists()


def test_too_large_says_the_limit_as_a_person_writes_it(tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match=re.escape("larger than 1.5 KiB")):
        save_stream(_Endless(), tmp_path / "f", 1536)


def test_a_link_is_a_second_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").samefile(tmp_path / "b")
    with pytest.raises(FileExistsError):
        link_or_copy(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_where_links_fail_the_file_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError(number, "")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_bytes(b"x" * 1000)
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"x" * 1000
    assert not (tmp_path / "a").samefile(tmp_path / "b")
    with pytest.raises(FileExistsError):
        link_or_copy(tmp_path / "a", tmp_path / "b")


def test_other_failures_of_a_link_are_not_hidden_by_a_copy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        link_or_copy(tmp_path / "absent", tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_an_atomic_write_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "f", b"old")
    write_atomic(tmp_path / "f", b"older")

    def refuse(_self: Path, _target: Path) -> Path:
        raise OSError(errno.EIO, "")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Errno 5"):
        write_atomic(tmp_path / "f", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("f", b"older")]


def test_stored_names_are_the_servers_own_and_never_alike() -> None:
    names = {stored_name(".png") for _ in range(200)}
    assert len(names) == 200
    assert all(re.fullmatch(r"[a-z0-9]{32}\.png", name) for name in names)


@pytest.mark.parametrize("suffix", ["png", ".", "", ".PNG", ".png\n", "./x", ".+", ".htaccess1", ".p/g", ".ä"])
def test_a_suffix_is_a_dot_and_few_plain_letters(suffix: str) -> None:
    with pytest.raises(ValueError, match="suffix"):
        stored_name(suffix)


def test_a_tree_is_removed_without_following_links(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "f").write_bytes(b"x")
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "link").symlink_to(tmp_path / "kept")
    remove_tree(tmp_path / "tree")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    remove_tree(tmp_path / "link")
    remove_tree(tmp_path / "never-was")
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "f"]


def test_a_tree_that_another_remover_has_begun_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    real, calls = file_handler.shutil.rmtree, []

    def raced(path: Path) -> None:
        calls.append(path)
        if len(calls) == 1:
            (path / "sub").rmdir()
            raise FileNotFoundError(path / "sub")
        real(path)

    monkeypatch.setattr(file_handler.shutil, "rmtree", raced)
    remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_folders_that_their_maker_closed_are_removed_all_the_same() -> None:
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o777)
        tree = Path(made) / "tree"

        def closed_and_removed() -> bool:
            (tree / "cache" / "deep").mkdir(parents=True)
            (tree / "cache" / "deep" / "f").touch()
            for folder, mode in ((tree / "cache" / "deep", 0o000), (tree / "cache", 0o500)):
                folder.chmod(mode)
            remove_tree(tree)
            return tree.exists()

        assert as_nobody(closed_and_removed) is False


def test_what_cannot_be_removed_is_told_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(file_handler.shutil, "rmtree", failing)
    remove_if_possible(tmp_path)
    assert f"{tmp_path} cannot be removed" in caplog.text
