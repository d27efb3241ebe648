"""Settings: a YAML profile, overridden by the environment, checked once and frozen.

Read at the entry of a process and passed down: nothing below the entries reads `os.environ`. `configs/default.yaml`
holds every key with its meaning; another profile is merged over it, and each key has an `AVATAR_` twin in the
environment, nested keys joined by `__` (`AVATAR_QUEUE__MAX_QUEUED`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from tasks.delivery import WebhookSettings
from tasks.engine_limits import EngineLimits
from tasks.engine_table import read_engine_table
from tasks.folders import Folders as OwnFolders
from tasks.policy import Policy, Quotas
from tasks.profile import EngineTable
from tasks.schema import sqlite_file
from utils.failpoint import FailPoint
from utils.setting_types import (
    DatabaseUrl,
    Folder,
    Folders,
    Hosts,
    HttpsUrl,
    LongSecret,
    MaybeFolder,
    Names,
    Networks,
    Origins,
    sqlite_url,
)
from utils.yaml_lines import FileError, read_document

ROOT = Path(__file__).resolve().parent

ENGINE_ENVIRONMENT = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_*", "NCCL_*", "HF_*", "TORCH*", "PYTORCH_*",
    "TRITON_*", "OMP_NUM_THREADS", "LIVE_AVATAR_*",
)  # fmt: skip
"""Names of the variables that engines see of the service's environment; a trailing `*` stands for any rest."""

_CLIENT_ENVIRONMENT = ("AVATAR_URL", "AVATAR_API_KEY")
"""What client.py reads; the service may be started in the same shell."""

_MOST_ERRORS = 5

_OPEN_TO_ALL = "so that a request could name files of all tenants or the database; name a folder of its own"


class ConfigError(ValueError):
    """The settings or the engine table cannot be used; the text says which key and why."""


