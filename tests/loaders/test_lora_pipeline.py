"""LoRAs of every naming change the transformer by exactly alpha / rank * B A, or are refused."""

import copy

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_conversion_utils import (
    _convert_musubi_wan_lora_to_diffusers,
    _convert_non_diffusers_wan_lora_to_diffusers,
)
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from diffusers_dreamactor.loaders.lora_conversion import (
    convert_lora_from_dreamactor,
    convert_lora_to_dreamactor,
    fit_lora_to_transformer,
)
from diffusers_dreamactor.loaders.lora_pipeline import DreamActorLoraLoaderMixin
from diffusers_dreamactor.models.transformer_dreamactor import DreamActorTransformer3DModel


RANK = 2
BLOCK_NAMES = {
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
WAN_NAMES = {f"blocks.{i}.{wan}": f"blocks.{i}.{ours}" for i in range(2) for wan, ours in BLOCK_NAMES.items()}
OTHER_NAMES = {
    "patch_embedding": "patch_embedding",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_projection.1": "condition_embedder.time_proj",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "head.head": "proj_out",
}
OWN_NAMES = ["pose_patch_embedding", "face_encoder.conv2", "blocks.1.ref_attn.to_v", "blocks.0.face_attn.to_out"]


class LoraPipeline(DiffusionPipeline, DreamActorLoraLoaderMixin):
    def __init__(self, transformer):
        super().__init__()
        self.register_modules(transformer=transformer)


CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 8,
    "out_channels": 4,
    "pose_channels": 4,
    "text_dim": 10,
    "image_dim": 6,
    "freq_dim": 8,
    "ffn_dim": 32,
    "num_layers": 2,
    "motion_dim": 8,
    "face_encoder_hidden_dim": 8,
    "face_encoder_num_heads": 2,
}


def make_transformer(**overrides):
    torch.manual_seed(0)
    model = DreamActorTransformer3DModel(**{**CONFIG, **overrides})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture
def transformer():
    return make_transformer()


@pytest.fixture
def pipe(transformer):
    pipe = LoraPipeline(copy.deepcopy(transformer))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def predict(model):
    generator = torch.Generator().manual_seed(1)

    def randn(*shape):
        return torch.randn(1, *shape, generator=generator)

    return model(
        randn(8, 2, 4, 4),
        timestep=torch.tensor([500.0]),
        reference_hidden_states=randn(8, 1, 4, 4),
        pose_hidden_states=randn(4, 2, 4, 4),
        motion_hidden_states=randn(5, 8),
        encoder_hidden_states=randn(3, 10),
        encoder_hidden_states_image=randn(3, 6),
    ).sample


def make_deltas(transformer, names, bias=False):
    """For each of our module names: (A, B, alpha, bias difference)."""
    generator = torch.Generator().manual_seed(2)
    deltas = {}
    for index, name in enumerate(names):
        weight = transformer.get_submodule(name).weight
        down = 0.3 * torch.randn(RANK, *weight.shape[1:], generator=generator)
        up = 0.3 * torch.randn(weight.shape[0], RANK, *[1] * (weight.ndim - 2), generator=generator)
        difference = torch.randn(weight.shape[0], generator=generator) if bias else None
        deltas[name] = (down, up, (1.0, 2.0, 5.0)[index % 3], difference)
    return deltas


def expected_output(transformer, deltas, scale=1.0, use_alpha=True):
    model = copy.deepcopy(transformer)
    with torch.no_grad():
        for name, (down, up, alpha, difference) in deltas.items():
            module = model.get_submodule(name)
            product = (up.flatten(1) @ down.flatten(1)).view_as(module.weight)
            module.weight += scale * (alpha / RANK if use_alpha else 1.0) * product
            if difference is not None:
                module.bias += scale * difference
    return predict(model)


