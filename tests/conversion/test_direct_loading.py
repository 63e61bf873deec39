"""A `WanAnimatePipeline` repository is loaded as it is: the same frames, nothing written, weights mapped from their files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, WanAnimateTransformer3DModel
from safetensors.torch import load_file, save_file

from diffusers_dreamactor import DreamActorPipeline, DreamActorTransformer3DModel, DreamActorWanAnimatePipeline
from diffusers_dreamactor.cli import main
from diffusers_dreamactor.loaders.wan_animate import load_models

from ..processes import ScriptProcess
from .test_wan_animate_pipeline import assert_same_frames, compare, dreamactor  # noqa: F401


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("prompts")


@pytest.fixture(scope="module")
def direct(wan_animate_source, cache) -> DreamActorWanAnimatePipeline:
    pipeline = DreamActorPipeline.from_pretrained(wan_animate_source, prompt_cache=cache)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.mark.parametrize("mode", ["animate", "replace"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_three_segments_are_the_source_s(compare, direct, mode, guidance_scale):  # noqa: F811
    assert_same_frames(*compare(24, guidance_scale, mode, steps=2, pipeline=direct))


def test_it_is_what_conversion_gives(direct, converted):
    stored = DreamActorPipeline.from_pretrained(converted)
    for name in ("transformer", "face_motion_encoder", "vae", "image_encoder", "prompt_embedding"):
        ours, theirs = getattr(direct, name).state_dict(), getattr(stored, name).state_dict()
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            assert ours[key].dtype == tensor.dtype and torch.equal(ours[key], tensor), key
    configs = [dict(pipeline.motion_processor.config) for pipeline in (direct, stored)]
    for config in configs:
        for key in ("_use_default_values", "_class_name", "_diffusers_version"):
            config.pop(key, None)
    assert configs[0] == configs[1]
    for name in ("num_inference_steps", "guidance_scale", "segment_frames", "fps"):
        assert direct.config[name] == stored.config[name]
    assert type(direct.scheduler) is type(stored.scheduler)


def test_half_precision_keeps_what_the_model_keeps(wan_animate_source, converted, cache):
    half = DreamActorPipeline.from_pretrained(wan_animate_source, dtype=torch.bfloat16, prompt_cache=cache)
    stored = DreamActorPipeline.from_pretrained(converted, dtype=torch.bfloat16)
    expected = stored.transformer.state_dict()
    assert {torch.float32, torch.bfloat16} == {tensor.dtype for tensor in expected.values()}
    for key, tensor in half.transformer.state_dict().items():
        assert tensor.dtype == expected[key].dtype and torch.equal(tensor, expected[key]), key
    mixed = {"vae": torch.float32, "default": torch.bfloat16}
    mixed = DreamActorPipeline.from_pretrained(wan_animate_source, dtype=mixed, prompt_cache=cache)
    assert (mixed.vae.dtype, mixed.transformer.dtype, mixed.image_encoder.dtype) == (
        torch.float32,
        torch.bfloat16,
        torch.bfloat16,
    )


def test_only_the_prompt_s_states_are_written_and_only_once(wan_animate_source, tmp_path):
    source = shutil.copytree(wan_animate_source, tmp_path / "source")
    before = listing(tmp_path)
    cache = tmp_path / "cache"
    first = DreamActorPipeline.from_pretrained(source, prompt_cache=cache)
    after = listing(tmp_path)
    assert {path: after[path] for path in before} == before
    (stored,) = cache.iterdir()
    assert set(after) - set(before) == {str(cache), str(stored)}
    # the text encoder is not needed a second time
    for path in (source / "text_encoder").glob("*.safetensors"):
        path.write_bytes(b"")
    states = first.prompt_embedding.state_dict()
    moved = cache / "moved.safetensors"
    stored.rename(moved)
    with pytest.raises((OSError, ValueError)):
        DreamActorPipeline.from_pretrained(source, prompt_cache=cache)
    assert [path.name for path in cache.iterdir()] == ["moved.safetensors"]
    assert states["prompt_embeds"].shape == (1, 512, 16)


def test_own_prompts_with_the_text_encoder(compare, wan_animate_source, cache):  # noqa: F811
    pipeline = DreamActorPipeline.from_pretrained(wan_animate_source, keep_text_encoder=True, prompt_cache=cache)
    pipeline.set_progress_bar_config(disable=True)
    prompts = {"prompt": "a person", "negative_prompt": "person  a"}
    assert_same_frames(*compare(9, 3.0, pipeline=pipeline, source_prompts=prompts, our_prompts=prompts))


def test_components_and_config_of_the_caller(wan_animate_source, cache, direct):
    pipeline = DreamActorPipeline.from_pretrained(
        wan_animate_source, prompt_cache=cache, vae=direct.vae, num_inference_steps=4
    )
    assert pipeline.vae is direct.vae and pipeline.config.num_inference_steps == 4


def test_weights_of_a_variant(wan_animate, wan_animate_source, cache, tmp_path):
    source = shutil.copytree(wan_animate_source, tmp_path / "source")
    for path in (source / "transformer").glob("*.safetensors*"):
        path.unlink()
    wan_animate.transformer.save_pretrained(source / "transformer", variant="fp16", max_shard_size="60KB")
    models = load_models(source, variant="fp16")
    expected = load_models(wan_animate_source)
    for name, model in models.items():
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, expected[name].state_dict()[key])
    with pytest.raises(OSError, match="has no safetensors file"):
        load_models(source)


def test_a_quantised_transformer_is_close(compare, direct, wan_animate_source, cache):  # noqa: F811
    pytest.importorskip("torchao", reason="torchao is not installed")
    from diffusers import PipelineQuantizationConfig, TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    config = PipelineQuantizationConfig(quant_mapping={"transformer": TorchAoConfig(Int8WeightOnlyConfig())})
    pipeline = DreamActorPipeline.from_pretrained(wan_animate_source, quantization_config=config, prompt_cache=cache)
    pipeline.set_progress_bar_config(disable=True)
    # stored in a byte for each weight, and not only rounded to bfloat16
    assert type(pipeline.transformer.blocks[0].attn1.to_q.weight).__name__ == "Int8Tensor"
    expected, actual = compare(9, 1.0, pipeline=pipeline)
    assert 0 < (expected - actual).abs().max() < 0.1


@pytest.mark.parametrize(
    "change, message",
    [
        ("missing", "lacks tensors of DreamActorTransformer3DModel: `patch_embedding.bias`"),
        ("left over", "has tensors that DreamActorTransformer3DModel has no place for: `blocks.0.attn1.to_q.scale`"),
        ("class", "holds a WanTransformer3DModel, but a WanAnimateTransformer3DModel is needed"),
    ],
)
def test_weights_that_do_not_fit(wan_animate, wan_animate_source, tmp_path, change, message):
    source = shutil.copytree(wan_animate_source, tmp_path / "source")
    for path in (source / "transformer").glob("*.safetensors*"):
        path.unlink()
    wan_animate.transformer.save_pretrained(source / "transformer")
    file = source / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    if change == "missing":
        del tensors["patch_embedding.bias"]
    elif change == "left over":
        tensors["blocks.0.attn1.to_q.scale"] = torch.ones(1)
    else:
        config = source / "transformer" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "WanTransformer3DModel"}))
    save_file(tensors, file)
    with pytest.raises(ValueError, match=message):
        load_models(source)


def test_a_model_of_another_class_is_not_half_loaded(wan_animate_source):
    with pytest.raises(ValueError, match="holds a WanAnimateTransformer3DModel, but a DreamActorTransformer3DModel"):
        DreamActorTransformer3DModel.from_pretrained(wan_animate_source, subfolder="transformer")


def test_repositories_that_cannot_be(wan_animate_source, tmp_path, capsys):
    index = json.loads((wan_animate_source / "model_index.json").read_text())
    for name, message in (
        ("WanImageToVideoPipeline", "`dreamactor convert wan-i2v` makes one to train"),
        (
            "StableDiffusionPipeline",
            "but one of DreamActorPipeline, DreamActorWanAnimatePipeline or WanAnimatePipeline",
        ),
    ):
        (tmp_path / "model_index.json").write_text(json.dumps(index | {"_class_name": name}))
        with pytest.raises(ValueError, match=f"is a repository of {name}.*{message}"):
            DreamActorPipeline.from_pretrained(tmp_path)
    for wrong in ("nowhere", "/no/such/folder"):
        with pytest.raises(FileNotFoundError, match=f"`{wrong}` is no folder and no Hub id"):
            DreamActorPipeline.from_pretrained(wrong)
    with pytest.raises(ValueError, match="`device_map` is 'balanced'"):
        DreamActorPipeline.from_pretrained(wan_animate_source, device_map="balanced")
    # Diffusers' own class still loads its own
    assert type(DiffusionPipeline.from_pretrained(wan_animate_source)).__name__ == "WanAnimatePipeline"


def test_the_command_takes_the_repository(wan_animate_source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    from diffusers_dreamactor.checkpoints import bundled_avatars, bundled_motions

    avatar = bundled_avatars()["ana"]
    command = [
        "animate",
        avatar,
        "--driving",
        bundled_motions()["wave"],
        "--frames",
        5,
        "--steps",
        1,
        "--size",
        "48x32",
    ]
    command += ["--reference-motion", avatar.with_suffix(".safetensors"), "--model", wan_animate_source]
    assert main([str(word) for word in [*command, "--device", "cpu", "--output", tmp_path / "out.mp4"]]) == 0
    assert (tmp_path / "out.mp4").stat().st_size > 0
    assert len(list((tmp_path / "home" / ".cache" / "diffusers_dreamactor" / "prompts").iterdir())) == 1


MEASURE = """
import sys
from pathlib import Path

