import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from PIL import Image
from raw_clips import write_rendered_clip
from safetensors.torch import load_file

from diffusers_dreamactor import DreamActorPipeline
from diffusers_dreamactor.training.checkpointing import list_checkpoints, seed_step
from diffusers_dreamactor.training.dataset import PreparedClipDataset, collate_clips
from diffusers_dreamactor.training.objective import DreamActorObjective, ObjectiveConfig
from diffusers_dreamactor.training.sharding import check_sharding
from diffusers_dreamactor.training.stages import set_trainable

from ..processes import ScriptProcess, finish_together


COMMON = ["--cpu", "--mixed_precision", "no", "--lengths", "3", "--learning_rate", "1e-3", "--logging_steps", "1"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    names = ("transformer", "pose_encoder", "face_motion_encoder")
    return {
        f"{name}.{key}": value
        for name in names
        for key, value in load_file(folder / name / "diffusion_pytorch_model.safetensors").items()
    }


def losses(text: str) -> list[str]:
    return [
        line.split(" now ")[1].split()[0] for line in text.splitlines() if line.startswith("step") and " now " in line
    ]


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


def test_what_is_asked_for_when_a_run_goes_on_counts(run_script, model, clips, tmp_path):
    arguments = ["--model", model, "--data", clips, "--output", tmp_path, "--checkpointing_steps", 1, *COMMON]
    run_script("train_dreamactor.py", *arguments, "--max_train_steps", 1)
    changed = ["--learning_rate", 0, "--weight_decay", 0.5, "--ema_decay", 0]
    run_script("train_dreamactor.py", *arguments, "--max_train_steps", 2, *changed)
    first, second = (load_file(path / "model.safetensors") for path in list_checkpoints(tmp_path))
    assert all(torch.equal(first[name], second[name]) for name in first)
    optimizer = torch.load(list_checkpoints(tmp_path)[1] / "optimizer.bin")
    assert {group["weight_decay"] for group in optimizer["param_groups"]} == {0.5}
    # averages that forget everything are the weights themselves
    assert all(torch.equal(value, second[name]) for name, value in weights(tmp_path / "model").items())


def test_a_run_does_not_mix_with_an_earlier_one(run_script, model, clips, tmp_path):
    arguments = ["--model", model, "--data", clips, "--output", tmp_path, "--checkpointing_steps", 1, *COMMON]
    run_script("train_dreamactor.py", *arguments, "--max_train_steps", 2)
    for resume, later in (("no", "checkpoint-1, checkpoint-2"), ("checkpoint-1", "checkpoint-2")):
        with pytest.raises(ValueError, match=f"holds the later {later}: remove"):
            run_script("train_dreamactor.py", *arguments, "--max_train_steps", 3, "--resume", resume)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]


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


def test_a_model_with_text_and_image_states_trains(run_script, text_model, tmp_path, capsys):
    write_rendered_clip(tmp_path / "raw" / "7_0", 9, brightness=80, zoom=0.8)
    prepared = tmp_path / "prepared"
    run_script("prepare_dataset.py", "--clips", tmp_path / "raw", "--output", prepared, "--model", text_model)
    pipe = DreamActorPipeline.from_pretrained(text_model)
    batch = collate_clips([PreparedClipDataset(prepared, lengths=(3,))[0, 0]])
    picture = Image.fromarray(load_file(tmp_path / "raw" / "7_0" / "clip.safetensors")["references"][0].numpy())
    torch.testing.assert_close(batch["image_states"], pipe.encode_image(picture), atol=2e-3, rtol=2e-3)

    # which of the states reach the loss
    changes = {"text": "prompt_embeds", "negative text": "negative_prompt_embeds", "image": None}
    reached = {"none": {"text", "image"}, "drop_all": {"negative text"}, "drop_reference": {"text"}}
    for dropped, expected in reached.items():
        chances = dict.fromkeys(("drop_all", "drop_motion", "drop_reference", "drop_face"), 0.0)
        chances |= {} if dropped == "none" else {dropped: 1.0}
        found = set()
        with torch.no_grad():
            objective = DreamActorObjective.from_pipeline(pipe, ObjectiveConfig(**chances))
            loss = objective(batch, seed_step(0, 0))["loss"]
            for name, buffer in changes.items():
                changed = DreamActorObjective.from_pipeline(pipe, ObjectiveConfig(**chances))
                given = batch if buffer else batch | {"image_states": batch["image_states"].flip(-1)}
                if buffer:
                    setattr(changed, buffer, getattr(changed, buffer) + 1)
                if changed(given, seed_step(0, 0))["loss"] != loss:
                    found.add(name)
        assert found == expected, dropped
    # what every model of the pipeline can be made again from is not in checkpoints
    assert not any("prompt" in name for name in objective.state_dict())

    del batch["image_states"]
    with pytest.raises(ValueError, match="no `image_states`"):
        DreamActorObjective.from_pipeline(pipe, ObjectiveConfig(drop_all=0, drop_reference=0))(batch, seed_step(0, 0))
    arguments = ["--model", text_model, "--data", prepared, "--max_train_steps", 2, *COMMON]
    run_script("train_lora.py", *arguments, "--output", tmp_path / "lora", "--target_modules", "attn2.to_q")
    capsys.readouterr()
    run_script("train_dreamactor.py", *arguments, "--output", tmp_path / "run")
    assert len(losses(capsys.readouterr().out)) == 2


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


