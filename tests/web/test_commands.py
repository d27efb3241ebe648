"""The operator's commands, and what a service says that does not start."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from flask.cli import cli
from flask.testing import FlaskCliRunner

from app import CANNOT_START, create_app
from config_loader import load_settings
from tasks.backup import BackupRefused, back_up, findings, restore
from tasks.idempotency import IdempotencyKey
from tasks.model import Event, Status
from tasks.store import Store
from tests.conftest import ROOT
from tests.tasks.test_store import submit
from tests.tasks.test_upgrade import cut, filled, spoil


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def path(data: Path) -> Path:
    data.mkdir()
    filled(data / "avatar.db", 60)
    return data / "avatar.db"


@pytest.fixture
def runner(path: Path, data: Path) -> FlaskCliRunner:
    app = create_app(load_settings({"data_dir": str(data)}))
    app.extensions["task_manager"].store.close()
    return app.test_cli_runner()


def command(data: Path, *words: str) -> tuple[int, str]:
    """Run `flask --app app <words>`; return its exit status and all it said."""
    return run(data, [sys.executable, "-m", "flask", "--app", "app", *words])


def run(data: Path, argv: list[str], **settings: str) -> tuple[int, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AVATAR_")}
    environment = {**kept, "AVATAR_DATA_DIR": str(data), "AVATAR_PORT": "0", **settings}
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def read_rows(path: Path, table: str = "tasks") -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


# --- a service that must not start ------------------------------------------------------------------------------------


def test_a_service_on_a_damaged_database_ends_with_a_sentence_and_no_more(path: Path, data: Path) -> None:
    spoil(path)
    status, told = run(data, [sys.executable, "-m", "gunicorn", "-c", "configs/gunicorn.conf.py", "app:create_app()"])
    assert status == CANNOT_START
    assert told.count(f"the service cannot start: the database {path} is damaged") == 1, "tried once"
    assert "flask --app app db restore FILE" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("refused", ["folder", "database", "setting"])
def test_a_service_that_cannot_begin_ends_with_a_sentence(
    tmp_path: Path, refused: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain").touch()
    monkeypatch.setenv("AVATAR_DATA_DIR", str(tmp_path / "plain" / "data" if refused == "folder" else tmp_path))
    if refused == "database":
        monkeypatch.setenv("AVATAR_DATABASE_URL", f"sqlite:///{tmp_path}/nowhere/avatar.db")
    if refused == "setting":
        monkeypatch.setenv("AVATAR_DATA", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        create_app()
    told = capsys.readouterr().err
    assert ended.value.code == CANNOT_START
    assert told.startswith("the service cannot start: ")
    assert told.count("\n") == 1
    assert "AVATAR_DATA" in told


def test_a_server_whose_settings_are_wrong_ends_with_a_sentence_and_a_status_upon_which_it_is_not_tried_again(
    data: Path,
) -> None:
    argv = [sys.executable, "-m", "gunicorn", "-c", "configs/gunicorn.conf.py", "app:create_app()"]
    for wrong in ({"AVATAR_WORKERS": "2"}, {"AVATAR_PORT": "http"}, {"AVATAR_CONFIG": "nowhere"}):
        status, told = run(data, argv, **wrong)
        assert status == CANNOT_START, told
        assert told.startswith("the service cannot start: ")
        assert (told.count("\n"), next(iter(wrong))[7:].lower() in told.lower()) == (1, True)


def test_a_service_where_nobody_has_credentials_starts_once_its_command_has_made_a_key(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = {"AVATAR_AUTH__ENABLED": "true"}
    argv = [sys.executable, "-m", "gunicorn", "-c", "configs/gunicorn.conf.py", "app:create_app()"]
    by_gunicorn = run(data, argv, **on)
    monkeypatch.chdir(ROOT)
    flask = partial(CliRunner(env={"AVATAR_DATA_DIR": str(data), **on}).invoke, cli)
    by_flask = flask(["--app", "app", "run", "--port", "0"])
    for status, told in (by_gunicorn, (by_flask.exit_code, by_flask.output)):
        assert status == CANNOT_START, told
        assert told.count("the service cannot start: auth.enabled: nobody has credentials") == 1, told
        assert "`flask --app app keys create --tenant NAME`" in told
        assert "Traceback" not in told
    made = flask(["--app", "app", "keys", "create", "--tenant", "acme"])
    assert made.exit_code == 0, made.output
    app = create_app(load_settings({"data_dir": str(data), "auth": {"enabled": True}}))
    answer = app.test_client().get("/api/v1/tasks", headers={"X-API-Key": made.stdout.strip()})
    app.extensions["waiting"].stop()
    app.extensions["task_manager"].store.close()
    assert answer.status_code == 200


# --- the commands -----------------------------------------------------------------------------------------------------


def test_the_commands_are_found_and_open_nothing(tmp_path: Path) -> None:
    status, told = command(tmp_path / "data", "db", "--help")
    assert (status, [word in told for word in ("backup", "check", "restore")]) == (0, [True] * 3)
    assert not (tmp_path / "data").exists()


def test_a_damaged_database_is_found_by_check_and_replaced_by_its_backup(
    runner: FlaskCliRunner, path: Path, data: Path
) -> None:
    backup = data.parent / "kept.db"
    assert runner.invoke(args=["db", "backup", str(backup)]).exit_code == 0
    assert runner.invoke(args=["db", "check"]).output == f"{path}: no fault found\n"
    (data / "results" / "gen_20261122_0000000000000001").mkdir(parents=True)
    spoil(path)
    harmed = path.read_bytes()
    checked = runner.invoke(args=["db", "check"])
    assert (checked.exit_code, "is damaged" in checked.output) == (1, True)
    refused = runner.invoke(args=["db", "restore", str(backup)])
    assert (refused.exit_code, "--force" in refused.output, path.read_bytes()) == (1, True, harmed)
    status, told = command(data, "db", "restore", str(backup), "--force")
    assert status == 0, told
    aside = next(data.glob("avatar.db.before-restore-*"))
    assert (aside.read_bytes(), str(aside) in told) == (harmed, True)
    store = Store(f"sqlite:///{path}", data)
    assert store.counts()[Status.QUEUED] == 60
    store.close()


def test_a_database_that_is_not_there_is_not_called_damaged(tmp_path: Path) -> None:
    status, told = command(tmp_path / "data", "db", "check")
    assert (status, "no service has run with these settings" in told, "damaged" in told) == (1, True, False)
    assert not (tmp_path / "data").exists()


def test_a_backup_is_not_written_over_anything_unasked(runner: FlaskCliRunner, path: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.db"
    kept.write_text("precious")
    refused = runner.invoke(args=["db", "backup", str(kept)])
    assert (refused.exit_code, kept.read_text()) == (1, "precious")
    assert "--force" in refused.output
    assert runner.invoke(args=["db", "backup", str(kept), "--force"]).exit_code == 0
    assert (read_rows(kept), findings(kept), kept.stat().st_mode & 0o777) == (60, [], 0o600)
    for own in ("", "-wal", "-shm"):
        refused = runner.invoke(args=["db", "backup", f"{path}{own}", "--force"])
        assert (refused.exit_code, "itself" in refused.output) == (1, True)
    assert read_rows(path) == 60


def test_the_database_is_itself_by_whatever_name_its_folder_is_reached(path: Path, data: Path, tmp_path: Path) -> None:
    """Else its own copy would take its place, and the service would write into a file that has no name any more."""
    data.rename(tmp_path / "larger-disk")
    data.symlink_to("larger-disk")
    inode = path.stat().st_ino
    for folder in (data, tmp_path / "larger-disk"):
        for destination in (data, tmp_path / "larger-disk"):
            with pytest.raises(BackupRefused, match="over the database itself"):
                back_up(folder / path.name, destination / path.name, overwrite=True)
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_backup_takes_the_place_of_no_device(runner: FlaskCliRunner, tmp_path: Path, force: list[str]) -> None:
    """As root, `db backup /dev/null --force` would leave the machine without it."""
    os.mkfifo(tmp_path / "pipe")
    refused = runner.invoke(args=["db", "backup", str(tmp_path / "pipe"), *force])
    assert refused.exit_code in (1, 2)
    assert "Error: " in refused.output
    assert (tmp_path / "pipe").is_fifo()


def test_two_restores_in_one_second_keep_both_databases(path: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.db"
    back_up(path, kept)
    inodes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.backup.time.strftime", lambda _: "20261127T120000")
        for _ in range(3):
            inodes.append(path.stat().st_ino)
            restore(kept, path, overwrite=True)
    asides = sorted(path.parent.glob("avatar.db.before-restore-*"))
    assert [aside.stat().st_ino for aside in asides] == inodes


def test_a_backup_that_fails_leaves_what_was_there(runner: FlaskCliRunner, path: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept" / "avatar.db"
    kept.parent.mkdir()
    assert runner.invoke(args=["db", "backup", str(kept)]).exit_code == 0
    before = kept.read_bytes()
    spoil(path)
    failed = runner.invoke(args=["db", "backup", str(kept), "--force"])
    assert (failed.exit_code, "is damaged" in failed.output) == (1, True)
    assert (kept.read_bytes(), list(kept.parent.iterdir())) == (before, [kept])
    failed = runner.invoke(args=["db", "backup", str(tmp_path / "nowhere" / "kept.db")])
    assert (failed.exit_code, "Traceback" in failed.output) == (1, False)


def test_only_a_sound_backup_of_a_known_release_is_restored(runner: FlaskCliRunner, path: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.db"
    back_up(path, kept)
    before = path.read_bytes()
    for harm, words in (
        (cut, "damaged"),
        (newer, "newer release"),
        (strange, "damaged"),
        (foreign, "no backup"),
        (Path.unlink, "no file"),
    ):
        harm(kept)
        refused = runner.invoke(args=["db", "restore", str(kept), "--force"])
        assert (refused.exit_code, path.read_bytes()) == (1, before)
        assert words in refused.output
        kept.unlink(missing_ok=True)
        back_up(path, kept)


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE alembic_version SET version_num = '9000'")
        db.commit()


def foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE other (id)")


def strange(path: Path) -> None:
    path.write_bytes(b"not a database at all")


def test_a_database_in_use_is_not_replaced(runner: FlaskCliRunner, path: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.db"
    back_up(path, kept)
    hold = (
        f"import sqlite3; db = sqlite3.connect({str(path)!r}); db.execute('SELECT * FROM tasks'); print(flush=True); "
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold + "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == b"\n"
        refused = runner.invoke(args=["db", "restore", str(kept), "--force"])
        user.communicate(b"\n", 30)
    assert (refused.exit_code, f"in use by process {user.pid}" in refused.output) == (1, True)
    assert runner.invoke(args=["db", "restore", str(kept), "--force"]).exit_code == 0


def test_a_backup_while_tasks_are_written_holds_one_moment(path: Path, data: Path, tmp_path: Path) -> None:
    """Each transaction adds a task and its key: a backup of one moment has as many of the one as of the other."""
    store, stop, faults = Store(f"sqlite:///{path}", data), threading.Event(), []
    written = threading.Semaphore(0)

    def write() -> None:
        number = 100
        try:
            while not stop.is_set():
                submit(store, number, IdempotencyKey(f"{number}", "a" * 64))
                store.happen(store.get(f"gen_20261122_{number:016x}"), Event.CANCEL)
                number += 1
                written.release()
        except BaseException as fault:
            faults.append(fault)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        counts = []
        for number in range(5):
            back_up(path, tmp_path / f"{number}.db")
            assert findings(tmp_path / f"{number}.db") == []
            counts.append(read_rows(tmp_path / f"{number}.db"))
            assert read_rows(tmp_path / f"{number}.db", "idempotency_keys") == counts[-1] - 60
            while written.acquire(blocking=False):
                pass
            for _ in range(2):  # of these at least one was begun after the backup
                assert written.acquire(timeout=60), faults
    finally:
        stop.set()
        writer.join(60)
    assert faults == []
    assert counts == sorted(counts)
    assert len(set(counts)) == len(counts), "nothing was written between two backups"
    assert read_rows(path) > counts[-1] >= 60
    store.close()


def test_backups_are_refused_where_the_database_is_a_server(tmp_path: Path) -> None:
    app = create_app(load_settings({"data_dir": str(tmp_path)}))
    app.extensions["task_manager"].store.close()
    server = {"database_url": "postgresql://nobody@127.0.0.1:1/none"}
    app.extensions["settings"] = load_settings().model_copy(update=server)  # which the settings do not take yet
    refused = app.test_cli_runner().invoke(args=["db", "backup", str(tmp_path / "kept.db")])
    assert (refused.exit_code, "pg_dump" in refused.output) == (1, True)


def test_a_backup_onto_a_full_disk_is_a_refusal(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=4096))
    with pytest.raises(BackupRefused, match="4 KiB are free"):
        back_up(path, tmp_path / "kept.db")
    assert not (tmp_path / "kept.db").exists()


# --- wrong arguments, and a database that does not do its work --------------------------------------------------------

BYTE = "\udcff"
"""What Python makes of a byte on the command line that is no UTF-8."""


@pytest.mark.parametrize(
    "words",
    [
        ("keys", "create", "--tenant", "acme", "--days", "inf"),
        ("keys", "create", "--tenant", "acme", "--days", "nan"),
        ("keys", "create", "--tenant", "acme", "--days", "1e9"),
        ("keys", "revoke", BYTE),
        ("webhooks", "secret", "--rotate", "--overlap", "inf"),
        ("webhooks", "secret", "--rotate", "--overlap", "1e12"),
        ("webhooks", "secret", "--tenant", BYTE),
        ("webhooks", "list", "--limit", str(2**64)),
        ("webhooks", "list", "--task", BYTE),
        ("webhooks", "redeliver", BYTE),
        ("drain", "wait", "--timeout", "nan"),
        ("drain", "on", "--reason", f"Wartung f{BYTE}r heute"),
        ("drain", "on", "--reason", "a \x1b]0;title\x07"),
    ],
)
def test_a_command_says_what_is_wrong_with_its_arguments_and_does_nothing(
    runner: FlaskCliRunner, path: Path, words: tuple[str, ...]
) -> None:
    before = {table: read_rows(path, table) for table in ("api_keys", "webhook_secrets", "service_state")}
    refused = runner.invoke(args=words)
    assert (refused.exit_code, isinstance(refused.exception, SystemExit)) == (2, True), refused.output
    assert "Error: Invalid value" in refused.output
    assert {table: read_rows(path, table) for table in before} == before


def test_a_drain_may_go_on_without_end_and_has_a_reason_in_any_language(runner: FlaskCliRunner) -> None:
    assert "no task is running" in runner.invoke(args=["drain", "wait"]).output
    told = runner.invoke(args=["drain", "on", "--reason", " Wartung  für\nheute 维护 "]).output
    assert told.endswith(": Wartung für heute 维护; 0 tasks running, 60 queued\n")


@pytest.mark.parametrize(
    "words", [("keys", "create", "--tenant", "acme"), ("drain", "on"), ("webhooks", "secret", "--rotate")]
)
def test_a_command_on_a_locked_database_says_so_in_one_line(path: Path, data: Path, words: tuple[str, ...]) -> None:
    app = create_app(load_settings({"data_dir": str(data), "database_busy_seconds": 0.1}))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        refused = app.test_cli_runner().invoke(args=words)
    app.extensions["task_manager"].store.close()
    assert (refused.exit_code, isinstance(refused.exception, SystemExit)) == (1, True), refused.exception
    assert refused.output.startswith("Error: the database is locked by another program")
    assert refused.output.count("\n") == 1
