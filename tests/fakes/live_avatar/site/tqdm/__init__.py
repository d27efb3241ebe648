"""A stand-in for tqdm: the same text on the same stream.

The text of the full bar comes twice, once when the last step is done and once, with the line feed, when the bar closes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

WIDTH = 10


class tqdm:
    def __init__(self, iterable: Any = None, desc: str = "", total: int | None = None) -> None:
        self.iterable, self.n = iterable, 0
        self.total = len(iterable) if total is None else total
        self.desc, self.file, self.began = f"{desc}: " if desc else "", sys.stderr, time.monotonic()
        self.show()

    def __iter__(self) -> Iterator[Any]:
        for item in self.iterable:
            yield item
            self.update()
        self.close()

    def update(self, n: int = 1) -> None:
        self.n += n
        self.show()

    def show(self) -> None:
        share = self.n / self.total
        bar = ("█" * round(share * WIDTH)).ljust(WIDTH)
        seconds = time.monotonic() - self.began
        rate = f"{self.n / seconds:.2f}it/s" if self.n else "?it/s"
        spent = f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}<{'00:00' if self.n else '?'}, {rate}"
        self.file.write(f"\r{self.desc}{int(share * 100):3d}%|{bar}| {self.n}/{self.total} [{spent}]")
        self.file.flush()

    def close(self) -> None:
        self.show()
        self.file.write("\n")
        self.file.flush()
