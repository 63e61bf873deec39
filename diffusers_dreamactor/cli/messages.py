"""Errors of the library in the words of the command."""

import re


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


def name_options(message: str) -> str:
    """An error of the library, with the command's options in place of its arguments."""

    def option(match: re.Match) -> str:
        name, value = match.groups()
        written = OPTIONS.get(name)
        if written is None or not written.startswith("--"):
            return written or match.group()
        return f"`{written}`" if value is None or name in ("retarget", "mode") else f"`{written} {value}`"

    return re.sub(r'`(\w+)(?:="?(\w+)"?)?`', option, message)
