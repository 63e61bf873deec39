"""SMPL-X's joint rotations on the skeleton of Anny, a body model that is free to use (Apache-2.0, CC0 data).

SMPL-X's parameters are rotations of joints away from a T-pose. Anny rests in an A-pose, with its elbows and fingers bent
a little; its skeleton is first brought to that T-pose, and then the rotations are applied along SMPL-X's tree.
"""

from functools import lru_cache

import numpy as np
from scipy.spatial.transform import Rotation

from ..camera import shortest_rotation
from ..skeleton import FINGER_NAMES, JOINT_INDEX, NUM_JOINTS


# Anny's axes (x to the person's left, z up, facing -y) to SMPL's (y up, facing z).
_ANNY_TO_SMPL = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
# Where SMPL-X's inner joints are in Anny's spine; the hips hang from the pelvis.
_SPINE = {0: "spine04", 3: "spine03", 6: "spine02", 9: "spine01", 12: "neck01", 15: "head"}
_COLLARS = {13: "clavicle.L", 14: "clavicle.R"}
# SMPL-X's order of fingers in a hand, three joints each; Anny numbers the fingers from the thumb.
_SMPLX_FINGERS = ("index", "middle", "little", "ring", "thumb")
_BODY = {
    1: "left_hip",
    2: "right_hip",
    4: "left_knee",
    5: "right_knee",
    7: "left_ankle",
    8: "right_ankle",
    16: "left_shoulder",
    17: "right_shoulder",
    18: "left_elbow",
    19: "right_elbow",
    20: "left_wrist",
    21: "right_wrist",
}
_PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19)
_FACE = ("nose", "right_eye", "left_eye", "right_ear", "left_ear")


