"""Measures a trained repository on what the kit never trains on: people, motions, styles, and real pictures."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from avatar_clip import SyntheticClip
from avatar_view import FPS
from batch_appearance import HELD_OUT_STYLES
from batch_body import BatchBody
from batch_clip import NUM_REFERENCES, ClipGenerator
from batch_guidance import BatchMotion
from make_dataset import save_clip
from motion_bank import SCALES, MotionBank
from PIL import Image

from diffusers_dreamactor.motion.sequence import BodyTrack, FaceTrack, HeadTrack, MotionSequence
from diffusers_dreamactor.processors.guidance import MotionGuidanceProcessor


EXPRESSIONS = 4
"""Clips of a group that differs in nothing but the expression."""
LIVELINESS = 0.3
"""Of the trunk's and the head's motion in these: the face does nearly all."""
STYLE_ROWS = ("right guidance", "pose of another clip", "reference, frozen", "autoencoder alone")


def motion_sequence(motion: BatchMotion, frames: slice, height: int, width: int) -> MotionSequence:
    """Some frames of what was captured, as the package keeps it."""

    def array(values):
        return values[frames].float().cpu().numpy()

    joints, keypoints = array(motion.joints), array(motion.keypoints)
    head = HeadTrack(
        array(motion.rotation), array(motion.center), array(motion.radius), np.ones(len(joints), np.float32)
    )
    face = FaceTrack(array(motion.boxes), array(motion.face_seen), blendshapes=array(motion.actions))
    # the camera's focal length is not needed to draw: keypoints are given
    focal_length = float(np.hypot(height, width) * 1.3)
    return MotionSequence(
        FPS, width, height, focal_length, BodyTrack(joints, keypoints, array(motion.seen)), head, face
    )


def generator_of(arguments: argparse.Namespace, **options) -> ClipGenerator:
    """Held-out clips of the kit in the folder `arguments.kit`; `options` are the generator's."""
    kit, device = Path(arguments.kit), "cuda" if torch.cuda.is_available() else "cpu"
    body = BatchBody.load(kit / "body.safetensors", device)
    bank = MotionBank.load(kit / "motions.safetensors", device)
    return ClipGenerator(body, bank, arguments.size, arguments.seed, held_out=True, **options)


def write_clips(
    generator: ClipGenerator, folder: Path, numbers: range, scale: str, num_frames: int, expressions: int = 1
) -> None:
    """Render clips into folders as `make_dataset.py` writes them; those that exist are left alone."""
    height, width = generator.picture_size(scale)
    for number in numbers:
        for expression in range(expressions):
            target = folder / f"{number:07d}_{expression}"
            if (target / "clip.safetensors").exists():
                continue
            clip = generator.clips(torch.tensor([number]), scale, num_frames, expression=expression)

            def pictures(values):
                return ((values[0] + 1) * 127.5).round().byte().permute(1, 2, 3, 0).cpu().numpy()

            motion = motion_sequence(clip["motion"], slice(0, num_frames), height, width)
            motion.face.crops = np.ascontiguousarray(clip["face"][0].permute(0, 2, 3, 1).cpu().numpy())
            save_clip(
                SyntheticClip(
                    video=pictures(clip["video"]),
                    regions=clip["regions"][0].cpu().numpy(),
                    motion=motion,
                    references=pictures(clip["references"]),
                    reference_motion=motion_sequence(
                        clip["reference_motion"], slice(0, NUM_REFERENCES), height, width
                    ),
                    scale=scale,
                    identity=number,
                ),
                target,
            )


def run_evaluation(clips: Path, output: Path, arguments: argparse.Namespace, count: int, *extra: str) -> list[dict]:
    """`examples/evaluate.py` on a folder of clips; returns its records."""
    script, root = Path(__file__).parents[1] / "evaluate.py", Path(__file__).parents[2]
    command = [sys.executable, str(script), "--model", arguments.model, "--clips", str(clips), "--output", str(output)]
    command += ["--count", str(count), "--num_frames", "17", "--seed", str(arguments.seed), "--pseudo_references", "0"]
    if arguments.num_inference_steps:
        command += ["--num_inference_steps", str(arguments.num_inference_steps)]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    subprocess.run([*command, *extra], check=True, env=os.environ | {"PYTHONPATH": path})
    return json.loads((output / "records.json").read_text())


