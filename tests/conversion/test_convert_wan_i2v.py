"""Wan's image-to-video and text-to-video models as starting points: at first they behave exactly like the source."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from diffusers_dreamactor import DreamActorPipeline, DreamActorTransformer3DModel, MotionGuidance

from .conftest import make_image_encoder, make_text_encoder, make_vae, randomise
from .test_convert_wan_animate import original_state_dict


TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 3,
    "rope_max_seq_len": 32,
}
# What sets the released models apart, at a tiny size.
MODELS = {
    "wan2.1-i2v-14b": {"in_channels": 36, "image_dim": 8, "added_kv_proj_dim": 24},
    "wan2.1-t2v-1.3b": {"in_channels": 16},
    "wan2.2-i2v-a14b": {"in_channels": 36},
    "wan2.2-ti2v-5b": {"in_channels": 8, "out_channels": 8},
}
# 5B's autoencoder: patches of 2, another architecture, 16 times smaller latents of other channels.
TI2V_VAE = {
    "z_dim": 8,
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
    "latents_mean": [0.1 * i for i in range(8)],
    "latents_std": [1 + 0.1 * i for i in range(8)],
}


def make_source(name: str, folder: Path) -> tuple[WanTransformer3DModel, Path]:
    """A source model's transformer, and its repository as its own pipeline saves it."""
    torch.manual_seed(1)
    text_encoder, tokenizer = make_text_encoder()
    transformer = randomise(WanTransformer3DModel(**(TINY | MODELS[name])))
    components = {
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "transformer": transformer,
        "vae": make_vae(**(TI2V_VAE if name == "wan2.2-ti2v-5b" else {})),
        "scheduler": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    }
    if "t2v" in name:
        pipeline = WanPipeline(**components)
    else:
        image_encoder, image_processor = make_image_encoder() if "image_dim" in MODELS[name] else (None, None)
        components |= {"image_encoder": image_encoder, "image_processor": image_processor}
        if name == "wan2.2-i2v-a14b":
            components["transformer_2"] = randomise(WanTransformer3DModel(**(TINY | MODELS[name])))
            components["boundary_ratio"] = 0.9
        pipeline = WanImageToVideoPipeline(**components)
    pipeline.save_pretrained(folder)
    return transformer, folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Source and converted repository of each model, made once."""
    from diffusers_dreamactor.conversion.convert_wan_i2v import convert

    made = {}

    def sources(name: str):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            transformer, source = make_source(name, folder / "source")
            convert(str(source), folder / "output", expert="high" if name == "wan2.2-i2v-a14b" else None)
            made[name] = transformer, source, folder / "output"
        return made[name]

    return sources


def inputs_for(config, num_latent_frames: int = 3, timestep: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    inputs = {
        "hidden_states": torch.randn(2, config.in_channels, num_latent_frames, 4, 6, generator=generator),
        "timestep": torch.tensor([987.0, 55.0]) if timestep is None else timestep,
        "encoder_hidden_states": torch.randn(2, 512, config.text_dim, generator=generator),
    }
    if config.image_dim is not None:
        inputs["encoder_hidden_states_image"] = torch.randn(2, 5, config.image_dim, generator=generator)
    return inputs


class TestStartingPoint:
    @pytest.mark.parametrize("name", MODELS)
    @torch.no_grad()
    def test_behaves_like_the_source(self, sources, name):
        source, _, repository = sources(name)
        transformer = DreamActorTransformer3DModel.from_pretrained(repository / "transformer").eval()
        channels = transformer.config.out_channels
        assert transformer.config.in_channels == 2 * channels + 4
        # 5B has a timestep for each token.
        timestep = torch.rand(2, 3 * 2 * 3).mul(1000) if name == "wan2.2-ti2v-5b" else None
        inputs = inputs_for(source.config, timestep=timestep)
        expected = source(**inputs).sample
        if source.config.in_channels == channels:
            # Whatever mask and condition say, a text-to-video model has never seen them.
            noise = inputs["hidden_states"]
            mask_and_condition = torch.randn(2, channels + 4, *noise.shape[2:])
            inputs["hidden_states"] = torch.cat([noise, mask_and_condition], dim=1)
        actual = transformer(**inputs).sample
        assert expected.abs().max() > 0.1
        assert (actual - expected).abs().max() <= 1e-5
        # Pose and face feed into it through zeros.
        guided = transformer(
            **inputs,
            pose_hidden_states=torch.randn(2, transformer.config.pose_channels, 3, 4, 6),
            motion_hidden_states=torch.randn(2, 9, transformer.config.motion_dim),
        ).sample
        assert (guided - expected).abs().max() <= 1e-5

    @torch.no_grad()
    def test_reference_attention_starts_at_zero(self, sources):
        """The reference's tokens are attended to from the start, by the source's own self-attention; `ref_attn`, which
        is new, adds nothing."""
        transformer = DreamActorTransformer3DModel.from_pretrained(sources("wan2.1-i2v-14b")[2] / "transformer").eval()
        inputs = inputs_for(transformer.config) | {"reference_hidden_states": torch.randn(2, 36, 1, 4, 6)}
        expected = transformer(**inputs).sample
        for block in transformer.blocks:
            block.ref_attn.to_v.weight.data.mul_(3.0)
        assert torch.equal(transformer(**inputs).sample, expected)

    def test_new_modules(self, sources):
        tensors = load_file(sources("wan2.1-i2v-14b")[2] / "transformer" / "diffusion_pytorch_model.safetensors")
        zero = re.compile(
            r"(pose_patch_embedding|blocks\.\d+\.(ref_attn\.to_out\.0|face_attn\.to_out))\.(weight|bias)"
        )
        for key, tensor in tensors.items():
            assert (not tensor.any()) == bool(zero.fullmatch(key) or key == "face_encoder.padding_tokens"), key
        # As wide as the layers' own initialisation makes it: uniform, with a deviation of (3 fan_in) ** -0.5.
        for key in ("blocks.1.ref_attn.to_q.weight", "blocks.2.face_attn.to_k.weight"):
            assert tensors[key].std().item() == pytest.approx((3 * 24) ** -0.5, rel=0.15)
        assert not torch.equal(tensors["blocks.1.ref_attn.to_q.weight"], tensors["blocks.2.ref_attn.to_q.weight"])
        assert torch.equal(tensors["blocks.0.ref_attn.norm_q.weight"], torch.ones(24))

    def test_seed_decides_what_is_random(self, sources, tmp_path):
        from diffusers_dreamactor.conversion.convert_wan_i2v import convert

        _, source, output = sources("wan2.1-t2v-1.3b")
        repositories = [output, tmp_path / "same", tmp_path / "other"]
        convert(str(source), repositories[1])
        convert(str(source), repositories[2], seed=1)
        for name in ("transformer", "pose_encoder", "face_motion_encoder"):
            first, same, other = (
                load_file(repository / name / "diffusion_pytorch_model.safetensors") for repository in repositories
            )
            assert all(torch.equal(first[key], same[key]) for key in first)
            assert any(not torch.equal(first[key], other[key]) for key in first)

    @pytest.mark.parametrize("name", ["wan2.1-i2v-14b", "wan2.1-t2v-1.3b", "wan2.2-ti2v-5b"])
    def test_repository_generates(self, sources, name, tmp_path, monkeypatch):
        monkeypatch.setenv(
            "DREAMACTOR_CAPTURE_MODELS", str(tmp_path)
        )  # none there: the reference's pose stays unknown
        pipeline = DreamActorPipeline.from_pretrained(sources(name)[2])
        pipeline.set_progress_bar_config(disable=True)
        pipeline.save_pretrained(tmp_path / "saved")
        written, saved = (
            json.loads((path / "model_index.json").read_text()) for path in (sources(name)[2], tmp_path / "saved")
        )
        saved.pop("_name_or_path")
        assert written == saved
        rng = np.random.default_rng(0)
        skeleton = [Image.fromarray(rng.integers(0, 255, (32, 64, 3), dtype=np.uint8)) for _ in range(7)]
        # The full-size face motion encoder takes a second for a crop.
        tokens = rng.normal(size=(7, 512)).astype(np.float32)
        guidance = MotionGuidance.from_frames(skeleton=skeleton, fps=24.0)
        guidance.motion_tokens = tokens
        video = pipeline(
            skeleton[0],
            guidance=guidance,
            height=32,
            width=64,
            segment_frames=5,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).frames[0]
        assert video.shape == (7, 32, 64, 3) and np.isfinite(video).all() and video.std() > 0.01

    def test_trained_face_motion_encoder(self, sources, converted, tmp_path):
        from diffusers_dreamactor.conversion.convert_wan_i2v import convert

        source = sources("wan2.1-t2v-1.3b")[1]
        convert(str(source), tmp_path / "output", face_motion_encoder=str(converted), face_attention_interval=2)
        files = [
            (path / "face_motion_encoder" / "diffusion_pytorch_model.safetensors").read_bytes()
            for path in (converted, tmp_path / "output")
        ]
        assert files[0] == files[1]
        config = json.loads((tmp_path / "output" / "transformer" / "config.json").read_text())
        assert (config["motion_dim"], config["face_attention_interval"]) == (10, 2)
        processor = json.loads((tmp_path / "output" / "motion_processor" / "processor_config.json").read_text())
        assert (processor["style"], processor["face_size"]) == ("dreamactor", 16)


class TestExperts:
    @torch.no_grad()
    @pytest.mark.parametrize("expert", ["high", "low"])
    def test_the_chosen_one(self, sources, tmp_path, expert):
        from diffusers_dreamactor.conversion.convert_wan_i2v import convert

        source = sources("wan2.2-i2v-a14b")[1]
        convert(str(source), tmp_path / "output", expert=expert)
        folder = {"high": "transformer", "low": "transformer_2"}[expert]
        expected = load_file(source / folder / "diffusion_pytorch_model.safetensors")
        actual = load_file(tmp_path / "output" / "transformer" / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(actual[key], tensor) for key, tensor in expected.items())
        other = load_file(
            source / ({"transformer", "transformer_2"} - {folder}).pop() / "diffusion_pytorch_model.safetensors"
        )
        assert not torch.equal(other["proj_out.weight"], expected["proj_out.weight"])

    def test_has_to_be_chosen(self, sources, tmp_path):
        from diffusers_dreamactor.conversion.convert_wan_i2v import convert

        with pytest.raises(ValueError, match="--expert high.*--expert low"):
            convert(str(sources("wan2.2-i2v-a14b")[1]), tmp_path / "output")
        with pytest.raises(ValueError, match="one transformer"):
            convert(str(sources("wan2.1-t2v-1.3b")[1]), tmp_path / "output", expert="low")
        assert not (tmp_path / "output").exists()


class TestOriginalNaming:
    @pytest.mark.parametrize("name", ["wan2.1-i2v-14b", "wan2.1-t2v-1.3b"])
    def test_folder(self, sources, name, tmp_path):
        from diffusers_dreamactor.conversion.convert_wan_i2v import convert

        transformer, source, output = sources(name)
        (tmp_path / "original").mkdir()
        tensors = original_state_dict(transformer.state_dict())
        assert "blocks.0.self_attn.q.weight" in tensors
        save_file(tensors, tmp_path / "original" / "diffusion_pytorch_model.safetensors")
        (tmp_path / "original" / "config.json").write_text(json.dumps({"dim": 24, "num_heads": 2}))
        convert(str(tmp_path / "original"), tmp_path / "output", components=str(source))
        expected, actual = (
            load_file(path / "transformer" / "diffusion_pytorch_model.safetensors")
            for path in (output, tmp_path / "output")
        )
        assert expected.keys() == actual.keys() and all(torch.equal(actual[key], expected[key]) for key in expected)
        configs = [
            json.loads((path / "transformer" / "config.json").read_text()) for path in (output, tmp_path / "output")
        ]
        assert configs[1] == configs[0] | {"rope_max_seq_len": 1024}

    def test_experts_of_an_original_repository(self, sources, tmp_path):
        from diffusers_dreamactor.conversion.convert_wan_i2v import find_transformer

        for folder in ("high_noise_model", "low_noise_model"):
            (tmp_path / folder).mkdir()
        assert find_transformer(tmp_path, "low") == tmp_path / "low_noise_model"


class TestErrors:
    def change(self, source: Path, copy: Path, file: str, **values) -> Path:
        import shutil

        shutil.copytree(source, copy)
        config = json.loads((copy / file).read_text())
        (copy / file).write_text(json.dumps(config | values))
        return copy

    def test_control_model(self, sources, tmp_path):
        from diffusers_dreamactor.conversion.convert_wan_i2v import convert

        source = self.change(
            sources("wan2.1-i2v-14b")[1], tmp_path / "source", "transformer/config.json", in_channels=52
        )
        with pytest.raises(ValueError, match="`in_channels` 52"):
            convert(str(source), tmp_path / "output")

    def test_vae_of_another_model(self, sources, tmp_path):
        from diffusers_dreamactor.conversion.convert_wan_i2v import convert

        transformer = original_state_dict(sources("wan2.1-t2v-1.3b")[0].state_dict())
        (tmp_path / "original").mkdir()
        save_file(transformer, tmp_path / "original" / "model.safetensors")
        (tmp_path / "original" / "config.json").write_text(json.dumps({"dim": 24, "num_heads": 2}))
        with pytest.raises(ValueError, match="8 latent channels.*makes 16"):
            convert(str(tmp_path / "original"), tmp_path / "output", components=str(sources("wan2.2-ti2v-5b")[1]))

    def test_other_pipelines(self, sources, wan_animate_source, tmp_path):
        from diffusers_dreamactor.conversion.convert_wan_i2v import convert

        with pytest.raises(ValueError, match="WanAnimatePipeline"):
            convert(str(wan_animate_source), tmp_path / "output")

    def test_nothing_is_left_when_it_fails_late(self, sources, tmp_path):
        from diffusers_dreamactor.conversion.convert_wan_i2v import convert

        source = self.change(sources("wan2.1-i2v-14b")[1], tmp_path / "source", "model_index.json")
        (source / "text_encoder" / "model.safetensors").unlink()
        with pytest.raises(OSError, match="text_encoder"):
            convert(str(source), tmp_path / "out" / "put")
        assert list((tmp_path / "out").iterdir()) == []
