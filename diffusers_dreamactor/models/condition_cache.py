"""What the transformer keeps between denoising steps: everything that depends neither on the noise nor on the step."""

import torch


KeyValue = tuple[torch.Tensor, torch.Tensor]


class BlockConditionCache:
    """Projected conditions of one transformer block.

    A block reads an entry when it is there; otherwise it projects the tokens it was given and, when `enabled`, stores
    the result here. Filling block by block means that a block which a step-caching hook skipped on the first step is
    simply filled on the first step that runs it. Plain attributes keep the block traceable as one graph.

    Args:
        enabled (`bool`, defaults to `True`):
            Whether projections are kept. `False` for calls without a [`ConditionCache`]: nothing outlives the call,
            and gradient checkpointing recomputes a block from the same inputs.

    Attributes:
        context, image, face, reference, reference_context (`tuple[torch.Tensor, torch.Tensor]` or `None`):
            Keys and values `(batch, tokens, heads, head_dim)` after normalisation and rotation: of the text tokens
            (image tokens in a model without text), of the image tokens beside text, of the face tokens `(batch *
            frames, tokens, heads, head_dim)`, of the reference tokens for `attn1` and of the reference hidden states
            for `ref_attn`.
        reference_hidden_states (`torch.Tensor` or `None`):
            The reference branch's `(batch, tokens, dim)` output of this block, for the next block. It leaves the block
            here, and not as a second return value, because step-caching hooks expect one tensor from a block.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.context: KeyValue | None = None
        self.image: KeyValue | None = None
        self.face: KeyValue | None = None
        self.reference: KeyValue | None = None
        self.reference_context: KeyValue | None = None
        self.reference_hidden_states: torch.Tensor | None = None

    def keep(self, name: str, value: KeyValue | None) -> KeyValue | None:
        """Store `value` as the entry `name` when `enabled`; returns it in any case."""
        if self.enabled:
            setattr(self, name, value)
        return value


class ConditionCache:
    """Conditions of one guidance branch, computed once and reused by every denoising step.

    Pass the same object to every call of [`DreamActorTransformer3DModel`] for one guidance branch, under `torch.no_grad()`. The first call fills it inside `forward`, so that offloading hooks and
    `torch.compile` see ordinary module calls; later calls read it. Outputs are the same with and without.

    The arguments of the call still say *whether* a condition applies (`None` is unconditional); the cache only says
    what it was projected to: branches that differ only in what they leave out, such as the motion, share one object and
    hold the reference once. So change a condition only after [`~ConditionCache.start_segment`] (pose and face) or
    [`~ConditionCache.clear`] (any).

    Attributes:
        encoder_hidden_states, encoder_hidden_states_image (`torch.Tensor` or `None`):
            Embedded text and image tokens `(batch, tokens, dim)`.
        pose_tokens (`torch.Tensor` or `None`): Embedded pose tokens `(batch, tokens, dim)`. Scope: one segment.
        face_tokens (`torch.Tensor` or `None`): Face tokens `(batch, frames, tokens, dim)`. Scope: one segment.
        rotary_emb (`tuple[torch.Tensor, torch.Tensor]` or `None`): Rotary tables of the video. Scope: one segment.
        num_tokens (`int` or `None`): Tokens of the video, on all ranks. Scope: one segment.
        blocks (`list[BlockConditionCache]`): One entry per transformer block.
        batch_size (`int` or `None`): Batch size of the calls that filled it.

    Example:
        ```python
        >>> cache = ConditionCache()
        >>> for segment in segments:
        ...     cache.start_segment()
        ...     for t in scheduler.timesteps:
        ...         noise_pred = transformer(latents, t, ..., condition_cache=cache).sample
        ```
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Drop everything."""
        self.encoder_hidden_states: torch.Tensor | None = None
        self.encoder_hidden_states_image: torch.Tensor | None = None
        self.blocks: list[BlockConditionCache] = []
        self.batch_size: int | None = None
        self.start_segment()

    def start_segment(self) -> None:
        """Drop what belongs to one segment (pose, face, rotary tables); keep reference, text and image."""
        self.pose_tokens: torch.Tensor | None = None
        self.face_tokens: torch.Tensor | None = None
        self.rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None
        self.num_tokens: int | None = None
        for block in self.blocks:
            block.face = None

    def has_references(self) -> bool:
        """Whether every block holds the keys and values of the reference tokens."""
        return len(self.blocks) > 0 and all(block.reference is not None for block in self.blocks)
