import os
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from diffusers_dreamactor.motion.capture.smplx import BODY_PARENTS, load_smplx_motion
from diffusers_dreamactor.motion.sequence import project
from diffusers_dreamactor.motion.skeleton import BONES, JOINT_INDEX, JOINT_NAMES, LEFT_HAND, PARENTS, SMPLX_MAPPING


NUM_VERTICES = 10475
# A stick person in SMPL-X's T-pose: x to the person's left, y up, facing z; metres.
HALF = {
    "hip": (0.09, -0.09, 0.0),
    "knee": (0.10, -0.48, 0.01),
    "ankle": (0.10, -0.88, -0.02),
    "foot": (0.11, -0.94, 0.10),
    "collar": (0.04, 0.38, 0.0),
    "shoulder": (0.18, 0.42, 0.0),
    "elbow": (0.45, 0.42, -0.01),
    "wrist": (0.70, 0.42, 0.0),
    "eye": (0.03, 0.66, 0.09),
    "ear": (0.075, 0.64, 0.0),
    "big_toe": (0.10, -0.95, 0.17),
    "small_toe": (0.15, -0.95, 0.14),
    "heel": (0.10, -0.95, -0.05),
    "eye_smplhf": (0.03, 0.66, 0.08),
}
MIDDLE = {
    "pelvis": (0.0, 0.0, 0.0),
    "spine1": (0.0, 0.11, 0.0),
    "spine2": (0.0, 0.22, 0.0),
    "spine3": (0.0, 0.29, 0.0),
    "neck": (0.0, 0.48, 0.0),
    "head": (0.0, 0.56, 0.02),
    "jaw": (0.0, 0.58, 0.04),
    "nose": (0.0, 0.62, 0.12),
}
PELVIS = np.array([0.01, -0.35, 0.02])
FINGERS = ("thumb", "index", "middle", "ring", "pinky")


def rest_point(name):
    if name in MIDDLE:
        return np.array(MIDDLE[name]) + PELVIS
    side, part = name.split("_", 1)
    sign = np.array([1.0 if side == "left" else -1.0, 1.0, 1.0])
    if part in HALF:
        return sign * HALF[part] + PELVIS
    finger = part.rstrip("123")
    joint = int(part[len(finger) :] or 4)
    across = {"thumb": 0.045, "index": 0.03, "middle": 0.01, "ring": -0.01, "pinky": -0.03}[finger]
    return sign * (0.70 + 0.05 + 0.025 * joint, 0.42, across) + PELVIS


@pytest.fixture(scope="module")
def smplx_file(tmp_path_factory):
    """A model file with SMPL-X's shapes, whose joints and landmarks are the stick person's; each moves with one joint."""
    names = pytest.importorskip("smplx.joint_names").JOINT_NAMES
    vertex_ids = pytest.importorskip("smplx.vertex_ids").vertex_ids["smplx"]
    smplx = pytest.importorskip("smplx")
    rng = np.random.default_rng(0)
    vertices = rng.normal(size=(NUM_VERTICES, 3)) * 0.1
    weights = np.zeros((NUM_VERTICES, 55))
    weights[:, 0] = 1
    parents = np.array([*BODY_PARENTS, 15, 15, 15])
    for wrist, first in ((20, 25), (21, 40)):
        for finger in range(5):
            parents = np.append(parents, [wrist, first + 3 * finger, first + 3 * finger + 1])
    regressor = np.zeros((55, NUM_VERTICES))
    free = [index for index in range(200) if index not in vertex_ids.values()]
    for joint in range(55):
        vertices[free[joint]] = rest_point(names[joint])
        regressor[joint, free[joint]] = 1
    selector = smplx.vertex_joint_selector.VertexJointSelector(vertex_ids=vertex_ids).extra_joints_idxs.numpy()
    for name, vertex in zip(names[55:76], selector):
        vertices[vertex] = rest_point(name)
        weights[vertex] = 0
        side, part = name.split("_", 1) if "_" in name else ("", name)
        if part in FINGERS:
            joint = names.index(f"{side}_{part}3")
        elif "toe" in part or part == "heel":
            joint = names.index(f"{side}_ankle")
        else:
            joint = 15
        weights[vertex, joint] = 1
    shapes = np.zeros((NUM_VERTICES, 3, 20))
    shapes[:, :, 0] = vertices - PELVIS  # The first coefficient makes the person larger, away from the pelvis.
    path = tmp_path_factory.mktemp("models") / "smplx" / "SMPLX_NEUTRAL.npz"
    path.parent.mkdir()
    np.savez(
        path,
        v_template=vertices,
        shapedirs=shapes,
        posedirs=np.zeros((NUM_VERTICES, 3, 486), dtype=np.float16),
        J_regressor=regressor,
        weights=weights,
        kintree_table=np.stack([parents, np.arange(55)]),
        f=np.zeros((10, 3), dtype=np.int64),
        lmk_faces_idx=np.zeros(51, dtype=np.int64),
        lmk_bary_coords=np.full((51, 3), 1 / 3),
        hands_componentsl=np.eye(45),
        hands_componentsr=np.eye(45),
        hands_meanl=np.full(45, 0.3),
        hands_meanr=np.full(45, 0.3),
    )
    return path


