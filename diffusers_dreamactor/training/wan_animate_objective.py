"""The training objective of Wan-Animate's weights: the reference in the stream, as their sampler has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from .flow_matching import add_noise, sample_noise, velocity


if TYPE_CHECKING:
    from ..pipelines.pipeline_dreamactor_wan_animate import DreamActorWanAnimatePipeline


@dataclass
class WanAnimateObjectiveConfig:
    """
    What is random in training, and what counts how much.

    Args:
        weighting_scheme, logit_mean, logit_std, shift: of the noise levels; see `sample_sigmas`. The shift is that of the
            weights' own schedule.
        drop_face (`float`): how often a sample is given what guidance's unconditional branch is given: the tokens of a blank
            face, and the empty prompt.
        region_weights (`tuple`): added to the loss weight 1 on the body, on the head, on eyes and mouth.
    """

    weighting_scheme: str = "logit_normal"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift: float = 5.0
    drop_face: float = 0.1
    region_weights: tuple[float, float, float] = (0.0, 0.0, 0.0)


class WanAnimateObjective(nn.Module):
    """
    Segments in, the flow-matching loss out. The transformer sees what `DreamActorWanAnimatePipeline` shows it, to the
    tensor: the reference as the first frame of the noisy stream, mask and condition channels, pose latents from the VAE and
    the frozen encoder's face tokens.

    The loss is over all frames. Those that are given (the reference, the first one of a segment that goes on) are denoised
    by the sampler like the others, and never put back, so that the model has to know them.

    Args:
        transformer (`nn.Module`): with an adapter, or to train itself.
        config (`WanAnimateObjectiveConfig`): see there.
        blank_face (`torch.Tensor` of shape `(1, 1, motion_dim)`): token of a blank face.
        prompt_embeds, negative_prompt_embeds (`torch.Tensor` of shape `(1, L, text_dim)`): states of the prompt, and of the
            empty one.
    """

    def __init__(
        self,
        transformer: nn.Module,
        config: WanAnimateObjectiveConfig,
        blank_face: torch.Tensor,
        prompt_embeds: torch.Tensor,
        negative_prompt_embeds: torch.Tensor,
    ):
        super().__init__()
        self.transformer, self.config = transformer, config
        region_weights = torch.tensor(config.region_weights, dtype=torch.float32).view(1, -1, 1, 1, 1)
        buffers = {"blank_face": blank_face, "prompt_embeds": prompt_embeds, "region_weights": region_weights}
        for name, value in (buffers | {"negative_prompt_embeds": negative_prompt_embeds}).items():
            self.register_buffer(name, value.float().contiguous(), persistent=False)

    @classmethod
    @torch.no_grad()
    def from_pipeline(
        cls, pipe: DreamActorWanAnimatePipeline, config: WanAnimateObjectiveConfig
    ) -> WanAnimateObjective:
        """The objective of a pipeline's transformer, with the text states that it takes when no prompt is given."""
        prompt_embeds, negative_prompt_embeds = (
            pipe.encode_prompt(None, None, 1, negative=negative) for negative in (False, True)
        )
        return cls(pipe.transformer, config, pipe.encode_blank_face(1, 1), prompt_embeds, negative_prompt_embeds)

    def forward(
        self, batch: dict[str, torch.Tensor | list], generator: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            batch (`dict`): of `SegmentDataset`, collated.
            generator: not read: all that is random is drawn from each sample's own `seed`.

        Returns:
            `dict` with the means `loss` (to minimise) and `mse` (unweighted), and the `weight` and `count` that they are
            over, by which means of several batches are put together.

        Raises:
            ValueError: the segments have no states of the reference, but the transformer reads them.
        """
        config, reference = self.config, batch["reference_latents"]
        if self.transformer.config.image_dim is not None and "image_states" not in batch:
            raise ValueError(
                "The batch has no `image_states`, but this transformer reads them: prepare the clips with its repository."
            )

        # 1. Noise, and what each sample is given
        latents = torch.cat([reference, batch["latents"]], dim=2)
        generators = [torch.Generator().manual_seed(seed) for seed in batch["seed"]]
        dropped = torch.stack([torch.rand((), generator=own) < config.drop_face for own in generators])
        dropped = dropped.to(latents.device, non_blocking=True).view(-1, 1, 1)
        density = {"logit_mean": config.logit_mean, "logit_std": config.logit_std}
        noise, sigmas = sample_noise(
            latents, generators, config.shift, weighting_scheme=config.weighting_scheme, **density
        )
        known = reference.new_ones(len(latents), 4, *reference.shape[2:])
        condition = torch.cat([torch.cat([known, reference], dim=1), batch["condition"]], dim=2)

        # 2. Prediction
        prediction = self.transformer(
            hidden_states=torch.cat([add_noise(latents, noise, sigmas), condition], dim=1),
            timestep=sigmas * 1000,
            encoder_hidden_states=torch.where(dropped, self.negative_prompt_embeds, self.prompt_embeds),
            encoder_hidden_states_image=batch.get("image_states"),
            pose_hidden_states=batch["pose_latents"],
            motion_hidden_states=torch.where(dropped, self.blank_face, batch["motion_tokens"]),
            num_stream_references=1,
            return_dict=False,
        )[0]

        # 3. Loss
        error = (prediction.float() - velocity(latents, noise)).square().mean(dim=1, keepdim=True)
        weight = torch.ones_like(error)
        if "regions" in batch:
            added = (batch["regions"] * self.region_weights).sum(dim=1, keepdim=True)
            weight = torch.cat([weight[:, :, :1], weight[:, :, 1:] + added], dim=2)
        return {
            "loss": (error * weight).sum() / weight.sum(),
            "mse": error.detach().mean(),
            "weight": weight.sum(),
            "count": torch.full_like(weight.sum(), error.numel()),
        }