def named(deltas, names, prefix="", down="lora_down", up="lora_up", alpha=True, flat=False):
    """The deltas in a naming; `names`: theirs -> ours."""
    state_dict = {}
    for theirs, ours in names.items():
        key = prefix + (theirs.replace(".", "_") if flat else theirs)
        matrix_down, matrix_up, value, difference = deltas[ours]
        state_dict[f"{key}.{down}.weight"] = matrix_down.clone()
        state_dict[f"{key}.{up}.weight"] = matrix_up.clone()
        if alpha:
            state_dict[f"{key}.alpha"] = torch.tensor(value)
        if difference is not None:
            state_dict[f"{key}.{'diff_b' if 'A' not in down else 'lora_B.bias'}"] = difference.clone()
    return state_dict


OURS = {ours: ours for ours in WAN_NAMES.values()}
ALL_WAN = WAN_NAMES | OTHER_NAMES
PEFT_KEYS = {"down": "lora_A", "up": "lora_B", "alpha": False}


@pytest.mark.parametrize(
    ("names", "arguments"),
    [
        (OURS | {name: name for name in OWN_NAMES}, {"prefix": "transformer.", **PEFT_KEYS}),
        (OURS, {"prefix": "base_model.model.", **PEFT_KEYS}),
        (OURS, {"prefix": "base_model.model.", **PEFT_KEYS, "down": "lora_A.default", "up": "lora_B.default"}),
        (OURS, PEFT_KEYS),
        (OURS, {"prefix": "lora_unet_", "flat": True}),
        (ALL_WAN, PEFT_KEYS),
        (ALL_WAN, {"prefix": "pipe.dit.", **PEFT_KEYS}),
        (ALL_WAN, {"prefix": "diffusion_model.", **PEFT_KEYS}),
        (ALL_WAN, {"prefix": "diffusion_model."}),
        (ALL_WAN, {"prefix": "model.diffusion_model."}),
        (ALL_WAN, {"prefix": "lora_unet_", "flat": True}),
        (WAN_NAMES, {"prefix": "lora_unet_", "flat": True}),
    ],
    ids=lambda value: f"{len(value)} modules" if "prefix" not in value else value["prefix"],
)
def test_namings_load_exactly(pipe, transformer, tmp_path, names, arguments):
    deltas = make_deltas(transformer, names.values())
    expected = expected_output(transformer, deltas, use_alpha=arguments.get("alpha", True))
    state_dict = named(deltas, names, **arguments)
    assert (expected - predict(transformer)).abs().max() > 1e-2

    pipe.load_lora_weights(state_dict, adapter_name="given")
    torch.testing.assert_close(predict(pipe.transformer), expected, atol=2e-5, rtol=0)
    pipe.unload_lora_weights()
    torch.testing.assert_close(predict(pipe.transformer), predict(transformer), atol=0, rtol=0)

    save_file(state_dict, tmp_path / "lora.safetensors")
    pipe.load_lora_weights(tmp_path / "lora.safetensors")
    torch.testing.assert_close(predict(pipe.transformer), expected, atol=2e-5, rtol=0)


