"""Step-distillation LoRAs: the four steps that they were distilled with, and exactly their change of the weights."""

import re

import pytest
import torch
from diffusers import FlowMatchLCMScheduler
from safetensors.torch import save_file

from diffusers_dreamactor import DreamActorPipeline, use_few_steps
from diffusers_dreamactor.checkpoints import bundled_avatars, bundled_motions
from diffusers_dreamactor.cli import main
from diffusers_dreamactor.memory.generation import blank_inputs
from diffusers_dreamactor.pipelines.few_steps import load_lora, split_lora_name


RANK = 32


@pytest.fixture(scope="module")
def load(wan_animate_source, tmp_path_factory):
    cache = tmp_path_factory.mktemp("prompts")

    def load() -> DreamActorPipeline:
        pipe = DreamActorPipeline.from_pretrained(wan_animate_source, prompt_cache=cache)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return load


@pytest.fixture(scope="module")
def lora(load, tmp_path_factory):
    """A file as lightx2v's: rank 32 in ComfyUI's naming, biases (`diff_b`) and norms (`diff`) beside it, modulations
    (`diff_m`) of zero; and the change of each of our parameters."""
    torch.manual_seed(0)
    tensors, changes = {}, {}
    names = {"self_attn.q": "attn1.to_q", "self_attn.o": "attn1.to_out.0", "cross_attn.k": "attn2.to_k"}
    names |= {"cross_attn.v_img": "attn2.add_v_proj", "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2"}
    transformer = load().transformer
    for number in range(len(transformer.blocks)):
        for theirs, ours in names.items():
            module = transformer.get_submodule(f"blocks.{number}.{ours}")
            down, up = 0.1 * torch.randn(RANK, module.in_features), 0.1 * torch.randn(module.out_features, RANK)
            bias = 0.1 * torch.randn(module.out_features)
            key, alpha = f"diffusion_model.blocks.{number}.{theirs}", 16.0
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.diff_b": bias}
            tensors[f"{key}.alpha"] = torch.tensor(alpha)
            changes[f"blocks.{number}.{ours}.weight"] = alpha / RANK * up @ down
            changes[f"blocks.{number}.{ours}.bias"] = bias
        width = transformer.blocks[number].scale_shift_table.shape[-1]
        tensors[f"diffusion_model.blocks.{number}.diff_m"] = torch.zeros(1, 6, width)
        tensors[f"diffusion_model.blocks.{number}.norm3.diff"] = torch.zeros(width)
    head = transformer.proj_out
    changes["proj_out.weight"] = 0.1 * torch.randn(head.weight.shape)
    tensors["diffusion_model.head.head.diff"] = changes["proj_out.weight"]
    file = tmp_path_factory.mktemp("lora") / "step_distill_rank32.safetensors"
    save_file(tensors, file)
    return file, changes


def generate(pipe, **arguments) -> torch.Tensor:
    inputs = blank_inputs(pipe, 32, 48, 9)
    generator = torch.Generator().manual_seed(0)
    return pipe(inputs, segment_frames=5, generator=generator, output_type="pt", **arguments).frames


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_four_steps_of_the_merged_weights(load, lora, weight):
    file, changes = lora
    pipe = load()
    few = use_few_steps(pipe, file, weight)
    seen = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["timestep"].item()), with_kwargs=True
    )
    actual = generate(pipe, **few)
    # lightx2v's steps, two segments, no guidance
    assert seen == pytest.approx(2 * [1000.0, 937.5, 833.333, 625.0], abs=1e-2)

    merged = load()
    with torch.no_grad():
        for name, change in changes.items():
            merged.transformer.get_parameter(name).data = merged.transformer.get_parameter(name) + weight * change
    merged.scheduler = FlowMatchLCMScheduler(shift=5.0)
    expected = generate(merged, sigmas=[1.0, 0.75, 0.5, 0.25], guidance_scale=1.0)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
    plain = load()
    plain.scheduler = FlowMatchLCMScheduler(shift=5.0)
    assert (generate(plain, **few) - expected).abs().max() > 1e-2


def test_another_lora_beside_it(load, lora, tmp_path):
    """Such as the relighting one: both count, each as strong as it was asked to be."""
    file, changes = lora
    pipe = load()
    few = use_few_steps(pipe, file, 0.5)
    shape = pipe.transformer.blocks[0].attn1.to_v.weight.shape
    torch.manual_seed(1)
    down, up = torch.randn(4, shape[1]), torch.randn(shape[0], 4)
    key = "transformer.blocks.0.attn1.to_v"
    save_file({f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}, tmp_path / "relight.safetensors")
    load_lora(pipe, tmp_path / "relight.safetensors", 0.25, "relight")
    assert sorted(pipe.get_active_adapters()) == ["few_steps", "relight"]

    merged = load()
    changes = {name: 0.5 * change for name, change in changes.items()}
    changes["blocks.0.attn1.to_v.weight"] = 0.25 * up @ down
    with torch.no_grad():
        for name, change in changes.items():
            merged.transformer.get_parameter(name).data = merged.transformer.get_parameter(name) + change
    merged.scheduler = FlowMatchLCMScheduler(shift=5.0)
    torch.testing.assert_close(generate(pipe, **few), generate(merged, **few), atol=1e-4, rtol=0)


def test_weights_without_a_public_lora_need_one(load):
    with pytest.raises(
        ValueError, match="`lora` is None, but a step-distillation LoRA for these weights has to be given"
    ):
        use_few_steps(load())


@pytest.mark.parametrize(
    "name, expected",
    [
        ("owner/repository", ("owner/repository", {})),
        ("owner/repository/folder/file.safetensors", ("owner/repository", {"weight_name": "folder/file.safetensors"})),
        ("missing.safetensors", None),
        ("folder/missing.safetensors", None),
    ],
)
def test_names_of_loras(name, expected):
    if expected is None:
        with pytest.raises(FileNotFoundError, match=re.escape(f"`lora` is {name}, but there is no such file")):
            split_lora_name(name)
    else:
        assert split_lora_name(name) == expected


def test_the_command(wan_animate_source, lora, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    avatar = next(iter(bundled_avatars().values()))
    command = ["animate", str(avatar), "--reference-motion", str(avatar.with_suffix(".safetensors")), "--frames", "5"]
    command += ["--driving", str(bundled_motions()["talk"]), "--output", str(tmp_path / "out.mp4")]
    command += ["--model", str(wan_animate_source), "--device", "cpu", "--size", "32x48", "--fast"]
    assert main([*command, "--lora", f"{lora[0]}@0.8"]) == 0
    assert (tmp_path / "out.mp4").is_file()
    capsys.readouterr()
    assert main([*command, "--lora", "nowhere.safetensors"]) == 1
    assert "`--lora` is nowhere.safetensors, but there is no such file" in capsys.readouterr().err
    assert main([*command, "--lora", str(lora[0]), "--steps", "8"]) == 1
    assert "`--steps` is 8, but `--fast` takes the four" in capsys.readouterr().err
    assert main(command) == 1
    assert "`--lora` is None" in capsys.readouterr().err