def rest_joints():
    from smplx.joint_names import JOINT_NAMES as NAMES

    joints = np.zeros((62, 3))
    for name, indices in SMPLX_MAPPING.items():
        joints[JOINT_INDEX[name]] = np.mean([rest_point(NAMES[index]) for index in indices], axis=0)
    return joints


def write(path, **arrays):
    np.savez(path, **arrays)
    return path


def amass(path, num_frames=6, size=165, **changes):
    """A person who stands in AMASS's world (z up) and looks along -y, as SMPL does when turned about x by 90 degrees."""
    poses = np.zeros((num_frames, size))
    poses[:, :3] = [np.pi / 2, 0, 0]
    trans = np.zeros((num_frames, 3))
    trans[:, 0] = np.linspace(0, 0.5, num_frames)
    arrays = {"poses": poses, "trans": trans, "betas": np.zeros(16), "gender": "neutral", "mocap_frame_rate": 60.0}
    return write(path, **{**arrays, **changes})


def test_amass_person_is_upright_unmirrored_and_fits_the_picture(tmp_path, smplx_file):
    motion = load_smplx_motion(amass(tmp_path / "a.npz"), smplx_file, width=640, height=960)
    motion.validate()
    assert len(motion) == 6 and motion.fps == 60 and (motion.width, motion.height) == (640, 960)
    keypoints = motion.body.keypoints
    name = {name: keypoints[:, index] for name, index in JOINT_INDEX.items()}
    assert (name["nose"][:, 1] < name["neck"][:, 1]).all() and (name["neck"][:, 1] < name["left_hip"][:, 1]).all()
    assert (name["left_knee"][:, 1] < name["left_ankle"][:, 1]).all()
    for part in ("shoulder", "wrist", "hip", "ankle", "eye", "ear", "hand_index_3"):
        assert (name[f"right_{part}"][:, 0] < name[f"left_{part}"][:, 0]).all(), part
    # Nearer than the ears: the face looks into the camera.
    assert (motion.body.joints[:, JOINT_INDEX["nose"], 2] < motion.body.joints[:, JOINT_INDEX["left_ear"], 2]).all()
    assert keypoints.min() > 0 and (keypoints.max(axis=(0, 1)) < [640, 960]).all()
    assert np.ptp(keypoints[..., 0]) > 0.8 * 640
    np.testing.assert_allclose(motion.head.rotation, np.tile(np.eye(3), (6, 1, 1)), atol=1e-5)
    # It walks to its own left: to the right of the picture.
    assert (np.diff(name["neck"][:, 0]) > 1).all()
    np.testing.assert_allclose(
        project(motion.body.joints, motion.focal_length, 640, 960), motion.body.keypoints, atol=1e-3
    )


def test_bones_are_the_models_and_shape_counts(tmp_path, smplx_file):
    rest = rest_joints()
    small = load_smplx_motion(amass(tmp_path / "a.npz"), smplx_file.parent)
    large = load_smplx_motion(amass(tmp_path / "b.npz", betas=np.array([0.2])), smplx_file.parent.parent)
    for motion, scale in ((small, 1.0), (large, 1.2)):
        for child, parent in BONES:
            length = np.linalg.norm(motion.body.joints[:, child] - motion.body.joints[:, parent], axis=-1)
            np.testing.assert_allclose(
                length, scale * np.linalg.norm(rest[child] - rest[parent]), rtol=1e-3, atol=1e-5
            )


