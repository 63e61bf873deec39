"""Every way to the device gives what the CPU gives, and no operation mixes devices."""

import dataclasses

import numpy as np
import PIL.Image
import pytest
import torch

from diffusers_dreamactor import DreamActorWanAnimatePipeline
from diffusers_dreamactor.checkpoints.random_pipeline import random_pipeline
from diffusers_dreamactor.models.transformer_dreamactor import DreamActorTransformer3DModel
from diffusers_dreamactor.processors.guidance import MotionGuidanceProcessor

from ..motion.stick_figure import StickFigure
from ..pretend_device import DEVICE, DeviceTensor, PretendDevice, let_offloading_move


SAMPLING = {"num_inference_steps": 2, "segment_frames": 5, "guidance_scale": 2.0, "output_type": "pt"}


def dreamactor():
    return random_pipeline()


def wan_animate():
    base = random_pipeline()
    torch.manual_seed(0)
    config = {"reference_attention": False, "text_dim": 8, "image_dim": 8, "text_context_length": 4}
    transformer = DreamActorTransformer3DModel(**{**base.transformer.config, **config})
    for parameter in transformer.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return DreamActorWanAnimatePipeline(
        transformer=transformer,
        vae=base.vae,
        scheduler=base.scheduler,
        face_motion_encoder=base.face_motion_encoder,
        motion_processor=MotionGuidanceProcessor(style="wan", face_size=64, area=128 * 128),
    )


@pytest.fixture(scope="module", params=[dreamactor, wan_animate], ids=lambda make: make.__name__)
def make(request):
    return request.param


@pytest.fixture
def pipe(make):
    pipe = make()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def on_the_cpu(make) -> torch.Tensor:
    """What a pipeline of this kind generates on the CPU; all are made of the same seed."""
    pipe = make()
    pipe.set_progress_bar_config(disable=True)
    return generate(pipe, arguments_for(pipe))


def arguments_for(pipe) -> tuple[dict, dict]:
    """Arguments of `prepare` and of sampling: two segments."""
    person = StickFigure().film("stand", num_frames=1, framing="half_body", width=64, height=64, cut=False)
    motion = StickFigure().film("wave", num_frames=8, framing="half_body", width=64, height=64, cut=False)
    crops = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    motion = dataclasses.replace(motion, face=dataclasses.replace(motion.face, crops=crops))
    picture = PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    preparation = {"image": picture, "motion": motion, "reference_motion": person, "height": 64, "width": 64}
    sampling = dict(SAMPLING)
    if pipe.transformer.config.text_dim is not None:
        generator = torch.Generator().manual_seed(4)
        for name, tokens in (("prompt_embeds", 4), ("negative_prompt_embeds", 4), ("image_embeds", 5)):
            sampling[name] = torch.randn(1, tokens, 8, generator=generator)
    return preparation, sampling


@pytest.fixture
def prepared(pipe):
    return arguments_for(pipe)


def generate(pipe, prepared, **changes):
    preparation, sampling = prepared
    frames = pipe(**preparation, generator=torch.Generator().manual_seed(0), **{**sampling, **changes}).frames
    return frames.cpu() if torch.is_tensor(frames) else frames


def place(pipe, way, monkeypatch):
    let_offloading_move(monkeypatch)
    if way == "to":
        pipe.to(DEVICE)
    elif way == "model":
        pipe.enable_model_cpu_offload(device=DEVICE)
    elif way == "sequential":
        pipe.enable_sequential_cpu_offload(device=DEVICE)
    else:
        pipe.enable_group_offload(
            onload_device=DEVICE,
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=False,
        )


