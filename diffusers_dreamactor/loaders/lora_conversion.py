"""LoRA keys of Wan's world and ours, in both directions."""

import re
from collections.abc import Mapping

import torch
from diffusers.utils import logging
from torch import nn


logger = logging.get_logger(__name__)

LORA_NAMINGS = ("diffusers", "wan", "comfyui", "kohya")

# Of original Wan, and of Diffusers and ours: inside a block, and outside.
_BLOCK_MODULES = {
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "self_attn.norm_q": "attn1.norm_q",
    "self_attn.norm_k": "attn1.norm_k",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "cross_attn.norm_q": "attn2.norm_q",
    "cross_attn.norm_k": "attn2.norm_k",
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "norm3": "norm2",
}
_MODULES = {
    "patch_embedding": "patch_embedding",
    "pose_patch_embedding": "pose_patch_embedding",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.head": "proj_out",
    "face_encoder.conv1_local.conv": "face_encoder.conv1_local",
    "face_encoder.conv2.conv": "face_encoder.conv2",
    "face_encoder.conv3.conv": "face_encoder.conv3",
    "face_encoder.out_proj": "face_encoder.out_proj",
}
# Wan-Animate's face blocks, `face_adapter.fuser_blocks.N.*`: of their own, not inside the blocks.
_FACE_MODULES = {
    "linear1_q": "to_q",
    "linear1_kv": "to_kv",
    "linear2": "to_out",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
# Ours alone.
_REF_MODULES = ("to_q", "to_k", "to_v", "to_out.0")

_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "pipe.dit.")
_FLAT_PREFIX = "lora_unet_"
# An adapter's name may stand after lora_A, as PEFT writes it for a model that is not unwrapped.
_KINDS = (
    (re.compile(r"(.+)\.(?:lora_A|lora_down)(?:\.[^.]+)?\.weight"), "down"),
    (re.compile(r"(.+)\.(?:lora_B|lora_up)(?:\.[^.]+)?\.weight"), "up"),
    (re.compile(r"(.+)\.lora_B(?:\.[^.]+)?\.bias"), "bias"),
    (re.compile(r"(.+)\.diff_b"), "bias"),
    (re.compile(r"(.+)\.(?:lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?|dora_scale)"), "magnitude"),
    (re.compile(r"(.+)\.(?:diff|modulation\.diff|diff_m)"), "diff"),
    (re.compile(r"(.+)\.alpha"), "alpha"),
)


def convert_lora_to_dreamactor(state_dict: Mapping[str, torch.Tensor], strict: bool = True) -> dict[str, torch.Tensor]:
    """
    Convert a LoRA for Wan, Wan-Animate or DreamActor to PEFT's keys on our module names.

    Understands Diffusers/PEFT, original Wan, ComfyUI (A/B, or down/up with alpha) and Kohya naming, with the usual
    prefixes. `alpha / rank` is folded into `lora_A`. Biases (`diff_b`) become `lora_B.bias`; whole-weight differences
    (`diff`), a LoRA of full rank; DoRA's magnitudes (`dora_scale`), `lora_magnitude_vector`. Differences of norms and
    modulations (`diff_m`), which no adapter can hold, are left out: silently when they are zero, with a warning that
    names them when not. A joint key and value projection is split.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): The file's tensors.
        strict (`bool`, defaults to `True`): Whether keys that no naming explains are an error, or a warning that lists them.

    Returns:
        `dict[str, torch.Tensor]`: `blocks.0.attn1.to_q.lora_A.weight` and so on, without a component's prefix. Keys of
        Wan-Animate's face blocks stay `face_adapter.N.*` until `fit_lora_to_transformer`, which knows in which blocks
        of the model they are.

    Raises:
        ValueError: For keys that no naming explains, all listed, when `strict`.
    """
    modules, keys, unknown = _group(state_dict)
    left_out = []
    converted = {}
    for name, parts in modules.items():
        last = name.rpartition(".")[2]
        no_adapter = "norm" in last or last == "scale_shift_table"
        if no_adapter and parts.keys() <= {"diff", "bias"}:
            left_out += [key for key in keys[name] if state_dict[key].any()]
            continue
        incomplete = ("down" in parts) != ("up" in parts) or (
            "up" not in parts and {"alpha", "magnitude"} & set(parts)
        )
        # a magnitude for each input instead of each output has no place in PEFT's DoRA
        if "magnitude" in parts and "up" in parts:
            incomplete |= parts["magnitude"].numel() != parts["up"].shape[0]
        if no_adapter or incomplete:
            unknown += keys[name]
            continue
        if "alpha" in parts:
            parts["down"] = parts["down"] * (parts["alpha"].item() / parts["down"].shape[0])
        if "diff" in parts:
            parts["down"], parts["up"] = _add_full_rank(parts["diff"], parts.get("down"), parts.get("up"))

        targets = [name]
        if name.endswith(".to_kv"):
            targets = [name.removesuffix("kv") + projection for projection in "kv"]
        for index, target in enumerate(targets):
            if "magnitude" in parts:
                magnitude = parts["magnitude"].flatten().chunk(len(targets))[index]
                converted[f"{target}.lora_magnitude_vector"] = magnitude.contiguous()
            for part, suffix in (("down", "lora_A.weight"), ("up", "lora_B.weight"), ("bias", "lora_B.bias")):
                if part in parts:
                    # Keys and values share the input, and each has its half of the output.
                    tensor = parts[part] if part == "down" else parts[part].chunk(len(targets))[index]
                    converted[f"{target}.{suffix}"] = tensor.contiguous()
    _report_unmatched(unknown, strict)
    if left_out:
        logger.warning(
            f"{len(left_out)} differences of norms or modulations in this LoRA are left out, because an adapter cannot"
            f" hold them: {', '.join(left_out)}."
        )
    return converted


