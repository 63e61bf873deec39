"""`dreamactor animate` and `dreamactor demo`: a pipeline as the options want it, and what it makes."""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers_dreamactor.cli.arguments import DTYPES
from diffusers_dreamactor.cli.checks import check_device, check_output


def load_pipeline(args: argparse.Namespace, shaped_as: tuple[int, int] | None = None):
    """
    The pipeline of a repository, of the bundled model, or, where there is none yet, of random weights, as the memory
    demands; height and width of what decides the video's aspect are `shaped_as`.
    """
    import torch

    from diffusers_dreamactor.checkpoints import bundled_model, save_random_pipeline
    from diffusers_dreamactor.memory.plans import GIB, MemoryPlan, plan_memory
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
            if args.size is None and shaped_as is not None:
                height, width = planned_size(model, *shaped_as)
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


def planned_size(model: str, height: int, width: int) -> tuple[int, int]:
    """Height and width of the video that a model makes of a picture, or a scene, of a size when no other is named."""
    from diffusers_dreamactor.memory.meta_pipeline import meta_pipeline

    return meta_pipeline(model).motion_processor.reference.generation_size(height, width)


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
    from diffusers_dreamactor.loaders.wan_animate import PUBLIC_WEIGHTS
    from diffusers_dreamactor.media import VIDEO_SUFFIXES, VideoReader, load_audio
    from diffusers_dreamactor.motion.sequence import MotionSequence
    from diffusers_dreamactor.pictures import load_picture

    given = [*args.reference, args.driving, args.audio, args.face_video, args.reference_motion, args.sound]
    given += [args.background, args.mask]
    check_output(args.output, VIDEO_SUFFIXES, given)
    if args.relight and not args.replace:
        raise ValueError("`--relight` was given, but it is for `--replace`, which puts the person into a scene.")
    # what cannot be read is said before the model is loaded
    for path in args.reference[1:]:
        load_picture(path)
    picture = load_picture(args.reference[0])
    shaped_as = (picture.height, picture.width)
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
            reader = VideoReader(path)
            driver[name] = path
            if args.replace and name in ("video", "background_video"):
                # the scene, not the picture, decides
                shaped_as = (reader.height, reader.width)
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
    return generate(load(args, shaped_as), image, args, say, **driver)


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
    pipe = load_pipeline(args)
    generate(pipe, picture, args, reference_motion=reference_motion, **driver)
