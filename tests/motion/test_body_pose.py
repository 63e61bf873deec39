import numpy as np
import pytest

from diffusers_dreamactor.motion.capture.body_pose import PoseObservations, exchange_sides, hand_is_plausible, repair
from diffusers_dreamactor.motion.capture.to_motion import to_motion
from diffusers_dreamactor.motion.sequence import project
from diffusers_dreamactor.motion.skeleton import JOINT_INDEX, LEFT_HAND, RIGHT_HAND

from .standing_person import FOCAL_LENGTH, HEIGHT, STANDING, WIDTH, Reader, face_look, observations, turned


def test_joints_project_onto_keypoints_and_have_the_right_lengths():
    sway = STANDING + 0.02 * np.sin(np.arange(30) / 5)[:, None, None] * [1.0, 0.0, 0.5]
    observed = observations(sway, translation=(0.3, 0.0, 3.0))
    motion = to_motion([face_look(0)] * 30, observed, np.zeros(30, np.int64), [slice(0, 30)], Reader(), "video", False)
    pixels = project(motion.body.joints, motion.focal_length, WIDTH, HEIGHT)
    assert np.abs(pixels - motion.body.keypoints).max() < 1e-2
    joints = motion.body.joints

    def length(a, b):
        return np.linalg.norm(joints[:, JOINT_INDEX[a]] - joints[:, JOINT_INDEX[b]], axis=-1)

    assert length("left_shoulder", "right_shoulder") == pytest.approx(0.36, rel=0.04)
    assert length("left_hip", "left_knee") == pytest.approx(0.42, rel=0.04)
    # Depth is what the camera's focal length makes of the size in the picture.
    expected = 3.0 * motion.focal_length / FOCAL_LENGTH
    assert joints[:, JOINT_INDEX["neck"], 2] == pytest.approx(expected, rel=0.05)
    assert (motion.body.confidence[:, LEFT_HAND] == 0).all() and (motion.body.confidence[:, RIGHT_HAND] == 0).all()


def seen_from_behind(observed: PoseObservations, frames: list[int]) -> PoseObservations:
    """What an estimator sees in `frames` that takes the person's front for the back, or the back for the front."""
    wrong = PoseObservations(*(array.copy() for array in vars(observed).values()))
    sides = np.array(
        [0, 4, 5, 6, 1, 2, 3, 8, 7, 10, 9, *(index + 1 - 2 * (index % 2 == 0) for index in range(11, 33))]
    )
    for values in (wrong.keypoints, wrong.world, wrong.visibility):
        values[frames] = values[frames][:, sides]
    for values in (wrong.hand_keypoints, wrong.hand_world, wrong.hand_score):
        values[frames] = values[frames][:, ::-1]
    ears = wrong.world[frames][:, [7, 8], 2].mean(axis=1)
    wrong.world[frames, :11, 2] = 2 * ears[:, None] - wrong.world[frames, :11, 2]
    return wrong


@pytest.mark.parametrize("yaw", [10, 170])
def test_a_front_taken_for_the_back_is_turned_round_with_hands_and_head(yaw):
    observed = observations(turned(np.full(30, yaw)))
    observed.hand_keypoints[:] = observed.keypoints[:, [15, 16], None] + np.arange(42).reshape(21, 2)
    observed.hand_score[:, 0], observed.hand_score[:, 1] = 0.9, 0.8
    wrong = seen_from_behind(observed, [4, 5, 6, 20])
    assert np.abs(wrong.hand_keypoints - observed.hand_keypoints).max() > 50
    right = exchange_sides(wrong, [slice(0, 12), slice(12, 30)])
    for name, values in vars(observed).items():
        np.testing.assert_allclose(getattr(right, name), values, atol=1e-9, err_msg=name)


def test_who_turns_round_keeps_the_sides():
    observed = observations(turned(np.linspace(0, 360, 60)))
    right = exchange_sides(observed, [slice(0, 60)])
    np.testing.assert_array_equal(right.keypoints, observed.keypoints)
    np.testing.assert_array_equal(right.world, observed.world)


