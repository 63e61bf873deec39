"""Rendered clips that were not trained on: animated during training, and measured."""

import json
import math

import numpy as np
import pytest
from raw_clips import write_rendered_clip
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusers_dreamactor.media import VideoReader


@pytest.fixture(scope="module")
def rendered_clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rendered")
    for index in range(3):
        write_rendered_clip(folder / f"{index}_0", 9, brightness=60 + 40 * index, zoom=0.7 + 0.1 * index)
    return folder


def test_training_writes_what_it_makes_of_validation_clips(run_script, model, clips, rendered_clips, tmp_path, capsys):
    arguments = ["--model", model, "--data", clips, "--output", tmp_path, "--lengths", 3, "--max_train_steps", 2]
    arguments += ["--validation_clips", rendered_clips, "--validation_steps", 1, "--validation_count", 2]
    run_script("train_dreamactor.py", *arguments, "--tensorboard", "--cpu", "--mixed_precision", "no")
    reported = [line for line in capsys.readouterr().out.splitlines() if "validation psnr" in line]
    assert len(reported) == 2

    # the first and the middle one of three, truth at the left
    for step in ("step-000001", "step-000002"):
        videos = sorted((tmp_path / "validation" / step).iterdir())
        assert [path.name for path in videos] == ["0_0.mp4", "1_0.mp4"]
    squared = []
    for path in videos:
        reader = VideoReader(path)
        assert (len(reader), reader.width, reader.height, reader.fps) == (9, 128, 64, 12.0)
        frames = np.stack(list(reader)).astype(np.float64)
        truth = load_file(rendered_clips / path.stem / "clip.safetensors")["video"]
        assert np.abs(frames[:, :, :60] - truth[:, :, :60]).mean() < 12
        squared.append(np.square((frames[:, :, 64:] - truth) / 255).mean())

    events = EventAccumulator(str(tmp_path / "logs" / "dreamactor"))
    events.Reload()
    logged = events.Scalars("validation_psnr")
    assert [entry.step for entry in logged] == [1, 2]
    assert f"{logged[1].value:.2f} dB" in reported[1]
    # what was logged is what the videos show, but for their compression
    assert logged[1].value == pytest.approx(-10 * math.log10(np.mean(squared)), abs=0.5)


def test_evaluation_measures_every_condition(run_script, model, rendered_clips, tmp_path):
    arguments = ["--model", model, "--clips", rendered_clips, "--output", tmp_path, "--num_frames", 5]
    rows = ["right guidance", "pose of another clip", "without face", "three references"]
    run_script("evaluate.py", *arguments, "--num_inference_steps", 1, "--pseudo_references", 0, "--rows", *rows)
    records = json.loads((tmp_path / "records.json").read_text())
    expected = [*rows, "reference, frozen", "autoencoder alone"]
    assert [(entry["row"], entry["clip"]) for entry in records] == [
        (row, f"{index}_0") for index in range(3) for row in expected
    ]
    numbers = {(entry["row"], entry["clip"]): entry for entry in records}
    for index in range(3):
        psnr = [numbers[row, f"{index}_0"]["all"] for row in expected]
        assert all(5 < value < 60 for value in psnr)
        # wrong guidance makes another video
        assert psnr[1] != psnr[0] and psnr[2] != psnr[0]
        # a frozen picture of the same person is closer than what random weights make
        assert psnr[4] > psnr[0]
    table = (tmp_path / "table.md").read_text()
    assert "### All clips (3)" in table and all(f"| {row} |" in table for row in expected)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["0_0.png", "1_0.png", "2_0.png"]
