from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_dreamactor.frame_sources import frame_index
from diffusers_dreamactor.motion.skeleton import JOINT_INDEX, LEFT_HAND
from diffusers_dreamactor.processors.face_motion import FaceMotionProcessor
from diffusers_dreamactor.processors.guidance import MotionGuidance, MotionGuidanceProcessor
from diffusers_dreamactor.processors.head_sphere import HeadSphereProcessor


HEIGHT, WIDTH = 64, 96


def random_frames(count: int, height: int = HEIGHT, width: int = WIDTH) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8))


@pytest.fixture
def processor():
    return MotionGuidanceProcessor(face_size=32)


@pytest.fixture
def guidance(stick_figure, processor):
    return processor(stick_figure(10, HEIGHT, WIDTH, turn=90), HEIGHT, WIDTH, random_frames(10))


def test_whole_clip(stick_figure, processor):
    motion = stick_figure(12, HEIGHT, WIDTH)  # a whole turn: the face is away in the middle
    guidance = processor(motion, HEIGHT, WIDTH, iter(random_frames(12)))
    guidance.check(HEIGHT, WIDTH)
    assert len(guidance) == 12 and guidance.fps == 24
    assert guidance.skeleton.shape == guidance.sphere.shape == (12, 3, HEIGHT, WIDTH)
    assert guidance.face.shape == (12, 3, 32, 32)
    for array in (guidance.skeleton, guidance.sphere, guidance.face):
        assert array.dtype == np.uint8 and array.any(axis=(1, 2, 3)).all()
    seen = motion.face.confidence >= 0.5
    assert seen.any() and not seen.all()
    assert (guidance.face_weight[seen] == 1).all() and (guidance.face_weight[~seen] < 1).all()


@pytest.mark.parametrize(("segment_frames", "overlap"), [(5, 1), (4, 0), (73, 1), (6, 3), (2, 1)])
def test_stream_equals_the_whole_clip(stick_figure, processor, segment_frames, overlap):
    motion = stick_figure(13, HEIGHT, WIDTH)
    whole = processor(motion, HEIGHT, WIDTH, random_frames(13))
    start, stop = 0, 0
    segments = processor.stream(motion, HEIGHT, WIDTH, iter(random_frames(13)), segment_frames, overlap)
    for segment in segments:
        start = max(stop - overlap, 0)
        stop = start + len(segment)
        assert len(segment) <= segment_frames
        for name in ("skeleton", "sphere", "face", "face_weight"):
            np.testing.assert_array_equal(getattr(segment, name), getattr(whole, name)[start:stop], err_msg=name)
    assert stop == 13


@pytest.mark.parametrize("extend", ["hold", "loop"])
def test_frames_that_are_held_or_looped_are_drawn_like_themselves(stick_figure, processor, extend):
    motion = stick_figure(7, HEIGHT, WIDTH, turn=0)
    # boxes that tremble: nothing may be smoothed over repeats
    motion.face.boxes = motion.face.boxes + np.random.default_rng(1).normal(0, 2, (7, 4))
    frames = random_frames(7)
    index = frame_index(7, 25, extend)
    long = processor(motion.take(index), HEIGHT, WIDTH, [frames[i] for i in index])
    for position, i in enumerate(index):
        single = processor(motion[i : i + 1], HEIGHT, WIDTH, frames[i : i + 1])
        for name in ("skeleton", "sphere", "face", "face_weight"):
            np.testing.assert_array_equal(getattr(long, name)[position], getattr(single, name)[0], err_msg=name)


def test_stream_reads_frames_only_when_needed(stick_figure, processor):
    read = []

    def frames():
        for index, frame in enumerate(random_frames(30)):
            read.append(index)
            yield frame

    segments = processor.stream(stick_figure(30, HEIGHT, WIDTH), HEIGHT, WIDTH, frames(), segment_frames=9, overlap=1)
    next(segments)
    assert len(read) == 9
    next(segments)
    assert len(read) == 17


