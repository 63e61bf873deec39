"""Micro-batches and processes compute what one large batch computes."""

import copy

import pytest
import torch
from accelerate import Accelerator
from training_clips import write_clip

from diffusers_dreamactor import DreamActorPipeline
from diffusers_dreamactor.training.accumulation import BatchLoss
from diffusers_dreamactor.training.buckets import BucketBatchSampler
from diffusers_dreamactor.training.checkpointing import seed_step
from diffusers_dreamactor.training.dataset import PreparedClipDataset, collate_clips
from diffusers_dreamactor.training.objective import DreamActorObjective, ObjectiveConfig


def test_micro_batches_are_the_shares_of_a_large_batch():
    keys = [(4, 4, 3)] * 7 + [(6, 4, 3)] * 5
    for step in range(5):
        large = BucketBatchSampler(keys, 8).batch(step)
        for micro_batches, processes, size in ((4, 1, 2), (2, 2, 2), (1, 4, 2), (8, 1, 1)):
            shares = [
                BucketBatchSampler(keys, size, 0, 0, process, processes, None, micro_batches).batch(step, micro_step)
                for micro_step in range(micro_batches)
                for process in range(processes)
            ]
            assert sum(shares, []) == large
    # a run that goes on begins with a whole step
    sampler = iter(BucketBatchSampler(keys, 2, start_step=3, micro_batches=2))
    assert next(sampler) + next(sampler) == BucketBatchSampler(keys, 4).batch(3)


@pytest.fixture(scope="module")
def uneven_clips(tmp_path_factory):
    """Clips of one size, of whose windows some start in the middle: these count less."""
    folder = tmp_path_factory.mktemp("uneven")
    for index in range(4):
        write_clip(folder / f"clip{index}", index, latent_frames=5)
    return folder


def test_accumulated_gradients_are_those_of_the_large_batch(model, uneven_clips):
    dataset = PreparedClipDataset(uneven_clips, lengths=(2,), start_probability=0.5)
    samples = [dataset[index, seed] for index, seed in enumerate((1, 2, 3, 4))]
    assert len({sample["continued"] for sample in samples}) == 2
    pipe = DreamActorPipeline.from_pretrained(model)
    chances = dict.fromkeys(("drop_all", "drop_motion", "drop_reference", "drop_face", "initial_latent"), 0.0)
    gradients, logged = {}, {}
    for size in (4, 2, 1):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4 // size)
        objective = DreamActorObjective.from_pipeline(pipe, ObjectiveConfig(**chances))
        objective.zero_grad()
        prepared, batch_loss = accelerator.prepare(objective), BatchLoss(accelerator)
        for start in range(0, 4, size):
            batch = collate_clips(samples[start : start + size])
            with accelerator.accumulate(prepared):
                batch_loss.backward(prepared(batch, seed_step(0, 0)), batch["latents"][:, 0].numel())
        parameters = [parameter for parameter in objective.parameters() if parameter.grad is not None]
        batch_loss.normalize_gradients(parameters)
        gradients[size] = copy.deepcopy([parameter.grad for parameter in parameters])
        logged[size] = batch_loss.logs()
    # and those of the loss itself
    objective.zero_grad()
    result = objective(collate_clips(samples), seed_step(0, 0))
    result["loss"].backward()
    gradients["loss"] = [parameter.grad for parameter in objective.parameters() if parameter.grad is not None]
    largest = max(gradient.abs().max() for gradient in gradients["loss"])
    for size in (4, 2, 1):
        for expected, found in zip(gradients["loss"], gradients[size], strict=True):
            assert (found - expected).abs().max() <= 1e-6 * largest
        torch.testing.assert_close(logged[size], torch.stack([result["loss"].detach(), result["mse"]]))
    # means of means would not be
    means = [objective(collate_clips([sample]), seed_step(0, 0))["loss"] for sample in samples]
    assert abs(sum(means) / 4 - result["loss"]) > 1e-4 * result["loss"]
