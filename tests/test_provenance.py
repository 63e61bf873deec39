import datetime
import hashlib
import json

import av
import numpy as np
import pytest
import torch

from diffusers_dreamactor import DreamActorPipeline, MotionSequence, __version__
from diffusers_dreamactor.checkpoints import bundled_avatars, bundled_model, bundled_motions, save_random_pipeline
from diffusers_dreamactor.cli import main
from diffusers_dreamactor.media import VideoReader, VideoWriter, save_video
from diffusers_dreamactor.provenance import DIGITAL_SOURCE_TYPE, Provenance, model_name


MOMENT = datetime.datetime(2026, 5, 4, 3, 2, 1, tzinfo=datetime.UTC)
SAMPLING = {"num_inference_steps": 1, "guidance_scale": 1.0, "height": 64, "width": 64, "num_frames": 9}


def tags(path) -> dict[str, str]:
    with av.open(str(path)) as container:
        return {name.lower(): value for name, value in container.metadata.items()}


@pytest.fixture(scope="module")
def pipe():
    pipe = DreamActorPipeline.from_pretrained(bundled_model())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def performance():
    avatar = bundled_avatars()["ana"]
    pose = MotionSequence.load(avatar.with_suffix(".safetensors"))
    return {"image": avatar, "motion": MotionSequence.load(bundled_motions()["talk"]), "reference_motion": pose}


@pytest.fixture(scope="module")
def result(pipe, performance):
    return pipe(**performance, **SAMPLING, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_a_file_says_where_it_comes_from(tmp_path, result, suffix):
    before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)
    result.save(tmp_path / f"out{suffix}")
    said = tags(tmp_path / f"out{suffix}")
    assert said["comment"] == f"AI-generated with DreamActor-Tiny (diffusers-dreamactor {__version__}), seed 7"
    facts = json.loads(said["description"])
    assert facts.pop("date") == said["date"] == said["creation_time"].replace(".000000", "")
    assert before <= datetime.datetime.fromisoformat(said["date"]) <= datetime.datetime.now(datetime.UTC)
    assert facts == {
        "digitalSourceType": DIGITAL_SOURCE_TYPE,
        "software": "diffusers-dreamactor",
        "version": __version__,
        "model": "DreamActor-Tiny",
        "seed": 7,
    }


def test_it_can_be_left_out(tmp_path, result):
    result.save(tmp_path / "out.mp4", provenance=False)
    save_video(result.frames[0], tmp_path / "plain.mp4", result.fps)
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "plain.mp4").read_bytes()
    assert not {"comment", "description", "date", "creation_time"} & set(tags(tmp_path / "out.mp4"))


def test_at_one_moment_the_same_seed_gives_the_same_bytes(tmp_path, monkeypatch, pipe, performance):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(int(MOMENT.timestamp())))
    files = []
    for index in range(2):
        result = pipe(**performance, **SAMPLING, generator=torch.Generator().manual_seed(7))
        assert result.provenance.date == MOMENT
        result.save(tmp_path / f"{index}.mp4", sidecar=True)
        files.append((tmp_path / f"{index}.mp4").read_bytes())
    assert files[0] == files[1]
    # at another one only the metadata differ
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    pipe(**performance, **SAMPLING, generator=torch.Generator().manual_seed(7)).save(tmp_path / "old.mp4")
    assert tags(tmp_path / "old.mp4")["date"] == "1970-01-01T00:00:00Z"
    pictures = [list(VideoReader(tmp_path / name)) for name in ("0.mp4", "old.mp4")]
    np.testing.assert_array_equal(*pictures)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(ValueError, match="`SOURCE_DATE_EPOCH` is 'yesterday'"):
        pipe.provenance()


