"""
Speak in many voices and languages, to train the speech encoder on.

    python make_speech.py --output data/speech --num_clips 1200

Writes `clip-00000.npz`, ... with `features (L, 64)` (log-mel, 100 a second, of the sound as recorded) and `actions (n,
52)` (value i at i / 100 seconds), both float16. Files that exist are left alone, so that a stopped run goes on.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from speech_actions import speech_actions
from speech_synthesis import (
    HELD_OUT_LANGUAGES,
    HELD_OUT_SENTENCES,
    SAMPLING_RATE,
    SpeechSynthesizer,
    Utterance,
    load_sentences,
    record,
    speak_at_random,
)
from transformers import Speech2TextFeatureExtractor


ACTION_RATE = 100.0
NUM_FEATURES = 64
WORDLESS = 0.06
"""Share of clips in which nobody speaks."""


def speech_feature_extractor() -> Speech2TextFeatureExtractor:
    """Log-mel features as the trained encoder reads them: 25 ms windows every 10 ms, none of it normalised over the clip."""
    return Speech2TextFeatureExtractor(
        feature_size=NUM_FEATURES, num_mel_bins=NUM_FEATURES, do_ceptral_normalize=False
    )


def make_clip(synthesizer: SpeechSynthesizer, extractor, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and actions of clip `number`, from which all follows but some milliseconds of espeak-ng's own making."""
    random = np.random.default_rng([number, 16])
    sentences = {name: texts for name, texts in load_sentences().items() if name not in HELD_OUT_LANGUAGES}
    language = str(random.choice(list(sentences)))
    if random.random() < WORDLESS:
        utterance = Utterance(np.zeros(int(8 * SAMPLING_RATE), dtype=np.float32), [])
    else:
        utterance = speak_at_random(synthesizer, random, language, sentences[language][:-HELD_OUT_SENTENCES])
    sound = record(utterance.samples, random)
    if random.random() < 0.3:
        # nothing at all before and after, as cut recordings have it
        sound[: int(random.uniform(0, 0.1) * SAMPLING_RATE)] = 0
    features = extractor(sound, sampling_rate=SAMPLING_RATE, return_tensors="np").input_features[0]
    return features.astype(np.float16), speech_actions(utterance, ACTION_RATE).astype(np.float16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", required=True)
    parser.add_argument("--num_clips", type=int, default=1200, help="of about 22 seconds each")
    arguments = parser.parse_args()
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    synthesizer, extractor = SpeechSynthesizer(), speech_feature_extractor()
    for number in range(arguments.num_clips):
        path = output / f"clip-{number:05d}.npz"
        if path.exists():
            continue
        features, actions = make_clip(synthesizer, extractor, number)
        aside = output / f".clip-{number:05d}.part.npz"
        np.savez(aside, features=features, actions=actions)
        os.replace(aside, path)


if __name__ == "__main__":
    main()
