"""Sound of sound and video files: decoded from any moment, and written as AAC in step with a video."""

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler

from .arguments import whole_number
from .frame_sources import decode_packets, open_media, video_stream


# FFmpeg's names for so many channels in the order of WAV files.
_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0(side)", 6: "5.1", 7: "6.1", 8: "7.1"}
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)


class Sound:
    """
    Decoded samples `(C, n)` float32 at one rate, of one channel or two as the source has (more are mixed to two), from
    `start` seconds after the file's video begins (or after the sound does, in a file without video); silence where the
    sound begins later.
    """

    def __init__(self, source: "Path | tuple", rate: int, start: float):
        self._source, self._rate, self._start = source, rate, start

    def _frames(self) -> Iterator[tuple[float, AudioFrame]]:
        if isinstance(self._source, tuple):
            samples, rate = self._source
            layout = _LAYOUTS[len(samples)]
            for first in range(0, samples.shape[1], rate):
                # Interleaved, since PyAV cannot fill frames of eight planes.
                interleaved = np.ascontiguousarray(samples[:, first : first + rate].T).reshape(1, -1)
                frame = AudioFrame.from_ndarray(interleaved, "flt", layout)
                frame.sample_rate = rate
                yield first / rate, frame
            return
        with open_media(self._source, "audio", "sound file") as container:
            stream, origin = audio_stream(container, self._source), time_origin(container)
            for frame in decode_packets(container, stream, self._source):
                yield float((frame.pts or 0) * stream.time_base) - origin, frame

    def chunks(self) -> Iterator[np.ndarray]:
        skip = None
        for time, frame in self._frames():
            if skip is None:
                layout = "mono" if frame.layout.nb_channels == 1 else "stereo"
                resampler = AudioResampler(format="fltp", layout=layout, rate=self._rate)
                skip = round((self._start - time) * self._rate)
                if skip < 0:
                    yield np.zeros((len(resampler.layout.channels), -skip), dtype=np.float32)
                    skip = 0
            frame.pts = None
            for resampled in resampler.resample(frame):
                chunk = resampled.to_ndarray()[:, skip:]
                skip = max(0, skip - resampled.samples)
                yield chunk
        if skip is not None:
            for resampled in resampler.resample(None):
                yield resampled.to_ndarray()[:, skip:]
                skip = max(0, skip - resampled.samples)


def audio_stream(container, path: Path):
    """The first sound stream. Raises `ValueError` when the file has none."""
    if not container.streams.audio:
        raise ValueError(f"`audio` has no sound: {path}")
    return container.streams.audio[0]


def time_origin(container) -> float:
    """Seconds at which a file's picture begins, or its sound where there is no picture."""
    stream = video_stream(container) or container.streams.audio[0]
    return float((stream.start_time or 0) * stream.time_base)


def check_samples(samples, rate) -> tuple[np.ndarray, int]:
    """
    Samples in memory as `(channels, n)` float32 of one to eight channels, and their rate. uint8 (128 is silence), int16 and
    int32 are scaled to [-1, 1); floating-point values are taken as they are. `(n, channels)` and a batch of one are taken,
    too. Raises `ValueError` for another shape or type, other whole numbers among them.
    """
    samples = samples.detach().cpu() if isinstance(samples, torch.Tensor) else samples
    # NumPy has no bfloat16.
    samples = samples.float() if isinstance(samples, torch.Tensor) and samples.is_floating_point() else samples
    samples = np.asarray(samples)
    rate = whole_number("sampling rate", rate)
    samples = samples[None] if samples.ndim == 1 else samples
    samples = samples[0] if samples.ndim == 3 and len(samples) == 1 else samples
    # Sound libraries give (n, channels).
    if samples.ndim == 2 and samples.shape[0] > 2 and samples.shape[0] > samples.shape[1] > 0:
        samples = samples.T
    if samples.ndim != 2 or len(samples) not in _LAYOUTS or samples.shape[1] == 0:
        raise ValueError(
            f"`audio` samples have shape {samples.shape}, but (n,), (channels, n) or (n, channels) is needed."
        )
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype == np.int16:
        samples = samples / 32768
    elif samples.dtype == np.int32:
        samples = samples / 2147483648
    elif not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(
            f"`audio` samples have dtype {samples.dtype}, but uint8, int16, int32 or a floating-point type is needed."
        )
    if not np.isfinite(samples).all():
        raise ValueError("`audio` samples hold values that are not finite (NaN or infinity).")
    return samples.astype(np.float32), rate


