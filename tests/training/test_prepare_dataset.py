"""Raw clips to prepared ones, through `examples/prepare_dataset.py` itself."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from raw_clips import write_rendered_clip

from diffusers_dreamactor.media import VideoReader, VideoWriter
from diffusers_dreamactor.motion.sequence import MotionSequence
from diffusers_dreamactor.training.dataset import PreparedClipDataset, list_prepared_clips, read_prepared_clip


def test_a_real_video_becomes_prepared_clips(run_script, model, media, capture_models, tmp_path, capsys):
    raw, output = tmp_path / "raw", tmp_path / "prepared"
    reader = VideoReader(media / "carphone.mp4")
    with VideoWriter(raw / "carphone.mp4", reader.rate, audio=media / "talk.wav") as writer:
        writer.write(list(reader.frames(0, 19)))
    with VideoWriter(raw / "short.mp4", 25) as writer:
        writer.write([np.zeros((64, 64, 3), dtype=np.uint8)] * 3)
    with VideoWriter(raw / "wall.mp4", 25) as writer:
        writer.write([np.full((64, 64, 3), 128, dtype=np.uint8)] * 9)
    arguments = ["--clips", raw, "--output", output, "--model", model, "--num_frames", 9]
    run_script("prepare_dataset.py", *arguments, "--capture_models", capture_models)
    printed = capsys.readouterr().out
    assert "short.mp4: skipped: it has 3 frames, but at least 5 are needed." in printed
    assert "wall.mp4: skipped:" in printed
    with pytest.raises(SystemExit) as exit_code:
        run_script("prepare_dataset.py", "--check", output)
    assert exit_code.value.code == 0
    assert "2 clips (2 with sound), 0 problems." in capsys.readouterr().out

    clips = list_prepared_clips(output)
    assert [clip.name for clip in clips] == ["carphone_0000", "carphone_0001"]
    clip = read_prepared_clip(clips[1])
    # the picture's aspect, 194:144 with square pixels, at 128 * 128 pixels
    assert clip["maps"].shape == (6, 9, 112, 144) and clip["latents"].shape == (16, 3, 14, 18)
    assert clip["reference_maps"].shape[1] == clip["reference_latents"].shape[1] >= 2
    assert clip["metadata"]["scale"] == "portrait" and clip["metadata"]["start"] == 8
    # face crops show what the frames show where the head's sphere is, and not what they show in the corner
    assert clip["face"].shape == (9, 3, 64, 64) and clip["face_weight"].min() == 1
    frame = Image.fromarray(next(VideoReader(raw / "carphone.mp4").frames(8, 9))).resize((151, 112))
    sphere = clip["maps"][3:].amax(dim=0) > 0
    rows, columns = torch.nonzero(sphere[0]).T
    side = int(rows.max() - rows.min())

    def likeness(left: int, top: int) -> float:
        patch = np.asarray(frame.crop((left, top, left + side, top + side)).resize((64, 64)))
        return np.corrcoef(patch.ravel(), clip["face"][0].permute(1, 2, 0).numpy().ravel())[0, 1]

    assert likeness(int(columns.min()) + 3, int(rows.min())) > 0.2 > likeness(0, 0)
    # the sphere is the head among the regions
    assert 0.05 < sphere.float().mean() < 0.6
    assert (clip["regions"][1].float() / 255).mean() == pytest.approx(sphere.float().mean().item(), abs=0.03)
    assert PreparedClipDataset(output, (3,), face="audio")[0, 0]["audio_features"].shape[1] == 40

    # a second run leaves what is there alone
    before = (clips[0] / "latents.safetensors").stat().st_mtime_ns
    run_script("prepare_dataset.py", *arguments, "--capture_models", capture_models)
    assert (clips[0] / "latents.safetensors").stat().st_mtime_ns == before


def test_a_rendered_clip_becomes_a_prepared_one(run_script, model, tmp_path, capsys):
    write_rendered_clip(tmp_path / "raw" / "7_0", 9, brightness=80, zoom=0.8)
    arguments = ["--clips", tmp_path / "raw", "--output", tmp_path / "prepared", "--model", model]
    run_script("prepare_dataset.py", *arguments)
    with pytest.raises(SystemExit) as exit_code:
        run_script("prepare_dataset.py", "--check", tmp_path / "prepared")
    assert exit_code.value.code == 0 and "1 clips (0 with sound), 0 problems." in capsys.readouterr().out
    sample = PreparedClipDataset(tmp_path / "prepared", (3,))[0, 0]
    assert sample["maps"].shape == (6, 9, 64, 64) and sample["reference_latents"].shape[1] == 3
    assert sample["regions"].sum(dim=0).max() <= 1 and (sample["regions"].mean(dim=(1, 2, 3)) > 0).all()


def test_a_clip_in_which_no_face_is_seen_trains_like_one_whose_face_was_lost(run_script, model, tmp_path):
    write_rendered_clip(tmp_path / "raw" / "7_0", 9, brightness=80, zoom=0.8)
    motion = MotionSequence.load(tmp_path / "raw" / "7_0" / "motion.safetensors")
    motion.face.confidence[:] = 0
    motion.save(tmp_path / "raw" / "7_0" / "motion.safetensors")
    arguments = ["--clips", tmp_path / "raw", "--output", tmp_path / "prepared", "--model", model]
    run_script("prepare_dataset.py", *arguments)
    sample = PreparedClipDataset(tmp_path / "prepared", (3,))[0, 0]
    assert sample["face"].shape == (9, 3, 64, 64) and not sample["face_weight"].any()


def test_dreamactor_tiny_prepares_where_no_model_is_named(run_script, tmp_path):
    write_rendered_clip(tmp_path / "raw" / "7_0", 9, brightness=80, zoom=0.8)
    run_script("prepare_dataset.py", "--clips", tmp_path / "raw", "--output", tmp_path / "prepared")
    assert PreparedClipDataset(tmp_path / "prepared", (3,))[0, 0]["latents"].shape[0] == 48


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clips", "a", "--output", "b", "--model", "m", "--num_frames", 12], "12, but has to be 4 n \\+ 1"),
        ([], "give --clips and --output, or --check"),
    ],
)
def test_wrong_arguments_are_named(run_script, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run_script("prepare_dataset.py", *arguments)
    assert re.search(message, capsys.readouterr().err)


def test_clips_of_one_name_are_an_error(run_script, tmp_path):
    for suffix in (".mp4", ".mov"):
        (tmp_path / "clips").mkdir(exist_ok=True)
        (tmp_path / "clips" / f"0001{suffix}").touch()
    with pytest.raises(SystemExit, match="several clips named 0001"):
        run_script("prepare_dataset.py", "--clips", tmp_path / "clips", "--output", tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_a_broken_clip_is_skipped_with_its_name(run_script, model, tmp_path, capsys):
    write_rendered_clip(tmp_path / "clips" / "cut", 9, brightness=80, zoom=0.8)
    write_rendered_clip(tmp_path / "clips" / "whole", 9, brightness=80, zoom=0.8)
    path = tmp_path / "clips" / "cut" / "clip.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    run_script("prepare_dataset.py", "--clips", tmp_path / "clips", "--output", tmp_path / "output", "--model", model)
    assert "cut: skipped" in capsys.readouterr().out
    assert [path.parent.name for path in (tmp_path / "output").glob("*/latents.safetensors")] == ["whole"]


def test_a_short_video_is_one_clip(run_script, model, media, capture_models, tmp_path):
    raw, output = tmp_path / "raw", tmp_path / "prepared"
    reader = VideoReader(media / "carphone.mp4")
    with VideoWriter(raw / "carphone.mp4", reader.rate) as writer:
        writer.write(list(reader.frames(0, 7)))
    run_script("prepare_dataset.py", "--clips", raw, "--output", output, "--model", model)
    clips = list_prepared_clips(output)
    assert len(clips) == 1 and read_prepared_clip(clips[0])["maps"].shape[1] == 5


@pytest.fixture
def run_command(monkeypatch):
    """Runs a script of examples/ as the command that it is, in this process."""

    def run(name: str, *arguments) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(Path(__file__).parents[2] / "examples" / name), run_name="__main__")

    return run


def test_nothing_prepared_is_a_failure_in_one_sentence(run_command, model, capture_models, tmp_path):
    raw = tmp_path / "raw"
    with VideoWriter(raw / "short.mp4", 25) as writer:
        writer.write([np.zeros((64, 64, 3), dtype=np.uint8)] * 3)
    with pytest.raises(SystemExit, match="gave no clip, so .*prepared is empty.$"):
        run_command("prepare_dataset.py", "--clips", raw, "--output", tmp_path / "prepared", "--model", model)
    with pytest.raises(SystemExit, match="absent is no folder.$"):
        run_command("prepare_dataset.py", "--clips", tmp_path / "absent", "--output", raw, "--model", model)
    with pytest.raises(SystemExit, match="^prepare_dataset.py: `folder` names no folder: .*absent$"):
        run_command("prepare_dataset.py", "--check", tmp_path / "absent")


@pytest.mark.parametrize("script", ["train_lora.py", "train_dreamactor.py"])
def test_a_missing_folder_or_id_is_one_sentence(run_command, model, tmp_path, script):
    for data, repository in ((tmp_path / "absent", model), (tmp_path, tmp_path / "no" / "model")):
        with pytest.raises(SystemExit, match=f"^{script}: ") as raised:
            # accelerate's state is of the process: what other tests set stays
            precision = ["--mixed_precision", "no"]
            output = ["--output", tmp_path / "out", "--max_train_steps", 1, *precision]
            run_command(script, "--data", data, "--model", repository, *output)
        assert "\n" not in str(raised.value) and "no" in str(raised.value)