def fit_lora_to_transformer(
    state_dict: Mapping[str, torch.Tensor], transformer: nn.Module, strict: bool = True
) -> dict[str, torch.Tensor]:
    """
    Check a converted LoRA against the model that is to take it, and fill in what depends on the model.

    Face blocks find their place in the blocks. Where some modules have a bias, all get one (zero), and a module that
    has only a bias gets a LoRA of rank 1 that is zero: PEFT knows biases for all modules or none.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): Of `convert_lora_to_dreamactor`.
        transformer (`DreamActorTransformer3DModel`): With or without adapters already loaded.
        strict (`bool`, defaults to `True`):
            Whether keys that match no module of the model are an error, or a warning that lists them.

    Raises:
        ValueError: For keys that match no module of the model, when `strict` or when none matches; for tensors whose shapes
            do not fit, and for modules without a magnitude where others have one, all listed.
    """
    interval = transformer.config.face_attention_interval
    # A module that already carries an adapter is wrapped, under its own name.
    modules = {name: getattr(module, "base_layer", module) for name, module in transformer.named_modules()}
    tensors, unknown, misfits, magnitudes = {}, [], [], {}
    for key, tensor in state_dict.items():
        name, part, kind = key.rpartition(".lora_")
        match = re.fullmatch(r"face_adapter\.(\d+)\.(.+)", name)
        if match is not None:
            name = f"blocks.{interval * int(match[1])}.face_attn.{match[2]}"
        module = modules.get(name)
        if not part or not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            unknown.append(key)
            continue
        if kind == "magnitude_vector":
            magnitudes[name] = tensor
        side = 1 if kind.startswith("A") else 0
        width = _widths(module)[side]
        if tensor.shape[side] != width:
            misfits.append(f"{key} has shape {tuple(tensor.shape)}, the model {width} channels")
        tensors[f"{name}.lora_{kind}"] = tensor
    _report_unmatched(unknown, strict or not tensors)
    if misfits:
        raise ValueError(f"The LoRA does not fit this transformer: {'; '.join(misfits)}.")
    adapted = {key.rpartition(".lora_")[0] for key in tensors}
    if magnitudes and len(magnitudes) < len(adapted):
        lacking = sorted(adapted - set(magnitudes))
        raise ValueError(
            f"{len(magnitudes)} modules of this LoRA have DoRA's magnitude and {len(lacking)} do not, which PEFT cannot mix:"
            f" {', '.join(lacking)}."
        )

    if any(key.endswith(".bias") for key in tensors):
        for name in dict.fromkeys(key.rpartition(".lora_")[0] for key in tensors):
            width_out, width_in = _widths(modules[name])
            reference = tensors.get(f"{name}.lora_B.weight", tensors.get(f"{name}.lora_B.bias"))
            kernel = (1,) * len(getattr(modules[name], "kernel_size", ()))
            window = tuple(getattr(modules[name], "kernel_size", ()))
            tensors.setdefault(f"{name}.lora_A.weight", reference.new_zeros(1, width_in, *window))
            tensors.setdefault(f"{name}.lora_B.weight", reference.new_zeros(width_out, 1, *kernel))
            tensors.setdefault(f"{name}.lora_B.bias", reference.new_zeros(width_out))
    # Diffusers tells the format by the first key, which has to be a `lora_A`.
    return dict(sorted(tensors.items()))


