import subprocess
import sys


def test_a_start_says_nothing_about_torchvision():
    code = (
        "import diffusers_dreamactor; from diffusers_dreamactor.library_messages import quiet_libraries\n"
        "quiet_libraries(); import transformers, diffusers\n"
        "transformers.utils.logging.get_logger('transformers.utils.import_utils').warning('a hint')\n"
        "list(diffusers.utils.logging.tqdm(range(3), desc='Loading components'))\n"
        "diffusers.utils.logging.get_logger('diffusers_dreamactor.media').warning('of use')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torchvision" not in result.stderr and "a hint" not in result.stderr
    assert "Loading components" not in result.stderr and "of use" in result.stderr


def test_an_import_says_nothing():
    """Also where torchao is installed, which Diffusers imports, with kernels that do not fit the machine."""
    result = subprocess.run(
        [sys.executable, "-c", "import diffusers_dreamactor"], capture_output=True, text=True, check=True
    )
    assert (result.stdout, result.stderr) == ("", "")
