from dataclasses import replace

import numpy as np
import pytest

from diffusers_dreamactor.media import VideoReader
from diffusers_dreamactor.motion.capture.body_pose import PoseObservations, hand_is_plausible, is_forearm, repair
from diffusers_dreamactor.motion.capture.hands import HandFinder
from diffusers_dreamactor.motion.capture.landmarkers import Landmarkers


FPS = 25.0


@pytest.fixture(scope="module")
def gesture(capture_models, media):
    """Frames in which both hands are in plain view, the poses in them, and the landmarkers."""
    with Landmarkers(capture_models) as landmarkers:
        frames = list(VideoReader(media / "drivers" / "fashion_turns.mp4").frames(56, 68))
        yield frames, [landmarkers.find_people(frame)[0] for frame in frames], landmarkers


@pytest.fixture(scope="module")
def truth(gesture) -> PoseObservations:
    """The hands at the poses' wrists."""
    return hands_of(gesture, gesture[1])


def hands_of(gesture, poses, others=None) -> PoseObservations:
    frames, _, landmarkers = gesture
    observed = PoseObservations.empty(len(frames))
    finder = HandFinder(landmarkers, observed, FPS)
    for index, frame in enumerate(frames):
        finder.find(frame, poses[index], [] if others is None else [others[index]], index)
    return observed


def with_short_forearm(person, side=0):
    """The pose as of an arm that is taken for a foreshortened one: the wrist on `side` next to the elbow."""
    keypoints = person.keypoints.copy()
    elbow, wrist = keypoints[[13 + side, 15 + side]]
    keypoints[[15 + side, 17 + side, 19 + side, 21 + side]] += 0.7 * (elbow - wrist)
    return replace(person, keypoints=keypoints)


def test_a_hand_in_plain_view_is_followed_where_the_wrist_is_elsewhere_or_nobody_is_found(gesture, truth):
    _, poses, _ = gesture
    assert (truth.hand_score > 0).all()
    extent = np.ptp(truth.hand_keypoints[:, 0], axis=1).max()
    # Followed backwards from frame 3, forwards from 5, and across frames without a pose.
    wrong = [with_short_forearm(pose) if index in (0, 1, 2, 6, 7) else pose for index, pose in enumerate(poses)]
    wrong[9] = wrong[10] = None
    found = hands_of(gesture, wrong)
    assert (found.hand_score > 0).all()
    error = np.linalg.norm(found.hand_keypoints - truth.hand_keypoints, axis=-1).mean(axis=-1)
    assert error.max() < 0.1 * extent
    # ... and so the wrist is there.
    for index, pose in enumerate(wrong):
        if pose is not None:
            found.keypoints[index], found.world[index] = pose.keypoints, pose.world
            found.visibility[index] = pose.visibility
    wrist = repair(found, [slice(0, len(poses))], FPS, smoothed=False).keypoints[[9, 10], 15]
    assert np.linalg.norm(wrist - truth.hand_keypoints[[9, 10], 0, 0], axis=-1).max() < 0.1 * extent


def test_a_hand_that_turns_is_followed_where_it_looks_like_one_of_the_other_side(gesture):
    _, poses, _ = gesture
    hidden = [with_short_forearm(pose, side=1) if index == 6 else pose for index, pose in enumerate(poses)]
    assert hands_of(gesture, hidden).hand_score[6, 1] > 0


def test_a_hand_is_not_followed_onto_another_arm(gesture, truth):
    _, poses, _ = gesture
    wrong = [with_short_forearm(pose) if index in (6, 7) else pose for index, pose in enumerate(poses)]
    # Somebody else's left wrist is there.
    assert (hands_of(gesture, wrong, poses).hand_score[6:8, 0] == 0).all()
    # The sides are exchanged: the hand that was the left one's is nearer to the right one's wrist.
    for index in (6, 7):
        keypoints = poses[index].keypoints.copy()
        keypoints[[16, 18, 20, 22]] += truth.hand_keypoints[index, 0, 0] - keypoints[16]
        wrong[index] = replace(wrong[index], keypoints=keypoints)
    assert (hands_of(gesture, wrong).hand_score[6:8, 0] == 0).all()


def test_hands_are_not_followed_into_another_shot(gesture):
    frames, poses, landmarkers = gesture
    observed = PoseObservations.empty(len(frames))
    finder = HandFinder(landmarkers, observed, FPS)
    finder.find(frames[0], poses[0], [], 0)
    finder.start_anew()
    finder.find(frames[1], with_short_forearm(poses[1]), [], 1)
    assert (observed.hand_score[:2, 0] > 0).tolist() == [True, False]


def test_a_piece_of_the_forearm_is_no_hand():
    keypoints, visibility = np.zeros((33, 2)), np.ones(33)
    keypoints[[11, 12]] = [[160, 0], [0, 0]]
    keypoints[13], keypoints[15], keypoints[16] = [100, 100], [100, 160], [0, 160]
    hand = np.zeros((21, 2))
    hand[[5, 9, 17]] = [[0, 25], [3, 25], [6, 25]]
    for begins, is_hand in ((125, False), (140, True), (160, True), (175, True)):
        there = hand + [100, begins]
        assert is_forearm(there, keypoints, visibility, side=0) is not is_hand
        assert hand_is_plausible(there, keypoints, visibility, side=0, is_left=True)[0] is is_hand
    # Of an arm that is not seen nothing is known.
    visibility[13] = 0
    assert not is_forearm(hand + [100, 125], keypoints, visibility, side=0)
