import numpy as np
import pytest

from diffusers_dreamactor.media import VideoReader, save_video
from diffusers_dreamactor.processors.body_skeleton import BodySkeletonProcessor
from diffusers_dreamactor.processors.drawn_skeleton import looks_like_drawn_skeleton


@pytest.mark.parametrize("style, size", [("wan", (480, 832)), ("wan", (832, 480)), ("dreamactor", (320, 480))])
def test_drawn_skeletons_are_recognised_also_when_compressed(tmp_path, stick_figure, style, size):
    drawn = BodySkeletonProcessor(style=style)(stick_figure(6, *size, turn=90), *size).transpose(0, 2, 3, 1)
    assert looks_like_drawn_skeleton(drawn)
    save_video(drawn, tmp_path / "skeleton.mp4", 24)
    assert looks_like_drawn_skeleton(VideoReader(tmp_path / "skeleton.mp4"))
    # A person who leaves the picture for a while.
    assert looks_like_drawn_skeleton([np.zeros_like(drawn[0])] * 5 + list(drawn))


def test_what_is_no_drawn_skeleton():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:120, :160]
    sunset = np.stack([x * 255 / 160, y, 120 - y], axis=-1).astype(np.uint8)
    dark = (rng.normal(12, 6, (120, 160, 3))).clip(0, 255).astype(np.uint8)
    # A person in a spotlight before black: skin, a red shirt, blue trousers, white shoes.
    person = np.zeros((120, 160, 3), dtype=np.uint8)
    person[20:40, 70:90], person[40:75, 62:98], person[75:105, 68:92] = (205, 160, 135), (180, 60, 50), (50, 60, 120)
    person[105:110, 66:94] = 235
    # Letters, a lamp and a neon sign.
    letters = np.zeros_like(person)
    letters[50:60, 20:140:4] = 255
    neon = np.zeros_like(person)
    neon[40:80, 30:35], neon[40:45, 30:90] = (255, 0, 200), (0, 255, 255)
    for frame in (sunset, dark, person, letters, neon, np.zeros_like(person)):
        assert not looks_like_drawn_skeleton([frame] * 3)


def test_real_videos_are_none(media):
    for name in ("carphone.mp4", "cartoon_character.mp4"):
        reader = VideoReader(media / name)
        assert not looks_like_drawn_skeleton(reader.frames(0, 4))
