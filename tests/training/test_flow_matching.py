import torch

from diffusers_dreamactor.models.autoencoder_dreamactor import DreamActorVAE
from diffusers_dreamactor.training.flow_matching import add_noise, sample_sigmas, velocity
from diffusers_dreamactor.training.linear_code import LinearCode, change_code


def test_the_velocity_leads_back_to_the_latents():
    latents, noise = torch.randn(2, 4, 3, 2, 2), torch.randn(2, 4, 3, 2, 2)
    sigmas = torch.tensor([0.2, 0.9])
    noisy = add_noise(latents, noise, sigmas)
    torch.testing.assert_close(noisy - sigmas.view(2, 1, 1, 1, 1) * velocity(latents, noise), latents)


def test_a_shift_moves_levels_towards_noise():
    plain = sample_sigmas(4000, torch.Generator().manual_seed(0))
    shifted = sample_sigmas(4000, torch.Generator().manual_seed(0), shift=3.0)
    assert abs(plain.mean() - 0.5) < 0.02
    torch.testing.assert_close(shifted, 3 * plain / (1 + 2 * plain))
    assert 0 < shifted.min() and shifted.max() < 1


def test_a_full_linear_code_is_exact_and_white(tmp_path):
    torch.manual_seed(0)
    # blocks with 6 degrees of freedom
    basis = torch.randn(6, 3 * 4 * 2 * 2)
    code = LinearCode(torch.zeros(48), torch.eye(48), torch.ones(48), frames=4, size=2)
    videos = [code.decode((torch.randn(1, 40, 4, 4, 6) @ basis).permute(0, 4, 1, 2, 3)) for _ in range(3)]
    # the first frame is a block that stands still, which these are not: leave it out of the comparison
    weight = torch.ones(1, 1, 157, 8, 8)
    fitted = LinearCode.fit([(video, weight) for video in videos], channels=7, frames=4, size=2)
    fitted.save(tmp_path / "code.safetensors")
    fitted = LinearCode.load(tmp_path / "code.safetensors")
    video = videos[0]
    assert video.shape == (1, 3, 157, 8, 8)
    latents = fitted.encode(video)
    assert latents.shape == (1, 7, 40, 4, 4)
    torch.testing.assert_close(fitted.decode(latents)[:, :, 1:], video[:, :, 1:], atol=0.2, rtol=0)
    whole = torch.cat([fitted.encode(each)[:, :6] for each in videos], dim=2).transpose(0, 1).flatten(1)
    torch.testing.assert_close(whole.std(dim=1), torch.ones(6), atol=0.1, rtol=0)


def test_a_linear_code_keeps_what_counts():
    # two halves, each with its own block pattern; one component is kept
    torch.manual_seed(0)
    first, second = torch.eye(48)[:2]
    blocks = torch.zeros(1, 40, 4, 4, 48)
    blocks[:, :, :2] = torch.randn(1, 40, 2, 4, 1) * first
    blocks[:, :, 2:] = torch.randn(1, 40, 2, 4, 1) * second
    whole = LinearCode(torch.zeros(48), torch.eye(48), torch.ones(48), frames=4, size=2)
    video = whole.decode(blocks.permute(0, 4, 1, 2, 3))
    for rows, pattern in ((slice(0, 4), first), (slice(4, 8), second)):
        weight = torch.ones(1, 1, 157, 8, 8)
        weight[:, :, :, rows] = 20.0
        code = LinearCode.fit([(video, weight)], channels=1, frames=4, size=2)
        assert (code.components[0] @ pattern).abs() > 0.98


def test_an_autoencoder_decodes_another_code_as_before():
    torch.manual_seed(0)
    vae = DreamActorVAE(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
        scale_factor_temporal=2,
        scale_factor_spatial=2,
    ).eval()
    basis = torch.linalg.qr(torch.randn(24, 24))[0]
    small = LinearCode(torch.randn(24) * 0.1, basis[:4], torch.tensor([2.0, 1.0, 0.7, 0.4]), frames=2, size=2)
    # the wider code holds all that the small one does, in other coordinates
    mixed = torch.linalg.qr(torch.randn(9, 9))[0] @ basis[:9]
    large = LinearCode(small.mean, mixed, torch.rand(9) + 0.5, frames=2, size=2)
    changed = change_code(vae, small, large).eval()
    latents = torch.randn(1, 4, 3, 6, 6)
    matrix, offset = small.relation_to(large)

    def widened(latents):
        return torch.einsum("nc,bcthw->bnthw", matrix, latents) + offset.view(1, -1, 1, 1, 1)

    decoded = changed.decode_video(widened(latents), clamp=False)
    torch.testing.assert_close(decoded, vae.decode_video(latents, clamp=False), atol=1e-4, rtol=1e-4)
    video = torch.randn(1, 3, 5, 12, 12)
    torch.testing.assert_close(changed.encode_video(video), widened(vae.encode_video(video)), atol=1e-4, rtol=1e-4)
