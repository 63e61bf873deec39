"""Where a replaced person goes."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.ndimage import maximum_filter

from diffusers_dreamactor.media import VideoReader
from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture
from diffusers_dreamactor.motion.retarget import retarget
from diffusers_dreamactor.processors.replacement import CellMasks, Silhouette, replacement_masks

from ..motion.stick_figure import StickFigure


SIZE = {"width": 320, "height": 240}
FIGURE = StickFigure()


def film(name: str = "stand", frames: int = 3, figure: StickFigure = FIGURE, **size):
    return figure.film(name, num_frames=frames, framing="full_body", cut=False, **(size or SIZE))


def thick(motion, index: int, radius: float) -> np.ndarray:
    """The figure's bones as lines, and its head as a disc."""
    picture = Image.new("L", (motion.width, motion.height))
    draw = ImageDraw.Draw(picture)
    points = motion.body.keypoints[index].tolist()
    for start, end in (
        (2, 3),
        (3, 4),
        (5, 6),
        (6, 7),
        (8, 9),
        (9, 10),
        (11, 12),
        (12, 13),
        (2, 8),
        (5, 11),
        (2, 5),
        (8, 11),
    ):
        draw.line([*points[start], *points[end]], fill=1, width=round(2 * radius))
    (x, y), head = motion.head.center[index].tolist(), 1.2 * float(motion.head.radius[index])
    draw.ellipse([x - head, y - head, x + head, y + head], fill=1)
    return np.asarray(picture, dtype=np.float32)


def test_a_silhouette_is_as_thick_as_it_was_measured():
    motion = film()
    measured = Silhouette.measure(thick(motion, 0, 5.0), motion[:1])
    forearm = measured.radii[(4, 3)]
    assert forearm == pytest.approx(5.0, abs=2.0)
    drawn = measured.draw(motion, 0)
    assert (drawn & (thick(motion, 0, 3.5) > 0)).sum() >= 0.99 * (thick(motion, 0, 3.5) > 0).sum()
    thicker = Silhouette.measure(thick(motion, 0, 9.0), motion[:1])
    assert thicker.radii[(4, 3)] > 1.5 * forearm


def test_a_silhouette_grows_with_who_comes_nearer():
    motion = film()
    measured = Silhouette.measure(thick(motion, 0, 5.0), motion[:1])
    nearer = replace(motion, body=replace(motion.body, joints=motion.body.joints / [1, 1, 2]))
    middle = np.array([160, 120])
    nearer.body.keypoints = (motion.body.keypoints - middle) * 2 + middle
    nearer.head = replace(
        motion.head, center=(motion.head.center - middle) * 2 + middle, radius=2 * motion.head.radius
    )
    rows = slice(118, 122)
    assert measured.draw(nearer, 0)[rows].sum() == pytest.approx(2 * measured.draw(motion, 0)[rows].sum(), rel=0.1)


def test_masks_hold_the_driver_and_the_reference_and_little_more():
    driver = film("wave", 5, width=640, height=480)
    reference = film(figure=StickFigure(arm=0.45, forearm=0.4), frames=1)
    motion = retarget(driver, reference, 240, 320, align="none")
    silhouette = Silhouette.measure(None, reference)
    outlines = [thick(driver, i, 14.0) for i in range(5)]
    found = replacement_masks(outlines, motion, silhouette, iterations=1, k=5, w_len=20, h_len=40)
    assert isinstance(found, CellMasks) and found.cells.shape == (5, 30, 40)
    for index, frame in enumerate(VideoReader(found)):
        assert frame.shape == (240, 320, 3) and set(np.unique(frame)) == {0, 255}
        marked = frame[..., 0] > 0
        wanted = (outlines[index][::2, ::2] > 0) | silhouette.draw(motion, index)
        assert marked[wanted].mean() > 0.995
        # neighbours in time, the growth, and a block and a cell on each side
        near = np.max([outlines[i][::2, ::2] for i in range(max(index - 1, 0), min(index + 2, 5))], axis=0) > 0
        near = maximum_filter(near | wanted, 2 * (2 + 8 + 8) + 1)
        assert not (marked & ~near).any() and marked.mean() < 0.5


def test_what_does_not_touch_the_person_is_not_marked():
    motion = film()
    mask = thick(motion, 0, 6.0)
    mask[:20, :20] = 1
    found = next(iter(VideoReader(replacement_masks([mask] * 3, motion, Silhouette.measure(None, motion[:1])))))
    assert not found[:20, :20].any()


def test_frames_without_anybody_stay_whole():
    motion = film()
    motion.body.confidence[:] = 0
    motion.head.confidence[:] = 0
    silhouette = Silhouette.measure(None, film(frames=1))
    assert not replacement_masks([np.zeros((240, 320), np.float32)] * 3, motion, silhouette).cells.any()


def test_who_is_not_found_for_a_while_is_held_by_the_figure():
    motion, silhouette = film(), Silhouette.measure(None, film(frames=1))
    found = replacement_masks([None] * 3, motion, silhouette, cell=1, iterations=0, w_len=1000, h_len=1000)
    np.testing.assert_array_equal(found.cells[1], silhouette.draw(motion, 1))


def test_one_block_is_the_whole_box():
    motion = film()
    found = replacement_masks(
        [thick(motion, 0, 5.0)] * 3, motion, Silhouette.measure(None, motion[:1]), cell=1, w_len=1, h_len=1
    ).cells[1]
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    assert found[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


def test_wrong_numbers_are_said():
    motion, silhouette = film(), Silhouette.measure(None, film(frames=1))
    with pytest.raises(ValueError, match="`w_len` is 0, but has to be at least 1"):
        replacement_masks([None] * 3, motion, silhouette, w_len=0)
    with pytest.raises(ValueError, match="`masks` are 2, but `motion` has 3 frames"):
        replacement_masks([None] * 2, motion, silhouette)
    with pytest.raises(ValueError, match="`masks` are more than the 3 frames"):
        replacement_masks([None] * 4, motion, silhouette)


def test_a_real_person_is_cut_out(capture_models, media):
    """All of the boy in the cartoon, and nothing of the bystanders: the face and the jacket, and not the stalls."""
    capture = MediaPipeCapture(capture_models)
    reader = VideoReader(list(VideoReader(media / "cartoon_character.mp4").frames(24, 27)))
    motion = capture.capture(reader, progress=False)
    masks = list(capture.segment(reader, motion, progress=False))
    assert len(masks) == 3
    for index, mask in enumerate(masks):
        assert mask.shape == (720, 1280) and mask.dtype == np.float32
        x, y = motion.head.center[index].round().astype(int)
        radius = int(motion.head.radius[index])
        assert mask[y - radius // 2 : y + radius // 2, x - radius // 3 : x + radius // 3].min() > 0.5
        neck = motion.body.keypoints[index, 1].round().astype(int)
        assert mask[neck[1] + radius, neck[0]] > 0.5
        assert mask[:, : x - 6 * radius].max(initial=0) < 0.5 and mask[:60].max() < 0.5
