"""
Render face crops of many people with known facial actions, to pretrain the face motion encoder on.

    python make_faces.py --body body.npz --output data/faces --num_people 6000

Writes `faces-00000.npz`, ... with `crops (N, S, S, 3)` uint8, `actions (N, 52)` float16 with their
`action_names (52,)`, and `person (N,)`.
Files that exist are left alone, so that a stopped run goes on.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from avatar_appearance import AvatarAppearance
from avatar_body import AvatarBody
from avatar_clip import Avatar
from avatar_motion import random_motion
from avatar_view import FACE_SIZE, Camera, crop_boxes, jitter_boxes


def render_faces(body: AvatarBody, person: int, frames: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """`frames` face crops `(frames, S, S, 3)` of one random person, and the facial actions `(frames, 52)` in them."""
    random = np.random.default_rng([person, 2])
    avatar = Avatar(body, AvatarAppearance.random(random, body))
    camera = Camera.random(random, "portrait").framed_for(avatar)
    every = 5
    motion = random_motion(random, body, every * frames, "portrait")
    posed = avatar.pose(motion, slice(None, None, every))
    face = posed.motion(camera).face
    boxes = jitter_boxes(random, crop_boxes(face.boxes), smoothing=1)
    crops, _ = posed.render(camera, boxes, (FACE_SIZE, FACE_SIZE))
    return crops, motion.actions[::every]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--body", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--num_people", type=int, default=6000)
    parser.add_argument("--first_person", type=int, default=50_000_000, help="apart from the people of the clips")
    parser.add_argument("--people_per_file", type=int, default=200)
    arguments = parser.parse_args()
    body, output = AvatarBody(arguments.body), Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, arguments.num_people, arguments.people_per_file)):
        path = output / f"faces-{number:05d}.npz"
        if path.exists():
            continue
        people = range(arguments.first_person + start, arguments.first_person + start + arguments.people_per_file)
        crops, actions = zip(*(render_faces(body, person) for person in people))
        aside = output / f".faces-{number:05d}.part.npz"
        np.savez(
            aside,
            crops=np.concatenate(crops),
            actions=np.concatenate(actions).astype(np.float16),
            action_names=np.array(body.action_names),
            person=np.repeat(np.array(people), len(crops[0])),
        )
        os.replace(aside, path)


if __name__ == "__main__":
    main()
