"""The recording: 16-bit PCM in a WAV file, read in blocks so that an hour costs no more memory than a minute."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from engines.preview.errors import BadInput

Samples = NDArray[np.int16]
RATES = range(4_000, 48_001)


class Recording:
    """A WAV file of 1 or 2 channels at up to 48 kHz; `length` is counted in samples of one channel.

    Raises BadInput for anything else. The length is what the file holds, not what its header says: a header may
    promise 4 GB that never come.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("rb")  # noqa: SIM115 (closed by __exit__)
            self._wave = wave.open(self._file)
            self.rate, self.channels = self._wave.getframerate(), self._wave.getnchannels()
            if self._wave.getsampwidth() != 2 or self.channels not in (1, 2) or self.rate not in RATES:
                raise BadInput("the recording is not 16-bit PCM WAV with 1 or 2 channels at 4 to 48 kHz")
            held = (path.stat().st_size - 44) // (2 * self.channels)
            self.length = min(self._wave.getnframes(), held)
        except (OSError, EOFError, wave.Error) as error:
            raise BadInput(f"cannot read the recording as WAV: {error or 'it is cut short'}") from error

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._wave.close()
        self._file.close()

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
