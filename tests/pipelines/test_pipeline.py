import json

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch

from diffusers_dreamactor import DreamActorPipeline, DreamActorWanAnimatePipeline, MotionGuidance
from diffusers_dreamactor.checkpoints.random_pipeline import random_pipeline
from diffusers_dreamactor.models.transformer_dreamactor import DreamActorTransformer3DModel
from diffusers_dreamactor.processors.guidance import MotionGuidanceProcessor


SAMPLING = {"num_inference_steps": 2, "segment_frames": 9}
SIZE = {"height": 64, "width": 64, **SAMPLING}


def make_guidance(num_frames: int, seed: int = 0, fps: float = 25.0) -> MotionGuidance:
    generator = np.random.default_rng(seed)
    maps = generator.integers(0, 256, (3, num_frames, 3, 64, 64), dtype=np.uint8)
    return MotionGuidance(skeleton=maps[0], sphere=maps[1], face=maps[2], fps=fps)


@pytest.fixture(scope="module")
def guidance() -> MotionGuidance:
    return make_guidance(14)


@pytest.fixture(scope="module")
def pipe() -> DreamActorPipeline:
    pipe = random_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def wan_pipe() -> DreamActorWanAnimatePipeline:
    base = random_pipeline()
    torch.manual_seed(0)
    transformer = DreamActorTransformer3DModel(
        **{**base.transformer.config, "reference_attention": False, "face_attention_interval": 2}
    )
    for parameter in transformer.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    pipe = DreamActorWanAnimatePipeline(
        transformer=transformer,
        vae=base.vae,
        scheduler=base.scheduler,
        face_motion_encoder=base.face_motion_encoder,
        motion_processor=MotionGuidanceProcessor(style="wan", face_size=64, area=128 * 128),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def reference(pipe, picture):
    """The picture as a reference without a pose, so that no capture has to look for one."""
    return pipe.motion_processor.reference(picture, None, 64, 64)


def run(pipe, picture, guidance, seed=0, output_type="pt", **arguments):
    generator = torch.Generator().manual_seed(seed)
    pictures = picture if isinstance(picture, list) else [picture]
    references = [reference(pipe, each) for each in pictures]
    return pipe(references, guidance=guidance, generator=generator, output_type=output_type, **{**SIZE, **arguments})


@pytest.fixture(scope="module")
def usual_frames(pipe, picture, guidance) -> torch.Tensor:
    """What `run(pipe, picture, guidance)` gives; tests do not change it."""
    return run(pipe, picture, guidance).frames


def test_output_types_agree(pipe, picture, guidance):
    tensor = run(pipe, picture, guidance)
    assert tensor.frames.shape == (1, 14, 3, 64, 64) and tensor.fps == 25.0
    array = run(pipe, picture, guidance, output_type="np").frames
    np.testing.assert_allclose(array, tensor.frames.permute(0, 1, 3, 4, 2).numpy(), atol=1e-6)
    pictures = run(pipe, picture, guidance, output_type="pil").frames
    assert len(pictures) == 1 and len(pictures[0]) == 14
    np.testing.assert_allclose(np.asarray(pictures[0][3]) / 255, array[0, 3], atol=0.5 / 255 + 1e-6)
    frames, fps = run(pipe, picture, guidance, return_dict=False)
    assert torch.equal(frames, tensor.frames) and fps == 25.0


def test_segments_decode_as_one_video(pipe, picture, guidance, usual_frames):
    latents = run(pipe, picture, guidance, output_type="latent").frames
    assert latents.shape == (1, 16, 5, 8, 8)
    with torch.no_grad():
        whole = pipe.vae.decode_video(latents)
    whole = pipe.video_processor.postprocess_video(whole[:, :, :14], "pt")
    torch.testing.assert_close(usual_frames, whole, atol=1e-5, rtol=0)


def test_stream_yields_what_the_call_returns(pipe, picture, guidance, usual_frames):
    inputs = pipe.prepare(reference(pipe, picture), guidance=guidance)
    parts = list(pipe.stream(inputs, generator=torch.Generator().manual_seed(0), output_type="pt", **SAMPLING))
    assert [part.frames.shape[1] for part in parts] == [9, 5]
    assert torch.equal(torch.cat([part.frames for part in parts], dim=1), usual_frames)


def test_a_call_between_two_segments_changes_nothing(pipe, picture, guidance):
    expected = run(pipe, picture, guidance, guidance_scale=2.5).frames
    inputs = pipe.prepare(reference(pipe, picture), guidance=guidance)
    arguments = {**SAMPLING, "guidance_scale": 2.5, "output_type": "pt"}
    stream = pipe.stream(inputs, generator=torch.Generator().manual_seed(0), **arguments)
    parts = [next(stream).frames]
    run(pipe, picture, guidance, seed=1, guidance_scale=1.0)
    parts += [part.frames for part in stream]
    assert torch.equal(torch.cat(parts, dim=1), expected)
    assert pipe.guidance_scale == 2.5 and pipe.do_classifier_free_guidance


def test_a_segment_starts_from_the_last_latent_of_the_one_before(pipe, picture, guidance):
    inputs = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append(kwargs["hidden_states"].clone()), with_kwargs=True
    )
    latents = run(pipe, picture, guidance, output_type="latent", guidance_scale=1.0).frames
    handle.remove()
    first, second = inputs[0], inputs[2]
    assert (first[:, 16:] == 0).all()
    assert (second[:, 16:20, 0] == 1).all() and (second[:, 16:, 1:] == 0).all()
    torch.testing.assert_close(second[:, 20:, 0], latents[:, :, 2])


