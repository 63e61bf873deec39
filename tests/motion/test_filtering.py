import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from diffusers_dreamactor.motion.face_crops import square_around
from diffusers_dreamactor.motion.filtering import (
    fill_gaps,
    fill_rotations,
    find_outliers,
    find_side_swaps,
    smooth,
    smooth_boxes,
    smooth_rotations,
)


MIDDLE = slice(15, -15)


def seconds(fps, duration=6.0):
    return np.arange(int(fps * duration)) / fps


def wave(time, hertz, amplitude=20.0):
    return amplitude * np.sin(2 * np.pi * hertz * time)[:, None, None] * np.array([1.0, 0.5])


@pytest.mark.parametrize("fps", [24, 30, 60])
def test_smoothing_removes_most_of_the_noise_of_a_still_point(fps):
    time = seconds(fps)
    noise = np.random.default_rng(0).normal(0, 2.0, (len(time), 8, 2))
    left = smooth(500 + noise, np.ones((len(time), 8)), fps) - 500
    assert left[MIDDLE].std() < 0.5 * noise[MIDDLE].std()
    # Frame-to-frame jitter is what the eye sees.
    assert np.diff(left[MIDDLE], axis=0).std() < 0.2 * np.diff(noise[MIDDLE], axis=0).std()


@pytest.mark.parametrize(("hertz", "kept"), [(0.5, 0.995), (1.0, 0.98), (2.0, 0.97), (3.0, 0.93)])
def test_smoothing_keeps_amplitude(hertz, kept):
    time = seconds(30)
    clean = wave(time, hertz)
    noisy = clean + np.random.default_rng(1).normal(0, 0.5, clean.shape)
    smoothed = smooth(noisy, np.ones((len(time), 1)), 30)
    share = (smoothed * clean)[MIDDLE].sum() / (clean[MIDDLE] ** 2).sum()
    assert kept < share < 1.01


@pytest.mark.parametrize("hertz", [0.5, 1.0, 2.0, 3.0])
def test_smoothing_does_not_lag(hertz):
    time = seconds(30)
    clean = wave(time, hertz)
    noisy = clean + np.random.default_rng(2).normal(0, 0.5, clean.shape)
    smoothed = smooth(noisy, np.ones((len(time), 1)), 30)[:, 0, 0]
    # Phase of the one frequency in it, over whole periods.
    span = time < 6.0
    phase = np.angle(np.sum(smoothed[span] * np.exp(-2j * np.pi * hertz * time[span]))) + np.pi / 2
    assert abs(phase) / (2 * np.pi * hertz) < 0.1 / 30


def test_smoothing_is_the_same_backwards():
    noisy = np.random.default_rng(3).normal(0, 1, (80, 3, 2)).cumsum(axis=0)
    confidence = np.random.default_rng(4).uniform(0.3, 1, (80, 3))
    forward = smooth(noisy, confidence, 30)
    backward = smooth(noisy[::-1], confidence[::-1], 30)[::-1]
    np.testing.assert_allclose(forward, backward, atol=1e-8)


def test_smoothing_leaves_a_steady_motion_as_it_is_to_the_ends():
    line = np.arange(40.0)[:, None, None] * np.array([3.0, -1.0])
    np.testing.assert_allclose(smooth(line, np.ones((40, 1)), 30), line, atol=0.05)


def test_smoothing_believes_confident_frames():
    values = np.zeros((61, 1, 1))
    values[30] = 10.0
    confidence = np.ones((61, 1))
    confidence[30] = 0.05
    assert abs(smooth(values, confidence, 30)[30, 0, 0]) < 1.5


