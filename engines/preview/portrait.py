"""The portrait as the video shows it: opened, fitted to the frame, as YUV planes, with the label.

Frames are planar 4:2:0, which is what the encoder takes: a face that moves is rendered on one full and two quarter
planes (1.5 bytes a pixel) and is never converted again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.preview.errors import BadInput

Pixels = NDArray[Any]
"""uint8; cv2 and numpy do not say so in their types."""

MAX_PIXELS = 64_000_000
PAPER = (255, 255, 255)
"""What transparent pixels of a portrait lie on."""


@dataclass(frozen=True, slots=True)
class Planes:
    """One 4:2:0 picture: y is (height, width); u and v are (height / 2, width / 2); uint8, BT.601 limited range."""

    y: Pixels
    u: Pixels
    v: Pixels

    @classmethod
    def from_rgb(cls, rgb: Pixels) -> Planes:
        """Convert a (height, width, 3) picture whose sides are even."""
        height, width = rgb.shape[:2]
        i420 = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420).reshape(-1)
        luma, chroma = height * width, height * width // 4
        return cls(
            i420[:luma].reshape(height, width),
            i420[luma : luma + chroma].reshape(height // 2, width // 2),
            i420[luma + chroma :].reshape(height // 2, width // 2),
        )

    def copy_to(self, other: Planes) -> None:
        """Write this picture over `other`, which has the same size."""
        other.y[:] = self.y
        other.u[:] = self.u
        other.v[:] = self.v

    def copy(self) -> Planes:
        """Return a picture of its own."""
        return Planes(self.y.copy(), self.u.copy(), self.v.copy())


def open_portrait(path: Path) -> Pixels:
    """Return the PNG at `path` as (height, width, 3) RGB.

    Raises BadInput when it is no PNG, is cut short or has more than MAX_PIXELS pixels.
    """
    try:
        with path.open("rb") as file, Image.open(file, formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadInput(f"the portrait has {image.width} x {image.height} pixels, more than {MAX_PIXELS}")
            return np.asarray(_opaque(image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInput(f"cannot read the portrait as PNG: {error}") from error


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, (*PAPER, 255))
        return Image.alpha_composite(paper, rgba).convert("RGB")
    return image.convert("RGB")


def fit(rgb: Pixels, width: int, height: int) -> Pixels:
    """Return the largest centred part of `rgb` that has the shape of width x height pixels, resized to it."""
    have_height, have_width = rgb.shape[:2]
    scale = max(width / have_width, height / have_height)
    cut_width = max(1, min(have_width, round(width / scale)))
    cut_height = max(1, min(have_height, round(height / scale)))
    left, top = (have_width - cut_width) // 2, (have_height - cut_height) // 2
    part = rgb[top : top + cut_height, left : left + cut_width]
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    fitted: Pixels = cv2.resize(np.ascontiguousarray(part), (width, height), interpolation=how)
    return fitted


def labelled(rgb: Pixels, text: str = "preview") -> tuple[Pixels, tuple[slice, slice]]:
    """Return `rgb` with a small label in its lower right corner, and the rows and columns (even) it takes."""
    height, width = rgb.shape[:2]
    size = max(7, round(min(height, width) / 24))
    scale = cv2.getFontScaleFromHeight(cv2.FONT_HERSHEY_SIMPLEX, max(4, round(size * 0.6)))
    (text_width, text_height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    pad = max(2, size // 3)
    left, top = (
        max(0, value) // 2 * 2 for value in (width - text_width - 3 * pad, height - text_height - below - 3 * pad)
    )
    place = slice(top, height - pad // 2 * 2), slice(left, width - pad // 2 * 2)
    out = rgb.copy()
    out[place] = (out[place] * 0.55).astype(np.uint8)
    where = (left + pad, top + pad + text_height)
    cv2.putText(out, text, where, cv2.FONT_HERSHEY_SIMPLEX, scale, (235, 235, 235), 1, cv2.LINE_AA)
    return out, place
