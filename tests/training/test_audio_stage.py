"""From a video with sound to a trained `AudioMotionEncoder`."""

import argparse
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from raw_clips import FigureCapture, write_video
from safetensors.torch import load_file, save_file
from training_clips import write_clip
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from diffusers_dreamactor import DreamActorPipeline
from diffusers_dreamactor.media import load_audio
from diffusers_dreamactor.pipelines.conditioning import speech_features
from diffusers_dreamactor.training.checkpointing import seed_step
from diffusers_dreamactor.training.dataset import PreparedClipDataset, check_prepared_clip, collate_clips
from diffusers_dreamactor.training.objective import DreamActorObjective, ObjectiveConfig
from diffusers_dreamactor.training.stages import set_trainable


FPS, NUM_FRAMES = 25.0, 13


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("video") / "talk.mp4"
    write_video(path, 25, fps=FPS)
    return path


@pytest.fixture(scope="module")
def spoken_clips(prepare_dataset, model, video, tmp_path_factory) -> Path:
    """Two prepared clips, frames 0 to 12 and 12 to 24 of the video."""
    folder = tmp_path_factory.mktemp("spoken")
    pipe = DreamActorPipeline.from_pretrained(model)
    arguments = argparse.Namespace(fps=None, num_frames=NUM_FRAMES, height=64, width=64, minimum_seen=0.9)
    encode_speech = partial(speech_features, feature_extractor=pipe.audio_feature_extractor)
    for clip in prepare_dataset.read_video_clips(video, FigureCapture(), arguments, pipe.motion_processor, 16000):
        prepare_dataset.prepare_clip(
            clip, pipe.vae.encode_video, pipe.motion_processor, folder, encode_speech=encode_speech
        )
    return folder


def audio_objective(pipe) -> DreamActorObjective:
    return DreamActorObjective(
        pipe.transformer, pipe.pose_encoder, None, ObjectiveConfig(stage="audio"), pipe.audio_motion_encoder
    )


