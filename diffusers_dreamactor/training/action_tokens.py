"""Face motion tokens that are known facial actions: what a face motion encoder for synthetic people learns to see."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


class ActionTokens:
    """
    Standardised ARKit actions as face motion tokens.

    Where the truth is known, a token need not be found: it is the vector of those actions that occur, each with zero
    mean and unit variance, padded with zeros. The transformer can learn to follow it while the encoder still learns to
    read it off face crops.

    Args:
        used (`torch.Tensor` of shape `(N,)`): indices into `motion.skeleton.ARKIT_BLENDSHAPES`.
        mean, scale (`torch.Tensor` of shape `(N,)`): of these actions.
        motion_dim (`int`): width of a token, at least N.
    """

    def __init__(self, used: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor, motion_dim: int):
        if len(used) > motion_dim:
            raise ValueError(f"`motion_dim` is {motion_dim}, but {len(used)} actions need at least as many channels.")
        self.used, self.mean, self.scale, self.motion_dim = used, mean, scale, motion_dim

    def __call__(self, actions: torch.Tensor) -> torch.Tensor:
        """Actions `(..., 52)` in [0, 1] -> tokens `(..., motion_dim)`."""
        tokens = (actions.float()[..., self.used].clamp(0, 1) - self.mean) / self.scale
        return torch.nn.functional.pad(tokens, (0, self.motion_dim - len(self.used)))

    @classmethod
    def fit(cls, actions: torch.Tensor, motion_dim: int, least: float = 0.02) -> ActionTokens:
        """From samples `(N, 52)`: actions with a standard deviation of at least `least` are used."""
        actions = actions.float().clamp(0, 1)
        used = torch.nonzero(actions.std(dim=0) >= least).flatten()
        return cls(used, actions[:, used].mean(dim=0), actions[:, used].std(dim=0), motion_dim)

    def to_values(self) -> dict[str, list | int]:
        """The same as lists and numbers, for JSON."""
        values = {name: getattr(self, name).tolist() for name in ("used", "mean", "scale")}
        return values | {"motion_dim": self.motion_dim}

    @classmethod
    def from_values(cls, values: dict[str, list | int]) -> ActionTokens:
        """The inverse of `to_values`."""
        tensors = (torch.tensor(values[name]) for name in ("used", "mean", "scale"))
        return cls(*tensors, values["motion_dim"])

    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        tensors = {"used": self.used, "mean": self.mean, "scale": self.scale}
        save_file(tensors | {"motion_dim": torch.tensor(self.motion_dim)}, path)

    @classmethod
    def load(cls, path: str | Path) -> ActionTokens:
        """Read what `save` wrote."""
        tensors = load_file(path)
        return cls(tensors["used"], tensors["mean"], tensors["scale"], int(tensors["motion_dim"]))
