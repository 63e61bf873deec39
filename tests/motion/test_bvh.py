import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from diffusers_dreamactor.motion.capture.bvh import BVH, find_joints, load_bvh_motion
from diffusers_dreamactor.motion.sequence import project
from diffusers_dreamactor.motion.skeleton import BONES, JOINT_INDEX, JOINT_NAMES, LEFT_HAND, RIGHT_HAND


# name: (parent, offset in centimetres). A T-pose, y up, facing z, the left side at positive x.
MIXAMO = {
    "Hips": (None, (0, 95, 0)),
    "Spine": ("Hips", (0, 12, 0)),
    "Spine1": ("Spine", (0, 18, 0)),
    "Neck": ("Spine1", (0, 20, 0)),
    "Head": ("Neck", (0, 9, 1)),
    "LeftShoulder": ("Spine1", (4, 14, 0)),
    "LeftArm": ("LeftShoulder", (14, 0, 0)),
    "LeftForeArm": ("LeftArm", (28, 0, 0)),
    "LeftHand": ("LeftForeArm", (25, 0, 0)),
    "LeftHandIndex1": ("LeftHand", (9, 0, 2)),
    "LeftHandIndex2": ("LeftHandIndex1", (4, 0, 0)),
    "LeftHandIndex3": ("LeftHandIndex2", (3, 0, 0)),
    "LeftUpLeg": ("Hips", (9, -5, 0)),
    "LeftLeg": ("LeftUpLeg", (0, -42, 0)),
    "LeftFoot": ("LeftLeg", (0, -41, 0)),
    "LeftToeBase": ("LeftFoot", (0, -6, 12)),
}
MIXAMO |= {
    name.replace("Left", "Right"): (parent.replace("Left", "Right"), (-offset[0], *offset[1:]))
    for name, (parent, offset) in list(MIXAMO.items())
    if name.startswith("Left")
}
ENDS = {"Head": (0, 18, 2), "LeftHandIndex3": (2.5, 0, 0), "RightHandIndex3": (-2.5, 0, 0)}
ENDS |= {"LeftToeBase": (0, -1, 5), "RightToeBase": (0, -1, 5)}


def write_bvh(
    path,
    tree=MIXAMO,
    rotations=None,
    root=None,
    num_frames=4,
    frame_time="0.0333333",
    order="ZXY",
    rename=None,
    ends=ENDS,
):
    """Writes a file whose joint `name` has rotation `rotations[name]` (F, 3, 3)."""
    rename = rename or (lambda name: name)
    rotations, lines, columns = rotations or {}, ["HIERARCHY"], []
    root = np.tile(tree["Hips"][1], (num_frames, 1)) if root is None else root

    def joint(name, depth):
        parent, offset = tree[name]
        tab = "\t" * depth
        lines.append(f"{tab}{'ROOT' if parent is None else 'JOINT'} {rename(name)}")
        lines.append(f"{tab}{{")
        lines.append(f"{tab}\tOFFSET {' '.join(map(str, offset))}")
        channels = [f"{axis}rotation" for axis in order]
        if parent is None:
            lines.append(f"{tab}\tCHANNELS 6 Xposition Yposition Zposition {' '.join(channels)}")
            columns.append(root)
        else:
            lines.append(f"{tab}\tCHANNELS 3 {' '.join(channels)}")
        matrices = rotations.get(name, np.tile(np.eye(3), (num_frames, 1, 1)))
        columns.append(Rotation.from_matrix(matrices).as_euler(order, degrees=True))
        children = [child for child, (above, _) in tree.items() if above == name]
        for child in children:
            joint(child, depth + 1)
        if not children and name in ends:
            lines.extend(
                [f"{tab}\tEnd Site", f"{tab}\t{{", f"{tab}\t\tOFFSET {' '.join(map(str, ends[name]))}", f"{tab}\t}}"]
            )
        lines.append(f"{tab}}}")

    joint("Hips", 0)
    lines.extend(["MOTION", f"Frames: {num_frames}", f"Frame Time: {frame_time}"])
    lines.extend(" ".join(f"{value:.6f}" for value in row) for row in np.concatenate(columns, axis=1))
    path.write_text("\n".join(lines) + "\n")
    return path


