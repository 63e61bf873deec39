"""Following several people through a video, and noticing cuts."""

from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from .appearance import Wardrobe


# MediaPipe pose landmarks of the trunk and the head, which move least against the person as a whole.
_STEADY = [0, 2, 5, 7, 8, 11, 12, 23, 24]
_SHOULDERS_HIPS = [11, 12, 23, 24]
# Likeness of colours (Bhattacharyya) from which somebody who comes is somebody who was there before: in general, and where all
# others are under `_UNLIKE`.
_SURELY_ALIKE = 0.75
_RATHER_ALIKE = 0.55
_UNLIKE = 0.3


@dataclass(eq=False)
class Person:
    """
    One detection of a person.

    Args:
        keypoints (`(33, 2)`): pixels of the frame, MediaPipe's pose landmarks.
        world (`(33, 3)`): metres about the middle of the hips, x right, y down, z away from the camera.
        visibility (`(33,)`): in [0, 1].
        appearance (`(216,)`): square root of a colour histogram of the trunk.
        colours (`(10, 216)`): those of all parts, as `part_colours` gives them.
    """

    keypoints: np.ndarray
    world: np.ndarray
    visibility: np.ndarray
    appearance: np.ndarray = field(default=None, repr=False)
    colours: np.ndarray = field(default=None, repr=False)

    @property
    def box(self) -> np.ndarray:
        """x0, y0, x1, y1 in pixels around the visible landmarks."""
        visible = self.visibility > 0.5
        points = self.keypoints[visible] if visible.sum() >= 3 else self.keypoints
        return np.concatenate([points.min(axis=0), points.max(axis=0)])

    @property
    def size(self) -> float:
        """A length in pixels for judging distances: the side of a square as large as the box."""
        width, height = np.maximum(self.box[2:] - self.box[:2], 1.0)
        return float(np.sqrt(width * height))

    def distance(self, other: "Person", shift: np.ndarray | float = 0.0) -> float:
        """Mean distance of head and trunk to another detection moved by `shift`, in sizes of the larger one."""
        moved = np.linalg.norm(self.keypoints[_STEADY] - (other.keypoints[_STEADY] + shift), axis=1)
        weight = np.minimum(self.visibility[_STEADY], other.visibility[_STEADY]) + 1e-3
        return float((weight * moved).sum() / weight.sum() / max(self.size, other.size))


def colour_histogram(frame: np.ndarray, person: Person) -> np.ndarray:
    """What a person wears: `(216,)` square root of the normalised 6 x 6 x 6 RGB histogram of the trunk within `frame`."""
    height, width = frame.shape[:2]
    trunk = person.keypoints[_SHOULDERS_HIPS]
    shoulder_width = max(np.linalg.norm(trunk[0] - trunk[1]), 4.0)
    top = trunk[:2].mean(axis=0)
    # The hips are often out of the picture and then only guessed, so the trunk's height comes from the shoulders.
    x0, x1 = np.clip([top[0] - 0.5 * shoulder_width, top[0] + 0.5 * shoulder_width], 0, width - 1).astype(int)
    y0, y1 = np.clip([top[1], top[1] + 1.2 * shoulder_width], 0, height - 1).astype(int)
    patch = frame[y0 : y1 + 1, x0 : x1 + 1]
    patch = patch[:: max(1, patch.shape[0] // 32), :: max(1, patch.shape[1] // 32)].reshape(-1, 3)
    bins = (patch.astype(np.int64) * 6) // 256
    counts = np.bincount(bins @ np.array([36, 6, 1]), minlength=216).astype(np.float64)
    return np.sqrt(counts / counts.sum())


def overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
    shared = np.prod(np.maximum(high - low, 0))
    total = np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2]) - shared
    return float(shared / max(total, 1e-9))


def near(box: np.ndarray, other: np.ndarray) -> bool:
    """Whether two people's boxes are within arm's reach: touch when they are widened by a quarter of their size."""
    reach = 0.25 * np.sqrt([np.prod(np.maximum(each[2:] - each[:2], 1.0)) for each in (box, other)]).mean()
    return bool((box[:2] - reach < other[2:]).all() and (other[:2] - reach < box[2:]).all())