def test_step_distillation_lora_with_biases_and_differences(pipe, transformer):
    """As lightx2v's and CausVid's: biases on some modules, whole-weight differences, differences of norms."""
    names = {theirs: ours for theirs, ours in ALL_WAN.items() if "ffn" not in theirs and theirs != "head.head"}
    deltas = make_deltas(transformer, names.values(), bias=True)
    without_bias = make_deltas(transformer, ["blocks.0.ffn.net.2"])
    state_dict = named(deltas, names, prefix="diffusion_model.")
    state_dict |= named(without_bias, {"blocks.0.ffn.2": "blocks.0.ffn.net.2"}, prefix="diffusion_model.")

    model = copy.deepcopy(transformer)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for theirs, module in (("head.head", model.proj_out), ("blocks.1.ffn.0", model.blocks[1].ffn.net[0].proj)):
            for kind, parameter in (("diff", module.weight), ("diff_b", module.bias)):
                state_dict[f"diffusion_model.{theirs}.{kind}"] = torch.randn(parameter.shape, generator=generator)
                parameter += state_dict[f"diffusion_model.{theirs}.{kind}"]
        # Besides the LoRA, not instead of it.
        difference = torch.randn(model.patch_embedding.weight.shape, generator=generator)
        state_dict["diffusion_model.patch_embedding.diff"] = difference
        model.patch_embedding.weight += difference
        # Only a bias.
        difference = torch.randn(model.blocks[1].ffn.net[2].bias.shape, generator=generator)
        state_dict["diffusion_model.blocks.1.ffn.2.diff_b"] = difference
        model.blocks[1].ffn.net[2].bias += difference
    state_dict["diffusion_model.blocks.0.norm3.diff"] = torch.zeros(24)
    state_dict["diffusion_model.blocks.0.norm3.diff_b"] = torch.zeros(24)
    expected = expected_output(model, deltas | without_bias)

    pipe.load_lora_weights(state_dict)
    torch.testing.assert_close(predict(pipe.transformer), expected, atol=1e-4, rtol=1e-4)


def test_differences_that_no_adapter_holds_are_named(transformer):
    state_dict = named(make_deltas(transformer, OURS), WAN_NAMES, prefix="diffusion_model.")
    expected = convert_lora_to_dreamactor(state_dict)
    silent = {f"diffusion_model.blocks.0.{name}": torch.zeros(24) for name in ("norm3.diff", "norm3.diff_b")}
    messages = []
    logger = convert_lora_to_dreamactor.__globals__["logger"]
    original, logger.warning = logger.warning, lambda message, *arguments: messages.append(message)
    try:
        assert convert_lora_to_dreamactor(state_dict | silent).keys() == expected.keys()
        assert messages == []
        loud = {
            "diffusion_model.blocks.0.self_attn.norm_q.diff": torch.ones(24),
            "diffusion_model.blocks.1.modulation.diff": torch.ones(1, 6, 24),
        }
        assert convert_lora_to_dreamactor(state_dict | silent | loud).keys() == expected.keys()
    finally:
        logger.warning = original
    assert len(messages) == 1
    for key in loud:
        assert key in messages[0]
    for key in silent:
        assert key not in messages[0]


@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_wan_animate_face_blocks(naming):
    """Every second block has a face block; theirs are counted apart, with keys and values joined in the original."""
    transformer = make_transformer(num_layers=4, face_attention_interval=2)
    pipe = LoraPipeline(copy.deepcopy(transformer))
    face = [f"blocks.2.face_attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out")]
    deltas = make_deltas(transformer, [*face, "face_encoder.conv2"])
    down, _, alpha, _ = deltas["blocks.2.face_attn.to_k"]
    deltas["blocks.2.face_attn.to_v"] = (down, deltas["blocks.2.face_attn.to_v"][1], alpha, None)
    if naming == "diffusers":
        names = {f"face_adapter.1.{ours.rpartition('.')[2]}": ours for ours in face}
        state_dict = named(deltas, names | {"face_encoder.conv2": "face_encoder.conv2"}, prefix="transformer.")
    else:
        prefix = "diffusion_model.face_adapter.fuser_blocks.1"
        names = {"face_adapter.fuser_blocks.1.linear1_q": face[0], "face_adapter.fuser_blocks.1.linear2": face[3]}
        names["face_encoder.conv2.conv"] = "face_encoder.conv2"
        state_dict = named(deltas, names, prefix="diffusion_model.")
        state_dict[f"{prefix}.linear1_kv.lora_down.weight"] = down
        state_dict[f"{prefix}.linear1_kv.lora_up.weight"] = torch.cat([deltas[name][1] for name in face[1:3]])
        state_dict[f"{prefix}.linear1_kv.alpha"] = torch.tensor(alpha)
    pipe.load_lora_weights(state_dict)
    torch.testing.assert_close(predict(pipe.transformer), expected_output(transformer, deltas), atol=2e-5, rtol=0)

    # And back, by way of the original naming with its joint projection.
    converted = convert_lora_to_dreamactor(state_dict)
    original = convert_lora_from_dreamactor(converted, "comfyui", face_attention_interval=2)
    assert any("fuser_blocks.1.linear1_kv" in key for key in original)
    back = convert_lora_to_dreamactor(original)
    assert back.keys() == converted.keys()
    for key, tensor in converted.items():
        torch.testing.assert_close(back[key], tensor, atol=0, rtol=0)


