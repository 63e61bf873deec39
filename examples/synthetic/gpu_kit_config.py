"""What the kit trains, and how long: one option of `gpu_kit.py run` for each field."""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass
class KitConfig:
    """
    What is trained, and how long. All but the numbers of steps and `minutes` are fixed when a run begins.

    Args:
        size (`int`): width of the pictures, pixels. num_frames (`int`): of a clip, `4 n + 1`.
        vae_base, vae_decoder_base, vae_patch, z_dim (`int`): the autoencoder. vae_code (`str`): `"learned"`, or `"linear"`: latents are
            principal components, which small budgets learn faster.
        vae_steps, vae_batch (`int`), vae_crop (`int`): clips of a step, and the side that is cut out of them (0: all).
        face_size, motion_dim (`int`): the face encoder. face_steps, face_people, face_frames: people of a step, pictures of each.
        dim, layers, head_dim, patch (`int`): the transformer. steps, batch (`int`): clips of a step.
        crop_share (`float`): share of the steps that read the face off crops, by the trained encoder; the others read the
            known facial actions, which saves rendering the crops.
        continued_share (`float`): share of the steps with clips that go on from a given latent.
        learning rates: peaks; they rise at first and fall to nothing at the end of a phase.
        evaluation_steps (`int`): after so many steps, and at the end of a phase, held-out clips are measured; 0: never.
        pool (`int`): keep so many batches and show them again and again, for processors that render slowly; 0: no clip is
            seen twice.
    """

    seed: int = 0
    size: int = 128
    num_frames: int = 17
    vae_base: int = 32
    vae_decoder_base: int = 32
    vae_patch: int = 2
    z_dim: int = 16
    vae_code: str = "learned"
    vae_steps: int = 3000
    vae_batch: int = 16
    vae_crop: int = 0
    vae_learning_rate: float = 2e-3
    vae_optimizer: str = "adamw"
    face_size: int = 64
    motion_dim: int = 32
    face_steps: int = 2000
    face_people: int = 24
    face_frames: int = 8
    face_learning_rate: float = 0.02
    dim: int = 384
    layers: int = 12
    head_dim: int = 64
    patch: int = 1
    steps: int = 8000
    batch: int = 24
    learning_rate: float = 1e-3
    optimizer: str = "muon"
    shift: float = 3.0
    num_inference_steps: int = 4
    ema_decay: float = 0.9995
    crop_share: float = 0.25
    continued_share: float = 0.3
    portraits: float = 0.5
    half_bodies: float = 0.25
    pool: int = 0
    evaluation_steps: int = 500
    evaluation_clips: int = 12
    mixed_precision: str = "bf16"

    CHANGEABLE = ("vae_steps", "face_steps", "steps", "evaluation_steps", "evaluation_clips")

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """One option for each field."""
        for field in dataclasses.fields(cls):
            choices = {"vae_code": ("learned", "linear"), "mixed_precision": ("no", "bf16")}.get(field.name)
            kind = type(field.default)
            parser.add_argument(f"--{field.name}", type=kind, default=None, choices=choices, help=f"{field.default}")

    @classmethod
    def of_run(cls, folder: Path, arguments: argparse.Namespace) -> KitConfig:
        """
        The configuration of a run: what it began with, and what is asked for.

        Raises:
            ValueError: something is asked for that cannot be changed any more.
        """
        path = folder / "config.json"
        stored = json.loads(path.read_text()) if path.exists() else {}
        asked = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(cls)}
        asked = {name: value for name, value in asked.items() if value is not None}
        for name, value in asked.items():
            if name in stored and stored[name] != value and name not in cls.CHANGEABLE:
                raise ValueError(f"`{name}` is {value!r}, but the run in {folder} began with {stored[name]!r}.")
        config = cls(**(stored | asked))
        if config.num_frames % 4 != 1:
            raise ValueError(f"`num_frames` is {config.num_frames}, but has to be 4 n + 1.")
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / ".config.json.part"
        aside.write_text(json.dumps(dataclasses.asdict(config), indent=1))
        aside.replace(path)
        return config
