"""
Turn raw clips into what training reads: cached latents, drawn guidance, face crops, references.

    python prepare_dataset.py --clips data/train --output cache/train --model path/or/hub-id
    python prepare_dataset.py --check cache/train

Raw clips are videos (captured with MediaPipe, extra `capture`), or folders with `clip.safetensors` and known motion, as
`examples/synthetic/make_dataset.py` writes them. Where a video has sound and the repository an `audio_feature_extractor`
(and, if it needs one, an `audio_encoder`), each clip keeps its speech features, which the audio stage of training reads;
with an `image_encoder`, the states of its first reference.

Every prepared clip is a folder (see `PreparedClipDataset`). With Wan-Animate's weights it is a segment instead (see
`SegmentDataset`): everything that the frozen models make of it is stored, so that `train_lora.py` needs the transformer alone.
Those that
exist are left alone, so that a stopped run goes on, and `--shard i --num_shards n` splits the work. A clip that cannot
be used is skipped with a line that says why; when no clip is there in the end, the exit status is 1. A video needs 5 frames
at least, 17 for the windows of 5 latent frames that `train_lora.py` trains by default. `--check` says what is wrong with which prepared clip.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from diffusers_dreamactor import DreamActorPipeline, DreamActorWanAnimatePipeline
from diffusers_dreamactor.checkpoints import bundled_model
from diffusers_dreamactor.files import errors_naming, give_usual_permissions
from diffusers_dreamactor.media import VideoReader, load_audio
from diffusers_dreamactor.models.autoencoder_dreamactor import DreamActorVAE
from diffusers_dreamactor.motion.retarget import resize_motion
from diffusers_dreamactor.motion.sequence import MotionSequence
from diffusers_dreamactor.motion.tensor_file import write_arrays
from diffusers_dreamactor.pipelines.conditioning import frame_mask, image_states, speech_features
from diffusers_dreamactor.processors.guidance import MotionGuidance, MotionGuidanceProcessor
from diffusers_dreamactor.training.action_tokens import ActionTokens
from diffusers_dreamactor.training.dataset import AUDIO_FILE, CLIP_FILES, check_prepared_clip, list_prepared_clips
from diffusers_dreamactor.training.linear_code import LinearCode
from diffusers_dreamactor.training.objective import region_shares
from diffusers_dreamactor.training.segments import SEGMENT_FILE, check_segment, list_segments


VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".gif", ".webp")
# Frames of two latent frames, the least that has motion.
SHORTEST = 5


@dataclass
class RawClip:
    """
    A clip before encoding, at the generation size.

    Args:
        name (`str`): of its folder.
        video (`(F, H, W, 3)` uint8), motion (`MotionSequence`): F frames, in pixels of the video.
        references (`(R, H, W, 3)` uint8), reference_motion (`MotionSequence`): R pictures of the person.
        identity (`(h, w, 3)` uint8): the first of them as it was, neither cut nor resized, for CLIP's encoder.
        face_frames (*optional*): the frames that face crops are cut from, when the motion has no crops.
        regions (`(F, H, W)` uint8, *optional*): 0 background, 1 body, 2 head, 3 eyes and mouth.
        metadata (`dict`): kept with the clip.
        speech (`(n,)` float32, *optional*): the clip's own stretch of sound, at the feature extractor's rate.
    """

    name: str
    video: np.ndarray
    motion: MotionSequence
    references: np.ndarray
    reference_motion: MotionSequence
    identity: np.ndarray
    face_frames: np.ndarray | None
    regions: np.ndarray | None
    metadata: dict
    speech: np.ndarray | None = None


def find_clips(folder: Path) -> list[Path]:
    """Raw clips in a folder: videos, and folders with `clip.safetensors`."""
    if not folder.is_dir():
        raise SystemExit(f"--clips {folder} is no folder.")
    clips = [path for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES]
    return sorted(clips + [path for path in folder.iterdir() if (path / "clip.safetensors").exists()])


def read_rendered_clip(folder: Path, sampling_rate: int | None = None) -> RawClip:
    """
    A clip with known motion, as `make_dataset.py` writes it. The sound of talking heads, `speech.wav`, is read at
    `sampling_rate`, when there is one.
    """
    with safe_open(folder / "clip.safetensors", framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        metadata = dict(file.metadata())
    motion = MotionSequence.load(folder / "motion.safetensors")
    reference_motion = MotionSequence.load(folder / "reference_motion.safetensors")
    sound = folder / "speech.wav"
    return RawClip(
        folder.name,
        tensors["video"],
        motion,
        tensors["references"],
        reference_motion,
        tensors["references"][0],
        None,
        tensors["regions"],
        metadata,
        load_audio(sound, sampling_rate) if sampling_rate and sound.exists() else None,
    )


def read_video_clips(
    path: Path,
    capture,
    arguments: argparse.Namespace,
    processor: MotionGuidanceProcessor,
    sampling_rate: int | None = None,
) -> Iterator[RawClip]:
    """
    The clips of a video: captured once, brought to the generation size, cut into pieces of `--num_frames` frames. The
    references are the frames of median, least and greatest head yaw of the whole video (DreamActor-M1, section 3.3). Sound
    is read at `sampling_rate`, when there is one.
    """
    reader = VideoReader(str(path), fps=arguments.fps)
    if len(reader) < SHORTEST:
        raise ValueError(f"it has {len(reader)} frames, but at least {SHORTEST} are needed.")
    # a shorter video is one clip of as many frames, 4 n + 1, as it has
    length = min(arguments.num_frames, (len(reader) - 1) // 4 * 4 + 1)
    captured = capture.capture(reader, progress=False)
    if captured.body is None or captured.head is None:
        raise ValueError("no body was found in it.")
    height, width = processor.reference.generation_size(reader.height, reader.width, arguments.height, arguments.width)
    motion = resize_motion(captured, height, width)
    least, median, greatest = motion.extreme_yaw_frames()
    picks = list(dict.fromkeys((median, least, greatest)))
    pictures = [next(reader.frames(pick, pick + 1)) for pick in picks]
    references = np.stack([_cover(picture, height, width) for picture in pictures])
    reference_motion = motion.take(np.array(picks))
    scale = processor.reference.decide_scale(reference_motion)
    speech = load_audio(path, sampling_rate) if sampling_rate and reader.has_audio else None
    for number, start in enumerate(range(0, len(reader) - length + 1, length - 1)):
        piece = motion[start : start + length]
        seen = (piece.body.confidence[:, :14] >= 0.5).any(axis=1).mean()
        if seen < arguments.minimum_seen:
            print(f"{path.name} piece {number}: skipped, a body is seen in only {seen:.0%} of its frames.", flush=True)
            continue
        frames = np.stack(list(reader.frames(start, start + length)))
        yield RawClip(
            name=f"{path.stem}_{number:04d}",
            video=np.stack([_cover(frame, height, width) for frame in frames]),
            motion=piece,
            references=references,
            reference_motion=reference_motion,
            identity=pictures[0],
            # boxes are in pixels of the video as it is, where faces are sharpest
            face_frames=frames,
            regions=None,
            metadata={"scale": scale, "source": path.name, "start": start},
            speech=None if speech is None else speech[round(start / reader.fps * sampling_rate) :],
        )


def _cover(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    # cover, then centre-crop: what `resize_motion` does to the motion
    picture = Image.fromarray(frame)
    scale = max(width / picture.width, height / picture.height)
    size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return np.asarray(picture.crop((left, top, left + width, top + height)))


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
    encode_speech: Callable[[np.ndarray, int, float], tuple[torch.Tensor, float]] | None = None,
    encode_identity: Callable[[Image.Image], torch.Tensor] | None = None,
) -> None:
    """
    Encode and draw one clip and write its folder; `latents.safetensors` comes last and marks it as complete.

    Args:
        clip: what is prepared.
        encode: videos `(B, 3, F, H, W)` in [-1, 1] -> normalised latents.
        processor: draws the guidance.
        output: the folder in which the clip's folder is made.
        action_tokens (*optional*): makes motion tokens of the known facial actions, for `--face motion_tokens`.
        encode_speech (*optional*): speech, number of frames and frames per second -> features `(1, L, D)` and how many of
            them go with a frame, as `speech_features` makes them.
        encode_identity (*optional*): a picture -> states `(1, L, image_dim)`, as `image_states` makes them.
    """
    height, width = clip.video.shape[1:3]
    folder = output / clip.name
    folder.mkdir(parents=True, exist_ok=True)
    guidance = draw_guidance(clip, processor)
    if action_tokens is not None:
        if clip.motion.face is None or clip.motion.face.blendshapes is None:
            raise ValueError("its facial actions are not known, which --action_tokens needs.")
        guidance.motion_tokens = action_tokens(torch.from_numpy(clip.motion.face.blendshapes)).numpy()
    guidance.save(folder / "guidance.safetensors")
    reference_motion = replace(clip.reference_motion, face=None)
    processor(reference_motion, height, width).save(folder / "reference_guidance.safetensors")

    with torch.no_grad():
        latents = encode(pixels(clip.video)[None])[0]
        references = encode(pixels(clip.references).transpose(0, 1)[:, :, None])[:, :, 0].transpose(0, 1)
        identity = None if encode_identity is None else encode_identity(Image.fromarray(clip.identity))[0]
        if clip.speech is not None:
            features, features_per_frame = encode_speech(clip.speech, len(clip.video), clip.motion.fps)
            write_arrays(
                folder / AUDIO_FILE,
                {"features": features[0].float().cpu().numpy()},
                {"features_per_frame": repr(features_per_frame)},
            )
    regions = regions_from_motion(clip.motion, processor) if clip.regions is None else clip.regions
    tensors = {
        "latents": latents.half(),
        "reference_latents": references.half(),
        "regions": cover_regions(regions, height // latents.shape[2]),
    }
    if identity is not None:
        tensors["image_states"] = identity.half().cpu()
    write_clip_file(folder / "latents.safetensors", tensors, clip.metadata)


def prepare_segment(clip: RawClip, pipe: DreamActorWanAnimatePipeline, output: Path) -> None:
    """
    Encode one clip as the pipeline encodes a segment and write its folder; see `SegmentDataset`.

    Args:
        clip: what is prepared; of its references, the first is taken.
        pipe: with Wan-Animate's VAE, face motion encoder, motion processor, and what reads pictures.
        output: the folder in which the clip's folder is made.
    """
    guidance = draw_guidance(clip, pipe.motion_processor)
    video = pixels(clip.video)[None]
    unknown = torch.zeros_like(video)
    continued = torch.cat([video[:, :, :1], unknown[:, :, 1:]], dim=2)
    tensors = {}
    with torch.no_grad():
        for name, frames in (
            ("latents", video),
            ("pose_latents", guidance.maps()[:, :3]),
            ("condition", unknown),
            ("continued_condition", continued),
            ("reference_latents", pixels(clip.references[:1])[None]),
        ):
            tensors[name] = pipe.vae.encode_video(frames.to(pipe.vae.device))[0].cpu()
        crops = guidance.face_pixels(device=pipe.face_motion_encoder.device, dtype=pipe.face_motion_encoder.dtype)
        # a lost face fades out, as the pipeline has it
        tokens = pipe.face_motion_encoder(crops)[0].float().cpu() * torch.from_numpy(guidance.face_weight)[:, None]
        if pipe.image_encoder is not None:
            identity = Image.fromarray(clip.identity)
            tensors["image_states"] = image_states(identity, pipe.image_processor, pipe.image_encoder)[0]
    for name, frames in (("condition", 0), ("continued_condition", 1)):
        latent_size = tensors[name].shape[2:]
        known = torch.zeros(1, 1, len(clip.video), *latent_size)
        known[:, :, :frames] = 1
        tensors[name] = torch.cat([frame_mask(known)[0], tensors[name]])
    regions = regions_from_motion(clip.motion, pipe.motion_processor) if clip.regions is None else clip.regions
    tensors = {name: tensor.half().cpu() for name, tensor in tensors.items()} | {
        "motion_tokens": tokens,
        "regions": cover_regions(regions, video.shape[3] // latent_size[0]),
    }
    folder = output / clip.name
    folder.mkdir(parents=True, exist_ok=True)
    write_clip_file(folder / SEGMENT_FILE, tensors, clip.metadata)


def cover_regions(regions: np.ndarray, scale: int) -> torch.Tensor:
    """Region maps `(F, H, W)` -> which share of each latent pixel body, head, eyes and mouth cover: `(3, T, h, w)` uint8."""
    return (region_shares(torch.from_numpy(regions)[None], scale)[0] * 255).round().to(torch.uint8)


def draw_guidance(clip: RawClip, processor: MotionGuidanceProcessor) -> MotionGuidance:
    """A clip's guidance, always with a face: where nobody is seen from the front, one of no weight."""
    guidance = processor(clip.motion, *clip.video.shape[1:3], frames=clip.face_frames)
    if guidance.face is None:
        size = processor.config.face_size
        guidance.face = np.zeros((len(clip.video), 3, size, size), dtype=np.uint8)
        guidance.face_weight = np.zeros(len(clip.video), dtype=np.float32)
    return guidance