def test_conversion_back_keeps_every_product(transformer):
    """Through every naming and back: bit for bit."""
    deltas = make_deltas(transformer, ALL_WAN.values(), bias=True)
    source = {f"transformer.{key}": value for key, value in convert_lora_to_dreamactor(named(deltas, ALL_WAN)).items()}
    keys = {
        "diffusers": "transformer.blocks.0.attn1.to_q.lora_A.weight",
        "wan": "blocks.0.self_attn.q.lora_A.weight",
        "comfyui": "diffusion_model.blocks.0.self_attn.q.lora_A.weight",
        "kohya": "lora_unet_blocks_0_self_attn_q.lora_down.weight",
    }
    for naming, key in keys.items():
        converted = convert_lora_from_dreamactor(source, naming)
        assert key in converted
        back = convert_lora_from_dreamactor(converted, "diffusers")
        assert back.keys() == source.keys()
        for name, tensor in source.items():
            torch.testing.assert_close(back[name], tensor, atol=0, rtol=0)


def test_joined_key_and_value_of_different_loras(transformer):
    deltas = make_deltas(transformer, ["blocks.0.face_attn.to_k", "blocks.0.face_attn.to_v"])
    source = named(deltas, {name: name for name in deltas}, prefix="transformer.", **PEFT_KEYS)
    original = convert_lora_from_dreamactor(source, "wan")
    prefix = "face_adapter.fuser_blocks.0.linear1_kv"
    assert original[f"{prefix}.lora_A.weight"].shape[0] == 2 * RANK
    back = convert_lora_to_dreamactor(original)
    for part in "kv":
        down, up, _, _ = deltas[f"blocks.0.face_attn.to_{part}"]
        product = back[f"face_adapter.0.to_{part}.lora_B.weight"] @ back[f"face_adapter.0.to_{part}.lora_A.weight"]
        torch.testing.assert_close(product, up @ down, atol=1e-6, rtol=0)


def test_our_own_modules_have_no_other_name(transformer):
    deltas = make_deltas(transformer, ["blocks.0.ref_attn.to_q", "blocks.0.attn1.to_q"])
    source = named(deltas, {name: name for name in deltas}, prefix="transformer.", **PEFT_KEYS)
    with pytest.raises(ValueError, match=r"1 modules.*'kohya' naming.*blocks\.0\.ref_attn\.to_q"):
        convert_lora_from_dreamactor(source, "kohya")
    with pytest.raises(ValueError, match="`naming` is 'a1111'.*'comfyui'"):
        convert_lora_from_dreamactor(source, "a1111")


def test_agrees_with_the_converters_of_diffusers(transformer):
    deltas = make_deltas(transformer, WAN_NAMES.values())
    for prefix, flat, convert in (
        ("diffusion_model.", False, _convert_non_diffusers_wan_lora_to_diffusers),
        ("lora_unet_", True, _convert_musubi_wan_lora_to_diffusers),
    ):
        state_dict = named(deltas, WAN_NAMES, prefix=prefix, flat=flat)
        ours, theirs = convert_lora_to_dreamactor(state_dict), convert(dict(state_dict))
        assert {f"transformer.{key}" for key in ours} == theirs.keys()
        for key in ours:
            if "lora_A" in key:
                up = key.replace("lora_A", "lora_B")
                torch.testing.assert_close(
                    ours[up] @ ours[key], theirs[f"transformer.{up}"] @ theirs[f"transformer.{key}"]
                )


