"""Loading and one step of Wan2.2-Animate at its true size, on a machine that never saw the weights.

    python examples/benchmark/true_size.py make --folder true-size
    python examples/benchmark/true_size.py measure --folder true-size

`make` writes a `WanAnimatePipeline` repository with all names, shapes and shards of the 17.3 B model whose safetensors files
are holes: 50 GB by their sizes, 0.5 GB on the disk (the VAE is real, with random weights), and its transformer once more as the
single files that people share: fp8 with scales, GGUF. Reading a hole gives zeros, which costs what reading weights costs as
soon as they are in the page cache. `measure` loads it in a process of its own for each way, and prints a row of the table
in true_size.md: time, peak of resident memory above the imports' (pages of mapped files counted), size of the weights, and,
with `--step`, the time of one step of 5 frames at 128x128, the weights being in memory or in the page cache as far as they fit.
"""

import argparse
import json
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch


SHARD_BYTES = 9.9e9
HEADER_NAMES = {torch.bfloat16: "BF16", torch.float32: "F32"}
COMPONENTS = {
    "image_encoder": ["transformers", "CLIPVisionModel"],
    "image_processor": ["transformers", "CLIPImageProcessor"],
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "WanAnimateTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
}
# What `MemoryPlan` is asked for; None for `from_pretrained` without a dtype.
WAYS = {
    "own-dtypes": None,
    "mapped": {},
    "int8": {"quantize": "int8"},
    "fp8": {"quantize": "fp8"},
    "fp8-file": {"transformer_file": "fp8_scaled.safetensors"},
    "gguf-Q8_0": {"quantize": "gguf", "transformer_file": "Q8_0.gguf"},
    "gguf-Q4_0": {"quantize": "gguf", "transformer_file": "Q4_0.gguf"},
}


def write_fp8_holes(model: torch.nn.Module, file: Path) -> None:
    """A single file in fp8, a scale for each matrix, and no data."""
    tensors = {}
    for key, tensor in model.state_dict().items():
        is_matrix = tensor.ndim == 2
        tensors[key] = (
            "F8_E4M3" if is_matrix else "BF16",
            list(tensor.shape),
            tensor.numel() * (1 if is_matrix else 2),
        )
        if is_matrix:
            tensors[key.removesuffix("weight") + "scale_weight"] = ("F32", [], 4)
    header, filled = {}, 0
    for key, (dtype, shape, size) in tensors.items():
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [filled, filled + size]}
        filled += size
    write_header(header, file)


def write_gguf_holes(model: torch.nn.Module, file: Path, kind: str) -> None:
    """A GGUF file whose blocks' matrices are quantised, and no data."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(file, "wan")
    total = 0
    for key, tensor in model.state_dict().items():
        dtype = GGMLQuantizationType[
            kind if tensor.ndim == 2 and key.startswith(("blocks.", "face_adapter.")) else "F32"
        ]
        block, size = GGML_QUANT_SIZES[dtype]
        size = tensor.numel() // block * size
        writer.add_tensor_info(key, tensor.shape, np.dtype(np.float32), size, dtype)
        total += GGUFWriter.ggml_pad(size, writer.data_alignment)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = GGUFWriter.ggml_pad(file.stat().st_size, writer.data_alignment)
    with file.open("r+b") as stream:
        stream.truncate(start + total)


def write_header(header: dict[str, dict], file: Path) -> None:
    """A safetensors file of which only the header is written."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + max(entry["data_offsets"][1] for entry in header.values()))


def write_holes(model: torch.nn.Module, folder: Path, name: str, dtype: torch.dtype) -> None:
    """
    Safetensors shards with the names and shapes of a model's tensors, and no data.

    Args:
        model (`torch.nn.Module`): On the meta device.
        folder (`Path`): Where the files go.
        name (`str`): Start of their names.
        dtype (`torch.dtype`): Of the tensors.
    """
    folder.mkdir(parents=True)
    shards, filled = [{}], 0
    for key, tensor in model.state_dict().items():
        size = tensor.numel() * dtype.itemsize
        if filled + size > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][key] = {
            "dtype": HEADER_NAMES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [filled, filled + size],
        }
        filled += size
    weight_map = {}
    for number, header in enumerate(shards, 1):
        part = "" if len(shards) == 1 else f"-{number:05d}-of-{len(shards):05d}"
        file = folder / f"{name}{part}.safetensors"
        write_header(header, file)
        weight_map |= dict.fromkeys(header, file.name)
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index))


