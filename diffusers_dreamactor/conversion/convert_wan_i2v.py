"""
Wan 2.1 and 2.2 image-to-video and text-to-video models become a DreamActor starting point for training.

    python conversion/convert_wan_i2v.py --source Wan-AI/Wan2.1-T2V-1.3B-Diffusers --output dreamactor-1.3b-start

Without reference, pose and face, and at step 0 of the training with them, the transformer behaves exactly like its source:
what it adds to the source's layers starts at zero. See conversion/README.md.
"""

import argparse
import copy
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, ModelMixin, WanTransformer3DModel

from diffusers_dreamactor.conversion.repository import (
    LIBRARY,
    complete_config,
    copy_component,
    empty_model,
    find_source,
    read_json,
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
from diffusers_dreamactor.loaders.wan_keys import (
    dreamactor_config,
    infer_wan_config,
    is_original_naming,
    rename_original,
)
from diffusers_dreamactor.models.face_motion_encoder import FaceMotionEncoder
from diffusers_dreamactor.models.pose_encoder import PoseEncoder
from diffusers_dreamactor.models.transformer_dreamactor import DreamActorTransformer3DModel
from diffusers_dreamactor.processors.guidance import MotionGuidanceProcessor


EXPERTS = {"high": ("transformer", "high_noise_model"), "low": ("transformer_2", "low_noise_model")}
PIPELINE_CLASSES = ("WanImageToVideoPipeline", "WanPipeline")
PIPELINE_CONFIG = {
    "num_inference_steps": 30,
    "guidance_scale": 2.5,
    "segment_frames": 73,
    "fps": 24.0,
}
COMPONENT_PATTERNS = ["model_index.json", "*/*.json", "*/*.txt", "tokenizer/*"] + [
    f"{name}/*.safetensors" for name in ("vae", "image_encoder", "text_encoder")
]
# New modules do not come in the source's shards: theirs are at least so large.
MIN_SHARD_BYTES = 5 * 10**8
# The face crops of the paper have 224 pixels; the encoder's network wants a power of two.
FACE_SIZE = 256

# What Wan has not; and of that, what feeds into Wan's own layers and so starts at zero.
NEW_MODULES = re.compile(r"(pose_patch_embedding|face_encoder|blocks\.\d+\.(ref_attn|face_attn))\.")
ZERO_MODULES = re.compile(r"(pose_patch_embedding|blocks\.\d+\.(ref_attn\.to_out\.0|face_attn\.to_out))\.")


def find_transformer(base: Path, expert: str | None) -> Path:
    """
    The transformer of a repository, of two experts the one that is asked for.

    Args:
        base (`Path`): A repository in Diffusers' or the original layout, or a transformer's folder or file.
        expert (`str`, *optional*): `"high"` or `"low"` noise.

    Raises:
        ValueError: When there are two experts and none was chosen, or the other way round.
    """
    layouts = [{name: base / folders[i] for name, folders in EXPERTS.items()} for i in range(2)]
    for folders in layouts:
        if all(folder.is_dir() for folder in folders.values()):
            if expert is None:
                raise ValueError(
                    f"`{base}` has two experts, but one transformer is trained: pass `--expert high` (motion and layout,"
                    " the first steps) or `--expert low` (details, the last ones)."
                )
            return folders[expert]
    if expert is not None:
        raise ValueError(f"`--expert` is {expert!r}, but `{base}` has one transformer.")
    return base / "transformer" if (base / "model_index.json").is_file() else base


def read_transformer(path: Path) -> tuple[dict[str, Any], dict[str, LazyTensor], int]:
    """
    A Wan transformer in Diffusers' or the original naming.

    Args:
        path (`Path`): Its folder or file.

    Returns:
        The config of `WanTransformer3DModel`, the tensors by Diffusers' names, and the size of shards to write.
    """
    reader = WeightReader(path)
    if is_original_naming(reader):
        tensors = rename_original(reader)
        if any(key.startswith("motion_encoder.") for key in tensors):
            raise ValueError(f"`{path}` is Wan-Animate, which `convert_wan_animate.py` takes.")
        head_dim = 128
        if path.is_dir() and (path / "config.json").is_file():
            original = read_json(path / "config.json")
            head_dim = original["dim"] // original["num_heads"]
        config = complete_config(WanTransformer3DModel, infer_wan_config(tensors, head_dim))
    elif path.is_file():
        raise ValueError(
            f"`{path}` is one file in Diffusers' naming, but a single file is accepted in the original naming only: pass"
            " the folder that has its `config.json`."
        )
    else:
        tensors, config = dict(reader), read_model_config(path, WanTransformer3DModel)
    return config, tensors, max(shard_bytes(reader), MIN_SHARD_BYTES)


def default_components(config: Mapping[str, Any]) -> str:
    """The Diffusers repository whose other components go with a transformer in the original naming."""
    if config["out_channels"] == 48:
        return "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
    if config["image_dim"] is not None:
        return "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"
    if config["in_channels"] > config["out_channels"]:
        return "Wan-AI/Wan2.2-I2V-A14B-Diffusers"
    return "Wan-AI/Wan2.1-T2V-1.3B-Diffusers" if config["num_layers"] == 30 else "Wan-AI/Wan2.1-T2V-14B-Diffusers"


def widen_input(
    config: Mapping[str, Any], tensors: Mapping[str, LazyTensor], temporal_scale: int
) -> tuple[int, dict[str, LazyTensor]]:
    """
    Gives a text-to-video transformer the image-to-video form: noisy latent, mask, condition latent. The new channels'
    weights are zero, so that they change nothing.

    Returns:
        The number of input channels, and the tensors.

    Raises:
        ValueError: For a model with other inputs than noise, mask and condition.
    """
    channels, given = config["out_channels"], config["in_channels"]
    wanted = 2 * channels + temporal_scale
    if given == wanted:
        return wanted, dict(tensors)
    if given != channels:
        raise ValueError(
            f"The source's transformer has `in_channels` {given}, but {channels} (text to video) or {wanted} (image to"
            " video) is accepted: a model with control inputs is no starting point."
        )

    def widen(weight: torch.Tensor) -> torch.Tensor:
        zeros = weight.new_zeros(weight.shape[0], wanted - given, *weight.shape[2:])
        return torch.cat([weight, zeros], dim=1)

    return wanted, dict(tensors) | {"patch_embedding.weight": tensors["patch_embedding.weight"].map(widen)}


def initial_tensor(model: ModelMixin, key: str, dtype: torch.dtype, seed: int) -> LazyTensor:
    """
    The initial value of a new module's tensor: zero where it feeds into the source's layers, else the layer's own
    initialisation, the same for the same seed.

    Args:
        model (`ModelMixin`): Without memory for its weights.
        key (`str`): The tensor's name.
        dtype (`torch.dtype`): Of the tensor.
        seed (`int`): Of the initialisation.
    """
    module_name, _, name = key.rpartition(".")
    module = model.get_submodule(module_name)
    meta = torch.empty(getattr(module, name).shape, dtype=dtype, device="meta")
    # The face encoder's padding tokens, a parameter that belongs to no layer, start at zero, too.
    if ZERO_MODULES.match(key) or not hasattr(module, "reset_parameters"):
        return LazyTensor(meta, lambda: torch.zeros(meta.shape, dtype=dtype))

    def load() -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + zlib.crc32(key.encode()))
            layer = copy.deepcopy(module).to_empty(device="cpu")
            layer.reset_parameters()
        return getattr(layer, name).detach().to(dtype)

    return LazyTensor(meta, load)


