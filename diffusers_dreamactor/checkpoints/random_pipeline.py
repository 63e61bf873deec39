"""A complete, tiny, randomly initialised repository: for tests, and until trained weights are there."""

import os

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import Speech2TextFeatureExtractor

from diffusers_dreamactor.models.audio_motion_encoder import AudioMotionEncoder
from diffusers_dreamactor.models.autoencoder_dreamactor import DreamActorVAE
from diffusers_dreamactor.models.face_motion_encoder import FaceMotionEncoder
from diffusers_dreamactor.models.pose_encoder import PoseEncoder
from diffusers_dreamactor.models.transformer_dreamactor import DreamActorTransformer3DModel
from diffusers_dreamactor.pipelines.pipeline_dreamactor import DreamActorPipeline
from diffusers_dreamactor.processors.guidance import MotionGuidanceProcessor


def random_pipeline(seed: int = 0) -> DreamActorPipeline:
    """
    A tiny pipeline of random weights, whose picture is noise that still depends on every condition.

    Args:
        seed (`int`, defaults to 0): Seed of the weights.

    Returns:
        [`DreamActorPipeline`]: About 1 MB in float32, with an area of 128 x 128 pixels.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = DreamActorTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=24,
            ffn_dim=96,
            num_layers=2,
            freq_dim=32,
            motion_dim=32,
            face_encoder_hidden_dim=16,
            face_encoder_num_heads=2,
        )
        # new modules start at zero for training; here every condition shall show
        for parameter in transformer.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
        vae = DreamActorVAE(base_dim=8, z_dim=16, dim_mult=[1, 1, 2, 2], num_res_blocks=1)
        face_motion_encoder = FaceMotionEncoder(
            size=64,
            channels={"64": 8, "32": 8, "16": 16, "8": 16, "4": 16},
            style_dim=32,
            num_motion_directions=8,
            motion_dim=32,
        )
        pose_encoder = PoseEncoder(block_out_channels=(8, 16, 16))
        audio_motion_encoder = AudioMotionEncoder(feature_dim=40, hidden_dim=32, num_layers=2, motion_dim=32)
    return DreamActorPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        face_motion_encoder=face_motion_encoder,
        motion_processor=MotionGuidanceProcessor(face_size=64, area=128 * 128),
        pose_encoder=pose_encoder,
        audio_motion_encoder=audio_motion_encoder,
        # not normalised over what is heard: a window's features are then those of the whole, and silence has no variance
        audio_feature_extractor=Speech2TextFeatureExtractor(
            feature_size=40, num_mel_bins=40, do_ceptral_normalize=False, normalize_means=False, normalize_vars=False
        ),
        num_inference_steps=4,
        segment_frames=33,
    )


def save_random_pipeline(folder: str | os.PathLike, seed: int = 0) -> None:
    """
    Saves [`random_pipeline`] as a repository.

    Args:
        folder (`str` or `os.PathLike`): Where to.
        seed (`int`, defaults to 0): Seed of the weights.
    """
    random_pipeline(seed).save_pretrained(folder)
