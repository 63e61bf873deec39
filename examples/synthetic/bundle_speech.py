r"""
Put the trained speech encoder where the package looks for it: with the talking face, whose tokens are facial actions,
and into a model whose face motion tokens are standardised actions (`training/action_tokens.py`).

    python bundle_speech.py --encoder speech_encoder --body body.npz \
      --checkpoints ../../diffusers_dreamactor/checkpoints
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import av
import numpy as np
import torch
from avatar_appearance import AvatarAppearance
from avatar_body import AvatarBody
from avatar_motion import random_motion
from avatar_view import Camera
from make_speech import speech_feature_extractor
from speech_synthesis import SAMPLING_RATE, SpeechSynthesizer

from diffusers_dreamactor.models.audio_motion_encoder import AudioMotionEncoder
from diffusers_dreamactor.motion.skeleton import ARKIT_BLENDSHAPES
from diffusers_dreamactor.training.action_tokens import ActionTokens


EYES_WIDE = ("eyeWideLeft", "eyeWideRight")
BLINK = ("eyeBlinkLeft", "eyeBlinkRight")
LIPS_PRESS = ("mouthPressLeft", "mouthPressRight")
JAW_GAIN = 4.0
LIPS_GAIN = 2.0
JAW_REST = 0.7
"""How many times as wide jaws open as they do in speech, how far below rest lips that press take them, and how far below it they rest.

Speech moves the jaw less and faster than what DreamActor-Tiny was trained on; what follows each other fast is drawn as its
mean, no token says that lips press, and a mouth at rest is drawn a little open. Chosen on 16 clips of voices and sentences of
training, at 24 frames a second (`evaluate_speech.py` tells how it is read; the second figure is by known openings):

| jaw, lips, rest | r | p, b, m closed | open in silence |
|---|---|---|---|
| 2, 0, 0 | 0.81 | 0.74 | 0.02 |
| 2, 1, 0 | 0.80 | 0.87 | 0.03 |
| 2.5, 1, 0 (8 of the clips) | 0.81, 0.76 | 0.89, 0.80 | 0.01, 0.19 |
| 3, 1, 0.3 (8 of the clips) | 0.82, 0.73 | 0.86, 0.85 | 0.00, 0.06 |
| 3, 1, 0.5 | 0.79, 0.72 | 0.81, 0.90 | 0.05, 0.06 |
| 4, 1, 0.5 | 0.83, 0.77 | 0.84, 0.85 | 0.01, 0.06 |
| 3, 2, 0.5 | 0.78, 0.71 | 0.87, 0.92 | 0.05, 0.06 |
| 4, 1.5, 0.7 | 0.80, 0.73 | 0.85, 0.88 | 0.02, 0.05 |
| 4, 2, 0.7 | 0.79, 0.74 | 0.87, 0.90 | 0.02, 0.05 |
"""


def face_action_tokens(body: AvatarBody, num_people: int = 3200, motion_dim: int = 32) -> ActionTokens:
    """The tokens that the face motion encoder was trained to tell: fitted to the expressions of `make_faces.py`."""
    order = [body.action_names.index(name) for name in ARKIT_BLENDSHAPES]
    actions = []
    for person in range(50_000_000, 50_000_000 + num_people):
        random = np.random.default_rng([person, 2])
        # drawn before the motion, and so part of its seed
        AvatarAppearance.random(random, body)
        Camera.random(random, "portrait")
        actions.append(random_motion(random, body, 40, "portrait").actions[::5][:, order])
    return ActionTokens.fit(torch.from_numpy(np.concatenate(actions)).half(), motion_dim)


def token_map(tokens: ActionTokens) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Facial actions that were heard to face motion tokens: `tokens = weight @ actions + bias`.

    Jaws open `JAW_GAIN` times as wide as they do in speech, rest `JAW_REST` lower, and are closed more firmly, by `LIPS_GAIN`,
    where lips meet for p, b and m. Eyes are as wide as they are on average, which no sound tells.

    Returns:
        weight `(motion_dim, 52)` and bias `(motion_dim,)`.
    """
    number = len(ARKIT_BLENDSHAPES)
    weight, bias = torch.zeros(tokens.motion_dim, number), torch.zeros(tokens.motion_dim)
    for row, action in enumerate(tokens.used.tolist()):
        name = ARKIT_BLENDSHAPES[action]
        if name in EYES_WIDE:
            continue
        weight[row, action] = (JAW_GAIN if name == "jawOpen" else 1.0) / tokens.scale[row]
        if name == "jawOpen":
            pressed = [ARKIT_BLENDSHAPES.index(side) for side in LIPS_PRESS]
            weight[row, pressed] = -LIPS_GAIN / len(pressed) / tokens.scale[row]
        rest = -JAW_REST if name == "jawOpen" else 0.0
        bias[row] = (rest - tokens.mean[row]) / tokens.scale[row]
    return weight, bias


