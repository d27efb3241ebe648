"""Progress from logs: ended lines count, phases go forward, files may come late and grow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tasks.engine_process import Progress
from tasks.model import Phase
from tasks.profile import Patterns
from tasks.progress import LogFollower

PATTERNS = Patterns(
    files=("rank/*/err.log",),
    phases={
        Phase.LOADING_MODEL: r"INFO: loading ",
        Phase.GENERATING: r"^complete prepare",
        Phase.ENCODING: r"^complete full",
    },
    step=r"^\s*100%\|.*\| (\d+)/\1 \[",
    steps_per_clip=4,
)
BAR = "  0%|    | 0/4 [00:00\r 50%|##  | 2/4 [00:01\r100%|####| 4/4 [00:02\r100%|####| 4/4 [00:02]\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "rank" / "0").mkdir(parents=True)
    return tmp_path / "rank" / "0" / "err.log"


def follower(folder: Path, patterns: Patterns = PATTERNS) -> LogFollower:
    return LogFollower(folder, folder / "engine.log", patterns, clips=2)


def test_each_ended_bar_is_one_step_of_the_plan(tmp_path: Path, log: Path) -> None:
    follow = follower(tmp_path)
    assert follow.read() == [], "the file is not there yet"
    log.write_text("INFO: loading T5\ncomplete prepare conditional inputs\n" + BAR)
    assert follow.read() == [
        Progress(Phase.LOADING_MODEL, 0.0), Progress(Phase.GENERATING, 0.0), Progress(Phase.GENERATING, 0.125),
    ]  # fmt: skip
    with log.open("a") as file:
        file.write(BAR * 7 + "complete full-sequence generation\n")
    assert follow.read()[-2:] == [Progress(Phase.GENERATING, 1.0), Progress(Phase.ENCODING, 0.0)]
    assert follow.read() == []


def test_the_loader_s_bars_tell_how_much_is_loaded_and_never_go_back(tmp_path: Path, log: Path) -> None:
    patterns = replace(PATTERNS, loading=r"^Loading checkpoint shards:\s+(\d+)%")
    bar = "".join(
        f"Loading checkpoint shards: {share:3d}%|#| {end}" for share, end in ((0, "\r"), (50, "\r"), (100, "\n"))
    )
    log.write_text(f"{bar}INFO: loading T5\n{bar}{bar}complete prepare\n{bar}")
    assert follower(tmp_path, patterns).read() == [
        Progress(Phase.LOADING_MODEL, 0.0), Progress(Phase.LOADING_MODEL, 0.45), Progress(Phase.LOADING_MODEL, 0.9),
        Progress(Phase.GENERATING, 0.0),
    ]  # fmt: skip


def test_a_bar_of_the_loader_is_no_step(tmp_path: Path, log: Path) -> None:
    log.write_text("Loading checkpoint shards: 100%|####| 4/4 [00:02]\n")
    assert follower(tmp_path).read() == []


def test_a_line_that_comes_in_pieces_counts_once(tmp_path: Path, log: Path) -> None:
    follow, said = follower(tmp_path), []
    text = ("complete prepare\n" + BAR).encode()
    with log.open("wb", buffering=0) as file:
        for position in range(0, len(text), 7):
            file.write(text[position : position + 7])
            said += follow.read()
    assert said == [Progress(Phase.GENERATING, 0.0), Progress(Phase.GENERATING, 0.125)]


def test_phases_never_go_back(tmp_path: Path, log: Path) -> None:
    log.write_text("complete prepare\nINFO: loading VAE\ncomplete prepare\n")
    assert follower(tmp_path).read() == [Progress(Phase.GENERATING, 0.0)]


def test_more_bars_than_planned_stay_at_the_whole(tmp_path: Path, log: Path) -> None:
    log.write_text("complete prepare\n" + BAR * 20)
    assert max(said.fraction for said in follower(tmp_path).read()) == 1.0


def test_without_files_the_engine_s_own_log_is_read(tmp_path: Path) -> None:
    (tmp_path / "engine.log").write_bytes(b"complete prepare \xff\n")
    patterns = Patterns(phases=PATTERNS.phases, step=PATTERNS.step, steps_per_clip=4)
    assert follower(tmp_path, patterns).read() == [Progress(Phase.GENERATING, 0.0)]


def test_without_patterns_nothing_is_read(tmp_path: Path) -> None:
    (tmp_path / "engine.log").write_text("complete prepare\n")
    follow = follower(tmp_path, Patterns())
    assert (follow.read(), follow.bytes_read) == ([], 0)


def test_a_log_that_the_engine_removes_and_writes_anew_costs_nothing(tmp_path: Path, log: Path) -> None:
    log.write_text("complete prepare\n" + BAR)
    follow = follower(tmp_path)
    before = follow.read()
    log.unlink()
    assert (len(before), follow.read()) == (2, [])
    log.write_text("complete prepare\n" + BAR * 3)
    assert follow.read()[-1].fraction > before[-1].fraction
