"""`MotionGuidance`, what the model is driven by, and `MotionGuidanceProcessor`, which draws it from a `MotionSequence`."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils import logging
from PIL import Image

from ..motion.sequence import MotionSequence
from ..motion.tensor_file import read_arrays, write_arrays
from ..motion.visibility import connected
from ..pictures import to_rgb
from .body_skeleton import BodySkeletonProcessor
from .face_motion import FaceMotionProcessor
from .head_sphere import HeadSphereProcessor
from .preview import Preview
from .processor_mixin import ProcessorMixin
from .reference import ReferenceProcessor


logger = logging.get_logger(__name__)

FORMAT_NAME = "diffusers_dreamactor.guidance"
FORMAT_VERSION = "1"


@dataclass
class MotionGuidance:
    """
    The drawn guidance of a clip, at the generation size. Torch tensors are converted to numpy.

    Args:
        skeleton (`(F, 3, H, W)` uint8): body and hands, RGB on black.
        sphere (`(F, 3, H, W)` uint8, *optional*): head spheres, RGB on black.
        face (`(F, 3, S, S)` uint8, *optional*): face crops, RGB.
        face_weight (`(F,)` float32, *optional*): in [0, 1], how far each face is to be believed; 1 when not given.
        fps (`float`): frames in a second.
        motion_tokens (`(F, D)` float32, *optional*): ready face motion tokens, which take the place of `face`.
    """

    skeleton: np.ndarray
    sphere: np.ndarray | None = None
    face: np.ndarray | None = None
    face_weight: np.ndarray | None = None
    fps: float = 24.0
    motion_tokens: np.ndarray | None = None

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "fps" and value is not None:
                setattr(self, field.name, value.cpu().numpy() if torch.is_tensor(value) else np.asarray(value))
        if self.face_weight is None:
            self.face_weight = np.ones(len(self.skeleton), dtype=np.float32)

    @classmethod
    def from_frames(
        cls,
        skeleton: Sequence[Image.Image],
        face: Sequence[Image.Image] | None = None,
        sphere: Sequence[Image.Image] | None = None,
        fps: float = 24.0,
    ) -> "MotionGuidance":
        """
        Guidance from pictures that were made elsewhere.

        Args:
            skeleton (list of `PIL.Image.Image`): one picture a frame, all of the generation size.
            face (list of `PIL.Image.Image`, *optional*): one square crop a frame, all of one size.
            sphere (list of `PIL.Image.Image`, *optional*): one picture a frame, of the skeleton's size.
            fps (`float`): frames in a second.

        Raises:
            ValueError: no picture, pictures of several sizes, lists of several lengths.
        """
        guidance = cls(
            skeleton=_stack_pictures("skeleton", skeleton),
            sphere=None if sphere is None else _stack_pictures("sphere", sphere),
            face=None if face is None else _stack_pictures("face", face),
            fps=fps,
        )
        guidance.check()
        return guidance

    @property
    def height(self) -> int:
        """Height of the maps in pixels."""
        return self.skeleton.shape[2]

    @property
    def width(self) -> int:
        """Width of the maps in pixels."""
        return self.skeleton.shape[3]

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self.skeleton)

    def __len__(self) -> int:
        return len(self.skeleton)

    def __getitem__(self, index: slice) -> "MotionGuidance":
        """The frames of a slice, e.g. `guidance[72:145]`; views, nothing is copied."""
        if not isinstance(index, slice):
            raise TypeError(f"A `MotionGuidance` is indexed by a slice, not by {index!r}.")
        return self.take(index)

    def take(self, index: slice | np.ndarray) -> "MotionGuidance":
        """The frames of a slice (views), or those of `(N,)` integers in any order, with repeats (copies)."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return MotionGuidance(**{k: v if k == "fps" or v is None else v[index] for k, v in values.items()})

    def check(self, height: int | None = None, width: int | None = None) -> None:
        """
        Checks types, shapes, lengths and values.

        Args:
            height, width (`int`, *optional*): the generation size that the maps have to have.

        Raises:
            ValueError: the first thing that is wrong, by its name.
        """
        for name in ("skeleton", "sphere", "face"):
            value = getattr(self, name)
            if value is None:
                continue
            if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
                raise ValueError(f"`guidance.{name}` has values that are not finite (NaN or infinity).")
            if value.dtype != np.uint8:
                raise ValueError(f"`guidance.{name}` is {value.dtype}, but it has to be uint8 in [0, 255].")
            if value.ndim != 4 or value.shape[1] != 3:
                raise ValueError(f"`guidance.{name}` has shape {value.shape}, but it has to be (F, 3, height, width).")
        if len(self) == 0:
            raise ValueError("`guidance` has no frames, but at least one is needed.")
        if self.sphere is not None and self.sphere.shape != self.skeleton.shape:
            raise ValueError(
                f"`guidance.sphere` has shape {self.sphere.shape}, but it has to be like the skeleton's {self.skeleton.shape}."
            )
        if self.face is not None and self.face.shape[2] != self.face.shape[3]:
            raise ValueError(f"`guidance.face` has shape {self.face.shape}, but crops have to be square.")
        if self.motion_tokens is not None and self.motion_tokens.ndim != 2:
            raise ValueError(
                f"`guidance.motion_tokens` has shape {self.motion_tokens.shape}, but it has to be (F, D)."
            )
        if self.face_weight.ndim != 1:
            raise ValueError(f"`guidance.face_weight` has shape {self.face_weight.shape}, but it has to be (F,).")
        for name in ("face", "face_weight", "motion_tokens"):
            value = getattr(self, name)
            if value is None:
                continue
            if len(value) != len(self):
                raise ValueError(f"`guidance.{name}` has {len(value)} frames, but the skeleton has {len(self)}.")
            if name != "face" and not np.isfinite(value).all():
                raise ValueError(f"`guidance.{name}` has values that are not finite (NaN or infinity).")
        if self.face_weight.min() < 0 or self.face_weight.max() > 1:
            raise ValueError(
                f"`guidance.face_weight` spans {self.face_weight.min()} to {self.face_weight.max()}, but it has to be in [0, 1]."
            )
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"`guidance.fps` is {self.fps}, but it has to be a positive number.")
        if (height or self.height, width or self.width) != (self.height, self.width):
            raise ValueError(
                f"`guidance` is {self.width}x{self.height} pixels, but the generation size is "
                f"{width or self.width}x{height or self.height}: draw it at that size, or pass its `height` and `width`."
            )

    def maps(
        self,
        start: int = 0,
        stop: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """
        Frames `start` to `stop` for the pose encoder: `(1, 6, F, H, W)` in [-1, 1], skeleton RGB then sphere RGB; a missing
        sphere is black, -1.
        """
        skeleton = _to_pixels(self.skeleton[start:stop], device, dtype)
        if self.sphere is None:
            sphere = torch.full_like(skeleton, -1)
        else:
            sphere = _to_pixels(self.sphere[start:stop], device, dtype)
        return torch.cat([skeleton, sphere], dim=1).transpose(0, 1).unsqueeze(0)

    def face_pixels(
        self,
        start: int = 0,
        stop: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor | None:
        """Frames `start` to `stop` for the face motion encoder: `(1, F, 3, S, S)` in [-1, 1], or `None` without faces."""
        return None if self.face is None else _to_pixels(self.face[start:stop], device, dtype).unsqueeze(0)

    def pieces(self) -> Iterator["MotionGuidance"]:
        """The guidance itself, as the one piece that it is made of: what `Preview` shows."""
        yield self

    def preview(self, driver=None, reference=None, index: np.ndarray | None = None) -> Preview:
        """
        The guidance to look at: driver, skeleton over the dimmed reference, head sphere and face crop side by side.

        Args:
            driver (*optional*): the driving video's frames, as `VideoReader` takes them.
            reference (`PIL.Image.Image` or `Reference`, *optional*): the reference at the generation size.
            index (`np.ndarray` of shape `(F,)`, *optional*): which frame of the driver each frame of the guidance takes, such
                as `frame_sources.frame_index(len(driver), len(guidance), "loop")`; one after the other when `None`.

        Returns:
            `Preview`: `.frames` are PIL pictures, `.save("preview.mp4")` (or `.gif`, or `.png` for a contact sheet).
        """
        return Preview(self, driver=driver, reference=reference, index=index)

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """
        What `save` stores: arrays by name, and the rest as strings.

        Raises:
            ValueError: the guidance is not valid (see `check`).
        """
        self.check()
        arrays = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "fps"}
        return {k: v for k, v in arrays.items() if v is not None}, {"fps": repr(float(self.fps))}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], values: dict[str, str]) -> "MotionGuidance":
        """
        The inverse of `to_arrays`.

        Raises:
            ValueError: values that are not valid.
        """
        guidance = cls(fps=float(values["fps"]), **arrays)
        guidance.check()
        return guidance

    def save(self, path: str | os.PathLike) -> None:
        """
        Writes one safetensors file (aside, then renamed), with the format's name and version in its metadata.

        Raises:
            ValueError: the guidance is not valid (see `check`).
        """
        arrays, values = self.to_arrays()
        write_arrays(path, arrays, {"format": FORMAT_NAME, "version": FORMAT_VERSION, **values})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "MotionGuidance":
        """
        Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no guidance, is of another format version, or holds values that are not valid.
        """
        return cls.from_arrays(*read_arrays(path, FORMAT_NAME, FORMAT_VERSION, "guidance"))