def drop_duplicates(people: list[Person]) -> list[Person]:
    """Detections of one body twice are reduced to the one whose head and trunk are seen better."""
    kept = []
    for person in sorted(people, key=lambda each: -each.visibility[_STEADY].mean()):
        if all(person.distance(other) > 0.25 and overlap(person.box, other.box) < 0.75 for other in kept):
            kept.append(person)
    return kept


@dataclass(eq=False)
class Track:
    """
    One person over time: `detections` by frame number, what the trunk (`appearance`) and all parts (`wardrobe`) look like, and
    `votes` of frames for, less those against, this being a person (`Landmarkers.confirms_person`).
    """

    id: int
    detections: dict[int, Person] = field(default_factory=dict)
    appearance: np.ndarray = None
    wardrobe: Wardrobe = field(default_factory=Wardrobe)
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))
    contested_until: int = -1
    votes: int = 0

    @property
    def confirmed(self) -> bool:
        """Whether this is a person."""
        return self.votes > 0

    @property
    def last_frame(self) -> int:
        """The frame of the latest detection."""
        return next(reversed(self.detections))


class PersonTracker:
    """
    Gives detections of people the same number in every frame, by where they are, where they were going, and what they
    wear. The colours matter most while and after people overlap, so that two who cross keep their numbers; somebody who
    comes back is known by them.

    Args:
        fps (`float`): frames in a second.
        max_gap_seconds (`float`): so long after it was last seen a person is still looked for nearby.

    Attributes:
        tracks (`list[Track]`): everybody seen so far.
        overlaps (`list[tuple[int, int, int]]`): frame and the two numbers, where people overlap.
        near (`dict[int, set[tuple[int, int]]]`): by frame, the numbers of people within arm's reach of each other. Who was
            last seen near somebody, and is not seen any more, is taken to be still there.
    """

    def __init__(self, fps: float, max_gap_seconds: float = 0.6):
        self.fps = fps
        self.max_gap = max(2, round(max_gap_seconds * fps))
        self.tracks: list[Track] = []
        self.overlaps: list[tuple[int, int, int]] = []
        self.near: dict[int, set[tuple[int, int]]] = {}
        self._active: list[Track] = []
        self._hidden: list[Track] = []

    def update(self, frame: int, people: list[Person], cut: bool = False) -> list[int]:
        """
        Takes the detections of the next frame; `cut` says that it begins another shot. Returns each one's number.
        """
        if cut:
            self._active, self._hidden = [], []
        self._active = [track for track in self._active if frame - track.last_frame <= self.max_gap]
        numbers = [-1] * len(people)
        if self._active and people:
            cost = np.full((len(self._active), len(people)), 1e3)
            for row, track in enumerate(self._active):
                last = track.detections[track.last_frame]
                age = frame - track.last_frame
                # Prediction fades: after some frames unseen a person may have turned or stopped.
                shift = track.velocity * age * 0.8**age
                for column, person in enumerate(people):
                    distance = person.distance(last, shift)
                    unlike = 1 - float(track.appearance @ person.appearance)
                    if distance > min(0.45 + 0.05 * age, 0.9):
                        continue
                    cost[row, column] = distance + (2.0 if frame <= track.contested_until else 0.3) * unlike
            for row, column in zip(*linear_sum_assignment(cost)):
                if cost[row, column] < 1e3:
                    numbers[column] = self._extend(self._active[row], frame, people[column])
        for column, person in enumerate(people):
            if numbers[column] < 0:
                numbers[column] = self._extend(self._find_again(frame, person), frame, person)
        self._note_overlaps(frame, people, numbers)
        return numbers

    def _find_again(self, frame: int, person: Person) -> Track:
        # Also somebody just seen elsewhere: at a low frame rate people jump further than the gate above lets them.
        gone = [track for track in self.tracks if track.last_frame < frame]
        likeness = [float(track.appearance @ person.appearance) for track in gone]
        best = int(np.argmax(likeness)) if likeness else -1
        # Light and what arms hide change the colours: less likeness is enough where nobody else is nearly as much alike.
        others = [
            float(track.appearance @ person.appearance) for track in self.tracks if best < 0 or track is not gone[best]
        ]
        enough = _SURELY_ALIKE if max(others, default=0.0) > _UNLIKE else _RATHER_ALIKE
        if likeness and likeness[best] > enough:
            track = gone[best]
            track.velocity = np.zeros(2)
        else:
            track = Track(id=len(self.tracks))
            self.tracks.append(track)
        if track in self._active:
            return track
        self._active.append(track)
        return track

    def _extend(self, track: Track, frame: int, person: Person) -> int:
        if track.detections and frame - track.last_frame <= self.max_gap:
            last = track.detections[track.last_frame]
            moved = person.keypoints[_STEADY].mean(axis=0) - last.keypoints[_STEADY].mean(axis=0)
            track.velocity = 0.6 * track.velocity + 0.4 * moved / (frame - track.last_frame)
        if track.appearance is None:
            track.appearance = person.appearance
        elif frame > track.contested_until:
            blended = 0.95 * track.appearance + 0.05 * person.appearance
            track.appearance = blended / np.linalg.norm(blended)
        # The colours are in the track now; over an hour of video they would add up.
        track.detections[frame] = replace(person, appearance=None, colours=None)
        return track.id

    def _note_overlaps(self, frame: int, people: list[Person], numbers: list[int]) -> None:
        seen = dict(zip(numbers, people))
        # Somebody just lost may be hidden behind another: the last box stands in.
        there = {track.id: track for track in [*self._active, *self._hidden]}
        boxes = {number: track.detections[track.last_frame].box for number, track in there.items()}
        pairs = set()
        ordered = sorted(boxes)
        for index, first in enumerate(ordered):
            for second in ordered[index + 1 :]:
                if first not in seen and second not in seen or not near(boxes[first], boxes[second]):
                    continue
                pairs.add((first, second))
                active = there[first] in self._active and there[second] in self._active
                if active and overlap(boxes[first], boxes[second]) >= 0.1:
                    self.overlaps.append((frame, first, second))
                    for number in (first, second):
                        there[number].contested_until = frame + round(self.fps)
        if pairs:
            self.near[frame] = pairs
        together = {number for pair in pairs for number in pair}
        self._hidden = [there[number] for number in sorted(together - set(seen))]
        for number, person in seen.items():
            clear = all(overlap(person.box, boxes[other]) == 0 for other in boxes if other != number)
            if clear and person.colours is not None:
                there[number].wardrobe.learn(person.colours)


