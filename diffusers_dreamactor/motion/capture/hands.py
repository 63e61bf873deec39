"""Looking for the hands of a person where the pose has the wrists, and where they were just before."""

from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from .body_pose import PoseObservations, hand_is_plausible, is_forearm
from .landmarkers import Hand, Landmarkers
from .tracking import Person


# So long after it was last found a hand is looked for where it was going.
_FOLLOWED_SECONDS = 0.25
# How far a hand may be from where it was expected, in extents of the hand: one that looks like the same side, and one that looks
# like the other, as hands do now and then while they turn; and how much it may grow or shrink.
_FOLLOWED_REACH = 1.2
_TURNED_REACH = 0.3
_FOLLOWED_GROWTH = 1.5


@dataclass
class _Moment:
    """A frame, the pose of the person in it, those of everybody else, and the frame's number."""

    frame: np.ndarray
    person: Person | None
    others: list[Person]
    index: int


@dataclass
class _Followed:
    """A hand in the frame in which it was last found, and its way to the next frame."""

    hand: Hand
    index: int
    velocity: np.ndarray

    @property
    def middle(self) -> np.ndarray:
        """The middle (2,) of the hand."""
        return self.hand.keypoints.mean(axis=0)

    @property
    def extent(self) -> float:
        """The longer side of the hand's box in pixels."""
        return float(np.ptp(self.hand.keypoints, axis=0).max())

    def expected(self, index: int) -> np.ndarray:
        """Its middle in frame `index`, later or earlier: it goes on for a moment, and then stays."""
        age = index - self.index
        return self.middle + self.velocity * age * 0.8 ** abs(age)

    def next(self, hand: Hand, index: int) -> "_Followed":
        """The same hand in frame `index`."""
        following = _Followed(hand, index, np.zeros(2))
        following.velocity = (following.middle - self.middle) / (index - self.index)
        return following


