"""From phonemes to the face: what speech cannot do without. The voices themselves need espeak-ng."""

import ctypes.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file


sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "synthetic"))

import train_speech_encoder  # noqa: E402
from bundle_speech import JAW_GAIN, JAW_REST, LIPS_GAIN, save_in_half, with_tokens  # noqa: E402
from make_speech import make_clip, speech_feature_extractor  # noqa: E402
from speech_actions import ACTION_INDEX, closures, speech_actions  # noqa: E402
from speech_synthesis import (  # noqa: E402
    HELD_OUT_LANGUAGES,
    HELD_OUT_SENTENCES,
    HELD_OUT_VOICES,
    SAMPLING_RATE,
    VOICES,
    Phoneme,
    SpeechSynthesizer,
    Utterance,
    load_sentences,
    record,
    speak_at_random,
)
from train_speech_encoder import draw_batch, fold_normalisation, sample_at  # noqa: E402

from diffusers_dreamactor.models.audio_motion_encoder import AudioMotionEncoder  # noqa: E402
from diffusers_dreamactor.training.action_tokens import ActionTokens  # noqa: E402


needs_espeak = pytest.mark.skipif(ctypes.util.find_library("espeak-ng") is None, reason="espeak-ng is not installed")


@pytest.fixture(scope="module")
def synthesizer() -> SpeechSynthesizer:
    return SpeechSynthesizer()


def utter(*names: str, length: float = 0.12, pause: float = 0.5) -> Utterance:
    """Phonemes of one length, loud but for stops, between pauses."""
    phonemes = [Phoneme(name, pause + length * i, pause + length * (i + 1)) for i, name in enumerate(names)]
    samples = np.zeros(int((2 * pause + length * len(names)) * SAMPLING_RATE), dtype=np.float32)
    noise = np.random.default_rng(0).standard_normal(len(samples)).astype(np.float32)
    for phoneme in phonemes:
        part = slice(int(phoneme.start * SAMPLING_RATE), int(phoneme.end * SAMPLING_RATE))
        samples[part] = noise[part] * (0.005 if phoneme.name in "pb" else 0.2)
    return Utterance(samples, phonemes)


def at(actions, name, time):
    return actions[int(round(time * 100)), ACTION_INDEX[name]]


def test_lips_close_for_p_b_m_and_open_for_vowels():
    for consonant in "pbm":
        utterance = utter("a", consonant, "a")
        actions = speech_actions(utterance)
        ((symbol, start, stop),) = closures(utterance)
        assert symbol == consonant
        middle = (start + stop) / 2
        assert at(actions, "jawOpen", middle) < 0.05 and at(actions, "mouthPressLeft", middle) > 0.3
        assert at(actions, "jawOpen", 0.56) > 0.4 and at(actions, "jawOpen", 0.80) > 0.4


def test_teeth_meet_the_lip_and_lips_round():
    bitten = speech_actions(utter("a", "f", "a"))
    assert at(bitten, "mouthRollLower", 0.68) > 0.6 and at(bitten, "jawOpen", 0.68) < 0.12
    rounded = speech_actions(utter("t", "uː", "t"))
    assert at(rounded, "mouthPucker", 0.68) > 0.6 and at(rounded, "mouthSmileLeft", 0.68) < 0.1
    spread = speech_actions(utter("t", "iː", "t"))
    assert at(spread, "mouthSmileLeft", 0.68) > 0.3 and at(spread, "mouthPucker", 0.68) < 0.05


def test_neighbours_are_heard_before_and_after():
    """The t of "tu" is rounded before the vowel begins, that of "ti" is spread; the effect fades with the distance."""
    rounded, spread = (speech_actions(utter("t", vowel, "t")) for vowel in ("uː", "iː"))
    for time in (0.58, 0.78):
        assert at(rounded, "mouthPucker", time) > 0.25 > at(spread, "mouthPucker", time)
    assert at(rounded, "mouthPucker", 0.58) > at(rounded, "mouthPucker", 0.52) > at(rounded, "mouthPucker", 0.4)


def test_the_mouth_rests_in_pauses_and_moves_smoothly():
    actions = speech_actions(utter("h", "a", "l", "oʊ", pause=0.8))
    assert actions[:50].max() < 0.05 and actions[-40:].max() < 0.05
    assert actions.min() >= 0 and actions.max() <= 1
    assert np.abs(np.diff(actions, axis=0)).max() < 0.25
    assert speech_actions(Utterance(np.zeros(SAMPLING_RATE, dtype=np.float32), [])).max() == 0


