"""Settings and the engine table: what wins, what is refused, and that every key is described."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from config_loader import (
    ROOT,
    ConfigError,
    Settings,
    engine_environment,
    environment_names,
    load_engines,
    load_settings,
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment_names():
        monkeypatch.delenv(name, raising=False)


def leaves(values: dict, prefix: str = "") -> dict[str, object]:
    found = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def test_the_default_profile_holds_every_key_with_the_code_s_own_default() -> None:
    told = leaves(yaml.safe_load((ROOT / "configs" / "default.yaml").read_text()))
    known = leaves(Settings.model_validate({}).model_dump(mode="json"))
    assert told.keys() == known.keys()
    loaded = leaves(load_settings().model_dump(mode="json"))
    assert loaded == known


def test_every_key_has_a_twin_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    told = leaves(yaml.safe_load((ROOT / "configs" / "default.yaml").read_text()))
    twins = {"AVATAR_" + key.upper().replace(".", "__") for key in told} - {"AVATAR_LIVE_AVATAR_HOME"}
    assert environment_names() == twins | {"AVATAR_CONFIG", "LIVE_AVATAR_HOME"}
    monkeypatch.setenv("AVATAR_PORT", "5050")
    monkeypatch.setenv("AVATAR_SLOTS__CPU", "3")
    monkeypatch.setenv("AVATAR_INPUTS__FOLDERS", "/a, /b")
    monkeypatch.setenv("AVATAR_ENGINE_ENV_PASSTHROUGH", "ONE,TWO_*")
    monkeypatch.setenv("AVATAR_INPUTS__ALLOWED_NETWORKS", "10.0.0.0/8")
    monkeypatch.setenv("AVATAR_ENGINES__ALLOW_FALLBACK", "false")
    monkeypatch.setenv("LIVE_AVATAR_HOME", "/opt/la")
    loaded = load_settings()
    assert (loaded.port, loaded.slots.cpu, loaded.engines.allow_fallback) == (5050, 3, False)
    assert loaded.inputs.folders == (Path("/a"), Path("/b"))
    assert loaded.engine_env_passthrough == ("ONE", "TWO_*")
    assert [str(network) for network in loaded.inputs.allowed_networks] == ["10.0.0.0/8"]
    assert loaded.live_avatar_home == Path("/opt/la")


def test_the_environment_is_stronger_than_the_profile_and_the_profile_than_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("queue: {max_queued: 5}\nslots: {cpu: 2}\n")
    monkeypatch.setenv("AVATAR_CONFIG", str(profile))
    monkeypatch.setenv("AVATAR_SLOTS__CPU", "7")
    loaded = load_settings()
    assert (loaded.queue.max_queued, loaded.slots.cpu, loaded.port) == (5, 7, 5000)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("AVATAR_PORT", "abc", "port"),
        ("AVATAR_SLOTS__CPU", "-1", "slots.cpu"),
        ("AVATAR_SLOTS__GPU_TYPO", "1", "AVATAR_SLOTS__GPU_TYPO"),
        ("AVATAR_QUEU__MAX_QUEUED", "1", "AVATAR_QUEU__MAX_QUEUED"),
        ("AVATAR_CONFIG", "nowhere", "no profile 'nowhere'"),
        ("AVATAR_ENGINE_ENV_PASSTHROUGH", "A*B", "engine_env_passthrough"),
        ("AVATAR_LOG_LEVEL", "LOUD", "log_level"),
    ],
)
def test_a_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_settings()


def test_an_unknown_key_of_a_profile_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("queue: {max_qeued: 5}\n")
    monkeypatch.setenv("AVATAR_CONFIG", str(tmp_path / "p.yaml"))
    with pytest.raises(ConfigError, match=r"queue\.max_qeued"):
        load_settings()


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1


def test_engines_see_an_allow_list_of_the_environment() -> None:
    loaded = load_settings({"engine_env_passthrough": ["MINE_*"], "live_avatar_home": "/opt/la"})
    given = {"PATH": "/bin", "CUDA_HOME": "/c", "MINE_A": "1", "AWS_SECRET": "x", "LD_PRELOAD": "y", "PYTHONPATH": "z"}
    assert engine_environment(loaded, given) == {
        "PATH": "/bin", "CUDA_HOME": "/c", "MINE_A": "1", "LIVE_AVATAR_HOME": "/opt/la",
    }  # fmt: skip


def test_the_shipped_table_loads_and_its_scripts_exist() -> None:
    table = load_engines(load_settings())
    assert [engine.name for engine in table.engines] == ["live_avatar", "preview"]
    for engine in table.engines:
        for profile in engine.profiles:
            assert (ROOT / profile.script).is_file()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("engines: {a: {profiles: [{name: x}]}}", "script"),
        ("engines: {a: {profiles: [{name: x, script: s, grace: 1}]}}", "grace"),
        ("engines: {a: {profiles: [{name: x, script: s}, {name: x, script: t}]}}", "'x' is used twice"),
        ("engines: {a: 5}", "keys of its own"),
        ("engines: [", "engines.yaml"),
        ("!!python/object/apply:os.system ['true']", "engines.yaml"),
    ],
)
def test_a_bad_table_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "engines.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_engines(load_settings({"engines": {"table": str(tmp_path / "engines.yaml")}}))


def test_a_disabled_engine_is_not_offered(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("engines: {a: {enabled: false, profiles: [{name: x, script: s}]}}")
    assert load_engines(load_settings({"engines": {"table": str(tmp_path / "e.yaml")}})).engines == ()
