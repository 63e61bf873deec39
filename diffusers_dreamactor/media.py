"""Video and audio in and out with PyAV: exact frames, presentation timestamps, constant memory, sound kept."""

import os
import uuid
import weakref
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from diffusers.utils import BaseOutput, logging
from PIL import Image

from .arguments import non_negative_number, positive_number, whole_number
from .files import errors_naming
from .frame_sources import (
    VideoFile,
    frames_in_memory,
    open_media,
    open_video,
    resampled_indices,
    video_stream,
)
from .provenance import Provenance
from .sound import audio_stream, load_audio, sound_source, write_sound
from .video_color import EXACT_CONVERSION


__all__ = ["VIDEO_SUFFIXES", "VideoReader", "VideoWriter", "check_output", "load_audio", "save_video"]

logger = logging.get_logger(__name__)

# Containers that take H.264 and AAC.
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")


def _as_rate(fps) -> Fraction:
    """Frame rate as an exact fraction: 29.97002997 is 30000/1001, also of numbers that have few digits."""
    digits = 1e-9
    if isinstance(fps, (np.generic, np.ndarray, torch.Tensor, bool)):
        digits = 1e-7 if getattr(fps, "dtype", None) in (np.float32, torch.float32) else digits
        fps = positive_number("fps", fps)
    try:
        rate = Fraction(fps)
        usual = rate.limit_denominator(1001)
        rate = usual if abs(usual - rate) <= digits * rate else rate.limit_denominator(100_000)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"`fps` must be a positive number, but is {fps!r}.") from error
    if not 0 < rate <= 1000:
        raise ValueError(f"`fps` must be above 0 and at most 1000, but is {fps}.")
    return rate


