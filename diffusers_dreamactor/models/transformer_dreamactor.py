"""DreamActor-M1's diffusion transformer (arXiv 2504.01724, section 3) on the anatomy of Diffusers' Wan transformers."""

import math
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn as nn
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks._helpers import (
    AttentionProcessorMetadata,
    AttentionProcessorRegistry,
    TransformerBlockMetadata,
    TransformerBlockRegistry,
    _skip_proc_output_fn_Attention_WanAttnProcessor2_0,
)
from diffusers.loaders import PeftAdapterMixin
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention import AttentionMixin, FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import PixArtAlphaTextProjection, TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanAttention, WanImageEmbedding, WanRotaryPosEmbed
from diffusers.models.transformers.transformer_wan_animate import (
    WanAnimateFaceBlockCrossAttention,
    WanAnimateFaceEncoder,
)
from diffusers.utils import apply_lora_scale

from diffusers_dreamactor.models.single_file import DreamActorSingleFileMixin

from .condition_cache import BlockConditionCache, ConditionCache


RotaryTables = tuple[torch.Tensor, torch.Tensor]
KeyValue = tuple[torch.Tensor, torch.Tensor]


def _apply_rotary_emb(hidden_states: torch.Tensor, rotary_emb: RotaryTables) -> torch.Tensor:
    # hidden_states (B, S, heads, head_dim) with neighbouring channels as pairs; tables (1, S, 1, head_dim / 2).
    cos, sin = rotary_emb
    x1, x2 = hidden_states.unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack(
        (torch.addcmul(x1 * cos, x2, sin, value=-1), torch.addcmul(x1 * sin, x2, cos)),
        dim=-1,
    )
    return rotated.flatten(-2).type_as(hidden_states)


def _normalise_key_value(
    attn: WanAttention, key: torch.Tensor, value: torch.Tensor, rotary_emb: RotaryTables | None = None
) -> KeyValue:
    key = attn.norm_k(key).unflatten(2, (attn.heads, -1))
    value = value.unflatten(2, (attn.heads, -1))
    if rotary_emb is not None:
        key = _apply_rotary_emb(key, rotary_emb)
    return key, value


def _project_self(
    attn: WanAttention, hidden_states: torch.Tensor, rotary_emb: RotaryTables
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if attn.fused_projections:
        query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
    else:
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
    query = attn.norm_q(query).unflatten(2, (attn.heads, -1))
    query = _apply_rotary_emb(query, rotary_emb)
    key, value = _normalise_key_value(attn, key, value, rotary_emb)
    return query, key, value


def _project_query(attn: WanAttention, hidden_states: torch.Tensor) -> torch.Tensor:
    return attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))


def _project_key_value(attn: WanAttention, encoder_hidden_states: torch.Tensor) -> KeyValue:
    if attn.fused_projections:
        key, value = attn.to_kv(encoder_hidden_states).chunk(2, dim=-1)
    else:
        key, value = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
    return _normalise_key_value(attn, key, value)


def _project_image_key_value(attn: WanAttention, encoder_hidden_states_image: torch.Tensor) -> KeyValue:
    if attn.fused_projections:
        key, value = attn.to_added_kv(encoder_hidden_states_image).chunk(2, dim=-1)
    else:
        key, value = attn.add_k_proj(encoder_hidden_states_image), attn.add_v_proj(encoder_hidden_states_image)
    key = attn.norm_added_k(key)
    return key.unflatten(2, (attn.heads, -1)), value.unflatten(2, (attn.heads, -1))


def _project_face_key_value(attn: "DreamActorFaceAttention", face_hidden_states: torch.Tensor) -> KeyValue:
    # (B, T, N, dim) -> keys and values (B * T, N, heads, head_dim): the frames become a batch dimension.
    num_tokens = face_hidden_states.shape[2]
    # Linear layers see three dimensions: some quantised matmuls accept no more.
    face_hidden_states = attn.pre_norm_kv(face_hidden_states).flatten(1, 2)
    if attn.fused_projections:
        key, value = attn.to_kv(face_hidden_states).chunk(2, dim=-1)
    else:
        key, value = attn.to_k(face_hidden_states), attn.to_v(face_hidden_states)
    key = attn.norm_k(key.unflatten(2, (attn.heads, -1)))
    value = value.unflatten(2, (attn.heads, -1))
    return key.unflatten(1, (-1, num_tokens)).flatten(0, 1), value.unflatten(1, (-1, num_tokens)).flatten(0, 1)


