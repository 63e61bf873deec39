"""Repositories of pipelines as folders: where a source is, what an output is made of, and that it is written whole."""

import json
import os
import shutil
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from huggingface_hub import snapshot_download

from diffusers_dreamactor.loaders.shards import (
    MAX_SHARD_BYTES,
    PICKLE_SUFFIXES,
    LazyTensor,
    WeightReader,
    shorten,
    write_weights,
)
from diffusers_dreamactor.models.autoencoder_dreamactor import DreamActorVAE
from diffusers_dreamactor.models.prompt_embedding import PromptEmbedding
from diffusers_dreamactor.pipelines.pipeline_dreamactor import DreamActorPipeline


LIBRARY = "diffusers_dreamactor"

# `DreamActorPipeline`'s components in the order of its arguments; the ones that are missing are written as null.
COMPONENTS = (
    "transformer",
    "vae",
    "scheduler",
    "face_motion_encoder",
    "motion_processor",
    *DreamActorPipeline._optional_components,
)


def run(main: Callable[[], None]) -> None:
    """Runs a script: an error of the input is one line, and a signal to stop still removes what is half written."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def find_source(argument: str, source: str, patterns: list[str]) -> Path:
    """
    A folder, a file, or the local copy of a Hub repository.

    Args:
        argument (`str`): The option's name, for errors.
        source (`str`): What the user gave.
        patterns (`list[str]`): The files that are needed of a Hub repository. Pickles are never downloaded.

    Raises:
        OSError: When there is no such folder, file or repository.
    """
    path = Path(source)
    if path.exists():
        return path
    if source.count("/") != 1 or source.startswith((".", "~", "/")):
        raise FileNotFoundError(f"`{argument}` is {source!r}, but there is no such folder, file or Hub repository.")
    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OSError(
            f"`{argument}` is {source!r}, but there is no such folder, and the Hub does not give it: {reason}"
        ) from error


@contextmanager
def staged_folder(output: Path) -> Iterator[Path]:
    """
    A folder beside `output` to write into; it takes its name when all is written, and is removed when something fails.

    Raises:
        FileExistsError: When there is something at `output` already.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"`--output` is {str(output)!r}, which exists: name a new or an empty folder.")
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.part")
    staging.mkdir()
    try:
        yield staging
        os.replace(staging, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file; an OSError that names it when it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"`{path}` is missing.") from error
    except ValueError as error:
        raise OSError(f"`{path}` is not valid JSON ({error}): download it again.") from error


def read_model_index(folder: Path, pipeline_classes: tuple[str, ...]) -> dict[str, Any]:
    """
    The components of a Diffusers repository.

    Raises:
        ValueError: When it is a repository of another pipeline.
    """
    index = read_json(folder / "model_index.json")
    if index.get("_class_name") not in pipeline_classes:
        raise ValueError(
            f"`{folder}` is a repository of {index.get('_class_name')}, but {' or '.join(pipeline_classes)} is accepted."
        )
    return index


def read_model_config(folder: Path, model_class: type[ModelMixin]) -> dict[str, Any]:
    """
    The complete config of a model: what its `config.json` leaves out has the class's default.

    Raises:
        ValueError: When the folder holds another class.
    """
    config = read_json(folder / "config.json")
    if config.get("_class_name") != model_class.__name__:
        raise ValueError(f"`{folder}` holds a {config.get('_class_name')}, but a {model_class.__name__} is accepted.")
    return complete_config(model_class, config)


