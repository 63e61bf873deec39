"""`DreamActorTransformer3DModel.from_single_file`: our naming, Diffusers', original Wan's and Wan-Animate's; GGUF; fp8."""

import os
import re
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import GGUFQuantizationConfig, ModelMixin
from diffusers.loaders import FromOriginalModelMixin
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, load_single_file_checkpoint
from diffusers.quantizers.quantization_config import BFLQuantizationConfig
from diffusers.utils import logging


logger = logging.get_logger(__name__)

_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "model.")
_FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
# Wan's checkpoints carry the motion encoder's blur kernels, and Wan 2.1's a norm that no class has.
_WITHOUT_USE = re.compile(r"(^motion_encoder\.)|norm_added_q")
# What tells a format that is not read, by the tensors that are left over.
_OTHER_FORMATS = (
    (re.compile(r"\.(lora_(A|B|up|down)\b|diff$|diff_b$|alpha$)"), "a LoRA, which `pipe.load_lora_weights` loads"),
    (re.compile(r"\.(absmax|quant_map|quant_state)"), "weights quantised by bitsandbytes"),
    (re.compile(r"\.(qweight|qzeros|scales|g_idx)$"), "weights quantised by GPTQ or AWQ"),
    (re.compile(r"\.(weight_scale_2|comfy_quant)$"), "weights quantised to nvfp4 or in another ComfyUI layout"),
    (
        re.compile(r"\.(scale_weight|weight_scale|scale_input|input_scale)$|^scaled_fp8$"),
        "scaled weights of no fp8 dtype",
    ),
    (
        re.compile(r"^(first_stage_model|cond_stage_model|conditioner|vae|text_encoders?)\."),
        "a checkpoint with VAE or text encoder",
    ),
)

# What Wan has not. A file without these makes a starting point for training that first behaves like its source.
_NEW_MODULES = re.compile(r"(pose_patch_embedding|face_encoder|blocks\.\d+\.(ref_attn|face_attn))\.")
_ZERO_MODULES = re.compile(r"pose_patch_embedding|blocks\.\d+\.(ref_attn\.to_out\.0|face_attn\.to_out)")


