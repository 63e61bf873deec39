"""
Pretrain the face motion encoder: face crops of many people -> motion tokens that are their facial actions.

    python train_face_encoder.py --data data/faces --output face_motion_encoder --action_tokens action_tokens.safetensors

DreamActor-M1 takes a pretrained encoder (PD-FGC); here the truth is known, so it is trained to tell it (see
`training/action_tokens.py`; a missing `--action_tokens` file is fitted to the data).
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers.training_utils import EMAModel

from diffusers_dreamactor.models.face_motion_encoder import FaceMotionEncoder
from diffusers_dreamactor.motion.skeleton import ARKIT_BLENDSHAPES
from diffusers_dreamactor.training.action_tokens import ActionTokens
from diffusers_dreamactor.training.optimizers import ConvMuon


def load_faces(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All crops `(N, S, S, 3)`, ARKit actions `(N, 52)` and person numbers `(N,)` of a folder of `make_faces.py`."""
    parts = [np.load(path) for path in sorted(folder.glob("faces-*.npz"))]
    crops, actions, person = (
        np.concatenate([part[name] for part in parts]) for name in ("crops", "actions", "person")
    )
    names = [str(name) for name in parts[0]["action_names"]]
    return crops, actions[:, [names.index(name) for name in ARKIT_BLENDSHAPES]], person