def complete_config(model_class: type[ModelMixin], config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the class's defaults for what it leaves out."""
    with init_empty_weights():
        return dict(model_class.from_config(dict(config)).config)


def empty_model(model_class: type[ModelMixin], config: Mapping[str, Any]) -> ModelMixin:
    """A model without memory for its weights."""
    with init_empty_weights():
        return model_class(**config)


def write_model(
    folder: Path,
    model: ModelMixin,
    tensors: Mapping[str, LazyTensor],
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """
    Writes a Diffusers model as `save_pretrained` does, one shard in memory at a time.

    Args:
        folder (`Path`): Where its `config.json` and weights go.
        model (`ModelMixin`): Without memory for its weights: says which tensors of which shapes are expected.
        tensors (`Mapping[str, LazyTensor]`): Its weights.
        dtype (`torch.dtype`, *optional*): Of the weights; those that the class keeps in float32 stay as they are.
        max_shard_bytes (`int`): Size of a shard.

    Raises:
        ValueError: A missing or unknown tensor, or one of another shape.
    """
    name = type(model).__name__
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []
    unknown = [key for key in tensors if key not in expected and not any(word in key for word in ignored)]
    if unknown:
        raise ValueError(f"The source has tensors that {name} has no place for: {shorten(unknown)}.")
    missing = [key for key in expected if key not in tensors]
    if missing:
        raise ValueError(f"The source lacks tensors of {name}: {shorten(missing)}.")
    for key, shape in expected.items():
        if tuple(tensors[key].meta.shape) != shape:
            raise ValueError(
                f"The source's tensor for `{key}` of {name} has shape {tuple(tensors[key].meta.shape)}, but its config"
                f" asks for {shape}."
            )

    kept = getattr(model, "_keep_in_fp32_modules", None) or []
    ordered = list(expected) + [key for key in tensors if key not in expected]
    tensors = {key: tensors[key] if set(kept) & set(key.split(".")) else tensors[key].to(dtype) for key in ordered}
    folder.mkdir(parents=True, exist_ok=True)
    model.save_config(folder)
    write_weights(folder, tensors, name, max_shard_bytes=max_shard_bytes)


def write_vae(source: Path, target: Path) -> None:
    """The source's `AutoencoderKLWan` as a `DreamActorVAE`: the same weights in the same dtype."""
    config = read_model_config(source, diffusers.AutoencoderKLWan)
    reader = WeightReader(source)
    write_model(target, empty_model(DreamActorVAE, config), reader, max_shard_bytes=shard_bytes(reader))


def shard_bytes(reader: WeightReader) -> int:
    """The size of shards to write: never more than those of the source, which bounds the memory."""
    return min(MAX_SHARD_BYTES, reader.largest_shard)


def copy_component(source: Path, target: Path, dtype: torch.dtype | None = None) -> None:
    """
    Carries a component over: its weights in `dtype` (as they are when `None`), every other file as it is, no pickles.

    Raises:
        OSError: When the folder is missing, or its weights are (see `WeightReader`).
    """
    if not source.is_dir():
        raise FileNotFoundError(f"`{source}` is missing, but `model_index.json` names it.")
    target.mkdir(parents=True)
    has_weights = (source / "config.json").exists()
    reader = WeightReader(source) if has_weights else None
    rewrite = reader is not None and any(tensor.to(dtype) is not tensor for tensor in reader.values())
    for file in sorted(source.iterdir()):
        is_weights = file.name.endswith((".safetensors", ".safetensors.index.json"))
        if file.is_file() and file.suffix not in PICKLE_SUFFIXES and not (is_weights and rewrite):
            shutil.copyfile(file, target / file.name)
    if rewrite:
        tensors = {key: tensor.to(dtype) for key, tensor in reader.items()}
        write_weights(target, tensors, target.name, weights_name="model", max_shard_bytes=shard_bytes(reader))


def write_prompt_embedding(target: Path, states: torch.Tensor, prompt: str) -> None:
    """
    Writes a `PromptEmbedding`.

    Args:
        target (`Path`): Its folder.
        states (`torch.Tensor` of shape `(2, tokens, text_dim)`): Of the usual prompt and of the negative one.
        prompt (`str`): The usual prompt, for the config.
    """
    model = PromptEmbedding(states.shape[1], states.shape[2], prompt=prompt)
    model.prompt_embeds.data.copy_(states[:1])
    model.negative_prompt_embeds.data.copy_(states[1:])
    model.save_pretrained(target)


def write_model_index(
    folder: Path, pipeline_class: str, components: Mapping[str, tuple[str, str]], config: Mapping[str, Any]
) -> None:
    """
    Writes the `model_index.json` that the pipeline's `save_pretrained` would.

    Args:
        folder (`Path`): The repository.
        pipeline_class (`str`): The pipeline's name.
        components: Library and class of each component that there is.
        config: Values of the pipeline's config.
    """
    index = {"_class_name": pipeline_class, "_diffusers_version": diffusers.__version__}
    index |= {name: list(components.get(name, (None, None))) for name in COMPONENTS} | dict(config)
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / "model_index.json").write_text(text, encoding="utf-8")
