import numpy as np
import pytest

from diffusers_dreamactor.processors.face_motion import FaceMotionProcessor


def boxes_at(center: np.ndarray, side) -> np.ndarray:
    half = np.broadcast_to(np.asarray(side, dtype=float) / 2, len(center))[:, None]
    return np.concatenate([center - half, center + half], axis=1)


def gradient(height: int, width: int) -> np.ndarray:
    """Red grows with x, green with y: a crop's pixels tell where they come from."""
    frame = np.zeros((height, width, 3), dtype=np.uint8)
    frame[..., 0] = np.arange(width)[None, :]
    frame[..., 1] = np.arange(height)[:, None]
    return frame


def test_crop_is_the_scaled_and_shifted_square():
    processor = FaceMotionProcessor(size=32, scale=1.5, shift=0.1)
    crop = processor.crop(gradient(240, 240), np.array([80.0, 100.0, 120.0, 140.0])).astype(float)
    assert crop.shape == (3, 32, 32)
    # Side 60 around (100, 120 - 0.1 * 40): pixel i covers 60 / 32 of the frame's pixels.
    expected = 100 - 30 + (np.arange(32) + 0.5) * 60 / 32 - 0.5
    np.testing.assert_allclose(crop[0], np.tile(expected, (32, 1)), atol=1)
    np.testing.assert_allclose(crop[1], np.tile(expected + 16, (32, 1)).T, atol=1)


def test_boxes_that_leave_the_picture_repeat_its_edge():
    frame = gradient(100, 100) + 50
    processor = FaceMotionProcessor(size=40, scale=1.0)
    crop = processor.crop(frame, np.array([-20.0, -20.0, 20.0, 20.0]))
    np.testing.assert_array_equal(crop[:, :16, :16], 50)  # the corner pixel; the filter's reach is left out
    assert crop[0, 10, -1] == pytest.approx(69, abs=1)
    outside = processor.crop(frame, np.array([500.0, 500.0, 540.0, 540.0]))
    np.testing.assert_array_equal(outside[:2], 149)


def test_enlarging_and_shrinking_are_smooth():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (512, 512, 3), dtype=np.uint8)
    shrunk = FaceMotionProcessor(size=32, scale=1).crop(noise, np.array([0.0, 0, 512, 512]))
    assert shrunk.std() < 12  # averaged, not sampled: a single pixel of the noise deviates by 74
    step = np.zeros((16, 16, 3), dtype=np.uint8)
    step[:, 8:] = 200
    enlarged = FaceMotionProcessor(size=128, scale=1).crop(step, np.array([0.0, 0, 16, 16]))[0, 64].astype(int)
    assert np.abs(np.diff(enlarged)).max() < 60  # no block edges


def test_lost_face_holds_the_last_crop_with_decaying_weight():
    frames = [np.full((50, 50, 3), 10 * index, dtype=np.uint8) for index in range(8)]
    confidence = np.array([0.1, 0.9, 0.8, 0.2, 0.0, 0.0, 0.7, 0.3])
    boxes = boxes_at(np.full((8, 2), 25.0), 20)
    crops, weight = FaceMotionProcessor(size=8, hold_decay=0.5)(iter(frames), boxes, confidence)
    assert crops[:, 0, 4, 4].tolist() == [0, 10, 20, 20, 20, 20, 60, 60]
    assert weight.dtype == np.float32
    np.testing.assert_allclose(weight, [0, 1, 1, 0.5, 0.25, 0.125, 1, 0.5])


def test_the_start_waits_where_the_face_appears():
    frames = [gradient(100, 100) + 10 * index for index in range(4)]
    boxes = np.array([[0, 0, 10, 10], [0, 0, 90, 90], [40, 50, 60, 70], [40, 50, 60, 70]], dtype=float)
    processor = FaceMotionProcessor(size=20, scale=1)
    crops, weight = processor(frames, boxes, np.array([0, 0.1, 0.9, 0.9]))
    for index, crop in enumerate(crops):
        np.testing.assert_array_equal(crop, processor.crop(frames[index], boxes[2]))
    np.testing.assert_array_equal(weight, [0, 0, 1, 1])


def test_frames_are_read_one_at_a_time():
    alive = []

    def frames():
        for index in range(6):
            alive.append(index)
            yield np.full((40, 40, 3), index, dtype=np.uint8)

    crops = FaceMotionProcessor(size=8).iter_crops(frames(), boxes_at(np.full((6, 2), 20.0), 10), np.ones(6))
    for index, crop in enumerate(crops):
        assert crop[0, 4, 4] == index and alive[-1] == index
    assert index == 5


def test_too_few_frames():
    boxes = boxes_at(np.full((3, 2), 20.0), 10)
    with pytest.raises(ValueError, match="`frames` ended after 2 frames, but the motion has 3"):
        FaceMotionProcessor(size=8)([np.zeros((40, 40, 3), np.uint8)] * 2, boxes, np.ones(3))


@pytest.mark.parametrize(
    ("arguments", "name"), [({"size": 0}, "size"), ({"scale": 0}, "scale"), ({"hold_decay": 2}, "hold_decay")]
)  # fmt: skip
def test_bad_arguments(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}` is"):
        FaceMotionProcessor(**arguments)


def test_config_round_trip(tmp_path):
    FaceMotionProcessor(size=64, shift=0.05, hold_decay=0.8).save_pretrained(tmp_path)
    config = FaceMotionProcessor.from_pretrained(tmp_path).config
    assert (config.size, config.scale, config.shift, config.hold_decay) == (64, 1.15, 0.05, 0.8)
