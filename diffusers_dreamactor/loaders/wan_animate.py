"""Wan2.2-Animate as it is published: our models out of a `WanAnimatePipeline` repository, with nothing written but the text
states of the usual prompt, in the user's cache."""

import hashlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin, WanAnimateTransformer3DModel
from diffusers.models.model_loading_utils import load_model_dict_into_meta
from diffusers.quantizers import DiffusersAutoQuantizer
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file

from diffusers_dreamactor.loaders.prompt_states import SEQUENCE_LENGTH, encode_prompts
from diffusers_dreamactor.loaders.shards import LazyTensor, WeightReader, shorten
from diffusers_dreamactor.loaders.wan_keys import animate_configs, to_dreamactor
from diffusers_dreamactor.models.face_motion_encoder import FaceMotionEncoder
from diffusers_dreamactor.models.prompt_embedding import PromptEmbedding
from diffusers_dreamactor.models.transformer_dreamactor import DreamActorTransformer3DModel


PUBLIC_WEIGHTS = "Wan-AI/Wan2.2-Animate-14B-Diffusers"
USUAL_PROMPT = "视频中的人在做动作"
MODEL_CLASSES = {"transformer": DreamActorTransformer3DModel, "face_motion_encoder": FaceMotionEncoder}
_TEXT_ENCODER = "text_encoder/*.safetensors"
# Tensors are put into a model so many at a time: one by one, Diffusers would list the model's names for each.
_TENSORS_AT_ONCE = 4


def find_repository(name_or_path: str, with_text_encoder: bool = False, **hub: Any) -> Path:
    """
    The folder of a `WanAnimatePipeline` repository; of a Hub id its local copy, which is fetched when it is not there.

    Args:
        name_or_path (`str`): Folder or Hub id.
        with_text_encoder (`bool`): Whether the text encoder's weights (11 GB) are needed.
        hub: `cache_dir`, `revision`, `token`, `local_files_only`, `force_download`, as the Hub's client takes them.
    """
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    patterns = ["model_index.json", "*/*.json", "*/*.txt", "tokenizer/*"]
    patterns += [f"{name}/*.safetensors" for name in ("transformer", "vae", "image_encoder")]
    return Path(snapshot_download(name_or_path, allow_patterns=patterns + [_TEXT_ENCODER] * with_text_encoder, **hub))


def load_models(
    folder: Path,
    dtype: torch.dtype | None = None,
    quantization_configs: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    variant: str | None = None,
) -> dict[str, ModelMixin]:
    """
    `transformer` and `face_motion_encoder` of a `WanAnimatePipeline` repository, renamed while they are read.

    Weights in their own dtype on the CPU stay in the file, mapped into memory; others are cast, quantised and moved a few
    at a time, so that more than the result is hardly ever in memory.

    Args:
        folder (`Path`): The repository.
        dtype (`torch.dtype`, *optional*): Of the weights, but those that the classes keep in float32; the source's when
            `None`.
        quantization_configs (`dict`, *optional*): By component, as a model's `from_pretrained` takes one.
        device (`torch.device` or `str`): Where the weights go.
        variant (`str`, *optional*): `"fp16"` for `diffusion_pytorch_model.fp16.safetensors`.

    Raises:
        OSError: Weights that are missing or broken.
        ValueError: A transformer of another class or variant, or weights that do not fit its config.
    """
    path = folder / "transformer"
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if config.get("_class_name") != WanAnimateTransformer3DModel.__name__:
        raise ValueError(
            f"`{path}` holds a {config.get('_class_name')}, but a WanAnimateTransformer3DModel is needed."
        )
    with init_empty_weights():
        config = dict(WanAnimateTransformer3DModel.from_config(config).config)
    parts: dict[str, dict[str, LazyTensor]] = {name: {} for name in MODEL_CLASSES}
    for key, tensor in WeightReader(path, variant, mapped=True).items():
        component, name = to_dreamactor(key, config["inject_face_latents_blocks"])
        parts[component][name] = tensor
    quantization_configs = quantization_configs or {}
    return {
        name: build_model(
            MODEL_CLASSES[name], model_config, parts[name], dtype, quantization_configs.get(name), device, str(folder)
        )
        for name, model_config in animate_configs(config).items()
    }


