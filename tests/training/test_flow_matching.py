import torch

from diffusers_dreamactor.training.flow_matching import add_noise, sample_sigmas, velocity
from diffusers_dreamactor.training.linear_code import LinearCode


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
    fitted = LinearCode.fit(videos, channels=7, frames=4, size=2)
    fitted.save(tmp_path / "code.safetensors")
    fitted = LinearCode.load(tmp_path / "code.safetensors")
    video = videos[0]
    assert video.shape == (1, 3, 157, 8, 8)
    latents = fitted.encode(video)
    assert latents.shape == (1, 7, 40, 4, 4)
    torch.testing.assert_close(fitted.decode(latents)[:, :, 1:], video[:, :, 1:], atol=0.2, rtol=0)
    whole = torch.cat([fitted.encode(each)[:, :6] for each in videos], dim=2).transpose(0, 1).flatten(1)
    torch.testing.assert_close(whole.std(dim=1), torch.ones(6), atol=0.1, rtol=0)
