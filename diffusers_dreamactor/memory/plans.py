"""Plans of how a pipeline fits into the memory there is: estimated from the configs, carried out by Diffusers."""

import importlib.util
import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers import PipelineQuantizationConfig, TorchAoConfig
from diffusers.utils import logging

from diffusers_dreamactor.memory.generation import GenerationMemory, trace_generation
from diffusers_dreamactor.memory.meta_pipeline import meta_pipeline
from diffusers_dreamactor.models.transformer_dreamactor import DreamActorTransformer3DModel
from diffusers_dreamactor.pipelines.animation_pipeline import AnimationPipeline


logger = logging.get_logger(__name__)

GIB = 2**30
OFFLOADS = ("none", "model", "group", "disk")
QUANTIZATIONS = ("fp8", "int8", "gguf")
# What a device takes besides tensors: on a GPU its context, the convolutions' workspace and the allocator's gaps, which
# no config tells; on the CPU the interpreter and its libraries.
ALLOWANCES = {"cpu": GIB // 2}
_GPU_ALLOWANCE = GIB * 3 // 2
# What group offloading moves; the other models are small and stay on the device.
_MOVED_IN_GROUPS = ("transformer", "text_encoder", "image_encoder", "audio_encoder")


@dataclass
class MemoryPlan:
    """
    One way to run a pipeline, and what it takes. `load` loads the pipeline so, `apply` changes a loaded one; offloading,
    casting and quantisation are Diffusers' own.

    Args:
        source (`str`): The repository, folder or Hub id.
        device (`str`): Where it runs.
        dtype (`torch.dtype`): Of weights and computation.
        offload (`str`):
            `"none"`; `"model"`, a model at a time on the device (`enable_model_cpu_offload`); `"group"`, a block of the
            transformer at a time, the next one being fetched meanwhile (`enable_group_offload`); `"disk"`, the same
            from files.
        quantize (`str`, *optional*):
            Of the transformer's weights: `"fp8"` (e4m3, cast layer by layer), `"int8"` (torchao, weights only) or `"gguf"`.
        tiling (`bool`): Whether the VAE works on tiles: less memory, more time.
        weights, caches, activations (`int`):
            Bytes on the device at the moment of the peak: of the models there, of what is kept between the steps, and of
            everything else that is computed.
        allowance (`int`): Bytes for what is no tensor: the device's context and workspace.
        host (`int`): Bytes of weights that wait in the main memory, for other devices than the CPU.
        disk (`int`): Bytes of weights in the files that `"disk"` writes.
        transformer_file (`str`, *optional*): A single file that takes the place of the repository's transformer.
        hub (`dict`): How the Hub's client was called.
    """

    source: str
    device: str
    dtype: torch.dtype
    offload: str = "none"
    quantize: str | None = None
    tiling: bool = False
    weights: int = 0
    caches: int = 0
    activations: int = 0
    allowance: int = 0
    host: int = 0
    disk: int = 0
    transformer_file: str | None = None
    hub: dict[str, Any] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """The most there is on the device, in bytes."""
        return self.weights + self.caches + self.activations + self.allowance

    @property
    def name(self) -> str:
        """What is done, in words: `"bfloat16, fp8, group offload, tiled VAE"`."""
        parts = [str(self.dtype).removeprefix("torch.")]
        parts += [self.quantize] if self.quantize else []
        parts += [f"{self.offload} offload"] if self.offload != "none" else []
        return ", ".join(parts + ["tiled VAE"] * self.tiling)

    def load(self, place: bool = True, **kwargs: Any) -> AnimationPipeline:
        """
        Loads the pipeline.

        Args:
            place (`bool`, defaults to `True`):
                Whether it is cast and placed by `apply`, too; `False` to load LoRAs before.
            kwargs: As for `DreamActorPipeline.from_pretrained`.
        """
        if self.quantize == "int8":
            from torchao.quantization import Int8WeightOnlyConfig

            configs = {"transformer": TorchAoConfig(Int8WeightOnlyConfig())}
            kwargs.setdefault("quantization_config", PipelineQuantizationConfig(quant_mapping=configs))
        if self.transformer_file is not None:
            kwargs.setdefault("transformer", self._load_transformer())
        pipe = AnimationPipeline.from_pretrained(self.source, dtype=self.dtype, **self.hub, **kwargs)
        return self.apply(pipe) if place else pipe

    def _load_transformer(self) -> DreamActorTransformer3DModel:
        with tempfile.TemporaryDirectory() as folder:
            meta_pipeline(self.source, **self.hub).transformer.save_config(folder)
            return DreamActorTransformer3DModel.from_single_file(
                self.transformer_file, config=folder, dtype=self.dtype
            )

    def apply(self, pipe: AnimationPipeline, folder: str | os.PathLike | None = None) -> AnimationPipeline:
        """
        Casts, tiles and places a loaded pipeline. Int8 and GGUF weights are made while they are loaded, not here.

        Args:
            pipe ([`AnimationPipeline`]): On the CPU.
            folder (`str` or `os.PathLike`, *optional*):
                Where `"disk"` keeps the weights; a temporary folder, removed with the pipeline, when `None`.

        Returns:
            [`AnimationPipeline`]: The same pipeline.
        """
        if self.tiling:
            pipe.vae.enable_tiling()
        if self.quantize == "fp8":
            pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, self.dtype)
        if self.offload == "none":
            return pipe.to(self.device)
        if self.offload == "model":
            pipe.enable_model_cpu_offload(device=self.device)
            return pipe
        on_disk = self.offload == "disk"
        if on_disk and folder is None:
            folder = tempfile.mkdtemp(prefix="dreamactor-weights-")
            weakref.finalize(pipe, shutil.rmtree, folder, ignore_errors=True)
        models = {name for name, component in pipe.components.items() if isinstance(component, torch.nn.Module)}
        pipe.enable_group_offload(
            onload_device=torch.device(self.device),
            num_blocks_per_group=1,
            use_stream=_prefetches(self.device),
            low_cpu_mem_usage=True,
            offload_to_disk_path=os.fspath(folder) if on_disk else None,
            exclude_modules=sorted(models - set(_MOVED_IN_GROUPS)),
        )
        return pipe


