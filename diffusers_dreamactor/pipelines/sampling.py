"""The arguments of sampling, which `stream` and a pipeline's call share."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from diffusers_dreamactor.arguments import whole_number


OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class SamplingOptions:
    """
    How a video is sampled; what is `None` is the repository's default.

    Args:
        num_inference_steps (`int`, *optional*): Denoising steps.
        sigmas (`list[float]`, *optional*), timesteps (`list[int]`, *optional*):
            A noise schedule of your own, in place of `num_inference_steps`, for schedulers that take one.
        guidance_scale (`float`, *optional*):
            Classifier-free guidance on reference and motion (2.5 for DreamActor, 1.0 for Wan-Animate weights, which means
            no guidance, when the repository says nothing else).
        reference_guidance_scale (`float`, *optional*):
            A scale of its own for the reference; `guidance_scale` is then that of the motion (three branches).
        face_scale (`float`, defaults to 1.0): Strength of the face tokens.
        pose_scale (`float`, defaults to 1.0): Strength of the pose latents.
        segment_frames (`int`, *optional*): Frames of one denoising run, 4 n + 1.
        num_pseudo_references (`int`, defaults to 0):
            References to make first from a generated turn of the person (two-stage inference).
        num_videos_per_prompt (`int`, defaults to 1): Videos to make, each from noise of its own.
        prompt (`str`, *optional*), negative_prompt (`str`, *optional*): For transformers with text.
        prompt_embeds (`torch.Tensor`, *optional*), negative_prompt_embeds (`torch.Tensor`, *optional*):
            Ready text states `(1 or B, L, text_dim)`.
        image_embeds (`torch.Tensor`, *optional*): Ready CLIP states `(1 or B, L, image_dim)` of the picture.
        generator (`torch.Generator` or a list of B, *optional*): For determinism.
        latents (`torch.Tensor`, *optional*):
            The noise of the whole video, `(B, C, T, h, w)` with T = ceil((frames - 1) / 4) + 1; for Wan-Animate weights
            that of one whole segment with the reference's frame before it.
        output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
        callback_on_step_end (`Callable`, *optional*): Called as `(pipeline, step, timestep, callback_kwargs)`.
        callback_on_step_end_tensor_inputs (`list[str]`, defaults to `["latents"]`): What it gets.
        attention_kwargs (`dict`, *optional*): For the attention processors and LoRA's `scale`.
    """

    num_inference_steps: int | None = None
    sigmas: list[float] | None = None
    timesteps: list[int] | None = None
    guidance_scale: float | None = None
    reference_guidance_scale: float | None = None
    face_scale: float = 1.0
    pose_scale: float = 1.0
    segment_frames: int | None = None
    num_pseudo_references: int = 0
    num_videos_per_prompt: int = 1
    prompt: str | None = None
    negative_prompt: str | None = None
    prompt_embeds: torch.Tensor | None = None
    negative_prompt_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    generator: torch.Generator | list[torch.Generator] | None = None
    latents: torch.Tensor | None = None
    output_type: str = "pil"
    callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None
    callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",)
    attention_kwargs: dict[str, Any] | None = None

    @property
    def num_steps(self) -> int:
        """Denoising steps of a segment."""
        schedule = self.timesteps if self.sigmas is None else self.sigmas
        return self.num_inference_steps if schedule is None else len(schedule)

    def check(self, temporal_scale: int, callback_tensor_inputs: list[str]) -> None:
        """
        Checks the values that need no model to be judged; whole numbers of any type become `int`.

        Args:
            temporal_scale (`int`): Video frames that a latent frame covers.
            callback_tensor_inputs (`list[str]`): What callbacks can be given.

        Raises:
            ValueError: The first value that cannot be used, by its name.
        """
        for name, least in (
            ("segment_frames", 1),
            ("num_inference_steps", 1),
            ("num_pseudo_references", 0),
            ("num_videos_per_prompt", 1),
        ):
            setattr(self, name, whole_number(name, getattr(self, name), least))
        if self.segment_frames <= temporal_scale or self.segment_frames % temporal_scale != 1:
            raise ValueError(
                f"`segment_frames` is {self.segment_frames}, but has to be {temporal_scale} n + 1 with n at least 1."
            )
        if self.sigmas is not None and self.timesteps is not None:
            raise ValueError("`sigmas` and `timesteps` were both given, but one of them makes the schedule.")
        batch_size = self.num_videos_per_prompt
        if isinstance(self.generator, list) and len(self.generator) != batch_size:
            raise ValueError(f"`generator` is a list of {len(self.generator)}, but the batch has {batch_size} videos.")
        if self.output_type not in OUTPUT_TYPES:
            raise ValueError(f'`output_type` is {self.output_type!r}, but has to be "pil", "np", "pt" or "latent".')
        for name in ("prompt", "negative_prompt"):
            text, embeds = getattr(self, name), getattr(self, f"{name}_embeds")
            if text is not None and embeds is not None:
                raise ValueError(f"`{name}` and `{name}_embeds` were both given; pass one of them.")
            if text is not None and not isinstance(text, str):
                raise ValueError(f"`{name}` is a {type(text).__name__}, but has to be one string.")
        for name in ("prompt_embeds", "negative_prompt_embeds", "image_embeds"):
            embeds = getattr(self, name)
            if embeds is not None and embeds.shape[0] not in (1, batch_size):
                raise ValueError(f"`{name}` has a batch of {embeds.shape[0]}, but the batch has {batch_size} videos.")
        unknown = [k for k in self.callback_on_step_end_tensor_inputs if k not in callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` has {unknown}, but may only have {callback_tensor_inputs}."
            )


def takes_arguments_of(*sources: Callable) -> Callable:
    """
    Decorator for a function that passes its `**arguments` on: its signature and its docstring (at `{arguments}`) then show
    those of the functions or dataclasses that they are passed to, which are thus written once.

    Args:
        sources (with a docstring that has a section `Args:`): Where the arguments go.
    """

    def decorate(function: Callable) -> Callable:
        own = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
        known = {"self", *(parameter.name for parameter in own)}
        passed_on, descriptions = [], []
        for source in sources:
            parameters = inspect.signature(source).parameters.values()
            passed_on += [p.replace(kind=p.KEYWORD_ONLY) for p in parameters if p.name not in known]
            section = inspect.cleandoc(source.__doc__).partition("Args:\n")[2]
            descriptions.append(section.split("\n\n")[0])
        function.__signature__ = inspect.Signature([*own, *passed_on])
        function.__doc__ = inspect.cleandoc(function.__doc__).replace("{arguments}", "\n".join(descriptions))
        return function

    return decorate
