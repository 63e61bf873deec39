"""MediaPipe's landmarkers for one capture: created quietly, fed with crops, read in pixels of the frame."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .appearance import head_outline, part_colours
from .download import FACE_MODEL, HAND_MODEL, POSE_MODEL
from .head_pose import FaceLook, head_guess, read_face
from .tracking import Person, colour_histogram, drop_duplicates


MAX_PEOPLE = 4
PEOPLE_WORKERS = 2
# The face landmarker sees a square this many times as wide as the face.
FACE_CROP = 3.0
# Crops are scaled to this many pixels: the landmarkers' own inputs are 192 to 256, from the part that holds face or hand.
_CROP_PIXELS = 384
# The pose landmarks of the mirrored picture in the order of the picture's.
_MIRROR = [0, 4, 5, 6, 1, 2, 3, 8, 7, 10, 9, *(index + 1 if index % 2 else index - 1 for index in range(11, 33))]
# What tells people from chance finds, between the figures of both (34 pictures of hands, headless bodies and things, and 52 of
# people). The mirrored picture's pose lies at 0.01 to 0.16 sizes of a person from the pose, at 0.38 and more of others; the
# mirrored face at 0.02 sides of the face.
_MIRROR_ERROR = 0.25
_MIRROR_FACE_ERROR = 0.1
_NARROWEST_SHOULDERS = 0.3
# Square metres above the shoulders that are surely the figure's: 0.029 to 0.061 for 82 people, a fifth of them without a face;
# of 48 headless ones 45 are under this, since both pictures, as they are and mirrored, have to show it.
_HEAD_AREA = 0.028
# As many frames as have to show a head without a face until somebody is surely a person.
SURE = 3


@dataclass
class Hand:
    """
    A hand found in one frame.

    Args:
        keypoints (`(21, 2)`): pixels of the frame.
        world (`(21, 3)`): metres about the hand's middle, x right, y down, z away from the camera.
        is_left (`bool`): whether it looks like a left hand.
        score (`float`): how sure that is, in [0, 1].
    """

    keypoints: np.ndarray
    world: np.ndarray
    is_left: bool
    score: float


class NativeLogsOff:
    """
    MediaPipe's C++ code writes lines to the process's standard error that say nothing to a user; not in here. Several threads
    may be in here at the same time.
    """

    _lock = threading.Lock()
    _inside = 0
    _kept = -1

    def __enter__(self) -> None:
        cls = type(self)
        with cls._lock:
            if cls._inside == 0:
                sys.stderr.flush()
                cls._kept = os.dup(2)
                silent = os.open(os.devnull, os.O_WRONLY)
                os.dup2(silent, 2)
                os.close(silent)
            cls._inside += 1

    def __exit__(self, *error) -> None:
        cls = type(self)
        with cls._lock:
            cls._inside -= 1
            if cls._inside == 0:
                os.dup2(cls._kept, 2)
                os.close(cls._kept)


def square_crop(
    frame: np.ndarray, middle: np.ndarray, side: float, pixels: int = _CROP_PIXELS
) -> tuple[np.ndarray, float, float, float]:
    """
    A square of `frame` around `middle`, black where it leaves the picture, scaled to `pixels`; with its corner and side in
    pixels of the frame.
    """
    height, width = frame.shape[:2]
    side = max(int(round(side)), 8)
    x0, y0 = int(round(middle[0] - side / 2)), int(round(middle[1] - side / 2))
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x0 + side, width), min(y0 + side, height)
    square = np.zeros((side, side, 3), dtype=np.uint8)
    if right > left and bottom > top:
        square[top - y0 : bottom - y0, left - x0 : right - x0] = frame[top:bottom, left:right]
    picture = Image.fromarray(square).resize((pixels, pixels), Image.Resampling.BILINEAR)
    return np.asarray(picture), float(x0), float(y0), float(side)


def _points(landmarks, dimensions: str) -> np.ndarray:
    return np.array([[getattr(landmark, name) for name in dimensions] for landmark in landmarks])


class Landmarkers:
    """
    The pose, face and hand landmarkers; a context manager that closes them.

    All but one look at single pictures: in MediaPipe's video mode one pose that is being followed keeps others from being
    found. The exception is `follow`, for somebody whom the detector, which goes by faces, has lost.

    Args:
        folder (`Path`): holds the three bundles.
    """

    def __init__(self, folder: Path):
        from mediapipe import Image as MediaPipeImage
        from mediapipe import ImageFormat
        from mediapipe.tasks.python import BaseOptions, vision

        self._to_image = lambda array: MediaPipeImage(image_format=ImageFormat.SRGB, data=np.ascontiguousarray(array))
        self._warm: set = set()
        self._clock = 0
        self._stack = ExitStack()
        self._outlines = None

        def options(name: str) -> BaseOptions:
            return BaseOptions(model_asset_path=str(folder / name))

        # Made when a pose has to be proven: masks take time, and so does another landmarker.
        self._make_outlines = lambda: vision.PoseLandmarker.create_from_options(
            vision.PoseLandmarkerOptions(options(POSE_MODEL), num_poses=MAX_PEOPLE, output_segmentation_masks=True)
        )
        with NativeLogsOff():
            self._people = [
                self._stack.enter_context(
                    vision.PoseLandmarker.create_from_options(
                        vision.PoseLandmarkerOptions(options(POSE_MODEL), num_poses=MAX_PEOPLE)
                    )
                )
                for _ in range(PEOPLE_WORKERS)
            ]
            self._person = self._stack.enter_context(
                vision.PoseLandmarker.create_from_options(vision.PoseLandmarkerOptions(options(POSE_MODEL)))
            )
            self._followed = self._stack.enter_context(
                vision.PoseLandmarker.create_from_options(
                    # More than one pose: MediaPipe then leaves out its smoothing, which lags.
                    vision.PoseLandmarkerOptions(
                        options(POSE_MODEL), running_mode=vision.RunningMode.VIDEO, num_poses=2
                    )
                )
            )
            self._face = self._stack.enter_context(
                vision.FaceLandmarker.create_from_options(
                    vision.FaceLandmarkerOptions(
                        options(FACE_MODEL),
                        output_face_blendshapes=True,
                        output_facial_transformation_matrixes=True,
                    )
                )
            )
            self._hands = self._stack.enter_context(
                vision.HandLandmarker.create_from_options(
                    vision.HandLandmarkerOptions(options(HAND_MODEL), num_hands=2)
                )
            )

    def __enter__(self) -> "Landmarkers":
        return self

    def __exit__(self, *error) -> None:
        self._stack.close()

    def _detect(self, detect: Callable, *arguments):
        """What a landmarker's `detect` gives; its last lines go to the log with its first result."""
        landmarker = detect.__self__
        if landmarker in self._warm:
            return detect(*arguments)
        with NativeLogsOff():
            result = detect(*arguments)
        landmarks = next(value for name, value in vars(result).items() if name.endswith("_landmarks"))
        if landmarks:
            self._warm.add(landmarker)
        return result

    def find_people(self, frame: np.ndarray, worker: int = 0) -> list[Person]:
        """
        Everybody in a frame; poses with the mouth further from the neck than the eyes are nonsense and left out. Calls for
        different workers, under `PEOPLE_WORKERS`, may run at the same time.
        """
        result = self._detect(self._people[worker].detect, self._to_image(frame))
        size = np.array([frame.shape[1], frame.shape[0]], dtype=np.float64)
        people = [
            person_of(landmarks, world, size, np.zeros(2))
            for landmarks, world in zip(result.pose_landmarks, result.pose_world_landmarks)
        ]
        people = [person for person in people if _is_upright_on_neck(person)]
        for person in people:
            person.appearance = colour_histogram(frame, person)
            person.colours = part_colours(frame, person.keypoints, person.visibility)
        return people

    def find_people_in_picture(self, frame: np.ndarray) -> list[Person]:
        """
        Everybody in a still picture: besides the whole, half overlapping squares along its longer side are searched, since
        the detector sees any picture at 224 pixels and misses people in wide ones. A person may be found several times.
        """
        whole = self.find_people(frame)
        people = list(whole)
        height, width = frame.shape[:2]
        side, length = min(height, width), max(height, width)
        for along in np.arange(side / 2, length - side / 2 + 1, side / 2) if length > 1.2 * side else []:
            middle = np.array([along, height / 2] if width > height else [width / 2, along])
            person = self.find_person(frame, middle, side)
            # a square may cut off an arm that the whole picture shows
            if person is not None and all(len(drop_duplicates([other, person])) == 2 for other in whole):
                people.append(person)
        return people

    def find_person(self, frame: np.ndarray, middle: np.ndarray, side: float) -> Person | None:
        """The person in a square around `middle`, all in pixels of the frame."""
        crop, x0, y0, side = square_crop(frame, middle, side)
        result = self._detect(self._person.detect, self._to_image(crop))
        if not result.pose_landmarks:
            return None
        person = person_of(
            result.pose_landmarks[0], result.pose_world_landmarks[0], np.array([side, side]), np.array([x0, y0])
        )
        person.appearance = colour_histogram(frame, person)
        return person if _is_upright_on_neck(person) else None

    def confirms_person(self, frame: np.ndarray, person: Person) -> int:
        """
        What this frame says of whether a pose is a person's: the pose landmarker puts one on hands, clothes and lamps too, as
        sure of it as of people. `SURE` for a face, 1 for a head without one, as of somebody seen from behind, -1 for a body
        without a head, 0 where nothing can be told.

        It needs shoulders that fit the trunk and a head in the picture. Without a face the mirrored picture has to give the
        mirrored pose, which chance finds do not, and the figure has to go on above the shoulders.
        """
        height, width = frame.shape[:2]
        face, shoulders, hips = person.keypoints[:11], person.world[[11, 12]], person.world[[23, 24]]
        inside = ((face >= 0) & (face <= [width, height])).all(axis=1)
        trunk = np.linalg.norm(shoulders.mean(axis=0) - hips.mean(axis=0))
        if inside.mean() < 0.5 or np.linalg.norm(shoulders[0] - shoulders[1]) < _NARROWEST_SHOULDERS * trunk:
            return 0
        middle, side = head_guess(person.keypoints)
        look = self.find_face(frame, [(middle, side), (middle, 1.8 * side)], lambda look: True)
        if look is not None and look.fits(person.keypoints):
            return SURE
        # A pose that lies wrong on somebody: the face tells, and the pose is done again around it.
        if look is not None and self.confirms_face(frame, look):
            return SURE
        areas = []
        for mirrored in (True, False):
            found, area = self._outlined_head(frame, person, mirrored)
            if not found:
                return 0
            areas.append(area)
        return 1 if min(areas) > _HEAD_AREA else -1

    def _outlined_head(self, frame: np.ndarray, person: Person, mirrored: bool) -> tuple[bool, float]:
        """Whether the picture, or its mirror image, gives the pose again, and the area (`head_outline`) of its head."""
        width = frame.shape[1]
        x0, y0, x1, y1 = person.box
        middle = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
        if mirrored:
            frame, middle[0] = frame[:, ::-1], width - middle[0]
        crop, x0, y0, side = square_crop(frame, middle, 1.35 * max(x1 - x0, y1 - y0))
        if self._outlines is None:
            with NativeLogsOff():
                self._outlines = self._stack.enter_context(self._make_outlines())
        result = self._detect(self._outlines.detect, self._to_image(crop))
        for index, (landmarks, world) in enumerate(zip(result.pose_landmarks, result.pose_world_landmarks)):
            again = person_of(landmarks, world, np.array([side, side]), np.array([x0, y0]))
            keypoints, visibility = again.keypoints, again.visibility
            if mirrored:
                keypoints, visibility = keypoints[_MIRROR] * [-1, 1] + [width, 0], visibility[_MIRROR]
            weight = np.minimum(visibility, person.visibility)
            error = np.linalg.norm(keypoints - person.keypoints, axis=1)
            if (weight * error).sum() < _MIRROR_ERROR * weight.sum() * person.size:
                mask = np.squeeze(result.segmentation_masks[index].numpy_view())
                return True, head_outline(mask, (again.keypoints - [x0, y0]) * len(mask) / side, again.world)
        return False, 0.0

    def confirms_face(self, frame: np.ndarray, look: FaceLook) -> bool:
        """Whether a face is one: the mirrored picture has to give it mirrored. Patterns are taken for faces now and then."""
        width = frame.shape[1]
        again = self._look_at_face(
            frame[:, ::-1], np.array([width - look.middle[0], look.middle[1]]), FACE_CROP * look.side
        )
        if again is None:
            return False
        points = again.points[[0, 2, 1, 4, 3, 6, 5]]
        points[:, 0] = width - points[:, 0]
        return bool(np.linalg.norm(points - look.points, axis=1).mean() < _MIRROR_FACE_ERROR * look.side)

    def follow(self, frame: np.ndarray, person: Person, previous: np.ndarray | None) -> Person | None:
        """
        The person who was at `person` a frame before, by MediaPipe's tracking from frame to frame, which needs no face.

        Everything but the surroundings of the person is blacked out, so that nobody else is followed. `previous`, the frame
        that `person` was seen in, is given when following begins.
        """
        x0, y0, x1, y1 = person.box
        reach = 0.6 * max(x1 - x0, y1 - y0)
        left, top = (int(max(value - reach, 0)) for value in (x0, y0))
        right, bottom = int(max(x1 + reach, left + 1)), int(max(y1 + reach, top + 1))
        size = np.array([frame.shape[1], frame.shape[0]], dtype=np.float64)
        # The first look may still be at whoever was followed before.
        for picture in (frame,) if previous is None else (previous, previous, frame):
            masked = np.zeros_like(picture)
            masked[top:bottom, left:right] = picture[top:bottom, left:right]
            self._clock += 33
            result = self._detect(self._followed.detect_for_video, self._to_image(masked), self._clock)
        found = [
            person_of(landmarks, world, size, np.zeros(2))
            for landmarks, world in zip(result.pose_landmarks, result.pose_world_landmarks)
        ]
        found = [each for each in found if each.distance(person) < 0.35]
        if not found:
            return None
        best = min(found, key=lambda each: each.distance(person))
        best.appearance = colour_histogram(frame, best)
        return best

    def poses_below(self, frame: np.ndarray, look: FaceLook) -> Iterator[Person]:
        """The poses found in crops of several sizes around the person that a face belongs to, the likeliest size first."""
        for reach, below in ((6.5, 1.5), (4.5, 0.9), (9.0, 2.2)):
            person = self.find_person(frame, look.middle + np.array([0, below * look.side]), reach * look.side)
            if person is not None:
                yield person

    def find_face(
        self, frame: np.ndarray, guesses: list[tuple[np.ndarray, float]], accept: Callable[[FaceLook], bool]
    ) -> FaceLook | None:
        """The face at the first of `guesses` (middle and side in pixels) with one to `accept`, seen at its proper size."""
        for middle, side in guesses:
            look = self._look_at_face(frame, middle, FACE_CROP * side)
            if look is None or not accept(look):
                continue
            if not 0.6 < look.side / side < 1.7:
                # Found in a crop that did not fit: once more, so that landmarks are as exact as in other frames.
                look = self._look_at_face(frame, look.middle, FACE_CROP * look.side) or look
            return look
        return None

    def _look_at_face(self, frame: np.ndarray, middle: np.ndarray, side: float) -> FaceLook | None:
        crop, x0, y0, side = square_crop(frame, middle, side)
        result = self._detect(self._face.detect, self._to_image(crop))
        if not result.face_landmarks:
            return None
        # The first of MediaPipe's 52 is "_neutral"; ARKit's last, "tongueOut", it does not give.
        blendshapes = np.array([each.score for each in result.face_blendshapes[0]][1:] + [0.0])
        return read_face(
            _points(result.face_landmarks[0], "xy"),
            result.facial_transformation_matrixes[0],
            blendshapes,
            x0,
            y0,
            side,
        )

    def find_hands(self, frame: np.ndarray, middle: np.ndarray, side: float) -> list[Hand]:
        """Up to two hands in a square around `middle`, in pixels of the frame."""
        crop, x0, y0, side = square_crop(frame, middle, side)
        result = self._detect(self._hands.detect, self._to_image(crop))
        return [
            Hand(
                keypoints=_points(landmarks, "xy") * side + np.array([x0, y0]),
                world=_points(world, "xyz"),
                is_left=handedness[0].category_name == "Left",
                score=float(handedness[0].score),
            )
            for landmarks, world, handedness in zip(
                result.hand_landmarks, result.hand_world_landmarks, result.handedness
            )
        ]


def person_of(landmarks, world, size: np.ndarray | float, corner: np.ndarray) -> Person:
    """A pose of the landmarker's in a square of `size` pixels whose corner is at `corner`, in pixels of the frame."""
    return Person(
        keypoints=_points(landmarks, "xy") * size + corner,
        world=_points(world, "xyz"),
        # 0 is kept for what is not the person's.
        visibility=np.clip([landmark.visibility for landmark in landmarks], 1e-3, 1).astype(np.float64),
    )


def _is_upright_on_neck(person: Person) -> bool:
    """A small person is sometimes taken upside down, the shoulders on the hat. Mouths are nearer to necks than eyes are."""
    shoulders = person.keypoints[[11, 12]]
    slack = 0.05 * np.linalg.norm(shoulders[0] - shoulders[1])
    for points, allowed in ((person.world, 0.0), (person.keypoints, slack)):
        neck = points[[11, 12]].mean(axis=0)
        eyes = np.linalg.norm(points[[2, 5]].mean(axis=0) - neck)
        mouth = np.linalg.norm(points[[9, 10]].mean(axis=0) - neck)
        if mouth >= eyes + allowed:
            return False
    return True
