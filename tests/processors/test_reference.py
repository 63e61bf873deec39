import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from diffusers_dreamactor.media import VideoReader
from diffusers_dreamactor.motion.sequence import project
from diffusers_dreamactor.motion.skeleton import JOINT_INDEX
from diffusers_dreamactor.processors.reference import (
    ReferenceProcessor,
    load_picture,
    pick_complementary_frames,
)


def coordinate_picture(width: int, height: int) -> Image.Image:
    """Red tells the column, green the row, each as a share of 255."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None, :]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    "size", [(640, 960), (1280, 720), (3000, 1000), (1000, 3000), (500, 500), (120, 160), (33, 31)]
)
def test_generation_size_keeps_aspect_and_budget(size):
    processor = ReferenceProcessor(area=960 * 640)
    height, width = processor.generation_size(size[1], size[0])
    assert height % 16 == 0 and width % 16 == 0
    assert 0.85 * 960 * 640 < height * width <= 960 * 640
    assert abs(np.log(width / height / (size[0] / size[1]))) < 0.02


def test_generation_size_of_a_small_budget():
    processor = ReferenceProcessor(area=96 * 96)
    assert processor.generation_size(500, 500) == (96, 96)
    height, width = processor.generation_size(1600, 900)
    assert (height, width) == (112, 64)
    assert ReferenceProcessor(area=256).generation_size(500, 100) == (16, 16)
    assert ReferenceProcessor(area=1024).generation_size(30, 1000) == (16, 64)
    assert ReferenceProcessor(area=1024).generation_size(1000, 30) == (64, 16)


def test_asked_size_is_kept_and_the_other_side_follows():
    processor = ReferenceProcessor()
    assert processor.generation_size(1000, 500, 640, 480) == (640, 480)
    assert processor.generation_size(1000, 500, height=640) == (640, 320)
    assert processor.generation_size(1000, 500, width=480) == (960, 480)
    with pytest.raises(ValueError, match="`height` is 650, but it has to be a positive multiple of 16, such as 656"):
        processor(coordinate_picture(50, 50), height=650)
    with pytest.raises(ValueError, match="`width` is -16"):
        processor(coordinate_picture(50, 50), width=-16)


def test_cover_keeps_the_middle():
    reference = ReferenceProcessor()(coordinate_picture(400, 200), height=96, width=96)
    assert reference.image.size == (96, 96) and (reference.height, reference.width) == (96, 96)
    pixels = np.asarray(reference.image).astype(float)
    np.testing.assert_allclose(pixels[48, [0, 95], 0], [255 * 0.25, 255 * 0.75], atol=3)
    np.testing.assert_allclose(pixels[[0, 95], 48, 1], [0, 255], atol=3)
    assert reference.motion is None and reference.scale is None and reference.face_crop is None


def person(stick_figure, width: int, height: int, **kwargs):
    return lambda picture: stick_figure(1, height, width, turn=0, **kwargs)


def test_person_off_the_middle_is_kept_in(stick_figure):
    def capture(picture):
        motion = stick_figure(1, 480, 832, turn=0)
        motion.body.joints[..., 0] += 1.1
        motion.body.keypoints[:] = project(motion.body.joints, motion.focal_length, 832, 480)
        motion.head.center[:, 0] += 1.1 * motion.focal_length / 3.2
        motion.face.boxes[:, [0, 2]] += 1.1 * motion.focal_length / 3.2
        return motion

    source = capture(None)
    reference = ReferenceProcessor(face_size=32)(coordinate_picture(832, 480), capture, height=320, width=160)
    keypoints = reference.motion.body.keypoints[0]
    assert (keypoints >= 0).all() and (keypoints < (160, 320)).all()
    # A keypoint shows the same place of the picture as before ...
    pixels = np.asarray(reference.image).astype(float)
    for joint in ("neck", "left_knee", "right_elbow"):
        x, y = keypoints[JOINT_INDEX[joint]].astype(int)
        place = source.body.keypoints[0, JOINT_INDEX[joint]] / (832, 480) * 255
        np.testing.assert_allclose(pixels[y, x, :2], place, atol=3)
    # ... and still is its joint's projection by the new camera.
    projected = project(reference.motion.body.joints, reference.motion.focal_length, 160, 320)
    np.testing.assert_allclose(projected[0], keypoints, atol=0.05)
    assert (reference.motion.width, reference.motion.height) == (160, 320)
    assert reference.motion.head.radius[0] == pytest.approx(source.head.radius[0] * 320 / 480)
    center = reference.motion.face.boxes.reshape(2, 2).mean(axis=0)
    np.testing.assert_allclose(center, reference.motion.head.center[0], atol=0.05)


def test_padded_picture_is_whole_and_keeps_its_keypoints(stick_figure):
    source = stick_figure(1, 480, 832, turn=0)
    reference = ReferenceProcessor(face_size=32, pad=True)(coordinate_picture(832, 480), source, height=320, width=160)
    pixels = np.asarray(reference.image).astype(float)
    assert not pixels[:110].any() and not pixels[210:].any()
    np.testing.assert_allclose(pixels[160, [0, 159], 0], [0, 255], atol=4)
    for joint in ("neck", "left_knee", "right_elbow"):
        x, y = reference.motion.body.keypoints[0, JOINT_INDEX[joint]].astype(int)
        place = source.body.keypoints[0, JOINT_INDEX[joint]] / (832, 480) * 255
        np.testing.assert_allclose(pixels[y, x, :2], place, atol=4)
    # A size that follows from the picture's aspect leaves nothing to pad.
    reference = ReferenceProcessor(area=160 * 96, pad=True)(coordinate_picture(832, 480))
    assert np.asarray(reference.image)[[0, -1], -1, 0].min() > 230


def test_person_too_tall_for_the_window_keeps_the_head(stick_figure):
    capture = person(stick_figure, 400, 800, distance=3.2)
    reference = ReferenceProcessor(face_size=32)(coordinate_picture(400, 800), capture, height=96, width=96)
    head = reference.motion.head
    assert head.center[0, 1] - head.radius[0] >= 0
    assert reference.motion.body.keypoints[0, JOINT_INDEX["left_ankle"], 1] > 96
    assert reference.scale == "half_body"


def test_scale_from_the_joints(stick_figure):
    processor = ReferenceProcessor()
    full = stick_figure(1, 480, 832, turn=0)
    assert processor.decide_scale(full) == "full_body"
    half = stick_figure(1, 480, 832, turn=0, distance=1.6, down=0.5)
    assert (
        half.body.keypoints[0, JOINT_INDEX["left_hip"], 1] < 480 < half.body.keypoints[0, JOINT_INDEX["left_knee"], 1]
    )
    assert processor.decide_scale(half) == "half_body"
    portrait = stick_figure(1, 480, 480, turn=0, distance=0.7, down=0.62)
    assert processor.decide_scale(portrait) == "portrait"
    full.body.confidence[:, [JOINT_INDEX["left_ankle"], JOINT_INDEX["right_ankle"]]] = 0.3
    assert processor.decide_scale(full) == "half_body"
    full.body.confidence[:] = 0
    assert processor.decide_scale(full) is None
    full.body = None
    assert processor.decide_scale(full) is None


def test_full_body_gets_a_face(stick_figure):
    capture = person(stick_figure, 480, 800)
    picture = coordinate_picture(480, 800)
    reference = ReferenceProcessor(area=480 * 320, face_size=48)(picture, capture)
    assert reference.scale == "full_body"
    assert reference.picture.size == (480, 800) and reference.image.size == (reference.width, reference.height)
    assert reference.face_crop.size == (48, 48)
    middle = np.asarray(reference.face_crop)[24, 24, :2].astype(float)
    np.testing.assert_allclose(middle, capture(None).head.center[0] / (480, 800) * 255, atol=3)


def test_capture_as_an_object_with_a_method(stick_figure):
    class Capture:
        def capture(self, picture):
            assert picture.size == (200, 300) and picture.mode == "RGB"
            return stick_figure(1, 300, 200, turn=0)

    assert ReferenceProcessor(area=96 * 64)(coordinate_picture(200, 300), Capture()).motion.body is not None


def test_pictures_are_upright_and_opaque(tmp_path):
    turned = coordinate_picture(60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    picture = load_picture(tmp_path / "turned.png")
    assert picture.size == (40, 60)
    assert picture.getpixel((39, 0)) == turned.getpixel((0, 0))
    clear = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    clear.paste((0, 0, 200, 255), (0, 0, 4, 8))
    picture = load_picture(clear)
    assert picture.mode == "RGB" and picture.getpixel((6, 2)) == (255, 255, 255)
    assert picture.getpixel((1, 2)) == (0, 0, 200)
    palette = Image.new("P", (4, 4))
    palette.putpalette([10, 20, 30])
    assert load_picture(palette).getpixel((0, 0)) == (10, 20, 30)
    array = np.full((5, 6, 3), 9, dtype=np.uint8)
    assert load_picture(array).size == (6, 5)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_grey_of_16_bits_keeps_its_shades(tmp_path, mode):
    values = np.linspace(0, 65535, 64 * 32).reshape(32, 64)
    dtype = {"I;16": "<u2", "I;16B": ">u2", "I": "i4"}[mode]
    deep = Image.fromarray(values.astype(dtype))
    assert deep.mode == mode
    for picture in (load_picture(deep), Image.fromarray(next(iter(VideoReader([deep]))))):
        assert picture.mode == "RGB"
        np.testing.assert_allclose(np.asarray(picture)[..., 1], values / 257, atol=1)
    # 8 bits in a wider type are left as they are.
    shades = np.arange(256, dtype=np.int32).reshape(8, 32)
    np.testing.assert_array_equal(np.asarray(load_picture(Image.fromarray(shades)))[..., 0], shades)
    if mode == "I;16":
        deep.save(tmp_path / "clear.png", transparency=0)
        picture = load_picture(tmp_path / "clear.png")
        assert picture.getpixel((0, 0)) == (255, 255, 255) and picture.getpixel((0, 16)) == (128, 128, 128)


def test_a_pose_in_pixels_of_another_picture(stick_figure, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    coordinate_picture(120, 80).save(tmp_path / "turned.png", exif=exif)
    pose = stick_figure(1, 120, 80, turn=0)
    processor = ReferenceProcessor(area=96 * 64)
    assert processor(tmp_path / "turned.png", pose).motion.body is not None
    message = "`capture` .* is in pixels of a 80x120 picture, but the upright picture is 120x80"
    for capture in (pose, lambda picture: pose):
        with pytest.raises(ValueError, match=message):
            processor(coordinate_picture(120, 80), capture)


def test_bad_pictures(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(FileNotFoundError, match="`image` names no file"):
        load_picture(str(tmp_path / "none.png"))
    with pytest.raises(OSError, match="`image` is not a picture"):
        load_picture(tmp_path / "text.png")
    with pytest.raises(OSError, match="`image` is a folder"):
        load_picture(tmp_path)
    coordinate_picture(64, 64).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:100])
    with pytest.raises(OSError, match="`image` is not a picture"):
        load_picture(tmp_path / "cut.png")
    with pytest.raises(ValueError, match="`image` is a list"):
        load_picture([1, 2])
    with pytest.raises(ValueError, match=r"`image` is an array of shape \(5, 5, 2\)"):
        load_picture(np.zeros((5, 5, 2), np.uint8))


def test_complementary_frames(stick_figure):
    motion = stick_figure(31, turn=0)
    angles = np.concatenate([np.linspace(0, 40, 11), np.linspace(40, -60, 20)])
    motion.head.rotation = Rotation.from_euler("y", -angles[:, None], degrees=True).as_matrix().astype(np.float32)
    yaw = motion.yaw()
    least, median, greatest = pick_complementary_frames(motion)
    assert yaw[least] == yaw.min() and yaw[greatest] == yaw.max()
    assert abs(yaw[median] - np.median(yaw)) < 3
    assert pick_complementary_frames(motion, 1) == [least]
    assert pick_complementary_frames(motion, 2) == [least, greatest]
    five = pick_complementary_frames(motion, 5)
    assert len(set(five)) == 5 and (np.diff(yaw[five]) > 0).all()
    motion.head.confidence[[least, greatest]] = 0.1
    assert not {least, greatest} & set(pick_complementary_frames(motion, 4))
    assert len(pick_complementary_frames(motion[:2], 3)) == 2
    with pytest.raises(ValueError, match="`count` is 0"):
        pick_complementary_frames(motion, 0)


def test_config_round_trip(tmp_path):
    ReferenceProcessor(area=96 * 96, size_multiple=8, face_size=64).save_pretrained(tmp_path)
    config = ReferenceProcessor.from_pretrained(tmp_path).config
    assert (config.area, config.size_multiple, config.face_size) == (96 * 96, 8, 64)
    with pytest.raises(ValueError, match="`area` is 100"):
        ReferenceProcessor(area=100)
    with pytest.raises(ValueError, match="`size_multiple` is 0"):
        ReferenceProcessor(size_multiple=0)
