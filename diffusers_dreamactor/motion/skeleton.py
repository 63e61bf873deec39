"""The skeleton that every capture, retargeting and drawing step shares: 20 body joints and 21 joints for each hand.

The body's order is that of Wan-Animate's pose pictures (OpenPose's 18 joints, then the left and the right toe); each
hand has the order of OpenPose and MediaPipe. `JOINT_NAMES` puts them together: body, left hand, right hand.

Left and right are the person's own: of a person who faces the camera, the right joints are on the left of the picture.
"""

import numpy as np


BODY_JOINT_NAMES = (
    "nose",
    "neck",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_hip",
    "right_knee",
    "right_ankle",
    "left_hip",
    "left_knee",
    "left_ankle",
    "right_eye",
    "left_eye",
    "right_ear",
    "left_ear",
    "left_toe",
    "right_toe",
)
FINGER_NAMES = ("thumb", "index", "middle", "ring", "little")
HAND_JOINT_NAMES = ("wrist",) + tuple(f"{finger}_{i}" for finger in FINGER_NAMES for i in range(1, 5))
JOINT_NAMES = (
    BODY_JOINT_NAMES
    + tuple(f"left_hand_{name}" for name in HAND_JOINT_NAMES)
    + tuple(f"right_hand_{name}" for name in HAND_JOINT_NAMES)
)
NUM_JOINTS = len(JOINT_NAMES)
NUM_BODY_JOINTS = len(BODY_JOINT_NAMES)
NUM_HAND_JOINTS = len(HAND_JOINT_NAMES)
BODY = slice(0, 20)
LEFT_HAND = slice(20, 41)
RIGHT_HAND = slice(41, 62)

JOINT_INDEX = {name: index for index, name in enumerate(JOINT_NAMES)}

_BODY_PARENTS = {
    "nose": "neck",
    "right_eye": "nose",
    "left_eye": "nose",
    "right_ear": "right_eye",
    "left_ear": "left_eye",
    "right_shoulder": "neck",
    "right_elbow": "right_shoulder",
    "right_wrist": "right_elbow",
    "left_shoulder": "neck",
    "left_elbow": "left_shoulder",
    "left_wrist": "left_elbow",
    "right_hip": "neck",
    "right_knee": "right_hip",
    "right_ankle": "right_knee",
    "right_toe": "right_ankle",
    "left_hip": "neck",
    "left_knee": "left_hip",
    "left_ankle": "left_knee",
    "left_toe": "left_ankle",
}


def _parent_name(name: str) -> str | None:
    for side in ("left", "right"):
        prefix = f"{side}_hand_"
        if name.startswith(prefix):
            joint = name[len(prefix) :]
            if joint == "wrist":
                return f"{side}_wrist"
            finger, number = joint.split("_")
            return f"{prefix}wrist" if number == "1" else f"{prefix}{finger}_{int(number) - 1}"
    return _BODY_PARENTS.get(name)


# The tree for retargeting, as parent indices; -1 marks the root, the neck.
PARENTS = tuple(-1 if _parent_name(name) is None else JOINT_INDEX[_parent_name(name)] for name in JOINT_NAMES)
ROOT = JOINT_INDEX["neck"]

# (child, parent) of every bone, parents before children, so that one pass places the whole tree.
BONES = []
_placed = [ROOT]
for _parent in _placed:
    for _child in range(NUM_JOINTS):
        if PARENTS[_child] == _parent:
            BONES.append((_child, _parent))
            _placed.append(_child)
BONES = tuple(BONES)
del _placed, _parent, _child

# The same joint of the other side; joints of the middle are their own mirror image.
MIRROR = tuple(
    JOINT_INDEX[name.replace("left_", "right_", 1) if name.startswith("left_") else name.replace("right_", "left_", 1)]
    for name in JOINT_NAMES
)
SYMMETRIC_PAIRS = tuple(
    (left, MIRROR[left]) for left, name in enumerate(JOINT_NAMES) if name.startswith("left_")
)  # (left, right)


def _indices(*names: str) -> tuple[int, ...]:
    return tuple(JOINT_INDEX[name] for name in names)