class DreamActorSingleFileMixin(FromOriginalModelMixin):
    """Diffusers' `from_single_file`, for the files that people share of Wan, Wan-Animate and DreamActor transformers."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> ModelMixin:
        """
        Diffusers' `from_pretrained`, for folders of this class alone: of another one's, Diffusers would load what has the
        same name, and leave the rest as it is.

        Raises:
            ValueError: The config is of another class.
        """
        names = ("subfolder", "revision", "cache_dir", "token", "local_files_only", "force_download", "proxies")
        config = cls.load_config(pretrained_model_name_or_path, **{k: kwargs[k] for k in names if k in kwargs})
        if config.get("_class_name", cls.__name__) != cls.__name__:
            raise ValueError(
                f"`{pretrained_model_name_or_path}` holds a {config['_class_name']}, but a {cls.__name__} is needed:"
                " `DreamActorPipeline.from_pretrained` takes whole repositories of Diffusers' `WanAnimatePipeline`, and"
                " `dreamactor convert` makes one of other Wan models."
            )
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_single_file(
        cls, pretrained_model_link_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor], **kwargs
    ) -> ModelMixin:
        """
        Loads a transformer that is one file: `.safetensors` or `.gguf`, in our naming, Diffusers' or original Wan's, with
        or without a prefix such as `model.diffusion_model.`

        Weights in fp8 (with scales for a tensor or for each output channel, `scale_weight` or `weight_scale`) stay in fp8
        and are upcast in the layer (by Diffusers' `BFLQuantizationConfig`; GPUs with fp8 matrix units use those). In a file
        whose other tensors are float32 they become float32, too, unless a `dtype` is given; a GGUF file's stay quantised.

        Args:
            pretrained_model_link_or_path_or_dict (`str`, `os.PathLike` or `dict`): The file, its link on the Hub, or its tensors.
            config (`str`):
                Folder or Hub id of a DreamActor repository of the same architecture.
            subfolder (`str`, *optional*): Where in it the transformer is, usually `"transformer"`.
            dtype (`torch.dtype`, *optional*): In which the weights are kept, and quantised ones computed.
            kwargs: The others of `FromOriginalModelMixin.from_single_file`.

        Raises:
            OSError: There is no such file, or it is cut off.
            ValueError: Without `config`; for a file of another architecture; for tensors that are left over.
        """
        source = pretrained_model_link_or_path_or_dict
        if kwargs.get("config") is None and kwargs.get("original_config") is None:
            raise ValueError(
                "`config` is None, but a single file does not say its architecture: pass the folder or Hub id of a"
                ' repository that has it, and `subfolder="transformer"`.'
            )
        kwargs["config"] = os.fspath(kwargs["config"])
        checkpoint, dtype = source, kwargs.get("dtype", kwargs.get("torch_dtype"))
        if not isinstance(source, dict):
            path = Path(source)
            if path.is_dir():
                raise ValueError(f"`{path}` is a folder, but a file is accepted: `from_pretrained` loads folders.")
            if (
                path.suffix in (".safetensors", ".gguf")
                and len(path.parts) != 3
                and not path.exists()
                and "://" not in str(source)
            ):
                raise FileNotFoundError(f"`{path}` does not exist: pass a file, or the link to one on the Hub.")
            names = ("force_download", "proxies", "token", "cache_dir", "local_files_only", "revision", "disable_mmap")
            checkpoint = load_single_file_checkpoint(
                os.fspath(source), **{name: kwargs[name] for name in names if name in kwargs}
            )
            if path.suffix == ".gguf" and kwargs.get("quantization_config") is None:
                kwargs["quantization_config"] = GGUFQuantizationConfig(compute_dtype=dtype or torch.bfloat16)
        checkpoint = _strip_prefixes(checkpoint)
        if kwargs.get("quantization_config") is None and any(t.dtype in _FP8_DTYPES for t in checkpoint.values()):
            keep = True
            if dtype is None:
                others = {t.dtype for t in checkpoint.values() if t.is_floating_point() and t.dtype not in _FP8_DTYPES}
                dtype = torch.float32 if others == {torch.float32} else torch.bfloat16
                keep = dtype != torch.float32
            checkpoint = _read_fp8(checkpoint, dtype, keep)
            if any(key.endswith(".weight_scale") for key in checkpoint):
                kwargs["quantization_config"] = BFLQuantizationConfig(compute_dtype=dtype)
        return super().from_single_file(checkpoint, model_class=cls, **kwargs)


def _strip_prefixes(checkpoint: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    stripped = {}
    for key, tensor in checkpoint.items():
        prefix = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), "")
        stripped[key.removeprefix(prefix)] = tensor
    return stripped


def _read_fp8(checkpoint: dict[str, torch.Tensor], dtype: torch.dtype, keep: bool) -> dict[str, torch.Tensor]:
    """
    An fp8 file's tensors in the one form that Diffusers' loader for them takes: matrices in e4m3 with a float32
    `weight_scale` for each output channel. Other tensors, other kinds of fp8, and all of them without `keep`, are
    dequantised to `dtype`.

    Raises:
        ValueError: For scales that are neither one for a tensor nor one for each output channel.
    """
    read = {}
    for key, tensor in checkpoint.items():
        module, _, kind = key.rpartition(".")
        weight = checkpoint.get(f"{module}.weight")
        is_fp8 = weight is not None and weight.dtype in _FP8_DTYPES
        if kind in ("scale_weight", "weight_scale", "scale_input", "input_scale", "comfy_quant") and is_fp8:
            continue
        # only a marker, of the dtype of the weights
        if key == "scaled_fp8":
            continue
        if tensor.dtype not in _FP8_DTYPES:
            read[key] = tensor
            continue
        scale = (
            checkpoint.get(f"{module}.scale_weight", checkpoint.get(f"{module}.weight_scale"))
            if kind == "weight"
            else None
        )
        scale = torch.ones(()) if scale is None else scale.float()
        if scale.numel() not in (1, tensor.shape[0]):
            raise ValueError(
                f"`{key}` has scales of shape {tuple(scale.shape)} for a weight of shape {tuple(tensor.shape)}, but one"
                " scale for the tensor or one for each output channel is accepted."
            )
        scale = scale.flatten().expand(tensor.shape[0])
        if keep and tensor.ndim == 2 and tensor.dtype == torch.float8_e4m3fn:
            # Wan-Animate's joint projection is split here: Diffusers' renaming cannot split quantised weights.
            joint = module.endswith(".linear1_kv")
            names = [module.replace("linear1_kv", name) for name in ("to_k", "to_v")] if joint else [module]
            for name, part, part_scale in zip(names, tensor.chunk(len(names)), scale.chunk(len(names))):
                read[f"{name}.weight"], read[f"{name}.weight_scale"] = part, part_scale.contiguous()
        else:
            read[key] = (tensor.float() * scale.view(-1, *[1] * (tensor.ndim - 1))).to(dtype)
    return read


def register_single_file(model_class: type[ModelMixin]) -> None:
    """Make the transformer's `from_single_file` known to Diffusers, which looks the class up on its own module."""
    SINGLE_FILE_LOADABLE_CLASSES[model_class.__name__] = {
        "checkpoint_mapping_fn": convert_transformer_checkpoint,
        "default_subfolder": "transformer",
    }


def convert_transformer_checkpoint(
    checkpoint: dict[str, torch.Tensor], config: dict[str, Any], model_class: type[ModelMixin]
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
        model_class (`type`): [`DreamActorTransformer3DModel`].

    Returns:
        `dict[str, torch.Tensor]`: Tensors by the names of [`DreamActorTransformer3DModel`].

    Raises:
        ValueError: If tensors are missing that Wan has, too, and if any are left over.
    """
    checkpoint = _strip_prefixes(checkpoint)
    for key in [key for key in checkpoint if key.startswith("motion_encoder.")]:
        del checkpoint[key]
    if any(".self_attn." in key for key in checkpoint):
        checkpoint = convert_wan_transformer_to_diffusers(checkpoint)

    with init_empty_weights():
        model = model_class.from_config(config)
    interval = model.config.face_attention_interval
    converted = {}
    for key in list(checkpoint):
        match = re.fullmatch(r"face_adapter\.(\d+)\.(.+)", key)
        name = f"blocks.{interval * int(match[1])}.face_attn.{match[2]}" if match else key
        converted[name] = checkpoint.pop(key)

    expected = model.state_dict()
    left_over = [name for name in converted if name not in expected and not _WITHOUT_USE.search(name)]
    if left_over:
        kind = next((kind for pattern, kind in _OTHER_FORMATS if any(map(pattern.search, left_over))), None)
        kind = "weights of another architecture than `config`'s" if kind is None else kind
        raise ValueError(
            f"The single file has {len(left_over)} tensors that this transformer has no place for, among them"
            f" {', '.join(left_over[:5])}: it seems to be {kind}."
        )
    missing = [name for name in expected if name not in converted]
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
