"""The renderer of synthetic avatars. Packing Anny's body takes about 20 seconds once its caches exist."""

import sys
from pathlib import Path

import numpy as np
import pytest


pytest.importorskip("anny", reason="the extra `synthetic` is not installed")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "synthetic"))
avatar_clip = pytest.importorskip("avatar_clip")

from avatar_appearance import REGIONS, AvatarAppearance  # noqa: E402
from avatar_body import AvatarBody  # noqa: E402
from avatar_motion import AvatarMotion, random_expression, smooth_keys  # noqa: E402
from avatar_rasterizer import rasterize  # noqa: E402
from avatar_view import Camera  # noqa: E402

from diffusers_dreamactor.motion.sequence import project  # noqa: E402
from diffusers_dreamactor.motion.skeleton import JOINT_INDEX  # noqa: E402


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    path = tmp_path_factory.mktemp("body") / "body.npz"
    AvatarBody.pack(path, num_people=30)
    return AvatarBody(path)


def still(body, scale="portrait", root_yaw=0.0, **actions):
    """A motion of one frame: rest pose, turned by `root_yaw` degrees, with some facial actions."""
    rotations = np.broadcast_to(np.eye(3, dtype=np.float32), (1, len(body.bone_names), 3, 3)).copy()
    c, s = np.cos(np.deg2rad(root_yaw)), np.sin(np.deg2rad(root_yaw))
    rotations[0, 0] = [[c, -s, 0], [s, c, 0], [0, 0, 1]]
    values = np.zeros((1, len(body.action_names)), dtype=np.float32)
    for name, value in actions.items():
        values[0, body.action_index[name]] = value
    return AvatarMotion(rotations, np.zeros((1, 3), dtype=np.float32), values, scale)


@pytest.fixture(scope="module")
def avatar(body):
    return avatar_clip.Avatar(body, AvatarAppearance.random(np.random.default_rng(3), body))


@pytest.fixture(scope="module")
def camera(avatar):
    camera = Camera(128, 128, 200.0, 200.0 / 300, 0.0, 0.68)
    return camera.framed_for(avatar)


def test_the_same_seed_gives_the_same_clip(body):
    first, second = (avatar_clip.render_motion(body, 7, "half_body", num_frames=5) for _ in range(2))
    other = avatar_clip.render_motion(body, 8, "half_body", num_frames=5)
    assert len(first) == 2
    for a, b in zip(first, second):
        assert np.array_equal(a.video, b.video) and np.array_equal(a.motion.face.crops, b.motion.face.crops)
    assert not np.array_equal(first[0].video, other[0].video)
    # two people, one motion: other pictures, the same crops of somebody else's face
    assert not np.array_equal(first[0].video, first[1].video)
    assert np.array_equal(first[0].motion.face.crops, first[1].motion.face.crops)
    first[0].motion.validate()
    assert first[0].video.shape == (5, 64, 64, 3) and first[0].references.shape == (3, 64, 64, 3)


def test_a_person_can_be_met_again(body):
    met, again = (avatar_clip.render_motion(body, seed, "portrait", 5, people=1, identity=4)[0] for seed in (1, 2))
    assert met.identity == again.identity == 4
    assert not np.array_equal(met.video, again.video)


def test_only_the_expression_differs(body):
    first, second = (avatar_clip.render_motion(body, 3, "portrait", 9, people=1, expression=e)[0] for e in (0, 1))
    assert not np.array_equal(first.motion.face.blendshapes, second.motion.face.blendshapes)
    assert not np.array_equal(first.motion.face.crops, second.motion.face.crops)
    np.testing.assert_array_equal(first.motion.head.rotation, second.motion.head.rotation)
    np.testing.assert_array_equal(first.references, second.references)
    difference = np.abs(first.video.astype(int) - second.video).max(axis=-1)
    # a jaw moves the neck's skin by a shade; nothing else below the head or beside it changes
    head = np.maximum(first.regions, second.regions) >= 2
    background = np.maximum(first.regions, second.regions) == 0
    assert difference[head].mean() > 4 and difference[background].max() == 0 and difference[~head].max() <= 3


def test_talking_heads_hardly_move(body):
    calm, lively = (avatar_clip.render_motion(body, 5, "portrait", 17, people=1, liveliness=s)[0] for s in (0.2, 1.0))
    assert np.ptp(calm.motion.yaw()) < 0.5 * np.ptp(lively.motion.yaw())
    np.testing.assert_array_equal(calm.motion.face.blendshapes.std(axis=0) > 0, lively.motion.face.blendshapes.std(axis=0) > 0)  # fmt: skip


