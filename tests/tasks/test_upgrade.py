"""Which databases the service starts on, and how they are brought to this release."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect

from tasks import upgrade
from tasks.model import Status
from tasks.schema import HEAD, open_database
from tasks.store import Store
from tasks.trouble import DataRefused
from tests.conftest import as_nobody
from tests.tasks.migrations import NEXT, bring, with_one_more
from tests.tasks.test_store import started, submit

REVISIONS = [script.revision for script in ScriptDirectory(str(upgrade.MIGRATIONS)).walk_revisions()][::-1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "avatar.db"


def filled(path: Path, count: int = 3) -> None:
    """Make a database with tasks."""
    store = Store(f"sqlite:///{path}", path.parent)
    for number in range(count):
        submit(store, number)
    store.close()


def refusal(path: Path) -> str:
    with pytest.raises(DataRefused) as refused:
        Store(f"sqlite:///{path}", path.parent)
    told = str(refused.value)
    assert "\n" not in told
    return told


def spoil(path: Path) -> None:
    """Overwrite the end, where rows lie; the list of tables still reads well."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size - size // 6)
        file.write(b"\xa5" * (size // 6))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


# --- what the service does not start on -------------------------------------------------------------------------------


@pytest.mark.parametrize("checked_bytes", [upgrade.CHECKED_BYTES, 0], ids=["small", "large"])
@pytest.mark.parametrize(
    ("harm", "words", "seen_when_large"),
    [
        (spoil, "is damaged", False),
        (cut, "is damaged", True),
        (lambda path: path.write_bytes(b"PK\x03\x04" * 4096), "is not an SQLite database", True),
    ],
    ids=["overwritten", "cut short", "another file"],
)
def test_a_damaged_database_is_refused_with_the_way_out(
    path: Path, harm: Callable[[Path], None], words: str, seen_when_large: bool, checked_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    filled(path, 60)
    harm(path)
    monkeypatch.setattr(upgrade, "CHECKED_BYTES", checked_bytes)
    if checked_bytes or seen_when_large:
        told = refusal(path)
        assert words in told
        assert str(path) in told
        assert "flask --app app db restore FILE" in told
    else:
        Store(f"sqlite:///{path}", path.parent).close()  # it would take too long: `db check` and use find it


def test_a_database_of_a_newer_release_is_refused_and_left_as_it_is(path: Path) -> None:
    filled(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE alembic_version SET version_num = '9000'")
        db.commit()
    told = refusal(path)
    assert "newer release" in told
    assert "9000" in told
    assert HEAD in told


def test_a_runner_goes_on_with_the_database_of_a_newer_release(tmp_path: Path, path: Path) -> None:
    filled(path)
    bring(path, NEXT, with_one_more(tmp_path, 'op.add_column("tasks", sa.Column("colour", sa.String(9)))'))
    store = Store(f"sqlite:///{path}", path.parent, prepare=False)
    task = started(store, 77)
    assert store.get(task.id) == task
    store.close()


def test_a_database_of_another_program_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE tasks (id)")
    assert "another program" in refusal(path)


def test_a_missing_database_is_refused_where_tasks_have_files(path: Path, tmp_path: Path) -> None:
    (tmp_path / "results" / "gen_1").mkdir(parents=True)
    for make in (lambda: None, path.touch):
        make()
        told = refusal(path)
        assert "missing or empty" in told
        assert str(tmp_path / "results") in told
    (tmp_path / "results" / "gen_1").rmdir()
    Store(f"sqlite:///{path}", tmp_path).close()


def test_a_database_that_cannot_be_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "plain").touch()
    assert "is not a file" in refusal(tmp_path / "folder.db")
    assert "does not exist" in refusal(tmp_path / "nowhere" / "avatar.db")
    assert "does not exist" in refusal(tmp_path / "plain" / "avatar.db")


def test_a_database_that_this_user_must_not_write_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "avatar.db"
        filled(path)
        for locked, words in ((Path(folder), "folder"), (path, str(path))):
            Path(folder).chmod(0o777)
            locked.chmod(0o555)
            told = as_nobody(lambda: refusal(path))
            locked.chmod(0o777)
            assert words in told
            assert "written by user" in told


def test_a_database_that_is_held_by_another_process_is_refused_in_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(path)
    monkeypatch.setattr(upgrade, "WAIT_SECONDS", 0.1)
    with closing(sqlite3.connect(path)) as holder:
        holder.execute("PRAGMA locking_mode=EXCLUSIVE")
        holder.execute("PRAGMA journal_mode=DELETE")
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DataRefused, match="locked by another process"):
            upgrade.make_ready(open_database(f"sqlite:///{path}", busy_seconds=0.1), path.parent)


def test_a_start_keeps_the_locks_that_this_process_has_on_the_database(path: Path, tmp_path: Path) -> None:
    """Without them the next process that leaves removes the log, and what is written into that is lost."""
    store = Store(f"sqlite:///{path}", tmp_path)
    submit(store, 1)
    upgrade.make_ready(store._engine, tmp_path)  # again, as where the disk was full at first
    look = f"import sqlite3; print(sqlite3.connect({str(path)!r}).execute('SELECT count(*) FROM tasks').fetchone()[0])"
    counted = []
    for number in (2, 3):
        counted.append(int(subprocess.run([sys.executable, "-c", look], capture_output=True, check=True).stdout))
        submit(store, number)
    store.close()
    assert counted == [1, 2]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM tasks").fetchone() == (3,)


def test_a_long_write_of_another_process_does_not_hold_up_a_start(path: Path) -> None:
    filled(path)
    with closing(sqlite3.connect(path)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        store = Store(f"sqlite:///{path}", path.parent, busy_seconds=0.1)
        assert store.counts()[Status.QUEUED] == 3
        store.close()


# --- migrations -------------------------------------------------------------------------------------------------------


def contents(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return list(db.iterdump())


def test_a_migration_is_applied_to_the_same_file_while_others_have_it_open(path: Path, tmp_path: Path) -> None:
    filled(path)
    live = Store(f"sqlite:///{path}", path.parent)
    task, inode = started(live, 50), path.stat().st_ino
    with closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM tasks").fetchone() == (4,)
        bring(path, NEXT, with_one_more(tmp_path, 'op.add_column("tasks", sa.Column("colour", sa.String(9)))'))
        assert reader.execute("SELECT count(*) FROM tasks").fetchone() == (4,), "its moment is kept"
    live.beat(task.id, 1)
    assert live.get(task.id).heartbeat_at is not None
    live.close()
    assert path.stat().st_ino == inode
    assert list((tmp_path / "tmp").iterdir()) == []
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT colour FROM tasks").fetchall() == [(None,)] * 4


@pytest.mark.parametrize(
    "fault", ["raise RuntimeError('a fault of the migration')", "op.execute('SELECT * FROM nowhere')"]
)
def test_a_migration_that_fails_on_the_copy_leaves_the_original_untouched(
    path: Path, tmp_path: Path, fault: str
) -> None:
    filled(path)
    before, inode = contents(path), path.stat().st_ino
    migrations = with_one_more(tmp_path, f'op.create_table("more", sa.Column("id", sa.Integer))\n{fault}')
    with pytest.raises(DataRefused, match="was not changed, and the release before goes on working with it"):
        bring(path, NEXT, migrations)
    assert (contents(path), path.stat().st_ino) == (before, inode)
    assert list((tmp_path / "tmp").iterdir()) == []
    Store(f"sqlite:///{path}", tmp_path).close()


def test_a_process_that_dies_while_it_migrates_in_place_leaves_the_database_as_it_was(
    path: Path, tmp_path: Path
) -> None:
    filled(path)
    before = contents(path)
    dies_in_place = (
        'op.create_table("more", sa.Column("id", sa.Integer))\n'
        'if op.get_bind().engine.url.database.endswith("avatar.db"):\n    os._exit(9)'
    )
    migrations = with_one_more(tmp_path, dies_in_place)
    child = os.fork()
    if child == 0:
        try:
            bring(path, NEXT, migrations)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert contents(path) == before
    Store(f"sqlite:///{path}", tmp_path).close()


def test_a_disk_too_small_for_the_copy_is_a_refusal(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(path)
    before, usage = contents(path), shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=4096))
    with pytest.raises(DataRefused, match=r"was not changed.*4 KiB are free.*make room"):
        bring(path, NEXT, with_one_more(tmp_path, "pass"))
    assert contents(path) == before


def test_processes_that_start_at_once_migrate_one_after_the_other(path: Path, tmp_path: Path) -> None:
    filled(path)
    migrations = with_one_more(tmp_path, 'op.add_column("tasks", sa.Column("colour", sa.String(9)))')
    faults: list[BaseException] = []

    def start() -> None:
        try:
            bring(path, NEXT, migrations)
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []


# --- migrations only add ----------------------------------------------------------------------------------------------

Shape = dict[str, dict[str, tuple[object, ...]]]


def shape(engine: Engine) -> Shape:
    """Return of each table its columns, indexes, constraints and triggers, each by name with all that it is."""
    seen, found = inspect(engine), {}
    for table in seen.get_table_names():
        parts: dict[str, tuple[object, ...]] = {
            f"column {c['name']}": (str(c["type"]), c["nullable"], c["default"], c["primary_key"])
            for c in seen.get_columns(table)
        }
        parts |= {f"index {i['name']}": (i["unique"], *i["column_names"]) for i in seen.get_indexes(table)}
        parts |= {
            f"unique {u['column_names']}": ("forbids", *u["column_names"]) for u in seen.get_unique_constraints(table)
        }
        for kind, listed in (
            ("check", seen.get_check_constraints(table)),
            ("foreign key", seen.get_foreign_keys(table)),
        ):
            parts |= {f"{kind} {number}": ("forbids", str(one)) for number, one in enumerate(listed)}
        found[table] = parts
    with engine.connect() as db:
        triggers = db.exec_driver_sql("SELECT tbl_name, name, sql FROM sqlite_master WHERE type = 'trigger'").all()
    for table, name, sql in triggers:
        found[table][f"trigger {name}"] = ("forbids", sql)
    return found


def objections(before: Shape, after: Shape) -> list[str]:
    """Return what a release that knows `before` would miss, or stumble over, in `after`."""
    found = []
    for table, parts in before.items():
        new = after.get(table, {})
        found += [f"{table}: {name} is gone or changed" for name, what in parts.items() if new.get(name) != what]
        for name in new.keys() - parts.keys():
            what = new[name]
            is_needed = name.startswith("column") and not what[1] and what[2] is None
            if is_needed or what[0] in ("forbids", 1, True):
                found.append(f"{table}: {name} refuses rows of the release before")
    return found


def test_every_migration_only_adds_and_keeps_all_rows(path: Path) -> None:
    engine = open_database(f"sqlite:///{path}")
    for before, after in pairwise(REVISIONS):
        bring(path, before)
        known = shape(engine)
        fill_each_table(path)
        rows = all_rows(path, known)
        bring(path, after)
        assert objections(known, shape(engine)) == [], f"migration {after}"
        assert all_rows(path, known) == rows, f"migration {after}"
    engine.dispose()
    assert REVISIONS[-1] == HEAD


def fill_each_table(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        names = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        for (table,) in db.execute(names).fetchall():
            columns = db.execute(f"PRAGMA table_info({table})").fetchall()
            if table != "alembic_version" and not db.execute(f"SELECT 1 FROM {table}").fetchall():
                holes = ", ".join("?" * len(columns))
                db.execute(f"INSERT INTO {table} VALUES ({holes})", [number for number, *_ in columns])
        db.commit()


def all_rows(path: Path, known: Shape) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(path)) as db:
        return {
            table: db.execute(f"SELECT {columns_of(parts)} FROM {table}").fetchall()
            for table, parts in known.items()
            if table != "alembic_version"
        }


def columns_of(parts: dict[str, tuple[object, ...]]) -> str:
    return ", ".join(f'"{name.removeprefix("column ")}"' for name in parts if name.startswith("column"))


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ('op.drop_table("estimates")', "estimates: column profile is gone"),
        ('op.drop_index("tasks_by_turn")', "tasks: index tasks_by_turn is gone"),
        ('op.execute("ALTER TABLE tasks DROP COLUMN phase")', "tasks: column phase is gone"),
        ('op.execute("ALTER TABLE tasks RENAME COLUMN phase TO stage")', "tasks: column phase is gone"),
        ('op.rename_table("estimates", "lessons")', "estimates: column profile is gone"),
        (
            'with op.batch_alter_table("tasks") as t:\n    t.alter_column("engine", nullable=True)',
            "tasks: column engine is gone or changed",
        ),
        (
            'with op.batch_alter_table("tasks") as t:\n    t.add_column(sa.Column("x", sa.Integer, nullable=False))',
            "tasks: column x refuses",
        ),
        ('op.create_index("one_each", "tasks", ["tenant"], unique=True)', "tasks: index one_each refuses"),
        (
            "op.execute(\"CREATE TRIGGER no BEFORE UPDATE ON tasks BEGIN SELECT RAISE(ABORT, 'no'); END\")",
            "tasks: trigger no refuses",
        ),
    ],
)
def test_a_migration_that_takes_away_or_forbids_would_be_noticed(
    path: Path, tmp_path: Path, steps: str, words: str
) -> None:
    bring(path, HEAD)
    engine = open_database(f"sqlite:///{path}")
    before = shape(engine)
    bring(path, NEXT, with_one_more(tmp_path, steps))
    assert any(words in objection for objection in objections(before, shape(engine)))
    engine.dispose()