def _stack_pictures(name: str, pictures: Sequence[Image.Image]) -> np.ndarray:
    pictures = list(pictures)
    if not pictures:
        raise ValueError(f"`{name}` has no pictures, but at least one is needed.")
    for index, picture in enumerate(pictures):
        if picture.size != pictures[0].size:
            raise ValueError(
                f"`{name}` has pictures of several sizes: {pictures[0].size} first, {picture.size} at frame {index}."
            )
    return np.stack([np.asarray(to_rgb(picture)).transpose(2, 0, 1) for picture in pictures])


def _to_pixels(frames: np.ndarray, device: torch.device | str | None, dtype: torch.dtype) -> torch.Tensor:
    # Moved as bytes, a quarter of what floats would take.
    return torch.from_numpy(np.ascontiguousarray(frames)).to(device).to(dtype) / 127.5 - 1


class MotionGuidanceProcessor(ProcessorMixin):
    r"""
    The pipeline's `motion_processor`: it prepares references and draws guidance, and its configuration, saved with the
    pipeline, says how the weights want them drawn.

    Its parts can be used on their own: `body_skeleton`, `head_sphere`, `face_motion`, `reference`.

    Args:
        style (`str`): `"dreamactor"` (skeleton and head sphere) or `"wan"` (Wan2.2-Animate's pose picture, no sphere).
        face_size (`int`), face_scale, face_shift, hold_decay (`float`): `size`, `scale`, `shift` and `hold_decay` of
            [`FaceMotionProcessor`].
        threshold (`float`): joints, heads and faces with less confidence are taken as not seen.
        stick_width (`float`, *optional*), draw_hands (`bool`): see [`BodySkeletonProcessor`].
        area (`int`), size_multiple (`int`): see [`ReferenceProcessor`].
    """

    @register_to_config
    def __init__(
        self,
        style: str = "dreamactor",
        face_size: int = 512,
        face_scale: float = 1.15,
        face_shift: float = 0.0,
        hold_decay: float = 0.9,
        threshold: float = 0.5,
        stick_width: float | None = None,
        draw_hands: bool = True,
        area: int = 960 * 640,
        size_multiple: int = 16,
    ):
        self.body_skeleton = BodySkeletonProcessor(style, stick_width, draw_hands, threshold)
        self.head_sphere = HeadSphereProcessor(threshold)
        self.face_motion = FaceMotionProcessor(face_size, face_scale, face_shift, threshold, hold_decay)
        pad = style == "wan"
        self.reference = ReferenceProcessor(area, size_multiple, face_size, face_scale, face_shift, threshold, pad)

    def __call__(
        self, motion: MotionSequence, height: int, width: int, frames: Iterable[np.ndarray] | None = None
    ) -> MotionGuidance:
        """
        Draws a whole clip. `stream` does the same in segments, in memory that does not grow with the clip.

        Args:
            motion (`MotionSequence`): already retargeted: keypoints and head in pixels of the generation size; face boxes
                in pixels of `frames`.
            height, width (`int`): the generation size.
            frames (iterable of `np.ndarray` of shape `(H, W, 3)`, *optional*): the driving video's frames, uint8 RGB, one
                for each of the motion's; face crops are cut from them where `motion.face` has none.

        Returns:
            `MotionGuidance`

        Raises:
            ValueError: the motion is in other pixels than `height` and `width`, has no frames, is not finite, or has more
                frames than `frames`.
        """
        return next(self.stream(motion, height, width, frames, segment_frames=max(len(motion), 1), overlap=0))

    def stream(
        self,
        motion: MotionSequence,
        height: int,
        width: int,
        frames: Iterable[np.ndarray] | None = None,
        segment_frames: int = 73,
        overlap: int = 1,
        crops: Iterable[np.ndarray] | None = None,
    ) -> Iterator[MotionGuidance]:
        """
        The guidance in segments of `segment_frames` frames, each starting with the last `overlap` frames of the one before;
        the last one may be shorter. Together they are exactly what a call on the whole clip gives: a held face is
        carried over. `frames` is read once and never kept, and so are `crops`, which take
        the place of `motion.face.crops` one by one.

        Other arguments, results and errors as for `__call__`.
        """
        if len(motion) == 0:
            raise ValueError("`motion` has no frames, but at least one is needed.")
        if (motion.height, motion.width) != (height, width):
            raise ValueError(
                f"`motion` is in pixels of a {motion.width}x{motion.height} picture, but {width}x{height} is drawn: "
                "`retarget` or `resize_motion` brings it there."
            )
        if not 0 <= overlap < segment_frames:
            raise ValueError(f"`overlap` is {overlap}, but it has to be in [0, {segment_frames}).")
        if motion.body is None:
            motion.validate()
        else:  # depth may be unknown, as NaN: limbs are then drawn in a fixed order
            flat = replace(motion.body, joints=np.nan_to_num(motion.body.joints))
            replace(motion, body=flat).validate()

        crops, face_weight = self._face_crops(motion, frames, crops)
        motion_tokens = None if motion.face is None else motion.face.motion_tokens
        if motion_tokens is not None and crops is None:
            face_weight = self.face_motion.weights(motion.face.confidence)
        stop = 0
        face = None
        while stop < len(motion):
            kept = overlap if stop else 0
            start = stop - kept
            stop = min(start + segment_frames, len(motion))
            segment = motion[start:stop]
            if segment.body is not None:
                # Whole limbs, from the trunk outwards: no fingers without a forearm.
                hang = connected(segment.body.confidence >= self.config.threshold)
                segment.body.confidence = np.where(hang, segment.body.confidence, 0.0)
            if crops is not None:
                size = self.config.face_size
                segment_face = np.empty((stop - start, 3, size, size), dtype=np.uint8)
                if kept:
                    segment_face[:kept] = face[-kept:]
                for index in range(kept, stop - start):
                    segment_face[index] = next(crops)
                face = segment_face
            yield MotionGuidance(
                skeleton=self.body_skeleton(segment, height, width),
                sphere=None if self.config.style == "wan" else self.head_sphere(segment, height, width),
                face=face,
                face_weight=None if face_weight is None else face_weight[start:stop],
                fps=motion.fps,
                motion_tokens=None if motion_tokens is None else motion_tokens[start:stop],
            )

    def _face_crops(
        self, motion: MotionSequence, frames: Iterable[np.ndarray] | None, stored: Iterable[np.ndarray] | None
    ) -> tuple[Iterator[np.ndarray] | None, np.ndarray | None]:
        """The clip's crops, one by one, and its face weights; `(None, None)` where there are none to be had."""
        face = motion.face
        if face is None:
            return None, None
        if not self.face_motion.seen(face.confidence).any():
            logger.warning(
                f"No face is seen in any of the motion's {len(motion)} frames (confidence >= {self.config.threshold}): "
                "the guidance has no face, and the expression is not driven."
            )
            return None, None
        weights = self.face_motion.weights(face.confidence)
        stored = face.crops if stored is None else stored
        if stored is not None:
            crops = self.face_motion.iter_stored_crops(stored, face.confidence, face.boxes, face.crop_boxes)
            return crops, weights
        if frames is not None and face.boxes is not None:
            return self.face_motion.iter_crops(frames, face.boxes, face.confidence), weights
        if face.motion_tokens is None:
            logger.warning(
                "The motion has face boxes but no crops, and no `frames` to cut them from were given: the guidance has no "
                "face, and the expression is not driven."
            )
        return None, None
