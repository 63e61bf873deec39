"""
LoRAs for Wan and Wan-Animate to DreamActor's naming, and back to that of other programs.

    python conversion/convert_lora.py --source wan_lora.safetensors --output dreamactor_lora.safetensors
    python conversion/convert_lora.py --source my_lora.safetensors --output for_comfyui.safetensors --to comfyui

Loading needs no conversion: `pipe.load_lora_weights(...)` reads every naming by itself. See conversion/README.md.
"""

import argparse
import os
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from diffusers_dreamactor.conversion.repository import empty_model, read_model_config
from diffusers_dreamactor.files import errors_naming, give_usual_permissions
from diffusers_dreamactor.loaders.lora_conversion import (
    LORA_NAMINGS,
    convert_lora_from_dreamactor,
    fit_lora_to_transformer,
)
from diffusers_dreamactor.loaders.lora_pipeline import DreamActorLoraLoaderMixin
from diffusers_dreamactor.loaders.shards import DTYPES, PICKLE_SUFFIXES
from diffusers_dreamactor.models.transformer_dreamactor import DreamActorTransformer3DModel


PREFIX = "transformer."
WAN_ANIMATE_INTERVAL = 5


def fold_alpha(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> dict[str, torch.Tensor]:
    """
    A LoRA whose alpha is its rank: what Diffusers keeps in the file's header goes into the weights.

    Args:
        tensors (`dict[str, torch.Tensor]`): By PEFT's keys on module names.
        metadata (`dict`): The adapter's configuration, `{"transformer.r": 4, "transformer.lora_alpha": 8, ...}`.
    """
    from peft.utils.other import get_pattern_key

    config = {key.removeprefix(PREFIX): value for key, value in metadata.items()}
    patterns = config.get("alpha_pattern") or {}
    folded = dict(tensors)
    for key, tensor in tensors.items():
        name, separator, _ = key.rpartition(".lora_A.")
        if separator:
            rank = tensor.shape[0]
            alpha = patterns.get(get_pattern_key(patterns, name), config["lora_alpha"])
            folded[key] = tensor * (alpha / (rank**0.5 if config.get("use_rslora") else rank))
    return folded


def read_lora(source: Path) -> dict[str, torch.Tensor]:
    """
    A LoRA by PEFT's keys on our module names, without a prefix and with alpha equal to the rank.

    Args:
        source (`Path`): A safetensors file, or the folder of a PEFT adapter.

    Raises:
        OSError: No such file, a pickle, or a file that is cut off.
        ValueError: Keys that no naming explains, all listed.
    """
    if not source.exists():
        raise FileNotFoundError(f"`--source` is {str(source)!r}, but there is no such file or folder.")
    if source.suffix in PICKLE_SUFFIXES:
        raise OSError(f"`{source}` is a pickle, but only safetensors are read: pickles can run code.")
    try:
        tensors, metadata = DreamActorLoraLoaderMixin.lora_state_dict(
            str(source), use_safetensors=True, local_files_only=True, return_lora_metadata=True
        )
    except SafetensorError as error:
        raise OSError(f"`{source}` is truncated or no safetensors file ({error}): download it again.") from error
    tensors = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
    return tensors if metadata is None else fold_alpha(tensors, metadata)


def convert(
    source: Path,
    output: Path,
    to: str = "dreamactor",
    repository: Path | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """
    Converts a LoRA file.

    Args:
        source (`Path`): A LoRA in any naming that `pipe.load_lora_weights` reads.
        output (`Path`): The safetensors file to write.
        to (`str`): `"dreamactor"` (as `pipe.save_lora_weights` writes it), or `"diffusers"`, `"wan"`, `"comfyui"` or
            `"kohya"`, for Wan's weights in other programs.
        repository (`Path`, *optional*): A DreamActor repository: keys and shapes are then checked against its
            transformer, and face blocks find their place in it.
        dtype (`torch.dtype`, *optional*): Of the weights; the source's when `None`.

    Raises:
        OSError, ValueError: When the source is broken, or has keys that match nothing, all listed. Nothing is written.
    """
    if output.exists():
        raise FileExistsError(f"`--output` is {str(output)!r}, which exists.")
    tensors = read_lora(source)
    interval = WAN_ANIMATE_INTERVAL
    if repository is not None:
        config = read_model_config(repository / "transformer", DreamActorTransformer3DModel)
        transformer = empty_model(
            DreamActorTransformer3DModel, {key: value for key, value in config.items() if key[0] != "_"}
        )
        tensors = fit_lora_to_transformer(tensors, transformer)
        interval = config["face_attention_interval"]
    tensors = {f"{PREFIX}{key}": tensor for key, tensor in tensors.items()}
    if to != "dreamactor":
        tensors = convert_lora_from_dreamactor(tensors, to, interval)
    # Copies: keys and values of a face block share one tensor where the source has them as one projection.
    tensors = {key: tensor.to(dtype or tensor.dtype, copy=True).contiguous() for key, tensor in tensors.items()}

    output.parent.mkdir(parents=True, exist_ok=True)
    staging = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with errors_naming(output):
            save_file(tensors, staging, metadata={"format": "pt"})
            give_usual_permissions(staging)
            os.replace(staging, output)
    finally:
        staging.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> None:
    """Runs the conversion with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, type=Path, help="safetensors file, or folder of a PEFT adapter")
    parser.add_argument("--output", required=True, type=Path, help="safetensors file to write; must not exist")
    parser.add_argument("--to", choices=("dreamactor", *LORA_NAMINGS), default="dreamactor", help="naming to write")
    parser.add_argument("--repository", type=Path, help="a DreamActor repository to check the LoRA against")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; default: the source's")
    arguments = vars(parser.parse_args(arguments))
    convert(**arguments | {"dtype": DTYPES.get(arguments["dtype"])})
