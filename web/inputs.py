"""The two media of a task: from a file part, an upload, a URL or an allowed folder to a canonical PNG and WAV.

All that is being made lies in a folder of the request's own, which is gone when the request is, whatever happens. What
was uploaded is canonical already and is not decoded again; whatever else a request brings is decoded in one child.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from config_loader import InputSettings
from task_manager import TaskManager
from tasks.store import utc_now
from tasks.submission import PreparedInput
from tasks.uploads import Upload
from utils.file_handler import (
    PathRefused,
    TooLarge,
    link_or_copy,
    open_allowed,
    remove_if_possible,
    save_stream,
    stored_name,
    sync,
)
from utils.media import AudioFacts, ImageFacts, MediaError, MediaJob, MediaLimits, normalise
from utils.media_kinds import Kind
from utils.net import FetchError, FetchPolicy, check_url, fetch
from web.body import SentFile
from web.errors import BUSY_RETRY_SECONDS, ApiError, Code, FieldError, Invalid, invalid, too_large
from web.places import AllBusy, Places
from web.tally import Open

DECODER_WAIT_SECONDS = 30.0
"""How long a request waits for one of the decoders before it is told to come again."""

WAITING = FETCHES = 12
"""Requests of one process that wait for a decoder, and those that fetch from a URL: each holds one of the threads that
configs/gunicorn.conf.py has beside those of long polls, and some must be left for all else."""

SUFFIXES: Mapping[Kind, str] = {"image": ".png", "audio": ".wav"}
_UPLOAD = re.compile(r"/uploads/(image|audio)/[a-z0-9]{32}\.(png|wav)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a medium comes from: a file part, or what a request names. `field` is what errors call it."""

    kind: Kind
    field: str
    given: SentFile | str


@dataclass(frozen=True, slots=True)
class _Staged:
    """A medium in the request's folder; `facts` where it is canonical already."""

    source: Source
    path: Path
    sha256: str
    facts: ImageFacts | AudioFacts | None