def test_a_window_is_given_the_tokens_that_the_pipeline_makes_of_the_clips_sound(model, video, spoken_clips):
    pipe = DreamActorPipeline.from_pretrained(model)
    sound = load_audio(video, 16000)
    names = ["talk_0000", "talk_0001"]
    assert [check_prepared_clip(spoken_clips / name) for name in names] == [[], []]
    with torch.no_grad():
        # a clip is trained on with its own stretch of the sound alone
        stretches = [sound[start : start + round(NUM_FRAMES / FPS * 16000)] for start in (0, 12 * 640)]
        whole = [torch.from_numpy(pipe.encode_audio(stretch, FPS, NUM_FRAMES)) for stretch in stretches]
    assert (whole[0] - whole[1]).abs().max() > 0.05

    dataset = PreparedClipDataset(spoken_clips, (2,), start_probability=0.3, face="audio")
    starts, compared = set(), 0
    reach = math.ceil(pipe.audio_motion_encoder.context / (100 / FPS)) + 1
    for seed in range(12):
        samples = [dataset[index, seed + index] for index in (0, 1)]
        batch = collate_clips(samples)
        with torch.no_grad():
            tokens = audio_objective(pipe).encode_face(batch)
        for index, sample in enumerate(samples):
            start = int(sample["audio_window"][2])
            # the same frames as the rest of the window
            clip = load_file(spoken_clips / names[index] / "latents.safetensors")["latents"].float()
            assert torch.equal(sample["latents"], clip[:, start // 4 : start // 4 + 2])
            # at a clip's end the pipeline hears silence after it, and training nothing: so far as that reaches they differ
            alike = max(0, min(5, NUM_FRAMES - reach - start))
            expected = whole[index][start : start + alike]
            torch.testing.assert_close(tokens[index][:alike], expected, atol=1e-5, rtol=1e-5)
            compared += alike
            starts.add(start)
    assert starts == {0, 4, 8} and compared > 20


def test_clips_of_several_durations_share_a_batch(model, tmp_path):
    pipe = DreamActorPipeline.from_pretrained(model)
    random = torch.Generator().manual_seed(0)
    for index, latent_frames in enumerate((3, 5)):
        write_clip(tmp_path / f"clip{index}", index, latent_frames)
        length = 4 * (4 * latent_frames - 3) - 2
        features = torch.randn(length, 40, generator=random)
        save_file({"features": features}, tmp_path / f"clip{index}" / "audio.safetensors", {"features_per_frame": "4"})
    dataset = PreparedClipDataset(tmp_path, (2,), face="audio")
    samples = [dataset[0, 1], dataset[1, 2]]
    objective = audio_objective(pipe)
    with torch.no_grad():
        together = objective.encode_face(collate_clips(samples))
        alone = [objective.encode_face(collate_clips([sample])) for sample in samples]
    torch.testing.assert_close(together, torch.cat(alone))


def test_the_audio_stage_trains_the_audio_motion_encoder_and_nothing_else(run_script, model, spoken_clips, tmp_path):
    # left out of every batch, the face would teach nothing: this stage gives it all the same
    arguments = ["--stage", "audio", "--drop_all", 1, "--drop_face", 1, "--warmup_steps", 0, "--ema_decay", 0.5]
    arguments += ["--model", model, "--data", spoken_clips, "--output", tmp_path, "--lengths", 2, "--batch_size", 2]
    arguments += ["--cpu", "--mixed_precision", "no", "--learning_rate", 1e-3, "--max_train_steps", 2]
    run_script("train_dreamactor.py", *arguments)
    for name in ("transformer", "pose_encoder", "face_motion_encoder", "vae", "audio_motion_encoder"):
        before, after = (
            load_file(folder / name / "diffusion_pytorch_model.safetensors") for folder in (model, tmp_path / "model")
        )
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert before.keys() == after.keys()
        assert changed == (before.keys() if name == "audio_motion_encoder" else set()), name
    assert DreamActorPipeline.from_pretrained(tmp_path / "model").audio_feature_extractor.sampling_rate == 16000


def test_the_diffusion_loss_falls_as_the_audio_motion_encoder_learns(model, spoken_clips):
    pipe = DreamActorPipeline.from_pretrained(model)
    objective = audio_objective(pipe)
    parameters = set_trainable("audio", pipe.transformer, {"audio_motion_encoder": pipe.audio_motion_encoder})
    pipe.pose_encoder.requires_grad_(False)
    dataset = PreparedClipDataset(spoken_clips, (4,), face="audio")
    batch = collate_clips([dataset[0, 0], dataset[1, 0]])
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    losses = []
    for _ in range(12):
        loss = objective(batch, seed_step(0, 0))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and losses[-1] == min(losses)


def test_a_speech_encoders_features_last_as_long_as_the_frames():
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    encoder = Wav2Vec2Model(config).eval()
    with torch.no_grad():
        features, features_per_frame = speech_features(
            np.random.default_rng(0).standard_normal(16000).astype(np.float32),
            49,
            24.5,
            Wav2Vec2FeatureExtractor(),
            encoder,
        )
    assert features_per_frame == pytest.approx(50 / 24.5)
    # two seconds, filled up with silence; the last window would reach past their end
    assert features.shape == (1, 99, 16)


def test_clips_without_sound_are_an_error(tmp_path):
    for index in range(2):
        write_clip(tmp_path / f"clip{index}", index)
    save_file({"features": torch.rand(36, 40)}, tmp_path / "clip0" / "audio.safetensors", {"features_per_frame": "4"})
    with pytest.raises(ValueError, match=r"clips without sound \(1, the first is clip1\)"):
        PreparedClipDataset(tmp_path, (3,), face="audio")


def test_the_validator_knows_about_sound(tmp_path):
    features = torch.rand(36, 40)
    for index, (broken, problem) in enumerate(
        (
            (features, None),
            (features * torch.nan, "its audio features are not finite"),
            (torch.ones(36, 40), "it is silent"),
            (features[:20].clone(), "it has 20 audio features, but its 9 frames take 36"),
        )
    ):
        folder = tmp_path / f"clip{index}"
        write_clip(folder, index)
        save_file({"features": broken}, folder / "audio.safetensors", {"features_per_frame": "4"})
        found = check_prepared_clip(folder)
        assert len(found) == (problem is not None) and (problem or "") in "".join(found)
