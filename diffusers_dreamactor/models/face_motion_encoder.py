"""Face crops to face motion tokens."""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.transformer_wan_animate import WanAnimateMotionEncoder
from torch import nn


class FaceMotionEncoder(ModelMixin, ConfigMixin):
    r"""
    Turns the driver's face crops into one motion token for each frame: what the face does, not whose face it is
    (DreamActor-M1, section 3.2, "implicit facial representation").

    The network is Diffusers' `WanAnimateMotionEncoder`: a convolutional encoder whose output is projected on a few
    orthogonal motion directions, too narrow a passage for appearance. Its keys here are `motion_encoder.*`, as in
    `WanAnimateTransformer3DModel`, so that Wan2.2-Animate weights load unchanged.

    Args:
        size (`int`, defaults to `512`):
            Side of the crops that the network sees: a power of two, at least 8. Crops of another side are resized, so
            the paper's 224 pixels go with `size=256`.
        channels (`dict[str, int]`, *optional*):
            Channels at each side (`{"64": 32, "32": 64, ..., "4": 128}`, keys from `size` down to 4); `None`: those of
            Wan2.2-Animate.
        style_dim (`int`, defaults to `512`):
            Width of the features before the motion directions.
        motion_blocks (`int`, defaults to `5`):
            Linear layers from these features to the motion directions.
        num_motion_directions (`int`, defaults to `20`):
            Orthogonal directions whose weights are a frame's motion.
        motion_dim (`int`, defaults to `512`):
            Width of a motion token: the transformer's `motion_dim`.
        norm_output (`bool`, defaults to `False`):
            Whether to normalise the tokens by a layer norm. Small encoders trained from scratch together with the
            transformer collapse without it.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["MotionEncoderResBlock"]
    _repeated_blocks = ["MotionEncoderResBlock"]
    _skip_layerwise_casting_patterns = ["norm"]
    # The directions are orthogonalised by a QR decomposition, in float32.
    _keep_in_fp32_modules = ["motion_synthesis_weight"]

    @register_to_config
    def __init__(
        self,
        size: int = 512,
        channels: dict[str, int] | None = None,
        style_dim: int = 512,
        motion_blocks: int = 5,
        num_motion_directions: int = 20,
        motion_dim: int = 512,
        norm_output: bool = False,
    ) -> None:
        super().__init__()
        if size < 8 or size & (size - 1):
            raise ValueError(f"`size` is {size}, but has to be a power of two, at least 8.")
        if num_motion_directions > motion_dim:
            raise ValueError(
                f"`num_motion_directions` is {num_motion_directions}, but cannot exceed `motion_dim` ({motion_dim})."
            )
        self.motion_encoder = WanAnimateMotionEncoder(
            size=size,
            style_dim=style_dim,
            motion_dim=num_motion_directions,
            out_dim=motion_dim,
            motion_blocks=motion_blocks,
            channels=channels,
        )
        self.norm_out = nn.LayerNorm(motion_dim) if norm_output else None
        self.gradient_checkpointing = False

    def forward(self, crops: torch.Tensor, batch_size: int = 8) -> torch.Tensor:
        """
        Args:
            crops (`torch.Tensor` of shape `(B, F, 3, S, S)`):
                Square face crops in [-1, 1], one for each frame of video.
            batch_size (`int`, defaults to `8`):
                Crops that go through the network at a time: bounds the memory, does not change the result. With
                gradient checkpointing, also what is recomputed at a time.

        Returns:
            `torch.Tensor` of shape `(B, F, motion_dim)`.

        Raises:
            `ValueError`: if `crops` has another shape.
        """
        if crops.ndim != 5 or crops.shape[2] != 3 or crops.shape[3] != crops.shape[4]:
            raise ValueError(f"`crops` has shape {tuple(crops.shape)}, but has to be (batch, frames, 3, size, size).")

        tokens = []
        for batch in crops.flatten(0, 1).split(batch_size):
            if batch.shape[-1] != self.config.size:
                size = (self.config.size, self.config.size)
                batch = F.interpolate(batch, size=size, mode="bilinear", antialias=True)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens.append(self._gradient_checkpointing_func(self.motion_encoder, batch))
            else:
                tokens.append(self.motion_encoder(batch))
        tokens = torch.cat(tokens).unflatten(0, crops.shape[:2])
        return tokens if self.norm_out is None else self.norm_out(tokens)
