"""The training objective: a batch of prepared clips in, the flow-matching loss out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..pipelines.conditioning import (
    empty_condition,
    encode_reference_pose,
    initial_latent_condition,
    pack_reference_latents,
)
from .flow_matching import add_noise, sample_noise, velocity
from .stages import STAGES


if TYPE_CHECKING:
    from ..pipelines.pipeline_dreamactor import DreamActorPipeline


NOT_TRAINABLE = (
    "`model` has no `pose_encoder`: Wan-Animate's weights are not trained as a whole, but LoRAs on them are, by "
    "examples/train_lora.py; whole models are trained from what `dreamactor convert wan-i2v` makes."
)


def region_shares(regions: torch.Tensor, scale: int) -> torch.Tensor:
    """
    Which share of each latent pixel body, head, eyes and mouth cover.

    Args:
        regions (`torch.Tensor` of shape `(B, 4 (T - 1) + 1, H, W)`): 0 background, 1 body, 2 head, 3 eyes and mouth.
        scale (`int`): pixels of a latent pixel's side.

    Returns:
        `(B, 3, T, H / scale, W / scale)` float in [0, 1].
    """
    shares = torch.stack([regions == index for index in (1, 2, 3)], dim=1).float().flatten(0, 1)
    shares = nn.functional.avg_pool2d(shares, scale)
    first, later = shares[:, :1], shares[:, 1:].unflatten(1, (-1, 4)).mean(dim=2)
    return torch.cat([first, later], dim=1).unflatten(0, (-1, 3))


@dataclass
class ObjectiveConfig:
    """
    What is random in training, and what counts how much.

    Args:
        stage (`str`): a key of `STAGES`.
        weighting_scheme, logit_mean, logit_std, shift: of the noise levels; see `sample_sigmas`.
        drop_motion, drop_reference, drop_all (`float`): how often pose and face, the references, or all of them are left
            out of a whole batch, for classifier-free guidance. Stages that train only the way of the face (2 and audio)
            always give it and the pose: there, only references are left out.
        drop_face (`float`): how often the face alone is left out.
        initial_latent (`float`): how often a window at a clip's start is given its first latent (those in the middle
            always are, still pictures never).
        max_references (`int`): references are a random number up to this.
        region_weights (`tuple`): added to the loss weight 1 on the body, on the head, on eyes and mouth.
        channel_weights (`tuple`, *optional*): of the latent channels, of mean 1; when some carry more of the picture.
    """

    stage: str = "3"
    weighting_scheme: str = "logit_normal"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift: float = 3.0
    drop_motion: float = 0.05
    drop_reference: float = 0.05
    drop_all: float = 0.05
    drop_face: float = 0.05
    initial_latent: float = 0.2
    max_references: int = 3
    region_weights: tuple[float, float, float] = (1.0, 2.0, 4.0)
    channel_weights: tuple[float, ...] | None = None


class DreamActorObjective(nn.Module):
    """
    All trained models as one module, so that data-parallel wrappers see one forward pass.

    Conditions are put together by the functions of `pipelines.conditioning` that the pipeline calls, too.

    Args:
        transformer, pose_encoder, face_motion_encoder, audio_motion_encoder: the models; what a stage does not need may
            be `None`.
        config (`ObjectiveConfig`): see there.
        prompt_embeds, negative_prompt_embeds (`torch.Tensor` of shape `(1, L, text_dim)`, *optional*): text states for
            transformers with text: those of the prompt, and those that stand where everything else is left out.
    """

    def __init__(
        self,
        transformer: nn.Module,
        pose_encoder: nn.Module,
        face_motion_encoder: nn.Module | None,
        config: ObjectiveConfig,
        audio_motion_encoder: nn.Module | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
    ):
        super().__init__()
        self.transformer, self.pose_encoder = transformer, pose_encoder
        self.face_motion_encoder, self.audio_motion_encoder = face_motion_encoder, audio_motion_encoder
        self.register_buffer("prompt_embeds", prompt_embeds, persistent=False)
        self.register_buffer("negative_prompt_embeds", negative_prompt_embeds, persistent=False)
        self.config = config
        # of regions and latent channels
        for name in ("region_weights", "channel_weights"):
            weights = getattr(config, name)
            if weights is not None:
                weights = torch.tensor(weights, dtype=torch.float32).view(1, -1, 1, 1, 1)
            self.register_buffer(name, weights, persistent=False)

    @classmethod
    @torch.no_grad()
    def from_pipeline(cls, pipe: DreamActorPipeline, config: ObjectiveConfig) -> DreamActorObjective:
        """
        The objective of a pipeline's models, with the text states that the pipeline takes when no prompt is given.

        Raises:
            ValueError: the pipeline has no pose encoder, as those of Wan-Animate's weights.
        """
        if pipe.pose_encoder is None:
            raise ValueError(NOT_TRAINABLE)
        prompt_embeds, negative_prompt_embeds = (
            pipe.encode_prompt(None, None, 1, negative=negative) for negative in (False, True)
        )
        return cls(
            pipe.transformer,
            pipe.pose_encoder,
            pipe.face_motion_encoder,
            config,
            pipe.audio_motion_encoder,
            prompt_embeds,
            negative_prompt_embeds,
        )

    def encode_face(self, batch: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """Face motion tokens `(B, F, motion_dim)`, faded where no face is seen, as the pipeline does."""
        source = STAGES[self.config.stage].face
        if source is None:
            return None
        if source == "audio":
            # a clip's speech is read as a whole, as the pipeline does: a window hears what is said around it
            tokens = []
            rates, windows = batch["features_per_frame"], batch["audio_window"]
            for features, features_per_frame, (length, clip_frames, start) in zip(
                batch["audio_features"], rates, windows
            ):
                clip_tokens = self.audio_motion_encoder(features[None, :length], clip_frames, features_per_frame)
                tokens.append(clip_tokens[:, start : start + batch["maps"].shape[2]])
            return torch.cat(tokens)
        if "motion_tokens" in batch:
            tokens = batch["motion_tokens"]
        else:
            trained = any(parameter.requires_grad for parameter in self.face_motion_encoder.parameters())
            with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
                crops = batch["face"].float() / 127.5 - 1
                tokens = self.face_motion_encoder(crops, batch_size=64)
        return tokens * batch["face_weight"].to(tokens)[..., None]

    def forward(self, batch: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
        """
        Args:
            batch (`dict`): of `PreparedClipDataset`, collated.
            generator (`torch.Generator`): on the CPU; what is random about the whole batch is drawn from it, and what is
                about a sample, from the sample's own `seed`, or, in a batch without seeds, from one that is drawn.

        Returns:
            `dict` with the means `loss` (to minimise) and `mse` (unweighted, for comparison between runs), and the `weight`
            and `count` that they are over, by which means of several batches are put together.
        """
        config, latents = self.config, batch["latents"]
        batch_size = len(latents)

        # 1. What this batch is given
        chance = torch.rand(4, generator=generator).tolist()
        drops_motion = STAGES[config.stage].drops_motion
        drop_all = drops_motion and chance[0] < config.drop_all
        drop_motion = drop_all or (drops_motion and chance[0] > 1 - config.drop_motion)
        drop_reference = drop_all or config.drop_all < chance[0] < config.drop_all + config.drop_reference
        drop_face = drop_motion or (drops_motion and chance[1] < config.drop_face)
        available = min(config.max_references, batch["reference_latents"].shape[2])
        number = 1 + int(chance[2] * available)
        # the first reference is the identity and always there; which others complement it is random
        others = 1 + torch.randperm(batch["reference_latents"].shape[2] - 1, generator=generator)[: number - 1]
        picks = [0, *others.tolist()]
        seeds = batch.get("seed")
        if seeds is None:
            seeds = torch.randint(2**62, (batch_size,), generator=generator).tolist()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        given = torch.stack([torch.rand((), generator=own) < config.initial_latent for own in generators])
        given = given.to(latents.device, non_blocking=True)
        given |= torch.as_tensor(batch["continued"]).to(latents.device, non_blocking=True)
        # of a still picture nothing would be left to predict
        given &= latents.shape[2] > 1
        given = given.view(-1, 1, 1, 1, 1)

        # 2. Noise
        density = {"logit_mean": config.logit_mean, "logit_std": config.logit_std}
        noise, sigmas = sample_noise(
            latents, generators, config.shift, weighting_scheme=config.weighting_scheme, **density
        )
        noisy = add_noise(latents, noise, sigmas)
        condition = torch.where(given, initial_latent_condition(noisy, latents[:, :, :1]), empty_condition(noisy))

        # 3. Conditions
        pose = motion = reference = reference_pose = None
        if not drop_motion:
            pose = self.pose_encoder(batch["maps"].float() / 127.5 - 1)
        if not drop_face:
            motion = self.encode_face(batch)
        if not drop_reference:
            # one by one: an index on the device would make the host wait for it
            picked = {
                name: torch.stack([batch[name][:, :, i] for i in picks], dim=2)
                for name in ("reference_latents", "reference_maps")
            }
            reference = pack_reference_latents(picked["reference_latents"])
            maps = picked["reference_maps"].float() / 127.5 - 1
            reference_pose = encode_reference_pose(self.pose_encoder, maps)
        text = self.negative_prompt_embeds if drop_all else self.prompt_embeds
        image = None
        if self.transformer.config.image_dim is not None and not drop_reference:
            if "image_states" not in batch:
                raise ValueError(
                    "The batch has no `image_states`, but this transformer reads them: prepare the clips with its repository."
                )
            image = batch["image_states"]
        prediction = self.transformer(
            hidden_states=torch.cat([noisy, condition], dim=1),
            timestep=sigmas * 1000,
            encoder_hidden_states=None if text is None else text.expand(batch_size, -1, -1),
            encoder_hidden_states_image=image,
            reference_hidden_states=reference,
            reference_pose_hidden_states=reference_pose,
            pose_hidden_states=pose,
            motion_hidden_states=motion,
            return_dict=False,
        )[0]

        # 4. Loss; a latent that is given need not be predicted
        error = (prediction.float() - velocity(latents, noise)).square()
        weight = torch.ones_like(error[:, :1])
        if "regions" in batch:
            weight = weight + (batch["regions"] * self.region_weights).sum(dim=1, keepdim=True)
        weight = torch.cat([weight[:, :, :1] * ~given, weight[:, :, 1:]], dim=2)
        counts = weight > 0
        mse = (error.mean(dim=1, keepdim=True) * counts).sum() / counts.sum()
        if self.channel_weights is not None:
            error = error * self.channel_weights
        loss = (error.mean(dim=1, keepdim=True) * weight).sum() / weight.sum()
        return {"loss": loss, "mse": mse.detach(), "weight": weight.sum(), "count": counts.sum()}