def convert(
    source: str,
    output: Path,
    dtype: torch.dtype | None = None,
    expert: str | None = None,
    components: str | None = None,
    face_motion_encoder: str | None = None,
    face_attention_interval: int = 1,
    prompt: str = "",
    capture_models: Path | None = None,
    keep_text_encoder: bool = False,
    seed: int = 0,
) -> None:
    """
    Converts a Wan model into a `DreamActorPipeline` repository to train.

    Args:
        source (`str`): A repository (folder or Hub id) of `WanImageToVideoPipeline` or `WanPipeline`, or the transformer
            alone in the original naming.
        output (`Path`): The repository to write.
        dtype (`torch.dtype`, *optional*): Of transformer, image and text encoder; the source's when `None`.
        expert (`str`, *optional*): `"high"` or `"low"`: which of Wan 2.2's two transformers.
        components (`str`, *optional*): The Diffusers repository of the other components, when `source` has none.
        face_motion_encoder (`str`, *optional*): A repository that `convert_wan_animate.py` wrote, whose trained face
            motion encoder is taken; otherwise one is initialised.
        face_attention_interval (`int`): Every n-th block has a face attention.
        prompt (`str`): Whose embedding is stored, to be used in training and whenever no prompt is given.
        capture_models (`Path`, *optional*): Folder of MediaPipe's models, to be part of the repository.
        keep_text_encoder (`bool`): Whether the text encoder comes along.
        seed (`int`): Of what is initialised at random.

    Raises:
        OSError, ValueError: When a source is incomplete, broken or of another class. Nothing is written then.
    """
    # The configs first: which weights to download depends on them.
    base = find_source("--source", source, ["*.json"])
    transformer = find_transformer(base, expert)
    folder = transformer.relative_to(base).as_posix()
    weights = "diffusion_pytorch_model*.safetensors" if folder == "." else f"{folder}/*.safetensors"
    base = find_source("--source", source, [*COMPONENT_PATTERNS, weights])
    if (base / "model_index.json").is_file():
        index = read_model_index(base, PIPELINE_CLASSES)
        config, tensors, max_shard_bytes = read_transformer(transformer)
    else:
        config, tensors, max_shard_bytes = read_transformer(transformer)
        base = find_source("--components", components or default_components(config), COMPONENT_PATTERNS)
        index = read_model_index(base, PIPELINE_CLASSES)
    vae_config = read_model_config(base / "vae", AutoencoderKLWan)
    if vae_config["z_dim"] != config["out_channels"]:
        raise ValueError(
            f"The VAE in `{base}` has {vae_config['z_dim']} latent channels, but the transformer makes"
            f" {config['out_channels']}: give the components of the same model."
        )
    motion_encoder = None
    if face_motion_encoder is not None:
        path = find_source("--face-motion-encoder", face_motion_encoder, ["face_motion_encoder/*"])
        motion_encoder = path / "face_motion_encoder"
        motion_config = read_model_config(motion_encoder, FaceMotionEncoder)
    else:
        # Trained from nothing, it needs the norm: without, it collapses.
        motion_config = complete_config(FaceMotionEncoder, {"size": FACE_SIZE, "norm_output": True})

    in_channels, tensors = widen_input(config, tensors, vae_config["scale_factor_temporal"])
    model = empty_model(
        DreamActorTransformer3DModel,
        dreamactor_config(config)
        | {
            "in_channels": in_channels,
            "pose_channels": config["out_channels"],
            "motion_dim": motion_config["motion_dim"],
            "face_attention_interval": face_attention_interval,
        },
    )
    own_dtype = tensors["patch_embedding.weight"].meta.dtype
    for key in model.state_dict():
        if key not in tensors and NEW_MODULES.match(key):
            tensors[key] = initial_tensor(model, key, own_dtype, seed)

    with staged_folder(output) as staging:
        write_model(staging / "transformer", model, tensors, dtype, max_shard_bytes)
        write_vae(base / "vae", staging / "vae")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pose_encoder = PoseEncoder(
                out_channels=config["out_channels"], patch_size=vae_config["scale_factor_spatial"] // 4
            )
            pose_encoder.save_pretrained(staging / "pose_encoder")
            if motion_encoder is None:
                FaceMotionEncoder.from_config(motion_config).save_pretrained(staging / "face_motion_encoder")
            else:
                copy_component(motion_encoder, staging / "face_motion_encoder")
        entries = {
            "transformer": (LIBRARY, "DreamActorTransformer3DModel"),
            "vae": (LIBRARY, "DreamActorVAE"),
            "pose_encoder": (LIBRARY, "PoseEncoder"),
            "face_motion_encoder": (LIBRARY, "FaceMotionEncoder"),
        }
        carried = ["scheduler"]
        carried += ["image_encoder", "image_processor"] if config["image_dim"] is not None else []
        carried += ["text_encoder", "tokenizer"] if keep_text_encoder else []
        for name in carried:
            copy_component(base / name, staging / name, dtype)
            entries[name] = tuple(index[name])
        states = encode_prompts(base, index, [prompt, ""])
        write_prompt_embedding(staging / "prompt_embedding", states, prompt)
        entries["prompt_embedding"] = (LIBRARY, "PromptEmbedding")
        size_multiple = vae_config["scale_factor_spatial"] * config["patch_size"][-1]
        processor = MotionGuidanceProcessor(face_size=motion_config["size"], size_multiple=size_multiple)
        processor.save_pretrained(staging / "motion_processor")
        entries["motion_processor"] = (LIBRARY, "MotionGuidanceProcessor")
        if capture_models is not None:
            from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture

            MediaPipeCapture.from_pretrained(capture_models).save_pretrained(staging / "capture")
            entries["capture"] = (LIBRARY, "MediaPipeCapture")
        write_model_index(staging, "DreamActorPipeline", entries, PIPELINE_CONFIG)


def main(arguments: list[str] | None = None) -> None:
    """Runs the conversion with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder, Hub id, or .safetensors file")
    parser.add_argument("--output", required=True, type=Path, help="folder to write; must not exist")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights except the VAE's; default: the source's")
    parser.add_argument("--expert", choices=EXPERTS, help="which of Wan 2.2's two transformers")
    parser.add_argument(
        "--components", help="folder or Hub id of the other components, when --source is a transformer alone"
    )
    parser.add_argument(
        "--face-motion-encoder",
        help="a repository that convert_wan_animate.py wrote, whose trained face motion encoder is taken",
    )
    parser.add_argument(
        "--face-attention-interval", type=int, default=1, help="every n-th block has a face attention (default: 1)"
    )
    parser.add_argument("--prompt", default="", help="whose embedding is stored (default: the empty prompt)")
    parser.add_argument("--capture-models", type=Path, help="folder of MediaPipe's models, to be in the repository")
    parser.add_argument("--keep-text-encoder", action="store_true", help="for prompts of your own; 11 GB")
    parser.add_argument("--seed", type=int, default=0, help="of what is initialised at random")
    arguments = vars(parser.parse_args(arguments))
    convert(**arguments | {"dtype": DTYPES.get(arguments["dtype"])})
