"""Kinds of values that settings have: how they are written in YAML and in the environment, and what is refused."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

_HOST = re.compile(r"\.?[a-z0-9-]+(\.[a-z0-9-]+)*|\[[0-9a-f:.]+\]")
_ORIGIN = re.compile(r"https?://([a-z0-9-]+(\.[a-z0-9-]+)*|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


def _split(value: object) -> object:
    """Lists come comma-separated from the environment and as lists from YAML."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _passthrough_name(name: str) -> str:
    if not name or "*" in name[:-1] or "=" in name:
        raise ValueError("a variable's name, or the beginning of one followed by a single `*`")
    return name


def _long_secret(secret: SecretStr) -> SecretStr:
    """RFC 7518, 3.2: a key of HS256 has at least as many bits as the hash."""
    if 0 < len(secret.get_secret_value().encode()) < 32:
        raise ValueError("must have 32 bytes or more")
    return secret


def _safe_url(url: str) -> str:
    """Whoever can change the keys on their way can make any token."""
    parts = urlsplit(url)
    local = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")
    if url and not (parts.scheme == "https" and parts.hostname) and not local:
        raise ValueError("must be an https URL")
    return url


def _database_url(url: str) -> str:
    """Return the URL of a database that all processes of the service find, whatever folder they run in."""
    if not url:
        return url
    try:
        made = make_url(url)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        raise ValueError("is not the URL of a database, such as sqlite:////var/lib/avatar/avatar.db") from None
    if made.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise ValueError("must begin with sqlite:///: no other database is supported yet")
    name = made.database or ""
    if name in ("", ":memory:") or name.startswith("file:") or made.query:
        raise ValueError("must name a file, plainly: every process of the service opens it for itself")
    return sqlite_url(_absolute(Path(name)))


def sqlite_url(path: Path) -> str:
    """Return the URL of an SQLite file; a `?` or `%` in its name is a part of the name."""
    return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


def _named(path: object) -> object:
    """An empty variable would stand for the folder in which the service happens to start."""
    if path == "":
        raise ValueError("must name a folder")
    return path


def _absolute(path: Path) -> Path:
    """Engines and runners work in other folders than the one that a relative path was written for."""
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise ValueError(f"{path.parts[0]} is nobody's home folder here") from None


def _host(host: str) -> str:
    if not _HOST.fullmatch(host):
        raise ValueError("a host's name in small letters without a port; `.example.com` stands for all below it")
    return host


def _origin(origin: str) -> str:
    """Browsers send an origin in this one form, without its scheme's own port; anything else would never match."""
    scheme, _, rest = origin.partition("://")
    if not _ORIGIN.fullmatch(origin) or rest.endswith({"http": ":80", "https": ":443"}[scheme]):
        raise ValueError("an exact origin such as https://app.example.com, in small letters, without path or `*`")
    return origin


DatabaseUrl = Annotated[str, AfterValidator(_database_url)]
Names = Annotated[tuple[Annotated[str, AfterValidator(_passthrough_name)], ...], BeforeValidator(_split)]
Folder = Annotated[Path, BeforeValidator(_named), AfterValidator(_absolute)]
MaybeFolder = Annotated[Folder | None, BeforeValidator(lambda path: None if path == "" else path)]
Folders = Annotated[tuple[Path, ...], BeforeValidator(_split)]
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], BeforeValidator(_split)]
Hosts = Annotated[tuple[Annotated[str, AfterValidator(_host)], ...], BeforeValidator(_split)]
Origins = Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], BeforeValidator(_split)]
LongSecret = Annotated[SecretStr, AfterValidator(_long_secret)]
HttpsUrl = Annotated[str, AfterValidator(_safe_url)]
Delays = Annotated[tuple[Annotated[float, Field(ge=0, le=30 * 86_400)], ...], BeforeValidator(_split)]
"""Seconds to wait before the second try, the third, and so on."""