_YEAR = 365 * 86_400
_CENTURY_HOURS = 876_000
"""Bounds of times: beyond, a clock, a timer or a date of the system is at its end, and `inf` is no time."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class QueueSettings(_Section):
    max_queued: int = Field(1000, ge=0)


class SlotSettings(_Section):
    cpu: int = Field(1, ge=0)


class GpuSettings(_Section):
    policy: Literal["latency", "throughput"] = "latency"
    patience_seconds: float = Field(600.0, ge=0, le=_YEAR)
    release_seconds: float = Field(60.0, ge=0, le=_YEAR)


class EngineSettings(_Section):
    table: Path = Path("configs/engines.yaml")
    allow_fallback: bool = True


class InputSettings(_Section):
    folders: Folders = ()
    max_image_bytes: int = Field(20 * 2**20, gt=0)
    max_audio_bytes: int = Field(512 * 2**20, gt=0)
    max_image_pixels: int = Field(40_000_000, ge=64 * 64)
    max_audio_seconds: float = Field(10_800.0, ge=0.2, le=_YEAR)
    decode_seconds: float = Field(120.0, gt=0, le=86_400)
    decoders: int = Field(3, ge=1)
    allow_urls: bool = True
    fetch_seconds: float = Field(60.0, gt=0, le=86_400)
    allowed_networks: Networks = ()


class HttpSettings(_Section):
    max_waiters: int = Field(256, ge=0)
    heartbeat_seconds: float = Field(15.0, gt=0, le=3600)
    trusted_proxies: Networks = ()
    trusted_hosts: Hosts = ()
    body_seconds: float = Field(120.0, gt=0, le=86_400)
    accel_prefix: str = Field("", pattern=r"^(/[A-Za-z0-9_-]+/)?$")


class CorsSettings(_Section):
    origins: Origins = ()


class AuthSettings(_Section):
    enabled: bool = False
    allow_anonymous: bool = False
    jwt_secret: LongSecret = SecretStr("")
    jwks_url: HttpsUrl = ""
    issuer: str = ""
    audience: str = ""
    tenant_claim: str = Field("tenant", min_length=1)
    link_seconds: float = Field(3600.0, gt=0, le=_YEAR)

    @property
    def takes_tokens(self) -> bool:
        """Whether a token can be good: there is a secret, or an issuer, to hold it against."""
        return bool(self.jwt_secret.get_secret_value() or self.jwks_url)


class LimitSettings(_Section):
    generate: int = Field(60, ge=1)
    uploads: int = Field(120, ge=1)
    reads: int = Field(1200, ge=1)
    refusals: int = Field(300, ge=1)
    redis_url: SecretStr = SecretStr("")


class MetricsSettings(_Section):
    enabled: bool = True
    allow: Networks = ()


class QuotaSettings(_Section):
    queued_tasks: int = Field(0, ge=0)
    running_tasks: int = Field(0, ge=0)
    stored_bytes: int = Field(0, ge=0)
    video_seconds: int = Field(0, ge=0)

    def policy(self) -> Quotas:
        """Return the same as the store takes it."""
        return Quotas(**self.model_dump())


class DiskSettings(_Section):
    reserve_bytes: int = Field(256 * 2**20, ge=0)
    ballast_bytes: int = Field(16 * 2**20, ge=0)


class RetentionSettings(_Section):
    results_hours: float = Field(168.0, ge=0, le=_CENTURY_HOURS)
    inputs_hours: float = Field(24.0, ge=0, le=_CENTURY_HOURS)
    logs_hours: float = Field(168.0, ge=0, le=_CENTURY_HOURS)
    uploads_hours: float = Field(24.0, ge=0, le=_CENTURY_HOURS)
    records_days: float = Field(90.0, ge=0, le=36_500)
    max_bytes: int = Field(0, ge=0)
    sweep_seconds: float = Field(60.0, gt=0, le=3600)

    def policy(self) -> Policy:
        """Return the same as the sweeper takes it."""
        hours = {name: _span(getattr(self, f"{name}_hours"), 3600) for name in ("results", "inputs", "logs", "uploads")}
        return Policy(
            **hours, records=_span(self.records_days, 86_400), max_bytes=self.max_bytes,
            sweep_every=timedelta(seconds=self.sweep_seconds),
        )  # fmt: skip


def _span(number: float, seconds: int) -> timedelta | None:
    """0 stands for: as long as anything can be."""
    return timedelta(seconds=number * seconds) if number else None


class RunnerLimitSettings(_Section):
    file_bytes: int = Field(64 * 2**30, ge=0, lt=2**63)
    open_files: int = Field(65_536, ge=0, lt=2**31)
    nice: int = Field(5, ge=0, le=19)

    def policy(self) -> EngineLimits:
        """Return the same as the runner takes it."""
        return EngineLimits(**self.model_dump())


class RunnerSettings(_Section):
    max_attempts: int = Field(2, ge=1)
    heartbeat_seconds: float = Field(10.0, gt=0, le=3600)
    lease_seconds: float = Field(120.0, gt=0, le=_YEAR)
    poll_seconds: float = Field(0.25, gt=0, le=60)
    limits: RunnerLimitSettings = RunnerLimitSettings()


class Settings(BaseSettings):
    """Everything that can be set. Field by field described in `configs/default.yaml`."""

    model_config = SettingsConfigDict(
        env_prefix="AVATAR_", env_nested_delimiter="__", enable_decoding=False, frozen=True, extra="forbid",
        nested_model_default_partial_update=True,
    )  # fmt: skip

    env: Literal["development", "production", "test"] = "development"
    host: str = "127.0.0.1"
    port: int = Field(5000, ge=0, le=65535)
    workers: int = Field(1, ge=1, validation_alias="WEB_CONCURRENCY")
    data_dir: Folder = Field(Path("data"), validate_default=True)
    database_url: DatabaseUrl = ""
    database_busy_seconds: float = Field(10.0, gt=0, le=3600)
    live_avatar_home: MaybeFolder = Field(None, validation_alias="LIVE_AVATAR_HOME")
    engine_env_passthrough: Names = ()
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    failpoint: str = ""
    queue: QueueSettings = QueueSettings()
    slots: SlotSettings = SlotSettings()
    gpus: GpuSettings = GpuSettings()
    engines: EngineSettings = EngineSettings()
    inputs: InputSettings = InputSettings()
    http: HttpSettings = HttpSettings()
    cors: CorsSettings = CorsSettings()
    auth: AuthSettings = AuthSettings()
    limits: LimitSettings = LimitSettings()
    metrics: MetricsSettings = MetricsSettings()
    quotas: QuotaSettings = QuotaSettings()
    runner: RunnerSettings = RunnerSettings()
    disk: DiskSettings = DiskSettings()
    retention: RetentionSettings = RetentionSettings()
    webhooks: WebhookSettings = WebhookSettings()

    @model_validator(mode="after")
    def _failpoints_are_for_tests(self) -> Settings:
        if self.failpoint and self.env != "test":
            raise ValueError("failpoint: kills processes of the service, so it is for env: test only")
        if self.failpoint:
            object.__setattr__(self, "failpoint", str(FailPoint.parse(self.failpoint, self.data_dir)))
        return self

    @model_validator(mode="after")
    def _requests_name_no_file_of_the_service(self) -> Settings:
        """Also because opening the database's file past SQLite, and closing it, takes SQLite's locks from a process."""
        database, own = sqlite_file(self.database_url or "sqlite://"), OwnFolders(self.data_dir.resolve())
        for folder in self.inputs.folders:
            for held in [own.data, *([database.resolve()] if database else [])]:
                if held.is_relative_to(folder.resolve()):
                    raise ValueError(f"inputs.folders: {folder} holds {held}, {_OPEN_TO_ALL}")
            for kept in own.parts:
                if folder.resolve().is_relative_to(kept):
                    raise ValueError(f"inputs.folders: {folder} is in {kept}, {_OPEN_TO_ALL}")
        return self

    def model_post_init(self, context: Any) -> None:
        if not self.database_url:
            object.__setattr__(self, "database_url", sqlite_url(self.data_dir / "avatar.db"))

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource, *others: PydanticBaseSettingsSource, **named: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:  # fmt: skip
        # The YAML arrives as init arguments, and the environment is stronger than it.
        return env_settings, init_settings


def load_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read the profile that AVATAR_CONFIG names (default `default`) and the environment into one frozen Settings.

    `overrides` are merged over the profile, under the environment. Raises ConfigError naming the key.
    """
    values = _read_yaml(ROOT / "configs" / "default.yaml")
    chosen = os.environ.get("AVATAR_CONFIG", "default")
    if chosen != "default":
        values = _merge(values, _read_yaml(_profile_path(chosen)))
    values = _merge(values, overrides or {})
    # A field with an alias is filled by its alias only, from whichever source.
    for name, info in Settings.model_fields.items():
        if name in values and info.validation_alias:
            values[str(info.validation_alias)] = values.pop(name)
    try:
        _refuse_unknown_variables(os.environ)
        return Settings(**values)
    except ValidationError as error:
        raise ConfigError(_first_errors(error, "settings")) from error