def turn(axis, *degrees):
    return Rotation.from_euler(axis, np.array(degrees)[:, None], degrees=True).as_matrix()


def test_t_pose_is_upright_unmirrored_and_of_human_size(tmp_path):
    motion = load_bvh_motion(write_bvh(tmp_path / "a.bvh"), width=640, height=960)
    motion.validate()
    assert len(motion) == 4 and motion.fps == 30.0 and (motion.width, motion.height) == (640, 960)
    name = {name: motion.body.keypoints[0, index] for name, index in JOINT_INDEX.items()}
    for above, below in zip(
        ("left_eye", "nose", "neck", "left_hip", "left_knee", "left_ankle"),
        ("nose", "neck", "left_hip", "left_knee", "left_ankle", "left_toe"),
    ):
        assert name[above][1] < name[below][1], (above, below)
    for part in ("shoulder", "elbow", "wrist", "hip", "ankle", "eye", "ear", "hand_index_4"):
        assert name[f"right_{part}"][0] < name[f"left_{part}"][0], part
    np.testing.assert_allclose(motion.head.rotation, np.tile(np.eye(3), (4, 1, 1)), atol=1e-6)
    assert motion.body.keypoints.min() > 0 and (motion.body.keypoints < [640, 960]).all()
    joints = motion.body.joints[0]
    thigh = np.linalg.norm(joints[JOINT_INDEX["left_knee"]] - joints[JOINT_INDEX["left_hip"]])
    assert thigh == pytest.approx(0.835 * 42 / 83, abs=1e-4)
    # The end site is the tip of the toes, in front of the ankle: nearer.
    assert joints[JOINT_INDEX["left_toe"], 2] < joints[JOINT_INDEX["left_ankle"], 2] - 0.15
    np.testing.assert_allclose(
        project(motion.body.joints, motion.focal_length, 640, 960), motion.body.keypoints, atol=1e-3
    )
    ears = (joints[JOINT_INDEX["left_ear"]] + joints[JOINT_INDEX["right_ear"]]) / 2
    assert 0.2 < joints[JOINT_INDEX["neck"], 1] - ears[1] < 0.3


def test_joints_that_the_file_lacks_have_no_confidence(tmp_path):
    motion = load_bvh_motion(write_bvh(tmp_path / "a.bvh"))
    seen = {JOINT_NAMES[index] for index in np.flatnonzero(motion.body.confidence[0])}
    hands = {
        f"{side}_hand_{name}"
        for side in ("left", "right")
        for name in ("wrist", "index_1", "index_2", "index_3", "index_4")
    }
    assert seen == set(JOINT_NAMES[:20]) | hands
    lacking = [index for index, name in enumerate(JOINT_NAMES) if name not in seen]
    wrists = motion.body.joints[:, [LEFT_HAND.start, RIGHT_HAND.start]]
    for index in lacking:
        wrist = wrists[:, 0] if LEFT_HAND.start <= index < LEFT_HAND.stop else wrists[:, 1]
        np.testing.assert_array_equal(motion.body.joints[:, index], wrist)


