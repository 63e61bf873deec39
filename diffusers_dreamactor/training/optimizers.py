"""Optimizers for training DreamActor models."""

from __future__ import annotations

import torch
from torch import nn


def make_optimizers(
    name: str, model: nn.Module, parameters: list[nn.Parameter], learning_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """
    The optimizers of a run.

    Args:
        name (`str`): `"adamw"` (the paper's), or `"muon"`: Muon (https://kellerjordan.github.io/posts/muon/, PyTorch 2.9)
            for the matrices inside the transformer's blocks and AdamW for the rest, which learns faster from scratch.
        model (`nn.Module`): whose parameters they are.
        parameters: the trained ones.
        learning_rate, weight_decay (`float`): of both; Muon's updates are scaled to the size of AdamW's.

    Raises:
        ValueError: unknown name.
    """
    if name not in ("adamw", "muon"):
        raise ValueError(f"`name` is {name!r}, but has to be adamw or muon.")
    trained = {id(parameter) for parameter in parameters}
    matrices, others = [], []
    for key, parameter in model.named_parameters():
        if id(parameter) in trained:
            hidden = name == "muon" and parameter.ndim == 2 and ".blocks." in f".{key}"
            (matrices if hidden else others).append(parameter)
    optimizers = []
    if others:
        optimizers.append(
            torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay, foreach=True)
        )
    if matrices:
        optimizers.append(
            torch.optim.Muon(
                matrices, lr=learning_rate, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimizers


def conv_optimizers(name: str, parameters: list[nn.Parameter], learning_rate: float) -> list[torch.optim.Optimizer]:
    """
    The optimizers of a convolutional model: `"adamw"`, or `"muon"`: `ConvMuon` for the kernels and AdamW for biases and
    scales.
    """
    if name == "adamw":
        return [torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)]
    kernels = [parameter for parameter in parameters if parameter.ndim > 1 and parameter.shape[1:].numel() > 1]
    others = [parameter for parameter in parameters if parameter.ndim == 1 or parameter.shape[1:].numel() == 1]
    return [ConvMuon(kernels, lr=learning_rate), torch.optim.AdamW(others, weight_decay=0.0)]


class ConvMuon(torch.optim.Optimizer):
    """
    Muon for convolutions: `torch.optim.Muon` takes matrices only; here a kernel counts as the matrix of its output
    channels by all the rest.

    Args:
        parameters: with at least two dimensions.
        lr (`float`): root mean square of an update, in the weights' own unit.
        momentum (`float`): of the gradients, Nesterov's form.
    """

    def __init__(self, parameters, lr: float, momentum: float = 0.9):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Updates all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(momentum, group["momentum"]).flatten(1)
                update = _orthogonalize(update) * max(update.shape) ** 0.5
                parameter.sub_(update.view_as(parameter).to(parameter), alpha=group["lr"])


def _orthogonalize(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    # Newton-Schulz iteration with Keller Jordan's coefficients: singular values go to about 1
    # half the work on a GPU, eight times as much on a processor without instructions for it
    matrix = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.775 * gram + 2.0315 * gram @ gram) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
