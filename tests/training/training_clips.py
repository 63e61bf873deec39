"""Prepared clips of random content."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from diffusers_dreamactor.processors.guidance import MotionGuidance


def write_clip(folder: Path, seed: int, latent_frames: int = 3, size: tuple[int, int] = (32, 32)) -> None:
    """A prepared clip of random content, as prepare_dataset.py writes it."""
    random = np.random.default_rng(seed)
    height, width = size
    num_frames = 4 * (latent_frames - 1) + 1
    folder.mkdir(parents=True)

    def picture(*shape):
        return random.integers(0, 256, shape, dtype=np.uint8)

    guidance = MotionGuidance(
        skeleton=picture(num_frames, 3, height, width),
        sphere=picture(num_frames, 3, height, width),
        face=picture(num_frames, 3, 64, 64),
        motion_tokens=random.standard_normal((num_frames, 32)).astype(np.float32),
    )
    guidance.save(folder / "guidance.safetensors")
    MotionGuidance(skeleton=picture(2, 3, height, width)).save(folder / "reference_guidance.safetensors")
    shape = (16, latent_frames, height // 8, width // 8)
    tensors = {
        "latents": torch.from_numpy(random.standard_normal(shape)).half(),
        "reference_latents": torch.from_numpy(random.standard_normal((16, 2, *shape[2:]))).half(),
        "regions": torch.from_numpy(random.integers(0, 80, (3, *shape[1:]), dtype=np.uint8)),
    }
    save_file(tensors, folder / "latents.safetensors", metadata={"clip": "{}"})
