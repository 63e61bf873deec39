"""`WanAnimatePipeline` and the `DreamActorPipeline` converted from its repository give the same frames."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from diffusers_dreamactor import (
    AnimationInputs,
    DreamActorPipeline,
    DreamActorWanAnimatePipeline,
    MotionGuidance,
    MotionSequence,
)
from diffusers_dreamactor.cli import main
from diffusers_dreamactor.media import VideoReader, save_video

from ..motion.stick_figure import StickFigure


USUAL_PROMPT = "视频中的人在做动作"
HEIGHT, WIDTH = 32, 48
SEGMENT_FRAMES = 9
FACE_SIZE = 16


def pictures(count: int, height: int, width: int, seed: int) -> list[Image.Image]:
    """Coloured blobs that move, so that every frame and every region of it is different."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    phase, speed = rng.uniform(0, 6, (3, 2)), rng.uniform(0.3, 0.8, 3)
    frames = []
    for i in range(count):
        waves = [np.sin(7 * x + p + s * i) * np.cos(5 * y + q - s * i) for (p, q), s in zip(phase, speed)]
        frames.append(Image.fromarray((np.stack(waves, axis=-1) * 110 + 128).astype(np.uint8)))
    return frames


def masks(count: int, height: int, width: int) -> list[Image.Image]:
    """A white box that moves on black: where the new person goes."""
    frames = []
    for i in range(count):
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[4 + i % 5 : 24, 8 : 30 + i % 7] = 255
        frames.append(Image.fromarray(mask))
    return frames


@pytest.fixture(scope="module")
def dreamactor(converted) -> DreamActorPipeline:
    pipeline = DreamActorPipeline.from_pretrained(converted)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def compare(wan_animate, dreamactor):
    """Runs both pipelines on the same pictures; gives the frames `(B, F, 3, H, W)` in [0, 1] of source and ours."""
    wan_animate.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    text_dim = wan_animate.transformer.config.text_dim
    prompt_embeds = torch.randn(1, 512, text_dim, generator=generator)
    negative_prompt_embeds = torch.randn(1, 512, text_dim, generator=generator)
    reference = pictures(1, HEIGHT, WIDTH, seed=1)[0]

    def compare(
        num_frames: int,
        guidance_scale: float,
        mode: str = "animate",
        steps: int = 3,
        pipeline: DreamActorPipeline = dreamactor,
        source_prompts: dict | None = None,
        our_prompts: dict | None = None,
        **shared,
    ):
        skeleton, face = (
            pictures(num_frames, HEIGHT, WIDTH, seed=2),
            pictures(num_frames, FACE_SIZE, FACE_SIZE, seed=3),
        )
        scene = {}
        if mode == "replace":
            background = pictures(num_frames, HEIGHT, WIDTH, seed=4)
            scene = {"background_video": background, "mask_video": masks(num_frames, HEIGHT, WIDTH)}
        shared = {
            "image": reference,
            "height": HEIGHT,
            "width": WIDTH,
            "guidance_scale": guidance_scale,
            "num_inference_steps": steps,
            "mode": mode,
            "output_type": "pt",
            **scene,
            **shared,
        }
        embeds = {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}
        expected = wan_animate(
            pose_video=skeleton,
            face_video=face,
            segment_frame_length=SEGMENT_FRAMES,
            generator=torch.Generator().manual_seed(0),
            **shared,
            **(embeds if source_prompts is None else source_prompts),
        ).frames
        actual = pipeline(
            guidance=MotionGuidance.from_frames(skeleton=skeleton, face=face, fps=30.0),
            segment_frames=SEGMENT_FRAMES,
            generator=torch.Generator().manual_seed(0),
            **shared,
            **(embeds if our_prompts is None else our_prompts),
        ).frames
        return expected, actual

    return compare


