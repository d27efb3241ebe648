"""Settings and the engine table: what wins, what is refused, and that every key is described."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

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
from tasks.store import Store
from tests.conftest import NOON


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
    twins = {"AVATAR_" + key.upper().replace(".", "__") for key in told}
    twins -= {"AVATAR_LIVE_AVATAR_HOME", "AVATAR_WORKERS"}
    assert environment_names() == twins | {"AVATAR_CONFIG", "LIVE_AVATAR_HOME", "WEB_CONCURRENCY"}
    monkeypatch.setenv("AVATAR_PORT", "5050")
    monkeypatch.setenv("AVATAR_SLOTS__CPU", "3")
    monkeypatch.setenv("AVATAR_INPUTS__FOLDERS", "/a, /b")
    monkeypatch.setenv("AVATAR_ENGINE_ENV_PASSTHROUGH", "ONE,TWO_*")
    monkeypatch.setenv("AVATAR_INPUTS__ALLOWED_NETWORKS", "10.0.0.0/8")
    monkeypatch.setenv("AVATAR_ENGINES__ALLOW_FALLBACK", "false")
    monkeypatch.setenv("LIVE_AVATAR_HOME", "/opt/la")
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    loaded = load_settings()
    assert (loaded.port, loaded.slots.cpu, loaded.engines.allow_fallback) == (5050, 3, False)
    assert loaded.inputs.folders == (Path("/a"), Path("/b"))
    assert loaded.engine_env_passthrough == ("ONE", "TWO_*")
    assert [str(network) for network in loaded.inputs.allowed_networks] == ["10.0.0.0/8"]
    assert loaded.live_avatar_home == Path("/opt/la")
    assert loaded.workers == 4


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


def test_the_production_profile_never_makes_a_preview_of_what_was_not_asked_for_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AVATAR_CONFIG", "production")
    told, default = (leaves(found.model_dump(mode="json")) for found in (load_settings(), Settings.model_validate({})))
    differs = {key: value for key, value in told.items() if value != default[key]}
    assert differs == {"env": "production", "auth.enabled": True, "engines.allow_fallback": False}


def test_an_unknown_key_of_a_profile_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("queue: {max_qeued: 5}\n")
    monkeypatch.setenv("AVATAR_CONFIG", str(tmp_path / "p.yaml"))
    with pytest.raises(ConfigError, match=r"queue\.max_qeued"):
        load_settings()


def test_a_misspelt_variable_is_refused_and_one_of_the_client_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVATAR_URL", "http://127.0.0.1:5000")
    monkeypatch.setenv("AVATAR_API_KEY", "la_0_0")
    load_settings()
    monkeypatch.setenv("AVATAR_QEUE__MAX_QUEUED", "5")
    with pytest.raises(ConfigError, match="AVATAR_QEUE__MAX_QUEUED"):
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


GOOD = """\
engines:
  first:
    title: First
    profiles:
      - &base
        name: one
        script: scripts/preview.sh
        gpus: 1
        builds:
          - {capability: 8.9, base_gib: 40}
          - base_gib: 72
        oom_sizes: [688*368, 384*256]
        progress:
          phases:
            generating: '^go$'
          step: '(\\d+)/'
      - <<: *base
        name: two
        gpus: 4
  second:
    notes:
      code: text
    profiles: [{name: x, script: scripts/preview.sh}]