# Bones by body part, each bone given by its child joint. "torso" and "hip" name the two parts of the same bones
# (neck to hip): along the spine from the neck to the middle of the hips, and across from there to the hip.
BONE_GROUPS = {
    "arm": _indices("right_elbow", "left_elbow"),
    "forearm": _indices("right_wrist", "left_wrist"),
    "thigh": _indices("right_knee", "left_knee"),
    "shin": _indices("right_ankle", "left_ankle"),
    "torso": _indices("right_hip", "left_hip"),
    "neck": _indices("nose"),
    "shoulder": _indices("right_shoulder", "left_shoulder"),
    "hip": _indices("right_hip", "left_hip"),
    "hand": tuple(range(20, 62)),
    "foot": _indices("left_toe", "right_toe"),
    "face": _indices("right_eye", "left_eye", "right_ear", "left_ear"),
}

# Segment lengths as shares of the stature: D. A. Winter, "Biomechanics and Motor Control of Human Movement", fig. 4.1
# (after Drillis and Contini). Joint centres instead of outer breadths for shoulders and hips. Torso: 0.818 - 0.530.
_TORSO_SHARE_OF_STATURE = 0.288
_BODY_SHARES_OF_STATURE = {
    "nose": 0.115,
    "eye": 0.032,
    "ear": 0.056,
    "shoulder": 0.110,
    "elbow": 0.186,
    "wrist": 0.146,
    "hip": 0.293,
    "knee": 0.245,
    "ankle": 0.246,
    "toe": 0.115,
}
_HAND_SHARE_OF_STATURE = 0.108
# Shares of the hand's length (wrist to the tip of the middle finger): wrist to knuckle, then the three phalanges;
# the thumb starts at its saddle joint. Phalanges after A. Buryanov and V. Kotiuk, "Proportions of Hand Segments" (2010).
_FINGER_SHARES_OF_HAND = {
    "thumb": (0.17, 0.25, 0.18, 0.15),
    "index": (0.49, 0.22, 0.13, 0.12),
    "middle": (0.48, 0.25, 0.15, 0.12),
    "ring": (0.46, 0.23, 0.14, 0.12),
    "little": (0.44, 0.18, 0.10, 0.11),
}


def _average_proportion(name: str) -> float:
    if name in ("neck", "left_hand_wrist", "right_hand_wrist"):
        return 0.0
    if "_hand_" in name:
        finger, number = name.split("_")[2:]
        return _FINGER_SHARES_OF_HAND[finger][int(number) - 1] * _HAND_SHARE_OF_STATURE / _TORSO_SHARE_OF_STATURE
    return _BODY_SHARES_OF_STATURE[name.split("_")[-1]] / _TORSO_SHARE_OF_STATURE


# Length of the bone that ends in a joint, as a share of the torso (middle of the shoulders to middle of the hips), for
# an average adult; keyed by joint name, 0 for the root and for a hand's wrist, which lies on the body's wrist.
BODY_PROPORTIONS = {name: _average_proportion(name) for name in JOINT_NAMES}
AVERAGE_TORSO_LENGTH = 0.49  # metres: 0.288 of a stature of 1.70 m

# ARKit's 52 expression coefficients: MediaPipe's 51 in its order (without its "_neutral"), then ARKit's last, "tongueOut",
# which MediaPipe does not give.
ARKIT_BLENDSHAPES = (
    "browDownLeft",
    "browDownRight",
    "browInnerUp",
    "browOuterUpLeft",
    "browOuterUpRight",
    "cheekPuff",
    "cheekSquintLeft",
    "cheekSquintRight",
    "eyeBlinkLeft",
    "eyeBlinkRight",
    "eyeLookDownLeft",
    "eyeLookDownRight",
    "eyeLookInLeft",
    "eyeLookInRight",
    "eyeLookOutLeft",
    "eyeLookOutRight",
    "eyeLookUpLeft",
    "eyeLookUpRight",
    "eyeSquintLeft",
    "eyeSquintRight",
    "eyeWideLeft",
    "eyeWideRight",
    "jawForward",
    "jawLeft",
    "jawOpen",
    "jawRight",
    "mouthClose",
    "mouthDimpleLeft",
    "mouthDimpleRight",
    "mouthFrownLeft",
    "mouthFrownRight",
    "mouthFunnel",
    "mouthLeft",
    "mouthLowerDownLeft",
    "mouthLowerDownRight",
    "mouthPressLeft",
    "mouthPressRight",
    "mouthPucker",
    "mouthRight",
    "mouthRollLower",
    "mouthRollUpper",
    "mouthShrugLower",
    "mouthShrugUpper",
    "mouthSmileLeft",
    "mouthSmileRight",
    "mouthStretchLeft",
    "mouthStretchRight",
    "mouthUpperUpLeft",
    "mouthUpperUpRight",
    "noseSneerLeft",
    "noseSneerRight",
    "tongueOut",
)


