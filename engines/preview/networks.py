"""The three networks that find a face: vendored files, checked before use (origins: weights/NOTICE)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np

FOLDER = Path(__file__).parent / "weights"

SHA256 = {
    "face_detection_short_range": "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
    "face_detection_full_range": "99bf9494d84f50acc6617d89873f71bf6635a841ea699c17cb3377f9507cfec3",
    "face_landmark": "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
}


class WrongWeights(Exception):
    """A network's file is missing or is not the one that was shipped."""


def load(name: str, folder: Path = FOLDER) -> cv2.dnn.Net:
    """Return the network `name` (a key of SHA256). Raises WrongWeights."""
    path = folder / f"{name}.tflite"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WrongWeights(f"{path.name} cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != SHA256[name]:
        raise WrongWeights(f"{path.name} is not the shipped file: its SHA-256 differs from the one in networks.py")
    return cv2.dnn.readNetFromTFLite(np.frombuffer(data, np.uint8))
