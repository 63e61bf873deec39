"""Time of one denoising step: `DreamActorTransformer3DModel` against Diffusers' `WanAnimateTransformer3DModel`.

Both models get the same random weights and the same inputs and take turns in one run, so that whatever else the
machine does hits both. Ours runs with a filled `ConditionCache`, which is every step of a segment but its first. Before
timing, the outputs are compared.

    python examples/benchmark/denoising_step.py --configuration small wide --repeats 7

`small` has two narrow layers and the real 512 px face motion encoder, which Wan-Animate runs anew at every step: it
shows what the cache saves, and is not what a 14B user sees. `wide` has layers of the 1.3B width and a face motion
encoder of negligible cost: it shows that the layers themselves are not slower. The table at the end counts what each
part of a step costs at the real 14B size.
"""

import argparse
import math
import re
import statistics
import time
from collections.abc import Callable

import torch
from diffusers import WanAnimateTransformer3DModel
from torch.utils.flop_counter import FlopCounterMode

from diffusers_dreamactor.models.condition_cache import ConditionCache
from diffusers_dreamactor.models.transformer_dreamactor import DreamActorTransformer3DModel


TEXT_TOKENS, TEXT_DIM = 512, 4096
IMAGE_TOKENS, IMAGE_DIM = 257, 1280

CONFIGURATIONS = {
    "small": {
        "model": {"num_attention_heads": 2, "attention_head_dim": 128, "ffn_dim": 1024, "num_layers": 2},
        "face_encoder": {"motion_encoder_size": 512},
        "num_frames": 5,
        "size": 128,
    },
    "wide": {
        "model": {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 2},
        "face_encoder": {
            "motion_encoder_size": 16,
            "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
            "motion_style_dim": 8,
        },
        "num_frames": 33,
        "size": 256,
    },
}
FACE_ATTENTION_INTERVAL = 5


def build_models(configuration: dict) -> tuple[WanAnimateTransformer3DModel, DreamActorTransformer3DModel]:
    """Diffusers' model with random weights, and ours with the same ones."""
    torch.manual_seed(0)
    sizes = configuration["model"]
    inner_dim = sizes["num_attention_heads"] * sizes["attention_head_dim"]
    # One block of every five has a face adapter, from the first; Diffusers makes `num_layers // interval`.
    interval = min(FACE_ATTENTION_INTERVAL, sizes["num_layers"])
    theirs = WanAnimateTransformer3DModel(
        **sizes,
        **configuration["face_encoder"],
        text_dim=TEXT_DIM,
        image_dim=IMAGE_DIM,
        added_kv_proj_dim=inner_dim,
        inject_face_latents_blocks=interval,
    ).eval()
    ours = DreamActorTransformer3DModel(
        **sizes,
        text_dim=TEXT_DIM,
        image_dim=IMAGE_DIM,
        face_attention_interval=interval,
        reference_attention=False,
    ).eval()
    state_dict = {}
    for key, value in theirs.state_dict().items():
        if key.startswith("face_adapter."):
            _, index, rest = key.split(".", 2)
            key = f"blocks.{interval * int(index)}.face_attn.{rest}"
        if not key.startswith("motion_encoder."):
            state_dict[key] = value
    ours.load_state_dict(state_dict, strict=True)
    return theirs, ours


def build_steps(configuration: dict) -> tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]:
    """One denoising step of each model as a call without arguments; the caches are filled."""
    theirs, ours = build_models(configuration)
    num_frames, size = configuration["num_frames"], configuration["size"] // 8
    num_latents = (num_frames - 1) // 4 + 1
    face_size = configuration["face_encoder"]["motion_encoder_size"]
    hidden_states = torch.randn(1, 36, num_latents + 1, size, size)
    timestep = torch.tensor([500.0])
    pose = torch.randn(1, 16, num_latents, size, size)
    text, image = torch.randn(1, TEXT_TOKENS, TEXT_DIM), torch.randn(1, IMAGE_TOKENS, IMAGE_DIM)
    face = torch.rand(1, 3, num_frames, face_size, face_size) * 2 - 1
    # The pipeline encodes each face crop once, with this same encoder.
    motion = torch.cat([theirs.motion_encoder(crop) for crop in face[0].transpose(0, 1).split(8)])[None]
    cache = ConditionCache()

    def their_step() -> torch.Tensor:
        return theirs(hidden_states, timestep, text, image, pose, face).sample

    def our_step() -> torch.Tensor:
        return ours(
            hidden_states,
            timestep,
            pose_hidden_states=pose,
            motion_hidden_states=motion,
            encoder_hidden_states=text,
            encoder_hidden_states_image=image,
            num_stream_references=1,
            condition_cache=cache,
        ).sample

    difference = (our_step() - their_step()).abs().max().item()
    if difference > 1e-4:
        raise RuntimeError(f"The models disagree: max abs difference {difference:.1e}.")
    print(f"  max abs difference of the outputs: {difference:.1e}")
    return their_step, our_step


def time_alternately(steps: tuple[Callable[[], torch.Tensor], ...], repeats: int) -> list[list[float]]:
    """Seconds of each call, in turns, after one warm-up of each."""
    for step in steps:
        step()
    seconds = [[] for _ in steps]
    for _ in range(repeats):
        for step, column in zip(steps, seconds):
            start = time.perf_counter()
            step()
            column.append(time.perf_counter() - start)
    return seconds


