"""LoRA files converted there and back change the weights by the same amount, or are declined with all their keys."""

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from diffusers_dreamactor import DreamActorPipeline


MODULES = ["to_q", "to_k", "to_v", "to_out.0", "face_attn.to_out", "ffn.net.0.proj", "ffn.net.2", "proj_out"]


@pytest.fixture(scope="module")
def pipeline(converted) -> DreamActorPipeline:
    return DreamActorPipeline.from_pretrained(converted)


def differences(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What each module's weight changes by, for keys `NAME.lora_A.weight` and `NAME.lora_B.weight`."""
    names = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
    return {name: tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"] for name in names}


def assert_same_differences(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    actual, expected = differences(actual), differences(expected)
    assert actual.keys() == expected.keys() and len(expected) > 0
    for name in expected:
        assert expected[name].abs().max() > 1e-3
        assert torch.allclose(actual[name], expected[name], atol=1e-6), name


@pytest.fixture
def saved(pipeline, tmp_path):
    """A LoRA of rank 2 with alpha 6, as the pipeline saves it, alpha in the header; and its alpha-free weights."""
    torch.manual_seed(3)
    config = LoraConfig(r=2, lora_alpha=6, target_modules=MODULES, init_lora_weights=False)
    pipeline.transformer.add_adapter(config, adapter_name="test")
    tensors = get_peft_model_state_dict(pipeline.transformer, adapter_name="test")
    pipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=tensors,
        weight_name="saved.safetensors",
        transformer_lora_adapter_metadata=config.to_dict(),
    )
    expected = {f"transformer.{k}": v.detach().clone() * (3 if "lora_A" in k else 1) for k, v in tensors.items()}
    pipeline.transformer.delete_adapters("test")
    return tmp_path / "saved.safetensors", expected


@pytest.mark.parametrize("naming", ["diffusers", "wan", "comfyui", "kohya"])
def test_there_and_back(saved, converted, tmp_path, naming):
    from diffusers_dreamactor.conversion.convert_lora import convert

    source, expected = saved
    convert(source, tmp_path / "there.safetensors", naming, converted)
    there = load_file(tmp_path / "there.safetensors")
    start = {
        "diffusers": "transformer.blocks.3.attn1.to_q.",
        "wan": "blocks.3.self_attn.q.",
        "comfyui": "diffusion_model.blocks.3.self_attn.q.",
        "kohya": "lora_unet_blocks_3_self_attn_q.",
    }
    assert any(key.startswith(start[naming]) for key in there)
    face = {"diffusers": "face_adapter.1.", "kohya": "face_adapter_fuser_blocks_1_"}.get(
        naming, "face_adapter.fuser_blocks.1."
    )
    assert any(face in key for key in there) and not any("face_attn" in key for key in there)
    convert(tmp_path / "there.safetensors", tmp_path / "back.safetensors", repository=converted)
    assert_same_differences(load_file(tmp_path / "back.safetensors"), expected)


def test_converted_file_loads_as_it_is(saved, pipeline, converted, tmp_path):
    from diffusers_dreamactor.conversion.convert_lora import convert

    source, expected = saved
    convert(source, tmp_path / "for_us.safetensors", repository=converted)
    weight = pipeline.transformer.blocks[2].attn2.to_v.weight
    before = weight.detach().clone()
    pipeline.load_lora_weights(tmp_path / "for_us.safetensors", adapter_name="converted")
    pipeline.fuse_lora()
    change = pipeline.transformer.blocks[2].attn2.to_v.base_layer.weight - before
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()
    assert torch.allclose(change, differences(expected)["transformer.blocks.2.attn2.to_v"], atol=1e-5)


def test_dtype(saved, tmp_path):
    from diffusers_dreamactor.conversion.convert_lora import convert

    convert(saved[0], tmp_path / "half.safetensors", dtype=torch.float16)
    assert {tensor.dtype for tensor in load_file(tmp_path / "half.safetensors").values()} == {torch.float16}


def test_unknown_keys_are_all_listed(converted, tmp_path):
    from diffusers_dreamactor.conversion.convert_lora import convert

    known = {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.ones(2, 24)}
    known["diffusion_model.blocks.0.self_attn.q.lora_B.weight"] = torch.ones(24, 2)
    unknown = {f"diffusion_model.mystery.{i}.lora_{side}.weight": torch.ones(2, 2) for i in range(3) for side in "AB"}
    save_file(known | unknown, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError) as error:
        convert(tmp_path / "lora.safetensors", tmp_path / "out.safetensors", repository=converted)
    assert all(f"mystery.{i}" in str(error.value) for i in range(3)) and "self_attn" not in str(error.value)
    assert not list(tmp_path.glob("*out.safetensors*"))


def test_broken_sources(saved, tmp_path):
    from diffusers_dreamactor.conversion.convert_lora import convert

    with pytest.raises(OSError, match="no such file"):
        convert(tmp_path / "nothing.safetensors", tmp_path / "out.safetensors")
    torch.save({"a": torch.ones(1)}, tmp_path / "lora.pt")
    with pytest.raises(OSError, match="pickle"):
        convert(tmp_path / "lora.pt", tmp_path / "out.safetensors")
    content = saved[0].read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match="truncated"):
        convert(tmp_path / "cut.safetensors", tmp_path / "out.safetensors")
    with pytest.raises(FileExistsError, match="--output"):
        convert(saved[0], saved[0])
    assert not (tmp_path / "out.safetensors").exists()