class DreamActorAttnProcessor:
    """Attention of [`WanAttention`] over keys and values that may have been projected before.

    Args:
        shards_keys (`bool`, *optional*):
            Whether context parallelism shards keys and values like queries: those of video and reference tokens, but not
            of text and images, which every rank has whole. When `None`, those of self-attention are.

    Call arguments beyond those of `WanAttnProcessor`:
        key_value (`tuple[torch.Tensor, torch.Tensor]`, *optional*):
            Self-attention: keys and values `(B, tokens, heads, head_dim)` attended to besides the layer's own
            (reference tokens). Cross-attention: the keys and values themselves.
        image_key_value (`tuple[torch.Tensor, torch.Tensor]`, *optional*):
            Cross-attention: image keys and values; the result is added to that of `key_value`, as in Wan.
    """

    _attention_backend = None
    _parallel_config = None

    def __init__(self, shards_keys: bool | None = None) -> None:
        self.shards_keys = shards_keys

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: RotaryTables | None = None,
        key_value: KeyValue | None = None,
        image_key_value: KeyValue | None = None,
    ) -> torch.Tensor:
        if attn.is_cross_attention:
            query = _project_query(attn, hidden_states)
            key, value = key_value
        else:
            query, key, value = _project_self(attn, hidden_states, rotary_emb)
            if key_value is not None:
                key = torch.cat([key_value[0], key], dim=1)
                value = torch.cat([key_value[1], value], dim=1)
        return self.attend(attn, query, key, value, image_key_value)

    def attend(
        self,
        attn: WanAttention,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        image_key_value: KeyValue | None = None,
    ) -> torch.Tensor:
        """Attention and output projection; all inputs `(B, tokens, heads, head_dim)`, output `(B, tokens, dim)`."""
        shards_keys = not attn.is_cross_attention if self.shards_keys is None else self.shards_keys
        hidden_states = dispatch_attention_fn(
            query,
            key,
            value,
            backend=self._attention_backend,
            parallel_config=self._parallel_config if shards_keys else None,
        )
        hidden_states = hidden_states.flatten(2, 3)
        if image_key_value is not None:
            hidden_states_image = dispatch_attention_fn(query, *image_key_value, backend=self._attention_backend)
            hidden_states = hidden_states + hidden_states_image.flatten(2, 3)
        hidden_states = attn.to_out[0](hidden_states.type_as(query))
        return attn.to_out[1](hidden_states)


class DreamActorFaceAttnProcessor:
    """Attention of each latent frame's tokens `(B, T * tokens, dim)` to that frame's face tokens only."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self, attn: "DreamActorFaceAttention", hidden_states: torch.Tensor, key_value: KeyValue
    ) -> torch.Tensor:
        batch_size, num_tokens, _ = hidden_states.shape
        key, value = key_value
        num_frames = key.shape[0] // batch_size
        query = attn.to_q(attn.pre_norm_q(hidden_states)).unflatten(2, (attn.heads, -1))
        query = attn.norm_q(query)
        before = after = 0
        if self._parallel_config is not None:
            # A rank's share of the tokens may begin and end within a frame: it is filled up to whole ones.
            parallel = self._parallel_config.context_parallel_config
            start = parallel._rank * num_tokens
            tokens_per_frame = num_tokens * parallel._world_size // num_frames
            first, last = start // tokens_per_frame, -(-(start + num_tokens) // tokens_per_frame)
            before, after = start - first * tokens_per_frame, last * tokens_per_frame - start - num_tokens
            query = nn.functional.pad(query, (0, 0, 0, 0, before, after))
            key, value = (x.unflatten(0, (batch_size, -1))[:, first:last].flatten(0, 1) for x in (key, value))
            num_frames = last - first
        query = query.unflatten(1, (num_frames, -1)).flatten(0, 1)
        hidden_states = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        hidden_states = hidden_states.flatten(2, 3).type_as(query)
        hidden_states = hidden_states.unflatten(0, (batch_size, -1)).flatten(1, 2)
        return attn.to_out(hidden_states[:, before : before + num_tokens])


class DreamActorFaceAttention(WanAnimateFaceBlockCrossAttention):
    """Face Attn: Diffusers' Wan-Animate face block with keys and values projected outside, so that they can be kept.

    Call arguments: `hidden_states (B, T * tokens, dim)` and `key_value`, each `(B * T, face tokens, heads, head_dim)`.
    """

    _default_processor_cls = DreamActorFaceAttnProcessor
    _available_processors = [DreamActorFaceAttnProcessor]

    def forward(self, hidden_states: torch.Tensor, key_value: KeyValue) -> torch.Tensor:
        return self.processor(self, hidden_states, key_value)


class DreamActorConditionEmbedder(nn.Module):
    """Wan's time, text and image embedding (same module names), where text and image are optional.

    Args:
        dim (`int`): Width of the transformer.
        freq_dim (`int`): Width of the sinusoidal time embedding.
        text_dim (`int`, *optional*): Width of the text encoder's states; `None` for a model without text.
        image_dim (`int`, *optional*): Width of the image encoder's states; `None` for a model without.
    """

    def __init__(self, dim: int, freq_dim: int, text_dim: int | None, image_dim: int | None) -> None:
        super().__init__()
        self.timesteps_proj = Timesteps(num_channels=freq_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedder = TimestepEmbedding(in_channels=freq_dim, time_embed_dim=dim)
        self.act_fn = nn.SiLU()
        self.time_proj = nn.Linear(dim, dim * 6)
        self.text_embedder = None
        if text_dim is not None:
            self.text_embedder = PixArtAlphaTextProjection(text_dim, dim, act_fn="gelu_tanh")
        self.image_embedder = None
        if image_dim is not None:
            self.image_embedder = WanImageEmbedding(image_dim, dim)

    def forward(self, timestep: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            timestep (`torch.Tensor` of shape `(B,)` or `(B, tokens)`): Diffusion time in [0, 1000].
            dtype (`torch.dtype`): The dtype in which the transformer computes.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: the embedding `(B, dim)` or `(B, tokens, dim)` and the modulation
            `(B, 6, dim)` or `(B, tokens, 6, dim)`.
        """
        frequencies = self.timesteps_proj(timestep.flatten()).unflatten(0, timestep.shape)
        # `from_pretrained` keeps this embedder in float32 and `.to(bfloat16)` does not. The bias tells which it was:
        # unlike a weight it is never stored quantised.
        frequencies = frequencies.to(self.time_embedder.linear_1.bias.dtype)
        temb = self.time_embedder(frequencies).to(dtype)
        return temb, self.time_proj(self.act_fn(temb)).unflatten(-1, (6, -1))


