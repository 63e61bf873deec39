"""Estimated and measured memory of generation, for small models on the CPU.

    python examples/benchmark/memory_plans.py --folder FOLDER

Writes repositories of random weights, hundreds of MB each, and for each of their plans loads the pipeline and makes a video
in a process of its own. Measured is the peak of resident memory above that of the libraries (pages of mapped files counted),
and compared with the plan's weights, caches and activations. Prints the table of memory_plans.md.
"""

import argparse
import ctypes
import mmap
import os
import pickle
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class Case:
    """One model and one video: `kind` of repository, sizes of the transformer and VAE, `(height, width, frames)`."""

    kind: str
    heads: int
    layers: int
    vae_dim: int
    video: tuple[int, int, int]
    segment_frames: int
    guidance_scale: float


CASES = {
    "dreamactor, large model": Case("dreamactor", 12, 8, 32, (128, 192, 9), 9, 2.5),
    "dreamactor, large video": Case("dreamactor", 4, 4, 32, (192, 288, 9), 9, 2.5),
    "dreamactor, two segments": Case("dreamactor", 8, 8, 32, (128, 160, 9), 5, 1.0),
    "wan-animate, large model": Case("wan-animate", 12, 8, 32, (128, 192, 9), 9, 1.0),
    "wan-animate, large video": Case("wan-animate", 4, 4, 32, (192, 288, 9), 9, 2.0),
    "wan-animate, two segments": Case("wan-animate", 8, 8, 32, (128, 160, 9), 5, 1.0),
}
# glibc keeps freed pieces of less than 32 MB, as small models have them, for itself: here it gives them back, as it does
# those of large models.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}
FACE_CHANNELS = {"128": 32, "64": 64, "32": 128, "16": 128, "8": 128, "4": 128}


def make(case: Case, folder: Path) -> None:
    """Writes the repository of a case."""
    import diffusers_dreamactor  # noqa: F401
    from diffusers_dreamactor import (
        DreamActorPipeline,
        DreamActorTransformer3DModel,
        DreamActorVAE,
        FaceMotionEncoder,
        PoseEncoder,
    )
    from diffusers_dreamactor.processors.guidance import MotionGuidanceProcessor

    torch.manual_seed(0)
    dim = 64 * case.heads
    vae = {"base_dim": case.vae_dim}
    if case.kind == "dreamactor":
        from diffusers import FlowMatchEulerDiscreteScheduler

        DreamActorPipeline(
            transformer=DreamActorTransformer3DModel(
                num_attention_heads=case.heads, attention_head_dim=64, ffn_dim=4 * dim, num_layers=case.layers
            ),
            vae=DreamActorVAE(**vae),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            face_motion_encoder=FaceMotionEncoder(size=128, channels=FACE_CHANNELS),
            motion_processor=MotionGuidanceProcessor(face_size=128),
            pose_encoder=PoseEncoder(),
            segment_frames=case.segment_frames,
        ).save_pretrained(folder)
        return
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanAnimatePipeline, WanAnimateTransformer3DModel
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        PreTrainedTokenizerFast,
        UMT5Config,
        UMT5EncoderModel,
    )

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "</s>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    sizes = {"hidden_size": 640, "intermediate_size": 2560, "num_hidden_layers": 12, "num_attention_heads": 10}
    WanAnimatePipeline(
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=words, **special),
        text_encoder=UMT5EncoderModel(
            UMT5Config(vocab_size=16, d_model=256, d_kv=32, d_ff=256, num_layers=1, num_heads=8)
        ),
        vae=AutoencoderKLWan(**vae),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
        image_processor=CLIPImageProcessor(),
        image_encoder=CLIPVisionModel(CLIPVisionConfig(**sizes, patch_size=14, projection_dim=64)),
        transformer=WanAnimateTransformer3DModel(
            num_attention_heads=case.heads,
            attention_head_dim=64,
            ffn_dim=4 * dim,
            num_layers=case.layers,
            text_dim=256,
            image_dim=640,
            added_kv_proj_dim=dim,
            motion_encoder_size=128,
            motion_encoder_channel_sizes=FACE_CHANNELS,
            inject_face_latents_blocks=2,
        ),
    ).save_pretrained(folder)


