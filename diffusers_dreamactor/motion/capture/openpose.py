"""2D keypoints of OpenPose and DWPose as a `MotionSequence`: their JSON files, and detections of `controlnet_aux`.

What is read, for each frame:

- **OpenPose's JSON** (`--write_json`, one file a frame; also what DWPose nodes save, one file with a list of frames):
  `people`, each with `pose_keypoints_2d` (18 or 25 points), `hand_left_keypoints_2d`, `hand_right_keypoints_2d` and
  `face_keypoints_2d`, all x, y, score. With `canvas_width` and `canvas_height` the size need not be given.
- **`controlnet_aux`' OpenPose**: the list of `PoseResult` that `OpenposeDetector.detect_poses` returns.
- **`controlnet_aux`' DWPose**: the pair keypoints `(N, 134, 2)`, scores `(N, 134)` that
  `DWposeDetector.pose_estimation` returns, in pixels of the picture it was given.

There is no depth in these: joints are lifted (`motion.lifting`), as a fallback where no 3D capture is at hand.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import numpy as np
from diffusers.utils import logging

from ..camera import default_focal_length
from ..sequence import MotionSequence
from ..skeleton import (
    BODY,
    DWPOSE_MAPPING,
    LEFT_HAND,
    NUM_HAND_JOINTS,
    NUM_JOINTS,
    OPENPOSE_BODY25_MAPPING,
    OPENPOSE_COCO18_MAPPING,
    RIGHT_HAND,
    map_joints,
)
from .from_keypoints import confidence_from_scores, motion_from_keypoints


logger = logging.get_logger(__name__)


@dataclass
class Detection:
    """
    One person in one frame.

    Args:
        keypoints (`(62, 2)`): pixels.
        scores (`(62,)`): the detector's own; 0 where nothing was found.
        face (`(N, 2)`): face points that were found, pixels; may be empty.
    """

    keypoints: np.ndarray
    scores: np.ndarray
    face: np.ndarray

    @property
    def box(self) -> np.ndarray:
        """x0, y0, x1, y1 around the body's points that were found."""
        points = self.keypoints[BODY][self.scores[BODY] > 0]
        return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _triplets(values, name: str) -> np.ndarray:
    points = np.asarray(values if values is not None else [], dtype=np.float64)
    if points.size % 3 or not np.isfinite(points).all():
        raise ValueError(f"`{name}` has {points.size} values, but x, y, score for each point are needed, all finite.")
    return points.reshape(-1, 3)


def _person(body: np.ndarray, hands: tuple[np.ndarray, np.ndarray], face: np.ndarray, where: str) -> Detection | None:
    """From points `(N, 3)` in pixels with scores; hands and face may be empty."""
    mapping = {18: OPENPOSE_COCO18_MAPPING, 25: OPENPOSE_BODY25_MAPPING}.get(len(body))
    if mapping is None:
        raise ValueError(f"`pose_keypoints_2d` of {where} has {len(body)} points, but 18 or 25 are needed.")
    keypoints, scores = map_joints(body[:, :2], body[:, 2], mapping)
    for joints, hand, name in ((LEFT_HAND, hands[0], "hand_left"), (RIGHT_HAND, hands[1], "hand_right")):
        if len(hand) not in (0, NUM_HAND_JOINTS):
            raise ValueError(f"`{name}_keypoints_2d` of {where} has {len(hand)} points, but 21 are needed.")
        if len(hand):
            keypoints[joints], scores[joints] = hand[:, :2], hand[:, 2]
    if not (scores[BODY] > 0).any():
        return None
    return Detection(keypoints, scores, face[face[:, 2] > 0, :2])