def test_rotations_are_smoothed_on_the_group_across_half_a_turn():
    rng = np.random.default_rng(5)
    time = seconds(30)
    # A head that goes on turning, through +-180 degrees, where angles and matrix entries cannot be averaged.
    angles = np.stack([90 * time, 20 * np.sin(time), np.zeros_like(time)], axis=1)
    clean = Rotation.from_euler("YXZ", angles, degrees=True)
    noisy = clean * Rotation.from_rotvec(np.radians(rng.normal(0, 3, (len(time), 3))))
    smoothed = smooth_rotations(noisy.as_matrix(), np.ones(len(time)), 30)
    np.testing.assert_allclose(
        smoothed @ smoothed.transpose(0, 2, 1), np.broadcast_to(np.eye(3), smoothed.shape), atol=1e-9
    )
    np.testing.assert_allclose(np.linalg.det(smoothed), 1, atol=1e-9)
    before = np.degrees((clean.inv() * noisy).magnitude())[MIDDLE]
    after = np.degrees((clean.inv() * Rotation.from_matrix(smoothed)).magnitude())[MIDDLE]
    assert np.sqrt((after**2).mean()) < 0.55 * np.sqrt((before**2).mean())
    # No lag: the error along the turning axis is zero in the mean (one frame is 3 degrees).
    along = (clean.inv() * Rotation.from_matrix(smoothed)).as_rotvec(degrees=True)[MIDDLE]
    assert np.abs(along.mean(axis=0)).max() < 0.3


def test_rotation_amplitude_is_kept():
    time = seconds(30)
    clean = Rotation.from_euler("Y", 30 * np.sin(2 * np.pi * time)[:, None], degrees=True)
    smoothed = smooth_rotations(clean.as_matrix(), np.ones(len(time)), 30)
    error = np.degrees((clean.inv() * Rotation.from_matrix(smoothed)).magnitude())[MIDDLE]
    assert error.max() < 0.6


def test_boxes_hold_still_and_stay_square():
    rng = np.random.default_rng(6)
    box = np.array([100.0, 50.0, 200.0, 150.0]) + rng.normal(0, 2, (90, 4))
    smoothed = smooth_boxes(box, np.ones(90), 30)
    sides = smoothed[:, 2:] - smoothed[:, :2]
    np.testing.assert_allclose(sides[:, 0], sides[:, 1], atol=1e-9)
    assert sides.std() < 0.45 * (box[:, 2] - box[:, 0]).std()
    assert abs(smoothed.mean() - 125) < 1


def boxes_at(center: np.ndarray, side) -> np.ndarray:
    half = np.broadcast_to(np.asarray(side, dtype=float) / 2, len(center))[:, None]
    return np.concatenate([center - half, center + half], axis=1)


def test_box_jitter_goes_and_the_movement_stays():
    rng = np.random.default_rng(0)
    time = np.arange(120)
    true = np.stack([300 + 80 * np.sin(2 * np.pi * time / 60), 200 + 0.5 * time], axis=1)
    noisy = boxes_at(true + rng.normal(0, 3, true.shape), 90 * np.exp(rng.normal(0, 0.04, 120)))
    smoothed = smooth_boxes(noisy, np.ones(120), 24)
    center, side = (smoothed[:, :2] + smoothed[:, 2:]) / 2, smoothed[:, 2] - smoothed[:, 0]
    raw_center = (noisy[:, :2] + noisy[:, 2:]) / 2
    assert (center - true).std() < 0.6 * 3
    assert np.diff(center, n=2, axis=0).std() < 0.2 * np.diff(raw_center, n=2, axis=0).std()
    assert np.diff(side).std() < 0.35 * np.diff(noisy[:, 2] - noisy[:, 0]).std()
    # No lag: the correlation with the true path is best without a shift.
    errors = [np.abs(center[3 + lag : 117 + lag, 0] - true[3:117, 0]).mean() for lag in (-1, 0, 1)]
    assert np.argmin(errors) == 1


def test_boxes_that_move_evenly_are_not_left_behind_even_at_the_ends():
    time = np.arange(30)
    boxes = boxes_at(np.stack([100 + 4.0 * time, 50 + 0.0 * time], axis=1), 40)
    np.testing.assert_allclose(smooth_boxes(boxes, np.ones(30), 24), boxes, atol=1e-2)


