"""The progressive training of DreamActor-M1 (section 3.4): which weights each stage trains, and what it is given."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Stage:
    """
    One stage of training.

    Args:
        name (`str`): `"1"`, `"2"`, `"3"` or `"audio"`.
        face (`str`, *optional*): where face motion tokens come from: `"crops"`, `"audio"` or nowhere.
        transformer (`tuple[str]`): prefixes of the transformer's parameters that are trained; `("",)` is all.
        excluded (`tuple[str]`): names inside the transformer's parameter names that are not trained after all.
        components (`tuple[str]`): the other models that are trained.
        drops_motion (`bool`): whether the face (and with it the pose) may be left out at random; where nothing but the
            way of the face is trained, such a batch would teach nothing.
    """

    name: str
    face: str | None
    transformer: tuple[str, ...]
    excluded: tuple[str, ...]
    components: tuple[str, ...]
    drops_motion: bool = True

    def trains(self, parameter_name: str) -> bool:
        """Whether the stage trains the transformer's parameter of this name."""
        if any(part in parameter_name for part in self.excluded):
            return False
        return any(part in parameter_name for part in self.transformer)


_FACE_MODULES = ("face_encoder.", ".face_attn.")
STAGES = {
    # skeleton and sphere only
    "1": Stage("1", None, ("",), _FACE_MODULES, ("pose_encoder",)),
    # the face joins; everything else rests
    "2": Stage("2", "crops", _FACE_MODULES, (), ("face_motion_encoder",), drops_motion=False),
    "3": Stage("3", "crops", ("",), (), ("pose_encoder", "face_motion_encoder")),
    # speech learns to speak the same face motion tokens
    "audio": Stage("audio", "audio", (), (), ("audio_motion_encoder",), drops_motion=False),
}


def set_trainable(
    stage: Stage | str, transformer: nn.Module, components: dict[str, nn.Module], frozen: tuple[str, ...] = ()
) -> list[nn.Parameter]:
    """
    Sets `requires_grad` on all parameters as a stage wants it.

    Args:
        stage (`Stage` or `str`): or its name.
        transformer (`nn.Module`): the diffusion transformer.
        components (`dict`): the other models by name (`pose_encoder`, `face_motion_encoder`, ...).
        frozen (`tuple[str]`): components that rest although the stage would train them (a pretrained face motion
            encoder, at first), or parts of the transformer, as `transformer.` and the beginning of parameter names.

    Returns:
        the parameters that are trained.

    Raises:
        ValueError: the stage is unknown, `frozen` names what there is not, or nothing is left to train.
    """
    if isinstance(stage, str):
        if stage not in STAGES:
            raise ValueError(f"`stage` is {stage!r}, but has to be one of {', '.join(STAGES)}.")
        stage = STAGES[stage]
    unknown = [part for part in frozen if part not in components and not part.startswith("transformer.")]
    if unknown:
        raise ValueError(
            f"`frozen` names {', '.join(unknown)}, but has to name components ({', '.join(components)}) or parts of the "
            "transformer (transformer. and the beginning of parameter names)."
        )
    parts = tuple(part.removeprefix("transformer.") for part in frozen if part.startswith("transformer."))
    for part in parts:
        if not any(name.startswith(part) for name, _ in transformer.named_parameters()):
            raise ValueError(f"`frozen` names transformer.{part}, but the transformer has no parameters of that name.")
    trained = []
    for name, parameter in transformer.named_parameters():
        rests = name.startswith(parts)
        parameter.requires_grad_(stage.trains(name) and not rests)
        trained += [parameter] if parameter.requires_grad else []
    for name, component in components.items():
        component.requires_grad_(name in stage.components and name not in frozen)
        trained += [parameter for parameter in component.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError(f"Stage {stage.name} with {frozen} frozen has nothing to train.")
    return trained
