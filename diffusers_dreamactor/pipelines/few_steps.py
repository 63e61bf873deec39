"""Four steps instead of twenty: step-distillation LoRAs with the schedule that they were distilled with."""

import os
from pathlib import Path
from typing import Any

from diffusers import FlowMatchLCMScheduler

from diffusers_dreamactor.pipelines.animation_pipeline import AnimationPipeline


# lightx2v's LoRA for Wan's image-to-video models, which those who share Wan-Animate workflows use, and Wan-Animate's own for
# replacement (`relighting_lora` of Wan-AI/Wan2.2-Animate-14B) as safetensors; both Apache-2.0.
STEP_DISTILLATION_LORA = "Kijai/WanVideo_comfy/Lightx2v/lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors"
RELIGHTING_LORA = "Kijai/WanVideo_comfy/LoRAs/Wan22_relight/WanAnimate_relight_lora_fp16.safetensors"

# lightx2v's configs/distill/wan_i2v_distill_4step_cfg.json: denoising steps 1000, 750, 500 and 250 of 1000 before the shift
# of 5, no guidance. After it they are 1000, 937.5, 833.3 and 625.
DISTILLED_SIGMAS = (1.0, 0.75, 0.5, 0.25)
DISTILLED_SHIFT = 5.0

# The inner width of the transformer that `STEP_DISTILLATION_LORA` is for.
_PUBLIC_WIDTH = 5120


def split_lora_name(name: str | os.PathLike) -> tuple[str, dict[str, str]]:
    """
    What `pipe.load_lora_weights` takes for a file, a folder, a Hub id, or a Hub id with a file's path after it.

    Args:
        name (`str` or `os.PathLike`): `"lora.safetensors"`, `"owner/repository"` or `"owner/repository/folder/file.safetensors"`.

    Returns:
        The first argument, and the others.

    Raises:
        FileNotFoundError: It is a file's name, and there is none.
    """
    text = os.fspath(name)
    if Path(text).exists():
        return text, {}
    parts = text.split("/")
    if len(parts) < 2 or not all(parts) or (len(parts) == 2 and text.endswith(".safetensors")):
        raise FileNotFoundError(
            f"`lora` is {text}, but there is no such file, and a Hub id with a file is like owner/repository/file.safetensors."
        )
    return "/".join(parts[:2]), {"weight_name": "/".join(parts[2:])} if len(parts) > 2 else {}


def use_few_steps(
    pipe: AnimationPipeline, lora: str | os.PathLike | None = None, weight: float = 1.0, **hub: Any
) -> dict[str, Any]:
    """
    Makes a pipeline sample in four steps without guidance, as lightx2v's step-distillation LoRAs were trained to: each step
    predicts the clean video, and noise of the next step's strength is added (Diffusers' `FlowMatchLCMScheduler`).

    Args:
        pipe ([`AnimationPipeline`]): With the weights that the LoRA is for. Its scheduler is replaced.
        lora (`str` or `os.PathLike`, *optional*):
            A file, a folder, a Hub id or one with a file's path after it. When `None`, lightx2v's of rank 64 for
            Wan2.2-Animate's weights.
        weight (`float`, defaults to 1.0): Its strength.
        hub: `cache_dir`, `revision`, `token`, `local_files_only`.

    Returns:
        `dict`: The arguments of sampling: `sigmas` and `guidance_scale`.

    Raises:
        ValueError: There is no public LoRA for these weights and none was given, or it does not fit them.

    Examples:
        ```python
        >>> from diffusers_dreamactor import DreamActorPipeline, use_few_steps

        >>> pipe = DreamActorPipeline.from_pretrained("Wan-AI/Wan2.2-Animate-14B-Diffusers", dtype=torch.bfloat16)
        >>> few = use_few_steps(pipe)
        >>> result = pipe.to("cuda")("person.png", "driver.mp4", **few)
        ```
    """
    if lora is None:
        config = pipe.transformer.config
        if config.num_attention_heads * config.attention_head_dim != _PUBLIC_WIDTH or config.image_dim is None:
            raise ValueError(
                "`lora` is None, but a step-distillation LoRA for these weights has to be given: the public ones are for"
                " Wan's image-to-video models of 14 B, such as Wan2.2-Animate."
            )
        lora = STEP_DISTILLATION_LORA
    load_lora(pipe, lora, weight, "few_steps", **hub)
    pipe.scheduler = FlowMatchLCMScheduler(shift=DISTILLED_SHIFT)
    return {"sigmas": list(DISTILLED_SIGMAS), "guidance_scale": 1.0}


def load_lora(pipe: AnimationPipeline, lora: str | os.PathLike, weight: float, adapter_name: str, **hub: Any) -> None:
    """
    Loads one more LoRA, beside those that are loaded.

    Args:
        pipe ([`AnimationPipeline`]): What gets it.
        lora (`str` or `os.PathLike`): As for `use_few_steps`.
        weight (`float`): Its strength.
        adapter_name (`str`): For `set_adapters`.
        hub: As for `use_few_steps`.
    """
    source, file = split_lora_name(lora)
    others = pipe.get_active_adapters() if hasattr(pipe.transformer, "peft_config") else []
    pipe.load_lora_weights(source, adapter_name=adapter_name, **file, **hub)
    pipe.transformer.set_adapters(adapter_name, weight)
    # the others stay as strong as they are
    pipe.transformer.set_adapter([*others, adapter_name])