class DreamActorRotaryPosEmbed(WanRotaryPosEmbed):
    """Wan's 3D rotary tables, with a temporal offset and with frames counted backwards.

    Call arguments:
        hidden_states (`torch.Tensor` of shape `(B, C, T, h, w)`): Only its shape is read.
        start (`int`, defaults to `0`): Temporal index of the first frame.
        backwards (`bool`, defaults to `False`): Frames at 0, -1, -2, ... instead of `start`, `start + 1`, ...

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: cosine and sine `(1, tokens, 1, head_dim / 2)`.
    """

    def forward(self, hidden_states: torch.Tensor, start: int = 0, backwards: bool = False) -> RotaryTables:
        _, _, num_frames, height, width = hidden_states.shape
        height, width = height // self.patch_size[1], width // self.patch_size[2]
        if max(start + num_frames, height, width) > self.max_seq_len:
            raise ValueError(
                f"`hidden_states` has {num_frames} frames of {height}x{width} patches from temporal index {start}, but"
                f" `rope_max_seq_len` is {self.max_seq_len}."
            )
        # Wan's tables hold each angle twice, once for each channel of a pair.
        split_sizes = [self.t_dim // 2, self.h_dim // 2, self.w_dim // 2]
        cos_t, cos_h, cos_w = self.freqs_cos[:, 0::2].split(split_sizes, dim=1)
        sin_t, sin_h, sin_w = self.freqs_sin[:, 0::2].split(split_sizes, dim=1)
        if backwards:
            sin_t = -sin_t

        def table(frames: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
            shape = (num_frames, height, width, -1)
            frames = frames[start : start + num_frames].view(num_frames, 1, 1, -1).expand(*shape)
            rows = rows[:height].view(1, height, 1, -1).expand(*shape)
            columns = columns[:width].view(1, 1, width, -1).expand(*shape)
            return torch.cat([frames, rows, columns], dim=-1).reshape(1, num_frames * height * width, 1, -1)

        return table(cos_t, cos_h, cos_w), table(sin_t, sin_h, sin_w)


class DreamActorTransformerBlock(nn.Module):
    """One block: self-attention, cross-attention, Ref Attn, feed-forward, Face Attn.

    Args:
        dim (`int`): Width.
        ffn_dim (`int`): Width of the feed-forward layer.
        num_heads (`int`): Attention heads; `dim / num_heads` channels each.
        cross_attn_norm (`bool`): Whether `norm2` (before `attn2`) is a learned layer norm.
        eps (`float`): Epsilon of the norms.
        text_attention, image_attention (`bool`): What `attn2` attends to; without either there is no `attn2`.
        reference_attention (`bool`): Whether there is a `ref_attn`.
        face_attention (`bool`): Whether there is a `face_attn`.
    """

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        num_heads: int,
        cross_attn_norm: bool,
        eps: float,
        text_attention: bool,
        image_attention: bool,
        reference_attention: bool,
        face_attention: bool,
    ) -> None:
        super().__init__()
        head_dim = dim // num_heads

        # 1. Self-attention
        self.norm1 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.attn1 = WanAttention(dim, num_heads, head_dim, eps, processor=DreamActorAttnProcessor())

        # 2. Cross-attention. Image tokens have projections of their own only beside text, as in Wan.
        self.attn2 = self.norm2 = None
        if text_attention or image_attention:
            self.attn2 = WanAttention(
                dim,
                num_heads,
                head_dim,
                eps,
                added_kv_proj_dim=dim if text_attention and image_attention else None,
                cross_attention_dim_head=head_dim,
                processor=DreamActorAttnProcessor(),
            )
            self.norm2 = FP32LayerNorm(dim, eps, elementwise_affine=True) if cross_attn_norm else nn.Identity()

        # 3. Ref Attn
        self.ref_attn = self.norm_ref = None
        if reference_attention:
            self.ref_attn = WanAttention(
                dim,
                num_heads,
                head_dim,
                eps,
                cross_attention_dim_head=head_dim,
                processor=DreamActorAttnProcessor(shards_keys=True),
            )
            self.norm_ref = FP32LayerNorm(dim, eps, elementwise_affine=False)

        # 4. Feed-forward
        self.ffn = FeedForward(dim, inner_dim=ffn_dim, activation_fn="gelu-approximate")
        self.norm3 = FP32LayerNorm(dim, eps, elementwise_affine=False)

        # 5. Face Attn
        self.face_attn = None
        if face_attention:
            self.face_attn = DreamActorFaceAttention(dim, num_heads, head_dim, eps, cross_attention_dim_head=head_dim)

        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        temb: torch.Tensor,
        rotary_emb: RotaryTables,
        encoder_hidden_states_image: torch.Tensor | None,
        face_hidden_states: torch.Tensor | None,
        face_scale: float,
        block_cache: BlockConditionCache,
        use_references: bool = False,
        reference_hidden_states: torch.Tensor | None = None,
        reference_temb: torch.Tensor | None = None,
        reference_rotary_emb: RotaryTables | None = None,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(B, tokens, dim)`): Noise tokens, in-stream references first.
            encoder_hidden_states (`torch.Tensor` of shape `(B, L, dim)`, *optional*): Embedded text.
            temb (`torch.Tensor` of shape `(B, 6, dim)` or `(B, tokens, 6, dim)`): Modulation by the timestep.
            rotary_emb (`tuple[torch.Tensor, torch.Tensor]`): Rotary tables of `hidden_states`.
            encoder_hidden_states_image (`torch.Tensor` of shape `(B, L, dim)`, *optional*): Embedded image features.
            face_hidden_states (`torch.Tensor` of shape `(B, T, N, dim)`, *optional*): Face tokens.
            face_scale (`float`): Factor of the face attention's output.
            block_cache (`BlockConditionCache`): This block's projected conditions, read and filled.
            use_references (`bool`): Whether `hidden_states` attends to the references in `block_cache`.
            reference_hidden_states, reference_temb, reference_rotary_emb (*optional*):
                The reference branch. When given it runs, fills `block_cache` and leaves its output in
                `block_cache.reference_hidden_states`.

        Returns:
            `torch.Tensor` of shape `(B, tokens, dim)`.
        """
        context = image = face = reference = reference_context = None

        # Projected conditions
        if self.attn2 is not None and encoder_hidden_states is not None:
            context = block_cache.context
            if context is None:
                context = block_cache.keep("context", _project_key_value(self.attn2, encoder_hidden_states))
        if self.attn2 is not None and encoder_hidden_states_image is not None:
            image = block_cache.image
            if image is None:
                image = block_cache.keep("image", _project_image_key_value(self.attn2, encoder_hidden_states_image))
        if self.face_attn is not None and face_hidden_states is not None:
            face = block_cache.face
            if face is None:
                face = block_cache.keep("face", _project_face_key_value(self.face_attn, face_hidden_states))
        if reference_hidden_states is not None:
            reference_hidden_states, reference, reference_context = self._forward_references(
                reference_hidden_states, reference_temb, reference_rotary_emb, context, image
            )
            block_cache.keep("reference", reference)
            block_cache.keep("reference_context", reference_context)
            block_cache.reference_hidden_states = reference_hidden_states
        elif use_references:
            reference, reference_context = block_cache.reference, block_cache.reference_context

        shift_msa, scale_msa, gate_msa, c_shift_msa, c_scale_msa, c_gate_msa = self._modulation(temb)

        # 1. Self-attention
        norm_hidden_states = torch.addcmul(shift_msa, self.norm1(hidden_states.float()), 1 + scale_msa)
        attn_output = self.attn1(norm_hidden_states.type_as(hidden_states), rotary_emb=rotary_emb, key_value=reference)
        hidden_states = torch.addcmul(hidden_states.float(), attn_output.float(), gate_msa).type_as(hidden_states)

        # 2. Cross-attention
        if context is not None:
            norm_hidden_states = self.norm2(hidden_states.float()).type_as(hidden_states)
            attn_output = self.attn2(norm_hidden_states, key_value=context, image_key_value=image)
            hidden_states = hidden_states + attn_output

        # 3. Ref Attn
        if reference_context is not None:
            norm_hidden_states = self.norm_ref(hidden_states.float()).type_as(hidden_states)
            hidden_states = hidden_states + self.ref_attn(norm_hidden_states, key_value=reference_context)

        # 4. Feed-forward
        norm_hidden_states = torch.addcmul(c_shift_msa, self.norm3(hidden_states.float()), 1 + c_scale_msa)
        ff_output = self.ffn(norm_hidden_states.type_as(hidden_states))
        hidden_states = torch.addcmul(hidden_states.float(), ff_output.float(), c_gate_msa).type_as(hidden_states)

        # 5. Face Attn
        if face is not None:
            hidden_states = torch.add(hidden_states, self.face_attn(hidden_states, face), alpha=face_scale)

        return hidden_states

    def _modulation(self, temb: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if temb.ndim == 4:
            # One timestep per token: (B, tokens, 6, dim) -> six of (B, tokens, dim)
            return (self.scale_shift_table.unsqueeze(0) + temb.float()).unbind(dim=2)
        return (self.scale_shift_table + temb.float()).chunk(6, dim=1)

    def _forward_references(
        self,
        hidden_states: torch.Tensor,
        temb: torch.Tensor,
        rotary_emb: RotaryTables,
        context: KeyValue | None,
        image: KeyValue | None,
    ) -> tuple[torch.Tensor, KeyValue, KeyValue | None]:
        # The same weights as for the noise tokens, but not through the `forward` of attention and feed-forward modules:
        # step-caching hooks sit there, would count this as a denoising step and mix the two branches' outputs.
        shift_msa, scale_msa, gate_msa, c_shift_msa, c_scale_msa, c_gate_msa = self._modulation(temb)

        norm_hidden_states = torch.addcmul(shift_msa, self.norm1(hidden_states.float()), 1 + scale_msa)
        query, key, value = _project_self(self.attn1, norm_hidden_states.type_as(hidden_states), rotary_emb)
        attn_output = self.attn1.processor.attend(self.attn1, query, key, value)
        hidden_states = torch.addcmul(hidden_states.float(), attn_output.float(), gate_msa).type_as(hidden_states)

        if context is not None:
            norm_hidden_states = self.norm2(hidden_states.float()).type_as(hidden_states)
            query = _project_query(self.attn2, norm_hidden_states)
            hidden_states = hidden_states + self.attn2.processor.attend(self.attn2, query, *context, image)

        reference_context = None
        if self.ref_attn is not None:
            norm_hidden_states = self.norm_ref(hidden_states.float()).type_as(hidden_states)
            reference_context = _project_key_value(self.ref_attn, norm_hidden_states)

        norm_hidden_states = torch.addcmul(c_shift_msa, self.norm3(hidden_states.float()), 1 + c_scale_msa)
        ff_output = FeedForward.forward(self.ffn, norm_hidden_states.type_as(hidden_states))
        hidden_states = torch.addcmul(hidden_states.float(), ff_output.float(), c_gate_msa).type_as(hidden_states)
        return hidden_states, (key, value), reference_context


class DreamActorTransformer3DModel(
    DreamActorSingleFileMixin, ModelMixin, ConfigMixin, PeftAdapterMixin, CacheMixin, AttentionMixin
):
    r"""
    The video diffusion transformer of DreamActor-M1: noise tokens, reference tokens, pose latents and face tokens.

    Modules that Wan also has carry Wan's names, so that Wan weights and LoRAs fit; `ref_attn`, `face_attn` (output
    projections) and `pose_patch_embedding` start at zero, so that a model made from image-to-video weights first
    behaves exactly like them.

    Args:
        patch_size (`tuple[int]`, defaults to `(1, 2, 2)`):
            Frames, rows and columns of latents per token; one frame.
        num_attention_heads (`int`, defaults to `40`):
            Attention heads.
        attention_head_dim (`int`, defaults to `128`):
            Channels per head.
        in_channels (`int`, defaults to `36`):
            Input channels: noisy latent (16), mask (4), condition latent (16), the Wan image-to-video form.
        out_channels (`int`, defaults to `16`):
            Output channels.
        pose_channels (`int`, defaults to `16`):
            Channels of the pose latents.
        text_dim (`int`, *optional*):
            Width of the text encoder's states (4096 in Wan); `None` for a model without text.
        image_dim (`int`, *optional*):
            Width of the image encoder's states (1280 in Wan); `None` for a model without.
        text_context_length (`int`, defaults to `512`):
            Number of text tokens that the model was trained with; callers pad prompts to it.
        freq_dim (`int`, defaults to `256`):
            Width of the sinusoidal time embedding.
        ffn_dim (`int`, defaults to `13824`):
            Width of the feed-forward layers.
        num_layers (`int`, defaults to `40`):
            Number of blocks.
        cross_attn_norm (`bool`, defaults to `True`):
            Whether the norm before `attn2` is learned.
        eps (`float`, defaults to `1e-6`):
            Epsilon of the norms.
        rope_max_seq_len (`int`, defaults to `1024`):
            Largest number of frames, rows or columns of tokens.
        motion_dim (`int`, defaults to `512`):
            Width of the face motion tokens.
        face_encoder_hidden_dim (`int`, defaults to `1024`):
            Width of the face encoder.
        face_encoder_num_heads (`int`, defaults to `4`):
            Face tokens per latent frame (one learned padding token is added).
        face_attention_interval (`int`, defaults to `1`):
            Every n-th block, from the first, has a `face_attn`.
        reference_attention (`bool`, defaults to `True`):
            Whether blocks have a `ref_attn`.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DreamActorTransformerBlock"]
    _repeated_blocks = ["DreamActorTransformerBlock"]
    _skip_layerwise_casting_patterns = ["patch_embedding", "condition_embedder", "norm"]
    _keep_in_fp32_modules = ["rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"]
    _keys_to_ignore_on_load_unexpected = ["norm_added_q"]
    _skip_keys = ["condition_cache"]
    # Video tokens and reference tokens are sharded, each kind by itself; text, image and face tokens every rank has whole.
    _cp_plan = {
        "rope": {
            0: ContextParallelInput(split_dim=1, expected_dims=4, split_output=True),
            1: ContextParallelInput(split_dim=1, expected_dims=4, split_output=True),
        },
        "blocks.0": {
            "hidden_states": ContextParallelInput(split_dim=1, expected_dims=3, split_output=False),
            "reference_hidden_states": ContextParallelInput(split_dim=1, expected_dims=3, split_output=False),
        },
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
        # Only one timestep for each token is sharded.
        "condition_embedder": {
            "timestep": ContextParallelInput(split_dim=1, expected_dims=2, split_output=False),
        },
    }
    # Attention stays whole on every rank: its norms of queries and keys run over all heads together.
    _tp_plan = {
        "blocks.*.ffn.net.0.proj": "colwise",
        "blocks.*.ffn.net.2": "rowwise",
    }

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 36,
        out_channels: int = 16,
        pose_channels: int = 16,
        text_dim: int | None = None,
        image_dim: int | None = None,
        text_context_length: int = 512,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        eps: float = 1e-6,
        rope_max_seq_len: int = 1024,
        motion_dim: int = 512,
        face_encoder_hidden_dim: int = 1024,
        face_encoder_num_heads: int = 4,
        face_attention_interval: int = 1,
        reference_attention: bool = True,
    ) -> None:
        super().__init__()
        patch_size = tuple(patch_size)
        if patch_size[0] != 1:
            raise ValueError(
                f"`patch_size` is {patch_size}, but a token holds one latent frame: accepted is (1, h, w)."
            )
        inner_dim = num_attention_heads * attention_head_dim

        # 1. Patch and position embedding
        self.rope = DreamActorRotaryPosEmbed(attention_head_dim, patch_size, rope_max_seq_len)
        self.patch_embedding = nn.Conv3d(in_channels, inner_dim, kernel_size=patch_size, stride=patch_size)
        self.pose_patch_embedding = nn.Conv3d(pose_channels, inner_dim, kernel_size=patch_size, stride=patch_size)

        # 2. Condition embeddings
        self.condition_embedder = DreamActorConditionEmbedder(inner_dim, freq_dim, text_dim, image_dim)
        self.face_encoder = WanAnimateFaceEncoder(
            in_dim=motion_dim,
            out_dim=inner_dim,
            hidden_dim=face_encoder_hidden_dim,
            num_heads=face_encoder_num_heads,
        )

        # 3. Transformer blocks
        self.blocks = nn.ModuleList(
            [
                DreamActorTransformerBlock(
                    inner_dim,
                    ffn_dim,
                    num_attention_heads,
                    cross_attn_norm,
                    eps,
                    text_attention=text_dim is not None,
                    image_attention=image_dim is not None,
                    reference_attention=reference_attention,
                    face_attention=index % face_attention_interval == 0,
                )
                for index in range(num_layers)
            ]
        )

        # 4. Output norm and projection
        self.norm_out = FP32LayerNorm(inner_dim, eps, elementwise_affine=False)
        self.proj_out = nn.Linear(inner_dim, out_channels * math.prod(patch_size))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, inner_dim) / inner_dim**0.5)

        # 5. What Wan has not starts at zero
        zero_modules = [self.pose_patch_embedding]
        zero_modules += [block.ref_attn.to_out[0] for block in self.blocks if block.ref_attn is not None]
        zero_modules += [block.face_attn.to_out for block in self.blocks if block.face_attn is not None]
        for module in zero_modules:
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

        self.gradient_checkpointing = False

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        reference_hidden_states: torch.Tensor | None = None,
        pose_hidden_states: torch.Tensor | None = None,
        reference_pose_hidden_states: torch.Tensor | None = None,
        motion_hidden_states: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_hidden_states_image: torch.Tensor | None = None,
        num_stream_references: int = 0,
        face_scale: float = 1.0,
        condition_cache: ConditionCache | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(B, in_channels, T, h, w)`):
                Noisy latents, mask and condition latents; the first `num_stream_references` frames are references.
            timestep (`torch.Tensor` of shape `(B,)` or `(B, tokens)`):
                Diffusion time in [0, 1000], for each sample or for each token (Wan 2.2 5B).
            reference_hidden_states (`torch.Tensor` of shape `(B, in_channels, R, h, w)`, *optional*):
                Isolated references: they attend only to each other, at timestep 0, and `hidden_states` attends to
                them. `None` is unconditional.
            pose_hidden_states (`torch.Tensor` of shape `(B, pose_channels, T - num_stream_references, h, w)`, *optional*):
                Pose latents. `None` is unconditional.
            reference_pose_hidden_states (`torch.Tensor` of shape `(B, pose_channels, R, h, w)`, *optional*):
                Pose latents of the isolated references.
            motion_hidden_states (`torch.Tensor` of shape `(B, F, motion_dim)`, *optional*):
                Face motion tokens, one for each video frame, `F = 4 (T - num_stream_references - 1) + 1`. `None` skips
                Face Attn.
            encoder_hidden_states (`torch.Tensor` of shape `(B, text tokens, text_dim)`, *optional*):
                Text encoder states; required by a model with `text_dim`.
            encoder_hidden_states_image (`torch.Tensor` of shape `(B, image tokens, image_dim)`, *optional*):
                Image encoder states; `None` is unconditional.
            num_stream_references (`int`, defaults to `0`):
                How many frames at the start of `hidden_states` are references in the stream: attention in both
                directions, no pose, zero face tokens.
            face_scale (`float`, defaults to `1.0`):
                Factor of the face attention's output.
            condition_cache (`ConditionCache`, *optional*):
                Keeps what does not change between steps; inference only.
            attention_kwargs (`dict`, *optional*):
                `scale` is the LoRA scale.
            return_dict (`bool`, defaults to `True`):
                Whether to return a [`~models.modeling_outputs.Transformer2DModelOutput`] instead of a tuple.

        Returns:
            [`~models.modeling_outputs.Transformer2DModelOutput`] or `tuple`: the prediction
            `(B, out_channels, T, h, w)`, in-stream reference frames included.

        Raises:
            ValueError: For inputs whose shapes do not fit together, and for a cache while gradients are recorded.
        """
        self._check_inputs(
            hidden_states,
            timestep,
            reference_hidden_states,
            pose_hidden_states,
            reference_pose_hidden_states,
            motion_hidden_states,
            encoder_hidden_states,
            encoder_hidden_states_image,
            num_stream_references,
            condition_cache,
        )
        batch_size, _, num_frames, height, width = hidden_states.shape
        _, patch_height, patch_width = self.config.patch_size
        height, width = height // patch_height, width // patch_width
        use_references = reference_hidden_states is not None
        # Without a cache nothing is kept: this one forgets its entries, block by block.
        cache = condition_cache if condition_cache is not None else ConditionCache()
        if not cache.blocks:
            cache.blocks = [BlockConditionCache(enabled=condition_cache is not None) for _ in self.blocks]
            cache.batch_size = batch_size

        # The first call of a segment fills the cache, and so does one that runs the reference branch.
        fills_cache = condition_cache is not None and (
            cache.rotary_emb is None or (use_references and not cache.has_references())
        )

        # 1. Rotary tables: isolated references at 0, -1, -2, ..., the video from 1
        if cache.rotary_emb is None:
            cache.rotary_emb = self.rope(hidden_states, start=1 if use_references else 0)
            cache.num_tokens = num_frames * height * width

        # 2. Video and pose tokens
        hidden_states = self.patch_embedding(hidden_states).flatten(2).transpose(1, 2).contiguous()
        if pose_hidden_states is not None:
            if cache.pose_tokens is None:
                cache.pose_tokens = self.pose_patch_embedding(pose_hidden_states).flatten(2).transpose(1, 2)
            num_reference_tokens = num_stream_references * height * width
            if num_reference_tokens == 0:
                hidden_states = hidden_states + cache.pose_tokens
            else:
                posed = hidden_states[:, num_reference_tokens:] + cache.pose_tokens
                hidden_states = torch.cat([hidden_states[:, :num_reference_tokens], posed], dim=1)

        # 3. Time, text and image
        temb, timestep_proj = self.condition_embedder(timestep, hidden_states.dtype)
        if encoder_hidden_states is not None:
            if cache.encoder_hidden_states is None:
                cache.encoder_hidden_states = self.condition_embedder.text_embedder(encoder_hidden_states)
            encoder_hidden_states = cache.encoder_hidden_states
        if encoder_hidden_states_image is not None:
            if cache.encoder_hidden_states_image is None:
                cache.encoder_hidden_states_image = self.condition_embedder.image_embedder(encoder_hidden_states_image)
            encoder_hidden_states_image = cache.encoder_hidden_states_image
            if self.config.text_dim is None:
                encoder_hidden_states, encoder_hidden_states_image = encoder_hidden_states_image, None

        # 4. Face tokens; zeros for references in the stream
        face_hidden_states = None
        if motion_hidden_states is not None:
            if cache.face_tokens is None:
                face_tokens = self.face_encoder(motion_hidden_states)
                cache.face_tokens = nn.functional.pad(face_tokens, (0, 0, 0, 0, num_stream_references, 0))
            face_hidden_states = cache.face_tokens

        # 5. Reference tokens, unless their keys and values are known
        reference_temb = reference_rotary_emb = None
        if use_references and cache.has_references():
            reference_hidden_states = None
        elif use_references:
            reference_rotary_emb = self.rope(reference_hidden_states, backwards=True)
            reference_hidden_states = self.patch_embedding(reference_hidden_states)
            if reference_pose_hidden_states is not None:
                reference_hidden_states = reference_hidden_states + self.pose_patch_embedding(
                    reference_pose_hidden_states
                )
            reference_hidden_states = reference_hidden_states.flatten(2).transpose(1, 2).contiguous()
            _, reference_temb = self.condition_embedder(timestep.new_zeros(1), hidden_states.dtype)

        # 6. Transformer blocks. A call that fills a cache is one of many: compiled blocks run it eagerly, instead of
        # being compiled once more for it.
        eagerly = fills_cache and not torch.compiler.is_compiling()
        with torch.compiler.set_stance("force_eager") if eagerly else nullcontext():
            for block, block_cache in zip(self.blocks, cache.blocks):
                arguments = (
                    hidden_states,
                    encoder_hidden_states,
                    timestep_proj,
                    cache.rotary_emb,
                    encoder_hidden_states_image,
                    face_hidden_states,
                    face_scale,
                    block_cache,
                    use_references,
                    reference_hidden_states,
                    reference_temb,
                    reference_rotary_emb,
                )
                if torch.is_grad_enabled() and self.gradient_checkpointing:
                    hidden_states = self._gradient_checkpointing_func(block, *arguments)
                else:
                    hidden_states = block(*arguments)
                reference_hidden_states = block_cache.reference_hidden_states
                block_cache.reference_hidden_states = None

        # 7. Output norm, projection and unpatchify
        shift, scale = (self.scale_shift_table.to(temb.device) + temb.unsqueeze(-2)).unbind(dim=-2)
        if temb.ndim == 2:
            shift, scale = shift.unsqueeze(1), scale.unsqueeze(1)
        # With several devices the blocks may end on another one than the time embedding.
        shift, scale = shift.to(hidden_states.device), scale.to(hidden_states.device)
        hidden_states = (self.norm_out(hidden_states.float()) * (1 + scale) + shift).type_as(hidden_states)
        hidden_states = self.proj_out(hidden_states)
        hidden_states = hidden_states.reshape(
            batch_size, num_frames, height, width, patch_height, patch_width, self.config.out_channels
        )
        output = hidden_states.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

        if not return_dict:
            return (output,)
        return Transformer2DModelOutput(sample=output)

    def _check_inputs(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        reference_hidden_states: torch.Tensor | None,
        pose_hidden_states: torch.Tensor | None,
        reference_pose_hidden_states: torch.Tensor | None,
        motion_hidden_states: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor | None,
        encoder_hidden_states_image: torch.Tensor | None,
        num_stream_references: int,
        condition_cache: ConditionCache | None,
    ) -> None:
        config = self.config
        if hidden_states.ndim != 5 or hidden_states.shape[1] != config.in_channels:
            raise ValueError(
                f"`hidden_states` has shape {tuple(hidden_states.shape)}, but (batch, {config.in_channels}, frames,"
                " height, width) is accepted."
            )
        batch_size, _, num_frames, height, width = hidden_states.shape
        _, patch_height, patch_width = config.patch_size
        if height % patch_height != 0 or width % patch_width != 0:
            raise ValueError(
                f"`hidden_states` is {height}x{width}, but height and width must be multiples of"
                f" {patch_height}x{patch_width}."
            )
        if not 0 <= num_stream_references < num_frames:
            raise ValueError(
                f"`num_stream_references` is {num_stream_references}, but `hidden_states` has {num_frames} frames:"
                f" accepted is 0 to {num_frames - 1}."
            )
        num_tokens = num_frames * (height // patch_height) * (width // patch_width)
        if tuple(timestep.shape) not in ((batch_size,), (batch_size, num_tokens)):
            raise ValueError(
                f"`timestep` has shape {tuple(timestep.shape)}, but ({batch_size},) or ({batch_size}, {num_tokens}),"
                " one for each token, is accepted."
            )

        num_video_frames = num_frames - num_stream_references
        num_references = None if reference_hidden_states is None else reference_hidden_states.shape[2]
        if reference_pose_hidden_states is not None and num_references is None:
            raise ValueError("`reference_pose_hidden_states` was given without `reference_hidden_states`.")
        expected_shapes = {
            "reference_hidden_states": (
                reference_hidden_states,
                (batch_size, config.in_channels, num_references, height, width),
            ),
            "pose_hidden_states": (
                pose_hidden_states,
                (batch_size, config.pose_channels, num_video_frames, height, width),
            ),
            "reference_pose_hidden_states": (
                reference_pose_hidden_states,
                (batch_size, config.pose_channels, num_references, height, width),
            ),
            "motion_hidden_states": (
                motion_hidden_states,
                (batch_size, 4 * (num_video_frames - 1) + 1, config.motion_dim),
            ),
        }
        for name, (value, shape) in expected_shapes.items():
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(
                    f"`{name}` has shape {tuple(value.shape)}, but {shape} is accepted with `hidden_states` of shape"
                    f" {tuple(hidden_states.shape)} and {num_stream_references} references in the stream."
                )

        if config.text_dim is not None and encoder_hidden_states is None:
            raise ValueError("`encoder_hidden_states` is None, but this model was trained with text: pass its states.")
        for name, value, width, field in (
            ("encoder_hidden_states", encoder_hidden_states, config.text_dim, "text_dim"),
            ("encoder_hidden_states_image", encoder_hidden_states_image, config.image_dim, "image_dim"),
        ):
            if value is None:
                continue
            if width is None:
                raise ValueError(f"`{name}` was given, but this model has none: its `{field}` is None.")
            if value.ndim != 3 or value.shape[0] != batch_size or value.shape[2] != width:
                raise ValueError(
                    f"`{name}` has shape {tuple(value.shape)}, but ({batch_size}, tokens, {width}) is accepted."
                )

        if condition_cache is not None:
            if torch.is_grad_enabled():
                raise ValueError("`condition_cache` was given while gradients are recorded: it is for inference only.")
            if condition_cache.batch_size not in (None, batch_size):
                raise ValueError(
                    f"`condition_cache` holds a batch of {condition_cache.batch_size}, but `hidden_states` one of"
                    f" {batch_size}: call `clear()` first."
                )
            cached_tokens = condition_cache.num_tokens
            if cached_tokens not in (None, num_tokens):
                raise ValueError(
                    f"`condition_cache` holds a segment of {cached_tokens} tokens, but `hidden_states` makes"
                    f" {num_tokens}: call `start_segment()` or `clear()` first."
                )


TransformerBlockRegistry.register(
    model_class=DreamActorTransformerBlock,
    metadata=TransformerBlockMetadata(return_hidden_states_index=0),
)
for _processor_class in (DreamActorAttnProcessor, DreamActorFaceAttnProcessor):
    AttentionProcessorRegistry.register(
        model_class=_processor_class,
        metadata=AttentionProcessorMetadata(
            skip_processor_output_fn=_skip_proc_output_fn_Attention_WanAttnProcessor2_0
        ),
    )