class HandFinder:
    """
    The hands of one person, frame by frame: near the wrists of its pose, and where no hand is found there, or none that
    belongs to the arm, where the hand was going. An estimator that sees an arm foreshortened, or half of it hidden, takes
    the wrist for somewhere along the forearm, while the hand itself is in plain view. From where a hand is found again it
    is followed backwards, too. As many frames are held as make up `_FOLLOWED_SECONDS`.

    Args:
        landmarkers (`Landmarkers`): finds hands in a part of a picture.
        observed (`PoseObservations`): takes what is found.
        fps (`float`): frames in a second.
    """

    def __init__(self, landmarkers: Landmarkers, observed: PoseObservations, fps: float):
        self._landmarkers, self._observed = landmarkers, observed
        self._longest = max(1, round(_FOLLOWED_SECONDS * fps))
        self.start_anew()

    def start_anew(self) -> None:
        """Forgets where hands were, for another shot."""
        self._last: list[_Followed | None] = [None, None]
        self._recent: deque[_Moment] = deque(maxlen=self._longest)

    def find(self, frame: np.ndarray, person: Person | None, others: list[Person], index: int) -> None:
        """
        The left and the right hand of `person` in frame number `index`, as far as they are found, into `observed`. Where
        there is no pose, hands are only followed. `others` are the poses of everybody else there.
        """
        moment = _Moment(frame, person, others, index)
        for side in range(2):
            last = self._last[side]
            if last is not None and index - last.index > self._longest:
                last = None
            hand = None if person is None else self._at_wrist(frame, person, side)
            if hand is None and last is not None:
                hand = self._follow(moment, last, side)
            if hand is None:
                continue
            self._keep(hand, index, side)
            self._last[side] = _Followed(hand, index, np.zeros(2)) if last is None else last.next(hand, index)
            following = _Followed(hand, index, np.zeros(2))
            for earlier in reversed(self._recent):
                if self._observed.hand_score[earlier.index, side] > 0:
                    break
                hand = self._follow(earlier, following, side)
                if hand is None:
                    break
                self._keep(hand, earlier.index, side)
                following = following.next(hand, earlier.index)
        self._recent.append(moment)

    def _keep(self, hand: Hand, index: int, side: int) -> None:
        self._observed.hand_keypoints[index, side] = hand.keypoints
        self._observed.hand_world[index, side] = hand.world
        self._observed.hand_score[index, side] = hand.score

    def _at_wrist(self, frame: np.ndarray, person: Person, side: int) -> Hand | None:
        """The hand near the wrist on `side` (0 left, 1 right), where the pose sees one."""
        height, width = frame.shape[:2]
        keypoints, visibility = person.keypoints, person.visibility
        wrist, elbow = keypoints[15 + side], keypoints[13 + side]
        if visibility[15 + side] < 0.5 or (wrist < 0).any() or (wrist > [width, height]).any():
            return None
        reach = max(np.linalg.norm(wrist - elbow), 0.6 * np.linalg.norm(keypoints[11] - keypoints[12]), 8.0)
        middle = keypoints[[15 + side, 17 + side, 19 + side]].mean(axis=0)
        hand = _best_hand(self._landmarkers.find_hands(frame, middle, 2.0 * reach), person, side)
        if hand is None:
            return None
        low, high = hand.keypoints.min(axis=0), hand.keypoints.max(axis=0)
        centre, extent = (low + high) / 2, (high - low).max()
        if np.abs(centre - middle).max() > 0.35 * reach:
            # At the crop's edge fingers may be cut off: once more, with the hand in the middle.
            for again in self._landmarkers.find_hands(frame, centre, 3.0 * extent):
                if np.linalg.norm(again.keypoints.mean(axis=0) - hand.keypoints.mean(axis=0)) < 0.5 * extent:
                    return replace(again, score=hand.score)
        return hand

    def _follow(self, moment: _Moment, last: _Followed, side: int) -> Hand | None:
        """The hand `last` on `side` where it was going, unless it is another's."""
        person, expected = moment.person, last.expected(moment.index)
        if person is not None and person.visibility[16 - side] >= 0.5:
            wrist, other_wrist = person.keypoints[15 + side], person.keypoints[16 - side]
            # Of an estimator that exchanges the sides the hand is the other one's.
            if np.linalg.norm(expected - other_wrist) < np.linalg.norm(expected - wrist):
                return None
        taken = [each.keypoints[15 + i] for each in moment.others for i in (0, 1) if each.visibility[15 + i] >= 0.5]
        if self._observed.hand_score[moment.index, 1 - side] > 0:
            taken.append(self._observed.hand_keypoints[moment.index, 1 - side, 0])
        # Gone on or stopped: videos with repeated frames have both.
        places = np.stack([last.middle, expected])
        wide = 3.5 * last.extent + np.linalg.norm(expected - last.middle)
        best, best_distance = None, np.inf
        for hand in self._landmarkers.find_hands(moment.frame, expected, wide):
            distance = np.linalg.norm(places - hand.keypoints.mean(axis=0), axis=1).min() / last.extent
            growth = np.ptp(hand.keypoints, axis=0).max() / last.extent
            reach = _FOLLOWED_REACH if hand.is_left == last.hand.is_left else _TURNED_REACH
            if distance > min(reach, best_distance) or not 1 / _FOLLOWED_GROWTH < growth < _FOLLOWED_GROWTH:
                continue
            if any(np.linalg.norm(hand.keypoints[0] - wrist) < 0.5 * last.extent for wrist in taken):
                continue
            if person is not None and is_forearm(hand.keypoints, person.keypoints, person.visibility, side):
                continue
            best, best_distance = replace(hand, score=0.8 * hand.score), distance
        return best


def _best_hand(hands: list[Hand], person: Person, side: int) -> Hand | None:
    """Of the hands in a crop the one nearest to the wrist on `side`, of those that belong to it."""
    best, best_distance = None, np.inf
    for hand in hands:
        plausible, distance = hand_is_plausible(
            hand.keypoints, person.keypoints, person.visibility, side, hand.is_left
        )
        if plausible and distance < best_distance:
            best, best_distance = replace(hand, score=hand.score * (1 - 0.4 * distance)), distance
    return best
