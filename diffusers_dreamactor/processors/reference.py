"""`ReferenceProcessor`: the picture to animate, brought to the generation size and measured."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from diffusers.configuration_utils import register_to_config
from diffusers.pipelines.wan.image_processor import WanAnimateImageProcessor
from PIL import Image

from ..motion.sequence import MotionSequence
from ..motion.skeleton import JOINT_INDEX
from ..pictures import load_picture
from .face_motion import FaceMotionProcessor
from .processor_mixin import ProcessorMixin


SCALES = ("portrait", "half_body", "full_body")

# Joints in the picture that make it show a whole, or half, a person.
_FULL_BODY_JOINTS = [JOINT_INDEX[name] for name in ("left_ankle", "right_ankle")]
_HALF_BODY_JOINTS = [JOINT_INDEX[name] for name in ("left_hip", "right_hip", "left_knee", "right_knee")]
_ELBOWS = [JOINT_INDEX[name] for name in ("left_elbow", "right_elbow")]


@dataclass
class Reference:
    """
    A picture of the person to animate.

    Args:
        image (`PIL.Image.Image`): RGB, of the generation size.
        height, width (`int`): the generation size.
        motion (`MotionSequence`, *optional*): one frame, in pixels of `image`: its skeleton, head and face.
        scale (`str`, *optional*): how much of the person is in the picture: `"portrait"`, `"half_body"` or `"full_body"`.
        face_crop (`PIL.Image.Image`, *optional*): the face, cut from the original picture.
        picture (`PIL.Image.Image`, *optional*): the original picture, upright and of its own size, which CLIP's encoder
            reads; `image` when it is not given.
    """

    image: Image.Image
    height: int
    width: int
    motion: MotionSequence | None = None
    scale: str | None = None
    face_crop: Image.Image | None = None
    picture: Image.Image | None = None

    def __post_init__(self):
        if self.picture is None:
            self.picture = self.image


class ReferenceProcessor(ProcessorMixin):
    r"""
    Prepares reference pictures.

    Args:
        area (`int`): pixels of the generation size, at most, when it is not given (paper: 960 x 640).
        size_multiple (`int`): what heights and widths are multiples of.
        face_size (`int`), face_scale, face_shift (`float`): `size`, `scale` and `shift` of [`FaceMotionProcessor`].
        threshold (`float`): joints and faces with less confidence count as not seen.
        pad (`bool`): whether a picture of another aspect than the height and width that are asked for is shown whole, with
            black bars, as Wan2.2-Animate's pipeline does it, instead of cut.

    Raises:
        ValueError: an area too small for one multiple, or a multiple that is not positive.
    """

    @register_to_config
    def __init__(
        self,
        area: int = 960 * 640,
        size_multiple: int = 16,
        face_size: int = 512,
        face_scale: float = 1.15,
        face_shift: float = 0.0,
        threshold: float = 0.5,
        pad: bool = False,
    ):
        if size_multiple < 1:
            raise ValueError(f"`size_multiple` is {size_multiple}, but it has to be a positive whole number.")
        if area < size_multiple**2:
            raise ValueError(f"`area` is {area} pixels, but it has to be at least {size_multiple}x{size_multiple}.")
        self.face_motion = FaceMotionProcessor(face_size, face_scale, face_shift, threshold=threshold)

    def __call__(
        self,
        image: Image.Image | str | os.PathLike | np.ndarray,
        capture: MotionSequence | Callable[[Image.Image], MotionSequence] | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> Reference:
        """
        Brings a picture to the generation size: scaled to cover it, the middle kept, or as much of the person as fits (to
        a height and width that were both given: whole, with `pad`).

        Args:
            image (`PIL.Image.Image`, path or uint8 `np.ndarray` of shape `(H, W, 3)` or `(H, W, 4)`): turned upright by its
                EXIF orientation; transparent parts become white.
            capture (`MotionSequence`, callable, or an object with such a method `capture`, *optional*): the person's pose,
                one frame in pixels of the upright picture, or what finds it there. Without it, motion, scale and crops
                stay unknown.
            height, width (`int`, *optional*): the generation size; what is missing follows from the picture's aspect.

        Returns:
            `Reference`

        Raises:
            OSError: no such file, or no picture in it.
            ValueError: a size that is not a multiple of `size_multiple`, a pose in pixels of another size than the upright
                picture's, or another type of picture.
        """
        picture = load_picture(image)
        pad = self.config.pad and height is not None and width is not None
        height, width = self.generation_size(picture.height, picture.width, height, width)
        motion = capture
        if not (capture is None or isinstance(capture, MotionSequence)):
            motion = getattr(capture, "capture", capture)(picture)
        if motion is not None and (motion.width, motion.height) != picture.size:
            raise ValueError(
                f"`capture` (the pipeline's `reference_motion`) is in pixels of a {motion.width}x{motion.height} picture, "
                f"but the upright picture is {picture.width}x{picture.height}: `resize_motion` brings it there."
            )
        if pad:
            window = _whole_window(picture, height, width)
            padded = WanAnimateImageProcessor(resample="bilinear").resize(picture, height, width, resize_mode="fill")
            reference = Reference(image=padded, height=height, width=width, picture=picture)
            if motion is not None:
                reference.motion = _move_to_window(motion[:1], window, height, width)
        else:
            window = _cover_window(picture, motion, height, width, self.config.threshold)
            reference = _cut(picture, motion, window, height, width)
        if motion is None:
            return reference
        reference.scale = self.decide_scale(reference.motion)
        face = motion.face
        if face is not None and face.boxes is not None and face.confidence[0] >= self.config.threshold:
            crop = self.face_motion.crop(np.asarray(picture), face.boxes[0])
            reference.face_crop = Image.fromarray(np.ascontiguousarray(crop.transpose(1, 2, 0)))
        return reference

    def generation_size(
        self, picture_height: int, picture_width: int, height: int | None = None, width: int | None = None
    ) -> tuple[int, int]:
        """
        The generation size for a picture: what is asked for; else, of the sizes that fit `area`, one of those closest to
        the picture's aspect.

        Args:
            picture_height, picture_width (`int`): size of the picture in pixels.
            height, width (`int`, *optional*): what is asked for.

        Returns:
            Height and width, multiples of `size_multiple`.

        Raises:
            ValueError: `height` or `width` is not a positive multiple of `size_multiple`.
        """
        multiple = self.config.size_multiple
        for name, value in (("height", height), ("width", width)):
            if value is not None and (value < 1 or value % multiple):
                nearest = max(round(value / multiple), 1) * multiple
                raise ValueError(
                    f"`{name}` is {value}, but it has to be a positive multiple of {multiple}, such as {nearest}."
                )
        aspect = picture_width / picture_height
        if height is not None and width is not None:
            return height, width
        if height is not None:
            return height, max(round(height * aspect / multiple), 1) * multiple
        if width is not None:
            return max(round(width / aspect / multiple), 1) * multiple, width
        rows = int((self.config.area / aspect) ** 0.5 / multiple)
        candidates = [
            (row * multiple, column * multiple)
            for row in range(max(rows - 2, 1), rows + 3)
            for column in (max(round(row * aspect), 1), max(int(row * aspect), 1))
            if row * column * multiple**2 <= self.config.area
        ]
        if not candidates:  # the picture is a strip
            longest = self.config.area // multiple**2 * multiple
            return (multiple, longest) if aspect > 1 else (longest, multiple)

        def loss(size: tuple[int, int]) -> float:
            # What is cut off the picture counts, and less so what is left of the budget.
            return abs(np.log(size[1] / size[0] / aspect)) + 0.25 * np.log(self.config.area / (size[0] * size[1]))

        return min(candidates, key=loss)

    def decide_scale(self, motion: MotionSequence) -> str | None:
        """
        How much of the person a picture shows: `"full_body"` with an ankle in it, `"half_body"` with a hip, a knee or both
        elbows, else `"portrait"`; `None` when no body is known.

        Args:
            motion (`MotionSequence`): its first frame, in pixels of the picture.
        """
        if motion.body is None:
            return None
        seen = _in_picture(motion, self.config.threshold)
        if not seen.any():
            return None
        if seen[_FULL_BODY_JOINTS].any():
            return "full_body"
        return "half_body" if seen[_HALF_BODY_JOINTS].any() or seen[_ELBOWS].all() else "portrait"


def pick_complementary_frames(motion: MotionSequence, count: int = 3) -> list[int]:
    """
    Frames that show a person from different sides (paper section 3.2, complementary appearance guidance): spread over the
    order of head yaw, so that three are those of least, median and greatest yaw; one is the most turned one.

    Args:
        motion (`MotionSequence`): a clip of the person, with a head track.
        count (`int`): how many frames at most.

    Returns:
        Indices of different frames, from least to greatest yaw; fewer than `count` where the head is seen in fewer.

    Raises:
        ValueError: the motion has no head track, or `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"`count` is {count}, but at least 1 frame has to be picked.")
    least, median, greatest = motion.extreme_yaw_frames()
    yaw = motion.yaw()
    if count == 1:
        return [max((least, greatest), key=lambda index: abs(yaw[index]))]
    if count == 3:
        return list(dict.fromkeys((least, median, greatest)))
    candidates = np.flatnonzero(motion.head.confidence >= 0.5)
    if len(candidates) == 0:
        candidates = np.arange(len(motion))
    order = candidates[np.argsort(yaw[candidates], kind="stable")]
    picked = np.linspace(0, len(order) - 1, count).round().astype(int)
    return [int(order[place]) for place in dict.fromkeys(picked.tolist())]


def _in_picture(motion: MotionSequence, threshold: float) -> np.ndarray:
    """`(62,)` bool: joints of the first frame that are seen and lie in the picture."""
    keypoints = motion.body.keypoints[0]
    inside = ((keypoints >= 0) & (keypoints < (motion.width, motion.height))).all(axis=-1)
    return inside & (motion.body.confidence[0] >= threshold)


def _window_around(
    picture: Image.Image, x: float, y: float, width: float, height: float
) -> tuple[float, float, float, float]:
    """A window of a size, around a point as far as it stays in the picture: `x0, y0, x1, y1`."""
    left = min(max(x - width / 2, 0), picture.width - width)
    top = min(max(y - height / 2, 0), picture.height - height)
    # Rounding must not push it over the edge, which Pillow's `resize` declines.
    left, top = max(left, 0), max(top, 0)
    return left, top, min(left + width, picture.width), min(top + height, picture.height)


def _cover_window(
    picture: Image.Image, motion: MotionSequence | None, height: int, width: int, threshold: float
) -> tuple[float, float, float, float]:
    """The largest window of the generation size's aspect: the picture's middle, moved towards a person it would cut."""
    shrink = min(picture.width / width, picture.height / height)
    window = np.array([width, height]) * shrink
    middle = np.array([picture.width, picture.height]) / 2
    if motion is not None and motion.body is not None:
        seen = _in_picture(motion, threshold)
        points = motion.body.keypoints[0, seen]
        if motion.head is not None and motion.head.confidence[0] >= threshold:
            reach = 1.2 * motion.head.radius[0]
            points = np.concatenate([points, motion.head.center[0] - reach, motion.head.center[0] + reach], axis=None)
        points = points.reshape(-1, 2)
        if len(points):
            margin = 0.03 * window  # flesh around the joints
            low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
            # Least move that holds the person; one too large for the window is centred, and kept from the head down.
            too_large = high - low > window
            middle = np.clip(middle, np.minimum(high - window / 2, low + window / 2), low + window / 2)
            middle = np.where(too_large, [(low[0] + high[0]) / 2, low[1] + window[1] / 2], middle)
    return _window_around(picture, *middle.tolist(), *window.tolist())


def _whole_window(picture: Image.Image, height: int, width: int) -> tuple[float, float, float, float]:
    """The smallest window of the generation size's aspect that holds the whole picture, in its middle."""
    scale = max(picture.width / width, picture.height / height)
    left, top = (picture.width - width * scale) / 2, (picture.height - height * scale) / 2
    return left, top, left + width * scale, top + height * scale


def _cut(
    picture: Image.Image,
    motion: MotionSequence | None,
    window: tuple[float, float, float, float],
    height: int,
    width: int,
) -> Reference:
    """A window of a picture, and its motion, at the generation size."""
    image = picture.resize((width, height), Image.Resampling.LANCZOS, box=window)
    if motion is not None:
        motion = _move_to_window(motion[:1], window, height, width)
    return Reference(image=image, height=height, width=width, motion=motion, picture=picture)


def _move_to_window(
    motion: MotionSequence, window: tuple[float, float, float, float], height: int, width: int
) -> MotionSequence:
    """
    A motion in pixels of a window of its picture, resized to `(height, width)`.

    The window's middle becomes the principal point: joints move sideways in proportion to their depth, so that they still
    project to their keypoints.
    """
    scale = width / (window[2] - window[0])
    offset = np.array(window[:2], dtype=np.float32)
    middle = (np.array(window[:2]) + np.array(window[2:])) / 2
    body, head, face = motion.body, motion.head, motion.face
    if body is not None:
        shift = (np.array([motion.width, motion.height]) / 2 - middle) / motion.focal_length
        joints = body.joints.copy()
        joints[..., :2] += joints[..., 2:] * shift.astype(np.float32)
        body = replace(body, joints=joints, keypoints=(body.keypoints - offset) * scale)
    if head is not None:
        head = replace(head, center=(head.center - offset) * scale, radius=head.radius * scale)
    if face is not None:
        boxes = {name: getattr(face, name) for name in ("boxes", "crop_boxes")}
        moved = {name: (box - np.tile(offset, 2)) * scale for name, box in boxes.items() if box is not None}
        face = replace(face, **moved)
    return replace(
        motion,
        width=width,
        height=height,
        focal_length=motion.focal_length * scale,
        body=body,
        head=head,
        face=face,
    )
