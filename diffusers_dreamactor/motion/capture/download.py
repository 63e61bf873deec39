"""MediaPipe's model bundles: where they lie, whether they are what they should be, and how to get them."""

import os
import uuid
import zipfile
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tqdm.auto import tqdm


CAPTURE_MODELS_VARIABLE = "DREAMACTOR_CAPTURE_MODELS"
MEDIAPIPE_BASE_URL = "https://storage.googleapis.com/mediapipe-models"

POSE_MODEL = "pose_landmarker_full.task"
HAND_MODEL = "hand_landmarker.task"
FACE_MODEL = "face_landmarker.task"

# File name -> its path under `MEDIAPIPE_BASE_URL` and the models that the bundle, a zip archive, must hold.
CAPTURE_MODELS = {
    POSE_MODEL: (
        "pose_landmarker/pose_landmarker_full/float16/latest",
        ("pose_detector.tflite", "pose_landmarks_detector.tflite"),
    ),
    HAND_MODEL: (
        "hand_landmarker/hand_landmarker/float16/latest",
        ("hand_detector.tflite", "hand_landmarks_detector.tflite"),
    ),
    FACE_MODEL: (
        "face_landmarker/face_landmarker/float16/latest",
        (
            "face_detector.tflite",
            "face_landmarks_detector.tflite",
            "face_blendshapes.tflite",
            "geometry_pipeline_metadata_landmarks.binarypb",
        ),
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
    folder: str | os.PathLike | None = None, base_url: str = MEDIAPIPE_BASE_URL, progress: bool = True
) -> Path:
    """
    Fetches the three MediaPipe bundles (20 MB, Apache-2.0) that `MediaPipeCapture` uses. Each is written aside, checked
    to be the bundle it should be, and then renamed, so a broken download leaves nothing behind; those that are there
    already are kept.

    Args:
        folder (`str` or `os.PathLike`, *optional*): where to (default: `default_capture_folder()`).
        base_url (`str`): where from, with MediaPipe's own paths below it.
        progress (`bool`): show a progress bar.

    Returns:
        The folder.

    Raises:
        OSError: a file cannot be fetched or written, or is not what it should be.
    """
    folder = default_capture_folder() if folder is None else Path(folder)
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
                with tqdm(total=total, unit="B", unit_scale=True, desc=name, disable=not progress) as bar:
                    while block := response.read(1 << 16):
                        file.write(block)
                        bar.update(len(block))
            check_capture_model(aside, name)
            os.replace(aside, target)
        except URLError as error:
            raise OSError(f"{name} cannot be fetched from {url}: {error}") from error
        finally:
            aside.unlink(missing_ok=True)
    return folder
