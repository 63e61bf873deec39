"""PoseEncoder: the video latents' grid, nothing from the future, saving and training."""

import pytest
import torch

from diffusers_dreamactor.models.autoencoder_dreamactor import DreamActorVAE
from diffusers_dreamactor.models.pose_encoder import PoseEncoder


def make_encoder(**overrides) -> PoseEncoder:
    torch.manual_seed(0)
    return PoseEncoder(**{"out_channels": 4, "block_out_channels": (8, 12, 16), **overrides}).eval()


def make_maps(num_frames: int = 13, height: int = 32, width: int = 48) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 6, num_frames, height, width, generator=generator) * 2 - 1


@torch.no_grad()
@pytest.mark.parametrize(
    ("overrides", "ratio"),
    [
        ({}, 8),
        ({"patch_size": 4}, 16),
        ({"block_out_channels": (8, 8, 8, 8), "temporal_downsample": (False, True, True)}, 16),
    ],
)
def test_lies_on_the_grid_of_the_video_latents(overrides, ratio):
    encoder = make_encoder(**overrides)
    assert encoder.spatial_compression_ratio == ratio
    for num_frames in (1, 5, 13):
        maps = make_maps(num_frames)
        latents = encoder(maps)
        assert latents.shape == (2, 4, (num_frames - 1) // 4 + 1, 32 // ratio, 48 // ratio)
    if ratio == 8:
        vae = DreamActorVAE(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
        assert vae.encode_video(maps[:, :3]).shape[2:] == latents.shape[2:]


@torch.no_grad()
def test_a_latent_frame_sees_its_own_past_only():
    encoder, maps = make_encoder(), make_maps()
    whole = encoder(maps)
    for latent_frame in range(3):
        last = 4 * latent_frame
        changed = maps.clone()
        changed[:, :, last + 1 :] += 1.0
        difference = (encoder(changed) - whole).abs().amax((0, 1, 3, 4))
        assert difference[: latent_frame + 1].max() == 0
        assert difference[latent_frame + 1] > 1e-3
        # The four frames that a latent frame stands for all reach it.
        for frame in range(last + 1, last + 5):
            changed = maps.clone()
            changed[:, :, frame] += 1.0
            assert (encoder(changed) - whole)[:, :, latent_frame + 1].abs().max() > 1e-4


@torch.no_grad()
def test_it_sees_where_things_are():
    encoder = make_encoder()
    maps = torch.full((1, 6, 1, 192, 192), -1.0)
    empty = encoder(maps)
    changes = []
    for row, column in ((10, 10), (13, 11)):
        dot = maps.clone()
        dot[..., 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1.0
        change = (encoder(dot) - empty).square().sum((0, 1, 2))
        rows, columns = change.nonzero().unbind(-1)
        assert (rows - row).abs().max() <= 6 and (columns - column).abs().max() <= 6
        assert change[row, column] > 1e-3
        changes.append(change)
    torch.testing.assert_close(changes[0].roll((3, 1), dims=(0, 1)), changes[1], atol=1e-5, rtol=0)


def test_gradient_checkpointing_gives_the_same_gradients():
    encoder, maps = make_encoder(), make_maps()
    gradients = []
    for enable in (False, True):
        if enable:
            encoder.enable_gradient_checkpointing()
        encoder.zero_grad()
        encoder(maps).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in encoder.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


def test_save_and_load(tmp_path):
    encoder, maps = make_encoder(), make_maps()
    encoder.save_pretrained(tmp_path / "plain")
    encoder.save_pretrained(tmp_path / "sharded", variant="fp16", max_shard_size="30KB")
    assert len(list((tmp_path / "sharded").glob("*fp16-*.safetensors"))) > 1
    loaded = PoseEncoder.from_pretrained(tmp_path / "plain")
    for name, value in encoder.config.items():
        # JSON turns tuples into lists.
        assert name.startswith("_") or torch.equal(torch.tensor(loaded.config[name]), torch.tensor(value))
    half = PoseEncoder.from_pretrained(tmp_path / "sharded", variant="fp16", torch_dtype=torch.bfloat16)
    with torch.no_grad():
        expected = encoder(maps)
        torch.testing.assert_close(loaded(maps), expected, atol=0, rtol=0)
        latents = half(maps.bfloat16())
    assert latents.dtype == torch.bfloat16
    torch.testing.assert_close(latents.float(), expected, atol=0.05, rtol=0.05)


def test_bad_input_is_named():
    encoder = make_encoder()
    for maps, shape in (
        (make_maps(4), "4, 32, 48"),
        (make_maps(5, 36), "5, 36, 48"),
        (make_maps(5)[:, :3], "2, 3, 5"),
    ):
        with pytest.raises(ValueError, match=rf"`maps` has shape .*{shape}.*\(batch, 6, frames.*multiple of 4 frames"):
            encoder(maps)
    with pytest.raises(ValueError, match="`temporal_downsample` has 1 values.*3 levels"):
        make_encoder(temporal_downsample=(True,))
