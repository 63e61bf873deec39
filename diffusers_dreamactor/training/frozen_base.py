"""The weights that rest while an adapter learns: how they are stored, and what they take."""

from __future__ import annotations

import importlib.util
import resource
import sys

import torch
from diffusers import BitsAndBytesConfig, PipelineQuantizationConfig, TorchAoConfig
from torch import nn

from ..pipelines.animation_pipeline import AnimationPipeline


BASES = ("fp32", "bf16", "int8", "nf4")
_PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}
# A hundredth of the weights, whose errors reach every token.
_NOT_QUANTISED = ["condition_embedder", "face_encoder", "proj_out"]
_UNUSED = ("vae", "image_encoder", "image_processor", "text_encoder", "tokenizer", "audio_encoder", "capture")


def load_frozen_base(model: str, base: str, device: torch.device) -> AnimationPipeline:
    """
    A pipeline to train an adapter on: the transformer frozen and stored as `base` says, everything else in float32, and
    what training does not need left out.

    Args:
        model (`str`): a repository that `DreamActorPipeline.from_pretrained` loads.
        base (`str`): `"fp32"`, `"bf16"`, `"int8"` (torchao, one scale for each output) or `"nf4"` (bitsandbytes, four bits
            in blocks of 64, the scales quantised again, as QLoRA has it); int8 and nf4 compute in bfloat16.
        device (`torch.device`): quantised weights are put there while they are read. The others stay where they are.

    Raises:
        ImportError: the package that quantises is not installed.
        RuntimeError: `base` is nf4, and there is no GPU.
        ValueError: an unknown `base`.
    """
    if base not in BASES:
        raise ValueError(f"`base` is {base!r}, but has to be one of {', '.join(BASES)}.")
    package = _PACKAGES.get(base)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ImportError(
            f"`base` is {base!r}, which needs {package}, but it is not installed: pip install {package}."
        )
    arguments = dict.fromkeys(_UNUSED)
    dtype = torch.float32 if base == "fp32" else torch.bfloat16
    if base == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=_NOT_QUANTISED)
    elif base == "nf4":
        if device.type == "cpu":
            raise RuntimeError("`base` is 'nf4', which needs a GPU, but training runs on the CPU: take int8 or bf16.")
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=_NOT_QUANTISED,
        )
    if package is not None:
        arguments["quantization_config"] = PipelineQuantizationConfig(quant_mapping={"transformer": config})
        if device.type != "cpu":
            # by its kind, which pipelines take; the accelerator has made this process's device the current one
            arguments["device_map"] = device.type
    pipe = AnimationPipeline.from_pretrained(
        model, dtype={"transformer": dtype, "default": torch.float32}, **arguments
    )
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.requires_grad_(False)
    return pipe


def stored_bytes(tensor: torch.Tensor) -> int:
    """What a tensor takes, quantised ones with their scales."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(stored_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    state = getattr(tensor, "quant_state", None)
    return tensor.numel() * tensor.element_size() + (0 if state is None else state.absmax.nbytes)


def describe_memory(objective: nn.Module, base: str, device: torch.device) -> str:
    """
    One line: what the frozen weights take, and what learns, with its gradients and AdamW's two moments; on a GPU also what
    is taken of it.

    Args:
        objective (`nn.Module`): with all models of the training.
        base (`str`): how the transformer is stored, for the line.
        device (`torch.device`): of the training.
    """
    learning = sum(stored_bytes(parameter) for parameter in objective.parameters() if parameter.requires_grad)
    total = sum(stored_bytes(tensor) for tensor in [*objective.parameters(), *objective.buffers()])
    line = (
        f"memory: {(total - learning) / 2**30:.2f} GiB of frozen weights ({base}), {4 * learning / 2**30:.2f} GiB of the"
        " adapter with gradients and AdamW's moments"
    )
    if device.type == "cuda":
        free, capacity = torch.cuda.mem_get_info(device)
        line += f"; {(capacity - free) / 2**30:.1f} of {capacity / 2**30:.1f} GiB of {device} are taken"
    return line


def describe_peak(device: torch.device) -> str:
    """One line: the most that has been taken so far, on a GPU, or of the process's memory."""
    if device.type == "cuda":
        return f"memory: {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB of {device} at most"
    # in bytes on macOS, in KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"memory: {peak / 2**30:.2f} GiB at most"
