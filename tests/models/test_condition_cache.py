"""ConditionCache: the same outputs with and without, and nothing stale."""

import pytest
import torch

from diffusers_dreamactor.models.condition_cache import ConditionCache


MODES = {
    "isolated": {"references": 2, "stream_references": 0},
    "in_stream": {"references": 0, "stream_references": 1},
    "no_references": {"references": 0, "stream_references": 0},
}
CONDITIONS = {
    "plain": {},
    "text": {"text_dim": 16},
    "image": {"image_dim": 20},
    "both": {"text_dim": 16, "image_dim": 20},
}


def step(inputs: dict, seed: int, timestep: float) -> dict:
    """The same conditions at another denoising step."""
    noise = torch.randn(inputs["hidden_states"].shape, generator=torch.Generator().manual_seed(seed))
    return {**inputs, "hidden_states": noise, "timestep": torch.full_like(inputs["timestep"], timestep)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("conditions", CONDITIONS)
@torch.no_grad()
def test_outputs_are_equal_with_and_without(make_transformer, make_transformer_inputs, mode, conditions):
    model = make_transformer(**CONDITIONS[conditions])
    inputs = make_transformer_inputs(model, batch_size=2, **MODES[mode])
    cache = ConditionCache()
    outputs = []
    for segment in range(2):
        cache.start_segment()
        generator = torch.Generator().manual_seed(segment)
        for name in ("pose_hidden_states", "motion_hidden_states"):
            inputs[name] = torch.randn(inputs[name].shape, generator=generator)
        for seed, timestep in ((0, 900.0), (1, 400.0)):
            arguments = step(inputs, seed, timestep)
            expected = model(**arguments).sample
            actual = model(**arguments, condition_cache=cache).sample
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
            outputs.append(actual)
    # The second segment's pose and face count: same noise, other output.
    assert (outputs[0] - outputs[2]).abs().max() > 1e-2


@torch.no_grad()
def test_reference_branch_runs_once_and_survives_segments(make_transformer, make_transformer_inputs):
    model = make_transformer()
    inputs = make_transformer_inputs(model)
    lengths = []
    handle = model.blocks[0].attn1.norm_q.register_forward_hook(lambda _, args, __: lengths.append(args[0].shape[1]))
    cache = ConditionCache()
    for seed in range(2):
        model(**step(inputs, seed, 500.0), condition_cache=cache)
    cache.start_segment()
    model(**step(inputs, 3, 500.0), condition_cache=cache)
    handle.remove()
    # Two reference frames of 6 tokens, three video frames of 6.
    assert lengths == [12, 18, 18, 18]
    cache.clear()
    assert not cache.has_references()


@torch.no_grad()
def test_reference_keys_and_values_do_not_depend_on_the_noise(make_transformer, make_transformer_inputs):
    model = make_transformer(text_dim=16)
    inputs = make_transformer_inputs(model)
    caches = []
    for seed, timestep in ((0, 900.0), (1, 100.0)):
        caches.append(ConditionCache())
        model(**step(inputs, seed, timestep), condition_cache=caches[-1])
    for first, second in zip(caches[0].blocks, caches[1].blocks):
        for name in ("reference", "reference_context"):
            for one, other in zip(getattr(first, name), getattr(second, name)):
                assert torch.equal(one, other)
    # ... but on the reference.
    inputs["reference_hidden_states"] = inputs["reference_hidden_states"] + 1
    other_cache = ConditionCache()
    model(**inputs, condition_cache=other_cache)
    assert not torch.allclose(caches[0].blocks[0].reference[1], other_cache.blocks[0].reference[1])


@torch.no_grad()
def test_a_condition_left_out_is_unconditional_with_a_filled_cache(make_transformer, make_transformer_inputs):
    model = make_transformer()
    inputs = make_transformer_inputs(model)
    cache = ConditionCache()
    model(**inputs, condition_cache=cache)
    for name in ("pose_hidden_states", "motion_hidden_states"):
        arguments = {**inputs, name: None}
        expected = model(**arguments).sample
        torch.testing.assert_close(model(**arguments, condition_cache=cache).sample, expected, atol=1e-5, rtol=0)
    expected = model(**inputs).sample
    torch.testing.assert_close(model(**inputs, condition_cache=cache).sample, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_segment_of_another_length_asks_for_start_segment(make_transformer, make_transformer_inputs):
    model = make_transformer()
    cache = ConditionCache()
    model(**make_transformer_inputs(model, num_frames=3), condition_cache=cache)
    longer = make_transformer_inputs(model, num_frames=4)
    for name in ("reference_hidden_states", "reference_pose_hidden_states"):
        longer[name] = make_transformer_inputs(model, num_frames=3)[name]
    with pytest.raises(ValueError, match=r"18 tokens.*24.*start_segment"):
        model(**longer, condition_cache=cache)
    cache.start_segment()
    torch.testing.assert_close(
        model(**longer, condition_cache=cache).sample, model(**longer).sample, atol=1e-5, rtol=0
    )
    with pytest.raises(ValueError, match=r"batch of 1.*one of 2.*clear"):
        model(**make_transformer_inputs(model, num_frames=4, batch_size=2), condition_cache=cache)


def test_a_cache_while_gradients_are_recorded_is_refused(make_transformer, make_transformer_inputs):
    model = make_transformer()
    with pytest.raises(ValueError, match="inference only"):
        model(**make_transformer_inputs(model), condition_cache=ConditionCache())