def _prefetches(device: str) -> bool:
    return torch.device(device).type == "cuda"


class _Weights:
    """Bytes of a pipeline's weights by component, for one dtype and quantisation."""

    def __init__(self, pipe: AnimationPipeline, dtype: torch.dtype, quantize: str | None, file: str | None) -> None:
        models = {name: model for name, model in pipe.components.items() if isinstance(model, torch.nn.Module)}
        self.of_tensor: Callable[[str, torch.Tensor], int] = lambda name, tensor: tensor.nbytes
        self.scratch = 0
        transformer = pipe.transformer
        linear = {f"{name}.weight" for name, part in transformer.named_modules() if isinstance(part, torch.nn.Linear)}
        if quantize == "fp8":
            transformer.enable_layerwise_casting(torch.float8_e4m3fn, dtype)
        elif quantize == "int8":
            kept = set(transformer._keep_in_fp32_modules)
            linear = {name for name in linear if not kept & set(name.split("."))}
            # a scale for each output channel
            self.of_tensor = lambda name, tensor: (
                tensor.numel() + len(tensor) * tensor.itemsize if name in linear else tensor.nbytes
            )
        elif quantize == "gguf":
            # the file's mean over its matrices
            from gguf import GGUFReader

            matrices = [tensor for tensor in GGUFReader(file).tensors if len(tensor.shape) == 2]
            ratio = sum(t.n_bytes for t in matrices) / sum(int(t.n_elements) for t in matrices)
            self.of_tensor = lambda name, tensor: int(tensor.numel() * ratio) if name in linear else tensor.nbytes
        if quantize is not None:
            # a layer's weights as they are computed with
            self.scratch = max(
                tensor.numel() * dtype.itemsize for name, tensor in transformer.named_parameters() if name in linear
            )
        self.by_model = {name: self._sum(model) for name, model in models.items()}
        groups = {}
        for name, model in models.items():
            blocks = [
                self._sum(block, f"{child_name}.{i}.")
                for child_name, child in model.named_children()
                if isinstance(child, torch.nn.ModuleList | torch.nn.Sequential)
                for i, block in enumerate(child)
            ]
            groups[name] = (self.by_model[name] - sum(blocks), max(blocks, default=0))
        self.groups = groups

    def _sum(self, model: torch.nn.Module, prefix: str = "") -> int:
        tensors = (*model.named_parameters(prefix.rstrip(".")), *model.named_buffers(prefix.rstrip(".")))
        return sum(self.of_tensor(name, tensor) for name, tensor in tensors)


