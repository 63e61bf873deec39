"""How files come onto the disk."""

import errno
import os

import numpy as np
import pytest
import torch

from diffusers_dreamactor.files import errors_naming
from diffusers_dreamactor.loaders.lora_pipeline import DreamActorLoraLoaderMixin
from diffusers_dreamactor.motion.tensor_file import write_arrays


def test_a_file_that_cannot_be_written_whole_is_named_and_nothing_is_left(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "motion.safetensors"
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Files may not grow beyond this, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, former[1]))
    try:
        with pytest.raises(OSError) as raised:
            write_arrays(path, {"a": np.zeros(100_000)}, {"format": "motion", "version": "1"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(path))
    assert os.listdir(tmp_path) == []


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, errors_naming("video.mp4"):
        open(tmp_path / "absent")
    assert raised.value.filename == str(tmp_path / "absent")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_a_lora_has_the_usual_permissions(tmp_path, umask):
    former = os.umask(umask)
    try:
        layers = {"blocks.0.attn1.to_q.lora_A.weight": torch.zeros(1, 4)}
        DreamActorLoraLoaderMixin.save_lora_weights(tmp_path, transformer_lora_layers=layers)
        DreamActorLoraLoaderMixin.save_lora_weights(tmp_path, layers, weight_name="named.safetensors")
    finally:
        os.umask(former)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("pytorch_lora_weights.safetensors", "named.safetensors"), 0o666 & ~umask)
