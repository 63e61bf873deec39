"""A capture is a component like any other: saved and loaded with the pipeline, and moved with it."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline

from diffusers_dreamactor import DreamActorPipeline, MediaPipeCapture, SapiensCapture
from diffusers_dreamactor.checkpoints.random_pipeline import random_pipeline

from ..pretend_device import DEVICE, DeviceTensor, PretendDevice


transformers = pytest.importorskip("transformers", minversion="5.0")
if not hasattr(transformers, "Sapiens2ForPoseEstimation"):
    pytest.skip("this version of transformers has no Sapiens2", allow_module_level=True)

from ..motion.test_sapiens import config  # noqa: E402


@pytest.fixture
def sapiens() -> SapiensCapture:
    torch.manual_seed(0)
    return SapiensCapture(
        transformers.Sapiens2ForPoseEstimation(config(308)),
        transformers.Sapiens2ForPointmapEstimation(config(3, scale=True)),
    )


def test_sapiens_is_saved_and_loaded_with_the_pipeline(sapiens, tmp_path):
    pipe = DreamActorPipeline(**{**random_pipeline().components, "capture": sapiens})
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["capture"] == [
        "diffusers_dreamactor",
        "SapiensCapture",
    ]
    for loader in (DreamActorPipeline, DiffusionPipeline):
        loaded = loader.from_pretrained(tmp_path).find_capture()
        assert type(loaded) is SapiensCapture
        expected = sapiens.pose_model.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in loaded.pose_model.state_dict().items())
        assert loaded.pointmap_model is not None


def test_mediapipe_is_saved_and_loaded_with_the_pipeline(capture_models, tmp_path):
    pipe = DreamActorPipeline(
        **{**random_pipeline().components, "capture": MediaPipeCapture.from_pretrained(capture_models)}
    )
    pipe.save_pretrained(tmp_path)
    loaded = DreamActorPipeline.from_pretrained(tmp_path)
    assert type(loaded.capture) is MediaPipeCapture and loaded.capture.folder == tmp_path / "capture"


def test_the_capture_moves_with_the_pipeline(sapiens):
    pipe = DreamActorPipeline(**{**random_pipeline().components, "capture": sapiens})
    with torch.no_grad(), PretendDevice():
        pipe.to(DEVICE)
        for model in (sapiens.pose_model, sapiens.pointmap_model):
            assert all(isinstance(parameter.data, DeviceTensor) for parameter in model.parameters())
