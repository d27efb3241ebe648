"""Good media of every accepted kind become plain PNG and WAV with the right pixels and samples."""

from __future__ import annotations

import io
import os
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageCms

from utils.media import (
    AudioFacts,
    ImageFacts,
    MediaError,
    MediaJob,
    MediaLimits,
    normalise,
    read_facts,
)
from utils.media_kinds import Kind

LIMITS = MediaLimits()
RED, GREEN, BLUE = (250, 10, 10), (10, 200, 10), (10, 10, 250)
ROOT = Path(__file__).resolve().parents[2]


def made(kind: Kind, source: Path, destination: Path) -> Any:
    """Make one medium canonical and return its facts."""
    (outcome,) = normalise([MediaJob(kind, source, destination)], LIMITS)
    assert not isinstance(outcome, MediaError), outcome
    return outcome


def marked(mode: str = "RGB") -> Image.Image:
    """120 x 80, green, with a red block at the top left."""
    picture = Image.new("RGB", (120, 80), GREEN)
    picture.paste(RED, (0, 0, 40, 30))
    return picture.convert(mode)


def stored(picture: Image.Image, kind: str, folder: Path, **options: object) -> Path:
    path = folder / "source"
    picture.save(path, kind, **options)
    return path


def canonical(source: Path) -> Image.Image:
    destination = source.with_suffix(".png")
    destination.unlink(missing_ok=True)
    facts = made("image", source, destination)
    assert read_facts(destination, "image") == facts
    with Image.open(destination) as result:
        result.load()
    assert (result.format, result.mode, result.size) == ("PNG", "RGB", (facts.width, facts.height))
    assert result.info == {}, "something of the source travelled on"
    return result


def close(pixel: object, wanted: tuple[int, int, int], by: int = 12) -> bool:
    return max(abs(a - b) for a, b in zip(pixel, wanted, strict=True)) <= by  # type: ignore[call-overload]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "MPO"])
def test_each_accepted_image_keeps_its_pixels(tmp_path: Path, kind: str) -> None:
    result = canonical(stored(marked(), kind, tmp_path))
    assert result.size == (120, 80)
    assert close(result.getpixel((5, 5)), RED)
    assert close(result.getpixel((100, 70)), GREEN)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_every_colour_mode_of_png_becomes_rgb(tmp_path: Path, mode: str) -> None:
    source = marked(mode)
    result = canonical(stored(source, "PNG", tmp_path))
    assert close(result.getpixel((5, 5)), source.convert("RGB").getpixel((5, 5)))


def test_cmyk_and_progressive_jpeg_are_read(tmp_path: Path) -> None:
    assert close(canonical(stored(marked("CMYK"), "JPEG", tmp_path, progressive=True)).getpixel((5, 5)), RED, 30)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((80, 120), 0x8000, np.uint16))
    assert close(canonical(stored(grey, "PNG", tmp_path)).getpixel((5, 5)), (128, 128, 128), 1)


def test_transparency_shows_white(tmp_path: Path) -> None:
    layered = marked("RGBA")
    layered.putalpha(0)
    assert canonical(stored(layered, "PNG", tmp_path)).getpixel((5, 5)) == (255, 255, 255)
    assert canonical(stored(marked("P"), "GIF", tmp_path, transparency=marked("P").getpixel((5, 5)))).getpixel(
        (5, 5)
    ) == (255, 255, 255)