def test_a_short_false_hand_is_dropped_and_a_lasting_one_kept():
    observed = observations(np.repeat(STANDING[None], 40, axis=0))
    hand = np.stack([np.arange(21) % 5, np.arange(21) // 5], axis=-1) * 4.0
    observed.hand_keypoints[:, :] = hand + observed.keypoints[0, 15]
    observed.hand_world[:, :, :, :2] = hand / 300
    observed.hand_score[10:12, 0] = 0.9
    observed.hand_score[5:30, 1] = 0.9
    observed.hand_score[15:18, 1] = 0
    repaired = repair(observed, [slice(0, 40)], 30.0, smoothed=True)
    assert (repaired.hand_score[:, 0] == 0).all()
    assert (repaired.hand_score[5:30, 1] >= 0.5).all()
    assert (repaired.hand_score[33:, 1] < 0.5).all()


def test_a_hand_belongs_to_the_wrist_it_is_at():
    keypoints = observations(STANDING[None]).keypoints[0]
    visibility = np.ones(33)
    shape = np.zeros((21, 2))
    shape[[5, 9, 17]] = [[0, 25], [3, 25], [6, 25]]
    at_left = shape + keypoints[15]
    assert hand_is_plausible(at_left, keypoints, visibility, side=0, is_left=True)[0]
    assert hand_is_plausible(at_left, keypoints, visibility, side=0, is_left=False)[0]
    assert not hand_is_plausible(at_left, keypoints, visibility, side=1, is_left=True)[0]
    # Further along the forearm only with the right handedness; never sideways; never of a giant.
    along = at_left + 0.6 * (keypoints[15] - keypoints[13])
    assert hand_is_plausible(along, keypoints, visibility, side=0, is_left=True)[0]
    assert not hand_is_plausible(along, keypoints, visibility, side=0, is_left=False)[0]
    assert not hand_is_plausible(at_left + [60, 0], keypoints, visibility, side=0, is_left=True)[0]
    assert not hand_is_plausible(shape * 6 + keypoints[15], keypoints, visibility, side=0, is_left=True)[0]


@pytest.mark.parametrize("length", [1, 3])
def test_a_wrist_that_is_elsewhere_for_some_frames_is_no_gesture(length):
    """However still it is there: it got there faster than arms go. A fast gesture keeps its peak."""
    fps, size = 24.0, 350.0
    steady = observations(np.repeat(STANDING[None], 48, axis=0))
    elsewhere = PoseObservations(*(array.copy() for array in vars(steady).values()))
    elsewhere.keypoints[20 : 20 + length, 15] += [0.6 * size, 0.0]
    repaired = repair(elsewhere, [slice(0, 48)], fps, smoothed=False)
    np.testing.assert_allclose(repaired.keypoints[:, 15], steady.keypoints[:, 15], atol=1.0)
    wave = PoseObservations(*(array.copy() for array in vars(steady).values()))
    wave.keypoints[:, 15, 0] += 0.1 * size * np.exp(-(((np.arange(48) - 20) / 1.2) ** 2))
    kept = repair(wave, [slice(0, 48)], fps, smoothed=False)
    np.testing.assert_allclose(kept.keypoints[:, 15], wave.keypoints[:, 15], atol=1.0)


@pytest.mark.parametrize("fps", [24.0, 60.0])
def test_a_wrist_that_shakes_as_no_arm_can_is_a_gap(fps):
    """Something hides it, and the estimator is as sure of it as ever. A hand that is waved is seen."""
    time = np.arange(int(3 * fps)) / fps
    observed = observations(np.repeat(STANDING[None], len(time), axis=0))
    still = observed.keypoints[0, 15].copy()
    metre = np.linalg.norm(np.ptp(observed.keypoints[0, :25], axis=0)) / 1.75
    hidden = (time > 1.0) & (time < 1.9)
    observed.keypoints[hidden, 15] += np.random.default_rng(0).normal(0, 0.15 * metre, (hidden.sum(), 2))
    wave = observed.keypoints[:, 16]
    wave[:, 0] += 0.15 * metre * np.sin(2 * np.pi * 3 * time)
    repaired = repair(observed, [slice(0, len(time))], fps, smoothed=False)
    away = np.linalg.norm(repaired.keypoints[hidden, 15] - still, axis=-1) / metre
    assert np.median(away) < 0.15 and away.max() < 0.4
    middle = (time > 1.35) & (time < 1.55)
    assert (repaired.visibility[middle, 15] < 0.5).all()
    assert (repaired.visibility[(time < 0.7) | (time > 2.2), 15] > 0.9).all()
    np.testing.assert_allclose(repaired.keypoints[:, 16], wave)


def test_a_wrist_that_leaps_for_one_frame_is_no_gesture_however_near():
    """Arms come to rest, and turn round, within what muscles can do: 25 cm there and back within a twelfth of a second is too much."""
    fps, size = 24.0, 350.0
    steady = observations(np.repeat(STANDING[None], 48, axis=0))
    leaping = PoseObservations(*(array.copy() for array in vars(steady).values()))
    leaping.keypoints[20, [15, 16]] += [0.1 * size, 0.0]
    repaired = repair(leaping, [slice(0, 48)], fps, smoothed=False)
    np.testing.assert_allclose(repaired.keypoints[:, [15, 16]], steady.keypoints[:, [15, 16]], atol=1.0)
