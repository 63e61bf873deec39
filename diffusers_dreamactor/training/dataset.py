"""Prepared clips: cached latents with the guidance that drives them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from ..processors.guidance import FORMAT_NAME, FORMAT_VERSION, MotionGuidance
from .segments import list_segments


CLIP_FILES = ("latents.safetensors", "guidance.safetensors", "reference_guidance.safetensors")
AUDIO_FILE = "audio.safetensors"
GUIDANCE = ("face", "motion_tokens", "face_weight")
REGIONS = ("body", "head", "eyes_and_mouth")
"""Channels of a clip's `regions`: which share of a latent pixel each covers; they do not overlap."""


class PreparedClipDataset(Dataset):
    """
    Clips prepared by `examples/prepare_dataset.py`, cut into windows of a few latent frames.

    A clip is a folder with
    - `latents.safetensors`: `latents (C, T, h, w)` normalised, `reference_latents (C, R, h, w)`, optionally `regions
      (3, T, h, w)` uint8 (255 is all of a latent pixel; channels as `REGIONS`) and `image_states (L, image_dim)` (of the
      identity, for transformers that read them), and JSON metadata under `clip`;
    - `guidance.safetensors`: the clip's `MotionGuidance`, `4 (T - 1) + 1` frames; crops or motion tokens;
    - `reference_guidance.safetensors`: the references' own poses, R frames;
    - `audio.safetensors`, where the clip has sound: `features (L, D)`, what `speech_features` makes of it, and metadata
      `features_per_frame`.

    Args:
        folder: of the prepared clips.
        lengths (sequence of `int`): window lengths in latent frames that are trained; a clip appears once for each
            length that it has. Windows of length 1 are its first frame, a still picture.
        length_weights (sequence of `float`, *optional*): how often each length is drawn.
        start_probability (`float`): how often a window is the start of the clip. The others start in its middle, from a
            given latent, as the later segments of a long video do.
        in_memory (`bool`): read each clip whole, and keep it. Otherwise what is read of a file is the window alone.
        face (`str`): `"crops"`, `"motion_tokens"` for the ready tokens that guidance may hold, or `"audio"`.

    Items, by `(index, seed)`: tensors `latents (C, L, h, w)`, `maps (6, F, H, W)` uint8, `face (F, 3, S, S)` uint8 or
    `motion_tokens (F, D)`, `face_weight (F,)`, `reference_latents (C, R, h, w)`, `reference_maps (6, R, H, W)` uint8,
    `regions (3, L, h, w)` float in [0, 1], `image_states (L, image_dim)`, `continued` (`bool`): whether the first latent is
    given, and `seed` (`int`), of what training draws for the sample. With audio, instead of a face: `audio_features (L, D)`
    of the whole clip, `features_per_frame` (`float`), and `audio_window` (three `int`): L, the frames of the clip, and the
    clip's frame at which the window starts.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no clip that is long enough, one that cannot be read, or one without sound where audio is read;
            `length_weights` are not as many as `lengths`.
    """

    def __init__(
        self,
        folder: str | Path,
        lengths: tuple[int, ...] = (5,),
        length_weights: tuple[float, ...] | None = None,
        start_probability: float = 0.5,
        in_memory: bool = False,
        face: str = "crops",
    ):
        if face not in ("crops", "motion_tokens", "audio"):
            raise ValueError(f"`face` is {face!r}, but has to be crops, motion_tokens or audio.")
        self.face = "face" if face == "crops" else face
        self.start_probability = start_probability
        self.cache = {} if in_memory else None
        self.items, self.keys, self.weights = [], [], []
        length_weights = length_weights or (1.0,) * len(lengths)
        if len(length_weights) != len(lengths):
            raise ValueError(
                f"`length_weights` has {len(length_weights)} numbers, but `lengths` has {len(lengths)}: one is needed for each."
            )
        for path in list_prepared_clips(folder):
            try:
                with safe_open(path / "latents.safetensors", framework="pt") as file:
                    shape = file.get_slice("latents").get_shape()
            except SafetensorError as error:
                raise ValueError(
                    f"`folder` {folder} has a clip that cannot be read, {path.name}: {error}. Remove it and prepare it again."
                ) from error
            for length, weight in zip(lengths, length_weights):
                if shape[1] >= length:
                    self.items.append((path, length, shape[1]))
                    self.keys.append((shape[2], shape[3], length))
                    self.weights.append(weight)
        if not self.items and list_segments(folder):
            raise ValueError(
                f"`folder` {folder} holds segments, which are prepared for Wan-Animate's weights: prepare the clips with"
                " `--model` naming the repository that is trained."
            )
        if not self.items:
            raise ValueError(f"`folder` {folder} holds no prepared clips of at least {min(lengths)} latent frames.")
        silent = sorted({path.name for path, _, _ in self.items if not (path / AUDIO_FILE).exists()})
        if face == "audio" and silent:
            raise ValueError(
                f"`folder` {folder} has clips without sound ({len(silent)}, the first is {silent[0]}), but training from "
                f"audio reads each clip's {AUDIO_FILE}: leave them out, or prepare videos with sound with a --model that "
                "has an `audio_feature_extractor`."
            )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        index, seed = item
        path, length, total = self.items[index]
        random = np.random.default_rng(seed)
        start = 0
        if total > length > 1 and random.random() >= self.start_probability:
            start = int(random.integers(1, total - length + 1))
        # latent s > 0 covers frames 4 s - 3 to 4 s; a segment that starts with it is driven from its last frame on
        latents, frames = slice(start, start + length), slice(4 * start, 4 * (start + length - 1) + 1)
        if self.cache is None:
            clip = read_prepared_clip(path, latents, frames, self.face)
        else:
            if path not in self.cache:
                self.cache[path] = read_prepared_clip(path)
            along = {name: (slice(None), latents) for name in ("latents", "regions")} | {"maps": (slice(None), frames)}
            along |= dict.fromkeys(GUIDANCE, frames)
            clip = {
                name: value[along[name]] if name in along and value is not None else value
                for name, value in self.cache[path].items()
            }
        sample = {
            "latents": clip["latents"].float(),
            "maps": clip["maps"],
            "reference_latents": clip["reference_latents"].float(),
            "reference_maps": clip["reference_maps"],
            "continued": start > 0,
            "seed": seed,
        }
        if self.face == "audio":
            sample["audio_features"] = clip["audio_features"]
            sample["features_per_frame"] = clip["features_per_frame"]
            sample["audio_window"] = (len(clip["audio_features"]), 4 * (total - 1) + 1, frames.start)
        for name in () if self.face == "audio" else (self.face, "face_weight"):
            if clip[name] is None:
                raise ValueError(f"{path.name} has no `{name}`, which this training reads.")
            sample[name] = clip[name]
        if clip["image_states"] is not None:
            sample["image_states"] = clip["image_states"].float()
        if clip["regions"] is not None:
            sample["regions"] = clip["regions"].float() / 255
        return sample