@pytest.mark.parametrize(
    ("orientation", "size", "red_at"),
    [(1, (120, 80), (5, 5)), (3, (120, 80), (115, 75)), (6, (80, 120), (75, 5)), (8, (80, 120), (5, 115)),
     (2, (120, 80), (115, 5)), (4, (120, 80), (5, 75)), (5, (80, 120), (5, 5)), (7, (80, 120), (75, 115)),
     (0, (120, 80), (5, 5)), (99, (120, 80), (5, 5))],
)  # fmt: skip
def test_the_picture_stands_as_the_camera_was_held(
    tmp_path: Path, orientation: int, size: tuple[int, int], red_at: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    result = canonical(stored(marked(), "JPEG", tmp_path, exif=exif))
    assert result.size == size
    assert close(result.getpixel(red_at), RED)


def test_broken_exif_and_profiles_refuse_nothing(tmp_path: Path) -> None:
    source = stored(marked(), "JPEG", tmp_path, exif=b"Exif\0\0II*\0" + b"\xff" * 300, icc_profile=os.urandom(600))
    assert close(canonical(source).getpixel((5, 5)), RED)


def test_colours_are_brought_to_srgb(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # A profile that calls red blue: exchange the names of two of its colour tables, and its own name.
    swapped = profile.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "xRGB".encode("utf-16-be"))
    assert close(canonical(stored(marked(), "PNG", tmp_path, icc_profile=profile)).getpixel((5, 5)), RED, 2)
    assert close(canonical(stored(marked(), "PNG", tmp_path, icc_profile=swapped)).getpixel((5, 5)), BLUE, 25)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path, kind: str) -> None:
    others = [Image.new("RGB", (120, 80), BLUE)] * 2
    result = canonical(stored(marked(), kind, tmp_path, save_all=True, append_images=others, duration=100))
    assert close(result.getpixel((5, 5)), RED)


def test_markup_behind_or_inside_a_picture_does_not_travel_on(tmp_path: Path) -> None:
    source = stored(marked(), "JPEG", tmp_path, comment=b"<script>alert(1)</script>")
    source.write_bytes(source.read_bytes() + b"<script>alert(2)</script>PK\3\4")
    canonical(source)
    assert b"script" not in source.with_suffix(".png").read_bytes()


@pytest.mark.parametrize("size", [(64, 64), (64, 256), (256, 64)])
def test_the_least_sides_and_the_widest_aspect_are_accepted(tmp_path: Path, size: tuple[int, int]) -> None:
    assert canonical(stored(Image.new("RGB", size), "PNG", tmp_path)).size == size


# -- sound ---------------------------------------------------------------------------------------------------------


def tone(
    path: Path, container: str, codec: str, *, rate: int = 48000, layout: str = "mono", seconds: float = 1.0
) -> Path:
    """A 440 Hz tone of half the full scale."""
    samples = (np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate) * 16000).astype(np.int16)
    with av.open(path, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout, options={"strict": "-2"})
        channels = stream.codec_context.layout.nb_channels
        frame = av.AudioFrame.from_ndarray(np.repeat(samples, channels)[None], format="s16", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def samples_of(path: Path) -> tuple[AudioFacts, np.ndarray]:
    with wave.open(str(path), "rb") as file:
        assert (file.getsampwidth(), file.getcomptype()) == (2, "NONE")
        data = file.readframes(file.getnframes())
        facts = AudioFacts(file.getnframes() / file.getframerate(), file.getframerate(), file.getnchannels(),
                           file.getnframes())  # fmt: skip
    assert path.stat().st_size == 44 + len(data), "the sizes in the head are wrong"
    return facts, np.frombuffer(data, np.int16).reshape(-1, facts.channels)


def loudest_hertz(sound: np.ndarray, rate: int) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(sound))) * rate / len(sound))


@pytest.mark.parametrize(
    ("container", "codec"),
    [("wav", "pcm_s16le"), ("wav", "pcm_s24le"), ("wav", "pcm_f32le"), ("wav", "pcm_mulaw"), ("wav", "pcm_u8"),
     ("wav", "adpcm_ima_wav"), ("mp3", "libmp3lame"), ("ipod", "aac"), ("ipod", "alac"), ("mp4", "aac"),
     ("adts", "aac"), ("ogg", "libopus"), ("ogg", "flac"), ("flac", "flac"), ("webm", "libopus"), ("matroska", "flac")],
)  # fmt: skip
def test_each_accepted_recording_keeps_its_length_and_tone(tmp_path: Path, container: str, codec: str) -> None:
    facts = made("audio", tone(tmp_path / "source", container, codec), tmp_path / "wav")
    written, sound = samples_of(tmp_path / "wav")
    assert facts == written == read_facts(tmp_path / "wav", "audio")
    assert (facts.sample_rate, facts.channels) == (48000, 1)
    assert facts.seconds == pytest.approx(1.0, abs=0.06)
    assert loudest_hertz(sound[:, 0], 48000) == pytest.approx(440, abs=2)
    assert np.abs(sound[4800:-4800]).max() == pytest.approx(16000, rel=0.1)


def test_vorbis_is_read(tmp_path: Path) -> None:
    source = tone(tmp_path / "source", "ogg", "vorbis", layout="stereo")
    assert made("audio", source, tmp_path / "wav").channels == 2