def load_engines(settings: Settings) -> EngineTable:
    """Read the engine table that the settings name. Raises ConfigError naming the file's line and the key."""
    try:
        return read_engine_table(_from_root(settings.engines.table), ROOT)
    except FileError as error:
        raise ConfigError(str(error)) from error


def engine_environment(settings: Settings, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the part of the service's environment that engines may see: an allow-list plus the configured names."""
    allowed = ENGINE_ENVIRONMENT + settings.engine_env_passthrough
    source = os.environ if environ is None else environ
    kept = {name: value for name, value in source.items() if any(fnmatchcase(name, pattern) for pattern in allowed)}
    if settings.live_avatar_home is not None:
        kept["LIVE_AVATAR_HOME"] = str(settings.live_avatar_home)
    return kept


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    """A misspelt AVATAR_ variable would otherwise be ignored in silence."""
    own = {"AVATAR_CONFIG", *_CLIENT_ENVIRONMENT} | _variables(Settings, "AVATAR_")
    unknown = sorted(name for name in environ if name.startswith("AVATAR_") and name not in own)
    unknown = [name for name in unknown if not name.startswith(("AVATAR_TEST_", "AVATAR_TASK_", "AVATAR_ATTEMPT"))]
    if unknown:
        raise ConfigError(f"unknown setting in the environment: {', '.join(unknown)} (see configs/default.yaml)")


def _variables(model: type[BaseModel], prefix: str) -> set[str]:
    names: set[str] = set()
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names |= _variables(kind, f"{prefix}{name.upper()}__")
        else:
            names.add(f"{prefix}{name.upper()}" if not info.validation_alias else str(info.validation_alias))
    return names


def environment_names() -> set[str]:
    """Return the names of all variables that set something, for the documentation's check."""
    return {"AVATAR_CONFIG"} | _variables(Settings, "AVATAR_")


def _profile_path(chosen: str) -> Path:
    named = ROOT / "configs" / f"{chosen}.yaml"
    if "/" not in chosen and named.is_file():
        return named
    if Path(chosen).is_file():
        return Path(chosen)
    raise ConfigError(f"AVATAR_CONFIG: no profile {chosen!r} in configs/ and no such file")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        loaded = read_document(path).values
    except FileError as error:
        raise ConfigError(str(error)) from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path.name}:1: expected keys and values at the top")
    return loaded


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return merged


def _first_errors(error: ValidationError, where: str) -> str:
    lines = [f"{where}: {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:_MOST_ERRORS]]
    return "; ".join(lines)


def _from_root(path: Path) -> Path:
    return path if path.is_absolute() else ROOT / path
