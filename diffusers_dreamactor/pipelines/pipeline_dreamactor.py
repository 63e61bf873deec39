"""The DreamActor pipeline: a picture and a driver in, a video out."""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.wan.pipeline_wan_animate import prompt_clean
from diffusers.utils import logging, replace_example_docstring
from diffusers.utils.torch_utils import get_module_execution_device, randn_tensor
from diffusers.video_processor import VideoProcessor
from transformers import BaseImageProcessor, CLIPVisionModel, PreTrainedModel, PreTrainedTokenizerBase

from diffusers_dreamactor.loaders.lora_pipeline import DreamActorLoraLoaderMixin
from diffusers_dreamactor.media import VideoReader, load_audio
from diffusers_dreamactor.models.audio_motion_encoder import AudioMotionEncoder
from diffusers_dreamactor.models.autoencoder_dreamactor import DreamActorVAE
from diffusers_dreamactor.models.condition_cache import ConditionCache
from diffusers_dreamactor.models.face_motion_encoder import FaceMotionEncoder
from diffusers_dreamactor.models.pose_encoder import PoseEncoder
from diffusers_dreamactor.models.prompt_embedding import PromptEmbedding
from diffusers_dreamactor.models.transformer_dreamactor import DreamActorTransformer3DModel
from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture
from diffusers_dreamactor.motion.capture.selection import NoPersonError
from diffusers_dreamactor.motion.retarget import check_fit, resize_motion, retarget
from diffusers_dreamactor.motion.sequence import MotionSequence
from diffusers_dreamactor.motion.turning import turning_motion
from diffusers_dreamactor.pipelines.conditioning import (
    Segment,
    combine_guidance,
    empty_condition,
    encode_reference_pose,
    frame_mask,
    image_states,
    initial_latent_condition,
    iterate_segments,
    latent_length,
    pack_reference_latents,
    speech_features,
)
from diffusers_dreamactor.pipelines.driver import EXTEND, Driver, frame_index, iterate_frames, reflect_index
from diffusers_dreamactor.pipelines.pipeline_output import DreamActorPipelineOutput
from diffusers_dreamactor.processors.guidance import MotionGuidance, MotionGuidanceProcessor
from diffusers_dreamactor.processors.reference import Reference, load_picture, pick_complementary_frames
from diffusers_dreamactor.sound import check_samples


logger = logging.get_logger(__name__)

PARTS = ("face", "head", "body")

EXAMPLE_DOC_STRING = """
    Examples:
        ```python
        >>> import torch
        >>> import diffusers_dreamactor
        >>> from diffusers_dreamactor import DreamActorPipeline
        >>> from diffusers_dreamactor.media import save_video

        >>> pipe = DreamActorPipeline.from_pretrained("path/or/hub-id", torch_dtype=torch.bfloat16).to("cuda")
        >>> result = pipe("person.png", "driver.mp4", generator=torch.Generator().manual_seed(0))
        >>> save_video(result.frames[0], "out.mp4", fps=result.fps, audio="driver.mp4")
        ```
"""


