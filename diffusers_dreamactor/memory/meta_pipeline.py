"""A pipeline without weights, from the configs of a repository alone: all its models on the meta device."""

import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import ModelMixin, WanAnimateTransformer3DModel
from huggingface_hub import snapshot_download

from diffusers_dreamactor.loaders.prompt_states import SEQUENCE_LENGTH
from diffusers_dreamactor.loaders.wan_animate import MODEL_CLASSES
from diffusers_dreamactor.loaders.wan_keys import animate_configs
from diffusers_dreamactor.models.autoencoder_dreamactor import DreamActorVAE
from diffusers_dreamactor.models.prompt_embedding import PromptEmbedding
from diffusers_dreamactor.pipelines.animation_pipeline import AnimationPipeline
from diffusers_dreamactor.pipelines.pipeline_dreamactor import DreamActorPipeline
from diffusers_dreamactor.pipelines.pipeline_dreamactor_wan_animate import (
    GENERATION_AREA,
    DreamActorWanAnimatePipeline,
)
from diffusers_dreamactor.processors.guidance import MotionGuidanceProcessor


_PIPELINES = {pipeline.__name__: pipeline for pipeline in (DreamActorPipeline, DreamActorWanAnimatePipeline)}
# What runs on the CPU and has no weights worth counting.
_PROCESSORS = ("scheduler", "image_processor", "audio_feature_extractor")


def meta_model(model_class: type, config: Any, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """
    A model on the meta device, with the dtypes that `from_pretrained(dtype=...)` gives its weights.

    Args:
        model_class (`type`): Of Diffusers or transformers.
        config (`dict` or `PretrainedConfig`): Its config.
        dtype (`torch.dtype`, *optional*): What is asked for; float32 when `None`.
    """
    with torch.device("meta"):
        model = model_class.from_config(dict(config)) if issubclass(model_class, ModelMixin) else model_class(config)
    kept = (
        set(getattr(model_class, "_keep_in_fp32_modules", None) or [])
        if issubclass(model_class, ModelMixin)
        else set()
    )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not kept & set(name.split(".")):
            tensor.data = tensor.data.to(dtype or torch.float32)
    return model.eval()


def meta_pipeline(
    source: str | os.PathLike | AnimationPipeline, dtype: torch.dtype | None = None, **hub: Any
) -> AnimationPipeline:
    """
    A pipeline whose models have shapes and dtypes, but no weights.

    Args:
        source (`str`, `os.PathLike` or [`AnimationPipeline`]):
            A repository, folder or Hub id, of ours or of Diffusers' `WanAnimatePipeline`, of which only the configs are
            read (and fetched); or a pipeline.
        dtype (`torch.dtype`, *optional*): As for `from_pretrained`; of a pipeline, its own when `None`.
        hub: `cache_dir`, `revision`, `token`, `local_files_only`, as the Hub's client takes them.

    Raises:
        OSError: There is no such repository, or a config is missing.
        ValueError: It is one of another pipeline.
    """
    if isinstance(source, AnimationPipeline):
        components = {
            name: meta_model(type(model), model.config, dtype or model.dtype)
            if isinstance(model, torch.nn.Module)
            else model
            for name, model in source.components.items()
        }
        pipeline_class, values = type(source), _values(source.config)
        return pipeline_class(**components, **values)
    folder = Path(source)
    if not folder.is_dir():
        if str(source).count("/") != 1:
            raise FileNotFoundError(
                f"`{source}` is no folder and no Hub id, but a repository of one of them is needed."
            )
        folder = Path(snapshot_download(str(source), allow_patterns=["model_index.json", "*/*.json"], **hub))
    index = _read_json(folder / "model_index.json")
    name = index.get("_class_name")
    if name == "WanAnimatePipeline":
        return _meta_wan_animate(folder, index, dtype)
    if name not in _PIPELINES:
        raise ValueError(
            f"`{source}` is a repository of {name}, but one of {', '.join(_PIPELINES)} or WanAnimatePipeline is needed."
        )
    components: dict[str, Any] = {}
    for component, entry in index.items():
        if not isinstance(entry, list) or entry[1] is None:
            continue
        components[component] = _meta_component(folder, component, entry, dtype)
    return _PIPELINES[name](**components, **_values(index))


def _values(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: config[name]
        for name in ("num_inference_steps", "guidance_scale", "segment_frames", "fps")
        if name in config
    }


def _meta_component(folder: Path, name: str, entry: list[str], dtype: torch.dtype | None) -> Any:
    library, class_name = entry
    if name == "motion_processor":
        return MotionGuidanceProcessor.from_pretrained(folder / name)
    if name in _PROCESSORS:
        return getattr({"diffusers": diffusers}.get(library, transformers), class_name).from_pretrained(folder / name)
    if name in ("tokenizer", "capture"):
        return None
    if library == "transformers":
        model_class = getattr(transformers, class_name)
        config = model_class.config_class.from_pretrained(folder / name)
        return meta_model(model_class, config, dtype)
    # `AnimationPipeline` takes Diffusers' own VAE as one of ours
    model_class = DreamActorVAE if name == "vae" else getattr(importlib.import_module(library), class_name)
    return meta_model(model_class, _read_json(folder / name / "config.json"), dtype)


def _meta_wan_animate(folder: Path, index: Mapping[str, Any], dtype: torch.dtype | None) -> AnimationPipeline:
    config = WanAnimateTransformer3DModel.load_config(folder / "transformer")
    with torch.device("meta"):
        config = dict(WanAnimateTransformer3DModel.from_config(config).config)
    components = {name: meta_model(MODEL_CLASSES[name], own, dtype) for name, own in animate_configs(config).items()}
    for name in ("vae", "image_encoder", "scheduler", "image_processor"):
        components[name] = _meta_component(folder, name, index[name], dtype)
    text = {"sequence_length": SEQUENCE_LENGTH, "text_dim": config["text_dim"]}
    components["prompt_embedding"] = meta_model(PromptEmbedding, text, dtype)
    components["motion_processor"] = MotionGuidanceProcessor(
        style="wan", area=GENERATION_AREA, face_size=components["face_motion_encoder"].config.size, face_scale=1.0
    )
    return DreamActorWanAnimatePipeline(**components)


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"`{file}` is missing, but says what a complete repository holds.")
    return json.loads(file.read_text(encoding="utf-8"))