def test_seed_decides(pipe, picture, guidance, usual_frames):
    assert torch.equal(run(pipe, picture, guidance).frames, usual_frames)
    assert not torch.allclose(usual_frames, run(pipe, picture, guidance, seed=1).frames)


def test_given_noise_is_used(pipe, picture, guidance):
    noise = torch.randn(1, 16, 5, 8, 8, generator=torch.Generator().manual_seed(3))
    first = run(pipe, picture, guidance, seed=0, latents=noise).frames
    assert torch.equal(first, run(pipe, picture, guidance, seed=1, latents=noise).frames)


@pytest.mark.parametrize("kind, num_latent_frames", [("pipe", 5), ("wan_pipe", 4)])
def test_noise_of_another_length_is_refused_before_anything_is_made(
    request, kind, num_latent_frames, picture, guidance
):
    pipe = request.getfixturevalue(kind)
    noise = torch.randn(1, 16, 6, 8, 8, generator=torch.Generator().manual_seed(3))
    steps = []
    arguments = {"callback_on_step_end": lambda *_: steps.append(None) or {}}
    for wrong in (num_latent_frames - 1, num_latent_frames + 1):
        with pytest.raises(ValueError, match=rf"`latents` has the shape .*needs \(1, 16, {num_latent_frames}, 8, 8\)"):
            run(pipe, picture, guidance, latents=noise[:, :, :wrong], **arguments)
    assert not steps
    run(pipe, picture, guidance, latents=noise[:, :, :num_latent_frames], **arguments)
    assert len(steps) == 4


@pytest.mark.parametrize("changed", ["skeleton", "sphere", "face"])
def test_every_map_matters(pipe, picture, guidance, changed, usual_frames):
    other = guidance[0:14]
    setattr(other, changed, 255 - getattr(guidance, changed))
    difference = (usual_frames - run(pipe, picture, other).frames).abs().max()
    assert difference > 1e-4


def test_reference_and_scales_matter(pipe, picture, guidance, usual_frames):
    flipped = picture.transpose(PIL.Image.Transpose.FLIP_TOP_BOTTOM)
    for changed in (
        run(pipe, flipped, guidance).frames,
        run(pipe, [picture, flipped], guidance).frames,
        run(pipe, picture, guidance, guidance_scale=1.0).frames,
        run(pipe, picture, guidance, reference_guidance_scale=1.2).frames,
        run(pipe, picture, guidance, face_scale=0.0).frames,
        run(pipe, picture, guidance, pose_scale=0.0).frames,
    ):
        assert (usual_frames - changed).abs().max() > 1e-4


