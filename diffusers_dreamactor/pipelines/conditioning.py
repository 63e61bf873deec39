"""How conditions become the transformer's inputs: one code path for the pipeline and for training."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
from diffusers.utils.torch_utils import get_module_execution_device


class Segment(NamedTuple):
    """A range of the video that one denoising run makes: frames `[start, stop)`, with `start` shared with the segment
    before when `start > 0`."""

    start: int
    stop: int

    @property
    def num_frames(self) -> int:
        return self.stop - self.start


def latent_length(num_frames: int, temporal_scale: int = 4) -> int:
    """Number of latent frames of a video whose length is rounded up to `temporal_scale * n + 1` frames."""
    return -(-(num_frames - 1) // temporal_scale) + 1


def iterate_segments(
    num_frames: int, segment_frames: int, overlap: int = 1, temporal_scale: int = 4, full: bool = False
) -> Iterator[Segment]:
    """
    Splits a video into segments of at most `segment_frames` frames that overlap by `overlap` frames.

    Args:
        num_frames (`int`): Length of the video in frames.
        segment_frames (`int`): Length of a segment, `temporal_scale * n + 1`.
        overlap (`int`): Frames that a segment shares with the one before it.
        full (`bool`): Whether the last segment has the full length too (its tail lies beyond the video's end), as
            Wan-Animate weights expect; otherwise it is as short as the VAE's temporal scale allows.

    Yields:
        `Segment`: The last one may end after `num_frames`: its surplus frames are cut by the caller.
    """
    total = temporal_scale * (latent_length(num_frames, temporal_scale) - 1) + 1
    start = 0
    while start == 0 or start + overlap < num_frames:
        yield Segment(start, start + segment_frames if full else min(start + segment_frames, total))
        start += segment_frames - overlap


def frame_mask(known_frames: torch.Tensor, temporal_scale: int = 4) -> torch.Tensor:
    """
    The mask channels of Wan's image-to-video form: each latent frame carries one channel for each of the video frames
    that it covers; the first latent frame covers one video frame, repeated.

    Args:
        known_frames (`torch.Tensor` of shape `(B, 1, F, h, w)`): 1 where a video frame is given, 0 elsewhere.

    Returns:
        `torch.Tensor` of shape `(B, temporal_scale, T, h, w)`.
    """
    first = known_frames[:, :, :1].repeat_interleave(temporal_scale, dim=2)
    mask = torch.cat([first, known_frames[:, :, 1:]], dim=2)
    return mask.unflatten(2, (-1, temporal_scale)).squeeze(1).transpose(1, 2)


def empty_condition(latents: torch.Tensor, temporal_scale: int = 4) -> torch.Tensor:
    """Mask and condition channels `(B, temporal_scale + C, T, h, w)` of a video of which nothing is given."""
    batch_size, channels, *size = latents.shape
    return latents.new_zeros(batch_size, temporal_scale + channels, *size)


def initial_latent_condition(latents: torch.Tensor, initial_latent: torch.Tensor, temporal_scale: int = 4):
    """
    Mask and condition channels of a video whose first latent frame is given clean.

    Args:
        latents (`torch.Tensor` of shape `(B, C, T, h, w)`): The noisy latents (for shape, device and dtype).
        initial_latent (`torch.Tensor` of shape `(B, C, 1, h, w)`): The clean first latent frame, normalised.

    Returns:
        `torch.Tensor` of shape `(B, temporal_scale + C, T, h, w)`.
    """
    condition = empty_condition(latents, temporal_scale)
    condition[:, :temporal_scale, :1] = 1
    condition[:, temporal_scale:, :1] = initial_latent
    return condition


def pack_reference_latents(reference_latents: torch.Tensor, temporal_scale: int = 4) -> torch.Tensor:
    """
    Isolated references as the transformer takes them: latent | mask of ones | latent.

    Args:
        reference_latents (`torch.Tensor` of shape `(B, C, R, h, w)`): Normalised latents, each of a single picture.

    Returns:
        `torch.Tensor` of shape `(B, 2 C + temporal_scale, R, h, w)`.
    """
    batch_size, _, *size = reference_latents.shape
    mask = reference_latents.new_ones(batch_size, temporal_scale, *size)
    return torch.cat([reference_latents, mask, reference_latents], dim=1)


def encode_reference_pose(pose_encoder, maps: torch.Tensor) -> torch.Tensor:
    """
    Pose latents of the references, each encoded as a video of one frame.

    Args:
        pose_encoder (`PoseEncoder`): The encoder of the guidance maps.
        maps (`torch.Tensor` of shape `(B, 6, R, H, W)`): The references' own guidance maps in [-1, 1].

    Returns:
        `torch.Tensor` of shape `(B, pose_channels, R, h, w)`.
    """
    batch_size = maps.shape[0]
    pictures = maps.transpose(1, 2).flatten(0, 1).unsqueeze(2)
    return pose_encoder(pictures).squeeze(2).unflatten(0, (batch_size, -1)).transpose(1, 2)


def combine_guidance(
    unconditional: torch.Tensor,
    conditional: torch.Tensor,
    guidance_scale: float,
    reference_only: torch.Tensor | None = None,
    reference_guidance_scale: float | None = None,
) -> torch.Tensor:
    """
    Classifier-free guidance over two branches, `none + s (all - none)`, or three, `none + r (reference - none) +
    s (all - reference)`, with s the `guidance_scale` and r the `reference_guidance_scale`.
    """
    if reference_only is None:
        return unconditional + guidance_scale * (conditional - unconditional)
    return (
        unconditional
        + reference_guidance_scale * (reference_only - unconditional)
        + guidance_scale * (conditional - reference_only)
    )


def image_states(picture: PIL.Image.Image, image_processor, image_encoder: torch.nn.Module) -> torch.Tensor:
    """CLIP states `(1, L, image_dim)` of a picture, of the last layer but one, as Wan reads them."""
    pixels = image_processor(images=picture, return_tensors="pt").pixel_values
    pixels = pixels.to(get_module_execution_device(image_encoder), image_encoder.dtype)
    return image_encoder(pixels, output_hidden_states=True).hidden_states[-2]


def speech_features(
    samples: np.ndarray, num_frames: int, fps: float, feature_extractor, audio_encoder: torch.nn.Module | None = None
) -> tuple[torch.Tensor, float]:
    """
    What `AudioMotionEncoder` reads of the speech that goes with `num_frames` frames of video.

    Args:
        samples (`np.ndarray` of shape `(n,)`): A mono waveform in [-1, 1] at the feature extractor's sampling rate, from
            the first frame on; cut to the duration of the frames, or filled up with silence.
        num_frames (`int`), fps (`float`): Frames of video, and how many make a second.
        feature_extractor: A `transformers` feature extractor of speech.
        audio_encoder (*optional*): The speech encoder that follows it; without one, its features are used themselves.

    Returns:
        Features `(1, L, feature_dim)`, and how many of them go with a frame.
    """
    # training reads this module where neither SciPy nor transformers may be installed
    from diffusers_dreamactor.speech import extract_speech_features, feature_hop

    rate = feature_extractor.sampling_rate
    length = round(num_frames / fps * rate)
    samples = np.pad(samples, (0, max(0, length - len(samples))))[:length]
    features = extract_speech_features(samples, feature_extractor, audio_encoder)
    return features, rate / feature_hop(feature_extractor, audio_encoder) / fps
