"""The training kit from end to end at a tiny size: packed, unpacked, trained in slices, assembled, animated, measured."""

import json
import os
import subprocess
import sys
import tarfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState


pytest.importorskip("anny", reason="the extra `synthetic` is not installed")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "synthetic"))

import gpu_kit  # noqa: E402
from gpu_kit_config import KitConfig  # noqa: E402
from gpu_kit_pack import needed_wheels, pack  # noqa: E402
from gpu_kit_weights import assemble, disassemble, read_weights, write_weights  # noqa: E402
from motion_bank import MotionBank  # noqa: E402

from diffusers_dreamactor import DreamActorPipeline  # noqa: E402
from diffusers_dreamactor.motion.sequence import MotionSequence  # noqa: E402


TINY = {
    "size": 32,
    "num_frames": 5,
    "vae_base": 4,
    "vae_decoder_base": 4,
    "vae_steps": 2,
    "vae_batch": 1,
    "face_size": 16,
    "face_steps": 2,
    "face_people": 1,
    "face_frames": 2,
    "dim": 16,
    "head_dim": 8,
    "layers": 1,
    "steps": 3,
    "batch": 1,
    "evaluation_steps": 100,
    "evaluation_clips": 1,
    "num_inference_steps": 1,
    "crop_share": 0.5,
    "mixed_precision": "no",
    "optimizer": "adamw",
}


@pytest.fixture(scope="module")
def kit(bodies, tmp_path_factory) -> Path:
    """The unpacked archive."""
    folder = tmp_path_factory.mktemp("kit")
    body_path = bodies[0].path
    size = pack(body_path, folder / "kit.tar.gz", num_motions=32, motion_frames=9, wheels=False)
    assert size == (folder / "kit.tar.gz").stat().st_size < 8e6
    with tarfile.open(folder / "kit.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "kit"


def arguments(kit: Path, output: Path, most_steps: int | None = None, **changes) -> list[str]:
    values = TINY | changes | {"kit": kit, "output": output, "minutes": 5}
    if most_steps is not None:
        values["most_steps"] = most_steps
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def run(monkeypatch, *options) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_kit.py", "run", "--cpu", *options])
    gpu_kit.main()


def test_three_slices_are_bit_for_bit_one_run_and_make_a_repository(kit, tmp_path, monkeypatch):
    run(monkeypatch, *arguments(kit, tmp_path / "whole"))

    # slices are not disturbed by measuring. The first is run as on another machine: with nothing but what was unpacked
    command = [
        sys.executable,
        str(kit / "gpu_kit.py"),
        "run",
        "--cpu",
        *arguments(kit, tmp_path / "slices", 1, evaluation_steps=0),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True)
    assert not list((tmp_path / "slices" / "weights").glob("*transformer*"))
    models, _ = read_weights(tmp_path / "slices" / "weights")
    assert set(models) == {"vae"}
    run(monkeypatch, *arguments(kit, tmp_path / "slices", 4, evaluation_steps=0))
    run(monkeypatch, *arguments(kit, tmp_path / "slices", evaluation_steps=0))
    whole, slices = ((tmp_path / name / "weights").iterdir() for name in ("whole", "slices"))
    for first, second in zip(sorted(whole), sorted(slices), strict=True):
        assert first.name == second.name and first.read_bytes() == second.read_bytes()
    measured = json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[-3])
    assert measured["step"] == 3 and measured["portrait_right_all"] > 5
    last = json.loads((tmp_path / "slices" / "log.jsonl").read_text().splitlines()[-1])
    assert last["phase"] == "weights" and last["done"] and last["files"] <= 8
    # nothing is done twice
    before = (tmp_path / "slices" / "weights" / "weights-1-of-1.safetensors").read_bytes()
    run(monkeypatch, *arguments(kit, tmp_path / "slices", evaluation_steps=0))
    assert (tmp_path / "slices" / "weights" / "weights-1-of-1.safetensors").read_bytes() == before

    with pytest.raises(SystemExit, match="`dim` is 32, but the run"):
        main_exits(monkeypatch, *arguments(kit, tmp_path / "slices", dim=32))

    assemble(tmp_path / "slices" / "weights", tmp_path / "model")
    pipe = DreamActorPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    models, _ = read_weights(tmp_path / "slices" / "weights")
    for name, model in models.items():
        for key, value in model.state_dict().items():
            torch.testing.assert_close(getattr(pipe, name).state_dict()[key].float(), value.float())

    # further training begins with it, in half precision, as on a GPU
    AcceleratorState._reset_state(reset_partial_state=True)
    disassemble(tmp_path / "model", tmp_path / "start")
    changes = {"vae_steps": 0, "face_steps": 0, "steps": 1, "evaluation_steps": 0, "mixed_precision": "bf16"}
    run(monkeypatch, "--start", str(tmp_path / "start"), *arguments(kit, tmp_path / "on", **changes))
    on, _ = read_weights(tmp_path / "on" / "weights")
    for name, model in on.items():
        same = all(torch.equal(value, models[name].state_dict()[key]) for key, value in model.state_dict().items())
        assert same == (name in ("vae", "face_motion_encoder")), name
    AcceleratorState._reset_state(reset_partial_state=True)

    generate_and_measure(kit, pipe, tmp_path)


