"""
Wan2.2-Animate becomes a DreamActor repository, and its transformer converts back, bit for bit.

    python conversion/convert_wan_animate.py --source Wan-AI/Wan2.2-Animate-14B-Diffusers --output wan-animate-dreamactor

`--source` is a `WanAnimatePipeline` repository, or a transformer alone in the original (or ComfyUI's) naming: a folder or
one `.safetensors` file; the other components then come from `--components`. See conversion/README.md.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import WanAnimateTransformer3DModel

from diffusers_dreamactor.conversion.repository import (
    LIBRARY,
    complete_config,
    copy_component,
    empty_model,
    find_source,
    read_model_config,
    read_model_index,
    shard_bytes,
    staged_folder,
    write_model,
    write_model_index,
    write_prompt_embedding,
    write_vae,
)
from diffusers_dreamactor.loaders.prompt_states import encode_prompts
from diffusers_dreamactor.loaders.shards import DTYPES, LazyTensor, WeightReader
from diffusers_dreamactor.loaders.wan_animate import MODEL_CLASSES, PUBLIC_WEIGHTS, USUAL_PROMPT
from diffusers_dreamactor.loaders.wan_keys import (
    animate_configs,
    infer_wan_config,
    is_original_naming,
    rename_original,
    to_dreamactor,
    to_wan_animate,
    wan_animate_config,
)
from diffusers_dreamactor.pipelines.pipeline_dreamactor_wan_animate import GENERATION_AREA
from diffusers_dreamactor.processors.guidance import MotionGuidanceProcessor


PIPELINE_CONFIG = {
    "num_inference_steps": 20,
    "guidance_scale": 1.0,
    "segment_frames": 77,
    "fps": 24.0,
}
COMPONENT_PATTERNS = ["model_index.json", "*/*.json", "*/*.txt", "tokenizer/*"] + [
    f"{name}/*.safetensors" for name in ("vae", "image_encoder", "text_encoder")
]
SOURCE_PATTERNS = [*COMPONENT_PATTERNS, "*.json", "diffusion_pytorch_model*.safetensors", "transformer/*.safetensors"]


def read_transformer(path: Path) -> tuple[dict[str, Any], dict[str, LazyTensor], int]:
    """
    A Wan-Animate transformer in Diffusers' or the original naming.

    Args:
        path (`Path`): Its folder or file.

    Returns:
        The config of `WanAnimateTransformer3DModel`, the tensors by Diffusers' names, and the size of shards to write.
    """
    reader = WeightReader(path)
    if is_original_naming(reader):
        tensors = rename_original(reader)
        if "motion_encoder.conv_in.weight" not in tensors:
            raise ValueError(
                f"`{path}` is a Wan transformer without motion encoder, but Wan-Animate is accepted; `convert_wan_i2v.py`"
                " takes image-to-video and text-to-video models."
            )
        config = complete_config(WanAnimateTransformer3DModel, infer_wan_config(tensors))
    elif path.is_file():
        raise ValueError(
            f"`{path}` is one file in Diffusers' naming, but a single file is accepted in the original naming only: pass"
            " the folder that has its `config.json`."
        )
    else:
        tensors, config = dict(reader), read_model_config(path, WanAnimateTransformer3DModel)
    return config, tensors, shard_bytes(reader)


def write_transformer(
    output: Path,
    config: dict[str, Any],
    tensors: dict[str, LazyTensor],
    dtype: torch.dtype | None,
    max_shard_bytes: int,
) -> None:
    """
    Writes `transformer/` and `face_motion_encoder/`.

    Args:
        output (`Path`): The repository.
        config, tensors, max_shard_bytes: What `read_transformer` gave.
        dtype (`torch.dtype`, *optional*): Of the weights; the source's when `None`.
    """
    parts: dict[str, dict[str, LazyTensor]] = {name: {} for name in MODEL_CLASSES}
    for key, tensor in tensors.items():
        component, name = to_dreamactor(key, config["inject_face_latents_blocks"])
        parts[component][name] = tensor
    for component, component_config in animate_configs(config).items():
        model = empty_model(MODEL_CLASSES[component], component_config)
        write_model(output / component, model, parts[component], dtype, max_shard_bytes)


def convert(
    source: str,
    output: Path,
    dtype: torch.dtype | None = None,
    components: str = PUBLIC_WEIGHTS,
    capture_models: Path | None = None,
    keep_text_encoder: bool = False,
) -> None:
    """
    Converts Wan2.2-Animate into a `DreamActorWanAnimatePipeline` repository.

    Args:
        source (`str`): A `WanAnimatePipeline` repository (folder or Hub id), or the transformer alone.
        output (`Path`): The repository to write.
        dtype (`torch.dtype`, *optional*): Of transformer, face motion encoder, image and text encoder; the source's when
            `None`. The VAE keeps the source's.
        components (`str`): The Diffusers repository of the other components, when `source` is a transformer alone.
        capture_models (`Path`, *optional*): Folder of MediaPipe's models, to be part of the repository.
        keep_text_encoder (`bool`): Whether the text encoder comes along.

    Raises:
        OSError, ValueError: When a source is incomplete, broken or of another class. Nothing is written then.
    """
    base = find_source("--source", source, SOURCE_PATTERNS)
    if (base / "model_index.json").is_file():
        index = read_model_index(base, ("WanAnimatePipeline",))
        config, tensors, max_shard_bytes = read_transformer(base / "transformer")
    else:
        config, tensors, max_shard_bytes = read_transformer(base)
        base = find_source("--components", components, COMPONENT_PATTERNS)
        index = read_model_index(base, ("WanAnimatePipeline",))

    with staged_folder(output) as staging:
        write_transformer(staging, config, tensors, dtype, max_shard_bytes)
        entries = {name: (LIBRARY, model_class.__name__) for name, model_class in MODEL_CLASSES.items()}
        write_vae(base / "vae", staging / "vae")
        entries["vae"] = (LIBRARY, "DreamActorVAE")
        carried = ["scheduler", "image_encoder", "image_processor"]
        carried += ["text_encoder", "tokenizer"] if keep_text_encoder else []
        for name in carried:
            copy_component(base / name, staging / name, dtype)
            entries[name] = tuple(index[name])
        states = encode_prompts(base, index, [USUAL_PROMPT, ""])
        write_prompt_embedding(staging / "prompt_embedding", states, USUAL_PROMPT)
        entries["prompt_embedding"] = (LIBRARY, "PromptEmbedding")
        processor = MotionGuidanceProcessor(
            style="wan", area=GENERATION_AREA, face_size=config["motion_encoder_size"], face_scale=1.0
        )
        processor.save_pretrained(staging / "motion_processor")
        entries["motion_processor"] = (LIBRARY, "MotionGuidanceProcessor")
        if capture_models is not None:
            from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture

            MediaPipeCapture.from_pretrained(capture_models).save_pretrained(staging / "capture")
            entries["capture"] = (LIBRARY, "MediaPipeCapture")
        write_model_index(staging, "DreamActorWanAnimatePipeline", entries, PIPELINE_CONFIG)


def convert_back(source: str, output: Path, dtype: torch.dtype | None = None) -> None:
    """
    Writes the transformer of a repository that `convert` wrote as a `WanAnimateTransformer3DModel`.

    Args:
        source (`str`): A `DreamActorWanAnimatePipeline` repository, folder or Hub id.
        output (`Path`): The model's folder.
        dtype (`torch.dtype`, *optional*): Of the weights; the source's when `None`: bit for bit.
    """
    path = find_source("--source", source, ["model_index.json"] + [f"{component}/*" for component in MODEL_CLASSES])
    read_model_index(path, ("DreamActorWanAnimatePipeline",))
    configs, tensors, max_shard_bytes = {}, {}, 1
    for component, model_class in MODEL_CLASSES.items():
        configs[component] = read_model_config(path / component, model_class)
        reader = WeightReader(path / component)
        max_shard_bytes = max(max_shard_bytes, shard_bytes(reader))
        interval = configs["transformer"]["face_attention_interval"]
        tensors |= {to_wan_animate(key, interval): tensor for key, tensor in reader.items()}
    model = empty_model(WanAnimateTransformer3DModel, wan_animate_config(**configs))
    with staged_folder(output) as staging:
        write_model(staging, model, tensors, dtype, max_shard_bytes)


def main(arguments: list[str] | None = None) -> None:
    """Runs the conversion with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder, Hub id, or .safetensors file")
    parser.add_argument("--output", required=True, type=Path, help="folder to write; must not exist")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights except the VAE's; default: the source's")
    parser.add_argument(
        "--components",
        default=PUBLIC_WEIGHTS,
        help="folder or Hub id of the other components, when --source is a transformer alone (default: %(default)s)",
    )
    parser.add_argument("--capture-models", type=Path, help="folder of MediaPipe's models, to be in the repository")
    parser.add_argument("--keep-text-encoder", action="store_true", help="for prompts of your own; 11 GB")
    parser.add_argument("--reverse", action="store_true", help="write the transformer as Diffusers' class again")
    arguments = parser.parse_args(arguments)
    dtype = DTYPES.get(arguments.dtype)
    if arguments.reverse:
        convert_back(arguments.source, arguments.output, dtype)
    else:
        convert(
            arguments.source,
            arguments.output,
            dtype,
            arguments.components,
            arguments.capture_models,
            arguments.keep_text_encoder,
        )
