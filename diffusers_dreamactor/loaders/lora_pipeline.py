"""LoRA loading for the pipeline."""

import json
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME, LORA_WEIGHT_NAME_SAFE, _fetch_state_dict
from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin
from diffusers.utils import logging
from diffusers.utils.hub_utils import _get_model_file

from diffusers_dreamactor.files import errors_naming, give_usual_permissions
from diffusers_dreamactor.loaders.lora_conversion import convert_lora_to_dreamactor, fit_lora_to_transformer


logger = logging.get_logger(__name__)

_PEFT_PREFIX = "base_model.model."


class DreamActorLoraLoaderMixin(WanLoraLoaderMixin):
    r"""
    LoRA for [`DreamActorTransformer3DModel`]: loading, saving, weighting, fusing, hot-swapping, as in every Diffusers
    pipeline.

    `load_lora_weights` takes LoRAs (and DoRAs) for DreamActor, Wan and Wan-Animate in Diffusers/PEFT, original Wan, ComfyUI
    and Kohya naming, step-distillation LoRAs included. Nothing is dropped in silence: keys that match no module of the
    transformer are a warning that lists them, or with `strict=True` an error; tensors that do not fit are an error.
    """

    _lora_loadable_modules = ["transformer"]

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        strict: bool = False,
        **kwargs,
    ) -> None:
        """
        Loads a LoRA into the transformer.

        Args:
            pretrained_model_name_or_path_or_dict (`str`, `Path` or `dict[str, torch.Tensor]`):
                A file, a folder, a Hub repository or the tensors themselves.
            adapter_name (`str`, *optional*): For `set_adapters`; `default_N` when `None`.
            hotswap (`bool`, defaults to `False`): Whether it takes the place of the adapter of that name.
            strict (`bool`, defaults to `False`): Whether keys that match no module are an error.
            kwargs: Those of `lora_state_dict`, and `low_cpu_mem_usage`.

        Raises:
            `ValueError`: For tensors that do not fit, all listed; for keys that match nothing, when `strict` or when there
                are no others.
        """
        memory = {k: kwargs.pop(k) for k in ("low_cpu_mem_usage",) if k in kwargs}
        state_dict, metadata = self.lora_state_dict(
            pretrained_model_name_or_path_or_dict, strict=strict, **{**kwargs, "return_lora_metadata": True}
        )
        self.load_lora_into_transformer(
            state_dict,
            self.transformer,
            strict=strict,
            adapter_name=adapter_name,
            metadata=metadata,
            _pipeline=self,
            hotswap=hotswap,
            **memory,
        )

    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict: str | Path | dict[str, torch.Tensor], **kwargs
    ) -> dict[str, torch.Tensor] | tuple[dict[str, torch.Tensor], dict | None]:
        """
        The tensors of a LoRA by PEFT's keys on our module names, `transformer.blocks.0.attn1.to_q.lora_A.weight`.

        Args:
            pretrained_model_name_or_path_or_dict (`str`, `Path` or `dict[str, torch.Tensor]`):
                A file, a folder, a Hub repository or the tensors themselves.
            weight_name, subfolder, revision, cache_dir, force_download, proxies, local_files_only, token,
            use_safetensors:
                As in [`~loaders.StableDiffusionLoraLoaderMixin.lora_state_dict`].
            return_lora_metadata (`bool`, defaults to `False`):
                Whether to also return the adapter's configuration from the file's header.
            strict (`bool`, defaults to `False`):
                Whether keys that no naming explains are an error, or a warning that lists them.
        """
        strict = kwargs.pop("strict", False)
        return_lora_metadata = kwargs.pop("return_lora_metadata", False)
        use_safetensors = kwargs.pop("use_safetensors", None)
        names = ("weight_name", "local_files_only", "cache_dir", "force_download", "proxies", "token", "revision")
        arguments = {name: kwargs.pop(name, None) for name in (*names, "subfolder")}
        state_dict, metadata = _fetch_state_dict(
            pretrained_model_name_or_path_or_dict,
            use_safetensors=use_safetensors is not False,
            user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
            allow_pickle=use_safetensors is None,
            **arguments,
        )
        if metadata is None and any(key.startswith(_PEFT_PREFIX) for key in state_dict):
            state_dict = state_dict | _peft_alphas(pretrained_model_name_or_path_or_dict, state_dict, arguments)
        state_dict = convert_lora_to_dreamactor(state_dict, strict)
        state_dict = {f"{cls.transformer_name}.{key}": value for key, value in state_dict.items()}
        return (state_dict, metadata) if return_lora_metadata else state_dict

    @classmethod
    def load_lora_into_transformer(cls, state_dict, transformer, strict: bool = False, **kwargs) -> None:
        """
        Put a LoRA of `lora_state_dict` into the transformer; `strict` and errors as in `load_lora_weights`.
        """
        prefix = f"{cls.transformer_name}."
        state_dict = {key.removeprefix(prefix): value for key, value in state_dict.items()}
        state_dict = fit_lora_to_transformer(state_dict, transformer, strict)
        state_dict = {f"{prefix}{key}": value for key, value in state_dict.items()}
        super().load_lora_into_transformer(state_dict, transformer, **kwargs)

    @staticmethod
    def write_lora_layers(
        state_dict, save_directory, is_main_process, weight_name, save_function, safe_serialization, *args, **kwargs
    ) -> None:
        """What `save_lora_weights` writes, with the permissions that the umask gives. The arguments are Diffusers'."""
        weight_name = weight_name or (LORA_WEIGHT_NAME_SAFE if safe_serialization else LORA_WEIGHT_NAME)
        path = Path(save_directory, weight_name)
        with errors_naming(path):
            WanLoraLoaderMixin.write_lora_layers(
                state_dict,
                save_directory,
                is_main_process,
                weight_name,
                save_function,
                safe_serialization,
                *args,
                **kwargs,
            )
            if path.is_file():
                give_usual_permissions(path)


def _peft_alphas(source, state_dict: dict[str, torch.Tensor], arguments: dict) -> dict[str, torch.Tensor]:
    """PEFT keeps alpha in a file beside the weights: the keys that say it for each module."""
    # PEFT takes long to import, and only loading a LoRA needs it.
    from peft.utils.other import get_pattern_key

    config = None
    if not isinstance(source, dict):
        folder = Path(source).parent if Path(source).is_file() else source
        try:
            arguments = {name: value for name, value in arguments.items() if name != "weight_name"}
            file = _get_model_file(folder, weights_name="adapter_config.json", **arguments)
            config = json.loads(Path(file).read_text())
        except OSError:
            config = None
    if config is None:
        logger.warning("No adapter_config.json lies beside this PEFT adapter: its alpha is taken to be its rank.")
        return {}
    alphas = {}
    for key, tensor in state_dict.items():
        name, separator, _ = key.rpartition(".lora_A")
        if separator:
            module, pattern = name.removeprefix(_PEFT_PREFIX), config.get("alpha_pattern") or {}
            alpha = pattern.get(get_pattern_key(pattern, module), config["lora_alpha"])
            # Rank-stabilised LoRA divides alpha by the root of the rank.
            alpha = alpha * tensor.shape[0] ** 0.5 if config.get("use_rslora") else alpha
            alphas[f"{name}.alpha"] = torch.tensor(float(alpha))
    return alphas