def count_flops() -> tuple[dict[str, float], dict[str, float]]:
    """Operations of one step (one pass) of Wan-Animate-14B: 77 frames, 832x480.

    PyTorch's own counter watches both models run on the meta device, where tensors have shapes and no values: it sees
    matrix products, convolutions and attention, and leaves out norms, activations and rotary embedding.

    Returns:
        `tuple[dict[str, float], dict[str, float]]`: TFLOP of each part, in Diffusers' model and in ours with a filled
        cache.
    """
    with torch.device("meta"):
        text, image = torch.empty(1, TEXT_TOKENS, TEXT_DIM), torch.empty(1, IMAGE_TOKENS, IMAGE_DIM)
        hidden_states, timestep, pose = (
            torch.empty(1, 36, 21, 60, 104),
            torch.empty(1),
            torch.empty(1, 16, 20, 60, 104),
        )
        theirs = WanAnimateTransformer3DModel(added_kv_proj_dim=5120)
        with FlopCounterMode(display=False) as their_counter:
            theirs(hidden_states, timestep, text, image, pose, torch.empty(1, 3, 77, 512, 512))
        ours = DreamActorTransformer3DModel(
            text_dim=TEXT_DIM,
            image_dim=IMAGE_DIM,
            face_attention_interval=FACE_ATTENTION_INTERVAL,
            reference_attention=False,
        )
        inputs = {
            "pose_hidden_states": pose,
            "motion_hidden_states": torch.empty(1, 77, 512),
            "encoder_hidden_states": text,
            "encoder_hidden_states_image": image,
            "num_stream_references": 1,
            "condition_cache": ConditionCache(),
        }
        ours(hidden_states, timestep, **inputs)
        with FlopCounterMode(display=False) as our_counter:
            ours(hidden_states, timestep, **inputs)

    # (part, module, operation); attention without a fused kernel counts as batched products.
    face = r"(face_adapter\.\d+|blocks\.\d+\.face_attn)"
    parts = (
        ("self-attention: projections", r"blocks\.\d+\.attn1", "addmm"),
        ("self-attention: scores and values", r"blocks\.\d+\.attn1", "bmm"),
        ("cross-attention: queries and output", r"blocks\.\d+\.attn2\.(to_q|to_out\.0)", "addmm"),
        ("cross-attention: keys and values", r"blocks\.\d+\.attn2\.(to_k|to_v|add_k_proj|add_v_proj)", "addmm"),
        ("cross-attention: scores and values", r"blocks\.\d+\.attn2", "bmm"),
        ("feed-forward", r"blocks\.\d+\.ffn", "addmm"),
        ("face attention: queries and output", face + r"\.(to_q|to_out)", "addmm"),
        ("face attention: keys and values", face + r"\.(to_k|to_v)", "addmm"),
        ("face attention: scores and values", face, "bmm"),
        ("face motion encoder, 77 crops of 512 px", "motion_encoder", ""),
        ("face token encoder", "face_encoder", ""),
        ("time, text and image embedding", "condition_embedder", ""),
        ("patch embedding", "patch_embedding", ""),
        ("pose patch embedding", "pose_patch_embedding", ""),
        ("output projection", "proj_out", ""),
    )

    def table(counter: FlopCounterMode) -> dict[str, float]:
        counts = {name.partition(".")[2]: operations for name, operations in counter.get_flop_counts().items()}
        result = {
            part: sum(
                flops / 1e12
                for name, operations in counts.items()
                if re.fullmatch(module, name)
                for operation, flops in operations.items()
                if operation_name in str(operation)
            )
            for part, module, operation_name in parts
        }
        if not math.isclose(sum(result.values()), counter.get_total_flops() / 1e12, rel_tol=1e-6):
            raise RuntimeError(
                f"The parts sum to {sum(result.values())}, the step to {counter.get_total_flops() / 1e12}."
            )
        return result

    return table(their_counter), table(our_counter)


def print_flop_table() -> None:
    """The share of each part in a step of the real model."""
    theirs, ours = count_flops()
    total = sum(theirs.values())
    print("\nWan-Animate-14B, 77 frames, 832x480: TFLOP of one step (one pass)")
    print(f"  {'':<40} {'Diffusers':>10} {'share':>10} {'ours':>10}")
    for name, teraflops in sorted(theirs.items(), key=lambda item: -item[1]):
        print(f"  {name:<40} {teraflops:10.3f} {100 * teraflops / total:8.3f} % {ours[name]:10.3f}")
    print(f"  {'total':<40} {total:10.3f} {100:8.3f} % {sum(ours.values()):10.3f}")
    print(f"  The cache leaves out {100 * (1 - sum(ours.values()) / total):.2f} % of a step.")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--configuration", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS), help="what to time"
    )
    parser.add_argument("--repeats", type=int, default=7, help="timed steps of each model")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.configuration:
        print(f"{name}: {CONFIGURATIONS[name]['model']}, {arguments.threads} threads")
        their_seconds, our_seconds = time_alternately(build_steps(CONFIGURATIONS[name]), arguments.repeats)
        theirs, ours = statistics.median(their_seconds), statistics.median(our_seconds)
        for label, column in (
            ("WanAnimateTransformer3DModel", their_seconds),
            ("DreamActorTransformer3DModel", our_seconds),
        ):
            print(
                f"  {label}: median {statistics.median(column) * 1e3:8.1f} ms"
                f" (min {min(column) * 1e3:.1f}, max {max(column) * 1e3:.1f}, {len(column)} steps)"
            )
        print(f"  ratio of medians: {ours / theirs:.3f}")
    print_flop_table()


if __name__ == "__main__":
    main()
