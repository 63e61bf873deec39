"""Speech to tokens, window by window, and what is not speech."""

import tracemalloc
import wave
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import torch
import transformers
from transformers import HubertConfig, HubertModel, Speech2TextFeatureExtractor, Wav2Vec2FeatureExtractor

from diffusers_dreamactor import DreamActorPipeline, speech
from diffusers_dreamactor.checkpoints import bundled_model, bundled_speech
from diffusers_dreamactor.checkpoints.random_pipeline import random_pipeline
from diffusers_dreamactor.media import load_audio
from diffusers_dreamactor.models.audio_motion_encoder import AudioMotionEncoder
from diffusers_dreamactor.motion.idle import idle_blinks
from diffusers_dreamactor.motion.skeleton import ARKIT_BLENDSHAPES
from diffusers_dreamactor.speech import add_blinks, iterate_speech_tokens, mix_by_interval
from diffusers_dreamactor.talking_face import iterate_speech_actions, speech_to_actions
from diffusers_dreamactor.training.action_tokens import ActionTokens


JAW = ARKIT_BLENDSHAPES.index("jawOpen")
RATE = 16000


@pytest.fixture(scope="module")
def spoken() -> np.ndarray:
    return load_audio(bundled_speech(), RATE)


@pytest.fixture
def small():
    torch.manual_seed(0)
    encoder = AudioMotionEncoder(feature_dim=24, hidden_dim=16, num_layers=2, kernel_size=3, motion_dim=4, stride=2)
    return encoder.eval(), Speech2TextFeatureExtractor(feature_size=24, num_mel_bins=24, do_ceptral_normalize=False)


