"""The `dreamactor` command: animate, batch, capture, convert, demo, doctor, speak."""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from diffusers_dreamactor.version import __version__


ANIMATE_EXAMPLES = """examples:
  dreamactor animate person.png --driving dance.mp4 --output out.mp4
  dreamactor animate person.png --driving dance.mp4 --output out.mp4 --preview --frames 49 --seed 7
  dreamactor animate front.png back.png --driving motion.safetensors --output out.mp4 --drive head,body
  dreamactor animate person.png --audio speech.wav --output out.mp4 --model path/or/hub-id --device cuda
  dreamactor animate person.png --driving dance.mp4 --output out.mp4 --model Wan-AI/Wan2.2-Animate-14B-Diffusers --fast
"""
DOCTOR_EXAMPLES = """examples:
  dreamactor doctor
  dreamactor doctor --model Wan-AI/Wan2.2-Animate-14B-Diffusers --size 832x480 --frames 77
  dreamactor doctor --model Wan-AI/Wan2.2-Animate-14B-Diffusers --size 832x480 --frames 77 --device cuda --memory 24
"""
CAPTURE_EXAMPLES = """examples:
  dreamactor capture --download
  dreamactor capture dance.mp4 --output motion.safetensors --preview
  dreamactor capture crowd.mp4 --output motion.safetensors --person 640,300
  dreamactor capture dance.mp4 --output motion.safetensors --sapiens --device cuda
  dreamactor capture walk.bvh --output motion.safetensors --fps 24
  dreamactor capture keypoints/ --output motion.safetensors --fps 30 --size 1280x720
  dreamactor capture amass.npz --output motion.safetensors --smplx models/smplx
"""
DEMO_EXAMPLES = """examples:
  dreamactor demo
  dreamactor demo --list
  dreamactor demo --avatar dan --motion dance --output demo.mp4
"""
BATCH_EXAMPLES = """examples:
  dreamactor batch manifest.jsonl --output results
  dreamactor batch manifest.jsonl --output results --steps 8 --seed 7
  accelerate launch --multi_gpu --num_processes 8 -m diffusers_dreamactor.cli batch manifest.jsonl --output results

a row of the manifest is a line of JSON, e.g.
  {"picture": "person.png", "driver": "dance.mp4", "size": "480x832", "drive": ["head", "face"], "name": "take1"}
"""
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
CONVERSIONS = {"wan-animate": "convert_wan_animate", "wan-i2v": "convert_wan_i2v", "lora": "convert_lora"}
CORE = ["torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "huggingface_hub", "av", "numpy"]
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
PUBLIC_WEIGHTS = "Wan-AI/Wan2.2-Animate-14B-Diffusers"
# What errors of the library call its arguments, and the options that give them.
OPTIONS = {
    "image": "the picture",
    "video": "--driving",
    "motion": "--driving",
    "audio": "--audio",
    "face_video": "--face-video",
    "drive": "--drive",
    "person": "--person",
    "reference_person": "--reference-person",
    "reference_motion": "--reference-motion",
    "retarget": "--no-retarget",
    "align": "--align",
    "bone_scale": "--bone-scale",
    "height": "--size",
    "width": "--size",
    "num_frames": "--frames",
    "fps": "--fps",
    "extend": "--extend",
    "mode": "--replace",
    "background_video": "--background",
    "mask_video": "--mask",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance-scale",
    "reference_guidance_scale": "--reference-guidance-scale",
    "face_scale": "--face-scale",
    "pose_scale": "--pose-scale",
    "num_pseudo_references": "--pseudo-references",
    "idle": "--no-idle",
    "memory": "--memory",
    "offload": "--offload",
    "quantize": "--quantize",
    "transformer_file": "--transformer",
    "lora": "--lora",
    "speech_from": "--speech-from",
}


def parse_size(text: str) -> tuple[int, int]:
    """`"832x480"` (width x height) to `(height, width)`."""
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 832x480 (width x height)") from None
    return height, width


def parse_parts(text: str) -> tuple[str, ...]:
    """`"head,body"` to `("head", "body")`."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_person(text: str) -> int | tuple[float, ...]:
    """An index, a click `x,y` or a box `x0,y0,x1,y1`."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) == 1 and numbers[0] == int(numbers[0]):
        return int(numbers[0])
    if len(numbers) not in (2, 4):
        raise argparse.ArgumentTypeError(f"{text!r} is not an index, a point x,y or a box x0,y0,x1,y1")
    return numbers


def parse_scales(text: str) -> dict[str, float]:
    """`"arm=1.2,leg=0.9"` to `{"arm": 1.2, "leg": 0.9}`."""
    try:
        pairs = [part.split("=") for part in text.split(",")]
        return {name.strip(): float(value) for name, value in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like arm=1.2,leg=0.9") from None


def parse_memory(text: str) -> float | str:
    """`"24"`, GiB, or `"auto"`."""
    if text == "auto":
        return text
    try:
        memory = float(text)
    except ValueError:
        memory = 0.0
    if not memory > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number of GiB like 24")
    return memory


def parse_lora(text: str) -> tuple[str, float]:
    """`"lora.safetensors@0.8"` to `("lora.safetensors", 0.8)`; without a weight it is 1."""
    name, _, weight = text.rpartition("@")
    try:
        return (name, float(weight)) if name else (text, 1.0)
    except ValueError:
        return text, 1.0


def build_parser() -> argparse.ArgumentParser:
    """The parser of the `dreamactor` command."""
    parser = argparse.ArgumentParser(prog="dreamactor", description="Animate a picture of a person.")
    parser.add_argument("--version", action="version", version=f"dreamactor {__version__}")
    if importlib.util.find_spec("shtab") is not None:
        import shtab

        shtab.add_argument_to(
            parser, ["--print-completion"], help="print the completion of a shell: bash, zsh or tcsh"
        )
    commands = parser.add_subparsers(dest="command", required=True)
    raw = argparse.RawDescriptionHelpFormatter

    animate = commands.add_parser(
        "animate", help="a picture and a driver to an MP4", epilog=ANIMATE_EXAMPLES, formatter_class=raw
    )
    add_animate_arguments(animate)

    batch = commands.add_parser(
        "batch", help="the rows of a manifest to an MP4 each", epilog=BATCH_EXAMPLES, formatter_class=raw
    )
    batch.add_argument(
        "manifest", help="JSON lines with picture, driver and any option of animate; paths from the manifest's folder"
    )
    batch.add_argument("--output", required=True, help="the folder of the results; what is there already is kept")
    add_generation_arguments(batch)

    demo = commands.add_parser(
        "demo", help="animate a bundled avatar by a bundled motion", epilog=DEMO_EXAMPLES, formatter_class=raw
    )
    demo.add_argument("--avatar", default="ana", help="name of the avatar (default: %(default)s)")
    demo.add_argument("--motion", default="talk", help="name of the motion (default: %(default)s)")
    demo.add_argument("--audio", action="store_true", help="say a bundled sentence instead of performing a motion")
    demo.add_argument("--list", action="store_true", help="list avatars and motions and stop")
    demo.add_argument("--output", default="demo.mp4", help="the MP4 to write (default: %(default)s)")
    add_generation_arguments(demo)

    capture = commands.add_parser(
        "capture",
        help="a video, or a motion of another format, to a motion",
        epilog=CAPTURE_EXAMPLES,
        formatter_class=raw,
    )
    capture.add_argument(
        "video", nargs="?", help="the video; or .bvh, .npz (SMPL-X), .json or a folder of them (OpenPose, DWPose)"
    )
    capture.add_argument("--output", help="the motion to write (.safetensors)")
    capture.add_argument("--models", help="folder with MediaPipe's three landmarker files")
    capture.add_argument("--download", action="store_true", help="fetch those files first (into --models when given)")
    capture.add_argument("--fps", type=float, help="resample the video to this rate; default: its own")
    capture.add_argument("--frames", type=int, help="capture only the first frames; default: all")
    capture.add_argument(
        "--person", type=parse_person, help="index by size, point x,y or box x0,y0,x1,y1; default: the largest"
    )
    capture.add_argument(
        "--face-size",
        type=int,
        default=320,
        help="keep pictures of the face, of this size, so that the motion drives it, too; 0: none (default: %(default)s)",
    )
    capture.add_argument("--size", type=parse_size, help="WIDTHxHEIGHT of the picture, for motions that do not say it")
    capture.add_argument("--smplx", help="SMPL-X's model file or folder, for .npz; default: an average body of anny")
    capture.add_argument("--hands", help="HaMeR's hands (.npz), beside the SMPL-X of a body")
    capture.add_argument(
        "--sapiens",
        nargs="?",
        const="facebook/sapiens2-pose-0.4b",
        help="capture with Sapiens2, in place of MediaPipe; a folder or Hub id of another size of it may follow",
    )
    capture.add_argument("--device", help="of --sapiens: cuda, mps or cpu; default: the best there is")
    capture.add_argument("--preview", action="store_true", help="also write OUTPUT.preview.mp4")

    convert = commands.add_parser(
        "convert", help="other weights to a repository, or a LoRA to another naming", add_help=False
    )
    convert.add_argument("kind", choices=list(CONVERSIONS), help="what is converted")
    convert.add_argument("options", nargs=argparse.REMAINDER, help="see dreamactor convert KIND --help")

    speak = commands.add_parser("speak", help="speech to the video of a talking face, for --face-video")
    speak.add_argument("sound", help="the speech: a sound or video file")
    speak.add_argument("--output", required=True, help="the MP4 to write")
    speak.add_argument("--fps", type=float, default=25.0, help="frames per second (default: %(default)g)")
    speak.add_argument(
        "--size", type=int, default=512, help="side of the square picture in pixels (default: %(default)s)"
    )
    speak.add_argument("--frames", type=int, help="frames to make; default: as long as the sound")
    speak.add_argument("--no-idle", action="store_true", help="no blinks and no sway of the head")
    speak.add_argument("--seed", type=int, default=0, help="seed of blinks and sway (default: %(default)s)")

    doctor = commands.add_parser(
        "doctor",
        help="versions, devices, extras and model files; with --model, the memory that it takes",
        epilog=DOCTOR_EXAMPLES,
        formatter_class=raw,
    )
    doctor.add_argument("--model", help="folder or Hub id whose memory is planned, from its configs alone")
    doctor.add_argument("--size", type=parse_size, help="WIDTHxHEIGHT of the video; default: the model's area")
    doctor.add_argument(
        "--frames", type=int, help="frames of the video; default: many, as a long video's memory is bounded"
    )
    doctor.add_argument("--guidance-scale", type=float, help="above 1, there are two caches; default: the model's")
    doctor.add_argument("--device", help="cuda, mps or cpu, also of another machine; default: the best there is")
    add_memory_arguments(doctor)
    return parser


def add_animate_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `animate`, which are those of a row of `batch`, too."""
    parser.add_argument("reference", nargs="+", help="the picture; more pictures of the same person complement it")
    parser.add_argument("--driving", help="the driving video, or a captured motion (.safetensors)")
    parser.add_argument("--audio", help="speech that drives the face, and is heard")
    parser.add_argument(
        "--speech-from", type=float, default=0.0, help="seconds from which on --audio drives the face (default: 0)"
    )
    parser.add_argument("--face-video", help="another video that drives the face")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="put the person into the driving video, in place of its own (Wan-Animate weights)",
    )
    parser.add_argument("--background", help="with --replace: another scene, a video or a picture")
    parser.add_argument("--mask", help="with --replace: a video, white where the person goes; default: it is found")
    parser.add_argument(
        "--relight", action="store_true", help="with --replace: Wan-Animate's LoRA that takes over the scene's light"
    )
    parser.add_argument("--reference-motion", help="the pose in the picture (.safetensors), when it is known")
    parser.add_argument(
        "--reference-person", type=parse_person, help="which person of the picture, as --person; default: the largest"
    )
    parser.add_argument("--output", required=True, help="the MP4 to write")
    add_generation_arguments(parser)


def add_memory_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say how a model fits into memory."""
    parser.add_argument(
        "--memory",
        type=parse_memory,
        default="auto",
        help="GiB of the device that may be used, such as 12, 16, 24, 48 or 80; default: auto, what is free",
    )
    parser.add_argument(
        "--offload",
        choices=["none", "model", "group", "disk"],
        help="where weights wait: a model, or a block, at a time on the device, or in files; default: as memory demands",
    )
    parser.add_argument("--dtype", choices=list(DTYPES), help="of weights and computation; default: bf16, on cpu fp32")
    parser.add_argument(
        "--quantize",
        choices=["fp8", "int8", "gguf"],
        help="of the transformer's weights: fp8, int8 (torchao) or gguf (with --transformer); default: as memory demands",
    )
    parser.add_argument(
        "--transformer", help="a single file (.safetensors, .gguf) in place of the model's transformer"
    )


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `animate` and `demo` share."""
    parser.add_argument("--model", help="folder or Hub id of a repository; default: the bundled model")
    add_memory_arguments(parser)
    parser.add_argument(
        "--lora",
        type=parse_lora,
        action="append",
        default=[],
        metavar="LORA[@WEIGHT]",
        help="a file, Hub id or Hub id/path/file.safetensors, with its strength; may be repeated",
    )
    parser.add_argument(
        "--fast",
        action="store_true",
        help="four steps without guidance: the first --lora is one of step distillation; default: lightx2v's, for Wan-Animate",
    )
    parser.add_argument("--steps", type=int, help="denoising steps: more are slower and finer; default: the model's")
    parser.add_argument(
        "--guidance-scale",
        type=float,
        help="how strongly picture and motion are followed; 1 is fastest; default: the model's",
    )
    parser.add_argument(
        "--reference-guidance-scale", type=float, help="a strength of its own for the picture; default: none"
    )
    parser.add_argument(
        "--face-scale", type=float, default=1.0, help="strength of the expression; 0: none (default: %(default)s)"
    )
    parser.add_argument(
        "--pose-scale", type=float, default=1.0, help="strength of the pose; 0: none (default: %(default)s)"
    )
    parser.add_argument("--frames", type=int, help="frames to make; default: the driver's")
    parser.add_argument("--fps", type=float, help="frames per second; default: the driver's")
    parser.add_argument(
        "--extend",
        choices=["hold", "loop", "stop"],
        help="when --frames is more than the driver has: hold its last frame, play it forth and back, or stop there; "
        "default: an error",
    )
    parser.add_argument("--size", type=parse_size, help="WIDTHxHEIGHT of the video; default: from the picture")
    parser.add_argument(
        "--drive",
        type=parse_parts,
        default=("face", "head", "body"),
        help="parts that follow the driver; the rest stays as in the picture (default: face,head,body)",
    )
    parser.add_argument(
        "--person", type=parse_person, help="index by size, point x,y or box x0,y0,x1,y1; default: the largest"
    )
    parser.add_argument(
        "--align",
        help="how the motion is fitted: framing keeps the person in the picture, path keeps the driver's exact way, first takes "
        "turns from the driver's first frame, none leaves all where the driver has it (default: framing, with --replace none)",
    )
    parser.add_argument("--bone-scale", type=parse_scales, help="longer or shorter bones, e.g. arm=1.2,leg=0.9")
    parser.add_argument("--no-retarget", action="store_true", help="draw the motion where the driver has it")
    parser.add_argument(
        "--pseudo-references",
        type=int,
        default=0,
        help="make so many references from a turn first (default: %(default)s)",
    )
    parser.add_argument("--no-idle", action="store_true", help="no blinks and no sway of the head while speech drives")
    parser.add_argument("--sound", help="what is heard; default: the speech, or the driving video's sound")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: %(default)s)")
    parser.add_argument("--device", help="cuda, mps or cpu; default: the best there is")
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument(
        "--no-provenance",
        action="store_true",
        help="leave out of the MP4's metadata that it is AI-generated, by which model, with which seed and when",
    )
    origin.add_argument("--sidecar", action="store_true", help="also write OUTPUT.c2pa.json: a C2PA manifest to sign")
    parser.add_argument("--preview", action="store_true", help="also write OUTPUT.preview.mp4: look at the guidance")
    parser.add_argument("--preview-only", action="store_true", help="write OUTPUT.preview.mp4 and stop")


def check_output(output: str, suffixes: tuple[str, ...], inputs: list[str | None] = ()) -> None:
    """Raises what is wrong with `--output` before any work is done for it."""
    from diffusers_dreamactor import media

    media.check_output(output, suffixes, inputs, "--output")
    folder = Path(output).parent
    if not folder.is_dir():
        raise OSError(f"`--output` is {output}, but the folder {folder} does not exist.")


def check_device(device: str | None) -> str:
    """The device to run on; raises `ValueError` for one that is not there."""
    import torch

    from diffusers_dreamactor.memory.plans import best_device

    if device is None:
        return best_device()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`--device` is {device}, but this machine's best device is {best_device()}.") from error
    return device


def load_pipeline(args: argparse.Namespace, picture=None):
    """
    The pipeline of a repository, of the bundled model, or, where there is none yet, of random weights, as the memory
    demands; `picture` decides the size that is planned for.
    """
    import torch

    from diffusers_dreamactor.checkpoints import bundled_model, save_random_pipeline
    from diffusers_dreamactor.memory.plans import GIB, MemoryPlan, plan_memory
    from diffusers_dreamactor.pictures import load_picture
    from diffusers_dreamactor.pipelines.few_steps import RELIGHTING_LORA, load_lora, use_few_steps

    device = check_device(args.device)
    asked = {
        "dtype": args.dtype and getattr(torch, DTYPES[args.dtype]),
        "offload": args.offload,
        "quantize": args.quantize,
        "transformer_file": args.transformer,
    }
    model = args.model or bundled_model()
    if args.fast and args.steps is not None:
        raise ValueError(f"`--steps` is {args.steps}, but `--fast` takes the four that its LoRA was distilled to.")
    with contextlib.ExitStack() as stack:
        if model is None:
            print("dreamactor: no trained model is bundled: these weights are random, and the picture will be noise.")
            model = stack.enter_context(tempfile.TemporaryDirectory())
            save_random_pipeline(model)
        if args.model is None and args.memory == "auto" and not any(asked.values()):
            # a few megabytes, which fit everywhere
            plan = MemoryPlan(model, device, torch.float32 if device == "cpu" else torch.bfloat16)
        else:
            files = [Path(name) for name, _ in args.lora if Path(name).is_file()]
            height, width = args.size or (None, None)
            if args.size is None and picture is not None:
                height, width = planned_size(model, load_picture(picture))
            plan = plan_memory(
                model,
                height,
                width,
                args.frames,
                args.memory,
                reserve=sum(file.stat().st_size for file in files) / GIB,
                device=device,
                guidance_scale=1.0 if args.fast else args.guidance_scale,
                **asked,
            )
            print(f"dreamactor: {plan.name}, about {plan.peak / GIB:.1f} GiB on {device}")
        pipe = plan.load(place=False)
    loras = list(args.lora)
    args.few_steps = {}
    if args.fast:
        lora, weight = loras.pop(0) if loras else (None, 1.0)
        args.few_steps = use_few_steps(pipe, lora, weight)
    if getattr(args, "relight", False):
        loras.append((RELIGHTING_LORA, 1.0))
    for number, (lora, weight) in enumerate(loras):
        load_lora(pipe, lora, weight, f"lora_{number}")
    plan.apply(pipe)
    # bars are for people who watch; a log gets the lines that say what was written
    pipe.set_progress_bar_config(disable=None)
    return pipe


def planned_size(model: str, picture) -> tuple[int, int]:
    """Height and width of the video that a model makes of a picture when no size is named."""
    from diffusers_dreamactor.memory.meta_pipeline import meta_pipeline

    return meta_pipeline(model).motion_processor.reference.generation_size(picture.height, picture.width)


def generate(pipe, image, args: argparse.Namespace, say: Callable = print, **driver) -> dict[str, Any]:
    """Prepares, and generates and writes segment by segment; the preview first, when it is asked for. Returns figures."""
    import torch

    from diffusers_dreamactor.media import VideoWriter

    height, width = args.size or (None, None)
    inputs = pipe.prepare(
        image,
        drive=args.drive,
        person=args.person,
        retarget=not args.no_retarget,
        align=args.align,
        bone_scale=args.bone_scale,
        height=height,
        width=width,
        num_frames=args.frames,
        fps=args.fps,
        extend=args.extend,
        idle=not args.no_idle,
        **driver,
    )
    output = Path(args.output)
    if args.preview or args.preview_only:
        preview = output.with_suffix(".preview.mp4")
        inputs.preview().save(preview)
        say(f"dreamactor: wrote {preview}")
        if args.preview_only:
            return {}
    segments = pipe.stream(
        inputs,
        num_inference_steps=args.steps,
        **{"guidance_scale": args.guidance_scale, **args.few_steps},
        reference_guidance_scale=args.reference_guidance_scale,
        face_scale=args.face_scale,
        pose_scale=args.pose_scale,
        num_pseudo_references=args.pseudo_references,
        generator=torch.Generator().manual_seed(args.seed),
    )
    sound, provenance = args.sound or inputs.sound, False if args.no_provenance else None
    with VideoWriter(output, inputs.fps, sound, provenance=provenance, sidecar=args.sidecar) as writer:
        for segment in segments:
            writer.write(segment)
    say(f"dreamactor: wrote {output} ({len(inputs)} frames at {inputs.fps:g} frames/s)")
    return {
        "frames": len(inputs),
        "fps": inputs.fps,
        "width": inputs.width,
        "height": inputs.height,
        "seed": args.seed,
    }


def run_animate(args: argparse.Namespace) -> None:
    """`dreamactor animate`."""
    animate(args, load_pipeline)


def animate(args: argparse.Namespace, load: Callable, say: Callable = print) -> dict[str, Any]:
    """What `animate` is asked for, with the pipeline that `load` gives, which is called as `load_pipeline` is. Returns figures."""
    from diffusers_dreamactor.media import VIDEO_SUFFIXES, VideoReader, load_audio
    from diffusers_dreamactor.motion.sequence import MotionSequence
    from diffusers_dreamactor.pictures import load_picture

    given = [*args.reference, args.driving, args.audio, args.face_video, args.reference_motion, args.sound]
    given += [args.background, args.mask]
    check_output(args.output, VIDEO_SUFFIXES, given)
    if args.relight and not args.replace:
        raise ValueError("`--relight` was given, but it is for `--replace`, which puts the person into a scene.")
    # what cannot be read is said before the model is loaded
    for path in args.reference:
        load_picture(path)
    driver = {"reference_person": args.reference_person}
    if args.reference_motion is not None:
        driver["reference_motion"] = MotionSequence.load(args.reference_motion)
    if args.driving is not None and args.driving.endswith(".safetensors"):
        driver["motion"] = MotionSequence.load(args.driving)
    scene = (("background_video", args.background), ("mask_video", args.mask))
    if args.replace:
        driver["mode"] = "replace"
    for name, path in (("video", args.driving), ("face_video", args.face_video), *scene):
        if path is not None and not path.endswith(".safetensors"):
            VideoReader(path)
            driver[name] = path
    for path in (args.audio, args.sound):
        if path is not None:
            load_audio(path)
    if args.audio is not None:
        driver |= {"audio": args.audio, "speech_from": args.speech_from}
    if args.model is None and not is_avatar(args.reference[0]):
        print(
            "dreamactor: the bundled model knows only its own avatars, not real people: for those, name their weights by "
            f"--model {PUBLIC_WEIGHTS}",
            file=sys.stderr,
        )
    image = args.reference if len(args.reference) > 1 else args.reference[0]
    return generate(load(args, args.reference[0]), image, args, say, **driver)


class _RowParser(argparse.ArgumentParser):
    """The arguments of `animate`, with errors that are raised instead of ending the command."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def row_animator(args: argparse.Namespace) -> Callable[[list[str], Path], dict[str, Any]]:
    """
    What `Batch` makes its rows with: one pipeline at a time is held, and options that a row does not name are those of
    `args`, of `dreamactor batch`.
    """
    parser = _RowParser(prog="row", add_help=False, allow_abbrev=False)
    add_animate_arguments(parser)
    held: dict[tuple, Any] = {}
    decisive = ["model", "device", "memory", "offload", "dtype", "quantize", "transformer", "lora", "fast", "relight"]

    def load(row: argparse.Namespace, picture=None):
        area = None if row.size is None else row.size[0] * row.size[1]
        choice = (*(str(getattr(row, name, False)) for name in decisive), area)
        if choice not in held:
            held.clear()
            pipe = load_pipeline(row, picture)
            pipe.set_progress_bar_config(disable=True)
            held[choice] = (pipe, row.few_steps)
        pipe, row.few_steps = held[choice]
        return pipe

    # of what is chosen for all rows, an error is not that of one row
    load(args)

    def animate_row(words: list[str], output: Path) -> dict[str, Any]:
        defaults = {name: value for name, value in vars(args).items() if name not in ("command", "manifest", "output")}
        row = parser.parse_args([*words, f"--output={output}"], argparse.Namespace(**defaults))
        return animate(row, load, say=lambda words: None)

    return animate_row


def batch_defaults(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `dreamactor batch` that decide what its rows become."""
    parser = argparse.ArgumentParser()
    add_generation_arguments(parser)
    usual = vars(parser.parse_args([]))
    return {name: vars(args)[name] for name in usual if vars(args)[name] != usual[name] and name != "device"}


def run_batch(args: argparse.Namespace) -> None:
    """`dreamactor batch`."""
    from tqdm.auto import tqdm

    from diffusers_dreamactor.batch import Batch, read_manifest

    rows = read_manifest(args.manifest, batch_defaults(args))
    batch = Batch(rows, args.output)
    # as `accelerate launch` and `torchrun` say it
    process, num_processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if args.device is None and num_processes > 1 and check_device(None) == "cuda":
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
    done = sum(batch.is_made(row) for row in rows)
    failed = 0
    with tqdm(total=len(rows), initial=done, unit="video", disable=None if process == 0 else True) as bar:
        if done < len(rows):
            for record, here in batch.run(row_animator(args), process, num_processes):
                failed += record.status == "failed"
                if here:
                    what = ", ".join(record.files) or f"error: {name_options(record.error)}"
                    tqdm.write(f"dreamactor: line {record.row}: {what} ({record.seconds:.1f} s)")
                    bar.update()
    report = batch.write_report()
    if process == 0:
        print(
            f"dreamactor: {report['made']} of {report['rows']} rows are made, {report['failed']} failed, "
            f"{report['repeated']} repeat others: {batch.output / 'report.json'}"
        )
    if failed:
        raise ValueError(f"{failed} of {len(rows)} rows failed: {batch.output / 'report.json'} says why.")


def is_avatar(path: str) -> bool:
    """Whether a picture is one of the bundled avatars, whatever its name and file format."""
    from diffusers_dreamactor.checkpoints import bundled_avatars
    from diffusers_dreamactor.pictures import load_picture

    picture = load_picture(path)
    avatars = (load_picture(avatar) for avatar in bundled_avatars().values())
    return any(avatar.size == picture.size and avatar.tobytes() == picture.tobytes() for avatar in avatars)


def run_demo(args: argparse.Namespace) -> None:
    """`dreamactor demo`."""
    from diffusers_dreamactor.checkpoints import bundled_avatars, bundled_motions, bundled_speech
    from diffusers_dreamactor.media import VIDEO_SUFFIXES
    from diffusers_dreamactor.motion.sequence import MotionSequence

    avatars, motions = bundled_avatars(), bundled_motions()
    if args.list:
        print("avatars:", ", ".join(avatars))
        print("motions:", ", ".join(motions))
        return
    check_output(args.output, VIDEO_SUFFIXES)
    for name, choice, choices in (("--avatar", args.avatar, avatars), ("--motion", args.motion, motions)):
        if choice not in choices:
            raise ValueError(f"`{name}` is {choice!r}, but there are {', '.join(choices)}.")
    picture = avatars[args.avatar]
    reference_motion = MotionSequence.load(picture.with_suffix(".safetensors"))
    driver = {"audio": bundled_speech()} if args.audio else {"motion": MotionSequence.load(motions[args.motion])}
    pipe = load_pipeline(args, picture)
    generate(pipe, picture, args, reference_motion=reference_motion, **driver)


def run_capture(args: argparse.Namespace) -> None:
    """`dreamactor capture`."""
    import numpy as np
    from PIL import Image

    from diffusers_dreamactor.media import VideoReader
    from diffusers_dreamactor.motion.bone_lengths import describe_sources, length_sources, measure_lengths
    from diffusers_dreamactor.motion.capture.download import download_capture_models
    from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture
    from diffusers_dreamactor.motion.capture.motion_file import is_motion_file, load_motion_file
    from diffusers_dreamactor.motion.capture.sapiens import SapiensCapture
    from diffusers_dreamactor.motion.retarget import resize_motion
    from diffusers_dreamactor.pipelines.animation_inputs import AnimationInputs
    from diffusers_dreamactor.processors.guidance import MotionGuidanceProcessor
    from diffusers_dreamactor.processors.preview import MAX_PANEL_HEIGHT, Preview
    from diffusers_dreamactor.processors.reference import Reference

    if args.download:
        print(f"dreamactor: capture models are in {download_capture_models(args.models)}")
        if args.video is None:
            return
    if args.frames is not None and args.frames < 1:
        raise ValueError(f"`--frames` is {args.frames}, but has to be at least 1.")
    if args.video is None or args.output is None:
        raise ValueError("`capture` needs a video and `--output`, or `--download` alone.")
    check_output(args.output, (".safetensors",))
    reader = None
    if is_motion_file(args.video):
        height, width = args.size or (None, None)
        motion = load_motion_file(args.video, args.fps, width, height, args.person, args.smplx, args.hands)
        motion = motion[: args.frames]
    else:
        reader = VideoReader(args.video, fps=args.fps, num_frames=args.frames)
        options = {"person": args.person}
        if args.sapiens is not None:
            capture = SapiensCapture.from_pretrained(args.sapiens).to(check_device(args.device))
        else:
            capture = MediaPipeCapture.from_pretrained(args.models)
            options["face_size"] = args.face_size or None
        motion = capture.capture(reader, **options)
    motion.save(args.output)
    print(f"dreamactor: wrote {args.output} ({motion.num_frames} frames at {motion.fps:g} frames/s)")
    if motion.body is not None:
        measured = measure_lengths(motion.body.joints, motion.body.confidence >= 0.5)
        print(f"dreamactor: bones {describe_sources(length_sources(measured))}")
    if args.preview:
        preview = Path(args.output).with_suffix(".preview.mp4")
        # drawn as large as it is shown: at the size of the video it may not fit into memory
        scale = min(1, MAX_PANEL_HEIGHT / motion.height)
        height, width = round(motion.height * scale), round(motion.width * scale)
        inputs = AnimationInputs(
            [Reference(Image.new("RGB", (width, height)), height, width)],
            np.arange(len(motion)),
            motion.fps,
            MotionGuidanceProcessor(face_size=256),
            motion=resize_motion(motion, height, width),
            face_video=reader,
        )
        # drawn piece by piece: the guidance of a long video does not fit into memory
        Preview(inputs, driver=reader).save(preview)
        print(f"dreamactor: wrote {preview}")


def run_speak(args: argparse.Namespace) -> None:
    """`dreamactor speak`."""
    from diffusers_dreamactor.media import VIDEO_SUFFIXES, VideoWriter
    from diffusers_dreamactor.talking_face import speak

    check_output(args.output, VIDEO_SUFFIXES, [args.sound])
    frames = speak(args.sound, args.fps, args.size, args.frames, idle=not args.no_idle, seed=args.seed)
    with VideoWriter(args.output, fps=args.fps, audio=args.sound) as writer:
        for frame in frames:
            writer.write(frame)
    print(f"dreamactor: wrote {args.output} ({writer.num_frames} frames at {args.fps:g} frames/s)")


def run_convert(args: argparse.Namespace) -> None:
    """`dreamactor convert`."""
    import importlib

    conversion = importlib.import_module(f"diffusers_dreamactor.conversion.{CONVERSIONS[args.kind]}")
    conversion.main(args.options)


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
    checkout = Path(__file__).resolve().parents[1]
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


def name_options(message: str) -> str:
    """An error of the library, with the command's options in place of its arguments."""

    def option(match: re.Match) -> str:
        name, value = match.groups()
        written = OPTIONS.get(name)
        if written is None or not written.startswith("--"):
            return written or match.group()
        return f"`{written}`" if value is None or name in ("retarget", "mode") else f"`{written} {value}`"

    return re.sub(r'`(\w+)(?:="?(\w+)"?)?`', option, message)


class _Terminated(BaseException):
    """Asked to stop by SIGTERM: what is half written is removed on the way out, as for an interrupt."""


def _terminate(signal_number: int, frame) -> None:
    raise _Terminated


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; bad input ends in one line on stderr and exit code 1, an interrupt in one line and 130."""
    args = build_parser().parse_args(arguments)
    run = {
        "animate": run_animate,
        "batch": run_batch,
        "capture": run_capture,
        "convert": run_convert,
        "demo": run_demo,
        "doctor": run_doctor,
        "speak": run_speak,
    }[args.command]
    former = signal.signal(signal.SIGTERM, _terminate)
    try:
        if args.command != "convert":
            from diffusers_dreamactor.library_messages import quiet_libraries

            quiet_libraries()
        run(args)
    except BrokenPipeError:
        # who reads what is printed has heard enough
        sys.stdout = open(os.devnull, "w")
    except (ValueError, OSError, ImportError) as error:
        print(f"dreamactor: error: {name_options(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dreamactor: interrupted", file=sys.stderr)
        return 130
    except _Terminated:
        print("dreamactor: terminated", file=sys.stderr)
        return 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, former)
    return 0


if __name__ == "__main__":
    sys.exit(main())