def collate_clips(samples: list[dict]) -> dict[str, torch.Tensor | list]:
    """
    Stack samples of one size and length; of the references, as many are kept as each of them has, and shorter
    `audio_features` are filled up with zeros (their lengths are in `audio_window`). What are no tensors become lists.
    """
    count = min(sample["reference_latents"].shape[1] for sample in samples)
    batch = {}
    for name in samples[0]:
        if name == "audio_features":
            batch[name] = pad_sequence([sample[name] for sample in samples], batch_first=True)
            continue
        if not torch.is_tensor(samples[0][name]):
            batch[name] = [sample[name] for sample in samples]
            continue
        values = [sample[name][:, :count] if name.startswith("reference_") else sample[name] for sample in samples]
        batch[name] = torch.stack(values)
    return batch


def move_batch(batch: dict[str, torch.Tensor | list], device: torch.device) -> dict[str, torch.Tensor | list]:
    """A collated batch on a device, without waiting for it; lists stay, for the host to read."""
    return {
        name: value.to(device, non_blocking=True) if torch.is_tensor(value) else value for name, value in batch.items()
    }


def list_prepared_clips(folder: str | Path) -> list[Path]:
    """Folders of the complete clips in `folder`, sorted."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"`folder` names no folder: {folder}")
    return sorted(path for path in folder.iterdir() if (path / CLIP_FILES[0]).exists())


def read_prepared_clip(
    path: Path, latents: slice = slice(None), frames: slice = slice(None), face: str | None = None
) -> dict:
    """
    One clip as tensors (`None` where there is nothing); `metadata` is a `dict`. Of the files, only what is asked for is read.

    Args:
        path (`Path`): its folder.
        latents, frames (`slice`): the window, of latent frames and of frames; all of them by default.
        face (`str`, *optional*): `"face"`, `"motion_tokens"` or `"audio"` leaves what the others are read from alone.

    Raises:
        ValueError: the guidance is none, or of another format version.
    """
    clip = dict.fromkeys(("regions", "image_states", "audio_features", "features_per_frame"))
    with safe_open(path / "latents.safetensors", framework="pt") as file:
        windows = {"latents": latents, "regions": latents}
        for name in file.keys():
            window = (slice(None), windows[name]) if name in windows else slice(None)
            clip[name] = file.get_slice(name)[window]
        clip["metadata"] = json.loads((file.metadata() or {}).get("clip", "{}"))
    guidance = _read_guidance(
        path / "guidance.safetensors", frames, GUIDANCE if face is None else (face, "face_weight")
    )
    reference_guidance = _read_guidance(path / "reference_guidance.safetensors", slice(None), ())
    if face in (None, "audio") and (path / AUDIO_FILE).exists():
        with safe_open(path / AUDIO_FILE, framework="pt") as file:
            clip["audio_features"] = file.get_tensor("features")
            clip["features_per_frame"] = float(file.metadata()["features_per_frame"])
    return clip | guidance | {"reference_maps": reference_guidance["maps"]}


def _read_guidance(path: Path, frames: slice, names: tuple[str, ...]) -> dict[str, torch.Tensor | None]:
    """`maps (6, F, H, W)` uint8 (skeleton and sphere, black where there is none), and those of `GUIDANCE` that are named."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if (metadata.get("format"), metadata.get("version")) != (FORMAT_NAME, FORMAT_VERSION):
            raise ValueError(
                f"{path} is no guidance of format {FORMAT_NAME!r} {FORMAT_VERSION}, but of {metadata.get('format')!r} "
                f"{metadata.get('version')}."
            )
        stored = file.keys()
        skeleton = file.get_slice("skeleton")[frames]
        maps = skeleton.new_zeros(6, len(skeleton), *skeleton.shape[2:])
        maps[:3] = skeleton.transpose(0, 1)
        if "sphere" in stored:
            maps[3:] = file.get_slice("sphere")[frames].transpose(0, 1)
        guidance = {"maps": maps}
        for name in GUIDANCE:
            guidance[name] = file.get_slice(name)[frames] if name in stored and name in names else None
        return guidance


