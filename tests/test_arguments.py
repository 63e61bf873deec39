"""Numbers, sound and outputs as people give them."""

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusers_dreamactor.arguments import non_negative_number, positive_number, whole_number
from diffusers_dreamactor.media import VideoReader, VideoWriter, check_output, load_audio


NINES = [
    9,
    9.0,
    np.int64(9),
    np.float32(9),
    np.uint8(9),
    np.array(9),
    np.array(9.0),
    torch.tensor(9),
    torch.tensor(9.0),
]


@pytest.mark.parametrize("value", NINES, ids=lambda value: f"{type(value).__name__}-{value}")
def test_whole_numbers_of_every_type(value):
    result = whole_number("num_frames", value)
    assert result == 9 and type(result) is int
    assert positive_number("fps", value) == 9 and type(positive_number("fps", value)) is float
    reader = VideoReader(np.zeros((20, 8, 8, 3), np.uint8), fps=value, num_frames=value)
    assert len(reader) == 9 and reader.rate == 9


@pytest.mark.parametrize("value", [30000 / 1001, np.float32(30000 / 1001), torch.tensor(30000 / 1001), 29.97002997])
def test_rates_of_few_digits_are_those_of_films(value):
    assert VideoReader(np.zeros((2, 8, 8, 3), np.uint8), fps=value).rate == Fraction(30000, 1001)


def test_a_number_beyond_all_floats():
    assert whole_number("num_frames", 10**400) == 10**400
    with pytest.raises(ValueError, match="`audio_start` is -0.5, but has to be a number of at least 0"):
        non_negative_number("audio_start", -0.5)


@pytest.mark.parametrize("value", [0, -5, 2.5, "9", True, None, float("nan"), float("inf"), np.array([9]), [9]])
def test_what_is_no_whole_number_is_named(value):
    with pytest.raises(ValueError, match="^`num_frames` is .* but has to be a positive whole number.$"):
        whole_number("num_frames", value)


@pytest.mark.parametrize("value", [0, -0.5, "9", True, None, float("nan"), float("inf"), np.array([1.0, 2]), 1j])
def test_what_is_no_positive_number_is_named(value):
    with pytest.raises(ValueError, match="^`fps` is .* but has to be a positive number.$"):
        positive_number("fps", value)


@pytest.mark.parametrize("value", [Fraction(1, 3), 0.25, np.float16(0.25), torch.tensor(0.25)])
def test_positive_numbers(value):
    assert positive_number("scale", value) == float(value)
    assert whole_number("index", 0, minimum=0) == 0
    with pytest.raises(ValueError, match="`index` is -1, but has to be a whole number of at least 0"):
        whole_number("index", -1, minimum=0)


def sine(seconds, rate):
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize(
    "sound",
    [
        (sine(1, 44100), 44100),
        (44100, sine(1, 44100)),
        [sine(1, 8000), 8000.0],
        (sine(1, 48000), np.int64(48000)),
        (torch.from_numpy(sine(1, 48000))[None], torch.tensor(48000)),
        ((sine(1, 22050) * 32767).astype(np.int16)[:, None], 22050),
        ((np.stack([sine(1, 22050)] * 2) * 2147483647).astype(np.int32), 22050),
        sine(1, 16000),
        torch.from_numpy(sine(1, 16000)),
        sine(1, 16000).tolist(),
        (np.rint(sine(1, 22050) * 127 + 128).astype(np.uint8), 22050),
        (torch.from_numpy(sine(1, 48000))[None, None], 48000),
        {"array": sine(1, 44100), "sampling_rate": 44100, "path": None},
    ],
    ids=lambda sound: type(sound).__name__,
)
def test_sound_of_every_form(tmp_path, sound):
    heard = load_audio(sound, 16000)
    assert heard.shape == pytest.approx((16000,), abs=40)
    np.testing.assert_allclose(heard[1000:15000], sine(1, 16000)[1000:15000], atol=0.02)
    if not isinstance(sound, (tuple, list)) or len(sound) != 2:
        return
    with VideoWriter(tmp_path / "video.mp4", 10, audio=sound) as writer:
        writer.write(np.zeros((10, 16, 16, 3), np.uint8))
    assert VideoReader(tmp_path / "video.mp4").has_audio


