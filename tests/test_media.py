import os
import weakref
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from diffusers.utils import logging
from PIL import Image

from diffusers_dreamactor import frame_sources
from diffusers_dreamactor.frame_sources import frame_index, iterate_frames
from diffusers_dreamactor.media import VideoReader, VideoWriter, load_audio, save_video


MODELS = os.environ.get("DREAMACTOR_CAPTURE_MODELS")
MEDIA = Path(MODELS).parent / "media" if MODELS else None
needs_media = pytest.mark.skipif(
    MEDIA is None or not (MEDIA / "carphone.mp4").is_file(),
    reason="needs the sample videos beside DREAMACTOR_CAPTURE_MODELS",
)


@pytest.fixture
def warnings(caplog):
    logging.enable_propagation()
    yield caplog
    logging.disable_propagation()


def numbered_frame(index, width=64, height=48):
    """Frame `index` says its number in eight black or white bars, which survive compression."""
    frame = np.zeros((height, width, 3), dtype=np.uint8)
    for bit in range(8):
        frame[:, bit * width // 8 : (bit + 1) * width // 8] = 255 * (index >> bit & 1)
    return frame


def number_of(frame):
    height, width = frame.shape[:2]
    bars = frame[height // 4 : 3 * height // 4].mean(axis=(0, 2)).reshape(8, width // 8).mean(axis=1)
    return sum(1 << bit for bit in range(8) if bars[bit] > 128)


def numbers(frames):
    return [number_of(frame) for frame in frames]


def write_with_pts(path, pts, time_base, codec="libx264", rate=30, degrees=0, size=(64, 48), options=None):
    """A video whose frame i is numbered i and has the i-th presentation timestamp."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = time_base
        if degrees:
            stream.set_display_rotation(degrees)
        container.start_encoding()
        for index, timestamp in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(numbered_frame(index, *size), format="rgb24")
            frame.pts, frame.time_base = timestamp, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def sine(seconds, rate=16000, frequency=440.0):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.fixture(scope="module")
def numbered_video(tmp_path_factory):
    path = tmp_path_factory.mktemp("numbered") / "numbered.mp4"
    save_video([numbered_frame(i) for i in range(100)], path, Fraction(30000, 1001))
    return path


def test_every_frame_once_at_an_exact_rate(numbered_video):
    reader = VideoReader(numbered_video)
    assert numbers(reader) == list(range(100)) and len(reader) == reader.num_frames == 100
    assert reader.rate == Fraction(30000, 1001) and reader.fps == pytest.approx(29.97002997)
    assert (reader.width, reader.height, reader.has_audio) == (64, 48, False)
    assert reader.path == str(numbered_video)
    assert VideoReader(reader).path == reader.path and len(VideoReader(reader)) == 100


def test_frames_from_the_middle_are_the_same_pixels(numbered_video):
    reader = VideoReader(numbered_video)
    everything = list(reader)
    for start, stop in ((0, 3), (1, 2), (17, 40), (63, 100), (99, None), (50, 50), (100, None)):
        part = list(reader.frames(start, stop))
        assert len(part) == (100 if stop is None else stop) - start
        for frame, expected in zip(part, everything[start:stop]):
            np.testing.assert_array_equal(frame, expected)
    for start, stop in ((-1, 3), (5, 3), (0, 101)):
        with pytest.raises(ValueError, match="0 <= start <= stop <= 100"):
            reader.frames(start, stop)


def test_a_seek_does_not_decode_from_the_beginning(tmp_path, monkeypatch):
    path = tmp_path / "keys.mp4"
    write_with_pts(path, range(120), Fraction(1, 30), options={"g": "10", "sc_threshold": "0"})
    reader = VideoReader(path)
    decoded = []
    original = reader._source._decoded

    def counted(*args):
        for item in original(*args):
            decoded.append(item[0])
            yield item

    monkeypatch.setattr(reader._source, "_decoded", counted)
    assert numbers(reader.frames(95, 97)) == [95, 96]
    assert len(decoded) < 15


class CountingReader(VideoReader):
    """Knows how many of the frames that it gave are still held, and how many it read."""

    alive = most = read = 0

    def frames(self, start=0, stop=None):
        for frame in super().frames(start, stop):
            self.read += 1
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(frame, self._forget)
            yield frame
            del frame

    def _forget(self):
        self.alive -= 1


@pytest.mark.parametrize(
    ("index", "most", "read"),
    [
        (np.arange(90), 1, 90),
        (frame_index(90, 200, "hold"), 1, 90),
        (frame_index(90, 178, "loop"), 10, 178),  # forth, and back in pieces of 10
        (np.arange(90)[::-1], 10, 90),
        (np.array([3, 3, 7, 8, 80, 80, 2, 2, 1]), 2, 9),  # 3 to 8, over a wide gap to 80, 2 and 1
        (np.array([5, 4, 5, 4, 5]), 2, 5),
        (np.array([0]), 1, 1),
    ],
)
def test_frames_in_any_order_hold_no_more_than_they_need(numbered_video, monkeypatch, index, most, read):
    reader = CountingReader(numbered_video)
    monkeypatch.setattr(frame_sources, "BACKWARDS_BYTES", 10 * 3 * reader.height * reader.width)
    expected = list(VideoReader(numbered_video))
    frames = iterate_frames(reader, index)
    for i in index:
        frame = next(frames)
        np.testing.assert_array_equal(frame, expected[i])
        del frame
    assert next(frames, None) is None
    assert (reader.most, reader.read) == (most, read)


def test_two_iterations_do_not_disturb_each_other(numbered_video):
    reader = VideoReader(numbered_video)
    assert [number_of(a) * 1000 + number_of(b) for a, b in zip(reader, reader.frames(40, 60))] == [
        i * 1000 + 40 + i for i in range(20)
    ]


@pytest.mark.parametrize("fps", [10, 25, 30000 / 1001, 60, Fraction(24000, 1001)])
def test_resampling_shows_the_last_frame_at_or_before(numbered_video, fps):
    reader = VideoReader(numbered_video, fps=fps)
    rate = Fraction(fps).limit_denominator(10000)
    duration = 100 * Fraction(1001, 30000)
    expected = [int(i / rate * Fraction(30000, 1001)) for i in range(300) if i / rate < duration]
    assert numbers(reader) == expected and len(reader) == len(expected)
    assert numbers(reader.frames(5, 9)) == expected[5:9]


def test_variable_frame_rate_keeps_time_and_every_frame(tmp_path):
    # Ten frames in the first second, thirty in the next.
    pts = [i * 100 for i in range(10)] + [1000 + round(i * 1000 / 30) for i in range(30)]
    path = tmp_path / "variable.mkv"
    write_with_pts(path, pts, Fraction(1, 1000))
    reader = VideoReader(path)
    assert reader.fps == 30 and len(reader) == 60
    assert numbers(reader) == [i // 3 for i in range(30)] + list(range(10, 40))
    assert numbers(VideoReader(path, fps=30)) == numbers(VideoReader(reader, fps=30)) == numbers(reader)
    assert numbers(VideoReader(path, fps=10))[:10] == list(range(10))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_bursts_and_jitter_lose_no_frame(tmp_path, suffix):
    time_base = Fraction(1, 1000) if suffix == ".mkv" else Fraction(1, 15360)
    rng = np.random.default_rng(0)
    bursts = [7 * (i // 4) + i % 4 for i in range(24)]
    # A phone: 30 frames a second, each up to 12 ms early or late, and a second half with every other one.
    phone = [*range(30), *range(30, 60, 2)]
    jitter = np.r_[0, rng.uniform(-0.36, 0.36, 44)]
    # A screen recording: half at 60 a second, half at 24.
    mixed = [*(i / 60 for i in range(60)), *(1 + i / 24 for i in range(24))]
    for seconds, rate in (
        ([i / 30 for i in bursts], 30),
        ([(i + late) / 30 for i, late in zip(phone, jitter)], 30),
        (mixed, 60),
    ):
        path = tmp_path / f"variable{suffix}"
        write_with_pts(path, [round(second / time_base) for second in seconds], time_base)
        reader = VideoReader(path)
        shown = numbers(reader)
        assert list(dict.fromkeys(shown)) == list(range(len(seconds))) and shown == sorted(shown)
        assert reader.fps == pytest.approx(rate, rel=0.002)
        assert 0 < len(reader) - seconds[-1] * rate < 6
        first_shown = np.array([shown.index(i) for i in range(len(seconds))]) / reader.fps
        assert np.abs(first_shown - seconds).max() < 1 / rate


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seconds, rate", [([0, 0.1, 0.5], 10), ([0, 0.04, 0.3, 0.34, 0.6], 25)])
def test_two_intervals_as_often_have_the_rate_of_the_shorter(tmp_path, seconds, rate):
    # A camera's recording that stuttered: no frame lasts as long as the mean of the two in the middle.
    path = tmp_path / "stutter.mkv"
    write_with_pts(path, [round(second * 1000) for second in seconds], Fraction(1, 1000))
    reader = VideoReader(path)
    assert reader.fps == pytest.approx(rate, rel=0.01) and list(dict.fromkeys(numbers(reader))) == [
        *range(len(seconds))
    ]


@pytest.mark.parametrize("dropped", [1, 9, 10, 18])
def test_a_dropped_frame_does_not_change_the_rate(tmp_path, dropped):
    path = tmp_path / "dropped.mp4"
    write_with_pts(path, [i for i in range(20) if i != dropped], Fraction(1, 30))
    reader = VideoReader(path)
    assert reader.fps == 30 and len(reader) == 20
    assert numbers(reader) == [i - (i >= dropped) for i in range(20)]


def test_timestamps_rounded_to_milliseconds_are_a_constant_rate(tmp_path):
    path = tmp_path / "milliseconds.mkv"
    write_with_pts(path, [round(i * 1001 / 30) for i in range(90)], Fraction(1, 1000), rate=Fraction(30000, 1001))
    reader = VideoReader(path)
    assert numbers(reader) == list(range(90)) and reader.fps == pytest.approx(30000 / 1001, rel=1e-4)
    # Even steps: not now one source frame and now three, as rounded timestamps would give.
    assert numbers(VideoReader(path, fps=15)) == [int(i * 2000 / 1001) for i in range(46)]


def test_a_late_start_counts_from_the_first_frame(tmp_path):
    path = tmp_path / "late.mkv"
    write_with_pts(path, [5000 + i * 40 for i in range(20)], Fraction(1, 1000), rate=25)
    assert numbers(VideoReader(path)) == list(range(20))
    assert numbers(VideoReader(path, fps=50)) == [i // 2 for i in range(40)]


def test_a_codec_whose_packets_are_not_counted(tmp_path):
    path = tmp_path / "hidden.webm"
    options = {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "200k"}
    write_with_pts(path, range(60), Fraction(1, 30), codec="libvpx", options=options)
    reader = VideoReader(path)
    assert numbers(reader) == list(range(60)) and len(reader) == 60
    assert numbers(reader.frames(41, 44)) == [41, 42, 43]


def test_a_stream_without_timestamps(tmp_path):
    path = tmp_path / "raw.h264"
    write_with_pts(path, range(30), Fraction(1, 25), rate=25)
    reader = VideoReader(path)
    assert len(reader) == 30 and numbers(reader) == list(range(30)) and reader.fps == 25
    assert numbers(reader.frames(20, 22)) == [20, 21]


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotation_of_the_metadata_is_applied(tmp_path, degrees):
    path, plain = tmp_path / "rotated.mp4", tmp_path / "plain.mp4"
    write_with_pts(path, range(3), Fraction(1, 25), degrees=degrees)
    write_with_pts(plain, range(3), Fraction(1, 25))
    reader = VideoReader(path)
    assert (reader.width, reader.height) == ((64, 48) if degrees == 180 else (48, 64))
    for frame, upright in zip(reader, VideoReader(plain)):
        assert frame.shape == (reader.height, reader.width, 3) and frame.flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(frame, np.rot90(upright, degrees // 90))


def test_colours_come_back_without_a_drift(tmp_path):
    colours = np.array(
        [[255, 255, 255], [128, 128, 128], [200, 40, 40], [40, 200, 40], [40, 40, 200], [190, 140, 110]]
    )
    frame = np.repeat(np.repeat(colours.astype(np.uint8)[None], 64, 0), 32, 1)
    path = tmp_path / "colours.mp4"
    for _ in range(3):
        save_video([frame] * 4, path, 25)
        frame = next(iter(VideoReader(path)))
    seen = frame[32, 16::32].astype(int)
    assert np.abs(seen - colours).max() <= 3 and abs((seen - colours).mean()) < 1


def test_full_range_video_is_not_washed_out(tmp_path):
    path = tmp_path / "full.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
        frame = av.VideoFrame.from_ndarray(np.full((96, 64), 128, np.uint8), format="yuvj420p")
        for plane, value in zip(frame.planes, (255, 128, 128)):
            plane.update(bytes([value]) * plane.buffer_size)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert np.abs(next(iter(VideoReader(path))).astype(int) - 255).max() <= 2


def test_pictures_in_memory():
    frames = np.stack([numbered_frame(i) for i in range(6)])
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    sources = {
        "array": frames,
        "floats": (frames / 255).astype(np.float32),
        "half": (frames / 255).astype(np.float16),
        "tensor": tensor,
        "bfloat16": (tensor / 255).bfloat16(),
        "pil": [Image.fromarray(frame) for frame in frames],
        "pil with alpha": [Image.fromarray(frame).convert("RGBA") for frame in frames],
        "list of arrays": list(frames),
    }
    for name, source in sources.items():
        reader = VideoReader(source)
        assert (reader.width, reader.height, len(reader), reader.fps) == (64, 48, 6, 24.0), name
        assert reader.path is None and not reader.has_audio
        for index, frame in enumerate(reader):
            assert frame.dtype == np.uint8
            np.testing.assert_array_equal(frame, frames[index], err_msg=name)
    reader = VideoReader(frames, fps=12)
    assert numbers(reader.frames(2, 4)) == [2, 3] and reader.fps == 12
    assert numbers(VideoReader(reader, fps=24)) == [i // 2 for i in range(12)]
    assert numbers(VideoReader(VideoReader(reader, fps=24), fps=6)) == [0, 2, 4]
    cut = VideoReader(frames, fps=12, num_frames=3)
    assert len(cut) == 3 and numbers(cut) == [0, 1, 2] and len(VideoReader(cut)) == 3
    assert numbers(VideoReader(cut, fps=24)) == [0, 0, 1, 1, 2, 2]
    assert numbers(VideoReader(cut, num_frames=5)) == [0, 1, 2] and numbers(VideoReader(cut, num_frames=2)) == [0, 1]
    assert numbers(VideoReader(cut, fps=6, num_frames=5)) == [0, 2]
    next(iter(reader))[:] = 7
    assert frames[0].max() != 7 or number_of(frames[0]) == 0


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ([], "no frames"),
        (np.zeros((0, 8, 8, 3), np.uint8), "no frames"),
        (np.zeros((8, 8, 3), np.uint8), r"has shape \(8, 8, 3\), but \(F, H, W, 3\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"but \(F, H, W, 3\)"),
        (np.zeros((2, 0, 8, 3), np.uint8), "without pixels"),
        (torch.zeros(2, 8, 8, 3), r"but \(F, 3, H, W\)"),
        (np.full((2, 8, 8, 3), np.nan), "not finite"),
        ([np.full((8, 8, 3), np.inf, np.float32)], "not finite"),
        (np.full((2, 8, 8, 3), -0.5), r"must be in \[0, 1\]"),
        (torch.full((2, 3, 8, 8), 255.0), r"must be in \[0, 1\]"),
        (np.zeros((2, 8, 8, 3), np.int64), "dtype int64"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 9))], r"`video\[1\]` has size 8x9"),
        ([Image.new("RGB", (8, 8)), "frame.png"], r"`video\[1\]` is of type str"),
        (42, "is of type int"),
    ],
)
def test_bad_pictures_are_named(video, message):
    with pytest.raises(ValueError, match=message):
        VideoReader(video)


@pytest.mark.parametrize("fps", [0, -3, float("nan"), float("inf"), "fast", 1e6, True, np.array([25])])
def test_bad_rates_are_named(fps):
    with pytest.raises(ValueError, match="`fps`"):
        VideoReader(np.zeros((2, 8, 8, 3), np.uint8), fps=fps)


@pytest.mark.parametrize("num_frames", [0, -5, 2.5])
def test_bad_numbers_of_frames_are_named(num_frames):
    with pytest.raises(ValueError, match=f"`num_frames` is {num_frames}, but has to be a positive whole number"):
        VideoReader(np.zeros((2, 8, 8, 3), np.uint8), num_frames=num_frames)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="`video` names no file"):
        VideoReader(tmp_path / "absent.mp4")
    with pytest.raises(IsADirectoryError, match="`video` is a folder"):
        VideoReader(tmp_path)
    (tmp_path / "text.mp4").write_text("This is not a video.\n" * 50)
    with pytest.raises(ValueError, match="`video` is not a video that can be read.*text.mp4"):
        VideoReader(tmp_path / "text.mp4")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(ValueError, match="`video`.*empty.mp4"):
        VideoReader(tmp_path / "empty.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(sine(1)[None], "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match="`video` has no video stream"):
        VideoReader(tmp_path / "sound.mp4")
    write_with_pts(tmp_path / "none.mkv", [], Fraction(1, 30))
    with pytest.raises(ValueError, match="`video` (has zero frames|is not a video)"):
        VideoReader(tmp_path / "none.mkv")


def test_a_truncated_file_gives_as_many_frames_as_it_says(tmp_path, numbered_video):
    whole = tmp_path / "whole.mkv"
    write_with_pts(whole, range(100), Fraction(1, 30), options={"bf": "0"})
    data = whole.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 2 // 3])
    reader = VideoReader(tmp_path / "cut.mkv")
    shown = numbers(reader)
    assert 20 < len(shown) == len(reader) < 100
    assert shown[: len(shown) - 2] == list(range(len(shown) - 2))


def test_damaged_data_is_bridged(tmp_path, warnings):
    whole = tmp_path / "whole.mkv"
    write_with_pts(whole, range(100), Fraction(1, 30), codec="mjpeg", options={"strict": "unofficial"})
    data = bytearray(whole.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    (tmp_path / "damaged.mkv").write_bytes(data)
    reader = VideoReader(tmp_path / "damaged.mkv")
    shown = numbers(reader)
    assert "damaged data near" in warnings.text
    assert len(shown) == len(reader) >= 95 and shown[:40] == list(range(40)) and shown[-1] == 99


def test_writer_gives_what_was_written(tmp_path):
    path = tmp_path / "new" / "folder" / "out.mp4"
    frames = [numbered_frame(i) for i in range(10)]
    with VideoWriter(path, 24) as writer:
        writer.write(frames[0])
        writer.write(Image.fromarray(frames[1]))
        writer.write(frames[2:4])
        writer.write(np.stack(frames[4:6]))
        writer.write(torch.from_numpy(np.stack(frames[6:8])).permute(0, 3, 1, 2) / 255)
        writer.write(torch.from_numpy(frames[8]).permute(2, 0, 1))
        writer.write(frames[9] / 255)
        assert not path.exists()
        assert writer.num_frames == 10
    assert [file.name for file in path.parent.iterdir()] == ["out.mp4"]
    assert numbers(VideoReader(path)) == list(range(10))
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.colorspace) == ("h264", "yuv420p", 1)


def test_a_writer_may_be_closed_twice(tmp_path):
    with VideoWriter(tmp_path / "out.mp4", 24) as writer:
        writer.write([numbered_frame(i) for i in range(3)])
        writer.close()
        writer.close()
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]
    assert numbers(VideoReader(tmp_path / "out.mp4")) == [0, 1, 2]


@pytest.mark.parametrize("suffix", [".mkv", ".mov", ".m4v"])
def test_other_containers(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    save_video([numbered_frame(i) for i in range(5)], path, Fraction(24000, 1001), (sine(1), 16000))
    reader = VideoReader(path)
    assert numbers(reader) == list(range(5)) and reader.has_audio
    assert reader.fps == pytest.approx(24000 / 1001, rel=1e-3)


def test_odd_sizes_grow_by_one_with_a_warning(tmp_path, warnings):
    frame = np.full((47, 63, 3), 90, np.uint8)
    save_video([frame] * 3, tmp_path / "odd.mp4", 25)
    reader = VideoReader(tmp_path / "odd.mp4")
    assert (reader.width, reader.height) == (64, 48)
    assert np.abs(next(iter(reader)).astype(int) - 90).max() <= 3
    assert "63x47 are written as 64x48" in warnings.text


def test_nothing_is_left_after_a_failure(tmp_path):
    (tmp_path / "old.mp4").write_bytes(b"old")
    with pytest.raises(RuntimeError, match="midway"):
        with VideoWriter(tmp_path / "old.mp4", 25, audio=(sine(1), 16000)) as writer:
            writer.write([numbered_frame(0)] * 5)
            raise RuntimeError("midway")
    with pytest.raises(ValueError, match="No frame was written"):
        with VideoWriter(tmp_path / "old.mp4", 25):
            pass
    with pytest.raises(ValueError, match="have size 32x32, but the first had 64x48"):
        with VideoWriter(tmp_path / "old.mp4", 25) as writer:
            writer.write(numbered_frame(0))
            writer.write(np.zeros((32, 32, 3), np.uint8))
    assert (tmp_path / "old.mp4").read_bytes() == b"old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["old.mp4"]


def test_writer_arguments_are_checked_before_anything_is_written(tmp_path):
    sound = (sine(1), 16000)
    for arguments, error, message in [
        ({"path": tmp_path / "out.webm", "fps": 25}, ValueError, r"`path` must end in one of \.mp4"),
        ({"path": tmp_path / "out.mp4", "fps": 0}, ValueError, "`fps`"),
        ({"path": tmp_path / "out.mp4", "fps": 25, "crf": 90}, ValueError, "`crf`"),
        ({"path": tmp_path / "out.mp4", "fps": 25, "crf": "18"}, ValueError, "`crf` is '18'"),
        ({"path": tmp_path / "out.mp4", "fps": 25, "audio_start": "1 s"}, ValueError, "`audio_start` is '1 s'"),
        ({"path": tmp_path / "out.mp4", "fps": 25, "audio": sound, "audio_start": -1}, ValueError, "`audio_start`"),
        (
            {"path": tmp_path / "out.mp4", "fps": 25, "audio": tmp_path / "no.wav"},
            FileNotFoundError,
            "`audio` names no file",
        ),
        ({"path": tmp_path / "out.mp4", "fps": 25, "audio": (np.zeros((9, 9)), 16000)}, ValueError, r"shape \(9, 9\)"),
        ({"path": tmp_path / "out.mp4", "fps": 25, "audio": (np.full(9, np.nan), 16000)}, ValueError, "not finite"),
        ({"path": tmp_path / "out.mp4", "fps": 25, "audio": (sine(1), 0)}, ValueError, "sampling rate"),
    ]:
        with pytest.raises(error, match=message):
            VideoWriter(**arguments)
    assert list(tmp_path.iterdir()) == []
    save_video([numbered_frame(0)] * 3, tmp_path / "silent.mp4", 25)


def test_a_silent_driver_gives_a_silent_video(tmp_path, caplog):
    save_video([numbered_frame(0)] * 3, tmp_path / "silent.mp4", 25)
    with caplog.at_level("WARNING"):
        save_video([numbered_frame(0)] * 3, tmp_path / "out.mp4", 25, audio=tmp_path / "silent.mp4")
    assert "silent.mp4 has no sound, and neither will out.mp4" in caplog.text
    reader = VideoReader(tmp_path / "out.mp4")
    assert len(reader) == 3 and not reader.has_audio


def correlation(a, b):
    length = min(len(a), len(b))
    a, b = a[:length], b[:length]
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def chirp(seconds, rate):
    """A rising tone: unlike a steady one, it tells at which moment it is."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * (200 * time + 300 * time**2))).astype(np.float32)


@pytest.mark.parametrize("rate", [16000, 44100, 11000])
def test_sound_is_in_step_and_cut_to_the_video(tmp_path, rate):
    path = tmp_path / "sound.mp4"
    save_video([numbered_frame(i) for i in range(50)], path, 25, (chirp(4, rate), rate))
    heard = load_audio(path, 16000)
    assert len(heard) == pytest.approx(2 * 16000, abs=2500)
    assert correlation(heard[:30000], chirp(4, 16000)[:30000]) > 0.98
    # Copied from one video to another without a loss, and shorter.
    save_video([numbered_frame(i) for i in range(25)], tmp_path / "copy.mp4", 25, path)
    copied = load_audio(tmp_path / "copy.mp4", 16000)
    assert len(copied) == pytest.approx(16000, abs=1100)
    np.testing.assert_allclose(copied[:15000], heard[:15000], atol=1e-5)


def test_whole_numbers_are_16_bit_samples(tmp_path):
    frames, sound = [numbered_frame(i) for i in range(25)], sine(1)
    save_video(frames, tmp_path / "floats.mp4", 25, (sound, 16000))
    save_video(frames, tmp_path / "integers.mp4", 25, ((sound * 32768).astype(np.int16), 16000))
    heard = load_audio(tmp_path / "integers.mp4")
    assert 0.4 < np.abs(heard).max() < 0.6
    np.testing.assert_allclose(heard, load_audio(tmp_path / "floats.mp4"), atol=0.01)
    for dtype in (np.int64, np.uint16):
        with pytest.raises(
            ValueError, match=f"`audio` samples have dtype {np.dtype(dtype)}, but uint8, int16, int32 or a f"
        ):
            save_video(frames, tmp_path / "other.mp4", 25, (np.ones(16000, dtype), 16000))


def test_sound_that_starts_later_or_ends_earlier(tmp_path):
    frames = [numbered_frame(i) for i in range(50)]
    stereo = np.stack([chirp(4, 24000), -0.5 * chirp(4, 24000)])
    save_video(frames, tmp_path / "a.mp4", 25, (stereo, 24000))
    with VideoWriter(tmp_path / "b.mp4", 25, tmp_path / "a.mp4", audio_start=1.0) as writer:
        writer.write(frames)
    heard = load_audio(tmp_path / "b.mp4", 24000)
    assert len(heard) == pytest.approx(24000, abs=3000)
    assert correlation(heard[:22000], 0.25 * chirp(4, 24000)[24000:46000]) > 0.98
    assert len(VideoReader(tmp_path / "b.mp4")) == 50
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.streams.audio[0].codec_context.layout.nb_channels == 2


def test_sound_after_the_picture_is_padded(tmp_path):
    path = tmp_path / "delayed.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        for index in range(25):
            frame = av.VideoFrame.from_ndarray(numbered_frame(index), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray((sine(0.5) * 32767).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, 8000, Fraction(1, 16000)
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    heard = load_audio(path)
    assert len(heard) == pytest.approx(16000, abs=20)
    assert np.abs(heard[:7900]).max() == 0 and np.abs(heard[8100:15900]).max() > 0.4
    save_video([numbered_frame(0)] * 25, tmp_path / "out.mp4", 25, path)
    again = load_audio(tmp_path / "out.mp4")
    assert np.abs(again[:7000]).max() < 0.01 and np.abs(again[9000:15000]).max() > 0.4


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".m4v"])
@pytest.mark.parametrize("early", [0.0, 0.5])
def test_sound_before_the_picture_does_not_delay_it(tmp_path, suffix, early):
    source, path = tmp_path / "source.mp4", tmp_path / f"video{suffix}"
    with av.open(str(source), "w") as container:
        video = container.add_stream("libx264", rate=24)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base = Fraction(1, 24)
        sound = container.add_stream("aac", rate=16000, layout="mono")
        samples = np.concatenate([sine(early, frequency=2000), sine(1.0, frequency=440)])
        frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
        for index in range(24):
            frame = av.VideoFrame.from_ndarray(numbered_frame(index), format="rgb24")
            frame.pts, frame.time_base = index + round(24 * early), Fraction(1, 24)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    save_video([numbered_frame(i) for i in range(24)], path, 24, audio=source)
    with av.open(str(path)) as container:
        assert container.streams.video[0].start_time == 0
        assert container.duration / 1e6 == pytest.approx(1, abs=0.08)
    heard = load_audio(path)
    spectrum = np.abs(np.fft.rfft(heard[2000:14000]))
    assert np.argmax(spectrum) * 16000 / 12000 == pytest.approx(440, abs=4)
    assert len(heard) == pytest.approx(16000, abs=1100)


def test_the_same_frames_give_the_same_bytes(tmp_path):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :128]
    waves = [127 + 100 * np.sin((x + 3 * i) / 9 + y / 17) + rng.normal(0, 8, (96, 128)) for i in range(60)]
    frames = np.repeat(np.stack(waves).clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)
    for index in range(4):
        save_video(frames, tmp_path / f"{index}.mp4", 24, audio=(sine(2.5), 16000))
    assert len({(tmp_path / f"{index}.mp4").read_bytes() for index in range(4)}) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    writer = VideoWriter(tmp_path / "full.mp4", 24)
    # What is written aside goes to a device that is always full.
    os.symlink("/dev/full", writer._aside)
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device: '[^']*/full\.mp4'$"), writer:
        for _ in range(40):
            writer.write(rng.integers(0, 255, (256, 256, 3), dtype=np.uint8))
    assert os.listdir(tmp_path) == []


