"""Captured motion and drawn guidance in PyTorch against the package's processors."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch


pytest.importorskip("anny", reason="the extra `synthetic` is not installed")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "synthetic"))

from avatar_appearance import AvatarAppearance  # noqa: E402
from avatar_clip import Avatar  # noqa: E402
from avatar_motion import random_motion  # noqa: E402
from avatar_view import Camera, crop_boxes, jitter_boxes  # noqa: E402
from batch_guidance import capture, draw_maps, face_weights, held_frames, jittered_crops  # noqa: E402
from batch_render import BatchCamera  # noqa: E402

from diffusers_dreamactor.motion.skeleton import ARKIT_BLENDSHAPES  # noqa: E402
from diffusers_dreamactor.processors.body_skeleton import DREAMACTOR_LIMBS  # noqa: E402
from diffusers_dreamactor.processors.guidance import MotionGuidanceProcessor  # noqa: E402


@pytest.mark.parametrize("seed, scale", [(5, "portrait"), (21, "half_body"), (8, "full_body")])
def test_motion_and_maps_are_those_of_the_package(bodies, seed, scale):
    body, batch_body = bodies
    random = np.random.default_rng(seed)
    avatar = Avatar(body, AvatarAppearance.random(random, body))
    motion = random_motion(random, body, 9, scale, turning=1.0)
    camera = Camera.random(random, scale).framed_for(avatar)
    posed = avatar.pose(motion)
    expected = posed.motion(camera)

    values = (camera.focal_length, camera.distance, camera.x, camera.z, camera.yaw)
    batch_camera = BatchCamera(camera.height, camera.width, *(torch.tensor([float(value)]) for value in values))
    order = [body.action_names.index(name) for name in ARKIT_BLENDSHAPES]
    actions = torch.from_numpy(np.clip(posed.actions[:, order], 0, 1))
    tensors = (torch.from_numpy(np.float32(array)) for array in (posed.vertices, posed.rotations, posed.bones))
    clip = torch.zeros(9, dtype=torch.long)
    captured = capture(batch_body, batch_camera, clip, *tensors, actions)
    np.testing.assert_allclose(captured.joints.numpy(), expected.body.joints, atol=1e-5)
    np.testing.assert_allclose(captured.keypoints.numpy(), expected.body.keypoints, atol=2e-3)
    assert np.array_equal(captured.seen.numpy(), expected.body.confidence > 0.5)
    np.testing.assert_allclose(captured.rotation.numpy(), expected.head.rotation, atol=1e-5)
    np.testing.assert_allclose(captured.center.numpy(), expected.head.center, atol=1e-3)
    np.testing.assert_allclose(captured.radius.numpy(), expected.head.radius, atol=1e-3)
    np.testing.assert_allclose(captured.boxes.numpy(), expected.face.boxes, atol=1e-3)
    assert np.array_equal(captured.face_seen.numpy(), expected.face.confidence > 0.5)
    np.testing.assert_allclose(captured.actions.numpy(), expected.face.blendshapes)

    processor = MotionGuidanceProcessor(area=64 * 64, size_multiple=8, face_size=32)
    guidance = processor(expected, camera.height, camera.width)
    maps = draw_maps(captured, DREAMACTOR_LIMBS, camera.height, camera.width).transpose(0, 1)
    expected_maps = ((guidance.maps()[0] + 1) * 127.5).round().int()
    difference = (maps.int() - expected_maps).abs()
    # equal up to rounding; where two limbs are equally near, either may lie on top
    assert (difference > 1).float().mean() < 2e-3 and expected_maps.float().mean() > 1

    seen = captured.face_seen[None]
    weights = processor.face_motion.weights(expected.face.confidence)
    np.testing.assert_allclose(face_weights(seen)[0].numpy(), weights, atol=1e-6)


def test_the_last_face_that_was_seen_is_held():
    seen = torch.tensor([[False, True, True, False, False, True], [False] * 6])
    assert held_frames(seen).tolist() == [[0, 1, 2, 2, 2, 5], [0, 1, 2, 3, 4, 5]]
    torch.testing.assert_close(face_weights(seen)[0], torch.tensor([0, 1, 1, 0.9, 0.81, 1]))
    assert (face_weights(seen)[1] == 0).all()


def test_crops_are_cut_as_from_a_detector():
    boxes = np.cumsum(np.random.default_rng(0).uniform(0, 2, (12, 4)), axis=0) + np.array([0, 0, 40, 40])
    shift, scale = np.random.default_rng(1).uniform(-0.1, 0.1, 2), 1.1
    random = np.random.default_rng(1)
    expected = jitter_boxes(random, crop_boxes(boxes))
    scale = np.random.default_rng(1).uniform(size=3)[2] * 0.3 + 0.85
    tensors = (torch.tensor(value, dtype=torch.float32)[None] for value in (boxes, shift, scale))
    np.testing.assert_allclose(jittered_crops(*tensors)[0].numpy(), expected, atol=1e-3)
