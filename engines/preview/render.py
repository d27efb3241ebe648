"""Draws the frames in a thread of their own while the caller encodes those that are ready.

cv2 and PyAV release the interpreter lock, so the two really run side by side. The queue is short and holds the
encoder's own frames: memory stays the same however long the video is.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import av

from engines.preview.portrait import Planes

QUEUE = 8


class Scene(Protocol):
    """What can be drawn frame by frame, in order."""

    def draw(self, index: int, out: Planes) -> None:
        """Draw frame `index` over all of `out`."""


FrameMaker = Callable[[], tuple[av.VideoFrame, Planes]]


@contextmanager
def drawn(scene: Scene, frames: int, make: FrameMaker) -> Iterator[Iterator[av.VideoFrame]]:
    """Give the frames 0..frames of `scene` as they become ready, drawn ahead by at most QUEUE.

    An error in the drawing is raised where the frames are taken. Leaving the block ends the drawing thread, also when
    not all frames were taken.
    """
    ready: queue.Queue[av.VideoFrame | BaseException] = queue.Queue(QUEUE)
    cancelled = threading.Event()

    def offer(item: av.VideoFrame | BaseException) -> None:
        while not cancelled.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def draw_all() -> None:
        try:
            for index in range(frames):
                if cancelled.is_set():
                    return
                frame, planes = make()
                scene.draw(index, planes)
                offer(frame)
        except BaseException as error:
            offer(error)

    thread = threading.Thread(target=draw_all, name="draw", daemon=True)
    thread.start()
    try:
        yield _take(ready, frames)
    finally:
        cancelled.set()
        thread.join()


def _take(ready: queue.Queue[av.VideoFrame | BaseException], frames: int) -> Iterator[av.VideoFrame]:
    for _ in range(frames):
        item = ready.get()
        if isinstance(item, BaseException):
            raise item
        yield item
