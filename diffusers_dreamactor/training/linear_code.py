"""A linear video code: the principal components of 4x8x8 blocks, a teacher for small autoencoders."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ..models.autoencoder_dreamactor import DreamActorVAE


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

    def to(self, device: torch.device | str) -> LinearCode:
        """The same code on another device."""
        tensors = (tensor.to(device) for tensor in (self.mean, self.components, self.scale))
        return LinearCode(*tensors, self.frames, self.size)

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
        Principal components of an iterable of `(video, weight)`: videos `(B, 3, 4 (T - 1) + 1, H, W)` in [-1, 1], and how
        much each pixel counts `(B, 1, 4 (T - 1) + 1, H, W)`; a block counts as its pixels do on average.

        Each component's sign is chosen so that the sum of its values is positive.
        """
        code = cls(torch.zeros(1), torch.zeros(1), torch.zeros(1), frames, size)
        count, total, products = 0.0, 0.0, 0.0
        for video, weight in videos:
            blocks = code.blocks(video).flatten(0, 3).double()
            weight = code.blocks(weight).flatten(0, 3).double().mean(dim=1, keepdim=True)
            weighted = weight * blocks
            count, total, products = count + weight.sum(), total + weighted.sum(dim=0), products + blocks.T @ weighted
        mean = total / count
        values, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
        components = vectors[:, -channels:].flip(1).T
        components = components * components.sum(dim=1, keepdim=True).sign()
        scale = values[-channels:].flip(0).sqrt()
        return cls(mean.float(), components.float().contiguous(), scale.float(), frames, size)

    def relation_to(self, other: LinearCode) -> tuple[torch.Tensor, torch.Tensor]:
        """`(matrix, offset)` with `other's latents = matrix @ latents + offset`, exactly for blocks that this code holds."""
        components, scale = other.components, other.scale
        matrix = (components / scale[:, None]) @ (self.components * self.scale[:, None]).T
        return matrix, (components / scale[:, None]) @ (self.mean - other.mean)

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


@torch.no_grad()
def change_code(vae: DreamActorVAE, old: LinearCode, new: LinearCode) -> DreamActorVAE:
    """
    An autoencoder of one linear code, re-expressed in another one, most often with more channels.

    Its decoder decodes the new latents as the old one did those they stand for (up to the border, where convolutions pad
    with zeros); its encoder gives what the old latents tell of the new ones. The layers in between keep what they have
    learned, so that going on takes a fraction of the time of a new start.

    Args:
        vae ([`DreamActorVAE`]): trained with `old` as its teacher; `latents_mean` 0 and `latents_std` 1.
        old, new (`LinearCode`): `new` has at least as many channels.

    Raises:
        ValueError: the codes do not fit the autoencoder.
    """
    few, many = old.components.shape[0], new.components.shape[0]
    if vae.config.z_dim != few or many < few:
        raise ValueError(
            f"`vae` has {vae.config.z_dim} latent channels, `old` {few} and `new` {many}: the first two have to be equal, "
            f"and `new` may not have fewer."
        )
    config = dict(vae.config) | {"z_dim": many, "latents_mean": [0.0] * many, "latents_std": [1.0] * many}
    result = DreamActorVAE.from_config(config)
    changed = ("encoder.conv_out.", "quant_conv.", "post_quant_conv.", "decoder.conv_in.")
    kept = {key: value for key, value in vae.state_dict().items() if not key.startswith(changed)}
    result.load_state_dict(kept, strict=False)

    # encoder: new mean = matrix (old mean) + offset; the channels that come on top start without an effect
    matrix, offset = old.relation_to(new)
    result.encoder.conv_out.weight[: 2 * few] = vae.encoder.conv_out.weight
    result.encoder.conv_out.bias[: 2 * few] = vae.encoder.conv_out.bias
    weight, bias = result.quant_conv.weight.zero_(), result.quant_conv.bias.zero_()
    weight[:many, : 2 * few, 0, 0, 0] = matrix @ vae.quant_conv.weight[:few, :, 0, 0, 0]
    bias[:many] = matrix @ vae.quant_conv.bias[:few] + offset
    # a code is deterministic: next to no variance
    bias[many:] = -10.0

    # decoder: old latents = matrix (new latents) + offset, and the rest of the new ones beside them
    matrix, offset = new.relation_to(old)
    weight, bias = result.post_quant_conv.weight.zero_(), result.post_quant_conv.bias.zero_()
    weight[:few, :, 0, 0, 0] = vae.post_quant_conv.weight[:, :, 0, 0, 0] @ matrix
    bias[:few] = vae.post_quant_conv.weight[:, :, 0, 0, 0] @ offset + vae.post_quant_conv.bias
    weight[few:, few:, 0, 0, 0] = torch.eye(many - few)
    result.decoder.conv_in.weight.zero_()[:, :few] = vae.decoder.conv_in.weight
    result.decoder.conv_in.bias.copy_(vae.decoder.conv_in.bias)
    return result
