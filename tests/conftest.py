import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest


os.environ.setdefault("HF_HUB_OFFLINE", "1")
# tiny tensors: a second thread costs more than it brings, and test processes share the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def capture_models() -> Path:
    """The folder of MediaPipe's landmarker files, where the machine has one."""
    folder = os.environ.get("DREAMACTOR_CAPTURE_MODELS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("DREAMACTOR_CAPTURE_MODELS names no folder with MediaPipe's landmarker files")
    return Path(folder)


@pytest.fixture(scope="session")
def media(capture_models) -> Path:
    """The folder of real videos and pictures beside the capture models."""
    folder = capture_models.parent / "media"
    if not folder.is_dir():
        pytest.skip("there is no folder `media` beside the capture models")
    return folder


@pytest.fixture(scope="session")
def picture() -> PIL.Image.Image:
    """A picture of 64 x 64 pixels with structure in it; tests do not change it."""
    x, y = np.meshgrid(np.linspace(0, 255, 64), np.linspace(0, 255, 64))
    return PIL.Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))
