"""
Measure a model on held-out rendered clips, and what each of its conditions is worth.

    python synthetic/make_dataset.py --body body.npz --output data/test --num_motions 48 --seed 1000000
    python synthetic/make_dataset.py --body body.npz --output data/expressions --num_motions 12 --portraits 1 \\
        --expressions 4 --num_frames 17 --seed 1100000
    python synthetic/make_dataset.py --body body.npz --output data/long --num_motions 10 --people 1 --num_frames 81 \\
        --seed 1200000
    python synthetic/make_dataset.py --body body.npz --output data/back_views --num_motions 12 --people 1 --portraits 0 \\
        --half_bodies 0.5 --turning 1 --num_frames 17 --seed 1500000
    python evaluate.py --clips data/test --expression_clips data/expressions --turning_clips data/back_views \\
        --long_clips data/long --output results

Every clip is animated from a reference picture of the person (another pose, another expression) by the true motion, with
face crops of somebody else. The table has the shape of DreamActor-M1's: the full model, then one condition changed at a
time. PSNR (dB) is the mean over clips, of all pixels, the person, the head, eyes and mouth; `SSIM` as in Wang et al.
2004; `colors` is half the L1 distance of colour histograms of the person, 0 for the same clothes and skin.
`driven by another person` is cross-identity: the motion, as it was captured from another person who performs it, is
retargeted to the reference. LPIPS and FVD are left out: both need networks (AlexNet or VGG, I3D) whose weights no package
brings.

Numbers that the paper reports, on other data: body PSNR 23.93, SSIM 0.821, LPIPS 0.206, FID 27.27, FVD 122.0; portraits
PSNR 28.44, SSIM 0.823, LPIPS 0.238, FID 25.70, FVD 110.3.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffusers_dreamactor import DreamActorPipeline
from diffusers_dreamactor.checkpoints import bundled_model
from diffusers_dreamactor.motion.sequence import MotionSequence
from diffusers_dreamactor.training.validation import (
    ValidationClip,
    animate,
    find_validation_clips,
    load_validation_clip,
)


REGION_MASKS = {"all": 0, "person": 1, "head": 2, "eyes_mouth": 3}
"""Least value of the region map that counts."""


def region_psnr(frames: np.ndarray, clip: ValidationClip) -> dict[str, float]:
    """PSNR in dB of the clip's regions; NaN where a region is not seen."""
    squared = np.square(frames.astype(np.float64) - clip.video[: len(frames)]) / 255**2
    result = {}
    for name, least in REGION_MASKS.items():
        mask = clip.regions[: len(frames)] >= least
        result[name] = float(-10 * np.log10(squared[mask].mean())) if mask.any() else float("nan")
    return result


def ssim(frames: np.ndarray, truth: np.ndarray) -> float:
    """Mean structural similarity of luma, 7x7 windows."""
    weights = torch.tensor([0.299, 0.587, 0.114])
    x, y = (torch.from_numpy(video.astype(np.float32)) @ weights / 255 for video in (frames, truth))
    x, y = x[:, None], y[:, None]

    def mean(value):
        return torch.nn.functional.avg_pool2d(value, 7, stride=1)

    mean_x, mean_y = mean(x), mean(y)
    variance_x, variance_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    numerator = (2 * mean_x * mean_y + 0.01**2) * (2 * covariance + 0.03**2)
    return float((numerator / ((mean_x**2 + mean_y**2 + 0.01**2) * (variance_x + variance_y + 0.03**2))).mean())


def color_distance(frames: np.ndarray, clip: ValidationClip) -> float:
    """Half the L1 distance of 6x6x6 colour histograms of the person's pixels: 0 same colours, 1 none in common."""
    mask = clip.regions[: len(frames)] >= 1

    def histogram(video):
        bins = (video[mask].astype(np.int64) * 6) // 256
        counts = np.bincount(bins @ np.array([36, 6, 1]), minlength=216)
        return counts / counts.sum()

    return float(np.abs(histogram(frames) - histogram(clip.video[: len(frames)])).sum() / 2)


def other_clip(clips: list[ValidationClip], index: int) -> ValidationClip:
    """Another clip of the same scale and size, with another motion."""
    clip = clips[index]
    for offset in range(1, len(clips)):
        candidate = clips[(index + offset) % len(clips)]
        same_motion = candidate.name.split("_")[0] == clip.name.split("_")[0]
        if candidate.scale == clip.scale and candidate.video.shape == clip.video.shape and not same_motion:
            return candidate
    raise ValueError(f"{clip.name}: no other {clip.scale} clip of its size to shuffle with; give more clips.")


