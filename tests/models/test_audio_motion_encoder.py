"""AudioMotionEncoder: speech stays aligned with the frames, at any pair of rates."""

import numpy as np
import pytest
import torch
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2Config, Wav2Vec2Model

from diffusers_dreamactor.models.audio_motion_encoder import AudioMotionEncoder


def make_encoder(**overrides) -> AudioMotionEncoder:
    torch.manual_seed(0)
    config = {"feature_dim": 10, "hidden_dim": 16, "num_layers": 2, "kernel_size": 3, "motion_dim": 8, **overrides}
    encoder = AudioMotionEncoder(**config).eval()
    with torch.no_grad():
        for block in encoder.blocks:
            block.layer_scale.fill_(1.0)
    return encoder


def make_features(length: int) -> torch.Tensor:
    return torch.randn(2, length, 10, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("features_per_frame", [1, 2, 4, 1.5])
def test_shifted_speech_shifts_the_tokens(features_per_frame):
    encoder, frames, shift = make_encoder(), 40, 4
    features = make_features(int(frames * features_per_frame))
    shifted = features.roll(int(shift * features_per_frame), dims=1)
    tokens = encoder(features, frames, features_per_frame)
    moved = encoder(shifted, frames, features_per_frame)
    assert tokens.shape == (2, frames, 8)
    inner = slice(shift + 5, frames - 5)
    torch.testing.assert_close(moved[:, inner], tokens[:, inner.start - shift : inner.stop - shift], atol=1e-5, rtol=0)
    assert (moved - tokens).abs().mean() > 0.05


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("length", "frames"), [(100, 50), (100, 48), (100, 60), (60, 100), (7, 7)])
def test_a_frame_hears_its_own_moment(length, frames, stride):
    encoder, features = make_encoder(stride=stride), make_features(length)
    tokens = encoder(features, frames)
    for index in (0, length // 3, length - 1):
        changed = features.clone()
        changed[:, index] += 3.0
        change = (encoder(changed, frames) - tokens).abs().sum((0, 2))
        moment = (index + 0.5) / length * frames - 0.5
        heard = change.nonzero().flatten()
        reach = encoder.context * frames / length
        assert heard.min() >= moment - reach
        assert heard.max() <= moment + reach
        centre = (change * torch.arange(frames)).sum() / change.sum()
        border = min(moment, frames - 1 - moment) < reach
        assert abs(centre - moment) < (reach if border else 1.0)


@torch.no_grad()
def test_rate_counts_from_the_start_and_the_end_is_held():
    encoder, features = make_encoder(), make_features(40)
    whole = encoder(features, 20, features_per_frame=2)
    torch.testing.assert_close(encoder(features, 12, features_per_frame=2)[:, :8], whole[:, :8], atol=1e-5, rtol=0)
    held = encoder(features, 40, features_per_frame=2)
    torch.testing.assert_close(held[:, 20:35], held[:, 21:36], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2])
def test_a_piece_with_context_gives_the_tokens_of_the_whole(stride):
    encoder, features, features_per_frame = make_encoder(stride=stride), make_features(120), 2.5
    whole = encoder(features, 48, features_per_frame)
    start, stop = 20, 30
    # the piece begins and ends where the context of its frames does, on a step of the blocks
    first = int(start * features_per_frame - encoder.context) // stride * stride
    last = int(stop * features_per_frame + encoder.context) + 1
    piece = encoder(
        features[:, first:last], stop - start, features_per_frame, first_frame=start - first / features_per_frame
    )
    torch.testing.assert_close(piece, whole[:, start:stop], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_same_moments_at_another_frame_rate():
    encoder, features = make_encoder(stride=2), make_features(120)
    slow, fast = encoder(features, 20, 6.0), encoder(features, 60, 2.0)
    # the middle of a slow frame is that of the second of its three fast ones
    torch.testing.assert_close(slow, fast[:, 1::3], atol=1e-5, rtol=0)


@torch.no_grad()
def test_wav2vec2_and_log_mel_features():
    samples = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    extractor = SeamlessM4TFeatureExtractor(feature_size=20, num_mel_bins=20)
    features = extractor(samples, sampling_rate=16000, return_tensors="pt").input_features
    assert make_encoder(feature_dim=features.shape[-1])(features, 25).shape == (1, 25, 8)

    speech = Wav2Vec2Model(
        Wav2Vec2Config(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            conv_dim=(8,) * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2,
        )
    ).eval()
    features = speech(torch.from_numpy(samples)[None]).last_hidden_state
    assert make_encoder(feature_dim=16)(features, 25).shape == (1, 25, 8)


def test_gradient_checkpointing_gives_the_same_gradients():
    encoder, features = make_encoder(), make_features(20)
    gradients = []
    for enable in (False, True):
        if enable:
            encoder.enable_gradient_checkpointing()
        encoder.zero_grad()
        encoder(features, 10).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in encoder.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


def test_save_and_load(tmp_path):
    encoder, features = make_encoder(), make_features(20)
    encoder.save_pretrained(tmp_path / "plain")
    encoder.save_pretrained(tmp_path / "sharded", variant="fp16", max_shard_size="8KB")
    assert len(list((tmp_path / "sharded").glob("*fp16-*.safetensors"))) > 1
    loaded = AudioMotionEncoder.from_pretrained(tmp_path / "plain")
    for name, value in encoder.config.items():
        assert name.startswith("_") or loaded.config[name] == value
    half = AudioMotionEncoder.from_pretrained(tmp_path / "sharded", variant="fp16", torch_dtype=torch.float16)
    for name, parameter in half.named_parameters():
        assert parameter.dtype == (torch.float32 if "layer_scale" in name else torch.float16)
    with torch.no_grad():
        expected = encoder(features, 10)
        torch.testing.assert_close(loaded(features, 10), expected, atol=0, rtol=0)
        tokens = half(features.half(), 10)
    assert tokens.dtype == torch.float16
    torch.testing.assert_close(tokens.float(), expected, atol=0.02, rtol=0.02)


def test_bad_input_is_named():
    encoder = make_encoder()
    with pytest.raises(ValueError, match=r"`features` has shape \(2, 20, 7\).*\(batch, length, 10\)"):
        encoder(torch.zeros(2, 20, 7), 10)
    with pytest.raises(ValueError, match="`num_frames` is 0"):
        encoder(make_features(20), 0)
    with pytest.raises(ValueError, match="`kernel_size` is 4"):
        make_encoder(kernel_size=4)
    with pytest.raises(ValueError, match="`stride` is 0"):
        make_encoder(stride=0)
    with pytest.raises(ValueError, match="`blink` has 3 numbers, but a token has `motion_dim` 8"):
        make_encoder(blink=[0.0, 0.0, 1.0])