def convert_lora_from_dreamactor(
    state_dict: Mapping[str, torch.Tensor], naming: str, face_attention_interval: int = 5
) -> dict[str, torch.Tensor]:
    """
    Convert a LoRA on our module names to that of another program, for Wan or Wan-Animate weights there.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`):
            A LoRA as `save_lora_weights` writes it, or in any naming that `convert_lora_to_dreamactor` reads.
        naming (`str`):
            `"diffusers"` (`transformer.blocks.0.attn1.to_q.lora_A.weight`), `"wan"` (original modules, no prefix),
            `"comfyui"` (the same with `diffusion_model.`) or `"kohya"` (`lora_unet_blocks_0_self_attn_q.lora_down.weight`
            with alpha).
        face_attention_interval (`int`, defaults to `5`):
            Of the transformer's config: every how many blocks there is a face attention (5 in Wan-Animate).

    Raises:
        ValueError: For an unknown `naming`, and for keys that have no name there (`ref_attn`), all listed.
    """
    if naming not in LORA_NAMINGS:
        raise ValueError(f"`naming` is {naming!r}, but has to be one of {', '.join(map(repr, LORA_NAMINGS))}.")
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in convert_lora_to_dreamactor(state_dict).items():
        name, _, kind = key.rpartition(".lora_")
        match = re.fullmatch(r"blocks\.(\d+)\.face_attn\.(.+)", name)
        if match is not None and int(match[1]) % face_attention_interval == 0:
            name = f"face_adapter.{int(match[1]) // face_attention_interval}.{match[2]}"
        modules.setdefault(name, {})[kind] = tensor
    if naming != "diffusers":
        modules = _join_key_value(modules)

    converted, unknown = {}, []
    for name, parts in modules.items():
        target = name if naming == "diffusers" else _to_wan(name)
        if target is None or ".ref_attn." in target or ".face_attn." in target:
            unknown.append(name)
        elif naming == "kohya":
            flat = _FLAT_PREFIX + target.replace(".", "_")
            names = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight", "B.bias": "diff_b"}
            converted.update({f"{flat}.{names[kind]}": tensor for kind, tensor in parts.items()})
            if "A.weight" in parts:
                converted[f"{flat}.alpha"] = torch.tensor(float(parts["A.weight"].shape[0]))
        else:
            prefix = {"diffusers": "transformer.", "wan": "", "comfyui": "diffusion_model."}[naming]
            names = {"A.weight": "lora_A.weight", "B.weight": "lora_B.weight"}
            names["B.bias"] = "lora_B.bias" if naming == "diffusers" else "diff_b"
            converted.update({f"{prefix}{target}.{names[kind]}": tensor for kind, tensor in parts.items()})
    if unknown:
        raise ValueError(
            f"{len(unknown)} modules of this LoRA have no name in the {naming!r} naming (they are DreamActor's own):"
            f" {', '.join(unknown)}."
        )
    return converted


def _group(
    state_dict: Mapping[str, torch.Tensor],
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, list[str]], list[str]]:
    """The tensors of each module by our name and their kind, the keys that they came from, and keys without meaning."""
    modules, keys, unknown = {}, {}, []
    for key, tensor in state_dict.items():
        kind, match = next(
            ((kind, match) for pattern, kind in _KINDS if (match := pattern.fullmatch(key))), (None, None)
        )
        name = None
        if match is not None:
            is_modulation = key.endswith(("modulation.diff", ".diff_m"))
            name = _to_dreamactor(f"{match[1]}.scale_shift_table" if is_modulation else match[1])
        if name is None or kind in modules.get(name, {}):
            unknown.append(key)
            continue
        modules.setdefault(name, {})[kind] = tensor
        keys.setdefault(name, []).append(key)
    return modules, keys, unknown


def _to_dreamactor(name: str) -> str | None:
    """Our name of a module, `None` for one that cannot be read. Names that are ours already stay."""
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if name.startswith(prefix):
                name, stripped = name.removeprefix(prefix), True
    if name.startswith(_FLAT_PREFIX):
        return _unflatten(name.removeprefix(_FLAT_PREFIX))
    match = re.fullmatch(r"(blocks\.\d+\.)(.+)", name)
    if match is not None:
        return match[1] + _BLOCK_MODULES.get(match[2], match[2])
    match = re.fullmatch(r"face_adapter\.(?:fuser_blocks\.)?(\d+)\.(.+)", name)
    if match is not None:
        return f"face_adapter.{match[1]}.{_FACE_MODULES.get(match[2], match[2])}"
    return _MODULES.get(name, name)