def variants(
    clips: list[ValidationClip], index: int, segment_frames: int, partner: MotionSequence | None
) -> dict[str, dict]:
    """
    The rows of the table for one clip: references, guidance, further arguments of the pipeline.

    Args:
        clips, index: the clip, and others to take wrong conditions from.
        segment_frames: the model's.
        partner: the motion as another person performs it, where there is one.
    """
    clip, other = clips[index], other_clip(clips, index)
    guidance, one = clip.guidance, clip.references[:1]
    black = np.zeros_like(guidance.skeleton)
    weight = np.minimum(guidance.face_weight, other.guidance.face_weight)
    rows = {
        "right guidance": {"references": one, "guidance": guidance},
        "pose of another clip": {
            "references": one,
            "guidance": replace(guidance, skeleton=other.guidance.skeleton, sphere=other.guidance.sphere),
        },
        "face of another clip": {
            "references": one,
            "guidance": replace(guidance, face=other.guidance.face, face_weight=weight),
        },
        "without face": {"references": one, "guidance": replace(guidance, face=None)},
        "without sphere": {"references": one, "guidance": replace(guidance, sphere=black)},
        "without skeleton": {"references": one, "guidance": replace(guidance, skeleton=black)},
        "two references": {"references": clip.references[:2], "guidance": guidance},
        "three references": {"references": clip.references, "guidance": guidance},
        "reference of another clip": {"references": other.references[:1], "guidance": guidance},
        "shorter segments": {
            "references": one,
            "guidance": guidance,
            "segment_frames": max(5, 4 * ((segment_frames - 1) // 8) + 1),
        },
    }
    if partner is not None:
        # both were filmed from the same place: the driver's place in the picture is the right one
        rows["driven by another person"] = {
            "references": one,
            "guidance": None,
            "motion": partner,
            "align": "none",
        }
    return rows


def partner_motion(path: Path, num_frames: int) -> MotionSequence | None:
    """The motion of a rendered clip as captured from the other person who performs it, if there is one."""
    seed, person = path.name.split("_")
    other = path.with_name(f"{seed}_{1 - int(person)}") if person in "01" else None
    if other is None or not (other / "motion.safetensors").exists():
        return None
    return MotionSequence.load(other / "motion.safetensors")[:num_frames]


def measure_expressions(pipe, folder: Path, settings: dict, seed: int) -> str:
    """
    Whether expressions are followed, on clips that differ in nothing else (`make_dataset.py --expressions`).

    Each clip is animated once. Its eyes and mouth are compared with those of all truths of its group: how often is its
    own the nearest, and what does another expression cost?
    """
    groups = {}
    for path in find_validation_clips(folder):
        groups.setdefault(path.name.split("_")[0], []).append(load_validation_clip(path, pipe.motion_processor))
    hits, right, wrong, chance = [], [], [], []
    for clips in groups.values():
        made = [animate(pipe, clip.references[:1], clip.guidance, seed, **settings) for clip in clips]
        for index, clip in enumerate(clips):
            mask = clip.regions >= REGION_MASKS["eyes_mouth"]
            if not mask.any():
                continue

            def error(frames, truth, mask=mask):
                return np.square((frames.astype(np.float32) - truth)[mask] / 255).mean()

            to_truths = [error(made[index], other.video) for other in clips]
            hits.append(int(np.argmin(to_truths)) == index)
            chance.append(1 / len(clips))
            right.append(-10 * np.log10(to_truths[index]))
            others = [error(frames, clip.video) for number, frames in enumerate(made) if number != index]
            wrong.append(np.mean(-10 * np.log10(others)))
    return (
        f"### Expressions: {folder.name} ({len(groups)} groups)\n\n"
        f"The own expression is the nearest for {sum(hits)} of {len(hits)} clips (by chance {sum(chance):.0f}). PSNR of "
        f"eyes and mouth: {np.mean(right):.2f} dB with the right face crops, {np.mean(wrong):.2f} dB with those of "
        f"another expression.\n"
    )


def measure_long_videos(pipe, folder: Path, settings: dict, seed: int) -> str:
    """One segment against five: the frames of the fifth segment, generated after four others, and on their own."""
    length = pipe.config.segment_frames
    start = 4 * (length - 1)
    rows = {"fifth of five segments": [], "the same frames alone": [], "reference, frozen": []}
    for path in find_validation_clips(folder):
        clip = load_validation_clip(path, pipe.motion_processor)
        if len(clip.video) < start + length:
            continue
        last = slice(start + 1, start + length)
        # the segment's first frame is the one that is handed over, and not its own
        alone = animate(pipe, clip.references[:1], clip.guidance[start : start + length], seed, **settings)[1:]
        whole = animate(pipe, clip.references[:1], clip.guidance[: start + length], seed, **settings)[last]
        still = np.asarray(clip.references[0].image)[None].repeat(length - 1, axis=0)
        clip.video, clip.regions = clip.video[last], clip.regions[last]
        for row, frames in zip(rows, (whole, alone, still)):
            rows[row].append((*region_psnr(frames, clip).values(), color_distance(frames, clip)))
    number = len(rows["fifth of five segments"])
    if not number:
        return f"### One segment against five\n\nNo clip of {folder} has {start + length} frames.\n"
    return region_table(f"One segment against five ({number})", rows)


def measure_references(pipe, folder: Path, settings: dict, seed: int, least_yaw: float = 100) -> str:
    """What pictures from behind are worth: frames that show the back, with one reference and with all of them."""
    rows, number = {}, 0
    for path in find_validation_clips(folder):
        clip = load_validation_clip(path, pipe.motion_processor)
        back = np.abs(clip.motion.yaw()) > least_yaw
        if not back.any():
            continue
        number += 1
        still = np.asarray(clip.references[0].image)[None].repeat(len(back), axis=0)[back]
        made = {"reference, frozen": still}
        for count in range(1, len(clip.references) + 1):
            frames = animate(pipe, clip.references[:count], clip.guidance, seed, **settings)
            made[f"references: {count}"] = frames[back]
        clip.video, clip.regions = clip.video[back], clip.regions[back]
        for row, frames in made.items():
            rows.setdefault(row, []).append((*region_psnr(frames, clip).values(), color_distance(frames, clip)))
    if not number:
        return f"### Frames that show the back\n\nNo clip of {folder} shows a back.\n"
    return region_table(f"Frames that show the back ({number} clips)", rows)


def region_table(title: str, rows: dict[str, list[tuple[float, ...]]]) -> str:
    """A Markdown table of means over clips: PSNR in each region, and the distance of colours."""
    lines = [f"### {title}", "", "| | " + " | ".join([*REGION_MASKS, "colors"]) + " |"]
    lines.append("|---" * (len(REGION_MASKS) + 2) + "|")
    for row, values in rows.items():
        means = np.nanmean(values, axis=0)
        lines.append(f"| {row} | " + " | ".join([*(f"{mean:.2f}" for mean in means[:-1]), f"{means[-1]:.3f}"]) + " |")
    return "\n".join(lines) + "\n"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default=bundled_model(), help="a DreamActor repository; DreamActor-Tiny by default")
    parser.add_argument("--clips", required=True, help="folder of rendered clips that were not trained on")
    parser.add_argument(
        "--expression_clips", nargs="+", default=[], help="folders of clips that differ in nothing but the expression"
    )
    parser.add_argument("--long_clips", help="clips as long as five segments")
    parser.add_argument("--turning_clips", help="clips of people who turn round, with references from behind")
    parser.add_argument("--output", required=True, help="folder for the table, numbers and contact sheets")
    parser.add_argument("--count", type=int, default=24, help="clips, spread over the folder")
    parser.add_argument("--num_frames", type=int, default=33)
    parser.add_argument("--num_inference_steps", type=int, help="the model's own by default")
    parser.add_argument("--guidance_scale", type=float)
    parser.add_argument("--rows", nargs="+", help="only these rows of the table")
    parser.add_argument("--pseudo_references", type=int, default=2, help="in the row of this name")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.model is None:
        parser.error("--model is needed: this installation has no bundled DreamActor-Tiny")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    pipe = DreamActorPipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": arguments.num_inference_steps, "guidance_scale": arguments.guidance_scale}
    settings = {name: value for name, value in settings.items() if value is not None}

    paths = find_validation_clips(arguments.clips)
    count = min(arguments.count, len(paths))
    paths = [paths[i * len(paths) // count] for i in range(count)]
    clips = [load_validation_clip(path, pipe.motion_processor) for path in paths]
    for clip in clips:
        clip.video, clip.regions = clip.video[: arguments.num_frames], clip.regions[: arguments.num_frames]
        clip.guidance = clip.guidance[: arguments.num_frames]

    records = []

    def record(row, clip, frames):
        numbers = region_psnr(frames, clip)
        numbers |= {"ssim": ssim(frames, clip.video[: len(frames)]), "colors": color_distance(frames, clip)}
        back = bool(np.any(np.abs(clip.motion.yaw()[: arguments.num_frames]) > 100))
        records.append({"row": row, "clip": clip.name, "scale": clip.scale, "back_view": back} | numbers)

    for index, clip in enumerate(clips):
        shown = [clip.video]
        partner = partner_motion(paths[index], arguments.num_frames)
        rows = variants(clips, index, pipe.config.segment_frames, partner)
        if arguments.pseudo_references:
            rows["pseudo-references"] = rows["right guidance"] | {"num_pseudo_references": arguments.pseudo_references}
        for row, call in rows.items():
            if arguments.rows and row not in arguments.rows:
                continue
            call = settings | call
            frames = animate(pipe, call.pop("references"), call.pop("guidance"), arguments.seed, **call)
            record(row, clip, frames)
            if row in ("right guidance", "face of another clip", "pose of another clip"):
                shown.append(frames)
        still = np.asarray(clip.references[0].image)[None].repeat(len(clip.video), axis=0)
        record("reference, frozen", clip, still)
        with torch.no_grad():
            video = torch.from_numpy(clip.video).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
            decoded = pipe.vae.decode_video(pipe.vae.encode_video(video))[0].permute(1, 2, 3, 0)
        record("autoencoder alone", clip, ((decoded.float() + 1) * 127.5).round().clamp(0, 255).byte().numpy())
        # the crops that drove the clip, in the last row of the sheet
        crops = np.zeros_like(clip.video)
        faces = clip.guidance.face.transpose(0, 2, 3, 1)[:, : crops.shape[1], : crops.shape[2]]
        crops[:, : faces.shape[1], : faces.shape[2]] = faces
        sheet = np.concatenate([np.concatenate(list(video[::4]), axis=1) for video in [*shown, crops]], axis=0)
        size = (sheet.shape[1] * 2, sheet.shape[0] * 2)
        Image.fromarray(sheet).resize(size, Image.Resampling.NEAREST).save(output / f"{clip.name}.png")
        print(f"{index + 1} of {count}: {clip.name} {clip.scale}", flush=True)

    (output / "records.json").write_text(json.dumps(records, indent=1))
    text = make_table(records)
    for folder in arguments.expression_clips:
        text += "\n" + measure_expressions(pipe, Path(folder), settings, arguments.seed)
    if arguments.turning_clips:
        text += "\n" + measure_references(pipe, Path(arguments.turning_clips), settings, arguments.seed)
    if arguments.long_clips:
        text += "\n" + measure_long_videos(pipe, Path(arguments.long_clips), settings, arguments.seed)
    (output / "table.md").write_text(text)
    print(text)


def make_table(records: list[dict]) -> str:
    """Markdown tables: all clips, portraits, clips that show the back."""
    columns = [*REGION_MASKS, "ssim", "colors"]
    groups = {
        "All clips": records,
        "Portraits": [entry for entry in records if entry["scale"] == "portrait"],
        "Half and full bodies": [entry for entry in records if entry["scale"] != "portrait"],
        "Clips that show the back": [entry for entry in records if entry["back_view"]],
    }
    lines = []
    for title, entries in groups.items():
        number = len({entry["clip"] for entry in entries})
        if not number:
            continue
        lines += [
            f"### {title} ({number})",
            "",
            "| | " + " | ".join(columns) + " |",
            "|---" * (len(columns) + 1) + "|",
        ]
        for row in dict.fromkeys(entry["row"] for entry in entries):
            chosen = [entry for entry in entries if entry["row"] == row]
            values = [np.nanmean([entry[column] for entry in chosen]) for column in columns]
            digits = [2, 2, 2, 2, 3, 3]
            lines.append(f"| {row} | " + " | ".join(f"{value:.{n}f}" for value, n in zip(values, digits)) + " |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:  # a folder, file or id that is not there
        raise SystemExit(f"evaluate.py: {' '.join(str(error).split())}") from error
