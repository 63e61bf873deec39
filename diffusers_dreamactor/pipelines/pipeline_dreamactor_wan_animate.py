"""Wan2.2-Animate's weights in DreamActor's classes: what `prepare` makes, sampled in that model's way."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import diffusers
import PIL.Image
import torch
import torch.nn.functional as F
import transformers
from diffusers import PipelineQuantizationConfig
from diffusers.video_processor import VideoProcessor

from diffusers_dreamactor.frame_sources import reflect_index
from diffusers_dreamactor.loaders.wan_animate import find_repository, load_models, load_prompt_embedding
from diffusers_dreamactor.media import VideoReader
from diffusers_dreamactor.models.autoencoder_dreamactor import DreamActorVAE
from diffusers_dreamactor.models.condition_cache import ConditionCache
from diffusers_dreamactor.pipelines.animation_inputs import AnimationInputs
from diffusers_dreamactor.pipelines.animation_pipeline import AnimationPipeline
from diffusers_dreamactor.pipelines.conditioning import (
    Segment,
    combine_guidance,
    frame_mask,
    iterate_segments,
    latent_length,
)
from diffusers_dreamactor.pipelines.pipeline_output import DreamActorPipelineOutput
from diffusers_dreamactor.pipelines.sampling import SamplingOptions
from diffusers_dreamactor.processors.guidance import MotionGuidance, MotionGuidanceProcessor
from diffusers_dreamactor.processors.reference import Reference


# Pixels of the size that the weights were trained at.
GENERATION_AREA = 832 * 480


class DreamActorWanAnimatePipeline(AnimationPipeline):
    r"""
    Animates a picture with Wan2.2-Animate's weights, and gives the frames of Diffusers' `WanAnimatePipeline`.

    Its sampler: the reference is the first frame of the token stream, the skeleton picture is encoded by the VAE, guidance
    leaves out the face by crops of -1, and a segment starts from the re-encoded last frame of the one before. Preparation
    and arguments are [`AnimationPipeline`]'s, whose documentation has the components; `mode="replace"` puts the person into a
    scene. One reference is taken, always seen: there are no pseudo-references and no `reference_guidance_scale`.
    """

    _required_components = ["transformer", "vae", "scheduler", "face_motion_encoder", "motion_processor"]
    _default_options = {"num_inference_steps": 20, "guidance_scale": 1.0, "segment_frames": 77}

    @classmethod
    def from_wan_animate(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        dtype: torch.dtype | dict[str, torch.dtype] | None = None,
        quantization_config: PipelineQuantizationConfig | None = None,
        device_map: str | None = None,
        variant: str | None = None,
        keep_text_encoder: bool = False,
        prompt_cache: str | os.PathLike | None = None,
        torch_dtype: torch.dtype | dict[str, torch.dtype] | None = None,
        **kwargs,
    ) -> "DreamActorWanAnimatePipeline":
        """
        Loads a repository of Diffusers' `WanAnimatePipeline`, such as `Wan-AI/Wan2.2-Animate-14B-Diffusers`, as it is:
        tensors are renamed, cast and quantised while they are read, and nothing is written but the text states of the usual
        prompt, once, in the user's cache.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): A folder or a Hub id.
            dtype (`torch.dtype` or `dict`, *optional*):
                Of the weights, or of each component's by its name and the others' by `"default"`; the source's when
                `None`, which are then mapped from the files instead of read.
            quantization_config ([`PipelineQuantizationConfig`], *optional*): What is quantised, and how.
            device_map (`str`, *optional*): A device, such as `"cuda"`, that the weights are put on while they are read.
            variant (`str`, *optional*): `"fp16"` for weights in files with that word before their suffix.
            keep_text_encoder (`bool`, defaults to `False`): Whether the text encoder comes along, for own prompts; 11 GB.
            prompt_cache (`str` or `os.PathLike`, *optional*): Where the text states are kept.
            kwargs: Components that take the place of the repository's, values of the pipeline's config, and the
                `cache_dir`, `revision`, `token`, `local_files_only` and `force_download` of the Hub's client.

        Raises:
            OSError: A file that is missing or broken.
            ValueError: Weights that do not fit.
        """
        if isinstance(device_map, str) and device_map in ("balanced", "auto", "balanced_low_0", "sequential"):
            raise ValueError(
                f"`device_map` is {device_map!r}, but here it has to be None or one device, such as 'cuda'."
            )
        source, dtype = str(pretrained_model_name_or_path), torch_dtype if dtype is None else dtype
        hub = ("cache_dir", "revision", "token", "local_files_only", "force_download")
        hub = {name: kwargs.pop(name) for name in hub if name in kwargs}
        folder = find_repository(source, keep_text_encoder, **hub)
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))

        def of(name: str) -> torch.dtype | None:
            return dtype.get(name, dtype.get("default")) if isinstance(dtype, dict) else dtype

        def quantised(name: str, is_diffusers: bool = True):
            return quantization_config and quantization_config._resolve_quant_config(is_diffusers, name)

        components = load_models(
            folder,
            of("transformer"),
            {name: quantised(name) for name in ("transformer", "face_motion_encoder")},
            device_map or "cpu",
            variant,
        )
        components["vae"] = DreamActorVAE.from_pretrained(folder / "vae", dtype=of("vae"), variant=variant)
        own = ["image_encoder", "text_encoder"] if keep_text_encoder else ["image_encoder"]
        for name in own:
            model_class = getattr(transformers, index[name][1])
            extra = {"quantization_config": quantised(name, False)} if quantised(name, False) else {}
            components[name] = model_class.from_pretrained(folder / name, dtype=of(name) or "auto", **extra)
        for name in ("scheduler", "image_processor", "tokenizer"):
            library = {"diffusers": diffusers, "transformers": transformers}[index[name][0]]
            components[name] = getattr(library, index[name][1]).from_pretrained(folder / name)
        cache = None if prompt_cache is None else Path(prompt_cache)
        components["prompt_embedding"] = load_prompt_embedding(source, index, of("prompt_embedding"), cache, **hub)
        face_size = components["face_motion_encoder"].config.size
        components["motion_processor"] = MotionGuidanceProcessor(
            style="wan", area=GENERATION_AREA, face_size=face_size, face_scale=1.0
        )
        pipe = cls(**{**components, **kwargs})
        pipe.register_to_config(_name_or_path=source)
        return pipe if device_map is None else pipe.to(device_map)

    def prepare_references(self, image, *args, **kwargs) -> list[Reference]:
        if isinstance(image, list | tuple) and len(image) > 1:
            raise ValueError(f"`image` has {len(image)} pictures, but Wan-Animate weights take one reference.")
        return super().prepare_references(image, *args, **kwargs)

    def take_drawing(self, driver: VideoReader, height: int, width: int) -> MotionGuidance:
        """A video of drawn skeletons as the guidance that it is, at the generation size; it has no face."""
        pictures = [
            PIL.Image.fromarray(frame).resize((width, height), PIL.Image.Resampling.LANCZOS) for frame in driver
        ]
        return MotionGuidance.from_frames(skeleton=pictures, fps=driver.fps)

    def complete_options(self, options: SamplingOptions) -> SamplingOptions:
        options = super().complete_options(options)
        if options.num_pseudo_references:
            raise ValueError(
                f"`num_pseudo_references` is {options.num_pseudo_references}, but has to be 0 for Wan-Animate weights,"
                " which take one reference."
            )
        if options.reference_guidance_scale is not None:
            raise ValueError("`reference_guidance_scale` was given, but Wan-Animate weights always see the reference.")
        return options

    def check_inputs(self, inputs: AnimationInputs, options: SamplingOptions) -> None:
        super().check_inputs(inputs, options)
        if len(inputs.references) > 1:
            raise ValueError(f"`inputs` have {len(inputs.references)} references, but Wan-Animate weights take one.")
        if options.output_type == "latent" and len(inputs) > options.segment_frames:
            raise ValueError(
                f'`output_type` is "latent", but Wan-Animate weights make these {len(inputs)} frames in several segments that'
                f" are decoded apart: make at most {options.segment_frames} frames, or take decoded ones."
            )
        if options.latents is not None:
            num_latent_frames = latent_length(options.segment_frames, self.vae_scale_factor_temporal) + 1
            size = (num_latent_frames, inputs.height, inputs.width)
            self.prepare_latents(options.num_videos_per_prompt, *size, None, options.latents)

    def encode_pose(self, guidance: MotionGuidance, batch_size: int, pose_scale: float = 1.0) -> torch.Tensor:
        """Pose latents `(B, C, T, h, w)` of a segment: its skeleton picture, encoded by the VAE."""
        maps = guidance.maps(device=self._execution_device, dtype=self.vae.dtype)
        pose_latents = self.vae.encode_video(maps[:, :3])
        pose_latents = pose_latents * pose_scale if pose_scale != 1.0 else pose_latents
        return pose_latents.to(self.transformer.dtype).expand(batch_size, -1, -1, -1, -1)

    def encode_blank_face(self, num_frames: int, batch_size: int) -> torch.Tensor:
        """The unconditional face tokens `(B, F, motion_dim)`: those of crops of -1."""
        size = self.motion_processor.config.face_size
        crop = torch.full((1, 1, 3, size, size), -1.0, device=self._execution_device)
        tokens = self.face_motion_encoder(crop.to(self.face_motion_encoder.dtype))
        return tokens.to(self.transformer.dtype).expand(batch_size, num_frames, -1)

    def encode_known_frames(
        self, inputs: AnimationInputs, segment: Segment, last_frames: torch.Tensor | None, batch_size: int
    ) -> torch.Tensor:
        """
        Mask and condition channels of a segment: the frames that are known, re-encoded.

        Args:
            inputs ([`AnimationInputs`]): With the scene of a replacement.
            segment (`Segment`): The segment's range of frames.
            last_frames (`torch.Tensor` of shape `(B, 3, n, H, W)`, *optional*): The end of the segment before, in
                [-1, 1].
            batch_size (`int`): Videos in the batch.

        Returns:
            `torch.Tensor` of shape `(B, 20, T, h, w)`, float32.
        """
        height, width = inputs.height, inputs.width
        latent_size = (height // self.vae_scale_factor_spatial, width // self.vae_scale_factor_spatial)
        if inputs.mode == "replace":
            frames, mask = self.read_scene(inputs, segment)
            known = F.interpolate(1 - mask[0].transpose(0, 1), size=latent_size, mode="nearest")
            known = known.transpose(0, 1).unsqueeze(0)
        else:
            frames = torch.zeros(1, 3, segment.num_frames, height, width)
            known = torch.zeros(1, 1, segment.num_frames, *latent_size)
        frames = frames.to(self._execution_device, self.vae.dtype).repeat(batch_size, 1, 1, 1, 1)
        known = known.to(self._execution_device, torch.float32).repeat(batch_size, 1, 1, 1, 1)
        if last_frames is not None:
            frames[:, :, : last_frames.shape[2]] = last_frames
            known[:, :, : last_frames.shape[2]] = 1
        condition = self.vae.encode_video(frames).float()
        return torch.cat([frame_mask(known, self.vae_scale_factor_temporal), condition], dim=1)

    def read_scene(self, inputs: AnimationInputs, segment: Segment) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The scene of a replacement: frames `(1, 3, F, H, W)` in [-1, 1] and the person's mask `(1, 1, F, H, W)` in
        [0, 1], 1 where the person goes.
        """
        index = reflect_index(segment.stop, len(inputs))[segment.start :]
        size = {"height": inputs.height, "width": inputs.width}
        mask_processor = VideoProcessor(
            vae_scale_factor=self.vae_scale_factor_spatial, do_normalize=False, do_convert_grayscale=True
        )
        background, mask = zip(*inputs.scene(index))
        return (
            self.video_processor.preprocess_video(list(background), **size),
            mask_processor.preprocess_video(list(mask), **size),
        )

    @torch.no_grad()
    def _sample(self, inputs: AnimationInputs, options: SamplingOptions) -> Iterator[DreamActorPipelineOutput]:
        batch_size, temporal_scale = options.num_videos_per_prompt, self.vae_scale_factor_temporal
        provenance = self.provenance(options.generator)

        # 1. Encode what is the same for all segments
        text = self.encode_texts(options)
        image_embeds = self.encode_image(inputs.references[0], options.image_embeds, batch_size)
        reference = self.encode_pictures(inputs.references, batch_size)
        reference = torch.cat([reference.new_ones(batch_size, temporal_scale, *reference.shape[2:]), reference], dim=1)

        # 2. Generate the segments, each of full length
        segments = list(iterate_segments(len(inputs), options.segment_frames, 1, temporal_scale, full=True))
        caches = {name: ConditionCache() for name in ("cond", "uncond")}
        last_frames = None
        with self._generation(len(segments) * options.num_steps) as progress_bar:
            for segment, guidance in zip(segments, inputs.stream(segments, beyond="reflect")):
                timesteps = self._start_segment(options, caches)
                shared = {
                    "encoder_hidden_states_image": image_embeds,
                    "pose_hidden_states": self.encode_pose(guidance, batch_size, options.pose_scale),
                    "num_stream_references": 1,
                }
                face = self.encode_face(guidance, batch_size)
                blank_face = None
                latents = self.prepare_latents(
                    batch_size,
                    latent_length(segment.num_frames, temporal_scale) + 1,
                    inputs.height,
                    inputs.width,
                    options.generator,
                    options.latents if segment.start == 0 else None,
                )
                known = self.encode_known_frames(inputs, segment, last_frames, batch_size)
                condition = torch.cat([reference.float(), known], dim=2)

                # 2.1 Denoise
                for i, t in enumerate(timesteps):
                    if self.interrupt:
                        continue
                    self._current_timestep = t
                    model_input = torch.cat([latents, condition], dim=1).to(self.transformer.dtype)
                    step = (model_input, t, options, caches)
                    noise_pred = self._predict(
                        "cond",
                        *step,
                        encoder_hidden_states=text["prompt_embeds"],
                        motion_hidden_states=face,
                        **shared,
                    )
                    if self.do_classifier_free_guidance:
                        if blank_face is None:
                            blank_face = self.encode_blank_face(segment.num_frames, batch_size)
                        unconditional = self._predict(
                            "uncond",
                            *step,
                            encoder_hidden_states=text["negative_prompt_embeds"],
                            motion_hidden_states=blank_face,
                            **shared,
                        )
                        noise_pred = combine_guidance(unconditional, noise_pred, self.guidance_scale)
                    latents = self.scheduler.step(
                        noise_pred, t, latents, **self.extra_step_arguments(options), return_dict=False
                    )[0]
                    state = self._end_step(i, t, {"latents": latents, **text}, options, caches)
                    latents, text = state.pop("latents"), state
                    if (i + 1) % self.scheduler.order == 0 or i == len(timesteps) - 1:
                        progress_bar.update()

                # 2.2 Decode; the last frame starts the next segment
                overlap = int(segment.start > 0)
                frames = latents = latents[:, :, 1:]
                if options.output_type != "latent":
                    decoded = self.vae.decode_video(latents.to(self.vae.dtype))[:, :, overlap:]
                    last_frames = decoded[:, :, -1:]
                    new_frames = min(segment.stop, len(inputs)) - segment.start - overlap
                    frames = self.video_processor.postprocess_video(decoded[:, :, :new_frames], options.output_type)
                yield DreamActorPipelineOutput(frames, inputs.fps, inputs.sound, provenance)
                if self.interrupt:
                    # what would follow is noise
                    break
