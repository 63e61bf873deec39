"""Colours of video frames: whatever a file says they are, as 8-bit RGB of BT.709, upright and with square pixels."""

from fractions import Fraction

import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter


# Conversion between RGB and YUV without the default's bias of about one level.
EXACT_CONVERSION = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_EXACT_SCALING = Interpolation.LANCZOS | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT

# Luminance of the white of graphics and paper in HDR, cd/m^2 (ITU-R BT.2408, table 1); SDR's white.
_WHITE = 203.0
# Luminance of a pixel of HLG's full signal, and of PQ's where its file does not say it.
_NOMINAL_PEAK = 1000.0

# Linear RGB to linear BT.709 (D65 white throughout): BT.2020 as in ITU-R BT.2087 inverted, Display P3 from the
# chromaticities of SMPTE EG 432-1.
_TO_BT709 = {
    ColorPrimaries.BT2020: np.array(
        [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]],
        dtype=np.float32,
    ),
    ColorPrimaries.SMPTE432: np.array(
        [[1.224940, -0.224940, 0.0], [-0.042057, 1.042057, 0.0], [-0.019638, -0.078636, 1.098274]], dtype=np.float32
    ),
}


def pq_to_luminance(signal: np.ndarray) -> np.ndarray:
    """PQ's EOTF (SMPTE ST 2084, ITU-R BT.2100 table 4): a signal in [0, 1] to cd/m^2 in [0, 10000]."""
    powered = np.clip(signal, 0, 1) ** (32 / 2523)
    return 10000 * (np.maximum(powered - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * powered)) ** (16384 / 2610)


def luminance_to_pq(luminance: np.ndarray) -> np.ndarray:
    """The inverse of [`pq_to_luminance`]."""
    powered = (np.maximum(luminance, 0) / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * powered) / (1 + 2392 / 128 * powered)) ** (2523 / 32)