def blink_token(tokens: ActionTokens) -> torch.Tensor:
    """What closed eyes add to a token `(motion_dim,)`: they are closed, and no longer wide."""
    names = [ARKIT_BLENDSHAPES[index] for index in tokens.used.tolist()]
    change = torch.tensor([float(name in BLINK) for name in names])
    change = torch.where(torch.tensor([name in EYES_WIDE for name in names]), -tokens.mean, change)
    return torch.nn.functional.pad(change / tokens.scale, (0, tokens.motion_dim - len(names)))


def with_tokens(encoder: AudioMotionEncoder, tokens: ActionTokens) -> AudioMotionEncoder:
    """The encoder of actions as one of tokens: `token_map` goes into its last layer, which is linear, too."""
    blink = [round(value, 4) for value in blink_token(tokens).tolist()]
    result = AudioMotionEncoder.from_config({**encoder.config, "motion_dim": tokens.motion_dim, "blink": blink})
    state, (weight, bias) = copy.deepcopy(encoder.state_dict()), token_map(tokens)
    state["proj_out.bias"] = weight @ state["proj_out.bias"].float() + bias
    state["proj_out.weight"] = weight @ state["proj_out.weight"].float()
    result.load_state_dict(state)
    return result


def save_in_half(encoder: AudioMotionEncoder, folder: Path) -> None:
    """Save with weights in half precision, but those that stay in float32; the config does not say where it came from."""
    state = encoder.state_dict()
    encoder = AudioMotionEncoder.from_config({k: v for k, v in encoder.config.items() if not k.startswith("_")})
    encoder.load_state_dict(state)
    for name, parameter in encoder.named_parameters():
        if "layer_scale" not in name:
            parameter.data = parameter.data.half()
    encoder.save_pretrained(folder)
    (folder / "diffusion_pytorch_model.safetensors").chmod(0o644)
    speech_feature_extractor().save_pretrained(folder.parent / "audio_feature_extractor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--encoder", required=True, help="of train_speech_encoder.py")
    parser.add_argument("--body", required=True)
    parser.add_argument("--checkpoints", required=True)
    parser.add_argument("--action_tokens", help="file of ActionTokens, instead of the ones fitted anew")
    arguments = parser.parse_args()
    checkpoints = Path(arguments.checkpoints)
    encoder = AudioMotionEncoder.from_pretrained(arguments.encoder)
    if arguments.action_tokens:
        tokens = ActionTokens.load(arguments.action_tokens)
    else:
        tokens = face_action_tokens(AvatarBody(arguments.body))
    tokens.save(checkpoints / "tiny" / "action_tokens.safetensors")
    save_in_half(with_tokens(encoder, tokens), checkpoints / "tiny" / "audio_motion_encoder")
    save_in_half(encoder, checkpoints / "talking_face" / "audio_motion_encoder")
    index = checkpoints / "tiny" / "model_index.json"
    components = json.loads(index.read_text())
    components["audio_motion_encoder"] = ["diffusers_dreamactor", "AudioMotionEncoder"]
    components["audio_feature_extractor"] = ["transformers", "Speech2TextFeatureExtractor"]
    index.write_text(json.dumps(components, indent=2) + "\n")

    # the sample for a first try
    spoken = SpeechSynthesizer().speak(
        "Hello! Every picture may open its mouth, and speak.", "en-us", "f2", 205, 55, 60
    )
    spoken.samples = spoken.samples[: int((spoken.phonemes[-1].start + 0.2) * SAMPLING_RATE)]
    with av.open(str(checkpoints / "speech.flac"), "w") as container:
        stream = container.add_stream("flac", rate=SAMPLING_RATE, layout="mono")
        samples = (spoken.samples.clip(-1, 1) * 32767).round().astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
        frame.sample_rate = SAMPLING_RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    main()
