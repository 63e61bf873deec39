import pytest
import torch

from diffusers_dreamactor.frame_sources import frame_index, reflect_index
from diffusers_dreamactor.models.pose_encoder import PoseEncoder
from diffusers_dreamactor.pipelines.conditioning import (
    combine_guidance,
    encode_reference_pose,
    frame_mask,
    initial_latent_condition,
    iterate_segments,
    latent_length,
    pack_reference_latents,
)


@pytest.mark.parametrize("num_frames, expected", [(1, 1), (2, 2), (5, 2), (6, 3), (73, 19)])
def test_latent_length_rounds_up(num_frames, expected):
    assert latent_length(num_frames) == expected


@pytest.mark.parametrize("num_frames", [1, 2, 5, 16, 17, 18, 33, 49, 50, 100])
def test_segments_cover_the_video_once(num_frames):
    segments = list(iterate_segments(num_frames, 17))
    new = [range(s.start + (s.start > 0), s.stop) for s in segments]
    covered = [frame for part in new for frame in part]
    assert covered == list(range(covered[-1] + 1))
    assert num_frames <= len(covered) < num_frames + 4
    assert all(s.num_frames % 4 == 1 for s in segments)
    assert len(segments) == 1 or new[-1].start < num_frames


def test_full_segments_as_wan_animate():
    # 78 frames in segments of 77 with one frame shared: WanAnimatePipeline runs two full segments
    assert list(iterate_segments(77, 77, full=True)) == [(0, 77)]
    assert list(iterate_segments(78, 77, full=True)) == [(0, 77), (76, 153)]


def test_frame_mask_is_diffusers_i2v_mask():
    from diffusers import WanAnimatePipeline

    known = (torch.rand(2, 1, 9, 3, 4) > 0.5).float()
    ours = frame_mask(known)
    # `get_i2v_mask` reads nothing of the pipeline but its temporal scale
    pipeline = WanAnimatePipeline.__new__(WanAnimatePipeline)
    object.__setattr__(pipeline, "vae_scale_factor_temporal", 4)
    theirs = WanAnimatePipeline.get_i2v_mask(
        pipeline, 2, 3, 3, 4, mask_len=0, mask_pixel_values=known, dtype=torch.float32, device="cpu"
    )
    assert torch.equal(ours, theirs)


def test_initial_latent_is_marked_and_placed():
    latents = torch.randn(1, 16, 5, 2, 2)
    initial = torch.randn(1, 16, 1, 2, 2)
    condition = initial_latent_condition(latents, initial)
    assert condition.shape == (1, 20, 5, 2, 2)
    assert torch.equal(condition[:, 4:, :1], initial)
    assert (condition[:, :4, 0] == 1).all() and (condition[:, :, 1:] == 0).all()


def test_references_are_packed_as_given_frames():
    latents = torch.randn(1, 16, 3, 2, 2)
    packed = pack_reference_latents(latents)
    assert torch.equal(packed[:, :16], latents) and torch.equal(packed[:, 20:], latents)
    assert (packed[:, 16:20] == 1).all()


def test_reference_poses_are_encoded_apart():
    torch.manual_seed(0)
    encoder = PoseEncoder(block_out_channels=(8, 8, 8)).eval()
    maps = torch.rand(2, 6, 3, 16, 16)
    together = encode_reference_pose(encoder, maps)
    assert together.shape == (2, 16, 3, 2, 2)
    alone = encoder(maps[1:, :, 2:])
    torch.testing.assert_close(together[1:, :, 2:], alone)


def test_guidance_formulas():
    none, reference, everything = torch.randn(3, 4)
    torch.testing.assert_close(combine_guidance(none, everything, 2.5), none + 2.5 * (everything - none))
    torch.testing.assert_close(
        combine_guidance(none, everything, 2.5, reference, 1.5),
        none + 1.5 * (reference - none) + 2.5 * (everything - reference),
    )
    # equal scales make the third branch cancel out
    torch.testing.assert_close(
        combine_guidance(none, everything, 2.0, reference, 2.0), combine_guidance(none, everything, 2.0)
    )


def test_frame_index_offers_what_to_do_with_a_short_driver():
    with pytest.raises(ValueError, match=r"`num_frames` is 9.*5 frames.*hold.*loop.*stop"):
        frame_index(5, 9, None)
    assert frame_index(5, 9, "hold").tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 4]
    assert frame_index(5, 9, "loop").tolist() == [0, 1, 2, 3, 4, 3, 2, 1, 0]
    assert frame_index(5, 9, "stop").tolist() == [0, 1, 2, 3, 4]
    assert frame_index(5, 3, None).tolist() == [0, 1, 2]
    assert frame_index(5, None, None).tolist() == [0, 1, 2, 3, 4]
    assert reflect_index(4, 1).tolist() == [0, 0, 0, 0]
