"""Where the frames of a `media.VideoReader` come from: pictures in memory, or a video file read by its timestamps."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from diffusers.utils import logging
from imageio.v3 import imopen
from PIL import Image, features

from .masks import mask_to_grey
from .pictures import to_rgb
from .video_color import FrameConverter


logger = logging.get_logger(__name__)

# Codecs whose packets hold one shown frame each, so that counting packets counts frames. Others are decoded to count
# (VP8 has packets that show nothing, MPEG-4 has packed ones).
_ONE_FRAME_PER_PACKET = ("h264", "hevc", "vp9", "av1", "mjpeg", "png", "gif")

# What `iterate_frames` holds of a video that it reads backwards: 2 frames of 3840x2160, 10 of 1920x1080.
BACKWARDS_BYTES = 2**26
# Frames that it leaves out are decoded up to this many at a time; over more it seeks.
WIDE_GAP = 32
# Frames a second that cameras and films have.
_USUAL_RATES = tuple(
    Fraction(rate) for rate in ("24000/1001", 24, 25, "30000/1001", 30, 48, 50, "60000/1001", 60, 90, 100, 120, 240)
)


def resampled_indices(num_frames: int, source_rate: Fraction, rate: Fraction) -> np.ndarray | None:
    """For each output frame at `rate` the last source frame at or before its time; `None` when they are the same frames."""
    if rate == source_rate:
        return None
    step = source_rate / rate
    count = -int(-num_frames // step)
    return np.array([i * step.numerator // step.denominator for i in range(count)], dtype=np.int64)


def _floats_to_uint8(values: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ValueError(f"`{name}` holds values that are not finite (NaN or infinity).")
    if values.size and (values.min() < 0 or values.max() > 1):
        raise ValueError(
            f"`{name}` of a floating-point type must be in [0, 1], but spans {values.min():.4g} to {values.max():.4g}."
        )
    return np.round(values.astype(np.float32) * 255).astype(np.uint8)


def _check_pixels(frames: np.ndarray, name: str, layout: str) -> None:
    channels = {"(F, H, W, 3)": -1, "(H, W, 3)": -1, "(F, 3, H, W)": 1}[layout]
    if frames.ndim != layout.count(",") + 1 or frames.shape[channels] != 3:
        raise ValueError(f"`{name}` has shape {tuple(frames.shape)}, but {layout} is needed.")
    if 0 in frames.shape[1:]:
        raise ValueError(f"`{name}` has frames without pixels: its shape is {tuple(frames.shape)}.")
    if frames.dtype != np.uint8 and not np.issubdtype(frames.dtype, np.floating):
        raise ValueError(f"`{name}` has dtype {frames.dtype}, but uint8 or a floating-point type is needed.")


def frames_in_memory(frames, name: str) -> "FramesInMemory":
    """Pictures in memory behind one face; see `VideoReader` for what is taken."""
    if isinstance(frames, FramesInMemory):
        return frames
    frames = [frames] if isinstance(frames, Image.Image) else frames
    if isinstance(frames, torch.Tensor):
        frames = frames.detach().cpu()
        frames = (frames.float() if frames.is_floating_point() else frames).numpy()
        if frames.ndim == 4 and frames.shape[1] == 1:
            frames = mask_to_grey(frames[:, 0])
        elif frames.ndim == 3 and (frames.shape[0] != 3 or frames.dtype == bool):
            frames = mask_to_grey(frames)
        else:
            frames = frames.astype(np.uint8) * 255 if frames.dtype == bool else frames
            _check_pixels(frames, name, "(F, 3, H, W)")
            frames = frames.transpose(0, 2, 3, 1)
        _check_pixels(frames, name, "(F, H, W, 3)")
    elif isinstance(frames, np.ndarray):
        if frames.ndim == 4 and frames.shape[3] == 1:
            frames = mask_to_grey(frames[..., 0])
        elif frames.ndim == 3 and frames.shape[2] not in (3, 4):
            frames = mask_to_grey(frames)
        elif frames.dtype == bool:
            frames = frames.astype(np.uint8) * 255
        _check_pixels(frames, name, "(F, H, W, 3)")
    elif isinstance(frames, (list, tuple)):
        frames = list(frames)
        for index, frame in enumerate(frames):
            if isinstance(frame, torch.Tensor) and (frame.ndim == 2 or frame.shape[0] == 1):
                frame = frame.detach().cpu().reshape(frame.shape[-2:])
                frames[index] = frame = (frame.float() if frame.is_floating_point() else frame).numpy()
            if isinstance(frame, np.ndarray):
                if frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] == 1):
                    frames[index] = frame = mask_to_grey(frame.reshape(frame.shape[:2]))
                elif frame.dtype == bool:
                    frames[index] = frame = frame.astype(np.uint8) * 255
            if isinstance(frame, np.ndarray):
                _check_pixels(frame, f"{name}[{index}]", "(H, W, 3)")
            elif not isinstance(frame, Image.Image):
                raise ValueError(
                    f"`{name}[{index}]` is of type {type(frame).__name__}, but a PIL image or an array (H, W, 3) is needed."
                )
            size = frame.size if isinstance(frame, Image.Image) else frame.shape[1::-1]
            first = frames[0].size if isinstance(frames[0], Image.Image) else frames[0].shape[1::-1]
            if size != first:
                raise ValueError(
                    f"`{name}[{index}]` has size {size[0]}x{size[1]}, but the first frame has {first[0]}x{first[1]}."
                )
    else:
        raise ValueError(
            f"`{name}` is of type {type(frames).__name__}, but a path, a list of PIL images or arrays (H, W, 3), an array "
            "(F, H, W, 3) or a tensor (F, 3, H, W) is needed."
        )
    if len(frames) == 0:
        raise ValueError(f"`{name}` has no frames.")
    for frame in frames:
        # Checked before work begins; converted frame by frame.
        if isinstance(frame, np.ndarray) and frame.dtype != np.uint8:
            _floats_to_uint8(frame, name)
    return FramesInMemory(frames, name)


class FramesInMemory:
    """The source of a `VideoReader` over pictures in memory."""

    path = None
    has_audio = False

    def __init__(self, frames, name: str):
        self._frames, self._name = frames, name
        first = self._picture(0)
        self.height, self.width = first.shape[:2]
        self.num_frames = len(frames)

    def _picture(self, index: int) -> np.ndarray:
        frame = self._frames[index]
        if isinstance(frame, Image.Image):
            return np.array(to_rgb(frame))
        return frame.copy() if frame.dtype == np.uint8 else _floats_to_uint8(frame, self._name)

    def decode(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        for index in indices:
            yield self._picture(index)


def _check_file(path: Path, name: str) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"`{name}` is a folder, but a file is needed: {path}")
    if not path.exists():
        raise FileNotFoundError(f"`{name}` names no file: {path}")


def open_media(path: Path, name: str, kind: str):
    """Opens a file for reading; `name` and `kind` (e.g. "video") are for the errors, which are `OSError` or `ValueError`."""
    _check_file(path, name)
    try:
        return av.open(f"file:{path}", metadata_errors="replace")
    except av.error.FFmpegError as error:
        raise ValueError(f"`{name}` is not a {kind} that can be read ({error.strerror}): {path}") from error


def video_stream(container):
    """The first moving picture: not the cover of a song."""
    return next((s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic), None)


def decode_packets(container, stream, path: Path) -> Iterator:
    """Decoded frames of a stream; a damaged packet is left out with a warning, as players do."""
    warned = False
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            if not warned:
                logger.warning(f"{path} has damaged data near {float((packet.pts or 0) * stream.time_base):.2f} s.")
            warned = True
            continue
        yield from frames


class VideoFile:
    """The source of a `VideoReader` over a file: timestamps of all its frames, and decoding from any of them."""

    def __init__(self, path: Path):
        self.path = str(path)
        self._path = path
        self._open()

    def _open(self) -> None:
        path = self._path
        self._has_times = True
        with open_media(path, "video", "video") as container:
            stream = video_stream(container)
            if stream is None:
                raise ValueError(f"`video` has no video stream: {path}")
            self.has_audio = len(container.streams.audio) > 0
            self.time_base, pixel_aspect = stream.time_base, stream.sample_aspect_ratio
            is_counted = stream.codec_context.name in _ONE_FRAME_PER_PACKET
            packets = [
                (packet.pts, packet.duration or 0)
                for packet in container.demux(stream)
                if packet.size > 0 and not packet.is_discard
            ]
            if any(pts is None for pts, _ in packets):
                # A constant rate is taken, and one tick a frame.
                self._has_times, is_counted = False, False
                self.time_base = 1 / Fraction(stream.average_rate or stream.guessed_rate or 24)
            rates = [rate for rate in (stream.average_rate, stream.guessed_rate) if rate]
        if not packets:
            raise ValueError(f"`video` has zero frames: {path}")
        self._read_first_frame(pixel_aspect)
        if not is_counted:
            packets = [(pts, duration) for pts, duration, _ in self._decoded()]
        self._set_times(packets, rates)

    def _set_times(self, packets: list[tuple[int, int]], rates: list[Fraction]) -> None:
        """Takes timestamp and duration of each frame, in ticks, and the rates that the file states."""
        packets.sort()
        self.times = np.unique(np.array([pts for pts, _ in packets], dtype=np.int64))
        self.num_frames = len(self.times)
        typical = int(np.median(np.diff(self.times))) if self.num_frames > 1 else 0
        self.duration = int(self.times[-1] - self.times[0]) + (packets[-1][1] or typical)
        self._find_rate(rates)

    def _read_first_frame(self, pixel_aspect: Fraction | None) -> None:
        for _, _, frame in self._decoded():
            self._convert = FrameConverter(frame, pixel_aspect)
            self.width, self.height = self._convert.width, self._convert.height
            return
        raise ValueError(f"`video` has zero frames that can be decoded: {self._path}")

    def _find_rate(self, rates: list[Fraction]) -> None:
        """
        A file is of constant rate when no frame is half a frame or more away from that rate's grid. Another one has the
        rate that most of its frames follow each other at, or the next usual one at which no frame is a frame late.
        """
        seconds = (self.times - self.times[0]) * float(self.time_base)
        intervals = np.diff(seconds)
        nominal = None
        if len(intervals):
            # one of them, not the mean of two that may be far apart
            middle = np.quantile(intervals, 0.5, method="lower")
            near = np.abs(intervals / middle - 1) < 0.25
            nominal = 1 / intervals[near].mean()
        for rate in rates:
            # A frame that was dropped makes the average lower than the rate.
            if nominal is None or (
                abs(float(rate) / nominal - 1) < 0.01
                and np.abs(seconds * float(rate) - np.arange(self.num_frames)).max() < 0.5
            ):
                self.rate, self.is_constant_rate = rate, True
                return
        if nominal is None:
            self.rate, self.is_constant_rate = Fraction(24), True
            return
        self.is_constant_rate = False
        closest = min([*rates, *_USUAL_RATES], key=lambda rate: abs(float(rate) - nominal))
        if abs(float(closest) / nominal - 1) > 0.03:
            closest = Fraction(nominal).limit_denominator(1001)
        for rate in [closest, *(rate for rate in _USUAL_RATES if rate > closest)]:
            self.rate = rate
            if np.abs(self._places() - seconds * float(rate)).max() < 1:
                return
        self.rate = Fraction(1 / intervals.min()).limit_denominator(1001)

    def _places(self) -> np.ndarray:
        """The frame of the grid at `rate` at which each frame begins to be shown: the nearest that is free."""
        nearest = np.rint((self.times - self.times[0]) * float(self.time_base * self.rate)).astype(np.int64)
        index = np.arange(self.num_frames)
        return np.maximum.accumulate(nearest - index) + index

    def indices_at(self, rate: Fraction) -> np.ndarray | None:
        """Source frame of each output frame at a constant `rate`, or `None` when they are the same frames."""
        if self.is_constant_rate:
            return resampled_indices(self.num_frames, self.rate, rate)
        if rate == self.rate:
            places = self._places()
            count = max(places[-1] + 1, round(self.duration * self.time_base * rate))
            return np.searchsorted(places, np.arange(count), side="right") - 1
        ticks_per_frame = 1 / (rate * self.time_base)
        # A timestamp is rounded to whole ticks, so half a tick late is in time.
        count = max(1, -((1 - 2 * self.duration) // (2 * ticks_per_frame))) if self.duration else 1
        numerator, denominator = ticks_per_frame.as_integer_ratio()
        ticks = np.array([(2 * i * numerator + denominator) // (2 * denominator) for i in range(int(count))])
        return np.searchsorted(self.times - self.times[0], ticks, side="right") - 1

    def _decoded(self, first: int | None = None) -> Iterator[tuple[int, int, VideoFrame]]:
        """`(timestamp, duration, frame)` in order of presentation, from the frame with timestamp `first` or before it."""
        with open_media(self._path, "video", "video") as container:
            stream = video_stream(container)
            stream.thread_type = "AUTO"
            if first is not None and self._has_times and first > self.times[0]:
                container.seek(int(first), stream=stream, backward=True)
            for index, frame in enumerate(decode_packets(container, stream, self._path)):
                yield (frame.pts, frame.duration or 0, frame) if self._has_times else (index, 1, frame)

    def decode(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        """RGB frames for source indices in ascending order (repeats allowed)."""
        indices = iter(indices)
        index = next(indices, None)
        if index is None:
            return
        decoded = self._decoded(self.times[index])
        upcoming = next(decoded, None)
        if upcoming is None or upcoming[0] > self.times[index]:
            # The container's index led to a later place: decode from the beginning.
            decoded = self._decoded()
            upcoming = next(decoded, None)
        current, picture = None, None
        while index is not None:
            # A frame that the decoder left out is shown as its predecessor, as a player does.
            while upcoming is not None and (current is None or upcoming[0] <= self.times[index]):
                current, picture = upcoming[2], None
                upcoming = next(decoded, None)
            if current is None:
                raise OSError(f"{self._path} could be opened, but no longer read.")
            if picture is None:
                picture = self._convert(current)
            yield picture.copy()
            index = next(indices, None)


class AnimatedPicture(VideoFile):
    """
    The source of a `VideoReader` over a WebP file, still or animated, which FFmpeg does not decode, or an animated AVIF
    file, of which it takes the still picture.
    """

    has_audio = False
    _has_times = True

    def _open(self) -> None:
        self.time_base = Fraction(1, 1000)
        durations = []
        try:
            with Image.open(self._path) as picture:
                for index in range(picture.n_frames):
                    picture.seek(index)
                    picture.load()
                    # Browsers show a frame without a duration for a tenth of a second.
                    durations.append(int(picture.info.get("duration", 0)) or 100)
        except (OSError, ValueError, EOFError, Image.DecompressionBombError) as error:
            raise ValueError(f"`video` is not a video that can be read ({error}): {self._path}") from error
        self.width, self.height = picture.size
        times = np.cumsum([0, *durations[:-1]])
        self._set_times(list(zip(times.tolist(), durations)), [])

    def _decoded(self, first: int | None = None) -> Iterator[tuple[int, int, np.ndarray]]:
        _check_file(self._path, "video")
        with imopen(self._path, "r", plugin="pillow") as file:
            for time, frame in zip(self.times, file.iter(mode="RGBA")):
                yield time, 0, frame

    def _convert(self, frame: np.ndarray) -> np.ndarray:
        return np.array(to_rgb(Image.fromarray(frame)))


def open_video(path: Path) -> VideoFile:
    """The source of a `VideoReader` over a file, by what the file holds and not by its name."""
    _check_file(path, "video")
    with open(path, "rb") as file:
        start = file.read(12)
    is_webp = start[:4] == b"RIFF" and start[8:] == b"WEBP"
    is_avif = start[4:] == b"ftypavis" and features.check("avif")
    return AnimatedPicture(path) if is_webp or is_avif else VideoFile(path)


def frame_index(driver_frames: int, num_frames: int | None, extend: str | None) -> np.ndarray:
    """
    Which frame of the driver each frame of the video takes.

    Args:
        driver_frames (`int`): Frames that the driver has.
        num_frames (`int`, *optional*): Frames asked for; the driver's when `None`.
        extend (`str`, *optional*): What to do when more are asked for than the driver has: `"hold"` the last frame,
            `"loop"` (backwards and forwards, so that nothing jumps) or `"stop"` at the driver's end.

    Returns:
        `np.ndarray` of shape `(num_frames,)`, int64.

    Raises:
        ValueError: When the driver is too short and `extend` is `None`.
    """
    num_frames = driver_frames if num_frames is None else num_frames
    if num_frames <= driver_frames or extend == "stop":
        return np.arange(min(num_frames, driver_frames))
    if extend is None:
        raise ValueError(
            f"`num_frames` is {num_frames}, but the driver has {driver_frames} frames: pass at most that many, or"
            ' `extend="hold"`, `extend="loop"` or `extend="stop"`.'
        )
    return reflect_index(num_frames, driver_frames) if extend == "loop" else hold_index(num_frames, driver_frames)


def hold_index(num_frames: int, driver_frames: int) -> np.ndarray:
    """`0, 1, ..., n - 1, n - 1, n - 1, ...`: the last frame is held."""
    return np.minimum(np.arange(num_frames), driver_frames - 1)


def reflect_index(num_frames: int, driver_frames: int) -> np.ndarray:
    """`0, 1, ..., n - 1, n - 2, ..., 1, 0, 1, ...`: forth and back."""
    if driver_frames == 1:
        return np.zeros(num_frames, dtype=np.int64)
    position = np.arange(num_frames) % (2 * driver_frames - 2)
    return np.minimum(position, 2 * driver_frames - 2 - position)


def iterate_frames(video, index: np.ndarray) -> Iterator[np.ndarray]:
    """
    The frames `index` of a video, in its order and with its repeats.

    Forwards the video is read on, and one frame is held. Backwards it is read in pieces of at most `BACKWARDS_BYTES`, whose
    frames are let go one after the other.

    Args:
        video (`media.VideoReader`): The video.
        index (`np.ndarray` of shape `(N,)`): Frames of the video, in any order.

    Yields:
        `np.ndarray` of shape `(H, W, 3)`, uint8 RGB; the same array where the frame before is repeated.
    """
    longest = max(1, BACKWARDS_BYTES // (3 * video.height * video.width))
    frame, stop = None, 0
    while stop < len(index):
        start, stop = stop, _end_of_run(index, stop, longest)
        run = index[start:stop]
        frames = video.frames(int(run.min()), int(run.max()) + 1)
        position = -1
        frame = None  # let go before others are read
        if run[-1] < run[0]:
            held = list(frames)
            frames = (held.pop() for _ in range(len(held)))
        for offset in np.abs(run - run[0]):
            while position < offset:
                frame = None
                frame = next(frames)
                position += 1
            yield frame


def _end_of_run(index: np.ndarray, start: int, longest: int) -> int:
    """Up to where `index` goes one way from `start`: forwards without wide gaps, or backwards over `longest` frames."""
    way = 0
    for i in range(start + 1, len(index)):
        step = int(index[i] - index[i - 1])
        if step * way < 0 or step > WIDE_GAP or (step < 0 and index[start] - index[i] >= longest):
            return i
        way = way or step
    return len(index)
