"""LoRAs on Wan-Animate's weights: clips to segments, segments to an adapter, the adapter in every program."""

import copy
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import WanAnimatePipeline
from PIL import Image
from raw_clips import write_rendered_clip
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_dreamactor import AnimationInputs, DreamActorPipeline, MotionGuidance, MotionSequence
from diffusers_dreamactor.loaders.wan_animate import USUAL_PROMPT
from diffusers_dreamactor.loaders.wan_keys import to_wan_animate
from diffusers_dreamactor.pipelines.conditioning import Segment
from diffusers_dreamactor.processors.reference import Reference
from diffusers_dreamactor.training.accumulation import BatchLoss
from diffusers_dreamactor.training.checkpointing import seed_step
from diffusers_dreamactor.training.dataset import PreparedClipDataset, collate_clips
from diffusers_dreamactor.training.frozen_base import load_frozen_base, stored_bytes
from diffusers_dreamactor.training.objective import DreamActorObjective, ObjectiveConfig
from diffusers_dreamactor.training.segments import SEGMENT_FILE, SegmentDataset, check_segment, read_segment
from diffusers_dreamactor.training.wan_animate_objective import WanAnimateObjective, WanAnimateObjectiveConfig

from ..conversion.conftest import make_wan_animate
from ..conversion.test_convert_wan_animate import original_state_dict
from .conftest import load_script


# wide enough for an adapter to carry a latent through it
WIDTH = {"num_attention_heads": 6, "attention_head_dim": 24, "added_kv_proj_dim": 144, "ffn_dim": 288}
TARGETS = [f"attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]
TARGETS += [f"face_attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out")]
TARGETS += ["attn2.to_q", "ffn.net.0.proj", "ffn.net.2", "patch_embedding", "proj_out"]
ON_CPU = ["--cpu", "--mixed_precision", "no", "--lengths", 3]


def run(name: str, *arguments) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        load_script(name).main()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Wan-Animate repository, `model`, and a clip of 9 frames for it, `prepared`."""
    folder = tmp_path_factory.mktemp("wan_animate_lora")
    with pytest.MonkeyPatch.context() as patch:
        # text states are kept in the user's cache
        patch.setenv("HOME", str(folder / "home"))
        make_wan_animate(**WIDTH).save_pretrained(folder / "model")
        write_rendered_clip(folder / "raw" / "7_0", 9, brightness=80, zoom=0.8)
        run(
            "prepare_dataset.py",
            "--clips",
            folder / "raw",
            "--output",
            folder / "prepared",
            "--model",
            folder / "model",
        )
        yield folder


@pytest.fixture(scope="module")
def pipe(folder):
    pipe = DreamActorPipeline.from_pretrained(folder / "model")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def inputs(folder, pipe) -> AnimationInputs:
    """What the pipeline is given to make the clip."""
    motion = MotionSequence.load(folder / "raw" / "7_0" / "motion.safetensors")
    picture = load_file(folder / "raw" / "7_0" / "clip.safetensors")["references"][0]
    reference = Reference(image=Image.fromarray(picture.numpy()), height=64, width=64)
    guidance = pipe.motion_processor(motion, 64, 64)
    return AnimationInputs([reference], np.arange(9), motion.fps, pipe.motion_processor, guidance=guidance)


def seen_by(transformer, call) -> list[dict]:
    """The arguments of the transformer's calls."""
    calls = []
    handle = transformer.register_forward_pre_hook(
        lambda module, arguments, keywords: calls.append(keywords), with_kwargs=True
    )
    with torch.no_grad():
        call()
    handle.remove()
    return calls


