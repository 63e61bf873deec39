import numpy as np
import pytest

from diffusers_dreamactor.motion.skeleton import JOINT_INDEX, LEFT_HAND, NUM_JOINTS
from diffusers_dreamactor.motion.visibility import believe_before, connected, steady_confidence, without_isolated


FPS = 30.0


def switches(confidence):
    return int(np.abs(np.diff((confidence >= 0.5).astype(int), axis=0)).sum())


def test_confidence_near_the_threshold_does_not_flicker():
    noisy = (0.5 + 0.1 * np.random.default_rng(0).standard_normal((120, 4))).clip(0.01, 1)
    assert switches(noisy) > 100
    assert switches(steady_confidence(noisy, FPS)) <= 4


def test_what_comes_and_goes_does_so_once_and_at_its_time():
    confidence = np.full((90, 1), 0.1)
    confidence[20:70] = 0.9
    on = np.flatnonzero(steady_confidence(confidence, FPS)[:, 0] >= 0.5)
    assert abs(on[0] - 20) <= 2 and abs(on[-1] - 69) <= 2
    np.testing.assert_array_equal(on, np.arange(on[0], on[-1] + 1))


@pytest.mark.parametrize(("value", "base"), [(0.9, 0.1), (0.1, 0.9)])
def test_three_frames_are_no_event(value, base):
    confidence = np.full((60, 1), base)
    confidence[30:33] = value
    assert switches(steady_confidence(confidence, FPS)) == 0


def test_nobody_stays_nobody():
    confidence = np.full((60, 1), 0.9)
    confidence[20:40] = 0
    steady = steady_confidence(confidence, FPS)
    assert (steady[20:40] == 0).all() and (np.delete(steady, np.s_[20:40], axis=0) >= 0.5).all()


def test_isolated_detections_are_dropped_and_short_clips_are_kept():
    seen = np.zeros((60, 1), dtype=bool)
    seen[10:13], seen[30:45] = True, True
    assert without_isolated(seen, FPS).sum() == 15
    assert without_isolated(seen[10:14], FPS).sum() == 3


def test_a_limb_is_drawn_from_the_trunk_outwards():
    visible = np.ones((1, NUM_JOINTS), dtype=bool)
    visible[0, [JOINT_INDEX["left_elbow"], JOINT_INDEX["right_knee"]]] = False
    drawn = connected(visible)[0]
    for name in ("left_wrist", "right_ankle", "right_toe"):
        assert not drawn[JOINT_INDEX[name]]
    assert not drawn[LEFT_HAND].any() and drawn[JOINT_INDEX["left_shoulder"]] and drawn[JOINT_INDEX["left_ankle"]]


def test_a_shoulder_outside_the_picture_is_believed_for_its_arm():
    confidence = np.zeros((1, NUM_JOINTS))
    confidence[0, [JOINT_INDEX["left_elbow"], JOINT_INDEX["left_wrist"], JOINT_INDEX["right_wrist"]]] = 0.9
    believed = believe_before(confidence, middle=False)[0]
    assert believed[JOINT_INDEX["left_shoulder"]] == believed[JOINT_INDEX["neck"]] == 0.5
    assert believed[JOINT_INDEX["right_elbow"]] == believed[JOINT_INDEX["right_shoulder"]] == 0
    assert believe_before(confidence, middle=True)[0, JOINT_INDEX["right_shoulder"]] == 0.5
