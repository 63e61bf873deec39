"""The face of the person who is followed: where it is looked for, whose a face is, and looking for it backwards in time."""

from collections.abc import Container, Iterator
from dataclasses import dataclass

import numpy as np

from ...media import VideoReader
from ..filtering import seen_around
from .body_pose import PoseObservations
from .contact import Contact
from .head_pose import FaceLook, head_guess
from .landmarkers import FACE_CROP, Landmarkers
from .tracking import Person, Track


# How long after (or before) it was seen a person is looked for where it was.
SEARCH_SECONDS = 1.0
# Likeness of colours (Bhattacharyya) from which somebody found by looking again can be the person followed.
_ALIKE = 0.5
# As many frames as are held when faces are looked for backwards.
_PIECE = 8


@dataclass
class Scene:
    """Who is in one frame: the track of the person who is followed, and the other people."""

    own: Track | None
    contact: Contact
    others: list[Person]

    def may_be_own(self, person: Person) -> bool:
        """Whether a pose found by looking again is the one followed: not somebody else there, and dressed alike."""
        if any(person.distance(other) < 0.3 for other in self.others):
            return False
        return self.own is None or float(person.appearance @ self.own.appearance) > _ALIKE

    def face_may_be_own(self, look: FaceLook, person: Person | None) -> bool:
        """Whether a face is not that of somebody else."""
        own_head = self.contact.is_own_head(look.middle, look.side)
        if own_head is not None:
            return own_head
        theirs = min((look.pose_error(other.keypoints) for other in self.others), default=np.inf)
        ours = 0.8 if person is None else look.pose_error(person.keypoints)
        return theirs >= ours


def expected_heads(
    chosen: list[tuple[int, Person] | None], shots: list[slice], fps: float
) -> list[tuple[np.ndarray, float] | None]:
    """
    Where the face should be in each frame, by the poses around it in the same shot: middle and side, or None where the
    person is not seen within a second.
    """
    expected: list[tuple[np.ndarray, float] | None] = [None] * len(chosen)
    for shot in shots:
        known = np.array([frame for frame in range(shot.start, shot.stop) if chosen[frame] is not None])
        if len(known) == 0:
            continue
        frames = np.arange(shot.start, shot.stop)
        guesses = [head_guess(chosen[frame][1].keypoints) for frame in known]
        x, y, side = (
            np.interp(frames, known, values)
            for values in (*np.stack([middle for middle, _ in guesses]).T, [side for _, side in guesses])
        )
        before, after = seen_around(known - shot.start, len(frames))
        for offset, frame in enumerate(frames):
            if min(abs(offset - before[offset]), abs(after[offset] - offset)) <= SEARCH_SECONDS * fps:
                expected[frame] = (np.array([x[offset], y[offset]]), float(side[offset]))
    return expected


def face_guesses(
    frame: np.ndarray,
    person: Person | None,
    last_look: FaceLook | None,
    expected: tuple[np.ndarray, float] | None,
    alone: bool,
    contact: Contact,
) -> Iterator[tuple[np.ndarray, float]]:
    """
    Middles and sides of the face to try, the most likely first; where nothing tells where it is, and nobody else is there
    (`alone`), the whole picture.
    """
    if contact.head_place() is not None:
        yield contact.head_place()
    if last_look is not None:
        yield last_look.middle, last_look.side
    if person is not None:
        middle, side = head_guess(person.keypoints)
        yield middle, side
        yield middle, 1.8 * side
    elif expected is not None:
        middle, side = expected
        yield middle, side
        yield middle, 1.8 * side
    if alone and person is None and last_look is None and expected is None:
        height, width = frame.shape[:2]
        yield np.array([width / 2, height / 2]), max(width, height) / FACE_CROP


def agree(
    landmarkers: Landmarkers,
    frame: np.ndarray,
    look: FaceLook | None,
    person: Person | None,
    last_look: FaceLook | None,
    scene: Scene,
) -> tuple[FaceLook | None, Person | None]:
    """
    Face and pose of one frame made to fit: where they do not, or there is no pose, the pose is done again on a crop
    around the person that the face belongs to; if that does not help, the one that fits the last frame is kept.
    """
    if look is None or (person is not None and look.fits(person.keypoints)):
        return look, person
    for again in landmarkers.poses_below(frame, look):
        if look.fits(again.keypoints) and scene.may_be_own(again):
            again = scene.contact.own_parts(frame, again)
            if again is not None:
                return look, again
    if person is not None and not landmarkers.confirms_face(frame, look):
        # Ears and cheeks of a head in profile are taken for faces now and then.
        return None, person
    if person is not None and not person.visibility[:11].any():
        # Its head was taken for another's; the face is where the head was followed to.
        return look, person
    steady = last_look is not None and np.linalg.norm(look.middle - last_look.middle) < last_look.side
    steady = steady or bool(scene.contact.is_own_head(look.middle, look.side))
    # With nobody else there a face without a body is the person's, too: MediaPipe finds bodies of drawn people only now and then.
    alone = scene.own is None or not scene.others
    if (person is None and alone) or steady:
        return look, None
    return None, person


def look_back(
    reader: VideoReader,
    landmarkers: Landmarkers,
    shot: slice,
    own: Track | None,
    tracks: list[Track],
    near: Container[int],
    looks: list[FaceLook | None],
    observed: PoseObservations,
) -> None:
    """
    Looks for the face of `own` in a shot backwards in time from where it was first found, or found again, into `looks`: who was
    small, turned or among others before is found from where they come out. Where people touch (`near`) nobody is looked for.
    """
    longest_miss = max(2, round(0.1 * reader.fps))
    for found in range(shot.stop - 1, shot.start, -1):
        look, missed, index = looks[found], 0, found - 1
        if look is None or looks[index] is not None:
            continue
        while index >= shot.start and looks[index] is None and index not in near and missed <= longest_miss:
            # Piece by piece: a file is only read forwards.
            start = max(shot.start, index - _PIECE + 1)
            for frame in reversed(list(reader.frames(start, index + 1))):
                if looks[index] is not None or index in near or missed > longest_miss:
                    break
                others = [t.detections[index] for t in tracks if t is not own and index in t.detections]
                scene = Scene(own, Contact(own, [], {}), others)
                person = (
                    Person(observed.keypoints[index], observed.world[index], observed.visibility[index])
                    if observed.seen[index]
                    else None
                )
                again = landmarkers.find_face(
                    frame,
                    [(look.middle, look.side)],
                    lambda each: scene.face_may_be_own(each, person),  # noqa: B023
                )
                if again is not None and (person is None or again.fits(person.keypoints)):
                    looks[index], look, missed = again, again, 0
                else:
                    missed += 1
                index -= 1
            else:
                continue
            break
