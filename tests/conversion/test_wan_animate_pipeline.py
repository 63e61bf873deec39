"""`WanAnimatePipeline` and the `DreamActorPipeline` converted from its repository give the same frames."""


import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_dreamactor import DreamActorPipeline, MotionGuidance


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
    """Runs both pipelines on the same pictures; gives the frames `(F, 3, H, W)` in [0, 1] of source and ours."""
    wan_animate.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    text_dim = wan_animate.transformer.config.text_dim
    prompt_embeds = torch.randn(1, 512, text_dim, generator=generator)
    negative_prompt_embeds = torch.randn(1, 512, text_dim, generator=generator)
    reference = pictures(1, HEIGHT, WIDTH, seed=1)[0]

    def compare(num_frames: int, guidance_scale: float, mode: str = "animate", seed: int = 0, steps: int = 3, **ours):
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
        }
        expected = wan_animate(
            pose_video=skeleton,
            face_video=face,
            segment_frame_length=SEGMENT_FRAMES,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            generator=torch.Generator().manual_seed(seed),
            **shared,
        ).frames[0]
        embeds = {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}
        arguments = shared | embeds | {"segment_frames": SEGMENT_FRAMES} | ours
        actual = dreamactor(
            guidance=MotionGuidance.from_frames(skeleton=skeleton, face=face, fps=30.0),
            generator=torch.Generator().manual_seed(seed),
            **arguments,
        ).frames[0]
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
