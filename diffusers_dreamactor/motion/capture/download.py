"""MediaPipe's model bundles: where they lie, whether they are what they should be, and how to get them."""

import hashlib
import os
import uuid
import zipfile
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tqdm.auto import tqdm


CAPTURE_MODELS_VARIABLE = "DREAMACTOR_CAPTURE_MODELS"
CAPTURE_MIRROR_VARIABLE = "DREAMACTOR_CAPTURE_MIRROR"
MEDIAPIPE_BASE_URL = "https://storage.googleapis.com/mediapipe-models"

POSE_MODEL = "pose_landmarker_full.task"
HAND_MODEL = "hand_landmarker.task"
FACE_MODEL = "face_landmarker.task"

# File name -> its path under `MEDIAPIPE_BASE_URL`, with its version, and the models that the bundle, a zip archive, must
# hold, with their SHA-256. A mirror may have packed the same models anew, so the archive's own digest says less.
CAPTURE_MODELS = {
    POSE_MODEL: (
        "pose_landmarker/pose_landmarker_full/float16/1",
        {
            "pose_detector.tflite": "75913b017933bb47a36ec8fb80683615414695b037860b37522c4895ff9f6449",
            "pose_landmarks_detector.tflite": "8fffb858a5b2ec617a3117ac053d97f5cc4f04e21f64abdee69d52d75741a73e",
        },
    ),
    HAND_MODEL: (
        "hand_landmarker/hand_landmarker/float16/1",
        {
            "hand_detector.tflite": "1b14e9422c6ad006cde6581a46c8b90dd573c07ab7f3934b5589e7cea3f89a54",
            "hand_landmarks_detector.tflite": "11c272b891e1a99ab034208e23937a8008388cf11ed2a9d776ed3d01d0ba00e3",
        },
    ),
    FACE_MODEL: (
        "face_landmarker/face_landmarker/float16/1",
        {
            "face_detector.tflite": "b4578f35940bf5a1a655214a1cce5cab13eba73c1297cd78e1a04c2380b0152f",
            "face_landmarks_detector.tflite": "c7d54204ce0448474c7f3fa9af494787c0965cbdd6f20fc72867e43046bd43d5",
            "geometry_pipeline_metadata_landmarks.binarypb": "bdbcda96dfcb7da883da124aaa2c55dee49770d934f0fcc71747f8c21bdc75b4",
            "face_blendshapes.tflite": "4f36dded049db18d76048567439b2a7f58f1daabc00d78bfe8f3ad396a2d2082",
        },
    ),
}


def default_capture_folder() -> Path:
    """The folder that `DREAMACTOR_CAPTURE_MODELS` names, else `~/.cache/diffusers_dreamactor/capture`."""
    named = os.environ.get(CAPTURE_MODELS_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "diffusers_dreamactor" / "capture"


def check_capture_model(path: str | os.PathLike, name: str | None = None) -> None:
    """
    Checks that a file is the MediaPipe bundle `name` (default: its own file name): a whole zip archive with its models.

    Raises:
        OSError: it is not; the message says why.
    """
    path = Path(path)
    name = name or path.name
    try:
        with zipfile.ZipFile(path) as bundle:
            missing = sorted(set(CAPTURE_MODELS[name][1]) - set(bundle.namelist()))
            broken = None if missing else bundle.testzip()
    except zipfile.BadZipFile as error:
        raise OSError(f"{path} is not MediaPipe's bundle {name}: it is no zip archive ({error}).") from error
    if missing:
        raise OSError(f"{path} is not MediaPipe's bundle {name}: it lacks {', '.join(missing)}.")
    if broken:
        raise OSError(f"{path} is a damaged copy of MediaPipe's bundle {name}: {broken} fails its checksum.")


def download_capture_models(
    folder: str | os.PathLike | None = None, base_url: str | None = None, progress: bool = True
) -> Path:
    """
    Fetches the three MediaPipe bundles (20 MB, Apache-2.0) that `MediaPipeCapture` uses, of the versions that it was tested
    with. Each is written aside, its models compared with their SHA-256, and then renamed, so a broken download leaves nothing behind; those that are there
    already are kept.

    Args:
        folder (`str` or `os.PathLike`, *optional*): where to (default: `default_capture_folder()`).
        base_url (`str`, *optional*): where from, with MediaPipe's own paths below it: a mirror; by default what the variable
            `DREAMACTOR_CAPTURE_MIRROR` names, else MediaPipe's own address. Proxies are those of the usual variables, such
            as `HTTPS_PROXY`.
        progress (`bool`): show a progress bar.

    Returns:
        The folder.

    Raises:
        OSError: a file cannot be fetched or written, or is not what it should be.
    """
    folder = default_capture_folder() if folder is None else Path(folder)
    base_url = base_url or os.environ.get(CAPTURE_MIRROR_VARIABLE) or MEDIAPIPE_BASE_URL
    folder.mkdir(parents=True, exist_ok=True)
    for name, (location, _) in CAPTURE_MODELS.items():
        target = folder / name
        if target.is_file():
            check_capture_model(target)
            continue
        url = f"{base_url.rstrip('/')}/{location}/{name}"
        aside = folder / f".{name}.{uuid.uuid4().hex}.part"
        try:
            with urlopen(url, timeout=60) as response, open(aside, "wb") as file:
                total = int(response.headers.get("Content-Length") or 0) or None
                with tqdm(
                    total=total, unit="B", unit_scale=True, desc=name, disable=None if progress else True
                ) as bar:
                    while block := response.read(1 << 16):
                        file.write(block)
                        bar.update(len(block))
            check_capture_model(aside, name)
            with zipfile.ZipFile(aside) as bundle:
                for member, expected in CAPTURE_MODELS[name][1].items():
                    digest = hashlib.sha256(bundle.read(member)).hexdigest()
                    if digest != expected:
                        raise OSError(
                            f"{url} is not the version of {name} that was tested: {member} has the SHA-256 {digest} instead"
                            f" of {expected}."
                        )
            os.replace(aside, target)
        except URLError as error:
            raise OSError(f"{name} cannot be fetched from {url}: {error}") from error
        finally:
            aside.unlink(missing_ok=True)
    return folder
