"""Colours and geometry of real videos: transfer, gamut, matrix, range, depth, pixel aspect."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from PIL import Image

from diffusers_dreamactor.media import VideoReader
from diffusers_dreamactor.video_color import luminance_to_pq, pq_to_luminance, tone_map


BT709_TO_BT2020 = np.linalg.inv(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]]
)
BT709_TO_P3 = np.linalg.inv([[1.22494, -0.22494, 0], [-0.042057, 1.042057, 0], [-0.019638, -0.078636, 1.098274]])
PATCHES = [(0, 0, 0), (60, 60, 60), (128, 128, 128), (150, 90, 70), (40, 110, 60), (60, 70, 140), (160, 150, 40)]


def chart(width=112, height=32):
    """Patches of colours that SDR shows, side by side, uint8 `(H, W, 3)` BT.709."""
    colours = np.repeat(np.array(PATCHES, dtype=np.uint8), width // len(PATCHES), axis=0)
    return np.repeat(colours[None], height, axis=0)


def patches_of(picture):
    """The mean colour in the middle of each patch."""
    columns = np.array_split(picture, len(PATCHES), axis=1)
    return np.array([part[8:-8, 5:-5].mean(axis=(0, 1)) for part in columns])


def write_signal(
    path, signal, matrix, transfer, primaries, limited=True, pixels="yuv420p10le", aspect=None, degrees=0
):
    """A video of four frames that show the RGB `signal` in [0, 1], tagged with what it is."""
    colour_range = ColorRange.MPEG if limited else ColorRange.JPEG
    source = av.VideoFrame.from_ndarray(signal.astype(np.float32), format="gbrpf32le")
    tag = matrix or Colorspace.ITU601
    with av.open(str(path), "w") as container:
        codec = "libsvtav1" if str(path).endswith(".webm") else "libx264"
        stream = container.add_stream(codec, rate=24, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = *signal.shape[:2], pixels
        context = stream.codec_context
        context.color_range, context.color_trc, context.color_primaries = colour_range, transfer, primaries
        context.colorspace = 2 if matrix is None else matrix
        if aspect:
            context.sample_aspect_ratio = aspect
        if degrees:
            stream.set_display_rotation(degrees)
        for index in range(4):
            frame = source.reformat(
                format=pixels,
                src_color_range=ColorRange.JPEG,
                dst_color_range=colour_range,
                dst_colorspace=tag,
                interpolation=av.video.reformatter.Interpolation.ACCURATE_RND,
            )
            frame.pts, frame.time_base = index, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def hlg_signal(luminance):
    """BT.2100 HLG of BT.2020 light in cd/m^2, for a display of 1,000."""
    display = luminance / 1000
    brightness = np.maximum(display @ [0.2627, 0.6780, 0.0593], 1e-9)
    scene = display * brightness[..., None] ** (1 / 1.2 - 1)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".webm"])
@pytest.mark.parametrize("transfer", [ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67])
def test_hdr_looks_like_the_same_scene_in_sdr(tmp_path, transfer, suffix):
    light = 203 * (chart() / 255) ** 2.4 @ BT709_TO_BT2020.T
    signal = luminance_to_pq(light) if transfer == ColorTrc.SMPTE2084 else hlg_signal(light)
    path = tmp_path / f"hdr{suffix}"
    write_signal(path, signal, Colorspace.BT2020, transfer, ColorPrimaries.BT2020)
    read = next(iter(VideoReader(path)))
    np.testing.assert_allclose(patches_of(read), PATCHES, atol=6)


def test_hdr_highlights_are_compressed_and_not_clipped(tmp_path):
    light = np.array([100.0, 203, 400, 700, 1000])
    mapped = tone_map(light, 1000)
    assert (np.diff(mapped) > 0.3).all() and mapped[-1] == pytest.approx(203, abs=0.1)
    np.testing.assert_allclose(tone_map(np.array([0.0, 1, 40, 80]), 1000), [0, 1, 40, 80], atol=1e-6)
    np.testing.assert_allclose(tone_map(light, 203), np.minimum(light, 203))
    np.testing.assert_allclose(pq_to_luminance(luminance_to_pq(light)), light)
    # The signals that BT.2100 and BT.2408 state for 100, 203 and 1,000 cd/m^2.
    np.testing.assert_allclose(luminance_to_pq(np.array([100, 203, 1000])), [0.508, 0.58, 0.752], atol=2e-3)


@pytest.mark.parametrize("primaries", [ColorPrimaries.BT2020, ColorPrimaries.SMPTE432])
def test_wide_gamuts_in_sdr(tmp_path, primaries):
    to_wide = BT709_TO_BT2020 if primaries == ColorPrimaries.BT2020 else BT709_TO_P3
    matrix = Colorspace.BT2020 if primaries == ColorPrimaries.BT2020 else Colorspace.ITU709
    signal = np.maximum((chart() / 255) ** 2.4 @ to_wide.T, 0) ** (1 / 2.4)
    transfer = ColorTrc.BT2020_10 if primaries == ColorPrimaries.BT2020 else ColorTrc.BT709
    write_signal(tmp_path / "wide.mp4", signal, matrix, transfer, primaries)
    np.testing.assert_allclose(patches_of(next(iter(VideoReader(tmp_path / "wide.mp4")))), PATCHES, atol=5)


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv420p10le", "yuv444p"])
@pytest.mark.parametrize("limited", [True, False])
@pytest.mark.parametrize("matrix", [Colorspace.ITU709, Colorspace.ITU601, 6, None])
def test_matrices_ranges_and_depths(tmp_path, matrix, limited, pixels):
    transfer, primaries = (ColorTrc.BT709, ColorPrimaries.BT709) if matrix == 1 else (6, 6)
    write_signal(tmp_path / "v.mp4", chart() / 255, matrix, transfer, primaries, limited, pixels)
    np.testing.assert_allclose(patches_of(next(iter(VideoReader(tmp_path / "v.mp4")))), PATCHES, atol=3)


def test_a_large_video_without_a_matrix_has_bt709s(tmp_path):
    signal = np.broadcast_to(chart(16 * len(PATCHES))[:1], (720, 16 * len(PATCHES), 3)) / 255
    source = av.VideoFrame.from_ndarray(signal.astype(np.float32), format="gbrpf32le")
    frame = source.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, src_color_range=ColorRange.JPEG)
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = *signal.shape[:2], "yuv420p"
        frame = av.VideoFrame.from_ndarray(frame.to_ndarray(), format="yuv420p")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    np.testing.assert_allclose(patches_of(next(iter(VideoReader(tmp_path / "v.mp4")))), PATCHES, atol=4)


@pytest.mark.parametrize(
    "aspect, degrees, size",
    [
        (Fraction(4, 3), 0, (64, 32)),
        (Fraction(8, 9), 0, (48, 36)),
        (Fraction(4, 3), 90, (32, 64)),
        (Fraction(4, 3), 180, (64, 32)),
        (Fraction(8, 9), -90, (36, 48)),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_pixels_become_square_then_upright(tmp_path, aspect, degrees, size, suffix):
    signal = np.zeros((32, 48, 3))
    signal[:, :24] = 1  # the left half is white
    path = tmp_path / f"v{suffix}"
    write_signal(path, signal, Colorspace.ITU601, 6, 6, pixels="yuv420p", aspect=aspect, degrees=degrees)
    reader = VideoReader(path)
    picture = next(iter(reader)).mean(axis=2)
    assert (reader.width, reader.height) == size == picture.shape[::-1]
    upright = np.rot90(picture, -degrees // 90)  # as stored again
    assert upright[:, : upright.shape[1] // 2 - 4].min() > 230 and upright[:, upright.shape[1] // 2 + 4 :].max() < 25


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_transparent_parts_of_animated_pictures_are_white(tmp_path, suffix):
    frames = []
    for i in range(3):
        frame = np.zeros((16, 24, 4), dtype=np.uint8)
        frame[4:12, 4 + 4 * i : 10 + 4 * i] = (200, 30, 30, 255)
        frame[14, 1 + i] = (200, 30, 30, 255)
        frames.append(Image.fromarray(frame))
    path = tmp_path / f"moving{suffix}"
    options = {".gif": {"disposal": 2}, ".webp": {"lossless": True}, ".png": {"disposal": 1}}[suffix]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, loop=0, **options)
    reader = VideoReader(path)
    read = np.stack(list(reader))
    assert reader.fps == 10 and len(read) == 3
    assert read[:, 0, 0].min() > 250
    for i in range(3):
        np.testing.assert_allclose(read[i, 8, 7 + 4 * i], (200, 30, 30), atol=4)
