"""
Turn raw clips into what training reads: cached latents, drawn guidance, face crops, references.

    python prepare_dataset.py --clips data/train --output cache/train --model path/or/hub-id
    python prepare_dataset.py --check cache/train

Raw clips are videos (captured with MediaPipe, extra `capture`), or folders with `clip.safetensors` and known motion, as
`examples/synthetic/make_dataset.py` writes them. Every prepared clip is a folder (see `PreparedClipDataset`); those that
exist are left alone, so that a stopped run goes on, and `--shard i --num_shards n` splits the work. A clip that cannot
be used is skipped with a line that says why. `--check` says what is wrong with which prepared clip.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from diffusers_dreamactor.models.autoencoder_dreamactor import DreamActorVAE
from diffusers_dreamactor.motion.sequence import MotionSequence
from diffusers_dreamactor.processors.guidance import MotionGuidanceProcessor
from diffusers_dreamactor.training.action_tokens import ActionTokens
from diffusers_dreamactor.training.dataset import check_prepared_clip, list_prepared_clips
from diffusers_dreamactor.training.linear_code import LinearCode


VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm")


@dataclass
class RawClip:
    """
    A clip before encoding, at the generation size.

    Args:
        name (`str`): of its folder.
        video (`(F, H, W, 3)` uint8), motion (`MotionSequence`): F frames, in pixels of the video.
        references (`(R, H, W, 3)` uint8), reference_motion (`MotionSequence`): R pictures of the person.
        face_frames (*optional*): the frames that face crops are cut from, when the motion has no crops.
        regions (`(F, H, W)` uint8, *optional*): 0 background, 1 body, 2 head, 3 eyes and mouth.
        metadata (`dict`): kept with the clip.
    """

    name: str
    video: np.ndarray
    motion: MotionSequence
    references: np.ndarray
    reference_motion: MotionSequence
    face_frames: np.ndarray | None
    regions: np.ndarray | None
    metadata: dict


def find_clips(folder: Path) -> list[Path]:
    """Raw clips in a folder: videos, and folders with `clip.safetensors`."""
    clips = [path for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES]
    return sorted(clips + [path for path in folder.iterdir() if (path / "clip.safetensors").exists()])


def read_rendered_clip(folder: Path) -> RawClip:
    """A clip with known motion, as `make_dataset.py` writes it."""
    with safe_open(folder / "clip.safetensors", framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        metadata = dict(file.metadata())
    motion = MotionSequence.load(folder / "motion.safetensors")
    reference_motion = MotionSequence.load(folder / "reference_motion.safetensors")
    return RawClip(
        folder.name,
        tensors["video"],
        motion,
        tensors["references"],
        reference_motion,
        None,
        tensors["regions"],
        metadata,
    )


def read_video_clips(path: Path, capture, arguments: argparse.Namespace, processor: MotionGuidanceProcessor):
    """
    The clips of a video: captured once, brought to the generation size, cut into pieces of `--num_frames` frames. The
    references are the frames of median, least and greatest head yaw of the whole video (DreamActor-M1, section 3.3).
    """
    from diffusers_dreamactor.media import VideoReader
    from diffusers_dreamactor.motion.retarget import resize_motion

    reader = VideoReader(str(path), fps=arguments.fps)
    motion = capture.capture(reader, face_size=processor.config.face_size, progress=False)
    if motion.body is None or motion.head is None:
        raise ValueError("no person was found in it.")
    first = Image.fromarray(next(iter(reader)))
    prepared = processor.reference(first, height=arguments.height, width=arguments.width)
    height, width = prepared.height, prepared.width
    motion = resize_motion(motion, height, width)
    frames = np.stack([_cover(Image.fromarray(frame), height, width) for frame in reader])
    least, median, greatest = motion.extreme_yaw_frames()
    picks = list(dict.fromkeys((median, least, greatest)))
    references = frames[picks]
    reference_motion = motion._take(np.array(picks))
    length = arguments.num_frames
    for number, start in enumerate(range(0, len(frames) - length + 1, length - 1)):
        piece = motion[start : start + length]
        seen = (piece.body.confidence[:, :14] >= 0.5).any(axis=1).mean()
        if seen < arguments.minimum_seen:
            print(f"{path.name} piece {number}: skipped, a body is seen in only {seen:.0%} of its frames.", flush=True)
            continue
        metadata = {"scale": prepared.scale, "source": path.name, "start": start}
        video = frames[start : start + length]
        yield RawClip(f"{path.stem}_{number:04d}", video, piece, references, reference_motion, None, None, metadata)


def _cover(picture: Image.Image, height: int, width: int) -> np.ndarray:
    # cover, then centre-crop: what `resize_motion` does to the motion
    scale = max(width / picture.width, height / picture.height)
    size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return np.asarray(picture.crop((left, top, left + width, top + height)))


def cover_regions(regions: np.ndarray, scale: int) -> torch.Tensor:
    """Region maps `(F, H, W)` -> which share of each latent pixel body, head, eyes and mouth cover: `(3, T, h, w)` uint8."""
    shares = torch.from_numpy(np.stack([regions == index for index in (1, 2, 3)])).float()
    shares = torch.nn.functional.avg_pool2d(shares, scale)
    first, later = shares[:, :1], shares[:, 1:].unflatten(1, (-1, 4)).mean(dim=2)
    return (torch.cat([first, later], dim=1) * 255).round().to(torch.uint8)


def regions_from_motion(motion: MotionSequence, processor: MotionGuidanceProcessor) -> np.ndarray:
    """Region maps `(F, H, W)` where no truth is known: the skeleton, thickened, is the body; the sphere is the head."""
    maps = torch.from_numpy(processor.body_skeleton(motion, motion.height, motion.width)).float().amax(dim=1) > 0
    reach = 2 * (min(motion.height, motion.width) // 20) + 1
    body = torch.nn.functional.max_pool2d(maps.float(), reach, stride=1, padding=reach // 2) > 0
    head = processor.head_sphere(motion, motion.height, motion.width).max(axis=1) > 0
    return np.where(head, 2, body.numpy().astype(np.uint8)).astype(np.uint8)


def prepare_clip(
    clip: RawClip,
    encode: Callable[[torch.Tensor], torch.Tensor],
    processor: MotionGuidanceProcessor,
    output: Path,
    action_tokens: ActionTokens | None = None,
) -> None:
    """
    Encode and draw one clip and write its folder; `latents.safetensors` comes last and marks it as complete.

    Args:
        clip: what is prepared.
        encode: videos `(B, 3, F, H, W)` in [-1, 1] -> normalised latents.
        processor: draws the guidance.
        output: the folder in which the clip's folder is made.
        action_tokens (*optional*): makes motion tokens of the known facial actions, for `--face motion_tokens`.
    """
    height, width = clip.video.shape[1:3]
    folder = output / clip.name
    folder.mkdir(parents=True, exist_ok=True)
    guidance = processor(clip.motion, height, width, frames=clip.face_frames)
    if action_tokens is not None:
        if clip.motion.face is None or clip.motion.face.blendshapes is None:
            raise ValueError("its facial actions are not known, which --action_tokens needs.")
        guidance.motion_tokens = action_tokens(torch.from_numpy(clip.motion.face.blendshapes)).numpy()
    guidance.save(folder / "guidance.safetensors")
    reference_motion = replace(clip.reference_motion, face=None)
    processor(reference_motion, height, width).save(folder / "reference_guidance.safetensors")

    def pixels(frames):
        return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2).float() / 127.5 - 1

    with torch.no_grad():
        latents = encode(pixels(clip.video)[None])[0]
        references = encode(pixels(clip.references).transpose(0, 1)[:, :, None])[:, :, 0].transpose(0, 1)
    regions = regions_from_motion(clip.motion, processor) if clip.regions is None else clip.regions
    tensors = {
        "latents": latents.half(),
        "reference_latents": references.half(),
        "regions": cover_regions(regions, height // latents.shape[2]),
    }
    aside = folder / ".latents.part"
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, aside, metadata={"clip": json.dumps(clip.metadata)})
    os.replace(aside, folder / "latents.safetensors")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--clips", help="folder of raw clips")
    parser.add_argument("--output", help="folder of the prepared clips")
    parser.add_argument("--model", help="a DreamActor repository; its `vae` and `motion_processor` are used")
    parser.add_argument("--vae", help="a VAE's folder, instead of --model's")
    parser.add_argument(
        "--linear_code", help="encode with this LinearCode instead of a VAE that learns (or has learned) it"
    )
    parser.add_argument(
        "--action_tokens", help="ActionTokens: store the known facial actions of rendered clips as motion tokens"
    )
    parser.add_argument("--motion_processor", help="a MotionGuidanceProcessor's folder, instead of --model's")
    parser.add_argument("--height", type=int, help="generation size of videos; from their aspect and area by default")
    parser.add_argument("--width", type=int)
    parser.add_argument("--fps", type=float, help="frame rate that videos are brought to; their own by default")
    parser.add_argument(
        "--num_frames", type=int, default=121, help="videos are cut into clips of so many frames, 4 n + 1"
    )
    parser.add_argument("--minimum_seen", type=float, default=0.9, help="least share of frames with a body")
    parser.add_argument("--capture_models", help="folder of MediaPipe's models")
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--num_shards", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--check", help="only validate this folder of prepared clips")
    arguments = parser.parse_args()
    if not arguments.check and not (arguments.clips and arguments.output):
        parser.error("give --clips and --output, or --check")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.check:
        clips = list_prepared_clips(arguments.check)
        problems = [problem for clip in clips for problem in check_prepared_clip(clip)]
        print("\n".join([*problems, f"{len(clips)} clips, {len(problems)} problems."]))
        raise SystemExit(1 if problems else 0)

    if arguments.linear_code:
        encode = LinearCode.load(arguments.linear_code).encode
    else:
        vae = DreamActorVAE.from_pretrained(
            arguments.vae or arguments.model, subfolder=None if arguments.vae else "vae"
        ).to(arguments.device)
        encode = vae.eval().encode_video
    action_tokens = ActionTokens.load(arguments.action_tokens) if arguments.action_tokens else None
    processor = MotionGuidanceProcessor.from_pretrained(
        arguments.motion_processor or arguments.model,
        subfolder=None if arguments.motion_processor else "motion_processor",
    )
    capture, output = None, Path(arguments.output)
    paths = find_clips(Path(arguments.clips))[arguments.shard :: arguments.num_shards]
    if not paths:
        raise SystemExit(f"--clips {arguments.clips} holds no videos and no rendered clips.")
    for path in paths:
        done = output / f"{path.stem}.done"
        if done.exists() or (output / path.name / "latents.safetensors").exists():
            continue
        try:
            if path.is_dir():
                prepare_clip(read_rendered_clip(path), encode, processor, output, action_tokens)
            else:
                if capture is None:
                    from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture

                    capture = MediaPipeCapture.from_pretrained(arguments.capture_models)
                for clip in read_video_clips(path, capture, arguments, processor):
                    prepare_clip(clip, encode, processor, output, action_tokens)
                done.touch()
        except (ValueError, OSError) as error:
            print(f"{path.name}: skipped: {error}", flush=True)


if __name__ == "__main__":
    main()
