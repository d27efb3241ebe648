"""`make docs`: write what of the documents follows from the code: settings, alerts, the pictures of the life cycle.

A setting's key, default and meaning come from `configs/default.yaml`, its variable, type and range from
`config_loader.Settings`, its meaning in Chinese from `docs/zh-CN/settings.yaml`; alerts come from
`configs/monitoring/alerts.yml`, in Chinese from `docs/zh-CN/alerts.yaml`. A test compares the files with these.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config_loader import ROOT, Settings
from scripts.life_cycle import life_cycle_svg
from tasks.model import life_cycle_mermaid

SERVICE = "service"
"""The group of the settings that are in none."""

TRANSLATIONS = Path("docs/zh-CN/settings.yaml")
ALERT_TRANSLATIONS = Path("docs/zh-CN/alerts.yaml")
WITH_LIFE_CYCLE = ("README.md", "README.zh-CN.md")
_LIFE_CYCLE = re.compile(r"(<!-- life-cycle -->\n```mermaid\n).*?(\n```\n)", re.DOTALL)
_LINE = re.compile(r"( *)([a-z_]+):(?: [^#]*?| \"[^\"]*\")?(?:\s+# (.*))?")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting; `schema` is what pydantic says of its values."""

    key: str
    default: object
    says: str
    schema: Mapping[str, Any]
    variable: str


@dataclass(frozen=True, slots=True)
class Group:
    """The settings under one key, and what they have in common."""

    key: str
    says: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True, slots=True)
class Language:
    """The words of one page. `kinds` are by what they say, `meanings` by key; English has none, it is the source's."""

    path: Path
    head: str
    columns: str
    none: str
    service: tuple[str, str]
    stop: str
    or_none: str
    joined: str
    kinds: Mapping[str, str]
    meanings: Mapping[str, str]


def groups() -> tuple[Group, ...]:
    """Return all settings in the order of `configs/default.yaml`."""
    text = (ROOT / "configs" / "default.yaml").read_text("utf-8")
    values, schema = yaml.safe_load(text), Settings.model_json_schema(by_alias=False)
    found: dict[str, list[Setting]] = {SERVICE: []}
    says = dict(_comments(text))
    for key, default in _leaves(values):
        group = key.rpartition(".")[0] or SERVICE
        found.setdefault(group, []).append(Setting(key, default, _meaning(says, key), _schema(schema, key), _name(key)))
    return tuple(Group(key, says.get(key, ""), tuple(settings)) for key, settings in found.items())


