"""The DreamActor pipeline: a picture and a driver in, a video out."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch

from diffusers_dreamactor.models.condition_cache import ConditionCache
from diffusers_dreamactor.motion.turning import turning_motion
from diffusers_dreamactor.pipelines.animation_inputs import AnimationInputs
from diffusers_dreamactor.pipelines.animation_pipeline import AnimationPipeline
from diffusers_dreamactor.pipelines.conditioning import (
    combine_guidance,
    empty_condition,
    encode_reference_pose,
    initial_latent_condition,
    iterate_segments,
    latent_length,
    pack_reference_latents,
)
from diffusers_dreamactor.pipelines.pipeline_output import DreamActorPipelineOutput
from diffusers_dreamactor.pipelines.sampling import SamplingOptions
from diffusers_dreamactor.processors.guidance import MotionGuidance
from diffusers_dreamactor.processors.reference import Reference, pick_complementary_frames


class DreamActorPipeline(AnimationPipeline):
    r"""
    Animates a picture of a person: it performs what a driving video (or a motion, or speech) performs.

    DreamActor-M1's sampler (arXiv 2504.01724, section 3.4): isolated references, pose latents of a pose encoder, and
    segments that hand over their last latent, so that a long video is one stream of latents, decoded as one.

    It inherits from [`AnimationPipeline`], whose documentation has the components, and so from [`DiffusionPipeline`], which
    documents loading, saving, devices and offloading. `from_pretrained` of a repository with Wan-Animate weights gives a
    [`DreamActorWanAnimatePipeline`].
    """

    _required_components = [
        "transformer",
        "vae",
        "scheduler",
        "face_motion_encoder",
        "motion_processor",
        "pose_encoder",
    ]
    _default_options = {"num_inference_steps": 30, "guidance_scale": 2.5, "segment_frames": 73}
    _reads_reference_pose = True

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1 or self._reference_guidance_scale is not None

    def check_mode(self, mode: str, video, background_video, mask_video) -> None:
        if mode == "replace":
            raise ValueError('`mode="replace"` needs Wan-Animate weights, but this pipeline has others.')
        super().check_mode(mode, video, background_video, mask_video)

    def check_inputs(self, inputs: AnimationInputs, options: SamplingOptions) -> None:
        super().check_inputs(inputs, options)
        pose = inputs.references[0].motion
        if options.num_pseudo_references > 0 and (pose is None or pose.head is None or pose.body is None):
            raise ValueError(
                f"`num_pseudo_references` is {options.num_pseudo_references}, but needs the pose of body and head in the"
                " picture, which is not known: pass another picture, or `reference_motion` when the capture finds none."
            )
        if options.latents is not None:
            num_latent_frames = latent_length(len(inputs), self.vae_scale_factor_temporal)
            size = (num_latent_frames, inputs.height, inputs.width)
            self.prepare_latents(options.num_videos_per_prompt, *size, None, options.latents)

    def encode_pose(self, guidance: MotionGuidance, batch_size: int, pose_scale: float = 1.0) -> torch.Tensor:
        """Pose latents `(B, pose_channels, T, h, w)` of a segment."""
        pose_latents = self.pose_encoder(guidance.maps(device=self._execution_device, dtype=self.pose_encoder.dtype))
        pose_latents = pose_latents * pose_scale if pose_scale != 1.0 else pose_latents
        return pose_latents.to(self.transformer.dtype).expand(batch_size, -1, -1, -1, -1)

    def encode_reference_maps(self, references: list[Reference], batch_size: int) -> torch.Tensor | None:
        """Pose latents `(B, pose_channels, R, h, w)` of the references' own poses; `None` when no pose is known."""
        if all(reference.motion is None for reference in references):
            return None
        height, width = references[0].height, references[0].width
        maps = [
            torch.full((1, 6, 1, height, width), -1.0)
            if reference.motion is None
            else self.motion_processor(dataclasses.replace(reference.motion, face=None), height, width).maps()
            for reference in references
        ]
        maps = torch.cat(maps, dim=2).to(self._execution_device, self.pose_encoder.dtype)
        pose_latents = encode_reference_pose(self.pose_encoder, maps)
        return pose_latents.to(self.transformer.dtype).expand(batch_size, -1, -1, -1, -1)

    def make_pseudo_references(self, inputs: AnimationInputs, options: SamplingOptions) -> list[Reference]:
        """
        The first stage of two-stage inference (DreamActor-M1, section 3.4): a short clip in which the person turns is
        generated from the one picture, and frames of spread-out head yaw become further references.

        Args:
            inputs ([`AnimationInputs`]): The person, with a known pose of body and head.
            options ([`SamplingOptions`]): How the clip is sampled, and how many of its frames are picked.

        Returns:
            `list[Reference]`: Empty when it was interrupted.
        """
        reference = inputs.references[0]
        motion = turning_motion(reference.motion, self.config.segment_frames)
        picks = pick_complementary_frames(motion, options.num_pseudo_references)
        turn = AnimationInputs([reference], np.arange(len(motion)), motion.fps, self.motion_processor, motion)
        first_of = {
            name: getattr(options, name) if getattr(options, name) is None else getattr(options, name)[:1]
            for name in ("prompt_embeds", "negative_prompt_embeds", "image_embeds")
        }
        generator = options.generator[0] if isinstance(options.generator, list) else options.generator
        once = dataclasses.replace(
            options,
            **first_of,
            num_pseudo_references=0,
            num_videos_per_prompt=1,
            generator=generator,
            latents=None,
            output_type="pil",
            callback_on_step_end=None,
        )
        frames = [frame for segment in self._sample(turn, once) for frame in segment.frames[0]]
        if self.interrupt:
            return []
        return [dataclasses.replace(reference, image=frames[i], motion=motion[i : i + 1]) for i in picks]

    @torch.no_grad()
    def _sample(self, inputs: AnimationInputs, options: SamplingOptions) -> Iterator[DreamActorPipelineOutput]:
        batch_size, temporal_scale = options.num_videos_per_prompt, self.vae_scale_factor_temporal
        provenance = self.provenance(options.generator)

        # 1. Encode what is the same for all segments
        references = list(inputs.references)
        if options.num_pseudo_references > 0 and not self.interrupt:
            references += self.make_pseudo_references(inputs, options)
        text = self.encode_texts(options)
        reference_latents = pack_reference_latents(self.encode_pictures(references, batch_size), temporal_scale)
        appearance = {
            "encoder_hidden_states_image": self.encode_image(references[0], options.image_embeds, batch_size),
            "reference_hidden_states": reference_latents.to(self.transformer.dtype),
            "reference_pose_hidden_states": self.encode_reference_maps(references, batch_size),
        }

        # 2. Generate the segments, one stream of latents
        segments = list(iterate_segments(len(inputs), options.segment_frames, 1, temporal_scale))
        caches = {name: ConditionCache() for name in ("cond", "uncond")}
        # without the motion, the reference is the same
        caches["reference"] = caches["cond"]
        decoder_state, last_latent = {}, None
        with self._generation(len(segments) * options.num_steps) as progress_bar:
            for segment, guidance in zip(segments, inputs.stream(segments)):
                timesteps = self._start_segment(options, caches)
                movement = {
                    "pose_hidden_states": self.encode_pose(guidance, batch_size, options.pose_scale),
                    "motion_hidden_states": self.encode_face(guidance, batch_size),
                }
                num_latent_frames = latent_length(segment.num_frames, temporal_scale)
                noise = options.latents
                if noise is not None:
                    noise = noise[:, :, segment.start // temporal_scale :][:, :, :num_latent_frames]
                latents = self.prepare_latents(
                    batch_size, num_latent_frames, inputs.height, inputs.width, options.generator, noise
                )
                if last_latent is None:
                    condition = empty_condition(latents, temporal_scale)
                else:
                    condition = initial_latent_condition(latents, last_latent, temporal_scale)

                # 2.1 Denoise
                for i, t in enumerate(timesteps):
                    if self.interrupt:
                        continue
                    self._current_timestep = t
                    model_input = torch.cat([latents, condition], dim=1).to(self.transformer.dtype)
                    prompt, negative = text["prompt_embeds"], text["negative_prompt_embeds"]
                    step = (model_input, t, options, caches)
                    noise_pred = self._predict("cond", *step, encoder_hidden_states=prompt, **appearance, **movement)
                    if self.do_classifier_free_guidance:
                        reference_only = None
                        if self._reference_guidance_scale is not None:
                            reference_only = self._predict(
                                "reference", *step, encoder_hidden_states=prompt, **appearance
                            )
                        noise_pred = combine_guidance(
                            self._predict("uncond", *step, encoder_hidden_states=negative),
                            noise_pred,
                            self.guidance_scale,
                            reference_only,
                            self._reference_guidance_scale,
                        )
                    latents = self.scheduler.step(
                        noise_pred, t, latents, **self.extra_step_arguments(options), return_dict=False
                    )[0]
                    state = self._end_step(i, t, {"latents": latents, **text}, options, caches)
                    latents, text = state.pop("latents"), state
                    if (i + 1) % self.scheduler.order == 0 or i == len(timesteps) - 1:
                        progress_bar.update()

                # 2.2 Decode the new frames; the last latent starts the next segment
                overlap = int(segment.start > 0)
                latents = latents[:, :, overlap:]
                last_latent = latents[:, :, -1:]
                if options.output_type == "latent":
                    frames = latents
                else:
                    new_frames = min(segment.stop, len(inputs)) - segment.start - overlap
                    frames = self.vae.decode_video(latents.to(self.vae.dtype), feat_cache=decoder_state)
                    frames = self.video_processor.postprocess_video(frames[:, :, :new_frames], options.output_type)
                yield DreamActorPipelineOutput(frames, inputs.fps, inputs.sound, provenance)
                if self.interrupt:
                    # what would follow is noise
                    break
