"""Decoding a recording of unknown origin and writing it again as 16-bit PCM WAV. Runs in the sandboxed child only.

FFmpeg is given an open file, the one demuxer the bytes were recognised as, a list of decoders, and no protocols, so
that nothing in the file can make it open another. Headers prove nothing: what counts is the samples as they come out.
"""

from __future__ import annotations

import io
import itertools
import wave
from collections.abc import Iterator
from typing import BinaryIO

import av
import av.error
import av.subtitles.stream  # any container may hold subtitles, and PyAV imports this when it meets them

from utils.containers import missing_bytes
from utils.media_kinds import MediaError, MediaLimits

__all__ = ["normalise_audio"]

MIN_RATE, MAX_RATE = 8_000, 48_000
"""Samples a second of what is written; other rates are resampled to the nearer end."""

MIN_SOURCE_RATE, MAX_SOURCE_RATE = 1_000, 768_000
MAX_CHANNELS = 8
MAX_WAV_BYTES = 2**32 - 2**16
"""RIFF counts its bytes in 32 bits."""

CUT_OFF = "the recording is cut off: its end is missing"
MISSING_SHARE = 0.01
"""What may be missing before a recording counts as cut off; some programs write lengths that are a little wrong."""

SAMPLE_BYTES = 2
BATCH_SAMPLES = 32_768

_PCM = ("u8", "s8", "s16le", "s16be", "s24le", "s24be", "s32le", "s32be", "f32le", "f32be", "f64le", "alaw", "mulaw")
CODECS = frozenset({f"pcm_{name}" for name in _PCM}) | {
    "mp3float", "mp3", "aac", "aac_latm", "alac", "vorbis", "opus", "libopus", "libvorbis", "flac", "adpcm_ms",
    "adpcm_ima_wav",
}  # fmt: skip


def normalise_audio(
    source: BinaryIO, destination: BinaryIO, decoder: str, limits: MediaLimits
) -> tuple[float, int, int, int]:
    """Write `source` to `destination` as WAV; return seconds, sample rate, channels and samples (per channel).

    One or two channels (more are mixed down to two), the source's rate within MIN_RATE to MAX_RATE.
    Raises MediaError; FFmpeg's own errors on damaged data pass.
    """
    av.logging.set_level(None)
    size = source.seek(0, io.SEEK_END)
    if missing_bytes(source, size) > MISSING_SHARE * size:
        raise MediaError(CUT_OFF)
    options = {
        "format_whitelist": decoder,
        "protocol_whitelist": "none",
        "codec_whitelist": ",".join(sorted(CODECS)),
    }
    if decoder == "wav":
        options["max_size"] = "65536"  # fewer and larger packets: less of the time goes into Python
    with av.open(source, "r", format=decoder, container_options=options, metadata_errors="ignore") as container:
        stream = _first_audio(container)
        frames = _frames(container, stream)
        rate, channels, samples = _write(_batches(frames), destination, limits)
        # Only FLAC says how long it is without a container around it. Others' durations are guesses.
        declared = (stream.duration or 0) * (stream.time_base or 0) if decoder == "flac" else 0
        if samples < (1 - MISSING_SHARE) * rate * float(declared):
            raise MediaError(CUT_OFF)
    return samples / rate, rate, channels, samples


def _first_audio(container: av.container.InputContainer) -> av.AudioStream:
    if not container.streams.audio:
        raise MediaError("the file has no sound in it")
    stream = container.streams.audio[0]
    context = stream.codec_context
    if context is None or context.name not in CODECS:
        raise MediaError("the sound is stored in a way that is not supported")
    context.thread_count = 1
    return stream


def _frames(container: av.container.InputContainer, stream: av.AudioStream) -> Iterator[av.AudioFrame]:
    """Yield decoded frames, past single damaged packets; raise MediaError when damage is the rule."""
    good = bad = 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            bad += 1
            if bad > 10 + good // 10:
                raise MediaError("the recording is damaged") from None
            continue
        good += len(frames)
        yield from frames
    if not good:
        raise MediaError("the recording holds no sound that can be decoded")


def _check_source(frame: av.AudioFrame) -> None:
    channels = frame.layout.nb_channels
    if channels > MAX_CHANNELS:
        raise MediaError(f"the recording has {channels} channels; at most {MAX_CHANNELS} are accepted")
    if not MIN_SOURCE_RATE <= frame.sample_rate <= MAX_SOURCE_RATE:
        raise MediaError(f"the recording has {frame.sample_rate} samples a second, which no real one has")


def _batches(frames: Iterator[av.AudioFrame]) -> Iterator[av.AudioFrame]:
    """Join frames into larger ones, each of one format: a stream may change its own under way.

    Each call of the resampler costs as much as a thousand samples do, which is a whole frame of MP3: joining more than
    halves the time.
    """
    fifo, shape = av.AudioFifo(), None
    for frame in frames:
        now = (frame.format.name, frame.layout.nb_channels, frame.sample_rate)
        if now != shape:
            _check_source(frame)
            yield from _drain(fifo)
            fifo, shape = av.AudioFifo(), now
        frame.pts = None
        fifo.write(frame)
        if fifo.samples >= BATCH_SAMPLES:
            yield from _drain(fifo)
    yield from _drain(fifo)


def _drain(fifo: av.AudioFifo) -> Iterator[av.AudioFrame]:
    frame = fifo.read() if fifo.samples else None
    if frame is not None:
        yield frame


def _write(batches: Iterator[av.AudioFrame], destination: BinaryIO, limits: MediaLimits) -> tuple[int, int, int]:
    """Write the WAV; return its rate, channels and samples."""
    first = next(batches)
    rate = min(max(first.sample_rate, MIN_RATE), MAX_RATE)
    channels = min(first.layout.nb_channels, 2)
    most = min(int(limits.max_audio_seconds * rate), MAX_WAV_BYTES // (SAMPLE_BYTES * channels))
    samples = 0
    with wave.open(destination, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(SAMPLE_BYTES)
        out.setframerate(rate)
        for frame in _canonical(itertools.chain((first,), batches), rate, "mono" if channels == 1 else "stereo"):
            samples += frame.samples
            if samples > most:
                raise MediaError(f"the recording lasts longer than {most / rate:g} s")
            # The plane is padded for alignment; the samples are its beginning.
            out.writeframesraw(memoryview(frame.planes[0])[: frame.samples * channels * SAMPLE_BYTES])
    if samples < limits.min_audio_seconds * rate:
        least = f"at least {limits.min_audio_seconds:g} s are needed"
        raise MediaError(f"the recording lasts {samples / rate:.3f} s; {least}")
    return rate, channels, samples


def _canonical(batches: Iterator[av.AudioFrame], rate: int, layout: str) -> Iterator[av.AudioFrame]:
    """Convert to interleaved 16-bit samples of `rate` and `layout`."""
    resampler, shape = None, None
    for frame in batches:
        now = (frame.format.name, frame.layout.name, frame.sample_rate)
        if resampler is not None and now != shape:
            yield from resampler.resample(None)
            resampler = None
        resampler, shape = resampler or av.AudioResampler(format="s16", layout=layout, rate=rate), now
        yield from resampler.resample(frame)
    if resampler is not None:
        yield from resampler.resample(None)
