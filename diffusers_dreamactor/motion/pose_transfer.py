"""How bones point: the directions of a driver on a reference person, and what bones do that are not driven."""

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from .bone_lengths import PARENT_INDICES, bone_vectors, size_ratio
from .camera import normalized, shortest_rotation
from .skeleton import BONE_GROUPS, BONES, JOINT_INDEX, LEFT_HAND, NUM_JOINTS, RIGHT_HAND, ROOT


RIGHT_SHOULDER, LEFT_SHOULDER = JOINT_INDEX["right_shoulder"], JOINT_INDEX["left_shoulder"]
SHOULDERS = [RIGHT_SHOULDER, LEFT_SHOULDER]
HIPS = [JOINT_INDEX["right_hip"], JOINT_INDEX["left_hip"]]
HEAD_JOINTS = [JOINT_INDEX[name] for name in ("nose", "right_eye", "left_eye", "right_ear", "left_ear")]
HANDS = {"right": RIGHT_HAND, "left": LEFT_HAND}

# The torso gives way to the moving neck by this share of its length before the hips follow, and by this angle in a twist:
# a person who is only seen from the chest up stands still with the rest.
LEAN = 0.25
TWIST = np.radians(30)
# How far the ratio of two limbs in one picture may be from that of the bodies: more is foreshortening.
LIMB_TOLERANCE = 1.6

# How bones point that neither was seen nor came with a usable estimate, in the axes of the torso (x from the right to
# the left shoulder, y down the spine, z backwards): arms and legs hang, feet and nose point to the front.
_REST = np.tile([0.0, 1.0, 0.0], (NUM_JOINTS, 1))
for _name, _direction in {
    "nose": (0, -0.85, -0.53),
    "right_eye": (-0.6, -0.7, 0.4),
    "left_eye": (0.6, -0.7, 0.4),
    "right_ear": (-0.45, 0.2, 0.87),
    "left_ear": (0.45, 0.2, 0.87),
    "right_shoulder": (-1, 0, 0),
    "left_shoulder": (1, 0, 0),
    "right_elbow": (-0.15, 0.99, 0),
    "left_elbow": (0.15, 0.99, 0),
    "right_hip": (-0.2, 0.98, 0),
    "left_hip": (0.2, 0.98, 0),
    "right_toe": (0, 0.4, -0.92),
    "left_toe": (0, 0.4, -0.92),
}.items():
    _REST[JOINT_INDEX[_name]] = _direction
del _name, _direction


