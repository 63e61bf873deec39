"""Small autoencoders from raw clips, through `examples/train_vae.py` itself."""

import math

import pytest
import torch
from raw_clips import write_rendered_clip, write_video

from diffusers_dreamactor.models.autoencoder_dreamactor import DreamActorVAE
from diffusers_dreamactor.training.linear_code import LinearCode
from diffusers_dreamactor.training.video_crops import VideoCropDataset


SMALL = [
    "--base_dim",
    8,
    "--decoder_base_dim",
    8,
    "--dim_mult",
    1,
    1,
    1,
    "--z_dim",
    4,
    "--cpu",
    "--mixed_precision",
    "no",
]
SMALL += ["--num_frames", 5, "--size", 32, "--batch_size", 2]


@pytest.fixture(scope="module")
def raw_clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    for index in range(3):
        write_rendered_clip(folder / f"{index}_0", 9, brightness=60 + 40 * index, zoom=0.7 + 0.1 * index)
    return folder


def test_clips_that_are_too_small_are_left_out(raw_clips, tmp_path):
    for name in ("0_0", "1_0"):
        (tmp_path / name).symlink_to(raw_clips / name)
    write_video(tmp_path / "short.mp4", num_frames=5)
    write_video(tmp_path / "long.mp4", num_frames=13)
    dataset = VideoCropDataset(tmp_path, num_frames=9, size=64)
    assert [path.parent.name if path.suffix == ".safetensors" else path.name for path in dataset.paths] == [
        "0_0",
        "1_0",
        "long.mp4",
    ]
    for index in range(3):
        item = dataset[index, index]
        assert item["video"].shape == (3, 9, 64, 64) and item["weight"].shape == (1, 9, 64, 64)
        assert item["video"].min() >= -1 and item["video"].max() <= 1 and item["video"].std() > 0.05
    with pytest.raises(ValueError, match="4 clips, but none has 17 frames of 64x64"):
        VideoCropDataset(tmp_path, num_frames=17, size=64)


def test_a_new_autoencoder_has_normalised_latents(run_script, raw_clips, tmp_path):
    arguments = ["--data", raw_clips, "--output", tmp_path, *SMALL]
    run_script("train_vae.py", *arguments, "--max_train_steps", 3, "--checkpointing_steps", 3)
    vae = DreamActorVAE.from_pretrained(tmp_path / "vae")
    videos = torch.stack([VideoCropDataset(raw_clips, 5, 32)[index, index]["video"] for index in range(3)])
    with torch.no_grad():
        latents = vae.encode_video(videos)
    assert latents.shape == (3, 4, 2, 4, 4)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3, 4)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3, 4)), torch.ones(4), atol=0.02, rtol=0)


def test_an_autoencoder_learns_the_teachers_code(run_script, raw_clips, tmp_path, capsys):
    arguments = ["--data", raw_clips, "--output", tmp_path, "--teacher", "linear", "--teacher_clips", 3, *SMALL]
    run_script("train_vae.py", *arguments, "--max_train_steps", 60, "--learning_rate", 5e-3)
    reports = [line.split() for line in capsys.readouterr().out.splitlines() if "unexplained" in line]
    unexplained = [float(words[words.index("unexplained") + 1]) for words in reports]
    assert len(unexplained) == 3 and unexplained[-1] < 0.7 * unexplained[0]

    vae, code = DreamActorVAE.from_pretrained(tmp_path / "vae"), LinearCode.load(tmp_path / "linear_code.safetensors")
    video = VideoCropDataset(raw_clips, 5, 32)[0, 0]["video"][None]
    with torch.no_grad():
        error = (vae.encode_video(video) - code.encode(video)).square().mean()
    assert math.sqrt(error) < 1
    # the decoder goes on alone, from the autoencoder that is there
    arguments += ["--train", "decoder", "--vae", tmp_path / "vae"]
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    run_script("train_vae.py", *arguments, "--max_train_steps", 62)
    after = DreamActorVAE.from_pretrained(tmp_path / "vae").state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed and changed <= {"decoder", "post_quant_conv"}
