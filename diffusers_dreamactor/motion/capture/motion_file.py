"""Files that hold a motion already: BVH, keypoints of OpenPose and DWPose, parameters of SMPL-X."""

import os
from pathlib import Path

from diffusers_dreamactor.motion.capture.bvh import load_bvh_motion
from diffusers_dreamactor.motion.capture.openpose import load_openpose_motion
from diffusers_dreamactor.motion.capture.smplx import load_smplx_motion
from diffusers_dreamactor.motion.sequence import MotionSequence


__all__ = ["is_motion_file", "load_motion_file"]


def is_motion_file(path: str | os.PathLike) -> bool:
    """Whether a path is one that `load_motion_file` reads: `.bvh`, `.json`, `.npz`, or a folder of JSON files."""
    path = Path(path)
    return path.is_dir() or path.suffix.lower() in (".bvh", ".json", ".npz")


def load_motion_file(
    path: str | os.PathLike,
    fps: float | None = None,
    width: int | None = None,
    height: int | None = None,
    person: int | tuple[float, ...] | None = None,
    smplx: str | os.PathLike | None = None,
    hands: str | os.PathLike | None = None,
) -> MotionSequence:
    """
    A motion from a file, whichever of the formats it has.

    Args:
        path (`str` or `os.PathLike`): A `.bvh` file; a `.json` file, or a folder of them, of OpenPose or DWPose; or an `.npz`
            file of SMPL-X (4DHumans, AMASS).
        fps (`float`, *optional*): Rate of the result; keypoints do not say theirs and need it.
        width, height (`int`, *optional*): Of the picture in pixels; default: the file's, else 720 x 1280.
        person (*optional*): Of keypoints, whom to follow, see `load_openpose_motion`.
        smplx (`str` or `os.PathLike`, *optional*): SMPL-X's model file or folder; default: an average adult of the package
            `anny`.
        hands (`str` or `os.PathLike`, *optional*): HaMeR's hands beside SMPL-X.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that cannot be read, keypoints without `fps`, or an argument of another format.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix != ".npz" and (smplx is not None or hands is not None):
        name = "smplx" if smplx is not None else "hands"
        raise ValueError(f"`{name}` was given, but it is for an .npz file of SMPL-X, and this is {path.name}.")
    if suffix == ".bvh":
        size = {k: v for k, v in {"width": width, "height": height}.items() if v is not None}
        return load_bvh_motion(path, fps, **size)
    if suffix == ".npz":
        body_model = "anny" if smplx is None else "smplx"
        return load_smplx_motion(path, smplx, fps, width, height, hands=hands, body_model=body_model)
    if fps is None:
        raise ValueError(f"`fps` is needed: keypoints do not say their rate, and neither does {path.name}.")
    return load_openpose_motion(path, fps, width, height, person=person)