def make(folder: Path) -> None:
    """Writes the repository."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanAnimateTransformer3DModel
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        PreTrainedTokenizerFast,
        UMT5Config,
        UMT5EncoderModel,
    )

    with init_empty_weights():
        transformer = WanAnimateTransformer3DModel(image_dim=1280, added_kv_proj_dim=5120)
        text_encoder = UMT5EncoderModel(
            UMT5Config(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
        )
        sizes = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
        image_encoder = CLIPVisionModel(CLIPVisionConfig(**sizes, patch_size=14, projection_dim=1024))
    write_holes(transformer, folder / "transformer", "diffusion_pytorch_model", torch.bfloat16)
    transformer.save_config(folder / "transformer")
    write_fp8_holes(transformer, folder / WAYS["fp8-file"]["transformer_file"])
    for kind in ("Q8_0", "Q4_0"):
        write_gguf_holes(transformer, folder / WAYS[f"gguf-{kind}"]["transformer_file"], kind)
    for model, name, dtype in (
        (text_encoder, "text_encoder", torch.bfloat16),
        (image_encoder, "image_encoder", torch.float32),
    ):
        write_holes(model, folder / name, "model", dtype)
        model.config.save_pretrained(folder / name)
    AutoencoderKLWan().save_pretrained(folder / "vae")
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    scheduler.save_pretrained(folder / "scheduler")
    CLIPImageProcessor().save_pretrained(folder / "image_processor")
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "</s>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanAnimatePipeline", **COMPONENTS}, indent=2))


def resident(field: str) -> int:
    """`VmHWM` (peak) or `VmRSS` (now) of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", status)[1]) * 1024


def stored(tensor: torch.Tensor) -> int:
    """Bytes of a tensor; of a quantised one those of its parts."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    return sum(getattr(tensor, name).nbytes for name in tensor.__tensor_flatten__()[0])


def load(folder: Path, way: str):
    """The pipeline by one of the ways."""
    from diffusers_dreamactor import DreamActorPipeline
    from diffusers_dreamactor.memory.plans import MemoryPlan

    options = WAYS[way]
    if options is None:
        return DreamActorPipeline.from_pretrained(folder)
    options = {key: str(folder / value) if key == "transformer_file" else value for key, value in options.items()}
    return MemoryPlan(str(folder), "cpu", torch.bfloat16, **options).load()


@torch.no_grad()
def measure(folder: Path, way: str, step: bool) -> None:
    """Loads it in this process, and prints a row of the table."""
    import diffusers_dreamactor.registration  # noqa: F401, so that imports are not measured

    Path("/proc/self/clear_refs").write_text("5")
    before, start = resident("VmHWM"), time.perf_counter()
    pipe = load(folder, way)
    seconds, peak = time.perf_counter() - start, resident("VmHWM") - before
    models = [model for model in pipe.components.values() if isinstance(model, torch.nn.Module)]
    size = sum(stored(tensor) for model in models for tensor in model.parameters())
    stepped = "-"
    if step:
        transformer, dtype = pipe.transformer, torch.bfloat16
        start = time.perf_counter()
        transformer(
            torch.zeros(1, 36, 3, 16, 16, dtype=dtype),
            torch.tensor([500.0]),
            pose_hidden_states=torch.zeros(1, 16, 2, 16, 16, dtype=dtype),
            motion_hidden_states=torch.zeros(1, 5, 512, dtype=dtype),
            encoder_hidden_states=torch.zeros(1, 512, 4096, dtype=dtype),
            encoder_hidden_states_image=torch.zeros(1, 257, 1280, dtype=dtype),
            num_stream_references=1,
        )
        stepped = f"{time.perf_counter() - start:.0f} s, peak {(resident('VmHWM') - before) / 1e9:.1f} GB"
    print(f"| {way} | {seconds:.0f} s | {peak / 1e9:.2f} GB | {size / 1e9:.1f} GB | {stepped} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("make", "measure"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=["mapped"], help="a process each")
    parser.add_argument("--step", action="store_true", help="also time one step")
    arguments = parser.parse_args()
    if arguments.action == "make":
        make(arguments.folder)
    elif len(arguments.ways) == 1:
        measure(arguments.folder, arguments.ways[0], arguments.step)
    else:
        for way in arguments.ways:
            command = [sys.executable, __file__, "measure", "--folder", str(arguments.folder), "--ways", way]
            subprocess.run(command + ["--step"] * arguments.step, check=True)


if __name__ == "__main__":
    main()