def _from_json(frame: dict, size: tuple[int, int] | None, where: str) -> list[Detection]:
    people = []
    for person in frame["people"]:
        groups = [
            _triplets(person.get(f"{name}_keypoints_2d"), f"{name}_keypoints_2d")
            for name in ("pose", "hand_left", "hand_right", "face")
        ]
        largest = max((group[:, :2].max(initial=0) for group in groups), default=0)
        # Some writers give shares of the picture instead of pixels.
        if 0 < largest <= 1.5 and size is not None:
            for group in groups:
                group[:, :2] *= size
        if len(groups[0]):
            people.append(_person(groups[0], (groups[1], groups[2]), groups[3], where))
    return [person for person in people if person is not None]


def _from_pose_results(results, size: tuple[int, int], where: str) -> list[Detection]:
    def points(keypoints) -> np.ndarray:
        rows = [
            (0, 0, 0)
            if point is None or min(point.x, point.y) < 0
            else (point.x * size[0], point.y * size[1], point.score)
            for point in keypoints or ()
        ]
        return np.array(rows, dtype=np.float64).reshape(-1, 3)

    people = [
        _person(
            points(pose.body.keypoints), (points(pose.left_hand), points(pose.right_hand)), points(pose.face), where
        )
        for pose in results
    ]
    return [person for person in people if person is not None]


def _from_dwpose(keypoints: np.ndarray, scores: np.ndarray, where: str) -> list[Detection]:
    keypoints, scores = np.asarray(keypoints, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if keypoints.ndim != 3 or keypoints.shape[1:] != (134, 2) or scores.shape != keypoints.shape[:2]:
        raise ValueError(
            f"DWPose keypoints and scores of {where} have shapes {keypoints.shape} and {scores.shape}, but (N, 134, 2) and "
            "(N, 134) are needed."
        )
    people = []
    for points, score in zip(keypoints, scores):
        joints, joint_scores = map_joints(points, score, DWPOSE_MAPPING)
        if (joint_scores[BODY] > 0).any():
            people.append(Detection(joints, joint_scores, points[24:92][score[24:92] > 0.3]))
    return people


def _read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"`source` holds a file that is not JSON ({error}): {path}") from error


def _load_frames(source) -> list:
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            files = sorted(path.glob("*.json"))
            if not files:
                raise FileNotFoundError(f"`source` is a folder without .json files: {path}")
            return [_read_json(file) for file in files]
        if not path.is_file():
            raise FileNotFoundError(f"`source` names no file or folder: {path}")
        frames = _read_json(path)
        return frames if isinstance(frames, list) else [frames]
    return list(source)


def _follow(frames: list[list[Detection]], person) -> list[Detection | None]:
    """Who is followed through the frames: chosen where people are first seen, then whoever is nearest to the last place."""
    first = next((index for index, people in enumerate(frames) if people), None)
    if first is None:
        raise ValueError("`source` shows no person in any frame.")
    people = frames[first]
    boxes = np.array([each.box for each in people])
    sizes = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    if person is None or isinstance(person, Integral):
        index = int(person or 0)
        if not 0 <= index < len(people):
            raise ValueError(f"`person` is {person}, but {len(people)} were found in frame {first}; the largest is 0.")
        chosen = int(np.argsort(-sizes, kind="stable")[index])
    else:
        where = np.asarray(person, dtype=np.float64)
        if where.shape not in ((2,), (4,)):
            raise ValueError(
                f"`person` must be None, an index, a point (x, y) or a box (x0, y0, x1, y1), but is {person!r}."
            )
        middle = where if where.shape == (2,) else (where[:2] + where[2:]) / 2
        chosen = int(np.argmin(np.linalg.norm((boxes[:, :2] + boxes[:, 2:]) / 2 - middle, axis=1)))
    followed: list[Detection | None] = [None] * len(frames)
    followed[first] = last = people[chosen]
    for index in range(first + 1, len(frames)):
        size = max(float(np.linalg.norm(last.box[2:] - last.box[:2])), 1.0)
        distances = [_distance(each, last) / size for each in frames[index]]
        # Somebody who was never nearer than a third of a body is another person.
        if distances and min(distances) < 0.35:
            followed[index] = last = frames[index][int(np.argmin(distances))]
    if max(len(each) for each in frames) > 1 and person is None:
        logger.warning("Several people were found; the largest of the first frame is followed. Choose with `person`.")
    return followed