def build_model(
    model_class: type[ModelMixin],
    config: Mapping[str, Any],
    tensors: Mapping[str, LazyTensor],
    dtype: torch.dtype | None = None,
    quantization_config: Any = None,
    device: torch.device | str = "cpu",
    source: str | None = None,
) -> ModelMixin:
    """
    A model of lazy tensors, as its `from_pretrained` makes it of its own files.

    Args:
        model_class (`type[ModelMixin]`), config (`dict`): What is built.
        tensors (`dict[str, LazyTensor]`): Its weights by name.
        dtype, quantization_config, device: As for `load_models`.
        source (`str`, *optional*): For the errors, and the model's `name_or_path`.

    Raises:
        ValueError: Tensors that are missing or have no place.
    """
    quantizer = None
    if quantization_config is not None:
        quantizer = DiffusersAutoQuantizer.from_config(quantization_config, pre_quantized=False)
        quantizer.validate_environment(torch_dtype=dtype)
        dtype = quantizer.update_torch_dtype(dtype)
    with init_empty_weights():
        model = model_class.from_config(dict(config))
    expected = model.state_dict()
    ignored = model_class._keys_to_ignore_on_load_unexpected or []
    unknown = [key for key in tensors if key not in expected and not any(word in key for word in ignored)]
    if unknown:
        raise ValueError(f"`{source}` has tensors that {model_class.__name__} has no place for: {shorten(unknown)}.")
    missing = [key for key in expected if key not in tensors]
    if missing:
        raise ValueError(f"`{source}` lacks tensors of {model_class.__name__}: {shorten(missing)}.")

    kept = list(model_class._keep_in_fp32_modules or []) if dtype in (torch.float16, torch.bfloat16) else []
    if quantizer is not None:
        quantizer.preprocess_model(model=model, device_map=None, keep_in_fp32_modules=kept)
    names = list(expected)
    for start in range(0, len(names), _TENSORS_AT_ONCE):
        part = {}
        for name in names[start : start + _TENSORS_AT_ONCE]:
            tensor = tensors[name]
            as_it_is = dtype is None or (dtype == tensor.meta.dtype and not set(kept) & set(name.split(".")))
            part[name] = tensor.load() if as_it_is and quantizer is None else tensor.read()
        # without a dtype Diffusers would cast to that of the empty model
        for own in sorted({tensor.dtype for tensor in part.values()}, key=str) if dtype is None else [dtype]:
            load_model_dict_into_meta(
                model,
                part if dtype is not None else {k: tensor for k, tensor in part.items() if tensor.dtype == own},
                dtype=own,
                hf_quantizer=quantizer,
                keep_in_fp32_modules=kept,
                device_map={"": torch.device(device)},
            )
    if quantizer is not None:
        quantizer.postprocess_model(model)
        model.hf_quantizer = quantizer
    model.register_to_config(_name_or_path=source)
    return model.eval()


def load_prompt_embedding(
    name_or_path: str,
    index: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    cache: Path | None = None,
    **hub: Any,
) -> PromptEmbedding:
    """
    The text states of the usual prompt. They are encoded once, one layer of the text encoder in memory at a time, and kept
    in the user's cache, so that the text encoder is needed (and fetched) only once.

    Args:
        name_or_path (`str`): A `WanAnimatePipeline` repository, folder or Hub id.
        index (`dict`): Its `model_index.json`.
        dtype (`torch.dtype`, *optional*): Of the states; float32 when `None`.
        cache (`Path`, *optional*): Where they are kept; `~/.cache/diffusers_dreamactor/prompts` when `None`.
        hub: As for `find_repository`.

    """
    cache = cache or Path.home() / ".cache" / "diffusers_dreamactor" / "prompts"
    folder = find_repository(name_or_path, **hub)
    told_by = hashlib.sha256(USUAL_PROMPT.encode())
    for name in ("text_encoder", "tokenizer"):
        for file in sorted((folder / name).glob("*.json")):
            told_by.update(file.read_bytes())
    local = Path(name_or_path).is_dir()
    # of a Hub id the folder is named by the commit, and the text encoder's weights may not be there
    told_by.update(b"" if local else folder.name.encode())
    for file in sorted((folder / "text_encoder").glob("*.safetensors")) if local else []:
        told_by.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    file = cache / f"{told_by.hexdigest()[:32]}.safetensors"
    if not file.is_file():
        states = encode_prompts(find_repository(name_or_path, True, **hub), index, [USUAL_PROMPT, ""])
        cache.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(f".{uuid.uuid4().hex}.part")
        save_file({"states": states.contiguous()}, aside)
        aside.replace(file)
    states = load_file(file)["states"].to(dtype)
    model = PromptEmbedding(SEQUENCE_LENGTH, states.shape[-1], prompt=USUAL_PROMPT)
    model.prompt_embeds.data, model.negative_prompt_embeds.data = states[:1], states[1:]
    return model.eval()
