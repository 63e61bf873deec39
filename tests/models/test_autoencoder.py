"""DreamActorVAE equals AutoencoderKLWan, in one go and as a stream, with bounded memory."""

import itertools
import weakref

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_dreamactor.models.autoencoder_dreamactor import DreamActorVAE


CONFIGS = {
    "wan21": {},
    # Wan 2.2's VAE: residual shortcuts and a 2x2 patch before the first layer.
    "wan22": {
        "is_residual": True,
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
        "scale_factor_spatial": 16,
        "decoder_base_dim": 12,
    },
}


def make_vae(name: str, **overrides) -> tuple[DreamActorVAE, AutoencoderKLWan]:
    torch.manual_seed(0)
    z_dim = 4
    config = {
        "base_dim": 8,
        "z_dim": z_dim,
        "dim_mult": [1, 1, 2, 2],
        "num_res_blocks": 1,
        "latents_mean": [0.1, -0.2, 0.3, 0.0],
        "latents_std": [0.5, 2.0, 1.0, 1.5],
        **CONFIGS[name],
        **overrides,
    }
    vae = DreamActorVAE(**config).eval()
    source = AutoencoderKLWan(**config).eval()
    source.load_state_dict(vae.state_dict())
    return vae, source


def make_video(num_frames: int, size: int = 32, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, num_frames, size, size, generator=generator) * 2 - 1


def make_latents(num_frames: int, size: int = 2, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 4, num_frames, size, size, generator=torch.Generator().manual_seed(2))


def pieces(tensor: torch.Tensor, length: int) -> list[torch.Tensor]:
    return list(tensor.split(length, dim=2))


# One latent frame for each call of the network, or all that these small frames allow.
@pytest.fixture(params=[(name, area) for name in CONFIGS for area in (0, DreamActorVAE.step_area)], ids=str)
def vaes(request):
    name, step_area = request.param
    vae, source = make_vae(name)
    vae.step_area = step_area
    return vae, source