def list_memory_plans(
    source: str | os.PathLike,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    offload: str | None = None,
    quantize: str | None = None,
    guidance_scale: float | None = None,
    segment_frames: int | None = None,
    transformer_file: str | os.PathLike | None = None,
    **hub: Any,
) -> Iterator[MemoryPlan]:
    """
    All ways to run a pipeline on a device, those first that cost the least time and quality, each estimated from the
    repository's configs alone: the pipeline's own code runs on the meta device, and its tensors are counted.

    Args:
        source (`str` or `os.PathLike`): A repository, folder or Hub id, of ours or of Diffusers' `WanAnimatePipeline`.
        height, width (`int`, *optional*): Of the video; a wide picture of the model's area when `None`.
        num_frames (`int`, *optional*): Of the video; many when `None`: more than a segment's take no more memory.
        device (`str`, *optional*): `"cuda"`, `"mps"` or `"cpu"`; the best there is when `None`.
        dtype (`torch.dtype`, *optional*): Only plans with this one; bfloat16, on the CPU float32 first, when `None`.
        offload (`str`, *optional*): Only `"none"`, `"model"`, `"group"` or `"disk"`.
        quantize (`str`, *optional*): Only `"fp8"`, `"int8"` (needs torchao) or `"gguf"` (needs a `transformer_file`).
        guidance_scale (`float`, *optional*), segment_frames (`int`, *optional*):
            Of the sampling; the repository's when `None`.
        transformer_file (`str` or `os.PathLike`, *optional*): A single file with the transformer, such as GGUF.
        hub: `cache_dir`, `revision`, `token`, `local_files_only`, as the Hub's client takes them.

    Yields:
        [`MemoryPlan`]

    Raises:
        OSError: There is no such repository or file.
        ValueError: An argument that cannot be used.
    """
    device = best_device() if device is None else device
    kind = torch.device(device).type
    file = None if transformer_file is None else os.fspath(transformer_file)
    _check(kind, offload, quantize, file)
    if dtype is not None:
        dtypes = [dtype]
    else:
        dtypes = [torch.float32, torch.bfloat16] if kind == "cpu" else [torch.bfloat16]
    if quantize is None and file is not None and file.endswith(".gguf"):
        quantize = "gguf"

    template = meta_pipeline(source, **hub)
    if height is None or width is None:
        height, width = template.motion_processor.reference.generation_size(480, 832, height, width)
    if num_frames is None:
        num_frames = 2 * (segment_frames or template.config.segment_frames)

    @cache
    def traced(own_dtype: torch.dtype, tiling: bool) -> GenerationMemory:
        pipe = meta_pipeline(source, own_dtype, **hub)
        if tiling:
            pipe.vae.enable_tiling()
        return trace_generation(pipe, height, width, num_frames, guidance_scale, segment_frames)

    @cache
    def weights(own_dtype: torch.dtype, own_quantize: str | None) -> _Weights:
        return _Weights(meta_pipeline(source, own_dtype, **hub), own_dtype, own_quantize, file)

    tile = template.vae.tile_sample_min_height, template.vae.tile_sample_min_width
    tilings = (False, True) if height > tile[0] or width > tile[1] else (False,)
    for own_dtype, own_offload, own_quantize in _ways(kind, dtypes, quantize):
        if offload not in (None, own_offload):
            continue
        whole = None
        for tiling in tilings:
            plan = MemoryPlan(str(source), device, own_dtype, own_offload, own_quantize, tiling)
            plan = replace(plan, transformer_file=file, hub=hub)
            plan = _estimate(plan, weights(own_dtype, own_quantize), traced(own_dtype, tiling))
            if whole is None or plan.peak < whole.peak:
                yield plan
            whole = plan


