"""What both samplers share: components and loading, the state of a call and of its steps, and putting the frames together."""

import contextlib
import dataclasses
import inspect
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.wan.pipeline_wan_video2video import retrieve_timesteps
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from transformers import BaseImageProcessor, CLIPVisionModel, PreTrainedModel, PreTrainedTokenizerBase

from diffusers_dreamactor.loaders.lora_pipeline import DreamActorLoraLoaderMixin
from diffusers_dreamactor.models.audio_motion_encoder import AudioMotionEncoder
from diffusers_dreamactor.models.autoencoder_dreamactor import DreamActorVAE
from diffusers_dreamactor.models.condition_cache import ConditionCache
from diffusers_dreamactor.models.face_motion_encoder import FaceMotionEncoder
from diffusers_dreamactor.models.pose_encoder import PoseEncoder
from diffusers_dreamactor.models.prompt_embedding import PromptEmbedding
from diffusers_dreamactor.models.transformer_dreamactor import DreamActorTransformer3DModel
from diffusers_dreamactor.pipelines.animation_inputs import AnimationInputs
from diffusers_dreamactor.pipelines.encoding import EncodingMixin
from diffusers_dreamactor.pipelines.pipeline_output import DreamActorPipelineOutput
from diffusers_dreamactor.pipelines.preparation import PreparationMixin
from diffusers_dreamactor.pipelines.sampling import SamplingOptions, takes_arguments_of
from diffusers_dreamactor.processors.guidance import MotionGuidanceProcessor
from diffusers_dreamactor.provenance import Provenance, model_name


