"""
Train a LoRA of a character or a style on a few prepared clips; one GPU (or a CPU with DreamActor-Tiny) is enough.

    python prepare_dataset.py --clips my_character --output cache/my_character --model path/or/hub-id
    accelerate launch train_lora.py --model path/or/hub-id --data cache/my_character --output lora --max_train_steps 500

`--model` is a DreamActor repository, also a starting point of `dreamactor convert wan-i2v`, or one with Wan-Animate's
weights, such as Wan-AI/Wan2.2-Animate-14B-Diffusers, which is taken as it is. `--base int8` or `nf4` stores the weights that
rest in a half or a quarter of bfloat16's memory; see examples/training/README.md for what fits which card.

Writes `output/pytorch_lora_weights.safetensors`, which `pipe.load_lora_weights(output)` reads; a LoRA on Wan-Animate's weights
is read by Diffusers' `WanAnimatePipeline`, too, and `--export comfyui` writes it in ComfyUI's naming beside. Stopped runs go on
with `--resume latest` (the default).
"""

from __future__ import annotations

import argparse
import collections
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from diffusers_dreamactor import DreamActorPipeline, DreamActorWanAnimatePipeline
from diffusers_dreamactor.checkpoints import bundled_model
from diffusers_dreamactor.files import errors_naming, give_usual_permissions
from diffusers_dreamactor.loaders.lora_conversion import LORA_NAMINGS, convert_lora_from_dreamactor
from diffusers_dreamactor.training.accumulation import BatchLoss
from diffusers_dreamactor.training.buckets import BucketBatchSampler
from diffusers_dreamactor.training.checkpointing import TrainingProgress, load_checkpoint, save_checkpoint, seed_step
from diffusers_dreamactor.training.dataset import PreparedClipDataset, collate_clips, move_batch
from diffusers_dreamactor.training.frozen_base import BASES, describe_memory, describe_peak, load_frozen_base
from diffusers_dreamactor.training.objective import DreamActorObjective, ObjectiveConfig
from diffusers_dreamactor.training.segments import SegmentDataset
from diffusers_dreamactor.training.wan_animate_objective import WanAnimateObjective, WanAnimateObjectiveConfig