def _hand_mapping(side: str, first: int) -> dict[str, tuple[int, ...]]:
    return {f"{side}_hand_{name}": (first + i,) for i, name in enumerate(HAND_JOINT_NAMES)}


# Other conventions, for `map_joints`: our joint's name -> the source points whose mean it is.

# MediaPipe's 33 pose landmarks. Its hand landmarks have our hands' order already.
MEDIAPIPE_POSE_MAPPING = {
    "nose": (0,),
    "neck": (11, 12),
    "right_shoulder": (12,),
    "right_elbow": (14,),
    "right_wrist": (16,),
    "left_shoulder": (11,),
    "left_elbow": (13,),
    "left_wrist": (15,),
    "right_hip": (24,),
    "right_knee": (26,),
    "right_ankle": (28,),
    "left_hip": (23,),
    "left_knee": (25,),
    "left_ankle": (27,),
    "right_eye": (5,),
    "left_eye": (2,),
    "right_ear": (8,),
    "left_ear": (7,),
    "left_toe": (31,),
    "right_toe": (32,),
}

# COCO-WholeBody: 17 body, 6 feet, 68 face, 21 + 21 hand points. ViTPose and DWPose before their OpenPose conversion.
COCO_WHOLEBODY_MAPPING = {
    "nose": (0,),
    "neck": (5, 6),
    "right_shoulder": (6,),
    "right_elbow": (8,),
    "right_wrist": (10,),
    "left_shoulder": (5,),
    "left_elbow": (7,),
    "left_wrist": (9,),
    "right_hip": (12,),
    "right_knee": (14,),
    "right_ankle": (16,),
    "left_hip": (11,),
    "left_knee": (13,),
    "left_ankle": (15,),
    "right_eye": (2,),
    "left_eye": (1,),
    "right_ear": (4,),
    "left_ear": (3,),
    "left_toe": (17, 18),
    "right_toe": (20, 21),
    **_hand_mapping("left", 91),
    **_hand_mapping("right", 112),
}

# OpenPose's 18 (COCO) body points: ours without the toes, in the same order.
OPENPOSE_COCO18_MAPPING = {name: (index,) for index, name in enumerate(BODY_JOINT_NAMES[:18])}

# OpenPose's BODY_25: a middle hip at 8 moves what follows, and the feet are at the end.
OPENPOSE_BODY25_MAPPING = {
    **{name: (index,) for index, name in enumerate(BODY_JOINT_NAMES[:8])},
    **{name: (index + 9,) for index, name in enumerate(BODY_JOINT_NAMES[8:18])},
    "left_toe": (19, 20),
    "right_toe": (22, 23),
}

# DWPose's 134 whole-body points in OpenPose's order: 18 body, 6 feet, 68 face, 21 + 21 hand points.
DWPOSE_MAPPING = {
    **OPENPOSE_COCO18_MAPPING,
    "left_toe": (18, 19),
    "right_toe": (21, 22),
    **_hand_mapping("left", 92),
    **_hand_mapping("right", 113),
}


def _goliath_hand_mapping(side: str, first: int, wrist: int) -> dict[str, tuple[int, ...]]:
    # Each finger from its tip to its knuckle, thumb first.
    fingers = {
        f"{side}_hand_{finger}_{i}": (first + 4 * number + 4 - i,)
        for number, finger in enumerate(FINGER_NAMES)
        for i in range(1, 5)
    }
    return {f"{side}_wrist": (wrist,), f"{side}_hand_wrist": (wrist,), **fingers}


