"""Prepared clips for Wan-Animate's weights: each is a segment, as that model's sampler makes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch.utils.data import Dataset


SEGMENT_FILE = "segment.safetensors"
# Which dimension of a stored tensor is time: in latent frames, or, where it is the first, in frames.
_ALONG = {"latents": 1, "pose_latents": 1, "condition": 1, "continued_condition": 1, "regions": 1, "motion_tokens": 0}


class SegmentDataset(Dataset):
    """
    Segments prepared by `examples/prepare_dataset.py` from a repository with Wan-Animate's weights.

    The sampler of those weights encodes every segment from its own first frame. So does the preparation, and a shorter
    window is the beginning of a segment: a causal autoencoder makes of it what it makes of the whole. Nothing is encoded
    in training, and of the files the window alone is read.

    A segment is a folder with `segment.safetensors`: `latents (C, T, h, w)` normalised, `pose_latents (C, T, h, w)` of the
    skeleton picture, `condition` and `continued_condition (4 + C, T, h, w)`, the mask and condition channels of a segment
    that starts a video and of one that goes on from its first frame, `reference_latents (C, 1, h, w)`, `motion_tokens
    (4 (T - 1) + 1, motion_dim)` of the frozen face motion encoder, optionally `image_states (L, image_dim)` of the
    reference and `regions (3, T, h, w)` uint8 as `PreparedClipDataset` has them, and JSON metadata under `clip`.

    Args:
        folder: of the segments.
        lengths (sequence of `int`): window lengths in latent frames; a segment appears once for each that it has.
        continued_probability (`float`): how often a window goes on from its first frame.
        in_memory (`bool`): read each segment whole, and keep it.

    Items, by `(index, seed)`: the tensors above, cut to the window, in float32, with the one `condition` that was drawn,
    `regions` in [0, 1], and `seed` (`int`), of what training draws for the sample.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no segment that is long enough, or one that cannot be read.
    """

    def __init__(
        self,
        folder: str | Path,
        lengths: tuple[int, ...] = (5,),
        continued_probability: float = 0.5,
        in_memory: bool = False,
    ):
        self.continued_probability = continued_probability
        self.cache = {} if in_memory else None
        self.items, self.keys = [], []
        for path in list_segments(folder):
            try:
                with safe_open(path / SEGMENT_FILE, framework="pt") as file:
                    _, total, height, width = file.get_slice("latents").get_shape()
            except SafetensorError as error:
                raise ValueError(
                    f"`folder` {folder} has a segment that cannot be read, {path.name}: {error}. Remove it and prepare it again."
                ) from error
            for length in lengths:
                if total >= length:
                    self.items.append((path, length))
                    self.keys.append((height, width, length))
        if not self.items:
            raise ValueError(
                f"`folder` {folder} holds no segments of at least {min(lengths)} latent frames, prepared for Wan-Animate's"
                " weights: prepare the clips with `--model` naming the repository that is trained."
            )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor | int]:
        index, seed = item
        path, length = self.items[index]
        continued = np.random.default_rng(seed).random() < self.continued_probability
        names = {"continued_condition": "condition"} if continued else {"condition": "condition"}
        names |= {name: name for name in ("latents", "pose_latents", "reference_latents", "motion_tokens")}
        names |= {name: name for name in ("image_states", "regions")}
        if self.cache is None:
            segment = read_segment(path, length, tuple(names))
        else:
            if path not in self.cache:
                self.cache[path] = read_segment(path)
            segment = {name: value[_window(name, length)] for name, value in self.cache[path].items()}
        sample = {names[name]: segment[name].float() for name in names if name in segment}
        if "regions" in sample:
            sample["regions"] /= 255
        return sample | {"seed": seed}


def list_segments(folder: str | Path) -> list[Path]:
    """Folders of the complete segments in `folder`, sorted."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"`folder` names no folder: {folder}")
    return sorted(path for path in folder.iterdir() if (path / SEGMENT_FILE).exists())


def read_segment(
    path: Path, length: int | None = None, names: tuple[str, ...] | None = None
) -> dict[str, torch.Tensor]:
    """
    The tensors of a segment.

    Args:
        path (`Path`): its folder.
        length (`int`, *optional*): latent frames to read from its beginning; all of them when `None`.
        names (`tuple[str]`, *optional*): which tensors, of those that there are; all of them when `None`.
    """
    with safe_open(path / SEGMENT_FILE, framework="pt") as file:
        stored = file.keys()
        wanted = stored if names is None else [name for name in names if name in stored]
        return {name: file.get_slice(name)[_window(name, length)] for name in wanted}


def _window(name: str, length: int | None) -> tuple[slice, ...]:
    if length is None or name not in _ALONG:
        return (slice(None),)
    return (slice(4 * (length - 1) + 1),) if _ALONG[name] == 0 else (slice(None), slice(length))


def check_segment(path: Path) -> list[str]:
    """What is wrong with a segment, as sentences; an empty list when nothing is."""
    try:
        segment = {name: value.float() for name, value in read_segment(path).items()}
        channels, length, height, width = segment["latents"].shape
        shapes = dict.fromkeys(("latents", "pose_latents"), (channels, length, height, width))
        shapes |= dict.fromkeys(("condition", "continued_condition"), (4 + channels, length, height, width))
        shapes |= {"reference_latents": (channels, 1, height, width)}
        shapes |= {"motion_tokens": (4 * (length - 1) + 1, segment["motion_tokens"].shape[-1])}
        problems = [
            f"its {name} have shape {tuple(segment[name].shape)}, but latents of {tuple(segment['latents'].shape)} take {shape}."
            for name, shape in shapes.items()
            if segment[name].shape != shape
        ]
    except (ValueError, OSError, KeyError, SafetensorError) as error:
        return [f"{path.name}: cannot be read: {error}"]
    problems += [f"its {name} are not finite." for name, value in segment.items() if not torch.isfinite(value).all()]
    deviation = segment["latents"].std()
    if not problems and not 0.05 < deviation < 5:
        problems.append(f"its latents have a standard deviation of {deviation:.2f}: normalised ones are near 1.")
    if not problems and segment["pose_latents"].flatten(1).std(dim=1).max() < 1e-3:
        problems.append("its pose latents are the same everywhere: no body was found.")
    if not segment["motion_tokens"].any():
        problems.append("its face is never seen.")
    return [f"{path.name}: {problem}" for problem in problems]