@pytest.mark.parametrize("rate", [16000, 48000])
@pytest.mark.parametrize("channels, centre", [(3, 2), (6, 2), (8, 2)])
def test_sound_of_more_than_two_channels_is_mixed(tmp_path, channels, centre, rate):
    samples = np.zeros((rate, channels), np.float32)
    samples[:, centre] = sine(1, rate)
    for form in (samples, samples.T):
        heard = load_audio((form, rate), 16000)[1000:15000]
        assert np.corrcoef(heard, sine(1, 16000)[1000:15000])[0, 1] > 0.99 and 0.2 < np.abs(heard).max() < 0.6
    with VideoWriter(tmp_path / "video.mp4", 10, audio=(samples, rate)) as writer:
        writer.write(np.zeros((10, 16, 16, 3), np.uint8))
    assert np.abs(load_audio(tmp_path / "video.mp4")).max() > 0.2


def test_samples_without_a_rate_are_named(tmp_path):
    with pytest.raises(ValueError, match="`audio` is of type ndarray, but a path or a pair of samples and"):
        VideoWriter(tmp_path / "video.mp4", 10, audio=sine(1, 16000))


def test_an_output_is_checked_before_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "driver.mp4").write_bytes(b"driver")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "driver.mp4")
    (tmp_path / "file").write_text("a file")
    for path, inputs, kind, message in (
        ("video.gif", (), ValueError, "`--output` must end in one of .mp4"),
        ("video", (), ValueError, "`--output` must end in one of .mp4"),
        ("folder.mp4", (), IsADirectoryError, "`--output` is a folder"),
        ("driver.mp4", ["driver.mp4"], ValueError, "`--output` is also an input"),
        ("link.mp4", [None, np.zeros(3), tmp_path / "driver.mp4"], ValueError, "`--output` is also an input"),
        ("file/video.mp4", (), NotADirectoryError, "`--output` lies in .*file, which is a file"),
        ("x" * 252 + ".mp4", (), (ValueError, OSError), "`--output`.*"),
        ("x" * 230 + ".mp4", (), ValueError, "`--output` has a name of 234 bytes, but at most 2"),
        ("é" * 120 + ".mp4", (), ValueError, "`--output` has a name of 244 bytes"),
    ):
        with pytest.raises(kind, match=message) as raised:
            check_output(path, inputs=inputs, name="--output")
        assert "\n" not in str(raised.value)
    assert check_output("new/folder/video.MP4", inputs=["driver.mp4"]) == Path("new/folder/video.MP4")
    assert check_output("driver.mp4", inputs=["absent.mp4"]) == Path("driver.mp4")
    assert check_output("motion.safetensors", (".safetensors",)) == Path("motion.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["driver.mp4", "file", "folder.mp4", "link.mp4"]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs permissions of POSIX")
def test_an_output_in_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir(mode=0o500)
    # Root may write everywhere: what the system would say of anybody else.
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: real(path, mode) and Path(path).name != "closed")
    with pytest.raises(PermissionError, match="`--output` cannot be written, since the folder .*closed"):
        check_output(tmp_path / "closed" / "deeper" / "video.mp4", name="--output")


@pytest.mark.parametrize("length", [200, 211])
def test_the_longest_names_that_are_accepted_can_be_written(tmp_path, length):
    path = tmp_path / ("x" * length + ".mp4")
    with VideoWriter(path, 10) as writer:
        writer.write(np.zeros((2, 16, 16, 3), np.uint8))
    assert path.stat().st_size > 0
