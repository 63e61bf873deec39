"""Rendered clips that were not trained on: animated during training, and measured."""

import json
import math

import numpy as np
import pytest
from raw_clips import write_rendered_clip
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusers_dreamactor.media import VideoReader
from diffusers_dreamactor.motion.sequence import MotionSequence


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


def test_evaluation_measures_references_where_the_back_is_seen(run_script, model, rendered_clips, tmp_path):
    folder = tmp_path / "turning"
    for index in range(2):
        write_rendered_clip(folder / f"{index}_0", 9, brightness=90, zoom=0.8)
    # the head of the second turns to the back after four frames
    motion = MotionSequence.load(folder / "1_0" / "motion.safetensors")
    motion.head.rotation[4:] = motion.head.rotation[4:] @ np.diag([-1.0, 1.0, -1.0]).astype(np.float32)
    motion.save(folder / "1_0" / "motion.safetensors")
    arguments = ["--model", model, "--clips", rendered_clips, "--turning_clips", folder, "--output", tmp_path]
    arguments += ["--num_frames", 5, "--num_inference_steps", 1, "--pseudo_references", 0, "--rows", "none"]
    run_script("evaluate.py", *arguments)

    table = (tmp_path / "table.md").read_text().split("### Frames that show the back ")[1].splitlines()
    assert table[0] == "(1 clips)"
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in table[4:]}
    assert list(rows) == ["reference, frozen", "references: 1", "references: 2", "references: 3"]
    clip = load_file(folder / "1_0" / "clip.safetensors")
    squared = np.square((clip["references"][:1].astype(np.float64) - clip["video"][4:]) / 255)
    assert float(rows["reference, frozen"][0]) == pytest.approx(-10 * np.log10(squared.mean()), abs=0.006)
    # random weights, too, make another video of other references
    assert rows["references: 1"] != rows["references: 3"]
