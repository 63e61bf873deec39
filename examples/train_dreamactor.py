"""
Train a DreamActor on prepared clips, in the stages of the paper.

    python prepare_dataset.py --clips data/train --output cache/train --model base
    accelerate launch train_dreamactor.py --stage 1 --model base --data cache/train --output stage1 --max_train_steps 20000
    accelerate launch train_dreamactor.py --stage 2 --model stage1/model --data cache/train --output stage2 ...
    accelerate launch train_dreamactor.py --stage 3 --model stage2/model --data cache/train --output stage3 ...

`--model` is a repository that `DreamActorPipeline` loads: a converted Wan image-to-video model (conversion/), the result
of an earlier stage, or a small new one (examples/synthetic/new_model.py). Stage 1 learns from skeleton and sphere alone,
stage 2 trains only what has to do with the face, stage 3 trains everything. The result, `output/model`, is a repository
with the averaged weights.

`--stage audio` comes last: an `AudioMotionEncoder` learns, through the frozen transformer, to make face motion tokens of
speech. A repository gets what reads speech by (here Wav2Vec2, 768 features)

    pipe = DreamActorPipeline.from_pretrained("stage3/model", audio_motion_encoder=AudioMotionEncoder(feature_dim=768),
        audio_encoder=Wav2Vec2Model.from_pretrained(...), audio_feature_extractor=Wav2Vec2FeatureExtractor())
    pipe.save_pretrained("with_audio")

and its clips are videos with sound, prepared with `prepare_dataset.py --model with_audio`.

Stopped runs go on with `--resume latest` (the default): every number is then bit by bit what it would have been. Arguments
that are changed (more steps, another rate, other data) count from there on. Several
processes (DDP or FSDP2) are `accelerate`'s business: `accelerate config`, or, for weights sharded over eight GPUs,
`accelerate launch --config_file fsdp2.yaml` with

    distributed_type: FSDP
    num_machines: 1
    num_processes: 8
    fsdp_config:
      fsdp_version: 2
      fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
      # these alone: every process runs every block in every step, which is not so of the encoders' layers
      fsdp_transformer_layer_cls_to_wrap: DreamActorTransformerBlock
      fsdp_reshard_after_forward: true
      fsdp_state_dict_type: SHARDED_STATE_DICT

FSDP2 takes AdamW and computes what DDP computes, up to rounding.
"""

from __future__ import annotations

import argparse
import collections
import math
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, ProjectConfiguration
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader

from diffusers_dreamactor import DreamActorPipeline
from diffusers_dreamactor.training.accumulation import BatchLoss
from diffusers_dreamactor.training.buckets import BucketBatchSampler
from diffusers_dreamactor.training.checkpointing import TrainingProgress, load_checkpoint, save_checkpoint, seed_step
from diffusers_dreamactor.training.dataset import PreparedClipDataset, collate_clips, move_batch
from diffusers_dreamactor.training.objective import DreamActorObjective, ObjectiveConfig
from diffusers_dreamactor.training.optimizers import make_optimizers
from diffusers_dreamactor.training.sharding import check_sharding, finish_sharding, gather_pipeline
from diffusers_dreamactor.training.stages import STAGES, set_trainable
from diffusers_dreamactor.training.validation import find_validation_clips, render_validation


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a DreamActor repository to start from")
    parser.add_argument("--data", required=True, help="folder of prepared clips")
    parser.add_argument("--output", required=True, help="folder of the run")
    parser.add_argument("--stage", default="3", choices=sorted(STAGES))
    parser.add_argument(
        "--freeze", nargs="*", default=[], help="what rests, e.g. face_motion_encoder transformer.face_encoder"
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[5], help="window lengths, latent frames")
    parser.add_argument("--length_weights", type=float, nargs="+", help="how often each length is drawn")
    parser.add_argument("--start_probability", type=float, default=0.5, help="of windows at a clip's start")
    parser.add_argument("--in_memory", action="store_true", help="keep clips that were read")
    parser.add_argument(
        "--face", default="crops", choices=("crops", "motion_tokens"), help="what the face is read from"
    )
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--max_train_steps", type=int, required=True)
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "muon"))
    parser.add_argument("--learning_rate", type=float, default=5e-6, help="the paper's; 1e-3 from scratch")
    parser.add_argument("--weight_decay", type=float, default=0.01)
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--warmup_steps", type=int, default=100)
    parser.add_argument("--decay_steps", type=int, default=0, help="steps at the end in which the rate falls to zero")
    parser.add_argument("--ema_decay", type=float, default=0.9999)
    parser.add_argument("--shift", type=float, default=3.0)
    parser.add_argument("--logit_mean", type=float, default=0.0)
    parser.add_argument("--logit_std", type=float, default=1.0)
    parser.add_argument("--drop_motion", type=float, default=0.05)
    parser.add_argument("--drop_reference", type=float, default=0.05)
    parser.add_argument("--drop_all", type=float, default=0.05)
    parser.add_argument("--drop_face", type=float, default=0.05)
    parser.add_argument("--initial_latent", type=float, default=0.2)
    parser.add_argument("--max_references", type=int, default=3)
    parser.add_argument("--region_weights", type=float, nargs=3, default=[1.0, 2.0, 4.0])
    parser.add_argument("--channel_weights", type=float, nargs="+", help="loss weights of the latent channels")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--attention_backend", help="see Diffusers' attention backends")
    parser.add_argument("--mixed_precision", default="bf16", choices=("no", "bf16", "fp16"))
    parser.add_argument("--checkpointing_steps", type=int, default=500)
    parser.add_argument("--checkpoints_kept", type=int, default=2)
    parser.add_argument("--resume", default="latest", help="`latest`, a checkpoint's name, or `no`")
    parser.add_argument("--validation_clips", help="folder of rendered clips that are animated during training")
    parser.add_argument("--validation_steps", type=int, default=1000)
    parser.add_argument("--validation_count", type=int, default=4)
    parser.add_argument("--logging_steps", type=int, default=10)
    parser.add_argument("--tensorboard", action="store_true")
    parser.add_argument("--workers", type=int, default=0, help="processes that read clips")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", action="store_true")
    return parser.parse_args()


