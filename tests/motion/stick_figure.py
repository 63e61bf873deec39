"""A synthetic person of known 3D truth, for tests of everything that handles motion.

`StickFigure` has configurable bone lengths in metres and moves analytically: standing, talking, waving, walking with
feet that are planted exactly, turning and sitting down. `film` puts it in front of a camera and returns the
`MotionSequence` that a perfect capture would give. Nothing is random: the same call gives the same numbers.

World axes are those of the camera (x right, y down, z away from the camera); the ground is at y = 0 and the person
stands at the origin and looks at the camera (-z) unless it turns. The person's right side is at negative x.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from diffusers_dreamactor.motion.sequence import BodyTrack, FaceTrack, HeadTrack, MotionSequence, project
from diffusers_dreamactor.motion.skeleton import JOINT_INDEX, NUM_JOINTS


MOTIONS = ("stand", "talk", "wave", "walk", "approach", "turn", "sit")
FRAMINGS = ("portrait", "half_body", "full_body")

# Of the torso's height above the hips: what the camera of each framing shows, from the lowest to the highest point,
# as multiples of the torso's length from the neck (positive: up).
_SHOWN = {"portrait": (-0.25, 0.85), "half_body": (-1.25, 0.95), "full_body": None}


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _euler(order: str, *degrees: np.ndarray) -> np.ndarray:
    return Rotation.from_euler(order, np.stack(np.broadcast_arrays(*degrees), axis=-1), degrees=True).as_matrix()


@dataclass
class StickFigure:
    """Bone lengths in metres; the defaults are those of an adult of about 1.7 m."""

    torso: float = 0.49
    shoulder: float = 0.19
    hip: float = 0.10
    arm: float = 0.30
    forearm: float = 0.25
    thigh: float = 0.42
    shin: float = 0.41
    foot: float = 0.17
    hand: float = 0.18
    neck: float = 0.14
    head: float = 0.11

    def scaled(self, factor: float) -> "StickFigure":
        """The same person, `factor` times as large."""
        return StickFigure(**{name: value * factor for name, value in vars(self).items()})

    def pose(self, motion: str, num_frames: int, fps: float = 24.0) -> tuple[np.ndarray, ...]:
        """
        Args:
            motion (`str`): one of `MOTIONS`.

        Returns:
            Joints `(F, 62, 3)` in world metres, head rotations `(F, 3, 3)`, middles of the head `(F, 3)` and which feet are
            planted, `(F, 2)` bool (right, left).
        """
        time = np.arange(num_frames) / fps
        zero = np.zeros(num_frames)
        leg = self.thigh + self.shin
        hip_height = np.full(num_frames, 0.97 * leg)
        path = np.zeros((num_frames, 3))  # of the middle of the hips, without its height
        heading = zero  # degrees about the vertical: 0 looks at the camera, 90 to the right of the picture
        lean, sway = zero, 2.0 * np.sin(2 * np.pi * time / 4.0)
        head = [8 * np.sin(2 * np.pi * time / 3.0), 3 * np.sin(2 * np.pi * time / 2.0), zero]  # yaw, pitch, roll
        arms = {"right": [-12 + zero, 10 + zero, 20 + zero], "left": [12 + zero, 10 + zero, 20 + zero]}
        steps = None

        if motion == "talk":
            head = [25 * np.sin(2 * np.pi * time / 2.3), 12 * np.sin(2 * np.pi * time / 1.7), 10 * np.sin(time * 2.1)]
            lean, sway = 4 * np.sin(time * 1.3), 5 * np.sin(time * 1.9)
        elif motion == "wave":
            arms["right"] = [-95 - 15 * np.sin(time * 3), 15 + zero, 70 + 35 * np.sin(2 * np.pi * time * 1.5)]
            arms["left"] = [25 + 15 * np.sin(time * 2), 20 + zero, 45 + zero]
        elif motion in ("walk", "approach"):
            speed = 0.9 * leg / 0.83
            heading = zero + (90.0 if motion == "walk" else 0.0)
            direction = np.array([1.0, 0, 0]) if motion == "walk" else np.array([0, 0, -1.0])
            path = direction * (speed * (time - time[-1] / 2))[:, None]
            swing = 25 * np.sin(2 * np.pi * time / 1.1)
            arms["right"], arms["left"] = [-8 + zero, swing, 15 + zero], [8 + zero, -swing, 15 + zero]
            hip_height = leg * (0.90 + 0.01 * np.cos(4 * np.pi * time / 1.1))
            steps = (speed, direction, 1.1)
        elif motion == "turn":
            heading = 75 * np.sin(2 * np.pi * time / 4.0)
        elif motion == "sit":
            depth = 0.5 - 0.5 * np.cos(2 * np.pi * time / 4.0)
            hip_height = leg * (0.97 - 0.35 * depth)
            path = np.stack([zero, zero, 0.25 * depth * leg], axis=-1)
            lean = 30 * depth
        elif motion != "stand":
            raise ValueError(f"`motion` must be one of {MOTIONS}, but is {motion!r}.")

        # Yaw towards the right of the picture is a negative turn about y, which points down.
        facing = _euler("y", -heading)
        trunk = facing @ _euler("zx", sway, lean)
        joints = np.zeros((num_frames, NUM_JOINTS, 3))

        def place(name: str, start: np.ndarray, rotation: np.ndarray, offset) -> np.ndarray:
            joints[:, JOINT_INDEX[name]] = start + np.einsum("fij,...j->fi", rotation, np.asarray(offset, dtype=float))
            return joints[:, JOINT_INDEX[name]]

        hips = path - np.stack([zero, hip_height + 0.35 * self.foot, zero], axis=-1)
        neck = place("neck", hips, trunk, (0, -self.torso, 0))
        head_rotation = facing @ _euler("yxz", -head[0], -head[1], head[2])
        center = neck + np.einsum("fij,j->fi", trunk, [0, -self.neck, 0])
        center = center + np.einsum("fij,j->fi", head_rotation, [0, -0.6 * self.head, 0])
        for name, offset in {
            "nose": (0, 0.15, -1.0),
            "right_eye": (-0.29, -0.12, -0.82),
            "left_eye": (0.29, -0.12, -0.82),
            "right_ear": (-0.7, 0.02, 0.0),
            "left_ear": (0.7, 0.02, 0.0),
        }.items():
            place(name, center, head_rotation, np.array(offset) * self.head)

        planted = np.ones((num_frames, 2), dtype=bool)
        for index, (side, sign) in enumerate((("right", -1.0), ("left", 1.0))):
            shoulder = place(f"{side}_shoulder", neck, trunk, (sign * self.shoulder, 0, 0))
            hip = place(f"{side}_hip", hips, trunk, (sign * self.hip, 0, 0))
            self._arm(joints, side, sign, shoulder, trunk, arms[side])
            if steps is None:
                ankle = np.tile([sign * 1.2 * self.hip, -0.35 * self.foot, 0.0], (num_frames, 1))
                if motion == "turn":
                    ankle = np.einsum("fij,fj->fi", facing, ankle)
                    planted[:, index] = False
            else:
                ankle, planted[:, index] = self._step(time, index, sign, *steps, facing[0])
            knee = self._knee(hip, ankle, facing)
            joints[:, JOINT_INDEX[f"{side}_knee"]] = knee
            joints[:, JOINT_INDEX[f"{side}_ankle"]] = ankle
            place(f"{side}_toe", ankle, facing, (0, 0.33 * self.foot, -np.sqrt(1 - 0.33**2) * self.foot))
        return joints, head_rotation, center, planted

    def _arm(self, joints, side, sign, shoulder, trunk, angles) -> None:
        """Arm from (sideways lift, forward swing, elbow bend) in degrees, then a slightly curled hand."""
        lift, swing, bend = angles
        # A lift away from the body turns "down" towards the person's own side; z points backwards.
        upper = trunk @ _euler("xz", -swing, -lift)
        elbow = shoulder + np.einsum("fij,j->fi", upper, [0, self.arm, 0])
        lower = upper @ _euler("x", -bend)
        wrist = elbow + np.einsum("fij,j->fi", lower, [0, self.forearm, 0])
        joints[:, JOINT_INDEX[f"{side}_elbow"]] = elbow
        joints[:, JOINT_INDEX[f"{side}_wrist"]] = wrist
        base = f"{side}_hand_"
        joints[:, JOINT_INDEX[base + "wrist"]] = wrist
        for number, finger in enumerate(("thumb", "index", "middle", "ring", "little")):
            spread = np.radians([50, 12, 2, -8, -18][number]) * -sign
            shares = (0.2, 0.22, 0.18, 0.15) if finger == "thumb" else (0.46, 0.22, 0.14, 0.12)
            point, curl = wrist, 0.0
            for i, share in enumerate(shares):
                curl += 0.15 * i
                step = np.array([np.sin(spread) * np.cos(curl), np.cos(spread) * np.cos(curl), -np.sin(curl)])
                point = point + np.einsum("fij,j->fi", lower, step * share * self.hand)
                joints[:, JOINT_INDEX[f"{base}{finger}_{i + 1}"]] = point

    def _step(self, time, index, sign, speed, direction, period, facing) -> tuple[np.ndarray, np.ndarray]:
        """A walking foot: planted for 60 % of each period, then carried to the next place in an arc."""
        phase = time / period + 0.5 * index
        cycle, share = np.floor(phase), phase % 1.0
        stance = share < 0.6
        middle = (time[-1] / 2) * speed
        # Over a whole period the body moves `speed * period`; at mid-stance it is above the foot.
        place = (cycle - 0.5 * index + 0.3) * period * speed - middle
        swing = np.clip((share - 0.6) / 0.4, 0.0, 1.0)
        smooth = swing * swing * (3 - 2 * swing)
        along = place + smooth * period * speed
        height = 0.35 * self.foot + 0.16 * (self.thigh + self.shin) * np.sin(np.pi * swing) ** 2
        across = facing @ np.array([sign * self.hip, 0.0, 0.0])
        ankle = direction * along[:, None] + across
        ankle[:, 1] = -height
        return ankle, stance

    def _knee(self, hip: np.ndarray, ankle: np.ndarray, facing: np.ndarray) -> np.ndarray:
        """Two-bone inverse kinematics; knees bend to the front."""
        line = ankle - hip
        distance = np.linalg.norm(line, axis=-1)
        if (distance > self.thigh + self.shin).any():
            raise ValueError("The leg is too short for this pose.")
        along = (distance**2 + self.thigh**2 - self.shin**2) / (2 * distance)
        out = np.sqrt(np.maximum(self.thigh**2 - along**2, 0.0))
        axis = line / distance[:, None]
        front = np.einsum("fij,j->fi", facing, [0, 0, -1.0])
        front = _unit(front - np.sum(front * axis, axis=-1, keepdims=True) * axis)
        return hip + axis * along[:, None] + front * out[:, None]

    def film(
        self,
        motion: str = "stand",
        num_frames: int = 48,
        framing: str = "full_body",
        width: int = 640,
        height: int = 640,
        fps: float = 24.0,
        focal_length: float | None = None,
        shift: tuple[float, float] = (0.0, 0.0),
        zoom: float = 1.0,
        cut: bool = True,
    ) -> MotionSequence:
        """
        What a perfect capture would see.

        Args:
            framing (`str`): one of `FRAMINGS`, what the camera shows of the standing person.
            focal_length (`float`, *optional*): pixels; defaults to 1.2 times the longer side.
            shift (`tuple`): moves the person in the picture, in shares of its width and height.
            zoom (`float`): size of the person in the picture relative to one that fills the framing.
            cut (`bool`): joints outside the picture have confidence 0, as nobody could see them.
        """
        focal_length = focal_length or 1.2 * max(width, height)
        joints, head_rotation, center, _ = self.pose(motion, num_frames, fps)
        stature = self.thigh + self.shin + 0.35 * self.foot + self.torso + self.neck + 1.7 * self.head
        neck_height = 0.97 * (self.thigh + self.shin) + 0.35 * self.foot + self.torso
        if framing == "full_body":
            low, high = -0.05 * stature, 1.05 * stature
        else:
            low, high = (neck_height + share * self.torso for share in _SHOWN[framing])
        distance = focal_length * (high - low) / (height * zoom)
        place = np.array([0.0, (low + high) / 2, distance])
        place[0] += shift[0] * width * distance / focal_length
        place[1] += shift[1] * height * distance / focal_length
        joints = joints + place
        center = center + place
        keypoints = project(joints, focal_length, width, height)
        inside = ((keypoints >= 0) & (keypoints <= [width, height])).all(axis=-1) & (joints[..., 2] > 0)
        neck, shoulders = JOINT_INDEX["neck"], [JOINT_INDEX["right_shoulder"], JOINT_INDEX["left_shoulder"]]
        inside[:, neck] = inside[:, shoulders].all(axis=1)
        confidence = inside.astype(np.float32) if cut else np.ones_like(inside, dtype=np.float32)
        head_pixels = project(center, focal_length, width, height)
        radius = 1.15 * self.head * focal_length / center[:, 2]
        head_inside = ((head_pixels >= 0) & (head_pixels <= [width, height])).all(axis=-1)
        half = 1.1 * radius[:, None]
        boxes = np.concatenate([head_pixels - half, head_pixels + half], axis=-1)
        return MotionSequence(
            fps,
            width,
            height,
            focal_length,
            body=BodyTrack(joints, keypoints, confidence),
            head=HeadTrack(head_rotation, head_pixels, radius, head_inside.astype(np.float32)),
            face=FaceTrack(boxes, head_inside.astype(np.float32)),
        )