def test_keys_that_match_nothing_are_listed(pipe, transformer):
    deltas = make_deltas(transformer, WAN_NAMES.values())
    state_dict = named(deltas, WAN_NAMES, prefix="diffusion_model.")
    down, up, alpha, _ = deltas["blocks.0.attn1.to_q"]
    stray = {
        "diffusion_model.blocks.7.self_attn.q": True,
        "diffusion_model.blocks.0.self_attn.qkv": True,
        "text_encoder.layers.0.wq": True,
    }
    strays = {f"{key}.{part}.weight": tensor for key in stray for part, tensor in (("lora_A", down), ("lora_B", up))}
    with pytest.raises(ValueError, match="6 keys of the LoRA match nothing") as error:
        pipe.load_lora_weights(state_dict | strays, strict=True)
    for name in ("blocks.7.attn1.to_q.lora_A", "blocks.0.self_attn.qkv.lora_B", "text_encoder.layers.0.wq.lora_A"):
        assert name in str(error.value)
    assert "blocks.0.attn1.to_k" not in str(error.value)

    for key in ("blocks.0.self_attn.q.dora_scale", "lora_unet_blocks_0_self_attn_z.lora_down.weight", "nonsense"):
        with pytest.raises(ValueError, match=f"match nothing.*{key}"):
            pipe.load_lora_weights(state_dict | {key: down}, strict=True)
    del state_dict["diffusion_model.blocks.0.self_attn.q.lora_up.weight"]
    with pytest.raises(ValueError, match="2 keys.*self_attn.q.lora_down.weight, .*self_attn.q.alpha"):
        pipe.load_lora_weights(state_dict, strict=True)
    # of a LoRA for another model nothing is left to load
    with pytest.raises(ValueError, match="6 keys of the LoRA match nothing|2 keys of the LoRA match nothing"):
        pipe.load_lora_weights(strays)
    assert not getattr(pipe.transformer, "peft_config", {})
    torch.testing.assert_close(predict(pipe.transformer), predict(transformer), atol=0, rtol=0)


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    """What the conversion warns of."""
    messages = []
    logger = convert_lora_to_dreamactor.__globals__["logger"]
    monkeypatch.setattr(logger, "warning", lambda message, *arguments: messages.append(message))
    return messages


def test_what_matches_loads_and_the_rest_is_counted_and_listed(pipe, transformer, warnings):
    deltas = make_deltas(transformer, WAN_NAMES.values())
    state_dict = named(deltas, WAN_NAMES, prefix="diffusion_model.")
    down, up, _, _ = deltas["blocks.0.attn1.to_q"]
    strays = {
        "diffusion_model.blocks.7.self_attn.q.lora_A.weight": down,
        "diffusion_model.blocks.7.self_attn.q.lora_B.weight": up,
        "nonsense": down,
    }
    pipe.load_lora_weights(state_dict | strays)
    torch.testing.assert_close(predict(pipe.transformer), expected_output(transformer, deltas), atol=2e-5, rtol=0)
    assert [message.split(" keys")[0] for message in warnings] == ["1", "2"]
    assert "nonsense" in warnings[0] and "blocks.7.attn1.to_q.lora_A.weight" in warnings[1]


def test_modulations_of_a_step_distillation_lora_are_named(pipe, transformer, warnings):
    deltas = make_deltas(transformer, WAN_NAMES.values())
    state_dict = named(deltas, WAN_NAMES, prefix="diffusion_model.")
    modulations = {f"diffusion_model.blocks.{i}.diff_m": torch.full((1, 6, 24), float(i)) for i in range(2)}
    pipe.load_lora_weights(state_dict | modulations)
    torch.testing.assert_close(predict(pipe.transformer), expected_output(transformer, deltas), atol=2e-5, rtol=0)
    # what is zero is no loss
    assert len(warnings) == 1 and warnings[0].startswith("1 differences") and "blocks.1.diff_m" in warnings[0]


