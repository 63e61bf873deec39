"""The bundled talking face. MediaPipe's part needs its models (`DREAMACTOR_CAPTURE_MODELS`)."""

import os

import numpy as np
import pytest
from safetensors import safe_open

from diffusers_dreamactor.checkpoints import bundled_speech
from diffusers_dreamactor.media import load_audio
from diffusers_dreamactor.motion.idle import idle_head_rotation
from diffusers_dreamactor.motion.skeleton import ARKIT_BLENDSHAPES
from diffusers_dreamactor.talking_face import FOLDER, TalkingFace, iterate_speech_actions, speak


def actions(**values) -> np.ndarray:
    array = np.zeros(len(ARKIT_BLENDSHAPES), dtype=np.float32)
    for name, value in values.items():
        array[ARKIT_BLENDSHAPES.index(name)] = value
    return array


@pytest.fixture(scope="module")
def face() -> TalkingFace:
    return TalkingFace()


def test_the_geometry_is_small_and_free():
    with safe_open(FOLDER / "face.safetensors", framework="np") as file:
        assert file.metadata()["license"] == "CC0-1.0"
    assert (FOLDER / "face.safetensors").stat().st_size < 1_000_000
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 5_000_000


@pytest.mark.parametrize(
    ("action", "top", "bottom"),
    [("jawOpen", 0.5, 0.95), ("eyeBlinkLeft", 0.3, 0.55), ("browInnerUp", 0.2, 0.5), ("mouthPucker", 0.5, 0.85)],
)
def test_an_action_changes_its_part_of_the_picture(face, action, top, bottom):
    neutral, moved = face.draw(actions(), size=128), face.draw(actions(**{action: 1.0}), size=128)
    changed = np.abs(moved.astype(int) - neutral).max(axis=2) > 24
    rows, columns = np.nonzero(changed)
    assert len(rows) > 30
    assert top < rows.mean() / 128 < bottom
    if action == "eyeBlinkLeft":
        # the person's left is on the right of the picture
        assert columns.min() > 64


def test_the_mouth_opens_with_the_jaw(face):
    def dark(jaw):
        picture = face.draw(actions(jawOpen=jaw), size=128)[64:, 32:96].astype(int)
        # the mouth's inside, tongue and teeth lie where skin and lips were
        return np.abs(picture - rest).max(axis=2).sum()

    rest = face.draw(actions(), size=128)[64:, 32:96].astype(int)
    openings = [dark(jaw) for jaw in (0.0, 0.2, 0.4, 0.6, 0.8)]
    assert openings[0] == 0 and all(np.diff(openings) > 0)


def test_the_head_turns_and_the_shoulders_stay(face):
    angle = np.deg2rad(12)
    # towards image right, as `HeadTrack.rotation`: a negative turn about y
    rotation = np.array([[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]])
    still, turned = face.pose(actions()), face.pose(actions(), rotation)
    nose = still[:, 2].argmin()
    assert turned[nose, 0] > 0.01
    low = still[:, 1] > -0.48
    assert (turned - still)[low].abs().max() < 1e-6


def test_pictures_have_the_size_that_was_asked_for(face):
    for size in (48, 130):
        picture = face.draw(actions(), size=size)
        assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
    with pytest.raises(ValueError, match="`size` must be from 16 to 4096 pixels, but is 8"):
        face.draw(actions(), size=8)
    with pytest.raises(ValueError, match=r"`actions` has shape \(3,\), but \(52,\)"):
        face.draw(np.zeros(3))
    with pytest.raises(FileNotFoundError, match="`path` names no file"):
        TalkingFace("nowhere.safetensors")


def test_speech_becomes_frames_that_blink_and_sway():
    frames = list(speak(bundled_speech(), fps=5.0, size=64))
    assert len(frames) == int(5 * len(load_audio(bundled_speech())) / 16000)
    again, other, still = (
        np.stack(list(speak(bundled_speech(), 5.0, 64, num_frames=6, **arguments)))
        for arguments in ({}, {"seed": 1}, {"idle": False})
    )
    np.testing.assert_array_equal(again, np.stack(frames[:6]))
    assert not np.array_equal(again, other)
    # without idle motion, the forehead does not move
    assert np.ptp(still[:, :16].astype(int), axis=0).max() <= 1 and np.ptp(again[:, :16].astype(int), axis=0).max() > 9
    blinks = np.concatenate(list(iterate_speech_actions(bundled_speech(), 25.0, num_frames=200)))
    column = ARKIT_BLENDSHAPES.index("eyeBlinkLeft")
    assert blinks[:, column].max() > 0.9
    calm = np.concatenate(list(iterate_speech_actions(bundled_speech(), 25.0, num_frames=200, idle=False)))
    assert calm[:, column].max() < 0.1
    with pytest.raises(ValueError, match="`size` must be"):
        speak(bundled_speech(), size=8)
    with pytest.raises(FileNotFoundError):
        speak("nowhere.wav")


def test_mediapipe_sees_the_mouth_that_is_meant(face):
    pytest.importorskip("mediapipe", reason="the extra `capture` is not installed")
    if "DREAMACTOR_CAPTURE_MODELS" not in os.environ:
        pytest.skip("DREAMACTOR_CAPTURE_MODELS is not set")
    from diffusers_dreamactor import MediaPipeCapture

    meant = np.concatenate(list(iterate_speech_actions(bundled_speech(), 12.0)))
    rotations = idle_head_rotation(np.arange(len(meant)) / 12)
    frames = np.stack([face.draw(action, rotation, size=256) for action, rotation in zip(meant, rotations)])
    capture = MediaPipeCapture.from_pretrained(os.environ["DREAMACTOR_CAPTURE_MODELS"])
    seen = capture.capture(frames, fps=12.0, progress=False).face
    assert seen.confidence.min() > 0
    jaw = ARKIT_BLENDSHAPES.index("jawOpen")
    assert np.corrcoef(seen.blendshapes[:, jaw], meant[:, jaw])[0, 1] > 0.8