def assert_same_frames(expected: torch.Tensor, actual: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert expected.std() > 0.01  # a video of one colour would agree with anything
    assert (actual - expected).abs().max().item() <= 1e-4


class TestSameFrames:
    # 17 frames are two whole segments (9 + 8); of 14, the source reflects the end and cuts the surplus off.
    @pytest.mark.parametrize("num_frames", [17, 14])
    @pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
    @pytest.mark.parametrize("mode", ["animate", "replace"])
    def test_two_segments(self, compare, mode, guidance_scale, num_frames):
        assert_same_frames(*compare(num_frames, guidance_scale, mode))

    @pytest.mark.parametrize("num_frames", [2, 5, 9])
    def test_one_segment(self, compare, num_frames):
        assert_same_frames(*compare(num_frames, 1.0))

    def test_three_segments(self, compare):
        assert_same_frames(*compare(24, 3.0, "replace", steps=2))

    def test_stored_prompt_stands_for_the_usual_one(self, compare):
        usual = {"prompt": USUAL_PROMPT}
        expected, actual = compare(9, 3.0, source_prompts=usual, our_prompts={})
        assert_same_frames(expected, actual)
        other, _ = compare(9, 3.0, source_prompts={"prompt": "a person"})
        assert (other - expected).abs().max() > 1e-3

    def test_own_prompt_with_the_text_encoder_kept(self, compare, wan_animate_source, tmp_path):
        from diffusers_dreamactor.conversion.convert_wan_animate import convert

        convert(str(wan_animate_source), tmp_path / "with-text", keep_text_encoder=True)
        pipeline = DreamActorPipeline.from_pretrained(tmp_path / "with-text")
        prompts = {"prompt": "a person", "negative_prompt": "person  a &amp; "}
        assert_same_frames(*compare(9, 3.0, pipeline=pipeline, source_prompts=prompts, our_prompts=prompts))

    def test_several_videos(self, compare):
        usual = {"prompt": USUAL_PROMPT}
        expected, actual = compare(14, 1.0, source_prompts=usual, our_prompts={}, num_videos_per_prompt=2)
        assert len(expected) == 2 and (expected[0] - expected[1]).abs().max() > 1e-3
        assert_same_frames(expected, actual)

    def test_given_noise(self, compare):
        latents = torch.randn(1, 16, 4, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(7))
        assert_same_frames(*compare(9, 1.0, latents=latents))

    @pytest.mark.parametrize("size", [(32, 32), (50, 41), (96, 144)])
    def test_reference_of_another_size(self, compare, size):
        """The source shows it whole, with black bars; its image encoder sees it without."""
        picture = pictures(1, *size, seed=6)[0]
        assert_same_frames(*compare(5, 1.0, image=picture))


class TestEveryWayToCall:
    """A path, prepared inputs and the shell give the source's frames of the same guidance: its image encoder sees the
    whole picture, whatever the video shows of it."""

    @pytest.fixture(scope="class")
    def drawn(self, wan_animate, dreamactor, tmp_path_factory):
        """Paths of a wide picture, the pose in it and a motion; the inputs; and the source's frames for their guidance."""
        folder = tmp_path_factory.mktemp("wide")
        picture = pictures(1, 64, 160, seed=6)[0]
        picture.save(folder / "wide.png")
        figure = StickFigure()
        pose = figure.film("stand", num_frames=1, framing="half_body", width=160, height=64, cut=False)
        motion = figure.film("wave", num_frames=14, framing="half_body", width=96, height=96, cut=False)
        crops = np.random.default_rng(0).integers(0, 256, (14, 24, 24, 3), dtype=np.uint8)
        motion = dataclasses.replace(motion, face=dataclasses.replace(motion.face, crops=crops))
        pose.save(folder / "pose.safetensors")
        motion.save(folder / "motion.safetensors")
        motion = MotionSequence.load(folder / "motion.safetensors")
        inputs = dreamactor.prepare(
            folder / "wide.png", motion=motion, reference_motion=pose, height=HEIGHT, width=WIDTH
        )
        guidance = inputs.draw()
        skeleton, face = (
            [Image.fromarray(frame.transpose(1, 2, 0)) for frame in maps]
            for maps in (guidance.skeleton, guidance.face)
        )
        expected = wan_animate(
            image=picture,
            pose_video=skeleton,
            face_video=face,
            prompt=USUAL_PROMPT,
            height=HEIGHT,
            width=WIDTH,
            segment_frame_length=SEGMENT_FRAMES,
            num_inference_steps=2,
            output_type="pt",
            generator=torch.Generator().manual_seed(0),
        ).frames
        return folder, inputs, expected

    @pytest.fixture
    def sampling(self):
        return {
            "num_inference_steps": 2,
            "segment_frames": SEGMENT_FRAMES,
            "output_type": "pt",
            "generator": torch.Generator().manual_seed(0),
        }

    def test_prepared_inputs(self, dreamactor, drawn, sampling):
        assert_same_frames(drawn[2], dreamactor(drawn[1], **sampling).frames)

    def test_saved_inputs(self, dreamactor, drawn, sampling, tmp_path):
        drawn[1].save(tmp_path / "take.safetensors")
        assert_same_frames(
            drawn[2], dreamactor(AnimationInputs.load(tmp_path / "take.safetensors"), **sampling).frames
        )

    def test_a_path(self, dreamactor, drawn, sampling):
        folder, _, expected = drawn
        pose = MotionSequence.load(folder / "pose.safetensors")
        arguments = {"motion": MotionSequence.load(folder / "motion.safetensors"), "reference_motion": pose}
        result = dreamactor(str(folder / "wide.png"), **arguments, height=HEIGHT, width=WIDTH, **sampling)
        assert_same_frames(expected, result.frames)

    def test_the_shell(self, converted, drawn, tmp_path):
        folder, inputs, expected = drawn
        repository = shutil.copytree(converted, tmp_path / "model")
        index = json.loads((repository / "model_index.json").read_text())
        (repository / "model_index.json").write_text(json.dumps(index | {"segment_frames": SEGMENT_FRAMES}))
        command = ["animate", folder / "wide.png", "--driving", folder / "motion.safetensors"]
        command += ["--reference-motion", folder / "pose.safetensors", "--size", f"{WIDTH}x{HEIGHT}", "--steps", 2]
        command += ["--model", repository, "--device", "cpu", "--output", tmp_path / "out.mp4"]
        assert main([str(word) for word in command]) == 0
        save_video(expected[0].clamp(0, 1), tmp_path / "expected.mp4", inputs.fps)
        made, wanted = (np.stack(list(VideoReader(tmp_path / f"{name}.mp4"))) for name in ("out", "expected"))
        assert made.shape == wanted.shape
        assert np.abs(made.astype(int) - wanted).mean() < 0.5

    def test_the_shell_replaces(self, converted, media, tmp_path, capsys):
        """From nothing but a picture and a video."""
        frames = VideoReader(media / "cartoon_character.mp4").frames(24, 25)
        picture = Image.open(media / "reference_scholar.jpeg").resize((640, 360))
        picture.save(tmp_path / "scholar.png")
        cropped = [Image.fromarray(frame).crop((380, 90, 1100, 720)).resize((480, 420)) for frame in frames]
        save_video(cropped, tmp_path / "driver.mp4", 24)
        command = ["animate", tmp_path / "scholar.png", "--driving", tmp_path / "driver.mp4", "--size", "64x64"]
        command += ["--model", converted, "--device", "cpu", "--output", tmp_path / "out.mp4", "--preview-only"]
        assert main([str(word) for word in [*command, "--replace"]]) == 0
        preview = VideoReader(tmp_path / "out.preview.mp4")
        assert preview.width > 4 * preview.height
        assert main([str(word) for word in [*command, "--mask", tmp_path / "driver.mp4"]]) == 1
        assert "`--background` and `--mask` are for `--replace` only." in capsys.readouterr().err


class TestRepository:
    def test_index_is_what_saving_writes(self, converted, dreamactor, tmp_path):
        dreamactor.save_pretrained(tmp_path / "saved")
        written, saved = (
            json.loads((path / "model_index.json").read_text()) for path in (converted, tmp_path / "saved")
        )
        del saved["_name_or_path"]
        assert written == saved

    def test_diffusers_finds_the_pipeline(self, converted):
        pipeline = DiffusionPipeline.from_pretrained(converted)
        assert type(pipeline) is DreamActorWanAnimatePipeline
        assert type(pipeline.vae).__name__ == "DreamActorVAE" and pipeline.text_encoder is None
        assert type(DreamActorPipeline.from_pretrained(converted)) is DreamActorWanAnimatePipeline
        config = pipeline.config
        assert (config.num_inference_steps, config.guidance_scale, config.segment_frames) == (20, 1.0, 77)

    def test_defaults_are_the_source_s(self, dreamactor):
        """Without arguments: 20 steps, no guidance, segments of 77 frames."""
        skeleton, face = pictures(3, HEIGHT, WIDTH, seed=2), pictures(3, FACE_SIZE, FACE_SIZE, seed=3)
        reference = pictures(1, HEIGHT, WIDTH, seed=1)[0]
        steps = []

        def count(pipeline, step, timestep, callback_kwargs):
            steps.append(callback_kwargs["latents"].shape)
            return callback_kwargs

        dreamactor(
            reference,
            guidance=MotionGuidance.from_frames(skeleton=skeleton, face=face, fps=30.0),
            height=HEIGHT,
            width=WIDTH,
            callback_on_step_end=count,
        )
        assert steps == [(1, 16, 21, HEIGHT // 8, WIDTH // 8)] * 20
        assert not dreamactor.do_classifier_free_guidance