def write_wav(path, samples, rate):
    """`(n,)` or `(n, 2)` in [-1, 1]."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return path


def jaw(audio, fps=25.0, **arguments) -> np.ndarray:
    return np.concatenate(list(iterate_speech_actions(audio, fps, **arguments)))[:, JAW]


@pytest.mark.parametrize("fps", [12.0, 25.0, 30000 / 1001])
def test_windows_make_the_whole(small, spoken, fps, monkeypatch):
    whole = np.concatenate(list(iterate_speech_tokens((spoken, RATE), fps, *small)))
    assert len(whole) == int(len(spoken) / RATE * fps + 1e-6)
    monkeypatch.setattr(speech, "WINDOW_SECONDS", 0.7)
    pieces = list(iterate_speech_tokens((spoken, RATE), fps, *small))
    assert len(pieces) > 3 and {len(piece) for piece in pieces[:-1]} == {int(0.7 * fps)}
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-4)
    # as many frames as asked for: silence follows the end
    np.testing.assert_allclose(
        np.concatenate(list(iterate_speech_tokens((spoken, RATE), fps, *small, num_frames=20))), whole[:20], atol=1e-4
    )
    longer = np.concatenate(list(iterate_speech_tokens((spoken, RATE), fps, *small, num_frames=len(whole) + 40)))
    np.testing.assert_allclose(longer[: len(whole)], whole, atol=1e-4)
    assert np.ptp(longer[-10:], axis=0).max() < 1e-5


def test_it_starts_where_it_is_told_to(small, spoken):
    whole = np.concatenate(list(iterate_speech_tokens((spoken, RATE), 25.0, *small)))
    later = np.concatenate(list(iterate_speech_tokens((spoken, RATE), 25.0, *small, start=0.4)))
    # what was said before is not heard any more, which matters for some frames only
    np.testing.assert_allclose(later[10:], whole[20:], atol=1e-4)


def test_memory_does_not_grow_with_the_length(small, tmp_path, monkeypatch):
    monkeypatch.setattr(speech, "WINDOW_SECONDS", 2.0)
    noise = np.random.default_rng(0).standard_normal(8000 * 60) * 0.1
    peaks = []
    for seconds in (10, 60):
        path = write_wav(tmp_path / f"{seconds}.wav", noise[: 8000 * seconds], 8000)
        tracemalloc.start()
        frames = sum(len(piece) for piece in iterate_speech_tokens(path, 12.0, *small))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert frames == 12 * seconds
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize("name", ["Wav2Vec2", "Hubert"])
def test_a_speech_encoder_hears_across_windows(spoken, monkeypatch, name):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        feat_extract_norm="layer",  # "group" normalises over all of a window
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    audio_encoder = getattr(transformers, f"{name}Model")(config).eval()
    encoder = AudioMotionEncoder(feature_dim=16, hidden_dim=16, num_layers=2, kernel_size=3, motion_dim=4).eval()
    parts = (encoder, Wav2Vec2FeatureExtractor(do_normalize=False), audio_encoder)
    whole = np.concatenate(list(iterate_speech_tokens((spoken, RATE), 25.0, *parts)))
    monkeypatch.setattr(speech, "WINDOW_SECONDS", 1.0)
    pieces = list(iterate_speech_tokens((spoken, RATE), 25.0, *parts))
    assert len(pieces) > 2
    assert np.abs(np.concatenate(pieces) - whole).mean() < 0.1 * whole.std()


@torch.no_grad()
def test_a_repository_takes_a_speech_encoder(spoken, tmp_path):
    torch.manual_seed(0)
    pipe = random_pipeline()
    config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    pipe.register_modules(
        audio_encoder=HubertModel(config).eval(),
        audio_feature_extractor=Wav2Vec2FeatureExtractor(),
        audio_motion_encoder=AudioMotionEncoder(feature_dim=16, motion_dim=pipe.transformer.config.motion_dim),
    )
    expected = pipe.encode_audio(spoken, 25.0)
    pipe.save_pretrained(tmp_path)
    loaded = DreamActorPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.audio_encoder, HubertModel)
    assert expected.shape == (int(len(spoken) / RATE * 25), pipe.transformer.config.motion_dim)
    np.testing.assert_allclose(loaded.encode_audio(spoken, 25.0), expected, atol=1e-5)


def test_the_bundled_model_speaks_as_the_talking_face_does():
    """Its tokens are standardised actions: the jaw's opens wider than in speech, rests lower, and closes further where lips press."""
    folder = Path(bundled_model())
    encoder = AudioMotionEncoder.from_pretrained(folder / "audio_motion_encoder").eval()
    extractor = Speech2TextFeatureExtractor.from_pretrained(folder / "audio_feature_extractor")
    tokens, actions = (
        np.concatenate(list(iterate_speech_tokens(bundled_speech(), 24.0, *models)))
        for models in ((encoder, extractor), speech_to_actions())
    )
    standard = ActionTokens.load(folder / "action_tokens.safetensors")
    row = standard.used.tolist().index(JAW)
    drawn = tokens[:, row] * float(standard.scale[row]) + float(standard.mean[row])
    pressed = actions[:, [ARKIT_BLENDSHAPES.index(f"mouthPress{side}") for side in ("Left", "Right")]].mean(axis=1)
    np.testing.assert_allclose(drawn, 4 * actions[:, JAW] - 2 * pressed - 0.7, atol=0.02)
    # those of "picture", "may", "open", "mouth" and "speak" are told from a mouth at rest
    assert (pressed > 0.3).sum() >= 5 and drawn[pressed > 0.3].max() < -0.9
    blinking = add_blinks(np.tile(tokens, (10, 1)), encoder, 24.0) - np.tile(tokens, (10, 1))
    closed = idle_blinks(np.arange(10 * len(tokens)) / 24.0)
    assert closed.max() > 0.5
    np.testing.assert_allclose(blinking, closed[:, None] * np.array(encoder.config.blink), atol=1e-5)
    assert add_blinks(tokens, AudioMotionEncoder(feature_dim=8, hidden_dim=8, motion_dim=32), 12.0) is tokens