def check_prepared_clip(path: Path) -> list[str]:
    """
    What is wrong with a prepared clip, as sentences; an empty list when nothing is.

    Looks for missing files, latents that are not finite or far from unit variance, lengths and sizes that do not fit
    together, guidance without a body, faces that are never seen, and, where there is sound, features that are not finite,
    always the same or of another duration.
    """
    missing = [name for name in CLIP_FILES if not (path / name).exists()]
    if missing:
        return [f"{path.name}: {', '.join(missing)} is missing."]
    try:
        for name in CLIP_FILES[1:]:
            MotionGuidance.load(path / name)
        clip = read_prepared_clip(path)
    except (ValueError, OSError, KeyError, SafetensorError) as error:
        return [f"{path.name}: cannot be read: {error}"]
    problems = []
    latents, maps = clip["latents"].float(), clip["maps"]
    if not torch.isfinite(latents).all():
        problems.append("its latents are not finite.")
    elif not 0.05 < latents.std() < 5:
        problems.append(f"its latents have a standard deviation of {latents.std():.2f}: normalised ones are near 1.")
    if maps.shape[1] != 4 * (latents.shape[1] - 1) + 1:
        problems.append(
            f"its guidance has {maps.shape[1]} frames, but {latents.shape[1]} latent frames take "
            f"{4 * (latents.shape[1] - 1) + 1}."
        )
    if maps.shape[2] % latents.shape[2] or maps.shape[3] % latents.shape[3]:
        problems.append(
            f"its guidance is {tuple(maps.shape[2:])}, which latents of {tuple(latents.shape[2:])} do not divide."
        )
    if clip["reference_latents"].shape[1] != clip["reference_maps"].shape[1]:
        problems.append(
            f"it has {clip['reference_latents'].shape[1]} reference latents, but {clip['reference_maps'].shape[1]} poses."
        )
    if clip["reference_latents"].shape[2:] != latents.shape[2:]:
        problems.append("its references have another size than its latents.")
    if maps[:3].max() == 0:
        problems.append("its skeleton is black in every frame: no body was found.")
    if clip["face"] is None and clip["motion_tokens"] is None:
        problems.append("it has neither face crops nor motion tokens.")
    elif clip["face_weight"].max() == 0:
        problems.append("its face is never seen.")
    if clip["audio_features"] is not None:
        features, expected = clip["audio_features"], maps.shape[1] * clip["features_per_frame"]
        if not torch.isfinite(features).all():
            problems.append("its audio features are not finite.")
        elif (features == features[:1]).all():
            problems.append("its audio features are always the same: it is silent.")
        # analysis windows that would reach past the end are left out: two or three features at most
        if abs(len(features) - expected) > 4:
            problems.append(
                f"it has {len(features)} audio features, but its {maps.shape[1]} frames take {expected:.0f}."
            )
    return [f"{path.name}: {problem}" for problem in problems]