class CutDetector:
    """
    Notices cuts: the picture, as a coarse thumbnail, changes far more from one frame to the next than it did just before.
    Flashes within a shot and fast motion change it too, but the colours' distribution stays.
    """

    def __init__(self):
        self._thumbnail = None
        self._colours = None
        self._recent: list[float] = []

    def update(self, frame: np.ndarray) -> bool:
        """Whether `frame` (H, W, 3) uint8, the next one, begins another shot. Never for the first."""
        height, width = frame.shape[:2]
        pixels = frame[:: max(1, height // 72), :: max(1, width // 128)].astype(np.float32)
        rows, columns = pixels.shape[0] // 4 * 4, pixels.shape[1] // 4 * 4
        coarse = pixels[:rows, :columns].reshape(rows // 4, 4, columns // 4, 4, 3).mean(axis=(1, 3))
        bins = (pixels.reshape(-1, 3).astype(np.int64) * 6) // 256
        counts = np.bincount(bins @ np.array([36, 6, 1]), minlength=216)
        colours = np.sqrt(counts / counts.sum())
        cut = False
        if self._thumbnail is not None:
            change = float(np.abs(coarse - self._thumbnail).mean())
            likeness = float(colours @ self._colours)
            usual = float(np.median(self._recent)) if self._recent else 0.0
            cut = change > max(20.0, 4 * usual) and (likeness < 0.8 or change > 45)
            self._recent = [] if cut else [*self._recent[-11:], change]
        self._thumbnail, self._colours = coarse, colours
        return cut
