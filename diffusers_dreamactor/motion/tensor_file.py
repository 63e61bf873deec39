"""One safetensors file of arrays with the name and version of its format: how motions and guidance are stored."""

import os
import uuid
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file


def write_arrays(path: str | os.PathLike, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """
    Writes arrays and metadata aside and renames the file, so that nothing half-written is left.

    Args:
        path (`str` or `os.PathLike`): the file; its folder is made when it is not there.
        arrays (`dict[str, np.ndarray]`): what to store.
        metadata (`dict[str, str]`): with at least `format` and `version`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, aside, metadata=metadata)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_arrays(
    path: str | os.PathLike, format_name: str, version: str, what: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """
    Reads what `write_arrays` wrote.

    Args:
        path (`str` or `os.PathLike`): the file.
        format_name (`str`), version (`str`): what its metadata has to say.
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
    if metadata["version"] != version:
        raise ValueError(f"{path} has {what} format version {metadata['version']}; this version reads {version}.")
    return arrays, metadata
