"""Sound pictures and recordings of every accepted format, and mutants of them.

Half of the changes are blind. The other half know how the file is built: they change one part of it, or the order of
its parts, and put lengths and checksums right again, so that a decoder does not stop at those but sees the change.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from tests.conftest import ROOT
from tests.fuzz.parts import Part, form_of, squeezed

_EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_LARGEST = 2**20
"""Of the files that are mutated; larger ones would only measure the copying."""


def mutants(seed: int, count: int) -> Iterator[tuple[int, str, bytes]]:
    """Make the files, one after the other: number, what it is said to be, bytes. The same for the same seed."""
    chance, whole = random.Random(seed), originals()
    for number in range(1, count + 1):
        kind, data = chance.choice(whole)
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            change = _change_a_part if chance.random() < 0.5 else chance.choice(_BLIND)
            data = change(chance, data, chance.choice(whole)[1])
        if chance.random() < 0.05:
            kind = "audio" if kind == "image" else "image"
        yield number, kind, data


# --- sound files ------------------------------------------------------------------------------------------------------

_PICTURES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("PNG", "RGB", {}), ("PNG", "P", {"transparency": 3}), ("PNG", "I;16", {}), ("PNG", "RGBA", {"save_all": True}),
    ("JPEG", "RGB", {}), ("JPEG", "RGB", {"progressive": True}), ("JPEG", "CMYK", {}),
    ("WEBP", "RGB", {}), ("WEBP", "RGBA", {"lossless": True}), ("GIF", "P", {}), ("BMP", "RGB", {}),
)  # fmt: skip
_SOUNDS = (
    ("wav", "pcm_s16le"), ("wav", "pcm_f32le"), ("wav", "adpcm_ms"), ("flac", "flac"), ("ogg", "libopus"),
    ("mp3", "libmp3lame"), ("mp4", "aac"), ("mp4", "alac"), ("adts", "aac"), ("matroska", "libopus"),
)  # fmt: skip


def originals() -> list[tuple[str, bytes]]:
    """Return the samples in every accepted format, and real portraits and voices where AVATAR_TEST_INPUTS has some."""
    portrait = Image.open(ROOT / "samples" / "portrait.png").convert("RGB").resize((320, 320))
    made = [("image", _picture(portrait, *which)) for which in _PICTURES]
    made += [("audio", _sound(name, codec)) for name, codec in _SOUNDS]
    folder = Path(os.environ.get("AVATAR_TEST_INPUTS", ROOT.parent / "shared" / "inputs"))
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        kind = {".jpg": "image", ".png": "image", ".wav": "audio", ".mp3": "audio"}.get(path.suffix)
        if kind and path.stat().st_size < _LARGEST:
            made.append((kind, path.read_bytes()))
    return made


def _picture(picture: Image.Image, name: str, mode: str, options: dict[str, Any]) -> bytes:
    file = BytesIO()
    changed = picture.convert("L").convert("I;16") if mode == "I;16" else picture.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned
    more = {"append_images": [changed.rotate(9)]} if options.get("save_all") else {}
    told = {"exif": exif} if name in ("PNG", "JPEG", "WEBP") else {}
    changed.save(file, name, **options, **more, **told)
    return file.getvalue()


def _sound(name: str, codec: str) -> bytes:
    """Return two seconds of a sweep."""
    file, rate = BytesIO(), 48_000
    sweep = (np.sin(np.linspace(0, 1, 2 * rate) ** 2 * 8000) * 8000).astype(np.int16)
    with av.open(file, "w", format=name) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(sweep[None], format="s16", layout="mono")
        frame.sample_rate = rate
        fifo, resampler = av.AudioFifo(), av.AudioResampler(stream.format.name, "mono", rate)
        for part in resampler.resample(frame):
            fifo.write(part)
        for part in fifo.read_many(stream.codec_context.frame_size or 1024, partial=True):
            container.mux(stream.encode(part))
        container.mux(stream.encode())
    return file.getvalue()


# --- changes that know the format -------------------------------------------------------------------------------------


def _change_a_part(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """Change one of the parts that a file is made of, and put it together again; blindly where it has no known form."""
    form = form_of(data)
    parts = form.split(data) if form else []
    if form is None or not parts:
        return chance.choice(_BLIND)(chance, data, other)
    theirs = form.split(other) if form_of(other) is form else parts
    at, change = chance.randrange(len(parts)), chance.choice(_OF_PARTS)
    changed = change(chance, parts[at], chance.choice(theirs or parts), form.nests)
    return form.join([*parts[:at], *changed, *parts[at + 1 :]])


def _of_body(chance: random.Random, part: Part, other: Part, nests: frozenset[bytes]) -> list[Part]:
    """Change what is in the part: in a part of parts, one of those; in packed pixels, what was packed."""
    if part.name in nests:
        inner = form_of(part.body, inside=True)
        parts = inner.split(part.body) if inner else []
        if inner and parts:
            at = chance.randrange(len(parts))
            changed = _of_body(chance, parts[at], other, nests)
            return [part.holding(inner.join([*parts[:at], *changed, *parts[at + 1 :]]))]
    change = chance.choice(_BLIND)
    if part.name == b"IDAT" and chance.random() < 0.5:
        return [part.holding(squeezed(part.body, lambda pixels: change(chance, pixels, other.body)))]
    return [part.holding(change(chance, part.body, other.body))]


_OF_PARTS: tuple[Callable[[random.Random, Part, Part, frozenset[bytes]], list[Part]], ...] = (
    _of_body, _of_body, _of_body, _of_body,
    lambda chance, part, other, nests: [],
    lambda chance, part, other, nests: [part] * chance.choice((2, 2, 200)),
    lambda chance, part, other, nests: [part, other],
    lambda chance, part, other, nests: [other, part],
    lambda chance, part, other, nests: [part.holding(other.body)],
)  # fmt: skip


# --- blind changes ----------------------------------------------------------------------------------------------------


def _flip(chance: random.Random, data: bytes, other: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 4, 32, 256))):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _cut(chance: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _lie(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """Write an extreme number where headers are."""
    width, changed = chance.choice((1, 2, 4)), bytearray(data)
    at = chance.randrange(max(1, min(len(data), 256) - width))
    number = chance.choice(_EXTREMES) & (256**width - 1)
    changed[at : at + width] = number.to_bytes(width, chance.choice(("little", "big")))
    return bytes(changed)


def _splice(chance: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: chance.randrange(len(data) + 1)] + other[chance.randrange(len(other) + 1) :]


def _drop(chance: random.Random, data: bytes, other: bytes) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + data[at + chance.choice((1, 7, 512, 4096)) :]


def _repeat(chance: random.Random, data: bytes, other: bytes) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + data[at : at + 512] * chance.choice((2, 16, 256)) + data[at:]


def _wipe(chance: random.Random, data: bytes, other: bytes) -> bytes:
    at, size = chance.randrange(len(data) + 1), chance.choice((4, 64, 4096))
    return data[:at] + chance.choice((b"\0", b"\xff")) * min(size, len(data) - at) + data[at + size :]


def _disguise(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """Put the head of one file onto the body of another."""
    size = chance.choice((4, 12, 64))
    return other[:size] + data[size:]


_BLIND: tuple[Callable[[random.Random, bytes, bytes], bytes], ...] = (
    _flip, _flip, _cut, _lie, _lie, _splice, _drop, _repeat, _wipe, _disguise,
)  # fmt: skip