class DreamActorPipeline(DiffusionPipeline, DreamActorLoraLoaderMixin):
    r"""
    Animates a picture of a person: it performs what a driving video (or a motion, or speech) performs.

    This model inherits from [`DiffusionPipeline`]; the superclass documents loading, saving, devices and offloading.

    Args:
        transformer ([`DreamActorTransformer3DModel`]): Denoises the video latents.
        vae ([`DreamActorVAE`]): Encodes and decodes video.
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
        wan_animate (`bool`, defaults to `False`): Whether the weights are Wan2.2-Animate's: reference in the token
            stream, skeleton encoded by the VAE, unconditional face of -1, continuation by re-encoded frames.
        num_inference_steps (`int`, defaults to 30), guidance_scale (`float`, defaults to 2.5), segment_frames (`int`,
            defaults to 73), fps (`float`, defaults to 24.0): What calls use when they say nothing else. `fps` is for
            drivers that have no rate of their own (speech).
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
    _callback_tensor_inputs = ["latents"]

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
        wan_animate: bool = False,
        num_inference_steps: int = 30,
        guidance_scale: float = 2.5,
        segment_frames: int = 73,
        fps: float = 24.0,
    ):
        super().__init__()
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
        self.register_to_config(
            wan_animate=wan_animate,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            segment_frames=segment_frames,
            fps=fps,
        )
        self.vae_scale_factor_temporal = self.vae.config.scale_factor_temporal if getattr(self, "vae", None) else 4
        self.vae_scale_factor_spatial = self.vae.config.scale_factor_spatial if getattr(self, "vae", None) else 8
        patch_size = self.transformer.config.patch_size if getattr(self, "transformer", None) else (1, 2, 2)
        self._default_capture = None
        self.size_multiple = self.vae_scale_factor_spatial * patch_size[-1]
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor_spatial)
        self.mask_processor = VideoProcessor(
            vae_scale_factor=self.vae_scale_factor_spatial, do_normalize=False, do_convert_grayscale=True
        )

    # 1. Inputs

    def check_inputs(
        self,
        image,
        video,
        motion,
        guidance,
        audio,
        face_video,
        drive,
        height,
        width,
        num_frames,
        fps,
        extend,
        retarget=True,
        align="framing",
        bone_scale=None,
        person=None,
        num_inference_steps=1,
        reference_guidance_scale=None,
        segment_frames=5,
        num_pseudo_references=0,
        num_videos_per_prompt=1,
        mode="animate",
        background_video=None,
        mask_video=None,
        prompt=None,
        prompt_embeds=None,
        negative_prompt=None,
        negative_prompt_embeds=None,
        generator=None,
        output_type="pil",
        callback_on_step_end_tensor_inputs=(),
    ):
        if isinstance(drive, str) or set(drive) - set(PARTS) or not drive:
            raise ValueError(f"`drive` is {drive!r}, but has to be a non-empty tuple of parts out of {PARTS}.")
        drivers = {"video": video, "motion": motion, "guidance": guidance}
        given = [name for name, value in drivers.items() if value is not None]
        if len(given) > 1:
            raise ValueError(
                f"`{given[0]}` and `{given[1]}` were both given, but the driver is one of `video`, `motion` and `guidance`."
            )
        for name, value, kind in (("motion", motion, MotionSequence), ("guidance", guidance, MotionGuidance)):
            if value is not None and not isinstance(value, kind):
                raise ValueError(
                    f"`{name}` is a {type(value).__name__}, but has to be a {kind.__name__}, as `{kind.__name__}.load` gives it."
                )
        if not given and audio is None and face_video is None:
            raise ValueError(
                "No driver was given: pass one of `video`, `motion`, `guidance`, `audio` and `face_video`."
            )
        if guidance is not None and (audio is not None or face_video is not None):
            raise ValueError("`guidance` is already drawn, so `audio` and `face_video` cannot be combined with it.")
        if guidance is not None:
            fitting = (
                ("drive", drive, set(drive) != set(PARTS)),
                ("retarget", retarget, not retarget),
                ("align", align, align != "framing"),
                ("bone_scale", bone_scale, bool(bone_scale)),
                ("person", person, person is not None),
            )
            for name, value, given_too in fitting:
                if given_too:
                    raise ValueError(
                        f"`{name}` is {value!r}, but `guidance` is already drawn: give it to `prepare_guidance` instead."
                    )
        if guidance is not None and fps is not None:
            raise ValueError(
                f"`fps` is {fps}, but `guidance` is already drawn, at its own {guidance.fps:g} frames/s: leave `fps` out."
            )
        if audio is not None and face_video is not None:
            raise ValueError("`audio` and `face_video` were both given, but the face has one driver.")
        if audio is not None and self.audio_motion_encoder is None:
            raise ValueError("`audio` was given, but this pipeline has no `audio_motion_encoder`.")
        for name, value in (("audio", audio), ("face_video", face_video)):
            if value is not None and "face" not in drive:
                raise ValueError(f'`{name}` drives the face, but `drive` is {drive!r}: it then has to have "face".')
        if not retarget and (video is not None or motion is not None) and not {"head", "body"} <= set(drive):
            raise ValueError(
                f"`drive` is {drive!r}, but `retarget=False` draws the driver's whole person: `drive` then has to have"
                ' "head" and "body"; `align="none"` keeps the driver\'s place and size with any `drive`.'
            )
        check_fit(align, bone_scale or {})
        if not retarget and (align != "framing" or bone_scale):
            name, value = ("align", align) if align != "framing" else ("bone_scale", bone_scale)
            raise ValueError(
                f"`{name}` is {value!r}, but says how the motion is fitted: `retarget` then has to be True."
            )
        if isinstance(image, list | tuple) and len(image) == 0:
            raise ValueError("`image` is an empty list, but at least one reference picture is needed.")
        for name, value in (("height", height), ("width", width)):
            if value is not None and (value < self.size_multiple or value % self.size_multiple):
                raise ValueError(
                    f"`{name}` is {value}, but has to be a positive multiple of {self.size_multiple}, the VAE's scale"
                    " times the transformer's patch."
                )
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"`num_frames` is {num_frames}, but has to be at least 1.")
        if fps is not None and not fps > 0:
            raise ValueError(f"`fps` is {fps}, but has to be positive.")
        temporal = self.vae_scale_factor_temporal
        if segment_frames <= temporal or segment_frames % temporal != 1:
            raise ValueError(
                f"`segment_frames` is {segment_frames}, but has to be {temporal} n + 1 with n at least 1."
            )
        if num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` is {num_inference_steps}, but has to be at least 1.")
        if num_pseudo_references < 0 or (num_pseudo_references and self.config.wan_animate):
            raise ValueError(
                f"`num_pseudo_references` is {num_pseudo_references}, but has to be at least 0, and 0 for Wan-Animate"
                " weights, which take one reference."
            )
        if self.config.wan_animate and isinstance(image, list | tuple) and len(image) > 1:
            raise ValueError(f"`image` has {len(image)} pictures, but Wan-Animate weights take one reference.")
        if num_videos_per_prompt < 1:
            raise ValueError(f"`num_videos_per_prompt` is {num_videos_per_prompt}, but has to be at least 1.")
        if isinstance(generator, list) and len(generator) != num_videos_per_prompt:
            raise ValueError(
                f"`generator` is a list of {len(generator)}, but the batch has {num_videos_per_prompt} videos."
            )
        if extend is not None and extend not in EXTEND:
            raise ValueError(f"`extend` is {extend!r}, but has to be None or one of {EXTEND}.")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f'`output_type` is {output_type!r}, but has to be "pil", "np", "pt" or "latent".')
        if mode not in ("animate", "replace"):
            raise ValueError(f'`mode` is {mode!r}, but has to be "animate" or "replace".')
        if mode == "replace":
            if not self.config.wan_animate:
                raise ValueError('`mode="replace"` needs Wan-Animate weights, but this pipeline has others.')
            if background_video is None or mask_video is None:
                raise ValueError('`mode="replace"` needs both `background_video` and `mask_video`.')
        elif background_video is not None or mask_video is not None:
            raise ValueError('`background_video` and `mask_video` are for `mode="replace"` only.')
        if reference_guidance_scale is not None and self.config.wan_animate:
            raise ValueError("`reference_guidance_scale` was given, but Wan-Animate weights always see the reference.")
        if self.transformer.config.image_dim is not None and None in (self.image_encoder, self.image_processor):
            raise ValueError(
                "The `transformer` takes CLIP states of the picture (its `image_dim` is"
                f" {self.transformer.config.image_dim}), but this pipeline has no `image_encoder` and `image_processor`."
            )
        if self.transformer.config.text_dim is None:
            texts = (prompt, prompt_embeds, negative_prompt, negative_prompt_embeds)
            if any(text is not None for text in texts):
                raise ValueError("A prompt was given, but this pipeline's transformer takes no text.")
        for name, text, embeds in (
            ("prompt", prompt, prompt_embeds),
            ("negative_prompt", negative_prompt, negative_prompt_embeds),
        ):
            if text is not None and embeds is not None:
                raise ValueError(f"`{name}` and `{name}_embeds` were both given; pass one of them.")
            if text is not None and not isinstance(text, str):
                raise ValueError(f"`{name}` is a {type(text).__name__}, but has to be one string.")
            if text is not None and self.text_encoder is None:
                raise ValueError(f"`{name}` was given, but this pipeline has no `text_encoder`; pass `{name}_embeds`.")
            if embeds is not None and embeds.shape[0] not in (1, num_videos_per_prompt):
                raise ValueError(
                    f"`{name}_embeds` has a batch of {embeds.shape[0]}, but the batch has {num_videos_per_prompt} videos."
                )
        unknown = [k for k in callback_on_step_end_tensor_inputs if k not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` has {unknown}, but may only have {self._callback_tensor_inputs}."
            )

    # 2. The reference

    def prepare_references(
        self,
        image: PIL.Image.Image | str | Path | list,
        height: int | None = None,
        width: int | None = None,
        reference_motion: MotionSequence | None = None,
        need_motion: bool = True,
        reference_person=None,
    ) -> list[Reference]:
        """
        The reference pictures at the generation size, with the person's own pose.

        Args:
            image: One picture (PIL image or path), or a list of which the first is the identity.
            height (`int`, *optional*), width (`int`, *optional*): The generation size; by default the picture's aspect
                at the area of the motion processor's config.
            reference_motion (`MotionSequence`, *optional*): The pose in the first picture (one frame, in the picture's
                own pixels), when it is known; otherwise the capture finds it.
            need_motion (`bool`): Whether the pose is needed: for retargeting, where only the face has a driver, and for
                pseudo-references.
            reference_person (*optional*): Which person of the first picture, as in `__call__`.

        Returns:
            `list[Reference]`

        Raises:
            ValueError: When the pose is needed and there is no person in the first picture or no pose in a ready
                `Reference`, or when a `Reference` has another size than is asked for.
        """
        images = list(image) if isinstance(image, list | tuple) else [image]
        references = []
        for i, picture in enumerate(images):
            if isinstance(picture, Reference):
                size = (height or picture.height, width or picture.width)
                if (picture.height, picture.width) != size:
                    raise ValueError(
                        f"`image` has a reference of {picture.width}x{picture.height} pixels, but the generation size is"
                        f" {size[1]}x{size[0]}: prepare all references at that size."
                    )
                references.append(picture)
                height, width = size
                continue
            pose = reference_motion if i == 0 else None
            if pose is None and (need_motion or not self.config.wan_animate):
                person = reference_person if i == 0 else None
                pose = self.find_pose(load_picture(picture), person, required=need_motion and i == 0)
            reference = self.motion_processor.reference(picture, pose, height, width)
            height, width = reference.height, reference.width
            references.append(reference)
        if need_motion and references[0].motion is None:
            raise ValueError(
                "`image` is a reference without a known pose, but retargeting, a face driven alone and pseudo-references"
                " need one: pass a picture, with `reference_motion` when the capture finds nobody in it."
            )
        return references

    def find_pose(self, picture: PIL.Image.Image, person=None, required: bool = True) -> MotionSequence | None:
        """
        The pose of the person in a picture.

        Args:
            picture (`PIL.Image.Image`): The picture.
            person (*optional*): An index by size, a click or a box; the largest when `None`.
            required (`bool`): Whether it is an error when there is no person, or no capture; otherwise it is a warning.

        Returns:
            `MotionSequence` of one frame in the picture's pixels, or `None`.
        """
        try:
            return self.find_capture().capture(picture, person=person, progress=False)
        except NoPersonError as error:
            if required:
                raise ValueError(
                    "No person was found in `image`: pass another picture, the pose in it as `reference_motion`, or, to"
                    " draw a driver's motion where it is, `retarget=False`."
                ) from error
            logger.warning("No person was found in `image`: the reference goes without its pose, which costs quality.")
        except (ImportError, OSError) as error:
            if required:
                raise
            logger.warning(f"The reference goes without its pose, which costs quality: {error}")
        return None

    def find_capture(self):
        """The pipeline's `capture`; a [`MediaPipeCapture`] where the repository brings none."""
        if self.capture is not None:
            return self.capture
        if self._default_capture is None:
            self._default_capture = MediaPipeCapture.from_pretrained()
        return self._default_capture

    # 3. The driver

    def prepare_driver(
        self,
        reference: Reference,
        video=None,
        motion: MotionSequence | None = None,
        guidance: MotionGuidance | None = None,
        audio=None,
        face_video=None,
        drive: tuple[str, ...] = PARTS,
        num_frames: int | None = None,
        fps: float | None = None,
        retarget_motion: bool = True,
        align: str = "framing",
        bone_scale: dict[str, float] | None = None,
        person=None,
        extend: str | None = None,
    ) -> Driver:
        """
        Captures, composes and retargets the motion. Takes the arguments of `__call__`; nothing is drawn yet.
        """
        height, width = reference.height, reference.width
        if guidance is not None:
            guidance.check(height, width)
            return Driver(frame_index(len(guidance), num_frames, extend), guidance.fps, guidance=guidance)

        face_source, face_index = None, None
        if video is not None:
            face_source = VideoReader(video, fps=fps, num_frames=num_frames)
            # too few frames are an error before they are captured
            frame_index(len(face_source), num_frames, extend)
            motion = self.find_capture().capture(face_source, person=person, progress=self.show_progress)
        elif motion is not None:
            motion.validate()
            motion = motion if fps is None else motion.resample(fps)
        # speech or another video's face alone: body and head stay as in the reference
        own_pose = motion is None
        motion_tokens = None
        if face_video is not None:
            if own_pose:
                face_source = VideoReader(face_video, fps=fps, num_frames=num_frames)
                frame_index(len(face_source), num_frames, extend)
            else:
                index = frame_index(motion.num_frames, num_frames, extend)
                face_source = VideoReader(face_video, fps=motion.fps, num_frames=len(index))
                if len(face_source) < len(index) and extend is None:
                    raise ValueError(
                        f"`face_video` has {len(face_source)} frames at {motion.fps:g} frames/s, but the video has"
                        f" {len(index)}: pass a longer one, `num_frames` of at most {len(face_source)}, or `extend`."
                    )
                face_index = frame_index(len(face_source), len(index), extend)
            # `person` is in the pixels of the other driver, where there is one
            who = person if own_pose else None
            try:
                face_motion = self.find_capture().capture(face_source, person=who, progress=self.show_progress)
            except NoPersonError as error:
                raise ValueError("`face_video` shows nobody, but is given to drive the face.") from error
            if face_motion.face is None:
                raise ValueError("`face_video` shows no face, but is given to drive the face.")
            if own_pose:
                motion = dataclasses.replace(reference.motion, fps=face_motion.fps).hold(face_motion.num_frames)
            else:
                num_frames = len(face_index)
                motion, face_motion = motion.take(index[:num_frames]), face_motion.take(face_index)
            motion = dataclasses.replace(motion, face=face_motion.face)
        if audio is not None:
            rate = fps or (self.config.fps if own_pose else motion.fps)
            motion_tokens = self.encode_audio(audio, rate, num_frames or (None if own_pose else motion.num_frames))
            if own_pose:
                motion = dataclasses.replace(reference.motion, fps=rate, face=None).hold(len(motion_tokens))

        index = frame_index(motion.num_frames, num_frames, extend)
        face_crop = None
        if "face" not in drive:
            face_source, face_crop, motion_tokens = None, reference.face_crop, None
            motion = dataclasses.replace(motion, face=None)
        if retarget_motion and not own_pose:
            motion = retarget(
                motion, reference.motion, height, width, align=align, bone_scale=bone_scale, drive=tuple(drive)
            )
        elif not own_pose:
            motion = resize_motion(motion, height, width)
        return Driver(
            index,
            motion.fps,
            motion=motion,
            face_video=face_source,
            face_index=face_index,
            face_crop=face_crop,
            motion_tokens=motion_tokens,
            processor=self.motion_processor,
        )

    @torch.no_grad()
    def prepare_guidance(
        self,
        image,
        video=None,
        motion: MotionSequence | None = None,
        audio=None,
        face_video=None,
        drive: tuple[str, ...] = PARTS,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        fps: float | None = None,
        retarget: bool = True,
        align: str = "framing",
        bone_scale: dict[str, float] | None = None,
        person=None,
        extend: str | None = None,
        reference_motion: MotionSequence | None = None,
        reference_person=None,
    ) -> MotionGuidance:
        """
        Draws the whole guidance without generating: look at `guidance.preview()`, edit, and pass it to the pipeline.

        The arguments are those of `__call__`. The result holds every frame, so its memory grows with the length.

        Returns:
            `MotionGuidance`: At the generation size.
        """
        self.check_inputs(
            image,
            video,
            motion,
            None,
            audio,
            face_video,
            drive,
            height,
            width,
            num_frames,
            fps,
            extend,
            retarget,
            align,
            bone_scale,
        )
        need_motion = retarget or (video is None and motion is None)
        reference = self.prepare_references(image, height, width, reference_motion, need_motion, reference_person)[0]
        driver = self.prepare_driver(
            reference,
            video=video,
            motion=motion,
            audio=audio,
            face_video=face_video,
            drive=drive,
            num_frames=num_frames,
            fps=fps,
            retarget_motion=retarget,
            align=align,
            bone_scale=bone_scale,
            person=person,
            extend=extend,
        )
        return next(driver.stream([Segment(0, len(driver))]))

    # 4. Encoding

    def encode_prompt(
        self,
        prompt: str | None,
        prompt_embeds: torch.Tensor | None,
        batch_size: int,
        negative: bool = False,
        max_sequence_length: int = 512,
    ) -> torch.Tensor | None:
        """
        Text states of a prompt.

        Args:
            prompt (`str`, *optional*): Encoded by the text encoder; without it and without `prompt_embeds` the
                repository's stored embedding stands in.
            prompt_embeds (`torch.Tensor` of shape `(1 or B, L, text_dim)`, *optional*): Ready states.
            batch_size (`int`): Videos in the batch.
            negative (`bool`): Whether this is the negative prompt.
            max_sequence_length (`int`): Tokens to pad to.

        Returns:
            `torch.Tensor` of shape `(B, max_sequence_length, text_dim)`, or `None` for a transformer without text.
        """
        if self.transformer.config.text_dim is None:
            return None
        if prompt_embeds is None and prompt is None:
            if self.prompt_embedding is not None:
                prompt_embeds = self.prompt_embedding(negative)
            elif self.text_encoder is not None:
                prompt = ""
            else:
                name = "negative_prompt_embeds" if negative else "prompt_embeds"
                raise ValueError(
                    f"`{name}` is None, but this pipeline has neither a stored prompt embedding nor a text encoder."
                )
        if prompt_embeds is None:
            inputs = self.tokenizer(
                [prompt_clean(prompt)],
                padding="max_length",
                max_length=max_sequence_length,
                truncation=True,
                return_attention_mask=True,
                return_tensors="pt",
            ).to(get_module_execution_device(self.text_encoder))
            states = self.text_encoder(inputs.input_ids, inputs.attention_mask).last_hidden_state
            # Wan was trained with zeros in place of padding, and no mask
            prompt_embeds = states * inputs.attention_mask.unsqueeze(-1).to(states.dtype)
        return prompt_embeds.to(self._execution_device, self.transformer.dtype).expand(batch_size, -1, -1)

    def encode_image(self, image: PIL.Image.Image | str | Path | Reference, batch_size: int) -> torch.Tensor | None:
        """CLIP states `(B, L, image_dim)` of the reference (the last layer but one), or `None` for a transformer
        without them."""
        if self.transformer.config.image_dim is None:
            return None
        picture = image.image if isinstance(image, Reference) else load_picture(image)
        states = image_states(picture, self.image_processor, self.image_encoder)
        return states.to(self._execution_device, self.transformer.dtype).expand(batch_size, -1, -1)

    def encode_audio(self, audio, fps: float, num_frames: int | None) -> np.ndarray:
        """
        Face motion tokens from speech.

        Args:
            audio: A path, or a waveform `(n,)`, `(1, n)` or `(2, n)` at the feature extractor's sampling rate, floating-point
                in [-1, 1] or int16.
            fps (`float`): Frames per second of the video.
            num_frames (`int`, *optional*): Frames to make; the speech's length when `None`.

        Returns:
            `np.ndarray` of shape `(num_frames, motion_dim)`.
        """
        rate = self.audio_feature_extractor.sampling_rate
        if isinstance(audio, str | Path):
            samples = load_audio(audio, rate)
        else:
            samples = check_samples(audio, rate)[0].mean(axis=0)
        available = max(1, int(len(samples) / rate * fps))
        num_frames = available if num_frames is None else num_frames
        features, features_per_frame = speech_features(
            samples, num_frames, fps, self.audio_feature_extractor, self.audio_encoder
        )
        features = features.to(self._execution_device, self.audio_motion_encoder.dtype)
        return self.audio_motion_encoder(features, num_frames, features_per_frame)[0].float().cpu().numpy()

    def encode_face(self, guidance: MotionGuidance, batch_size: int) -> torch.Tensor | None:
        """Face motion tokens `(B, F, motion_dim)` of a segment; `None` when it has no face."""
        if guidance.motion_tokens is not None:
            tokens = torch.from_numpy(guidance.motion_tokens)[None].to(self._execution_device)
        elif guidance.face is not None:
            crops = guidance.face_pixels(device=self._execution_device, dtype=self.face_motion_encoder.dtype)
            tokens = self.face_motion_encoder(crops)
        else:
            return None
        # a lost face fades out instead of freezing at full strength
        tokens = tokens * torch.from_numpy(guidance.face_weight).to(tokens)[None, :, None]
        return tokens.to(self.transformer.dtype).expand(batch_size, -1, -1)

    def encode_blank_face(self, num_frames: int, batch_size: int) -> torch.Tensor:
        """The unconditional face tokens `(B, F, motion_dim)` of Wan-Animate weights: those of crops of -1."""
        size = self.motion_processor.config.face_size
        crop = torch.full((1, 1, 3, size, size), -1.0, device=self._execution_device)
        tokens = self.face_motion_encoder(crop.to(self.face_motion_encoder.dtype))
        return tokens.to(self.transformer.dtype).expand(batch_size, num_frames, -1)

    def encode_pose(self, guidance: MotionGuidance, batch_size: int, pose_scale: float = 1.0) -> torch.Tensor:
        """Pose latents `(B, pose_channels, T, h, w)` of a segment."""
        if self.pose_encoder is not None:
            maps = guidance.maps(device=self._execution_device, dtype=self.pose_encoder.dtype)
            pose_latents = self.pose_encoder(maps)
        else:
            maps = guidance.maps(device=self._execution_device, dtype=self.vae.dtype)
            pose_latents = self.vae.encode_video(maps[:, :3])
        pose_latents = pose_latents * pose_scale if pose_scale != 1.0 else pose_latents
        return pose_latents.to(self.transformer.dtype).expand(batch_size, -1, -1, -1, -1)

    def encode_references(self, references: list[Reference], batch_size: int) -> torch.Tensor:
        """Normalised latents `(B, C, R, h, w)` of the references, each encoded as a picture."""
        pictures = self.video_processor.preprocess([r.image for r in references]).unsqueeze(2)
        latents = self.vae.encode_video(pictures.to(self._execution_device, self.vae.dtype))
        return latents.transpose(0, 2).expand(batch_size, -1, -1, -1, -1)

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

    def prepare_frame_condition(
        self,
        segment: Segment,
        last_frames: torch.Tensor | None,
        scene: tuple[torch.Tensor, torch.Tensor] | None,
        latents: torch.Tensor,
        height: int,
        width: int,
    ) -> torch.Tensor:
        """
        Mask and condition channels of a Wan-Animate segment: the frames that are known, re-encoded.

        Args:
            segment (`Segment`): The segment's range of frames.
            last_frames (`torch.Tensor` of shape `(B, 3, n, H, W)`, *optional*): The end of the segment before, in
                [-1, 1].
            scene (*optional*): For replacement, the background and the mask of `read_scene`.
            latents (`torch.Tensor`): The noisy latents, for batch size and latent size.
            height (`int`), width (`int`): The generation size.

        Returns:
            `torch.Tensor` of shape `(B, 20, T, h, w)`.
        """
        batch_size, latent_size = latents.shape[0], latents.shape[-2:]
        if scene is None:
            frames = torch.zeros(1, 3, segment.num_frames, height, width)
            known = torch.zeros(1, 1, segment.num_frames, *latent_size)
        else:
            frames, mask = scene
            known = F.interpolate(1 - mask[0].transpose(0, 1), size=latent_size, mode="nearest")
            known = known.transpose(0, 1).unsqueeze(0)
        frames = frames.to(latents.device, self.vae.dtype).repeat(batch_size, 1, 1, 1, 1)
        known = known.to(latents.device, latents.dtype).repeat(batch_size, 1, 1, 1, 1)
        if last_frames is not None:
            frames[:, :, : last_frames.shape[2]] = last_frames
            known[:, :, : last_frames.shape[2]] = 1
        condition = self.vae.encode_video(frames).to(latents.dtype)
        return torch.cat([frame_mask(known, self.vae_scale_factor_temporal), condition], dim=1)

    def read_scene(
        self, background_video: VideoReader, mask_video: VideoReader, index: np.ndarray, height: int, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The scene of a replacement: frames `(1, 3, F, H, W)` in [-1, 1] and the person's mask `(1, 1, F, H, W)` in
        [0, 1], 1 where the person goes.
        """
        background = [PIL.Image.fromarray(frame) for frame in iterate_frames(background_video, index)]
        mask = [PIL.Image.fromarray(frame) for frame in iterate_frames(mask_video, index)]
        return (
            self.video_processor.preprocess_video(background, height=height, width=width),
            self.mask_processor.preprocess_video(mask, height=height, width=width),
        )

    # 5. Generation

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1 or self._reference_guidance_scale is not None

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

    def make_pseudo_references(self, reference: Reference, count: int, **call_arguments) -> list[Reference]:
        """
        The first stage of two-stage inference (DreamActor-M1, section 3.4): a short clip in which the person turns is
        generated from the one picture, and frames of spread-out head yaw become further references.

        Args:
            reference (`Reference`): The person, with a known pose.
            count (`int`): How many frames to pick.
            call_arguments: Passed on to `stream`.

        Returns:
            `list[Reference]` of length `count`; empty when it was interrupted.

        Raises:
            ValueError: The reference's motion has no head, or no body in 3D.
        """
        if reference.motion.head is None:
            raise ValueError(
                "`num_pseudo_references` needs the head's pose in the reference, but its motion has no head."
            )
        turn = turning_motion(reference.motion, self.config.segment_frames)
        picks = pick_complementary_frames(turn, count)
        guidance = self.motion_processor(turn, reference.height, reference.width)
        clips = self.stream(reference, guidance=guidance, output_type="pil", **call_arguments)
        frames = [frame for clip in clips for frame in clip.frames[0]]
        if self.interrupt:
            return []
        return [dataclasses.replace(reference, image=frames[i], motion=turn[i : i + 1]) for i in picks]

    @torch.no_grad()
    def stream(
        self,
        image,
        video=None,
        motion: MotionSequence | None = None,
        guidance: MotionGuidance | None = None,
        audio=None,
        face_video=None,
        drive: tuple[str, ...] = PARTS,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        fps: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        reference_guidance_scale: float | None = None,
        face_scale: float = 1.0,
        pose_scale: float = 1.0,
        retarget: bool = True,
        align: str = "framing",
        bone_scale: dict[str, float] | None = None,
        person=None,
        extend: str | None = None,
        reference_motion: MotionSequence | None = None,
        reference_person=None,
        segment_frames: int | None = None,
        num_pseudo_references: int = 0,
        num_videos_per_prompt: int = 1,
        mode: str = "animate",
        background_video=None,
        mask_video=None,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
        attention_kwargs: dict[str, Any] | None = None,
    ) -> Iterator[DreamActorPipelineOutput]:
        """
        Generates segment by segment, in memory that does not grow with the length.

        The arguments are those of `__call__`.

        Yields:
            [`DreamActorPipelineOutput`]: The new frames of each segment. Joined, they are what `__call__` returns.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        num_inference_steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        guidance_scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        segment_frames = self.config.segment_frames if segment_frames is None else segment_frames

        # 1. Check inputs
        self.check_inputs(
            image,
            video,
            motion,
            guidance,
            audio,
            face_video,
            drive,
            height,
            width,
            num_frames,
            fps,
            extend,
            retarget,
            align,
            bone_scale,
            person,
            num_inference_steps,
            reference_guidance_scale,
            segment_frames,
            num_pseudo_references,
            num_videos_per_prompt,
            mode,
            background_video,
            mask_video,
            prompt,
            prompt_embeds,
            negative_prompt,
            negative_prompt_embeds,
            generator,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        # from here on it may be set, also while the motion is captured
        self._interrupt = False
        batch_size = num_videos_per_prompt
        device = self._execution_device
        temporal_scale = self.vae_scale_factor_temporal
        wan_animate = self.config.wan_animate

        # 2. Prepare the references and the driver
        need_motion = guidance is None and (retarget or (video is None and motion is None))
        need_motion = need_motion or num_pseudo_references > 0
        references = self.prepare_references(image, height, width, reference_motion, need_motion, reference_person)
        height, width = references[0].height, references[0].width
        driver = self.prepare_driver(
            references[0],
            video=video,
            motion=motion,
            guidance=guidance,
            audio=audio,
            face_video=face_video,
            drive=drive,
            num_frames=num_frames,
            fps=fps,
            retarget_motion=retarget,
            align=align,
            bone_scale=bone_scale,
            person=person,
            extend=extend,
        )
        if latents is not None:
            num_latent_frames = latent_length(segment_frames if wan_animate else len(driver), temporal_scale)
            num_latent_frames += int(wan_animate)
            latents = self.prepare_latents(batch_size, num_latent_frames, height, width, generator, latents)
        if num_pseudo_references > 0 and not self.interrupt:
            references += self.make_pseudo_references(
                references[0],
                num_pseudo_references,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                reference_guidance_scale=reference_guidance_scale,
                face_scale=face_scale,
                pose_scale=pose_scale,
                segment_frames=segment_frames,
                prompt=prompt,
                negative_prompt=negative_prompt,
                prompt_embeds=None if prompt_embeds is None else prompt_embeds[:1],
                negative_prompt_embeds=None if negative_prompt_embeds is None else negative_prompt_embeds[:1],
                generator=generator[0] if isinstance(generator, list) else generator,
                attention_kwargs=attention_kwargs,
            )
        if mode == "replace":
            background_video = VideoReader(background_video, fps=driver.fps)
            mask_video = VideoReader(mask_video, fps=driver.fps)
            for name, scene in (("background_video", background_video), ("mask_video", mask_video)):
                if len(scene) < len(driver):
                    raise ValueError(
                        f"`{name}` has {len(scene)} frames at {driver.fps:g} frames/s, but the video has {len(driver)}."
                    )

        do_classifier_free_guidance = guidance_scale > 1 or reference_guidance_scale is not None
        self._current_timestep = None

        # 3. Encode what is the same for all segments
        prompt_embeds = self.encode_prompt(prompt, prompt_embeds, batch_size)
        if do_classifier_free_guidance:
            negative_prompt_embeds = self.encode_prompt(
                negative_prompt, negative_prompt_embeds, batch_size, negative=True
            )
        identity = image[0] if isinstance(image, list | tuple) else image
        image_embeds = self.encode_image(identity, batch_size)
        reference_latents = self.encode_references(references, batch_size)
        if wan_animate:
            mask = reference_latents.new_ones(batch_size, temporal_scale, *reference_latents.shape[2:])
            stream_reference = torch.cat([mask, reference_latents], dim=1).float()
            appearance = {"encoder_hidden_states_image": image_embeds}
        else:
            appearance = {
                "encoder_hidden_states_image": image_embeds,
                "reference_hidden_states": pack_reference_latents(reference_latents, temporal_scale).to(
                    self.transformer.dtype
                ),
                "reference_pose_hidden_states": self.encode_reference_maps(references, batch_size),
            }
        text = {"encoder_hidden_states": prompt_embeds}
        negative_text = {"encoder_hidden_states": negative_prompt_embeds}

        # 4. Generate the segments
        extra_step_kwargs = {}
        if "generator" in inspect.signature(self.scheduler.step).parameters:
            extra_step_kwargs["generator"] = generator
        segments = list(iterate_segments(len(driver), segment_frames, 1, temporal_scale, full=wan_animate))
        if wan_animate and output_type == "latent" and len(segments) > 1:
            raise ValueError(
                f'`output_type` is "latent", but Wan-Animate weights make these {len(driver)} frames in {len(segments)} segments '
                f"that are decoded apart: make at most {segment_frames} frames, or take decoded ones."
            )
        decoder_state = {}
        caches = {name: ConditionCache() for name in ("cond", "reference", "uncond")}
        last_latent, last_frames = None, None
        with contextlib.ExitStack() as stack:
            # also when the caller stops reading midway
            stack.callback(self.maybe_free_model_hooks)
            progress_bar = stack.enter_context(self.progress_bar(total=len(segments) * num_inference_steps))
            drawn = driver.stream(segments, beyond="reflect" if wan_animate else "hold")
            for segment, segment_guidance in zip(segments, drawn):
                # 4.1 Start from the state of this call, whatever ran since the segment before
                self._guidance_scale = guidance_scale
                self._reference_guidance_scale = reference_guidance_scale
                self._attention_kwargs = attention_kwargs
                self.transformer._reset_stateful_cache()
                for cache in caches.values():
                    cache.start_segment()

                # 4.2 Encode the guidance of this segment
                pose_latents = self.encode_pose(segment_guidance, batch_size, pose_scale)
                motion_tokens = self.encode_face(segment_guidance, batch_size)

                # 4.3 Prepare the latents, and the mask and condition channels
                num_latent_frames = latent_length(segment.num_frames, temporal_scale)
                first = segment.start // temporal_scale
                if wan_animate:
                    noise = latents if segment.start == 0 else None
                    sample = self.prepare_latents(batch_size, num_latent_frames + 1, height, width, generator, noise)
                    scene = None
                    if mode == "replace":
                        index = reflect_index(segment.stop, len(driver))[segment.start :]
                        scene = self.read_scene(background_video, mask_video, index, height, width)
                    condition = self.prepare_frame_condition(segment, last_frames, scene, sample, height, width)
                    condition = torch.cat([stream_reference, condition], dim=2)
                else:
                    noise = None if latents is None else latents[:, :, first : first + num_latent_frames]
                    sample = self.prepare_latents(batch_size, num_latent_frames, height, width, generator, noise)
                    if last_latent is None:
                        condition = empty_condition(sample, temporal_scale)
                    else:
                        condition = initial_latent_condition(sample, last_latent, temporal_scale)

                # 4.4 Collect the conditions of each guidance branch
                movement = {"pose_hidden_states": pose_latents, "motion_hidden_states": motion_tokens}
                branches = {"cond": text | appearance | movement}
                if reference_guidance_scale is not None:
                    branches["reference"] = text | appearance
                if do_classifier_free_guidance:
                    if wan_animate:
                        blank = {"motion_hidden_states": self.encode_blank_face(segment.num_frames, batch_size)}
                        branches["uncond"] = negative_text | appearance | movement | blank
                    else:
                        branches["uncond"] = negative_text

                # 4.5 Denoise
                self.scheduler.set_timesteps(num_inference_steps, device=device)
                timesteps = self.scheduler.timesteps
                self._num_timesteps = len(timesteps)
                for i, t in enumerate(timesteps):
                    if self.interrupt:
                        continue
                    self._current_timestep = t
                    model_input = torch.cat([sample, condition], dim=1).to(self.transformer.dtype)
                    noise_pred = {}
                    for name, conditions in branches.items():
                        with self.transformer.cache_context(name):
                            noise_pred[name] = self.transformer(
                                hidden_states=model_input,
                                timestep=t.expand(batch_size),
                                num_stream_references=int(wan_animate),
                                face_scale=face_scale,
                                condition_cache=caches[name],
                                attention_kwargs=attention_kwargs,
                                return_dict=False,
                                **conditions,
                            )[0]
                    if "uncond" in noise_pred:
                        prediction = combine_guidance(
                            noise_pred["uncond"],
                            noise_pred["cond"],
                            guidance_scale,
                            noise_pred.get("reference"),
                            reference_guidance_scale,
                        )
                    else:
                        prediction = noise_pred["cond"]
                    sample = self.scheduler.step(prediction, t, sample, **extra_step_kwargs, return_dict=False)[0]

                    if callback_on_step_end is not None:
                        callback_kwargs = {}
                        for k in callback_on_step_end_tensor_inputs:
                            callback_kwargs[k] = {"latents": sample}[k]
                        sample = callback_on_step_end(self, i, t, callback_kwargs).pop("latents", sample)
                    if (i + 1) % self.scheduler.order == 0 or i == len(timesteps) - 1:
                        progress_bar.update()

                # 4.6 Decode the new frames and hand over to the next segment
                if wan_animate:
                    sample = sample[:, :, 1:]
                    overlap = int(segment.start > 0)
                    if output_type != "latent" or segment != segments[-1]:
                        frames = self.vae.decode_video(sample.to(self.vae.dtype))[:, :, overlap:]
                        last_frames = frames[:, :, -1:]
                else:
                    overlap = int(segment.start > 0)
                    sample = sample[:, :, overlap:]
                    last_latent = sample[:, :, -1:]
                    if output_type != "latent":
                        frames = self.vae.decode_video(sample.to(self.vae.dtype), feat_cache=decoder_state)
                if output_type == "latent":
                    result = sample
                else:
                    new_frames = min(segment.stop, len(driver)) - segment.start - overlap
                    result = self.video_processor.postprocess_video(frames[:, :, :new_frames], output_type)
                yield DreamActorPipelineOutput(frames=result, fps=driver.fps)
                if self.interrupt:
                    # what would follow is noise
                    break

        self._current_timestep = None

    @replace_example_docstring(EXAMPLE_DOC_STRING)
    @torch.no_grad()
    def __call__(
        self,
        image,
        video=None,
        motion: MotionSequence | None = None,
        guidance: MotionGuidance | None = None,
        audio=None,
        face_video=None,
        drive: tuple[str, ...] = PARTS,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        fps: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        reference_guidance_scale: float | None = None,
        face_scale: float = 1.0,
        pose_scale: float = 1.0,
        retarget: bool = True,
        align: str = "framing",
        bone_scale: dict[str, float] | None = None,
        person=None,
        extend: str | None = None,
        reference_motion: MotionSequence | None = None,
        reference_person=None,
        segment_frames: int | None = None,
        num_pseudo_references: int = 0,
        num_videos_per_prompt: int = 1,
        mode: str = "animate",
        background_video=None,
        mask_video=None,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
        attention_kwargs: dict[str, Any] | None = None,
    ) -> DreamActorPipelineOutput | tuple:
        """
        Animates the reference.

        Args:
            image (`PIL.Image.Image`, `str`, `Path` or a list of them):
                The reference picture. Of a list, the first is the identity and the others complement it.
            video (path, `list[PIL.Image.Image]`, `np.ndarray`, `torch.Tensor` or `VideoReader`, *optional*):
                The driving video.
            motion (`MotionSequence`, *optional*): A captured motion, instead of `video`.
            guidance (`MotionGuidance`, *optional*): Guidance drawn before, at the generation size, instead of both.
            audio (path or `np.ndarray`, *optional*): Speech that drives the face; samples as `encode_audio` takes them.
            face_video (as `video`, *optional*):
                Another driver for the face, brought to the rate of `video` or `motion`, which decides the length: a
                longer face video is cut, a shorter one needs `num_frames` or `extend`.
            drive (`tuple[str, ...]`, defaults to `("face", "head", "body")`):
                The parts that follow the driver; the rest stays as in the reference. With `retarget=False`, head and
                body follow the driver together.
            height (`int`, *optional*), width (`int`, *optional*):
                The generation size in pixels; by default the picture's aspect at the repository's area, or the size of a
                ready `Reference`, which cannot be another.
            num_frames (`int`, *optional*): Frames to make; the driver's when `None`.
            fps (`float`, *optional*):
                Frames per second; the driver's when `None`, else the driver is resampled, which `guidance` cannot be.
            num_inference_steps (`int`, *optional*): Denoising steps; the repository's default when `None`.
            guidance_scale (`float`, *optional*):
                Classifier-free guidance on reference and motion; the repository's default when `None` (2.5 for
                DreamActor, 1.0 for Wan-Animate weights, which means no guidance).
            reference_guidance_scale (`float`, *optional*):
                A scale of its own for the reference; `guidance_scale` is then that of the motion (three branches).
            face_scale (`float`, defaults to 1.0): Strength of the face tokens.
            pose_scale (`float`, defaults to 1.0): Strength of the pose latents.
            retarget (`bool`, defaults to `True`):
                Whether the motion is fitted to the reference's proportions and framing; otherwise it is drawn where
                the driver has it.
            align (`str`, defaults to `"framing"`): How it is fitted, see [`~motion.retarget.retarget`].
            bone_scale (`dict[str, float]`, *optional*): Length factors of groups of bones, e.g. `{"arm": 1.2}`.
            person (*optional*): Which person drives: an index by size, a click `(x, y)` or a box `(x0, y0, x1, y1)` in
                pixels of the driver's first frame; the largest when `None`. Of a `face_video` beside another driver it
                is always the largest.
            extend (`str`, *optional*):
                What to do when the driver, or the `face_video`, has too few frames: `"hold"`, `"loop"` or `"stop"`.
            reference_motion (`MotionSequence`, *optional*):
                The person's pose in the (first) picture when it is known, one frame in the picture's own pixels; the
                capture finds it otherwise.
            reference_person (*optional*):
                Which person of the (first) picture is animated, given as `person` is; the largest when `None`.
            segment_frames (`int`, *optional*): Frames of one denoising run, 4 n + 1.
            num_pseudo_references (`int`, defaults to 0):
                References to make first from a generated turn of the person (two-stage inference).
            num_videos_per_prompt (`int`, defaults to 1): Videos to make, each from noise of its own.
            mode (`str`, defaults to `"animate"`):
                `"replace"` (Wan-Animate weights) puts the person into `background_video` where `mask_video` is white.
            background_video (as `video`, *optional*), mask_video (as `video`, *optional*): The scene.
            prompt (`str`, *optional*), negative_prompt (`str`, *optional*): For transformers with text.
            prompt_embeds (`torch.Tensor`, *optional*), negative_prompt_embeds (`torch.Tensor`, *optional*):
                Ready text states `(1 or B, L, text_dim)`.
            generator (`torch.Generator` or a list of B, *optional*): For determinism.
            latents (`torch.Tensor`, *optional*):
                The noise of the whole video, `(B, C, T, h, w)` with T = ceil((frames - 1) / 4) + 1; for Wan-Animate weights
                that of one whole segment with the reference's frame before it.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict (`bool`, defaults to `True`): Whether to return an output object or a tuple.
            callback_on_step_end (`Callable`, *optional*): Called as `(pipeline, step, timestep, callback_kwargs)`.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to `["latents"]`): What it gets.
            attention_kwargs (`dict`, *optional*): For the attention processors and LoRA's `scale`.

        Returns:
            [`DreamActorPipelineOutput`] or `tuple`: The videos and their fps.

        Raises:
            ValueError, OSError: On input that cannot be used, before anything is generated.

        Examples:
        """
        outputs = self.stream(
            image=image,
            video=video,
            motion=motion,
            guidance=guidance,
            audio=audio,
            face_video=face_video,
            drive=drive,
            height=height,
            width=width,
            num_frames=num_frames,
            fps=fps,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            reference_guidance_scale=reference_guidance_scale,
            face_scale=face_scale,
            pose_scale=pose_scale,
            retarget=retarget,
            align=align,
            bone_scale=bone_scale,
            person=person,
            extend=extend,
            reference_motion=reference_motion,
            reference_person=reference_person,
            segment_frames=segment_frames,
            num_pseudo_references=num_pseudo_references,
            num_videos_per_prompt=num_videos_per_prompt,
            mode=mode,
            background_video=background_video,
            mask_video=mask_video,
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            generator=generator,
            latents=latents,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            attention_kwargs=attention_kwargs,
        )
        outputs = list(outputs)
        parts, fps = [output.frames for output in outputs], outputs[0].fps
        if output_type == "pil":
            frames = [[frame for part in video for frame in part] for video in zip(*parts)]
        elif output_type == "np":
            frames = np.concatenate(parts, axis=1)
        else:
            frames = torch.cat(parts, dim=1 if output_type == "pt" else 2)
        if not return_dict:
            return (frames, fps)
        return DreamActorPipelineOutput(frames=frames, fps=fps)
