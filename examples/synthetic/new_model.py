"""
Make a small new DreamActor repository to train from: a transformer and a pose encoder with fresh weights, a trained VAE
and a pretrained face motion encoder.

    python new_model.py --vae vae/vae --face_motion_encoder face_motion_encoder --output base

The defaults are DreamActor-Tiny's.
"""

from __future__ import annotations

import argparse

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusers_dreamactor import DreamActorPipeline
from diffusers_dreamactor.models.autoencoder_dreamactor import DreamActorVAE
from diffusers_dreamactor.models.face_motion_encoder import FaceMotionEncoder
from diffusers_dreamactor.models.pose_encoder import PoseEncoder
from diffusers_dreamactor.models.transformer_dreamactor import DreamActorTransformer3DModel
from diffusers_dreamactor.processors.guidance import MotionGuidanceProcessor


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
    # the defaults make of a capture's face boxes what make_dataset.py renders (avatar_view.CROP_SCALE and CROP_SHIFT)
    parser.add_argument("--face_scale", type=float, default=1.47, help="side of face crops, in sides of the face box")
    parser.add_argument("--face_shift", type=float, default=0.26, help="how far face crops are moved up")
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
    transformer = DreamActorTransformer3DModel(
        patch_size=(1, arguments.patch_size, arguments.patch_size),
        num_attention_heads=arguments.num_attention_heads,
        attention_head_dim=arguments.attention_head_dim,
        in_channels=2 * vae.config.z_dim + 4,
        out_channels=vae.config.z_dim,
        pose_channels=arguments.pose_channels,
        ffn_dim=arguments.ffn_dim,
        num_layers=arguments.num_layers,
        rope_max_seq_len=256,
        motion_dim=face_motion_encoder.config.motion_dim,
        face_encoder_hidden_dim=128,
        face_encoder_num_heads=4,
        face_attention_interval=arguments.face_attention_interval,
    )
    # `pose_patch_embedding` starts at zero for models that were trained without poses; a new one has nothing to keep
    torch.nn.init.xavier_uniform_(transformer.pose_patch_embedding.weight.flatten(1))
    pose_encoder = PoseEncoder(
        out_channels=arguments.pose_channels,
        # pose latents have the size of the video's
        patch_size=vae.config.scale_factor_spatial // 4,
        block_out_channels=(16, 48, 96),
        temporal_downsample=(True, True),
        layers_per_block=0,
    )
    size_multiple = vae.config.scale_factor_spatial * arguments.patch_size
    pipe = DreamActorPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=arguments.shift),
        face_motion_encoder=face_motion_encoder,
        pose_encoder=pose_encoder,
        motion_processor=MotionGuidanceProcessor(
            area=arguments.area,
            size_multiple=size_multiple,
            face_size=face_motion_encoder.config.size,
            face_scale=arguments.face_scale,
            face_shift=arguments.face_shift,
        ),
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
