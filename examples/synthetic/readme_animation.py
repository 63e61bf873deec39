"""
Makes the moving picture at the top of the README: bundled avatars, each beside what the bundled model makes it perform.

    python examples/synthetic/readme_animation.py --output docs/assets/avatars.webp
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffusers_dreamactor import DreamActorPipeline, MotionSequence
from diffusers_dreamactor.checkpoints import bundled_avatars, bundled_model, bundled_motions


PERFORMANCES = [("dan", "dance"), ("alba", "chat"), ("mina", "talk")]
FPS, NUM_FRAMES, HEIGHT = 12, 36, 192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    pipe = DreamActorPipeline.from_pretrained(bundled_model())
    columns = []
    for avatar, motion in PERFORMANCES:
        picture = bundled_avatars()[avatar]
        result = pipe(
            picture,
            motion=MotionSequence.load(bundled_motions()[motion]),
            reference_motion=MotionSequence.load(picture.with_suffix(".safetensors")),
            num_frames=NUM_FRAMES,
            fps=FPS,
            extend="loop",
            generator=torch.Generator().manual_seed(0),
        )
        still = Image.open(picture).convert("RGB")
        width = round(still.width * HEIGHT / still.height)
        for frames in ([still] * NUM_FRAMES, result.frames[0]):
            columns.append([np.asarray(frame.resize((width, HEIGHT), Image.Resampling.BICUBIC)) for frame in frames])
    pictures = [Image.fromarray(np.concatenate(row, axis=1)) for row in zip(*columns)]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(args.output, save_all=True, append_images=pictures[1:], duration=1000 // FPS, loop=0, quality=70)
    print(f"wrote {args.output}: {args.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