"""
"""A table without a mistake; each case below makes one."""


def table_error(folder: Path, text: str) -> str:
    (folder / "engines.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_engines(load_settings({"engines": {"table": str(folder / "engines.yaml")}}))
    return str(caught.value)


def test_the_table_of_the_cases_is_good_but_for_their_mistakes(tmp_path: Path) -> None:
    (tmp_path / "engines.yaml").write_text(GOOD)
    table = load_engines(load_settings({"engines": {"table": str(tmp_path / "engines.yaml")}}))
    assert table.names == [("first", "one"), ("first", "two"), ("second", "x")]
    assert [(note.code, note.message) for note in table.engines[1].notes] == [("code", "text")]


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "words"),
    [
        ("base_gib: 72", "base_gib: much", 11, "first.profiles[0].builds[1].base_gib", "should be a valid number"),
        ("{capability: 8.9, base", "{capability: x, base", 10, "first.profiles[0].builds[0].capability", "number"),
        ("gpus: 1", "gpu: 1", 8, "first.profiles[0].gpu", "Unexpected keyword"),
        ("name: two", "nam: two", 18, "first.profiles[1].nam", "Unexpected keyword"),
        ("        gpus: 4", "        gpus: []", 19, "first.profiles[1].gpus", "valid integer"),
        ("        gpus: 4\n", "        gpus: 0\n", 17, "first.profiles[1]", "builds are for profiles with gpus"),
        ("[688*368,", "[1*1,", 12, "first.profiles[0].oom_sizes[0]", "no such size: 1*1"),
        ("'^go$'", "'(go'", 15, "first.profiles[0].progress.phases.generating", "'(go' is no regular expression"),
        ("'(\\d+)/'", "'['", 16, "first.profiles[0].progress.step", "'[' is no regular expression"),
        ("generating: '^", "dancing: '^", 15, "first.profiles[0].progress.phases.dancing.[key]", "'generating'"),
        ("name: two", "name: one", 17, "first.profiles[1]", "'one' is used twice, first by profiles[0]"),
        ("{name: x, script: scripts/preview.sh}", "{name: x}", 23, "second.profiles[0].script", "required"),
        ("x, script: scripts/preview.sh", "x, script: none.sh", 23, "second.profiles[0].script", "no such file"),
        ("x, script: scripts/preview.sh", "x, script: README.md", 23, "second.profiles[0].script", "not executable"),
        ("code: text", "code: [text]", 22, "second.notes.code.message", "valid string"),
        ("    title: First", "    title: First\n    name: x", 4, "first.name", "is its key"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_table_is_told_by_line_and_key(
    tmp_path: Path, old: str, new: str, line: int, key: str, words: str
) -> None:
    assert GOOD.count(old) >= 1
    told = table_error(tmp_path, GOOD.replace(old, new, 1))
    first = told.split("; ")[0]
    assert first.startswith(f"engines.yaml:{line}: engines.{key}: "), told
    assert words in first


def test_a_mistake_that_a_merge_key_brings_is_told_where_it_was_written(tmp_path: Path) -> None:
    told = table_error(tmp_path, GOOD.replace("script: scripts/preview.sh", "script: [no]", 1)).split("; ")
    assert [text.partition(": Input")[0] for text in told] == [
        f"engines.yaml:7: engines.first.profiles[{index}].script" for index in (0, 1)
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("engines:\n  a:\n    title: x\n    title: y\n", "engines.yaml:4: the key 'title' stands twice in one mapping"),
        ("engines:\n  a: {}\n  a: {}\n", "engines.yaml:3: the key 'a' stands twice in one mapping"),
        ("# nothing\n\nengines: []\n", "engines.yaml:3: engines: Input should be a valid dictionary"),
        ("# nothing\n\nengines:\n", "engines.yaml:3: engines: Input should be a valid dictionary"),
        ("engines: {}", "engines.yaml:1: engines: Dictionary should have at least 1 item"),
        ("", "engines.yaml:1: engines: Field required"),
        ("engnes: {a: {}}", "engines.yaml:1: engines: Field required; engines.yaml:1: engnes: Extra inputs are not"),
        ("- engines", "engines.yaml:1: : Input should be a valid dictionary"),
        ("engines:\n  a: 5", "engines.yaml:2: engines.a: Input should be a dictionary"),
        ("engines:\n  5: {profiles: []}", "engines.yaml:2: engines.5.[key]: Input should be a valid string"),
        ("engines:\n  a: [", "engines.yaml:2: while parsing a flow node"),
        ("engines:\n  a: *nobody", "engines.yaml:2: found undefined alias 'nobody'"),
        ("engines:\n  ? [a]\n  : b", "engines.yaml:2: while constructing a mapping found unhashable key"),
        ("!!python/object/apply:os.system ['true']", "engines.yaml:1: could not determine a constructor"),
        ("engines: \x07", "engines.yaml:1: unacceptable character"),
    ],
)
def test_a_table_that_is_none_is_told_by_line(tmp_path: Path, text: str, told: str) -> None:
    assert table_error(tmp_path, text).startswith(told)


def test_a_key_that_stands_twice_in_a_settings_profile_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "p.yaml").write_text("port: 1\nqueue: {max_queued: 5}\nport: 2\n")
    monkeypatch.setenv("AVATAR_CONFIG", str(tmp_path / "p.yaml"))
    with pytest.raises(ConfigError, match=r"p\.yaml:3: the key 'port' stands twice"):
        load_settings()


def test_a_disabled_engine_is_not_offered(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("engines: {a: {enabled: false, profiles: [{name: x, script: s}]}}")
    assert load_engines(load_settings({"engines": {"table": str(tmp_path / "e.yaml")}})).engines == ()


@pytest.mark.parametrize(
    "url",
    [
        "garbage", "sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file:x.db?uri=true", "sqlite:///x.db?a=b",
        "mysql://u:canary@h/x", "oracle+x://", "sqlite+nothing:///x.db", "postgresql://u:canary@h:port/x", "://",
        "postgresql://u:canary@h/x", "sqlite:///~nobody_is_called_this/x.db",
    ],
)  # fmt: skip
def test_a_database_that_not_all_processes_could_open_is_refused_in_words(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^settings: database_url: [^\n]+$") as refused:
        load_settings({"database_url": url})
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize("name", ["AVATAR_DATA_DIR", "LIVE_AVATAR_HOME"])
def test_a_home_folder_of_nobody_is_refused_in_words(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "~nobody_is_called_this/x")
    with pytest.raises(ConfigError, match="~nobody_is_called_this is nobody's home folder here"):
        load_settings()


def test_a_database_is_the_same_file_for_a_runner_that_works_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("x/avatar.db", "~/x/avatar.db", f"{tmp_path}/x/avatar.db"):
        assert load_settings({"database_url": f"sqlite:///{given}"}).database_url == f"sqlite:///{tmp_path}/x/avatar.db"


def test_engines_find_the_checkout_wherever_they_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given, found in (("../LiveAvatar", f"{tmp_path}/../LiveAvatar"), ("/opt/la", "/opt/la"), ("", None)):
        monkeypatch.setenv("LIVE_AVATAR_HOME", given)
        settings = load_settings()
        assert settings.live_avatar_home == (Path(found) if found else None)
        assert engine_environment(settings, {}).get("LIVE_AVATAR_HOME") == found


def test_an_empty_variable_is_no_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVATAR_DATA_DIR", "")
    with pytest.raises(ConfigError, match="data_dir: Value error, must name a folder"):
        load_settings()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AVATAR_DATA_DIR", "own")
    assert load_settings().data_dir == tmp_path / "own"


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a#b", "ä b", "a@b:c"])
def test_a_data_folder_of_any_name_holds_its_database(tmp_path: Path, name: str) -> None:
    settings = load_settings({"data_dir": str(tmp_path / name)})
    (tmp_path / name).mkdir()
    Store(settings.database_url, settings.data_dir).close()
    assert (tmp_path / name / "avatar.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert load_settings({"database_url": settings.database_url}).database_url == settings.database_url


def times() -> list[str]:
    """Return the names of all settings that are times, or any other number that need not be whole."""
    values = leaves(Settings.model_validate({}).model_dump())
    return [name for name, value in values.items() if isinstance(value, float)]


@pytest.mark.parametrize("name", times())
@pytest.mark.parametrize("number", ["inf", "nan", "1e308", "1e11"])
def test_a_time_that_no_clock_can_tell_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, number: str) -> None:
    monkeypatch.setenv(f"AVATAR_{name.upper().replace('.', '__')}", number)
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        load_settings()


def test_what_is_kept_for_a_century_has_a_date(tmp_path: Path) -> None:
    ages = dict.fromkeys(("results_hours", "inputs_hours", "logs_hours", "uploads_hours"), 876_000)
    policy = load_settings({"retention": {**ages, "records_days": 36_500}}).retention.policy()
    assert policy.expires_at(NOON) is not None
    assert None not in {NOON - age for age in (policy.results, policy.inputs, policy.logs, policy.uploads) if age}


def numbers(value: object, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield where in a document numbers stand."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(inner, (*place, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place


def test_a_number_of_the_table_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    """A grace of `.nan` would never be over, and a margin of 1 divide by nothing where a task is submitted."""
    shipped = json.dumps(yaml.safe_load((ROOT / "configs" / "engines.yaml").read_text()))  # nothing is shared in it
    places = list({(place[1], place[-1]): place for place in numbers(json.loads(shipped))}.values())
    assert len(places) > 15
    for wrong in (float("inf"), float("nan"), -1, -0.5, 1e12):
        for first in range(0, len(places), 5):  # of more than five mistakes the first five are told
            some = places[first : first + 5]
            table = json.loads(shipped)
            for place in some:
                reduce(getitem, place[:-1], table)[place[-1]] = wrong
            (tmp_path / "engines.yaml").write_text(yaml.safe_dump(table))
            with pytest.raises(ConfigError) as refused:
                load_engines(load_settings({"engines": {"table": str(tmp_path / "engines.yaml")}}))
            for place in some:
                assert re.search(rf"{place[0]}\.{place[1]}\S*\b{place[-1]}: ", str(refused.value)), (place, wrong)


@pytest.mark.parametrize("margin", [1, 10])
def test_a_margin_is_a_share(tmp_path: Path, margin: int) -> None:
    shipped = (ROOT / "configs" / "engines.yaml").read_text()
    table = yaml.safe_load(shipped)
    table["engines"]["live_avatar"]["profiles"][0]["builds"][0]["margin"] = margin
    (tmp_path / "engines.yaml").write_text(yaml.safe_dump(table))
    with pytest.raises(ConfigError, match=r"margin: must be between 0 and 0\.99"):
        load_engines(load_settings({"engines": {"table": str(tmp_path / "engines.yaml")}}))


@pytest.mark.parametrize(
    "given",
    [
        {"data_dir": "{}/data", "inputs": {"folders": ["{}"]}},
        {"data_dir": "{}/data", "inputs": {"folders": ["{}/inbox", "{}/data"]}},
        {"data_dir": "{}/data", "inputs": {"folders": ["{}/link"]}},
        {"data_dir": "{}/data", "inputs": {"folders": ["{}/data/results"]}},
        {"data_dir": "{}/data", "inputs": {"folders": ["{}/link/data/tasks/gen_1"]}},
        {"data_dir": "{}/data", "database_url": "sqlite:///{}/db/a.db", "inputs": {"folders": ["{}/db"]}},
    ],
)
def test_a_folder_for_requests_that_holds_the_service_s_own_files_is_refused(
    tmp_path: Path, given: dict[str, Any]
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="name a folder of its own"):
        load_settings(json.loads(json.dumps(given).replace("{}", str(tmp_path))))


def test_a_folder_for_requests_may_lie_in_the_data_folder(tmp_path: Path) -> None:
    loaded = load_settings({"data_dir": str(tmp_path), "inputs": {"folders": [str(tmp_path / "inbox")]}})
    assert loaded.inputs.folders == (tmp_path / "inbox",)