def test_smoothing_of_boxes_starts_anew_at_a_cut_and_weighs_by_confidence():
    boxes = boxes_at(np.array([[100.0, 100]] * 10 + [[500.0, 300]] * 10), np.repeat([60.0, 200.0], 10))
    np.testing.assert_allclose(smooth_boxes(boxes, np.ones(20), 24), boxes, rtol=1e-5)
    boxes = boxes_at(np.full((41, 2), 100.0), 60)
    boxes[20] += 20
    doubtful = np.ones(41)
    doubtful[20] = 0.5
    shift = [smooth_boxes(boxes, c, 24)[20, 0] - 70 for c in (np.ones(41), doubtful)]
    assert 0 < shift[1] < 0.7 * shift[0] < 0.3 * 20


def test_boxes_follow_a_fast_nod():
    """A crop of 1.15 times the smoothed box still has the whole face in it."""
    time = np.arange(96)
    true = np.stack([300 + 40 * np.sin(2 * np.pi * time / 24), 200 + 25 * np.sin(2 * np.pi * time / 16)], axis=1)
    boxes = boxes_at(true, 100 + 5 * np.sin(2 * np.pi * time / 30))
    for box, tight in zip(smooth_boxes(boxes, np.ones(96), 24), boxes):
        x0, y0, x1, y1 = square_around(box, 1.15)
        assert x0 <= tight[0] and y0 <= tight[1] and x1 >= tight[2] and y1 >= tight[3]


def test_outliers_are_found_and_fast_motion_is_not():
    rng = np.random.default_rng(7)
    frames = np.arange(60.0)
    values = np.stack([25 * frames, 5 * np.sin(frames)], axis=-1)[:, None] + rng.normal(0, 0.3, (60, 1, 2))
    assert find_outliers(values, np.ones((60, 1)), threshold=8).sum() == 0
    values[20] += 200
    values[41:43] += [0, -150]
    found = find_outliers(values, np.ones((60, 1)), threshold=8)[:, 0]
    assert found[[20, 41, 42]].all() and found.sum() == 3


def walking_legs():
    """Left and right ankle of somebody walking: they swing to and fro and pass each other, but do not jump."""
    time = np.arange(60) / 30
    swing = 40 * np.sin(2 * np.pi * 1.0 * time)
    left = np.stack([100 + swing, 300 + 5 * np.cos(time)], axis=-1)
    right = np.stack([100 - swing, 320 + 5 * np.cos(time)], axis=-1)
    knees = [side * [1, 0.8] + [0, -20] for side in (left, right)]
    return np.stack([left, right, *knees], axis=1)


def test_side_swaps_are_repaired_and_passing_legs_are_not_swaps():
    legs, pairs = walking_legs(), [(0, 1), (2, 3)]
    confidence = np.ones(legs.shape[:2])
    assert not find_side_swaps(legs, confidence, [pairs], 300.0).any()
    swapped = legs.copy()
    for span in (slice(7, 10), slice(35, 36), slice(50, 54)):
        swapped[span] = legs[span][:, [1, 0, 3, 2]]
    found = find_side_swaps(swapped, confidence, [pairs], 300.0)[:, 0]
    expected = np.zeros(60, dtype=bool)
    expected[[7, 8, 9, 35, 50, 51, 52, 53]] = True
    np.testing.assert_array_equal(found, expected)


def turning_person():
    """Shoulders, elbows, wrists, hips, knees and ankles (left, right) of somebody who turns right round in 60 frames."""
    angle = np.linspace(0, 2 * np.pi, 60)
    reach = np.array([20.0, -20.0, 45.0, -60.0, 50.0, -90.0, 12.0, -12.0, 14.0, -14.0, 15.0, -15.0])
    heights = np.array([0.0, 0, 30, 40, -40, 70, 60, 60, 100, 100, 140, 140])
    return np.stack([reach * np.cos(angle)[:, None], np.broadcast_to(heights, (60, 12))], axis=-1)


