"""One safetensors file of arrays with the name and version of its format: how motions and guidance are stored."""

import io
import os
import uuid
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from diffusers_dreamactor.files import errors_naming, give_usual_permissions


def write_arrays(path: str | os.PathLike, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """
    Writes arrays and metadata aside and renames the file, so that nothing half-written is left.

    Args:
        path (`str` or `os.PathLike`): the file; its folder is made when it is not there.
        arrays (`dict[str, np.ndarray]`): what to store.
        metadata (`dict[str, str]`): with at least `format` and `version`.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with errors_naming(path):
            save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, aside, metadata=metadata)
            give_usual_permissions(aside)
            os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_arrays(
    path: str | os.PathLike, format_name: str, versions: str | tuple[str, ...], what: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """
    Reads what `write_arrays` wrote.

    Args:
        path (`str` or `os.PathLike`): the file.
        format_name (`str`), versions (`str` or tuple of them): what its metadata has to say.
        what (`str`): what it should be, for the errors ("motion").

    Returns:
        The arrays and the metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file, or one of another format or version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`path` names no file: {path}")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file that holds a {what}: {error}") from error
    if metadata.get("format") != format_name:
        raise ValueError(
            f"{path} is not a {what} file: its metadata says format {metadata.get('format')!r}, not {format_name!r}."
        )
    versions = (versions,) if isinstance(versions, str) else versions
    if metadata["version"] not in versions:
        raise ValueError(
            f"{path} has {what} format version {metadata['version']}; this version reads {' and '.join(versions)}."
        )
    return arrays, metadata


def compress_pictures(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Pictures as JPEG files of quality 95 with full chroma, a twentieth to a fifth of their size.

    Args:
        pictures (`(F, H, W, 3)` uint8): RGB.

    Returns:
        The files one after the other, `(n,)` uint8, and where each ends, `(F,)` int64.
    """
    files = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(picture)).save(file, "jpeg", quality=95, subsampling=0)
        files.append(file.getvalue())
    return np.frombuffer(b"".join(files), dtype=np.uint8), np.cumsum([len(file) for file in files])


def decompress_pictures(files: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """
    What `compress_pictures` was given, `(F, H, W, 3)` uint8, but for the loss of JPEG.

    Raises:
        ValueError: a picture that cannot be read.
    """
    data, pictures = files.tobytes(), []
    for start, end in zip([0, *ends[:-1].tolist()], ends.tolist()):
        try:
            pictures.append(np.asarray(Image.open(io.BytesIO(data[start:end])).convert("RGB")))
        except OSError as error:
            raise ValueError(f"A compressed picture in the file cannot be read: {error}") from error
    return np.stack(pictures)
