"""How files come onto the disk: with the usual permissions, and with errors that name them."""

import contextlib
import errno
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError


__all__ = ["errors_naming", "give_usual_permissions"]

# No space, no quota, too large a file, nothing that can be written to.
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", None), errno.EFBIG, errno.EROFS)


def give_usual_permissions(path: str | os.PathLike) -> None:
    """Gives a file the permissions that the umask gives a new one; safetensors' own are for its owner alone."""
    path = Path(path)
    new = path.with_name(f".{uuid.uuid4().hex}.part")
    new.touch()
    try:
        path.chmod(new.stat().st_mode & 0o777)
    finally:
        new.unlink()


@contextlib.contextmanager
def errors_naming(path: str | os.PathLike) -> Iterator[None]:
    """
    For the writing of a file that is written aside first: what the system says (a full disk) names the file that was asked
    for, whichever library passes it on.

    Raises:
        OSError: what was said, as `[Errno 28] No space left on device: 'video.mp4'`.
    """
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code), os.fspath(path)) from error
    except OSError as error:
        if error.errno is None or error.errno not in _FULL:
            raise
        raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error
