"""Names and configurations: original Wan, Diffusers' Wan classes, and ours."""

import re
from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from diffusers.models.transformers.transformer_wan_animate import WAN_ANIMATE_MOTION_ENCODER_CHANNEL_SIZES

from diffusers_dreamactor.loaders.shards import LazyTensor


# Wan's text encoder always gives 512 tokens; Diffusers' attention counts on it to tell text from image tokens.
TEXT_CONTEXT_LENGTH = 512
_PREFIX = "model.diffusion_model."


def is_original_naming(keys: Mapping[str, Any]) -> bool:
    """Whether a transformer's tensors carry the names of the Wan repositories, and not Diffusers'."""
    return any(".self_attn." in key for key in keys)


def rename_original(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """
    Tensors of an original Wan or Wan-Animate checkpoint (also with ComfyUI's prefix) by Diffusers' names.

    Diffusers' own converter says how; it splits the joint key and value projection of the face blocks, and flattens the
    biases of the motion encoder. The blur kernels, constants that Diffusers' classes make themselves, are left out.
    """

    def convert(key: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        # The converter looks through the whole checkpoint for these two words to tell whether it is Wan-Animate's.
        markers = {"face_adapter": None, "motion_encoder": None}
        converted = convert_wan_transformer_to_diffusers({key: tensor, **markers})
        return {name: value for name, value in converted.items() if name not in markers}

    renamed = {}
    for key, tensor in tensors.items():
        if key.endswith(".kernel"):
            continue
        key = key.removeprefix(_PREFIX)
        for name in convert(key, tensor.meta):
            renamed[name] = tensor.map(lambda value, key=key, name=name: convert(key, value)[name])
    return renamed


def to_dreamactor(key: str, face_attention_interval: int) -> tuple[str, str]:
    """
    Where a tensor of `WanAnimateTransformer3DModel` belongs: the component and the name in it.

    Args:
        key (`str`): Its name in Diffusers.
        face_attention_interval (`int`): `inject_face_latents_blocks` of the source's config.
    """
    if key.startswith("motion_encoder."):
        return "face_motion_encoder", key
    match = re.fullmatch(r"face_adapter\.(\d+)\.(.+)", key)
    if match is not None:
        return "transformer", f"blocks.{face_attention_interval * int(match[1])}.face_attn.{match[2]}"
    return "transformer", key


def to_wan_animate(key: str, face_attention_interval: int) -> str:
    """The inverse of `to_dreamactor`, for tensors of either component."""
    match = re.fullmatch(r"blocks\.(\d+)\.face_attn\.(.+)", key)
    if match is None:
        return key
    return f"face_adapter.{int(match[1]) // face_attention_interval}.{match[2]}"


def dreamactor_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """
    The arguments of `DreamActorTransformer3DModel` for what a Wan transformer already has.

    Args:
        config: Of `WanTransformer3DModel` or `WanAnimateTransformer3DModel`, complete.

    Raises:
        ValueError: For a variant whose layers ours has not.
    """
    inner_dim = config["num_attention_heads"] * config["attention_head_dim"]
    if config["pos_embed_seq_len"] is not None:
        raise ValueError(
            f"The source's `pos_embed_seq_len` is {config['pos_embed_seq_len']} (a first-and-last-frame model), but only"
            " None is accepted: convert the image-to-video model instead."
        )
    expected = None if config["image_dim"] is None else inner_dim
    if config["added_kv_proj_dim"] != expected:
        raise ValueError(
            f"The source's `added_kv_proj_dim` is {config['added_kv_proj_dim']} with an `image_dim` of"
            f" {config['image_dim']}, but {expected} is accepted."
        )
    names = (
        "patch_size",
        "num_attention_heads",
        "attention_head_dim",
        "in_channels",
        "out_channels",
        "text_dim",
        "image_dim",
        "freq_dim",
        "ffn_dim",
        "num_layers",
        "cross_attn_norm",
        "eps",
        "rope_max_seq_len",
    )
    return {name: config[name] for name in names} | {"text_context_length": TEXT_CONTEXT_LENGTH}


def animate_configs(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The configs of our `transformer` and `face_motion_encoder` for one of `WanAnimateTransformer3DModel`."""
    if config["num_layers"] % config["inject_face_latents_blocks"]:
        raise ValueError(
            f"The source's `num_layers` is {config['num_layers']}, but has to be a multiple of its"
            f" `inject_face_latents_blocks`, {config['inject_face_latents_blocks']}."
        )
    transformer = dreamactor_config(config) | {
        "pose_channels": config["latent_channels"],
        "motion_dim": config["motion_encoder_dim"],
        "face_encoder_hidden_dim": config["face_encoder_hidden_dim"],
        "face_encoder_num_heads": config["face_encoder_num_heads"],
        "face_attention_interval": config["inject_face_latents_blocks"],
        "reference_attention": False,
    }
    face_motion_encoder = {
        "size": config["motion_encoder_size"],
        "channels": config["motion_encoder_channel_sizes"],
        "style_dim": config["motion_style_dim"],
        "num_motion_directions": config["motion_dim"],
        "motion_dim": config["motion_encoder_dim"],
    }
    return {"transformer": transformer, "face_motion_encoder": face_motion_encoder}


def wan_animate_config(transformer: Mapping[str, Any], face_motion_encoder: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `animate_configs`: the config of `WanAnimateTransformer3DModel`."""
    if transformer["reference_attention"]:
        raise ValueError(
            "The source's transformer has `reference_attention`, which Wan-Animate has not: only a repository that"
            " `convert_wan_animate.py` wrote converts back."
        )
    names = dreamactor_config(
        transformer | {"pos_embed_seq_len": None, "added_kv_proj_dim": _image_projection(transformer)}
    )
    names.pop("text_context_length")
    return names | {
        "latent_channels": transformer["pose_channels"],
        "added_kv_proj_dim": _image_projection(transformer),
        "motion_encoder_dim": transformer["motion_dim"],
        "face_encoder_hidden_dim": transformer["face_encoder_hidden_dim"],
        "face_encoder_num_heads": transformer["face_encoder_num_heads"],
        "inject_face_latents_blocks": transformer["face_attention_interval"],
        "motion_encoder_size": face_motion_encoder["size"],
        "motion_encoder_channel_sizes": face_motion_encoder["channels"],
        "motion_style_dim": face_motion_encoder["style_dim"],
        "motion_dim": face_motion_encoder["num_motion_directions"],
    }


def _image_projection(config: Mapping[str, Any]) -> int | None:
    return None if config["image_dim"] is None else config["num_attention_heads"] * config["attention_head_dim"]


def infer_wan_config(tensors: Mapping[str, LazyTensor], head_dim: int = 128) -> dict[str, Any]:
    """
    The config of `WanTransformer3DModel` that tensors (by Diffusers' names) have the shapes of; that of
    `WanAnimateTransformer3DModel` when there is a motion encoder.

    Args:
        tensors: The checkpoint.
        head_dim (`int`): Channels of an attention head, which only Wan-Animate's shapes tell: 128 in every Wan model.

    Raises:
        ValueError: When a tensor is missing that tells the architecture.
    """
    shapes = {key: tuple(tensor.meta.shape) for key, tensor in tensors.items()}
    try:
        inner_dim, in_channels, *patch_size = shapes["patch_embedding.weight"]
        is_animate = "motion_encoder.conv_in.weight" in shapes
        if is_animate:
            (head_dim,) = shapes["face_adapter.0.norm_q.weight"]
        image_dim = shapes.get("condition_embedder.image_embedder.norm1.weight", (None,))[0]
        config = {
            "patch_size": patch_size,
            "num_attention_heads": inner_dim // head_dim,
            "attention_head_dim": head_dim,
            "in_channels": in_channels,
            "out_channels": shapes["proj_out.weight"][0] // prod(patch_size),
            "text_dim": shapes["condition_embedder.text_embedder.linear_1.weight"][1],
            "freq_dim": shapes["condition_embedder.time_embedder.linear_1.weight"][1],
            "ffn_dim": shapes["blocks.0.ffn.net.0.proj.weight"][0],
            "num_layers": _count(shapes, "blocks"),
            "cross_attn_norm": "blocks.0.norm2.weight" in shapes,
            "image_dim": image_dim,
            "added_kv_proj_dim": None if image_dim is None else inner_dim,
        }
        if is_animate:
            num_blocks = _count(shapes, "motion_encoder.res_blocks")
            sides = [2 ** (num_blocks + 2 - index) for index in range(num_blocks + 1)]
            channels = [shapes["motion_encoder.conv_in.weight"][0]]
            for index in range(num_blocks):
                channels.append(shapes[f"motion_encoder.res_blocks.{index}.conv2.weight"][0])
            channel_sizes = {str(side): width for side, width in zip(sides, channels)}
            if channel_sizes.items() <= WAN_ANIMATE_MOTION_ENCODER_CHANNEL_SIZES.items():
                channel_sizes = None
            last_linear = _count(shapes, "motion_encoder.motion_network") - 1
            hidden_dim = shapes["face_encoder.conv2.weight"][0]
            config |= {
                "latent_channels": shapes["pose_patch_embedding.weight"][1],
                "motion_encoder_size": sides[0],
                "motion_encoder_channel_sizes": channel_sizes,
                "motion_style_dim": shapes["motion_encoder.conv_out.weight"][0],
                "motion_dim": shapes[f"motion_encoder.motion_network.{last_linear}.weight"][0],
                "motion_encoder_dim": shapes["motion_encoder.motion_synthesis_weight"][0],
                "face_encoder_hidden_dim": hidden_dim,
                "face_encoder_num_heads": shapes["face_encoder.conv1_local.weight"][0] // hidden_dim,
                "inject_face_latents_blocks": config["num_layers"] // _count(shapes, "face_adapter"),
            }
        return config
    except KeyError as error:
        raise ValueError(f"The source has no tensor {error}, which every Wan transformer of its kind has.") from error


def _count(keys: Mapping[str, Any], module_list: str) -> int:
    pattern = re.compile(re.escape(module_list) + r"\.(\d+)\.")
    return 1 + max((int(match[1]) for match in map(pattern.match, keys) if match is not None), default=-1)
