"""Runners live on what the spawner imported: the folder of their version may be replaced while they work."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.model import OutputFormat, Phase, Status
from tasks.spawner import ROOT
from tests.tasks.conftest import Bench

_NOTE_IMPORTS = """
import os, sys

class Note:
    def find_spec(self, name, path=None, target=None):
        with open({log!r}, "a") as file:
            file.write(name + "\\n")

def watch():
    sys.meta_path.insert(0, Note())
    Note().find_spec("sys")  # so that it is known who was watched

os.register_at_fork(after_in_child=watch)
"""


def test_a_runner_imports_nothing_but_the_standard_library(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "imported.txt"
    (tmp_path / "sitecustomize.py").write_text(_NOTE_IMPORTS.format(log=str(log)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    bench.spawner = None  # for one of its own, which finds that folder
    for behaviour, expected in (("copy", Status.COMPLETED), ("fail", Status.FAILED), ("hang", Status.CANCELLED)):
        manager = bench.open(behaviour)
        task = bench.submit(manager, output_format=OutputFormat.WEBM)
        if behaviour == "hang":
            bench.until(manager, task, lambda seen: seen.phase is Phase.GENERATING)
            manager.delete(task.id, task.tenant)
        assert bench.ended(manager, task).status is expected
        bench.stop(manager)
    imported = log.read_text().split()
    assert imported.count("sys") >= 3, "a runner was not watched"
    assert [name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names] == []


@pytest.mark.parametrize("it_was", ["read", "unread"])
def test_a_spawner_whose_scheduler_ends_says_nothing(it_was: str) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        spawner = subprocess.Popen(
            [sys.executable, "-m", "tasks.spawner", str(theirs.fileno())],
            cwd=ROOT,
            pass_fds=(theirs.fileno(),),
            stderr=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        ours.settimeout(60)
        assert ours.recv(64, socket.MSG_PEEK if it_was == "unread" else 0) == b"ready"
        ours.close()
        _, said = spawner.communicate(timeout=60)
    assert (said, spawner.returncode) == ("", 0)