def check_output(
    path: str | os.PathLike, suffixes: Iterable[str] = VIDEO_SUFFIXES, inputs: Iterable = (), name: str = "path"
) -> Path:
    """
    Whether a file can be written, before the work whose result it is to hold: folders that are missing are made when it is
    written, an existing file is replaced.

    Args:
        path (`str` or `os.PathLike`): the file.
        suffixes (`Iterable[str]`): what its name may end in.
        inputs (`Iterable`): what is read meanwhile, which the file must not replace; what is no path is passed over.
        name (`str`): what errors call `path`.

    Returns:
        The path.

    Raises:
        ValueError: another suffix, a name that is too long, or one of the inputs.
        OSError: a folder of that name, a file where a folder is needed, or a folder that cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"`{name}` must end in one of {', '.join(suffixes)}, but is {path.name!r}.")
    try:
        is_folder = path.is_dir()
        for given in inputs:
            if isinstance(given, (str, os.PathLike)) and os.path.exists(given):
                if path.exists() and os.path.samefile(given, path):
                    raise ValueError(f"`{name}` is also an input, which it would replace: {path}")
    except OSError as error:
        raise OSError(f"`{name}` cannot be written ({error.strerror}): {path}") from error
    if is_folder:
        raise IsADirectoryError(f"`{name}` is a folder, but a file is to be written: {path}")
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"`{name}` lies in {folder}, which is a file and no folder: {path}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"`{name}` cannot be written, since the folder {folder} does not permit it: {path}")
    longest = os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    # It is written aside first, under a name with so much around its own.
    if any(len(os.fsencode(part)) > longest for part in path.parts) or len(os.fsencode(path.name)) + 39 > longest:
        raise ValueError(
            f"`{name}` has a name of {len(os.fsencode(path.name))} bytes, but at most {longest - 39} can be written here."
        )
    return path


class VideoReader:
    """
    Frames of a video, one at a time: exact, in presentation order, upright, in memory that does not grow with its length.

    A file is read by presentation timestamps. One of constant rate gives each of its frames once. One of variable rate is
    read at the rate that its frames mostly have, none of them left out and each repeated for as long as it is shown. With
    another `fps`, frame i is the last one shown at or before `i / fps`. Either way it stays in step with the sound. What
    comes out is upright, of square pixels and of BT.709's colours, whatever the file has;
    [`~video_color.FrameConverter`] says how.

    Args:
        video (`str`, `os.PathLike`, `list`, `np.ndarray`, `torch.Tensor` or `VideoReader`):
            A file (GIF, APNG, animated WebP and AVIF, too); a PIL image; a list of PIL images or uint8 / floating-point arrays `(H, W, 3)`; an
            array `(F, H, W, 3)`; a tensor `(F, 3, H, W)`; or another reader. Floating-point values are in [0, 1]. Masks
            may also be bool or whole numbers (0 and 1, or 0 to 255), without channels or with one: they become grey.
        fps (`float` or `Fraction`, *optional*):
            For a file or a reader the rate to resample to (default: its own; of a variable rate, the one that its
            frames mostly have). For frames in memory the rate that they have (default 24).
        num_frames (`int`, *optional*):
            Read only so many frames from the start, when there are more. A reader of a reader that was cut short has no
            more than that.

    Attributes:
        rate (`Fraction`): frames in a second, exact, e.g. 30000/1001; `fps` is the same as a float.
        width, height, num_frames (`int`): size as shown, and the number of frames that iteration gives.
        path (`str` or `None`): the file.
        has_audio (`bool`): whether the file has sound.

    Raises:
        FileNotFoundError, IsADirectoryError: no such file, or a folder.
        ValueError: a file that is no video, has no video stream or no frames; arrays of a wrong shape, type or range; a
            `num_frames` that is not a positive whole number.
    """

    def __init__(self, video, fps: float | Fraction | None = None, num_frames: int | None = None):
        rate = None if fps is None else _as_rate(fps)
        num_frames = None if num_frames is None else whole_number("num_frames", num_frames)
        self._indices = None
        if isinstance(video, VideoReader):
            self._source = video._source
            self._native_rate = video._native_rate
            self.rate = rate or video.rate
            # A reader that was cut short stays so, at any rate.
            kept = -int(-video.num_frames * self.rate // video.rate)
            num_frames = kept if num_frames is None else min(num_frames, kept)
            if rate is None or rate == video.rate:
                self._indices = video._indices
            else:
                self._indices = self._resampled(rate)
        elif isinstance(video, (str, os.PathLike)):
            self._source = open_video(Path(video))
            self._native_rate = self._source.rate
            self.rate = rate or self._source.rate
            self._indices = self._resampled(self.rate)
        else:
            self._source = frames_in_memory(video, "video")
            self.rate = self._native_rate = rate or Fraction(24)
        self.width, self.height = self._source.width, self._source.height
        self.num_frames = self._source.num_frames if self._indices is None else len(self._indices)
        if num_frames is not None:
            self.num_frames = min(self.num_frames, num_frames)
        self.path, self.has_audio = self._source.path, self._source.has_audio

    def _resampled(self, rate: Fraction) -> np.ndarray | None:
        if isinstance(self._source, VideoFile):
            return self._source.indices_at(rate)
        return resampled_indices(self._source.num_frames, self._native_rate, rate)

    @property
    def source(self):
        """What the frames come from."""
        return self._source

    @property
    def fps(self) -> float:
        """Frames in a second."""
        return float(self.rate)

    def __len__(self) -> int:
        return self.num_frames

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.frames()

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """
        Frames `start` to `stop` (not included; default: to the end), uint8 arrays `(H, W, 3)` RGB, the same as iteration
        gives at these places. A file is not decoded from its beginning for it, but from the key frame before `start`.

        Raises:
            ValueError: not `0 <= start <= stop <= num_frames`.
        """
        stop = self.num_frames if stop is None else stop
        if not 0 <= start <= stop <= self.num_frames:
            raise ValueError(
                f"`start` and `stop` must satisfy 0 <= start <= stop <= {self.num_frames}, but are {start} and {stop}."
            )
        indices = range(start, stop) if self._indices is None else self._indices[start:stop]
        return self._source.decode(indices)


class VideoWriter:
    """
    Writes H.264 (yuv420p, BT.709) with sound, frame by frame. Use it as a context manager: the file is written aside and
    takes its name when the block ends well; when it does not, nothing is left.

    Args:
        path (`str` or `os.PathLike`): ends in .mp4, .m4v, .mov or .mkv; missing folders are made.
        fps (`float` or `Fraction`): frames in a second.
        audio (`str`, `os.PathLike` or `(samples, rate)`, *optional*):
            A file with sound (a video's is taken in step with its picture; one that is silent is, with a warning, no
            sound), or samples `(n,)` or `(channels, n)`, int16
            (scaled to [-1, 1]) or floating-point in [-1, 1]. Cut to the duration of the video. AAC is copied as it is
            when `audio_start` is 0; other sound is encoded to AAC.
        audio_start (`float`, defaults to 0.0): seconds into the sound at which the first frame is shown.
        crf (`int`, defaults to 18): H.264's constant rate factor, 0 (lossless) to 51.
        provenance (`Provenance` or `False`, *optional*):
            What the file's metadata say of where it comes from. When `None`, that of the first pipeline output that is
            written, and nothing for other frames; `False`: nothing at all.
        sidecar (`bool`, defaults to `False`):
            Whether to say it in a C2PA manifest beside the file, too, see [`~provenance.Provenance.manifest`].

    A width or height that is odd, which yuv420p cannot have, grows by one repeated row or column, with a warning.

    Raises:
        OSError: `path` cannot be written.
        ValueError: another suffix, `fps` or `crf` out of range, sound that cannot be read, frames of different sizes or a
            wrong type, or a block that ends without any frame.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        fps: float | Fraction,
        audio: "str | os.PathLike | tuple[np.ndarray, int] | None" = None,
        audio_start: float = 0.0,
        crf: int = 18,
        provenance: Provenance | Literal[False] | None = None,
        sidecar: bool = False,
    ):
        self.path = check_output(path)
        self.rate = _as_rate(fps)
        crf, audio_start = whole_number("crf", crf, 0), non_negative_number("audio_start", audio_start)
        if crf > 51:
            raise ValueError(f"`crf` is {crf}, but has to be in 0 to 51.")
        audio = None if audio is None else sound_source(audio)
        if isinstance(audio, Path):
            with open_media(audio, "audio", "sound file") as container:
                if video_stream(container) is not None and not container.streams.audio:
                    logger.warning(f"The video {audio} has no sound, and neither will {self.path.name}.")
                    audio = None
                else:
                    audio_stream(container, audio)
        self._audio, self._audio_start, self._crf = audio, audio_start, crf
        if sidecar and provenance is False:
            raise ValueError(
                "`sidecar` is True, but `provenance` is False: one of them says where the video comes from."
            )
        self._provenance, self._sidecar = provenance, sidecar
        self._aside = self.path.with_name(f".{self.path.stem}.{uuid.uuid4().hex}.part{self.path.suffix.lower()}")
        self._container = None
        self._sound = None
        self._closed = False
        self._abandoned = None
        self.num_frames = 0

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        if error_type is None:
            self.close()
        else:
            self._discard()

    def write(self, frames) -> None:
        """
        Appends a PIL image, an array `(H, W, 3)` or `(F, H, W, 3)`, a tensor `(3, H, W)` or `(F, 3, H, W)`, or a list of
        pictures; uint8, or floating-point in [0, 1]. Of a pipeline's output, that of a segment, too, the first video.
        """
        if isinstance(frames, BaseOutput):
            made = getattr(frames, "provenance", None)
            if self._provenance is None and made is not None:
                self._provenance = made.of_video(0)
            frames = frames.frames[0]
        if isinstance(frames, Image.Image) or (isinstance(frames, np.ndarray) and frames.ndim == 3):
            frames = [frames]
        elif isinstance(frames, torch.Tensor) and frames.ndim == 3:
            frames = frames[None]
        source = frames_in_memory(frames, "frames")
        size = (source.width, source.height)
        if self._container is None:
            if self._sidecar and self._provenance is None:
                raise ValueError(
                    "`sidecar` is True, but nothing is known of where these frames come from: pass `provenance`."
                )
            with errors_naming(self.path):
                self._start(*size)
        if size != self._size:
            raise ValueError(
                f"`frames` have size {size[0]}x{size[1]}, but the first had {self._size[0]}x{self._size[1]}."
            )
        for picture in source.decode(range(source.num_frames)):
            with errors_naming(self.path):
                self._write_picture(picture)

    def _write_picture(self, picture: np.ndarray) -> None:
        height, width = picture.shape[:2]
        if width % 2 or height % 2:
            picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = self._reformatter.reformat(
            VideoFrame.from_ndarray(picture, format="rgb24"),
            format="yuv420p",
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            dst_colorspace=Colorspace.ITU709,
            interpolation=EXACT_CONVERSION,
        )
        frame.pts, frame.time_base = self.num_frames, 1 / self.rate
        self._container.mux(self._video.encode(frame))
        self.num_frames += 1
        if self._sound is not None:
            self._sound.send(float(self.num_frames / self.rate))

    def _start(self, width: int, height: int) -> None:
        if width % 2 or height % 2:
            logger.warning(f"Frames of {width}x{height} are written as {width + width % 2}x{height + height % 2}.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._size = (width, height)
        self._reformatter = VideoReformatter()
        suffix = self.path.suffix.lower()
        options = {} if suffix == ".mkv" else {"movflags": "+faststart"}
        if suffix == ".mov" and self._provenance:
            # QuickTime's own few tags have no description
            options["movflags"] += "+use_metadata_tags"
        self._container = av.open(f"file:{self._aside}", "w", container_options=options)
        # A writer that nobody closes, until the interpreter ends, leaves no file either.
        self._abandoned = weakref.finalize(self, _abandon, self._container, self._aside)
        if self._provenance:
            self._container.metadata.update(self._provenance.metadata())
        # Neither how many cores there are nor how they are scheduled may show: without `mbtree`, and with a fixed
        # number of threads that share no frame, the same frames give the same bytes.
        options = {"crf": str(self._crf), "x264-params": "mbtree=0"}
        self._video = self._container.add_stream("libx264", rate=self.rate, options=options)
        self._video.codec_context.thread_count, self._video.codec_context.thread_type = 4, "FRAME"
        self._video.width, self._video.height = width + width % 2, height + height % 2
        self._video.pix_fmt = "yuv420p"
        self._video.codec_context.time_base = 1 / self.rate
        # Players guess BT.601 or BT.709 by the size where a file does not say; the tags keep colours as they are.
        self._video.codec_context.colorspace = Colorspace.ITU709
        self._video.codec_context.color_primaries = ColorPrimaries.BT709
        self._video.codec_context.color_trc = ColorTrc.BT709
        self._video.codec_context.color_range = ColorRange.MPEG
        self._sound = None if self._audio is None else write_sound(self._container, self._audio, self._audio_start)
        if self._sound is not None:
            next(self._sound)  # Adds its stream: all streams must be there before the first packet.

    def close(self) -> None:
        """
        Finishes the file and gives it its name; a second call does nothing. Raises `ValueError` when no frame was written.
        """
        if self._closed:
            return
        if self._container is None:
            raise ValueError(f"No frame was written, so there is no video: {self.path}")
        self._closed = True
        try:
            with errors_naming(self.path):
                for stream in self._container.streams:
                    if stream.codec_context is not None and stream.codec_context.is_open:
                        self._container.mux(stream.encode(None))
                self._container.close()
                if self._sidecar:
                    self._provenance.write_sidecar(self._aside, self.path)
                os.replace(self._aside, self.path)
        finally:
            self._discard()

    def _discard(self) -> None:
        if self._sound is not None:
            self._sound.close()
        if self._abandoned is not None:
            self._abandoned()


def _abandon(container, path: Path) -> None:
    """Closes an output and removes its file, also where closing fails because the disk is full."""
    try:
        container.close()
    except (OSError, av.error.FFmpegError) as error:
        logger.debug(f"{path} could not be finished: {error}")
    finally:
        path.unlink(missing_ok=True)


def save_video(
    frames,
    path: str | os.PathLike,
    fps: float | Fraction,
    audio: "str | os.PathLike | tuple | None" = None,
    provenance: Provenance | Literal[False] | None = None,
    sidecar: bool = False,
) -> None:
    """Writes a whole video in one call; see `VideoWriter` for what its arguments may be."""
    with VideoWriter(path, fps, audio, provenance=provenance, sidecar=sidecar) as writer:
        writer.write(frames)
