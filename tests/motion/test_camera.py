import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from diffusers_dreamactor.motion.camera import (
    back_project,
    default_focal_length,
    estimate_focal_length,
    normalized,
    ray_rotation,
    shortest_rotation,
    solve_pnp,
    solve_translation,
    weak_perspective,
)
from diffusers_dreamactor.motion.sequence import project


WIDTH, HEIGHT = 1280, 720


def bodies(num_frames=12, seed=0):
    """Point clouds the size of a person, different in every frame."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, [0.25, 0.5, 0.2], (num_frames, 33, 3))


def test_back_projection_undoes_projection():
    joints = bodies() + [0.3, -0.2, 3.0]
    pixels = project(joints, 900.0, WIDTH, HEIGHT)
    np.testing.assert_allclose(back_project(pixels, joints[..., 2], 900.0, WIDTH, HEIGHT), joints, atol=1e-5)


def test_translation_is_recovered_to_a_hundredth_of_a_pixel():
    points = bodies()
    rng = np.random.default_rng(1)
    truth = np.stack([rng.uniform(-1, 1, 12), rng.uniform(-0.5, 0.5, 12), rng.uniform(2, 8, 12)], axis=-1)
    keypoints = project(points + truth[:, None], 1100.0, WIDTH, HEIGHT).astype(np.float64)
    weights = rng.uniform(0.1, 1, (12, 33))
    weights[:, 20:] = 0
    found = solve_translation(points, keypoints, weights, 1100.0, WIDTH, HEIGHT)
    np.testing.assert_allclose(found, truth, rtol=1e-3, atol=1e-3)
    error = project(points + found[:, None], 1100.0, WIDTH, HEIGHT) - keypoints
    assert np.abs(error).max() < 0.1


def test_translation_stays_in_front_of_the_camera_with_pairs_that_make_no_sense():
    points = bodies()
    keypoints = np.random.default_rng(2).uniform(0, 700, (12, 33, 2))
    found = solve_translation(points, keypoints, np.ones((12, 33)), 1100.0, WIDTH, HEIGHT)
    assert np.isfinite(found).all()
    assert (found[:, 2] > -points[..., 2].min(axis=1)).all()


def test_pnp_recovers_rotation_and_translation():
    points = bodies()
    rng = np.random.default_rng(3)
    rotation = Rotation.from_rotvec(np.radians(rng.uniform(-25, 25, (12, 3)))).as_matrix()
    translation = np.stack([rng.uniform(-1, 1, 12), rng.uniform(-0.5, 0.5, 12), rng.uniform(2, 6, 12)], axis=-1)
    placed = np.einsum("fij,fnj->fni", rotation, points) + translation[:, None]
    keypoints = placed[..., :2] / placed[..., 2:] * 1000.0 + [WIDTH / 2, HEIGHT / 2]
    found_rotation, found_translation = solve_pnp(points, keypoints, np.ones((12, 33)), 1000.0, WIDTH, HEIGHT)
    angle = Rotation.from_matrix(found_rotation @ rotation.transpose(0, 2, 1)).magnitude()
    assert np.degrees(angle).max() < 0.05
    np.testing.assert_allclose(found_translation, translation, rtol=1e-3, atol=1e-3)


def test_weak_perspective_is_exact_for_a_scaled_picture():
    points = bodies()
    keypoints = 250.0 * points[..., :2] + [600.0, 300.0]
    scale, offset = weak_perspective(points, keypoints, np.ones((12, 33)))
    np.testing.assert_allclose(scale, 250.0)
    np.testing.assert_allclose(offset, np.broadcast_to([600.0, 300.0], (12, 2)))


@pytest.mark.parametrize("truth", [900.0, 1468.6, 2600.0])
def test_focal_length_is_told_by_a_near_person(truth):
    points = bodies(30)
    translation = np.array([0.1, 0.0, 1.5])
    placed = points * [1, 1, 1.5] + translation
    keypoints = project(placed, truth, WIDTH, HEIGHT).astype(np.float64)
    found = estimate_focal_length(points * [1, 1, 1.5], keypoints, np.ones((30, 33)), WIDTH, HEIGHT, noise=0.005)
    assert abs(np.log(found / truth)) < 0.12


def test_focal_length_is_not_told_by_joints_that_are_wrong():
    points = bodies(30) * [1, 1, 1.5]
    keypoints = project(points + np.array([0.1, 0.0, 1.5]), 1468.6, WIDTH, HEIGHT).astype(np.float64)
    size = np.ptp(keypoints, axis=1).max()
    # In a third of the frames arms and legs of one side are somewhere else.
    rng = np.random.default_rng(0)
    keypoints[::3, 11::2] += rng.normal(0, 0.3 * size, (10, 11, 2))
    found = estimate_focal_length(points, keypoints, np.ones((30, 33)), WIDTH, HEIGHT)
    assert abs(np.log(found / 1468.6)) < 0.2


def test_focal_length_is_the_usual_one_where_nothing_tells_it():
    flat = bodies(30) * [1, 1, 0]
    keypoints = project(flat + [0, 0, 4.0], 700.0, WIDTH, HEIGHT).astype(np.float64)
    found = estimate_focal_length(flat, keypoints, np.ones((30, 33)), WIDTH, HEIGHT)
    assert abs(found / default_focal_length(WIDTH, HEIGHT) - 1) < 0.05
    assert estimate_focal_length(flat, keypoints, np.zeros((30, 33)), WIDTH, HEIGHT) == default_focal_length(
        WIDTH, HEIGHT
    )


def test_ray_rotation_turns_the_optical_axis_to_the_pixel_without_roll():
    pixels = np.array([[640.0, 360.0], [0.0, 0.0], [1280.0, 300.0]])
    rotation = ray_rotation(pixels, 1000.0, WIDTH, HEIGHT)
    np.testing.assert_allclose(rotation[0], np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotation), 1)
    np.testing.assert_allclose(project(rotation[:, :, 2], 1000.0, WIDTH, HEIGHT), pixels, atol=1e-3)
    # The shortest way: the axis of the rotation lies in the picture.
    assert np.abs(Rotation.from_matrix(rotation).as_rotvec()[:, 2]).max() < 1e-9


def test_shortest_rotation_turns_one_direction_onto_the_other():
    rng = np.random.default_rng(0)
    start, end = rng.normal(size=(2, 200, 3))
    end[0] = 3 * start[0]  # nothing to turn
    end[1] = start[1] + 1e-9 * end[1]  # next to nothing
    end[2] = -start[2]  # any half turn
    end[3] = -start[3] + 1e-7 * end[3]  # nearly opposite
    rotation = shortest_rotation(start, end)
    np.testing.assert_allclose(rotation @ np.swapaxes(rotation, -1, -2), np.tile(np.eye(3), (200, 1, 1)), atol=1e-12)
    turned = np.einsum("nij,nj->ni", rotation, normalized(start))
    np.testing.assert_allclose(turned, normalized(end), atol=1e-8)
    angle = np.arccos(np.clip(np.sum(normalized(start) * normalized(end), axis=-1), -1, 1))
    np.testing.assert_allclose(Rotation.from_matrix(rotation).magnitude(), angle, atol=1e-6)
    np.testing.assert_array_equal(shortest_rotation(np.zeros(3), end[:2]), np.tile(np.eye(3), (2, 1, 1)))
