"""The memory that generating a video takes: the pipeline's own sampler, traced on the meta device."""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch

from diffusers_dreamactor.memory.tracing import trace_memory
from diffusers_dreamactor.models.condition_cache import ConditionCache
from diffusers_dreamactor.pipelines.animation_inputs import AnimationInputs
from diffusers_dreamactor.pipelines.animation_pipeline import AnimationPipeline
from diffusers_dreamactor.pipelines.sampling import SamplingOptions
from diffusers_dreamactor.processors.guidance import MotionGuidance
from diffusers_dreamactor.processors.reference import Reference


@dataclass
class GenerationMemory:
    """
    What a generation holds besides the weights, in bytes.

    Args:
        peaks (`dict[str, int]`): The most there is while each component runs, caches included.
        caches (`int`): What is kept between the steps: keys and values of text, pictures, references and faces.
    """

    peaks: dict[str, int]
    caches: int


class _MetaScheduler:
    """Steps on the meta device, where timesteps have no values to look up. The memory of a step is that of its result."""

    order = 1

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> None:
        self.timesteps = torch.zeros(num_inference_steps, device=device)

    def step(self, noise_pred: torch.Tensor, t: torch.Tensor, latents: torch.Tensor, return_dict: bool) -> tuple:
        return (latents + noise_pred,)


def blank_inputs(pipe: AnimationPipeline, height: int, width: int, num_frames: int) -> AnimationInputs:
    """A black picture and black guidance with a face, of which nothing is drawn."""
    face_size = pipe.motion_processor.config.face_size
    maps = np.broadcast_to(np.uint8(0), (num_frames, 3, height, width))
    guidance = MotionGuidance(
        skeleton=maps,
        sphere=None if pipe.motion_processor.config.style == "wan" else maps,
        face=np.broadcast_to(np.uint8(0), (num_frames, 3, face_size, face_size)),
    )
    picture = Reference(PIL.Image.new("RGB", (width, height)), height, width)
    return AnimationInputs([picture], np.arange(num_frames), guidance.fps, pipe.motion_processor, guidance=guidance)


def trace_generation(
    pipe: AnimationPipeline,
    height: int,
    width: int,
    num_frames: int,
    guidance_scale: float | None = None,
    segment_frames: int | None = None,
) -> GenerationMemory:
    """
    Runs a pipeline of models on the meta device and counts the memory.

    Args:
        pipe ([`AnimationPipeline`]): As `meta_pipeline` makes it.
        height, width (`int`): Of the video in pixels.
        num_frames (`int`): Of the video. More than two segments take what two take.
        guidance_scale (`float`, *optional*), segment_frames (`int`, *optional*):
            As for the pipeline, whose defaults are taken when `None`.
    """
    models = {name: model for name, model in pipe.components.items() if isinstance(model, torch.nn.Module)}
    segment_frames = segment_frames or pipe.config.segment_frames
    num_frames = min(num_frames, segment_frames + pipe.vae_scale_factor_temporal)
    inputs = blank_inputs(pipe, height, width, num_frames)
    config, text = pipe.transformer.config, {}
    if config.text_dim is not None and pipe.prompt_embedding is None:
        size = (1, config.text_context_length, config.text_dim)
        states = torch.zeros(size, dtype=pipe.transformer.dtype, device="meta")
        text = {"prompt_embeds": states, "negative_prompt_embeds": states}
    options = pipe.complete_options(
        SamplingOptions(
            num_inference_steps=2,
            guidance_scale=guidance_scale,
            segment_frames=segment_frames,
            output_type="pt",
            **text,
        )
    )

    caches: weakref.WeakSet[ConditionCache] = weakref.WeakSet()
    most_cached = 0

    def see_cache(module, args, kwargs, output) -> None:
        nonlocal most_cached
        caches.add(kwargs["condition_cache"])
        most_cached = max(most_cached, cached_bytes(caches))

    handle, scheduler = pipe.transformer.register_forward_hook(see_cache, with_kwargs=True), pipe.scheduler
    pipe.scheduler = _MetaScheduler()
    pipe.set_progress_bar_config(disable=True)
    try:
        with trace_memory(models) as trace:
            for _ in pipe._sample(inputs, options):
                pass
    finally:
        pipe.scheduler = scheduler
        handle.remove()
    return GenerationMemory(trace.peaks, most_cached)


def cached_bytes(caches: Iterable[ConditionCache]) -> int:
    """Bytes that caches hold together."""
    held = {}
    for cache in caches:
        for part in (cache, *cache.blocks):
            for value in vars(part).values():
                for tensor in value if isinstance(value, tuple) else (value,):
                    if isinstance(tensor, torch.Tensor):
                        held[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
    return sum(held.values())