@pytest.mark.parametrize("way", ["to", "model", "sequential", "group"])
def test_the_device_gives_what_the_cpu_gives(pipe, prepared, way, on_the_cpu, monkeypatch):
    with torch.no_grad(), PretendDevice(float64=False):
        place(pipe, way, monkeypatch)
        used = []
        pipe.transformer.register_forward_pre_hook(
            lambda module, args, kwargs: used.append(kwargs["hidden_states"]), with_kwargs=True
        )
        actual = generate(pipe, prepared)
    assert used and all(isinstance(tensor, DeviceTensor) for tensor in used)
    torch.testing.assert_close(torch.as_tensor(actual), on_the_cpu, atol=1e-5, rtol=0)


def forms(pipe):
    """Names and arguments of every other way to call the pipeline, several in a call."""
    # latents of Wan-Animate's weights are those of a single segment
    segment = {} if pipe.pose_encoder is not None else {"segment_frames": 9}
    yield "latents without guidance", {"output_type": "latent", "guidance_scale": 1.0, **segment}
    scales = {"face_scale": 0.5, "pose_scale": 0.5}
    yield "two videos as arrays with scales", {"output_type": "np", "num_videos_per_prompt": 2, **scales}
    if pipe.pose_encoder is not None:
        yield (
            "three branches and pseudo-references",
            {"reference_guidance_scale": 1.5, "num_pseudo_references": 1, "num_inference_steps": 1},
        )


def test_every_form_of_call(pipe, prepared):
    changes = dict(forms(pipe))
    expected = {name: torch.as_tensor(generate(pipe, prepared, **change)) for name, change in changes.items()}
    with torch.no_grad(), PretendDevice(float64=False):
        pipe.to(DEVICE)
        for name, change in changes.items():
            actual = torch.as_tensor(generate(pipe, prepared, **change))
            torch.testing.assert_close(actual, expected[name], atol=1e-5, rtol=0, msg=lambda text: f"{name}: {text}")  # noqa: B023


def test_speech_tokens_and_float64_tokens():
    pipe = dreamactor()
    pipe.set_progress_bar_config(disable=True)
    preparation, sampling = arguments_for(pipe)
    speech = (0.3 * np.sin(np.arange(8000) / 9)).astype(np.float32)
    spoken = {**preparation, "motion": None, "audio": speech}
    expected = generate(pipe, (spoken, sampling))
    tokens = np.random.default_rng(0).standard_normal((8, 32))
    guidance = pipe.prepare(**preparation).draw()
    guidance.face, guidance.motion_tokens = None, tokens
    assert guidance.motion_tokens.dtype == np.float64
    drawn = {**preparation, "motion": None, "reference_motion": None, "guidance": guidance}
    drawn["image"] = pipe.prepare(**preparation).references
    with_tokens = generate(pipe, (drawn, sampling))
    with torch.no_grad(), PretendDevice(float64=False):
        pipe.to(DEVICE)
        torch.testing.assert_close(generate(pipe, (spoken, sampling)), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(generate(pipe, (drawn, sampling)), with_tokens, atol=1e-5, rtol=0)


def test_a_replacement_on_the_device():
    pipe = wan_animate()
    pipe.set_progress_bar_config(disable=True)
    preparation, sampling = arguments_for(pipe)
    scene = np.random.default_rng(2).integers(0, 256, (2, 8, 64, 64, 3), dtype=np.uint8)
    preparation = {**preparation, "mode": "replace", "background_video": scene[0], "mask_video": scene[1] // 128 * 255}
    expected = generate(pipe, (preparation, sampling))
    with torch.no_grad(), PretendDevice(float64=False):
        pipe.to(DEVICE)
        torch.testing.assert_close(generate(pipe, (preparation, sampling)), expected, atol=1e-5, rtol=0)


def test_the_device_raises_where_cuda_and_mps_would():
    with PretendDevice(float64=False):
        here = torch.ones(3, device=DEVICE)
        with pytest.raises(RuntimeError, match="both devices"):
            here + torch.ones(3)
        assert (here + torch.tensor(1.0)).cpu().tolist() == [2.0] * 3
        with pytest.raises(TypeError, match="no float64"):
            here.double()
