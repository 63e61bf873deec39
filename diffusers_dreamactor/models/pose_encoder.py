"""Skeleton and sphere maps to pose latents."""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResidualBlock, WanRMS_norm
from diffusers.models.modeling_utils import ModelMixin
from torch import nn


class PoseEncoder(ModelMixin, ConfigMixin):
    r"""
    Turns the drawn guidance (skeleton RGB | sphere RGB) into latents that lie on the video latents' grid, to be
    concatenated with them (DreamActor-M1, section 3.2, "pose encoder").

    A causal 3D convolution network of the Wan autoencoder's layers: latent frame `t` sees the frames up to `4 t` and
    none after, as the video latent at its side.

    Args:
        in_channels (`int`, defaults to `6`):
            Channels of the maps.
        out_channels (`int`, defaults to `16`):
            Channels of the pose latents: the transformer's `pose_channels`.
        patch_size (`int`, defaults to `2`):
            Squares of so many pixels become channels before the first layer; saves most of the work at full size.
        block_out_channels (`tuple[int]`, defaults to `(64, 128, 192)`):
            Channels of each level; the picture halves between two levels. The maps shrink by
            `patch_size * 2 ** (len(block_out_channels) - 1)`: 8 by default, what the VAE has.
        temporal_downsample (`tuple[bool]`, defaults to `(True, True)`):
            Between which levels time halves, too.
        layers_per_block (`int`, defaults to `1`):
            Residual blocks in a level.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["WanResidualBlock"]
    _repeated_blocks = ["WanResidualBlock"]
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 6,
        out_channels: int = 16,
        patch_size: int = 2,
        block_out_channels: tuple[int, ...] = (64, 128, 192),
        temporal_downsample: tuple[bool, ...] = (True, True),
        layers_per_block: int = 1,
    ) -> None:
        super().__init__()
        if len(temporal_downsample) != len(block_out_channels) - 1:
            raise ValueError(
                f"`temporal_downsample` has {len(temporal_downsample)} values, but needs one between each two of the "
                f"{len(block_out_channels)} levels of `block_out_channels`."
            )
        self.spatial_compression_ratio = patch_size * 2 ** (len(block_out_channels) - 1)
        self.temporal_compression_ratio = 2 ** sum(temporal_downsample)

        self.conv_in = WanCausalConv3d(in_channels * patch_size**2, block_out_channels[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        channels = block_out_channels[0]
        for level, level_channels in enumerate(block_out_channels):
            if level > 0:
                stride = (2 if temporal_downsample[level - 1] else 1, 2, 2)
                self.blocks.append(WanCausalConv3d(channels, level_channels, 3, stride=stride, padding=1))
            self.blocks.extend(WanResidualBlock(level_channels, level_channels) for _ in range(layers_per_block))
            channels = level_channels
        self.norm_out = WanRMS_norm(channels, images=False)
        self.conv_out = WanCausalConv3d(channels, out_channels, 3, padding=1)
        self.gradient_checkpointing = False

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """
        Args:
            maps (`torch.Tensor` of shape `(B, in_channels, F, H, W)`):
                Maps in [-1, 1]; `F = 4 (T - 1) + 1`, `H` and `W` multiples of 8 (of the config's ratios).

        Returns:
            `torch.Tensor` of shape `(B, out_channels, T, H / 8, W / 8)`.

        Raises:
            `ValueError`: if `maps` has another shape.
        """
        ratio, stride = self.spatial_compression_ratio, self.temporal_compression_ratio
        if (
            maps.ndim != 5
            or maps.shape[1] != self.config.in_channels
            or (maps.shape[2] - 1) % stride
            or maps.shape[3] % ratio
            or maps.shape[4] % ratio
        ):
            raise ValueError(
                f"`maps` has shape {tuple(maps.shape)}, but has to be (batch, {self.config.in_channels}, frames, height,"
                f" width) with 1 plus a multiple of {stride} frames and height and width multiples of {ratio}."
            )

        # Squares of pixels to channels, frame by frame: pixel_unshuffle works on the last two dimensions.
        hidden_states = F.pixel_unshuffle(maps.transpose(1, 2), self.config.patch_size).transpose(1, 2)
        hidden_states = self.conv_in(hidden_states)
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states)
            else:
                hidden_states = block(hidden_states)
        return self.conv_out(F.silu(self.norm_out(hidden_states)))