@pytest.mark.parametrize("order", ["ZXY", "XYZ", "YZX"])
def test_rotations_act_in_the_channels_order(tmp_path, order):
    rng = np.random.default_rng(0)
    rotations = {
        name: Rotation.from_rotvec(rng.normal(size=(4, 3)) * 0.4).as_matrix()
        for name in ("Spine", "LeftArm", "LeftForeArm", "RightUpLeg", "Head")
    }
    motion = load_bvh_motion(write_bvh(tmp_path / "a.bvh", rotations=rotations, order=order))
    joints = motion.body.joints
    chest = rotations["Spine"]
    # The camera looks along -z with y down: x and z of the file turn around.
    camera = np.diag([1.0, -1.0, -1.0])
    across = joints[0, JOINT_INDEX["left_shoulder"]] - joints[0, JOINT_INDEX["right_shoulder"]]
    across = across + joints[0, JOINT_INDEX["left_hip"]] - joints[0, JOINT_INDEX["right_hip"]]
    assert across[0] > 0 and abs(across[2]) < 1e-3  # the camera is level in front of the first frame
    expected = {
        ("left_shoulder", "left_elbow"): chest @ rotations["LeftArm"] @ [1.0, 0, 0],
        ("left_elbow", "left_wrist"): chest @ rotations["LeftArm"] @ rotations["LeftForeArm"] @ [1.0, 0, 0],
        ("right_hip", "right_knee"): rotations["RightUpLeg"] @ [0, -1.0, 0],
        ("left_hip", "left_knee"): np.tile([0, -1.0, 0], (4, 1)),
    }
    found = {}
    for parent, child in expected:
        bone = joints[:, JOINT_INDEX[child]] - joints[:, JOINT_INDEX[parent]]
        found[parent, child] = bone / np.linalg.norm(bone, axis=-1, keepdims=True)
    # What the camera's yaw does to all is one turn about the vertical.
    ours = np.concatenate(list(found.values()))
    theirs = np.concatenate(list(expected.values())) @ camera.T
    aligned, _ = Rotation.align_vectors(ours, theirs)
    assert np.abs(aligned.as_rotvec()[[0, 2]]).max() < 1e-4
    np.testing.assert_allclose(aligned.apply(theirs), ours, atol=1e-5)
    head = aligned.as_matrix() @ camera @ chest @ rotations["Head"] @ camera
    np.testing.assert_allclose(motion.head.rotation, head, atol=1e-5)
    for child, parent in BONES:
        length = np.linalg.norm(joints[:, child] - joints[:, parent], axis=-1)
        if min(child, parent) > 1 and child not in (14, 15):
            np.testing.assert_allclose(length, length[0], rtol=1e-4, atol=1e-6)


def test_head_turns_to_the_right_side(tmp_path):
    rotations = {"Head": turn("y", 0, 30, -45, 0), "Neck": turn("x", 0, 0, 0, 20)}
    motion = load_bvh_motion(write_bvh(tmp_path / "a.bvh", rotations=rotations))
    # Turning to the person's left is to the right of the picture, and a positive turn about y.
    np.testing.assert_allclose(motion.yaw(), [0, 30, -45, 0], atol=1e-3)
    nose, neck = motion.body.keypoints[:, JOINT_INDEX["nose"], 0], motion.body.keypoints[:, JOINT_INDEX["neck"], 0]
    assert nose[1] > neck[1] + 5 and nose[2] < neck[2] - 5
    from diffusers_dreamactor.motion.sequence import head_yaw_pitch_roll

    assert head_yaw_pitch_roll(motion.head.rotation)[3, 1] == pytest.approx(-20, abs=1e-3)  # looks down


def test_root_moves_and_camera_goes_round(tmp_path):
    root = np.array([[0, 95, 0], [20, 95, 0], [40, 95, 0], [60, 95, 0]], dtype=float)
    path = write_bvh(tmp_path / "a.bvh", root=root)
    neck = load_bvh_motion(path).body.joints[:, JOINT_INDEX["neck"]]
    np.testing.assert_allclose(np.diff(neck, axis=0), np.tile([0.2 * 83.5 / 83, 0, 0], (3, 1)), atol=1e-4)
    side = load_bvh_motion(path, camera_yaw=90)
    # From its left, the person looks to the left of the picture, and walks towards the camera.
    np.testing.assert_allclose(side.yaw(), -90, atol=1e-3)
    moved = np.diff(side.body.joints[:, JOINT_INDEX["neck"]], axis=0)
    np.testing.assert_allclose(moved, np.tile([0, 0, -0.2 * 83.5 / 83], (3, 1)), atol=1e-4)


