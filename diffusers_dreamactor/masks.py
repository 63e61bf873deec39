"""Masks of a person, of any form that tools give, as grey pictures."""

import numpy as np
import torch
from PIL import Image


__all__ = ["mask_frames"]


def mask_to_grey(mask: np.ndarray) -> np.ndarray:
    """Masks `(..., H, W)` of bool, of 0 and 1, of 0 to 255, or floating-point in [0, 1], as grey pictures `(..., H, W, 3)`."""
    if mask.dtype == bool or (np.issubdtype(mask.dtype, np.integer) and mask.size and set(np.unique(mask)) <= {0, 1}):
        mask = mask.astype(np.uint8) * 255
    elif np.issubdtype(mask.dtype, np.integer) and mask.size and mask.min() >= 0 and mask.max() <= 255:
        mask = mask.astype(np.uint8)
    return np.broadcast_to(mask[..., None], (*mask.shape, 3))


def mask_frames(masks, name: str = "mask_video"):
    """
    Masks in memory as a video: white where the person is.

    Args:
        masks (PIL image, `np.ndarray`, `torch.Tensor`, or a list of them):
            `(H, W)`, `(F, H, W)`, or with one, three or four channels before or after height and width, also in a batch of
            one, as `(1, C, F, H, W)`. bool; whole numbers, 0 and 1 or 0 to 255; floating-point, in [0, 1] or 0 to 255. The
            grey of colours is their mean, and what is transparent counts as black. A path or a `VideoReader` is returned
            as it is.
        name (`str`): what errors call it.

    Returns:
        `np.ndarray` of shape `(F, H, W, 3)`, uint8, or what is no mask in memory.

    Raises:
        ValueError: another shape, other values, or masks of different sizes.
    """
    if isinstance(masks, (list, tuple)):
        values = [_values(mask) for mask in masks]
        shapes = sorted({value.shape for value in values})
        if len(shapes) != 1:
            raise ValueError(f"`{name}` needs masks of one size, but has {' and '.join(map(str, shapes)) or 'none'}.")
        values = np.stack(values)
        if values.ndim == 4 and 1 in values.shape[1:2] and values.shape[3] not in (1, 3, 4):
            values = values[:, 0]
    elif isinstance(masks, (Image.Image, np.ndarray, torch.Tensor)):
        values = _values(masks)
        is_one_picture = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (1, 3, 4))
        values = values[None] if is_one_picture else values
    else:
        return masks
    shape = values.shape
    if values.ndim == 5 and len(values) == 1:
        values = values[0]
        # Diffusers' videos are (B, C, F, H, W).
        if values.shape[3] not in (1, 3, 4) and (values.shape[0] in (1, 3) or values.shape[1] not in (1, 3, 4)):
            values = np.moveaxis(values, 0, 3)
    if values.ndim == 4 and values.shape[3] not in (1, 3, 4):
        values = np.moveaxis(values, 1, 3)
    if values.ndim not in (3, 4) or 0 in values.shape or (values.ndim == 4 and values.shape[3] not in (1, 3, 4)):
        raise ValueError(f"`{name}` has shape {shape}, but (H, W), (F, H, W), (F, H, W, C) or (F, C, H, W) is needed.")
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)) or low < -1e-3 or high > 255:
        raise ValueError(f"`{name}` spans {low:g} to {high:g}, but 0 to 1 or 0 to 255 is needed.")
    # What enlarging a mask of 0 and 1 makes may exceed them a little.
    values = values.astype(np.float32) * (255 if high <= 1 + 1e-3 else 1)
    if values.ndim == 4:
        grey = values[..., :3].mean(axis=3)
        values = grey * values[..., 3] / 255 if values.shape[3] == 4 else grey
    return mask_to_grey(np.rint(values).clip(0, 255).astype(np.uint8))


def _values(mask) -> np.ndarray:
    """One mask's numbers; `ValueError` for what has none."""
    if isinstance(mask, Image.Image):
        mask = mask.convert("RGBA") if mask.mode in ("P", "PA", "LA", "La", "RGBa") else mask
    elif isinstance(mask, torch.Tensor):
        mask = mask.detach().cpu()
        mask = mask.float() if mask.is_floating_point() else mask
    values = np.asarray(mask)
    if values.dtype != bool and not (np.issubdtype(values.dtype, np.number) and np.isrealobj(values)):
        raise ValueError(
            f"A mask is of type {type(mask).__name__}, but a picture or an array of real numbers is needed."
        )
    return values
