"""Encoding what a video is conditioned on: prompts, pictures, faces and speech to the transformer's states."""

from pathlib import Path

import numpy as np
import PIL.Image
import torch
from diffusers.pipelines.wan.pipeline_wan_animate import prompt_clean
from diffusers.utils.torch_utils import get_module_execution_device

from diffusers_dreamactor.pictures import load_picture
from diffusers_dreamactor.pipelines.conditioning import image_states
from diffusers_dreamactor.processors.guidance import MotionGuidance
from diffusers_dreamactor.processors.reference import Reference
from diffusers_dreamactor.sound import sound_source
from diffusers_dreamactor.speech import iterate_speech_tokens


class EncodingMixin:
    """
    The `encode_...` functions that both samplers share, for a pipeline with the components that they read; what only one of
    them encodes stands with its sampler.
    """

    def encode_prompt(
        self,
        prompt: str | None = None,
        prompt_embeds: torch.Tensor | None = None,
        batch_size: int = 1,
        negative: bool = False,
        max_sequence_length: int = 512,
    ) -> torch.Tensor | None:
        """
        Text states of a prompt. A pipeline that has nothing but a text encoder (and its tokenizer) is enough.

        Args:
            prompt (`str`, *optional*): Encoded by the text encoder; without it and without `prompt_embeds` the
                repository's stored embedding stands in.
            prompt_embeds (`torch.Tensor` of shape `(1 or B, L, text_dim)`, *optional*): Ready states.
            batch_size (`int`, defaults to 1): Videos in the batch.
            negative (`bool`, defaults to `False`): Whether this is the negative prompt.
            max_sequence_length (`int`, defaults to 512): Tokens to pad to.

        Returns:
            `torch.Tensor` of shape `(B, max_sequence_length, text_dim)`, or `None` for a transformer without text.
        """
        if self.transformer is not None and self.transformer.config.text_dim is None:
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
            if self.text_encoder is None:
                name = "negative_prompt" if negative else "prompt"
                raise ValueError(f"`{name}` was given, but this pipeline has no `text_encoder`; pass `{name}_embeds`.")
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
        dtype = prompt_embeds.dtype if self.transformer is None else self.transformer.dtype
        return prompt_embeds.to(self._execution_device, dtype).expand(batch_size, -1, -1)

    def encode_image(
        self,
        image: Reference | PIL.Image.Image | str | Path,
        image_embeds: torch.Tensor | None = None,
        batch_size: int = 1,
    ) -> torch.Tensor | None:
        """
        CLIP states of the picture as it was given, neither cut nor padded, as Diffusers' Wan pipelines read it.

        Args:
            image (`Reference`, `PIL.Image.Image` or path): The identity; of a `Reference`, its source picture is read.
            image_embeds (`torch.Tensor` of shape `(1 or B, L, image_dim)`, *optional*): Ready states.
            batch_size (`int`, defaults to 1): Videos in the batch.

        Returns:
            `torch.Tensor` of shape `(B, L, image_dim)`: Of the last layer but one; `None` for a transformer without them.
        """
        if self.transformer.config.image_dim is None:
            return None
        if image_embeds is None:
            picture = image.picture if isinstance(image, Reference) else load_picture(image)
            image_embeds = image_states(picture, self.image_processor, self.image_encoder)
        return image_embeds.to(self._execution_device, self.transformer.dtype).expand(batch_size, -1, -1)

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the sound that `encode_audio` reads."""
        if self.audio_feature_extractor is None:
            return 16000
        return self.audio_feature_extractor.sampling_rate

    @torch.no_grad()
    def encode_audio(self, audio, fps: float, num_frames: int | None = None) -> np.ndarray:
        """
        Face motion tokens from speech, read piece by piece.

        Args:
            audio: A path, a pair of samples and their rate, or samples alone at the feature extractor's sampling rate:
                `(n,)`, `(channels, n)` or `(n, channels)`, floating-point in [-1, 1], int16 or int32.
            fps (`float`): Frames per second of the video.
            num_frames (`int`, *optional*): Frames to make; the speech's length when `None`.

        Returns:
            `np.ndarray` of shape `(num_frames, motion_dim)`.
        """
        source = sound_source(audio, self.sampling_rate)
        encoders = (self.audio_motion_encoder, self.audio_feature_extractor, self.audio_encoder)
        return np.concatenate(list(iterate_speech_tokens(source, fps, *encoders, num_frames=num_frames)))

    def encode_face(self, guidance: MotionGuidance, batch_size: int) -> torch.Tensor | None:
        """Face motion tokens `(B, F, motion_dim)` of a segment; `None` when it has no face."""
        if guidance.motion_tokens is not None:
            tokens = torch.from_numpy(guidance.motion_tokens)[None].float().to(self._execution_device)
        elif guidance.face is not None:
            crops = guidance.face_pixels(device=self._execution_device, dtype=self.face_motion_encoder.dtype)
            tokens = self.face_motion_encoder(crops)
        else:
            return None
        # a lost face fades out instead of freezing at full strength
        weight = torch.from_numpy(guidance.face_weight).to(tokens.dtype).to(tokens.device)
        tokens = tokens * weight[None, :, None]
        return tokens.to(self.transformer.dtype).expand(batch_size, -1, -1)

    def encode_pictures(self, references: list[Reference], batch_size: int) -> torch.Tensor:
        """Normalised latents `(B, C, R, h, w)` of the references, each encoded as a picture."""
        pictures = self.video_processor.preprocess([r.image for r in references]).unsqueeze(2)
        latents = self.vae.encode_video(pictures.to(self._execution_device, self.vae.dtype))
        return latents.transpose(0, 2).expand(batch_size, -1, -1, -1, -1)
