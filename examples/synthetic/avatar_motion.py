"""Random, smooth, large motion: body poses as bone rotations, and facial expressions as ARKit actions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from avatar_body import AvatarBody
from scipy.interpolate import PchipInterpolator
from scipy.spatial.transform import Rotation


SCALES = ("portrait", "half_body", "full_body")

# Ranges of the key poses: degrees for angles, metres for shifts. An arm's `raise` lifts it sideways from the A-pose,
# `swing` brings it forward (negative), `twist` turns it about its own axis, so that a bent elbow points up or down.
_RANGES = {
    "portrait": {
        "root_yaw": (-16, 16),
        "lean_side": (-7, 7),
        "lean_front": (-5, 9),
        "spine_twist": (-8, 8),
        "head_yaw": (-40, 40),
        "head_pitch": (-20, 18),
        "head_roll": (-20, 20),
        "shift_x": (-0.06, 0.06),
        "shift_y": (-0.08, 0.10),
        "shift_z": (-0.05, 0.04),
        "shrug": (-6, 14),
    },
    "half_body": {
        "root_yaw": (-35, 35),
        "lean_side": (-22, 22),
        "lean_front": (-8, 20),
        "spine_twist": (-25, 25),
        "head_yaw": (-45, 45),
        "head_pitch": (-22, 22),
        "head_roll": (-20, 20),
        "shift_x": (-0.16, 0.16),
        "shift_y": (-0.15, 0.2),
        "shift_z": (-0.08, 0.05),
        "shrug": (-6, 14),
    },
    "full_body": {
        "root_yaw": (-40, 40),
        "lean_side": (-22, 22),
        "lean_front": (-8, 25),
        "spine_twist": (-25, 25),
        "head_yaw": (-45, 45),
        "head_pitch": (-22, 22),
        "head_roll": (-20, 20),
        "shift_x": (-0.25, 0.25),
        "shift_y": (-0.2, 0.2),
        "shift_z": (-0.05, 0.05),
        "shrug": (-6, 14),
    },
}
_SPINE = ("spine05", "spine04", "spine03", "spine02", "spine01")
_NECK = ("neck01", "neck02", "neck03", "head")


@dataclass
class AvatarMotion:
    """
    The motion of a clip, for any body.

    Args:
        rotations (`np.ndarray` of shape `(F, J, 3, 3)`): each bone's turn relative to its parent.
        translation (`np.ndarray` of shape `(F, 3)`): of the root, metres.
        actions (`np.ndarray` of shape `(F, 52)`): facial actions.
        scale (`str`): one of `SCALES`: what the camera shows.
    """

    rotations: np.ndarray
    translation: np.ndarray
    actions: np.ndarray
    scale: str


def smooth_keys(random: np.random.Generator, num_frames: int, low: float, high: float, every: float) -> np.ndarray:
    """A smooth curve `(num_frames,)` through key values drawn uniformly from [low, high], about `every` frames apart;
    each key may be held for a moment, as people do."""
    times, values = [0.0], [random.uniform(low, high)]
    while times[-1] < num_frames:
        if random.random() < 0.25:
            times.append(times[-1] + random.uniform(0.3, 0.8) * every)
            values.append(values[-1])
        times.append(times[-1] + random.uniform(0.7, 1.4) * every)
        values.append(random.uniform(low, high))
    return PchipInterpolator(times, values)(np.arange(num_frames)).astype(np.float32)


def random_expression(random: np.random.Generator, body: AvatarBody, num_frames: int) -> np.ndarray:
    """
    Facial actions `(num_frames, 52)`: the mouth talks, opens, smiles, frowns, purses; eyes blink, wink, widen and look
    about; brows rise and lower. Most of the time something is far from neutral.
    """
    actions = np.zeros((num_frames, len(body.action_names)), dtype=np.float32)

    def put(value, *names):
        for name in names:
            actions[:, body.action_index[name]] += np.clip(value, 0, None)

    every = random.uniform(4, 9)
    talk = random.random() < 0.5
    put(smooth_keys(random, num_frames, -0.4, 1.15, 3.5 if talk else every), "jawOpen")
    shape = smooth_keys(random, num_frames, -1.4, 1.4, every)
    # one axis from pursed over neutral to smiling, so that opposite shapes never mix; the frown has its own
    put(shape, "mouthSmileLeft", "mouthSmileRight")
    put(-shape, "mouthPucker" if random.random() < 0.5 else "mouthFunnel")
    frown = smooth_keys(random, num_frames, -1.2, 1.0, every) * (shape < 0.2)
    put(frown, "mouthFrownLeft", "mouthFrownRight")
    put(smooth_keys(random, num_frames, -1.5, 1.0, every), "mouthStretchLeft", "mouthStretchRight")
    side = smooth_keys(random, num_frames, -1.6, 1.6, every)
    put(side - 0.6, "mouthLeft")
    put(-side - 0.6, "mouthRight")

    lids = smooth_keys(random, num_frames, 0.15, 0.95, every)
    put(lids, "eyeWideLeft", "eyeWideRight")
    closed = np.zeros((2, num_frames), dtype=np.float32)
    for _ in range(random.poisson(num_frames / 11)):
        start, hold = random.integers(0, num_frames), random.choice([1, 2, 4, 7])
        eyes = random.choice([0, 1, 2, 2, 2, 2])
        blink = np.interp(np.arange(num_frames), [start - 1, start, start + hold, start + hold + 1], [0, 1, 1, 0])
        for eye in (0, 1):
            if eyes in (eye, 2):
                closed[eye] = np.maximum(closed[eye], blink)
    put(closed[0], "eyeBlinkLeft")
    put(closed[1], "eyeBlinkRight")
    # open eyes need no widening, closed ones must not be widened
    for eye, name in enumerate(("eyeWideLeft", "eyeWideRight")):
        actions[:, body.action_index[name]] *= 1 - closed[eye]
    brow = smooth_keys(random, num_frames, -1.2, 1.3, every)
    put(brow, "browInnerUp", "browOuterUpLeft", "browOuterUpRight")
    put(-brow, "browDownLeft", "browDownRight")
    look = smooth_keys(random, num_frames, -1.0, 1.0, every)
    put(look, "eyeLookOutLeft", "eyeLookInRight")
    put(-look, "eyeLookInLeft", "eyeLookOutRight")
    look = smooth_keys(random, num_frames, -0.8, 0.8, every)
    put(look, "eyeLookUpLeft", "eyeLookUpRight")
    put(-look, "eyeLookDownLeft", "eyeLookDownRight")
    return np.clip(actions, 0, 1.15)


def random_motion(
    random: np.random.Generator,
    body: AvatarBody,
    num_frames: int,
    scale: str,
    liveliness: float = 1.0,
    turning: float = 0.2,
) -> AvatarMotion:
    """
    A random motion: leaning, turning, looking about, waving, gesturing, walking on the spot, turning right round.

    Args:
        random: seeds everything.
        num_frames: length, at 12 frames a second.
        scale: one of `SCALES`; portraits move the head and face most.
        liveliness: factor of the ranges of trunk and head; with 0.2 a talking head, whose face does nearly all.
        turning: how often a body (portraits never) turns right round.
    """
    every = random.uniform(5, 10)
    curves = {
        name: liveliness * smooth_keys(random, num_frames, low, high, every)
        for name, (low, high) in _RANGES[scale].items()
    }
    if scale != "portrait" and random.random() < turning:
        # turn right round: the back comes into view
        start = random.uniform(0, 360)
        curves["root_yaw"] = start + random.choice([-1, 1]) * np.linspace(0, random.uniform(180, 420), num_frames)

    rotations = {}

    def turn(bone, *axis_angles):
        """Composes rotations about world axes, the last applied first."""
        total = Rotation.identity(num_frames)
        for axis, degrees in axis_angles:
            axis = np.asarray(axis, dtype=np.float32)
            vectors = np.deg2rad(np.broadcast_to(degrees, num_frames))[:, None] * (axis / np.linalg.norm(axis))
            total = total * Rotation.from_rotvec(vectors)
        rotations[bone] = total.as_matrix()

    x, y, z = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    turn("root", (z, curves["root_yaw"]))
    for bone in _SPINE:
        share = 1 / len(_SPINE)
        bend = [
            (z, share * curves["spine_twist"]),
            (y, share * curves["lean_side"]),
            (x, share * curves["lean_front"]),
        ]
        turn(bone, *bend)
    for bone in _NECK:
        share = 1 / len(_NECK)
        nod = [(z, share * curves["head_yaw"]), (y, share * curves["head_roll"]), (x, share * curves["head_pitch"])]
        turn(bone, *nod)

    gestures = 0.3 if scale == "portrait" else 0.9
    for side, sign in (("L", 1), ("R", -1)):
        turn(f"clavicle.{side}", (y, -sign * curves["shrug"]))
        upper = np.array([0.66, 0, -0.75 * sign]) * sign
        if random.random() < gestures:
            rhythm = random.uniform(4, 9)
            kind = random.choice(["free", "wave", "front"])
            if kind == "free":
                lift = smooth_keys(random, num_frames, -40, 110, rhythm)
                swing = smooth_keys(random, num_frames, -70, 15, rhythm)
                twist = smooth_keys(random, num_frames, -20, 90, rhythm)
                elbow = smooth_keys(random, num_frames, -30, 100, rhythm)
            elif kind == "wave":
                lift = smooth_keys(random, num_frames, 20, 80, 2 * rhythm)
                swing = smooth_keys(random, num_frames, -30, 0, 2 * rhythm)
                twist = smooth_keys(random, num_frames, 75, 100, rhythm)
                phase = random.uniform(0, 2 * np.pi) + np.arange(num_frames) * 2 * np.pi / random.uniform(5, 10)
                elbow = 45 + 40 * np.sin(phase)
            else:
                lift = smooth_keys(random, num_frames, -35, 10, rhythm)
                swing = smooth_keys(random, num_frames, -90, 0, rhythm)
                twist = smooth_keys(random, num_frames, 0, 70, rhythm)
                elbow = smooth_keys(random, num_frames, 0, 110, rhythm)
        else:
            lift = smooth_keys(random, num_frames, -42, -25, every)
            swing = smooth_keys(random, num_frames, -12, 12, every)
            twist = np.zeros(num_frames)
            elbow = smooth_keys(random, num_frames, -35, 10, every)
        # the pseudo-vectors of y and z turn the other way on the other side of the body
        turn(f"upperarm01.{side}", (x, swing), (y, -sign * lift), (upper, -twist))
        turn(f"lowerarm01.{side}", ((-0.75, 0, -0.66 * sign), elbow))
        turn(f"wrist.{side}", ((-0.75, 0, -0.66 * sign), smooth_keys(random, num_frames, -35, 35, every)))
        curl = smooth_keys(random, num_frames, -10, 60, every)
        for finger in range(2, 6):
            for knuckle in (1, 2):
                turn(f"finger{finger}-{knuckle}.{side}", (y, sign * curl))

    translation = np.stack([curves["shift_x"], curves["shift_y"], curves["shift_z"]], axis=1)
    if scale == "full_body":
        walk = random.random() < 0.5
        step = np.arange(num_frames) * 2 * np.pi / random.uniform(8, 14)
        bend = smooth_keys(random, num_frames, -20, 45, every)
        drop = np.zeros(num_frames)
        for side, sign in (("L", 1), ("R", -1)):
            if walk:
                thigh = -12 + 32 * np.sin(step + (np.pi if sign < 0 else 0))
                knee = np.clip(30 + 45 * np.sin(step + (np.pi if sign < 0 else 0) + np.pi / 2), 0, None)
                apart = np.full(num_frames, random.uniform(-6, 2))
            else:
                squat = np.clip(bend, 0, None)
                thigh, knee = -squat, 2 * squat
                apart = smooth_keys(random, num_frames, -8, 18, every)
                drop = 0.85 * (1 - np.cos(np.deg2rad(squat)))
            turn(f"upperleg01.{side}", (x, thigh), (y, -sign * apart))
            turn(f"lowerleg01.{side}", (x, knee))
            turn(f"foot.{side}", (x, -(thigh + knee) * 0.7))
        translation[:, 2] -= drop

    matrices = np.broadcast_to(np.eye(3, dtype=np.float32), (num_frames, len(body.bone_names), 3, 3)).copy()
    for bone, matrix in rotations.items():
        matrices[:, body.bone_index[bone]] = matrix
    actions = random_expression(random, body, num_frames)
    return with_expression(AvatarMotion(matrices, translation.astype(np.float32), actions, scale), actions, body)


def with_expression(motion: AvatarMotion, actions: np.ndarray, body: AvatarBody) -> AvatarMotion:
    """The same motion with other facial actions `(F, 52)`; the eyes look where they say (Anny's move the lids only)."""
    rotations = motion.rotations.copy()

    def action(name):
        return actions[:, body.action_index[name]]

    for side, word, sign in (("L", "Left", 1), ("R", "Right", -1)):
        outward = sign * (action(f"eyeLookOut{word}") - action(f"eyeLookIn{word}"))
        upward = action(f"eyeLookUp{word}") - action(f"eyeLookDown{word}")
        sideways = Rotation.from_rotvec(np.deg2rad(26 * outward)[:, None] * np.array([0.0, 0.0, 1.0]))
        upwards = Rotation.from_rotvec(np.deg2rad(-16 * upward)[:, None] * np.array([1.0, 0.0, 0.0]))
        rotations[:, body.bone_index[f"eye.{side}"]] = (sideways * upwards).as_matrix()
    return AvatarMotion(rotations, motion.translation, actions, motion.scale)
