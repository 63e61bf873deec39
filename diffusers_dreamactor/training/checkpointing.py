"""Checkpoints from which a run goes on exactly, bit by bit, as if it had not been stopped."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator


_FOLDER = re.compile(r"checkpoint-(\d+)")


class TrainingProgress:
    """How many optimizer steps a run has made; registered with `accelerate`, so that it is saved with the rest."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, int]:
        """What is saved."""
        return {"step": self.step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Reads what `state_dict` gave."""
        self.step = int(state_dict["step"])


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _FOLDER.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def save_checkpoint(accelerator: Accelerator, folder: str | Path, step: int, keep: int = 2) -> Path:
    """
    Writes `folder/checkpoint-{step}`: everything that was prepared by or registered with `accelerator`.

    It is written aside and renamed, so that a checkpoint with this name is always complete. Called by all processes.

    Args:
        accelerator (`Accelerator`): its `save_state` does the work (sharded for FSDP).
        folder: of the run.
        step (`int`): the number of optimizer steps made.
        keep (`int`): how many checkpoints stay; older ones are removed.
    """
    folder = Path(folder)
    aside, target = folder / f".checkpoint-{step}.part", folder / f"checkpoint-{step}"
    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(aside))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return target


def load_checkpoint(accelerator: Accelerator, folder: str | Path, name: str = "latest") -> Path | None:
    """
    Loads a checkpoint of the run in `folder` into what was prepared by or registered with `accelerator`.

    Args:
        name: `"latest"`, a checkpoint's folder name such as `"checkpoint-500"`, or `"no"` for a run from the beginning.

    Returns:
        its path, or `None` when there is none to load.

    Raises:
        FileNotFoundError: a checkpoint was named that does not exist.
        ValueError: the folder holds later checkpoints than the one to go on from. They are of another course of the run, and
            would be taken for its latest ones.
    """
    checkpoints = list_checkpoints(folder)
    path = None
    if name == "latest":
        path = checkpoints[-1] if checkpoints else None
    elif name != "no":
        path = Path(folder) / name
        if path not in checkpoints:
            raise FileNotFoundError(f"`resume` names {name!r}, but there is no such checkpoint in {folder}.")
    later = checkpoints if path is None else checkpoints[checkpoints.index(path) + 1 :]
    if later:
        raise ValueError(
            f"`resume` is {name!r}, but {folder} holds the later {', '.join(entry.name for entry in later)}: remove them, or "
            "name another output folder."
        )
    if path is not None:
        accelerator.load_state(str(path))
    return path


def seed_step(seed: int, step: int, process_index: int = 0) -> torch.Generator:
    """
    The random generator of one training step on one process.

    Every step draws its noise, timesteps and dropout from a generator that follows from the seed and the step alone.
    So a resumed run draws what the uninterrupted one would have drawn, whatever happened before.
    """
    # a large odd multiplier keeps the seeds of neighbouring steps and processes apart
    mixed = (seed * 1_000_003 + step) * 1009 + process_index
    return torch.Generator().manual_seed(mixed % (2**63 - 1))