def test_training_sees_what_the_sampler_sees(folder, pipe, inputs):
    sampled = seen_by(
        pipe.transformer,
        lambda: pipe(inputs, num_inference_steps=1, segment_frames=9, guidance_scale=3.0, output_type="latent"),
    )
    assert len(sampled) == 2
    close = {"atol": 2e-3, "rtol": 2e-3}  # segments are stored in half precision
    for drop_face, expected in zip((0.0, 1.0), sampled):
        objective = WanAnimateObjective.from_pipeline(pipe, WanAnimateObjectiveConfig(drop_face=drop_face))
        batch = collate_clips([SegmentDataset(folder / "prepared", (3,), continued_probability=0.0)[0, 0]])
        (found,) = seen_by(pipe.transformer, lambda objective=objective, batch=batch: objective(batch))
        # noise differs, mask and condition channels do not
        torch.testing.assert_close(found["hidden_states"][:, 16:], expected["hidden_states"][:, 16:], **close)
        assert found["num_stream_references"] == expected["num_stream_references"] == 1
        for name in ("encoder_hidden_states", "encoder_hidden_states_image"):
            torch.testing.assert_close(found[name], expected[name], **close)
        for name in ("pose_hidden_states", "motion_hidden_states"):
            torch.testing.assert_close(found[name], expected[name], **close)
            assert expected[name].std() > 1e-3
    assert not torch.equal(sampled[0]["motion_hidden_states"], sampled[1]["motion_hidden_states"])

    # a segment that goes on: its first frame is known, and encoded with what is not
    first = torch.from_numpy(load_file(folder / "raw" / "7_0" / "clip.safetensors")["video"].numpy()[:1])
    known = pipe.encode_known_frames(inputs, Segment(0, 9), first.permute(3, 0, 1, 2)[None] / 127.5 - 1, 1)
    sample = SegmentDataset(folder / "prepared", (3,), continued_probability=1.0)[0, 0]
    torch.testing.assert_close(sample["condition"], known[0].detach(), **close)
    assert known[0, :4, 0].min() == 1 and not known[0, :4, 1:].any()


def test_a_window_is_the_beginning_of_its_segment(folder, pipe, inputs):
    whole = SegmentDataset(folder / "prepared", (3,), in_memory=True)
    for seed in range(4):
        long, short = whole[0, seed], SegmentDataset(folder / "prepared", (2,))[0, seed]
        assert long["seed"] == short["seed"] == seed
        for name, value in short.items():
            if name == "motion_tokens":
                assert torch.equal(value, long[name][:5]) and len(value) == 5
            elif name in ("latents", "pose_latents", "condition", "regions"):
                assert torch.equal(value, long[name][:, :2]), name
    # and that is what the autoencoder makes of the shorter video
    encoded = pipe.encode_pose(inputs.guidance[:5], 1)[0]
    torch.testing.assert_close(short["pose_latents"], encoded.detach(), atol=2e-3, rtol=2e-3)
    tensors = read_segment(folder / "prepared" / "7_0", 2, ("latents", "motion_tokens"))
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {
        "latents": (16, 2, 8, 8),
        "motion_tokens": (5, 10),
    }


def test_the_validator_names_what_is_wrong(folder, tmp_path, capsys):
    assert check_segment(folder / "prepared" / "7_0") == []
    with pytest.raises(SystemExit) as exit_code:
        run("prepare_dataset.py", "--check", folder / "prepared")
    assert exit_code.value.code == 0 and "1 clips (0 with sound), 0 problems." in capsys.readouterr().out
    tensors = load_file(folder / "prepared" / "7_0" / SEGMENT_FILE)
    for index, (change, message) in enumerate(
        (
            ({"latents": tensors["latents"] * torch.nan}, "latents are not finite"),
            ({"latents": tensors["latents"] * 40}, "standard deviation"),
            ({"condition": tensors["condition"][:16].contiguous()}, r"its condition have shape \(16,"),
            ({"motion_tokens": tensors["motion_tokens"] * 0}, "its face is never seen"),
            ({"pose_latents": tensors["pose_latents"] * 0}, "no body was found"),
        )
    ):
        path = tmp_path / str(index)
        path.mkdir()
        save_file(tensors | change, path / SEGMENT_FILE)
        assert re.search(f"^{index}: .*{message}", check_segment(path)[0])


def test_clips_of_the_other_kind_are_named(folder, model, clips, tmp_path):
    with pytest.raises(ValueError, match="holds no segments of at least 3 latent frames, prepared for Wan-Animate"):
        run("train_lora.py", "--model", folder / "model", "--data", clips, "--output", tmp_path / "lora", *ON_CPU)
    with pytest.raises(ValueError, match="holds segments, which are prepared for Wan-Animate's weights"):
        run("train_lora.py", "--model", model, "--data", folder / "prepared", "--output", tmp_path / "lora", *ON_CPU)


