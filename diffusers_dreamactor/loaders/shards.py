"""Weights as safetensors files, read and written shard by shard: never a whole model in memory."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PICKLE_SUFFIXES = (".bin", ".pth", ".pt", ".ckpt", ".pkl")
MAX_SHARD_BYTES = 5 * 10**9

# safetensors' names of dtypes, which a header tells without the tensor.
_HEADER_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass
class LazyTensor:
    """
    A tensor that is read, or made, when it is asked for.

    Args:
        meta (`torch.Tensor` on the meta device): Its shape and dtype.
        read (`Callable[[], torch.Tensor]`): Gives it, in memory of its own.
        view (`Callable[[], torch.Tensor]`, *optional*): Gives it as a part of the file, mapped into memory.
    """

    meta: torch.Tensor
    read: Callable[[], torch.Tensor]
    view: Callable[[], torch.Tensor] | None = None

    def load(self) -> torch.Tensor:
        """The tensor, mapped where it can be."""
        return self.read() if self.view is None else self.view()

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "LazyTensor":
        """The tensor after `function`, which has to work on the meta device too."""
        return LazyTensor(function(self.meta), lambda: function(self.read()))

    def to(self, dtype: torch.dtype | None) -> "LazyTensor":
        """The tensor in another floating-point dtype; `None`, and whole numbers, leave it as it is."""
        if dtype is None or dtype == self.meta.dtype or not self.meta.is_floating_point():
            return self
        return self.map(lambda tensor: tensor.to(dtype))


class WeightReader(Mapping):
    """
    The tensors of one model's safetensors files, as a mapping from names to `LazyTensor`.

    Args:
        path (`Path`): A folder with one model's weights (an index and its shards, or one file), or a `.safetensors` file.
        variant (`str`, *optional*): `"fp16"` for the files that have it before their suffix; those without when `None`.
        mapped (`bool`): Whether `LazyTensor.load` gives parts of the file, which then stays open as long as they are used.

    Attributes:
        largest_shard (`int`): Size of the largest file in bytes.

    Raises:
        OSError: No weights, only pickled ones, a shard that is missing, or a file that is cut off.
    """

    def __init__(self, path: Path, variant: str | None = None, mapped: bool = False):
        self.path = path
        index = None
        if path.is_file():
            files = [path]
        else:
            files, index = _find_files(path, variant)
        self.largest_shard = max(file.stat().st_size for file in files)
        self._tensors: dict[str, LazyTensor] = {}
        for file in files:
            self._add_file(file, mapped)
        if any(".lora_" in key for key in self._tensors):
            raise ValueError(
                f"`{path}` is a LoRA, but a model's weights are needed: `pipe.load_lora_weights` loads it, and"
                " `dreamactor convert lora` renames it."
            )
        for key, name in (index or {}).items():
            if key not in self._tensors:
                raise OSError(f"`{path / name}` has no tensor `{key}`, which the index of its folder says it has.")

    def _add_file(self, file: Path, mapped: bool) -> None:
        if file.suffix == ".gguf":
            raise OSError(
                f"`{file}` is a GGUF file, which holds quantised weights, but safetensors are read here:"
                " `DreamActorTransformer3DModel.from_single_file` loads it as it is."
            )
        if file.suffix in PICKLE_SUFFIXES:
            raise OSError(f"`{file}` is a pickle, but only safetensors are read: pickles can run code.")
        try:
            opened = safe_open(file, framework="pt") if mapped else None
            with safe_open(file, framework="pt") as shard:
                for key in shard.keys():
                    header = shard.get_slice(key)
                    if header.get_dtype() not in _HEADER_DTYPES:
                        raise OSError(
                            f"`{file}` has `{key}` in the dtype {header.get_dtype()}, which is not supported."
                        )
                    meta = torch.empty(header.get_shape(), dtype=_HEADER_DTYPES[header.get_dtype()], device="meta")
                    view = partial(opened.get_tensor, key) if mapped else None
                    self._tensors[key] = LazyTensor(meta, partial(_read, file, key), view)
        except SafetensorError as error:
            raise OSError(f"`{file}` is truncated or no safetensors file ({error}): download it again.") from error

    def __getitem__(self, key: str) -> LazyTensor:
        return self._tensors[key]

    def __iter__(self):
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _find_files(folder: Path, variant: str | None = None) -> tuple[list[Path], dict[str, str] | None]:
    dotted = "" if variant is None else f".{variant}"
    if not folder.is_dir():
        raise OSError(f"`{folder}` is missing, but holds weights in a complete repository.")
    indices = sorted(folder.glob(f"*.safetensors.index{dotted}.json"))
    if len(indices) > 1:
        raise OSError(f"`{folder}` has {len(indices)} indices of weights ({_names(indices)}), but one is accepted.")
    if indices:
        weight_map = json.loads(indices[0].read_text())["weight_map"]
        files = [folder / name for name in sorted(set(weight_map.values()))]
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise OSError(f"`{folder}` lacks the shards {_names(missing)}, which `{indices[0].name}` names.")
        return files, weight_map
    files = sorted(file for file in folder.glob("*.safetensors") if Path(file.stem).suffix == dotted)
    if len(files) > 1:
        raise OSError(f"`{folder}` has {len(files)} safetensors files ({_names(files)}), but no index of shards.")
    if not files:
        pickles = sorted(file for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES)
        if pickles:
            raise OSError(
                f"`{folder}` has pickled weights ({_names(pickles)}), but only safetensors are read: pickles can run"
                " code. Save the model again with `safe_serialization=True`."
            )
        raise OSError(f"`{folder}` has no safetensors file.")
    return files, None


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)


def _read(file: Path, key: str) -> torch.Tensor:
    # The file is closed after each tensor: pages of a mapped file stay resident as long as it is open.
    with safe_open(file, framework="pt") as shard:
        return shard.get_tensor(key).clone()


def shorten(keys: list[str], count: int = 8) -> str:
    """The first of many names, for an error."""
    text = ", ".join(f"`{key}`" for key in keys[:count])
    return text if len(keys) <= count else f"{text} and {len(keys) - count} more"


def write_weights(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    description: str,
    weights_name: str = "diffusion_pytorch_model",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """
    Writes a model's weights as `save_pretrained` does: one file, or shards and their index. One shard is in memory.

    Args:
        folder (`Path`): Made when it is not there.
        tensors (`Mapping[str, LazyTensor]`): In the order in which they are written.
        description (`str`): What the progress bar says.
        weights_name (`str`): Start of the files' names.
        max_shard_bytes (`int`): Size of a shard.
    """
    folder.mkdir(parents=True, exist_ok=True)
    split = split_torch_state_dict_into_shards(
        {key: tensor.meta for key, tensor in tensors.items()},
        filename_pattern=weights_name + "{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    total = sum(tensor.meta.nbytes for tensor in tensors.values())
    with tqdm(total=total, desc=description, unit="B", unit_scale=True) as progress_bar:
        for filename, keys in split.filename_to_tensors.items():
            shard = {}
            for key in keys:
                shard[key] = tensors[key].load().contiguous()
                progress_bar.update(shard[key].nbytes)
            save_file(shard, folder / filename, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / f"{weights_name}.safetensors.index.json").write_text(text, encoding="utf-8")
