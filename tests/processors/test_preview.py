import numpy as np
import pytest
from PIL import Image

from diffusers_dreamactor.frame_sources import frame_index
from diffusers_dreamactor.media import VideoReader
from diffusers_dreamactor.processors.guidance import MotionGuidance


@pytest.fixture
def guidance():
    skeleton = np.zeros((5, 3, 96, 64), dtype=np.uint8)
    skeleton[:, 0, 20:40, 30:34] = 255
    sphere = np.zeros_like(skeleton)
    sphere[:, 1, 10:20, 10:20] = 200
    face = np.stack([np.full((3, 16, 16), 50 * index, dtype=np.uint8) for index in range(5)])
    return MotionGuidance(skeleton, sphere, face, fps=12.5)


def drivers(count: int) -> list[np.ndarray]:
    return [np.full((50, 80, 3), 40 * index, dtype=np.uint8) for index in range(count)]


def test_panels_side_by_side(guidance):
    reference = Image.new("RGB", (128, 192), (200, 100, 50))
    frames = guidance.preview(driver=drivers(5), reference=reference).frames
    assert len(frames) == 5 and len({frame.size for frame in frames}) == 1
    driver, skeleton, face = round(80 * 192 / 50), 128, 192
    width = driver + 4 + skeleton + 4 + skeleton + 4 + face
    assert frames[0].size == (width + width % 2, 192)
    picture = np.asarray(frames[3])
    assert picture[100, 150].tolist() == [120, 120, 120]  # the driver's fourth frame
    left = driver + 4
    np.testing.assert_allclose(picture[60, left + 64], [255, 0, 0], atol=12)  # the skeleton over the reference ...
    np.testing.assert_allclose(picture[150, left + 20], [70, 35, 17], atol=2)  # ... which is dimmed
    left += skeleton + 4
    np.testing.assert_allclose(picture[30, left + 30], [0, 200, 0], atol=12)
    np.testing.assert_allclose(picture[100, -10], [150, 150, 150], atol=1)  # the face crop


@pytest.mark.parametrize("extend, shown", [("hold", [0, 1, 2, 2, 2]), ("loop", [0, 1, 2, 1, 0])])
def test_a_driver_that_is_extended(guidance, tmp_path, extend, shown):
    preview = guidance.preview(driver=drivers(3), index=frame_index(3, len(guidance), extend))
    greys = [np.asarray(frame)[100, 150].tolist() for frame in preview.frames]
    assert greys == [[40 * index] * 3 for index in shown]
    sheet = preview.contact_sheet(2)  # the first and the last frame
    width, height = preview.frames[0].size
    places = [(150, 100), (150 + width + 4, 100) if sheet.width > width else (150, 100 + height + 4)]
    assert [sheet.getpixel(place)[0] for place in places] == [40 * shown[0], 40 * shown[-1]]


def test_without_driver_reference_sphere_and_face(guidance):
    only = MotionGuidance(guidance.skeleton)
    (frame, *others) = only.preview().frames
    assert frame.size == (128, 192) and len(others) == 4
    assert np.asarray(frame)[150, 20].tolist() == [0, 0, 0]


def test_saving_as_a_video(guidance, tmp_path):
    guidance.preview(driver=drivers(5)).save(tmp_path / "preview.mp4")
    video = VideoReader(tmp_path / "preview.mp4")
    assert len(video) == 5 and video.fps == 12.5
    frames = guidance.preview(driver=drivers(5)).frames
    assert (video.width, video.height) == frames[0].size
    for seen, drawn in zip(video, frames):
        assert np.abs(seen.astype(int) - np.asarray(drawn)).mean() < 6


def test_saving_as_an_animation_and_as_a_contact_sheet(guidance, tmp_path):
    preview = guidance.preview()
    preview.save(tmp_path / "preview.gif")
    with Image.open(tmp_path / "preview.gif") as animation:
        assert animation.n_frames == 5 and animation.info["duration"] == 80
    preview.save(tmp_path / "new" / "preview.png")
    with Image.open(tmp_path / "new" / "preview.png") as sheet:
        width, height = preview.frames[0].size
        assert sheet.width % (width + 4) == width and sheet.height % (height + 4) == height
        panels = (sheet.width + 4) // (width + 4) * ((sheet.height + 4) // (height + 4))
        assert panels >= 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "preview.gif"]


def test_errors(guidance, tmp_path):
    with pytest.raises(ValueError, match="`driver` has 3 frames, but the guidance has 5"):
        guidance.preview(driver=drivers(3))
    with pytest.raises(ValueError, match="`index` has 3 frames, but the guidance has 5"):
        guidance.preview(driver=drivers(3), index=np.arange(3))
    with pytest.raises(ValueError, match="`index` spans 0 to 4, but the driver has 3 frames"):
        guidance.preview(driver=drivers(3), index=np.arange(5))
    with pytest.raises(ValueError, match="`path` must end in one of .*, but is 'preview.txt'"):
        guidance.preview().save(tmp_path / "preview.txt")
    assert not list(tmp_path.iterdir())


def test_without_a_reference_the_drawing_lies_over_the_dimmed_driver(guidance):
    (picture,) = guidance[4:5].preview(driver=drivers(5)[4:]).frames
    left = round(80 * 192 / 50) + 4
    over = np.asarray(picture)
    np.testing.assert_allclose(over[60, left + 64], [255, 0, 0], atol=12)
    np.testing.assert_allclose(over[150, left + 20], 3 * [0.35 * 160], atol=2)