def shrink(crops: np.ndarray, factor: int) -> np.ndarray:
    """Crops `(N, S, S, 3)` with squares of `factor` pixels averaged, uint8."""
    number, size = crops.shape[:2]
    parts = crops.reshape(number, size // factor, factor, size // factor, factor, 3)
    return np.concatenate([part.mean(axis=(2, 4)).round().astype(np.uint8) for part in np.array_split(parts, 50)])


def augment(crops: torch.Tensor, generator: torch.Generator, frames: int) -> torch.Tensor:
    """
    Crops `(N, 3, S, S)` in [-1, 1] as real footage may show them: another brightness, contrast and tint for every `frames`
    pictures of a person, noise. Boxes are jittered when they are rendered. Mirroring is left out: it would swap the left
    and right actions.
    """

    def uniform(low, high, *shape):
        values = low + (high - low) * torch.rand(len(crops) // frames, *shape, generator=generator)
        return values.repeat_interleave(frames, dim=0)

    crops = crops * uniform(0.7, 1.2, 1, 1, 1) + uniform(-0.2, 0.2, 3, 1, 1)
    return crops + 0.04 * torch.randn(crops.shape, generator=generator)


def new_face_encoder(size: int, motion_dim: int) -> FaceMotionEncoder:
    """A small encoder of crops of `size` pixels to tokens of `motion_dim` channels."""
    return FaceMotionEncoder(
        size=size,
        channels={"64": 16, "32": 32, "16": 64, "8": 128, "4": 128},
        style_dim=256,
        motion_blocks=2,
        num_motion_directions=motion_dim,
        motion_dim=motion_dim,
    )


def face_optimizers(encoder: FaceMotionEncoder, name: str, learning_rate: float) -> list[torch.optim.Optimizer]:
    """The first is of the weights: `ConvMuon` with `learning_rate`, or AdamW; the second of the biases."""
    # the encoder stores weights of unit variance and scales them when used
    weights = [parameter for parameter in encoder.parameters() if parameter.ndim > 1]
    biases = [parameter for parameter in encoder.parameters() if parameter.ndim == 1]
    adamw = {"betas": (0.9, 0.98), "weight_decay": 0.0}
    first = ConvMuon(weights, lr=learning_rate) if name == "muon" else torch.optim.AdamW(weights, **adamw)
    return [first, torch.optim.AdamW(biases, **adamw)]


def expression_loss(predicted: torch.Tensor, truth: torch.Tensor, frames: int) -> torch.Tensor:
    """
    What is minimised of tokens `(N, channels in use)`, each `frames` of them of one person: differences between the
    pictures of a person are expression and pose, never appearance, so they count most.
    """
    error = (predicted - truth).unflatten(0, (-1, frames))
    within = error - error.mean(dim=1, keepdim=True)
    return within.square().mean() + 0.3 * error.square().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--max_train_steps", type=int, default=4000)
    parser.add_argument("--people", type=int, default=12, help="in a batch; all pictures of each")
    parser.add_argument("--size", type=int, default=32, help="side of the pictures that the encoder sees")
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "muon"))
    parser.add_argument("--learning_rate", type=float, default=0.02, help="relative change of a weight in a step")
    parser.add_argument("--action_tokens", required=True, help="file of ActionTokens")
    parser.add_argument("--evaluation_steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    folder = Path(arguments.data)
    crops, actions, person = load_faces(folder)
    if not Path(arguments.action_tokens).exists():
        ActionTokens.fit(torch.from_numpy(actions), motion_dim=32).save(arguments.action_tokens)
    tokens = ActionTokens.load(arguments.action_tokens)
    encoder = new_face_encoder(arguments.size, tokens.motion_dim)
    if crops.shape[1] != arguments.size:
        crops = shrink(crops, crops.shape[1] // arguments.size)
    optimizers = face_optimizers(encoder, arguments.optimizer, arguments.learning_rate)
    ema = EMAModel(encoder.parameters(), decay=0.99, use_ema_warmup=True, power=3 / 4)

    def batch(indices):
        pixels = torch.from_numpy(crops[indices]).permute(0, 3, 1, 2).float() / 127.5 - 1
        return pixels, tokens(torch.from_numpy(actions[indices]))

    def predict(pixels):
        return encoder(pixels[None], batch_size=len(pixels))[0].float()

    # pictures of one person lie together
    frames = int((person == person[0]).sum())
    people = person.reshape(-1, frames)[:, 0]
    training, testing = np.flatnonzero(people % 20 != 0), np.flatnonzero(person % 20 == 0)
    started = time.monotonic()
    for step in range(arguments.max_train_steps):
        generator = torch.Generator().manual_seed(arguments.seed * 1_000_003 + step)
        picks = torch.randint(len(training), (arguments.people,), generator=generator).numpy()
        pixels, truth = batch((training[picks, None] * frames + np.arange(frames)).reshape(-1))
        with torch.autocast("cpu", torch.bfloat16):
            predicted = predict(augment(pixels, generator, frames))
        used = slice(0, len(tokens.used))
        loss = expression_loss(predicted[:, used], truth[:, used], frames)
        encoder.zero_grad()
        loss.backward()
        share = step / arguments.max_train_steps
        rate = min(1.0, (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * share))
        for optimizer, peak in zip(optimizers, (arguments.learning_rate, 3e-3)):
            optimizer.param_groups[0]["lr"] = peak * rate
            optimizer.step()
        ema.step(encoder.parameters())
        if (step + 1) % arguments.evaluation_steps == 0 or step + 1 == arguments.max_train_steps:
            ema.store(encoder.parameters())
            ema.copy_to(encoder.parameters())
            with torch.no_grad():
                pixels, truth = batch(testing[:: max(1, len(testing) // 384)])
                predicted = torch.cat([predict(part) for part in pixels.split(64)])
            encoder.save_pretrained(arguments.output)
            ema.restore(encoder.parameters())
            error = (predicted - truth).square().mean(dim=0)[: len(tokens.used)]
            r2 = 1 - error / truth.var(dim=0)[: len(tokens.used)]
            best = ", ".join(
                f"{ARKIT_BLENDSHAPES[tokens.used[i]]} {r2[i]:.2f}" for i in r2.argsort(descending=True)[:4]
            )
            print(
                f"step {step + 1} loss {loss.item():.3f} held-out people: R2 {r2.mean():.3f} ({best}) "
                f"{(time.monotonic() - started) / (step + 1):.2f} s/step",
                flush=True,
            )


if __name__ == "__main__":
    main()