def test_recordings_keep_their_time_and_range():
    random = np.random.default_rng(0)
    click = np.zeros(SAMPLING_RATE, dtype=np.float32)
    click[5000:5200] = 0.5 * np.sin(np.arange(200))
    for _ in range(20):
        heard = record(click, random)
        assert heard.shape == click.shape and np.abs(heard).max() <= 1 and np.isfinite(heard).all()
        onset = np.convolve(heard**2, np.ones(100), "same").argmax()
        assert 4900 < onset < 5400


def test_held_out_means_held_out():
    sentences = load_sentences()
    assert len(sentences) >= 18 and len(HELD_OUT_LANGUAGES) >= 4 and set(HELD_OUT_LANGUAGES) < set(sentences)
    assert not set(HELD_OUT_VOICES) & set(VOICES)
    assert all(len(texts) > 2 * HELD_OUT_SENTENCES for texts in sentences.values())


def test_targets_are_read_at_any_moment():
    actions = np.linspace(0, 1, 101, dtype=np.float32)[:, None] * np.ones(52, dtype=np.float32)
    np.testing.assert_allclose(
        sample_at(actions, np.array([-1, 0.0, 0.255, 1.0, 9.0]))[:, 0], [0, 0, 0.255, 1, 1], atol=1e-6
    )


def test_a_batch_follows_from_its_seed():
    clips = [(np.random.default_rng(i).normal(9, 4, (900, 64)), np.full((901, 52), i / 2)) for i in range(2)]
    first, again = (draw_batch(clips, np.random.default_rng([0, 5]), 3, 2.0) for _ in range(2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1]) and first[2] == again[2]
    assert first[0].shape == (3, 200, 64) and first[1].shape == (3, int(2 * first[2]), 52)


def test_normalisation_goes_into_the_weights():
    torch.manual_seed(0)
    encoder = AudioMotionEncoder(
        feature_dim=64, hidden_dim=8, num_layers=1, kernel_size=3, motion_dim=52, stride=2
    ).eval()
    mean, std = torch.rand(52), torch.rand(52)
    features = torch.randn(1, 50, 64) * 4 + 9
    with torch.no_grad():
        expected = encoder((features - 9.0) / 4.0, 25) * std + mean
        folded = fold_normalisation(encoder, 9.0, 4.0, mean, std)(features, 25)
    torch.testing.assert_close(folded, expected, atol=1e-4, rtol=1e-4)


def test_lips_that_press_close_the_jaw_in_tokens(tmp_path):
    """Tokens know the jaw, not lips that press: what is heard of both comes into the jaw's."""
    torch.manual_seed(0)
    encoder = AudioMotionEncoder(feature_dim=64, hidden_dim=8, num_layers=1, motion_dim=52).eval()
    encoder.save_pretrained(tmp_path / "encoder")
    encoder = AudioMotionEncoder.from_pretrained(tmp_path / "encoder").eval()
    seen = torch.zeros(40, 52)
    seen[:, [ACTION_INDEX[name] for name in ("jawOpen", "mouthFunnel", "eyeBlinkLeft")]] = torch.rand(40, 3)
    standard = ActionTokens.fit(seen, 4)
    features = torch.randn(1, 30, 64)
    with torch.no_grad():
        actions, tokens = (model(features, 30)[0].numpy() for model in (encoder, with_tokens(encoder, standard)))
    row = standard.used.tolist().index(ACTION_INDEX["jawOpen"])
    jaw = tokens[:, row] * float(standard.scale[row]) + float(standard.mean[row])
    pressed = actions[:, [ACTION_INDEX["mouthPressLeft"], ACTION_INDEX["mouthPressRight"]]].mean(axis=1)
    expected = JAW_GAIN * actions[:, ACTION_INDEX["jawOpen"]] - LIPS_GAIN * pressed - JAW_REST
    np.testing.assert_allclose(jaw, expected, atol=1e-4)
    row = standard.used.tolist().index(ACTION_INDEX["mouthFunnel"])
    funnel = tokens[:, row] * float(standard.scale[row]) + float(standard.mean[row])
    np.testing.assert_allclose(funnel, actions[:, ACTION_INDEX["mouthFunnel"]], atol=1e-4)
    # nobody learns in whose folder it was made
    save_in_half(with_tokens(encoder, standard), tmp_path / "out" / "audio_motion_encoder")
    assert str(tmp_path) not in (tmp_path / "out" / "audio_motion_encoder" / "config.json").read_text()