@torch.no_grad()
def test_whole_video_equals_autoencoder_kl_wan(vaes):
    vae, source = vaes
    video = make_video(13, batch=2)
    mean = torch.tensor(source.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(source.config.latents_std).view(1, -1, 1, 1, 1)

    expected = (source.encode(video).latent_dist.mode() - mean) / std
    latents = vae.encode_video(video)
    assert latents.shape[2] == 4
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)

    expected = (source.encode(video).latent_dist.sample(torch.Generator().manual_seed(3)) - mean) / std
    sampled = vae.encode_video(video, sample=True, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(sampled, expected, atol=1e-5, rtol=0)
    assert (sampled - latents).abs().max() > 1e-2

    expected = source.decode(latents * std + mean).sample
    assert expected.shape == video.shape
    torch.testing.assert_close(vae.decode_video(latents), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(vae.decode(latents * std + mean).sample, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_streams_equal_whole_video_for_any_pieces(vaes):
    vae, _ = vaes
    latents = make_latents(7)
    whole = vae.decode_video(latents)
    for length in (1, 2, 3, 7):
        frames = list(vae.decode_stream(pieces(latents, length)))
        assert max(piece.shape[2] for piece in frames) == (4 * min(length, 6) if vae.step_area else 4)
        torch.testing.assert_close(torch.cat(frames, dim=2), whole, atol=1e-5, rtol=0)

    video = make_video(17)
    whole = vae.encode_video(video)
    for length in (1, 3, 4, 5, 17):
        encoded = list(vae.encode_stream(pieces(video, length)))
        assert len(encoded) == {17: 2}.get(length, 5) if vae.step_area else 5
        torch.testing.assert_close(torch.cat(encoded, dim=2), whole, atol=1e-5, rtol=0)


@torch.no_grad()
def test_feat_cache_carries_a_stream_between_calls():
    vae, _ = make_vae("wan21")
    latents, video = make_latents(6), make_video(13)
    feat_cache = {}
    frames = [vae.decode_video(piece, feat_cache=feat_cache) for piece in pieces(latents, 2)]
    torch.testing.assert_close(torch.cat(frames, dim=2), vae.decode_video(latents), atol=1e-5, rtol=0)

    feat_cache = {}
    encoded = [vae.encode_video(part, feat_cache=feat_cache) for part in (video[:, :, :5], video[:, :, 5:])]
    torch.testing.assert_close(torch.cat(encoded, dim=2), vae.encode_video(video), atol=1e-5, rtol=0)

    # Without the state, the second piece would start a video of its own.
    assert vae.decode_video(latents[:, :, 2:4]).shape[2] == 5
    assert frames[1].shape[2] == 8


@torch.no_grad()
def test_streams_and_calls_interleave(vaes):
    vae, _ = vaes
    first, second, video = make_latents(4), make_latents(4).flip(2), make_video(13)
    streams = [vae.decode_stream(pieces(first, 1)), vae.decode_stream(pieces(second, 1))]
    collected, encoded = [[], []], []
    for latents in vae.encode_stream(pieces(video, 4)):
        encoded.append(latents)
        for stream, frames in zip(streams, collected):
            frames.append(next(stream))
            vae.decode(first)
            vae.encode(video)
    for latents, frames in zip((first, second), collected):
        torch.testing.assert_close(torch.cat(frames, dim=2), vae.decode_video(latents), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat(encoded, dim=2), vae.encode_video(video), atol=1e-5, rtol=0)


@torch.no_grad()
def test_tiling_and_slicing_equal_autoencoder_kl_wan(vaes):
    vae, source = vaes
    ratio = vae.spatial_compression_ratio
    latents, video = make_latents(2, size=48 // ratio, batch=2), make_video(5, size=48, batch=2)
    untiled = vae.decode_video(latents)
    for model in vaes:
        model.enable_tiling(32, 32, 16, 16)
    raw = vae.denormalize_latents(latents)
    decoded = vae.decode_video(latents)
    torch.testing.assert_close(decoded, source.decode(raw).sample, atol=1e-5, rtol=0)
    assert (decoded - untiled).abs().max() > 1e-4, "the tiles were not used"
    expected = source.encode(video).latent_dist.mode()
    torch.testing.assert_close(vae.encode_video(video), vae.normalize_latents(expected), atol=1e-5, rtol=0)

    vae.enable_slicing()
    torch.testing.assert_close(vae.decode_video(latents), decoded, atol=1e-5, rtol=0)
    streamed = torch.cat(list(vae.decode_stream(pieces(latents, 2))), dim=2)
    torch.testing.assert_close(streamed, decoded, atol=1e-5, rtol=0)
    encoded = torch.cat(list(vae.encode_stream(pieces(video, 3))), dim=2)
    torch.testing.assert_close(encoded, vae.normalize_latents(expected), atol=1e-5, rtol=0)


def test_decode_without_clamp_keeps_gradients():
    vae, _ = make_vae("wan21")
    with torch.no_grad():
        vae.decoder.conv_out.bias += 3.0  # every value beyond 1, where the clamp's gradient is zero
    latents = make_latents(2).requires_grad_()
    assert vae.decode_video(latents).max() == 1.0
    (clamped,) = torch.autograd.grad(vae.decode_video(latents).sum(), latents)
    (free,) = torch.autograd.grad(vae.decode_video(latents, clamp=False).sum(), latents)
    assert clamped.abs().max() == 0
    assert free.abs().min() > 0


def test_gradient_checkpointing_gives_the_same_gradients(vaes):
    vae, _ = vaes
    video = make_video(17)
    gradients = []
    for enable in (False, True):
        if enable:
            vae.enable_gradient_checkpointing()
        vae.zero_grad()
        saved = []

        def count(tensor, saved=saved):
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = (vae.decode_video(vae.encode_video(video), clamp=False) - video).square().mean()
        loss.backward()
        gradients.append(
            ({name: p.grad.clone() for name, p in vae.named_parameters() if p.grad is not None}, sum(saved))
        )
    (plain, plain_saved), (checkpointed, checkpointed_saved) = gradients
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-6, rtol=1e-4)
    if vae.step_area == 0:
        assert checkpointed_saved < 0.5 * plain_saved


class ElementCounter(TorchDispatchMode):
    """Counts the elements that `cat` writes, and the peak of the bytes alive besides those of the inputs."""

    def __init__(self, *inputs):
        super().__init__()
        self.concatenated = self.alive = self.peak = 0
        self.storages = {tensor.untyped_storage()._cdata for tensor in inputs}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.cat.default:
            self.concatenated += output.numel()
        for tensor in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.storages:
                    self.storages.add(storage._cdata)
                    self.alive += storage.nbytes()
                    self.peak = max(self.peak, self.alive)
                    weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        return output

    def _free(self, key, size):
        self.storages.discard(key)
        self.alive -= size


@torch.no_grad()
def test_work_is_linear_in_length():
    vae, source = make_vae("wan21")
    vae.step_area = 0

    def concatenated(model, length):
        with ElementCounter() as counter:
            model.decode(make_latents(length, size=1))
        return counter.concatenated

    # Past the start-up, doubling the added length doubles the added work; Diffusers' grows with the square.
    growth = [
        (concatenated(model, 25) - concatenated(model, 13)) / (concatenated(model, 13) - concatenated(model, 7))
        for model in (vae, source)
    ]
    assert growth[0] == pytest.approx(2.0, rel=1e-3)
    assert growth[1] > 2.2


@torch.no_grad()
def test_streams_run_in_bounded_memory(vaes):
    vae, _ = vaes
    vae.step_area = min(vae.step_area, 2 * 32 * 32)

    def peak(length, encode):
        # One long piece of latents: the memory is that of a step, not of the piece.
        video = make_video(4 * (length - 1) + 1, size=32)
        latents = make_latents(length, size=32 // vae.spatial_compression_ratio)
        with ElementCounter(video, latents) as counter:
            stream = vae.encode_stream(pieces(video, 4)) if encode else vae.decode_stream([latents])
            count = sum(piece.shape[2] for piece in stream)
        assert count == (length if encode else 4 * (length - 1) + 1)
        return counter.peak

    for encode in (False, True):
        assert peak(7, encode) > 0
        assert peak(15, encode) == peak(7, encode)


@torch.no_grad()
def test_streams_hold_no_gradients_and_end_early():
    vae, _ = make_vae("wan21")
    with torch.enable_grad():
        stream = vae.decode_stream(make_latents(1) for _ in itertools.count())
        first, second = next(stream), next(stream)
    assert not first.requires_grad
    assert not second.requires_grad
    assert second.shape[2] == 4
    stream.close()
    assert list(vae.decode_stream([])) == []


@torch.no_grad()
def test_group_offload_gives_the_same_video():
    vae, _ = make_vae("wan22")
    latents = make_latents(3)
    expected = vae.decode_video(latents)
    vae.enable_group_offload(torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)
    torch.testing.assert_close(vae.decode_video(latents), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.cat(list(vae.decode_stream([latents])), dim=2), expected, atol=1e-6, rtol=0)


def test_save_and_load(tmp_path, vaes):
    vae, _ = vaes
    vae.save_pretrained(tmp_path / "plain")
    vae.save_pretrained(tmp_path / "sharded", variant="fp16", max_shard_size="50KB")
    assert len(list((tmp_path / "sharded").glob("*fp16-*.safetensors"))) > 1
    loaded = DreamActorVAE.from_pretrained(tmp_path / "plain")
    for name, value in vae.config.items():
        assert name.startswith("_") or loaded.config[name] == value
    half = DreamActorVAE.from_pretrained(tmp_path / "sharded", variant="fp16", torch_dtype=torch.float16)
    assert half.dtype == torch.float16
    for name, value in vae.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, atol=0, rtol=0)
        torch.testing.assert_close(half.state_dict()[name].float(), value, atol=1e-3, rtol=1e-3)
    # A Wan repository's VAE folder is ours, and the other way round.
    assert isinstance(AutoencoderKLWan.from_pretrained(tmp_path / "plain"), AutoencoderKLWan)
    with torch.no_grad():
        frames = loaded.to(torch.bfloat16).decode_video(make_latents(2))
    assert frames.dtype == torch.bfloat16


def test_bad_input_is_named():
    vae, _ = make_vae("wan21")
    with pytest.raises(ValueError, match="8 frames.*1 plus a multiple of 4"):
        vae.encode_video(make_video(8))
    with pytest.raises(ValueError, match=r"`video` has shape \(1, 3, 5, 30, 30\).*multiples of 8"):
        vae.encode_video(make_video(5, size=30))
    with pytest.raises(ValueError, match=r"`latents` has shape \(1, 5, 2, 4, 4\).*\(batch, 4, T, h, w\)"):
        vae.decode_video(torch.zeros(1, 5, 2, 4, 4))
    with pytest.raises(ValueError, match="2 frames too many"):
        list(vae.encode_stream([make_video(7)]))
    feat_cache = {}
    vae.encode_video(make_video(1), feat_cache=feat_cache)
    with pytest.raises(ValueError, match="1 frames.*multiple of 4 in a later piece"):
        vae.encode_video(make_video(1), feat_cache=feat_cache)
    mismatched, _ = make_vae("wan21", latents_mean=[0.0] * 16)
    with pytest.raises(ValueError, match="have 16 and 4 values"):
        mismatched.encode_video(make_video(1))
