"""The recording: 16-bit PCM in a WAV file, read in blocks so that an hour costs no more memory than a minute."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.preview.errors import BadInput

Samples = NDArray[np.int16]
RATES = range(4_000, 48_001)

HEADER_BYTES = 44


@contextmanager
def open_recording(path: Path) -> Iterator[Recording]:
    """Give the recording at `path`. Raises BadInput when it is not 16-bit PCM WAV of 1 or 2 channels at 4 to 48 kHz."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
            recording = Recording(stack.enter_context(wave.open(file)), path.stat().st_size - HEADER_BYTES)
        except (OSError, EOFError, wave.Error) as error:
            raise BadInput(f"cannot read the recording as WAV: {error or 'it is cut short'}") from error
        yield recording


class Recording:
    """A WAV file of 1 or 2 channels at up to 48 kHz; `length` is counted in samples of one channel.

    The length is what the file holds, not what its header says: a header may promise 4 GB that never come.
    """

    def __init__(self, file: wave.Wave_read, held_bytes: int) -> None:
        self._wave = file
        self.rate, self.channels = file.getframerate(), file.getnchannels()
        if file.getsampwidth() != 2 or self.channels not in (1, 2) or self.rate not in RATES:
            raise BadInput("the recording is not 16-bit PCM WAV with 1 or 2 channels at 4 to 48 kHz")
        self.length: int = min(file.getnframes(), held_bytes // (2 * self.channels))

    @property
    def seconds(self) -> float:
        return self.length / self.rate

    def read(self, start: int, stop: int) -> Samples:
        """Return samples start..stop as (stop - start, channels); what lies outside the recording is silence."""
        first, last = max(0, min(start, self.length)), max(0, min(stop, self.length))
        self._wave.setpos(first)
        data = self._wave.readframes(last - first)
        held = len(data) // (2 * self.channels)
        samples = np.zeros((stop - start, self.channels), np.int16)
        before = max(0, min(-start, stop - start))
        samples[before : before + held] = np.frombuffer(data, "<i2", held * self.channels).reshape(held, self.channels)
        return samples

    def blocks(self, size: int) -> Iterator[Samples]:
        """Yield the whole recording in blocks of at most `size` samples, shaped (n, channels)."""
        for start in range(0, self.length, size):
            yield self.read(start, min(start + size, self.length))
