"""What a process of its own says and loads when it imports the package."""

import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def started() -> tuple[str, str, str]:
    """Which extras an import loads and what it says, and what a command's start says after it."""
    code = (
        "import sys, diffusers_dreamactor\n"
        "extras = {'mediapipe', 'smplx', 'anny', 'controlnet_aux', 'xformers', 'gradio', 'torchvision', 'cv2'}\n"
        "print(*sorted(extras & set(sys.modules)))\n"
        "print('imported', file=sys.stderr)\n"
        "from diffusers_dreamactor.library_messages import quiet_libraries\n"
        "quiet_libraries(); import transformers, diffusers\n"
        "transformers.utils.logging.get_logger('transformers.utils.import_utils').warning('a hint')\n"
        "list(diffusers.utils.logging.tqdm(range(3), desc='Loading components'))\n"
        "diffusers.utils.logging.get_logger('diffusers_dreamactor.media').warning('of use')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout, *result.stderr.split("imported\n")


def test_an_import_loads_no_extra_and_prints_nothing(started):
    assert started[0] == "\n"


def test_an_import_says_nothing(started):
    """Also where torchao is installed, which Diffusers imports, with kernels that do not fit the machine."""
    assert started[1] == ""


def test_a_start_says_nothing_about_torchvision(started):
    said = started[2]
    assert "torchvision" not in said and "a hint" not in said
    assert "Loading components" not in said and "of use" in said
