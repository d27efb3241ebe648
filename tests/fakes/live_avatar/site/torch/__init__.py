"""A stand-in for the parts of torch that the stand-in checkout, and whatever drives it, touch."""

from __future__ import annotations

import types


class OutOfMemoryError(RuntimeError):
    """torch.OutOfMemoryError, by this name in a traceback."""


def _scaled_mm() -> None:
    """Its presence is all that `--fp8` asks for."""


cuda = types.SimpleNamespace(
    set_device=lambda index: None, empty_cache=lambda: None, synchronize=lambda: None, is_available=lambda: True
)