def test_stored_crops_and_tokens_are_used(stick_figure, processor):
    motion = stick_figure(4, HEIGHT, WIDTH, turn=0)
    motion.face.crops = np.stack([np.full((16, 16, 3), 50 * index, np.uint8) for index in range(4)])
    motion.face.confidence = np.array([0.9, 0.9, 0.1, 0.9], dtype=np.float32)
    motion.face.motion_tokens = np.arange(8, dtype=np.float32).reshape(4, 2)
    guidance = processor(motion, HEIGHT, WIDTH)
    assert guidance.face[:, 0, 5, 5].tolist() == [0, 50, 50, 150]
    np.testing.assert_allclose(guidance.face_weight, [1, 1, 0.9, 1])
    np.testing.assert_array_equal(guidance.motion_tokens, motion.face.motion_tokens)
    motion.face.crops = motion.face.boxes = None
    guidance = processor(motion, HEIGHT, WIDTH)
    assert guidance.face is None and guidance.motion_tokens.shape == (4, 2)
    np.testing.assert_allclose(guidance.face_weight, [1, 1, 0.9, 1])


def test_stored_pictures_of_the_face_give_the_crops_of_the_video(stick_figure):
    processor = MotionGuidanceProcessor(face_size=32, face_scale=1.3, face_shift=0.2)
    motion = stick_figure(6, HEIGHT, WIDTH, turn=0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    frames = [
        np.stack([columns * 2, rows * 3, 40 * np.sin(columns / 9) + 5 * index + 100], axis=-1).astype(np.uint8)
        for index in range(6)
    ]
    expected = processor(motion, HEIGHT, WIDTH, frames).face
    wide = FaceMotionProcessor(128, scale=2.0)
    stored = replace(
        motion,
        face=replace(
            motion.face,
            crops=[wide.crop(frame, box).transpose(1, 2, 0) for frame, box in zip(frames, motion.face.boxes)],
            crop_boxes=[wide.crop_box(box) for box in motion.face.boxes],
        ),
    )
    stored.validate()
    error = np.abs(processor(stored, HEIGHT, WIDTH).face.astype(int) - expected)
    assert error.mean() < 1 and np.percentile(error, 99) < 6


def test_parts_that_are_missing(stick_figure, processor, caplog):
    motion = stick_figure(3, HEIGHT, WIDTH)
    motion.face.confidence[:] = 0
    with caplog.at_level("WARNING"):
        guidance = processor(motion, HEIGHT, WIDTH, random_frames(3))
    assert guidance.face is None
    motion.face = None
    motion.body = None
    guidance = processor(motion, HEIGHT, WIDTH)
    assert guidance.face is None and not guidance.skeleton.any() and guidance.sphere.any()


def test_wan_style_has_no_sphere(stick_figure):
    guidance = MotionGuidanceProcessor(style="wan")(stick_figure(2, HEIGHT, WIDTH), HEIGHT, WIDTH)
    assert guidance.sphere is None and guidance.skeleton.any()
    maps = guidance.maps()
    assert maps.shape == (1, 6, 2, HEIGHT, WIDTH)
    assert (maps[:, 3:] == -1).all()


def test_unknown_depth_is_drawn_but_nan_is_not(stick_figure, processor):
    motion = stick_figure(2, HEIGHT, WIDTH)
    motion.body.joints[:] = np.nan
    assert processor(motion, HEIGHT, WIDTH).skeleton.any()
    motion.body.keypoints[1, 3] = np.nan
    with pytest.raises(ValueError, match="`body.keypoints` has a value that is not finite, first in frame 1"):
        processor(motion, HEIGHT, WIDTH)


def test_motion_in_other_pixels_is_declined(stick_figure, processor):
    with pytest.raises(ValueError, match="pixels of a 96x64 picture, but 128x64 is drawn"):
        processor(stick_figure(2, HEIGHT, WIDTH), 64, 128)
    with pytest.raises(ValueError, match="`frames` ended after 1 frames, but the motion has 2"):
        processor(stick_figure(2, HEIGHT, WIDTH, turn=0), HEIGHT, WIDTH, random_frames(1))
    with pytest.raises(ValueError, match="`motion` has no frames"):
        processor(stick_figure(2, HEIGHT, WIDTH)[:0], HEIGHT, WIDTH)


def test_maps_and_face_pixels(guidance):
    maps = guidance.maps(2, 7)
    assert maps.shape == (1, 6, 5, HEIGHT, WIDTH) and maps.dtype == torch.float32
    expected = torch.from_numpy(guidance.skeleton[2:7].copy()).float() / 127.5 - 1
    torch.testing.assert_close(maps[0, :3], expected.transpose(0, 1))
    expected = torch.from_numpy(guidance.sphere[2:7].copy()).float() / 127.5 - 1
    torch.testing.assert_close(maps[0, 3:], expected.transpose(0, 1))
    assert maps.min() == -1 and maps.max() <= 1
    face = guidance.face_pixels(2, 7, dtype=torch.bfloat16)
    assert face.shape == (1, 5, 3, 32, 32) and face.dtype == torch.bfloat16
    torch.testing.assert_close(
        face[0].float(), torch.from_numpy(guidance.face[2:7].copy()).float() / 127.5 - 1, atol=8e-3, rtol=0
    )
    assert MotionGuidance(skeleton=guidance.skeleton).face_pixels() is None


def test_slicing_and_saving(guidance, tmp_path):
    part = guidance[3:8]
    assert len(part) == 5 and part.fps == guidance.fps
    np.testing.assert_array_equal(part.face, guidance.face[3:8])
    part.save(tmp_path / "folder" / "guidance.safetensors")
    loaded = MotionGuidance.load(tmp_path / "folder" / "guidance.safetensors")
    for name in ("skeleton", "sphere", "face", "face_weight"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(part, name))
    assert loaded.fps == part.fps and loaded.motion_tokens is None
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["guidance.safetensors"]
    with pytest.raises(TypeError, match="indexed by a slice"):
        guidance[3]


def test_loading_what_is_no_guidance(stick_figure, tmp_path):
    with pytest.raises(FileNotFoundError, match="`path` names no file"):
        MotionGuidance.load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        MotionGuidance.load(tmp_path / "text.safetensors")
    stick_figure(2).save(tmp_path / "motion.safetensors")
    with pytest.raises(ValueError, match="is not a guidance file"):
        MotionGuidance.load(tmp_path / "motion.safetensors")


def test_from_frames():
    skeleton = [Image.new("RGB", (32, 48), (index, 0, 0)) for index in range(3)]
    face = [Image.new("L", (16, 16), 10 * index) for index in range(3)]
    guidance = MotionGuidance.from_frames(skeleton=skeleton, face=face, fps=12.5)
    assert guidance.skeleton.shape == (3, 3, 48, 32) and guidance.skeleton[2, 0, 0, 0] == 2
    assert guidance.face.shape == (3, 3, 16, 16) and guidance.face[1, 2, 3, 3] == 10
    assert guidance.sphere is None and guidance.fps == 12.5
    np.testing.assert_array_equal(guidance.face_weight, 1)
    with pytest.raises(ValueError, match="`guidance.face` has 2 frames, but the skeleton has 3"):
        MotionGuidance.from_frames(skeleton=skeleton, face=face[:2])
    with pytest.raises(ValueError, match=r"`skeleton` has pictures of several sizes.*\(8, 8\) at frame 3"):
        MotionGuidance.from_frames(skeleton=[*skeleton, Image.new("RGB", (8, 8))])
    with pytest.raises(ValueError, match="`skeleton` has no pictures"):
        MotionGuidance.from_frames(skeleton=[])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skeleton": np.full((2, 3, 8, 8), np.nan)}, "`guidance.skeleton` has values that are not finite"),
        ({"skeleton": np.zeros((2, 3, 8, 8))}, "`guidance.skeleton` is float64, but it has to be uint8"),
        ({"skeleton": np.zeros((2, 8, 8, 3), np.uint8)}, r"`guidance.skeleton` has shape \(2, 8, 8, 3\)"),
        ({"skeleton": np.zeros((0, 3, 8, 8), np.uint8)}, "`guidance` has no frames"),
        ({"sphere": np.zeros((2, 3, 8, 16), np.uint8)}, "`guidance.sphere` has shape"),
        ({"face": torch.full((2, 3, 4, 4), float("nan"))}, "`guidance.face` has values that are not finite"),
        ({"face": np.zeros((2, 3, 4, 8), np.uint8)}, "crops have to be square"),
        ({"face": np.zeros((3, 3, 4, 4), np.uint8)}, "`guidance.face` has 3 frames, but the skeleton has 2"),
        ({"face_weight": np.array([0.5, np.nan])}, "`guidance.face_weight` has values that are not finite"),
        ({"face_weight": np.array([0.5, 1.5])}, "`guidance.face_weight` spans 0.5 to 1.5"),
        ({"face_weight": np.ones(3)}, "`guidance.face_weight` has 3 frames"),
        ({"motion_tokens": np.full((2, 5), np.inf)}, "`guidance.motion_tokens` has values that are not finite"),
        ({"motion_tokens": np.ones(2)}, r"`guidance.motion_tokens` has shape \(2,\)"),
        ({"fps": 0.0}, "`guidance.fps` is 0.0"),
    ],
)
def test_check_names_what_is_wrong(change, message, tmp_path):
    guidance = MotionGuidance(**{"skeleton": np.zeros((2, 3, 8, 8), np.uint8), **change})
    with pytest.raises(ValueError, match=message):
        guidance.check()
    with pytest.raises(ValueError, match=message):
        guidance.save(tmp_path / "guidance.safetensors")
    assert not list(tmp_path.iterdir())


