import numpy as np
from PIL import Image

from diffusers_dreamactor.media import VideoReader
from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture


def test_nothing_is_held_across_a_cut(capture_models, media):
    capture = MediaPipeCapture(capture_models)
    man = [frame[180:980, 900:1540] for frame in VideoReader(media / "drivers" / "two_in_contact.mp4").frames(8, 11)]
    boy = [frame[:, 330:900] for frame in VideoReader(media / "cartoon_character.mp4").frames(90, 93)]
    boy = [np.asarray(Image.fromarray(frame).resize((640, 800))) for frame in boy]
    motion = capture.capture([*man, *boy], fps=15, progress=False)
    after = list(capture.segment([*man, *boy], motion, progress=False))[3:]
    for mask, alone in zip(after, capture.segment(boy, motion[3:], progress=False), strict=True):
        np.testing.assert_array_equal(mask, alone)
