"""Tiny transformers and inputs that several test files share."""

import pytest
import torch

from diffusers_dreamactor.models.transformer_dreamactor import DreamActorTransformer3DModel


SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "freq_dim": 32,
    "ffn_dim": 96,
    "num_layers": 3,
    "rope_max_seq_len": 32,
}
FACE_SIZES = {"motion_dim": 20, "face_encoder_hidden_dim": 16, "face_encoder_num_heads": 2}


def perturb(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random values for every parameter: the zero-initialised ones would hide what they do."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if "norm" in name and name.endswith("weight") else 0.15 * noise)
    return model.eval()


def make_model(**overrides) -> DreamActorTransformer3DModel:
    torch.manual_seed(0)
    config = {**SIZES, **FACE_SIZES, "face_attention_interval": 2, **overrides}
    return perturb(DreamActorTransformer3DModel(**config))


def make_inputs(model: DreamActorTransformer3DModel, batch_size=1, num_frames=3, references=2, stream_references=0):
    """Inputs of every kind that the model's config knows."""
    generator = torch.Generator().manual_seed(1)
    config = model.config

    def randn(*shape):
        return torch.randn(batch_size, *shape, generator=generator)

    inputs = {
        "hidden_states": randn(config.in_channels, num_frames + stream_references, 4, 6),
        "timestep": torch.full((batch_size,), 700.0),
        "pose_hidden_states": randn(config.pose_channels, num_frames, 4, 6),
        "motion_hidden_states": randn(4 * (num_frames - 1) + 1, config.motion_dim),
        "num_stream_references": stream_references,
    }
    if references:
        inputs["reference_hidden_states"] = randn(config.in_channels, references, 4, 6)
        inputs["reference_pose_hidden_states"] = randn(config.pose_channels, references, 4, 6)
    if config.text_dim is not None:
        inputs["encoder_hidden_states"] = randn(7, config.text_dim)
    if config.image_dim is not None:
        inputs["encoder_hidden_states_image"] = randn(5, config.image_dim)
    return inputs


@pytest.fixture
def make_transformer():
    """`make_transformer(**config)`: a tiny transformer, every parameter random."""
    return make_model


@pytest.fixture
def make_transformer_inputs():
    """`make_transformer_inputs(model, batch_size, num_frames, references, stream_references)`: its keyword arguments."""
    return make_inputs


@pytest.fixture
def perturb_parameters():
    """`perturb_parameters(model, seed=0)`: random values for every parameter of a model, zero-initialised ones too."""
    return perturb


@pytest.fixture
def transformer_sizes():
    """Config values of the tiny transformer that Wan's transformers share."""
    return dict(SIZES)
