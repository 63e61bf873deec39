"""What `prepare` makes: one object that is looked at, saved, edited and sampled."""

import dataclasses
import inspect
import os

import numpy as np
import PIL.Image
import pytest
import torch

from diffusers_dreamactor import AnimationInputs, DreamActorPipeline, MotionGuidance
from diffusers_dreamactor.checkpoints.random_pipeline import random_pipeline
from diffusers_dreamactor.media import VideoReader, save_video

from ..motion.stick_figure import StickFigure


SAMPLING = {"num_inference_steps": 1, "segment_frames": 9, "output_type": "latent", "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def pipe() -> DreamActorPipeline:
    pipe = random_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def person():
    return StickFigure().film("stand", num_frames=1, framing="half_body", width=96, height=96, cut=False)


@pytest.fixture(scope="module")
def large_picture() -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (96, 96, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def motion():
    motion = StickFigure().film("wave", num_frames=14, framing="half_body", width=640, height=480, cut=False)
    crops = np.random.default_rng(0).integers(0, 256, (14, 64, 64, 3), dtype=np.uint8)
    return dataclasses.replace(motion, face=dataclasses.replace(motion.face, crops=crops))


@pytest.fixture
def arguments(large_picture, person, motion):
    return {"image": large_picture, "motion": motion, "reference_motion": person, "height": 64, "width": 64}


def sample(pipe, inputs, **changes):
    return pipe(inputs, generator=torch.Generator().manual_seed(0), **{**SAMPLING, **changes}).frames


def test_prepared_inputs_give_what_the_call_gives(pipe, arguments, large_picture, motion):
    inputs = pipe.prepare(**arguments)
    assert (len(inputs), inputs.height, inputs.width, inputs.fps) == (14, 64, 64, motion.fps)
    assert inputs.picture.size == (96, 96) and inputs.references[0].image.size == (64, 64)
    direct = pipe(**arguments, generator=torch.Generator().manual_seed(0), **SAMPLING).frames
    assert torch.equal(sample(pipe, inputs), direct)
    streamed = pipe.stream(inputs, generator=torch.Generator().manual_seed(0), **SAMPLING)
    assert torch.equal(torch.cat([segment.frames for segment in streamed], dim=2), direct)


def test_saved_inputs_need_neither_picture_nor_driver(pipe, arguments, tmp_path):
    inputs = pipe.prepare(**arguments, num_frames=20, extend="loop")
    inputs.save(tmp_path / "take.safetensors")
    loaded = AnimationInputs.load(tmp_path / "take.safetensors")
    assert torch.equal(sample(pipe, loaded), sample(pipe, inputs))
    np.testing.assert_array_equal(np.asarray(loaded.picture), np.asarray(inputs.picture))
    assert loaded.references[0].scale == inputs.references[0].scale
    drawn = dataclasses.replace(inputs, guidance=inputs.draw(), index=np.arange(20))
    drawn.save(tmp_path / "drawn.safetensors")
    assert torch.equal(sample(pipe, AnimationInputs.load(tmp_path / "drawn.safetensors")), sample(pipe, inputs))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drawn.safetensors", "take.safetensors"]


@pytest.mark.parametrize("face_from", ["video", "face_video"])
def test_saved_inputs_hold_the_faces_of_a_driver_that_is_gone(pipe, arguments, motion, media, tmp_path, face_from):
    video = tmp_path / "driver.mp4"
    save_video(list(VideoReader(media / "carphone.mp4", num_frames=6)), video, 12, (np.zeros(8000, np.float32), 16000))
    driver = {"video": video} if face_from == "video" else {"motion": motion, "face_video": video, "num_frames": 6}
    inputs = pipe.prepare(**{**arguments, "motion": None, **driver})
    assert inputs.sound == (str(video) if face_from == "video" else None)
    expected = sample(pipe, inputs)
    inputs.save(tmp_path / "take.safetensors")
    os.remove(video)
    loaded = AnimationInputs.load(tmp_path / "take.safetensors")
    assert torch.equal(sample(pipe, loaded), expected)
    assert loaded.sound is None and loaded.driver is None
    assert len(list(loaded.preview())) == 6


def test_speech_is_saved_with_its_sound(pipe, arguments, tmp_path):
    speech = (0.3 * np.sin(np.arange(16000) / 9)).astype(np.float32)
    inputs = pipe.prepare(**{**arguments, "motion": None}, audio=speech)
    assert len(inputs) == 24 and inputs.sound[1] == 16000
    inputs.save(tmp_path / "take.safetensors")
    loaded = AnimationInputs.load(tmp_path / "take.safetensors")
    np.testing.assert_array_equal(np.squeeze(loaded.sound[0]), speech)
    assert torch.equal(sample(pipe, loaded), sample(pipe, inputs))


def test_other_files_are_no_inputs(arguments, motion, tmp_path):
    motion.save(tmp_path / "motion.safetensors")
    with pytest.raises(ValueError, match="is not a animation file|is not an animation file"):
        AnimationInputs.load(tmp_path / "motion.safetensors")
    with pytest.raises(FileNotFoundError, match="names no file"):
        AnimationInputs.load(tmp_path / "nothing.safetensors")


def test_inputs_can_be_edited(pipe, arguments):
    inputs = pipe.prepare(**arguments)
    body = dataclasses.replace(inputs.motion.body, keypoints=inputs.motion.body.keypoints + 4)
    moved = dataclasses.replace(inputs, motion=dataclasses.replace(inputs.motion, body=body))
    assert (sample(pipe, moved) - sample(pipe, inputs)).abs().max() > 1e-4
    guidance = inputs.draw()
    guidance.skeleton = 255 - guidance.skeleton
    assert (sample(pipe, dataclasses.replace(inputs, guidance=guidance)) - sample(pipe, inputs)).abs().max() > 1e-4
    for change, message in (
        ({"motion": arguments["motion"]}, r"`motion` is in pixels of a 640x480 picture, but the video is 64x64"),
        ({"motion": None}, r"neither a `motion` nor a `guidance`"),
        ({"index": np.arange(15)}, r"`index` spans 0 to 14, but the driver has 14 frames"),
        ({"index": np.arange(0)}, r"`inputs` have no frames"),
        ({"guidance": MotionGuidance(guidance.skeleton[:, :, :32])}, r"`guidance` is 64x32 pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.stream(dataclasses.replace(inputs, **change), **SAMPLING)


def test_the_preview_is_drawn_piece_by_piece(pipe, arguments, tmp_path):
    inputs = pipe.prepare(**arguments, num_frames=75, extend="loop")
    whole = inputs.draw()
    pieces = list(inputs.pieces(32))
    assert [len(piece) for piece in pieces] == [33, 32, 10]
    for name in ("skeleton", "sphere", "face", "face_weight"):
        joined = np.concatenate([getattr(piece, name) for piece in pieces])
        np.testing.assert_array_equal(joined, getattr(whole, name))
    lazily = [np.asarray(frame) for frame in inputs.preview()]
    at_once = [np.asarray(frame) for frame in whole.preview(reference=inputs.references[0])]
    assert len(lazily) == 75
    np.testing.assert_array_equal(np.stack(lazily), np.stack(at_once))
    np.testing.assert_array_equal(
        np.asarray(inputs.preview().contact_sheet(5)),
        np.asarray(whole.preview(reference=inputs.references[0]).contact_sheet(5)),
    )
    single = pipe.prepare(**arguments, num_frames=1)
    assert len(list(single.preview())) == 1


def test_what_is_wrong_is_said_at_the_call(pipe, arguments):
    inputs = pipe.prepare(**arguments)
    with pytest.raises(ValueError, match="`num_inference_steps` is 0"):
        pipe.stream(inputs, num_inference_steps=0)
    with pytest.raises(ValueError, match="`inputs` is a Image, but has to be `AnimationInputs`"):
        pipe.stream(arguments["image"])
    with pytest.raises(ValueError, match="`motion` was given, but `image` are inputs that are prepared"):
        pipe(inputs, motion=arguments["motion"])
    with pytest.raises(TypeError, match="num_steps"):
        pipe.stream(inputs, num_steps=3)
    with pytest.raises(TypeError, match="num_steps"):
        pipe(inputs, num_steps=3)


def test_sampling_is_checked_before_anything_is_captured(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(pipe, "find_capture", lambda: pytest.fail("captured"))
    with pytest.raises(ValueError, match="`segment_frames` is 8"):
        pipe(tmp_path / "missing.png", tmp_path / "missing.mp4", segment_frames=8)


def test_inputs_of_other_weights_are_refused(pipe, arguments):
    inputs = pipe.prepare(**arguments)
    other = dataclasses.replace(
        inputs, motion_processor=type(inputs.motion_processor)(**{**inputs.motion_processor.config, "face_size": 32})
    )
    with pytest.raises(
        ValueError, match="`inputs` were prepared for weights whose `motion_processor` has face_size 32"
    ):
        pipe.stream(other)


def test_the_signatures_show_every_argument(pipe):
    prepared = set(inspect.signature(pipe.prepare).parameters)
    sampled = set(inspect.signature(pipe.stream).parameters) - {"inputs"}
    called = set(inspect.signature(pipe.__call__).parameters)
    assert called == prepared | sampled | {"return_dict"} and not prepared & sampled
    assert {"image", "video", "num_inference_steps", "generator", "callback_on_step_end"} <= called
    for name in called:
        assert name in type(pipe).__call__.__doc__


def test_a_motion_is_cut_as_a_video_is(pipe, arguments, motion):
    """What is not shown does not decide how the rest is fitted."""
    wild = motion.body.joints.copy()
    wild[7:] *= 1.7
    changed = dataclasses.replace(motion, body=dataclasses.replace(motion.body, joints=wild))
    guidance = [pipe.prepare(**{**arguments, "motion": each}, num_frames=6).draw() for each in (motion, changed)]
    np.testing.assert_array_equal(guidance[0].skeleton, guidance[1].skeleton)


def test_an_output_is_saved_with_its_sound(pipe, arguments, tmp_path):
    speech = (0.3 * np.sin(np.arange(16000) / 9)).astype(np.float32)
    result = pipe(**{**arguments, "motion": None}, audio=speech, **{**SAMPLING, "output_type": "pil"})
    result.save(tmp_path / "out.mp4")
    reader = VideoReader(tmp_path / "out.mp4")
    assert len(reader) == 24 and reader.has_audio
    latents = pipe(**arguments, **SAMPLING)
    with pytest.raises(ValueError, match="`frames` are latents"):
        latents.save(tmp_path / "latents.mp4")
    assert not (tmp_path / "latents.mp4").exists()


def test_numbers_come_in_many_types(pipe, arguments):
    expected = pipe.prepare(**{**arguments, "num_frames": 6})
    arguments = {**arguments, "height": 64.0, "width": np.int64(64), "num_frames": torch.tensor(6.0)}
    inputs = pipe.prepare(**arguments, fps=np.float32(arguments["motion"].fps), bone_scale=1.0)
    assert len(inputs) == 6 and (inputs.height, inputs.width) == (64, 64)
    np.testing.assert_array_equal(inputs.draw().skeleton, expected.draw().skeleton)
    wider = pipe.prepare(**{**arguments, "fps": None}, bone_scale=1.3).draw()
    assert (wider.skeleton != expected.draw().skeleton).any()
    sample(pipe, inputs, num_inference_steps=1.0, segment_frames=np.float64(9))
    for change in ({"num_frames": 6.5}, {"height": "64"}, {"fps": float("nan")}, {"bone_scale": -1}):
        with pytest.raises(ValueError, match=f"`{next(iter(change))}` is "):
            pipe.prepare(**{**arguments, **change})
    with pytest.raises(ValueError, match="`num_inference_steps` is 1.5"):
        sample(pipe, inputs, num_inference_steps=1.5)


def test_speech_with_its_rate(pipe, arguments):
    """Pairs of samples and rate, in either order; samples alone are at the feature extractor's rate."""
    speech = (0.3 * np.sin(np.arange(16000) / 9)).astype(np.float32)
    arguments = {**arguments, "motion": None}
    expected = pipe.prepare(**arguments, audio=speech)
    for pair in ((speech, 16000), (16000, speech), [speech, 16000]):
        inputs = pipe.prepare(**arguments, audio=pair)
        np.testing.assert_array_equal(inputs.motion_tokens, expected.motion_tokens)
        assert inputs.sound[1] == 16000 and np.shape(inputs.sound[0])[-1] == 16000
    half = pipe.prepare(**arguments, audio=(speech, 32000))
    assert len(half) == 12 and len(expected) == 24


def test_a_video_of_drawn_skeletons(pipe, arguments):
    """It is an error for weights that read other drawings, and guidance for Wan-Animate's."""
    from diffusers_dreamactor.processors.body_skeleton import BodySkeletonProcessor

    from .test_devices import wan_animate

    figure = StickFigure().film("wave", num_frames=6, framing="full_body", width=160, height=160, cut=False)
    drawn = BodySkeletonProcessor("wan")(figure, 160, 160).transpose(0, 2, 3, 1)
    with pytest.raises(ValueError, match="`video` shows drawn skeletons, not a person"):
        pipe.prepare(**{**arguments, "motion": None}, video=drawn)
    inputs = wan_animate().prepare(**{**arguments, "motion": None, "reference_motion": None}, video=drawn)
    assert inputs.guidance.skeleton.shape == (6, 3, 64, 64) and inputs.guidance.face is None
    expected = np.asarray(PIL.Image.fromarray(drawn[2]).resize((64, 64), PIL.Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(inputs.guidance.skeleton[2].transpose(1, 2, 0), expected)


def test_a_scene_of_one_picture(arguments):
    """It stands throughout, whatever form the mask has."""
    from .test_devices import wan_animate

    mask = np.zeros((64, 64), dtype=bool)
    mask[:, 32:] = True
    inputs = wan_animate().prepare(
        **arguments,
        mode="replace",
        background_video=PIL.Image.new("RGB", (64, 64), (10, 20, 30)),
        mask_video=torch.from_numpy(mask),
    )
    assert len(inputs.background_video) == len(inputs.mask_video) == len(inputs) > 1
    for background, person in zip(inputs.background_video, inputs.mask_video):
        assert (background == (10, 20, 30)).all()
        np.testing.assert_array_equal(person, np.repeat(mask[..., None], 3, axis=-1) * 255)
