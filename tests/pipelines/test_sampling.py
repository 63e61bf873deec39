"""What callers may change while a video is sampled, and components that are there or not."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from diffusers_dreamactor import DreamActorPipeline, DreamActorTransformer3DModel, DreamActorVAE, MotionGuidance
from diffusers_dreamactor.checkpoints.random_pipeline import random_pipeline


@pytest.fixture(scope="module")
def pipe() -> DreamActorPipeline:
    pipe = random_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def text_pipe(pipe) -> DreamActorPipeline:
    torch.manual_seed(0)
    config = {**pipe.transformer.config, "text_dim": 8, "image_dim": 8, "text_context_length": 4}
    made = DreamActorPipeline(**{**pipe.components, "transformer": DreamActorTransformer3DModel(**config)})
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def inputs(pipe, picture):
    maps = np.random.default_rng(0).integers(0, 256, (3, 9, 3, 64, 64), dtype=np.uint8)
    guidance = MotionGuidance(skeleton=maps[0], sphere=maps[1], face=maps[2], fps=25.0)
    return pipe.prepare(pipe.motion_processor.reference(picture, None, 64, 64), guidance=guidance)


def sample(pipe, inputs, **changes):
    arguments = {
        "num_inference_steps": 4,
        "segment_frames": 9,
        "output_type": "latent",
        "guidance_scale": 2.0,
        **changes,
    }
    return pipe(inputs, generator=torch.Generator().manual_seed(0), **arguments).frames


@pytest.fixture
def calls(pipe):
    calls = []
    handle = pipe.transformer.register_forward_pre_hook(lambda module, args: calls.append(1))
    yield calls
    handle.remove()


def test_guidance_can_be_turned_off_midway(pipe, inputs, calls):
    def stop_guidance(pipeline, step, timestep, callback_kwargs):
        if step == 1:
            pipeline._guidance_scale = 0.0
        return callback_kwargs

    cut = sample(pipe, inputs, callback_on_step_end=stop_guidance)
    assert len(calls) == 6
    assert (cut - sample(pipe, inputs)).abs().max() > 1e-4
    assert len(calls) == 6 + 8


def test_guidance_that_is_changed_stays_so_in_the_next_segment(pipe, inputs, calls):
    seen = []

    def stop_guidance(pipeline, step, timestep, callback_kwargs):
        pipeline._guidance_scale = 1.0
        seen.append(pipeline.guidance_scale)
        return {}

    sample(pipe, inputs, segment_frames=5, callback_on_step_end=stop_guidance)
    assert len(calls) == 2 + 3 + 4 and seen == [1.0] * 8
    # and the next call is whole again
    sample(pipe, inputs)
    assert len(calls) == 9 + 8


def test_callbacks_are_offered_the_text(text_pipe, inputs):
    generator = torch.Generator().manual_seed(0)
    embeds = dict(
        zip(("prompt_embeds", "negative_prompt_embeds"), torch.randn(2, 1, 4, 8, generator=generator)),
        image_embeds=torch.randn(1, 5, 8, generator=generator),
    )
    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    other = torch.randn(1, 4, 8, generator=generator)
    got = []

    def change_text(pipeline, step, timestep, callback_kwargs):
        got.append(sorted(callback_kwargs))
        return {"prompt_embeds": other} if step == 0 else {}

    arguments = {**embeds, "callback_on_step_end_tensor_inputs": names}
    changed = sample(text_pipe, inputs, callback_on_step_end=change_text, **arguments)
    assert got == [sorted(names)] * 4
    # what the transformer keeps of the text is made anew: as without that memory
    forward = text_pipe.transformer.forward
    text_pipe.transformer.forward = lambda **kwargs: forward(**{**kwargs, "condition_cache": None})
    plain = sample(text_pipe, inputs, callback_on_step_end=change_text, **arguments)
    text_pipe.transformer.forward = forward
    torch.testing.assert_close(changed, plain, atol=1e-5, rtol=0)
    assert (changed - sample(text_pipe, inputs, **embeds)).abs().max() > 1e-5


def test_image_states_can_be_passed(text_pipe, inputs):
    generator = torch.Generator().manual_seed(0)
    text = {name: torch.randn(1, 4, 8, generator=generator) for name in ("prompt_embeds", "negative_prompt_embeds")}
    first, second = torch.randn(2, 1, 5, 8, generator=generator)
    with pytest.raises(ValueError, match=r"`image_dim` is 8.* pass `image_embeds`"):
        sample(text_pipe, inputs, **text)
    frames = [sample(text_pipe, inputs, image_embeds=embeds, **text) for embeds in (first, first, second)]
    assert torch.equal(frames[0], frames[1]) and (frames[0] - frames[2]).abs().max() > 1e-5
    with pytest.raises(ValueError, match="`image_embeds` has a batch of 3, but the batch has 1 videos"):
        sample(text_pipe, inputs, image_embeds=first.expand(3, -1, -1), **text)


def test_image_states_without_a_place_for_them(pipe, inputs):
    with pytest.raises(ValueError, match="`image_embeds` was given, but this pipeline's transformer takes no CLIP"):
        sample(pipe, inputs, image_embeds=torch.zeros(1, 5, 8))


def test_text_is_encoded_without_the_other_components():
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁a", -3.0), ("▁person", -4.0)]
    torch.manual_seed(0)
    text_encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    ).eval()
    nothing = dict.fromkeys(("transformer", "vae", "scheduler", "face_motion_encoder", "motion_processor"))
    alone = DreamActorPipeline(**nothing, text_encoder=text_encoder, tokenizer=T5Tokenizer(vocab=words, extra_ids=0))
    with torch.no_grad():
        states = alone.encode_prompt("a person")
        assert states.shape == (1, 512, 8) and states[:, :3].any() and not states[:, 4:].any()
        assert alone.encode_prompt("a person", batch_size=2).shape == (2, 512, 8)
    with pytest.raises(ValueError, match="`transformer` is None, but DreamActorPipeline cannot generate without one"):
        alone("person.png", "driver.mp4")
    with pytest.raises(ValueError, match="`prompt` was given, but this pipeline has no `text_encoder`"):
        DreamActorPipeline(**nothing).encode_prompt("a person")


def test_a_pose_encoder_that_is_missing_is_named(pipe, inputs):
    lacking = DreamActorPipeline(**{**pipe.components, "pose_encoder": None})
    with pytest.raises(ValueError, match="`pose_encoder` is None, but DreamActorPipeline cannot generate without one"):
        sample(lacking, inputs)


def test_the_vae_of_diffusers_is_taken(pipe, inputs):
    vae = AutoencoderKLWan.from_config(pipe.vae.config)
    vae.load_state_dict(pipe.vae.state_dict())
    taken = DreamActorPipeline(**{**pipe.components, "vae": vae}, segment_frames=33)
    taken.set_progress_bar_config(disable=True)
    assert type(taken.vae) is DreamActorVAE
    ours, theirs = next(taken.vae.parameters()), next(vae.parameters())
    assert ours.data_ptr() == theirs.data_ptr()
    frames = [sample(each, inputs, output_type="pt") for each in (pipe, taken)]
    assert torch.equal(*frames)


@pytest.mark.parametrize("schedule", [{"sigmas": [1.0, 0.6, 0.3]}, {"timesteps": [1000, 600, 300]}])
def test_a_schedule_of_ones_own(pipe, inputs, schedule):
    seen = []

    def note(pipeline, step, timestep, callback_kwargs):
        seen.append(float(timestep))
        return {}

    own = sample(pipe, inputs, callback_on_step_end=note, **schedule)
    assert len(seen) == pipe.num_timesteps == 3
    # the scheduler shifts sigmas by 3, and takes timesteps as they are
    sigmas = [3 * s / (1 + 2 * s) for s in (1.0, 0.6, 0.3)] if "sigmas" in schedule else [1.0, 0.6, 0.3]
    assert seen == pytest.approx([1000 * s for s in sigmas], rel=1e-3)
    assert (own - sample(pipe, inputs, num_inference_steps=3)).abs().max() > 1e-4


def test_schedules_that_cannot_be(pipe, inputs):
    from diffusers import DDIMScheduler

    with pytest.raises(ValueError, match="`sigmas` and `timesteps` were both given"):
        sample(pipe, inputs, sigmas=[1.0], timesteps=[999])
    other = DreamActorPipeline(**{**pipe.components, "scheduler": DDIMScheduler()})
    with pytest.raises(ValueError, match="`sigmas` was given, but DDIMScheduler takes none"):
        sample(other, inputs, sigmas=[1.0, 0.5])


@pytest.mark.parametrize("reference_guidance_scale", [None, 1.5])
def test_the_reference_is_held_once(pipe, inputs, reference_guidance_scale):
    caches = {}
    handle = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: caches.update({id(kwargs["condition_cache"]): kwargs["condition_cache"]}),
        with_kwargs=True,
    )
    sample(pipe, inputs, reference_guidance_scale=reference_guidance_scale)
    handle.remove()
    held = [cache for cache in caches.values() if cache.has_references()]
    assert len(caches) == 2 and len(held) == 1
