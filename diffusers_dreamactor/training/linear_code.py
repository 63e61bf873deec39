"""A linear video code: the principal components of 4x8x8 blocks, a teacher for small autoencoders."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


class LinearCode:
    """
    Whitened principal components of blocks of `frames` x `size` x `size` pixels, on the grid of a causal video VAE.

    Trained end to end, a small autoencoder needs long to find a good code. The principal components are a fair one at
    once; an encoder that learns to give them and a decoder that learns to read them are two well-conditioned regressions
    that do not wait for each other, and the decoder soon reads them better than the linear inverse.

    Args:
        mean (`torch.Tensor` of shape `(3 * frames * size * size,)`): the mean block.
        components (`torch.Tensor` of shape `(channels, 3 * frames * size * size)`): orthonormal rows.
        scale (`torch.Tensor` of shape `(channels,)`): standard deviation of each component.
        frames, size (`int`): of a block. The first frame of a video is a block that stands still.
    """

    def __init__(self, mean: torch.Tensor, components: torch.Tensor, scale: torch.Tensor, frames: int, size: int):
        self.mean, self.components, self.scale = mean, components, scale
        self.frames, self.size = frames, size

    def blocks(self, video: torch.Tensor) -> torch.Tensor:
        """Videos `(B, 3, 4 (T - 1) + 1, H, W)` -> `(B, T, H / size, W / size, values)`."""
        still = video[:, :, :1].expand(-1, -1, self.frames, -1, -1)
        video = torch.cat([still, video[:, :, 1:]], dim=2)
        video = video.unflatten(2, (-1, self.frames)).unflatten(4, (-1, self.size)).unflatten(6, (-1, self.size))
        return video.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Videos in [-1, 1] -> latents `(B, channels, T, H / size, W / size)` of zero mean and unit variance."""
        latents = (self.blocks(video) - self.mean) @ (self.components / self.scale[:, None]).T
        return latents.permute(0, 4, 1, 2, 3)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The linear inverse of `encode`: `(B, 3, 4 (T - 1) + 1, H, W)`."""
        blocks = latents.permute(0, 2, 3, 4, 1) @ (self.components * self.scale[:, None]) + self.mean
        blocks = blocks.unflatten(-1, (3, self.frames, self.size, self.size)).permute(0, 4, 1, 5, 2, 6, 3, 7)
        video = blocks.flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return video[:, :, self.frames - 1 :]

    @classmethod
    def fit(cls, videos, channels: int = 16, frames: int = 4, size: int = 8) -> LinearCode:
        """
        Principal components of an iterable of videos `(B, 3, 4 (T - 1) + 1, H, W)` in [-1, 1].

        Each component's sign is chosen so that the sum of its values is positive.
        """
        code = cls(torch.zeros(1), torch.zeros(1), torch.zeros(1), frames, size)
        count, total, products = 0, 0.0, 0.0
        for video in videos:
            blocks = code.blocks(video).flatten(0, 3).double()
            count, total, products = count + len(blocks), total + blocks.sum(dim=0), products + blocks.T @ blocks
        mean = total / count
        values, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
        components = vectors[:, -channels:].flip(1).T
        components = components * components.sum(dim=1, keepdim=True).sign()
        scale = values[-channels:].flip(0).sqrt()
        return cls(mean.float(), components.float().contiguous(), scale.float(), frames, size)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        tensors = {"mean": self.mean, "components": self.components, "scale": self.scale}
        save_file(tensors, path, metadata={"frames": str(self.frames), "size": str(self.size)})

    @classmethod
    def load(cls, path: str | Path) -> LinearCode:
        """Read what `save` wrote."""
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        return cls(**load_file(path), frames=int(metadata["frames"]), size=int(metadata["size"]))
