"""Whose head, trunk and limbs are seen where people touch: by where each head was and by what everybody wears."""

from dataclasses import replace
from itertools import combinations

import numpy as np

from .appearance import HEAD, TRUNK, HeadFollower, part_colours, parts_of_others
from .head_pose import head_guess
from .tracking import Person, Track, overlap


# MediaPipe's landmarks that are lost with each part of `part_colours`: those that hang on it.
_LOST_WITH = [
    list(range(11)),
    list(range(33)),
    *([11 + side, 13 + side, 15 + side, 17 + side, 19 + side, 21 + side] for side in (0, 1)),
    *([15 + side, 17 + side, 19 + side, 21 + side] for side in (0, 1)),
    *([25 + side, 27 + side, 29 + side, 31 + side] for side in (0, 1)),
    *([27 + side, 29 + side, 31 + side] for side in (0, 1)),
]
# A face or a pose's head further than this from where the head was followed to, in sides of the face, is another's.
_HEAD_ERROR = 0.7
# Heads that were followed to places nearer than this, in sides of the larger face, are one head.
_ONE_HEAD = 0.75


class Contact:
    """
    Tells the person who is followed from people within arm's reach, frame by frame.

    Args:
        own (`Track`, *optional*): the person who is followed; None where no body was found.
        tracks (`list[Track]`): everybody.
        near (`dict[int, set[tuple[int, int]]]`): by frame, the numbers of people within arm's reach (`PersonTracker.near`).
        held (`int`): for so many frames in which nobody is found people stay where they were.

    Attributes:
        doubtful (`bool`): whether somebody is so near in this frame that parts may be taken for theirs.
        parts_lost (`bool`): whether parts of a pose in this frame were somebody else's.
    """

    def __init__(self, own: Track | None, tracks: list[Track], near: dict[int, set[tuple[int, int]]], held: int = 0):
        self.own, self.doubtful, self.parts_lost = own, False, False
        self._held, self._last_near = held, -(10**9)
        self._tracks, self._near = {track.id: track for track in tracks}, near
        self._others: list[Track] = []
        self._heads: dict[int, HeadFollower] = {}

    def next_frame(self, frame: np.ndarray, index: int) -> None:
        """
        Goes on to frame number `index`. Heads are followed while somebody is near, and looked at anew where everybody is
        seen apart from the others.
        """
        self.doubtful = self.parts_lost = False
        near = (
            set()
            if self.own is None
            else {n for pair in self._near.get(index, ()) if self.own.id in pair for n in pair}
        )
        if near:
            self._last_near = index
        elif self.own is not None and index not in self.own.detections and index - self._last_near <= self._held:
            near = {self.own.id, *(track.id for track in self._others)}
        # Those who turned out to be no people have no track here.
        self._others = [self._tracks[number] for number in sorted(near & set(self._tracks)) if number != self.own.id]
        people = [self.own, *self._others] if self._others else []
        seen = [track.detections[index] for track in people if index in track.detections]
        apart = len(seen) == len(people) and all(overlap(seen[0].box, other.box) == 0 for other in seen[1:])
        if apart:
            self._heads = {
                track.id: HeadFollower(frame, *head_guess(person.keypoints)) for track, person in zip(people, seen)
            }
            return
        self.doubtful = True
        self._heads = {track.id: self._heads[track.id] for track in people if track.id in self._heads}
        for head in self._heads.values():
            head.follow(frame)
        # One place has one head: who looks less like it is hidden by the other.
        for first, second in combinations(list(self._heads), 2):
            heads = [self._heads.get(first), self._heads.get(second)]
            if None in heads or not (heads[0].found and heads[1].found):
                continue
            if np.linalg.norm(heads[0].middle - heads[1].middle) < _ONE_HEAD * max(head.side for head in heads):
                del self._heads[first if heads[0].likeness < heads[1].likeness else second]

    def head_place(self) -> tuple[np.ndarray, float] | None:
        """Middle and side of the followed person's face, where it was followed to; None where it was not."""
        head = self._heads.get(self.own.id) if self.doubtful else None
        return None if head is None or not head.found else (head.middle, head.side)

    def is_own_head(self, middle: np.ndarray, side: float) -> bool | None:
        """Whether a face at `middle` (2,) with this `side` in pixels is the person's; None where that is not known."""
        place = self.head_place()
        if place is None:
            return None
        size = max(side, place[1])
        error = np.linalg.norm(middle - place[0]) / size
        others = [head for number, head in self._heads.items() if number != self.own.id and head.found]
        return bool(
            error < _HEAD_ERROR and all(error <= np.linalg.norm(middle - other.middle) / size for other in others)
        )

    def own_parts(self, frame: np.ndarray, person: Person) -> Person | None:
        """A pose with visibility 0 for the parts that are another's, or None if the trunk is."""
        if not self.doubtful:
            return person
        colours = part_colours(frame, person.keypoints, person.visibility)
        wrong = parts_of_others(colours, self.own.wardrobe, [track.wardrobe for track in self._others])
        wrong[HEAD] |= self.is_own_head(*head_guess(person.keypoints)) is False
        if not wrong.any():
            return person
        self.parts_lost = True
        if wrong[TRUNK]:
            return None
        visibility = person.visibility.copy()
        for part in np.flatnonzero(wrong):
            visibility[_LOST_WITH[part]] = 0.0
        return replace(person, visibility=visibility)