def test_still_pictures_train(model, clips):
    pipe = DreamActorPipeline.from_pretrained(model)
    dataset = PreparedClipDataset(clips, lengths=(1,))
    objective = DreamActorObjective.from_pipeline(pipe, ObjectiveConfig(initial_latent=1.0))
    with torch.no_grad():
        assert torch.isfinite(objective(collate_clips([dataset[0, 0]]), seed_step(0, 0))["loss"])


def test_the_stage_of_the_face_drops_nothing_but_references(model, clips):
    pipe = DreamActorPipeline.from_pretrained(model)
    batch = collate_clips([PreparedClipDataset(clips, lengths=(3,))[0, 0]])
    other = batch | {"reference_latents": batch["reference_latents"] + 1}
    for drop_reference in (0.0, 1.0):
        config = ObjectiveConfig(
            stage="2", drop_all=1.0, drop_motion=1.0, drop_face=1.0, drop_reference=drop_reference
        )
        if drop_reference:
            config.drop_all = 0.0
        objective = DreamActorObjective.from_pipeline(pipe, config)
        with torch.no_grad():
            changes = objective(batch, seed_step(0, 0))["loss"] != objective(other, seed_step(0, 0))["loss"]
        assert changes == (not drop_reference)


def test_a_repository_without_a_pose_encoder_is_not_trained(run_script, model, clips, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    index["pose_encoder"] = [None, None]
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
    arguments = ["--model", tmp_path / "model", "--output", tmp_path / "run"]
    for script in ("train_lora.py", "train_dreamactor.py"):
        with pytest.raises(ValueError, match="has no `pose_encoder`"):
            run_script(script, *arguments, "--data", clips, *COMMON, "--max_train_steps", 1)
    assert not (tmp_path / "run").exists()


def test_an_unknown_stage_and_nothing_to_train_are_errors(model):
    transformer = DreamActorPipeline.from_pretrained(model).transformer
    with pytest.raises(ValueError, match="'4'"):
        set_trainable("4", transformer, {})
    with pytest.raises(ValueError, match="nothing to train"):
        set_trainable("audio", transformer, {})
    with pytest.raises(ValueError, match="transformer.face_encodr"):
        set_trainable("3", transformer, {}, ("transformer.face_encodr",))
    with pytest.raises(ValueError, match="names transformer, but"):
        set_trainable("3", transformer, {}, ("transformer",))


def test_a_part_of_the_transformer_can_rest(model):
    transformer = DreamActorPipeline.from_pretrained(model).transformer
    set_trainable("3", transformer, {}, ("transformer.face_encoder",))
    resting = {name for name, parameter in transformer.named_parameters() if not parameter.requires_grad}
    assert resting and resting == {
        name for name, _ in transformer.named_parameters() if name.startswith("face_encoder.")
    }


TOGETHER = [*COMMON, "--warmup_steps", 0, "--max_train_steps", 2, "--checkpointing_steps", 1, "--drop_face", 0.29]
# as `accelerate launch` sets them for the configuration in the script's docstring; the last two choose CPUs
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "DreamActorTransformerBlock",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2",
}