def test_check_of_the_size(guidance):
    guidance.check(HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="`guidance` is 96x64 pixels, but the generation size is 96x128"):
        guidance.check(128, WIDTH)


def test_config_reaches_every_part_and_survives_saving(tmp_path):
    options = {
        "style": "wan", "stick_width": 3, "draw_hands": False, "face_size": 64, "face_scale": 1.7, "face_shift": 0.1,
        "hold_decay": 0.8, "threshold": 0.4, "area": 96 * 96, "size_multiple": 8,
    }  # fmt: skip
    MotionGuidanceProcessor(**options).save_pretrained(tmp_path)
    assert (tmp_path / "processor_config.json").is_file()
    loaded = MotionGuidanceProcessor.from_pretrained(tmp_path)
    assert {name: loaded.config[name] for name in options} == options
    assert dict(loaded.body_skeleton.config)["stick_width"] == 3 and loaded.body_skeleton.config.threshold == 0.4
    assert loaded.head_sphere.config.threshold == 0.4
    face = loaded.face_motion.config
    assert (face.size, face.scale, face.shift, face.hold_decay) == (64, 1.7, 0.1, 0.8)
    assert (loaded.reference.config.area, loaded.reference.config.size_multiple) == (96 * 96, 8)
    assert loaded.reference.face_motion.config.scale == 1.7
    assert MotionGuidanceProcessor.from_pretrained(tmp_path, style="dreamactor").config.style == "dreamactor"
    with pytest.raises(OSError):
        MotionGuidanceProcessor.from_pretrained(tmp_path / "nothing")