def dora_output(transformer, deltas, magnitudes):
    """DoRA (arXiv 2402.09353, eq. 5): each row of `W + B A` scaled to its magnitude."""
    model = copy.deepcopy(transformer)
    with torch.no_grad():
        for name, (down, up, alpha, _) in deltas.items():
            module = model.get_submodule(name)
            weight = module.weight + alpha / RANK * up @ down
            module.weight.copy_(magnitudes[name][:, None] * weight / weight.norm(dim=1, keepdim=True))
    return predict(model)


@pytest.mark.parametrize("naming", ["peft", "peft with .weight", "comfyui"])
def test_dora(pipe, transformer, naming):
    deltas = make_deltas(transformer, WAN_NAMES.values())
    generator = torch.Generator().manual_seed(5)
    magnitudes = {
        ours: 0.5 + torch.rand(transformer.get_submodule(ours).weight.shape[0], generator=generator) for ours in deltas
    }
    names = WAN_NAMES if naming == "comfyui" else OURS
    state_dict = named(deltas, names, prefix="diffusion_model." if naming == "comfyui" else "transformer.")
    for theirs, ours in names.items():
        if naming == "comfyui":
            state_dict[f"diffusion_model.{theirs}.dora_scale"] = magnitudes[ours][:, None]
        else:
            suffix = ".weight" if naming == "peft with .weight" else ""
            state_dict[f"transformer.{theirs}.lora_magnitude_vector{suffix}"] = magnitudes[ours]
    pipe.load_lora_weights(state_dict)
    expected = dora_output(transformer, deltas, magnitudes)
    assert (expected - expected_output(transformer, deltas)).abs().max() > 1e-2
    torch.testing.assert_close(predict(pipe.transformer), expected, atol=1e-4, rtol=1e-4)

    del state_dict[next(key for key in state_dict if "magnitude" in key or "dora_scale" in key)]
    with pytest.raises(ValueError, match="23 modules of this LoRA have DoRA's magnitude and 1 do not"):
        LoraPipeline(copy.deepcopy(transformer)).load_lora_weights(state_dict)


def test_a_trained_dora_is_saved_and_loaded(pipe, transformer, tmp_path):
    pipe.transformer.add_adapter(LoraConfig(r=2, lora_alpha=4, use_dora=True, target_modules=["to_q", "to_k"]))
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, parameter in pipe.transformer.named_parameters():
            if "lora_B" in name or "magnitude" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    pipe.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(pipe.transformer),
        transformer_lora_adapter_metadata=pipe.transformer.peft_config["default"].to_dict(),
    )
    expected = predict(pipe.transformer)
    fresh = LoraPipeline(copy.deepcopy(transformer))
    fresh.load_lora_weights(tmp_path)
    torch.testing.assert_close(predict(fresh.transformer), expected, atol=1e-6, rtol=0)
    assert (expected - predict(transformer)).abs().max() > 1e-3


def test_a_lora_for_another_size_is_refused(pipe, transformer):
    deltas = make_deltas(transformer, ["blocks.0.attn1.to_q"])
    down, up, _, _ = deltas["blocks.0.attn1.to_q"]
    state_dict = {"blocks.0.self_attn.q.lora_A.weight": down.repeat(1, 2), "blocks.0.self_attn.q.lora_B.weight": up}
    with pytest.raises(
        ValueError, match=r"does not fit.*to_q.lora_A.weight has shape \(2, 48\), the model 24 channels"
    ):
        pipe.load_lora_weights(state_dict)


