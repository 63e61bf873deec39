import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffusers_dreamactor import DreamActorPipeline
from diffusers_dreamactor.training.checkpointing import list_checkpoints, seed_step
from diffusers_dreamactor.training.dataset import PreparedClipDataset, collate_clips
from diffusers_dreamactor.training.objective import DreamActorObjective, ObjectiveConfig
from diffusers_dreamactor.training.stages import set_trainable


COMMON = ["--cpu", "--mixed_precision", "no", "--lengths", "3", "--learning_rate", "1e-3", "--logging_steps", "1"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    names = ("transformer", "pose_encoder", "face_motion_encoder")
    return {
        f"{name}.{key}": value
        for name in names
        for key, value in load_file(folder / name / "diffusion_pytorch_model.safetensors").items()
    }


def losses(text: str) -> list[str]:
    return [line.split(" now ")[1].split()[0] for line in text.splitlines() if " now " in line]


def test_a_resumed_run_is_bit_by_bit_the_uninterrupted_one(run_script, model, clips, tmp_path, capsys):
    arguments = ["--model", model, "--data", clips, "--batch_size", 2, "--checkpointing_steps", 2, *COMMON]
    arguments += ["--optimizer", "muon"]
    run_script("train_dreamactor.py", *arguments, "--output", tmp_path / "straight", "--max_train_steps", 4)
    straight = losses(capsys.readouterr().out)
    run_script("train_dreamactor.py", *arguments, "--output", tmp_path / "resumed", "--max_train_steps", 2)
    first = losses(capsys.readouterr().out)
    run_script("train_dreamactor.py", *arguments, "--output", tmp_path / "resumed", "--max_train_steps", 4)
    second = losses(capsys.readouterr().out)
    assert len(straight) == 4 and first + second == straight
    expected, found = weights(tmp_path / "straight" / "model"), weights(tmp_path / "resumed" / "model")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [path.name for path in list_checkpoints(tmp_path / "resumed")] == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize("stage", ["1", "2"])
def test_a_stage_leaves_frozen_weights_untouched(run_script, model, clips, tmp_path, stage):
    arguments = ["--stage", stage, "--drop_all", 0, "--drop_motion", 0, "--ema_decay", 0.5]
    # stage 2 trains only the way of the face, so it leaves the face in all the same
    arguments += ["--warmup_steps", 0, "--drop_face", 1]
    run_script("train_dreamactor.py", "--model", model, "--data", clips, "--output", tmp_path, *arguments, "--max_train_steps", 3, *COMMON)  # fmt: skip
    before, after = weights(model), weights(tmp_path / "model")
    changed = {name for name in before if not torch.equal(before[name], after[name])}

    def of_the_face(name):
        return name.startswith("face_motion_encoder.") or ".face_attn." in name or "transformer.face_encoder." in name

    assert changed
    assert all(of_the_face(name) == (stage == "2") for name in changed)
    if stage == "2":
        assert any(name.startswith("face_motion_encoder.") for name in changed)
        assert any(".face_attn." in name for name in changed)
    else:
        assert any(name.startswith("pose_encoder.") for name in changed)


def test_dropped_conditions_do_not_reach_the_loss(model, clips):
    pipe = DreamActorPipeline.from_pretrained(model)
    dataset = PreparedClipDataset(clips, lengths=(3,))
    batch = collate_clips([dataset[0, 0], dataset[1, 1]])
    changes = {
        "reference": {"reference_latents": batch["reference_latents"] + 1},
        "pose": {"maps": 255 - batch["maps"]},
        "face": {"face": 255 - batch["face"]},
    }
    reached = {
        "drop_all": set(),
        "drop_motion": {"reference"},
        "drop_reference": {"pose", "face"},
        "drop_face": {"pose", "reference"},
        "none": {"pose", "reference", "face"},
    }
    for dropped, expected in reached.items():
        chances = dict.fromkeys(("drop_all", "drop_motion", "drop_reference", "drop_face"), 0.0)
        if dropped != "none":
            chances[dropped] = 1.0
        objective = DreamActorObjective(
            pipe.transformer, pipe.pose_encoder, pipe.face_motion_encoder, ObjectiveConfig(**chances)
        )
        with torch.no_grad():
            loss = objective(batch, seed_step(0, 0))["loss"]
            found = {
                name for name, change in changes.items() if objective(batch | change, seed_step(0, 0))["loss"] != loss
            }
        assert found == expected, dropped


def test_a_given_first_latent_is_not_in_the_loss(model, clips):
    pipe = DreamActorPipeline.from_pretrained(model)
    dataset = PreparedClipDataset(clips, lengths=(3,))
    batch = collate_clips([dataset[0, 0]])
    config = ObjectiveConfig(drop_all=0, drop_motion=0, drop_reference=0, drop_face=0, initial_latent=1.0)
    objective = DreamActorObjective(pipe.transformer, pipe.pose_encoder, pipe.face_motion_encoder, config)
    outputs = []
    handle = pipe.transformer.register_forward_hook(
        lambda module, inputs, output: outputs.append(output[0].requires_grad_().retain_grad() or output[0])
    )
    objective(batch, seed_step(0, 0))["loss"].backward()
    handle.remove()
    gradient = outputs[0].grad
    assert (gradient[:, :, 0] == 0).all() and (gradient[:, :, 1:] != 0).any()


def test_an_unknown_stage_and_nothing_to_train_are_errors(model):
    transformer = DreamActorPipeline.from_pretrained(model).transformer
    with pytest.raises(ValueError, match="'4'"):
        set_trainable("4", transformer, {})
    with pytest.raises(ValueError, match="nothing to train"):
        set_trainable("audio", transformer, {})


def test_a_part_of_the_transformer_can_rest(model):
    transformer = DreamActorPipeline.from_pretrained(model).transformer
    set_trainable("3", transformer, {}, ("transformer.face_encoder",))
    resting = {name for name, parameter in transformer.named_parameters() if not parameter.requires_grad}
    assert resting and resting == {
        name for name, _ in transformer.named_parameters() if name.startswith("face_encoder.")
    }


def test_two_processes_train_together(model, clips, tmp_path):
    script = Path(__file__).parents[2] / "examples" / "train_dreamactor.py"
    arguments = ["--model", model, "--data", clips, "--output", tmp_path, "--max_train_steps", 2, *COMMON]
    arguments += ["--warmup_steps", 0]
    environment = os.environ | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(29600 + os.getpid() % 300), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    # only the first process reports
    assert len(losses(outputs[0])) == 2 and not losses(outputs[1])
    before, after = weights(model), weights(tmp_path / "model")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_lora_is_read_by_the_pipeline(run_script, model, clips, tmp_path):
    arguments = ["--model", model, "--data", clips, "--output", tmp_path, "--rank", 4, "--max_train_steps", 2]
    arguments += ["--target_modules", "attn1.to_q", "attn1.to_v", "--lengths", 3, "--learning_rate", 0.01]
    run_script("train_lora.py", *arguments, "--cpu", "--mixed_precision", "no")
    pipe = DreamActorPipeline.from_pretrained(model)
    before = pipe.transformer.blocks[0].attn1.to_q(torch.ones(1, 48))
    pipe.load_lora_weights(tmp_path)
    assert pipe.get_list_adapters()["transformer"]
    assert not torch.equal(pipe.transformer.blocks[0].attn1.to_q(torch.ones(1, 48)), before)
