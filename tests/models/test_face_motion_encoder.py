"""FaceMotionEncoder equals Wan-Animate's motion encoder and adds what training and loading need."""

import pytest
import torch
from diffusers import WanAnimateTransformer3DModel
from diffusers.models.transformers.transformer_wan_animate import WanAnimateMotionEncoder

from diffusers_dreamactor.models.face_motion_encoder import FaceMotionEncoder


CHANNELS = {"32": 8, "16": 8, "8": 12, "4": 16}
CONFIG = {"size": 32, "channels": CHANNELS, "style_dim": 16, "num_motion_directions": 6, "motion_dim": 20}


def make_encoder(**overrides) -> FaceMotionEncoder:
    torch.manual_seed(0)
    return FaceMotionEncoder(**{**CONFIG, **overrides}).eval()


def make_crops(batch_size: int = 2, num_frames: int = 5, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch_size, num_frames, 3, size, size, generator=generator) * 2 - 1


@torch.no_grad()
def test_equals_wan_animate_with_the_same_keys():
    transformer = WanAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=16,
        ffn_dim=32,
        num_layers=1,
        image_dim=8,
        motion_encoder_channel_sizes=CHANNELS,
        motion_encoder_size=32,
        motion_style_dim=16,
        motion_dim=6,
        motion_encoder_dim=20,
        face_encoder_hidden_dim=8,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=1,
    )
    keys = {name: value for name, value in transformer.state_dict().items() if name.startswith("motion_encoder.")}
    encoder = make_encoder()
    encoder.load_state_dict(keys, strict=True)
    crops = make_crops()
    expected = torch.stack([transformer.motion_encoder(video) for video in crops])
    for batch_size in (1, 3, 8, 100):
        tokens = encoder(crops, batch_size=batch_size)
        assert tokens.shape == (2, 5, 20)
        torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_tokens_lie_in_the_span_of_few_directions():
    tokens = make_encoder()(make_crops(4, 10)).flatten(0, 1)
    assert torch.linalg.matrix_rank(tokens, rtol=1e-4) == CONFIG["num_motion_directions"]


@torch.no_grad()
def test_other_crop_sizes_are_resized():
    encoder = make_encoder()
    # Smooth pictures, which lose nothing when they shrink.
    small = make_crops(1, 2, size=4).flatten(0, 1)
    crops, large, mirrored = (
        torch.nn.functional.interpolate(picture, size=(size, size), mode="bilinear").unsqueeze(0)
        for picture, size in ((small, 32), (small, 56), (small.flip(-1), 56))
    )
    tokens = encoder(crops)
    assert (encoder(large) - tokens).norm() < 0.1 * (encoder(mirrored) - tokens).norm()


@torch.no_grad()
def test_norm_output():
    tokens = make_encoder(norm_output=True)(make_crops())
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.var(-1, unbiased=False), torch.ones(2, 5), atol=1e-2, rtol=0)


def test_gradient_checkpointing_gives_the_same_gradients():
    encoder, crops = make_encoder(), make_crops()
    gradients, saved = [], []
    for enable in (False, True):
        if enable:
            encoder.enable_gradient_checkpointing()
        encoder.zero_grad()
        elements = []

        def count(tensor, elements=elements):
            elements.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = encoder(crops, batch_size=2).square().sum()
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in encoder.named_parameters()})
        saved.append(sum(elements))
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)
    assert saved[1] < 0.5 * saved[0]


def test_save_and_load(tmp_path):
    encoder = make_encoder(norm_output=True)
    encoder.save_pretrained(tmp_path / "plain")
    encoder.save_pretrained(tmp_path / "sharded", variant="fp16", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*fp16-*.safetensors"))) > 1
    loaded = FaceMotionEncoder.from_pretrained(tmp_path / "plain")
    for name, value in encoder.config.items():
        assert name.startswith("_") or loaded.config[name] == value
    half = FaceMotionEncoder.from_pretrained(tmp_path / "sharded", variant="fp16", torch_dtype=torch.bfloat16)
    for name, parameter in half.named_parameters():
        assert parameter.dtype == (torch.float32 if "motion_synthesis_weight" in name else torch.bfloat16)
    assert half.dtype == torch.bfloat16
    crops = make_crops()
    with torch.no_grad():
        expected = encoder(crops)
        torch.testing.assert_close(loaded(crops), expected, atol=0, rtol=0)
        tokens = half(crops.bfloat16())
    assert tokens.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(tokens.float(), expected, dim=-1).min() > 0.98


def test_defaults_are_those_of_wan_animate():
    with torch.device("meta"):
        encoder, source = FaceMotionEncoder(), WanAnimateMotionEncoder()
    shapes = {f"motion_encoder.{name}": value.shape for name, value in source.state_dict().items()}
    assert {name: value.shape for name, value in encoder.state_dict().items()} == shapes


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="`size` is 224.*power of two"):
        make_encoder(size=224)
    with pytest.raises(ValueError, match="`num_motion_directions` is 30"):
        make_encoder(num_motion_directions=30)
    with pytest.raises(ValueError, match=r"`crops` has shape \(2, 3, 5, 32, 32\)"):
        make_encoder()(make_crops().transpose(1, 2))
