"""Random numbers that follow from a clip's key and a name alone, whatever else is in the batch and whatever the device."""

from __future__ import annotations

import math
import zlib

import torch


def _mix(values: torch.Tensor) -> torch.Tensor:
    # splitmix64's finisher (Steele et al. 2014); int64 arithmetic wraps, shifts have to be made logical
    for shift, factor in ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64)):
        values = (values ^ ((values >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return values ^ ((values >> 31) & ((1 << 33) - 1))


def clip_keys(seed: int, numbers: torch.Tensor) -> torch.Tensor:
    """One key `(N,)` int64 for each clip's number; other seeds give other clips."""
    return _mix(_mix(numbers.long() + 1) ^ (seed * 0x1F123BB5 + 0x5851F42D))


class Draws:
    """
    Draws for N clips.

    Args:
        keys (`(N,)` int64): from `clip_keys`. The same key and name give the same numbers.
    """

    def __init__(self, keys: torch.Tensor):
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    def other(self, name: str) -> Draws:
        """Draws that have nothing to do with these: another person, another motion."""
        return Draws(_mix(self.keys ^ _mix(torch.tensor(zlib.crc32(name.encode())))))

    def uniform(self, name: str, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """`(N, *shape)` float32, uniform in [low, high)."""
        index = torch.arange(math.prod(shape), device=self.keys.device) * -7046029254386353131
        values = _mix(self.keys[:, None] + _mix(torch.tensor(zlib.crc32(name.encode()))) + index)
        values = ((values >> 40) & 0xFFFFFF).float() / 0x1000000
        return (low + (high - low) * values).view(len(self.keys), *shape)

    def normal(self, name: str, *shape: int) -> torch.Tensor:
        """`(N, *shape)` float32, standard normal (Box and Muller)."""
        radius = (-2 * torch.log1p(-self.uniform(f"{name} radius", *shape))).sqrt()
        return radius * torch.cos(2 * math.pi * self.uniform(f"{name} angle", *shape))

    def integers(self, name: str, high: int | torch.Tensor, *shape: int) -> torch.Tensor:
        """`(N, *shape)` int64 in [0, high)."""
        return (self.uniform(name, *shape) * high).long()

    def chance(self, name: str, probability: float, *shape: int) -> torch.Tensor:
        """`(N, *shape)` bool."""
        return self.uniform(name, *shape) < probability

    def choice(self, name: str, weights: list[float] | tuple[float, ...], *shape: int) -> torch.Tensor:
        """`(N, *shape)` int64: an index into `weights`, as often as they say."""
        ends = torch.tensor(weights, dtype=torch.float32).cumsum(0)
        ends = (ends / ends[-1]).to(self.keys.device)
        return torch.searchsorted(ends, self.uniform(name, *shape), right=True).clamp(max=len(weights) - 1)