def hlg_to_scene(signal: np.ndarray) -> np.ndarray:
    """The inverse of HLG's OETF (ARIB STD-B67, ITU-R BT.2100 table 5): a signal in [0, 1] to scene light in [0, 1]."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    signal = np.clip(signal, 0, 1)
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def tone_map(luminance: np.ndarray, peak: float) -> np.ndarray:
    """
    The EETF of ITU-R BT.2390-11, section 5.4.1: luminance up to `peak` compressed into [0, 203] cd/m^2, by a Hermite spline
    over PQ's signal that leaves what is dark as it is.

    Args:
        luminance (`np.ndarray`): cd/m^2; above `peak` counts as `peak`.
        peak (`float`): the brightest that occurs, cd/m^2.
    """
    if peak <= _WHITE:
        return np.minimum(luminance, _WHITE)
    whole = luminance_to_pq(np.array(peak))
    target = luminance_to_pq(np.array(_WHITE)) / whole
    knee = 1.5 * target - 0.5
    signal = np.minimum(luminance_to_pq(luminance) / whole, 1)
    t = np.maximum(signal - knee, 0) / (1 - knee)
    curve = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * target
    return pq_to_luminance(np.where(signal < knee, signal, curve) * whole)


# The matrices that files name (ITU-T H.273, table 4) and the one that reads them.
_MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}


class FrameConverter:
    """
    Converts the frames of one video to uint8 RGB arrays `(height, width, 3)` of BT.709.

    Range and matrix are what the file says; where it says no matrix, BT.709 from 1280 pixels of width or 577 of height on
    and BT.601 below, as players take it. HDR (PQ or HLG) is shown as on a display of 1,000 cd/m^2, its reference white
    of 203 cd/m^2 (ITU-R BT.2408) becomes SDR's white by [`tone_map`] of the largest component, and the result is encoded
    for BT.1886's gamma of 2.4. Wide gamuts (BT.2020, Display P3) are converted to BT.709, what lies outside is clipped.
    Pixels that are not square are enlarged to squares, transparent parts become white, the display matrix is applied.

    Args:
        frame (`VideoFrame`): the first one; the others are taken as of its size and kind.
        pixel_aspect (`Fraction`, *optional*): width of a pixel over its height.
    """

    def __init__(self, frame: VideoFrame, pixel_aspect: Fraction | None = None):
        aspect = pixel_aspect or Fraction(1)
        self._reformatter = VideoReformatter()
        self._size = (frame.width, frame.height)
        if aspect > 1:
            self._size = (round(frame.width * aspect), frame.height)
        elif aspect < 1:
            self._size = (frame.width, round(frame.height / aspect))
        self._is_scaled = self._size != (frame.width, frame.height)
        self._rotation = round(frame.rotation / 90) % 4
        self.width, self.height = self._size[::-1] if self._rotation % 2 else self._size
        self._transfer, self._matrix = frame.color_trc, _TO_BT709.get(frame.color_primaries)
        is_hdr = self._transfer in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
        if is_hdr and self._matrix is None:
            self._matrix = _TO_BT709[ColorPrimaries.BT2020]
        peak = _NOMINAL_PEAK
        for side_data in frame.side_data if self._transfer == ColorTrc.SMPTE2084 else ():
            if side_data.type == SideData.CONTENT_LIGHT_LEVEL:
                peak = float(np.frombuffer(bytes(side_data), dtype=np.uint32)[0]) or peak
        if self._matrix is None:
            return
        # Tables instead of powers of every pixel: signals in 1/16383, light in 1/4095 of its square root.
        signal = np.arange(16384) / 16383
        if self._transfer == ColorTrc.SMPTE2084:
            light = pq_to_luminance(signal) / _WHITE
        elif self._transfer == ColorTrc.ARIB_STD_B67:
            light = hlg_to_scene(signal)
        else:
            light = signal**2.4
        self._light = light.astype(np.float32)
        self._signal = np.rint(255 * (np.arange(4096) / 4095) ** (2 / 2.4)).astype(np.uint8)
        self._gain = None
        if is_hdr:
            luminance = 10000 * (np.maximum(np.arange(16384), 1) / 16383) ** 4
            self._gain = (tone_map(luminance, peak) / luminance).astype(np.float32)

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        has_alpha = frame.format.name == "pal8" or any(component.is_alpha for component in frame.format.components)
        matrix = _MATRICES.get(frame.colorspace)
        if matrix is None and not frame.format.is_rgb:
            matrix = Colorspace.ITU709 if frame.width >= 1280 or frame.height > 576 else Colorspace.ITU601
            matrix = Colorspace.BT2020 if frame.color_primaries == ColorPrimaries.BT2020 else matrix
        picture = self._reformatter.reformat(
            frame,
            width=self._size[0],
            height=self._size[1],
            format="gbrpf32le" if self._matrix is not None else "rgba" if has_alpha else "rgb24",
            src_colorspace=matrix,
            src_color_range=frame.color_range,
            dst_color_range=ColorRange.JPEG,
            interpolation=_EXACT_SCALING if self._is_scaled else EXACT_CONVERSION,
        ).to_ndarray()
        if self._matrix is not None:
            picture = self._to_bt709(picture)
        elif has_alpha:
            opacity = picture[..., 3:].astype(np.uint16)
            picture = ((picture[..., :3] * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
        return np.ascontiguousarray(np.rot90(picture, self._rotation))

    def _to_bt709(self, picture: np.ndarray) -> np.ndarray:
        """Non-linear RGB `(H, W, 3)` float32 of the file's primaries and transfer to uint8 of BT.709."""
        light = self._light[(picture.clip(0, 1) * 16383 + 0.5).astype(np.uint16)]
        if self._transfer == ColorTrc.ARIB_STD_B67:
            # The OOTF of ITU-R BT.2100, with gamma 1.2 for a display of 1,000 cd/m^2.
            scene = light @ np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)
            light *= (_NOMINAL_PEAK / _WHITE) * scene[..., None] ** np.float32(0.2)
        light = np.maximum(light @ self._matrix.T, 0)
        if self._gain is not None:
            brightness = light.max(axis=2)
            place = (brightness * (_WHITE / 10000)).clip(0, 1) ** np.float32(0.25)
            light *= self._gain[(place * 16383 + 0.5).astype(np.uint16)][..., None]
        return self._signal[(np.sqrt(light.clip(0, 1)) * 4095 + 0.5).astype(np.uint16)]
