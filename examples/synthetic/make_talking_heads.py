"""
Render people who talk, with their sound: for the training stage `audio`, and to look at.

    python make_talking_heads.py --body body.npz --output data/speaking --num_clips 200

Clips are folders as `make_dataset.py` writes them, with `speech.wav` beside: what is heard during the frames. With
`--videos`, an MP4 with sound for each of them, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import scipy.io.wavfile
from avatar_body import AvatarBody
from avatar_clip import SyntheticClip, render_motion
from make_dataset import save_clip
from speech_actions import speech_actions
from speech_synthesis import (
    HELD_OUT_LANGUAGES,
    HELD_OUT_SENTENCES,
    SAMPLING_RATE,
    SpeechSynthesizer,
    load_sentences,
    record,
    speak_at_random,
)
from train_speech_encoder import sample_at

from diffusers_dreamactor.media import save_video
from diffusers_dreamactor.motion.idle import idle_blinks
from diffusers_dreamactor.motion.skeleton import ARKIT_BLENDSHAPES


EYES_WIDE = 0.4
"""How wide the eyes of these avatars are at rest."""
WIDEST_JAW = 1.15
"""How far `random_expression` opens a jaw."""


def render_talking_head(
    body: AvatarBody,
    synthesizer: SpeechSynthesizer,
    seed: int,
    num_frames: int,
    fps: float,
    jaw_gain: tuple[float, float] = (1.0, 1.0),
) -> tuple[SyntheticClip, np.ndarray]:
    """
    A portrait of somebody who talks, and the sound `(n,)` of exactly its frames at `SAMPLING_RATE`. Who it is opens the
    jaw by a factor between the two of `jaw_gain` wider than is usual.
    """
    random = np.random.default_rng([seed, 18])
    sentences = {name: texts for name, texts in load_sentences().items() if name not in HELD_OUT_LANGUAGES}
    language = str(random.choice(list(sentences)))
    seconds = num_frames / fps
    spoken = speak_at_random(
        synthesizer, random, language, sentences[language][:-HELD_OUT_SENTENCES], seconds=seconds + 1
    )
    start = random.uniform(0, len(spoken.samples) / SAMPLING_RATE - seconds)
    times = start + (np.arange(num_frames) + 0.5) / fps
    actions = sample_at(speech_actions(spoken), times)
    jaw = actions[:, ARKIT_BLENDSHAPES.index("jawOpen")]
    jaw *= random.uniform(*jaw_gain)
    np.minimum(jaw, WIDEST_JAW, out=jaw)
    blinks = idle_blinks(times, seed)
    for side in ("Left", "Right"):
        actions[:, ARKIT_BLENDSHAPES.index(f"eyeBlink{side}")] = blinks
        actions[:, ARKIT_BLENDSHAPES.index(f"eyeWide{side}")] = EYES_WIDE * (1 - blinks)
    order = [ARKIT_BLENDSHAPES.index(name) for name in body.action_names]
    (clip,) = render_motion(body, seed, "portrait", num_frames, people=1, liveliness=0.2, actions=actions[:, order])
    clip.motion.fps = fps
    sound = record(spoken.samples, random)
    first = round(start * SAMPLING_RATE)
    return clip, sound[first : first + round(seconds * SAMPLING_RATE)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--body", required=True, help="the packed body (see avatar_body.py)")
    parser.add_argument("--output", required=True)
    parser.add_argument("--num_clips", type=int, default=200)
    parser.add_argument("--num_frames", type=int, default=33, help="4 n + 1")
    parser.add_argument(
        "--fps", type=float, default=24.0, help="at 12, many closures of the lips fall between two frames"
    )
    parser.add_argument("--jaw_gain", type=float, nargs=2, default=[1.0, 1.0], help="least and most, by person")
    parser.add_argument("--seed", type=int, default=8_000_000, help="of the first clip")
    parser.add_argument("--videos", action="store_true", help="write MP4s, too")
    arguments = parser.parse_args()
    body, synthesizer, output = AvatarBody(arguments.body), SpeechSynthesizer(), Path(arguments.output)
    for seed in range(arguments.seed, arguments.seed + arguments.num_clips):
        folder = output / f"{seed:07d}_0"
        if (folder / "clip.safetensors").exists():
            continue
        clip, sound = render_talking_head(
            body, synthesizer, seed, arguments.num_frames, arguments.fps, tuple(arguments.jaw_gain)
        )
        folder.mkdir(parents=True, exist_ok=True)
        scipy.io.wavfile.write(folder / "speech.wav", SAMPLING_RATE, (sound * 32767).round().astype(np.int16))
        if arguments.videos:
            save_video(clip.video, folder / "clip.mp4", fps=arguments.fps, audio=folder / "speech.wav")
        save_clip(clip, folder)


if __name__ == "__main__":
    main()
