"""The kit's three phases of training: autoencoder, face encoder, transformer."""

from __future__ import annotations

import json

import torch
from avatar_view import scale_of
from batch_clip import ClipGenerator
from diffusers import FlowMatchEulerDiscreteScheduler
from gpu_kit_train import FIRST_NUMBERS, KitRun
from new_model import new_pose_encoder, new_transformer
from train_face_encoder import augment, expression_loss, face_optimizers, new_face_encoder

from diffusers_dreamactor.pipelines.conditioning import empty_condition, encode_reference_pose, pack_reference_latents
from diffusers_dreamactor.training.checkpointing import seed_step
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


REGION_MASKS = {"all": 0, "person": 1, "head": 2, "eyes_mouth": 3}
"""Least value of the region map that counts (as in `examples/evaluate.py`)."""


# 1. The autoencoder


def train_vae(run: KitRun) -> bool:
    """Trains the autoencoder on whole clips, at the length at which it is used."""
    config = run.config
    torch.manual_seed(config.seed)
    vae = run.start.get("vae") or new_vae(config.vae_base, config.vae_decoder_base, config.z_dim, config.vae_patch)
    teacher = linear_code(run, vae) if config.vae_code == "linear" and config.vae_steps else None
    module = Reconstruction(vae.to(run.device), "both", 0.05, teacher)
    weights = torch.tensor([1.0, 1.0, 1.5, 3.0], device=run.device)

    def make(numbers, scale, step):
        clips = run.generator.videos(numbers, scale, config.num_frames)
        return {"video": (clips["video"] * 127.5 + 127.5).round().byte(), "regions": clips["regions"]}

    def compute(module, step, generator):
        clips = run.batch("vae", step, make, config.vae_batch)
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

    shown = {}

    def evaluate():
        numbers = {}
        for scale in ("portrait", "full_body"):
            if scale not in shown:
                picks = torch.arange(max(1, config.evaluation_clips // 3))
                shown[scale] = run.held_out.videos(picks, scale, config.num_frames)
            with torch.no_grad(), run.autocast():
                decoded = vae.decode_video(vae.encode_video(shown[scale]["video"])).float()
            numbers |= {f"{scale}_{name}": value for name, value in region_psnr(decoded, shown[scale]).items()}
        return numbers

    optimizers = conv_optimizers(config.vae_optimizer, list(vae.parameters()), config.vae_learning_rate)
    done = run.train(
        "vae",
        module,
        optimizers,
        [config.vae_learning_rate, 2e-3],
        config.vae_steps,
        config.vae_batch,
        compute,
        evaluate,
    )
    run.pool = {}
    if done and teacher is None and config.vae_steps:
        normalize(run, vae)
    run.models["vae"] = vae.requires_grad_(False)
    return done


def normalize(run: KitRun, vae: torch.nn.Module) -> None:
    """Sets the statistics of the trained autoencoder's latents, measured once and kept with the run."""
    path, names = run.folder / "latent_statistics.json", ("latents_mean", "latents_std")
    if not path.exists():
        scales = ("portrait", "half_body", "portrait", "full_body") * 2
        clips = min(4, run.config.vae_batch)
        numbers = [FIRST_NUMBERS["statistics"] + clips * index + torch.arange(clips) for index in range(len(scales))]
        videos = (
            run.generator.videos(part, scale, run.config.num_frames)["video"] for part, scale in zip(numbers, scales)
        )
        with run.autocast():
            measure_latents(vae, videos)
        path.write_text(json.dumps({name: list(vae.config[name]) for name in names}))
    vae.register_to_config(**json.loads(path.read_text()))


def linear_code(run: KitRun, vae: torch.nn.Module) -> LinearCode:
    """The principal components that latents shall be, fitted once and kept with the run."""
    path = run.folder / "linear_code.safetensors"
    if not path.exists():
        weights = torch.tensor([1.0, 1.0, 1.5, 3.0], device=run.device)

        def videos():
            for index in range(24):
                numbers = FIRST_NUMBERS["statistics"] + 2 * index + torch.arange(2)
                scale = scale_of(index, run.config.portraits, run.config.half_bodies)
                clips = run.generator.videos(numbers, scale, run.config.num_frames)
                yield clips["video"].cpu(), weights[clips["regions"].long()][:, None].cpu()

        LinearCode.fit(videos(), run.config.z_dim, size=vae.config.scale_factor_spatial).save(path)
    return LinearCode.load(path).to(run.device)


# 2. The face encoder


def train_face_encoder(run: KitRun) -> bool:
    """Trains the face encoder to tell the facial actions in crops."""
    config, used = run.config, len(run.tokens.used)
    torch.manual_seed(config.seed + 1)
    encoder = run.start.get("face_motion_encoder") or new_face_encoder(config.face_size, config.motion_dim)
    encoder = encoder.to(run.device)

    def predict(crops):
        return encoder(crops.float()[None], batch_size=len(crops))[0].float()[:, :used]

    def make(numbers, scale, step):
        crops, actions = run.generator.faces(numbers, config.face_frames)
        return {"crops": crops, "actions": actions}

    def truth(actions):
        return run.tokens(actions.flatten(0, 1).cpu()).to(run.device)[:, :used]

    def compute(module, step, generator):
        clips = run.batch("face", step, make, config.face_people)
        crops = clips["crops"].flatten(0, 1).float().cpu() / 127.5 - 1
        crops = augment(crops, generator, config.face_frames).to(run.device)
        predicted = module(crops[None], batch_size=len(crops))[0].float()[:, :used]
        return expression_loss(predicted, truth(clips["actions"]), config.face_frames), {}

    shown = []

    def evaluate():
        if not shown:
            shown.extend(run.held_out.faces(torch.arange(4 * config.evaluation_clips), 4))
        crops, actions = shown
        with torch.no_grad(), run.autocast():
            predicted = predict(crops.flatten(0, 1).float() / 127.5 - 1)
        expected = truth(actions)
        variance = expected.var(dim=0)
        explained = (1 - (predicted - expected).square().mean(dim=0) / variance)[variance > 0.01]
        return {"r2": explained.mean(), "best_r2": explained.max()}

    optimizers = face_optimizers(encoder, "muon", config.face_learning_rate)
    done = run.train(
        "face",
        encoder,
        optimizers,
        [config.face_learning_rate, 3e-3],
        config.face_steps,
        config.face_people,
        compute,
        evaluate,
    )
    run.pool = {}
    run.models["face_motion_encoder"] = encoder.requires_grad_(False)
    return done


# 3. The transformer


def train_transformer(run: KitRun) -> bool:
    """Trains transformer and pose encoder; autoencoder and face encoder rest."""
    config, vae, encoder = run.config, run.models["vae"], run.models["face_motion_encoder"]
    torch.manual_seed(config.seed + 2)
    transformer = run.start.get("transformer") or new_transformer(
        vae.config.z_dim,
        encoder.config.motion_dim,
        patch_size=config.patch,
        num_attention_heads=config.dim // config.head_dim,
        attention_head_dim=config.head_dim,
        num_layers=config.layers,
        ffn_dim=4 * config.dim,
    )
    pose_encoder = run.start.get("pose_encoder") or new_pose_encoder(64, vae.config.scale_factor_spatial)
    settings = ObjectiveConfig(shift=config.shift)
    module = DreamActorObjective(transformer, pose_encoder, encoder, settings).to(run.device)
    window = (config.num_frames - 1) // 4 + 1

    def make(numbers, scale, step):
        chance = torch.rand(2, generator=seed_step(config.seed + 1, step)).tolist()
        continued, crops = chance[0] < config.continued_share, chance[1] < config.crop_share
        return prepare(run, run.generator, numbers, scale, window, continued, crops)

    def compute(module, step, generator):
        batch = run.batch("transformer", step, make, config.batch)
        result = module(batch, generator)
        return result["loss"], {"mse": result["mse"]}

    shown = {}

    def evaluate():
        return evaluate_transformer(run, module, window, shown)

    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizers = make_optimizers(config.optimizer, module, trained, config.learning_rate, 0.01)
    rates = [config.learning_rate] * len(optimizers)
    done = run.train("transformer", module, optimizers, rates, config.steps, config.batch, compute, evaluate)
    run.models |= {"pose_encoder": pose_encoder, "transformer": transformer}
    return done


@torch.no_grad()
def prepare(
    run: KitRun,
    generator: ClipGenerator,
    numbers: torch.Tensor,
    scale: str,
    window: int,
    continued: bool = False,
    crops: bool = True,
    expression: int = 0,
) -> dict[str, torch.Tensor]:
    """
    Clips as `DreamActorObjective` takes them; held-out ones with their `video`, regions as `pixels` and
    `reference_pixels`.

    Args:
        window (`int`): latent frames. continued (`bool`): begin after the clip's first latent frame.
    """
    start = 4 if continued else 0
    clips = generator.clips(numbers, scale, 4 * (window - 1) + 1 + start, crops, expression)
    vae = run.models["vae"]
    with run.autocast():
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
        "continued": torch.full((len(numbers),), continued, device=run.device),
        "face_weight": clips["face_weight"][:, start:],
    }
    if crops:
        batch["face"] = clips["face"][:, start:]
    else:
        batch["motion_tokens"] = run.tokens(clips["actions"][:, start:].cpu()).to(run.device)
    if generator.held_out:
        batch |= {"video": clips["video"], "pixels": clips["regions"], "reference_pixels": clips["references"]}
    return batch


def evaluate_transformer(
    run: KitRun, objective: DreamActorObjective, window: int, shown: dict[str, dict]
) -> dict[str, float]:
    """
    PSNR of held-out people in held-out motions: with the right guidance, with the poses of another clip, with the face of
    another clip, and of the reference, standing still; portraits and full bodies. The clips are kept in `shown`.
    """
    totals: dict[str, list[float]] = {}
    for scale, number in (("portrait", 2), ("full_body", 1)):
        if scale not in shown:
            numbers = torch.arange(max(2, number * run.config.evaluation_clips // 3))
            shown[scale] = prepare(run, run.held_out, numbers, scale, window)
        batch = shown[scale]
        rows = {
            "right": sample(run, objective, batch),
            "pose_of_another": sample(run, objective, batch | {"maps": batch["maps"].roll(1, 0)}),
            "face_of_another": sample(run, objective, batch | {"face": batch["face"].roll(1, 0)}),
            "ceiling": batch["latents"],
        }
        with torch.no_grad(), run.autocast():
            videos = {row: run.models["vae"].decode_video(latents).float() for row, latents in rows.items()}
        videos["frozen"] = batch["reference_pixels"][:, :, :1].expand_as(batch["video"])
        for row, video in videos.items():
            psnr = region_psnr(video, {"video": batch["video"], "regions": batch["pixels"]})
            for region, value in psnr.items():
                if region in ("all", "person") or row in ("right", "face_of_another"):
                    totals.setdefault(f"{scale}_{row}_{region}", []).append(value)
    return {name: sum(values) / len(values) for name, values in totals.items()}


@torch.no_grad()
def sample(run: KitRun, objective: DreamActorObjective, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Latents `(B, C, T, h, w)` of a batch's conditions with its first reference, from seeded noise."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=run.config.shift)
    scheduler.set_timesteps(run.config.num_inference_steps)
    noise = torch.randn(batch["latents"].shape, generator=torch.Generator().manual_seed(0))
    latents = noise.to(run.device)
    with run.autocast():
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
                timestep=timestep.to(run.device).expand(len(latents)),
                return_dict=False,
                **conditions,
            )[0]
            latents = scheduler.step(prediction.float(), timestep, latents, return_dict=False)[0]
    return latents


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
