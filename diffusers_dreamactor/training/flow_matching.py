"""Flow matching: noise levels, noisy latents and the velocity that the model learns (the forms of SD3 and Wan)."""

from __future__ import annotations

import torch
from diffusers.training_utils import compute_density_for_timestep_sampling


def sample_sigmas(
    batch_size: int,
    generator: torch.Generator,
    weighting_scheme: str = "logit_normal",
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
    mode_scale: float = 1.29,
    shift: float = 1.0,
) -> torch.Tensor:
    """
    Random noise levels.

    Args:
        batch_size (`int`): how many.
        generator (`torch.Generator`): on the CPU.
        weighting_scheme, logit_mean, logit_std, mode_scale: see Diffusers' `compute_density_for_timestep_sampling`.
        shift (`float`): as in `FlowMatchEulerDiscreteScheduler`: above 1, more of the levels are near pure noise.

    Returns:
        `torch.Tensor` of shape `(batch_size,)` in (0, 1): the share of noise.
    """
    u = compute_density_for_timestep_sampling(
        weighting_scheme, batch_size, logit_mean, logit_std, mode_scale, generator=generator
    )
    return shift * u / (1 + (shift - 1) * u)


def sample_noise(
    latents: torch.Tensor, generators: list[torch.Generator], shift: float = 1.0, **density
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Noise and its level for each sample, from that sample's own generator, so that they do not depend on its companions.

    Args:
        latents (`torch.Tensor` of shape `(B, ...)`): for shape and device.
        generators (`list[torch.Generator]`): B of them, on the CPU.
        shift (`float`), density: see `sample_sigmas`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: noise like the latents, and sigmas `(B,)`, float32.
    """
    sigmas = torch.cat([sample_sigmas(1, generator, shift=shift, **density) for generator in generators])
    noise = torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators])
    return (
        noise.to(latents.device, latents.dtype, non_blocking=True),
        sigmas.to(latents.device, non_blocking=True),
    )


def add_noise(latents: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """`(1 - sigma) latents + sigma noise`, `sigmas` of shape `(B,)`."""
    sigmas = sigmas.view(-1, *[1] * (latents.ndim - 1)).to(latents)
    return (1 - sigmas) * latents + sigmas * noise


def velocity(latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What the model predicts: `noise - latents`, the derivative of `add_noise` by sigma."""
    return noise - latents