def test_z_up_is_the_same_motion(tmp_path):
    to_z_up = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    tree = {name: (parent, tuple(to_z_up @ offset)) for name, (parent, offset) in MIXAMO.items()}
    ends = {name: tuple(to_z_up @ offset) for name, offset in ENDS.items()}
    motion = load_bvh_motion(write_bvh(tmp_path / "z.bvh", tree=tree, ends=ends), up="z")
    plain = load_bvh_motion(write_bvh(tmp_path / "y.bvh"))
    np.testing.assert_allclose(motion.body.joints, plain.body.joints, atol=1e-4)
    assert np.abs(motion.yaw()).max() < 1e-3


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"mixamorig:{name}",
        lambda name: (
            {"Hips": "Bip01", "Head": "Bip01 Head"}.get(name)
            or "Bip01 "
            + name.replace("Left", "L ")
            .replace("Right", "R ")
            .replace("UpLeg", "Thigh")
            .replace("Leg", "Calf")
            .replace(" Arm", " UpperArm")
            .replace("ToeBase", "Toe0")
        ),
        lambda name: (
            name
            if "Left" not in name and "Right" not in name
            else {
                "UpLeg": "lThigh",
                "Leg": "lShin",
                "Foot": "lFoot",
                "ToeBase": "lToe",
                "Shoulder": "lCollar",
                "Arm": "lShldr",
                "ForeArm": "lForeArm",
                "Hand": "lHand",
            }.get(
                name.replace("Left", "").replace("Right", ""),
                "l" + name.replace("LeftHand", "").replace("RightHand", ""),
            ).replace("l", "l" if "Left" in name else "r", 1)
        ),
        lambda name: (
            name
            if "Left" not in name and "Right" not in name
            else {
                "UpLeg": "thigh",
                "Leg": "shin",
                "Foot": "foot",
                "ToeBase": "toe",
                "Shoulder": "shoulder",
                "Arm": "upper_arm",
                "ForeArm": "forearm",
                "Hand": "hand",
            }.get(
                name.replace("Left", "").replace("Right", ""),
                name[-6:].lower().replace("index", "f_index.0").replace("dex", "f_index.0"),
            )
            + (".L" if "Left" in name else ".R")
        ),
        lambda name: {
            "LeftUpLeg": "LeftHip",
            "LeftLeg": "LeftKnee",
            "LeftFoot": "LeftAnkle",
            "LeftToeBase": "LeftToe",
            "LeftShoulder": "LeftCollar",
            "LeftArm": "LeftShoulder",
            "LeftForeArm": "LeftElbow",
            "LeftHand": "LeftWrist",
        }.get(
            name.replace("Right", "Left"), name.replace("Right", "Left")
        ).replace("Left", "Left" if "Left" in name else "Right"),
    ],
    ids=["mixamo", "3ds max", "poser", "blender", "joint names"],
)
def test_names_of_other_programs(tmp_path, rename):
    expected = find_joints(BVH.read(write_bvh(tmp_path / "a.bvh")))
    found = find_joints(BVH.read(write_bvh(tmp_path / "b.bvh", rename=rename)))
    assert set(found) >= {name for name in expected if "hand" not in name}
    assert {name: found[name] for name in found} == {name: expected[name] for name in found}


def test_names_can_be_given(tmp_path):
    path = write_bvh(tmp_path / "a.bvh", rename=lambda name: f"node{list(MIXAMO).index(name)}")
    with pytest.raises(ValueError, match="recognised as left_shoulder.*give `joint_names`.*node3"):
        load_bvh_motion(path)
    ours = {"shoulder": "Arm", "elbow": "ForeArm", "wrist": "Hand", "hip": "UpLeg", "knee": "Leg", "ankle": "Foot"}
    names = {
        f"{side}_{part}": f"node{list(MIXAMO).index(side.capitalize() + word)}"
        for side in ("left", "right")
        for part, word in ours.items()
    }
    motion = load_bvh_motion(path, joint_names=names)
    assert motion.head is None
    reference = load_bvh_motion(write_bvh(tmp_path / "b.bvh"))
    limbs = [JOINT_INDEX[name] for name in names]
    distance = motion.body.joints[:, limbs] - motion.body.joints[:, [1]]
    np.testing.assert_allclose(distance, reference.body.joints[:, limbs] - reference.body.joints[:, [1]], atol=1e-5)
    with pytest.raises(ValueError, match="'left_foot', which is none of our joints"):
        load_bvh_motion(path, joint_names={"left_foot": "node3"})
    with pytest.raises(ValueError, match="'node99', but the file's joints are node0"):
        load_bvh_motion(path, joint_names={"left_hip": "node99"})