class Inputs:
    """Prepares media within the limits of the settings; at most `decoders` children of this process at once."""

    def __init__(
        self, settings: InputSettings, manager: TaskManager, during: Callable[[Open], AbstractContextManager[None]],
        *, many_tenants: bool,
    ) -> None:  # fmt: skip
        self._settings, self._manager, self._during = settings, manager, during
        most, half = settings.decoders, 2 if many_tenants else 1
        self._decoders = Places(most, max(1, most - 1) if many_tenants else most, WAITING, WAITING // half)
        self._fetches = Places(FETCHES, FETCHES // half)
        self._limits = MediaLimits(
            max_image_pixels=settings.max_image_pixels, max_audio_seconds=settings.max_audio_seconds,
            wall_seconds=settings.decode_seconds, cpu_seconds=settings.decode_seconds,
        )  # fmt: skip
        self.max_bytes: Mapping[str, int] = {"image": settings.max_image_bytes, "audio": settings.max_audio_bytes}

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Make a folder for one request, and remove it with all that is in it."""
        path = self._manager.folders.scratch / secrets.token_hex(16)
        path.mkdir(mode=0o700)
        try:
            yield path
        finally:
            remove_if_possible(path)  # who was accepted is to be told so; what is left is swept

    def prepare(self, sources: list[Source], folder: Path, tenant: str) -> dict[Kind, PreparedInput]:
        """Return the canonical media, in `folder`. Raises ApiError naming each field at fault, StorageFull."""
        self._refuse_early(sources)
        staged = [self._stage(source, folder, tenant) for source in sources]
        done = self._canonical([item for item in staged if item.facts is None], folder, tenant)
        done += [PreparedInput(item.path, item.facts, item.sha256) for item in staged if item.facts is not None]
        return {"image" if isinstance(item.facts, ImageFacts) else "audio": item for item in done}

    def refuse_large(self, kind: Kind, field: str, sent: SentFile) -> None:
        """Raise ApiError for a file past the limit of its kind."""
        if sent.saved.size_bytes > self.max_bytes[kind]:
            raise too_large(field, str(TooLarge(self.max_bytes[kind])))

    def accept(self, kind: Kind, sent: SentFile, folder: Path, tenant: str) -> Upload:
        """Store an uploaded medium for later requests. Raises ApiError, StorageFull."""
        prepared = self.prepare([Source(kind, "file", sent)], folder, tenant)[kind]
        name = stored_name(SUFFIXES[kind])
        upload = Upload(
            path=f"/uploads/{kind}/{name}", tenant=tenant, kind=kind, sha256=sent.saved.sha256,
            size_bytes=sent.saved.size_bytes, media=asdict(prepared.facts), created_at=utc_now(),
        )  # fmt: skip
        stored = self._manager.folders.uploads / kind / name
        link_or_copy(prepared.path, stored)
        try:
            sync(stored.parent)
            self._manager.store.uploads.add(upload)
        except BaseException:
            remove_if_possible(stored)
            raise
        return upload

    # --- where media come from ---------------------------------------------------------------------------------------

    def _policy(self, kind: Kind) -> FetchPolicy:
        return FetchPolicy(
            self.max_bytes[kind], self._settings.fetch_seconds, allowed_networks=self._settings.allowed_networks
        )

    def _refuse_early(self, sources: list[Source]) -> None:
        """Look at all URLs before anything is fetched for any."""
        errors = []
        for source in sources:
            if isinstance(source.given, str) and _SCHEME.match(source.given):
                if not self._settings.allow_urls:
                    errors.append(FieldError(field=source.field, message="URLs are not allowed here"))
                    continue
                try:
                    check_url(source.given, self._policy(source.kind))
                except FetchError as error:
                    errors.append(FieldError(field=source.field, message=str(error)))
        if errors:
            raise Invalid(*errors)

    def _stage(self, source: Source, folder: Path, tenant: str) -> _Staged:
        target = folder / f"staged-{source.kind}"
        if isinstance(source.given, SentFile):
            return _Staged(source, source.given.path, source.given.saved.sha256, None)
        try:
            if _UPLOAD.fullmatch(source.given):
                return self._stage_upload(source, source.given, target, tenant)
            if _SCHEME.match(source.given):
                with _a_place(self._fetches, tenant, "fetched"):
                    fetch(source.given, target, self._policy(source.kind))
                return _Staged(source, target, _sha256(target), None)
            with open_allowed(self._settings.folders, source.given) as file:
                saved = save_stream(file, target, self.max_bytes[source.kind])
                return _Staged(source, target, saved.sha256, None)
        except (FetchError, PathRefused, TooLarge) as error:
            raise invalid(source.field, str(error)) from None

    def _stage_upload(self, source: Source, path: str, target: Path, tenant: str) -> _Staged:
        upload = self._manager.store.uploads.use(path, tenant)
        if upload is None:
            raise invalid(source.field, "there is no such upload")
        if upload.kind != source.kind:
            raise invalid(source.field, f"this upload is of type {upload.kind}, not {source.kind}")
        try:
            # Linked at once: the stored file may expire while this request is being handled.
            link_or_copy(self._manager.folders.uploads / path.removeprefix("/uploads/"), target)
        except FileNotFoundError:
            raise invalid(source.field, "there is no such upload any more") from None
        facts = ImageFacts(**upload.media) if upload.kind == "image" else AudioFacts(**upload.media)
        return _Staged(source, target, upload.sha256, facts)

    # --- decoding ----------------------------------------------------------------------------------------------------

    def _canonical(self, staged: list[_Staged], folder: Path, tenant: str) -> list[PreparedInput]:
        if not staged:
            return []
        targets = [folder / f"canonical-{item.source.kind}{SUFFIXES[item.source.kind]}" for item in staged]
        jobs = [MediaJob(item.source.kind, item.path, target) for item, target in zip(staged, targets, strict=True)]
        with _a_place(self._decoders, tenant, "decoded"), self._during(Open.DECODER):
            outcomes = normalise(jobs, self._limits)
        errors, prepared = [], []
        for item, target, outcome in zip(staged, targets, outcomes, strict=True):
            if isinstance(outcome, MediaError):
                errors.append(FieldError(field=item.source.field, message=str(outcome)))
            else:
                prepared.append(PreparedInput(target, outcome, item.sha256))
        if errors:
            raise Invalid(*errors)
        return prepared


@contextmanager
def _a_place(places: Places, tenant: str, what: str) -> Iterator[None]:
    try:
        with places.place(tenant, DECODER_WAIT_SECONDS):
            yield
    except AllBusy:
        text = f"too many media are being {what}; try again"
        raise ApiError(Code.BUSY, text, retry_after=BUSY_RETRY_SECONDS) from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