def _check(kind: str, offload: str | None, quantize: str | None, file: str | None) -> None:
    if offload not in (None, *OFFLOADS):
        raise ValueError(f"`offload` is {offload!r}, but has to be one of {', '.join(OFFLOADS)}.")
    if offload in ("model", "group") and kind in ("cpu", "mps"):
        raise ValueError(
            f'`offload` is {offload!r}, but on {kind} weights and work share one memory: "none" or "disk" is accepted.'
        )
    if quantize not in (None, *QUANTIZATIONS):
        raise ValueError(f"`quantize` is {quantize!r}, but has to be one of {', '.join(QUANTIZATIONS)}.")
    if quantize == "fp8" and kind == "mps":
        raise ValueError('`quantize` is "fp8", but mps has no fp8: "int8" or "gguf" is accepted.')
    if quantize == "int8" and importlib.util.find_spec("torchao") is None:
        raise ImportError(
            '`quantize` is "int8", but torchao is not installed: `pip install "diffusers-dreamactor[int8]"`.'
        )
    if quantize == "int8" and offload == "disk":
        raise ValueError(
            '`offload` is "disk", but int8 weights of torchao cannot be written to files: take another one.'
        )
    if file is not None and not Path(file).is_file():
        raise FileNotFoundError(f"`transformer_file` is {file}, but there is no such file.")
    is_gguf = file is not None and file.endswith(".gguf")
    if quantize == "gguf" and not is_gguf:
        raise ValueError('`quantize` is "gguf", but such weights come as a file: pass it as `transformer_file`.')
    if is_gguf and quantize not in (None, "gguf"):
        raise ValueError(f"`quantize` is {quantize!r}, but the weights of {file} are quantised already.")


def _ways(kind: str, dtypes: list[torch.dtype], quantize: str | None) -> Iterator[tuple[torch.dtype, str, str | None]]:
    """Dtype, offload and quantisation, from the fastest and finest on."""
    held = ("none",) if kind in ("cpu", "mps") else ("none", "model", "group")
    # unasked, weights are quantised only where nothing else fits but the disk
    unasked = [None] if quantize is None else [quantize]
    if quantize is None and kind == "cuda":
        unasked.append("fp8")
    for own_quantize in unasked:
        for dtype in dtypes:
            for offload in held:
                yield dtype, offload, own_quantize
    if quantize != "int8":
        yield dtypes[-1], "disk", quantize


