import dataclasses
import os

import numpy as np
import PIL.Image
import pytest
import torch

from diffusers_dreamactor import DreamActorPipeline, MotionGuidance
from diffusers_dreamactor.checkpoints.random_pipeline import random_pipeline
from diffusers_dreamactor.media import VideoReader
from diffusers_dreamactor.models.transformer_dreamactor import DreamActorTransformer3DModel

from ..motion.stick_figure import StickFigure


SIZE = {"num_inference_steps": 1, "segment_frames": 9, "output_type": "latent", "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def pipe() -> DreamActorPipeline:
    pipe = random_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def person():
    return StickFigure().film("stand", num_frames=1, framing="half_body", width=64, height=64, cut=False)


@pytest.fixture(scope="module")
def motion():
    motion = StickFigure().film("wave", num_frames=14, framing="half_body", width=640, height=480, cut=False)
    crops = np.random.default_rng(0).integers(0, 256, (14, 64, 64, 3), dtype=np.uint8)
    return dataclasses.replace(motion, face=dataclasses.replace(motion.face, crops=crops))


@pytest.fixture(scope="module")
def references(pipe, person):
    picture = PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    return pipe.prepare_references(picture, 64, 64, reference_motion=person)


def generate(pipe, references, seed=0, **arguments):
    return pipe(references, generator=torch.Generator().manual_seed(seed), **{**SIZE, **arguments}).frames


def test_guidance_drawn_before_gives_the_same_video(pipe, references, motion, tmp_path):
    direct = generate(pipe, references, motion=motion)
    guidance = pipe.prepare(references, motion=motion).draw()
    assert len(guidance) == 14 and guidance.fps == motion.fps
    guidance.save(tmp_path / "guidance.safetensors")
    again = generate(pipe, references, guidance=MotionGuidance.load(tmp_path / "guidance.safetensors"))
    torch.testing.assert_close(direct, again)


def test_parts_that_are_not_driven_stay_as_in_the_reference(pipe, references, motion, person):
    full = pipe.prepare(references, motion=motion).draw()
    assert (full.skeleton[0] != full.skeleton[7]).any() and (full.face[0] != full.face[7]).any()
    still = pipe.prepare(references, motion=motion, drive=("face",)).draw()
    assert (still.skeleton == still.skeleton[:1]).all() and (still.sphere == still.sphere[:1]).all()
    np.testing.assert_array_equal(still.face, full.face)
    own = pipe.motion_processor(dataclasses.replace(person, face=None), 64, 64)
    np.testing.assert_array_equal(still.skeleton[0], own.skeleton[0])
    body = pipe.prepare(references, motion=motion, drive=("body", "head")).draw()
    assert body.face is None or (body.face == body.face[:1]).all()


def test_without_retargeting_head_and_body_go_together(pipe, references, motion):
    for drive in (("face",), ("body",), ("face", "head")):
        with pytest.raises(ValueError, match=r"`drive` is \('.*`retarget=False`.*\"head\" and \"body\""):
            pipe.prepare(references, motion=motion, retarget=False, drive=drive).draw()
    full = pipe.prepare(references, motion=motion, retarget=False).draw()
    for face_crop in (references[0].face_crop, None):
        reference = dataclasses.replace(references[0], face_crop=face_crop)
        faceless = pipe.prepare(reference, motion=motion, retarget=False, drive=("head", "body")).draw()
        np.testing.assert_array_equal(faceless.skeleton, full.skeleton)
        assert full.face is not None
        assert faceless.face is None if face_crop is None else (faceless.face == faceless.face[:1]).all()


def test_speech_moves_only_the_face(pipe, references):
    rate = pipe.audio_feature_extractor.sampling_rate
    time = np.arange(rate) / rate
    speech = (0.3 * np.sin(2 * np.pi * 220 * time) * (np.sin(2 * np.pi * 3 * time) > 0)).astype(np.float32)
    guidance = pipe.prepare(references, audio=speech, idle=False).draw()
    assert len(guidance) == 24 and guidance.fps == 24.0
    assert (guidance.skeleton == guidance.skeleton[:1]).all()
    assert guidance.motion_tokens.shape == (24, 32)
    # the sound goes on and off: so do the tokens
    assert np.abs(guidance.motion_tokens[3] - guidance.motion_tokens[7]).max() > 1e-3
    spoken = generate(pipe, references, audio=speech, num_frames=9, idle=False)
    whole = (speech * 32768).round().astype(np.int16)
    scaled = (whole / 32768).astype(np.float32)
    with torch.no_grad():
        tokens = [pipe.encode_audio(samples, 12, 9) for samples in (scaled, whole, np.stack([scaled, scaled]))]
    np.testing.assert_allclose(tokens[1], tokens[0], atol=1e-5)
    np.testing.assert_allclose(tokens[2], tokens[0], atol=1e-5)
    silent = generate(pipe, references, audio=np.zeros_like(speech), num_frames=9, idle=False)
    assert (spoken - silent).abs().max() > 1e-4
    assert len(pipe.prepare(references, audio=speech, fps=30, num_frames=10).draw()) == 10


@pytest.fixture
def speech(pipe):
    rate = pipe.audio_feature_extractor.sampling_rate
    time = np.arange(rate) / rate
    return (0.3 * np.sin(2 * np.pi * 220 * time) * (np.sin(2 * np.pi * 3 * time) > 0)).astype(np.float32)


def test_who_only_speaks_sways_and_blinks(pipe, references, motion, speech):
    still = pipe.prepare(references, audio=speech, idle=False)
    idle = pipe.prepare(references, audio=speech)
    skeleton = idle.draw().skeleton
    assert (skeleton != skeleton[:1]).any() and (skeleton[0] == still.draw().skeleton[0]).mean() > 0.95
    # only the head moves
    shoulders = slice(2, 4)
    moved, rest = (inputs.motion.body.keypoints for inputs in (idle, still))
    np.testing.assert_array_equal(moved[:, shoulders], rest[:, shoulders])
    # what is driven by a motion does not sway
    driven = [pipe.prepare(references, motion=motion, audio=speech, idle=each).draw() for each in (True, False)]
    np.testing.assert_array_equal(driven[0].skeleton, driven[1].skeleton)


def test_the_face_passes_from_the_driver_to_speech(pipe, references, motion, speech):
    fps = motion.fps
    arguments = {"motion": motion, "audio": speech, "idle": False}
    spoken = pipe.prepare(references, **arguments).motion_tokens
    mixed = pipe.prepare(references, **arguments, speech_from=7 / fps).motion_tokens
    shown = pipe.prepare(references, motion=motion).draw()
    with torch.no_grad():
        shown = pipe.encode_face(shown, 1)[0].numpy()
    fade = int(np.ceil(0.08 * fps)) + 1
    np.testing.assert_allclose(mixed[: 7 - fade], shown[: 7 - fade], atol=1e-5)
    np.testing.assert_allclose(mixed[7 + fade :], spoken[7 + fade :], atol=1e-5)
    assert np.abs(shown - spoken).max() > 1e-2
    with pytest.raises(ValueError, match="`speech_from` is 3, but needs `audio`"):
        pipe.prepare(references, audio=speech, speech_from=3)


def test_weights_without_a_speech_encoder_are_shown_a_speaking_face(pipe, references, speech):
    mute = DreamActorPipeline(**{**pipe.components, "audio_motion_encoder": None, "audio_feature_extractor": None})
    mute.set_progress_bar_config(disable=True)
    if not os.environ.get("DREAMACTOR_CAPTURE_MODELS"):
        pytest.skip("DREAMACTOR_CAPTURE_MODELS names no folder with MediaPipe's landmarker files")
    inputs = mute.prepare(references, audio=(speech, 16000), num_frames=8)
    assert len(inputs) == 8 and inputs.motion_tokens is None and inputs.face_video is not None
    guidance = inputs.draw()
    assert (guidance.face_weight == 1).all() and (guidance.face != guidance.face[:1]).any()
    assert inputs.sound[1] == 16000


def test_a_face_video_is_never_cut_short_in_silence(pipe, references, motion, media):
    frame = next(iter(VideoReader(media / "carphone.mp4", num_frames=1))).astype(np.float32)
    brighter = np.stack([0.7 * frame + 15 * i for i in range(5)]).astype(np.uint8)
    drive = {"motion": motion, "face_video": brighter}
    with pytest.raises(ValueError, match=r"`face_video` has 5 frames.*the video has 14.*`num_frames` of at most 5"):
        pipe.prepare(references, **drive).draw()
    short = pipe.prepare(references, num_frames=3, **drive).draw()
    body = pipe.prepare(references, motion=motion, num_frames=3).draw()
    np.testing.assert_array_equal(short.skeleton, body.skeleton)
    assert len(short) == len(short.face) == 3
    assert len(pipe.prepare(references, extend="stop", **drive).draw()) == 5
    # a driver without a head track is no obstacle: the head follows its body
    headless = dataclasses.replace(motion, head=None)
    with_face = pipe.prepare(references, num_frames=3, motion=headless, face_video=brighter).draw()
    np.testing.assert_array_equal(with_face.face, short.face)
    np.testing.assert_array_equal(with_face.skeleton, pipe.prepare(references, motion=headless[:3]).draw().skeleton)
    # the face turns back where its own video ends, while the body goes on
    looped = pipe.prepare(references, extend="loop", **drive).draw()
    change = np.sign(np.diff(looped.face.mean(axis=(1, 2, 3))))
    assert change.tolist() == [1] * 4 + [-1] * 4 + [1] * 4 + [-1]
    assert (looped.skeleton[3] != looped.skeleton[5]).any()


@pytest.mark.parametrize("beside", [False, True])
def test_a_face_video_without_anybody_is_named(pipe, references, motion, capture_models, beside):
    nobody = np.full((5, 64, 64, 3), 128, dtype=np.uint8)
    with pytest.raises(ValueError, match="^`face_video` shows nobody"):
        pipe.prepare(references, num_frames=5, face_video=nobody, motion=motion if beside else None).draw()


def test_who_drives_the_body_is_not_looked_for_in_the_face_video(pipe, references, media):
    body = np.stack([np.asarray(PIL.Image.open(media / "reference_scholar.jpeg").convert("RGB"))] * 2)
    face = np.stack(list(VideoReader(media / "carphone.mp4", num_frames=2)))
    # a click that lies outside the smaller picture of the face video
    guidance = pipe.prepare(references, video=body, face_video=face, person=(500, 450)).draw()
    assert len(guidance) == 2 and guidance.face is not None
    with pytest.raises(ValueError, match=r"`person` is the point \(500, 450\)"):
        pipe.prepare(references, face_video=face, person=(500, 450)).draw()


def test_a_single_frame(pipe, references, motion):
    guidance = pipe.prepare(references, motion=motion, num_frames=1).draw()
    both = pipe.prepare(references, motion=motion, num_frames=2).draw()
    np.testing.assert_array_equal(guidance.skeleton, both.skeleton[:1])
    direct = generate(pipe, references, motion=motion, num_frames=1)
    assert direct.shape[2] == 1
    torch.testing.assert_close(direct, generate(pipe, references, guidance=guidance))


def test_a_looped_driver_turns_back(pipe, references, motion):
    guidance = pipe.prepare(references, motion=motion, num_frames=20, extend="loop").draw()
    for forth, back in ((12, 14), (11, 15), (8, 18)):
        np.testing.assert_array_equal(guidance.skeleton[forth], guidance.skeleton[back])
        np.testing.assert_array_equal(guidance.face[forth], guidance.face[back])


def test_pseudo_references_change_the_video(pipe, references, motion):
    plain = generate(pipe, references, motion=motion, num_frames=5)
    more = generate(pipe, references, motion=motion, num_frames=5, num_pseudo_references=2)
    assert plain.shape == more.shape and (plain - more).abs().max() > 1e-4


def test_pseudo_references_are_made_with_the_arguments_of_the_call(pipe, references, motion):
    transformer = DreamActorTransformer3DModel(**{**pipe.transformer.config, "text_dim": 8, "text_context_length": 4})
    text_pipe = DreamActorPipeline(**{**pipe.components, "transformer": transformer}, segment_frames=33)
    text_pipe.set_progress_bar_config(disable=True)
    calls = []
    transformer.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    prompt_embeds, negative_prompt_embeds = torch.randn(2, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    generate(
        text_pipe,
        references,
        motion=motion,
        num_frames=5,
        segment_frames=17,
        guidance_scale=2.0,
        reference_guidance_scale=1.5,
        face_scale=0.5,
        pose_scale=0.0,
        num_pseudo_references=1,
        num_videos_per_prompt=2,
        prompt_embeds=prompt_embeds,
        negative_prompt_embeds=negative_prompt_embeds,
        attention_kwargs={"scale": 0.5},
    )
    # the turn, of the repository's 33 frames, is made in two segments, each with three branches, by itself
    first_stage = [call for call in calls if call["hidden_states"].shape[0] == 1]
    assert len(first_stage) == 6 and all(call["hidden_states"].shape[2] == 5 for call in first_stage)
    assert all(call["face_scale"] == 0.5 and call["attention_kwargs"] == {"scale": 0.5} for call in first_stage)
    assert not first_stage[0]["pose_hidden_states"].any()
    for call, text in zip(first_stage, [prompt_embeds, prompt_embeds, negative_prompt_embeds] * 2):
        assert torch.equal(call["encoder_hidden_states"], text[:1])


@pytest.mark.parametrize("segment_frames", [9, 17])
def test_what_is_interrupted_makes_no_references(pipe, references, motion, segment_frames):
    calls = []

    def stop(module, args, kwargs):
        calls.append(kwargs["hidden_states"].shape)
        pipe._interrupt = True

    handle = pipe.transformer.register_forward_pre_hook(stop, with_kwargs=True)
    arguments = {"num_pseudo_references": 2, "segment_frames": segment_frames, "num_inference_steps": 4}
    generate(pipe, references, motion=motion, num_frames=5, **arguments)
    handle.remove()
    assert len(calls) == 1


def test_an_interrupt_while_the_driver_is_prepared_counts(pipe, references, motion, monkeypatch):
    prepare_references, calls = pipe.prepare_references, []

    def interrupted(*args, **kwargs):
        pipe._interrupt = True
        return prepare_references(*args, **kwargs)

    monkeypatch.setattr(pipe, "prepare_references", interrupted)
    handle = pipe.transformer.register_forward_pre_hook(lambda module, args: calls.append(1))
    generate(pipe, references, motion=motion, num_frames=14, num_pseudo_references=1)
    handle.remove()
    assert not calls


def test_pseudo_references_need_a_head(pipe, references, motion):
    headless = dataclasses.replace(references[0], motion=dataclasses.replace(references[0].motion, head=None))
    calls = []
    handle = pipe.transformer.register_forward_pre_hook(lambda module, args: calls.append(1))
    with pytest.raises(ValueError, match="`num_pseudo_references` is 1, but needs the pose of body and head"):
        generate(pipe, headless, motion=motion, num_frames=5, num_pseudo_references=1)
    handle.remove()
    assert not calls


def test_a_driver_of_a_face_that_is_not_driven_is_an_error(pipe, references, motion):
    face_video = np.zeros((5, 64, 64, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="`face_video` drives the face, but `drive` is"):
        generate(pipe, references, motion=motion, face_video=face_video, drive=("head", "body"))


def test_motion_at_another_rate(pipe, references, motion):
    assert len(pipe.prepare(references, motion=motion, fps=12).draw()) == 7
    with pytest.raises(ValueError, match=r"`fps` is 0, but has to be a positive number"):
        pipe.prepare(references, motion=motion, fps=0).draw()


def test_memory_of_a_stream_does_not_grow_with_the_length(pipe, references, motion):
    """What is alive between segments, counted over all tensors: the same after few and after many segments."""
    import gc

    def alive() -> int:
        gc.collect()
        tensors = [thing for thing in gc.get_objects() if torch.is_tensor(thing)]
        return sum(tensor.element_size() * tensor.nelement() for tensor in tensors)

    sizes = []
    inputs = pipe.prepare(references, motion=motion, num_frames=60, extend="loop")
    segments = pipe.stream(inputs, **{**SIZE, "output_type": "pt"})
    for index, segment in enumerate(segments):
        del segment
        if index in (1, 6):
            sizes.append(alive())
    assert index == 7
    assert sizes[1] <= sizes[0] * 1.02


def test_nan_in_a_motion_is_refused(pipe, references, motion):
    keypoints = motion.body.keypoints.copy()
    keypoints[3, 5] = np.nan
    broken = dataclasses.replace(motion, body=dataclasses.replace(motion.body, keypoints=keypoints))
    with pytest.raises(ValueError, match="finite"):
        generate(pipe, references, motion=broken)


def test_real_picture_and_video(pipe, media):
    result = pipe(
        media / "reference_scholar.jpeg",
        media / "carphone.mp4",
        num_frames=9,
        height=64,
        width=96,
        **{**SIZE, "output_type": "pil"},
    )
    assert len(result.frames[0]) == 9 and result.frames[0][0].size == (96, 64)
    assert result.fps == pytest.approx(30000 / 1001)


def test_a_picture_without_a_person(pipe, media, motion):
    empty = PIL.Image.new("RGB", (64, 64), "gray")
    with pytest.raises(ValueError, match="No person was found in `image`.*retarget=False"):
        generate(pipe, empty, motion=motion)
    latents = generate(pipe, empty, motion=motion, retarget=False, num_frames=5)
    assert latents.shape[2] == 2


def test_a_reference_without_a_pose(pipe, picture, motion):
    unknown = pipe.motion_processor.reference(picture, None, 64, 64)
    face_video = np.zeros((5, 64, 64, 3), dtype=np.uint8)
    guidance = pipe.prepare(unknown, motion=motion, retarget=False).draw()
    for driver in (
        {"motion": motion},
        {"audio": np.zeros(16000, dtype=np.float32), "retarget": False},
        {"face_video": face_video},
    ):
        with pytest.raises(ValueError, match="`image` is a reference without a known pose.*`reference_motion`"):
            generate(pipe, unknown, **driver)
    with pytest.raises(ValueError, match="`num_pseudo_references` is 1, but needs the pose.*`reference_motion`"):
        generate(pipe, unknown, guidance=guidance, num_pseudo_references=1)
    with pytest.raises(ValueError, match="`image` is a reference without a known pose"):
        pipe.prepare(unknown, motion=motion).draw()


def test_a_video_without_a_person(pipe, media, references):
    gray = [PIL.Image.new("RGB", (64, 64), "gray")] * 3
    with pytest.raises(ValueError, match="shows no person"):
        generate(pipe, references, video=gray)
    # that there are too few frames is said before anybody is looked for in them
    with pytest.raises(ValueError, match="`num_frames` is 5, but the driver has 3"):
        generate(pipe, references, video=gray, num_frames=5)
    for fit, message in (
        ({"align": "center"}, "`align` must be one of"),
        ({"bone_scale": {"arms": 1.2}}, "`bone_scale` has the part 'arms'"),
        ({"align": "none", "retarget": False}, "`align` is 'none', but .* `retarget`"),
        ({"bone_scale": {"arm": 1.2}, "retarget": False}, "`bone_scale` is .* `retarget`"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(pipe, references, video=gray, **fit)


def test_a_path_is_no_motion(pipe, references):
    for name, kind in (("motion", "MotionSequence"), ("guidance", "MotionGuidance")):
        with pytest.raises(ValueError, match=f"`{name}` is a str, but has to be a {kind}"):
            generate(pipe, references, **{name: "walk.safetensors"})


def test_one_of_two_people_in_the_picture(pipe, media):
    person = PIL.Image.open(media / "reference_scholar.jpeg").crop((180, 0, 820, 720))
    both = PIL.Image.new("RGB", (1280, 720))
    both.paste(person, (0, 0))
    both.paste(person.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT), (640, 0))
    for click, side in (((320, 360), "left"), ((960, 360), "right")):
        reference = pipe.prepare_references(both, 96, 160, reference_person=click)[0]
        neck = reference.motion.body.keypoints[0, 1, 0]
        assert (neck < 80) == (side == "left")
