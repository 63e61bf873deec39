"""
A training kit: everything that a machine with a GPU and PyTorch, but without a network, needs to train a small DreamActor.

    python gpu_kit.py pack --body body.npz --output kit.tar.gz          # here
    tar xzf kit.tar.gz && python kit/gpu_kit.py run --output run        # there, as often as it takes
    python gpu_kit.py assemble --weights run/weights --output model     # here
    python gpu_kit.py evaluate --model model --body body.npz --output results

See GPU_KIT.md.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from pathlib import Path


HERE = Path(__file__).resolve().parent


def use_carried_wheels(kit: Path) -> None:
    """
    Make the wheels beside the kit importable, after what is installed: a wheel is a zip file of what stands in
    site-packages.
    """
    wheels = sorted((kit / "wheels").glob("*.whl"))
    site = kit / "site"
    for wheel in wheels:
        done = site / f".{wheel.name}.done"
        if not done.exists():
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
            done.touch()
    if wheels:
        sys.path.append(str(site))
    if (kit / "diffusers_dreamactor").is_dir():
        sys.path.insert(0, str(kit))


def run(arguments: argparse.Namespace) -> None:
    """Train until the minutes are over."""
    import torch
    from gpu_kit_config import KitConfig
    from gpu_kit_phases import train_face_encoder, train_transformer, train_vae
    from gpu_kit_train import KitRun

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    folder = Path(arguments.output)
    config = KitConfig.of_run(folder, arguments)
    limits = (arguments.minutes, arguments.checkpoint_minutes, arguments.cpu, arguments.most_steps)
    start = None if arguments.start is None else Path(arguments.start)
    kit_run = KitRun(folder, Path(arguments.kit), config, *limits, start)
    kit_run.write_weights(all(phase(kit_run) for phase in (train_vae, train_face_encoder, train_transformer)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("pack", help="write the archive")
    command.add_argument("--body", required=True, help="the packed body (see avatar_body.py)")
    command.add_argument("--output", required=True, help="the .tar.gz to write")
    command.add_argument("--motions", type=int, default=3000)
    command.add_argument("--motion_frames", type=int, default=33)
    command.add_argument("--no_wheels", action="store_true", help="the other machine has all that is needed")
    command.add_argument("--python_version", help="of the other machine, e.g. 3.12; this one's by default")
    command.add_argument("--seed", type=int, default=0)

    command = commands.add_parser("run", help="train, from where the last call stopped")
    command.add_argument("--output", required=True, help="folder of the run")
    command.add_argument("--kit", default=str(HERE), help="folder of body.safetensors and motions.safetensors")
    command.add_argument("--start", help="folder of weights to begin with; phases of 0 steps leave them as they are")
    command.add_argument("--minutes", type=float, default=8.5)
    command.add_argument("--checkpoint_minutes", type=float, default=4.0)
    command.add_argument("--most_steps", type=int, help="stop after so many steps, though there are minutes left")
    command.add_argument("--threads", type=int, help="of the processor; PyTorch's own choice by default")
    command.add_argument("--cpu", action="store_true")
    command.add_argument(
        "--deterministic", action="store_true", help="the same bits in every run on a GPU, too, at the cost of speed"
    )
    if len(sys.argv) > 1 and sys.argv[1] == "run":
        from gpu_kit_config import KitConfig

        KitConfig.add_arguments(command)

    command = commands.add_parser("assemble", help="make a repository of the weights")
    command.add_argument("--weights", required=True, help="the run's folder `weights`")
    command.add_argument("--output", required=True)

    command = commands.add_parser("disassemble", help="make weights to begin with of a repository")
    command.add_argument("--model", required=True)
    command.add_argument("--output", required=True)

    command = commands.add_parser("evaluate", help="measure a repository on held-out people, motions and styles")
    command.add_argument("--model", required=True)
    command.add_argument("--kit", default=str(HERE), help="folder of body.safetensors and motions.safetensors")
    command.add_argument("--output", required=True)
    command.add_argument("--size", type=int, help="of the pictures; from the model's area by default")
    command.add_argument("--clips", type=int, default=24)
    command.add_argument("--expression_groups", type=int, default=12)
    command.add_argument("--style_clips", type=int, default=6, help="of each held-out style")
    command.add_argument("--references", nargs="*", default=[], help="pictures that are animated and looked at")
    command.add_argument("--capture_models", help="folder of MediaPipe's models, which find the pose in --references")
    command.add_argument("--num_inference_steps", type=int)
    command.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    use_carried_wheels(HERE)
    arguments = parse_arguments()
    if arguments.command == "pack":
        from gpu_kit_pack import pack

        size = pack(
            Path(arguments.body),
            Path(arguments.output),
            arguments.motions,
            arguments.motion_frames,
            not arguments.no_wheels,
            arguments.python_version,
            seed=arguments.seed,
        )
        print(f"{arguments.output}: {size / 1e6:.1f} MB")
    elif arguments.command == "run":
        run(arguments)
    elif arguments.command == "assemble":
        from gpu_kit_weights import assemble

        assemble(Path(arguments.weights), Path(arguments.output))
    elif arguments.command == "disassemble":
        from gpu_kit_weights import disassemble

        disassemble(Path(arguments.model), Path(arguments.output))
    else:
        from gpu_kit_evaluate import evaluate

        evaluate(arguments)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        raise SystemExit(f"gpu_kit.py: {' '.join(str(error).split())}") from error
