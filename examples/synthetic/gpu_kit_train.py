"""The kit's training: autoencoder, face encoder, transformer, one after the other, in slices that go on exactly."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from avatar_view import scale_of
from batch_body import BatchBody
from batch_clip import ClipGenerator
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import EMAModel
from gpu_kit_weights import write_weights
from motion_bank import MotionBank
from new_model import new_pose_encoder, new_transformer
from train_face_encoder import augment, expression_loss, face_optimizers, new_face_encoder

from diffusers_dreamactor.pipelines.conditioning import empty_condition, encode_reference_pose, pack_reference_latents
from diffusers_dreamactor.training.action_tokens import ActionTokens
from diffusers_dreamactor.training.checkpointing import TrainingProgress, load_checkpoint, save_checkpoint, seed_step
from diffusers_dreamactor.training.linear_code import LinearCode
from diffusers_dreamactor.training.objective import DreamActorObjective, ObjectiveConfig, region_shares
from diffusers_dreamactor.training.optimizers import conv_optimizers, make_optimizers
from diffusers_dreamactor.training.reconstruction import (
    Reconstruction,
    code_loss,
    measure_latents,
    new_vae,
    reconstruction_loss,
)


PHASES = ("vae", "face", "transformer")
REGION_MASKS = {"all": 0, "person": 1, "head": 2, "eyes_mouth": 3}
"""Least value of the region map that counts (as in `examples/evaluate.py`)."""
_FIRST_NUMBERS = {"vae": 0, "face": 10**12, "transformer": 2 * 10**12, "statistics": 3 * 10**12}
"""Where the clips' numbers of each phase begin: no clip is seen twice."""


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