def pixels(frames: np.ndarray) -> torch.Tensor:
    """Frames `(F, H, W, 3)` uint8 -> `(3, F, H, W)` in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2).float() / 127.5 - 1


def write_clip_file(path: Path, tensors: dict[str, torch.Tensor], metadata: dict) -> None:
    """The file that marks a clip as complete, written aside and renamed."""
    aside = path.with_name(f".{path.stem}.part")
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with errors_naming(path):
        save_file(tensors, aside, metadata={"clip": json.dumps(metadata)})
        give_usual_permissions(aside)
        os.replace(aside, path)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--clips", help="folder of raw clips")
    parser.add_argument("--output", help="folder of the prepared clips")
    parser.add_argument(
        "--model",
        help="a DreamActor repository, DreamActor-Tiny by default; its `vae`, `motion_processor`, and what reads pictures "
        "and speech are used",
    )
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
        "--num_frames",
        type=int,
        help="videos are cut into clips of so many frames, 4 n + 1; a shorter one is one clip; default: 121, or 77 for "
        "Wan-Animate's weights, the length of their segments",
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
    if not ((arguments.vae or arguments.linear_code) and arguments.motion_processor):
        arguments.model = arguments.model or bundled_model()
        if not arguments.check and arguments.model is None:
            parser.error("give --model, or --motion_processor and one of --vae and --linear_code")
    if arguments.num_frames is not None and (arguments.num_frames < 1 or arguments.num_frames % 4 != 1):
        parser.error(f"--num_frames is {arguments.num_frames}, but has to be 4 n + 1")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.check:
        clips = list_prepared_clips(arguments.check)
        segments = list_segments(arguments.check)
        problems = [problem for clip in clips for problem in check_prepared_clip(clip)]
        problems += [problem for segment in segments for problem in check_segment(segment)]
        spoken = sum((clip / AUDIO_FILE).exists() for clip in clips)
        print(
            "\n".join(
                [*problems, f"{len(clips) + len(segments)} clips ({spoken} with sound), {len(problems)} problems."]
            )
        )
        raise SystemExit(1 if problems else 0)

    # of a repository, only what is used here
    pipe = None
    if arguments.model:
        unused = (
            "transformer",
            "pose_encoder",
            "audio_motion_encoder",
            "text_encoder",
            "tokenizer",
            "prompt_embedding",
        )
        unused += ("capture", "scheduler")
        pipe = DreamActorPipeline.from_pretrained(arguments.model, **dict.fromkeys(unused)).to(arguments.device)
    as_segments = isinstance(pipe, DreamActorWanAnimatePipeline)
    if as_segments and (
        arguments.vae or arguments.linear_code or arguments.action_tokens or arguments.motion_processor
    ):
        raise SystemExit(
            "--vae, --linear_code, --action_tokens and --motion_processor are not for Wan-Animate's weights."
        )
    arguments.num_frames = arguments.num_frames or (77 if as_segments else 121)
    if arguments.linear_code:
        encode = LinearCode.load(arguments.linear_code).encode
    else:
        vae = DreamActorVAE.from_pretrained(arguments.vae).to(arguments.device) if arguments.vae else pipe.vae

        def encode(video):
            return vae.encode_video(video.to(vae.device))

    action_tokens = ActionTokens.load(arguments.action_tokens) if arguments.action_tokens else None
    if arguments.motion_processor:
        processor = MotionGuidanceProcessor.from_pretrained(arguments.motion_processor)
    else:
        processor = pipe.motion_processor
    sampling_rate = encode_speech = None
    if pipe is not None and pipe.audio_feature_extractor is not None:
        sampling_rate = pipe.audio_feature_extractor.sampling_rate
        encode_speech = partial(
            speech_features, feature_extractor=pipe.audio_feature_extractor, audio_encoder=pipe.audio_encoder
        )
    encode_identity = None
    if pipe is not None and pipe.image_encoder is not None:
        encode_identity = partial(image_states, image_processor=pipe.image_processor, image_encoder=pipe.image_encoder)
    capture, output = None, Path(arguments.output)
    paths = find_clips(Path(arguments.clips))
    if not paths:
        raise SystemExit(f"--clips {arguments.clips} holds no videos and no rendered clips.")
    names = Counter(path.name if path.is_dir() else path.stem for path in paths)
    alike = [name for name, count in names.items() if count > 1]
    if alike:
        raise SystemExit(
            f"--clips {arguments.clips} holds several clips named {', '.join(alike)}: their names have to differ."
        )
    output.mkdir(parents=True, exist_ok=True)

    def prepare(clip: RawClip) -> None:
        if as_segments:
            prepare_segment(clip, pipe, output)
        else:
            prepare_clip(clip, encode, processor, output, action_tokens, encode_speech, encode_identity)

    for path in paths[arguments.shard :: arguments.num_shards]:
        done = output / f"{path.stem}.done"
        if done.exists() or any((output / path.name / name).exists() for name in (CLIP_FILES[0], SEGMENT_FILE)):
            continue
        try:
            if path.is_dir():
                prepare(read_rendered_clip(path, sampling_rate))
            else:
                if capture is None:
                    from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture

                    capture = MediaPipeCapture.from_pretrained(arguments.capture_models)
                for clip in read_video_clips(path, capture, arguments, processor, sampling_rate):
                    prepare(clip)
                done.touch()
        except (ValueError, OSError, SafetensorError) as error:
            print(f"{path.name}: skipped: {error}", flush=True)
    if not list_prepared_clips(output) and not list_segments(output) and arguments.num_shards == 1:
        raise SystemExit(f"--clips {arguments.clips} gave no clip, so {output} is empty.")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:  # a folder, file or id that is not there
        raise SystemExit(f"prepare_dataset.py: {' '.join(str(error).split())}") from error