@pytest.mark.parametrize("kind", ["wan_animate", "dreamactor"])
def test_the_host_does_not_wait_for_the_device(folder, pipe, model, clips, kind):
    class Waits(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            name = operation.overloadpacket.__name__
            # numbers on the host, sizes that follow from values, and indices on the device
            if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "index"):
                waits.append(name)
            return operation(*args, **(kwargs or {}))

    waits = []
    if kind == "wan_animate":
        objective = WanAnimateObjective.from_pipeline(copy.deepcopy(pipe), WanAnimateObjectiveConfig(drop_face=0.5))
        dataset = SegmentDataset(folder / "prepared", (3,))
    else:
        objective = DreamActorObjective.from_pipeline(DreamActorPipeline.from_pretrained(model), ObjectiveConfig())
        dataset = PreparedClipDataset(clips, (3,))
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    batch = collate_clips([dataset[0, 0], dataset[0, 1]])
    with Waits():
        batch_loss = BatchLoss(accelerator)
        for _ in range(2):
            batch_loss.backward(objective(batch, seed_step(0, 1)), batch["latents"][:, 0].numel())
        batch_loss.normalize_gradients(objective.parameters())
        accelerator.clip_grad_norm_(objective.parameters(), 1.0)
        logs = batch_loss.logs()
        assert not waits
        logs.tolist()
        logs[0].item()
    assert waits == ["_local_scalar_dense"]


def test_accumulated_gradients_are_those_of_the_large_batch(folder, pipe):
    transformer = copy.deepcopy(pipe.transformer)
    dataset = SegmentDataset(folder / "prepared", (3,))
    samples = [dataset[0, seed] for seed in range(4)]
    for index, sample in enumerate(samples):  # what counts in one sample is little in another
        sample["regions"] = sample["regions"] * index
    source = WanAnimateObjective.from_pipeline(pipe, WanAnimateObjectiveConfig())
    config = WanAnimateObjectiveConfig(drop_face=0.5, region_weights=(2.0, 4.0, 8.0))
    embeds = (source.blank_face, source.prompt_embeds, source.negative_prompt_embeds)
    objective = WanAnimateObjective(transformer, config, *embeds)
    gradients = {}
    for size in (4, 2, 1):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4 // size)
        objective.zero_grad()
        batch_loss = BatchLoss(accelerator)
        for start in range(0, 4, size):
            batch = collate_clips(samples[start : start + size])
            batch_loss.backward(objective(batch), batch["latents"][:, 0].numel())
        batch_loss.normalize_gradients(transformer.parameters())
        gradients[size] = [parameter.grad.clone() for parameter in transformer.parameters()]
    objective.zero_grad()
    objective(collate_clips(samples))["loss"].backward()
    expected = [parameter.grad for parameter in transformer.parameters()]
    largest = max(gradient.abs().max() for gradient in expected)
    for size in (4, 2, 1):
        assert max((a - b).abs().max() for a, b in zip(gradients[size], expected)) <= 1e-6 * largest


@pytest.fixture(scope="module")
def trained(folder) -> tuple[Path, str]:
    """A LoRA that has learned the clip, in all namings, and what its training printed."""
    import contextlib
    import io

    printed = io.StringIO()
    arguments = ["--model", folder / "model", "--data", folder / "prepared", "--output", folder / "lora", *ON_CPU]
    arguments += [
        "--rank",
        64,
        "--alpha",
        32,
        "--learning_rate",
        4e-3,
        "--max_train_steps",
        100,
        "--logging_steps",
        10,
    ]
    with contextlib.redirect_stdout(printed):
        run("train_lora.py", *arguments, "--target_modules", *TARGETS, "--export", "comfyui", "kohya")
    return folder / "lora", printed.getvalue()


