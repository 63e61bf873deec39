import sys
from pathlib import Path

import pytest


SCRIPTS = Path(__file__).parents[2] / "examples" / "synthetic"


@pytest.fixture(scope="session")
def bodies(tmp_path_factory):
    """The avatars' body for NumPy and for PyTorch: 2 seconds once Anny's caches exist."""
    pytest.importorskip("anny", reason="the extra `synthetic` is not installed")
    sys.path.insert(0, str(SCRIPTS))
    from avatar_body import AvatarBody
    from batch_body import BatchBody

    folder = tmp_path_factory.mktemp("body")
    AvatarBody.pack(folder / "body.npz", num_people=30)
    BatchBody.pack(folder / "body.npz", folder / "body.safetensors")
    return AvatarBody(folder / "body.npz"), BatchBody.load(folder / "body.safetensors")