def learning_rate_factor(step: int, arguments: argparse.Namespace) -> float:
    """Warm-up, constant, and, if asked for, a fall to zero in the last `decay_steps`."""
    warm = min(1.0, (step + 1) / max(1, arguments.warmup_steps))
    if not arguments.decay_steps:
        return warm
    return warm * min(1.0, max(0.0, (arguments.max_train_steps - step) / arguments.decay_steps))


def main() -> None:
    arguments = parse_arguments()
    output = Path(arguments.output)
    accelerator = Accelerator(
        mixed_precision=arguments.mixed_precision,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        log_with="tensorboard" if arguments.tensorboard else None,
        project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output / "logs")),
        cpu=arguments.cpu,
        step_scheduler_with_optimizer=False,
        # what a batch is not given (face, references) leaves weights without gradients
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if sharded:
        check_sharding(accelerator.state.fsdp_plugin, arguments.optimizer)
    torch.manual_seed(arguments.seed)

    if arguments.validation_clips and not find_validation_clips(arguments.validation_clips):
        raise ValueError(f"`validation_clips` {arguments.validation_clips} holds no rendered clips.")

    # 1. Models
    pipe = DreamActorPipeline.from_pretrained(arguments.model, dtype=torch.float32)
    transformer = pipe.transformer
    names = ("pose_encoder", "face_motion_encoder", "audio_motion_encoder")
    components = {name: getattr(pipe, name) for name in names if getattr(pipe, name) is not None}
    parameters = set_trainable(arguments.stage, transformer, components, tuple(arguments.freeze))
    if arguments.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if arguments.attention_backend:
        transformer.set_attention_backend(arguments.attention_backend)
    fields = ("stage", "shift", "logit_mean", "logit_std", "drop_motion", "drop_reference", "drop_all", "drop_face")
    fields += ("initial_latent", "max_references", "region_weights", "channel_weights")
    config = ObjectiveConfig(**{name: getattr(arguments, name) for name in fields})
    objective = DreamActorObjective.from_pipeline(pipe, config)
    objective.train()

    # 2. Optimizers and averaged weights
    optimizers = make_optimizers(
        arguments.optimizer, objective, parameters, arguments.learning_rate, arguments.weight_decay
    )
    objective, *optimizers = accelerator.prepare(objective, *optimizers)
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    ema = EMAModel(parameters, decay=arguments.ema_decay, use_ema_warmup=True, power=3 / 4)
    progress = TrainingProgress()
    if sharded:
        finish_sharding(accelerator, objective, ema)
        accelerator.register_for_checkpointing(progress)
    else:
        accelerator.register_for_checkpointing(ema, progress)
    load_checkpoint(accelerator, output, arguments.resume)
    ema.to(accelerator.device)
    # what is asked for now counts, also where the run began with something else
    ema.decay = arguments.ema_decay
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["weight_decay"] = arguments.weight_decay

    # 3. Data: what a step sees follows from its number
    dataset = PreparedClipDataset(
        arguments.data,
        tuple(arguments.lengths),
        tuple(arguments.length_weights) if arguments.length_weights else None,
        arguments.start_probability,
        arguments.in_memory,
        "audio" if STAGES[arguments.stage].face == "audio" else arguments.face,
    )
    accumulation = arguments.gradient_accumulation_steps
    sampler = BucketBatchSampler(
        dataset.keys,
        arguments.batch_size,
        arguments.seed,
        progress.step,
        accelerator.process_index,
        accelerator.num_processes,
        dataset.weights,
        accumulation,
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
        trained = sum(parameter.numel() for parameter in parameters)
        total = sum(parameter.numel() for parameter in objective.parameters())
        print(
            f"stage {arguments.stage}: training {trained / 1e6:.2f} of {total / 1e6:.2f} M parameters on {len(dataset)} windows",
            flush=True,
        )
    if arguments.tensorboard:
        accelerator.init_trackers("dreamactor")

    # 4. Training
    recent = collections.deque(maxlen=50)
    started, first_step = time.monotonic(), progress.step
    while progress.step < arguments.max_train_steps:
        factor = learning_rate_factor(progress.step, arguments)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = arguments.learning_rate * factor
        batch_loss = BatchLoss(accelerator)
        for _ in range(accumulation):
            batch = move_batch(next(batches), accelerator.device)
            # what is random about a batch as a whole is the same for all of its micro-batches
            generator = seed_step(arguments.seed, progress.step, accelerator.process_index)
            with accelerator.accumulate(objective):
                # prepared objectives compute in mixed precision on their own, but not sharded ones
                with accelerator.autocast():
                    result = objective(batch, generator)
                batch_loss.backward(result, batch["latents"][:, 0].numel())
                if accelerator.sync_gradients:
                    batch_loss.normalize_gradients(parameters)
                    accelerator.clip_grad_norm_(parameters, arguments.max_grad_norm)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
        ema.step(parameters)
        progress.step += 1
        recent.append(batch_loss.logs())

        # 5. Logs, checkpoints, validation
        if progress.step % arguments.logging_steps == 0 and accelerator.is_main_process:
            loss, mse = torch.stack(list(recent)).mean(dim=0).tolist()
            seconds = (time.monotonic() - started) / (progress.step - first_step)
            accelerator.log({"loss": loss, "mse": mse, "lr_factor": factor}, step=progress.step)
            print(
                f"step {progress.step} loss {loss:.4f} mse {mse:.4f} now {recent[-1][0].item():.6f} {seconds:.2f} s/step",
                flush=True,
            )
        if progress.step % arguments.checkpointing_steps == 0:
            save_checkpoint(accelerator, output, progress.step, arguments.checkpoints_kept)
        if arguments.validation_clips and progress.step % arguments.validation_steps == 0:
            validate(accelerator, pipe, objective, parameters, ema, output, progress.step, arguments)

    # 6. Result: a repository with the averaged weights
    accelerator.wait_for_everyone()
    ema.store(parameters)
    ema.copy_to(parameters)
    averaged = gather_pipeline(accelerator, objective, pipe, arguments.model)
    if accelerator.is_main_process:
        averaged.save_pretrained(output / "model")
    ema.restore(parameters)
    accelerator.end_training()


def validate(accelerator, pipe, objective, parameters, ema, output: Path, step: int, arguments) -> None:
    """Animate the validation clips with the averaged weights; writes MP4s (truth beside result) and logs the PSNR."""
    ema.store(parameters)
    ema.copy_to(parameters)
    averaged = gather_pipeline(accelerator, objective, pipe, arguments.model)
    if accelerator.is_main_process:
        objective.eval()
        folder = output / "validation" / f"step-{step:06d}"
        averaged.to(accelerator.device)
        errors = render_validation(averaged, arguments.validation_clips, folder, arguments.validation_count)
        psnr = -10 * math.log10(sum(errors) / len(errors))
        accelerator.log({"validation_psnr": psnr}, step=step)
        print(f"step {step} validation psnr {psnr:.2f} dB, videos in {folder}", flush=True)
        objective.train()
    ema.restore(parameters)
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    try:
        main()
    except OSError as error:  # a folder, file or id that is not there
        raise SystemExit(f"train_dreamactor.py: {' '.join(str(error).split())}") from error