class KitRun:
    """
    A run in a folder: `vae/`, `face/`, `transformer/` hold the phases' checkpoints, `log.jsonl` what was measured, `weights/`
    the averaged weights in half precision.

    Args:
        folder: of the run. kit: the folder with `body.safetensors` and `motions.safetensors`.
        config (`KitConfig`). minutes (`float`): until when steps are made.
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
        size = {"size": config.size, "seed": config.seed, "face_size": config.face_size}
        self.generator = ClipGenerator(body, bank, **size)
        self.held_out = ClipGenerator(body, bank, held_out=True, **size)
        self.models: dict[str, torch.nn.Module] = {}
        # what faces do does not depend on who makes them: the same in every slice
        actions = bank.actions[bank.pool("portrait", False)][..., bank.arkit_order]
        self.tokens = ActionTokens.fit(actions.flatten(0, 1).cpu(), config.motion_dim)
        self._pool: dict = {}

    def run(self) -> bool:
        """Goes on until the time is up or all phases are done; returns whether they are."""
        done = self.train_vae() and self.train_face_encoder() and self.train_transformer()
        values = {
            name: getattr(self.config, name) for name in ("size", "num_frames", "shift", "num_inference_steps", "seed")
        }
        tokens = {name: getattr(self.tokens, name).tolist() for name in ("used", "mean", "scale")}
        values["action_tokens"] = tokens | {"motion_dim": self.tokens.motion_dim}
        if self.models:
            paths = write_weights(self.models, self.folder / "weights", values)
            total = sum(path.stat().st_size for path in paths)
            self.log(phase="weights", files=len(paths), megabytes=round(total / 1e6, 2), done=done)
        return done

    def log(self, **values) -> None:
        """Appends one line to `log.jsonl`, and prints it."""
        line = {"minutes": round((time.monotonic() - self.began) / 60, 2)} | values
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def batch(self, phase: str, step: int, make: Callable[[torch.Tensor, str, int], dict], size: int) -> dict:
        """The clips of a step, by their numbers; with a pool, those of an earlier one after some steps."""
        place = step % self.config.pool if self.config.pool else step
        if (phase, place) in self._pool:
            return {name: value.to(self.device) for name, value in self._pool[phase, place].items()}
        numbers = _FIRST_NUMBERS[phase] + place * size + torch.arange(size)
        clips = make(numbers, scale_of(place, self.config.portraits, self.config.half_bodies), place)
        if self.config.pool:
            clips = {name: value for name, value in clips.items() if torch.is_tensor(value)}
            self._pool[phase, place] = {name: value.cpu() for name, value in clips.items()}
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
            if progress.step % self.config.evaluation_steps == 0 or progress.step == steps:
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

    # 1. The autoencoder

    def train_vae(self) -> bool:
        """Trains the autoencoder on whole clips, at the length at which it is used."""
        config = self.config
        torch.manual_seed(config.seed)
        vae = new_vae(config.vae_base, config.vae_decoder_base, config.z_dim, config.vae_patch)
        teacher = self.linear_code(vae) if config.vae_code == "linear" else None
        module = Reconstruction(vae.to(self.device), "both", 0.05, teacher)
        weights = torch.tensor([1.0, 1.0, 1.5, 3.0], device=self.device)

        def make(numbers, scale, step):
            clips = self.generator.videos(numbers, scale, config.num_frames)
            return {"video": (clips["video"] * 127.5 + 127.5).round().byte(), "regions": clips["regions"]}

        def compute(module, step, generator):
            clips = self.batch("vae", step, make, config.vae_batch)
            video, regions = clips["video"].float() / 127.5 - 1, clips["regions"]
            if config.vae_crop:
                height, width = video.shape[3:]
                top, left = (
                    int(torch.randint(side - min(side, config.vae_crop) + 1, (1,), generator=generator))
                    for side in (height, width)
                )
                rows, columns = slice(top, top + config.vae_crop), slice(left, left + config.vae_crop)
                video, regions = video[..., rows, columns], regions[..., rows, columns]
            decoded, latents, target = module(video, generator)
            loss, mse = reconstruction_loss(decoded, video, weights[regions.long()][:, None])
            code, unexplained = code_loss(latents, target, teacher, 1e-3)
            numbers = {"train_psnr": -10 * torch.log10(mse / 4)}
            return loss + code, numbers | ({} if unexplained is None else {"unexplained": unexplained})

        def evaluate():
            numbers = {}
            for scale in ("portrait", "full_body"):
                clips = self.held_out.videos(
                    torch.arange(max(1, config.evaluation_clips // 3)), scale, config.num_frames
                )
                with torch.no_grad(), self.autocast():
                    decoded = vae.decode_video(vae.encode_video(clips["video"])).float()
                numbers |= {f"{scale}_{name}": value for name, value in region_psnr(decoded, clips).items()}
            return numbers

        optimizers = conv_optimizers(config.vae_optimizer, list(vae.parameters()), config.vae_learning_rate)
        done = self.train(
            "vae",
            module,
            optimizers,
            [config.vae_learning_rate, 2e-3],
            config.vae_steps,
            config.vae_batch,
            compute,
            evaluate,
        )
        self._pool = {}
        if done and teacher is None:
            self.normalize(vae)
        self.models["vae"] = vae.requires_grad_(False)
        return done

    def normalize(self, vae: torch.nn.Module) -> None:
        """Sets the statistics of the trained autoencoder's latents, measured once and kept with the run."""
        path, names = self.folder / "latent_statistics.json", ("latents_mean", "latents_std")
        if not path.exists():
            scales = ("portrait", "half_body", "portrait", "full_body") * 2
            numbers = [_FIRST_NUMBERS["statistics"] + 4 * index + torch.arange(4) for index in range(len(scales))]
            videos = (
                self.generator.videos(part, scale, self.config.num_frames)["video"]
                for part, scale in zip(numbers, scales)
            )
            with self.autocast():
                measure_latents(vae, videos)
            path.write_text(json.dumps({name: list(vae.config[name]) for name in names}))
        vae.register_to_config(**json.loads(path.read_text()))

    def linear_code(self, vae: torch.nn.Module) -> LinearCode:
        """The principal components that latents shall be, fitted once and kept with the run."""
        path = self.folder / "linear_code.safetensors"
        if not path.exists():
            weights = torch.tensor([1.0, 1.0, 1.5, 3.0], device=self.device)

            def videos():
                for index in range(24):
                    numbers = _FIRST_NUMBERS["statistics"] + 2 * index + torch.arange(2)
                    scale = scale_of(index, self.config.portraits, self.config.half_bodies)
                    clips = self.generator.videos(numbers, scale, self.config.num_frames)
                    yield clips["video"].cpu(), weights[clips["regions"].long()][:, None].cpu()

            LinearCode.fit(videos(), self.config.z_dim, size=vae.config.scale_factor_spatial).save(path)
        return LinearCode.load(path).to(self.device)

    # 2. The face encoder

    def train_face_encoder(self) -> bool:
        """Trains the face encoder to tell the facial actions in crops."""
        config, used = self.config, len(self.tokens.used)
        torch.manual_seed(config.seed + 1)
        encoder = new_face_encoder(config.face_size, config.motion_dim).to(self.device)

        def predict(crops):
            return encoder(crops.float()[None], batch_size=len(crops))[0].float()[:, :used]

        def make(numbers, scale, step):
            crops, actions = self.generator.faces(numbers, config.face_frames)
            return {"crops": crops, "actions": actions}

        def truth(actions):
            return self.tokens(actions.flatten(0, 1).cpu()).to(self.device)[:, :used]

        def compute(module, step, generator):
            clips = self.batch("face", step, make, config.face_people)
            crops = clips["crops"].flatten(0, 1).float().cpu() / 127.5 - 1
            crops = augment(crops, generator, config.face_frames).to(self.device)
            predicted = module(crops[None], batch_size=len(crops))[0].float()[:, :used]
            return expression_loss(predicted, truth(clips["actions"]), config.face_frames), {}

        def evaluate():
            crops, actions = self.held_out.faces(torch.arange(4 * config.evaluation_clips), 4)
            with torch.no_grad(), self.autocast():
                predicted = predict(crops.flatten(0, 1).float() / 127.5 - 1)
            expected = truth(actions)
            explained = 1 - (predicted - expected).square().mean(dim=0) / expected.var(dim=0).clamp(min=1e-6)
            return {"r2": explained.mean(), "best_r2": explained.max()}

        optimizers = face_optimizers(encoder, "muon", config.face_learning_rate)
        done = self.train(
            "face",
            encoder,
            optimizers,
            [config.face_learning_rate, 3e-3],
            config.face_steps,
            config.face_people,
            compute,
            evaluate,
        )
        self._pool = {}
        self.models["face_motion_encoder"] = encoder.requires_grad_(False)
        return done

    # 3. The transformer

    def train_transformer(self) -> bool:
        """Trains transformer and pose encoder; autoencoder and face encoder rest."""
        config, vae, encoder = self.config, self.models["vae"], self.models["face_motion_encoder"]
        torch.manual_seed(config.seed + 2)
        transformer = new_transformer(
            config.z_dim,
            config.motion_dim,
            patch_size=config.patch,
            num_attention_heads=config.dim // config.head_dim,
            attention_head_dim=config.head_dim,
            num_layers=config.layers,
            ffn_dim=4 * config.dim,
        )
        pose_encoder = new_pose_encoder(64, vae.config.scale_factor_spatial)
        settings = ObjectiveConfig(shift=config.shift)
        module = DreamActorObjective(transformer, pose_encoder, encoder, settings).to(self.device)
        window = (config.num_frames - 1) // 4 + 1

        def make(numbers, scale, step):
            chance = torch.rand(2, generator=seed_step(config.seed + 1, step)).tolist()
            continued, crops = chance[0] < config.continued_share, chance[1] < config.crop_share
            return self.prepare(self.generator, numbers, scale, window, continued, crops)

        def compute(module, step, generator):
            batch = self.batch("transformer", step, make, config.batch)
            result = module(batch, generator)
            return result["loss"], {"mse": result["mse"]}

        def evaluate():
            return self.evaluate_transformer(module, window)

        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizers = make_optimizers(config.optimizer, module, trained, config.learning_rate, 0.01)
        rates = [config.learning_rate] * len(optimizers)
        done = self.train("transformer", module, optimizers, rates, config.steps, config.batch, compute, evaluate)
        self.models |= {"pose_encoder": pose_encoder, "transformer": transformer}
        return done

    @torch.no_grad()
    def prepare(
        self,
        generator: ClipGenerator,
        numbers: torch.Tensor,
        scale: str,
        window: int,
        continued: bool = False,
        crops: bool = True,
        expression: int = 0,
    ) -> dict[str, torch.Tensor]:
        """
        Clips as `DreamActorObjective` takes them; `video`, `regions_map` beside them.

        Args:
            window (`int`): latent frames. continued (`bool`): begin after the clip's first latent frame.
        """
        start = 4 if continued else 0
        clips = generator.clips(numbers, scale, 4 * (window - 1) + 1 + start, crops, expression)
        vae = self.models["vae"]
        with self.autocast():
            latents = vae.encode_video(clips["video"]).float()[:, :, start // 4 :]
            references = clips["references"].transpose(1, 2).flatten(0, 1)[:, :, None]
            references = vae.encode_video(references).float()[:, :, 0].unflatten(0, (len(numbers), -1)).transpose(1, 2)
        shares = region_shares(clips["regions"], vae.config.scale_factor_spatial)[:, :, start // 4 :]
        batch = {
            "latents": latents,
            "maps": clips["maps"][:, :, start:],
            "reference_latents": references,
            "reference_maps": clips["reference_maps"],
            "regions": shares,
            "continued": torch.full((len(numbers),), continued, device=self.device),
            "face_weight": clips["face_weight"][:, start:],
        }
        if crops:
            batch["face"] = clips["face"][:, start:]
        else:
            batch["motion_tokens"] = self.tokens(clips["actions"][:, start:].cpu()).to(self.device)
        return batch | ({} if generator is self.generator else {"video": clips["video"], "pixels": clips["regions"]})

    def evaluate_transformer(self, objective: DreamActorObjective, window: int) -> dict[str, float]:
        """
        PSNR of held-out people in held-out motions: with the right guidance, with the poses of another clip, with the face of
        another clip, and of the reference, standing still; portraits and full bodies.
        """
        totals: dict[str, list[float]] = {}
        for scale, number in (("portrait", 2), ("full_body", 1)):
            numbers = torch.arange(max(2, number * self.config.evaluation_clips // 3))
            batch = self.prepare(self.held_out, numbers, scale, window)
            still = batch["reference_latents"][:, :, :1].expand_as(batch["latents"])
            rows = {
                "right": self.sample(objective, batch),
                "pose_of_another": self.sample(objective, batch | {"maps": batch["maps"].roll(1, 0)}),
                "face_of_another": self.sample(objective, batch | {"face": batch["face"].roll(1, 0)}),
                "frozen": still,
                "ceiling": batch["latents"],
            }
            for row, latents in rows.items():
                with torch.no_grad(), self.autocast():
                    video = self.models["vae"].decode_video(latents).float()
                clips = {"video": batch["video"], "regions": batch["pixels"]}
                for region, value in region_psnr(video, clips).items():
                    if region in ("all", "person") or row in ("right", "face_of_another"):
                        totals.setdefault(f"{scale}_{row}_{region}", []).append(value)
        return {name: sum(values) / len(values) for name, values in totals.items()}

    @torch.no_grad()
    def sample(self, objective: DreamActorObjective, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Latents `(B, C, T, h, w)` of a batch's conditions with its first reference, from seeded noise."""
        scheduler = FlowMatchEulerDiscreteScheduler(shift=self.config.shift)
        scheduler.set_timesteps(self.config.num_inference_steps)
        noise = torch.randn(batch["latents"].shape, generator=torch.Generator().manual_seed(0))
        latents = noise.to(self.device)
        with self.autocast():
            pose = objective.pose_encoder(batch["maps"].float() / 127.5 - 1)
            reference_maps = batch["reference_maps"][:, :, :1].float() / 127.5 - 1
            conditions = {
                "pose_hidden_states": pose,
                "motion_hidden_states": objective.encode_face(batch),
                "reference_hidden_states": pack_reference_latents(batch["reference_latents"][:, :, :1]),
                "reference_pose_hidden_states": encode_reference_pose(objective.pose_encoder, reference_maps),
            }
            for timestep in scheduler.timesteps:
                prediction = objective.transformer(
                    hidden_states=torch.cat([latents, empty_condition(latents)], dim=1),
                    timestep=timestep.to(self.device).expand(len(latents)),
                    return_dict=False,
                    **conditions,
                )[0]
                latents = scheduler.step(prediction.float(), timestep, latents, return_dict=False)[0]
        return latents

    def autocast(self):
        """The mixed precision of training, for what runs without `accelerate`."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.mixed_precision == "bf16")


def region_psnr(video: torch.Tensor, clips: dict[str, torch.Tensor]) -> dict[str, float]:
    """PSNR in dB of videos `(B, 3, F, H, W)` in [-1, 1], mean over clips, of the regions that are seen."""
    squared = (video.clamp(-1, 1) - clips["video"]).square().mean(dim=1) / 4
    result = {}
    for name, least in REGION_MASKS.items():
        mask = clips["regions"] >= least
        seen = mask.flatten(1).any(dim=1)
        if not seen.any():
            continue
        error = (squared * mask).flatten(1).sum(dim=1) / mask.flatten(1).sum(dim=1).clamp(min=1)
        result[name] = float((-10 * torch.log10(error.clamp(min=1e-9)))[seen].mean())
    return result