def plans_of(case: Case, folder: Path) -> list:
    """The plans of a case, on the CPU, in float32: few CPUs compute bfloat16 in less than minutes."""
    from diffusers_dreamactor import list_memory_plans

    arguments = {"guidance_scale": case.guidance_scale, "segment_frames": case.segment_frames}
    ways = [{"offload": "none"}]
    if case.layers * case.heads > 90:
        ways += [{"quantize": "fp8", "offload": "none"}, {"offload": "disk"}]
    return [
        plan
        for way in ways
        for plan in list_memory_plans(folder, *case.video, device="cpu", dtype=torch.float32, **way, **arguments)
    ]


def resident(field: str) -> int:
    """`VmHWM` (peak) or `VmRSS` (now) of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", status)[1]) * 1024


def give_back_mapped_pages() -> None:
    """Pages of weights' files that were read but are not used any more cost nothing, yet count as resident."""
    libc = ctypes.CDLL(None, use_errno=True)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(".safetensors"):
            start, stop = (int(part, 16) for part in line.split()[0].split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)


def measure(name: str, folder: Path, plan) -> None:
    """Carries out one plan in this process, and prints a row of the table."""
    from diffusers_dreamactor.checkpoints.random_pipeline import random_pipeline
    from diffusers_dreamactor.memory.generation import blank_inputs

    case = CASES[name]
    # a first video of a tiny model, so that what libraries load and set up when they are first used is not measured
    tiny = random_pipeline()
    tiny(blank_inputs(tiny, 64, 64, 5), num_inference_steps=1, generator=torch.Generator().manual_seed(0))
    del tiny
    before = resident("VmRSS")
    extra = {"prompt_cache": folder.parent / "prompts"} if case.kind == "wan-animate" else {}
    pipe = plan.load(**extra)
    pipe.set_progress_bar_config(disable=True)
    inputs = blank_inputs(pipe, *case.video)
    give_back_mapped_pages()
    Path("/proc/self/clear_refs").write_text("5")
    for _ in pipe.stream(
        inputs,
        num_inference_steps=2,
        guidance_scale=case.guidance_scale,
        segment_frames=case.segment_frames,
        generator=torch.Generator().manual_seed(0),
    ):
        pass
    measured, estimated = resident("VmHWM") - before, plan.peak - plan.allowance
    height, width, frames = case.video
    parts = [f"{size / 2**20:.0f}" for size in (plan.weights, plan.caches, plan.activations, estimated, measured)]
    print(
        f"| {name} | {width}x{height}x{frames} | {plan.name} | {' | '.join(parts)} | {estimated / measured - 1:+.0%} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--case", choices=CASES, help="only this one")
    parser.add_argument("--plan", type=Path, help="only the plan in this file, in this process")
    arguments = parser.parse_args()
    for name in [arguments.case] if arguments.case else CASES:
        folder = arguments.folder / name.replace(", ", "-").replace(" ", "-")
        if arguments.plan is not None:
            measure(name, folder, pickle.loads(arguments.plan.read_bytes()))
            continue
        if not folder.is_dir():
            make(CASES[name], folder)
        file = arguments.folder / "plan.pickle"
        for plan in plans_of(CASES[name], folder):
            file.write_bytes(pickle.dumps(plan))
            command = [
                sys.executable,
                __file__,
                "--folder",
                str(arguments.folder),
                "--case",
                name,
                "--plan",
                str(file),
            ]
            subprocess.run(command, check=True, env=os.environ | ALLOCATOR)


if __name__ == "__main__":
    main()
