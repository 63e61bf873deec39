"""
Train a small DreamActorVAE from scratch, or go on with one, on a folder of clips.

    accelerate launch train_vae.py --data data/train --output vae --max_train_steps 2000

Train at the length the model is used at: a causal video autoencoder that has only seen short clips decays on long ones.

With `--teacher linear` (for small models and small budgets) the latents are principal components: the encoder learns to
give them, the decoder to read them, which takes minutes where training end to end takes hours. `--train decoder` then
goes on with the decoder alone on the encoder's own, slightly noisy latents, which leaves cached latents valid.
"""

from __future__ import annotations

import argparse
import collections
import math
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from diffusers_dreamactor.models.autoencoder_dreamactor import DreamActorVAE
from diffusers_dreamactor.training.buckets import BucketBatchSampler
from diffusers_dreamactor.training.checkpointing import (
    TrainingProgress,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    seed_step,
)
from diffusers_dreamactor.training.linear_code import LinearCode, change_code
from diffusers_dreamactor.training.optimizers import conv_optimizers
from diffusers_dreamactor.training.reconstruction import (
    Reconstruction,
    code_loss,
    measure_latents,
    new_vae,
    reconstruction_loss,
)
from diffusers_dreamactor.training.video_crops import VideoCropDataset


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", required=True, help="folder of clips (see VideoCropDataset)")
    parser.add_argument("--output", required=True, help="folder of the run; the result is saved in it as `vae`")
    parser.add_argument("--vae", help="a saved DreamActorVAE to go on with; otherwise a new one is made")
    parser.add_argument("--base_dim", type=int, default=16)
    parser.add_argument("--decoder_base_dim", type=int, default=16)
    parser.add_argument("--dim_mult", type=int, nargs=3, default=[1, 4, 4])
    parser.add_argument("--z_dim", type=int, default=16)
    parser.add_argument("--patch_size", type=int, default=2)
    parser.add_argument("--num_frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=32, help="height and width of the crops")
    parser.add_argument("--batch_size", type=int, default=12)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "muon"))
    parser.add_argument("--warmup_steps", type=int, default=50)
    parser.add_argument("--max_train_steps", type=int, required=True)
    parser.add_argument("--latent_noise", type=float, default=0.05, help="noise on latents, in latent units")
    parser.add_argument(
        "--region_weights",
        type=float,
        nargs=4,
        default=[1.0, 1.0, 1.5, 3.0],
        help="what background, body, head, and eyes and mouth of rendered clips count",
    )
    parser.add_argument("--kl_weight", type=float, default=1e-3, help="pulls latents to unit variance and zero mean")
    parser.add_argument("--train", default="both", choices=("both", "encoder", "decoder"))
    parser.add_argument("--teacher", choices=("linear",), help="learn the code of a LinearCode instead of finding one")
    parser.add_argument(
        "--vae_code", help="the LinearCode of --vae, where it is not this run's: the autoencoder is re-expressed"
    )
    parser.add_argument("--teacher_clips", type=int, default=150, help="clips that the teacher is fitted to")
    parser.add_argument("--checkpointing_steps", type=int, default=200)
    parser.add_argument("--resume", default="latest", help="`latest`, a checkpoint's name, or `no`")
    parser.add_argument("--mixed_precision", default="bf16", choices=("no", "bf16"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    if arguments.vae_code and not (arguments.vae and arguments.teacher):
        parser.error("--vae_code needs --vae, which it describes, and --teacher, whose code is learned instead")
    if arguments.train == "encoder" and not arguments.teacher:
        parser.error("--train encoder needs --teacher: without the decoder nothing else says what latents shall be")
    return arguments


def fit_teacher(arguments: argparse.Namespace, dataset: VideoCropDataset, output: Path) -> LinearCode:
    """The run's teacher, fitted once and kept in its folder."""
    path = output / "linear_code.safetensors"
    if not path.exists():
        output.mkdir(parents=True, exist_ok=True)
        picks = [index * len(dataset) // arguments.teacher_clips for index in range(arguments.teacher_clips)]
        items = (dataset[pick, pick] for pick in picks)
        LinearCode.fit(((item["video"][None], item["weight"][None]) for item in items), arguments.z_dim).save(path)
    return LinearCode.load(path)


def main() -> None:
    arguments = parse_arguments()
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision, cpu=arguments.cpu)
    output = Path(arguments.output)
    torch.manual_seed(arguments.seed)

    dataset = VideoCropDataset(arguments.data, arguments.num_frames, arguments.size, tuple(arguments.region_weights))
    teacher = fit_teacher(arguments, dataset, output) if arguments.teacher else None
    names = ("base_dim", "decoder_base_dim", "z_dim", "patch_size", "dim_mult")
    sizes = {name: getattr(arguments, name) for name in names}
    vae = DreamActorVAE.from_pretrained(arguments.vae) if arguments.vae else new_vae(**sizes)
    if arguments.vae_code:
        vae = change_code(vae, LinearCode.load(arguments.vae_code), teacher)
    if teacher is not None:
        teacher = teacher.to(accelerator.device)
    for module in (vae.encoder, vae.quant_conv):
        module.requires_grad_(arguments.train != "decoder")
    for module in (vae.decoder, vae.post_quant_conv):
        module.requires_grad_(arguments.train != "encoder")
    model = Reconstruction(vae, arguments.train, arguments.latent_noise, teacher)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizers = conv_optimizers(arguments.optimizer, parameters, arguments.learning_rate)

    def learning_rate(step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, arguments.warmup_steps))
        return warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / arguments.max_train_steps))))

    progress = TrainingProgress()
    model, *optimizers = accelerator.prepare(model, *optimizers)
    accelerator.register_for_checkpointing(progress)
    load_checkpoint(accelerator, output, arguments.resume)
    sampler = BucketBatchSampler(
        [0] * len(dataset),
        arguments.batch_size,
        arguments.seed,
        progress.step,
        accelerator.process_index,
        accelerator.num_processes,
    )
    batches = iter(DataLoader(dataset, batch_sampler=sampler))

    started, first_step = time.monotonic(), progress.step
    recent = {}
    while progress.step < arguments.max_train_steps:
        batch = next(batches)
        video, weight = (batch[name].to(accelerator.device) for name in ("video", "weight"))
        generator = seed_step(arguments.seed, progress.step, accelerator.process_index)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = arguments.learning_rate * learning_rate(progress.step)
        decoded, latents, target = model(video, generator)
        loss, shown = torch.zeros((), device=video.device), {}
        if decoded is not None:
            part, mse = reconstruction_loss(decoded, video, weight)
            loss, shown["mse"] = loss + part, mse.item()
        if arguments.train != "decoder":
            part, unexplained = code_loss(latents, target, teacher, arguments.kl_weight)
            loss = loss + part
            if unexplained is not None:
                shown["unexplained"] = unexplained.item()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        progress.step += 1
        for name, value in shown.items():
            recent.setdefault(name, collections.deque(maxlen=20)).append(value)
        if progress.step % 20 == 0 and accelerator.is_main_process:
            seconds = (time.monotonic() - started) / (progress.step - first_step)
            means = {name: sum(values) / len(values) for name, values in recent.items()}
            report = " ".join(f"{name} {value:.4f}" for name, value in means.items())
            if "mse" in means:
                report += f" psnr {-10 * math.log10(means['mse'] / 4):.2f} dB"
            print(f"step {progress.step} {report} {seconds:.2f} s/step", flush=True)
        if progress.step % arguments.checkpointing_steps == 0:
            save_checkpoint(accelerator, output, progress.step, keep=1)

    vae = accelerator.unwrap_model(model).vae
    if accelerator.is_main_process:
        if arguments.train == "both" and teacher is None:
            picks = [index * len(dataset) // min(64, len(dataset)) for index in range(min(64, len(dataset)))]
            measure_latents(vae, (dataset[pick, number]["video"][None] for number, pick in enumerate(picks)))
        vae.save_pretrained(output / "vae")
        if not list_checkpoints(output):
            print(f"{output}/vae is saved; the run was too short for a checkpoint.", flush=True)
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main()
    except OSError as error:  # a folder, file or id that is not there
        raise SystemExit(f"train_vae.py: {' '.join(str(error).split())}") from error
