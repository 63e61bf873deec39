"""The driver of an animation: motion fitted to the reference, drawn segment by segment."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import PIL.Image

from diffusers_dreamactor.media import VideoReader
from diffusers_dreamactor.motion.sequence import MotionSequence
from diffusers_dreamactor.pipelines.conditioning import Segment
from diffusers_dreamactor.processors.guidance import MotionGuidance, MotionGuidanceProcessor


EXTEND = ("hold", "loop", "stop")


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
            ' `extend="hold"`, `"loop"` or `"stop"`.'
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


def iterate_frames(video: VideoReader, index: np.ndarray, chunk: int = 64) -> Iterator[np.ndarray]:
    """The frames `index` of a video, in its order and with its repeats, uint8 `(H, W, 3)`; `chunk` bounds how many are
    held at a time, as long as neighbouring entries are close."""
    for start in range(0, len(index), chunk):
        part = index[start : start + chunk]
        first = int(part.min())
        frames = list(video.frames(first, int(part.max()) + 1))
        for i in part:
            yield frames[i - first]


@dataclass
class Driver:
    """
    What drives an animation: a motion fitted to the reference, or guidance that is already drawn.

    Args:
        index (`np.ndarray` of shape `(num_frames,)`): Which frame of the driver each frame of the video takes.
        fps (`float`): Frames per second of the video.
        guidance (`MotionGuidance`, *optional*): Guidance that was drawn before; nothing else is then needed.
        motion (`MotionSequence`, *optional*): The motion, already in pixels of the generation size.
        face_video (`VideoReader`, *optional*): Where the face crops are cut from, when the motion has none.
        face_index (`np.ndarray` of shape `(num_frames,)`, *optional*): Which frame of `face_video` each frame of the
            video takes, when it is another than `index` says.
        face_crop (`PIL.Image.Image`, *optional*): The reference's own face, held when the face is not driven.
        motion_tokens (`np.ndarray` of shape `(num_frames, motion_dim)`, *optional*): Face motion tokens from speech.
        processor (`MotionGuidanceProcessor`, *optional*): Draws the motion.
    """

    index: np.ndarray
    fps: float
    guidance: MotionGuidance | None = None
    motion: MotionSequence | None = None
    face_video: VideoReader | None = None
    face_index: np.ndarray | None = None
    face_crop: PIL.Image.Image | None = None
    motion_tokens: np.ndarray | None = None
    processor: MotionGuidanceProcessor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def stream(self, segments: list[Segment], beyond: str = "hold") -> Iterator[MotionGuidance]:
        """
        Draws the guidance segment by segment, in the memory of one.

        Args:
            segments (`list[Segment]`): Consecutive ranges that share one frame; the last may end after the video.
            beyond (`str`): What frames after the video's end show: `"hold"` the last one, or `"reflect"` the video.

        Yields:
            `MotionGuidance`: One for each segment.
        """
        position = (hold_index if beyond == "hold" else reflect_index)(segments[-1].stop, len(self))
        index = self.index[position]
        if self.guidance is not None:
            for segment in segments:
                yield self.guidance.take(index[segment.start : segment.stop])
            return

        motion = self.motion.take(index)
        face_index = index if self.face_index is None else self.face_index[position]
        drawn = self.processor.stream(
            motion,
            motion.height,
            motion.width,
            frames=None if self.face_video is None else iterate_frames(self.face_video, face_index),
            segment_frames=segments[0].num_frames,
            overlap=int(len(segments) > 1),
        )
        for segment, guidance in zip(segments, drawn):
            if self.motion_tokens is not None:
                guidance.motion_tokens = self.motion_tokens[position[segment.start : segment.stop]]
                guidance.face_weight = np.ones(segment.num_frames, dtype=np.float32)
            elif self.face_crop is not None:
                crop = np.asarray(self.face_crop).transpose(2, 0, 1)
                guidance.face = np.broadcast_to(crop, (segment.num_frames, *crop.shape))
                guidance.face_weight = np.ones(segment.num_frames, dtype=np.float32)
            yield guidance