class AnimationPipeline(PreparationMixin, EncodingMixin, DreamActorLoraLoaderMixin, DiffusionPipeline):
    r"""
    The common part of [`DreamActorPipeline`] and [`DreamActorWanAnimatePipeline`], which each add a sampler.

    Args:
        transformer ([`DreamActorTransformer3DModel`]): Denoises the video latents.
        vae ([`DreamActorVAE`]): Encodes and decodes video; an `AutoencoderKLWan` is taken as one, with its weights.
        scheduler ([`FlowMatchEulerDiscreteScheduler`]): A flow-matching scheduler.
        face_motion_encoder ([`FaceMotionEncoder`]): Face crops to face motion tokens.
        motion_processor ([`MotionGuidanceProcessor`]): Draws skeleton, head sphere and face crops; its config also
            says how references are framed.
        pose_encoder ([`PoseEncoder`], *optional*): Guidance maps to pose latents; Wan-Animate weights have none: the
            VAE encodes their skeleton picture.
        audio_motion_encoder ([`AudioMotionEncoder`], *optional*): Speech features to face motion tokens.
        audio_encoder ([`PreTrainedModel`], *optional*): Speech encoder, e.g. Wav2Vec2.
        audio_feature_extractor (*optional*): Waveform to the input of the `audio_encoder` (or of the
            `audio_motion_encoder`, when there is no encoder).
        image_encoder ([`CLIPVisionModel`], *optional*): CLIP features of the reference.
        image_processor ([`CLIPImageProcessor`], *optional*): Its preprocessing.
        text_encoder ([`PreTrainedModel`], *optional*): UMT5.
        tokenizer (*optional*): Its tokenizer.
        prompt_embedding ([`PromptEmbedding`], *optional*): Stored embeddings that stand for "no prompt given".
        capture (*optional*): Finds people in pictures and videos; [`MediaPipeCapture`] when there is none.
        num_inference_steps (`int`, *optional*), guidance_scale (`float`, *optional*), segment_frames (`int`, *optional*):
            What calls use when they say nothing else; the paper's, or Wan-Animate's, values when `None`.
        fps (`float`, defaults to 24.0): For drivers that have no rate of their own (speech).
    """

    model_cpu_offload_seq = (
        "text_encoder->image_encoder->audio_encoder->audio_motion_encoder->face_motion_encoder->pose_encoder"
        "->transformer->vae"
    )
    _optional_components = [
        "pose_encoder",
        "audio_motion_encoder",
        "audio_encoder",
        "audio_feature_extractor",
        "image_encoder",
        "image_processor",
        "text_encoder",
        "tokenizer",
        "prompt_embedding",
        "capture",
    ]
    _exclude_from_cpu_offload = ["prompt_embedding"]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    # What sampling cannot do without, and what a repository that says nothing else samples with.
    _required_components: list[str] = []
    _default_options: dict[str, Any] = {}

    def __init__(
        self,
        transformer: DreamActorTransformer3DModel,
        vae: DreamActorVAE,
        scheduler: FlowMatchEulerDiscreteScheduler,
        face_motion_encoder: FaceMotionEncoder,
        motion_processor: MotionGuidanceProcessor,
        pose_encoder: PoseEncoder | None = None,
        audio_motion_encoder: AudioMotionEncoder | None = None,
        audio_encoder: PreTrainedModel | None = None,
        audio_feature_extractor: Any | None = None,
        image_encoder: CLIPVisionModel | None = None,
        image_processor: BaseImageProcessor | None = None,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        prompt_embedding: PromptEmbedding | None = None,
        capture: Any | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        segment_frames: int | None = None,
        fps: float = 24.0,
    ):
        super().__init__()
        if isinstance(vae, AutoencoderKLWan) and not isinstance(vae, DreamActorVAE):
            state_dict, config = vae.state_dict(), vae.config
            with init_empty_weights():
                vae = DreamActorVAE.from_config(config)
            vae.load_state_dict(state_dict, assign=True)
        self.register_modules(
            transformer=transformer,
            vae=vae,
            scheduler=scheduler,
            face_motion_encoder=face_motion_encoder,
            motion_processor=motion_processor,
            pose_encoder=pose_encoder,
            audio_motion_encoder=audio_motion_encoder,
            audio_encoder=audio_encoder,
            audio_feature_extractor=audio_feature_extractor,
            image_encoder=image_encoder,
            image_processor=image_processor,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            prompt_embedding=prompt_embedding,
            capture=capture,
        )
        given = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "segment_frames": segment_frames,
        }
        defaults = {k: self._default_options.get(k) if v is None else v for k, v in given.items()}
        self.register_to_config(**defaults, fps=fps)
        self.vae_scale_factor_temporal = self.vae.config.scale_factor_temporal if getattr(self, "vae", None) else 4
        self.vae_scale_factor_spatial = self.vae.config.scale_factor_spatial if getattr(self, "vae", None) else 8
        patch_size = self.transformer.config.patch_size if getattr(self, "transformer", None) else (1, 2, 2)
        self._interrupt = False
        self.size_multiple = self.vae_scale_factor_spatial * patch_size[-1]
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor_spatial)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "AnimationPipeline":
        """
        Loads a repository, folder or Hub id, as the pipeline that samples its weights; arguments are those of
        `DiffusionPipeline.from_pretrained`. One of Diffusers' `WanAnimatePipeline` is taken as it is, see
        [`DreamActorWanAnimatePipeline.from_wan_animate`].

        Raises:
            OSError: There is no such repository.
            ValueError: It is one of another pipeline.
        """
        if not os.path.isdir(pretrained_model_name_or_path) and str(pretrained_model_name_or_path).count("/") != 1:
            raise FileNotFoundError(
                f"`{pretrained_model_name_or_path}` is no folder and no Hub id, but a repository of one of them is needed."
            )
        hub = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision")
        config = cls.load_config(pretrained_model_name_or_path, **{k: kwargs[k] for k in hub if k in kwargs})
        classes = {pipeline_class.__name__: pipeline_class for pipeline_class in AnimationPipeline.__subclasses__()}
        name = config.get("_class_name")
        if name == "WanAnimatePipeline":
            return classes["DreamActorWanAnimatePipeline"].from_wan_animate(pretrained_model_name_or_path, **kwargs)
        if name not in classes:
            convertible = name in ("WanImageToVideoPipeline", "WanPipeline")
            raise ValueError(
                f"`{pretrained_model_name_or_path}` is a repository of {name}, but one of {', '.join(classes)} or"
                f" WanAnimatePipeline is needed{': `dreamactor convert wan-i2v` makes one to train' * convertible}."
            )
        return super(AnimationPipeline, classes[name]).from_pretrained(pretrained_model_name_or_path, **kwargs)

    def to(self, *args, **kwargs):
        super().to(*args, **kwargs)
        # captures with models of their own are no modules, which the superclass would move
        if hasattr(self.capture, "to"):
            self.capture.to(self.device)
        return self

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def current_timestep(self):
        return self._current_timestep

    @property
    def attention_kwargs(self):
        return self._attention_kwargs

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    @property
    def show_progress(self) -> bool:
        """Whether progress bars are shown (`set_progress_bar_config(disable=True)` turns them off)."""
        return not getattr(self, "_progress_bar_config", {}).get("disable", False)

    def complete_options(self, options: SamplingOptions) -> SamplingOptions:
        """
        The options with the repository's defaults in them.

        Raises:
            ValueError: An option that this pipeline cannot sample with, or a component that it lacks.
        """
        for name in self._required_components:
            if getattr(self, name) is None:
                raise ValueError(f"`{name}` is None, but {type(self).__name__} cannot generate without one.")
        defaults = {k: self.config[k] for k in ("num_inference_steps", "guidance_scale", "segment_frames")}
        options = dataclasses.replace(options, **{k: v for k, v in defaults.items() if getattr(options, k) is None})
        if isinstance(options.callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            options.callback_on_step_end_tensor_inputs = options.callback_on_step_end.tensor_inputs
        options.check(self.vae_scale_factor_temporal, self._callback_tensor_inputs)
        texts = ("prompt", "prompt_embeds", "negative_prompt", "negative_prompt_embeds")
        if self.transformer.config.text_dim is None and any(getattr(options, name) is not None for name in texts):
            raise ValueError("A prompt was given, but this pipeline's transformer takes no text.")
        for name in ("prompt", "negative_prompt"):
            if getattr(options, name) is not None and self.text_encoder is None:
                raise ValueError(f"`{name}` was given, but this pipeline has no `text_encoder`; pass `{name}_embeds`.")
        image_dim = self.transformer.config.image_dim
        if image_dim is None and options.image_embeds is not None:
            raise ValueError("`image_embeds` was given, but this pipeline's transformer takes no CLIP states.")
        lacks_encoder = self.image_encoder is None or self.image_processor is None
        if image_dim is not None and options.image_embeds is None and lacks_encoder:
            raise ValueError(
                f"The `transformer` takes CLIP states of the picture (its `image_dim` is {image_dim}), but this pipeline"
                " has no `image_encoder` and `image_processor`: pass `image_embeds`."
            )
        accepted = inspect.signature(self.scheduler.set_timesteps).parameters
        for name in ("sigmas", "timesteps"):
            if getattr(options, name) is not None and name not in accepted:
                raise ValueError(f"`{name}` was given, but {type(self.scheduler).__name__} takes none.")
        return options

    def check_inputs(self, inputs: AnimationInputs, options: SamplingOptions) -> None:
        """Raises `ValueError` for inputs that this pipeline cannot sample with."""
        if not isinstance(inputs, AnimationInputs):
            raise ValueError(
                f"`inputs` is a {type(inputs).__name__}, but has to be `AnimationInputs`, as `prepare` makes them."
            )
        inputs.check()
        for name in ("style", "face_size"):
            theirs, ours = (p.config[name] for p in (inputs.motion_processor, self.motion_processor))
            if theirs != ours:
                raise ValueError(
                    f"`inputs` were prepared for weights whose `motion_processor` has {name} {theirs!r}, but this"
                    f" pipeline's has {ours!r}: prepare them with this pipeline."
                )

    @takes_arguments_of(SamplingOptions)
    def stream(self, inputs: AnimationInputs, **arguments) -> Iterator[DreamActorPipelineOutput]:
        """
        Generates segment by segment, in memory that does not grow with the length.

        Args:
            inputs ([`AnimationInputs`]): What is performed, as `prepare` makes it.
        {arguments}

        Returns:
            Iterator of [`DreamActorPipelineOutput`]: The new frames of each segment. Joined, they are what `__call__`
            returns.

        Raises:
            ValueError: On input that cannot be used; before the first segment is asked for.
        """
        self._interrupt = False
        options = self.complete_options(SamplingOptions(**arguments))
        self.check_inputs(inputs, options)
        return self._sample(inputs, options)

    def _sample(self, inputs: AnimationInputs, options: SamplingOptions) -> Iterator[DreamActorPipelineOutput]:
        """The sampler: one output for each segment."""
        raise NotImplementedError

    def _start_segment(self, options: SamplingOptions, caches: dict[str, ConditionCache]) -> torch.Tensor:
        """Puts the state of this call in place, whatever ran since the segment before; returns the timesteps."""
        self._guidance_scale = options.guidance_scale
        self._reference_guidance_scale = options.reference_guidance_scale
        self._attention_kwargs = options.attention_kwargs
        self._current_timestep = None
        self.transformer._reset_stateful_cache()
        for cache in caches.values():
            cache.start_segment()
        steps = options.num_inference_steps
        timesteps, _ = retrieve_timesteps(
            self.scheduler, steps, self._execution_device, options.timesteps, options.sigmas
        )
        self._num_timesteps = len(timesteps)
        return timesteps

    def encode_texts(self, options: SamplingOptions) -> dict[str, torch.Tensor | None]:
        """`prompt_embeds` and, for guidance, `negative_prompt_embeds` of a call, as `encode_prompt` gives them."""
        self._guidance_scale = options.guidance_scale
        self._reference_guidance_scale = options.reference_guidance_scale
        batch_size, negative_prompt_embeds = options.num_videos_per_prompt, None
        if self.do_classifier_free_guidance:
            negative_prompt_embeds = self.encode_prompt(
                options.negative_prompt, options.negative_prompt_embeds, batch_size, negative=True
            )
        return {
            "prompt_embeds": self.encode_prompt(options.prompt, options.prompt_embeds, batch_size),
            "negative_prompt_embeds": negative_prompt_embeds,
        }

    def _predict(
        self,
        branch: str,
        model_input: torch.Tensor,
        t: torch.Tensor,
        options: SamplingOptions,
        caches: dict[str, ConditionCache],
        **conditions,
    ) -> torch.Tensor:
        """The velocity of one guidance branch, under its own caches."""
        with self.transformer.cache_context(branch):
            return self.transformer(
                hidden_states=model_input,
                timestep=t.expand(model_input.shape[0]),
                face_scale=options.face_scale,
                condition_cache=caches[branch],
                attention_kwargs=self.attention_kwargs,
                return_dict=False,
                **conditions,
            )[0]

    def _end_step(
        self,
        i: int,
        t: torch.Tensor,
        state: dict[str, Any],
        options: SamplingOptions,
        caches: dict[str, ConditionCache],
    ) -> dict[str, Any]:
        """Calls the callback, and gives what it changed of `latents` and text states; scales that it set on the pipeline
        hold for the segments that follow, too."""
        if options.callback_on_step_end is not None:
            names = options.callback_on_step_end_tensor_inputs
            changed = options.callback_on_step_end(self, i, t, {name: state[name] for name in names})
            given, state = state, {name: changed.pop(name, value) for name, value in state.items()}
            if any(state[name] is not given[name] for name in state if name != "latents"):
                for cache in caches.values():
                    cache.clear()
            options.guidance_scale = self._guidance_scale
            options.reference_guidance_scale = self._reference_guidance_scale
        return state

    def prepare_latents(
        self,
        batch_size: int,
        num_latent_frames: int,
        height: int,
        width: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Noise `(B, C, T, h, w)` in float32, from the generator or as given."""
        scale = self.vae_scale_factor_spatial
        shape = (batch_size, self.vae.config.z_dim, num_latent_frames, height // scale, width // scale)
        if latents is None:
            return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        if tuple(latents.shape) != shape:
            raise ValueError(f"`latents` has the shape {tuple(latents.shape)}, but this video needs {shape}.")
        return latents.to(self._execution_device, torch.float32)

    def extra_step_arguments(self, options: SamplingOptions) -> dict[str, Any]:
        """The generator, for schedulers that add noise."""
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        return {"generator": options.generator} if takes_generator else {}

    @torch.no_grad()
    @takes_arguments_of(PreparationMixin.prepare, SamplingOptions)
    def __call__(
        self, image, video=None, *, return_dict: bool = True, **arguments
    ) -> DreamActorPipelineOutput | tuple:
        """
        Animates a picture.

        Args:
            image ([`AnimationInputs`], or as `prepare` takes it):
                What `prepare` made, or the picture, with the arguments of `prepare`.
            return_dict (`bool`, defaults to `True`): Whether to return an output object or a tuple.
        {arguments}

        Returns:
            [`DreamActorPipelineOutput`] or `tuple`: The videos and their fps.

        Raises:
            ValueError, OSError: On input that cannot be used, before anything is generated.

        Examples:
            ```python
            >>> import torch
            >>> from diffusers_dreamactor import DreamActorPipeline

            >>> pipe = DreamActorPipeline.from_pretrained("path/or/hub-id", dtype=torch.bfloat16).to("cuda")
            >>> result = pipe("person.png", "driver.mp4", generator=torch.Generator().manual_seed(0))
            >>> result.save("out.mp4")
            ```
        """
        sampling = {field.name for field in dataclasses.fields(SamplingOptions)}
        options = self.complete_options(SamplingOptions(**{k: v for k, v in arguments.items() if k in sampling}))
        arguments = {k: v for k, v in arguments.items() if k not in sampling}
        unknown = [name for name in arguments if name not in inspect.signature(self.prepare).parameters]
        if unknown:
            raise TypeError(f"`{unknown[0]}` is no argument of {type(self).__name__}.")
        # from here on it may be set, also while the motion is captured
        self._interrupt = False
        if isinstance(image, AnimationInputs):
            given = [*arguments] if video is None else ["video", *arguments]
            if given:
                raise ValueError(f"`{given[0]}` was given, but `image` are inputs that are prepared already.")
            inputs = image
        else:
            inputs = self.prepare(image, video, **arguments)
        self.check_inputs(inputs, options)
        outputs = list(self._sample(inputs, options))
        parts = [output.frames for output in outputs]
        if options.output_type == "pil":
            frames = [[frame for part in video for frame in part] for video in zip(*parts)]
        elif options.output_type == "np":
            frames = np.concatenate(parts, axis=1)
        else:
            frames = torch.cat(parts, dim=1 if options.output_type == "pt" else 2)
        if not return_dict:
            return (frames, inputs.fps)
        return DreamActorPipelineOutput(frames, inputs.fps, inputs.sound, self.provenance(options.generator))

    def provenance(self, generator: torch.Generator | list[torch.Generator] | None = None) -> Provenance:
        """What videos of this pipeline say of where they come from: its weights, the seed of the generator, and now."""
        if isinstance(generator, list):
            seed = tuple(one.initial_seed() for one in generator)
        else:
            seed = None if generator is None else generator.initial_seed()
        return Provenance(model_name(self.name_or_path), seed)

    @contextlib.contextmanager
    def _generation(self, total: int) -> Iterator[Any]:
        """A progress bar; models go back to where offloading keeps them at the end, also when the caller stops midway."""
        try:
            with self.progress_bar(total=total) as progress_bar:
                yield progress_bar
        finally:
            self._current_timestep = None
            # a stream that is still open when Python exits needs no tidying, which would import what is gone
            if not sys.is_finalizing():
                self.maybe_free_model_hooks()
