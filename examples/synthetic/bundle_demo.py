"""
Render the avatars and motions that DreamActor-Tiny brings along.

    python bundle_demo.py --body body.npz --output ../../diffusers_dreamactor/checkpoints

Writes `avatars/<name>.png` with the pose in it as `avatars/<name>.safetensors`, and `motions/<name>.safetensors` with
face crops of one more person. None of them is in the training data. Motions that were captured from real videos and lie
there without crops get some, too: the same person makes the faces that were captured.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from avatar_appearance import AvatarAppearance
from avatar_body import AvatarBody
from avatar_clip import Avatar
from avatar_motion import AvatarMotion, random_motion, with_expression
from avatar_view import FACE_SIZE, HEAD_AXES, Camera, crop_boxes, jitter_boxes
from PIL import Image

from diffusers_dreamactor.motion.sequence import MotionSequence
from diffusers_dreamactor.motion.skeleton import ARKIT_BLENDSHAPES


AVATARS = {
    # name: (person, scale, seed of the pose)
    "ana": (90_000_108, "portrait", 11),
    "ben": (90_000_102, "portrait", 5),
    "cleo": (90_000_117, "half_body", 20),
    "dan": (90_000_122, "full_body", 25),
}
MOTIONS = {
    # name: (scale, seed)
    "chat": ("portrait", 90_000_021),
    "look": ("portrait", 90_000_022),
    "wave": ("half_body", 90_000_023),
    "dance": ("full_body", 90_000_024),
}
CAPTURED = ("talk", "walk")
CAPTURED_FACE_SIZE = 32
HEAD_CHAIN = ("root", "spine05", "spine04", "spine03", "spine02", "spine01", "neck01", "neck02", "neck03", "head")
MOTION_FRAMES = 49
MOTION_PERSON = 90_000_002


def frontal(body: AvatarBody, camera: Camera, scale: str, seed: int) -> AvatarMotion:
    """The frame of a long random motion in which the head looks most into the camera, with a calm face."""
    motion = random_motion(np.random.default_rng(seed), body, 150, scale)
    head = np.broadcast_to(np.eye(3), (150, 3, 3))
    for bone in HEAD_CHAIN:
        head = head @ motion.rotations[:, body.bone_index[bone]]
    look = head @ np.array([0.0, -1.0, 0.0]) @ camera.rotation.T
    up = head @ np.array([0.0, 0.0, 1.0]) @ camera.rotation.T
    away = np.abs(look[:, :2]).sum(axis=1) + np.abs(up[:, 0]) + 2 * np.abs(motion.translation).sum(axis=1)
    frame = slice(int(away.argmin()), int(away.argmin()) + 1)
    actions = motion.actions[frame] * 0.0
    actions[:, [body.action_index["eyeWideLeft"], body.action_index["eyeWideRight"]]] = 0.4
    return replace(
        motion, rotations=motion.rotations[frame], translation=0.5 * motion.translation[frame], actions=actions
    )


def enact_face(avatar: Avatar, motion: MotionSequence, camera: Camera, size: int) -> np.ndarray:
    """Face crops `(F, size, size, 3)` of an avatar that turns its head and makes faces as somebody captured does."""
    body, num_frames = avatar.body, len(motion)
    rotations = np.tile(np.eye(3, dtype=np.float32), (num_frames, len(body.bone_names), 1, 1))
    rotations[:, body.bone_index["head"]] = camera.rotation.T @ motion.head.rotation @ HEAD_AXES
    actions = np.zeros((num_frames, len(body.action_names)), dtype=np.float32)
    actions[:, [body.action_index[name] for name in ARKIT_BLENDSHAPES]] = motion.face.blendshapes
    still = np.zeros((num_frames, 3), dtype=np.float32)
    posed = avatar.pose(with_expression(AvatarMotion(rotations, still, actions, "portrait"), actions, body))
    return posed.render(camera, crop_boxes(posed.motion(camera).face.boxes), (size, size))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--body", required=True)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    body, output = AvatarBody(arguments.body), Path(arguments.output)
    for folder in ("avatars", "motions"):
        (output / folder).mkdir(parents=True, exist_ok=True)

    for name, (person, scale, seed) in AVATARS.items():
        avatar = Avatar(body, AvatarAppearance.random(np.random.default_rng([person, 1]), body))
        camera = Camera.random(np.random.default_rng(seed), scale).framed_for(avatar)
        posed = avatar.pose(frontal(body, camera, scale, seed))
        motion = posed.motion(camera)
        Image.fromarray(posed.render(camera)[0][0]).save(output / "avatars" / f"{name}.png")
        crops = posed.render(camera, crop_boxes(motion.face.boxes), (FACE_SIZE, FACE_SIZE))[0]
        motion.face = replace(motion.face, crops=crops)
        motion.save(output / "avatars" / f"{name}.safetensors")

    avatar = Avatar(body, AvatarAppearance.random(np.random.default_rng([MOTION_PERSON, 1]), body))
    for name, (scale, seed) in MOTIONS.items():
        random = np.random.default_rng(seed)
        motion = random_motion(random, body, MOTION_FRAMES, scale)
        camera = Camera.random(random, scale).framed_for(avatar)
        posed = avatar.pose(motion)
        captured = posed.motion(camera)
        boxes = jitter_boxes(random, crop_boxes(captured.face.boxes))
        crops = posed.render(camera, boxes, (FACE_SIZE, FACE_SIZE))[0]
        captured.face = replace(captured.face, crops=crops)
        captured.save(output / "motions" / f"{name}.safetensors")
    camera = replace(Camera.random(np.random.default_rng(0), "portrait"), x=0.0, yaw=0.0).framed_for(avatar)
    for name in CAPTURED:
        path = output / "motions" / f"{name}.safetensors"
        if path.exists():
            motion = MotionSequence.load(path)
            motion.face = replace(motion.face, crops=enact_face(avatar, motion, camera, CAPTURED_FACE_SIZE))
            motion.save(path)


if __name__ == "__main__":
    main()