def _unflatten(name: str) -> str | None:
    """Kohya writes underscores for dots, which only the list of all names tells from underscores."""
    match = re.fullmatch(r"(blocks|face_adapter(?:_fuser_blocks)?)_(\d+)_(.+)", name)
    if match is None:
        flat = {key.replace("_", "."): value for key, value in _MODULES.items()}
        flat |= {value.replace("_", "."): value for value in _MODULES.values()}
        return flat.get(name.replace("_", "."))
    if match[1] == "blocks":
        table = _BLOCK_MODULES | {f"ref_attn.{module}": f"ref_attn.{module}" for module in _REF_MODULES}
        table |= {f"face_attn.{module}": f"face_attn.{module}" for module in ("to_q", "to_k", "to_v", "to_out")}
        prefix = f"blocks.{match[2]}."
    else:
        table = _FACE_MODULES | {"to_k": "to_k", "to_v": "to_v"}
        prefix = f"face_adapter.{match[2]}."
    flat = {key.replace("_", "."): value for key, value in table.items()}
    flat |= {value.replace("_", "."): value for value in table.values()}
    module = flat.get(match[3].replace("_", "."))
    return None if module is None else prefix + module


def _to_wan(name: str) -> str | None:
    """The original name of a module of ours, with face blocks as `face_adapter.N.*`; `None` where there is none."""
    match = re.fullmatch(r"(blocks\.\d+\.)(.+)", name)
    if match is not None:
        original = {ours: wan for wan, ours in _BLOCK_MODULES.items()}.get(match[2])
        return None if original is None else match[1] + original
    match = re.fullmatch(r"face_adapter\.(\d+)\.(.+)", name)
    if match is not None:
        original = {ours: wan for wan, ours in _FACE_MODULES.items()}.get(match[2])
        return None if original is None else f"face_adapter.fuser_blocks.{match[1]}.{original}"
    return {ours: wan for wan, ours in _MODULES.items()}.get(name)


def _join_key_value(modules: dict[str, dict[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
    """The two projections of each face block as one, as in original Wan-Animate; the ranks add up."""
    joined = {}
    for name, parts in modules.items():
        match = re.fullmatch(r"(face_adapter\.\d+\.)to_[kv]", name)
        if match is None:
            joined[name] = parts
            continue
        if f"{match[1]}to_kv" in joined:
            continue
        key, value = modules.get(f"{match[1]}to_k"), modules.get(f"{match[1]}to_v")
        # A LoRA on one of the two is zero on the other.
        key = key or {kind: torch.zeros_like(tensor) for kind, tensor in value.items()}
        value = value or {kind: torch.zeros_like(tensor) for kind, tensor in key.items()}
        parts = {}
        if torch.equal(key["A.weight"], value["A.weight"]):
            parts["A.weight"] = key["A.weight"]
            parts["B.weight"] = torch.cat([key["B.weight"], value["B.weight"]])
        else:
            parts["A.weight"] = torch.cat([key["A.weight"], value["A.weight"]])
            parts["B.weight"] = torch.block_diag(key["B.weight"], value["B.weight"])
        if "B.bias" in key or "B.bias" in value:
            halves = [part.get("B.bias", part["B.weight"].new_zeros(len(part["B.weight"]))) for part in (key, value)]
            parts["B.bias"] = torch.cat(halves)
        joined[f"{match[1]}to_kv"] = parts
    return joined


def _add_full_rank(
    diff: torch.Tensor, down: torch.Tensor | None, up: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`lora_A` and `lora_B` whose product is `diff` (a linear or convolution weight), beside a LoRA that is there."""
    width_out, width_in = diff.shape[0], diff[0].numel()
    ones = (1,) * (diff.ndim - 2)
    if width_out <= width_in:
        full_down, full_up = diff, torch.eye(width_out).to(diff).view(width_out, width_out, *ones)
    else:
        full_down = torch.eye(width_in).to(diff).view(width_in, *diff.shape[1:])
        full_up = diff.reshape(width_out, width_in, *ones)
    if down is None:
        return full_down, full_up
    return torch.cat([down, full_down]), torch.cat([up, full_up], dim=1)


def _widths(module: nn.Module) -> tuple[int, int]:
    # Not the weight's shape, which quantisation packs.
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return module.out_channels, module.in_channels


def _report_unmatched(keys: list[str], strict: bool) -> None:
    """An error, or a warning, that counts and lists the keys that have no place."""
    if not keys:
        return
    message = f"{len(keys)} keys of the LoRA match nothing in the transformer: {', '.join(keys)}."
    if strict:
        raise ValueError(message)
    logger.warning(f"{message} The rest of it is loaded.")