@pytest.mark.parametrize(("rate", "wanted"), [(4000, 8000), (8000, 8000), (11025, 11025), (22050, 22050),
                                              (44100, 44100), (48000, 48000), (192000, 48000)])  # fmt: skip
def test_the_sources_rate_is_kept_within_8_and_48_khz(tmp_path: Path, rate: int, wanted: int) -> None:
    source = tone(tmp_path / "source", "wav", "pcm_s16le", rate=rate)
    facts = made("audio", source, tmp_path / "wav")
    _, sound = samples_of(tmp_path / "wav")
    assert facts.sample_rate == wanted
    assert facts.seconds == pytest.approx(1.0, abs=0.01)
    assert loudest_hertz(sound[:, 0], wanted) == pytest.approx(440, abs=2)


@pytest.mark.parametrize(("layout", "channels"), [("mono", 1), ("stereo", 2), ("2.1", 2), ("5.1", 2), ("7.1", 2)])
def test_more_than_two_channels_are_mixed_down(tmp_path: Path, layout: str, channels: int) -> None:
    source = tone(tmp_path / "source", "wav", "pcm_s16le", layout=layout)
    assert made("audio", source, tmp_path / "wav").channels == channels
    _, sound = samples_of(tmp_path / "wav")
    assert loudest_hertz(sound[:, 0], 48000) == pytest.approx(440, abs=2)


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wav_written_into_a_pipe_counts_by_its_samples(tmp_path: Path, size: int) -> None:
    source = tone(tmp_path / "source", "wav", "pcm_s16le")
    data = source.read_bytes()
    at = data.index(b"data") + 4
    source.write_bytes(data[:at] + size.to_bytes(4, "little") + data[at + 4 :])
    assert made("audio", source, tmp_path / "wav").samples == 48000


def test_samples_of_a_wav_are_kept_bit_for_bit(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(-32768, 32767, (5000, 2), np.int16, endpoint=True)
    with wave.open(str(tmp_path / "source"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(22050)
        file.writeframes(noise.tobytes())
    made("audio", tmp_path / "source", tmp_path / "wav")
    assert np.array_equal(samples_of(tmp_path / "wav")[1], noise)


def test_an_id3_tag_hides_no_format(tmp_path: Path) -> None:
    tag = b"ID3\x04\0\0" + bytes([0, 0, 0x40, 0]) + bytes(0x2000)
    for container, codec in (("flac", "flac"), ("mp3", "libmp3lame"), ("adts", "aac")):
        source = tone(tmp_path / codec, container, codec)
        source.write_bytes(tag + source.read_bytes())
        facts = made("audio", source, tmp_path / f"{codec}.wav")
        assert facts.seconds == pytest.approx(1.0, abs=0.06)


# -- facts of stored files, and the trial inputs -------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"x", b"RIFF", b"\x89PNG\r\n\x1a\n" + bytes(30)])
def test_facts_are_read_of_canonical_files_only(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "f").write_bytes(data)
    for kind in ("image", "audio"):
        with pytest.raises(MediaError):
            read_facts(tmp_path / "f", kind)  # type: ignore[arg-type]
    grey = io.BytesIO()
    Image.new("L", (64, 64)).save(grey, "PNG")
    (tmp_path / "f").write_bytes(grey.getvalue())
    with pytest.raises(MediaError):
        read_facts(tmp_path / "f", "image")


def test_real_portraits_and_voices_become_canonical_together(tmp_path: Path) -> None:
    folder = Path(os.environ.get("AVATAR_TEST_INPUTS", ROOT.parent / "shared" / "inputs"))
    sources = sorted([*folder.glob("*.jpg"), *folder.glob("*.wav")])
    if not sources:
        pytest.skip("no trial inputs: set AVATAR_TEST_INPUTS to a folder of portraits and voices")
    jobs = [
        MediaJob("image" if source.suffix == ".jpg" else "audio", source, tmp_path / f"{source.name}.out")
        for source in sources
    ]
    outcomes = normalise(jobs, LIMITS)
    assert [type(outcome) for outcome in outcomes] == [
        ImageFacts if job.kind == "image" else AudioFacts for job in jobs
    ]
    assert [read_facts(job.destination, job.kind) for job in jobs] == outcomes
