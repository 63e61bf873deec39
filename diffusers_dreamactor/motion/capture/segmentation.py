"""Where in a frame the person is, pixel by pixel: MediaPipe's pose landmarker also segments."""

from pathlib import Path

import numpy as np
from PIL import Image

from ..sequence import MotionSequence
from ..skeleton import BODY, JOINT_INDEX, MEDIAPIPE_POSE_MAPPING, NUM_JOINTS, map_joints
from .download import POSE_MODEL
from .landmarkers import NativeLogsOff, person_of, square_crop
from .people_apart import Figure, Owners
from .tracking import CutDetector, Person, PersonTracker, colour_histogram, near, overlap


_MAX_PEOPLE = 3
# How far from the drawn joints a pose may lie to be the same person's, as a share of the person's extent.
_SAME_PERSON = 0.12
# Who is so far around the person may touch it, in its extents; who is so near to where another was is that one, in sizes.
_AROUND = 2.2
_SAME_OTHER = 0.35
# Frames from one look around to the next while nobody else is there.
_LOOK_AROUND_EVERY = 3
# So long a person who is lost among others is taken to be where it was.
_HELD_SECONDS = 2.0
# What is so near to the bones is flesh, in lengths of the trunk; it is added where less than this share of it was found.
_FLESH = 0.06
_COVERED = 0.6
# The person's number among others.
_OWN = -1
# Longer side in pixels of the picture in which people's pixels are told apart.
_JUDGED_PIXELS = 320
# MediaPipe's landmarks of shoulders and hips, and our joints
_TRUNK = tuple(
    (landmark, JOINT_INDEX[name])
    for landmark, name in ((12, "right_shoulder"), (11, "left_shoulder"), (24, "right_hip"), (23, "left_hip"))
)
_HIPS = (JOINT_INDEX["right_hip"], JOINT_INDEX["left_hip"])
_LEGS = tuple(JOINT_INDEX[f"{side}_{name}"] for side in ("left", "right") for name in ("hip", "knee", "ankle"))


