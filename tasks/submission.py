"""A request that was found valid, as a value: what is to be made, and of which media."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.fit import Portrait
from tasks.model import OutputFormat, Priority
from utils.media import AudioFacts, ImageFacts
from utils.plan import VideoPlan, plan_video


@dataclass(frozen=True, slots=True)
class PreparedInput:
    """A canonical PNG or WAV; `sha256` is of the bytes as they were sent."""

    path: Path
    facts: ImageFacts | AudioFacts
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A valid request with its media decoded."""

    tenant: str
    prompt: str
    size: str
    num_clip: int
    sample_steps: int
    output_format: OutputFormat
    seed: int | None
    enable_online_decode: bool
    engine: str
    priority: Priority
    metadata: Mapping[str, str]
    image: PreparedInput
    audio: PreparedInput
    idempotency_key: str | None
    webhook_url: str | None = None
    asked: str = ""
    """The sha256 of the request's words, by which it is known again with its key."""

    def fingerprint(self) -> str:
        """Return the sha256 of what was asked for: the fields and the files' contents, whatever the files' names."""
        fields = {
            "prompt": self.prompt, "size": self.size, "num_clip": self.num_clip, "sample_steps": self.sample_steps,
            "output_format": self.output_format, "seed": self.seed, "enable_online_decode": self.enable_online_decode,
            "engine": self.engine, "priority": int(self.priority), "metadata": dict(self.metadata),
            "image": self.image.sha256, "audio": self.audio.sha256,
        }  # fmt: skip
        if self.webhook_url is not None:  # else the same as before there were webhooks
            fields["webhook_url"] = self.webhook_url
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def portrait(self) -> Portrait:
        """Return the image's sides."""
        image = self.image.facts
        if not isinstance(image, ImageFacts):
            raise TypeError("the image must be an image")
        return Portrait(image.width, image.height)

    def plan(self, size: str) -> VideoPlan:
        """Return what the video will be at a size."""
        image, audio = self.portrait(), self.audio.facts
        if not isinstance(audio, AudioFacts):
            raise TypeError("the audio must be a recording")
        return plan_video(
            size=size, num_clip=self.num_clip, image_width=image.width, image_height=image.height,
            audio_seconds=audio.seconds,
        )  # fmt: skip