def train_together(*arguments, sharded: bool = False) -> list[str]:
    """Trains in two processes; returns what each wrote."""
    scripts = [Path(__file__).parents[2] / "examples" / "train_dreamactor.py"]
    if sharded:
        scripts.insert(0, Path(__file__).parent / "launch_fsdp2_on_cpu.py")
    environment = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(29600 + os.getpid() % 300), "OMP_NUM_THREADS": "1"} | (FSDP2 if sharded else {})
    processes = [
        ScriptProcess(*scripts, *arguments, environment=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in (0, 1)
    ]
    return finish_together(processes)


@pytest.fixture(scope="module")
def replicated(model, clips, tmp_path_factory) -> tuple[Path, list[str]]:
    """A run of two processes under DDP, and what they wrote."""
    folder = tmp_path_factory.mktemp("replicated")
    return folder, train_together("--model", model, "--data", clips, "--output", folder, *TOGETHER)


def test_two_processes_train_together(replicated, model):
    folder, outputs = replicated
    # only the first process reports
    assert len(losses(outputs[0])) == 2 and not losses(outputs[1])
    before, after = weights(model), weights(folder / "model")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_sharded_processes_train_as_replicated_ones_and_resume_exactly(replicated, model, clips, tmp_path):
    # in a step one process is given a face and the other is not, in none are both without: there AdamW would see
    # gradients of zero instead of none
    chances = [[torch.rand(4, generator=seed_step(0, step, rank)) for rank in (0, 1)] for step in range(2)]
    drops = [[bool(chance[0] < 0.05 or chance[1] < 0.29) for chance in step] for step in chances]
    assert any(first != second for first, second in drops) and not any(first and second for first, second in drops)
    arguments = ["--model", model, "--data", clips, *TOGETHER]
    outputs = train_together(*arguments, "--output", tmp_path / "straight", sharded=True)
    straight = losses(outputs[0])
    assert len(straight) == 2 and not losses(outputs[1])
    torch.testing.assert_close(
        torch.tensor([float(loss) for loss in straight]),
        torch.tensor([float(loss) for loss in losses(replicated[1][0])]),
        rtol=1e-3,
        atol=0,
    )

    # the result is whole, and what DDP gives; in the mean, as Adam makes a full step of rounding in a gradient of zero
    before, found, expected = (
        weights(model),
        weights(tmp_path / "straight" / "model"),
        weights(replicated[0] / "model"),
    )
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in before.items()
    }
    difference = sum((found[name] - expected[name]).abs().sum() for name in before)
    change = sum((expected[name] - before[name]).abs().sum() for name in before)
    assert change > 0 and difference < 1e-3 * change
    loaded = DreamActorPipeline.from_pretrained(tmp_path / "straight" / "model").transformer.state_dict()
    assert all(torch.equal(value, found[f"transformer.{name}"]) for name, value in loaded.items())

    # every process has its share of the averaged weights back
    shutil.copytree(tmp_path / "straight" / "checkpoint-1", tmp_path / "resumed" / "checkpoint-1")
    resumed = train_together(*arguments, "--output", tmp_path / "resumed", sharded=True)[0]
    assert losses(resumed) == straight[1:]
    again = weights(tmp_path / "resumed" / "model")
    assert all(torch.equal(found[name], again[name]) for name in found)


@pytest.mark.parametrize("version, optimizer, message", [(1, "adamw", "`fsdp_version` is 1"), (2, "muon", "'muon'")])
def test_what_cannot_be_sharded_is_an_error(version, optimizer, message):
    with pytest.raises(ValueError, match=message):
        check_sharding(FullyShardedDataParallelPlugin(fsdp_version=version), optimizer)


def test_a_resumed_lora_is_bit_by_bit_the_uninterrupted_one(run_script, model, clips, tmp_path):
    arguments = ["--model", model, "--data", clips, "--rank", 4, "--checkpointing_steps", 2, *COMMON]
    run_script("train_lora.py", *arguments, "--output", tmp_path / "straight", "--max_train_steps", 4)
    for steps in (2, 4):
        run_script("train_lora.py", *arguments, "--output", tmp_path / "resumed", "--max_train_steps", steps)
    expected, found = (
        load_file(tmp_path / run / "pytorch_lora_weights.safetensors") for run in ("straight", "resumed")
    )
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    # the model that rests is not in the checkpoints
    checkpoint = list_checkpoints(tmp_path / "resumed")[-1]
    assert not (checkpoint / "model.safetensors").exists()
    assert load_file(checkpoint / "adapter.safetensors").keys() and not any(
        "base_layer" in name for name in load_file(checkpoint / "adapter.safetensors")
    )


def test_a_lora_is_read_by_the_pipeline(run_script, model, clips, tmp_path):
    arguments = ["--model", model, "--data", clips, "--output", tmp_path, "--rank", 4, "--max_train_steps", 2]
    arguments += ["--target_modules", "attn1.to_q", "attn1.to_v", "--lengths", 3, "--learning_rate", 0.01]
    run_script("train_lora.py", *arguments, "--alpha", 16, "--cpu", "--mixed_precision", "no")
    pipe = DreamActorPipeline.from_pretrained(model)
    before = pipe.transformer.blocks[0].attn1.to_q(torch.ones(1, 48))
    pipe.load_lora_weights(tmp_path)
    assert pipe.get_list_adapters()["transformer"]
    assert not torch.equal(pipe.transformer.blocks[0].attn1.to_q(torch.ones(1, 48)), before)
    # as strong as it was trained: alpha / rank
    assert set(pipe.transformer.blocks[0].attn1.to_q.scaling.values()) == {4.0}