def test_load_audio(tmp_path):
    import wave

    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(44100)
        tone = (sine(1, 44100) * 32767).astype(np.int16)
        file.writeframes(np.stack([tone, tone], axis=1).tobytes())
    heard = load_audio(tmp_path / "tone.wav")
    assert heard.dtype == np.float32 and heard.ndim == 1 and len(heard) == pytest.approx(16000, abs=5)
    assert np.abs(heard[1000:15000] - sine(1)[1000:15000]).max() < 0.01
    with pytest.raises(FileNotFoundError, match="`audio` names no file"):
        load_audio(tmp_path / "absent.wav")
    with pytest.raises(ValueError, match="`sampling_rate`"):
        load_audio(tmp_path / "tone.wav", 0)
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(ValueError, match="`audio` is not a sound file"):
        load_audio(tmp_path / "text.wav")


@needs_media
def test_real_videos():
    reader = VideoReader(MEDIA / "carphone.mp4")
    assert (reader.width, reader.height, reader.rate, len(reader)) == (193, 144, Fraction(30000, 1001), 120)
    assert sum(1 for _ in reader) == 120 and not reader.has_audio
    reader = VideoReader(MEDIA / "cartoon_character.mp4")
    assert (reader.width, reader.height, reader.rate, len(reader)) == (1280, 720, 24, 164) and reader.has_audio
    np.testing.assert_array_equal(next(reader.frames(150)), list(reader.frames(140, 151))[-1])


@needs_media
def test_a_real_driver_keeps_its_sound(tmp_path):
    reader = VideoReader(MEDIA / "cartoon_character.mp4")
    with VideoWriter(tmp_path / "out.mp4", reader.rate, audio=reader.path) as writer:
        for frame in reader.frames(0, 49):
            writer.write(frame[::4, ::4])
    written = VideoReader(tmp_path / "out.mp4")
    assert len(written) == 49 and written.rate == 24
    original, copied = load_audio(reader.path), load_audio(tmp_path / "out.mp4")
    assert len(copied) == pytest.approx(49 / 24 * 16000, abs=1100)
    np.testing.assert_allclose(copied[:30000], original[:30000], atol=1e-5)