def test_peft_adapter_folder_keeps_its_alpha(pipe, transformer, tmp_path):
    config = LoraConfig(
        r=4, lora_alpha=12, target_modules=["to_q", "ref_attn.to_v"], alpha_pattern={"attn1.to_q": 2}, use_rslora=True
    )
    model = get_peft_model(copy.deepcopy(transformer), config)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path)
    expected = predict(model.base_model.model)
    pipe.load_lora_weights(tmp_path)
    torch.testing.assert_close(predict(pipe.transformer), expected, atol=2e-5, rtol=0)
    assert (expected - predict(transformer)).abs().max() > 1e-2


def test_save_set_fuse_unfuse_and_hotswap(pipe, transformer, tmp_path):
    names = list(OURS) + OWN_NAMES
    pipe.transformer.add_adapter(
        LoraConfig(r=RANK, lora_alpha=3, target_modules=names, init_lora_weights=False), "mine"
    )
    trained = predict(pipe.transformer)
    pipe.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(pipe.transformer, adapter_name="mine"),
        transformer_lora_adapter_metadata=pipe.transformer.peft_config["mine"].to_dict(),
    )
    assert all(key.startswith("transformer.") for key in load_file(tmp_path / "pytorch_lora_weights.safetensors"))

    fresh = LoraPipeline(copy.deepcopy(transformer))
    fresh.load_lora_weights(tmp_path, adapter_name="mine")
    assert fresh.transformer.peft_config["mine"].lora_alpha == 3
    torch.testing.assert_close(predict(fresh.transformer), trained, atol=1e-6, rtol=0)

    deltas = make_deltas(transformer, WAN_NAMES.values())
    fresh.load_lora_weights(named(deltas, WAN_NAMES, prefix="diffusion_model."), adapter_name="wan")
    fresh.set_adapters(["mine", "wan"], adapter_weights=[0.0, 0.5])
    half = expected_output(transformer, deltas, scale=0.5)
    torch.testing.assert_close(predict(fresh.transformer), half, atol=2e-5, rtol=0)

    fresh.set_adapters("wan")
    fresh.fuse_lora(adapter_names=["wan"])
    full = expected_output(transformer, deltas)
    torch.testing.assert_close(predict(fresh.transformer), full, atol=2e-5, rtol=0)
    fresh.unfuse_lora()
    fresh.disable_lora()
    torch.testing.assert_close(predict(fresh.transformer), predict(transformer), atol=2e-5, rtol=0)

    swapped = LoraPipeline(copy.deepcopy(transformer))
    swapped.load_lora_weights(named(deltas, WAN_NAMES, prefix="lora_unet_", flat=True), adapter_name="slot")
    other = make_deltas(transformer, reversed(WAN_NAMES.values()))
    swapped.load_lora_weights(named(other, WAN_NAMES, prefix="diffusion_model."), adapter_name="slot", hotswap=True)
    torch.testing.assert_close(predict(swapped.transformer), expected_output(transformer, other), atol=2e-5, rtol=0)


def test_a_text_to_video_lora_fits_an_image_to_video_model(pipe, transformer):
    names = {theirs: ours for theirs, ours in WAN_NAMES.items() if "img" not in theirs}
    deltas = make_deltas(transformer, names.values())
    pipe.load_lora_weights(named(deltas, names, prefix="diffusion_model."))
    torch.testing.assert_close(predict(pipe.transformer), expected_output(transformer, deltas), atol=2e-5, rtol=0)


def test_lora_on_a_model_without_text_is_refused_for_what_is_missing(transformer):
    model = make_transformer(text_dim=None, image_dim=None)
    state_dict = convert_lora_to_dreamactor(named(make_deltas(transformer, WAN_NAMES.values()), WAN_NAMES))
    with pytest.raises(ValueError, match="24 keys of the LoRA match nothing.*attn2.to_q.lora_A") as error:
        fit_lora_to_transformer(state_dict, model)
    assert "attn1" not in str(error.value)