def test_one_face_until_a_moment_and_another_one_after():
    sources = {"video": np.zeros((100, 3)), "speech": np.ones((100, 3))}
    mixed = mix_by_interval(sources, [(0, "video"), (2, "speech"), (3, "video")], fps=25.0)
    assert (mixed[:47] == 0).all() and (mixed[53:72] == 1).all() and (mixed[78:] == 0).all()
    assert np.abs(np.diff(mixed, axis=0)).max() < 0.5
    hard = mix_by_interval(sources, [(0, "video"), (2, "speech")], fps=25.0, fade=0)
    assert (hard[:50] == 0).all() and (hard[50:] == 1).all()
    np.testing.assert_array_equal(mix_by_interval({"a": np.arange(4.0)}, [(0, "a")], 25.0), np.arange(4))
    for intervals, message in (
        ([(1, "video")], "begin at"),
        ([(0, "video"), (3, "speech"), (2, "video")], "rise from 0"),
        ([(0, "song")], r"name \['song'\], but `sources` are \['speech', 'video'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            mix_by_interval(sources, intervals, 25.0)
    with pytest.raises(ValueError, match="`sources` have shapes"):
        mix_by_interval({**sources, "c": np.zeros((9, 3))}, [(0, "video")], 25.0)


def test_the_bundled_voice_opens_the_mouth(spoken):
    opening = jaw((spoken, RATE))
    assert opening.max() > 0.35 and opening.min() < 0.05
    level = np.add.reduceat(spoken**2, np.arange(0, len(spoken), RATE // 25))[: len(opening)]
    loud, quiet = level > np.percentile(level, 75), level < np.percentile(level, 25)
    assert opening[loud].mean() > 1.5 * opening[quiet].mean()


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_and_either_number_of_channels(spoken, tmp_path, rate, channels):
    resampled = scipy.signal.resample_poly(spoken, rate // 50, RATE // 50)
    samples = resampled if channels == 1 else np.stack([resampled, resampled], axis=1)
    expected, given = jaw((spoken, RATE)), jaw(write_wav(tmp_path / "a.wav", samples, rate))
    assert abs(len(given) - len(expected)) <= 1
    length = min(len(given), len(expected))
    # at 8 kHz half of the spectrum is missing
    assert np.corrcoef(given[:length], expected[:length])[0, 1] > (0.8 if rate == 8000 else 0.95)
    # 16 bits round what is in a file
    assert np.corrcoef(jaw((samples.T, rate))[:length], given[:length])[0, 1] > 0.98


def test_loudness_hardly_matters(spoken):
    expected = jaw((spoken, RATE))
    for gain in (0.05, 0.3):
        assert np.corrcoef(jaw((spoken * gain, RATE)), expected)[0, 1] > 0.95


def test_the_mouth_rests_in_silence_and_in_noise(spoken):
    assert jaw((np.zeros(3 * RATE, dtype=np.float32), RATE)).max() < 0.05
    noise = 0.02 * np.random.default_rng(0).standard_normal(4 * RATE).astype(np.float32)
    assert (jaw((noise, RATE)) < 0.12).mean() > 0.95
    pause = np.concatenate([spoken, np.zeros(2 * RATE, dtype=np.float32), spoken])
    opening = jaw((pause, RATE))
    middle = slice(int((len(spoken) / RATE + 0.3) * 25), int((len(spoken) / RATE + 1.8) * 25))
    assert opening[middle].max() < 0.05 and opening.max() > 0.35


def test_every_frame_rate_shows_the_same_moments(spoken):
    slow, fast = jaw((spoken, RATE), 10.0), jaw((spoken, RATE), 30.0)
    np.testing.assert_allclose(fast[1::3][: len(slow)], slow[: len(fast[1::3])], atol=1e-3)


def test_what_cannot_be_heard_is_one_clear_error(tmp_path, spoken):
    empty = tmp_path / "empty.wav"
    empty.touch()
    corrupt = tmp_path / "corrupt.wav"
    corrupt.write_bytes(np.random.default_rng(0).bytes(5000))
    headed = write_wav(tmp_path / "headed.wav", np.zeros(0), RATE)
    for path, message in (
        (empty, "empty.wav"),
        (corrupt, "corrupt.wav"),
        (headed, "`audio` has no sound.*headed.wav"),
    ):
        with pytest.raises(ValueError, match=message):
            iterate_speech_actions(path, 25.0)
    with pytest.raises(FileNotFoundError, match="missing.wav"):
        iterate_speech_actions(tmp_path / "missing.wav", 25.0)
    with pytest.raises(ValueError, match="`audio` samples have shape"):
        iterate_speech_actions((np.zeros((9, 100), dtype=np.float32), RATE), 25.0)
    with pytest.raises(ValueError, match="`fps` must be a positive number, but is 0"):
        iterate_speech_actions((spoken, RATE), 0)
    with pytest.raises(ValueError, match="`num_frames` must be at least 1, but is 0"):
        iterate_speech_actions((spoken, RATE), 25.0, num_frames=0)


def test_the_shortest_sound_is_a_frame():
    assert len(jaw((np.zeros(10, dtype=np.float32), RATE))) == 1