def sound_source(source, sampling_rate: int | None = None) -> "Path | tuple[np.ndarray, int]":
    """
    Sound wherever it is taken: a path as it is, or samples with their rate, checked.

    Args:
        source (`str`, `os.PathLike`, `(samples, rate)`, `(rate, samples)`, a `dict` or samples):
            The second pair is Gradio's; the dictionary, with `array` and `sampling_rate`, is that of the library datasets.
        sampling_rate (`int`, *optional*): of samples that come alone.

    Raises:
        ValueError: samples alone where no rate is known, or what `check_samples` declines.
    """
    if isinstance(source, (str, os.PathLike)):
        return Path(source)
    if isinstance(source, dict) and {"array", "sampling_rate"} <= set(source):
        source = (source["array"], source["sampling_rate"])
    if isinstance(source, (tuple, list)) and len(source) == 2 and (np.ndim(source[0]) > 0) != (np.ndim(source[1]) > 0):
        return check_samples(*(source if np.ndim(source[0]) > 0 else source[::-1]))
    if sampling_rate is None:
        raise ValueError(
            f"`audio` is of type {type(source).__name__}, but a path or a pair of samples and sampling rate is needed."
        )
    return check_samples(source, sampling_rate)


def write_sound(output, source: "Path | tuple[np.ndarray, int]", start: float) -> Iterator[None]:
    """
    A coroutine that adds a sound stream to an output container and writes into it. The first `next` adds the stream (all
    streams must be there before the first packet); then it is sent, again and again, the seconds of video written so
    far, and writes the sound up to there, so that memory stays constant and the sound ends with the video.
    """
    if isinstance(source, Path) and start == 0:
        with open_media(source, "audio", "sound file") as container:
            stream = audio_stream(container, source)
            # AAC without a header of its own (.aac, .ts) does not fit these containers as it is.
            if stream.codec_context.name == "aac" and stream.codec_context.extradata:
                yield from _copy_sound(output, container, stream)
                return
    yield from _encode_sound(output, source, start)


def _copy_sound(output, container, template) -> Iterator[None]:
    copied = output.add_stream_from_template(template)
    has_edit_lists = output.format.name != "matroska"
    offset = round(time_origin(container) / template.time_base)
    until = yield
    for packet in container.demux(template):
        if packet.size == 0 or packet.pts is None:
            continue
        packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
        # What is heard before the picture is left out, but for the packet that AAC's decoder needs to begin with; a
        # container without edit lists would begin with that one.
        if packet.pts < -(packet.duration or 0) * has_edit_lists:
            continue
        # Whole packets only: the last one is the one whose middle is still within the video.
        middle = float((packet.pts + (packet.duration or 0) / 2) * template.time_base)
        while middle > until:
            until = yield
        packet.stream = copied
        output.mux(packet)
    while True:
        yield


def _encode_sound(output, source, start: float) -> Iterator[None]:
    if isinstance(source, tuple):
        rate, num_channels = source[1], len(source[0])
    else:
        with open_media(source, "audio", "sound file") as container:
            context = audio_stream(container, source).codec_context
            rate, num_channels = context.sample_rate, context.layout.nb_channels
    rate = rate if rate in _AAC_RATES else 48000
    layout = "mono" if num_channels == 1 else "stereo"
    encoded = output.add_stream("aac", rate=rate, layout=layout)
    written = 0
    until = yield
    for chunk in Sound(source, rate, start).chunks():
        while chunk.shape[1]:
            wanted = round(until * rate) - written
            if wanted <= 0:
                until = yield
                continue
            frame = AudioFrame.from_ndarray(np.ascontiguousarray(chunk[:, :wanted]), "fltp", layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, written, Fraction(1, rate)
            output.mux(encoded.encode(frame))
            written += frame.samples
            chunk = chunk[:, wanted:]
    while True:
        yield


def load_audio(source, sampling_rate: int = 16000) -> np.ndarray:
    """
    Sound as one channel, `(n,)` float32 in [-1, 1].

    Args:
        source (`str`, `os.PathLike`, `(samples, rate)`, `(rate, samples)`, a `dict` or samples):
            A sound or video file, in a video of which sample 0 is where the picture begins; or samples as
            [`check_samples`] takes them, at `rate`, or already at `sampling_rate`.
        sampling_rate (`int`): of what is returned.

    Raises:
        FileNotFoundError, IsADirectoryError: no such file, or a folder.
        ValueError: the file cannot be read or has no sound; samples of a wrong shape, type or range.
    """
    sampling_rate = whole_number("sampling_rate", sampling_rate)
    source = sound_source(source, sampling_rate)
    if isinstance(source, tuple) and source[1] == sampling_rate and len(source[0]) <= 2:
        chunks = [source[0].mean(axis=0)]
    else:
        # The mean of two channels, since the resampler's own mix is 1.4 times as loud and clips.
        chunks = [chunk.mean(axis=0) for chunk in Sound(source, sampling_rate, 0.0).chunks()]
    if not chunks:
        raise ValueError(f"`audio` has no sound: {source}")
    return np.clip(np.concatenate(chunks), -1.0, 1.0)
