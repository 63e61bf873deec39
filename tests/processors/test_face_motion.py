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


def test_smoothing_removes_jitter_and_keeps_the_movement():
    rng = np.random.default_rng(0)
    time = np.arange(120)
    true = np.stack([300 + 80 * np.sin(2 * np.pi * time / 60), 200 + 0.5 * time], axis=1)
    noisy = boxes_at(true + rng.normal(0, 3, true.shape), 90 * np.exp(rng.normal(0, 0.04, 120)))
    smooth = FaceMotionProcessor().smooth_boxes(noisy, np.ones(120))
    center, side = (smooth[:, :2] + smooth[:, 2:]) / 2, smooth[:, 2] - smooth[:, 0]
    raw_center = (noisy[:, :2] + noisy[:, 2:]) / 2
    assert (center - true).std() < 0.6 * 3
    assert np.diff(center, n=2, axis=0).std() < 0.2 * np.diff(raw_center, n=2, axis=0).std()
    assert np.diff(side).std() < 0.35 * np.diff(noisy[:, 2] - noisy[:, 0]).std()
    np.testing.assert_allclose(smooth[:, 2] - smooth[:, 0], smooth[:, 3] - smooth[:, 1], rtol=1e-5)
    # No lag: the correlation with the true path is best without a shift.
    errors = [np.abs(center[3 + lag : 117 + lag, 0] - true[3:117, 0]).mean() for lag in (-1, 0, 1)]
    assert np.argmin(errors) == 1


def test_even_movement_is_not_left_behind_even_at_the_ends():
    time = np.arange(30)
    boxes = boxes_at(np.stack([100 + 4.0 * time, 50 + 0.0 * time], axis=1), 40)
    np.testing.assert_allclose(FaceMotionProcessor().smooth_boxes(boxes, np.ones(30)), boxes, atol=1e-3)


def test_smoothing_starts_anew_at_a_cut_and_weighs_by_confidence():
    boxes = boxes_at(np.array([[100.0, 100]] * 10 + [[500.0, 300]] * 10), np.repeat([60.0, 200.0], 10))
    np.testing.assert_allclose(FaceMotionProcessor().smooth_boxes(boxes, np.ones(20)), boxes, rtol=1e-5)
    boxes = boxes_at(np.full((21, 2), 100.0), 60)
    boxes[10] += 20
    doubtful = np.ones(21)
    doubtful[10] = 0.51
    shift = [FaceMotionProcessor().smooth_boxes(boxes, c)[10, 0] - 70 for c in (np.ones(21), doubtful)]
    assert 0 < shift[1] < 0.7 * shift[0] < 0.3 * 20


def test_padded_crop_keeps_the_face_of_a_fast_nod_in():
    time = np.arange(96)
    true = np.stack([300 + 40 * np.sin(2 * np.pi * time / 24), 200 + 25 * np.sin(2 * np.pi * time / 16)], axis=1)
    boxes = boxes_at(true, 100 + 5 * np.sin(2 * np.pi * time / 30))
    processor = FaceMotionProcessor()
    smooth = processor.smooth_boxes(boxes, np.ones(96))
    for box, tight in zip(smooth, boxes):
        x0, y0, x1, y1 = processor.crop_box(box)
        assert x0 <= tight[0] and y0 <= tight[1] and x1 >= tight[2] and y1 >= tight[3]


def test_lost_face_holds_the_last_crop_with_decaying_weight():
    frames = [np.full((50, 50, 3), 10 * index, dtype=np.uint8) for index in range(8)]
    confidence = np.array([0.1, 0.9, 0.8, 0.2, 0.0, 0.0, 0.7, 0.3])
    boxes = boxes_at(np.full((8, 2), 25.0), 20)
    crops, weight = FaceMotionProcessor(size=8, hold_decay=0.5)(iter(frames), boxes, confidence)
    assert crops[:, 0, 4, 4].tolist() == [0, 10, 20, 20, 20, 20, 60, 60]
    assert weight.dtype == np.float32
    np.testing.assert_allclose(weight, [0, 1, 1, 0.5, 0.25, 0.125, 1, 0.5])


def test_gaps_hold_the_box_and_the_start_waits_where_the_face_appears():
    boxes = np.zeros((6, 4))
    boxes[2] = (10, 10, 30, 30)
    boxes[5] = (200, 200, 240, 240)
    smooth = FaceMotionProcessor().smooth_boxes(boxes, np.array([0, 0, 1, 0, 0, 1.0]))
    np.testing.assert_allclose(smooth[:5], np.tile(boxes[2], (5, 1)), atol=1e-4)
    np.testing.assert_allclose(smooth[5], boxes[5], atol=1e-4)
    nothing = FaceMotionProcessor().smooth_boxes(boxes, np.zeros(6))
    np.testing.assert_allclose(nothing, boxes)
    np.testing.assert_array_equal(FaceMotionProcessor().weights(np.zeros(6)), 0)


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
    ("arguments", "name"), [({"size": 0}, "size"), ({"scale": 0}, "scale"), ({"smoothing": -1}, "smoothing"), ({"hold_decay": 2}, "hold_decay")]
)  # fmt: skip
def test_bad_arguments(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}` is"):
        FaceMotionProcessor(**arguments)


def test_config_round_trip(tmp_path):
    FaceMotionProcessor(size=64, shift=0.05, hold_decay=0.8).save_pretrained(tmp_path)
    config = FaceMotionProcessor.from_pretrained(tmp_path).config
    assert (config.size, config.scale, config.shift, config.hold_decay) == (64, 1.15, 0.05, 0.8)
