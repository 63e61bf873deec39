"""DreamActorTransformer3DModel against Diffusers' Wan models, and as a citizen of Diffusers."""

import pytest
import torch
from diffusers import WanAnimateTransformer3DModel, WanTransformer3DModel

from diffusers_dreamactor.models.transformer_dreamactor import DreamActorTransformer3DModel


FACE_SIZES = {"motion_dim": 20, "face_encoder_hidden_dim": 16, "face_encoder_num_heads": 2}


class TestWanParity:
    @pytest.mark.parametrize("image_dim", [None, 20])
    @pytest.mark.parametrize("per_token_timestep", [False, True])
    def test_equals_wan_with_the_same_weights(
        self, transformer_sizes, perturb_parameters, image_dim, per_token_timestep
    ):
        added_kv_proj_dim = None if image_dim is None else 48
        wan = WanTransformer3DModel(
            **transformer_sizes,
            in_channels=36,
            out_channels=16,
            text_dim=16,
            image_dim=image_dim,
            added_kv_proj_dim=added_kv_proj_dim,
        )
        perturb_parameters(wan)
        model = DreamActorTransformer3DModel(
            **transformer_sizes, **FACE_SIZES, text_dim=16, image_dim=image_dim
        ).eval()
        missing, unexpected = model.load_state_dict(wan.state_dict(), strict=False)
        assert not unexpected
        ours = ("ref_attn", "face_attn", "face_encoder", "pose_patch_embedding")
        assert all(any(part in key for part in ours) for key in missing)

        hidden_states = torch.randn(2, 36, 3, 4, 6)
        timestep = torch.rand(2, 18) * 1000 if per_token_timestep else torch.tensor([300.0, 900.0])
        # Wan splits image from text tokens at 512 text tokens.
        text = torch.randn(2, 512, 16)
        image = None if image_dim is None else torch.randn(2, 5, image_dim)
        with torch.no_grad():
            expected = wan(hidden_states, timestep, text, image).sample
            actual = model(
                hidden_states, timestep, encoder_hidden_states=text, encoder_hidden_states_image=image
            ).sample
            # New modules start at zero: pose and face change nothing yet.
            driven = model(
                hidden_states,
                timestep,
                encoder_hidden_states=text,
                encoder_hidden_states_image=image,
                pose_hidden_states=torch.randn(2, 16, 3, 4, 6),
                motion_hidden_states=torch.randn(2, 9, 20),
            ).sample
        assert expected.std() > 0.1
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(driven, expected, atol=1e-5, rtol=0)

    def test_equals_wan_animate_with_references_in_the_stream(self, transformer_sizes, perturb_parameters):
        wan = WanAnimateTransformer3DModel(
            **transformer_sizes,
            in_channels=36,
            latent_channels=16,
            out_channels=16,
            text_dim=16,
            image_dim=20,
            added_kv_proj_dim=48,
            motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
            motion_encoder_size=16,
            motion_style_dim=8,
            motion_dim=4,
            motion_encoder_dim=20,
            face_encoder_hidden_dim=16,
            face_encoder_num_heads=2,
            inject_face_latents_blocks=2,
        )
        # Three layers, an adapter after every second: Diffusers makes one adapter too few.
        wan.face_adapter.append(type(wan.face_adapter[0])(48, 2, 24, cross_attention_dim_head=24))
        perturb_parameters(wan)
        model = DreamActorTransformer3DModel(
            **transformer_sizes,
            **FACE_SIZES,
            text_dim=16,
            image_dim=20,
            face_attention_interval=2,
            reference_attention=False,
        ).eval()
        state_dict = {}
        for key, value in wan.state_dict().items():
            if key.startswith("face_adapter."):
                _, index, rest = key.split(".", 2)
                key = f"blocks.{2 * int(index)}.face_attn.{rest}"
            if not key.startswith("motion_encoder."):
                state_dict[key] = value
        model.load_state_dict(state_dict, strict=True)

        hidden_states, pose = torch.randn(2, 36, 4, 4, 6), torch.randn(2, 16, 3, 4, 6)
        text, image = torch.randn(2, 512, 16), torch.randn(2, 5, 20)
        face = torch.rand(2, 3, 9, 16, 16) * 2 - 1
        timestep = torch.tensor([300.0, 900.0])
        with torch.no_grad():
            expected = wan(hidden_states, timestep, text, image, pose, face).sample
            motion = wan.motion_encoder(face.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 9))
            arguments = {
                "pose_hidden_states": pose,
                "encoder_hidden_states": text,
                "encoder_hidden_states_image": image,
                "num_stream_references": 1,
            }
            actual = model(hidden_states, timestep, motion_hidden_states=motion, **arguments).sample
            faceless = model(hidden_states, timestep, **arguments).sample
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
        assert (faceless - expected).abs().max() > 1e-2