def test_one_clip_is_learned(folder, pipe, trained):
    lora, printed = trained
    shown = [float(loss) for loss in re.findall(r"step \d+ loss ([\d.]+)", printed)]
    assert len(shown) == 10 and shown[-1] < shown[0] / 2
    assert re.search(r"memory: [\d.]+ GiB of frozen weights \(fp32\), [\d.]+ GiB of the adapter", printed)
    # of noise that was not seen in training, too
    config = WanAnimateObjectiveConfig(drop_face=0.0)
    dataset = SegmentDataset(folder / "prepared", (3,))
    batch = collate_clips([dataset[0, seed] for seed in range(100, 116)])
    pipe = copy.deepcopy(pipe)
    with torch.no_grad():
        before = WanAnimateObjective.from_pipeline(pipe, config)(batch)["mse"]
        pipe.load_lora_weights(lora)
        after = WanAnimateObjective.from_pipeline(pipe, config)(batch)["mse"]
    assert after < before / 2


def animate(pipe, **arguments) -> torch.Tensor:
    """Two segments of one picture and drawn motion, on either pipeline; `(1, F, 3, H, W)`."""
    random = np.random.default_rng(4)
    frames = random.integers(0, 256, (14, 64, 64, 3), dtype=np.uint8)
    skeleton, picture = [Image.fromarray(frame) for frame in frames], Image.fromarray(frames[3])
    face = [Image.fromarray(frame[:16, :16]) for frame in frames]
    pipe.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "pt", "height": 64, "width": 64}
    arguments["generator"] = torch.Generator().manual_seed(0)
    if isinstance(pipe, WanAnimatePipeline):
        video = {"pose_video": skeleton, "face_video": face, "segment_frame_length": 9, "prompt": USUAL_PROMPT}
    else:
        video = {"guidance": MotionGuidance.from_frames(skeleton=skeleton, face=face), "segment_frames": 9}
    return pipe(image=picture, **video, **arguments).frames


def test_both_pipelines_make_the_same_frames_with_the_lora(folder, pipe, trained):
    lora, _ = trained
    ours, theirs = copy.deepcopy(pipe), WanAnimatePipeline.from_pretrained(folder / "model")
    plain = animate(ours)
    ours.load_lora_weights(lora)
    theirs.load_lora_weights(lora)
    expected, found = animate(theirs), animate(ours)
    assert (found - plain).abs().max() > 0.01
    assert (found - expected).abs().max() <= 1e-4
    for pipeline in (ours, theirs):
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
        assert (animate(pipeline) - expected).abs().max() <= 1e-4


def test_what_is_loaded_is_saved_again(pipe, trained, tmp_path):
    lora, _ = trained
    pipe = copy.deepcopy(pipe)
    pipe.load_lora_weights(lora, adapter_name="default")
    expected = animate(pipe)
    from peft import get_peft_model_state_dict

    type(pipe).save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(pipe.transformer))
    pipe.unload_lora_weights()
    assert (animate(pipe) - expected).abs().max() > 0.01
    pipe.load_lora_weights(tmp_path)
    assert torch.equal(animate(pipe), expected)


