"""Speech features to face motion tokens."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn


class AudioMotionBlock(nn.Module):
    """
    A ConvNeXt block along time (Liu et al., 2022): depthwise convolution, layer norm, two linear layers, layer scale.

    Args:
        dim (`int`): Width of the hidden states.
        kernel_size (`int`): Odd number of frames that the convolution sees.
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.linear_in = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.linear_out = nn.Linear(4 * dim, dim)
        self.layer_scale = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(B, F, dim)` -> `(B, F, dim)`."""
        residual = hidden_states
        hidden_states = self.conv(hidden_states.transpose(1, 2)).transpose(1, 2)
        hidden_states = self.linear_out(self.act(self.linear_in(self.norm(hidden_states))))
        return residual + (self.layer_scale * hidden_states).type_as(residual)


class AudioMotionEncoder(ModelMixin, ConfigMixin):
    r"""
    Turns speech into the tokens that `FaceMotionEncoder` makes of a face, so that a voice can drive the mouth
    (DreamActor-M1, section 3.2: an extra encoder maps speech to the face motion tokens).

    Features arrive at their own rate: hidden states of a speech encoder (Wav2Vec2: 50 a second) or the log-mel
    features of a feature extractor. A convolution at that rate gathers what lies between two frames of video, then each
    frame reads the features at its middle, and ConvNeXt blocks look `num_layers * (kernel_size // 2)` frames to
    either side. Everything is local: cost is linear in the length, and where speech shifts, the motion shifts with it.

    Args:
        feature_dim (`int`, defaults to `768`):
            Width of the speech features (768: Wav2Vec2 base).
        hidden_dim (`int`, defaults to `512`):
            Width of the blocks.
        num_layers (`int`, defaults to `6`):
            Number of blocks.
        kernel_size (`int`, defaults to `5`):
            Odd number of frames (before the blocks: of features) that a convolution sees.
        motion_dim (`int`, defaults to `512`):
            Width of a motion token: the transformer's `motion_dim`.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["AudioMotionBlock"]
    _repeated_blocks = ["AudioMotionBlock"]
    _skip_layerwise_casting_patterns = ["norm"]
    _keep_in_fp32_modules = ["layer_scale"]

    @register_to_config
    def __init__(
        self,
        feature_dim: int = 768,
        hidden_dim: int = 512,
        num_layers: int = 6,
        kernel_size: int = 5,
        motion_dim: int = 512,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` is {kernel_size}, but has to be odd.")
        # No norm over the features: in log-mel features, loudness would go with it.
        self.conv_in = nn.Conv1d(feature_dim, hidden_dim, kernel_size, padding=kernel_size // 2)
        self.blocks = nn.ModuleList([AudioMotionBlock(hidden_dim, kernel_size) for _ in range(num_layers)])
        self.norm_out = nn.LayerNorm(hidden_dim)
        self.proj_out = nn.Linear(hidden_dim, motion_dim)
        self.gradient_checkpointing = False

    def forward(
        self, features: torch.Tensor, num_frames: int, features_per_frame: float | None = None
    ) -> torch.Tensor:
        """
        Args:
            features (`torch.Tensor` of shape `(B, L, feature_dim)`):
                Speech features from the start of the video on.
            num_frames (`int`):
                Frames of video to make tokens for.
            features_per_frame (`float`, *optional*):
                The features' rate over the video's (50 / 25 = 2); `None`: both last equally long, `L / num_frames`.
                Frames after the features' end read the last one.

        Returns:
            `torch.Tensor` of shape `(B, num_frames, motion_dim)`.

        Raises:
            `ValueError`: if `features` has another shape, or `num_frames` is not positive.
        """
        if features.ndim != 3 or features.shape[1] == 0 or features.shape[2] != self.config.feature_dim:
            raise ValueError(
                f"`features` has shape {tuple(features.shape)}, but has to be (batch, length, "
                f"{self.config.feature_dim}) with a length of at least 1."
            )
        if num_frames < 1:
            raise ValueError(f"`num_frames` is {num_frames}, but has to be at least 1.")
        length = features.shape[1]
        if features_per_frame is None:
            features_per_frame = length / num_frames

        hidden_states = self.conv_in(features.transpose(1, 2)).transpose(1, 2)

        # A frame's middle, in features: sample i of n stands for the time from i to i + 1.
        position = (torch.arange(num_frames, device=features.device, dtype=torch.float32) + 0.5) * features_per_frame
        position = (position - 0.5).clamp(0, length - 1)
        before = position.floor().long()
        after = (before + 1).clamp(max=length - 1)
        weight = (position - before).to(hidden_states.dtype)[None, :, None]
        hidden_states = torch.lerp(hidden_states[:, before], hidden_states[:, after], weight)

        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states)
            else:
                hidden_states = block(hidden_states)
        return self.proj_out(self.norm_out(hidden_states))