def test_who_turns_round_is_seen_from_behind_in_references(body):
    for seed in (1, 2):
        (clip,) = avatar_clip.render_motion(body, seed, "half_body", 17, people=1, turning=1.0)
        assert np.abs(clip.motion.yaw()).max() > 100
        yaw = np.abs(clip.reference_motion.yaw())
        assert yaw[0] < 60 and yaw[1:].max() > 100
        (clip,) = avatar_clip.render_motion(body, seed, "half_body", 17, people=1, turning=0.0)
        assert np.abs(clip.motion.yaw()).max() < 100 and np.abs(clip.reference_motion.yaw()).max() < 100


def test_keypoints_lie_on_the_person(body, avatar, camera):
    posed = avatar.pose(still(body))
    motion = posed.motion(camera)
    frames, regions = posed.render(camera)
    projected = project(motion.body.joints, motion.focal_length, motion.width, motion.height)
    np.testing.assert_allclose(projected, motion.body.keypoints, atol=1e-3)
    for joint in ("nose", "left_eye", "right_eye"):
        x, y = motion.body.keypoints[0, JOINT_INDEX[joint]].astype(int)
        assert regions[0, y, x] > 0, joint
    # the person's left is on the right of the picture
    assert motion.body.keypoints[0, JOINT_INDEX["left_eye"], 0] > motion.body.keypoints[0, JOINT_INDEX["right_eye"], 0]
    x, y = motion.head.center[0].astype(int)
    assert REGIONS[regions[0, y, x]] in ("head", "eyes_and_mouth")
    assert frames.dtype == np.uint8 and frames.shape == (1, 128, 128, 3)


@pytest.mark.parametrize("degrees", [-40, 0, 30])
def test_the_head_turns_with_the_body(body, avatar, camera, degrees):
    # to the person's left is to the right of the picture, positive yaw; about z, a positive angle turns from -y to +x
    motion = avatar.pose(still(body, root_yaw=degrees)).motion(camera)
    assert abs(motion.yaw()[0] - degrees) < 1


def test_from_behind_there_is_no_face(body, avatar, camera):
    front, back = (avatar.pose(still(body, root_yaw=yaw)) for yaw in (0, 180))
    assert front.motion(camera).face.confidence[0] == 1 and back.motion(camera).face.confidence[0] == 0
    assert (front.render(camera)[1] == 3).sum() > 100
    assert (back.render(camera)[1] == 3).sum() == 0


def test_actions_change_the_face_and_nothing_else(body, avatar, camera):
    neutral, regions = avatar.pose(still(body)).render(camera)
    for action in ("jawOpen", "eyeBlinkLeft", "mouthPucker", "browInnerUp"):
        frames, moved = avatar.pose(still(body, **{action: 1.0})).render(camera)
        changed = (np.abs(frames.astype(int) - neutral) > 20).any(axis=-1)
        # the jaw drops over the neck, so the head of either picture counts
        head = np.maximum(regions, moved) >= 2
        assert changed.sum() > 20 and head[changed].mean() > 0.95, action


def test_the_nearer_triangle_is_seen():
    far = np.array([[0, 0, 2.0], [0, 8, 2.0], [8, 0, 2.0]])
    near = np.array([[0, 0, 1.0], [0, 4, 1.0], [4, 0, 1.0]])
    triangle, weights = rasterize(np.concatenate([far, near])[None], np.array([[0, 1, 2], [3, 4, 5]]), 8, 8)
    assert triangle[0, 0, 0] == 1 and triangle[0, 0, 6] == 0 and triangle[0, 7, 7] == -1
    np.testing.assert_allclose(weights[0, 0, 0].sum(), 1, atol=1e-6)
    turned = rasterize(np.concatenate([far, near])[None], np.array([[2, 1, 0]]), 8, 8)[0]
    assert (turned == -1).all()


def test_curves_are_smooth_and_stay_in_range():
    random = np.random.default_rng(0)
    curves = np.stack([smooth_keys(random, 60, -2.0, 3.0, every=6) for _ in range(50)])
    assert curves.min() >= -2 and curves.max() <= 3 and curves.std() > 0.8
    assert np.abs(np.diff(curves, axis=1)).max() < 3


def test_expressions_are_actions(body):
    actions = random_expression(np.random.default_rng(1), body, 200)
    assert actions.shape == (200, 52) and actions.min() >= 0 and actions.max() <= 1.15
    assert actions[:, body.action_index["jawOpen"]].max() > 0.8
