"""`DreamActorTransformer3DModel.from_single_file`: our naming, Diffusers', original Wan's and Wan-Animate's; GGUF."""

import re
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from diffusers.utils import logging

from diffusers_dreamactor.models.transformer_dreamactor import DreamActorTransformer3DModel


logger = logging.get_logger(__name__)

_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.")

# What Wan has not. A file without these makes a starting point for training that first behaves like its source.
_NEW_MODULES = re.compile(r"(pose_patch_embedding|face_encoder|blocks\.\d+\.(ref_attn|face_attn))\.")
_ZERO_MODULES = re.compile(r"pose_patch_embedding|blocks\.\d+\.(ref_attn\.to_out\.0|face_attn\.to_out)")


def register_single_file() -> None:
    """
    Make the transformer's `from_single_file` known to Diffusers, which looks the class up on its own module.

    Pass `config=FOLDER_OR_REPOSITORY, subfolder="transformer"` with the file: from the weights alone, Diffusers would
    guess a Wan repository.
    """
    SINGLE_FILE_LOADABLE_CLASSES[DreamActorTransformer3DModel.__name__] = {
        "checkpoint_mapping_fn": convert_transformer_checkpoint,
        "default_subfolder": "transformer",
    }


def convert_transformer_checkpoint(
    checkpoint: dict[str, torch.Tensor], config: dict[str, Any], **kwargs
) -> dict[str, torch.Tensor]:
    """
    Rename a transformer's checkpoint to our keys.

    Accepts our naming, Diffusers' (`WanTransformer3DModel`, `WanAnimateTransformer3DModel`) and the original one of
    Wan and Wan-Animate, with or without ComfyUI's prefix, quantised by GGUF or not. The motion encoder that Wan-Animate
    files also hold is left out: it is a component of its own here (`FaceMotionEncoder`). Where the file has none of
    a new module's weights, these get their initial values: zero for what feeds into the source's layers.

    Args:
        checkpoint (`dict[str, torch.Tensor]`): The file's tensors; emptied.
        config (`dict`): The model's config.

    Returns:
        `dict[str, torch.Tensor]`: Tensors by the names of [`DreamActorTransformer3DModel`].

    Raises:
        ValueError: If tensors are missing that Wan has, too.
    """
    for key in list(checkpoint):
        for prefix in _PREFIXES:
            if key.startswith(prefix):
                checkpoint[key.removeprefix(prefix)] = checkpoint.pop(key)
                break
    for key in [key for key in checkpoint if key.startswith("motion_encoder.")]:
        del checkpoint[key]
    if any(".self_attn." in key for key in checkpoint):
        checkpoint = convert_wan_transformer_to_diffusers(checkpoint)

    with init_empty_weights():
        model = DreamActorTransformer3DModel.from_config(config)
    interval = model.config.face_attention_interval
    converted = {}
    for key in list(checkpoint):
        match = re.fullmatch(r"face_adapter\.(\d+)\.(.+)", key)
        name = f"blocks.{interval * int(match[1])}.face_attn.{match[2]}" if match else key
        converted[name] = checkpoint.pop(key)

    missing = [name for name in model.state_dict() if name not in converted]
    lost = [name for name in missing if not _NEW_MODULES.match(name)]
    if lost:
        raise ValueError(
            f"The single file lacks {len(lost)} tensors of a transformer with this `config`, among them"
            f" {', '.join(lost[:5])}: give the config and the file of the same model."
        )
    if missing:
        logger.warning(
            f"The single file lacks {len(missing)} tensors of DreamActor's own modules, which start at their initial"
            " values: the model behaves like its source until it is trained."
        )
        bias = converted["patch_embedding.bias"]
        # A GGUF file's quantised tensors are bytes.
        dtype = bias.dtype if bias.is_floating_point() else torch.float32
        converted.update(_initial_values(model, set(missing), dtype))
    return converted


def _initial_values(model: torch.nn.Module, names: set[str], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    values = {}
    for module_name, module in model.named_modules():
        own = [name for name, _ in module.named_parameters(recurse=False) if f"{module_name}.{name}" in names]
        if not own:
            continue
        module.to_empty(device="cpu", recurse=False)
        if hasattr(module, "reset_parameters") and not _ZERO_MODULES.fullmatch(module_name):
            module.reset_parameters()
        else:
            # The zero modules, and the face encoder's padding tokens, which start at zero, too.
            for parameter in module.parameters(recurse=False):
                torch.nn.init.zeros_(parameter)
        values.update({f"{module_name}.{name}": getattr(module, name).detach().to(dtype) for name in own})
    return values
