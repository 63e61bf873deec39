"""Training the autoencoder: a small new one, its pass as one module, and what is minimised."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ..models.autoencoder_dreamactor import DreamActorVAE
from .linear_code import LinearCode


def new_vae(
    base_dim: int = 16,
    decoder_base_dim: int | None = None,
    z_dim: int = 16,
    patch_size: int = 2,
    dim_mult: tuple[int, ...] = (1, 4, 4),
) -> DreamActorVAE:
    """
    A small autoencoder with Wan 2.2's residual shortcuts (they learn fast) and 4x8x8 compression (with `patch_size` 2).

    Args:
        base_dim, decoder_base_dim (`int`): channels of the widest level of encoder and decoder, before `dim_mult`.
        z_dim (`int`): latent channels.
        patch_size (`int`): squares of so many pixels become channels first.
        dim_mult: channels of the three levels, as multiples.
    """
    channels = 3 * patch_size**2
    return DreamActorVAE(
        base_dim=base_dim,
        decoder_base_dim=decoder_base_dim or base_dim,
        z_dim=z_dim,
        dim_mult=list(dim_mult),
        num_res_blocks=1,
        temperal_downsample=[True, True],
        is_residual=True,
        in_channels=channels,
        out_channels=channels,
        patch_size=patch_size,
        latents_mean=[0.0] * z_dim,
        latents_std=[1.0] * z_dim,
        scale_factor_temporal=4,
        scale_factor_spatial=4 * patch_size,
    )


class Reconstruction(nn.Module):
    """
    The autoencoder's training pass as one module, for data-parallel wrappers.

    Args:
        vae: is trained.
        train (`str`): `"both"`, `"encoder"` or `"decoder"`.
        latent_noise (`float`): up to how much noise is put on the latents before they are decoded.
        teacher (`LinearCode`, *optional*): what the latents shall be.
    """

    def __init__(self, vae: DreamActorVAE, train: str, latent_noise: float, teacher: LinearCode | None = None):
        super().__init__()
        self.vae, self.train_part, self.latent_noise, self.teacher = vae, train, latent_noise, teacher

    def forward(
        self, video: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Decoded frames (not clamped), the encoder's latents, and the teacher's; `None` for what is not computed."""
        target = None if self.teacher is None else self.teacher.encode(video)
        latents = decoded = None
        if self.train_part != "decoder":
            latents = self.vae.encode_video(video)
        elif target is None:
            with torch.no_grad():
                latents = self.vae.encode_video(video)
        if self.train_part != "encoder":
            source = latents if target is None else target
            noise = torch.randn(source.shape, generator=generator).to(source)
            # as strong in every clip as a sampler's error may be, from none to the full amount
            strength = torch.rand(len(source), 1, 1, 1, 1, generator=generator).to(source) * self.latent_noise
            decoded = self.vae.decode_video(source + strength * noise, clamp=False)
        return decoded, latents, target


def reconstruction_loss(decoded: torch.Tensor, video: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """
    What is minimised of decoded frames, and their mean squared error (without gradients).

    Args:
        decoded, video (`(B, 3, F, H, W)`): in [-1, 1]; decoded ones not clamped, so that gradients live everywhere.
        weight (`(B, 1, F, H, W)`): what each pixel counts.
    """
    difference = decoded.float() - video
    squared = difference.square()
    # squared error is what PSNR counts; a part of absolute error keeps edges sharp
    loss = (weight * (squared + 0.2 * difference.abs())).sum() / weight.expand_as(squared).sum()
    return loss, squared.detach().mean()


def code_loss(
    latents: torch.Tensor, target: torch.Tensor | None, teacher: LinearCode | None, kl_weight: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    What is minimised of the encoder's latents `(B, C, T, h, w)`: their distance from the teacher's, if there is one, and
    otherwise that of each channel's distribution from zero mean and unit variance. With it comes the mean squared distance
    from the teacher's (without gradients).
    """
    latents = latents.float()
    if target is None:
        mean, variance = latents.mean(dim=(0, 2, 3, 4)), latents.var(dim=(0, 2, 3, 4))
        divergence = mean.square() + variance - variance.clamp_min(1e-6).log() - 1
        return kl_weight * divergence.mean(), None
    error = (latents - target).square()
    # components that carry more of the picture count more
    importance = teacher.scale.sqrt().view(1, -1, 1, 1, 1)
    return (error * importance).mean() / importance.mean(), error.detach().mean()


@torch.no_grad()
def measure_latents(vae: DreamActorVAE, videos: Iterable[torch.Tensor]) -> None:
    """
    Store the mean and standard deviation of the latents of `videos` (each `(B, 3, F, H, W)` in [-1, 1]) in the config, so
    that normalised latents have 0 and 1.
    """
    latents = torch.cat(
        [
            vae.denormalize_latents(vae.encode_video(video.to(vae.device))).transpose(0, 1).flatten(1)
            for video in videos
        ],
        dim=1,
    )
    vae.register_to_config(latents_mean=latents.mean(dim=1).tolist(), latents_std=latents.std(dim=1).tolist())
