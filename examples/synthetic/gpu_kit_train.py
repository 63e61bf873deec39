"""A run of the kit in a folder, and the loop of its phases: in slices that go on exactly."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from avatar_view import scale_of
from batch_body import BatchBody
from batch_clip import ClipGenerator
from diffusers.training_utils import EMAModel
from gpu_kit_config import KitConfig
from gpu_kit_weights import read_weights, write_weights
from motion_bank import MotionBank

from diffusers_dreamactor.training.action_tokens import ActionTokens
from diffusers_dreamactor.training.checkpointing import TrainingProgress, load_checkpoint, save_checkpoint, seed_step


FIRST_NUMBERS = {"vae": 0, "face": 10**12, "transformer": 2 * 10**12, "statistics": 3 * 10**12}
"""Where the clips' numbers of each phase begin: no clip is seen twice."""


class KitRun:
    """
    A run in a folder: `vae/`, `face/`, `transformer/` hold the phases' checkpoints, `log.jsonl` what was measured, `weights/`
    the averaged weights in half precision, `start/` what the run began with, if with anything.

    Args:
        folder: of the run. kit: the folder with `body.safetensors` and `motions.safetensors`.
        config (`KitConfig`). minutes (`float`): until when steps are made.
        start (*optional*): a folder of weights to begin with, where the run is new.
        checkpoint_minutes (`float`): between two checkpoints.
        most_steps (`int`, *optional*): steps of this call, of all phases together.
    """

    def __init__(
        self,
        folder: Path,
        kit: Path,
        config: KitConfig,
        minutes: float,
        checkpoint_minutes: float = 4.0,
        cpu: bool = False,
        most_steps: int | None = None,
        start: Path | None = None,
    ):
        self.folder, self.config, self.cpu = folder, config, cpu or not torch.cuda.is_available()
        self.began = time.monotonic()
        self.steps_left = float("inf") if most_steps is None else most_steps
        self.deadline, self.checkpoint_seconds = self.began + 60 * minutes, 60 * checkpoint_minutes
        self.device = torch.device("cpu" if self.cpu else "cuda")
        body, bank = (
            kind.load(kit / f"{name}.safetensors", self.device)
            for kind, name in ((BatchBody, "body"), (MotionBank, "motions"))
        )
        self.start: dict[str, torch.nn.Module] = {}
        if start is not None and not (folder / "start").exists():
            read_weights(start)
            shutil.copytree(start, folder / "start")
        if (folder / "start").exists():
            self.start, values = read_weights(folder / "start")
            self.tokens = ActionTokens.from_values(values["action_tokens"])
        else:
            # what faces do does not depend on who makes them: the same in every slice
            actions = bank.actions[bank.pool("portrait", False)][..., bank.arkit_order]
            self.tokens = ActionTokens.fit(actions.flatten(0, 1).cpu(), config.motion_dim)
        encoder = self.start.get("face_motion_encoder")
        face_size = config.face_size if encoder is None else encoder.config.size
        size = {"size": config.size, "seed": config.seed, "face_size": face_size}
        self.generator = ClipGenerator(body, bank, **size)
        self.held_out = ClipGenerator(body, bank, held_out=True, **size)
        self.models: dict[str, torch.nn.Module] = {}
        self.pool: dict = {}

    def write_weights(self, done: bool) -> None:
        """Writes the models that there are to `weights/`."""
        values = {
            name: getattr(self.config, name) for name in ("size", "num_frames", "shift", "num_inference_steps", "seed")
        }
        values["action_tokens"] = self.tokens.to_values()
        paths = write_weights(self.models, self.folder / "weights", values)
        total = sum(path.stat().st_size for path in paths)
        self.log(phase="weights", files=len(paths), megabytes=round(total / 1e6, 2), done=done)

    def log(self, **values) -> None:
        """Appends one line to `log.jsonl`, and prints it."""
        line = {"minutes": round((time.monotonic() - self.began) / 60, 2)} | values
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def batch(self, phase: str, step: int, make: Callable[[torch.Tensor, str, int], dict], size: int) -> dict:
        """The clips of a step, by their numbers; with a pool, those of an earlier one after some steps."""
        place = step % self.config.pool if self.config.pool else step
        if (phase, place) in self.pool:
            return {name: value.to(self.device) for name, value in self.pool[phase, place].items()}
        numbers = FIRST_NUMBERS[phase] + place * size + torch.arange(size)
        clips = make(numbers, scale_of(place, self.config.portraits, self.config.half_bodies), place)
        if self.config.pool:
            clips = {name: value for name, value in clips.items() if torch.is_tensor(value)}
            self.pool[phase, place] = {name: value.cpu() for name, value in clips.items()}
        return clips

    def train(
        self,
        phase: str,
        module: torch.nn.Module,
        optimizers: list[torch.optim.Optimizer],
        peaks: list[float],
        steps: int,
        clips_per_step: int,
        compute: Callable[[torch.nn.Module, int, torch.Generator], tuple[torch.Tensor, dict]],
        evaluate: Callable[[], dict],
    ) -> bool:
        """
        Makes the steps of a phase from its last checkpoint until they are done or the time is up.

        Args:
            module: is trained; afterwards it holds the averaged weights.
            peaks: of the optimizers' learning rates.
            compute: module, step and its generator -> loss and numbers to log.
            evaluate: numbers to log, of the averaged weights.
        """
        accelerator = Accelerator(mixed_precision=self.config.mixed_precision, cpu=self.cpu)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        module, *optimizers = accelerator.prepare(module, *optimizers)
        ema = EMAModel(trained, decay=self.config.ema_decay, use_ema_warmup=True, power=3 / 4)
        progress = TrainingProgress()
        accelerator.register_for_checkpointing(ema, progress)
        load_checkpoint(accelerator, self.folder / phase)
        ema.to(self.device)
        first, started, saved, elsewhere = progress.step, time.monotonic(), time.monotonic(), 0.0
        last_checkpoint = first if first else -1

        def measured() -> dict:
            ema.store(trained)
            ema.copy_to(trained)
            module.eval()
            numbers = evaluate()
            module.train()
            ema.restore(trained)
            return numbers

        module.train()
        while progress.step < steps and time.monotonic() < self.deadline and self.steps_left > 0:
            share = progress.step / steps
            rate = min(1.0, (progress.step + 1) / 50) * (0.02 + 0.98 * min(1.0, 4 * (1 - share)) * (1 - 0.7 * share))
            for optimizer, peak in zip(optimizers, peaks):
                for group in optimizer.param_groups:
                    group["lr"] = peak * rate
            generator = seed_step(self.config.seed, progress.step)
            with accelerator.autocast():
                loss, numbers = compute(module, progress.step, generator)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trained, 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            ema.step(trained)
            progress.step += 1
            self.steps_left -= 1
            every = self.config.evaluation_steps
            if every and (progress.step % every == 0 or progress.step == steps):
                numbers = {name: round(float(value), 5) for name, value in numbers.items()}
                now = time.monotonic()
                seconds = (now - started - elsewhere) / (progress.step - first)
                speed = {"seconds_per_step": round(seconds, 4), "clips_per_second": round(clips_per_step / seconds, 2)}
                held_out = {name: round(float(value), 4) for name, value in measured().items()}
                elsewhere += time.monotonic() - now
                self.log(phase=phase, step=progress.step, loss=round(loss.item(), 5), **numbers, **speed, **held_out)
            if time.monotonic() - saved > self.checkpoint_seconds:
                save_checkpoint(accelerator, self.folder / phase, progress.step, keep=1)
                saved, last_checkpoint = time.monotonic(), progress.step
        if progress.step != last_checkpoint:
            save_checkpoint(accelerator, self.folder / phase, progress.step, keep=1)
        ema.copy_to(trained)
        module.eval()
        if progress.step > first:
            seconds = time.monotonic() - started
            self.log(phase=phase, step=progress.step, of=steps, seconds=round(seconds, 1))
        accelerator.end_training()
        return progress.step >= steps

    def autocast(self):
        """The mixed precision of training, for what runs without `accelerate`."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.mixed_precision == "bf16")
