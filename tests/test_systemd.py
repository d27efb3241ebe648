"""The systemd units: what keeps a running video through a restart of the service, and what would break engines."""

from __future__ import annotations

import re
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest
import yaml

from app import create_app
from config_loader import load_settings
from tests.conftest import ROOT

UNITS = ROOT / "configs" / "systemd"
SERVICE, SOCKET, DRAIN = "live-avatar.service", "live-avatar.socket", "live-avatar-drain@.service"


def unit(name: str) -> RawConfigParser:
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((UNITS / name).read_text())
    return parser


def test_a_stop_leaves_runners_and_all_that_they_use_alone() -> None:
    service = unit(SERVICE)["Service"]
    needed = {
        "KillMode": "process", "OOMPolicy": "continue", "Restart": "always", "StateDirectory": "live-avatar",
        "Type": "notify", "ProtectSystem": "strict", "NoNewPrivileges": "yes",
        "Delegate": "yes",
    }  # fmt: skip
    assert {name: service.get(name) for name in needed} == needed
    assert int(service["TasksMax"]) >= 4096
    taken_away = {"RuntimeDirectory", "PrivateTmp", "DynamicUser", "LimitNPROC", "ExecStopPost", "FinalKillSignal"}
    assert not taken_away & set(service)


def test_nothing_is_set_that_keeps_engines_from_gpus_or_compilers() -> None:
    breaking = {
        "PrivateDevices", "ProtectClock", "DeviceAllow", "DevicePolicy", "PrivateIPC", "PrivateNetwork",
        "MemoryDenyWriteExecute", "ProtectProc", "SystemCallFilter", "PrivateUsers",
    }  # fmt: skip
    assert not breaking & set(unit(SERVICE)["Service"])


def test_systemd_waits_longer_than_the_server_needs_to_stop() -> None:
    config = (ROOT / "configs" / "gunicorn.conf.py").read_text()
    graceful = int(re.search(r"^graceful_timeout = (\d+)$", config, re.MULTILINE)[1])  # type: ignore[index]
    assert int(unit(SERVICE)["Service"]["TimeoutStopSec"]) >= 2 * graceful + 5


def test_the_socket_is_where_the_service_listens_by_itself() -> None:
    defaults = yaml.safe_load((ROOT / "configs" / "default.yaml").read_text())
    assert unit(SOCKET)["Socket"]["ListenStream"] == f"{defaults['host']}:{defaults['port']}"
    assert unit(SERVICE)["Unit"]["Requires"] == SOCKET


def test_the_drain_unit_runs_commands_that_exist_as_the_service_does(tmp_path: Path) -> None:
    service, drain = unit(SERVICE)["Service"], unit(DRAIN)["Service"]
    for name in ("User", "Group", "EnvironmentFile", "Environment", "WorkingDirectory", "StateDirectory", "UMask"):
        assert drain[name] == service[name], name
    told = re.findall(r"systemctl start live-avatar-drain@(\w+)", (UNITS / DRAIN).read_text())
    group = create_app(load_settings({"data_dir": str(tmp_path)})).cli.commands["drain"]
    assert set(told) <= set(group.commands)  # type: ignore[attr-defined]
    assert drain["ExecStart"].endswith("/flask --app app drain %i")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
@pytest.mark.parametrize("name", [SERVICE, SOCKET, DRAIN.replace("@", "@on")])
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path, name: str) -> None:
    commands = tmp_path / "current" / ".venv" / "bin"
    commands.mkdir(parents=True)
    for command in ("gunicorn", "flask"):
        (commands / command).write_text("#!/bin/sh\n")
        (commands / command).chmod(0o755)
    for path in UNITS.iterdir():
        (tmp_path / path.name).write_text(path.read_text().replace("/opt/live-avatar", str(tmp_path)))
    said = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)], capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stderr) == (0, "")
