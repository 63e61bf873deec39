"""BVH motion capture files as a `MotionSequence`.

A BVH file is a tree of joints with offsets, and for every frame the value of each channel. Names are free, so the usual
ones are recognised: Mixamo and MotionBuilder (`LeftUpLeg`, `LeftLeg`, `LeftArm`, `LeftForeArm`), joint names (`LeftHip`,
`LeftKnee`, `LeftShoulder`, `LeftElbow`), Poser and Daz (`lThigh`, `lShin`, `lShldr`), 3ds Max (`Bip01 L Thigh`), Blender
(`thigh.L`, `upper_arm.L`). For others, `joint_names` says which is which.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from ..camera import normalized
from ..sequence import MotionSequence
from ..skeleton import FINGER_NAMES, JOINT_INDEX, NUM_JOINTS
from .from_joints import add_face_joints, motion_from_joints, place_camera


# Words of a joint's name, without side, for each of our joints; the first that the file has counts, since "leg" is a shin
# where there is an "upleg", and "shoulder" is a collar bone where there is an "arm".
_PART_NAMES = {
    "hip": ("upleg", "thigh", "upperleg", "hip", "femur"),
    "knee": ("leg", "shin", "lowerleg", "lowleg", "calf", "knee", "tibia"),
    "ankle": ("foot", "ankle"),
    "toe": ("toebase", "toe", "toes", "toe0", "ball"),
    "shoulder": ("arm", "upperarm", "uparm", "shldr", "humerus", "shoulder"),
    "elbow": ("forearm", "lowerarm", "lowarm", "elbow", "radius"),
    "wrist": ("hand", "wrist"),
}
_FINGER_WORDS = {
    "thumb": "thumb",
    "index": "index",
    "middle": "mid(?:dle)?",
    "ring": "ring",
    "little": "(?:pinky|little)",
}
_AXES = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}
# An adult's leg from hip to ankle (0.491 of a stature of 1.70 m): what the file's unit of length is read from.
_LEG_LENGTH = 0.835
_ALL_WORDS = {word for words in _PART_NAMES.values() for word in words}
_REQUIRED = ("left_shoulder", "right_shoulder", "left_hip", "right_hip", "left_knee", "right_knee")


@dataclass
class BVH:
    """
    A parsed file.

    Args:
        names (`list[str]`): of all joints; an end site is `<parent>_end`.
        parents (`list[int]`): -1 for the root.
        offsets (`(J, 3)`): from the parent, in the file's unit.
        channels (`list[list[str]]`): of each joint, in the file's order, e.g. `["Zrotation", "Xrotation", "Yrotation"]`.
        values (`(F, C)`): one column for each channel.
        fps (`float`): frames in a second.
    """

    names: list[str] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    offsets: np.ndarray = None
    channels: list[list[str]] = field(default_factory=list)
    values: np.ndarray = None
    fps: float = 0.0

    @classmethod
    def read(cls, path: str | os.PathLike) -> "BVH":
        """
        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is no BVH, is cut off, or has values that are not finite.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"`path` names no file: {path}")
        text = path.read_text(encoding="utf-8", errors="replace")
        head, found, motion = text.partition("MOTION")
        if not head.lstrip("\ufeff").lstrip().startswith("HIERARCHY") or not found:
            raise ValueError(f"`path` is not a BVH file, which has a HIERARCHY and a MOTION: {path}")
        bvh = cls()
        try:
            bvh._parse_hierarchy(head.lstrip("\ufeff").split()[1:])
            bvh._parse_motion(motion)
        except (ValueError, IndexError) as error:
            raise ValueError(f"`path` is a BVH file that cannot be read ({error}): {path}") from error
        return bvh

    def _parse_hierarchy(self, words: list[str]) -> None:
        offsets, open_joints, index = [], [], 0
        while index < len(words):
            word = words[index]
            if word in ("ROOT", "JOINT", "End"):
                brace = words.index("{", index)
                # Names may have blanks in them: 3ds Max writes "Bip01 L Thigh".
                name = f"{self.names[open_joints[-1]]}_end" if word == "End" else " ".join(words[index + 1 : brace])
                self.parents.append(open_joints[-1] if open_joints else -1)
                self.names.append(name)
                self.channels.append([])
                offsets.append([0.0, 0.0, 0.0])
                open_joints.append(len(self.names) - 1)
                index = brace + 1
            elif word == "OFFSET":
                offsets[open_joints[-1]] = [float(value) for value in words[index + 1 : index + 4]]
                index += 4
            elif word == "CHANNELS":
                count = int(words[index + 1])
                self.channels[open_joints[-1]] = words[index + 2 : index + 2 + count]
                index += 2 + count
            elif word == "}":
                open_joints.pop()
                index += 1
            else:
                raise ValueError(f"unexpected {word!r} in its hierarchy")
        self.offsets = np.array(offsets, dtype=np.float64)

    def _parse_motion(self, text: str) -> None:
        header = re.match(r"\s*Frames:\s*(\d+)\s*Frame Time:\s*([-+.\deE]+)", text)
        if header is None:
            raise ValueError("its MOTION lacks `Frames:` and `Frame Time:`")
        num_frames, frame_time = int(header[1]), float(header[2])
        num_channels = sum(len(channels) for channels in self.channels)
        values = np.array(text[header.end() :].split(), dtype=np.float64)
        if num_frames == 0 or values.size == 0:
            raise ValueError("it has no frames")
        if values.size != num_frames * num_channels:
            raise ValueError(
                f"{num_frames} frames of {num_channels} channels are {num_frames * num_channels} values, but it has "
                f"{values.size}"
            )
        if not np.isfinite(values).all() or not frame_time > 0:
            raise ValueError("it has values that are not finite, or a frame time that is not positive")
        self.values = values.reshape(num_frames, num_channels)
        rate = 1 / frame_time
        # 0.0083333 means 120.
        self.fps = float(round(rate)) if abs(rate - round(rate)) < 1e-3 * rate else rate

    def forward_kinematics(self, values: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """
        Positions `(F, J, 3)` in the file's unit and rotations `(F, J, 3, 3)` of all joints in the world.

        Args:
            values (`(F, C)`, *optional*): channel values; default those of the file.
        """
        values = self.values if values is None else values
        positions = np.zeros((len(values), len(self.names), 3))
        rotations = np.zeros((len(values), len(self.names), 3, 3))
        column = 0
        for joint, (parent, channels) in enumerate(zip(self.parents, self.channels)):
            local = np.tile(self.offsets[joint], (len(values), 1))
            order, angles = "", []
            for channel in channels:
                axis = channel[0].lower()
                if channel.lower().endswith("position"):
                    # A position channel is where the joint is relative to its parent, in place of the offset.
                    local[:, "xyz".index(axis)] = values[:, column]
                else:
                    order += axis.upper()
                    angles.append(values[:, column])
                column += 1
            turn = np.tile(np.eye(3), (len(values), 1, 1))
            for axis, angle in zip(order, angles):
                turn = turn @ Rotation.from_euler(axis, angle[:, None], degrees=True).as_matrix()
            if parent < 0:
                positions[:, joint], rotations[:, joint] = local, turn
            else:
                positions[:, joint] = positions[:, parent] + np.einsum("fij,fj->fi", rotations[:, parent], local)
                rotations[:, joint] = rotations[:, parent] @ turn
        return positions, rotations


def _plain(name: str) -> tuple[str, str]:
    """Side ("left", "right" or "") and the rest of a joint's name in lower case: "mixamorig:LeftUpLeg" is left, upleg."""
    name = re.sub(
        r"^(bip\d*|.*:|j_bip_|cc_base_|def-|valvebiped[._]bip01)[ _.]?", "", name.strip(), flags=re.IGNORECASE
    )
    for side in ("left", "right"):
        letter = side[0]
        for pattern in (rf"^{side}[ _.-]?", rf"[ _.-]?{side}$", rf"^{letter}[ _.-]", rf"[ _.-]{letter}$"):
            if re.search(pattern, name, flags=re.IGNORECASE):
                return side, re.sub(r"[ _.-]", "", re.sub(pattern, "", name, flags=re.IGNORECASE)).lower()
        # Poser's "lShldr", and the "lhumerus" of ASF files.
        if re.match(rf"{letter}[A-Z]", name) or (name[:1].lower() == letter and name[1:].lower() in _ALL_WORDS):
            return side, name[1:].lower()
    return "", re.sub(r"[ _.-]", "", name).lower()


def find_joints(bvh: BVH, joint_names: dict[str, str] | None = None) -> dict[str, int]:
    """
    Which joint of the file is which of ours, by name; also "head", and "head_top" where the head has an end.

    Args:
        joint_names (`dict[str, str]`, *optional*): our names to the file's, ahead of what is recognised.

    Raises:
        ValueError: a name in `joint_names` that the file or we do not have.
    """
    plain, ends = {}, {}
    for index, (name, parent) in enumerate(zip(bvh.names, bvh.parents)):
        # An end site, or a joint that stands for one ("HeadTop_End", "Toe0Nub").
        if re.search(r"(end|nub)$", name, flags=re.IGNORECASE) and np.any(bvh.offsets[index]):
            ends[parent] = index
        else:
            plain.setdefault(_plain(name), index)
    found = {}
    if ("", "head") in plain:
        found["head"] = plain["", "head"]
        if found["head"] in ends:
            found["head_top"] = ends[found["head"]]
    for side in ("left", "right"):
        for part, words in _PART_NAMES.items():
            index = next((plain[side, word] for word in words if (side, word) in plain), None)
            if index is not None:
                found[f"{side}_{part}"] = index
        elbow = found.get(f"{side}_elbow")
        if f"{side}_wrist" not in found and elbow in ends:
            found[f"{side}_wrist"] = ends[elbow]
        # A foot's end is at the tips of the toes, its toe joint behind them.
        last = found.get(f"{side}_toe", found.get(f"{side}_ankle"))
        if last in ends:
            found[f"{side}_toe"] = ends[last]
        for finger, word in _FINGER_WORDS.items():
            pattern = re.compile(rf"^(?:hand|finger|f)?{word}(?:finger)?0?(\d)$")
            numbered = sorted(
                (int(match[1]), index)
                for (where, name), index in plain.items()
                if where == side and (match := pattern.match(name))
            )
            chain = [index for _, index in numbered]
            if chain and chain[-1] in ends:
                chain.append(ends[chain[-1]])
            if len(chain) >= 4:
                # With five, the first is the bone in the palm.
                for i, index in enumerate(chain[-4:]):
                    found[f"{side}_hand_{finger}_{i + 1}"] = index
    for ours, theirs in (joint_names or {}).items():
        if ours not in JOINT_INDEX and ours != "head":
            raise ValueError(f"`joint_names` has {ours!r}, which is none of our joints (see `skeleton.JOINT_NAMES`).")
        if theirs not in bvh.names:
            raise ValueError(f"`joint_names` has {theirs!r}, but the file's joints are {', '.join(bvh.names)}.")
        found[ours] = bvh.names.index(theirs)
    return found


def _trunk(joints: np.ndarray) -> np.ndarray:
    """Axes `(F, 3, 3)` of the trunk in `HeadTrack`'s convention: x to the person's left, y down, z to the back."""
    shoulders = joints[:, JOINT_INDEX["left_shoulder"]] - joints[:, JOINT_INDEX["right_shoulder"]]
    hips = (joints[:, JOINT_INDEX["left_hip"]] + joints[:, JOINT_INDEX["right_hip"]]) / 2
    down = hips - joints[:, JOINT_INDEX["neck"]]
    back = np.cross(shoulders, down)
    back = normalized(back)
    across = normalized(shoulders)
    return np.stack([across, np.cross(back, across), back], axis=-1)


def _head_at_rest(bvh: BVH, found: dict[str, int], head: np.ndarray, trunk: np.ndarray, up: np.ndarray) -> np.ndarray:
    """
    The head's axes when the head joint's rotation is the identity, `(3, 3)`.

    The pose without rotations is a person standing straight in most files, and tells it. In some it is no pose of a
    person at all; then the head is taken to look, on average, where the chest does.
    """
    still = bvh.forward_kinematics(np.zeros((1, bvh.values.shape[1])))[0][0]
    across = still[found["left_hip"]] - still[found["right_hip"]]
    shoulders = (still[found["left_shoulder"]] + still[found["right_shoulder"]]) / 2
    spine = shoulders - (still[found["left_hip"]] + still[found["right_hip"]]) / 2
    lengths = np.linalg.norm(across), np.linalg.norm(spine)
    if min(lengths) > 1e-6 and spine @ up > 0.9 * lengths[1] and abs(across @ up) < 0.2 * lengths[0]:
        across = across - up * (across @ up)
        across /= np.linalg.norm(across)
        return np.stack([across, -up, np.cross(across, -up)], axis=-1)
    return Rotation.from_matrix(np.swapaxes(head, 1, 2) @ trunk).mean().as_matrix()


def load_bvh_motion(
    path: str | os.PathLike,
    fps: float | None = None,
    width: int = 720,
    height: int = 1280,
    focal_length: float | None = None,
    up: str = "y",
    camera_yaw: float = 0.0,
    joint_names: dict[str, str] | None = None,
) -> MotionSequence:
    """
    A motion from a BVH file, seen by a level camera in front of the person (BVH has none), near enough that the whole clip
    just fits. Lengths are scaled so that the legs are an adult's, since BVH has no unit.

    Args:
        path (`str` or `os.PathLike`): the file.
        fps (`float`, *optional*): the rate of the result; default the file's own.
        width, height (`int`): of the picture, pixels.
        focal_length (`float`, *optional*): pixels; default the picture's diagonal.
        up (`str`, defaults to `"y"`): the file's axis up, "y" or "z".
        camera_yaw (`float`, defaults to 0.0): degrees by which the camera stands to the left of the person's front.
        joint_names (`dict[str, str]`, *optional*):
            For names that are not recognised: ours (`skeleton.JOINT_NAMES`, or "head") to the file's.

    Returns:
        `MotionSequence` with body and, where the file has a head, head. Joints that the file lacks have confidence 0; nose,
        eyes and ears are an average head's.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no BVH file, or shoulders, hips and knees cannot be told.
    """
    if up not in ("y", "z"):
        raise ValueError(f"`up` must be 'y' or 'z', but is {up!r}.")
    bvh = BVH.read(path)
    found = find_joints(bvh, joint_names)
    missing = [name for name in _REQUIRED if name not in found]
    if missing:
        raise ValueError(
            f"`path` has no joints that are recognised as {', '.join(missing)}; give `joint_names`. The file's joints are "
            f"{', '.join(name for name in bvh.names if not name.endswith('_end'))}."
        )
    positions, rotations = bvh.forward_kinematics()
    # Of the thighs alone where the file has no feet: half of the leg.
    leg, chain = 0.0, ("hip", "knee", "ankle") if {"left_ankle", "right_ankle"} <= found.keys() else ("hip", "knee")
    for side in ("left", "right"):
        points = positions[0, [found[f"{side}_{name}"] for name in chain]]
        leg += np.linalg.norm(np.diff(points, axis=0), axis=-1).mean()
    if leg < 1e-6:
        raise ValueError(f"`path` has legs without length: {path}")
    positions = positions * (_LEG_LENGTH / leg)

    num_frames = len(positions)
    joints, confidence = np.zeros((num_frames, NUM_JOINTS, 3)), np.zeros((num_frames, NUM_JOINTS))
    for name, index in found.items():
        if name in JOINT_INDEX:
            joints[:, JOINT_INDEX[name]] = positions[:, index]
            confidence[:, JOINT_INDEX[name]] = 1.0
    neck = JOINT_INDEX["neck"]
    joints[:, neck] = (joints[:, JOINT_INDEX["left_shoulder"]] + joints[:, JOINT_INDEX["right_shoulder"]]) / 2
    confidence[:, neck] = 1.0
    for side in ("left", "right"):
        for name, before in (("elbow", "shoulder"), ("wrist", "elbow"), ("ankle", "knee"), ("toe", "ankle")):
            if f"{side}_{name}" not in found:
                joints[:, JOINT_INDEX[f"{side}_{name}"]] = joints[:, JOINT_INDEX[f"{side}_{before}"]]
        wrist = JOINT_INDEX[f"{side}_wrist"]
        joints[:, JOINT_INDEX[f"{side}_hand_wrist"]] = joints[:, wrist]
        confidence[:, JOINT_INDEX[f"{side}_hand_wrist"]] = confidence[:, wrist]
        for finger in FINGER_NAMES:
            for i in range(1, 5):
                if f"{side}_hand_{finger}_{i}" not in found:
                    joints[:, JOINT_INDEX[f"{side}_hand_{finger}_{i}"]] = joints[:, wrist]

    axis_up, head_axes = np.array(_AXES[up]), None
    face = [JOINT_INDEX[name] for name in ("nose", "right_eye", "left_eye", "right_ear", "left_ear")]
    joints[:, face] = joints[:, [neck]]
    if "head" in found:
        head = rotations[:, found["head"]]
        head_axes = head @ _head_at_rest(bvh, found, head, _trunk(joints), axis_up)
        origin = positions[:, found["head"]]
        top = positions[:, found["head_top"]] - origin if "head_top" in found else np.zeros_like(origin)
        # The head joint is at the base of the skull; a head's end site is at its top, and the ears in between.
        length = float(np.linalg.norm(top[0]))
        rise = 0.4 * length if 0.08 < length < 0.35 else 0.07
        joints = add_face_joints(joints, head_axes, origin - rise * head_axes[:, :, 1])
        confidence[:, face] = 1.0
    camera, translation, focal_length = place_camera(joints, axis_up, width, height, focal_length, camera_yaw)
    joints = joints @ camera.T + translation
    head_axes = None if head_axes is None else camera @ head_axes
    motion = motion_from_joints(joints, confidence, bvh.fps, width, height, focal_length, head_axes)
    return motion if fps is None else motion.resample(fps)
