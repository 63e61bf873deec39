"""Trained weights in a few small files of half precision, and the repository that they make."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from diffusers_dreamactor.models.autoencoder_dreamactor import DreamActorVAE
from diffusers_dreamactor.models.face_motion_encoder import FaceMotionEncoder
from diffusers_dreamactor.models.pose_encoder import PoseEncoder
from diffusers_dreamactor.models.transformer_dreamactor import DreamActorTransformer3DModel
from diffusers_dreamactor.training.action_tokens import ActionTokens


MODELS = {
    "vae": DreamActorVAE,
    "face_motion_encoder": FaceMotionEncoder,
    "pose_encoder": PoseEncoder,
    "transformer": DreamActorTransformer3DModel,
}
MOST_FILES = 8
MOST_BYTES = 16 * 10**6


def write_weights(models: dict[str, torch.nn.Module], folder: Path, values: dict) -> list[Path]:
    """
    Write `weights-1-of-N.safetensors`, ... in half precision; what was in the folder before is replaced.

    Args:
        models: by their names in `MODELS`; those that are not trained yet are left out.
        values: anything that JSON holds, kept with them.

    Raises:
        ValueError: it would take more than `MOST_FILES` files of `MOST_BYTES`.
    """
    tensors = {}
    for name, model in models.items():
        for key, tensor in model.state_dict().items():
            tensor = tensor.detach().cpu()
            tensors[f"{name}.{key}"] = (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
    shards, sizes = [{}], [0]
    # headers take a little, too
    limit = MOST_BYTES - 2 * 10**5
    for key, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if sizes[-1] and sizes[-1] + size > limit:
            shards.append({})
            sizes.append(0)
        shards[-1][key] = tensor
        sizes[-1] += size
    if len(shards) > MOST_FILES or max(sizes) > limit:
        raise ValueError(
            f"`models` take {len(shards)} files of at most {MOST_BYTES / 1e6:.0f} MB in half precision, but "
            f"{MOST_FILES} are accepted: train a smaller transformer."
        )
    configs = {name: json.loads(model.to_json_string()) for name, model in models.items()}
    metadata = {"kit": json.dumps({"configs": configs, "values": values})}
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for number, shard in enumerate(shards, 1):
        save_file(shard, aside / f"weights-{number}-of-{len(shards)}.safetensors", metadata=metadata)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)
    return sorted(folder.iterdir())


def read_weights(folder: Path) -> tuple[dict[str, torch.nn.Module], dict]:
    """
    The models that `write_weights` wrote, in float32, and the values beside them.

    Raises:
        FileNotFoundError: the folder has no weights, or not all of the files.
    """
    paths = sorted(Path(folder).glob("weights-*-of-*.safetensors"))
    total = int(paths[0].stem.split("-")[-1]) if paths else 1
    if len(paths) != total:
        raise FileNotFoundError(f"`folder` {folder} has {len(paths)} of {total} files weights-*-of-*.safetensors.")
    states = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            kit = json.loads(file.metadata()["kit"])
            for key in file.keys():
                name, _, parameter = key.partition(".")
                states.setdefault(name, {})[parameter] = file.get_tensor(key)
    models = {}
    for name, state in states.items():
        models[name] = MODELS[name].from_config(kit["configs"][name])
        models[name].load_state_dict(state)
    return models, kit["values"]


def assemble(folder: Path, output: Path) -> None:
    """
    Make a repository, `DreamActorPipeline.from_pretrained(output)`, of the weights in `folder`; beside it, what face tokens
    mean (`ActionTokens`).

    Raises:
        ValueError: not all models are trained yet.
    """
    from new_model import new_pipeline

    models, values = read_weights(folder)
    missing = [name for name in MODELS if name not in models]
    if missing:
        raise ValueError(f"`folder` {folder} has no weights of {', '.join(missing)} yet: go on with `run`.")
    pipe = new_pipeline(
        **models,
        area=values["size"] * values["size"] * 3 // 2,
        shift=values["shift"],
        num_inference_steps=values["num_inference_steps"],
        segment_frames=values["num_frames"],
    )
    for model in models.values():
        for parameter in model.parameters():
            # on disk only; loading keeps in float32 what has to be
            parameter.data = parameter.data.half()
    pipe.save_pretrained(output)
    ActionTokens.from_values(values["action_tokens"]).save(output / "action_tokens.safetensors")


def disassemble(repository: Path, folder: Path) -> None:
    """The inverse of `assemble`: the weights of a repository, for a run to begin with."""
    models = {name: kind.from_pretrained(repository, subfolder=name) for name, kind in MODELS.items()}
    tokens = ActionTokens.load(repository / "action_tokens.safetensors")
    write_weights(models, folder, {"action_tokens": tokens.to_values()})
