"""Guidance drawn from real captures of real pictures: it lies on the person."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusers_dreamactor.media import VideoReader
from diffusers_dreamactor.motion.retarget import resize_motion, retarget
from diffusers_dreamactor.motion.skeleton import JOINT_INDEX
from diffusers_dreamactor.processors.guidance import MotionGuidanceProcessor
from diffusers_dreamactor.processors.head_sphere import HeadSphereProcessor


MODELS = os.environ.get("DREAMACTOR_CAPTURE_MODELS")
MEDIA = Path(MODELS) / ".." / "media" if MODELS else None

pytestmark = pytest.mark.skipif(
    MEDIA is None or not (MEDIA / "carphone.mp4").is_file(),
    reason="needs DREAMACTOR_CAPTURE_MODELS with the landmarker bundles, and the media folder beside it",
)
FRAMES = 12


@pytest.fixture(scope="module")
def capture():
    pytest.importorskip("mediapipe", reason="the capture needs mediapipe")
    from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture

    return MediaPipeCapture.from_pretrained(MODELS)


@pytest.fixture(scope="module")
def driver():
    return list(VideoReader(MEDIA / "carphone.mp4").frames(60, 60 + FRAMES))


@pytest.fixture(scope="module")
def motion(capture, driver):
    return capture.capture(driver, fps=30, progress=False)


def test_guidance_of_a_talking_driver(capture, driver, motion):
    processor = MotionGuidanceProcessor(face_size=256)
    height, width = 576, 704  # four times the driver
    resized = resize_motion(motion, height, width)
    guidance = processor(resized, height, width, driver)
    guidance.check(height, width)
    np.testing.assert_array_equal(guidance.face_weight, 1)
    for index in range(FRAMES):
        nose = resized.body.keypoints[index, JOINT_INDEX["nose"]].astype(int)
        assert guidance.sphere[index, :, nose[1], nose[0]].any()
        assert guidance.skeleton[index, :, nose[1], nose[0]].any()
        decoded = HeadSphereProcessor.decode_orientation(guidance.sphere[index])
        np.testing.assert_allclose(decoded, resized.head.rotation[index], atol=0.02)
    # Brows and chin are in the crops: the capture finds the face, and its box from brows to chin lies within.
    for index in (0, FRAMES - 1):
        found = capture.capture(Image.fromarray(guidance.face[index].transpose(1, 2, 0)), progress=False).face
        x0, y0, x1, y1 = found.boxes[0]
        assert found.confidence[0] >= 0.5
        assert x0 >= -8 and y0 >= -8 and x1 <= 264 and y1 <= 264
        assert x1 - x0 > 0.75 * 256


def test_reference_and_retargeted_guidance(capture, driver, motion):
    processor = MotionGuidanceProcessor(face_size=128, area=416 * 240)
    reference = processor.reference(
        MEDIA / "reference_scholar.jpeg", lambda picture: capture.capture(picture, progress=False)
    )
    assert (reference.height, reference.width) == (240, 416)
    assert reference.scale == "half_body" and reference.image.size == (416, 240)
    assert reference.face_crop.size == (128, 128)
    keypoints = reference.motion.body.keypoints[0]
    head = reference.motion.head
    nose = keypoints[JOINT_INDEX["nose"]]
    assert np.linalg.norm(nose - head.center[0]) < head.radius[0]
    pixels = np.asarray(reference.image).astype(int)
    x, y = nose.astype(int)
    assert pixels[y, x, 0] > pixels[y, x, 2] + 40  # skin, not the sky or the wall behind
    retargeted = retarget(motion, reference.motion, reference.height, reference.width)
    guidance = processor(retargeted, reference.height, reference.width, driver)
    guidance.check(reference.height, reference.width)
    drawn = guidance.sphere[0].any(axis=0)
    assert np.pi * head.radius[0] ** 2 == pytest.approx(drawn.sum(), rel=0.15)
    rows, columns = np.nonzero(drawn)
    assert abs(columns.mean() - head.center[0, 0]) < 0.5 * head.radius[0]
    assert abs(rows.mean() - head.center[0, 1]) < 0.5 * head.radius[0]