def test_a_stream_says_it_too(tmp_path, pipe, performance):
    sizes = {name: SAMPLING[name] for name in ("height", "width", "num_frames")}
    inputs = pipe.prepare(**performance, **sizes)
    steps = {"num_inference_steps": 1, "guidance_scale": 1.0, "segment_frames": 5}
    with VideoWriter(tmp_path / "out.mp4", inputs.fps) as writer:
        for segment in pipe.stream(inputs, generator=torch.Generator().manual_seed(11), **steps):
            writer.write(segment)
    assert tags(tmp_path / "out.mp4")["comment"].endswith("seed 11") and len(VideoReader(tmp_path / "out.mp4")) == 9


def test_each_video_of_a_batch_says_its_own_seed(tmp_path, pipe, performance):
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    result = pipe(**performance, **SAMPLING, generator=generators, num_videos_per_prompt=2)
    assert result.provenance.seed == (3, 4)
    result.save(tmp_path / "out.mp4", index=1)
    assert json.loads(tags(tmp_path / "out.mp4")["description"])["seed"] == 4


def test_the_sidecar_is_the_definition_of_a_c2pa_manifest(tmp_path):
    path = tmp_path / "out.mp4"
    frames = np.zeros((3, 32, 32, 3), np.uint8)
    save_video(frames, path, 12, provenance=Provenance("org/model", 5, MOMENT), sidecar=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.c2pa.json", "out.mp4"]
    manifest = json.loads((tmp_path / "out.c2pa.json").read_text())
    assert manifest["title"] == "out.mp4" and manifest["format"] == "video/mp4"
    actions, file = manifest["assertions"]
    assert actions["label"] == "c2pa.actions.v2"
    assert actions["data"]["actions"] == [
        {
            "action": "c2pa.created",
            "when": "2026-05-04T03:02:01Z",
            "digitalSourceType": DIGITAL_SOURCE_TYPE,
            "softwareAgent": {"name": "diffusers-dreamactor", "version": __version__},
            "parameters": {"model": "org/model", "seed": 5},
        }
    ]
    assert file["data"]["hash"] == hashlib.sha256(path.read_bytes()).hexdigest() and file["data"]["name"] == "out.mp4"


def test_a_sidecar_of_nothing_that_is_known(tmp_path):
    frames = np.zeros((3, 32, 32, 3), np.uint8)
    for provenance, message in ((None, "nothing is known"), (False, "`provenance` is False")):
        with pytest.raises(ValueError, match=message):
            save_video(frames, tmp_path / "out.mp4", 12, provenance=provenance, sidecar=True)
    assert not list(tmp_path.iterdir())


def test_names_of_models_tell_nothing_of_the_disk(tmp_path):
    save_random_pipeline(tmp_path / "mine")
    assert DreamActorPipeline.from_pretrained(tmp_path / "mine").provenance().model == "mine"
    snapshot = "/home/me/.cache/huggingface/hub/models--Wan-AI--Wan2.2-Animate/snapshots/0123456789abcdef0123"
    assert model_name(snapshot) == "Wan-AI/Wan2.2-Animate@0123456789ab"
    assert model_name("Wan-AI/Wan2.2-Animate-14B-Diffusers") == "Wan-AI/Wan2.2-Animate-14B-Diffusers"
    assert model_name("/home/me/gone") == "gone" and model_name(None) is None


def test_the_command_has_a_switch_and_a_sidecar(tmp_path, capsys):
    quick = ["--size", "64x64", "--frames", "5", "--steps", "1", "--guidance-scale", "1", "--seed", "9"]
    assert main(["demo", "--output", str(tmp_path / "said.mp4"), "--sidecar", *quick]) == 0
    assert main(["demo", "--output", str(tmp_path / "silent.mp4"), "--no-provenance", *quick]) == 0
    assert tags(tmp_path / "said.mp4")["comment"].endswith("seed 9")
    assert "comment" not in tags(tmp_path / "silent.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["said.c2pa.json", "said.mp4", "silent.mp4"]
    with pytest.raises(SystemExit):
        main(["demo", "--sidecar", "--no-provenance"])
    assert "not allowed with" in capsys.readouterr().err