def test_joint_rotations_bend_the_right_joints(tmp_path, smplx_file):
    poses = np.zeros((2, 165))
    poses[:, :3] = [np.pi / 2, 0, 0]
    poses[1, 3 * 18 : 3 * 19] = [0, -np.pi / 2, 0]  # the left elbow, forwards
    poses[1, 3 * 15 : 3 * 16] = [0, np.pi / 6, 0]  # the head, to its left
    poses[1, 75 + 9 : 75 + 12] = [0, 0, np.pi / 2]  # the left middle finger's first joint
    motion = load_smplx_motion(amass(tmp_path / "a.npz", 2, poses=poses, trans=np.zeros((2, 3))), smplx_file)
    joints = motion.body.joints[1] - motion.body.joints[0]
    forearm = motion.body.joints[1, JOINT_INDEX["left_wrist"]] - motion.body.joints[1, JOINT_INDEX["left_elbow"]]
    assert forearm[2] < -0.2 and abs(forearm[0]) < 0.03
    still = [
        index
        for index, name in enumerate(JOINT_NAMES)
        if not name.startswith("left_") or "hip" in name or "knee" in name
    ]
    still = [index for index in still if JOINT_NAMES[index] not in ("nose", "right_eye", "right_ear")]
    np.testing.assert_allclose(joints[still], 0, atol=1e-4)
    assert motion.yaw()[0] == pytest.approx(0, abs=1e-3) and motion.yaw()[1] == pytest.approx(30, abs=1e-2)
    base, first, second = (
        motion.body.joints[1, JOINT_INDEX[f"left_hand_{name}"]] for name in ("wrist", "middle_1", "middle_2")
    )
    bend = np.degrees(
        np.arccos(np.dot(first - base, second - first) / np.linalg.norm(first - base) / np.linalg.norm(second - first))
    )
    assert bend == pytest.approx(90, abs=8)


def test_smplh_poses_have_their_hands_in_another_place(tmp_path, smplx_file):
    poses = np.zeros((2, 156))
    poses[:, :3] = [np.pi / 2, 0, 0]
    poses[1, 66 : 66 + 3] = [0, 0, np.pi / 2]
    path = amass(
        tmp_path / "a.npz", 2, poses=poses, trans=np.zeros((2, 3)), betas=np.full(16, 3.0), mocap_framerate=120.0
    )
    motion = load_smplx_motion(path, smplx_file, fps=30)
    assert motion.fps == 30
    full = load_smplx_motion(path, smplx_file)
    assert len(full) == 2 and full.fps == 120
    moved = np.abs(full.body.joints[1] - full.body.joints[0]).max(axis=-1) > 1e-4
    assert [JOINT_NAMES[index] for index in np.flatnonzero(moved)] == [f"left_hand_index_{i}" for i in (2, 3, 4)]


def estimate(path, num_frames=3, **changes):
    """HMR2's output for a person who faces the camera 3 m away."""
    flip = np.diag([1.0, -1.0, -1.0])
    arrays = {
        "global_orient": np.tile(flip, (num_frames, 1, 1, 1)),
        "body_pose": np.tile(np.eye(3), (num_frames, 23, 1, 1)),
        "betas": np.ones((num_frames, 10)),
        "pred_cam_t_full": np.tile([0.0, 0.0, 3.0], (num_frames, 1)),
        "scaled_focal_length": np.float64(1500.0),
        "img_size": np.array([[1080.0, 1920.0]]),
    }
    return write(path, **{**arrays, **changes})


def test_estimates_keep_their_camera(tmp_path, smplx_file):
    with pytest.raises(ValueError, match="`fps` is needed"):
        load_smplx_motion(estimate(tmp_path / "a.npz"), smplx_file)
    motion = load_smplx_motion(tmp_path / "a.npz", smplx_file, fps=25)
    assert (motion.width, motion.height, motion.focal_length, motion.fps) == (1080, 1920, 1500.0, 25.0)
    joints = motion.body.joints
    assert (joints[:, JOINT_INDEX["nose"], 1] < joints[:, JOINT_INDEX["left_ankle"], 1]).all()
    assert (joints[:, JOINT_INDEX["right_hip"], 0] < joints[:, JOINT_INDEX["left_hip"], 0]).all()
    np.testing.assert_allclose(motion.head.rotation, np.tile(np.eye(3), (3, 1, 1)), atol=1e-6)
    # SMPL's pelvis, not SMPL-X's, is what the translation was estimated for.
    hips = joints[:, [JOINT_INDEX["left_hip"], JOINT_INDEX["right_hip"]]].mean(axis=1)
    np.testing.assert_allclose(hips, np.tile([0.0, -0.241 + 0.09, 3.0], (3, 1)), atol=0.05)
    assert (motion.body.confidence[:, LEFT_HAND.start + 1 : LEFT_HAND.stop] == 0).all()
    assert (motion.body.confidence[:, :21] == 1).all()