def _distance(one: Detection, other: Detection) -> float:
    shared = (one.scores[BODY] > 0) & (other.scores[BODY] > 0)
    if not shared.any():
        return float("inf")
    return float(np.linalg.norm(one.keypoints[BODY][shared] - other.keypoints[BODY][shared], axis=1).mean())


def load_openpose_motion(
    source: str | os.PathLike | Iterable,
    fps: float,
    width: int | None = None,
    height: int | None = None,
    focal_length: float | None = None,
    person: int | tuple[float, ...] | None = None,
    threshold: float = 0.3,
    smoothed: bool = True,
) -> MotionSequence:
    """
    A motion from 2D keypoints; this module's docstring lists what is read.

    Args:
        source (`str`, `os.PathLike` or an iterable):
            A folder of JSON files in the order of their names, one JSON file, or frames in memory: JSON dictionaries,
            lists of `PoseResult`, or DWPose's pairs.
        fps (`float`): frames in a second.
        width, height (`int`, *optional*): of the pictures, in pixels; not needed where the JSON has a canvas size.
        focal_length (`float`, *optional*): pixels; default the picture's diagonal.
        person (`int` or `tuple`, *optional*):
            Whom to follow: default the largest in the first frame with people, else an index by size there, a point
            `(x, y)` or a box `(x0, y0, x1, y1)`.
        threshold (`float`, defaults to 0.3): the detector's score from which a point is drawn (confidence 0.5).
        smoothed (`bool`, defaults to `True`): whether gaps are filled and jitter is taken out.

    Returns:
        `MotionSequence` with body, head, and, where face points were found, face boxes.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: frames that cannot be read, no person, no size, or a `person` that is not there.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"`threshold` must be between 0 and 1, but is {threshold}.")
    raw = _load_frames(source)
    if not raw:
        raise ValueError("`source` has no frames.")
    canvas = next(
        (
            (int(frame["canvas_width"]), int(frame["canvas_height"]))
            for frame in raw
            if isinstance(frame, dict) and {"canvas_width", "canvas_height"} <= frame.keys()
        ),
        (None, None),
    )
    width, height = width or canvas[0], height or canvas[1]
    if not width or not height:
        raise ValueError("`width` and `height` of the pictures are needed, since `source` does not say them.")
    frames = []
    for index, frame in enumerate(raw):
        where = f"frame {index}"
        if isinstance(frame, dict) and "people" in frame:
            frames.append(_from_json(frame, (width, height), where))
        elif isinstance(frame, tuple) and len(frame) == 2 and np.ndim(frame[0]) == 3:
            frames.append(_from_dwpose(*frame, where))
        elif isinstance(frame, list) and all(hasattr(pose, "body") for pose in frame):
            frames.append(_from_pose_results(frame, (width, height), where))
        else:
            raise ValueError(
                f"`source` has a frame {index} that is neither OpenPose JSON (with `people`) nor a list of PoseResult nor "
                "DWPose's keypoints and scores."
            )
    followed = _follow(frames, person)

    num_frames = len(followed)
    keypoints, confidence = np.zeros((num_frames, NUM_JOINTS, 2)), np.zeros((num_frames, NUM_JOINTS))
    boxes, face_confidence = np.zeros((num_frames, 4)), np.zeros(num_frames)
    for index, detection in enumerate(followed):
        if detection is None:
            continue
        keypoints[index] = detection.keypoints
        confidence[index] = confidence_from_scores(detection.scores, threshold)
        if len(detection.face) >= 10:
            boxes[index] = np.concatenate([detection.face.min(axis=0), detection.face.max(axis=0)])
            face_confidence[index] = 1.0
    focal_length = focal_length or default_focal_length(width, height)
    return motion_from_keypoints(
        keypoints, confidence, boxes, face_confidence, fps, width, height, focal_length, smoothed=smoothed
    )