@lru_cache(maxsize=1)
def _t_pose() -> tuple[np.ndarray, np.ndarray]:
    """SMPL-X's 22 body joints and our 62 joints of an average adult in SMPL's T-pose, metres, pelvis at the origin."""
    try:
        import anny
        import torch
    except ImportError as error:
        raise ImportError(
            "body_model='anny' needs the package `anny`: pip install diffusers-dreamactor[synthetic]"
        ) from error
    model = anny.Anny().to(torch.float32)
    with torch.no_grad():
        output = model()
        regressor = anny.KeypointsRegressor.coco(model)
        points = dict(zip(regressor.labels, (regressor(output)[0].numpy() @ _ANNY_TO_SMPL.T).astype(np.float64)))
    heads = output["rest_bone_heads"][0].numpy() @ _ANNY_TO_SMPL.T
    bones = dict(zip(model.bone_labels, heads.astype(np.float64)))

    body = np.zeros((22, 3))
    joints = np.zeros((NUM_JOINTS, 3))
    for index, bone in (_SPINE | _COLLARS).items():
        body[index] = bones[bone]
    for index, name in _BODY.items():
        body[index] = points[name]
        joints[JOINT_INDEX[name]] = points[name]
    for name in _FACE:
        joints[JOINT_INDEX[name]] = points[name]
    for side, letter in (("left", "L"), ("right", "R")):
        joints[JOINT_INDEX[f"{side}_toe"]] = (points[f"{side}_big_toe"] + points[f"{side}_small_toe"]) / 2
        hand = JOINT_INDEX[f"{side}_hand_wrist"]
        joints[hand] = points[f"{side}_wrist"]
        for number, finger in enumerate(FINGER_NAMES, start=1):
            first = JOINT_INDEX[f"{side}_hand_{finger}_1"]
            for i in range(3):
                joints[first + i] = bones[f"finger{number}-{i + 1}.{letter}"]
            # Anny's rig ends at the last joint; the tip is about as far again as the joint before (Buryanov and Kotiuk).
            joints[first + 3] = joints[first + 2] + 0.9 * (joints[first + 2] - joints[first + 1])

        outwards = np.array([1.0, 0.0, 0.0]) if side == "left" else np.array([-1.0, 0.0, 0.0])
        down = np.array([0.0, -1.0, 0.0])
        arm = [JOINT_INDEX[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist")]
        leg = [JOINT_INDEX[f"{side}_{name}"] for name in ("hip", "knee", "ankle")]
        everything = list(range(hand, hand + 21))
        for chain, end, target in ((arm, everything, outwards), (leg, [JOINT_INDEX[f"{side}_toe"]], down)):
            for i in range(2):
                moved = chain[i + 1 :] + end
                turn = shortest_rotation(joints[chain[i + 1]] - joints[chain[i]], target)
                joints[moved] = joints[chain[i]] + (joints[moved] - joints[chain[i]]) @ turn.T
        # The hand straight out, then each finger but the thumb straight, fanned out a little.
        turn = shortest_rotation(joints[JOINT_INDEX[f"{side}_hand_middle_1"]] - joints[hand], outwards)
        joints[everything] = joints[hand] + (joints[everything] - joints[hand]) @ turn.T
        for finger in FINGER_NAMES[1:]:
            first = JOINT_INDEX[f"{side}_hand_{finger}_1"]
            knuckle = joints[first] - joints[hand]
            direction = 2 * outwards + knuckle / np.linalg.norm(knuckle)
            direction /= np.linalg.norm(direction)
            lengths = np.linalg.norm(np.diff(joints[first : first + 4], axis=0), axis=1)
            joints[first + 1 : first + 4] = joints[first] + np.cumsum(lengths)[:, None] * direction
    for index, name in _BODY.items():
        body[index] = joints[JOINT_INDEX[name]]
    # SMPL-X's foot joints (10, 11) are in the ball of the foot, near the toes.
    body[10], body[11] = joints[JOINT_INDEX["left_toe"]], joints[JOINT_INDEX["right_toe"]]
    pelvis = body[0].copy()
    return body - pelvis, joints - pelvis


def anny_joints(
    rotations: np.ndarray, left_hand: np.ndarray, right_hand: np.ndarray, pelvis: np.ndarray
) -> np.ndarray:
    """
    Our joints `(F, 62, 3)`, metres, of an average adult of Anny's under SMPL-X's rotations.

    Args:
        rotations (`(F, 22, 3, 3)`): of pelvis and body joints, in the world or camera frame.
        left_hand, right_hand (`(F, 15, 3)`): axis-angle, relative to the joint before.
        pelvis (`(F, 3)`): its place, metres.

    Raises:
        ImportError: the package `anny` is missing.
    """
    rest_body, rest = _t_pose()
    body = np.zeros((len(rotations), 22, 3))
    for joint, parent in enumerate(_PARENTS):
        if parent >= 0:
            body[:, joint] = body[:, parent] + rotations[:, parent] @ (rest_body[joint] - rest_body[parent])
    joints = np.zeros((len(rotations), NUM_JOINTS, 3))
    for index, name in _BODY.items():
        joints[:, JOINT_INDEX[name]] = body[:, index]
    for name, parent in [(name, 15) for name in _FACE] + [("left_toe", 7), ("right_toe", 8)]:
        offset = rest[JOINT_INDEX[name]] - rest_body[parent]
        joints[:, JOINT_INDEX[name]] = body[:, parent] + rotations[:, parent] @ offset
    joints[:, JOINT_INDEX["neck"]] = (body[:, 16] + body[:, 17]) / 2
    for side, wrist, hand in (("left", 20, left_hand), ("right", 21, right_hand)):
        local = Rotation.from_rotvec(hand.reshape(-1, 3)).as_matrix().reshape(len(hand), 15, 3, 3)
        origin = JOINT_INDEX[f"{side}_hand_wrist"]
        joints[:, origin] = body[:, wrist]
        for number, finger in enumerate(_SMPLX_FINGERS):
            rotation, previous = rotations[:, wrist], origin
            first = JOINT_INDEX[f"{side}_hand_{finger}_1"]
            for i in range(4):
                joints[:, first + i] = joints[:, previous] + rotation @ (rest[first + i] - rest[previous])
                previous = first + i
                if i < 3:
                    rotation = rotation @ local[:, 3 * number + i]
    return joints + pelvis[:, None]
