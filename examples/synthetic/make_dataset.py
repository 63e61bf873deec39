"""
Render synthetic avatars: random people, random motion, known truth.

    python avatar_body.py body.npz
    python make_dataset.py --body body.npz --output data/train --num_motions 2000 --seed 0
    python make_dataset.py --body body.npz --output data/test --num_motions 32 --seed 1000000 --contact_sheet test.png

Every clip is a folder with `clip.safetensors` (uint8 `video (F, H, W, 3)`, `regions (F, H, W)`, `references
(R, H, W, 3)`), `motion.safetensors` and `reference_motion.safetensors` (`MotionSequence`). Clips that exist are left
alone, so that a stopped run goes on; `--shard i --num_shards n` splits the work among processes or machines. The same
seed gives the same clips.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from avatar_body import AvatarBody
from avatar_clip import SyntheticClip, render_motion
from avatar_view import scale_of
from PIL import Image
from safetensors.numpy import load_file, save_file


def save_clip(clip: SyntheticClip, folder: Path) -> None:
    """Write a clip's folder; `clip.safetensors` comes last and marks it as complete."""
    folder.mkdir(parents=True, exist_ok=True)
    clip.motion.save(folder / "motion.safetensors")
    clip.reference_motion.save(folder / "reference_motion.safetensors")
    tensors = {"video": clip.video, "regions": clip.regions, "references": clip.references}
    metadata = {"scale": clip.scale, "identity": str(clip.identity), "fps": repr(clip.motion.fps)}
    aside = folder / ".clip.part"
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, aside, metadata=metadata)
    os.replace(aside, folder / "clip.safetensors")


def contact_sheet(folders: list[Path], every: int = 4, zoom: int = 2) -> Image.Image:
    """One row a clip: its references, then every `every`-th frame and, below, the face crops that drive it."""
    from diffusers_dreamactor.motion.sequence import MotionSequence

    rows = []
    for folder in folders:
        clip = load_file(folder / "clip.safetensors")
        crops = MotionSequence.load(folder / "motion.safetensors").face.crops
        pictures = np.concatenate([*clip["references"], *clip["video"][::every]], axis=1)
        faces = np.concatenate([*crops[::every]], axis=1)
        faces = np.pad(faces, ((0, 0), (pictures.shape[1] - faces.shape[1], 0), (0, 0)))
        rows.append(np.concatenate([pictures, faces], axis=0))
    width = max(row.shape[1] for row in rows)
    sheet = np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows], axis=0)
    return Image.fromarray(sheet).resize((zoom * sheet.shape[1], zoom * sheet.shape[0]), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--body", required=True, help="the packed body (see avatar_body.py)")
    parser.add_argument("--output", required=True, help="folder of the data set")
    parser.add_argument("--num_motions", type=int, default=2000, help="each is performed by --people people")
    parser.add_argument("--people", type=int, default=2)
    parser.add_argument("--identity", type=int, help="the number of the first person, the same in all motions")
    parser.add_argument(
        "--expressions",
        type=int,
        default=1,
        help="show one person, and the clip so many times with nothing but the expression changed",
    )
    parser.add_argument("--num_frames", type=int, default=33, help="4 n + 1")
    parser.add_argument("--portraits", type=float, default=0.55, help="share of portraits")
    parser.add_argument("--half_bodies", type=float, default=0.25, help="share of half bodies; the rest is full")
    parser.add_argument("--liveliness", type=float, default=1.0, help="0.2: talking heads that hardly move otherwise")
    parser.add_argument("--turning", type=float, default=0.2, help="share of the bodies that turn right round")
    parser.add_argument("--seed", type=int, default=0, help="of the first motion; the next have the following seeds")
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--num_shards", type=int, default=1)
    parser.add_argument("--contact_sheet", help="a .png of the first clips")
    arguments = parser.parse_args()

    body, output = AvatarBody(arguments.body), Path(arguments.output)
    for index in range(arguments.shard, arguments.num_motions, arguments.num_shards):
        seed = arguments.seed + index
        numbers = arguments.people if arguments.expressions == 1 else arguments.expressions
        folders = [output / f"{seed:07d}_{number}" for number in range(numbers)]
        if all((folder / "clip.safetensors").exists() for folder in folders):
            continue
        scale = scale_of(index, arguments.portraits, arguments.half_bodies)
        people = arguments.people if arguments.expressions == 1 else 1
        clips = [
            clip
            for expression in range(arguments.expressions)
            for clip in render_motion(
                body,
                seed,
                scale,
                arguments.num_frames,
                people,
                arguments.identity,
                expression,
                arguments.liveliness,
                arguments.turning,
            )
        ]
        for clip, folder in zip(clips, folders):
            save_clip(clip, folder)
    if arguments.contact_sheet:
        folders = sorted(folder for folder in output.iterdir() if (folder / "clip.safetensors").exists())
        contact_sheet(folders[:10]).save(arguments.contact_sheet)


if __name__ == "__main__":
    main()
