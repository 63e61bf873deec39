"""
Train the speech encoder: log-mel features -> what can be heard of the 52 facial actions, at any frame rate.

    python train_speech_encoder.py --data data/speech --output speech_encoder

The result is an `AudioMotionEncoder` whose tokens are actions (`motion_dim=52`). `bundle_speech.py` makes of it the
one that gives a model's face motion tokens. A stopped run goes on where it was, to the bit.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from make_speech import ACTION_RATE, NUM_FEATURES

from diffusers_dreamactor.models.audio_motion_encoder import AudioMotionEncoder
from diffusers_dreamactor.motion.skeleton import ARKIT_BLENDSHAPES


FEATURE_RATE = 100.0
SILENCE = -15.9424
"""A log-mel feature where there is nothing at all."""
WEIGHTS = {"jawOpen": 6.0, "mouthPressLeft": 3.0, "mouthRollLower": 2.0, "mouthFunnel": 2.0, "mouthPucker": 2.0}


def load_clips(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Features `(L, 64)` and actions `(n, 52)` of every clip of `make_speech.py`, float16."""
    clips = []
    for path in sorted(folder.glob("clip-*.npz")):
        with np.load(path) as data:
            clips.append((data["features"], data["actions"]))
    return clips


def sample_at(actions: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Actions `(n, 52)` at `times` in seconds; beyond the ends the first and the last."""
    position = np.clip(times * ACTION_RATE, 0, len(actions) - 1)
    before = position.astype(int)
    after = np.minimum(before + 1, len(actions) - 1)
    share = (position - before)[:, None].astype(np.float32)
    return actions[before].astype(np.float32) * (1 - share) + actions[after].astype(np.float32) * share


def draw_batch(clips, random: np.random.Generator, batch_size: int, seconds: float):
    """
    Pieces of clips as somebody else may say them: another vocal tract (the mel axis stretched), loudness and channel.

    Returns:
        features `(B, L, 64)`, actions `(B, F, 52)`, frames per second.
    """
    fps = float(random.choice([12, 16, 24, 25, 30, 50]))
    length, num_frames = int(seconds * FEATURE_RATE), int(seconds * fps)
    channels = np.arange(NUM_FEATURES)
    features, targets = [], []
    for _ in range(batch_size):
        sound, actions = clips[random.integers(len(clips))]
        start = int(random.integers(0, max(1, len(sound) - length + 1)))
        piece = sound[start : start + length].astype(np.float32)
        if len(piece) < length:
            piece = np.concatenate([piece, np.repeat(piece[-1:], length - len(piece), axis=0)])
        source = channels * random.uniform(0.88, 1.12) + random.uniform(-1.0, 1.0)
        below = np.clip(source.astype(int), 0, NUM_FEATURES - 2)
        share = np.clip(source - below, 0, 1).astype(np.float32)
        piece = piece[:, below] * (1 - share) + piece[:, below + 1] * share
        tilt = random.uniform(-1.5, 1.5) * (channels / NUM_FEATURES - 0.5) + random.normal(0, 1.0)
        piece = np.where(piece > SILENCE + 1, np.maximum(piece + tilt.astype(np.float32), SILENCE), piece)
        features.append(piece)
        targets.append(sample_at(actions, start / FEATURE_RATE + (np.arange(num_frames) + 0.5) / fps))
    return torch.from_numpy(np.stack(features)).float(), torch.from_numpy(np.stack(targets)), fps


def fold_normalisation(encoder, mean: float, std: float, action_mean, action_std) -> AudioMotionEncoder:
    """The same encoder for features and actions that are not normalised."""
    folded = copy.deepcopy(encoder)
    with torch.no_grad():
        weight = folded.conv_in.weight
        folded.conv_in.bias -= (weight * (mean / std)).sum(dim=(1, 2))
        weight /= std
        folded.proj_out.weight *= action_std[:, None]
        folded.proj_out.bias.mul_(action_std).add_(action_mean)
    return folded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--max_train_steps", type=int, default=2000)
    parser.add_argument("--batch_size", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=5.0, help="of speech in a sample")
    parser.add_argument("--hidden_dim", type=int, default=160)
    parser.add_argument("--num_layers", type=int, default=8)
    parser.add_argument("--kernel_size", type=int, default=7)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--save_steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    clips = load_clips(Path(arguments.data))
    testing, training = clips[::40], [clip for index, clip in enumerate(clips) if index % 40]
    some = training[:200]
    values = np.concatenate([features for features, _ in some]).astype(np.float32)
    mean, std = float(values[values > SILENCE + 1].mean()), float(values[values > SILENCE + 1].std())
    values = torch.from_numpy(np.concatenate([actions for _, actions in some]).astype(np.float32))
    action_mean, action_std = values.mean(dim=0), values.std(dim=0)
    scale = torch.where(action_std > 1e-3, action_std, torch.inf)
    weights = torch.tensor([WEIGHTS.get(name, 0.5) for name in ARKIT_BLENDSHAPES]) * (action_std > 1e-3)
    weights /= weights.sum()

    encoder = AudioMotionEncoder(
        feature_dim=NUM_FEATURES,
        hidden_dim=arguments.hidden_dim,
        num_layers=arguments.num_layers,
        kernel_size=arguments.kernel_size,
        motion_dim=len(ARKIT_BLENDSHAPES),
        stride=2,
    )
    optimizer = torch.optim.AdamW(encoder.parameters(), betas=(0.9, 0.98), weight_decay=0.02)
    ema = EMAModel(encoder.parameters(), decay=0.998, use_ema_warmup=True, power=3 / 4)
    state, first_step = Path(arguments.output) / "training_state.pt", 0
    if state.exists():
        saved = torch.load(state, weights_only=False)
        encoder.load_state_dict(saved["encoder"])
        optimizer.load_state_dict(saved["optimizer"])
        ema.load_state_dict(saved["ema"])
        first_step = saved["step"]

    def predict(features, num_frames, fps):
        return encoder((features - mean) / std, num_frames, FEATURE_RATE / fps).float()

    started = time.monotonic()
    for step in range(first_step, arguments.max_train_steps):
        random = np.random.default_rng([arguments.seed, step])
        features, actions, fps = draw_batch(training, random, arguments.batch_size, arguments.seconds)
        predicted = predict(features, actions.shape[1], fps)
        truth = (actions - action_mean) / scale
        # absolute errors beyond half a standard deviation: the likelier of two shapes, not their mean
        error = torch.nn.functional.smooth_l1_loss(predicted, truth, reduction="none", beta=0.5)
        change = (predicted.diff(dim=1) - truth.diff(dim=1)).square()
        loss = (error.mean(dim=(0, 1)) * weights).sum() + 0.25 * (change.mean(dim=(0, 1)) * weights).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        rate = min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / arguments.max_train_steps))
        optimizer.param_groups[0]["lr"] = arguments.learning_rate * rate
        optimizer.step()
        ema.step(encoder.parameters())
        if (step + 1) % arguments.save_steps == 0 or step + 1 == arguments.max_train_steps:
            ema.store(encoder.parameters())
            ema.copy_to(encoder.parameters())
            encoder.eval()
            jaw = ARKIT_BLENDSHAPES.index("jawOpen")
            with torch.no_grad():
                pairs = []
                for features, actions in testing:
                    num_frames = int(len(features) / FEATURE_RATE * 25)
                    tokens = predict(torch.from_numpy(features.astype(np.float32))[None], num_frames, 25.0)[0]
                    tokens = tokens * action_std + action_mean
                    times = (np.arange(num_frames) + 0.5) / 25
                    pairs.append(np.stack([tokens[:, jaw].numpy(), sample_at(actions, times)[:, jaw]]))
            correlation = np.corrcoef(np.concatenate(pairs, axis=1))[0, 1]
            fold_normalisation(encoder, mean, std, action_mean, action_std).save_pretrained(arguments.output)
            encoder.train()
            ema.restore(encoder.parameters())
            aside = state.with_suffix(".part")
            torch.save(
                {
                    "encoder": encoder.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "ema": ema.state_dict(),
                    "step": step + 1,
                },
                aside,
            )
            os.replace(aside, state)
            seconds = (time.monotonic() - started) / (step + 1 - first_step)
            print(
                f"step {step + 1} loss {loss.item():.4f} jawOpen of other clips: r {correlation:.3f} {seconds:.2f} s/step",
                flush=True,
            )


if __name__ == "__main__":
    main()
