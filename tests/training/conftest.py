import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from diffusers_dreamactor.checkpoints import save_random_pipeline
from diffusers_dreamactor.checkpoints.random_pipeline import random_pipeline
from diffusers_dreamactor.models.prompt_embedding import PromptEmbedding
from diffusers_dreamactor.models.transformer_dreamactor import DreamActorTransformer3DModel


sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "motion")]
from training_clips import write_clip  # noqa: E402


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def own_accelerator():
    """Each test's script begins as in a process of its own: Accelerate keeps the precision of the first."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A random repository."""
    folder = tmp_path_factory.mktemp("model")
    save_random_pipeline(folder)
    return folder


@pytest.fixture(scope="session")
def text_model(tmp_path_factory) -> Path:
    """A random repository whose transformer reads text states, which are stored, and CLIP states of the reference."""
    pipe = random_pipeline()
    torch.manual_seed(0)
    config = {name: value for name, value in pipe.transformer.config.items() if not name.startswith("_")}
    transformer = DreamActorTransformer3DModel(**config | {"text_dim": 16, "image_dim": 20})
    prompt_embedding = PromptEmbedding(sequence_length=4, text_dim=16)
    for parameter in [*transformer.parameters(), *prompt_embedding.parameters()]:
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    clip = CLIPVisionConfig(
        hidden_size=20, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    pipe.register_modules(
        transformer=transformer,
        prompt_embedding=prompt_embedding,
        image_encoder=CLIPVisionModel(clip),
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    )
    folder = tmp_path_factory.mktemp("text_model")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """Prepared clips of two sizes."""
    folder = tmp_path_factory.mktemp("clips")
    for index in range(4):
        write_clip(folder / f"clip{index}", index, size=(32, 32) if index < 3 else (48, 32))
    return folder


def load_script(name: str):
    """A script of examples/ as a module."""
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), EXAMPLES / name)
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def prepare_dataset():
    """examples/prepare_dataset.py as a module."""
    return load_script("prepare_dataset.py")


@pytest.fixture
def run_script(monkeypatch):
    """Runs a script of examples/ in this process: `run_script("train_dreamactor.py", "--stage", 1, ...)`."""

    def run(name: str, *arguments) -> None:
        module = load_script(name)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        module.main()

    return run