def evaluate(arguments: argparse.Namespace) -> None:
    """Render what is needed, measure, and write `table.md`, `styles.md` and contact sheets to the output folder."""
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    if arguments.size is None:
        processor = MotionGuidanceProcessor.from_pretrained(Path(arguments.model) / "motion_processor")
        arguments.size = round((processor.config.area / 1.5) ** 0.5 / 16) * 16
    made = output / "clips"

    # 1. Held-out people and motions in the trained styles, and expressions
    shares = {"portrait": 0.5, "half_body": 0.25, "full_body": 0.25}
    for index, scale in enumerate(SCALES):
        first = 1000 * index
        write_clips(
            generator_of(arguments),
            made / "test",
            range(first, first + round(shares[scale] * arguments.clips)),
            scale,
            17,
        )
    extra = []
    if arguments.expression_groups:
        numbers = range(5000, 5000 + arguments.expression_groups)
        write_clips(
            generator_of(arguments, liveliness=LIVELINESS), made / "expressions", numbers, "portrait", 17, EXPRESSIONS
        )
        extra = ["--expression_clips", str(made / "expressions")]
    run_evaluation(made / "test", output, arguments, arguments.clips, *extra)

    # 2. Styles that were left out of training
    lines = ["| style | " + " | ".join(STYLE_ROWS) + " |", "|---" * (len(STYLE_ROWS) + 1) + "|"]
    for style in ("trained styles", *HELD_OUT_STYLES) if arguments.style_clips else ():
        if style == "trained styles":
            records = json.loads((output / "records.json").read_text())
        else:
            own = generator_of(arguments, styles=(style,))
            portraits = -(-arguments.style_clips // 2)
            write_clips(own, made / style, range(7000, 7000 + portraits), "portrait", 17)
            rest = range(8000, 8000 + arguments.style_clips - portraits)
            write_clips(own, made / style, rest, "half_body", 17)
            rows = ["--rows", *STYLE_ROWS[:2]]
            records = run_evaluation(made / style, output / style, arguments, arguments.style_clips, *rows)
        values = []
        for row in STYLE_ROWS:
            chosen = [entry for entry in records if entry["row"] == row]
            values.append(
                f"{np.nanmean([entry['all'] for entry in chosen]):.2f} ({np.nanmean([entry['person'] for entry in chosen]):.2f})"
            )
        lines.append(f"| {style} | " + " | ".join(values) + " |")
    if arguments.style_clips:
        text = "PSNR in dB of all pixels (of the person):\n\n" + "\n".join(lines) + "\n"
        (output / "styles.md").write_text(text)
        print(text)

    # 3. Pictures from elsewhere
    if arguments.references:
        text = animate_references(arguments, sorted((made / "test").iterdir())[0], output)
        (output / "references.md").write_text(text)
        print(text)


def animate_references(arguments: argparse.Namespace, driver: Path, output: Path) -> str:
    """
    Real pictures: reproduced in their own pose, which tells whether a picture is copied or replaced, and driven by a
    held-out portrait's motion. Contact sheets show picture, reproduction and motion.
    """
    from diffusers_dreamactor import DreamActorPipeline
    from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture

    pipe = DreamActorPipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    pipe.capture = MediaPipeCapture.from_pretrained(arguments.capture_models)
    motion = MotionSequence.load(driver / "motion.safetensors")
    options = {"num_inference_steps": arguments.num_inference_steps} if arguments.num_inference_steps else {}
    lines = ["| picture | PSNR of its own pose, dB | colours, own pose | colours, in motion |", "|---|---|---|---|"]
    for path in arguments.references:
        reference = pipe.prepare_references(path)[0]
        pose = reference.motion.hold(5)
        truth = np.asarray(reference.image, dtype=np.float32)

        def made(image=reference, **driven):
            generator = torch.Generator().manual_seed(arguments.seed)
            frames = pipe(image, generator=generator, output_type="np", **options, **driven).frames[0]
            return np.asarray(frames, dtype=np.float32) * 255

        def colors(picture):
            bins = (picture.clip(0, 255).astype(np.int64) * 6) // 256
            counts = np.bincount((bins @ np.array([36, 6, 1])).ravel(), minlength=216)
            return counts / counts.sum()

        own, moved = made(motion=pose, retarget=False), made(motion=motion)
        psnr = 10 * np.log10(255**2 / np.square(own[-1] - truth).mean())
        distances = [np.abs(colors(frame) - colors(truth)).sum() / 2 for frame in (own[-1], moved[len(moved) // 2])]
        lines.append(f"| {Path(path).name} | {psnr:.2f} | {distances[0]:.3f} | {distances[1]:.3f} |")
        sheet = np.concatenate([truth, own[-1], *moved[:: max(1, len(moved) // 5)]], axis=1).round().clip(0, 255)
        sheet = Image.fromarray(sheet.astype(np.uint8))
        sheet = sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST)
        sheet.save(output / f"reference_{Path(path).stem}.png")
    return "\n".join(lines) + "\n"
