"""Raw clips for training the autoencoder: random crops of frames, straight from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch.utils.data import Dataset

from ..media import VideoReader


class VideoCropDataset(Dataset):
    """
    Random crops in space and time of a folder of clips.

    A clip is a folder with `clip.safetensors` that holds `video` (`(F, H, W, 3)` uint8) and, if there are any,
    `regions` (`(F, H, W)` uint8; 2 is the head, 3 eyes and mouth), or a video file that `media.VideoReader` opens.

    Args:
        folder: searched for clips, not recursively.
        num_frames (`int`): length of a crop, `4 n + 1`.
        size (`int`): height and width of a crop; clips that are shorter or smaller are left out.
        region_weights (`tuple`): loss weight of background, body, head, eyes and mouth.

    Raises:
        ValueError: the folder holds no clips, or none that is long and large enough.

    Items, by `(index, seed)`: `video` `(3, num_frames, size, size)` float in [-1, 1] and `weight` `(1, ...)`.
    """

    def __init__(
        self,
        folder: str | Path,
        num_frames: int = 17,
        size: int = 64,
        region_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.5, 3.0),
    ):
        self.num_frames, self.size = num_frames, size
        self.region_weights = np.array(region_weights, dtype=np.float32)
        found = sorted(path / "clip.safetensors" for path in Path(folder).iterdir() if path.is_dir())
        found = [path for path in found if path.exists()]
        found += sorted(path for path in Path(folder).iterdir() if path.suffix in (".mp4", ".mov", ".mkv", ".webm"))
        if not found:
            raise ValueError(f"`folder` {folder} holds no clips: neither folders with clip.safetensors nor videos.")
        wanted = (num_frames, size, size)
        self.paths = [path for path in found if all(np.array(_video_shape(path)) >= wanted)]
        if not self.paths:
            raise ValueError(
                f"`folder` {folder} holds {len(found)} clips, but none has {num_frames} frames of {size}x{size} pixels."
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        index, seed = item
        random = np.random.default_rng(seed)
        path, regions = self.paths[index], None
        if path.suffix == ".safetensors":
            with safe_open(path, framework="np") as file:
                video = file.get_slice("video")
                crop = self._random_crop(random, video.get_shape()[:3])
                frames = video[crop[0], crop[1], crop[2]]
                if "regions" in file.keys():
                    regions = file.get_slice("regions")[crop[0], crop[1], crop[2]]
        else:
            reader = VideoReader(path)
            time, rows, columns = self._random_crop(random, (len(reader), reader.height, reader.width))
            frames = np.stack([frame[rows, columns] for frame in reader.frames(time.start, time.stop)])
        weight = np.ones(frames.shape[:3], dtype=np.float32) if regions is None else self.region_weights[regions]
        frames = torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2).float() / 127.5 - 1
        weight = torch.from_numpy(weight)[None]
        if random.random() < 0.5:
            frames, weight = frames.flip(-1), weight.flip(-1)
        return {"video": frames, "weight": weight}

    def _random_crop(self, random: np.random.Generator, shape: tuple[int, int, int]) -> tuple[slice, slice, slice]:
        crop = []
        for available, wanted in zip(shape, (self.num_frames, self.size, self.size)):
            start = int(random.integers(available - wanted + 1))
            crop.append(slice(start, start + wanted))
        return tuple(crop)


def _video_shape(path: Path) -> tuple[int, int, int]:
    """Frames, height and width of a clip."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="np") as file:
            return tuple(file.get_slice("video").get_shape()[:3])
    reader = VideoReader(path)
    return len(reader), reader.height, reader.width
