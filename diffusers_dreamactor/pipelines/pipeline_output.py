"""What the pipelines return."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput

from diffusers_dreamactor.media import save_video
from diffusers_dreamactor.provenance import Provenance


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
        sound (*optional*):
            What is heard with the frames, as `media.VideoWriter` takes it: the speech or the driving video's file.
        provenance ([`~provenance.Provenance`], *optional*):
            What generated it, with which seed and when.
    """

    frames: torch.Tensor | np.ndarray | list[list[PIL.Image.Image]]
    fps: float
    sound: Any = None
    provenance: Provenance | None = None

    def save(self, path: str | os.PathLike, index: int = 0, provenance: bool = True, sidecar: bool = False) -> None:
        """
        Writes one of the videos with its sound.

        Args:
            path (`str` or `os.PathLike`): Ends in .mp4, .m4v, .mov or .mkv.
            index (`int`, defaults to 0): Which video of the batch.
            provenance (`bool`, defaults to `True`):
                Whether the file's metadata say that it is AI-generated, by which model and version, with which seed, and
                when. The same frames give the same bytes for the same moment, which `SOURCE_DATE_EPOCH` can name.
            sidecar (`bool`, defaults to `False`):
                Whether to write the definition of a C2PA manifest beside it, `out.c2pa.json` of `out.mp4`.

        Raises:
            ValueError: The frames are latents, or the path has another suffix.
        """
        frames = self.frames[index]
        if torch.is_tensor(frames) and frames.shape[1] != 3:
            raise ValueError(
                "`frames` are latents, which are no pictures: call the pipeline with another `output_type`."
            )
        made = None if self.provenance is None else self.provenance.of_video(index)
        save_video(frames, path, self.fps, self.sound, made if provenance else False, sidecar)
