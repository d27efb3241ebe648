"""Finished videos, made here by PyAV: what counts as one, and what is done to it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from utils import video
from utils.file_handler import StorageFull
from utils.video import (
    VideoError,
    VideoFacts,
    VideoStopped,
    inspect_video,
    is_faststart,
    to_faststart,
    to_webm,
    write_poster,
)

FPS = 25
MP4 = ("mp4", "libx264", "aac")
WEBM = ("webm", "libvpx-vp9", "libopus")
KINDS = pytest.mark.parametrize("kind", [MP4, WEBM], ids=["mp4", "webm"])


def make(
    path: Path,
    kind: tuple[str, str, str] = MP4,
    *,
    frames: int = 60,
    size: tuple[int, int] = (128, 96),
    group: int = 20,
    pictures: int = 1,
    sounds: int = 1,
    **options: str,
) -> Path:
    """Write a video: frame n has the grey level 2n, with a moving edge; the sound is a tone of the same length."""
    container, picture_codec, sound_codec = kind
    with av.open(path, "w", format=container, options=options) as file:
        films = [_film(file, picture_codec, size, group) for _ in range(pictures)]
        tones = [file.add_stream(sound_codec, rate=48000, layout="mono") for _ in range(sounds)]
        for film in films:
            for number in range(frames):
                level = np.full((size[1], size[0], 3), 2 * number, np.uint8)
                level[:, : number % size[0]] += 40
                frame = av.VideoFrame.from_ndarray(level, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, FPS)
                file.mux(film.encode(frame))
            file.mux(film.encode(None))
        for tone in tones:
            samples = (np.sin(np.arange(frames * 48000 // FPS) * 0.05) * 9000).astype(np.int16)[None]
            frame_of_sound = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame_of_sound.sample_rate, frame_of_sound.pts = 48000, 0
            file.mux(tone.encode(frame_of_sound))
            file.mux(tone.encode(None))
    return path


def _film(file: av.container.OutputContainer, codec: str, size: tuple[int, int], group: int) -> av.VideoStream:
    # x264 would otherwise put key frames where it sees a new scene.
    options = {"x264-params": "scenecut=0:bframes=0"} if codec == "libx264" else {}
    film = file.add_stream(codec, rate=FPS, options=options)
    film.width, film.height, film.pix_fmt = *size, "yuv420p"
    film.codec_context.gop_size = group
    return film


@KINDS
def test_facts_are_counted(tmp_path: Path, kind: tuple[str, str, str]) -> None:
    path = make(tmp_path / "v", kind)
    codecs = {"mp4": ("h264", "aac"), "webm": ("vp9", "opus")}[kind[0]]
    assert inspect_video(path) == VideoFacts(
        width=128, height=96, fps=25.0, frames=60, duration_seconds=2.4, size_bytes=path.stat().st_size,
        video_codec=codecs[0], audio_codec=codecs[1], container=kind[0],
    )  # fmt: skip


@pytest.mark.parametrize(("frames", "group"), [(1, 20), (2, 1), (61, 60), (60, 250)])
def test_frames_are_counted_whatever_the_groups(tmp_path: Path, frames: int, group: int) -> None:
    assert inspect_video(make(tmp_path / "v", frames=frames, group=group)).frames == frames


@KINDS
@pytest.mark.parametrize("cut", [1, 100, 2000, 0.5, 0.9])
def test_a_cut_video_is_refused(tmp_path: Path, kind: tuple[str, str, str], cut: float) -> None:
    for options in ({}, {"movflags": "+faststart"}) if kind is MP4 else ({},):
        data = make(tmp_path / "v", kind, **options).read_bytes()
        (tmp_path / "cut").write_bytes(data[: len(data) - int(cut if cut >= 1 else cut * len(data))])
        with pytest.raises(VideoError):
            inspect_video(tmp_path / "cut")


def damaged(path: Path, frame: int) -> None:
    """Overwrite the inside of one stored picture."""
    with av.open(path) as file:
        stored = [(packet.pos, packet.size) for packet in file.demux(video=0) if packet.size]
    position, size = stored[frame]
    whole = path.read_bytes()
    noise = np.random.default_rng(3).bytes(size - 20)
    path.write_bytes(whole[: position + 20] + noise + whole[position + size :])


@pytest.mark.parametrize("frame", [0, -20])
def test_damaged_pictures_at_either_end_are_found(tmp_path: Path, frame: int) -> None:
    path = make(tmp_path / "v", size=(320, 256))
    assert inspect_video(path).frames == 60
    damaged(path, frame)
    with pytest.raises(VideoError):
        inspect_video(path)


def test_a_group_of_hours_is_decoded_only_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "v", size=(320, 256), group=1000)
    damaged(path, 40)
    with pytest.raises(VideoError):
        inspect_video(path)
    monkeypatch.setattr(video, "MAX_LAST_FRAMES", 10)
    assert inspect_video(path).frames == 60


@pytest.mark.parametrize(("pictures", "sounds"), [(1, 0), (0, 1), (2, 1), (1, 2)])
def test_a_video_has_one_picture_and_one_sound_stream(tmp_path: Path, pictures: int, sounds: int) -> None:
    path = make(tmp_path / "v", pictures=pictures, sounds=sounds)
    with pytest.raises(VideoError, match=f"{pictures} video and {sounds} audio"):
        inspect_video(path)


@pytest.mark.parametrize("data", [b"", b"text", bytes(5000), b"ffconcat version 1.0\nfile v.mp4\n", b"#EXTM3U\nv.mp4\n",
                                  b"\0\0\0\x18ftypmp42" + bytes(100), b"\x1a\x45\xdf\xa3" + bytes(100)])  # fmt: skip
def test_what_is_no_video_is_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    make(tmp_path / "v.mp4", frames=5)
    (tmp_path / "x.mp4").write_bytes(data)
    with pytest.raises(VideoError) as refused:
        inspect_video(tmp_path / "x.mp4")
    assert "\n" not in str(refused.value)
    assert str(tmp_path) not in str(refused.value)


def test_a_missing_file_is_not_called_a_bad_video(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        inspect_video(tmp_path / "absent")


@KINDS
def test_the_poster_is_the_first_frame_within_its_size(tmp_path: Path, kind: tuple[str, str, str]) -> None:
    write_poster(make(tmp_path / "v", kind, frames=30), tmp_path / "p.jpg", max_side=64)
    with Image.open(tmp_path / "p.jpg") as poster:
        assert (poster.format, poster.size) == ("JPEG", (64, 48))
        assert max(poster.convert("L").getextrema()) < 16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.jpg", "v"]


def test_webm_keeps_every_frame_the_size_and_the_length(tmp_path: Path) -> None:
    source = make(tmp_path / "v", frames=53, size=(130, 94))
    to_webm(source, tmp_path / "w", should_stop=lambda: False)
    facts = inspect_video(tmp_path / "w")
    assert (facts.width, facts.height, facts.frames, facts.fps) == (130, 94, 53, 25.0)
    assert (facts.video_codec, facts.audio_codec, facts.container) == ("vp9", "opus", "webm")
    with av.open(tmp_path / "w") as file:
        levels = [float(frame.to_ndarray(format="gray").mean()) for frame in file.decode(video=0)]
    with av.open(source) as file:
        wanted = [float(frame.to_ndarray(format="gray").mean()) for frame in file.decode(video=0)]
    assert levels == pytest.approx(wanted, abs=6)
    with av.open(tmp_path / "w") as file:
        heard = sum(frame.samples for frame in file.decode(audio=0)) / 48000
    assert heard == pytest.approx(53 / 25, abs=0.06)


def test_a_stopped_conversion_leaves_nothing(tmp_path: Path) -> None:
    asked: list[bool] = []

    def third_time() -> bool:
        asked.append(True)
        return len(asked) >= 3

    with pytest.raises(VideoStopped):
        to_webm(make(tmp_path / "v"), tmp_path / "w", should_stop=third_time)
    assert len(asked) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


def test_faststart_moves_the_index_and_changes_no_packet(tmp_path: Path) -> None:
    source = make(tmp_path / "v")
    assert not is_faststart(source)
    to_faststart(source, tmp_path / "f")
    assert is_faststart(tmp_path / "f")
    assert inspect_video(tmp_path / "f").frames == 60
    assert packets(source) == packets(tmp_path / "f")


def packets(path: Path) -> list[tuple[int, int | None, int | None, bytes]]:
    with av.open(path) as file:
        found = [(packet.stream_index, packet.pts, packet.dts, bytes(packet)) for packet in file.demux() if packet.size]
    return sorted(found, key=lambda packet: (packet[0], packet[2] or 0))


@pytest.mark.parametrize("data", [b"", b"x", b"\0\0\0\0mdat", b"\0\0\0\x08free" * 3, b"\0\0\0\1free" + b"\xff" * 8])
def test_faststart_of_an_odd_file_is_false(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    assert not is_faststart(tmp_path / "x")


Step = Callable[[Path, Path], None]
STEPS: dict[str, Step] = {
    "webm": lambda source, destination: to_webm(source, destination, should_stop=lambda: False),
    "faststart": to_faststart,
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_a_step_that_fails_leaves_nothing_and_never_writes_over(tmp_path: Path, step: Step) -> None:
    source = make(tmp_path / "v", frames=5)
    (tmp_path / "old").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        step(source, tmp_path / "old")
    (tmp_path / "cut").write_bytes(source.read_bytes()[:-500])
    with pytest.raises(VideoError):
        step(tmp_path / "cut", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "old", "v"]
    assert (tmp_path / "old").read_bytes() == b"old"


def test_a_full_disk_is_told_apart_from_a_bad_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = make(tmp_path / "v", frames=5)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull):
        write_poster(source, tmp_path / "p.jpg")
    for step in STEPS.values():
        with pytest.raises(OSError, match="Errno 28"):
            step(source, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["v"]
