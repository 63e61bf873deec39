"""
Animates a picture by a driving video, with a look at the guidance first.

    python examples/animate.py person.png dance.mp4 out.mp4 --model path/or/hub-id
"""

import argparse

import torch

from diffusers_dreamactor import DreamActorPipeline
from diffusers_dreamactor.checkpoints import bundled_model
from diffusers_dreamactor.media import VideoWriter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture")
    parser.add_argument("video")
    parser.add_argument("output")
    parser.add_argument("--model", default=bundled_model(), required=bundled_model() is None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    pipe = DreamActorPipeline.from_pretrained(args.model, dtype=dtype)
    if args.device == "cuda":
        pipe.enable_model_cpu_offload()
    else:
        pipe.to(args.device)

    # What is performed can be looked at, saved and edited before anything is generated.
    inputs = pipe.prepare(args.picture, args.video)
    inputs.preview().save(args.output + ".preview.mp4")

    generator = torch.Generator().manual_seed(args.seed)
    with VideoWriter(args.output, fps=inputs.fps, audio=inputs.sound) as writer:
        for segment in pipe.stream(inputs, generator=generator):
            writer.write(segment.frames[0])


if __name__ == "__main__":
    main()