class PersonSegmenter:
    """
    Masks of a person whose motion is known; a context manager that closes the landmarker.

    Args:
        folder (`Path`): holds `pose_landmarker_full.task`.
        fps (`float`): frames in a second.
    """

    def __init__(self, folder: Path, fps: float):
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
        self._fps, self._cuts = fps, CutDetector()
        self._start_anew()

    def _start_anew(self) -> None:
        """Knows nobody, as at the beginning of a shot."""
        self._others, self._owners = PersonTracker(self._fps, max_gap_seconds=_HELD_SECONDS), Owners()
        # The person's joints where they were last drawn, and in which frames.
        self._joints, self._drawn_in = np.zeros((NUM_JOINTS, 2)), np.full(NUM_JOINTS, -(10**9))

    def __enter__(self) -> "PersonSegmenter":
        return self

    def __exit__(self, *error) -> None:
        self._landmarker.close()

    def segment(self, frame: np.ndarray, motion: MotionSequence, index: int) -> np.ndarray | None:
        """
        The mask of the person who is at frame `index` of `motion`, in pixels of `frame`; to be asked for in their order.

        Returns:
            `np.ndarray` of shape `(H, W)`, float32 in [0, 1]; of zeros where the motion has nobody, `None` where it has
            somebody whom the landmarker does not find.
        """
        if self._cuts.update(frame):
            self._start_anew()
        drawn, held = reached_points(motion, index)
        if len(drawn) == 0:
            return np.zeros(frame.shape[:2], dtype=np.float32)
        if motion.body is not None:
            self._follow_joints(motion, index)
        known = self._known(index)
        looks = [self._look(frame, drawn, motion, index)]
        held = np.concatenate([held, self._joints[known & (self._drawn_in < index)]])
        if len(held):
            # legs that another hides, or that are lost, are somewhere, too
            looks.append(self._look(frame, np.concatenate([drawn, held]), motion, index))
        found = [look for look in looks if look is not None]
        own = np.max(found, axis=0).clip(0, 1) if found else None
        somebody = any(index - track.last_frame <= self._others.max_gap for track in self._others.tracks)
        # Without joints nobody's place is known that could be told from another's.
        if not known.any() or not (somebody or index % _LOOK_AROUND_EVERY == 0):
            return own
        picture = self._small(frame)
        reached = np.concatenate([drawn, self._joints[known]])
        others, again = self._find_others(frame, picture, reached, motion, index)
        if again is not None and own is None:
            person, own = again
            joints, visibility = map_joints(person.keypoints, person.visibility, MEDIAPIPE_POSE_MAPPING)
            seen = (visibility > 0.5) & (self._drawn_in < index)
            self._joints[seen], self._drawn_in[seen] = joints[seen], index
        return self._own_of_all(frame, picture, index, own, others) if others else own

    @staticmethod
    def _small(frame: np.ndarray) -> np.ndarray:
        """The picture in which colours and places are judged."""
        height, width = frame.shape[:2]
        step = max(1, max(height, width) / _JUDGED_PIXELS)
        size = max(1, round(width / step)), max(1, round(height / step))
        return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX))

    def _follow_joints(self, motion: MotionSequence, index: int) -> None:
        """Where the person's joints are; those that are not drawn in this frame move along with those that are."""
        keypoints, seen = motion.body.keypoints[index], motion.body.confidence[index] >= 0.5
        both = seen & (self._drawn_in == index - 1)
        if both.any():
            self._joints += (keypoints[both] - self._joints[both]).mean(axis=0)
        self._joints[seen], self._drawn_in[seen] = keypoints[seen], index

    def _known(self, index: int) -> np.ndarray:
        """Joints `(62,)` bool that are drawn, or were a moment ago: what is not surely the person's is not drawn near others."""
        return index - self._drawn_in <= self._others.max_gap

    def _look(self, frame: np.ndarray, points: np.ndarray, motion: MotionSequence, index: int) -> np.ndarray | None:
        """The person's mask in a square around points, or None."""
        low, high = points.min(axis=0), points.max(axis=0)
        seen = self._poses(frame, (low + high) / 2, 1.3 * (high - low).max())
        best = _same_person(seen, motion, index)
        return None if best is None else seen.mask(best)

    def _find_others(
        self, frame: np.ndarray, picture: np.ndarray, reached: np.ndarray, motion: MotionSequence, index: int
    ) -> tuple[dict[int, tuple[Person, np.ndarray | None]], tuple[Person, np.ndarray] | None]:
        """
        Everybody else within reach, by number, and their masks where they are found; and who was taken for somebody else by
        its place, but wears what the person wears.
        """
        size = picture.shape[1::-1]
        low, high = reached.min(axis=0), reached.max(axis=0)
        around = self._poses(frame, (low + high) / 2, _AROUND * (high - low).max())
        own = _same_person(around, motion, index)
        people, again = [], None
        for number, person in enumerate(around.people):
            if number == own or _is_drawn(person, motion, index):
                continue
            mask = around.mask(number)
            if self._owners.whose(picture, _resized(mask, size)) == _OWN:
                again = person, mask
                continue
            person.appearance = colour_histogram(frame, person)
            people.append(person)
        self._others.update(index, people)
        others = {}
        for track in self._others.tracks:
            person = track.detections[track.last_frame]
            # only the latest: the memory of an hour of video does not grow
            track.detections = {track.last_frame: person}
            if index - track.last_frame > self._others.max_gap or not near(person.box, np.concatenate([low, high])):
                continue
            closer = self._poses(
                frame, (person.box[:2] + person.box[2:]) / 2, 1.3 * (person.box[2:] - person.box[:2]).max()
            )
            own, found = _same_person(closer, motion, index), []
            for number, each in enumerate(closer.people):
                distance = person.distance(each)
                if number != own and distance < _SAME_OTHER:
                    mask = closer.mask(number)
                    if self._owners.whose(picture, _resized(mask, size)) in (None, track.id):
                        found.append((distance, number, mask))
            if found:
                _, number, mask = min(found, key=lambda each: each[0])
                if track.last_frame < index:
                    # behind somebody, yet seen when looked for
                    track.detections[index] = person = closer.people[number]
                others[track.id] = person, mask
            elif track.id in self._owners.known:
                others[track.id] = person, None
            # ... while a pose of two people's limbs, which is not found again, is nobody
        return others, again

    def _own_of_all(
        self,
        frame: np.ndarray,
        picture: np.ndarray,
        index: int,
        own: np.ndarray | None,
        others: dict[int, tuple[Person, np.ndarray | None]],
    ) -> np.ndarray:
        """What is the person's of all that is somebody's."""
        masks = {number: mask for number, (_, mask) in others.items() if mask is not None}
        if own is not None:
            masks[_OWN] = own
        known = self._known(index)
        skeletons = {_OWN: (self._joints, known)}
        for number, (person, _) in others.items():
            joints, visibility = map_joints(person.keypoints, person.visibility, MEDIAPIPE_POSE_MAPPING)
            skeletons[number] = joints, visibility > 0.5
        everybody = list(masks.values())
        if known.sum() > 2:
            low, high = self._joints[known].min(axis=0), self._joints[known].max(axis=0)
            there = self._poses(frame, (low + high) / 2, 1.4 * (high - low).max())
            everybody += [there.mask(number, alone=False) for number in range(len(there.people))]
        height, width = frame.shape[:2]
        size = picture.shape[1::-1]
        scale = np.array(size) / [width, height]
        figures = {each: Figure(joints * scale, seen, size[1], size[0]) for each, (joints, seen) in skeletons.items()}
        small = {each: _resized(mask, size) for each, mask in masks.items()}
        boxes = {_OWN: _box(self._joints[known]), **{number: person.box for number, (person, _) in others.items()}}
        if own is not None and not any(overlap(boxes[_OWN], boxes[number]) for number in others):
            self._owners.learn(picture, small)
        odds = self._owners.odds(picture, figures, _OWN)
        union = np.max(everybody, axis=0, initial=0)
        flesh = (figures[_OWN].away < _FLESH) & (odds > 0)
        if flesh.any() and (_resized(union, size)[flesh] >= 0.5).mean() < _COVERED:
            union = np.maximum(union, _resized(flesh.astype(np.float32), (width, height)))
        return np.where(_resized(odds.astype(np.float32), (width, height)) > 0, union, 0).clip(0, 1)

    def _poses(self, frame: np.ndarray, middle: np.ndarray, side: float) -> "_Poses":
        """All poses in a square of the frame."""
        picture, x0, y0, side = square_crop(frame, middle, max(side, 16))
        image = self._to_image(picture)
        if self._is_warm:
            found = self._landmarker.detect(image)
        else:
            with NativeLogsOff():
                found = self._landmarker.detect(image)
            self._is_warm = bool(found.pose_landmarks)
        return _Poses(found, np.array([x0, y0]), side, frame.shape[:2])


