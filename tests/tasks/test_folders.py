"""Where the files of the service lie: in one place from which results can be published, or it does not start."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.folders import Folders
from tasks.trouble import DataRefused


@pytest.fixture(params=[["-t", "tmpfs", "tmpfs"], ["--bind", "elsewhere"]], ids=["another disk", "the same disk again"])
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The folder of results, on which something is mounted."""
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "data" / "results"
    folder.mkdir(parents=True)
    made = subprocess.run(
        ["mount", *request.param, str(folder)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    if made.returncode:
        pytest.skip(f"nothing can be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_data_folder_in_two_mounts_is_refused_before_a_video_is_made_in_vain(mounted: Path) -> None:
    with pytest.raises(DataRefused, match="no result could be published"):
        Folders(mounted.parent).make()
    assert list(mounted.iterdir()) == []


def test_a_data_folder_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").symlink_to("elsewhere")
    Folders(tmp_path / "data").make()
    assert (tmp_path / "elsewhere" / "results").is_dir()
