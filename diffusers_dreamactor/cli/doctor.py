"""`dreamactor doctor`: what is there, what is missing for what, and the memory that models take."""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path

from diffusers_dreamactor.cli.arguments import DTYPES


EXTRAS = {
    "capture": ("mediapipe", "driving videos and reference pictures (MediaPipe)"),
    "smplx": ("smplx", "SMPL-X motions with your own model files"),
    "synthetic": ("anny", "synthetic avatars for training"),
    "train": ("tensorboard", "training curves"),
    "xformers": ("xformers", "xFormers attention"),
    "controlnet": ("controlnet_aux", "OpenPose and DWPose detections"),
    "demo": ("gradio", "the Gradio Space"),
    "gguf": ("gguf", "GGUF single files"),
    "int8": ("torchao", "int8 weights"),
    "completion": ("shtab", "completion of the command in a shell"),
    "heic": ("pillow_heif", "HEIC pictures, as phones take them"),
}
CORE = ["torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "huggingface_hub", "av", "numpy"]


def run_doctor(args: argparse.Namespace) -> None:
    """`dreamactor doctor`."""
    import torch

    if args.model is not None:
        print_memory(args)
        return

    from diffusers_dreamactor.checkpoints import bundled_model
    from diffusers_dreamactor.memory.plans import best_device
    from diffusers_dreamactor.motion.capture.download import CAPTURE_MODELS, default_capture_folder

    print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in ["diffusers-dreamactor", *CORE]:
        print(f"  {package:<22}{importlib.metadata.version(package)}")
    print(f"device: {best_device()}, {os.cpu_count()} CPU cores")
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        print(f"  {torch.cuda.get_device_name(number)}: {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    print(f"disk: {shutil.disk_usage(Path.home()).free / 2**30:.1f} GiB free in {Path.home()}")
    # of a checkout the extras are installed from there
    checkout = Path(__file__).resolve().parents[2]
    source = f"{checkout}" if (checkout / "pyproject.toml").is_file() else "diffusers-dreamactor"
    print("extras:")
    for extra, (module, purpose) in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        state = "installed" if there else f'missing: pip install "{source}[{extra}]"'
        print(f"  {extra:<12}{purpose}: {state}")
    folder = default_capture_folder()
    print(f"capture models in {folder}:")
    for name in CAPTURE_MODELS:
        there = (folder / name).is_file()
        print(f"  {name}: {'there' if there else 'missing: dreamactor capture --download'}")
    model = bundled_model()
    print(f"bundled model: {model or 'none: random weights stand in, and the picture is noise'}")


def print_memory(args: argparse.Namespace) -> None:
    """The plans of `dreamactor doctor --model`, and which of them is recommended."""
    import math

    import psutil
    import torch

    from diffusers_dreamactor.memory.plans import GIB, best_device, choose_plan, free_memory, list_memory_plans
    from diffusers_dreamactor.memory.report import CARDS, plan_table

    device = args.device or best_device()
    height, width = args.size or (None, None)
    plans = list(
        list_memory_plans(
            args.model,
            height,
            width,
            args.frames,
            device=device,
            dtype=args.dtype and getattr(torch, DTYPES[args.dtype]),
            offload=args.offload,
            quantize=args.quantize,
            guidance_scale=args.guidance_scale,
            transformer_file=args.transformer,
        )
    )
    print(f"{args.model} on {device}, in GiB:")
    print(plan_table(plans))
    # of another machine nothing is known but what is asked for
    is_here = torch.device(device).type in ("cpu", best_device())
    host = psutil.virtual_memory().available if is_here else math.inf
    if args.memory != "auto":
        limits = [args.memory]
    else:
        limits = [free_memory(device) / GIB] if is_here else CARDS
    for limit in limits:
        plan = choose_plan(plans, limit * GIB, host)
        advice = "nothing fits: a smaller video takes less" if plan is None else plan.name
        print(f"recommended for {limit:.3g} GiB{' (free now)' * (is_here and args.memory == 'auto')}: {advice}")
