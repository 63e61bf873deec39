"""`dreamactor capture`: a video, or another motion file, to a motion."""

import argparse
from pathlib import Path

from diffusers_dreamactor.cli.checks import check_device, check_output


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
