"""Diffusers' modular pipelines over the same functions: the same frames."""

import pytest
import torch
from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam

from diffusers_dreamactor.checkpoints.random_pipeline import random_pipeline
from diffusers_dreamactor.pipelines.modular_blocks import DreamActorBlocks, DreamActorWanAnimateBlocks

from .test_devices import arguments_for, wan_animate


@pytest.mark.parametrize(
    "make, blocks", [(random_pipeline, DreamActorBlocks), (wan_animate, DreamActorWanAnimateBlocks)]
)
def test_blocks_make_the_frames_of_the_pipeline(make, blocks):
    pipe = make()
    preparation, sampling = arguments_for(pipe)
    modular = blocks().init_pipeline()
    modular.update_components(**pipe.components)
    for each in (pipe, modular):
        each.set_progress_bar_config(disable=True)
    expected = pipe(**preparation, **sampling, generator=torch.Generator().manual_seed(0))
    made = modular(**preparation, **sampling, generator=torch.Generator().manual_seed(0), output="output")
    assert torch.equal(made.frames, expected.frames) and made.fps == expected.fps


class Still(ModularPipelineBlocks):
    """Holds the first frame of what was prepared."""

    @property
    def inputs(self) -> list[InputParam]:
        return [InputParam("inputs", required=True)]

    def __call__(self, components, state):
        inputs = state.get("inputs")
        inputs.index[:] = inputs.index[0]
        return components, state


def test_a_repository_and_a_block_between(tmp_path, caplog):
    pipe = random_pipeline()
    pipe.register_to_config(num_inference_steps=1, guidance_scale=1.0, segment_frames=5)
    pipe.save_pretrained(tmp_path)
    preparation, _ = arguments_for(pipe)
    blocks = DreamActorBlocks()
    blocks.sub_blocks.insert("still", Still(), 1)
    modular = blocks.init_pipeline(str(tmp_path))
    modular.load_components()
    assert not caplog.records
    modular.set_progress_bar_config(disable=True)
    state = modular(**preparation, output_type="pt", generator=torch.Generator().manual_seed(0))
    # the repository's own defaults, and what the block between them changed
    inputs = pipe.prepare(**preparation)
    inputs.index[:] = 0
    expected = pipe(inputs, output_type="pt", generator=torch.Generator().manual_seed(0))
    # weights that lie elsewhere in memory are summed in another order
    torch.testing.assert_close(state.get("output").frames, expected.frames, rtol=0, atol=1e-5)
    assert (state.get("inputs").index == 0).all()
