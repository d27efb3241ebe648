"""What an engine may say, and a real child that says it."""

from __future__ import annotations

import os
import selectors
import sys
from pathlib import Path

import pytest

from tasks.engine_process import EngineProcess, Progress, parse_line
from tasks.model import Note, Phase
from tests.conftest import PATIENCE


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'@progress {"phase": "generating", "done": 3, "total": 12}', Progress(Phase.GENERATING, 0.25)),
        (b'@progress {"phase": "loading_model"}', Progress(Phase.LOADING_MODEL, 0.0)),
        (b'  @progress {"phase": "encoding", "done": 9, "total": 3}\r', Progress(Phase.ENCODING, 1.0)),
        (b'@note {"code": "no_face", "message": "none found"}', Note("no_face", "none found")),
        (b'@progress {"phase": "dancing", "done": 1, "total": 2}', None),
        (b'@progress {"phase": "generating", "done": NaN, "total": 2}', None),
        (b'@progress {"phase": "generating", "done": "x", "total": 2}', None),
        (b"@progress [", None),
        (b"@progress " + b"[" * 100_000, None),
        (b'@note {"code": "x"}', None),
        (b'@note {"code": "x", "message": "\\ud800 hi"}', None),
        (b'@note {"code": "x", "message": "\\u001b[31m"}', None),
        (b"@progress [1]", None),
        (b"@progress 7", None),
        (b'@progress {"phase": "generating", "done": 1' + b"0" * 400 + b', "total": 5}', None),
        (b'@note {"code": 7, "message": "m"}', None),
        (b"progress 50%", None),
        (b"\xff\xfe", None),
        (b"", None),
    ],
)
def test_only_lines_of_the_contract_count(line: bytes, said: object) -> None:
    assert parse_line(line) == said


def test_a_child_is_heard_to_its_last_word_and_its_log_is_a_file(tmp_path: Path) -> None:
    script = (
        "import os, sys; fd = int(os.environ['AVATAR_PROGRESS_FD'])\n"
        'os.write(fd, b\'@progress {"phase": "generating", "done": 1, "total": 2}\\n@pro\')\n'
        'os.write(fd, b\'gress {"phase": "encoding"}\\n\')\n'
        "print('hello log'); print(os.getcwd()); sys.exit(3)"
    )
    lock = os.open(tmp_path / "slot", os.O_CREAT | os.O_RDWR)
    engine = EngineProcess([sys.executable, "-c", script], tmp_path, tmp_path / "log", dict(os.environ), [lock])
    heard = []
    with selectors.DefaultSelector() as selector:
        selector.register(engine.channel, selectors.EVENT_READ)
        while not engine.closed:
            assert selector.select(PATIENCE), "the engine said nothing"
            heard += engine.read()
    assert engine._process.wait(PATIENCE) == 3
    assert heard == [Progress(Phase.GENERATING, 0.5), Progress(Phase.ENCODING, 0.0)]
    assert (tmp_path / "log").read_text().splitlines() == ["hello log", str(tmp_path)]
    os.close(lock)
    os.close(engine.channel)
