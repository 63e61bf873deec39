"""Still pictures of every kind that people have, and animated ones as drivers."""

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features

from diffusers_dreamactor.frame_sources import VideoFile
from diffusers_dreamactor.masks import mask_frames
from diffusers_dreamactor.media import VideoReader
from diffusers_dreamactor.pictures import load_picture


# Chromaticities x, y of red, green, blue, with the white D65.
DISPLAY_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE_RGB = ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060))


def xyz_of(primaries):
    """`(3, 3)`: linear RGB to XYZ, for the white D65."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    return columns * np.linalg.solve(columns, white)


def matrix_profile(primaries, gamma):
    """The bytes of an ICC profile (version 2) of three primaries and one gamma."""
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50, d65 = np.array([0.9642, 1, 0.8249]), xyz_of(DISPLAY_P3).sum(axis=1)
    adapted = np.linalg.inv(bradford) @ np.diag((bradford @ d50) / (bradford @ d65)) @ bradford @ xyz_of(primaries)

    def number(value):
        return int(round(value * 65536)).to_bytes(4, "big", signed=True)

    def xyz(values):
        return b"XYZ \0\0\0\0" + b"".join(map(number, values))

    curve = b"curv\0\0\0\0" + (1).to_bytes(4, "big") + int(round(gamma * 256)).to_bytes(2, "big") + b"\0\0"
    text = b"desc\0\0\0\0" + (5).to_bytes(4, "big") + b"test\0" + b"\0" * 79
    tags = {b"desc": text, b"wtpt": xyz(d50), b"cprt": b"text\0\0\0\0none\0\0\0\0"}
    tags |= {name: xyz(adapted[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, data = len(tags).to_bytes(4, "big"), b""
    for name, value in tags.items():
        value += b"\0" * (-len(value) % 4)
        table += name + (128 + 4 + 12 * len(tags) + len(data)).to_bytes(4, "big") + len(value).to_bytes(4, "big")
        data += value
    header = b"\0" * 8 + b"\x02\x40\0\0" + b"mntrRGB XYZ " + b"\0" * 12 + b"acsp" + b"\0" * 28
    header += b"".join(map(number, d50))
    header += b"\0" * (128 - len(header))
    return (128 + len(table) + len(data)).to_bytes(4, "big") + (header + table + data)[4:]


def to_linear(values):
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encoded(primaries, gamma, colour):
    """An sRGB colour in another RGB space."""
    srgb = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
    light = np.linalg.solve(xyz_of(primaries), xyz_of(srgb) @ to_linear(np.array(colour) / 255))
    return tuple(np.rint(255 * light.clip(0, 1) ** (1 / gamma)).astype(int).tolist())


@pytest.mark.parametrize("colour", [(230, 40, 40), (40, 180, 70), (30, 60, 200), (128, 128, 128), (240, 200, 170)])
@pytest.mark.parametrize("primaries, gamma", [(DISPLAY_P3, 2.2), (ADOBE_RGB, 2.2)])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_profiles_are_applied(tmp_path, primaries, gamma, colour, suffix):
    picture = Image.new("RGB", (16, 16), encoded(primaries, gamma, colour))
    path = tmp_path / f"picture{suffix}"
    options = {".webp": {"lossless": True}, ".jpg": {"quality": 100}}.get(suffix, {})
    picture.save(path, icc_profile=matrix_profile(primaries, gamma), **options)
    np.testing.assert_allclose(np.asarray(load_picture(path))[8, 8], colour, atol=5)
    # Of pictures in memory, and of frames of a video, too; and once only.
    with Image.open(path) as opened:
        loaded = load_picture(opened)
        np.testing.assert_allclose(np.asarray(loaded)[8, 8], colour, atol=5)
        np.testing.assert_array_equal(np.asarray(load_picture(loaded)), np.asarray(loaded))
        np.testing.assert_array_equal(next(iter(VideoReader([opened]))), np.asarray(loaded))


def test_profiles_of_palettes_and_of_transparent_pictures(tmp_path):
    profile = matrix_profile(DISPLAY_P3, 2.2)
    picture = Image.new("RGBA", (16, 16), (*encoded(DISPLAY_P3, 2.2, (230, 40, 40)), 255))
    picture.paste((0, 0, 0, 0), (0, 0, 8, 16))
    for kind in ("RGBA", "P"):
        path = tmp_path / f"{kind}.png"
        (picture if kind == "RGBA" else picture.quantize(4)).save(path, icc_profile=profile)
        read = np.asarray(load_picture(path))
        np.testing.assert_array_equal(read[8, 2], (255, 255, 255))
        np.testing.assert_allclose(read[8, 12], (230, 40, 40), atol=6)


def test_a_grey_profile(tmp_path):
    gamma = b"curv\0\0\0\0" + (1).to_bytes(4, "big") + (256).to_bytes(2, "big") + b"\0\0"  # linear light
    white = b"XYZ \0\0\0\0" + b"".join(int(v * 65536).to_bytes(4, "big") for v in (0.9642, 1, 0.8249))
    tags, data = {b"wtpt": white, b"kTRC": gamma}, b""
    table = len(tags).to_bytes(4, "big")
    for name, value in tags.items():
        table += name + (128 + 28 + len(data)).to_bytes(4, "big") + len(value).to_bytes(4, "big")
        data += value
    header = b"\0" * 8 + b"\x02\x40\0\0" + b"mntrGRAYXYZ " + b"\0" * 12 + b"acsp" + b"\0" * 28 + white[8:]
    header += b"\0" * (128 - len(header))
    profile = (128 + len(table) + len(data)).to_bytes(4, "big") + (header + table + data)[4:]
    path = tmp_path / "grey.png"
    Image.new("L", (8, 8), 55).save(path, icc_profile=profile)
    # 55 / 255 of the light is 128 of sRGB.
    np.testing.assert_allclose(np.asarray(load_picture(path))[4, 4], (128, 128, 128), atol=2)


def test_cmyk_without_a_profile_and_a_broken_profile(tmp_path):
    path = tmp_path / "cmyk.jpg"
    Image.new("RGB", (16, 16), (200, 40, 40)).convert("CMYK").save(path, quality=100)
    np.testing.assert_allclose(np.asarray(load_picture(path))[8, 8], (200, 40, 40), atol=6)
    Image.new("RGB", (16, 16), (200, 40, 40)).save(tmp_path / "broken.png", icc_profile=b"this is no profile")
    np.testing.assert_array_equal(np.asarray(load_picture(tmp_path / "broken.png"))[8, 8], (200, 40, 40))
    # A profile of another number of channels than the picture has.
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("CMYK", (16, 16), (0, 200, 200, 50)).save(tmp_path / "other.jpg", icc_profile=srgb)
    assert load_picture(tmp_path / "other.jpg").mode == "RGB"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_a_profile_of_another_mode_than_the_picture_has_now(mode, caplog):
    """As tools leave it that change the mode and keep the profile: the colours are as without it, or converted."""
    picture = Image.new("RGB", (16, 16), (200, 60, 40))
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        picture = ImageCms.profileToProfile(picture, *profiles, outputMode="LAB")
    else:
        picture = picture.convert("L").convert("LA") if mode == "LA" else picture.convert(mode)
    plain = np.asarray(load_picture(picture)).astype(int)
    picture.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_allclose(np.asarray(load_picture(picture)), plain, atol=3)
    assert not caplog.records


@pytest.mark.parametrize(
    "mode, value, expected", [("F", 0.5, 128), ("F", 128.0, 128), ("I", 40000, 156), ("La", 90, 90)]
)
def test_rare_modes(mode, value, expected):
    picture = Image.new("LA", (8, 8), (value, 255)).convert("La") if mode == "La" else Image.new(mode, (8, 8), value)
    np.testing.assert_array_equal(np.asarray(load_picture(picture))[4, 4], [expected] * 3)


def test_pictures_of_every_type(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "png")
    (tmp_path / "picture.png").write_bytes(stream.getvalue())
    stream.seek(0)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    with open(tmp_path / "picture.png", "rb") as file:
        for form in (
            array,
            array / 255,
            array.astype(np.float16) / 255,
            tensor,
            tensor / 255,
            (tensor / 255)[None],
            file,
            stream,
        ):
            np.testing.assert_allclose(np.asarray(load_picture(form)).astype(int), array, atol=form is not array)
    np.testing.assert_array_equal(np.asarray(load_picture(array[..., 0]))[..., 2], array[..., 0])
    for form, message in (
        (array * 1.0, "`image` of a floating-point type has to be in"),
        (np.full((4, 4, 3), np.nan), "spans nan to nan"),
        (array.astype(int), "type int64, but it has to be"),
        (tensor[None].repeat(2, 1, 1, 1), r"`image` is a tensor of shape \(2, 3, 12, 16\)"),
        (b"picture", "`image` is a bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            load_picture(form)
    with pytest.raises(OSError, match="`image` is not a picture that can be read"):
        load_picture(io.BytesIO(b"no picture"))


def test_heic_without_its_extra_names_it(tmp_path, monkeypatch):
    path = tmp_path / "photo.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(OSError, match="`image` is a HEIC picture, which needs the extra `heic`"):
        load_picture(path)


def test_heic(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    path = tmp_path / "photo.heic"
    Image.new("RGB", (64, 48), (200, 40, 40)).save(path, quality=95)
    read = load_picture(path)
    assert read.size == (64, 48)
    np.testing.assert_allclose(np.asarray(read)[24, 32], (200, 40, 40), atol=6)


def test_too_many_pixels_are_one_sentence(tmp_path, monkeypatch, recwarn):
    path = tmp_path / "large.png"
    Image.new("1", (300, 300)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    assert load_picture(path).size == (300, 300) and not recwarn.list
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    with pytest.raises(OSError, match="`image` has more than 0 million pixels"):
        load_picture(path)


def test_animated_webp_keeps_its_times(tmp_path):
    frames = [Image.new("RGB", (24, 16), (40 * i, 0, 0)) for i in range(6)]
    path = tmp_path / "moving.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[40, 40, 40, 80, 40, 40], lossless=True)
    reader = VideoReader(path)
    assert (reader.width, reader.height, reader.fps, len(reader), reader.has_audio) == (24, 16, 25, 7, False)
    assert [int(frame[0, 0, 0]) // 40 for frame in reader] == [0, 1, 2, 3, 3, 4, 5]
    assert [int(frame[0, 0, 0]) // 40 for frame in reader.frames(4, 6)] == [3, 4]
    # A still picture is a video of one frame, whatever its name ends in.
    frames[2].save(tmp_path / "still.mp4", format="webp", lossless=True)
    assert [int(frame[0, 0, 0]) for frame in VideoReader(tmp_path / "still.mp4")] == [80]
    with pytest.raises(ValueError, match="`video` is not a video that can be read"):
        (tmp_path / "broken.webp").write_bytes(path.read_bytes()[:60])
        VideoReader(tmp_path / "broken.webp")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_animated_avif_is_read_whole(tmp_path):
    frames = [Image.new("RGB", (32, 16), (40 * i, 0, 0)) for i in range(6)]
    path = tmp_path / "moving.avif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40, quality=100, speed=10)
    reader = VideoReader(path)
    assert (reader.fps, len(reader)) == (25, 6)
    assert [round(frame[8, 8, 0] / 40) for frame in reader] == [0, 1, 2, 3, 4, 5]


def test_an_animated_picture_of_too_many_pixels_is_one_sentence(tmp_path, monkeypatch):
    Image.new("RGB", (64, 64)).save(tmp_path / "large.webp")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="`video` is not a video that can be read .*exceeds limit"):
        VideoReader(tmp_path / "large.webp")


def test_videos_are_told_by_what_they_hold(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 0, 0)).save(stream, "gif")
    (tmp_path / "still.webp").write_bytes(stream.getvalue())
    assert type(VideoReader(tmp_path / "still.webp")._source) is VideoFile


MASK = np.zeros((5, 12, 16), dtype=bool)
MASK[1:, 3:6, 4:8] = True


@pytest.mark.parametrize(
    "masks",
    [
        MASK,
        MASK[..., None],
        MASK.astype(np.uint8),
        MASK.astype(np.int64),
        MASK.astype(np.uint8) * 255,
        MASK.astype(np.float32),
        MASK.astype(np.float64)[..., None],
        np.repeat(MASK[..., None], 3, axis=-1),
        np.repeat(MASK[..., None], 3, axis=-1).astype(np.uint8) * 255,
        list(MASK),
        [frame[..., None].astype(np.float32) for frame in MASK],
        [Image.fromarray(frame) for frame in MASK],
        [Image.fromarray(frame.astype(np.uint8) * 255) for frame in MASK],
        torch.from_numpy(MASK),
        torch.from_numpy(MASK).float(),
        torch.from_numpy(MASK)[:, None],
        torch.from_numpy(MASK)[:, None].half(),
        torch.from_numpy(MASK)[:, None].repeat(1, 3, 1, 1),
        list(torch.from_numpy(MASK)),
    ],
    ids=lambda masks: str(getattr(masks, "dtype", type(masks[0]))) + str(getattr(masks, "shape", "")),
)
def test_masks_of_any_usual_form(masks):
    expected = np.repeat(MASK[..., None], 3, axis=-1) * 255
    np.testing.assert_array_equal(np.stack(list(VideoReader(masks))), expected)
    np.testing.assert_array_equal(mask_frames(masks), expected)


RGBA = np.concatenate([np.full((*MASK.shape, 3), 255, np.uint8), MASK[..., None].astype(np.uint8) * 255], axis=-1)


@pytest.mark.parametrize(
    "masks",
    [
        MASK * 255.0,
        MASK[:, None],
        MASK[None, ..., None],
        np.repeat(MASK[..., None], 3, axis=-1).astype(np.uint8),
        np.repeat(MASK[:, None], 3, axis=1).astype(np.uint8) * 255,
        RGBA,
        torch.from_numpy(MASK)[..., None],
        torch.from_numpy(MASK).float()[None, None],
        torch.from_numpy(MASK).bfloat16()[None, :, None],
        torch.from_numpy(MASK).float()[None, None].repeat(1, 3, 1, 1, 1),
        torch.from_numpy(MASK).float() * 1.0002 - 1e-4,
        [Image.fromarray(frame.astype(np.uint8)) for frame in MASK],
        [Image.fromarray(frame.astype(np.float32)) for frame in MASK],
        [Image.fromarray(frame) for frame in RGBA],
        list(torch.from_numpy(MASK)[:, None]),
        list(torch.from_numpy(MASK)[:, None].repeat(1, 3, 1, 1)),
    ],
    ids=lambda masks: str(getattr(masks, "dtype", type(masks[0]))) + str(getattr(masks, "shape", "")),
)
def test_masks_whose_form_only_a_mask_can_have(masks):
    np.testing.assert_array_equal(mask_frames(masks), np.repeat(MASK[..., None], 3, axis=-1) * 255)


@pytest.mark.parametrize("mask", [MASK[1], MASK[1][..., None], Image.fromarray(MASK[1]), torch.from_numpy(MASK[1])])
def test_a_single_mask(mask):
    np.testing.assert_array_equal(mask_frames(mask), np.repeat(MASK[1:2, ..., None], 3, axis=-1) * 255)


@pytest.mark.parametrize(
    "mask, message",
    [
        (MASK * 2.0 - 1, "spans -1 to 1, but"),
        (MASK * 300, "spans 0 to 300, but"),
        (MASK * np.nan, "spans nan to nan"),
        (np.zeros((2, 2, 8, 8, 3)), r"has shape \(2, 2, 8, 8, 3\)"),
        ([MASK[0], MASK[0, :5]], "needs masks of one size"),
        ([], "has none"),
        (["mask.png"], "is of type str"),
    ],
)
def test_what_is_no_mask_is_named(mask, message):
    with pytest.raises(ValueError, match=message):
        mask_frames(mask)


def test_masks_in_files_are_read_as_videos():
    reader = VideoReader(MASK)
    assert mask_frames("mask.mp4") == "mask.mp4" and mask_frames(reader) is reader
