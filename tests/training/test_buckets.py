import numpy as np
import pytest

from diffusers_dreamactor.training.buckets import BucketBatchSampler


KEYS = [(8, 8, 5)] * 30 + [(12, 8, 5)] * 10


def test_a_batch_has_one_key_and_keys_come_in_proportion():
    sampler = BucketBatchSampler(KEYS, batch_size={(8, 8, 5): 4, (12, 8, 5): 2}, seed=1)
    tall = 0
    for step in range(200):
        batch = sampler.batch(step)
        keys = {KEYS[index] for index, _ in batch}
        assert len(keys) == 1
        assert len(batch) == (4 if keys == {(8, 8, 5)} else 2)
        tall += keys == {(12, 8, 5)}
    assert 30 < tall < 75


def test_a_later_start_sees_what_an_uninterrupted_run_sees():
    straight = iter(BucketBatchSampler(KEYS, 3, seed=5))
    batches = [next(straight) for _ in range(9)]
    resumed = iter(BucketBatchSampler(KEYS, 3, seed=5, start_step=6))
    assert [next(resumed) for _ in range(3)] == batches[6:]


def test_processes_share_the_bucket_and_no_clip():
    first, second = (BucketBatchSampler(KEYS, 4, seed=2, process_index=rank, num_processes=2) for rank in (0, 1))
    for step in range(50):
        a, b = first.batch(step), second.batch(step)
        assert {KEYS[index] for index, _ in a} == {KEYS[index] for index, _ in b}
        assert not {index for index, _ in a} & {index for index, _ in b}


def test_weights_say_how_often_a_clip_is_drawn():
    sampler = BucketBatchSampler([0] * 4, 1, weights=[1, 1, 1, 7])
    drawn = np.bincount([sampler.batch(step)[0][0] for step in range(500)], minlength=4)
    assert 0.6 < drawn[3] / 500 < 0.8


def test_what_cannot_be_batched_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        BucketBatchSampler([], 1)
    with pytest.raises(ValueError, match="no entry"):
        BucketBatchSampler(KEYS, {(8, 8, 5): 4})