def main_exits(monkeypatch, *options):
    try:
        run(monkeypatch, *options)
    except ValueError as error:
        raise SystemExit(str(error)) from error


def generate_and_measure(kit: Path, pipe: DreamActorPipeline, folder: Path) -> None:
    from gpu_kit_evaluate import generator_of, write_clips

    from diffusers_dreamactor.training.validation import animate, load_validation_clip

    options = Namespace(kit=str(kit), size=32, seed=0)
    write_clips(generator_of(options), folder / "clips", range(1), "portrait", 5, expressions=2)
    first, second = (
        load_validation_clip(folder / "clips" / f"0000000_{index}", pipe.motion_processor) for index in (0, 1)
    )
    frames = animate(pipe, first.references[:1], first.guidance)
    assert frames.shape == first.video.shape == (5, 32, 32, 3)
    assert np.array_equal(frames, animate(pipe, first.references[:1], first.guidance))
    # the two differ in the face alone; the tip of the nose is part of it
    np.testing.assert_allclose(first.motion.body.joints, second.motion.body.joints, atol=5e-3)
    assert np.array_equal(first.motion.head.rotation, second.motion.head.rotation)
    assert not np.array_equal(first.motion.face.blendshapes, second.motion.face.blendshapes)
    assert not np.array_equal(first.guidance.face, second.guidance.face)
    assert isinstance(first.motion, MotionSequence) and first.regions.max() == 3


def test_no_clip_is_seen_twice_and_held_out_motions_are_apart(kit):
    from batch_body import BatchBody
    from batch_clip import ClipGenerator

    body, bank = BatchBody.load(kit / "body.safetensors"), MotionBank.load(kit / "motions.safetensors")
    for scale in ("portrait", "half_body", "full_body"):
        trained, held_out = (set(bank.pool(scale, flag).tolist()) for flag in (False, True))
        assert trained and held_out and not trained & held_out
    generators = [ClipGenerator(body, bank, 32, seed=seed, held_out=flag) for seed, flag in ((0, 0), (0, 1), (1, 0))]
    numbers = torch.tensor([3, 10**12 + 3])
    videos = torch.cat([generator.videos(numbers, "portrait", 5)["video"] for generator in generators])
    for index in range(len(videos)):
        others = [video for place, video in enumerate(videos) if place != index]
        assert all((videos[index] - other).abs().mean() > 0.05 for other in others)
    # half precision is for the models
    with torch.autocast("cpu", torch.bfloat16):
        again = generators[0].videos(numbers[1:], "portrait", 5)["video"][0]
    torch.testing.assert_close(again, videos[1], atol=0.02, rtol=0)


def test_an_archive_over_the_limit_is_not_written(bodies, tmp_path):
    with pytest.raises(ValueError, match="`limit` is 1"):
        pack(bodies[0].path, tmp_path / "kit.tar.gz", num_motions=1, motion_frames=9, wheels=False, limit=1e6)
    assert not list(tmp_path.iterdir())


def test_wheels_are_what_torch_does_not_bring():
    names = {line.partition("==")[0] for line in needed_wheels()}
    assert {"diffusers", "accelerate", "safetensors", "numpy", "huggingface-hub"} <= names
    assert not names & {"torch", "filelock", "sympy", "jinja2", "fsspec", "scipy", "av", "transformers", "hf-xet"}


def test_weights_come_in_few_small_files(tmp_path, monkeypatch):
    import gpu_kit_weights

    model = gpu_kit_weights.FaceMotionEncoder(
        size=16, channels={"16": 16, "8": 16, "4": 16}, style_dim=16, num_motion_directions=4, motion_dim=4
    )
    monkeypatch.setattr(gpu_kit_weights, "MOST_BYTES", 2 * 10**5 + 20_000)
    paths = write_weights({"face_motion_encoder": model}, tmp_path / "weights", {"note": 1})
    assert 1 < len(paths) <= 8 and all(path.stat().st_size < 2 * 10**5 + 20_000 for path in paths)
    models, values = read_weights(tmp_path / "weights")
    assert values == {"note": 1}
    for key, value in models["face_motion_encoder"].state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key], atol=2e-3, rtol=2e-3)
    paths[0].unlink()
    with pytest.raises(FileNotFoundError, match="of"):
        read_weights(tmp_path / "weights")
    monkeypatch.setattr(gpu_kit_weights, "MOST_FILES", 1)
    with pytest.raises(ValueError, match="smaller transformer"):
        write_weights({"face_motion_encoder": model}, tmp_path / "weights", {})


def test_every_field_is_an_option(tmp_path):
    parser = ArgumentParser()
    KitConfig.add_arguments(parser)
    config = KitConfig.of_run(tmp_path, parser.parse_args(["--dim", "128", "--steps", "10"]))
    assert config.dim == 128 and config.steps == 10 and config.layers == 12
    # the number of steps may change, the model may not
    assert KitConfig.of_run(tmp_path, parser.parse_args(["--steps", "20"])).steps == 20
    with pytest.raises(ValueError, match="`dim` is 64"):
        KitConfig.of_run(tmp_path, parser.parse_args(["--dim", "64"]))
    with pytest.raises(ValueError, match="4 n \\+ 1"):
        KitConfig.of_run(tmp_path / "other", parser.parse_args(["--num_frames", "16"]))