class _Poses:
    """The poses that the landmarker found in a square of a frame."""

    def __init__(self, found, corner: np.ndarray, side: float, shape: tuple[int, int]):
        self._masks, self._corner, self._side, self._shape = found.segmentation_masks, corner, side, shape
        worlds = found.pose_world_landmarks
        self.side = side
        self.people = [person_of(marks, world, side, corner) for marks, world in zip(found.pose_landmarks, worlds)]

    def mask(self, number: int, alone: bool = True) -> np.ndarray:
        """One's mask `(H, W)` in the frame; if `alone`, what is more another's here is not in it."""
        soft, *others = (
            np.squeeze(self._masks[each].numpy_view()).astype(np.float32)
            for each in sorted(range(len(self._masks)), key=lambda each: each != number)
        )
        for other in others if alone else ():
            soft = np.where(other > soft, 0, soft)
        side = int(self._side)
        soft = _resized(soft, (side, side))
        (height, width), (x0, y0) = self._shape, self._corner.astype(int)
        left, top, right, bottom = max(x0, 0), max(y0, 0), min(x0 + side, width), min(y0 + side, height)
        mask = np.zeros((height, width), dtype=np.float32)
        if right > left and bottom > top:
            mask[top:bottom, left:right] = soft[top - y0 : bottom - y0, left - x0 : right - x0]
        return mask


def _box(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))


def _same_person(poses: _Poses, motion: MotionSequence, index: int) -> int | None:
    """Which of the poses found is the person of `motion`: nearest to its head, shoulders and hips."""
    best, least = None, _SAME_PERSON * poses.side
    for number, person in enumerate(poses.people):
        distance = _distance(person, motion, index)
        if distance < least:
            best, least = number, distance
    return best


def _is_drawn(person: Person, motion: MotionSequence, index: int) -> bool:
    """Whether a pose is the drawn person's once more."""
    return _distance(person, motion, index) < 0.25 * person.size


def _distance(person: Person, motion: MotionSequence, index: int) -> float:
    """Mean distance in pixels of a pose's head, shoulders and hips from the motion's; inf where it has none of them."""
    pairs = []
    if motion.head is not None and motion.head.confidence[index] >= 0.5:
        pairs.append((person.keypoints[[7, 8]].mean(axis=0), motion.head.center[index]))
    if motion.body is not None:
        for landmark, joint in _TRUNK:
            if motion.body.confidence[index, joint] >= 0.5:
                pairs.append((person.keypoints[landmark], motion.body.keypoints[index, joint]))
    return float(np.mean([np.linalg.norm(own - drawn) for own, drawn in pairs])) if pairs else np.inf


def reached_points(motion: MotionSequence, index: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Points `(N, 2)` in pixels that a person reaches in a frame: joints that are drawn and around the head, none where nobody is;
    and hips and legs that are not drawn, where they are held inside the picture or at its edge.
    """
    drawn, held = [], []
    if motion.body is not None:
        keypoints, seen = motion.body.keypoints[index], motion.body.confidence[index] >= 0.5
        drawn.extend(keypoints[BODY][seen[BODY]])
        inside = ((keypoints >= 0) & (keypoints < [motion.width, motion.height])).all(axis=-1)
        held.extend(keypoints[joint] for joint in _LEGS if inside[joint] and not seen[joint])
        if seen.any() and not seen[list(_HIPS)].all():
            # a trunk whose hips are below the picture reaches to its edge
            held.extend(np.clip(keypoints[list(_HIPS)], 0, [motion.width - 1, motion.height - 1]))
    if motion.head is not None and motion.head.confidence[index] >= 0.5:
        center, reach = motion.head.center[index], 1.4 * motion.head.radius[index]
        drawn.extend([center - reach, center + reach])
    return tuple(np.array(points, dtype=np.float64).reshape(-1, 2) for points in (drawn, held))


def points_inside(motion: MotionSequence, index: int) -> np.ndarray:
    """Points `(N, 2)` in pixels that are inside the person in a frame: joints that are drawn, and the head's middle."""
    points = []
    if motion.body is not None:
        points.extend(motion.body.keypoints[index, BODY][motion.body.confidence[index, BODY] >= 0.5])
    if motion.head is not None and motion.head.confidence[index] >= 0.5:
        points.append(motion.head.center[index])
    return np.array(points, dtype=np.float64).reshape(-1, 2)