DEFAULT_TARGETS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ffn.net.0.proj", "ffn.net.2")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default=bundled_model(), help="a repository that DreamActorPipeline loads")
    parser.add_argument("--data", required=True, help="folder of clips, prepared with --model")
    parser.add_argument("--output", required=True)
    parser.add_argument(
        "--base", choices=BASES, help="how the frozen transformer is stored; bf16, or fp32 where nothing is mixed"
    )
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=float, help="the rank by default")
    parser.add_argument(
        "--target_modules", nargs="+", default=list(DEFAULT_TARGETS), help="ends of the adapted modules' names"
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[5], help="window lengths, latent frames")
    parser.add_argument(
        "--start_probability", type=float, default=0.5, help="of windows that start a video; others go on from a frame"
    )
    parser.add_argument("--in_memory", action="store_true", help="keep clips that were read")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--max_train_steps", type=int, default=500)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--weight_decay", type=float, default=0.0)
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--shift", type=float, help="of the noise levels; 5 for Wan-Animate's weights, 3 for others")
    parser.add_argument("--drop_face", type=float, help="how often no face is given; 0.1 for Wan-Animate's weights, 0")
    parser.add_argument("--region_weights", type=float, nargs=3, default=[1.0, 1.0, 1.0])
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--mixed_precision", default="bf16", choices=("no", "bf16", "fp16"))
    parser.add_argument("--checkpointing_steps", type=int, default=250)
    parser.add_argument("--resume", default="latest", help="`latest`, a checkpoint's name, or `no`")
    parser.add_argument("--logging_steps", type=int, default=10)
    parser.add_argument(
        "--export", nargs="*", default=[], choices=LORA_NAMINGS[1:], help="write the LoRA in these namings, too"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that read clips")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    if arguments.model is None:
        parser.error("--model is needed: this installation has no bundled DreamActor-Tiny")
    mixes = arguments.mixed_precision != "no"
    arguments.base = arguments.base or ("bf16" if mixes else "fp32")
    if not mixes and arguments.base != "fp32":
        parser.error(f"--base {arguments.base} computes in mixed precision, but --mixed_precision is no")
    return arguments


def checkpoint_adapter_alone(accelerator: Accelerator, transformer: torch.nn.Module) -> None:
    """Has checkpoints hold the adapter, and not the model that rests."""

    def save(models: list, weights: list, folder: str) -> None:
        weights.clear()
        if accelerator.is_main_process:
            save_file(get_peft_model_state_dict(transformer), Path(folder) / "adapter.safetensors")

    def load(models: list, folder: str) -> None:
        models.clear()
        set_peft_model_state_dict(transformer, load_file(Path(folder) / "adapter.safetensors"))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def make_objective(pipe, arguments: argparse.Namespace) -> torch.nn.Module:
    """The objective of the pipeline's kind."""
    shared = {"region_weights": tuple(arguments.region_weights)}
    if isinstance(pipe, DreamActorWanAnimatePipeline):
        shift = 5.0 if arguments.shift is None else arguments.shift
        drop_face = 0.1 if arguments.drop_face is None else arguments.drop_face
        config = WanAnimateObjectiveConfig(shift=shift, drop_face=drop_face, **shared)
        return WanAnimateObjective.from_pipeline(pipe, config)
    shift = 3.0 if arguments.shift is None else arguments.shift
    nothing = dict.fromkeys(("drop_motion", "drop_reference", "drop_all"), 0.0)
    config = ObjectiveConfig(shift=shift, drop_face=arguments.drop_face or 0.0, **nothing, **shared)
    return DreamActorObjective.from_pipeline(pipe, config)


def make_dataset(pipe, arguments: argparse.Namespace) -> SegmentDataset | PreparedClipDataset:
    """The clips of the pipeline's kind."""
    lengths = tuple(arguments.lengths)
    if isinstance(pipe, DreamActorWanAnimatePipeline):
        return SegmentDataset(arguments.data, lengths, 1 - arguments.start_probability, arguments.in_memory)
    return PreparedClipDataset(
        arguments.data,
        lengths,
        start_probability=arguments.start_probability,
        in_memory=arguments.in_memory,
    )


def export_lora(transformer: torch.nn.Module, naming: str) -> dict[str, torch.Tensor]:
    """The adapter in another naming, as strong without its alpha as it was trained with it."""
    config = transformer.peft_config["default"]
    scale = config.lora_alpha / config.r
    tensors = {
        f"transformer.{name}": (tensor * scale if ".lora_A." in name else tensor).detach().cpu()
        for name, tensor in get_peft_model_state_dict(transformer).items()
    }
    return convert_lora_from_dreamactor(tensors, naming, transformer.config.face_attention_interval)


def save_lora(transformer: torch.nn.Module, output: Path, for_diffusers: bool, namings: list[str]) -> None:
    """
    Writes `pytorch_lora_weights.safetensors`, and one file for each other naming.

    Args:
        transformer: with the adapter.
        output: the folder.
        for_diffusers: whether Diffusers has a pipeline of these weights, whose modules are then named; otherwise they have
            our names, and the adapter's config lies beside the weights.
        namings: of `LORA_NAMINGS`.
    """
    if for_diffusers:
        DreamActorPipeline.write_lora_layers(export_lora(transformer, "diffusers"), output, True, None, None, True)
    else:
        # the adapter's config says its alpha, which the weights do not
        DreamActorPipeline.save_lora_weights(
            output,
            transformer_lora_layers=get_peft_model_state_dict(transformer),
            transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
        )
    for naming in namings:
        path = output / f"pytorch_lora_weights_{naming}.safetensors"
        aside = path.with_name(f".{path.name}.part")
        with errors_naming(path):
            save_file(
                {name: tensor.contiguous() for name, tensor in export_lora(transformer, naming).items()},
                aside,
                metadata={"format": "pt"},
            )
            give_usual_permissions(aside)
            aside.replace(path)


def main() -> None:
    arguments = parse_arguments()
    output, accumulation = Path(arguments.output), arguments.gradient_accumulation_steps
    accelerator = Accelerator(
        mixed_precision=arguments.mixed_precision, gradient_accumulation_steps=accumulation, cpu=arguments.cpu
    )
    torch.manual_seed(arguments.seed)

    # 1. The model rests; only the adapter learns
    pipe = load_frozen_base(arguments.model, arguments.base, accelerator.device)
    objective = make_objective(pipe, arguments)
    dataset = make_dataset(pipe, arguments)
    transformer = pipe.transformer
    adapter = LoraConfig(
        r=arguments.rank,
        lora_alpha=arguments.alpha or arguments.rank,
        init_lora_weights="gaussian",
        target_modules=list(arguments.target_modules),
    )
    transformer.add_adapter(adapter)
    for_diffusers = isinstance(pipe, DreamActorWanAnimatePipeline)
    # a LoRA that cannot be named so is known before it is trained
    for naming in [*arguments.export, *["diffusers"] * for_diffusers]:
        export_lora(transformer, naming)
    cast_training_params(transformer, torch.float32)
    if arguments.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    parameters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    objective.train()
    optimizer = torch.optim.AdamW(
        parameters, lr=arguments.learning_rate, betas=(0.9, 0.99), weight_decay=arguments.weight_decay
    )
    objective, optimizer = accelerator.prepare(objective, optimizer)
    progress = TrainingProgress()
    accelerator.register_for_checkpointing(progress)
    checkpoint_adapter_alone(accelerator, transformer)
    load_checkpoint(accelerator, output, arguments.resume)
    # what is asked for now counts, also where the run began with something else
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = arguments.learning_rate, arguments.weight_decay

    # 2. Data
    sampler = BucketBatchSampler(
        dataset.keys,
        arguments.batch_size,
        arguments.seed,
        progress.step,
        accelerator.process_index,
        accelerator.num_processes,
        micro_batches=accumulation,
    )
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate_clips,
        num_workers=arguments.workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    batches = iter(loader)
    if accelerator.is_main_process:
        count = sum(parameter.numel() for parameter in parameters)
        print(f"training {count / 1e6:.3f} M parameters on {len(dataset)} windows", flush=True)
        print(describe_memory(objective, arguments.base, accelerator.device), flush=True)

    # 3. Training; the host waits for the device only where it logs
    recent, started, first_step = collections.deque(maxlen=50), time.monotonic(), progress.step
    while progress.step < arguments.max_train_steps:
        batch_loss = BatchLoss(accelerator)
        for _ in range(accumulation):
            batch = move_batch(next(batches), accelerator.device)
            generator = seed_step(arguments.seed, progress.step, accelerator.process_index)
            with accelerator.accumulate(objective):
                batch_loss.backward(objective(batch, generator), batch["latents"][:, 0].numel())
                if accelerator.sync_gradients:
                    batch_loss.normalize_gradients(parameters)
                    accelerator.clip_grad_norm_(parameters, arguments.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
        progress.step += 1
        recent.append(batch_loss.logs()[0])
        if progress.step % arguments.logging_steps == 0 and accelerator.is_main_process:
            seconds = (time.monotonic() - started) / (progress.step - first_step)
            loss = torch.stack(list(recent)).mean().item()
            print(f"step {progress.step} loss {loss:.4f} {seconds:.2f} s/step", flush=True)
            if progress.step - first_step <= arguments.logging_steps:
                print(describe_peak(accelerator.device), flush=True)
        if progress.step % arguments.checkpointing_steps == 0:
            save_checkpoint(accelerator, output, progress.step)

    # 4. Result
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        save_lora(transformer, output, for_diffusers, arguments.export)
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, ImportError) as error:  # what is not there, or does not fit
        raise SystemExit(f"train_lora.py: {' '.join(str(error).split())}") from error