# Sapiens' 308 points ("Goliath" or "Sociopticon": 21 of body and feet, 21 + 21 of the hands, 7 more of the body, and the
# face from 70 on).
GOLIATH_MAPPING = {
    "nose": (0,),
    "neck": (5, 6),
    "right_shoulder": (6,),
    "right_elbow": (8,),
    "left_shoulder": (5,),
    "left_elbow": (7,),
    "right_hip": (10,),
    "right_knee": (12,),
    "right_ankle": (14,),
    "left_hip": (9,),
    "left_knee": (11,),
    "left_ankle": (13,),
    "right_eye": (2,),
    "left_eye": (1,),
    "right_ear": (4,),
    "left_ear": (3,),
    "left_toe": (15, 16),
    "right_toe": (18, 19),
    **_goliath_hand_mapping("right", 21, 41),
    **_goliath_hand_mapping("left", 42, 62),
}
GOLIATH_FACE = slice(70, 308)


def _smplx_hand_mapping(side: str, first: dict[str, int], tips: dict[str, int], wrist: int) -> dict:
    mapping = {f"{side}_hand_wrist": (wrist,)}
    for finger in FINGER_NAMES:
        for i in range(3):
            mapping[f"{side}_hand_{finger}_{i + 1}"] = (first[finger] + i,)
        mapping[f"{side}_hand_{finger}_4"] = (tips[finger],)
    return mapping


# The joints that the `smplx` package's SMPL-X model returns (55 of the kinematic tree, then points of the surface).
SMPLX_MAPPING = {
    "nose": (55,),
    "neck": (16, 17),
    "right_shoulder": (17,),
    "right_elbow": (19,),
    "right_wrist": (21,),
    "left_shoulder": (16,),
    "left_elbow": (18,),
    "left_wrist": (20,),
    "right_hip": (2,),
    "right_knee": (5,),
    "right_ankle": (8,),
    "left_hip": (1,),
    "left_knee": (4,),
    "left_ankle": (7,),
    "right_eye": (56,),
    "left_eye": (57,),
    "right_ear": (58,),
    "left_ear": (59,),
    "left_toe": (60, 61),
    "right_toe": (63, 64),
    **_smplx_hand_mapping(
        "left",
        first={"index": 25, "middle": 28, "little": 31, "ring": 34, "thumb": 37},
        tips={"thumb": 66, "index": 67, "middle": 68, "ring": 69, "little": 70},
        wrist=20,
    ),
    **_smplx_hand_mapping(
        "right",
        first={"index": 40, "middle": 43, "little": 46, "ring": 49, "thumb": 52},
        tips={"thumb": 71, "index": 72, "middle": 73, "ring": 74, "little": 75},
        wrist=21,
    ),
}


def map_joints(
    points: np.ndarray, confidence: np.ndarray | None, mapping: dict[str, tuple[int, ...]]
) -> tuple[np.ndarray, np.ndarray]:
    """
    Brings another convention's points into ours.

    Args:
        points (`np.ndarray` of shape `(..., N, D)`): the source's points, in any unit.
        confidence (`np.ndarray` of shape `(..., N)`, *optional*): in [0, 1]; taken as 1 when `None`.
        mapping (`dict`): our joint's name to the source indices whose mean it is, e.g. `COCO_WHOLEBODY_MAPPING`.

    Returns:
        Joints `(..., 62, D)` and confidence `(..., 62)`, float32. A joint that comes from several points has the least of
        their confidences; a joint the source does not have is at zero with confidence 0.

    Raises:
        ValueError: the source has fewer points than the mapping reads.
    """
    points = np.asarray(points, dtype=np.float32)
    needed = 1 + max(index for indices in mapping.values() for index in indices)
    if points.shape[-2] < needed:
        raise ValueError(f"`points` has {points.shape[-2]} points, but the mapping reads {needed}.")
    if confidence is None:
        confidence = np.ones(points.shape[:-1], dtype=np.float32)
    confidence = np.asarray(confidence, dtype=np.float32)
    joints = np.zeros(points.shape[:-2] + (NUM_JOINTS, points.shape[-1]), dtype=np.float32)
    joint_confidence = np.zeros(points.shape[:-2] + (NUM_JOINTS,), dtype=np.float32)
    for name, indices in mapping.items():
        joints[..., JOINT_INDEX[name], :] = points[..., list(indices), :].mean(axis=-2)
        joint_confidence[..., JOINT_INDEX[name]] = confidence[..., list(indices)].min(axis=-1)
    return joints, joint_confidence
