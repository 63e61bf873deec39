"""Looking for the hands of a person where the pose has the wrists."""

from dataclasses import replace

import numpy as np

from .body_pose import PoseObservations, hand_is_plausible
from .landmarkers import Hand, Landmarkers
from .tracking import Person


def find_hands(
    landmarkers: Landmarkers, frame: np.ndarray, person: Person, index: int, observed: PoseObservations
) -> None:
    """The left and the right hand of a frame, where the pose sees a wrist, into `observed`."""
    height, width = frame.shape[:2]
    keypoints, visibility = person.keypoints, person.visibility
    for side in range(2):
        wrist, elbow = keypoints[15 + side], keypoints[13 + side]
        if visibility[15 + side] < 0.5 or (wrist < 0).any() or (wrist > [width, height]).any():
            continue
        reach = max(np.linalg.norm(wrist - elbow), 0.6 * np.linalg.norm(keypoints[11] - keypoints[12]), 8.0)
        middle = keypoints[[15 + side, 17 + side, 19 + side]].mean(axis=0)
        hand = _best_hand(landmarkers.find_hands(frame, middle, 2.0 * reach), person, side)
        if hand is not None:
            low, high = hand.keypoints.min(axis=0), hand.keypoints.max(axis=0)
            centre, extent = (low + high) / 2, (high - low).max()
            if np.abs(centre - middle).max() > 0.35 * reach:
                # At the crop's edge fingers may be cut off: once more, with the hand in the middle.
                for again in landmarkers.find_hands(frame, centre, 3.0 * extent):
                    if np.linalg.norm(again.keypoints.mean(axis=0) - hand.keypoints.mean(axis=0)) < 0.5 * extent:
                        hand = replace(again, score=hand.score)
                        break
            observed.hand_keypoints[index, side] = hand.keypoints
            observed.hand_world[index, side] = hand.world
            observed.hand_score[index, side] = hand.score


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
