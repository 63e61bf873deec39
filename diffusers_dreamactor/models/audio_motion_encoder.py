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
    features of a feature extractor (100 a second). A convolution reads them, the blocks look both ways in time, and
    each frame of video reads their output at its middle. All of it but that last step happens at the features' rate,
    so the same weights serve every frame rate. Everything is local: cost is linear in the length, where speech shifts,
    the motion shifts with it, and what lies further away than `context` features plays no part.

    To train one on the features of a real speech encoder (Wav2Vec2, HuBERT or any other of `transformers` that has
    `last_hidden_state` and `config.inputs_to_logits_ratio`), make it part of a repository, then prepare clips with
    sound and train the stage `audio`, in which everything else rests:

    ```py
    >>> from transformers import HubertModel, Wav2Vec2FeatureExtractor

    >>> pipe.register_modules(
    ...     audio_encoder=HubertModel.from_pretrained("facebook/hubert-base-ls960"),
    ...     audio_feature_extractor=Wav2Vec2FeatureExtractor(),
    ...     audio_motion_encoder=AudioMotionEncoder(feature_dim=768, motion_dim=pipe.transformer.config.motion_dim),
    ... )
    >>> pipe.save_pretrained("with_speech")
    >>> # python examples/prepare_dataset.py --model with_speech --clips videos --output prepared
    >>> # python examples/train_dreamactor.py --stage audio --model with_speech --data prepared --output trained
    ```

    Args:
        feature_dim (`int`, defaults to `768`):
            Width of the speech features (768: Wav2Vec2 base).
        hidden_dim (`int`, defaults to `512`):
            Width of the blocks.
        num_layers (`int`, defaults to `6`):
            Number of blocks.
        kernel_size (`int`, defaults to `5`):
            Odd number of steps that a convolution sees.
        motion_dim (`int`, defaults to `512`):
            Width of a motion token: the transformer's `motion_dim`.
        stride (`int`, defaults to `1`):
            Features from one step of the blocks to the next; 2 for log-mel features.
        blink (`list[float]`, *optional*):
            What closed eyes add to a token, `motion_dim` numbers. Blinks cannot be heard: whoever wants the eyes to
            blink adds a share in [0, 1] of it.
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
        stride: int = 1,
        blink: list[float] | None = None,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` is {kernel_size}, but has to be odd.")
        if stride < 1:
            raise ValueError(f"`stride` is {stride}, but has to be at least 1.")
        if blink is not None and len(blink) != motion_dim:
            raise ValueError(f"`blink` has {len(blink)} numbers, but a token has `motion_dim` {motion_dim}.")
        # No norm over the features: in log-mel features, loudness would go with it. Zeros are no silence there, so the
        # first and the last feature go on beyond the ends.
        self.conv_in = nn.Conv1d(
            feature_dim, hidden_dim, kernel_size, stride, padding=kernel_size // 2, padding_mode="replicate"
        )
        self.blocks = nn.ModuleList([AudioMotionBlock(hidden_dim, kernel_size) for _ in range(num_layers)])
        self.norm_out = nn.LayerNorm(hidden_dim)
        self.proj_out = nn.Linear(hidden_dim, motion_dim)
        self.gradient_checkpointing = False

    @property
    def context(self) -> int:
        """Features to either side of a moment that its token depends on."""
        reach = self.config.kernel_size // 2
        return reach + self.config.stride * (self.config.num_layers * reach + 1)

    def forward(
        self,
        features: torch.Tensor,
        num_frames: int,
        features_per_frame: float | None = None,
        first_frame: float = 0.0,
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
            first_frame (`float`, defaults to 0):
                How many frames after the first feature the first frame comes, where `features` begin earlier to give
                it what was heard before.

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
        if features_per_frame is None:
            features_per_frame = features.shape[1] / num_frames

        hidden_states = self.conv_in(features.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states)
            else:
                hidden_states = block(hidden_states)

        # A frame's middle, in steps: feature i of n stands for the time from i to i + 1.
        length = hidden_states.shape[1]
        frames = torch.arange(num_frames, device=features.device, dtype=torch.float32)
        position = ((frames + first_frame + 0.5) * features_per_frame - 0.5) / self.config.stride
        position = position.clamp(0, length - 1)
        before = position.floor().long()
        after = (before + 1).clamp(max=length - 1)
        weight = (position - before).to(hidden_states.dtype)[None, :, None]
        hidden_states = torch.lerp(hidden_states[:, before], hidden_states[:, after], weight)
        return self.proj_out(self.norm_out(hidden_states))