def test_sides_go_on_where_nobody_is_found():
    person, arms = turning_person(), [(0, 1), (2, 3), (4, 5)]
    given, confidence = person.copy(), np.ones(person.shape[:2])
    given[3:9] = given[3:9][:, [1, 0, 3, 2, 5, 4, *range(6, 12)]]
    confidence[[8, 9]] = 0
    found = find_side_swaps(given, confidence, [arms], 300.0)[:, 0]
    np.testing.assert_array_equal(np.flatnonzero(found), [3, 4, 5, 6, 7])


def test_legs_are_turned_as_the_arms_are():
    """From the side legs coincide, and may go on either way; nobody's hips face the other way than the shoulders."""
    person, arms, legs = turning_person(), [(0, 1), (2, 3), (4, 5)], [(6, 7), (8, 9), (10, 11)]
    given = person.copy()
    behind = np.abs(np.arange(60) - 30) < 14
    front = behind & (np.arange(60) % 7 > 2)
    given[front] = given[front][:, [1, 0, 3, 2, 5, 4, *range(6, 12)]]
    given[behind] = given[behind][:, [*range(6), 7, 6, 9, 8, 11, 10]]
    found = find_side_swaps(given, np.ones(person.shape[:2]), [arms, legs], 150.0)
    np.testing.assert_array_equal(found[:, 0], front)
    # Where they coincide either is right.
    clear = np.abs(person[:, 6, 0] - person[:, 7, 0]) > 6
    np.testing.assert_array_equal(found[clear, 1], behind[clear])


def test_short_gaps_are_bridged_and_long_ones_fade():
    values = np.arange(100.0)[:, None, None] * [1.0, 2.0]
    confidence = np.full((100, 1), 0.9)
    confidence[10:15] = confidence[40:90] = 0
    broken = values.copy()
    broken[10:15] = broken[40:90] = -77
    filled, trust = fill_gaps(broken, confidence, fps=25)
    np.testing.assert_allclose(filled, values, atol=1e-9)
    assert (trust[10:15] == 0.9).all()
    assert trust[40, 0] > trust[44, 0] > 0 and (trust[56:74] == 0).all()


def test_ends_are_held_and_an_empty_track_stays():
    values = np.random.default_rng(8).normal(size=(30, 2, 3))
    confidence = np.zeros((30, 2))
    confidence[10:20, 0] = 1
    filled, trust = fill_gaps(values, confidence, fps=30)
    np.testing.assert_array_equal(filled[:10, 0], np.repeat(values[10:11, 0], 10, axis=0))
    np.testing.assert_array_equal(filled[20:, 0], np.repeat(values[19:20, 0], 10, axis=0))
    assert 0 < trust[9, 0] < 1
    np.testing.assert_array_equal(filled[:, 1], values[:, 1])
    assert (trust[:, 1] == 0).all()


def test_rotation_gaps_are_filled_along_the_shortest_turn():
    rotations = Rotation.from_euler("Y", np.linspace(170, 190, 21)[:, None], degrees=True).as_matrix()
    known = np.zeros(21, dtype=bool)
    known[[2, 18]] = True
    broken = np.where(known[:, None, None], rotations, np.eye(3))
    filled = fill_rotations(broken, known)
    np.testing.assert_allclose(filled[2:19], rotations[2:19], atol=1e-9)
    np.testing.assert_allclose(filled[0], rotations[2], atol=1e-9)


@pytest.mark.parametrize("num_frames", range(1, 10))
def test_clips_of_a_few_frames(num_frames):
    values = np.arange(num_frames, dtype=float)[:, None, None] * np.array([2.0, -1.0])
    confidence = np.ones((num_frames, 1))
    assert not find_outliers(values, confidence).any()
    np.testing.assert_allclose(smooth(values, confidence, 24), values, atol=0.05)
    np.testing.assert_array_equal(fill_gaps(values, confidence, 24)[0], values)
    rotations = Rotation.from_euler("Y", 3.0 * np.arange(num_frames)[:, None], degrees=True).as_matrix()
    np.testing.assert_allclose(smooth_rotations(rotations, confidence[:, 0], 24), rotations, atol=1e-3)
