import numpy as np
import pytest

from diffusers_dreamactor.motion import skeleton
from diffusers_dreamactor.motion.skeleton import (
    BODY_PROPORTIONS,
    BONE_GROUPS,
    BONES,
    JOINT_INDEX,
    JOINT_NAMES,
    MIRROR,
    PARENTS,
    map_joints,
)


def test_names_and_slices_agree():
    assert len(set(JOINT_NAMES)) == skeleton.NUM_JOINTS == 62
    assert JOINT_NAMES[skeleton.BODY] == skeleton.BODY_JOINT_NAMES
    assert all(name.startswith("left_hand_") for name in JOINT_NAMES[skeleton.LEFT_HAND])
    assert JOINT_NAMES[skeleton.RIGHT_HAND][0] == "right_hand_wrist"
    assert JOINT_NAMES[skeleton.RIGHT_HAND][20] == "right_hand_little_4"
    # The limbs of Wan-Animate's pose picture count these from 1.
    assert [JOINT_INDEX[name] + 1 for name in ("nose", "neck", "left_ankle", "left_toe", "right_toe")] == [
        1,
        2,
        14,
        19,
        20,
    ]


def test_parents_form_one_tree_with_parents_first():
    placed = {JOINT_INDEX["neck"]}
    for child, parent in BONES:
        assert parent in placed and child not in placed and PARENTS[child] == parent
        placed.add(child)
    assert placed == set(range(62))
    assert JOINT_NAMES[PARENTS[JOINT_INDEX["left_hand_thumb_1"]]] == "left_hand_wrist"
    assert JOINT_NAMES[PARENTS[JOINT_INDEX["right_hand_wrist"]]] == "right_wrist"
    assert JOINT_NAMES[PARENTS[JOINT_INDEX["left_hand_index_3"]]] == "left_hand_index_2"


def test_mirror_is_an_involution_that_keeps_the_tree():
    mirror = np.array(MIRROR)
    np.testing.assert_array_equal(mirror[mirror], np.arange(62))
    assert [JOINT_NAMES[i] for i in np.flatnonzero(mirror == np.arange(62))] == ["nose", "neck"]
    for child, parent in BONES:
        assert PARENTS[MIRROR[child]] == MIRROR[parent]
    assert len(skeleton.SYMMETRIC_PAIRS) == 30
    for left, right in skeleton.SYMMETRIC_PAIRS:
        assert JOINT_NAMES[left].replace("left", "right") == JOINT_NAMES[right]


def test_bone_groups_cover_every_bone():
    children = {child for child, _ in BONES}
    assert set().union(*BONE_GROUPS.values()) == children


def test_proportions_are_those_of_an_adult():
    torso = skeleton.AVERAGE_TORSO_LENGTH
    assert set(BODY_PROPORTIONS) == set(JOINT_NAMES)
    assert BODY_PROPORTIONS["left_knee"] * torso == pytest.approx(0.417, abs=0.02)
    assert BODY_PROPORTIONS["right_elbow"] * torso == pytest.approx(0.316, abs=0.02)
    hand = sum(BODY_PROPORTIONS[f"left_hand_middle_{i}"] for i in range(1, 5)) * torso
    assert hand == pytest.approx(0.184, abs=0.005)
    for name, mirrored in zip(JOINT_NAMES, np.array(JOINT_NAMES)[list(MIRROR)]):
        assert BODY_PROPORTIONS[name] == BODY_PROPORTIONS[mirrored]


def test_blendshapes_follow_mediapipe():
    face_landmarker = pytest.importorskip("mediapipe.tasks.python.vision.face_landmarker")
    names = [shape.name for shape in face_landmarker.Blendshapes if shape.name != "NEUTRAL"]
    ours = ["".join(f"_{c}" if c.isupper() else c for c in name).upper() for name in skeleton.ARKIT_BLENDSHAPES]
    assert ours[:-1] == names and len(ours) == 52


def test_smplx_mapping_follows_the_smplx_package():
    names = pytest.importorskip("smplx.joint_names").JOINT_NAMES
    for ours, indices in skeleton.SMPLX_MAPPING.items():
        source = [names[index] for index in indices]
        if ours == "neck":
            assert source == ["left_shoulder", "right_shoulder"]
        elif ours.endswith("toe"):
            assert source == [ours.replace("toe", "big_toe"), ours.replace("toe", "small_toe")]
        elif "_hand_" in ours and not ours.endswith("wrist"):
            side, _, finger, number = ours.split("_")
            finger = "pinky" if finger == "little" else finger
            assert source == [f"{side}_{finger}" + ("" if number == "4" else number)]
        else:
            assert source == [ours.replace("hand_", "")]


@pytest.mark.parametrize(
    ("mapping", "num_points", "expected"),
    [
        (skeleton.MEDIAPIPE_POSE_MAPPING, 33, {"left_wrist": 15, "right_toe": 32, "neck": 11.5}),
        (skeleton.COCO_WHOLEBODY_MAPPING, 133, {"left_toe": 17.5, "right_hand_little_4": 132, "left_hand_wrist": 91}),
        (skeleton.OPENPOSE_BODY25_MAPPING, 25, {"right_hip": 9, "left_ear": 18, "right_toe": 22.5}),
        (skeleton.OPENPOSE_COCO18_MAPPING, 18, {"right_hip": 8, "left_ear": 17}),
    ],
)
def test_map_joints_averages_points_and_takes_the_least_confidence(mapping, num_points, expected):
    points = np.arange(num_points, dtype=np.float32)[None, :, None] * np.array([1.0, -1.0], dtype=np.float32)
    confidence = np.linspace(0.1, 0.9, num_points)[None]
    joints, joint_confidence = map_joints(points, confidence, mapping)
    assert joints.shape == (1, 62, 2) and joints.dtype == np.float32
    for name, value in expected.items():
        np.testing.assert_allclose(joints[0, JOINT_INDEX[name]], [value, -value])
        assert joint_confidence[0, JOINT_INDEX[name]] == pytest.approx(confidence[0, int(value)])
    absent = [index for index, name in enumerate(JOINT_NAMES) if name not in mapping]
    assert (joint_confidence[0, absent] == 0).all()


def test_map_joints_names_the_missing_points():
    with pytest.raises(ValueError, match="has 17 points, but the mapping reads 133"):
        map_joints(np.zeros((1, 17, 2)), None, skeleton.COCO_WHOLEBODY_MAPPING)
