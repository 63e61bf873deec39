"""A person in place of the driver's, from nothing but a picture and a video."""

import dataclasses

import numpy as np
import PIL.Image
import pytest
import torch

from diffusers_dreamactor import AnimationInputs
from diffusers_dreamactor.media import VideoReader, save_video
from diffusers_dreamactor.motion.retarget import resize_motion
from diffusers_dreamactor.pictures import cover
from diffusers_dreamactor.processors.replacement import CellMasks

from ..pretend_device import DEVICE  # noqa: F401 without it test_devices is skipped, and has nothing to import
from .test_devices import arguments_for, generate, wan_animate


FRAMES = 3


@pytest.fixture(scope="module")
def pipe():
    pipe = wan_animate()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def prepared(pipe, media):
    """A real driver, with somebody else's picture."""
    frames = VideoReader(media / "cartoon_character.mp4").frames(24, 24 + FRAMES)
    driver = [PIL.Image.fromarray(frame).crop((380, 90, 1100, 720)).resize((480, 420)) for frame in frames]
    picture = PIL.Image.open(media / "reference_scholar.jpeg").resize((640, 360))
    arguments = {"image": picture, "video": driver, "mode": "replace"}
    return arguments, pipe.prepare(**arguments)


@pytest.fixture(scope="module")
def sampling(pipe):
    return arguments_for(pipe)[1]


def test_the_scene_is_the_driver_without_its_person(prepared):
    arguments, inputs = prepared
    assert len(inputs) == FRAMES
    x, y = inputs.motion.head.center[0].round().astype(int)
    scenes = [(np.asarray(scene), np.asarray(mask)[..., 0] > 0) for scene, mask in inputs.scene()]
    assert len(scenes) == FRAMES
    for (scene, mask), frame in zip(scenes, arguments["video"]):
        assert scene.shape == (inputs.height, inputs.width, 3) and mask.shape == scene.shape[:2]
        assert 0.05 < mask.mean() < 0.7 and mask[y, x] and not scene[mask].any()
        # the rest is the driver's picture at its place
        small = np.asarray(cover(frame, inputs.height, inputs.width))
        np.testing.assert_array_equal(scene[~mask], small[~mask])


def test_the_person_stands_where_the_driver_does(pipe, prepared):
    arguments, inputs = prepared
    driver = pipe.find_capture().capture(arguments["video"], progress=False)
    neck = resize_motion(driver, inputs.height, inputs.width).body.keypoints[:, 1]
    np.testing.assert_allclose(inputs.motion.body.keypoints[:, 1], neck, atol=0.02 * inputs.height)


def test_the_video_decides_the_size(pipe, prepared):
    """Not the picture, which is brought into it."""
    arguments, inputs = prepared
    tall = [frame.crop((90, 0, 350, 420)) for frame in arguments["video"][:1]]
    assert inputs.width > inputs.height
    other = pipe.prepare(**{**arguments, "video": tall})
    assert other.height > 1.4 * other.width


def test_found_and_given_masks_make_the_same_frames(pipe, prepared, sampling):
    arguments, inputs = prepared
    made = pipe(inputs, generator=torch.Generator().manual_seed(0), **sampling).frames
    scene, masks = zip(*inputs.scene())
    given = {**arguments, "background_video": list(scene), "mask_video": list(masks)}
    torch.testing.assert_close(generate(pipe, (given, sampling)), made, atol=0, rtol=0)
    # and it is the scene that makes a difference
    other = dataclasses.replace(inputs, mode="animate", mask_video=None)
    assert (pipe(other, generator=torch.Generator().manual_seed(0), **sampling).frames - made).abs().max() > 1e-3


def test_saved_and_loaded(pipe, prepared, sampling, tmp_path):
    inputs = prepared[1]
    inputs.save(tmp_path / "take.safetensors")
    loaded = AnimationInputs.load(tmp_path / "take.safetensors")
    assert isinstance(loaded.mask_video.source, CellMasks)
    for ours, theirs in zip(inputs.scene(), loaded.scene()):
        np.testing.assert_array_equal(ours, theirs)


def test_a_scene_that_is_gone_is_an_error(prepared, tmp_path):
    save_video(prepared[0]["video"], tmp_path / "driver.mp4", 24)
    inputs = dataclasses.replace(prepared[1], driver=VideoReader(tmp_path / "driver.mp4"), face_video=None)
    inputs.save(tmp_path / "take.safetensors")
    (tmp_path / "driver.mp4").unlink()
    with pytest.raises(FileNotFoundError, match=r"driver\.mp4"):
        AnimationInputs.load(tmp_path / "take.safetensors")


def test_a_looped_driver_loops_its_scene(pipe, prepared):
    arguments = {**prepared[0], "video": prepared[0]["video"][:2]}
    scenes = [np.asarray(scene) for scene, _ in pipe.prepare(**arguments, num_frames=3, extend="loop").scene()]
    np.testing.assert_array_equal(scenes[2], scenes[0])
    assert (scenes[1] != scenes[0]).any()


def test_one_of_mask_and_scene_is_given(pipe, prepared):
    arguments = {**prepared[0], "video": prepared[0]["video"][:1]}
    other = PIL.Image.new("RGB", (320, 180), (10, 200, 30))
    inputs = pipe.prepare(**arguments, background_video=other)
    scene, mask = next(inputs.scene())
    mask = np.asarray(mask.resize(scene.size, PIL.Image.Resampling.NEAREST))[..., 0] > 0
    assert (np.asarray(scene)[~mask] == (10, 200, 30)).all() and not np.asarray(scene)[mask].any()
    left = np.zeros((36, 64), dtype=bool)
    left[:, :32] = True
    inputs = pipe.prepare(**arguments, mask_video=left)
    scene, _ = next(inputs.scene())
    assert not np.asarray(scene)[:, : inputs.width // 2 - 1].any()
    assert np.asarray(scene)[:, inputs.width // 2 + 1 :].mean() > 30


def test_the_preview_shows_the_place(prepared):
    inputs = prepared[1]
    whole = dataclasses.replace(inputs, mode="animate")
    frame, without = next(iter(inputs.preview())), next(iter(whole.preview()))
    panel = np.asarray(frame)[:, without.width + 4 :]
    assert panel.shape[1] == pytest.approx(panel.shape[0] * inputs.width / inputs.height, abs=4)
    x, y = inputs.motion.head.center[0] * panel.shape[0] / inputs.height
    red = panel[int(y), int(x)]
    assert red[0] > red[1] + 60 and red[0] > red[2] + 60


def test_what_is_missing_is_said_before_the_work(pipe, prepared):
    arguments, _ = prepared
    preparation = arguments_for(pipe)[0]
    with pytest.raises(ValueError, match='`mode="replace"` needs `background_video`, or a driving `video`'):
        pipe.prepare(**preparation, mode="replace", mask_video=np.zeros((64, 64), dtype=bool))
    with pytest.raises(ValueError, match='`mode="replace"` needs `mask_video`, or a driving `video`'):
        pipe.prepare(**preparation, mode="replace", background_video=preparation["image"])
    other = wan_animate()
    other.register_modules(capture=FromKeypoints())
    with pytest.raises(ValueError, match="`mask_video` was not given, but is needed: FromKeypoints cuts nobody out"):
        other.prepare(**arguments)


class FromKeypoints:
    """A capture that somebody wrote, without segmentation."""

    def capture(self, video, person=None, progress=True):
        raise AssertionError("nothing is captured before the error")
