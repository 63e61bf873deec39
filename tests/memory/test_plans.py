"""Memory plans: what they count is what there is, and what they do changes no frame."""

import gc
import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanAnimateTransformer3DModel
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from diffusers_dreamactor import DreamActorPipeline, list_memory_plans, plan_memory
from diffusers_dreamactor.checkpoints import bundled_avatars, save_random_pipeline
from diffusers_dreamactor.cli import main
from diffusers_dreamactor.memory.generation import blank_inputs, cached_bytes, trace_generation
from diffusers_dreamactor.memory.meta_pipeline import meta_pipeline
from diffusers_dreamactor.memory.plans import GIB, MemoryPlan
from diffusers_dreamactor.memory.tracing import trace_memory


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "random"
    save_random_pipeline(folder)
    return folder


@pytest.fixture(scope="module")
def true_size(tmp_path_factory) -> Path:
    """Wan2.2-Animate-14B's configs, and no weights."""
    folder = tmp_path_factory.mktemp("model") / "wan-animate"
    with torch.device("meta"):
        transformer = WanAnimateTransformer3DModel(image_dim=1280, added_kv_proj_dim=5120)
        vae = AutoencoderKLWan()
    transformer.save_config(folder / "transformer")
    vae.save_config(folder / "vae")
    sizes = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    CLIPVisionConfig(**sizes, patch_size=14, projection_dim=1024).save_pretrained(folder / "image_encoder")
    UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True).save_pretrained(
        folder / "scheduler"
    )
    CLIPImageProcessor().save_pretrained(folder / "image_processor")
    index = {
        "_class_name": "WanAnimatePipeline",
        "image_encoder": ["transformers", "CLIPVisionModel"],
        "image_processor": ["transformers", "CLIPImageProcessor"],
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "transformer": ["diffusers", "WanAnimateTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def generate(pipe, **arguments) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 2, "segment_frames": 5, "output_type": "pt", **arguments}
    generator = torch.Generator().manual_seed(0)
    return pipe(blank_inputs(pipe, 32, 32, 7), generator=generator, **arguments).frames


def test_the_trace_counts_what_lives_and_forgets_what_is_gone():
    layer = torch.nn.Linear(256, 512, bias=False, device="meta")
    with trace_memory({"layer": layer}) as trace:
        x = torch.zeros(64, 256, device="meta")
        y = layer(x)
        assert trace.live == 4 * (64 * 256 + 64 * 512)
        y = y.view(-1)[1:].view(-1)
        z = y + 1
        del x
        assert trace.live == 4 * (64 * 512 + 64 * 512 - 1)
        del y, z
        query = torch.zeros(1, 2, 1000, 16, device="meta")
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert trace.peak == trace.peaks["layer"] == 4 * (64 * 256 + 64 * 512 + 64 * 512 - 1)
    assert trace.live == query.nbytes


def test_weights_of_true_size_are_those_of_the_shapes(true_size):
    """Bytes by dtype, counted from the source's own classes on the meta device."""
    with torch.device("meta"):
        source = WanAnimateTransformer3DModel(image_dim=1280, added_kv_proj_dim=5120)
        vae = AutoencoderKLWan()
        sizes = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
        image_encoder = CLIPVisionModel(CLIPVisionConfig(**sizes, patch_size=14, projection_dim=1024))
    # kept by the class, and by ours, which has the motion encoder in a model of its own
    kept = re.compile(r"\b(time_embedder|scale_shift_table|norm1|norm2|norm3|motion_synthesis_weight)\b")
    in_float32 = sum(p.numel() for n, p in source.named_parameters() if kept.search(n))
    in_bfloat16 = sum(p.numel() for n, p in source.named_parameters() if not kept.search(n))
    others = sum(p.numel() for model in (vae, image_encoder) for p in model.parameters())
    # two prompts' states
    states = 2 * 512 * 4096
    expected = 4 * in_float32 + 2 * (in_bfloat16 + others + states)
    assert 17.2e9 < in_float32 + in_bfloat16 < 17.4e9

    plans = {plan.name: plan for plan in list_memory_plans(true_size, 64, 64, 5, device="cuda")}
    # besides the parameters there are rotary tables, blur kernels and positions
    assert expected <= plans["bfloat16"].weights < expected + 3e6
    assert plans["bfloat16, group offload"].host < plans["bfloat16, model offload"].host <= plans["bfloat16"].weights
    block = sum(4 * p.numel() if kept.search(n) else 2 * p.numel() for n, p in source.blocks[1].named_parameters())
    face = sum(2 * p.numel() for p in source.face_adapter[0].parameters())
    assert 2 * block + face < plans["bfloat16, group offload"].weights < 3e9
    # every matrix of the blocks takes one byte a number, what is cast neither, two
    matrices = sum(p.numel() for n, p in source.named_parameters() if n.startswith("blocks.") and p.ndim == 2)
    saved = plans["bfloat16"].weights - plans["bfloat16, fp8"].weights
    assert matrices <= saved < 1.1 * matrices


def test_the_caches_are_those_of_a_generation(repository):
    pipe = DreamActorPipeline.from_pretrained(repository)
    seen, most = {}, []

    def see(module, args, kwargs, output):
        seen[id(kwargs["condition_cache"])] = kwargs["condition_cache"]
        most.append(cached_bytes(seen.values()))

    pipe.transformer.register_forward_hook(see, with_kwargs=True)
    generate(pipe, guidance_scale=2.0)
    traced = trace_generation(meta_pipeline(repository), 32, 32, 7, guidance_scale=2.0, segment_frames=5)
    assert traced.caches == max(most) > 0
    of_pipeline = trace_generation(meta_pipeline(pipe), 32, 32, 7, guidance_scale=2.0, segment_frames=5)
    assert of_pipeline == traced


def test_memory_grows_with_the_video_up_to_a_segment(repository):
    def peak(*video):
        return max(trace_generation(meta_pipeline(repository), *video, segment_frames=9).peaks.values())

    assert peak(32, 32, 5) < peak(32, 32, 9)
    assert peak(32, 32, 13) == peak(32, 32, 100)


@pytest.mark.parametrize("quantize", [None, "fp8"])
def test_weights_on_the_disk_give_the_same_frames(repository, quantize):
    expected = generate(MemoryPlan(str(repository), "cpu", torch.float32, "none", quantize).load())
    actual = generate(MemoryPlan(str(repository), "cpu", torch.float32, "disk", quantize).load())
    # weights in files are aligned otherwise, and sums are then taken in another order
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    unquantised = generate(DreamActorPipeline.from_pretrained(repository))
    assert torch.equal(expected, unquantised) == (quantize is None)
    assert (expected - unquantised).abs().max() < 0.1


def test_files_of_the_disk_go_with_the_pipeline(repository, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    plan = plan_memory(repository, 64, 64, 5, device="cpu", offload="disk", dtype=torch.float32)
    pipe = plan.load()
    written = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    # besides the tensors, the files have headers
    assert plan.disk <= written < plan.disk + 10_000
    del pipe
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_int8_weights_are_those_of_torchao(repository):
    pytest.importorskip("torchao", reason="torchao is not installed")
    (plan,) = list_memory_plans(repository, 32, 32, 5, device="cpu", dtype=torch.float32, quantize="int8")
    pipe = plan.load()
    held = 0
    for model in pipe.components.values():
        for tensor in (*model.parameters(), *model.buffers()) if isinstance(model, torch.nn.Module) else ():
            parts = [tensor.qdata, tensor.scale] if hasattr(tensor, "qdata") else [tensor]
            held += sum(part.nbytes for part in parts)
    assert plan.weights == pytest.approx(held, rel=0.02)
    expected = generate(DreamActorPipeline.from_pretrained(repository))
    assert 0 < (generate(pipe) - expected).abs().max() < 0.1


def test_a_gguf_file_takes_the_place_of_the_transformer(repository, tmp_path):
    gguf = pytest.importorskip("gguf", reason="the extra `gguf` is not installed")
    source = DreamActorPipeline.from_pretrained(repository)
    file, held = tmp_path / "transformer.gguf", 0
    writer = gguf.GGUFWriter(str(file), "wan")
    for name, tensor in source.transformer.state_dict().items():
        kind = gguf.GGMLQuantizationType.Q8_0
        array = tensor.numpy()
        if array.ndim == 2 and array.shape[1] % 32 == 0:
            array = gguf.quants.quantize(array, kind)
            writer.add_tensor(name, array, raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
        held += array.nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    arguments = {"device": "cpu", "dtype": torch.float32, "offload": "none", "transformer_file": file}
    (plan,) = list_memory_plans(repository, 32, 32, 5, **arguments)
    models = [(name, model) for name, model in source.components.items() if isinstance(model, torch.nn.Module)]
    others = sum(p.nbytes for name, model in models if name != "transformer" for p in model.parameters())
    others += sum(buffer.nbytes for _, model in models for buffer in model.buffers())
    assert plan.quantize == "gguf" and plan.weights == pytest.approx(held + others, rel=0.02)
    assert 0 < (generate(plan.load()) - generate(source)).abs().max() < 0.1


def test_the_tiled_vae_is_planned_where_it_helps(repository):
    arguments = {"num_frames": 5, "device": "cpu", "offload": "none", "dtype": torch.float32}
    assert [plan.tiling for plan in list_memory_plans(repository, 64, 64, **arguments)] == [False]
    whole, tiled = list_memory_plans(repository, 512, 512, **arguments)
    assert (whole.tiling, tiled.tiling) == (False, True) and tiled.activations < 0.8 * whole.activations


def test_the_first_plan_that_fits_is_taken(repository):
    plans = list(list_memory_plans(repository, 32, 32, 5, device="cpu"))
    assert [plan.name for plan in plans] == ["float32", "bfloat16", "bfloat16, disk offload"]
    assert plans[1].peak < plans[0].peak
    for memory, name in ((1, "float32"), ((plans[0].peak - 1) / GIB, "bfloat16")):
        assert plan_memory(repository, 32, 32, 5, memory=memory, device="cpu").name == name
    with pytest.raises(ValueError, match=r"`memory` is 0.1, but the least that .* takes is 0.5 GiB on cpu"):
        plan_memory(repository, 32, 32, 5, memory=0.1, device="cpu")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"memory": 0}, '`memory` is 0, but has to be "auto" or a number of GiB above 0'),
        ({"memory": "much"}, "`memory` is 'much'"),
        ({"offload": "cloud"}, "`offload` is 'cloud', but has to be one of none, model, group, disk"),
        ({"offload": "group"}, "on cpu weights and work share one memory"),
        ({"quantize": "int2"}, "`quantize` is 'int2', but has to be one of fp8, int8, gguf"),
        ({"quantize": "gguf"}, "pass it as `transformer_file`"),
        ({"transformer_file": "no.gguf"}, "`transformer_file` is no.gguf, but there is no such file"),
        ({"source": "no/such/folder"}, "`no/such/folder` is no folder and no Hub id"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(repository, arguments, message):
    with pytest.raises((ValueError, OSError), match=re.escape(message)):
        plan_memory(**{"source": repository, "device": "cpu", **arguments})


def test_doctor_prints_each_plan_and_recommends_one(repository, capsys):
    command = ["doctor", "--model", str(repository), "--size", "32x32", "--frames", "5", "--device", "cuda"]
    assert main([*command, "--quantize", "fp8", "--memory", "24"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("bfloat16")]
    assert [re.split(r"\s{2,}", row)[0] for row in rows] == [
        "bfloat16, fp8",
        "bfloat16, fp8, model offload",
        "bfloat16, fp8, group offload",
        "bfloat16, fp8, disk offload",
    ]
    assert lines[-1] == "recommended for 24 GiB: bfloat16, fp8"
    assert main([*command, "--quantize", "fp8", "--memory", "1"]) == 0
    assert "recommended for 1 GiB: nothing fits" in capsys.readouterr().out


def test_the_command_carries_the_plan_out(repository, tmp_path, capsys):
    avatar = next(iter(bundled_avatars().values()))
    command = ["demo", "--avatar", avatar.stem, "--model", str(repository), "--size", "32x32", "--frames", "5"]
    command += ["--steps", "1", "--device", "cpu", "--output", str(tmp_path / "out.mp4")]
    assert main([*command, "--offload", "disk", "--dtype", "fp32", "--quantize", "fp8"]) == 0
    assert "float32, fp8, disk offload, about 0.5 GiB on cpu" in capsys.readouterr().out
    assert (tmp_path / "out.mp4").is_file()
    assert main([*command, "--memory", "0.1"]) == 1
    assert "`--memory` is 0.1, but the least that" in capsys.readouterr().err
    assert main([*command, "--quantize", "gguf"]) == 1
    assert (
        '`--quantize` is "gguf", but such weights come as a file: pass it as `--transformer`'
        in capsys.readouterr().err
    )
