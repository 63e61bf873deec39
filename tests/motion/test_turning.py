import dataclasses

import numpy as np
import pytest

from diffusers_dreamactor.motion.sequence import project
from diffusers_dreamactor.motion.skeleton import BONES, JOINT_INDEX
from diffusers_dreamactor.motion.turning import turning_motion

from .stick_figure import StickFigure


@pytest.fixture
def person():
    return StickFigure().film("stand", num_frames=1, framing="full_body", cut=False)


def test_turn_goes_to_both_sides_and_comes_back(person):
    turn = turning_motion(person, 33, max_yaw=60)
    yaw = turn.yaw() - person.yaw()[0]
    np.testing.assert_allclose([yaw.max(), yaw.min()], [60, -60], atol=0.5)
    assert yaw[8] > 0 > yaw[24]
    for frame in (0, 16, 32):
        np.testing.assert_allclose(turn.body.keypoints[frame], person.body.keypoints[0], atol=1e-2)


def test_turn_is_rigid_and_projects_to_its_keypoints(person):
    turn = turning_motion(person, 9)
    for child, parent in BONES:
        lengths = np.linalg.norm(turn.body.joints[:, child] - turn.body.joints[:, parent], axis=-1)
        np.testing.assert_allclose(lengths, lengths[0], rtol=1e-4)
    pixels = project(turn.body.joints, turn.focal_length, turn.width, turn.height)
    np.testing.assert_allclose(pixels, turn.body.keypoints, atol=1e-2)


def test_face_turns_the_way_the_body_does(person):
    turn = turning_motion(person, 33)
    to_image_right = int(np.argmax(turn.yaw()))
    nose, ears = JOINT_INDEX["nose"], [JOINT_INDEX["left_ear"], JOINT_INDEX["right_ear"]]
    points = turn.body.keypoints[to_image_right]
    assert points[nose, 0] > points[ears, 0].mean()
    assert abs(turn.head.center[to_image_right, 0] - points[nose, 0]) < 2 * turn.head.radius[0]


def test_a_body_in_3d_is_needed(person):
    with pytest.raises(ValueError, match="no body in 3D"):
        turning_motion(dataclasses.replace(person, body=None), 9)