def test_a_stopped_training_goes_on_to_the_bit(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for number in range(3):
        actions = np.zeros((301, 52), dtype=np.float16)
        actions[:, ACTION_INDEX["jawOpen"]] = random.random(301)
        np.savez(
            tmp_path / "data" / f"clip-{number:05d}.npz", features=random.normal(9, 4, (300, 64)), actions=actions
        )
    draw = train_speech_encoder.draw_batch

    def train(output, stop=None):
        seen = []

        def draw_or_stop(*arguments):
            seen.append(len(seen))
            if len(seen) == stop:
                raise KeyboardInterrupt
            return draw(*arguments)

        monkeypatch.setattr(train_speech_encoder, "draw_batch", draw_or_stop)
        arguments = ["--data", tmp_path / "data", "--output", tmp_path / output, "--max_train_steps", 6]
        arguments += ["--save_steps", 2, "--batch_size", 2, "--seconds", 1, "--hidden_dim", 8, "--num_layers", 1]
        monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
        train_speech_encoder.main()
        return len(seen)

    train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("stopped", stop=4)
    # the step that was not saved is made again
    assert train("stopped") == 4
    name = "diffusion_pytorch_model.safetensors"
    whole, stopped = (load_file(tmp_path / output / name) for output in ("whole", "stopped"))
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)


@needs_espeak
def test_espeak_says_when_it_says_what(synthesizer):
    utterance = synthesizer.speak("My mother bought a map.", "en-us")
    names = [phoneme.name for phoneme in utterance.phonemes]
    assert names[:3] == ["m", "aɪ", "m"] and names[-1] == "p"
    starts = [phoneme.start for phoneme in utterance.phonemes]
    assert starts == sorted(starts) and 1.0 < len(utterance.samples) / SAMPLING_RATE < 3.0
    # the vowels are where the sound is loud
    loudness = {
        phoneme.name: np.abs(utterance.samples[int(phoneme.start * 16000) : int(phoneme.end * 16000)]).mean()
        for phoneme in utterance.phonemes
    }
    assert loudness["æ"] > 2 * loudness["p"]
    assert {symbol for symbol, _, _ in closures(utterance)} == {"m", "b", "p"}
    with pytest.raises(ValueError, match="`language` and `voice` are xx, which espeak-ng does not have"):
        synthesizer.speak("Hello", "xx")


@needs_espeak
@pytest.mark.parametrize("language", load_sentences())
def test_every_language_is_spoken(synthesizer, language):
    utterance = synthesizer.speak(load_sentences()[language][0], language, "f2")
    # what is read letter by letter in English instead takes far longer
    assert 0.8 < len(utterance.samples) / SAMPLING_RATE < 5 and len(utterance.phonemes) > 8
    actions = speech_actions(utterance)
    assert actions[:, ACTION_INDEX["jawOpen"]].max() > 0.25
    for _, start, stop in closures(utterance):
        assert at(actions, "jawOpen", (start + stop) / 2) < 0.12


@needs_espeak
def test_a_clip_follows_from_its_number(synthesizer):
    extractor = speech_feature_extractor()
    (features, actions), again = (make_clip(synthesizer, extractor, 3) for _ in range(2))
    # espeak-ng's own state makes a difference of some milliseconds
    assert abs(len(features) - len(again[0])) < 20 and abs(len(actions) - len(again[1])) < 20
    assert features.shape[1] == 64 and abs(len(features) - len(actions)) < 5
    spoken = speak_at_random(synthesizer, np.random.default_rng(0), "de", load_sentences()["de"], seconds=4.0)
    assert len(spoken.samples) > 4 * SAMPLING_RATE


@needs_espeak
def test_talking_heads_at_any_rate(synthesizer, bodies):
    from make_talking_heads import render_talking_head

    def talk(fps, gain):
        return render_talking_head(bodies[0], synthesizer, 8_000_003, 9, fps, (gain, gain))

    (clip, sound), (wide, _), (slow, longer) = talk(24.0, 1.0), talk(24.0, 2.0), talk(12.0, 1.0)
    assert (clip.motion.fps, slow.motion.fps) == (24.0, 12.0)
    assert (len(sound), len(longer)) == (9 / 24 * SAMPLING_RATE, 9 / 12 * SAMPLING_RATE)
    usual, opened = (each.motion.face.blendshapes[:, ACTION_INDEX["jawOpen"]] for each in (clip, wide))
    # espeak-ng does not say it twice in exactly the same way
    assert usual.max() > 0.1 and 1.7 < opened.mean() / usual.mean() < 2.2
    assert not np.array_equal(clip.video, wide.video)


def test_true_frames_are_of_the_bundled_people_alone(bodies):
    from evaluate_speech import render_speaker

    from diffusers_dreamactor.checkpoints import bundled_avatars
    from diffusers_dreamactor.motion.sequence import MotionSequence

    pose = MotionSequence.load(bundled_avatars()["ana"].with_suffix(".safetensors"))
    with pytest.raises(ValueError, match="`--body` makes other people than the bundled ones"):
        render_speaker(bodies[0], "ana", pose, np.zeros((1, 52), dtype=np.float32))
