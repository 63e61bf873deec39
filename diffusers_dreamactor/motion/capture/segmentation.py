"""Where in a frame the person is, pixel by pixel: MediaPipe's pose landmarker also segments."""

from pathlib import Path

import numpy as np
from PIL import Image

from ..sequence import MotionSequence
from ..skeleton import BODY, JOINT_INDEX
from .download import POSE_MODEL
from .landmarkers import NativeLogsOff


# The landmarker's network sees 256 pixels of the square around a person.
_CROP_PIXELS = 384
_MAX_PEOPLE = 3
# How far from the drawn joints a pose may lie to be the same person's, as a share of the person's extent.
_SAME_PERSON = 0.12
# MediaPipe's landmarks of shoulders and hips, and our joints
_TRUNK = tuple(
    (landmark, JOINT_INDEX[name])
    for landmark, name in ((12, "right_shoulder"), (11, "left_shoulder"), (24, "right_hip"), (23, "left_hip"))
)
_LEGS = tuple(JOINT_INDEX[f"{side}_{name}"] for side in ("left", "right") for name in ("hip", "knee", "ankle"))


class PersonSegmenter:
    """
    Masks of a person whose motion is known; a context manager that closes the landmarker.

    Args:
        folder (`Path`): holds `pose_landmarker_full.task`.
    """

    def __init__(self, folder: Path):
        from mediapipe import Image as MediaPipeImage
        from mediapipe import ImageFormat
        from mediapipe.tasks.python import BaseOptions, vision

        self._to_image = lambda array: MediaPipeImage(image_format=ImageFormat.SRGB, data=np.ascontiguousarray(array))
        options = vision.PoseLandmarkerOptions(
            BaseOptions(model_asset_path=str(folder / POSE_MODEL)),
            num_poses=_MAX_PEOPLE,
            output_segmentation_masks=True,
        )
        with NativeLogsOff():
            self._landmarker = vision.PoseLandmarker.create_from_options(options)
        self._is_warm = False

    def __enter__(self) -> "PersonSegmenter":
        return self

    def __exit__(self, *error) -> None:
        self._landmarker.close()

    def segment(self, frame: np.ndarray, motion: MotionSequence, index: int) -> np.ndarray | None:
        """
        The mask of the person who is at frame `index` of `motion`, in pixels of `frame`.

        Returns:
            `np.ndarray` of shape `(H, W)`, float32 in [0, 1]; of zeros where the motion has nobody, `None` where it has
            somebody whom the landmarker does not find.
        """
        drawn, held = reached_points(motion, index)
        if len(drawn) == 0:
            return np.zeros(frame.shape[:2], dtype=np.float32)
        looks = [self._look(frame, drawn, motion, index)]
        if len(held):
            # legs that another hides, or that are lost, are somewhere, too
            looks.append(self._look(frame, np.concatenate([drawn, held]), motion, index))
        found = [look for look in looks if look is not None]
        return np.max(found, axis=0).clip(0, 1) if found else None

    def _look(self, frame: np.ndarray, points: np.ndarray, motion: MotionSequence, index: int) -> np.ndarray | None:
        """The person's mask in a square around points, or None."""
        height, width = frame.shape[:2]
        mask = np.zeros((height, width), dtype=np.float32)
        low, high = points.min(axis=0), points.max(axis=0)
        side = max(int(round(1.3 * (high - low).max())), 16)
        x0, y0 = np.rint((low + high) / 2 - side / 2).astype(int)
        left, top, right, bottom = max(x0, 0), max(y0, 0), min(x0 + side, width), min(y0 + side, height)
        if right <= left or bottom <= top:
            return mask
        square = np.zeros((side, side, 3), dtype=np.uint8)
        square[top - y0 : bottom - y0, left - x0 : right - x0] = frame[top:bottom, left:right]
        picture = np.asarray(Image.fromarray(square).resize((_CROP_PIXELS, _CROP_PIXELS), Image.Resampling.BILINEAR))
        found = self._detect(picture)
        best = self._same_person(found, motion, index, np.array([x0, y0]), side)
        if best is None:
            return None
        soft, *others = (
            np.squeeze(found.segmentation_masks[number].numpy_view()).astype(np.float32)
            for number in sorted(range(len(found.segmentation_masks)), key=lambda number: number != best)
        )
        for other in others:
            # what is another's is not the person's, where they touch
            soft = np.where(other > soft, 0, soft)
        soft = np.asarray(Image.fromarray(soft).resize((side, side), Image.Resampling.BILINEAR))
        mask[top:bottom, left:right] = soft[top - y0 : bottom - y0, left - x0 : right - x0]
        return mask

    def _detect(self, picture: np.ndarray):
        if self._is_warm:
            return self._landmarker.detect(self._to_image(picture))
        with NativeLogsOff():
            found = self._landmarker.detect(self._to_image(picture))
        self._is_warm = bool(found.pose_landmarks)
        return found

    def _same_person(self, found, motion: MotionSequence, index: int, corner: np.ndarray, side: int) -> int | None:
        """Which of the poses found is the person of `motion`: nearest to its head, shoulders and hips."""
        best, least = None, _SAME_PERSON * side
        for number, landmarks in enumerate(found.pose_landmarks):
            pose = np.array([[mark.x, mark.y] for mark in landmarks]) * side + corner
            pairs = []
            if motion.head is not None and motion.head.confidence[index] >= 0.5:
                pairs.append((pose[[7, 8]].mean(axis=0), motion.head.center[index]))
            if motion.body is not None:
                for landmark, joint in _TRUNK:
                    if motion.body.confidence[index, joint] >= 0.5:
                        pairs.append((pose[landmark], motion.body.keypoints[index, joint]))
            distance = np.mean([np.linalg.norm(own - drawn) for own, drawn in pairs]) if pairs else np.inf
            if distance < least:
                best, least = number, distance
        return best


def reached_points(motion: MotionSequence, index: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Points `(N, 2)` in pixels that a person reaches in a frame: joints that are drawn and around the head, none where nobody is;
    and legs that are not drawn, where they are held inside the picture.
    """
    drawn, held = [], []
    if motion.body is not None:
        keypoints, seen = motion.body.keypoints[index], motion.body.confidence[index] >= 0.5
        drawn.extend(keypoints[BODY][seen[BODY]])
        inside = ((keypoints >= 0) & (keypoints < [motion.width, motion.height])).all(axis=-1)
        held.extend(keypoints[joint] for joint in _LEGS if inside[joint] and not seen[joint])
    if motion.head is not None and motion.head.confidence[index] >= 0.5:
        center, reach = motion.head.center[index], 1.4 * motion.head.radius[index]
        drawn.extend([center - reach, center + reach])
    return tuple(np.array(points, dtype=np.float64).reshape(-1, 2) for points in (drawn, held))