def test_equal_scales_make_three_branches_equal_two(pipe, picture, guidance):
    two = run(pipe, picture, guidance, guidance_scale=2.0).frames
    three = run(pipe, picture, guidance, guidance_scale=2.0, reference_guidance_scale=2.0).frames
    torch.testing.assert_close(two, three, atol=1e-5, rtol=0)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
@pytest.mark.parametrize("kind", ["pipe", "wan_pipe"])
def test_same_output_without_condition_cache(request, kind, guidance_scale, picture, guidance, monkeypatch):
    pipe = request.getfixturevalue(kind)
    arguments = {"guidance_scale": guidance_scale, "num_inference_steps": 3}
    cached = run(pipe, picture, guidance, **arguments).frames
    forward = pipe.transformer.forward
    monkeypatch.setattr(pipe.transformer, "forward", lambda **kwargs: forward(**{**kwargs, "condition_cache": None}))
    plain = run(pipe, picture, guidance, **arguments).frames
    assert (cached - plain).abs().max() <= 1e-5


def test_wan_mode_makes_the_frames_asked_for(wan_pipe, picture, guidance):
    result = run(wan_pipe, picture, guidance, segment_frames=9)
    assert result.frames.shape == (1, 14, 3, 64, 64)
    with pytest.raises(ValueError, match="one reference"):
        run(wan_pipe, [picture, picture], guidance)


def test_wan_latents_of_several_segments_are_an_error(wan_pipe, picture, guidance):
    assert run(wan_pipe, picture, guidance, segment_frames=17, output_type="latent").frames.shape[2] == 5
    with pytest.raises(ValueError, match='`output_type` is "latent", but .* 14 frames in several segments'):
        run(wan_pipe, picture, guidance, segment_frames=9, output_type="latent")


def test_videos_of_a_batch(pipe, picture, guidance):
    noise = torch.randn(2, 16, 5, 8, 8, generator=torch.Generator().manual_seed(3))
    together = run(pipe, picture, guidance, num_videos_per_prompt=2, latents=noise).frames
    alone = run(pipe, picture, guidance, latents=noise[1:]).frames
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=0)


def test_save_and_load(pipe, picture, guidance, tmp_path, usual_frames):
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers_dreamactor", "DreamActorTransformer3DModel"]
    assert index["motion_processor"] == ["diffusers_dreamactor", "MotionGuidanceProcessor"]
    assert index["text_encoder"] == [None, None]
    for loader in (DreamActorPipeline, diffusers.DiffusionPipeline):
        loaded = loader.from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        assert type(loaded) is DreamActorPipeline
        assert loaded.config.segment_frames == 33 and loaded.motion_processor.config.face_size == 64
        torch.testing.assert_close(run(loaded, picture, guidance).frames, usual_frames, atol=1e-5, rtol=0)


def test_half_precision_keeps_what_must_stay_float32(pipe, tmp_path, picture, guidance, usual_frames):
    pipe.save_pretrained(tmp_path)
    half = DreamActorPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    assert half.transformer.dtype == torch.bfloat16
    assert half.transformer.blocks[0].scale_shift_table.dtype == torch.float32
    difference = run(half, picture, guidance).frames.float() - usual_frames
    assert difference.abs().max() < 0.1


@pytest.mark.parametrize(
    "scheduler, arguments",
    [
        ("FlowMatchEulerDiscreteScheduler", {}),
        ("FlowMatchHeunDiscreteScheduler", {}),
        (
            "UniPCMultistepScheduler",
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
        ),
    ],
)
def test_schedulers_swap(pipe, picture, guidance, scheduler, arguments):
    swapped = DreamActorPipeline(
        **{
            **pipe.components,
            "scheduler": getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **arguments),
        }
    )
    swapped.set_progress_bar_config(disable=True)
    few = run(swapped, picture, guidance, num_inference_steps=8, output_type="latent", guidance_scale=1.0).frames
    euler = run(pipe, picture, guidance, num_inference_steps=32, output_type="latent", guidance_scale=1.0).frames
    # every flow solver approximates the same trajectory
    assert (few - euler).abs().mean() < 0.1 * euler.abs().mean()


