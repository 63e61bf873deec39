"""What the `dreamactor` command can be asked for."""

import argparse
import importlib.util

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
CONVERSIONS = {"wan-animate": "convert_wan_animate", "wan-i2v": "convert_wan_i2v", "lora": "convert_lora"}
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


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
