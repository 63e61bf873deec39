import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from diffusers_dreamactor.motion.idle import idle_blinks, idle_head_rotation, idle_motion
from diffusers_dreamactor.motion.sequence import FaceTrack, project
from diffusers_dreamactor.motion.skeleton import ARKIT_BLENDSHAPES, JOINT_INDEX

from .stick_figure import StickFigure


HEAD = [JOINT_INDEX[name] for name in ("nose", "left_eye", "right_eye", "left_ear", "right_ear")]
BLINK = ARKIT_BLENDSHAPES.index("eyeBlinkLeft")


@pytest.fixture
def still():
    motion = StickFigure().film("stand", num_frames=1, framing="full_body", cut=False).hold(100)
    face = FaceTrack(None, np.ones(100), blendshapes=np.zeros((100, 52)))
    return dataclasses.replace(motion, face=face)


def angles(rotations):
    return np.rad2deg(np.linalg.norm(Rotation.from_matrix(rotations).as_rotvec(), axis=-1))


@pytest.mark.parametrize("seed", range(4))
def test_heads_sway_a_little_and_smoothly(seed):
    times = np.arange(60 * 25) / 25
    rotation = idle_head_rotation(times, seed)
    np.testing.assert_allclose(
        rotation @ rotation.transpose(0, 2, 1), np.broadcast_to(np.eye(3), rotation.shape), atol=1e-5
    )
    assert 2 < angles(rotation).max() < 10
    # degrees from one frame to the next
    assert angles(rotation[1:] @ rotation[:-1].transpose(0, 2, 1)).max() < 1.0
    assert angles(idle_head_rotation(times, seed, amount=0.0)).max() < 1e-3


def test_a_moment_is_the_same_in_any_piece_and_differs_by_seed():
    times = np.arange(400) / 25
    for function in (idle_head_rotation, idle_blinks):
        whole = function(times, 3)
        np.testing.assert_array_equal(np.concatenate([function(times[:171], 3), function(times[171:], 3)]), whole)
        assert not np.allclose(function(times, 4), whole)
    assert len(idle_blinks(times[:0])) == 0


@pytest.mark.parametrize("seed", range(4))
def test_people_blink_fifteen_to_twenty_times_a_minute(seed):
    times = np.arange(120 * 100) / 100
    closed = idle_blinks(times, seed)
    assert closed.min() == 0 and closed.max() == 1
    blinks = np.count_nonzero(np.diff((closed > 0.5).astype(int)) == 1)
    assert 26 <= blinks <= 46
    assert (closed > 0).mean() < 0.12


def test_the_head_takes_its_joints_along_and_nothing_else_moves(still):
    before = still.take(np.arange(100))
    idle = idle_motion(still, seed=1)
    idle.validate()
    for track in ("body", "head", "face"):
        for name, value in vars(getattr(before, track)).items():
            np.testing.assert_array_equal(getattr(getattr(still, track), name), value)
    moved = np.abs(idle.body.keypoints - still.body.keypoints).max(axis=(0, 2))
    others = np.setdiff1d(np.arange(len(moved)), HEAD)
    assert moved[HEAD].min() > 0.5 and moved[others].max() == 0
    neck = JOINT_INDEX["neck"]
    for joint in HEAD:
        lengths = np.linalg.norm(idle.body.joints[:, joint] - idle.body.joints[:, neck], axis=-1)
        np.testing.assert_allclose(lengths, lengths[0], rtol=1e-4)
    pixels = project(idle.body.joints, idle.focal_length, idle.width, idle.height)
    np.testing.assert_allclose(pixels, idle.body.keypoints, atol=0.05)
    # the sphere goes where the nose goes
    nose = idle.body.keypoints[:, JOINT_INDEX["nose"]] - still.body.keypoints[:, JOINT_INDEX["nose"]]
    center = idle.head.center - still.head.center
    assert np.corrcoef(nose[:, 0], center[:, 0])[0, 1] > 0.5
    assert idle.face.blendshapes[:, BLINK].max() > 0.9


def test_pieces_make_the_whole(still):
    whole, piece = idle_motion(still, seed=2), idle_motion(still[60:], seed=2, start=60)
    np.testing.assert_allclose(piece.head.rotation, whole.head.rotation[60:], atol=1e-6)
    np.testing.assert_allclose(piece.body.keypoints, whole.body.keypoints[60:], atol=1e-3)


def test_a_head_without_a_body_in_3d_sways_too(still):
    flat = dataclasses.replace(still, body=dataclasses.replace(still.body, joints=still.body.joints * np.nan))
    for motion in (flat, dataclasses.replace(still, body=None)):
        idle = idle_motion(motion, seed=1)
        np.testing.assert_allclose(idle.head.rotation, idle_motion(still, seed=1).head.rotation, atol=1e-5)
        assert 0.5 < np.abs(idle.head.center - motion.head.center).max() < idle.head.radius[0]
    np.testing.assert_array_equal(idle_motion(flat).body.keypoints, flat.body.keypoints)