def test_a_scheduler_that_adds_noise_takes_the_generator(pipe, picture, guidance):
    scheduler = diffusers.FlowMatchLCMScheduler.from_config(pipe.scheduler.config)
    noisy = DreamActorPipeline(**{**pipe.components, "scheduler": scheduler})
    noisy.set_progress_bar_config(disable=True)
    latents = [run(noisy, picture, guidance, seed, output_type="latent").frames for seed in (0, 0, 1)]
    assert torch.equal(latents[0], latents[1]) and not torch.allclose(latents[0], latents[2])


def test_callbacks_see_and_change_the_latents(pipe, picture, guidance):
    steps = []

    def callback(pipeline, step, timestep, callback_kwargs):
        steps.append((step, float(timestep)))
        return {"latents": torch.zeros_like(callback_kwargs["latents"])}

    latents = run(pipe, picture, guidance, output_type="latent", callback_on_step_end=callback).frames
    assert [step for step, _ in steps] == [0, 1, 0, 1]
    assert (latents == 0).all()
    with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs"):
        run(pipe, picture, guidance, callback_on_step_end_tensor_inputs=["noise"])


def test_interrupt_stops_denoising(pipe, picture, guidance):
    calls = []

    def callback(pipeline, step, timestep, callback_kwargs):
        calls.append(step)
        pipeline._interrupt = True
        return {}

    frames = run(pipe, picture, guidance, callback_on_step_end=callback, num_inference_steps=4).frames
    assert calls == [0]
    # nothing follows the segment in which it happened, and the next call is whole again
    assert frames.shape[1] == 9 < len(guidance)
    assert run(pipe, picture, guidance).frames.shape[1] == len(guidance)


def test_repository_defaults(pipe, picture, guidance):
    latents = pipe(reference(pipe, picture), guidance=guidance, output_type="latent").frames
    assert latents.shape[2] == 5
    assert pipe.num_timesteps == pipe.config.num_inference_steps == 4
    assert pipe.guidance_scale == pipe.config.guidance_scale == 2.5


