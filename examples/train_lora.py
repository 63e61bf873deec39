"""
Train a LoRA of a character or a style on a few prepared clips; a single GPU (or a CPU with DreamActor-Tiny) is enough.

    python prepare_dataset.py --clips my_character --output cache/my_character --model path/or/hub-id
    accelerate launch train_lora.py --model path/or/hub-id --data cache/my_character --output lora --max_train_steps 500

Writes `output/pytorch_lora_weights.safetensors`, which `pipe.load_lora_weights(output)` reads. Stopped runs go on with
`--resume latest` (the default).
"""

from __future__ import annotations

import argparse
import collections
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from diffusers_dreamactor import DreamActorPipeline
from diffusers_dreamactor.checkpoints import bundled_model
from diffusers_dreamactor.training.buckets import BucketBatchSampler
from diffusers_dreamactor.training.checkpointing import TrainingProgress, load_checkpoint, save_checkpoint, seed_step
from diffusers_dreamactor.training.dataset import PreparedClipDataset, collate_clips
from diffusers_dreamactor.training.objective import DreamActorObjective, ObjectiveConfig


DEFAULT_TARGETS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ffn.net.0.proj", "ffn.net.2")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default=bundled_model(), help="a DreamActor repository")
    parser.add_argument("--data", required=True, help="folder of prepared clips")
    parser.add_argument("--output", required=True)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=float, help="the rank by default")
    parser.add_argument("--target_modules", nargs="+", default=list(DEFAULT_TARGETS))
    parser.add_argument("--lengths", type=int, nargs="+", default=[5], help="window lengths, latent frames")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--max_train_steps", type=int, default=500)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--weight_decay", type=float, default=0.0)
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--shift", type=float, default=3.0)
    parser.add_argument("--region_weights", type=float, nargs=3, default=[1.0, 1.0, 1.0])
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--mixed_precision", default="bf16", choices=("no", "bf16", "fp16"))
    parser.add_argument("--checkpointing_steps", type=int, default=250)
    parser.add_argument("--resume", default="latest", help="`latest`, a checkpoint's name, or `no`")
    parser.add_argument("--logging_steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    if arguments.model is None:
        parser.error("--model is needed: this installation has no bundled DreamActor-Tiny")
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


def main() -> None:
    arguments = parse_arguments()
    output = Path(arguments.output)
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision, cpu=arguments.cpu)
    torch.manual_seed(arguments.seed)

    # 1. The model rests; only the adapter learns
    pipe = DreamActorPipeline.from_pretrained(arguments.model, dtype=torch.float32)
    config = ObjectiveConfig(
        shift=arguments.shift,
        region_weights=tuple(arguments.region_weights),
        drop_motion=0.0,
        drop_reference=0.0,
        drop_all=0.0,
        drop_face=0.0,
    )
    objective = DreamActorObjective.from_pipeline(pipe, config)
    objective.requires_grad_(False)
    transformer = pipe.transformer
    adapter = LoraConfig(
        r=arguments.rank,
        lora_alpha=arguments.alpha or arguments.rank,
        init_lora_weights="gaussian",
        target_modules=list(arguments.target_modules),
    )
    transformer.add_adapter(adapter)
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
    dataset = PreparedClipDataset(arguments.data, tuple(arguments.lengths), in_memory=True)
    sampler = BucketBatchSampler(
        dataset.keys,
        arguments.batch_size,
        arguments.seed,
        progress.step,
        accelerator.process_index,
        accelerator.num_processes,
    )
    batches = iter(DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_clips))
    if accelerator.is_main_process:
        count = sum(parameter.numel() for parameter in parameters)
        print(f"training {count / 1e6:.3f} M parameters on {len(dataset)} windows", flush=True)

    # 3. Training
    recent, started, first_step = collections.deque(maxlen=50), time.monotonic(), progress.step
    while progress.step < arguments.max_train_steps:
        batch = {name: value.to(accelerator.device) for name, value in next(batches).items()}
        generator = seed_step(arguments.seed, progress.step, accelerator.process_index)
        result = objective(batch, generator)
        accelerator.backward(result["loss"])
        accelerator.clip_grad_norm_(parameters, arguments.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        progress.step += 1
        recent.append(result["loss"].item())
        if progress.step % arguments.logging_steps == 0 and accelerator.is_main_process:
            seconds = (time.monotonic() - started) / (progress.step - first_step)
            print(f"step {progress.step} loss {sum(recent) / len(recent):.4f} {seconds:.2f} s/step", flush=True)
        if progress.step % arguments.checkpointing_steps == 0:
            save_checkpoint(accelerator, output, progress.step)

    # 4. Result
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        transformer = accelerator.unwrap_model(objective).transformer
        # the adapter's config says its alpha, which the weights do not
        DreamActorPipeline.save_lora_weights(
            output,
            transformer_lora_layers=get_peft_model_state_dict(transformer),
            transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
        )
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main()
    except OSError as error:  # a folder, file or id that is not there
        raise SystemExit(f"train_lora.py: {' '.join(str(error).split())}") from error
