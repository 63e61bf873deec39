"""What the Space does, without its page, and the folder that it is."""

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.io import wavfile

from diffusers_dreamactor.checkpoints import bundled_avatars, bundled_motions, bundled_speech
from diffusers_dreamactor.media import VideoReader, save_video


SPACE = Path(__file__).parents[2] / "examples" / "gradio_space"


@pytest.fixture(scope="module")
def studio():
    sys.path.insert(0, str(SPACE))
    import studio

    yield studio
    sys.path.remove(str(SPACE))


@pytest.fixture(scope="module")
def made(studio):
    return studio.Studio()


def test_sentences_speak_the_page_s_language(studio):
    said = studio.in_the_page_s_words("`image` cannot be read: /tmp/gradio/ab12/mine.png is no picture.")
    assert said == "The picture cannot be read: mine.png is no picture."
    said = studio.in_the_page_s_words('`num_frames` is 9, but `mode="x"` has 1/2.')
    assert said == "The length is 9, but mode has 1/2."


def test_a_performance_of_the_right_length(studio, made, tmp_path):
    request = studio.Request(str(bundled_avatars()["ana"]), motion="talk", seconds=0.5)
    inputs = made.prepare(request)
    assert len(inputs) == round(0.5 * inputs.fps)
    spoken = studio.Request(str(bundled_avatars()["ana"]), "Speech", speech=str(bundled_speech()), seconds=0.5)
    inputs = made.prepare(spoken)
    assert len(inputs) == round(0.5 * made.pipe.config.fps)
    # of a long recording no more is read than is said
    samples, rate = inputs.sound
    assert samples.shape[1] == 0.5 * rate
    # and never more than the longest film
    wavfile.write(tmp_path / "long.wav", 16_000, np.zeros(16_000 * 12, np.int16))
    spoken = dataclasses.replace(spoken, speech=str(tmp_path / "long.wav"), seconds=1000.0, consent=True)
    assert len(made.prepare(spoken)) == made.most_seconds * made.pipe.config.fps


def test_what_is_missing_is_said(studio, made, tmp_path):
    with pytest.raises(studio.VisitorError, match="Please give a picture first"):
        made.prepare(studio.Request(None))
    Image.new("RGB", (64, 64)).save(tmp_path / "mine.png")
    for changes, said in (
        ({"driver": "Video"}, "confirm that you may use"),
        ({"driver": "Video", "consent": True}, "give a driving video first"),
        ({"drive": ()}, "at least one part"),
        ({"driver": "Speech"}, "give speech first"),
    ):
        with pytest.raises(studio.VisitorError, match=said):
            made.prepare(studio.Request(str(bundled_avatars()["ana"]), **changes))


def test_a_file_that_is_too_large(studio, made, tmp_path):
    path = tmp_path / "large.mp4"
    with open(path, "wb") as file:
        file.truncate(300 * 10**6)
    with pytest.raises(studio.VisitorError, match="The driving video|A driving video is larger than 200 MB"):
        made.first_frame(str(path))


def test_a_visit_leaves_nothing(studio, made):
    visit = studio.Visit()
    inputs = made.prepare(studio.Request(str(bundled_avatars()["dan"]), motion="dance", seconds=0.3))
    told = []
    films = list(made.animate(inputs, studio.Sampling(1, 1.0), visit, visit.ask(), lambda *words: told.append(words)))
    assert films[-1].film.is_file() and films[-1].side_by_side.is_file() and films[0].newest.is_file()
    assert told and told[-1][0] == 1.0 and re.match(r"segment 1 of 1, about \d+ s left", told[-1][1])
    visit.close()
    assert not visit.folder.exists()


def test_a_visitor_who_leaves_ends_the_drawing(studio, made):
    visit = studio.Visit()
    inputs = made.prepare(studio.Request(str(bundled_avatars()["dan"]), motion="dance", seconds=0.3))
    steps = []

    def leave(share, sentence):
        steps.append(share)
        visit.cancel()

    films = list(made.animate(inputs, studio.Sampling(20, 1.0), visit, visit.ask(), leave))
    assert films[-1].note == "Cancelled." and len(steps) <= 2 and films[-1].film is None
    assert not list(visit.folder.rglob("*.mp4"))
    visit.close()


def test_the_folder_of_a_space(tmp_path):
    pytest.importorskip("gradio", reason="the Space's header names Gradio's version (extra `demo`)")
    sys.path.insert(0, str(SPACE))
    try:
        import deploy
    finally:
        sys.path.remove(str(SPACE))
    # what stands in the repository is what the package needs
    assert (SPACE / "requirements.txt").read_text() == deploy.requirements()
    deploy.assemble(tmp_path / "space")
    header = (tmp_path / "space" / "README.md").read_text().split("---")[1]
    values = dict(line.split(": ", 1) for line in header.strip().splitlines() if ": " in line)
    assert values["sdk"] == "gradio" and re.fullmatch(r"\d+\.\d+\.\d+", values["sdk_version"])
    assert values["app_file"] == "app.py" and values["python_version"] == '"3.11"'
    assert len(values["short_description"]) <= 60
    for name in ("app.py", "studio.py", "packages.txt", "diffusers_dreamactor/checkpoints/tiny/model_index.json"):
        assert (tmp_path / "space" / name).is_file()
    with pytest.raises(SystemExit, match="FOLDER has to be empty or new"):
        deploy.assemble(tmp_path / "space")
    thumbnails = list((tmp_path / "space" / "gallery").glob("*.webp"))
    assert len(thumbnails) == 6 and all(Image.open(path).n_frames > 10 for path in thumbnails)
    assert set(bundled_motions())


def test_wan_animate_s_weights_in_four_steps_and_a_replacement(studio, tmp_path, media):
    """What a Space on a GPU runs, with small weights."""
    from ..pipelines.test_devices import wan_animate

    pipe = wan_animate()
    pipe.register_to_config(segment_frames=5)
    pipe.save_pretrained(tmp_path / "model")
    name = next(name for name, module in pipe.transformer.named_modules() if name.endswith("attn1.to_q"))
    weight = pipe.transformer.get_submodule(name).weight
    lora = {
        f"transformer.{name}.lora_A.weight": torch.randn(4, weight.shape[1]),
        f"transformer.{name}.lora_B.weight": torch.randn(weight.shape[0], 4),
    }
    save_file(lora, tmp_path / "four.safetensors")
    made = studio.Studio(str(tmp_path / "model"), str(tmp_path / "four.safetensors"))
    assert made.can_replace and not made.is_bundled
    sampling = studio.Sampling(20, 3.0)
    assert made.steps(sampling) == 4 and made.seconds_needed(5, sampling) < 100
    frames = [Image.fromarray(frame) for frame in VideoReader(media / "carphone.mp4", num_frames=2)]
    save_video(frames, tmp_path / "driver.mp4", 12)
    request = studio.Request(
        str(media / "reference_scholar.jpeg"), "Video", video=str(tmp_path / "driver.mp4"), consent=True, replace=True
    )
    inputs = made.prepare(request)
    assert inputs.mode == "replace" and inputs.width > inputs.height and len(inputs) == 2