@pytest.mark.parametrize("extend, expected", [("hold", 20), ("loop", 20), ("stop", 14)])
def test_more_frames_than_the_driver_has(pipe, picture, guidance, extend, expected):
    assert run(pipe, picture, guidance, num_frames=20, extend=extend).frames.shape[1] == expected
    with pytest.raises(ValueError, match=r"`num_frames` is 20.*hold"):
        run(pipe, picture, guidance, num_frames=20)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"height": 60}, r"`height` is 60, but .* multiple of 16"),
        ({"width": -16}, r"`width` is -16"),
        ({"num_frames": -1}, r"`num_frames` is -1"),
        ({"num_frames": 0}, r"`num_frames` is 0"),
        ({"drive": ()}, r"`drive` is \(\)"),
        ({"drive": "face"}, r"`drive` is 'face'"),
        ({"drive": ("leg",)}, r"`drive` is \('leg',\).*body"),
        ({"segment_frames": 8}, r"`segment_frames` is 8.*4 n \+ 1"),
        ({"num_inference_steps": 0}, r"`num_inference_steps` is 0"),
        ({"num_videos_per_prompt": 0}, r"`num_videos_per_prompt` is 0"),
        ({"num_videos_per_prompt": 2, "generator": [torch.Generator()]}, r"`generator` is a list of 1.*2 videos"),
        ({"output_type": "mp4"}, r"`output_type` is 'mp4'"),
        ({"extend": "mirror"}, r"`extend` is 'mirror'"),
        ({"prompt": "dance"}, r"takes no text"),
        ({"mode": "replace"}, r"Wan-Animate weights"),
        ({"mode": "swap"}, r"`mode` is 'swap'"),
        ({"background_video": "x.mp4"}, r"`background_video`"),
        ({"num_pseudo_references": -1}, r"`num_pseudo_references` is -1"),
        ({"audio": "a.wav"}, r"`guidance` is already drawn"),
        ({"drive": ("head",)}, r"`drive` is \('head',\), but `guidance` is already drawn"),
        ({"retarget": False}, r"`retarget` is False, but `guidance` is already drawn"),
        ({"align": "first"}, r"`align` is 'first', but `guidance` is already drawn"),
        ({"bone_scale": {"arm": 2.0}}, r"`bone_scale` is .*, but `guidance` is already drawn"),
        ({"person": 1}, r"`person` is 1, but `guidance` is already drawn"),
        ({"fps": 12}, r"`fps` is 12, but `guidance` is already drawn, at its own 25 frames/s"),
        ({"height": 32, "width": 32}, r"`guidance` is 64x64 pixels, but the generation size is 32x32"),
    ],
)
def test_bad_arguments(pipe, picture, guidance, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(picture, guidance=guidance, **{**SIZE, **arguments})


def test_references_have_the_size_that_is_asked_for(pipe, picture, guidance):
    ready, other = reference(pipe, picture), pipe.motion_processor.reference(picture, None, 32, 64)
    with pytest.raises(ValueError, match=r"`image` has a reference of 64x64 pixels.* size is 64x128"):
        pipe(ready, guidance=guidance, height=128)
    with pytest.raises(ValueError, match=r"`image` has a reference of 64x32 pixels.* size is 64x64"):
        pipe([ready, other], guidance=guidance)


def test_a_transformer_with_image_states_needs_an_image_encoder(pipe, picture, guidance):
    transformer = DreamActorTransformer3DModel(**{**pipe.transformer.config, "image_dim": 16})
    lacking = DreamActorPipeline(**{**pipe.components, "transformer": transformer})
    with pytest.raises(ValueError, match=r"`image_dim` is 16.* no `image_encoder`"):
        run(lacking, picture, guidance)


def test_bad_drivers_and_pictures(pipe, picture, guidance, tmp_path):
    with pytest.raises(ValueError, match="No driver"):
        pipe(picture)
    with pytest.raises(ValueError, match="`video` and `guidance`"):
        pipe(picture, video="x.mp4", guidance=guidance)
    with pytest.raises(ValueError, match="empty list"):
        pipe([], guidance=guidance)
    with pytest.raises(OSError, match="no file"):
        pipe(tmp_path / "missing.png", guidance=guidance)
    broken = guidance[0:14]
    broken.skeleton = np.full(guidance.skeleton.shape, np.nan, dtype=np.float32)
    with pytest.raises(ValueError, match="not finite"):
        run(pipe, picture, broken)


def test_group_offload_gives_the_same(picture, guidance, usual_frames):
    pipe = random_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=False,
    )
    torch.testing.assert_close(run(pipe, picture, guidance).frames, usual_frames, atol=1e-6, rtol=0)


def test_layerwise_casting_stays_close(picture, guidance, usual_frames):
    pipe = random_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert (run(pipe, picture, guidance).frames - usual_frames).abs().max() < 0.1


def test_first_block_cache_runs_per_branch(picture, guidance):
    from diffusers import FirstBlockCacheConfig

    pipe = random_pipeline()
    pipe.set_progress_bar_config(disable=True)
    expected = run(pipe, picture, guidance, num_inference_steps=4).frames
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    torch.testing.assert_close(run(pipe, picture, guidance, num_inference_steps=4).frames, expected)


@pytest.mark.parametrize("num_frames", [10, 17])
def test_first_block_cache_starts_anew_with_each_segment(picture, num_frames):
    """A threshold that skips whatever it may: the first step of a segment, shorter or not, still runs all blocks."""
    from diffusers import FirstBlockCacheConfig

    pipe = random_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    calls = []
    handle = pipe.transformer.blocks[-1].attn1.register_forward_hook(lambda *_: calls.append(None))
    run(pipe, picture, make_guidance(num_frames), guidance_scale=1.0)
    handle.remove()
    assert len(calls) == 2


def test_import_registers_the_classes():
    assert diffusers.DreamActorPipeline is DreamActorPipeline
    assert diffusers.DreamActorTransformer3DModel is DreamActorTransformer3DModel