def _estimate(plan: MemoryPlan, weights: _Weights, memory: GenerationMemory) -> MemoryPlan:
    prefetched = 2 if _prefetches(plan.device) else 1
    total = sum(weights.by_model.values())
    if plan.offload == "none":
        on_device = dict.fromkeys(weights.by_model, total)
    elif plan.offload == "model":
        # kept on the device throughout
        stays = weights.by_model.get("prompt_embedding", 0)
        on_device = {name: size + stays * (name != "prompt_embedding") for name, size in weights.by_model.items()}
    else:
        stays = sum(size for name, size in weights.by_model.items() if name not in _MOVED_IN_GROUPS)
        on_device = dict.fromkeys(weights.by_model, stays)
        for name in set(_MOVED_IN_GROUPS) & set(weights.by_model):
            rest, block = weights.groups[name]
            on_device[name] = stays + rest + prefetched * block
    activations = dict(memory.peaks)
    activations["transformer"] += weights.scratch
    at_peak = max(on_device, key=lambda name: on_device[name] + activations[name])
    caches = min(memory.caches, activations[at_peak])
    kind = torch.device(plan.device).type
    moved = total if plan.offload != "none" else 0
    if plan.offload in ("group", "disk"):
        moved = sum(weights.by_model[name] for name in set(_MOVED_IN_GROUPS) & set(weights.by_model))
    return replace(
        plan,
        weights=on_device[at_peak],
        caches=caches,
        activations=activations[at_peak] - caches,
        allowance=ALLOWANCES.get(kind, _GPU_ALLOWANCE),
        host=moved if plan.offload in ("model", "group") else 0,
        disk=moved if plan.offload == "disk" else 0,
    )


def choose_plan(plans: Iterable[MemoryPlan], memory: float, host: float = math.inf) -> MemoryPlan | None:
    """The first of the plans that takes at most `memory` bytes of the device and `host` bytes of the main memory."""
    return next((plan for plan in plans if plan.peak <= memory and plan.host <= host), None)


def plan_memory(
    source: str | os.PathLike,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    memory: float | str = "auto",
    reserve: float = 0.0,
    **arguments: Any,
) -> MemoryPlan:
    """
    The fastest and finest way to run a pipeline that fits into the memory there is.

    Args:
        source, height, width, num_frames: As for `list_memory_plans`.
        memory (`float` or `str`): GiB on the device; `"auto"`: what is free there.
        reserve (`float`): GiB of it for what the configs do not tell, such as a LoRA.
        arguments: The others of `list_memory_plans`.

    Returns:
        [`MemoryPlan`]: Its `load` loads the pipeline. With `"auto"`, where nothing fits, the one that takes the least, with
        a warning.

    Raises:
        OSError: There is no such repository or file.
        ValueError: Nothing fits into `memory`, or an argument cannot be used.

    Examples:
        ```python
        >>> from diffusers_dreamactor import plan_memory

        >>> plan = plan_memory("Wan-AI/Wan2.2-Animate-14B-Diffusers", 480, 832, 77, memory=24)
        >>> pipe = plan.load()
        ```
    """
    device = arguments.get("device") or best_device()
    if memory == "auto":
        limit = free_memory(device)
    elif isinstance(memory, str) or not memory > 0:
        raise ValueError(f'`memory` is {memory!r}, but has to be "auto" or a number of GiB above 0.')
    else:
        limit = memory * GIB
    limit -= reserve * GIB
    host = psutil.virtual_memory().available
    seen: list[MemoryPlan] = []

    def remembered() -> Iterator[MemoryPlan]:
        for plan in list_memory_plans(source, height, width, num_frames, **{**arguments, "device": device}):
            seen.append(plan)
            yield plan

    plan = choose_plan(remembered(), limit, host)
    if plan is not None:
        return plan
    least = min(seen, key=lambda plan: (plan.host > host, plan.peak))
    text = f"the least that `{source}` takes is {least.peak / GIB:.1f} GiB on {device} ({least.name})"
    if least.host:
        text += f" with {least.host / GIB:.1f} GiB of main memory, of which {host / GIB:.1f} are free"
    if memory != "auto":
        raise ValueError(f"`memory` is {memory:g}, but {text}: a smaller video takes less.")
    logger.warning(f"{limit / GIB:.1f} GiB are free on {device}, but {text}: it may not run.")
    return least


def best_device() -> str:
    """`cuda`, `mps` or `cpu`."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def free_memory(device: str) -> int:
    """Bytes that are free on a device; on the CPU, and where both share one memory, of the main memory."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