def _comments(text: str) -> Iterator[tuple[str, str]]:
    """Yield each key of the file with the comment behind it."""
    path: list[str] = []
    for found in filter(None, map(_LINE.fullmatch, text.splitlines())):
        indent, name, comment = found.groups()
        path = [*path[: len(indent) // 2], name]
        yield ".".join(path), comment or ""


def _meaning(says: Mapping[str, str], key: str) -> str:
    return says.get(key, "").partition("; its variable is ")[0]


def _leaves(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{before}{name}.")
        else:
            yield before + name, value


def _schema(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    node: Mapping[str, Any] = schema
    for part in key.split("."):
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
        node = node["properties"][part]
    return node


def _name(key: str) -> str:
    field = Settings.model_fields.get(key)
    alias = field.validation_alias if field else None
    return str(alias) if alias else "AVATAR_" + key.upper().replace(".", "__")


def page(language: Language) -> str:
    """Return the page of all settings in one language."""
    return language.head + "".join(_section(group, language) for group in groups())


def _section(group: Group, language: Language) -> str:
    title, says = language.service if group.key == SERVICE else (f"`{group.key}`", _told(group.key, group, language))
    sentence = says[:1].upper() + says[1:] + language.stop
    rows = "".join(_row(setting, language) for setting in group.settings)
    return f"\n## {title}\n\n{sentence}\n\n{language.columns}\n|---|---|---|---|---|\n{rows}"


def _row(setting: Setting, language: Language) -> str:
    kind, default = _kind(setting.schema, language).replace("|", r"\|"), _shown(setting.default)
    told = f"`{default}`" if default else language.none
    meaning = _told(setting.key, setting, language).replace("|", r"\|")
    return f"| `{setting.variable}` | `{setting.key}` | {told} | {kind} | {meaning} |\n"


def _told(key: str, source: Setting | Group, language: Language) -> str:
    return language.meanings.get(key, source.says)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value in ("", None) else str(value)


def _kind(schema: Mapping[str, Any], language: Language) -> str:
    """Return the type and the range of a value in words."""
    words = language.kinds
    if "anyOf" in schema:
        (inner,) = [choice for choice in schema["anyOf"] if choice.get("type") != "null"]
        return _kind(inner, language) + language.or_none
    if "enum" in schema:
        return language.joined.join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "array":
        item = schema["items"].get("anyOf", [schema["items"]])[0]
        return words[f"list {item.get('format', item['type'])}"]
    if "pattern" in schema:
        return words["pattern"].format(f"`{schema['pattern']}`")
    return words[schema.get("format", schema["type"])] + _range(schema, language)


def _range(schema: Mapping[str, Any], language: Language) -> str:
    bounds = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "minLength", "maxLength")
    told = [language.kinds[name].format(_number(schema[name])) for name in bounds if name in schema]
    return "".join(f"{language.kinds[', ']}{part}" for part in told)


def _number(value: float) -> str:
    power = int(value).bit_length() - 1
    return f"2^{power}" if value == 2**power > 10**9 else f"{value:,}"


def english() -> Language:
    """Return the language that needs no translation."""
    return Language(
        path=Path("docs/configuration.md"), head=_HEAD,
        columns="| variable | key | default | values | meaning |", none="none",
        service=("The service", "The process itself, its address, and where its data lie"), stop=".",
        or_none=", or none", joined=", ", kinds=_KINDS, meanings={},
    )  # fmt: skip


def chinese() -> Language:
    """Return Chinese, from the file of translations."""
    file = yaml.safe_load((ROOT / TRANSLATIONS).read_text("utf-8"))
    return Language(
        path=Path("docs/zh-CN/configuration.md"), head=file["head"], columns=file["columns"], none="无",
        service=(file["service"]["title"], file["service"]["says"]), stop="。", or_none="，可为空", joined="、",
        kinds=file["kinds"], meanings=file["meanings"],
    )  # fmt: skip


def untranslated() -> list[str]:
    """Return the keys of settings and groups that the Chinese page has to tell in English."""
    keys = [key for group in groups() for key in (group.key, *(setting.key for setting in group.settings))]
    return [key for key in keys if key != SERVICE and key not in chinese().meanings]


def outdated_translations() -> list[str]:
    """Return the keys of translations of what is no setting (any more)."""
    keys = {key for group in groups() for key in (group.key, *(setting.key for setting in group.settings))}
    return [key for key in chinese().meanings if key not in keys]


_HEAD = """\
<!-- Made by `make docs` from configs/default.yaml and config_loader.py: change those, not this file. -->

# Settings

[Documents](README.md) · [中文](zh-CN/configuration.md)

[configs/default.yaml](../configs/default.yaml) holds every setting with its meaning, and is the profile for
development. Another profile is merged over it:

| variable | default | meaning |
|---|---|---|
| `AVATAR_CONFIG` | `default` | a profile in `configs/`, or the path of a file of your own |

`AVATAR_CONFIG=production` is the shipped profile for servers: authentication is on, and `engine: auto` never becomes
the preview. Where no other engine can run it is answered 503; `engine: preview` still works.

Each setting has a variable, which is stronger than every file. It is `AVATAR_` and the key in capitals, the parts
joined by two underscores; two have names of their own. Lists are comma-separated. A variable or a key that the service
does not know is an error: it does not start, and says which. Settings are read once, at the start.

Secrets (`auth.jwt_secret`, a password in `database_url` or `limits.redis_url`) belong in an environment file that only
the service's user reads. Engines never see them: of the environment they get an allow-list, which
[the engine contract](../scripts/README.md#what-the-script-gets) names. The launch scripts of Live Avatar have settings
of their own, see [GPU server](gpu-server.md#settings-of-the-launch-scripts).
"""

_KINDS = {
    "integer": "integer", "number": "number", "boolean": "`true` or `false`", "string": "text", "path": "path",
    "password": "secret text", "list string": "list of names", "list path": "list of paths",
    "list integer": "list of integers", "list number": "list of numbers", "pattern": "text like {}",
    "list ipv4network": "list of addresses or networks", "minimum": "{} or more", "exclusiveMinimum": "more than {}",
    "maximum": "at most {}", "exclusiveMaximum": "less than {}", "minLength": "length {} or more",
    "maxLength": "length {} at most", ", ": ", ",
}  # fmt: skip


_ALERTS_HEAD = """\
<!-- Made by `make docs` from configs/monitoring/alerts.yml: change that, not this file. -->

# Alerts

[Documents](README.md) · [中文](zh-CN/alerts.md) · [Monitoring](monitoring.md)

The rules of [configs/monitoring/alerts.yml](../configs/monitoring/alerts.yml). `page` is for someone to look at now,
`ticket` for the next working day. Thresholds are for a service of some GPUs: change what does not fit yours.

| alert | | what is wrong | what to know and do |
|---|---|---|---|
"""


def rules() -> dict[str, Mapping[str, Any]]:
    """Return all alert rules by their names."""
    file = yaml.safe_load((ROOT / "configs" / "monitoring" / "alerts.yml").read_text("utf-8"))
    return {rule["alert"]: rule for group in file["groups"] for rule in group["rules"] if "alert" in rule}


def alerts() -> str:
    """Return the page of all alert rules, with what each is about."""
    return _ALERTS_HEAD + "".join(_alert(rule, summary_of(rule), _description_of(rule)) for rule in rules().values())


def chinese_alerts() -> str:
    """Return the same in Chinese, from the file of translations; a rule that has none is told in English."""
    file, told = alert_translations(), ""
    for name, rule in rules().items():
        meaning = file["rules"].get(name, {})
        told += _alert(rule, meaning.get("says", summary_of(rule)), meaning.get("do", _description_of(rule)))
    return str(file["head"]) + told


def alert_translations() -> Mapping[str, Any]:
    """Return the file of translations: `head`, and `rules` by name, each with `says` and `do`."""
    return dict(yaml.safe_load((ROOT / ALERT_TRANSLATIONS).read_text("utf-8")))


def summary_of(rule: Mapping[str, Any]) -> str:
    """Return what is wrong, the labels and values that Prometheus fills in as *names*."""
    return re.sub(r"\{\{ *\$(?:labels\.)?(\w+)[^}]*\}\}", r"*\1*", " ".join(rule["annotations"]["summary"].split()))


def _description_of(rule: Mapping[str, Any]) -> str:
    return " ".join(rule["annotations"]["description"].split())


def _alert(rule: Mapping[str, Any], *told: str) -> str:
    summary, description = (text.replace("|", r"\|") for text in told)
    return f"| `{rule['alert']}` | {rule['labels']['severity']} | {summary} | {description} |\n"


def with_life_cycle(text: str) -> str:
    """Return a document with the life cycle as the code has it."""
    return _LIFE_CYCLE.sub(lambda found: found[1] + life_cycle_mermaid() + found[2], text)


def files() -> dict[Path, str]:
    """Return what each file that follows from the code should hold, by its path in the project."""
    made = {language.path: page(language) for language in (english(), chinese())}
    made |= {Path("docs/img/life-cycle.svg"): life_cycle_svg(), Path("docs/alerts.md"): alerts()}
    made |= {Path("docs/zh-CN/alerts.md"): chinese_alerts()}
    return made | {Path(name): with_life_cycle((ROOT / name).read_text("utf-8")) for name in WITH_LIFE_CYCLE}


def main() -> int:
    """Write what has changed, and say what lacks a translation."""
    for path, text in files().items():
        before = (ROOT / path).read_text("utf-8") if (ROOT / path).exists() else ""
        (ROOT / path).write_text(text, "utf-8")
        print(f"{path}: {'unchanged' if text == before else 'written'}")
    for key in untranslated():
        print(f"{TRANSLATIONS}: {key} is not translated")
    for name in rules().keys() - alert_translations()["rules"].keys():
        print(f"{ALERT_TRANSLATIONS}: {name} is not translated")
    return 0


if __name__ == "__main__":
    sys.exit(main())
