"""What `DreamActorPipeline` returns."""

from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput


@dataclass
class DreamActorPipelineOutput(BaseOutput):
    """
    Output of [`DreamActorPipeline`].

    Args:
        frames (`torch.Tensor`, `np.ndarray` or `list[list[PIL.Image.Image]]`):
            The videos: nested lists of PIL images (`output_type="pil"`), an array `(B, F, H, W, 3)` in [0, 1]
            (`"np"`), a tensor `(B, F, 3, H, W)` in [0, 1] (`"pt"`), or normalised latents `(B, C, T, h, w)`
            (`"latent"`). From `stream`, the frames of one segment.
        fps (`float`):
            Frames per second at which the video plays at the driver's speed.
    """

    frames: torch.Tensor | np.ndarray | list[list[PIL.Image.Image]]
    fps: float