def test_estimates_as_axis_angle_are_the_same(tmp_path, smplx_file):
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(3, 24, 3)) * 0.3
    matrices = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix().reshape(3, 24, 3, 3)
    one = estimate(tmp_path / "a.npz", global_orient=matrices[:, :1], body_pose=matrices[:, 1:], fps=30.0)
    two = estimate(tmp_path / "b.npz", global_orient=vectors[:, 0], body_pose=vectors[:, 1:].reshape(3, 69), fps=30.0)
    a, b = load_smplx_motion(one, smplx_file), load_smplx_motion(two, smplx_file)
    np.testing.assert_allclose(a.body.joints, b.body.joints, atol=1e-5)


def hamer(path, frames, is_right, orient, fingers=None):
    fingers = np.zeros((len(frames), 15, 3)) if fingers is None else fingers
    matrices = Rotation.from_rotvec(np.reshape(fingers, (-1, 3))).as_matrix().reshape(len(frames), 15, 3, 3)
    return write(
        path, frame=np.array(frames), is_right=np.array(is_right), hand_pose=matrices, global_orient=np.array(orient)
    )


def test_hamer_hands_turn_the_wrists(tmp_path, smplx_file):
    # At rest the right hand points to the person's right (-x); HaMeR saw it pointing up in the picture.
    flip = np.diag([1.0, -1.0, -1.0])
    up = Rotation.from_euler("z", 90, degrees=True).as_matrix() @ flip
    # A left hand is seen in a mirror: the same numbers are a left hand that points up as well.
    hands = hamer(tmp_path / "hands.npz", [0, 1], [1, 0], [up, up])
    motion = load_smplx_motion(estimate(tmp_path / "a.npz"), smplx_file, fps=25, hands=hands)
    for side, frame in (("right", 0), ("left", 1)):
        wrist, middle = (
            motion.body.joints[frame, JOINT_INDEX[f"{side}_hand_{name}"]] for name in ("wrist", "middle_1")
        )
        direction = (middle - wrist) / np.linalg.norm(middle - wrist)
        assert direction[1] < -0.98, (side, direction)
        hand = motion.body.confidence[:, JOINT_INDEX[f"{side}_hand_middle_1"]]
        assert list(np.flatnonzero(hand)) == [frame]
    with pytest.raises(ValueError, match="frames 0 to 9, but the body has 0 to 2"):
        load_smplx_motion(
            tmp_path / "a.npz", smplx_file, fps=25, hands=hamer(tmp_path / "h.npz", [0, 9], [1, 1], [up, up])
        )
    with pytest.raises(ValueError, match="`hands` lacks frame, global_orient"):
        load_smplx_motion(
            tmp_path / "a.npz", smplx_file, fps=25, hands=write(tmp_path / "x.npz", is_right=[1], hand_pose=[1])
        )