@pytest.mark.parametrize("naming", ["comfyui", "kohya"])
def test_comfyui_reads_every_key(folder, pipe, trained, naming):
    """
    ComfyUI's loader patches the weight `diffusion_model.X.weight` of the original model by `diffusion_model.X.lora_A.weight`
    and `.lora_B.weight`, or `lora_unet_X`, dots as underscores, `.lora_down.weight`, `.lora_up.weight` and `.alpha`.
    """
    lora, _ = trained
    tensors = load_file(lora / f"pytorch_lora_weights_{naming}.safetensors")
    transformer = WanAnimatePipeline.from_pretrained(folder / "model").transformer
    original = original_state_dict(transformer.state_dict())
    patched, read = {}, set()
    for name, weight in original.items():
        module = name.removesuffix(".weight")
        if naming == "comfyui":
            down, up, alpha = (
                f"diffusion_model.{module}.{end}" for end in ("lora_A.weight", "lora_B.weight", "alpha")
            )
        else:
            flat = f"lora_unet_{module.replace('.', '_')}"
            down, up, alpha = f"{flat}.lora_down.weight", f"{flat}.lora_up.weight", f"{flat}.alpha"
        if name.endswith(".weight") and up in tensors:
            scale = tensors[alpha].item() / len(tensors[down]) if alpha in tensors else 1.0
            difference = tensors[up].flatten(1) @ tensors[down].flatten(1) * scale
            patched[name] = weight + difference.reshape(weight.shape)
            read |= {down, up, alpha} & tensors.keys()
    assert read == tensors.keys()
    # and the patched weights are those that the LoRA gives when it is fused here
    ours = copy.deepcopy(pipe)
    ours.load_lora_weights(lora)
    ours.fuse_lora()
    ours.unload_lora_weights()
    interval = ours.transformer.config.face_attention_interval
    fused = {to_wan_animate(name, interval): value for name, value in ours.transformer.state_dict().items()}
    fused = original_state_dict(fused)
    assert sum("face_adapter" in name for name in patched) == 6 and "head.head.weight" in patched
    for name, weight in patched.items():
        torch.testing.assert_close(fused[name], weight, atol=1e-5, rtol=1e-5)
        assert not torch.equal(weight, original[name])


def test_int8_weights_rest_while_the_adapter_learns(folder, tmp_path, capsys):
    pytest.importorskip("torchao", reason="torchao is not installed")
    arguments = ["--model", folder / "model", "--data", folder / "prepared", "--cpu", "--lengths", 3]
    arguments += ["--rank", 64, "--learning_rate", 4e-3, "--max_train_steps", 12, "--logging_steps", 1]
    arguments += ["--gradient_checkpointing", "--target_modules", *TARGETS]
    run("train_lora.py", *arguments, "--output", tmp_path / "int8", "--base", "int8")
    shown = [float(loss) for loss in re.findall(r"step \d+ loss ([\d.]+)", capsys.readouterr().out)]
    assert len(shown) == 12 and shown[-1] < 0.95 * shown[0]
    assert all(value.any() for value in load_file(tmp_path / "int8" / "pytorch_lora_weights.safetensors").values())
    int8, bf16 = (load_frozen_base(str(folder / "model"), base, torch.device("cpu")) for base in ("int8", "bf16"))
    sizes = [
        sum(stored_bytes(tensor) for tensor in pipe.transformer.blocks.parameters()) / 2**20 for pipe in (int8, bf16)
    ]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.mark.parametrize(("base", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_missing_package_is_one_sentence(folder, tmp_path, monkeypatch, base, package):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=f"`base` is '{base}', which needs {package}, .* pip install {package}"):
        load_frozen_base(str(folder / "model"), base, torch.device("cpu"))


def test_what_cannot_be_exported_is_known_before_the_training(text_model, clips, tmp_path):
    arguments = ["--model", text_model, "--data", clips, "--output", tmp_path / "lora", *ON_CPU]
    with pytest.raises(ValueError, match="have no name in the 'comfyui' naming"):
        run("train_lora.py", *arguments, "--target_modules", "ref_attn.to_q", "--export", "comfyui")
    assert not (tmp_path / "lora").exists()


def test_a_lora_on_a_starting_point(model, clips, tmp_path):
    names = ["pose_patch_embedding", "ref_attn.to_out.0", "face_attn.to_out", "attn1.to_q"]
    pipe = DreamActorPipeline.from_pretrained(model)
    for name, module in pipe.transformer.named_modules():
        if name.endswith(tuple(names[:3])):  # as conversion leaves what Wan has not
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    pipe.save_pretrained(tmp_path / "start")
    arguments = ["--model", tmp_path / "start", "--data", clips, "--output", tmp_path / "lora", "--rank", 4]
    arguments += ["--max_train_steps", 3, "--learning_rate", 0.01, *ON_CPU, "--gradient_checkpointing"]
    run("train_lora.py", *arguments, "--target_modules", *names)
    before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    pipe.load_lora_weights(tmp_path / "lora", strict=True)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    after = pipe.transformer.state_dict()
    # what began at zero has learned, and so has each of the others, and nothing else
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {name for name in before if name.removesuffix(".weight").endswith(tuple(names))}