def with_length(vectors: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return normalized(vectors) * lengths[..., None]


def rotate(rotation: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Every rotation `(F, 3, 3)` on every vector `(N, 3)`: `(F, N, 3)`."""
    return np.einsum("fij,nj->fni", rotation, vectors)


def trust_chains(seen: np.ndarray) -> np.ndarray:
    """
    A joint between others that are seen counts as seen too: its estimate is held between them. So does the far shoulder
    or hip of a person seen from the side.
    """
    seen = seen.copy()
    for pair in (SHOULDERS, HIPS):
        seen[:, pair] = seen[:, pair].max(axis=1, keepdims=True)
    seen[:, ROOT] = np.maximum(seen[:, ROOT], seen[:, RIGHT_SHOULDER])
    for side, hand in HANDS.items():
        for chain in (("wrist", "elbow"), ("toe", "ankle", "knee"), ("ear", "eye", "nose")):
            joints = [JOINT_INDEX["nose" if name == "nose" else f"{side}_{name}"] for name in chain]
            if chain[0] == "wrist":
                joints.insert(0, hand.start)
            for child, parent in zip(joints, joints[1:]):
                seen[:, parent] = np.maximum(seen[:, parent], seen[:, child])
    return seen


def torso_axes(across: np.ndarray, down: np.ndarray, planar: bool) -> np.ndarray:
    """Axes `(F, 3, 3)` of a torso, as columns, from its spine `down` and the line from its right to its left shoulder."""
    y = normalized(down)
    if planar:
        z = np.broadcast_to([0.0, 0.0, 1.0], y.shape)
        return np.stack([np.cross(y, z), y, z], axis=-1)
    x = normalized(across - np.sum(across * y, axis=-1, keepdims=True) * y)
    return np.stack([x, y, np.cross(x, y)], axis=-1)


def torso_frames(joints: np.ndarray, hips_seen: np.ndarray, planar: bool) -> np.ndarray:
    """Axes of the torso of `joints` `(F, 62, 3)`; the spine points down in the picture where no hips are seen."""
    spine = normalized(joints[:, HIPS].mean(axis=1) - joints[:, ROOT])
    down = hips_seen[:, None] * spine + (1 - hips_seen[:, None]) * np.array([0.0, 1.0, 0.0])
    return torso_axes(joints[:, LEFT_SHOULDER] - joints[:, RIGHT_SHOULDER], down, planar)


def torso_turn(vectors: np.ndarray, person_frame: np.ndarray, planar: bool) -> np.ndarray:
    """How the torso of bone `vectors` `(F, 62, 3)` is turned against the reference's, `(F, 3, 3)`."""
    across = vectors[:, LEFT_SHOULDER] - vectors[:, RIGHT_SHOULDER]
    return torso_axes(across, vectors[:, HIPS].mean(axis=1), planar) @ person_frame.T


def _yaw(start: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Angle in radians about the vertical (y, down) from the line `start` `(3,)` to the lines `(F, 3)`, without jumps."""
    angle = np.arctan2(start[2], start[0]) - np.arctan2(line[:, 2], line[:, 0])
    angle = np.unwrap(angle)
    return angle - 2 * np.pi * np.round(angle[0] / (2 * np.pi))


def yaw_between(start: np.ndarray, pair: np.ndarray, planar: bool) -> np.ndarray:
    """Rotations about the vertical between two (right, left) pairs: `(2, 3)` and `(F, 2, 3)` to `(F, 3, 3)`."""
    if planar:
        return np.tile(np.eye(3), (len(pair), 1, 1))
    angle = _yaw(start[1] - start[0], pair[:, 1] - pair[:, 0])
    return Rotation.from_euler("y", angle[:, None]).as_matrix()


def held_hips(own: np.ndarray, vectors: np.ndarray, moved: np.ndarray | None, planar: bool) -> np.ndarray:
    """
    Neck-to-hip vectors `(F, 2, 3)` of a person whose hips the driver does not show: they stay where the reference's are
    while the neck `moved` `(F, 3)` a little and the shoulders turn a little, and follow from there on.
    """
    angle = np.zeros(len(vectors))
    if not planar:
        shoulders = vectors[:, LEFT_SHOULDER] - vectors[:, RIGHT_SHOULDER]
        angle = _yaw(own[LEFT_SHOULDER] - own[RIGHT_SHOULDER], shoulders)
        angle = angle - TWIST * np.tanh(angle / TWIST)
    held = rotate(Rotation.from_euler("y", angle[:, None]).as_matrix(), own[HIPS])
    if moved is not None:
        reach = LEAN * np.linalg.norm(own[HIPS].mean(axis=0))
        held -= (moved * reach / np.sqrt(reach**2 + np.sum(moved**2, axis=-1, keepdims=True)))[:, None]
    return held


def planted_hips(own: np.ndarray, vectors: np.ndarray, planar: bool) -> np.ndarray:
    """
    Neck-to-hip vectors `(F, 2, 3)` of a person who stands: the spine as in the bone `vectors` `(F, 62, 3)`, the line of the
    hips as the reference's, which only turns with the trunk when that turns further than a trunk twists.
    """
    spine = vectors[:, HIPS].mean(axis=1, keepdims=True)
    across = own[HIPS] - own[HIPS].mean(axis=0)
    if planar:
        return spine + across
    angle = _yaw(own[HIPS[1]] - own[HIPS[0]], vectors[:, HIPS[1]] - vectors[:, HIPS[0]])
    angle = angle - TWIST * np.tanh(angle / TWIST)
    return spine + rotate(Rotation.from_euler("y", angle[:, None]).as_matrix(), across)


def complete_pose(joints: np.ndarray, seen: np.ndarray, lengths: np.ndarray, planar: bool) -> np.ndarray:
    """
    The reference's whole skeleton `(62, 3)`: seen bones as they point, others as the capture guessed them if the guess is
    of a sane length, else at rest; all with `lengths`.
    """
    vectors = bone_vectors(joints)
    known = np.linalg.norm(vectors, axis=-1)
    usable = (seen & seen[PARENT_INDICES]) | ((known > 0.4 * lengths) & (known < 2.5 * lengths))
    across = vectors[LEFT_SHOULDER] - vectors[RIGHT_SHOULDER]
    across = across if usable[SHOULDERS].all() else np.array([1.0, 0.0, 0.0])
    down = vectors[HIPS].mean(axis=0) if usable[HIPS].all() else np.array([0.0, 1.0, 0.0])
    rest = normalized(_REST) @ torso_axes(across[None], down[None], planar)[0].T
    rest[:, 2] *= not planar
    for side, hand in HANDS.items():
        wrist = JOINT_INDEX[f"{side}_wrist"]
        forearm = vectors[wrist] if usable[wrist] else rest[wrist]
        rest[hand] = forearm / max(np.linalg.norm(forearm), 1e-9)
    if not planar:
        vectors = with_length(vectors, lengths)
    vectors = np.where(usable[:, None], vectors, rest * lengths[:, None])
    completed = np.zeros((NUM_JOINTS, 3))
    for child, parent in BONES:
        completed[child] = completed[parent] + vectors[child]
    base = ROOT if seen[ROOT] else HEAD_JOINTS[0] if seen[HEAD_JOINTS[0]] else int(np.argmax(seen))
    return completed + joints[base] - completed[base]


def turned_from_first(
    vectors: np.ndarray, frames: np.ndarray, first: int, person_frame: np.ndarray, own: np.ndarray, seen: np.ndarray
) -> np.ndarray:
    """
    Bones of the reference turned as the driver's turn from frame `first` on: the torso as a whole, and every bone by its
    shortest rotation within the torso's axes. Where the reference's bone is not seen, the driver's direction counts.
    """
    local = np.einsum("fji,fnj->fni", frames, vectors)
    lengths = np.linalg.norm(local, axis=-1, keepdims=True)
    growth = lengths / np.maximum(lengths[first], 1e-9)
    turned = np.einsum("fnij,nj->fni", shortest_rotation(local[[first]], local), own @ person_frame) * growth
    turned = np.where((seen & seen[PARENT_INDICES])[:, None], turned, local)
    return np.einsum("fij,fnj->fni", frames @ frames[first].T @ person_frame, turned)


def fill_directions(vectors: np.ndarray, seen: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """
    Bone vectors `(F, 62, 3)` with those of unseen bones interpolated between the frames in which they are `seen`
    `(F, 62)`: limbs within the axes of the torso, `frames` `(F, 3, 3)`. Bones never seen are left as they are.
    """
    vectors = vectors.copy()
    times = np.arange(len(vectors))
    for joint in np.flatnonzero(seen.any(axis=0) & ~seen.all(axis=0)):
        known = seen[:, joint]
        local = vectors[:, joint]
        if joint not in (*SHOULDERS, *HIPS):
            local = np.einsum("fji,fj->fi", frames, local)
        filled = np.stack([np.interp(times[~known], times[known], axis[known]) for axis in local.T], axis=-1)
        if joint not in (*SHOULDERS, *HIPS):
            filled = np.einsum("fij,fj->fi", frames[~known], filled)
        vectors[~known, joint] = filled
    return vectors


def reach_with_arms(
    vectors: np.ndarray,
    driver: np.ndarray,
    lengths: np.ndarray,
    driver_lengths: np.ndarray,
    unseen_elbow: dict[str, np.ndarray],
    fps: float,
) -> np.ndarray:
    """
    Arms whose wrist is seen but whose elbow is a guess, as of a hand raised before a chest: the wrist goes where the
    driver's is, as seen from the shoulder and in lengths of the whole arm, and the elbow follows by two-bone inverse
    kinematics, bent to where the driver's guess is.

    Args:
        vectors (`(F, 62, 3)`): bone vectors of the result, for the arms with a seen elbow.
        driver (`(F, 62, 3)`): the driver's joints.
        lengths, driver_lengths (`(62,)`): bone lengths of both, known for the arms.
        unseen_elbow (`dict`): by side, how much of this is wanted in every frame, `(F,)` in [0, 1].
    """
    vectors = vectors.copy()
    for side, weight in unseen_elbow.items():
        if weight.max() == 0:
            continue
        shoulder, elbow, wrist = (JOINT_INDEX[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist"))
        upper, lower = lengths[elbow], lengths[wrist]
        line = driver[:, wrist] - driver[:, shoulder]
        axis = normalized(line)
        scale = (upper + lower) / (driver_lengths[elbow] + driver_lengths[wrist])
        reach = np.linalg.norm(line, axis=-1) * scale
        reach = np.clip(reach, 1.01 * abs(upper - lower) + 1e-6, 0.999 * (upper + lower))
        guess = gaussian_filter1d(driver[:, elbow] - driver[:, shoulder], 0.25 * fps, axis=0, mode="nearest")
        bend = normalized(guess - np.sum(guess * axis, axis=-1, keepdims=True) * axis)
        along = (reach**2 + upper**2 - lower**2) / (2 * reach)
        out = np.sqrt(np.maximum(upper**2 - along**2, 0.0))
        to_elbow = axis * along[:, None] + bend * out[:, None]
        to_wrist = axis * reach[:, None] - to_elbow
        for joint, solved in ((elbow, to_elbow), (wrist, to_wrist)):
            mixed = (1 - weight)[:, None] * vectors[:, joint] + weight[:, None] * solved
            vectors[:, joint] = normalized(mixed) * lengths[joint]
    return vectors


def limb_ratios(measured: np.ndarray, driver_lengths: np.ndarray, ratio: float) -> np.ndarray:
    """
    Factors `(62,)` from the driver's bones to the reference's in the image plane, one for each part of the body; single
    pictures foreshorten limbs, so they stay near the ratio of the bodies.
    """
    ratios = np.full(NUM_JOINTS, ratio)
    for bones in BONE_GROUPS.values():
        part = size_ratio(measured, driver_lengths, bones)
        if np.isfinite(part):
            ratios[list(bones)] = np.clip(part, ratio / LIMB_TOLERANCE, ratio * LIMB_TOLERANCE)
    return ratios
