"""Numbers as people, sliders, JSON and NumPy give them, checked before the work begins."""

import math
import numbers

import numpy as np
import torch


__all__ = ["non_negative_number", "positive_number", "whole_number"]


def _plain_number(name: str, value, kind: str) -> int | float:
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"`{name}` is {value!r}, but has to be {kind}.")
    # Whole numbers may be larger than any float.
    if not isinstance(value, int) and not math.isfinite(value):
        raise ValueError(f"`{name}` is {value}, but has to be {kind}.")
    return value


def whole_number(name: str, value, minimum: int = 1) -> int:
    """
    A whole number: an `int`, a `float` without a fraction (9.0), a NumPy number, or an array or tensor of no dimension.

    Args:
        name (`str`): the argument's, for the error.
        value: what came.
        minimum (`int`, defaults to 1): the least that is accepted.

    Raises:
        ValueError: anything else: booleans, text, 2.5, NaN, and what is less.
    """
    kind = "a positive whole number" if minimum == 1 else f"a whole number of at least {minimum}"
    number = _plain_number(name, value, kind)
    if number != int(number) or number < minimum:
        raise ValueError(f"`{name}` is {value}, but has to be {kind}.")
    return int(number)


def positive_number(name: str, value) -> float:
    """
    A finite number above 0, of the types that [`whole_number`] takes.

    Raises:
        ValueError: anything else: booleans, text, NaN, infinity, 0 and below.
    """
    number = _plain_number(name, value, "a positive number")
    if number <= 0:
        raise ValueError(f"`{name}` is {value}, but has to be a positive number.")
    return float(number)


def non_negative_number(name: str, value) -> float:
    """
    A finite number of at least 0, of the types that [`whole_number`] takes.

    Raises:
        ValueError: anything else: booleans, text, NaN, infinity, and below 0.
    """
    number = _plain_number(name, value, "a number of at least 0")
    if number < 0:
        raise ValueError(f"`{name}` is {value}, but has to be a number of at least 0.")
    return float(number)
