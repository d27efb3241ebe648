"""The container files, held to rules without a docker: who runs in them, what is copied, what may be written."""

from __future__ import annotations

import fnmatch
import re
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

FOLDER = ROOT / "configs" / "docker"
SECRET = re.compile(r"(secret|token|passw|api_?key|private)", re.I)


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions in order, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def of(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def final() -> list[tuple[str, str]]:
    """Return the instructions of the last stage, which is what runs."""
    found = instructions()
    return found[max(index for index, (name, _) in enumerate(found) if name == "FROM") :]


def copied(stage: list[tuple[str, str]]) -> set[str]:
    """Return the files and folders of the project that are copied."""
    copies = [rest for name, rest in stage if name == "COPY" and "--from" not in rest]
    return {word.removeprefix("./") for rest in copies for word in rest.split()[:-1]}


def files_of_the_image() -> set[str]:
    return copied(final())


def test_bases_are_named_by_an_exact_version() -> None:
    images = [base.split()[0] for base in of("FROM")]
    images += [service["image"] for service in services().values()]
    for image in images:
        assert re.fullmatch(r"[a-z-]+:\d+\.\d+\.\d+(-[a-z-]+)?(@sha256:[0-9a-f]{64})?", image), image


def test_the_image_runs_as_nobody_special_from_its_first_process() -> None:
    stage = dict(final())
    user, group = stage["USER"].split(":")
    assert int(user) >= 1000
    assert int(group) >= 1000
    assert [name for name, _ in final()].index("USER") < [name for name, _ in final()].index("CMD")
    assert stage["ENTRYPOINT"].startswith('["/usr/bin/tini"')
    assert stage["STOPSIGNAL"] == "SIGTERM"
    assert "/api/v1/health" in stage["HEALTHCHECK"]
    assert stage["VOLUME"] == "/data"
    assert "AVATAR_CONFIG=production" in stage["ENV"]


def test_nothing_is_fetched_into_the_image_but_by_the_package_managers() -> None:
    assert not of("ADD")
    for command in of("RUN"):
        assert not re.search(r"\b(curl|wget|git|chmod 777|sudo)\b|\|\s*(ba)?sh\b", command), command
        assert "pip install" not in command or "-c /build/constraints.txt" in command
        assert "apt-get install" not in command or "--no-install-recommends" in command


def test_no_secret_is_in_the_image_or_the_compose_file() -> None:
    assert not [rest for name in ("ENV", "ARG") for rest in of(name) if SECRET.search(rest)]
    for service in services().values():
        assert not [key for key in service.get("environment", {}) if SECRET.search(key)]
    ignored = (ROOT / ".gitignore").read_text().split()
    assert any(fnmatch.fnmatch(services()["app"]["env_file"], pattern) for pattern in ignored)


def test_all_that_runs_is_copied_and_nothing_else_can_be() -> None:
    rules = (FOLDER / "Dockerfile.dockerignore").read_text().split("\n")
    rules = [rule for rule in rules if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied(instructions())
    assert all((ROOT / name).exists() for name in copied(instructions()))


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    return found


@pytest.mark.parametrize("name", ["app", "nginx"])
def test_a_container_can_change_nothing_but_its_data(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].split(":")[0]) > 0
    assert service["pids_limit"] > 0
    assert service["tmpfs"]
    assert service["stop_grace_period"]
    assert not {"privileged", "pid", "ipc", "devices"} & set(service)
    assert not [volume for volume in service["volumes"] if "docker.sock" in volume]


def test_the_containers_fit_the_settings_and_the_configuration_of_nginx() -> None:
    app, nginx = services()["app"], services()["nginx"]
    conf = (ROOT / "configs" / "nginx.conf").read_text()
    assert f"location {app['environment']['AVATAR_HTTP__ACCEL_PREFIX']} {{" in conf
    assert nginx["network_mode"] == "service:app", "so that 127.0.0.1:5000 is the service"
    assert "server 127.0.0.1:5000" in conf
    assert [volume.split(":")[1:] for volume in nginx["volumes"]] == [
        ["/etc/nginx/nginx.conf", "ro"],
        ["/var/lib/live-avatar", "ro"],
    ]
    assert "alias /var/lib/live-avatar/results/;" in conf
    written = {path for path in ("/var/lib/nginx", "/var/log/nginx", "/run") if f" {path}/" in conf}
    assert written <= {mount.partition(":")[0] for mount in nginx["tmpfs"]}
    assert nginx["user"].split(":")[1] == app["user"].split(":")[1], "the group that may read the data"
