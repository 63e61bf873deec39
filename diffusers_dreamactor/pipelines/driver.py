"""The driver of an animation: motion fitted to the reference, drawn segment by segment."""

from collections.abc import Callable

import numpy as np
import PIL.Image
import torch

from diffusers_dreamactor.media import VideoReader
from diffusers_dreamactor.motion.sequence import MotionSequence
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


def read_frames(video: VideoReader, index: np.ndarray) -> list[np.ndarray]:
    """The frames `index` (in any order, with repeats) of a video, uint8 `(H, W, 3)`; reads the range they span."""
    first = int(index.min())
    frames = list(video.frames(first, int(index.max()) + 1))
    return [frames[i - first] for i in index]


class Driver:
    """
    Draws the guidance of any range of frames, so that a video of any length needs the memory of one segment.

    Args:
        index (`np.ndarray` of shape `(num_frames,)`): Which frame of the driver each frame of the video takes.
        fps (`float`): Frames per second of the video.
        guidance (`MotionGuidance`, *optional*): Guidance that was drawn before; the rest is then not needed.
        motion (`MotionSequence`, *optional*): The motion, already in pixels of the generation size.
        face_video (`VideoReader`, *optional*): Where the face crops are cut from, when the motion has none.
        face_crop (`PIL.Image.Image`, *optional*): The reference's own face, held when the face is not driven.
        motion_tokens (`torch.Tensor` of shape `(num_frames, motion_dim)`, *optional*): Ready face motion tokens, from
            speech.
        draw (`Callable`): The `MotionGuidanceProcessor`.
        height (`int`), width (`int`): The generation size in pixels.
    """

    def __init__(
        self,
        index: np.ndarray,
        fps: float,
        guidance: MotionGuidance | None = None,
        motion: MotionSequence | None = None,
        face_video: VideoReader | None = None,
        face_crop: PIL.Image.Image | None = None,
        motion_tokens: torch.Tensor | None = None,
        draw: MotionGuidanceProcessor | Callable | None = None,
        height: int | None = None,
        width: int | None = None,
    ):
        self.index = index
        self.fps = fps
        self.guidance = guidance
        self.motion = motion
        self.face_video = face_video
        self.face_crop = face_crop
        self.motion_tokens = motion_tokens
        self.draw = draw
        self.height = height
        self.width = width

    def __len__(self) -> int:
        return len(self.index)

    def segment(self, start: int, stop: int, beyond: str = "hold") -> MotionGuidance:
        """
        The guidance of the frames `[start, stop)`.

        Args:
            start (`int`), stop (`int`): The range; it may end after the video.
            beyond (`str`): What frames after the end show: `"hold"` the last one or `"reflect"` the video.
        """
        extended = (hold_index if beyond == "hold" else reflect_index)(stop, len(self))[start:]
        index = self.index[extended]
        if self.guidance is not None:
            return self.guidance.take(index)

        frames = None if self.face_video is None else read_frames(self.face_video, index)
        guidance = self.draw(self.motion.take(index), self.height, self.width, frames=frames)
        if self.motion_tokens is not None:
            guidance.motion_tokens = self.motion_tokens[extended]
        elif self.face_crop is not None:
            crop = torch.from_numpy(np.asarray(self.face_crop)).permute(2, 0, 1)
            guidance.face = crop.expand(len(index), -1, -1, -1)
            guidance.face_weight = torch.ones(len(index))
        return guidance
