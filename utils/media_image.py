"""Decoding a picture of unknown origin and writing it again as plain 8-bit RGB PNG. Runs in the sandboxed child only.

Pillow is told the one format the bytes were recognised as, and sizes are judged before a pixel is decoded. Everything
that is imported later by Pillow on its own is imported here at the top: the sandbox opens no files any more.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from typing import BinaryIO

from PIL import ExifTags, Image, ImageCms, MpoImagePlugin, TiffImagePlugin, WebPImagePlugin

from utils.media_kinds import MediaError, MediaLimits

__all__ = ["normalise_image"]

Image.preinit()
PLUGINS = (MpoImagePlugin, TiffImagePlugin, WebPImagePlugin)
"""Besides those of `preinit`: many phones call MPO a JPEG; EXIF is laid out as TIFF, which itself is never opened."""

EXIF_ORIENTATION = ExifTags.Base.Orientation
MAX_PROFILE_BYTES = 4 << 20
BACKGROUND = (255, 255, 255)
"""What shows through transparent parts: white, as in every viewer a user has looked with."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def normalise_image(source: BinaryIO, destination: BinaryIO, decoder: str, limits: MediaLimits) -> tuple[int, int]:
    """Write `source` to `destination` as RGB PNG, upright, in sRGB, first frame only; return width and height.

    Raises MediaError; Pillow's own errors on damaged data pass.
    """
    warnings.simplefilter("ignore")
    # Pillow's own guard speaks before the size can be told to the user; it is set again below for what follows.
    Image.MAX_IMAGE_PIXELS = None
    if decoder == "PNG":
        _require_whole_png(source)
    with Image.open(source, formats=[decoder]) as opened:
        _check_size(opened.width, opened.height, limits)
        Image.MAX_IMAGE_PIXELS = limits.max_image_pixels
        opened.load()
        picture = _upright(_plain(opened), _orientation(opened))
    # A clean picture: no text chunk, profile, EXIF or comment of the source travels on.
    picture.info = {}
    picture.save(destination, "PNG", compress_level=1)
    return picture.width, picture.height


def _check_size(width: int, height: int, limits: MediaLimits) -> None:
    size = f"the image is {width} x {height} pixels"
    if min(width, height) < limits.min_image_side:
        raise MediaError(f"{size}; each side must have at least {limits.min_image_side}")
    if max(width, height) > limits.max_image_side:
        raise MediaError(f"{size}; no side may have more than {limits.max_image_side}")
    if width * height > limits.max_image_pixels:
        raise MediaError(f"{size}; at most {limits.max_image_pixels} in all are accepted")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise MediaError(f"{size}; one side may be at most {limits.max_aspect:g} times the other")


def _require_whole_png(source: BinaryIO) -> None:
    """Walk the chunks to the closing one: Pillow is content when the last row of pixels is there."""
    position = 8
    while True:
        source.seek(position)
        head = source.read(8)
        length, name = struct.unpack(">I4s", head) if len(head) == 8 else (0, b"")
        source.seek(position + 8 + length)
        if not name or len(source.read(4)) < 4:
            raise MediaError("the image is cut off: its end is missing")
        if name == b"IEND":
            source.seek(0)
            return
        position += 12 + length


def _plain(picture: Image.Image) -> Image.Image:
    """Return `picture` as RGB, transparency over the background, colours brought to sRGB."""
    profile = picture.info.get("icc_profile")
    if picture.has_transparency_data:
        layered = picture.convert("RGBA")
        flat = Image.new("RGB", layered.size, BACKGROUND)
        flat.paste(layered, mask=layered.getchannel("A"))
        return _to_srgb(flat, profile)
    if picture.mode.startswith("I;16"):
        # 16 bits a sample; a plain conversion would clip at 255 and show nearly everything white.
        return picture.point(lambda level: level / 256).convert("L").convert("RGB")
    if picture.mode == "CMYK":
        return _to_srgb(picture, profile).convert("RGB")
    return _to_srgb(picture.convert("RGB"), profile)


def _to_srgb(picture: Image.Image, profile: object) -> Image.Image:
    """Apply an embedded colour profile; one that is odd, damaged or of another kind of picture is left out."""
    if not isinstance(profile, bytes) or not 128 <= len(profile) <= MAX_PROFILE_BYTES:
        return picture
    with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(given):
            return picture
        changed = ImageCms.profileToProfile(picture, given, ImageCms.createProfile("sRGB"), outputMode="RGB")
        return changed or picture
    return picture


def _orientation(picture: Image.Image) -> int:
    # EXIF is parsed from hostile bytes by pure Python with many ways to fail; none is worth a refusal.
    with contextlib.suppress(Exception):
        return int(picture.getexif().get(EXIF_ORIENTATION, 1))
    return 1


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return picture if turn is None else picture.transpose(turn)
