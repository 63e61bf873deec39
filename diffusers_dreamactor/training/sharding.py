"""Training with sharded weights (FSDP2), through `accelerate`: what it leaves to the training script."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed.checkpoint as distributed_checkpoint
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from diffusers.training_utils import EMAModel
from torch import nn
from torch.distributed.fsdp import FSDPModule

from ..pipelines.pipeline_dreamactor import DreamActorPipeline
from .objective import DreamActorObjective


def check_sharding(plugin: FullyShardedDataParallelPlugin, optimizer: str) -> None:
    """
    Checks what `accelerate` was configured for, before anything is prepared, and has weights gathered in float32.

    `accelerate` would compute in the low precision of the gathered weights and round rotary tables and latents to it;
    with weights in float32 and autocast around the forward pass a sharded run computes what a DDP run computes.

    Raises:
        ValueError: FSDP of version 1, or an optimizer that is not sharded.
        ImportError: PyTorch is too old.
    """
    if plugin.fsdp_version != 2:
        raise ValueError(f"`fsdp_version` is {plugin.fsdp_version}, but has to be 2.")
    if optimizer != "adamw":
        # accelerate keeps one optimizer for each sharded model in a checkpoint
        raise ValueError(f"`optimizer` is {optimizer!r}, but has to be adamw with FSDP2.")
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise ImportError(f"FSDP2 training needs PyTorch 2.13 or newer, but {torch.__version__} is installed.")
    plugin.mixed_precision_policy = None


def finish_sharding(accelerator: Accelerator, objective: FSDPModule, ema: EMAModel) -> None:
    """
    Completes a prepared objective for training: processes may leave out different conditions, and averaged weights,
    sharded like the weights, are part of checkpoints (`accelerate` would keep the main process's share alone).
    """
    # A process that draws no face has no gradients there, but takes part in the sum all the same. Where none draws one,
    # the sum is zero, and AdamW goes on by its momentum, while DDP leaves the weights alone.
    objective.set_reduce_scatter_unused_params(True)

    def state() -> dict:
        weights = {str(index): weight for index, weight in enumerate(ema.shadow_params)}
        return {"shadow_params": weights, "optimization_step": ema.optimization_step}

    def save(models: list[nn.Module], weights: list, folder: str) -> None:
        distributed_checkpoint.save(state(), checkpoint_id=Path(folder) / "ema")

    def load(models: list[nn.Module], folder: str) -> None:
        loaded = state()
        # tensors are read in place
        distributed_checkpoint.load(loaded, checkpoint_id=Path(folder) / "ema")
        ema.optimization_step = loaded["optimization_step"]

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def gather_pipeline(
    accelerator: Accelerator, objective: nn.Module, pipe: DreamActorPipeline, model: str
) -> DreamActorPipeline:
    """
    A pipeline with whole weights, to save or to render with; called by all processes.

    Args:
        objective: prepared; made of models of `pipe`.
        pipe (`DreamActorPipeline`): whose models are trained.
        model (`str`): the repository `pipe` was loaded from.

    Returns:
        `pipe` itself where weights are not sharded. Otherwise, on the main process, a copy with the gathered weights;
        on the others `pipe`, which cannot be used outside of training.
    """
    if not isinstance(objective, FSDPModule):
        return pipe
    weights = accelerator.get_state_dict(objective)
    if not accelerator.is_main_process:
        return pipe
    whole = DreamActorPipeline.from_pretrained(model, dtype=torch.float32)
    DreamActorObjective(
        whole.transformer,
        whole.pose_encoder,
        whole.face_motion_encoder,
        objective.config,
        whole.audio_motion_encoder,
    ).load_state_dict(weights)
    return whole
