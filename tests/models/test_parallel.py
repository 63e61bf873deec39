"""Two processes that share the work predict what one does."""

from pathlib import Path

import pytest
import torch

from ..processes import ScriptProcess, finish_together
from .conftest import make_inputs, make_model


@pytest.fixture(scope="module")
def predicted(tmp_path_factory) -> Path:
    """A folder of what two processes predicted: `context.pt` and `tensor.pt`."""
    script, folder = Path(__file__).with_name("parallel_process.py"), tmp_path_factory.mktemp("predicted")
    finish_together([ScriptProcess(script, rank, folder) for rank in range(2)])
    return folder


@pytest.mark.parametrize("kind", ["context", "tensor"])
def test_two_processes_predict_what_one_does(kind, predicted):
    results = torch.load(predicted / f"{kind}.pt")
    model = make_model(text_dim=16, image_dim=20)
    assert len(results) == 7
    for name, actual in results.items():
        arguments = {"isolated": {"references": 2}, "in stream": {"references": 0, "stream_references": 1}}
        inputs = make_inputs(model, **arguments.get(name.split(",")[0], {"references": 0}))
        if name == "a timestep for each token":
            inputs["timestep"] = torch.linspace(100, 900, inputs["hidden_states"].shape[2] * 6)[None]
        with torch.no_grad():
            expected = model(**inputs).sample
        assert (actual - expected).abs().max() <= 1e-4, name


def test_tensor_parallelism_halves_the_feed_forward_layers():
    """What the plan names exists in every block, and its widths are what is split."""
    model = make_model()
    for pattern, style in model._tp_plan.items():
        prefix, _, path = pattern.partition(".*.")
        for block in model.get_submodule(prefix):
            weight = block.get_submodule(path).weight
            assert weight.shape[0 if style == "colwise" else 1] == model.config.ffn_dim