def test_a_pose_without_rotations_that_is_no_person(tmp_path):
    """As in LaFAN1: bones lie along their own x; where the head's front is, is then told by the chest's."""

    def align(target):
        return np.tile(Rotation.align_vectors([target], [[1.0, 0, 0]])[0].as_matrix(), (4, 1, 1))

    up = align([0, 1.0, 0])
    down = np.swapaxes(up, 1, 2)
    tree = {}
    for name, (parent, offset) in MIXAMO.items():
        if parent is None:
            tree[name] = (parent, offset)
        elif "UpLeg" in name or name.endswith("Shoulder"):
            tree[name] = (parent, tuple(down[0] @ offset))
        else:
            tree[name] = (parent, (np.linalg.norm(offset), 0, 0))
    rotations = {"Hips": up, "Head": down @ turn("y", 10, 30, -30, -10) @ up}
    for side, sign in (("Left", 1.0), ("Right", -1.0)):
        rotations[f"{side}UpLeg"] = down @ align([0, -1.0, 0])
        rotations[f"{side}Shoulder"] = down @ align([sign, 0, 0])
    motion = load_bvh_motion(write_bvh(tmp_path / "a.bvh", tree=tree, rotations=rotations))
    name = {name: motion.body.joints[0, index] for name, index in JOINT_INDEX.items()}
    assert name["left_ear"][1] < name["neck"][1] < name["left_hip"][1] < name["left_ankle"][1]
    assert name["left_wrist"][0] > name["left_shoulder"][0] > name["right_shoulder"][0] > name["right_wrist"][0]
    np.testing.assert_allclose(motion.yaw(), [10, 30, -30, -10], atol=0.1)


def test_frame_rates(tmp_path):
    assert load_bvh_motion(write_bvh(tmp_path / "a.bvh", frame_time="0.0083333")).fps == 120
    motion = load_bvh_motion(tmp_path / "a.bvh", fps=60)
    assert motion.fps == 60 and len(motion) == 2
    assert load_bvh_motion(write_bvh(tmp_path / "b.bvh", frame_time="0.04")).fps == 25


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="`path` names no file"):
        load_bvh_motion(tmp_path / "absent.bvh")
    (tmp_path / "text.bvh").write_text("no motion here")
    with pytest.raises(ValueError, match="not a BVH file"):
        load_bvh_motion(tmp_path / "text.bvh")
    good = write_bvh(tmp_path / "a.bvh").read_text()
    for broken, message in [
        (good[: len(good) - 60], "are 336 values, but it has"),
        (good.replace("Frames: 4", "Frames: 0"), "no frames"),
        (good.replace("Frame Time:", "Time:"), "lacks `Frames:`"),
        (good.replace("OFFSET 0 12 0", "OFFSET 0 twelve 0"), "could not convert"),
        (good.replace("MOTION\n", "MOTION\nX"), "lacks"),
        (good[:-1].rsplit(" ", 1)[0] + " nan", "not finite"),
        (good.replace("HIERARCHY", "HIERARCHY\nNONSENSE"), "unexpected 'NONSENSE'"),
    ]:
        (tmp_path / "broken.bvh").write_text(broken)
        with pytest.raises(ValueError, match=message):
            load_bvh_motion(tmp_path / "broken.bvh")
    with pytest.raises(ValueError, match="`up` must be"):
        load_bvh_motion(tmp_path / "a.bvh", up="x")