def test_the_parts_agree_with_the_whole(stick_figure, processor):
    """The guidance's maps are the processors' own drawings, and the sphere tells the head's rotation."""
    motion = stick_figure(3, 480, 832, turn=70)
    guidance = processor(motion, 480, 832, random_frames(3, 480, 832))
    for index in range(3):
        rotation = HeadSphereProcessor.decode_orientation(guidance.sphere[index])
        np.testing.assert_allclose(rotation, motion.head.rotation[index], atol=0.02)
        x, y = motion.body.keypoints[index, JOINT_INDEX["neck"]].astype(int)
        assert guidance.skeleton[index, :, y, x].any()
    crops, weight = FaceMotionProcessor(size=32)(random_frames(3, 480, 832), motion.face.boxes, motion.face.confidence)
    np.testing.assert_array_equal(guidance.face, crops)
    np.testing.assert_array_equal(guidance.face_weight, weight)


def test_fingers_are_not_drawn_without_a_forearm(stick_figure, processor):
    motion = stick_figure(2, HEIGHT, WIDTH)
    whole = processor(motion, HEIGHT, WIDTH, random_frames(2)).skeleton
    motion.body.confidence[:, JOINT_INDEX["left_elbow"]] = 0.1
    drawn = processor(motion, HEIGHT, WIDTH, random_frames(2)).skeleton
    motion.body.confidence[:, [JOINT_INDEX["left_wrist"], *range(LEFT_HAND.start, LEFT_HAND.stop)]] = 0
    armless = processor(motion, HEIGHT, WIDTH, random_frames(2)).skeleton
    assert not np.array_equal(drawn, whole)
    np.testing.assert_array_equal(drawn, armless)