import torch

from diffusers_dreamactor.loaders.wan_animate import load_models


def read() -> int:
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024


before = read()
models = load_models(Path(sys.argv[1]))
own = read()
cast = load_models(Path(sys.argv[1]), torch.float16)
print(sum(p.nbytes for p in models["transformer"].parameters()), own - before, read() - own)
"""


def test_weights_of_the_source_s_dtype_stay_in_their_files(tmp_path):
    """A larger transformer: what loading adds in anonymous memory is a small part of the weights; cast, little more."""
    with torch.device("meta"):
        source = WanAnimateTransformer3DModel(
            num_attention_heads=8,
            attention_head_dim=128,
            text_dim=64,
            ffn_dim=4096,
            num_layers=10,
            image_dim=64,
            added_kv_proj_dim=1024,
            motion_encoder_size=16,
            motion_encoder_channel_sizes={"4": 16, "8": 12, "16": 8},
            motion_style_dim=8,
            motion_dim=4,
            motion_encoder_dim=16,
            face_encoder_hidden_dim=16,
            face_encoder_num_heads=2,
            inject_face_latents_blocks=5,
        )
    source = source.to(torch.bfloat16).to_empty(device="cpu")
    source.save_pretrained(tmp_path / "transformer", max_shard_size="100MB")
    del source
    # in a process of its own, which has no freed memory that would be used again; both models are kept until it ends
    (tmp_path / "measure.py").write_text(MEASURE)
    result = ScriptProcess(tmp_path / "measure.py", tmp_path).finish()
    weights, own, cast = map(int, result.split()[-3:])
    assert weights > 3e8 and own < 0.1 * weights and cast < weights + 3e8
