"""Renders one motion on several people: videos, references, face crops of somebody else, and the motion as captured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from avatar_appearance import AvatarAppearance
from avatar_body import AvatarBody
from avatar_motion import AvatarMotion, random_expression, random_motion, with_expression
from avatar_rasterizer import rasterize
from avatar_view import (
    FACE_SIZE,
    FPS,
    HEAD_AXES,
    HEAD_RADIUS,
    JOINT_BONES,
    SUPERSAMPLING,
    Camera,
    crop_boxes,
    face_edges,
    jitter_boxes,
)

from diffusers_dreamactor.motion.sequence import BodyTrack, FaceTrack, HeadTrack, MotionSequence
from diffusers_dreamactor.motion.skeleton import ARKIT_BLENDSHAPES, JOINT_INDEX, NUM_JOINTS


class Avatar:
    """A person: a body and an appearance, with hair grown on it."""

    def __init__(self, body: AvatarBody, appearance: AvatarAppearance):
        self.body, self.appearance = body, appearance
        self.vertices, self.bones = body.shaped(appearance.shape)
        self.vertices = self.vertices + appearance.hair[:, None] * _vertex_normals(self.vertices, body.faces)
        groups = np.zeros(len(body.bone_names), dtype=np.int64)
        for index, name in enumerate(body.bone_names):
            if name.startswith(("upperarm", "lowerarm", "wrist", "finger", "metacarpal")):
                groups[index] = 1
            elif name.startswith(("upperleg", "lowerleg", "foot", "toe")):
                groups[index] = 2
        self.vertex_group = groups[body.dominant_bone]
        self.landmarks = _landmark_vertices(body)

    def pose(self, motion: AvatarMotion, frames: slice = slice(None)) -> PosedAvatar:
        """The person in the poses of some frames of a motion."""
        posed = self.body.posed(
            self.vertices, self.bones, motion.rotations[frames], motion.translation[frames], motion.actions[frames]
        )
        return PosedAvatar(self, *posed, actions=motion.actions[frames])


@dataclass
class PosedAvatar:
    """An avatar's mesh `(F, V, 3)`, bone rotations `(F, J, 3, 3)` and bone heads `(F, J, 3)` in the world."""

    avatar: Avatar
    vertices: np.ndarray
    rotations: np.ndarray
    bones: np.ndarray
    actions: np.ndarray

    def head_center(self) -> np.ndarray:
        """Middle of the head `(F, 3)` in the world."""
        ears = self.vertices[:, [self.avatar.landmarks["left_ear"], self.avatar.landmarks["right_ear"]]].mean(axis=1)
        head = self.avatar.body.bone_index["head"]
        return ears + self.rotations[:, head] @ np.array([0.0, -0.035, 0.01], dtype=np.float32)

    def motion(self, camera: Camera) -> MotionSequence:
        """What a perfect capture would say of the clip; face boxes, no crops."""
        names, landmarks, body = self.avatar.body.bone_index, self.avatar.landmarks, self.avatar.body
        joints = np.zeros((len(self.vertices), NUM_JOINTS, 3), dtype=np.float32)

        def put(joint, position):
            joints[:, JOINT_INDEX[joint]] = position

        put("nose", self.vertices[:, landmarks["nose"]])
        for side, letter in (("left", "L"), ("right", "R")):
            for joint, bone in JOINT_BONES.items():
                put(f"{side}_{joint}", self.bones[:, names[f"{bone}.{letter}"]])
            put(f"{side}_ear", self.vertices[:, landmarks[f"{side}_ear"]])
            put(f"{side}_hand_wrist", self.bones[:, names[f"wrist.{letter}"]])
            for number, finger in enumerate(("thumb", "index", "middle", "ring", "little"), 1):
                for knuckle in (1, 2, 3):
                    bone = self.bones[:, names[f"finger{number}-{knuckle}.{letter}"]]
                    put(f"{side}_hand_{finger}_{knuckle}", bone)
                put(f"{side}_hand_{finger}_4", self.vertices[:, landmarks[f"{side}_{finger}_tip"]])
        shoulders = (joints[:, JOINT_INDEX["left_shoulder"]] + joints[:, JOINT_INDEX["right_shoulder"]]) / 2
        put("neck", shoulders)

        joints = camera.to_camera(joints)
        keypoints = camera.project(joints)[..., :2]
        inside = (keypoints > -2) & (keypoints < np.array([camera.width + 2, camera.height + 2]))
        body_track = BodyTrack(joints, keypoints, inside.all(axis=-1).astype(np.float32))

        axes = camera.rotation
        rotation = axes @ self.rotations[:, body.bone_index["head"]] @ HEAD_AXES.T
        center = camera.to_camera(self.head_center())
        pixels = camera.project(center)
        scale = camera.focal_length / center[:, 2]
        confidence = np.ones(len(joints), dtype=np.float32)
        head = HeadTrack(rotation, pixels[:, :2], HEAD_RADIUS * scale, confidence)

        # the face is seen when its front (-z of the head's axes) points to the camera
        frontal = rotation[:, 2, 2]
        boxes = np.stack(face_edges(pixels[:, :2], rotation, scale), axis=1)
        order = [body.action_names.index(name) for name in ARKIT_BLENDSHAPES]
        blendshapes = np.clip(self.actions[:, order], 0, 1)
        face = FaceTrack(boxes, (frontal > 0.2).astype(np.float32), blendshapes=blendshapes)
        return MotionSequence(FPS, camera.width, camera.height, camera.focal_length, body_track, head, face)

    def render(
        self, camera: Camera, boxes: np.ndarray | None = None, size: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Draw the clip.

        Args:
            camera: sees the whole picture.
            boxes (`np.ndarray` of shape `(F, 4)`, *optional*): draw only this part of each frame's picture, ...
            size: ... at this height and width.

        Returns:
            frames `(F, H, W, 3)` uint8 and regions `(F, H, W)` uint8, indices into `avatar_appearance.REGIONS`.
        """
        body, appearance = self.avatar.body, self.avatar.appearance
        height, width = size or (camera.height, camera.width)
        points = camera.project(camera.to_camera(self.vertices))
        if boxes is not None:
            scale = np.array([width, height]) / (boxes[:, 2:] - boxes[:, :2])
            points[..., :2] = (points[..., :2] - boxes[:, None, :2]) * scale[:, None]
        points[..., :2] *= SUPERSAMPLING
        height, width = height * SUPERSAMPLING, width * SUPERSAMPLING
        triangle, weights = rasterize(points, body.faces, height, width)

        low, high, split = appearance.background
        rows = ((np.arange(height) + 0.5) / height)[:, None]
        wall = np.where(rows < split, low + (high - low) * rows * 0.6, high * 0.8)
        frames = np.broadcast_to(wall[None, :, None].astype(np.float32), (len(points), height, width, 3)).copy()
        regions = np.zeros(triangle.shape, dtype=np.uint8)

        hit = triangle >= 0
        frame = np.nonzero(hit)[0]
        triangle, weights = triangle[hit], weights[hit]
        corners = body.faces[triangle]
        position = sum(body.paint[corners[:, corner]] * weights[:, corner, None] for corner in range(3))
        color, region = appearance.paint(position, body.part[triangle], self.avatar.vertex_group[corners[:, 0]])
        a, b, c = (self.vertices[frame, corners[:, corner]] for corner in range(3))
        normal = np.cross(b - a, c - a)
        normal *= 1 / np.sqrt(np.einsum("na,na->n", normal, normal) + 1e-20)[:, None]
        light = np.array([-0.45, -0.75, 0.5], dtype=np.float32)
        shade = 0.62 + 0.42 * np.clip(normal @ (light / np.linalg.norm(light)), -0.4, 1)
        frames[hit] = color * shade[:, None]
        regions[hit] = region

        even, odd = slice(0, None, 2), slice(1, None, 2)
        samples = [(first, second) for first in (even, odd) for second in (even, odd)]
        frames = sum(frames[:, first, second] for first, second in samples) / len(samples)
        frames = (frames.clip(0, 1) * 255 + 0.5).astype(np.uint8)
        return frames, np.maximum.reduce([regions[:, first, second] for first, second in samples])


@dataclass
class SyntheticClip:
    """
    One motion on one person.

    Attributes:
        video (`np.ndarray` of shape `(F, H, W, 3)`): uint8 frames.
        regions (`np.ndarray` of shape `(F, H, W)`): uint8, indices into `avatar_appearance.REGIONS`.
        motion (`MotionSequence`): the truth of body and head, with face crops of another person who makes the same faces.
        references (`np.ndarray` of shape `(3, H, W, 3)`): other pictures of the person through the same camera: facing
            it, turned to either side (or from behind, where the motion turns round).
        reference_motion (`MotionSequence`): of the references.
        scale (`str`): one of `avatar_motion.SCALES`.
        identity (`int`): which person; unique within a data set.
    """

    video: np.ndarray
    regions: np.ndarray
    motion: MotionSequence
    references: np.ndarray
    reference_motion: MotionSequence
    scale: str
    identity: int


def render_motion(
    body: AvatarBody,
    seed: int,
    scale: str,
    num_frames: int = 33,
    people: int = 2,
    identity: int | None = None,
    expression: int = 0,
    liveliness: float = 1.0,
    turning: float = 0.2,
    actions: np.ndarray | None = None,
) -> list[SyntheticClip]:
    """
    One random motion on `people` random people.

    Args:
        body: the packed body.
        seed: everything follows from it.
        scale: one of `avatar_motion.SCALES`.
        num_frames: length, `4 n + 1`.
        people: how many people perform it (they all get crops of one further person's face).
        identity: the number of the first person; by default each motion has people of its own. Give it to see the
            same person in many motions.
        expression: 0 is the motion's own; other numbers give clips that differ in nothing but the expression.
        liveliness, turning: of the motion, see `random_motion`.
        actions (`np.ndarray` of shape `(num_frames, 52)`, *optional*): what the face does, in the order of
            `body.action_names`, instead of a random expression.

    Returns:
        `list[SyntheticClip]`
    """
    random = np.random.default_rng(seed)
    motion = random_motion(random, body, num_frames, scale, liveliness, turning)
    if expression:
        actions = random_expression(np.random.default_rng([seed, expression]), body, num_frames)
        motion = with_expression(motion, actions, body)
    if actions is not None:
        motion = with_expression(motion, actions, body)
    camera = Camera.random(random, scale)

    actor = Avatar(body, AvatarAppearance.random(random, body))
    view = camera.framed_for(actor)
    actor = actor.pose(motion)
    face = actor.motion(view).face
    crops = actor.render(view, jitter_boxes(random, crop_boxes(face.boxes)), (FACE_SIZE, FACE_SIZE))[0]

    # a long other motion of the same kind, to take references from; who is seen from behind is so in references, too
    from_behind = np.abs(_facing(motion, body, camera)).max() > np.deg2rad(100)
    other = random_motion(random, body, 40, scale, liveliness, turning=1.0 if from_behind else turning)
    clips = []
    for person in range(people):
        number = (seed * people if identity is None else identity) + person
        avatar = Avatar(body, AvatarAppearance.random(np.random.default_rng([number, 1]), body))
        view = camera.framed_for(avatar)
        posed = avatar.pose(motion)
        video, regions = posed.render(view)
        captured = posed.motion(view)
        captured.face = FaceTrack(face.boxes, captured.face.confidence, crops, blendshapes=captured.face.blendshapes)

        yaw = _facing(other, body, view)
        picks = np.array([np.abs(yaw).argmin(), yaw.argmin(), yaw.argmax()])
        still = AvatarMotion(other.rotations[picks], other.translation[picks], other.actions[picks], scale)
        still.actions[0] *= 0.3
        posed = avatar.pose(still)
        references = posed.render(view)[0]
        clips.append(SyntheticClip(video, regions, captured, references, posed.motion(view), scale, number))
    return clips


def _facing(motion: AvatarMotion, body: AvatarBody, camera: Camera) -> np.ndarray:
    """Yaw of the head relative to the camera `(F,)`, radians, positive to the right of the picture."""
    rotation = np.broadcast_to(np.eye(3), (len(motion.rotations), 3, 3))
    bone, chain = body.bone_index["head"], []
    while bone >= 0:
        chain.append(bone)
        bone = int(body.parents[bone])
    for bone in reversed(chain):
        rotation = rotation @ motion.rotations[:, bone]
    look = rotation @ np.array([0.0, -1.0, 0.0]) @ camera.rotation.T
    return np.arctan2(look[:, 0], -look[:, 2])


def _vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    face_normals = np.cross(b - a, c - a)
    normals = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], face_normals)
    return normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12)


def _landmark_vertices(body: AvatarBody) -> dict[str, int]:
    """Vertices that stand for joints without a bone: the tip of the nose, ears, fingertips."""
    x, y, z = body.paint.T
    head = np.zeros(len(x), dtype=bool)
    head[body.faces[body.part == 1].reshape(-1)] = True

    def extreme(score, mask):
        return int(np.where(mask, score, -np.inf).argmax())

    landmarks = {"nose": extreme(-y, head & (np.abs(x) < 0.01) & (z > 0.665) & (z < 0.7))}
    landmarks["left_ear"], landmarks["right_ear"] = extreme(x, head), extreme(-x, head)
    for side, letter in (("left", "L"), ("right", "R")):
        for number, finger in enumerate(("thumb", "index", "middle", "ring", "little"), 1):
            bone = body.bone_index[f"finger{number}-3.{letter}"]
            distance = np.linalg.norm(body.paint - body.rest_bones[bone], axis=1)
            landmarks[f"{side}_{finger}_tip"] = extreme(distance, body.dominant_bone == bone)
    return landmarks
