"""A Hugging Face Space: a picture and a driving video in, the guidance to look at, then the animation."""

import os
import tempfile
from pathlib import Path

import gradio as gr
import torch

from diffusers_dreamactor import DreamActorPipeline
from diffusers_dreamactor.checkpoints import bundled_model
from diffusers_dreamactor.cli import PUBLIC_WEIGHTS, is_avatar
from diffusers_dreamactor.media import VideoWriter


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
PIPE = DreamActorPipeline.from_pretrained(os.environ.get("DREAMACTOR_MODEL") or bundled_model(), dtype=DTYPE).to(
    DEVICE
)


def prepare(picture: str, video: str, drive: list[str], num_frames: int):
    """Captures and fits the motion; returns what `animate` needs and the preview's path."""
    if picture is None or video is None:
        raise gr.Error("A picture and a driving video are needed.")
    if not os.environ.get("DREAMACTOR_MODEL") and not is_avatar(picture):
        gr.Warning(f"The bundled model knows only its own avatars: real people need weights such as {PUBLIC_WEIGHTS}.")
    try:
        inputs = PIPE.prepare(picture, video, drive=tuple(drive), num_frames=num_frames, extend="stop")
    except (ValueError, OSError) as error:
        raise gr.Error(str(error)) from error
    preview = Path(tempfile.mkdtemp()) / "preview.mp4"
    inputs.preview().save(preview)
    return inputs, str(preview)


def animate(inputs, steps: int, guidance_scale: float, seed: int, progress=gr.Progress(track_tqdm=True)):  # noqa: B008
    """Generates what was looked at; returns the video's path."""
    if inputs is None:
        raise gr.Error("Look at the guidance first.")
    output = Path(tempfile.mkdtemp()) / "animation.mp4"
    segments = PIPE.stream(
        inputs,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(seed),
    )
    with VideoWriter(output, fps=inputs.fps, audio=inputs.sound) as writer:
        for segment in segments:
            writer.write(segment.frames[0])
    return str(output)


def build_demo() -> gr.Blocks:
    """The Space's page."""
    with gr.Blocks(title="DreamActor") as demo:
        gr.Markdown("# DreamActor\nA person from a picture performs what a driving video performs.")
        prepared = gr.State()
        with gr.Row():
            picture = gr.Image(label="Picture", type="filepath")
            video = gr.Video(label="Driving video")
        drive = gr.CheckboxGroup(["face", "head", "body"], value=["face", "head", "body"], label="Driven parts")
        num_frames = gr.Slider(1, 481, value=73, step=4, label="Frames at most")
        look = gr.Button("Look at the guidance")
        preview = gr.Video(label="Driver, skeleton, head, face")
        with gr.Row():
            steps = gr.Slider(1, 50, value=PIPE.config.num_inference_steps, step=1, label="Steps")
            scale = gr.Slider(1.0, 6.0, value=PIPE.config.guidance_scale, step=0.1, label="Guidance scale")
            seed = gr.Number(0, precision=0, label="Seed")
        generate = gr.Button("Animate", variant="primary")
        result = gr.Video(label="Animation")
        look.click(prepare, [picture, video, drive, num_frames], [prepared, preview])
        generate.click(animate, [prepared, steps, scale, seed], result)
    return demo


if __name__ == "__main__":
    build_demo().queue().launch()
