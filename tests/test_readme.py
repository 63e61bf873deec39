"""What the README shows works as it is written there."""

import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import diffusers_dreamactor
from diffusers_dreamactor.checkpoints.random_pipeline import random_pipeline
from diffusers_dreamactor.cli.arguments import build_parser
from diffusers_dreamactor.media import VideoReader, VideoWriter, save_video

from .motion.stick_figure import StickFigure


README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| ([^|]+?) \| (.*`.*) \|$", README.partition("| you want")[2].partition("\n\n")[0], re.M))
QUICK = {"num_inference_steps": 1, "guidance_scale": 1.0, "segment_frames": 9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, media) -> Path:
    """The files that the README names."""
    folder = tmp_path_factory.mktemp("readme")
    picture = PIL.Image.open(media / "reference_scholar.jpeg").convert("RGB").resize((320, 180))
    for name in ("person", "front", "back"):
        picture.save(folder / f"{name}.png")
    frames = list(VideoReader(media / "carphone.mp4", num_frames=5))
    sound = ((0.1 * np.sin(np.arange(12000) / 9)).astype(np.float32), 16000)
    for name in ("driver", "face", "dance"):
        save_video(frames, folder / f"{name}.mp4", 12, sound)
    with VideoWriter(folder / "speech.mp4", 12, sound) as writer:
        writer.write(frames)
    (folder / "speech.mp4").rename(folder / "speech.wav")
    StickFigure().film("wave", num_frames=9, framing="half_body", width=96, height=96).save(
        folder / "motion.safetensors"
    )
    return folder


@pytest.fixture(scope="module")
def prepared(folder):
    pipe = random_pipeline()
    pipe.set_progress_bar_config(disable=True)
    video = VideoReader(folder / "driver.mp4", num_frames=5)
    return pipe, pipe.prepare(folder / "person.png", video, height=64, width=96)


@pytest.fixture
def names(folder, prepared, monkeypatch):
    """What the README's code takes as given."""
    monkeypatch.chdir(folder)
    names = {name: getattr(diffusers_dreamactor, name) for name in diffusers_dreamactor.__all__}
    return {**names, "pipe": prepared[0], "image": "person.png", "video": "driver.mp4", "inputs": prepared[1]}


def test_every_row_is_tested():
    assert len(ROWS) >= 11


@pytest.mark.parametrize("wish", ROWS)
def test_what_you_want_is_had_by_what_you_pass(names, wish):
    for code in re.findall(r"`([^`]+)`", ROWS[wish]):
        if code.startswith("for "):
            with VideoWriter("long.mp4", names["inputs"].fps) as names["writer"]:
                exec(code.replace("pipe.stream(inputs)", f"pipe.stream(inputs, **{QUICK})"), names)
            assert len(VideoReader("long.mp4")) == 5
        elif re.match(r"\w+=", code):
            arguments = eval(f"dict({code})", names)
            driver = {} if "motion" in arguments else {"video": "driver.mp4"}
            if "person" in arguments:
                # of one man in a small picture
                arguments["person"] = 0 if isinstance(arguments["person"], int) else (90, 70)
            size = {"num_frames": 5, "height": 64, "width": 96}
            result = names["pipe"](**{"image": "person.png", **QUICK, **size, **driver, **arguments}, output_type="np")
            assert result.frames.shape[1:] == (5, 64, 96, 3)
        else:
            code = code.replace("pipe(inputs)", f"pipe(inputs, **{QUICK})")
            exec(code.replace("pipe.prepare(image, video)", "pipe.prepare(image, video, height=64, width=96)"), names)


def test_commands_parse():
    """Every line of the shell examples is one that the command takes."""
    lines = re.findall(r"^dreamactor (.+?)(?:\s+#.*)?$", README, re.M)
    assert len(lines) >= 4
    for line in lines:
        assert build_parser().parse_args(line.split()).command == line.split()[0]
