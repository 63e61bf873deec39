"""Animating held-out rendered clips: for looking at during training, and for measuring."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from ..motion.sequence import MotionSequence
from ..processors.guidance import MotionGuidance, MotionGuidanceProcessor
from ..processors.reference import Reference


@dataclass
class ValidationClip:
    """
    A rendered clip with its truth.

    Args:
        name, scale (`str`): folder name; `"portrait"`, `"half_body"` or `"full_body"`.
        video (`(F, H, W, 3)` uint8), regions (`(F, H, W)` uint8): truth; regions as in `make_dataset.py`.
        references (`list[Reference]`): the identity first.
        guidance (`MotionGuidance`): drawn from the true motion, F frames.
        motion (`MotionSequence`): the true motion.
    """

    name: str
    scale: str
    video: np.ndarray
    regions: np.ndarray
    references: list[Reference]
    guidance: MotionGuidance
    motion: MotionSequence


def load_validation_clip(folder: str | Path, processor: MotionGuidanceProcessor) -> ValidationClip:
    """Read a clip of `examples/synthetic/make_dataset.py` and draw its guidance."""
    folder = Path(folder)
    with safe_open(folder / "clip.safetensors", framework="np") as file:
        video, regions, pictures = (file.get_tensor(name) for name in ("video", "regions", "references"))
        scale = file.metadata()["scale"]
    height, width = video.shape[1:3]
    motion = MotionSequence.load(folder / "motion.safetensors")
    reference_motion = MotionSequence.load(folder / "reference_motion.safetensors")
    references = [
        Reference(
            image=Image.fromarray(picture),
            motion=reference_motion[index : index + 1],
            scale=scale,
            height=height,
            width=width,
            face_crop=None,
        )
        for index, picture in enumerate(pictures)
    ]
    return ValidationClip(folder.name, scale, video, regions, references, processor(motion, height, width), motion)


def find_validation_clips(folder: str | Path) -> list[Path]:
    """Folders of rendered clips in `folder`, sorted."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"`folder` names no folder: {folder}")
    return sorted(path for path in Path(folder).iterdir() if (path / "clip.safetensors").exists())


def animate(pipe, references: list[Reference], guidance: MotionGuidance, seed: int = 0, **arguments) -> np.ndarray:
    """The pipeline's frames `(F, H, W, 3)` uint8 for drawn guidance; `arguments` go to the pipeline's call."""
    result = pipe(
        references,
        guidance=guidance,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
        **arguments,
    )
    return (np.asarray(result.frames[0]) * 255).round().clip(0, 255).astype(np.uint8)


def render_validation(pipe, clips: str | Path, output: Path, count: int = 4, **arguments) -> list[float]:
    """
    Animate `count` clips spread over a folder; writes `output/<name>.mp4`, truth at the left, result at the right.

    Returns:
        mean squared errors, with pixels in [0, 1].
    """
    from ..media import save_video

    paths = find_validation_clips(clips)
    output.mkdir(parents=True, exist_ok=True)
    pipe.set_progress_bar_config(disable=True)
    errors = []
    for index in range(count):
        clip = load_validation_clip(paths[index * len(paths) // count], pipe.motion_processor)
        frames = animate(pipe, clip.references[:1], clip.guidance, **arguments)
        truth = clip.video[: len(frames)]
        errors.append(float(np.square((frames.astype(np.float32) - truth) / 255).mean()))
        save_video(list(np.concatenate([truth, frames], axis=2)), output / f"{clip.name}.mp4", fps=clip.guidance.fps)
    return errors
