"""
Make a small new DreamActor repository to train from: a transformer and a pose encoder with fresh weights, a trained VAE
and a pretrained face motion encoder.

    python new_model.py --vae vae/vae --face_motion_encoder face_motion_encoder --output base

The defaults are DreamActor-Tiny's.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import torch
from avatar_view import CROP_SCALE, CROP_SHIFT, FPS
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusers_dreamactor.models.autoencoder_dreamactor import DreamActorVAE
from diffusers_dreamactor.models.face_motion_encoder import FaceMotionEncoder
from diffusers_dreamactor.models.pose_encoder import PoseEncoder
from diffusers_dreamactor.models.transformer_dreamactor import DreamActorTransformer3DModel


if TYPE_CHECKING:
    from diffusers_dreamactor import DreamActorPipeline


TRANSFORMER_SIZES = (
    "patch_size",
    "num_attention_heads",
    "attention_head_dim",
    "num_layers",
    "ffn_dim",
    "face_attention_interval",
)


def new_transformer(
    z_dim: int,
    motion_dim: int,
    pose_channels: int = 64,
    patch_size: int = 2,
    num_attention_heads: int = 4,
    attention_head_dim: int = 64,
    num_layers: int = 6,
    ffn_dim: int = 1024,
    face_attention_interval: int = 1,
) -> DreamActorTransformer3DModel:
    """A transformer with fresh weights for latents of `z_dim` channels and face tokens of `motion_dim` channels."""
    transformer = DreamActorTransformer3DModel(
        patch_size=(1, patch_size, patch_size),
        num_attention_heads=num_attention_heads,
        attention_head_dim=attention_head_dim,
        in_channels=2 * z_dim + 4,
        out_channels=z_dim,
        pose_channels=pose_channels,
        ffn_dim=ffn_dim,
        num_layers=num_layers,
        rope_max_seq_len=256,
        motion_dim=motion_dim,
        face_encoder_hidden_dim=128,
        face_encoder_num_heads=4,
        face_attention_interval=face_attention_interval,
    )
    # `pose_patch_embedding` starts at zero for models that were trained without poses; a new one has nothing to keep
    torch.nn.init.xavier_uniform_(transformer.pose_patch_embedding.weight.flatten(1))
    return transformer


def new_pose_encoder(pose_channels: int, spatial_ratio: int) -> PoseEncoder:
    """A pose encoder whose latents have the size of the video's, `spatial_ratio` times smaller than the picture."""
    return PoseEncoder(
        out_channels=pose_channels,
        patch_size=spatial_ratio // 4,
        block_out_channels=(16, 48, 96),
        temporal_downsample=(True, True),
        layers_per_block=0,
    )


def new_pipeline(
    transformer: DreamActorTransformer3DModel,
    vae: DreamActorVAE,
    face_motion_encoder: FaceMotionEncoder,
    pose_encoder: PoseEncoder,
    area: int,
    shift: float = 3.0,
    face_scale: float = CROP_SCALE,
    face_shift: float = CROP_SHIFT,
    num_inference_steps: int = 2,
    guidance_scale: float = 1.0,
    segment_frames: int = 17,
    fps: float = FPS,
) -> DreamActorPipeline:
    """The repository of these models; `area`: pixels of the largest size that was trained."""
    from diffusers_dreamactor import DreamActorPipeline
    from diffusers_dreamactor.processors.guidance import MotionGuidanceProcessor

    return DreamActorPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        face_motion_encoder=face_motion_encoder,
        pose_encoder=pose_encoder,
        motion_processor=MotionGuidanceProcessor(
            area=area,
            size_multiple=vae.config.scale_factor_spatial * transformer.config.patch_size[1],
            face_size=face_motion_encoder.config.size,
            face_scale=face_scale,
            face_shift=face_shift,
        ),
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        segment_frames=segment_frames,
        fps=float(fps),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--vae", required=True)
    parser.add_argument("--face_motion_encoder", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--num_attention_heads", type=int, default=4)
    parser.add_argument("--attention_head_dim", type=int, default=64)
    parser.add_argument("--num_layers", type=int, default=6)
    parser.add_argument("--ffn_dim", type=int, default=1024)
    parser.add_argument(
        "--face_attention_interval", type=int, default=1, help="every so many blocks have a face attention"
    )
    parser.add_argument("--patch_size", type=int, default=2)
    # the defaults make of a capture's face boxes what make_dataset.py renders
    parser.add_argument(
        "--face_scale", type=float, default=CROP_SCALE, help="side of face crops, in sides of the face box"
    )
    parser.add_argument("--face_shift", type=float, default=CROP_SHIFT, help="how far face crops are moved up")
    parser.add_argument("--pose_channels", type=int, default=64)
    parser.add_argument("--shift", type=float, default=3.0)
    parser.add_argument("--num_inference_steps", type=int, default=2)
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument("--segment_frames", type=int, default=17)
    parser.add_argument("--fps", type=float, default=12.0)
    parser.add_argument(
        "--area",
        type=int,
        default=96 * 64,
        help="pixels of the largest size trained: smaller ones follow from the aspect",
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    vae = DreamActorVAE.from_pretrained(arguments.vae)
    face_motion_encoder = FaceMotionEncoder.from_pretrained(arguments.face_motion_encoder)
    transformer = new_transformer(
        vae.config.z_dim,
        face_motion_encoder.config.motion_dim,
        arguments.pose_channels,
        **{name: getattr(arguments, name) for name in TRANSFORMER_SIZES},
    )
    pose_encoder = new_pose_encoder(arguments.pose_channels, vae.config.scale_factor_spatial)
    pipe = new_pipeline(
        transformer,
        vae,
        face_motion_encoder,
        pose_encoder,
        area=arguments.area,
        shift=arguments.shift,
        face_scale=arguments.face_scale,
        face_shift=arguments.face_shift,
        num_inference_steps=arguments.num_inference_steps,
        guidance_scale=arguments.guidance_scale,
        segment_frames=arguments.segment_frames,
        fps=arguments.fps,
    )
    pipe.save_pretrained(arguments.output)
    for name in ("transformer", "vae", "face_motion_encoder", "pose_encoder"):
        count = sum(parameter.numel() for parameter in getattr(pipe, name).parameters())
        print(f"{name}: {count / 1e6:.2f} M parameters")


if __name__ == "__main__":
    main()
