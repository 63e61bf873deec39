"""Still pictures in: any format and colour space that people have, as upright 8-bit RGB of sRGB."""

import importlib
import io
import os
import warnings
from typing import BinaryIO

import numpy as np
import torch
from diffusers.utils import logging
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError


__all__ = ["cover", "load_picture", "to_rgb"]

logger = logging.get_logger(__name__)

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
# The brands of HEIF files with HEVC pictures (ISO/IEC 23008-12, annex B), at byte 8.
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def cover(picture: Image.Image, height: int, width: int) -> Image.Image:
    """A picture scaled to cover a size in pixels, and cut around its middle."""
    scale = max(width / picture.width, height / picture.height)
    half = np.array([width, height]) / scale / 2
    middle = np.array([picture.width, picture.height]) / 2
    # Rounding must not push it over the edge, which Pillow declines.
    box = (*np.maximum(middle - half, 0).tolist(), *np.minimum(middle + half, 2 * middle).tolist())
    return picture.resize(
        (width, height), Image.Resampling.BILINEAR if picture.mode == "F" else Image.Resampling.LANCZOS, box=box
    )


def to_rgb(picture: Image.Image) -> Image.Image:
    """
    A PIL image as 8-bit RGB of sRGB: its ICC profile is applied (relative colorimetric, black points aligned), transparent
    parts become white, and grey of 16 bits is scaled to 8, where Pillow would clip it to white.
    """
    if picture.mode == "La":
        picture = picture.convert("LA")
    if picture.mode == "P" and picture.has_transparency_data:
        picture = picture.convert("RGBA")
    opacity = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    profile = picture.info.get("icc_profile")
    if picture.mode == "F" and picture.getextrema()[0] >= 0 and picture.getextrema()[1] <= 1:
        picture = Image.fromarray(np.rint(np.asarray(picture) * 255).astype(np.uint8))
    # Pillow also holds 16 bits as "I", the mode of 32-bit integers; values up to 255 there are those of 8 bits.
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.getextrema()[1] > 255):
        picture = Image.fromarray(np.rint(np.asarray(picture) / 257).clip(0, 255).astype(np.uint8))
    if profile:
        # A profile is for the picture's channels without a palette or opacity.
        plain = picture.convert({"LA": "L", "1": "L", "I": "L", "F": "L"}.get(picture.mode, picture.mode))
        plain = plain if plain.mode in ("L", "CMYK", "LAB") else plain.convert("RGB")
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            # Where a tool changed the mode and left the profile, the profile still says what the colours were.
            kind = {"GRAY": "L", "RGB": "RGB"}.get(source.profile.xcolor_space.strip(), plain.mode)
            plain = plain if plain.mode == kind else plain.convert(kind)
            picture = ImageCms.profileToProfile(
                plain,
                source,
                _SRGB,
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                outputMode="RGB",
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            logger.warning(f"A picture's colour profile cannot be applied ({error}): its colours are taken as sRGB.")
    picture = picture.convert("RGB")
    if opacity is not None:
        picture = Image.composite(picture, Image.new("RGB", picture.size, "white"), opacity)
    picture.info.pop("icc_profile", None)
    picture.info.pop("transparency", None)
    return picture


def load_picture(
    image: Image.Image | str | os.PathLike | BinaryIO | np.ndarray | torch.Tensor, name: str = "image"
) -> Image.Image:
    """
    A picture as upright RGB of sRGB: EXIF orientation and ICC profile applied, transparent parts white, 16-bit grey scaled to
    8 bits. HEIC needs the extra `heic`.

    Args:
        image (`PIL.Image.Image`, path, binary file, `np.ndarray` or `torch.Tensor`):
            Arrays are `(H, W)`, `(H, W, 3)` or `(H, W, 4)`, tensors `(3, H, W)` or `(1, 3, H, W)`; uint8, or
            floating-point in [0, 1].
        name (`str`): what errors call it.

    Raises:
        OSError: no such file, no picture in it, or one of more pixels than Pillow opens.
        ValueError: another type, shape, dtype or range.
    """
    if isinstance(image, (str, os.PathLike)) or hasattr(image, "read"):
        image = _open_picture(image, name)
    elif isinstance(image, torch.Tensor):
        values = image.detach().cpu()
        values = values[0] if values.ndim == 4 and len(values) == 1 else values
        if values.ndim != 3 or len(values) != 3:
            raise ValueError(f"`{name}` is a tensor of shape {tuple(image.shape)}, but it has to be (3, H, W).")
        values = values.float() if values.is_floating_point() else values
        image = _array_to_picture(values.permute(1, 2, 0).numpy(), name)
    elif isinstance(image, np.ndarray):
        image = _array_to_picture(image, name)
    elif not isinstance(image, Image.Image):
        raise ValueError(
            f"`{name}` is a {type(image).__name__}, but it has to be a PIL image, a path, an array or a tensor."
        )
    return to_rgb(ImageOps.exif_transpose(image))


def _array_to_picture(image: np.ndarray, name: str) -> Image.Image:
    is_picture = (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))) and 0 not in image.shape
    if not is_picture or (image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating)):
        raise ValueError(
            f"`{name}` is an array of shape {image.shape} and type {image.dtype}, but it has to be (H, W, 3), uint8 or"
            " floating-point in [0, 1]."
        )
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        if not 0 <= low <= high <= 1:
            raise ValueError(f"`{name}` of a floating-point type has to be in [0, 1], but spans {low:g} to {high:g}.")
        image = np.rint(image.astype(np.float32) * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(image))


def _open_picture(path, name: str) -> Image.Image:
    """The picture of a path or of a binary file."""
    if hasattr(path, "read"):
        path, data = getattr(path, "name", "its data"), path.read()
    elif os.path.isdir(path):
        raise IsADirectoryError(f"`{name}` is a folder, but a picture is needed: {path}")
    elif not os.path.exists(path):
        raise FileNotFoundError(f"`{name}` names no file: {path}")
    else:
        data = None
    try:
        if data is None:
            with open(path, "rb") as file:
                start = file.read(32)
        else:
            start = data[:32]
        # AVIF files may have HEIF's general brands, too; Pillow reads them by itself.
        if start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS and b"avif" not in start:
            try:
                importlib.import_module("pillow_heif").register_heif_opener()
            except ImportError as error:
                raise OSError(
                    f"`{name}` is a HEIC picture, which needs the extra `heic` (`pip install pillow-heif`): {path}"
                ) from error
        with warnings.catch_warnings():
            # Between Pillow's limit and twice that it warns; such a picture fits into memory.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path if data is None else io.BytesIO(data)) as opened:
                opened.load()
                return opened
    except Image.DecompressionBombError as error:
        raise OSError(
            f"`{name}` has more than {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels, which Pillow declines to open:"
            f" make it smaller: {path}"
        ) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if str(error).startswith("`"):
            raise
        raise OSError(f"`{name}` is not a picture that can be read ({error}): {path}") from error