def test_long_clips_are_done_in_pieces(tmp_path, smplx_file):
    motion = load_smplx_motion(amass(tmp_path / "a.npz", 70), smplx_file)
    neck = motion.body.joints[:, JOINT_INDEX["neck"], 0]
    np.testing.assert_allclose(np.diff(neck), 0.5 / 69, atol=1e-5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"joints": np.zeros(3)}, "neither AMASS .* it has joints"),
        ({"poses": np.zeros((4, 72)), "trans": np.zeros((4, 3))}, r"`poses` has shape \(4, 72\)"),
        ({"poses": np.full((4, 165), np.nan), "trans": np.zeros((4, 3))}, "values in `poses` that are not finite"),
        ({"poses": np.zeros((0, 165)), "trans": np.zeros((0, 3)), "mocap_framerate": 30.0}, "no frames"),
        ({"global_orient": np.zeros((4, 3)), "body_pose": np.zeros((4, 63))}, "none of the translations"),
        (
            {"global_orient": np.zeros((4, 3)), "body_pose": np.zeros((4, 60)), "transl": np.zeros((4, 3))},
            "`body_pose` has",
        ),
        ({"poses": np.array([{"a": 1}], dtype=object)}, "not an .npz file of plain arrays"),
    ],
)
def test_bad_files_are_named(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        load_smplx_motion(write(tmp_path / "a.npz", **arrays), tmp_path)


def test_missing_files_and_packages_are_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="`path` names no file"):
        load_smplx_motion(tmp_path / "absent.npz", tmp_path)
    (tmp_path / "text.npz").write_text("no arrays")
    with pytest.raises(ValueError, match="not an .npz file"):
        load_smplx_motion(tmp_path / "text.npz", tmp_path)
    path = amass(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="`model_path` is needed"):
        load_smplx_motion(path)
    with pytest.raises(ValueError, match="`body_model` must be"):
        load_smplx_motion(path, body_model="mannequin")
    if "smplx" in sys.modules:
        with pytest.raises(FileNotFoundError, match="`model_path` has no SMPLX_NEUTRAL.npz"):
            load_smplx_motion(path, tmp_path)
    monkeypatch.setitem(sys.modules, "smplx", None)
    with pytest.raises(ImportError, match=r"diffusers-dreamactor\[smplx\]"):
        load_smplx_motion(path, tmp_path)
    monkeypatch.setitem(sys.modules, "anny", None)
    from diffusers_dreamactor.motion.capture import smplx_anny

    smplx_anny._t_pose.cache_clear()
    with pytest.raises(ImportError, match=r"diffusers-dreamactor\[synthetic\]"):
        load_smplx_motion(path, body_model="anny")


_ANNY_CACHE = Path(os.environ.get("ANNY_CACHE_DIR", Path.home() / ".cache" / "anny"))


@pytest.mark.skipif(
    not _ANNY_CACHE.is_dir(), reason="Anny has not been built here: its first construction takes a minute"
)
def test_the_same_through_anny(tmp_path):
    pytest.importorskip("anny")
    poses = np.zeros((3, 165))
    poses[:, :3] = [np.pi / 2, 0, 0]
    poses[1, 3 * 18 : 3 * 19] = [0, -np.pi / 2, 0]
    poses[2, 3 * 15 : 3 * 16] = [0, np.pi / 6, 0]
    motion = load_smplx_motion(amass(tmp_path / "a.npz", 3, poses=poses), body_model="anny", width=640, height=960)
    motion.validate()
    joints = motion.body.joints
    name = {name: joints[0, index] for name, index in JOINT_INDEX.items()}
    # A T-pose, upright and facing the camera.
    assert name["nose"][1] < name["neck"][1] < name["left_hip"][1] < name["left_knee"][1] < name["left_toe"][1]
    for side, sign in (("left", 1), ("right", -1)):
        arm = name[f"{side}_wrist"] - name[f"{side}_shoulder"]
        np.testing.assert_allclose(arm / np.linalg.norm(arm), [sign, 0, 0], atol=1e-3)
        finger = name[f"{side}_hand_middle_4"] - name[f"{side}_hand_wrist"]
        assert sign * finger[0] / np.linalg.norm(finger) > 0.98 and 0.14 < np.linalg.norm(finger) < 0.22
        assert name[f"{side}_toe"][2] < name[f"{side}_ankle"][2]
    forearm = joints[1, JOINT_INDEX["left_wrist"]] - joints[1, JOINT_INDEX["left_elbow"]]
    np.testing.assert_allclose(forearm / np.linalg.norm(forearm), [0, 0, -1], atol=1e-3)
    assert motion.yaw()[2] == pytest.approx(30, abs=1e-2)
    stature = name["left_ankle"][1] - name["nose"][1]
    assert 1.3 < stature < 1.7
    for child, parent in BONES:
        lengths = np.linalg.norm(joints[:, child] - joints[:, parent], axis=-1)
        if PARENTS[child] != JOINT_INDEX["neck"] or "shoulder" in JOINT_NAMES[child]:
            np.testing.assert_allclose(lengths, lengths[0], rtol=1e-4, atol=1e-6)
