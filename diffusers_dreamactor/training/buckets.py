"""Batches of one size and length each, in an order that follows from the seed and the step."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class BucketBatchSampler(Sampler):
    """
    An endless batch sampler over clips of several sizes.

    Clips are grouped into buckets by a key (size and length); every batch comes from one bucket, which is drawn with a
    probability in proportion to the number of its clips. Which clips a step uses follows from `seed`, the step and the
    process alone, so that a run that starts at step n sees what an uninterrupted run sees from there. All processes use
    the same bucket in a step, so that none waits for a slower one.

    Args:
        keys (sequence): one hashable key a clip.
        batch_size (`int` or `dict`): clips a batch, or a number for every key.
        seed (`int`): of the order.
        start_step (`int`): the first step.
        process_index, num_processes (`int`): this process's share.
        weights (sequence of `float`, *optional*): how often each clip is drawn, relative to the others; 1 by default.
        micro_batches (`int`): how many batches make a step. They are the shares of what a large batch would be: 4 times 2
            clips of a step are the same clips as 2 times 4, or once 8.

    Yields:
        lists of `(index, item_seed)`: the clip and the seed of all that is random about it.

    Raises:
        ValueError: there are no clips, or a key has no batch size.
    """

    def __init__(
        self,
        keys: Sequence[Hashable],
        batch_size: int | dict,
        seed: int = 0,
        start_step: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
        weights: Sequence[float] | None = None,
        micro_batches: int = 1,
    ):
        if len(keys) == 0:
            raise ValueError("`keys` is empty: there are no clips to train on.")
        buckets: dict[Hashable, list[int]] = {}
        for index, key in enumerate(keys):
            buckets.setdefault(key, []).append(index)
        self.keys = list(buckets)
        self.buckets = [np.array(indices) for indices in buckets.values()]
        weights = np.ones(len(keys)) if weights is None else np.asarray(weights, dtype=np.float64)
        self.clip_weights = [weights[indices] / weights[indices].sum() for indices in self.buckets]
        totals = np.array([weights[indices].sum() for indices in self.buckets])
        self.bucket_weights = totals / totals.sum()
        if isinstance(batch_size, dict):
            missing = [key for key in self.keys if key not in batch_size]
            if missing:
                raise ValueError(
                    f"`batch_size` has no entry for {missing[0]!r}, which {len(buckets[missing[0]])} clips have."
                )
            self.batch_sizes = [batch_size[key] for key in self.keys]
        else:
            self.batch_sizes = [batch_size] * len(self.keys)
        self.seed, self.start_step = seed, start_step
        self.process_index, self.num_processes = process_index, num_processes
        self.micro_batches = micro_batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.start_step
        while True:
            for micro_step in range(self.micro_batches):
                yield self.batch(step, micro_step)
            step += 1

    def batch(self, step: int, micro_step: int = 0) -> list[tuple[int, int]]:
        """The clips of one step's micro-batch on this process."""
        random = np.random.default_rng([self.seed, step])
        bucket = random.choice(len(self.buckets), p=self.bucket_weights)
        size = self.batch_sizes[bucket]
        # drawn for the whole step at once: without replacement as long as there are enough clips
        total, available = size * self.num_processes * self.micro_batches, len(self.buckets[bucket])
        picks = random.choice(available, total, replace=total > available, p=self.clip_weights[bucket])
        seeds = random.integers(2**31, size=total)
        first = (micro_step * self.num_processes + self.process_index) * size
        share = slice(first, first + size)
        return [(int(self.buckets[bucket][pick]), int(seed)) for pick, seed in zip(picks[share], seeds[share])]
