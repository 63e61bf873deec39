import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training_clips import write_clip

from diffusers_dreamactor.training.dataset import PreparedClipDataset, check_prepared_clip, read_prepared_clip


def test_a_window_in_the_middle_is_driven_from_its_first_latents_last_frame(tmp_path):
    write_clip(tmp_path / "clip", 0, latent_frames=6)
    clip = read_prepared_clip(tmp_path / "clip")
    dataset = PreparedClipDataset(tmp_path, lengths=(3,), start_probability=0.0)
    starts = set()
    for seed in range(20):
        sample = dataset[0, seed]
        assert sample["continued"]
        matches = [s for s in range(4) if torch.equal(sample["latents"], clip["latents"][:, s : s + 3].float())]
        start = matches[0]
        starts.add(start)
        assert torch.equal(sample["maps"], clip["maps"][:, 4 * start : 4 * start + 9])
        assert torch.equal(sample["face"], clip["face"][4 * start : 4 * start + 9])
    assert starts == {1, 2, 3}


def test_a_window_at_the_start_is_not_continued(tmp_path):
    write_clip(tmp_path / "clip", 0, latent_frames=6)
    dataset = PreparedClipDataset(tmp_path, lengths=(3, 6), start_probability=1.0, face="motion_tokens")
    assert dataset.keys == [(4, 4, 3), (4, 4, 6)]
    sample = dataset[0, 3]
    assert not sample["continued"] and sample["motion_tokens"].shape == (9, 32) and "face" not in sample


def test_the_validator_names_what_is_wrong(tmp_path):
    for index in range(5):
        write_clip(tmp_path / f"clip{index}", index)
    assert check_prepared_clip(tmp_path / "clip0") == []

    (tmp_path / "clip1" / "guidance.safetensors").unlink()
    assert "guidance.safetensors is missing" in check_prepared_clip(tmp_path / "clip1")[0]

    for folder, change in {
        "clip2": lambda tensors: {"latents": tensors["latents"] * torch.nan},
        "clip3": lambda tensors: {"latents": tensors["latents"][:, :2].contiguous()},
        "clip4": lambda tensors: {"latents": tensors["latents"] * 40},
    }.items():
        path = tmp_path / folder / "latents.safetensors"
        tensors = load_file(path)
        save_file(tensors | change(tensors), path)
    assert "not finite" in check_prepared_clip(tmp_path / "clip2")[0]
    assert "9 frames, but 2 latent frames take 5" in check_prepared_clip(tmp_path / "clip3")[0]
    assert "standard deviation" in check_prepared_clip(tmp_path / "clip4")[0]


def test_a_broken_file_is_named(tmp_path):
    write_clip(tmp_path / "whole", 0)
    write_clip(tmp_path / "cut", 1)
    path = tmp_path / "cut" / "latents.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "cut: cannot be read" in check_prepared_clip(tmp_path / "cut")[0]
    with pytest.raises(ValueError, match="cannot be read, cut"):
        PreparedClipDataset(tmp_path, lengths=(3,))


def test_a_window_of_length_1_is_the_first_frame(tmp_path):
    write_clip(tmp_path / "clip", 0)
    clip = read_prepared_clip(tmp_path / "clip")
    dataset = PreparedClipDataset(tmp_path, lengths=(1,), start_probability=0.0)
    for seed in range(5):
        sample = dataset[0, seed]
        assert torch.equal(sample["latents"], clip["latents"][:, :1].float()) and not sample["continued"]
        assert torch.equal(sample["maps"], clip["maps"][:, :1])


def test_every_length_needs_a_weight(tmp_path):
    write_clip(tmp_path / "clip", 0)
    with pytest.raises(ValueError, match="`length_weights` has 1 numbers, but `lengths` has 2"):
        PreparedClipDataset(tmp_path, lengths=(2, 3), length_weights=(1.0,))


def test_a_folder_without_clips_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no prepared clips"):
        PreparedClipDataset(tmp_path)
    with pytest.raises(FileNotFoundError):
        PreparedClipDataset(tmp_path / "nowhere")


@pytest.mark.parametrize("face", ["face", "motion_tokens"])
def test_what_is_read_of_a_clip_is_the_window_alone(tmp_path, monkeypatch, face):
    write_clip(tmp_path / "clip", 0, latent_frames=31, size=(64, 64))
    arguments = {"lengths": (5,), "start_probability": 0.0, "face": "crops" if face == "face" else face}
    whole, sliced = (
        PreparedClipDataset(tmp_path, in_memory=True, **arguments),
        PreparedClipDataset(tmp_path, **arguments),
    )
    for seed in range(4):
        expected, found = whole[0, seed], sliced[0, seed]
        assert expected.keys() == found.keys() and face in found
        for name, value in expected.items():
            equal = torch.equal(found[name], value) if torch.is_tensor(value) else found[name] == value
            assert equal, name

    class CountingFile:
        def __init__(self, *arguments, **keywords):
            self.file = safe_open(*arguments, **keywords)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *exception):
            return self.file.__exit__(*exception)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def get_tensor(self, name):
            return self.get_slice(name)[:]

        def get_slice(self, name):
            return CountingSlice(self.file.get_slice(name))

    class CountingSlice:
        def __init__(self, part):
            self.part = part

        def __getitem__(self, index):
            tensor = self.part[index]
            read.append(tensor.numel() * tensor.element_size())
            return tensor

    read = []
    monkeypatch.setattr("diffusers_dreamactor.training.dataset.safe_open", CountingFile)
    sample = sliced[0, 0]
    # latents are stored in half the bytes, regions in a quarter
    used = {name: value.numel() * value.element_size() for name, value in sample.items() if torch.is_tensor(value)}
    for name, share in (("latents", 2), ("reference_latents", 2), ("regions", 4)):
        used[name] //= share
    # there is no sphere in the references' guidance
    used["reference_maps"] //= 2
    assert sum(read) == sum(used.values())
