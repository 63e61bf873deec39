"""A batch in several micro-batches, on several processes: the loss and its gradients are those of the whole."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import nn


class BatchLoss:
    """
    The loss of one optimizer step, normalised over its whole batch.

    A mean for each micro-batch would let a sample count more where its companions have little weight. Here the
    gradients of sums are accumulated, and divided once by the weight of all (as torchtitan does by its number of
    tokens), so that accumulation and data parallelism compute what one large batch computes. Nothing waits for the
    device: logs stay there until they are read.

    Args:
        accelerator (`Accelerator`): it runs the backward passes and knows the processes.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.unit = None
        self.error = self.squared = self.weight = self.count = 0.0

    def backward(self, result: dict[str, torch.Tensor], size: int) -> None:
        """
        One micro-batch's gradients.

        Args:
            result (`dict`): of an objective: the means `loss` and `mse`, the `weight` and `count` that they are over.
            size (`int`): elements of the micro-batch, the same on all processes: it keeps gradients of sums in the range of
                gradients of means, which float16 needs.
        """
        self.unit = self.unit or size
        error = result["loss"] * result["weight"]
        self.accelerator.backward(error / self.unit)
        self.error, self.weight = self.error + error.detach(), self.weight + result["weight"]
        self.squared, self.count = self.squared + result["mse"] * result["count"], self.count + result["count"]

    @torch.no_grad()
    def normalize_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Makes the accumulated gradients those of the mean over the whole batch; after the last `backward`."""
        total = self.accelerator.reduce(self.weight, "sum")
        # the accelerator divides by the number of micro-batches, and averages over processes
        parts = self.accelerator.gradient_accumulation_steps * self.accelerator.num_processes
        factor = self.unit * parts / total
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def logs(self) -> torch.Tensor:
        """`(2,)` on the device: loss and mean squared error of this process's share."""
        return torch.stack([self.error / self.weight, self.squared / self.count])
