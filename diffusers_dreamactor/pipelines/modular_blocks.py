"""Diffusers' modular pipelines: preparing and sampling as two blocks over the pipelines' own functions."""

import dataclasses
import inspect
from typing import Any

from diffusers.modular_pipelines import ModularPipeline, ModularPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline import PipelineState
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, ConfigSpec, InputParam, OutputParam

from diffusers_dreamactor.pipelines.animation_inputs import AnimationInputs
from diffusers_dreamactor.pipelines.animation_pipeline import AnimationPipeline
from diffusers_dreamactor.pipelines.pipeline_dreamactor import DreamActorPipeline
from diffusers_dreamactor.pipelines.pipeline_dreamactor_wan_animate import DreamActorWanAnimatePipeline
from diffusers_dreamactor.pipelines.pipeline_output import DreamActorPipelineOutput
from diffusers_dreamactor.pipelines.preparation import PreparationMixin
from diffusers_dreamactor.pipelines.sampling import SamplingOptions


class AnimationBlock(ModularPipelineBlocks):
    """A step that calls a pipeline made of the modular pipeline's components; subclasses say which, and what it calls."""

    pipeline_class: type[AnimationPipeline] = DreamActorPipeline

    def __init__(self):
        super().__init__()
        self._progress_bar_config = {}

    @property
    def expected_components(self) -> list[ComponentSpec]:
        parameters = inspect.signature(AnimationPipeline.__init__).parameters
        return [ComponentSpec(name) for name in parameters if name != "self" and name not in self._settings]

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        return [ConfigSpec(name, default) for name, default in self._settings.items()]

    @property
    def _settings(self) -> dict[str, Any]:
        """What a repository's index says besides its components."""
        return self.pipeline_class._default_options | {"fps": 24.0}

    def pipeline(self, components: ModularPipeline) -> AnimationPipeline:
        """The pipeline of these components; it holds them and nothing else, so that making one takes no time."""
        settings = {name: components.config[name] for name in self._settings}
        pipe = self.pipeline_class(
            **{spec.name: getattr(components, spec.name) for spec in self.expected_components}, **settings
        )
        pipe.register_to_config(_name_or_path=components._pretrained_model_name_or_path)
        pipe.set_progress_bar_config(**self._progress_bar_config)
        return pipe

    def set_progress_bar_config(self, **kwargs) -> None:
        """As a pipeline's."""
        self._progress_bar_config = kwargs


def _described(function) -> list[InputParam]:
    """The arguments of `prepare` or of `SamplingOptions` as inputs of a block."""
    parameters = inspect.signature(function).parameters.values()
    return [
        InputParam(p.name, default=None if p.default is p.empty else p.default, required=p.default is p.empty)
        for p in parameters
        if p.name != "self"
    ]


class DreamActorPrepareStep(AnimationBlock):
    """`pipe.prepare` as a block: captures, composes and retargets what is performed."""

    @property
    def description(self) -> str:
        return "Captures, composes and retargets what is performed; nothing is drawn and nothing is generated yet."

    @property
    def inputs(self) -> list[InputParam]:
        return _described(PreparationMixin.prepare)

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [
            OutputParam(
                "inputs", AnimationInputs, "What is performed, to be looked at and edited before it is sampled."
            )
        ]

    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[ModularPipeline, PipelineState]:
        block_state = self.get_block_state(state)
        arguments = {parameter.name: getattr(block_state, parameter.name) for parameter in self.inputs}
        block_state.inputs = self.pipeline(components).prepare(**arguments)
        self.set_block_state(state, block_state)
        return components, state


class DreamActorSampleStep(AnimationBlock):
    """`pipe(inputs)` as a block: denoises and decodes segment by segment."""

    @property
    def description(self) -> str:
        return "Denoises and decodes what was prepared, segment by segment."

    @property
    def inputs(self) -> list[InputParam]:
        return [InputParam("inputs", AnimationInputs, required=True), *_described(SamplingOptions)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("output", DreamActorPipelineOutput, "The videos, their rate and their sound.")]

    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[ModularPipeline, PipelineState]:
        block_state = self.get_block_state(state)
        options = {field.name: getattr(block_state, field.name) for field in dataclasses.fields(SamplingOptions)}
        block_state.output = self.pipeline(components)(block_state.inputs, **options)
        self.set_block_state(state, block_state)
        return components, state


class DreamActorBlocks(SequentialPipelineBlocks):
    """
    [`DreamActorPipeline`] as blocks. What is performed is the intermediate `inputs`, which a block inserted between the two
    may look at and edit; the result is `output`.

    Examples:
        ```python
        >>> import torch
        >>> from diffusers_dreamactor.pipelines.modular_blocks import DreamActorBlocks

        >>> pipe = DreamActorBlocks().init_pipeline("path/or/hub-id")
        >>> pipe.load_components(dtype=torch.bfloat16)
        >>> result = pipe(image="person.png", video="driver.mp4", output="output")
        >>> result.save("out.mp4")
        ```
    """

    block_classes = [DreamActorPrepareStep, DreamActorSampleStep]
    block_names = ["prepare", "sample"]

    def init_pipeline(self, pretrained_model_name_or_path=None, **kwargs) -> ModularPipeline:
        """
        As `ModularPipelineBlocks.init_pipeline`, for a repository that this package has saved; without one, components of
        any of its pipelines are given by `update_components(**pipe.components)`.
        """
        pipeline = super().init_pipeline(pretrained_model_name_or_path, **kwargs)
        for spec in pipeline._component_specs.values():
            if spec.type_hint is None:
                # the repository lacks it: Diffusers would look for it all the same
                spec.pretrained_model_name_or_path = None
        return pipeline


class DreamActorWanAnimatePrepareStep(DreamActorPrepareStep):
    """As [`DreamActorPrepareStep`], for Wan-Animate weights."""

    pipeline_class = DreamActorWanAnimatePipeline


class DreamActorWanAnimateSampleStep(DreamActorSampleStep):
    """As [`DreamActorSampleStep`], for Wan-Animate weights."""

    pipeline_class = DreamActorWanAnimatePipeline


class DreamActorWanAnimateBlocks(DreamActorBlocks):
    """[`DreamActorWanAnimatePipeline`] as blocks, see [`DreamActorBlocks`]."""

    block_classes = [DreamActorWanAnimatePrepareStep, DreamActorWanAnimateSampleStep]
