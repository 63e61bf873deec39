"""
How well speech drives the face: voices, sentences and languages that were never trained on.

    python evaluate_speech.py                               # the encoder, by language
    python evaluate_speech.py --drawing 12 --seconds 6 --body body.npz     # and 12 clips, drawn by the bundled model
    python evaluate_speech.py --avatar 4 --capture_models MODELS   # the talking face, as MediaPipe sees it

The mouth's opening is `jawOpen`, in [0, 1]. `r` is its correlation with the truth over the frames of all clips of a
language; `lag` the shift in frames that correlates best; `other's speech` correlates with the truth of another clip.
Lips count as closed below `CLOSED`, in the frame nearest to the middle of a p, b or m; `open in silence` is the share
of frames at least 0.2 s into a pause and before speech that are not closed.

What is drawn is read off the frames by the face motion encoder, at the mean and spread that the truth has in the clip. With
`--body`, those of the bundled people that can be rendered say what the reading and the autoencoder alone lose (`rendered`,
`autoencoder`), and give their drawings a second reading that knows nothing of the clip: on the line through what is read
off their rendered frames at known openings (`known openings`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from bundle_speech import token_map
from speech_actions import ACTION_INDEX, closures, speech_actions
from speech_synthesis import (
    HELD_OUT_LANGUAGES,
    HELD_OUT_SENTENCES,
    HELD_OUT_VOICES,
    SAMPLING_RATE,
    SpeechSynthesizer,
    Utterance,
    load_sentences,
    record,
    speak_at_random,
)
from train_speech_encoder import sample_at

from diffusers_dreamactor.motion.skeleton import ARKIT_BLENDSHAPES
from diffusers_dreamactor.speech import iterate_speech_tokens
from diffusers_dreamactor.talking_face import TalkingFace, speech_to_actions


CLOSED = 0.12
RENDERED = ("ana", "ben")
"""Bundled portraits that `bundle_demo.py` makes."""
MEASURED = ("jawOpen", "mouthPucker", "mouthFunnel", "mouthSmileLeft", "mouthRollLower")


def held_out_clip(synthesizer, language: str, number: int, seconds: float) -> tuple[Utterance, np.ndarray]:
    """A held-out voice that says held-out sentences (of a held-out language: any), and its sound as recorded."""
    random = np.random.default_rng([number, 17])
    sentences = load_sentences()[language]
    sentences = sentences if language in HELD_OUT_LANGUAGES else sentences[-HELD_OUT_SENTENCES:]
    spoken = speak_at_random(synthesizer, random, language, sentences, HELD_OUT_VOICES, seconds, shuffle_words=0.0)
    return spoken, record(spoken.samples, random)


def best_lag(given: np.ndarray, truth: np.ndarray, reach: int = 8) -> int:
    """By how many frames `given` is later than `truth` where both agree best."""
    scores = []
    for lag in range(-reach, reach + 1):
        late, early = given[max(0, lag) : len(given) + min(0, lag)], truth[max(0, -lag) : len(truth) - max(0, lag)]
        scores.append(np.corrcoef(late, early)[0, 1])
    return int(np.argmax(scores)) - reach


def silent_frames(utterance: Utterance, times: np.ndarray) -> np.ndarray:
    """Which moments are at least 0.2 s away from all speech."""
    silent = np.ones(len(times), dtype=bool)
    for phoneme in utterance.phonemes:
        silent &= (times < phoneme.start - 0.2) | (times > phoneme.end + 0.2)
    return silent


def measures(clips: list[tuple[np.ndarray, np.ndarray, Utterance]], fps: float) -> dict[str, float]:
    """Figures of clips: measured mouth openings `(F,)`, true ones, and what was said."""
    given, truth = (np.concatenate([clip[part] for clip in clips]) for part in (0, 1))
    others = [(a[0], b[1]) for a, b in zip(clips, clips[1:] + clips[:1])]
    shuffled = [np.corrcoef(a[: len(b)], b[: len(a)])[0, 1] for a, b in others]
    closed, resting = [], []
    for opening, _, utterance in clips:
        times = (np.arange(len(opening)) + 0.5) / fps
        middles = np.array([(start + stop) / 2 for _, start, stop in closures(utterance)])
        frames = (middles * fps).astype(int)
        # of slow video, only the closures of which a frame shows the middle
        frames = frames[(frames < len(opening)) & (np.abs((frames + 0.5) / fps - middles) <= 0.02)]
        closed += list(opening[frames] < CLOSED)
        resting += list(opening[silent_frames(utterance, times)] >= CLOSED)
    return {
        "r": float(np.corrcoef(given, truth)[0, 1]),
        "lag": float(np.median([best_lag(clip[0], clip[1]) for clip in clips])),
        "other's speech": float(np.mean(shuffled)) if len(clips) > 1 else float("nan"),
        "p, b, m closed": float(np.mean(closed)) if closed else float("nan"),
        "open in silence": float(np.mean(resting)) if resting else float("nan"),
    }


def print_row(name: str, figures: dict[str, float]) -> None:
    print("| " + " | ".join([name] + [f"{value:.3f}" for value in figures.values()]) + " |", flush=True)


def evaluate_encoder(synthesizer, fps: float, clips: int, seconds: float) -> dict:
    """The encoder alone: a table by language."""
    encoder, extractor = speech_to_actions()
    results = {}
    groups = {"trained languages": [], "languages never trained on": []}
    for position, language in enumerate(load_sentences()):
        rows, shapes = [], []
        for number in range(clips):
            utterance, sound = held_out_clip(synthesizer, language, 1000 * position + number, seconds)
            tokens = np.concatenate(list(iterate_speech_tokens((sound, SAMPLING_RATE), fps, encoder, extractor)))
            truth = sample_at(speech_actions(utterance), (np.arange(len(tokens)) + 0.5) / fps)
            rows.append((tokens[:, ACTION_INDEX["jawOpen"]], truth[:, ACTION_INDEX["jawOpen"]], utterance))
            shapes.append((tokens, truth))
        unseen = language in HELD_OUT_LANGUAGES
        groups["languages never trained on" if unseen else "trained languages"] += rows
        results[language] = measures(rows, fps)
        for name in MEASURED[1:]:
            given, true = (np.concatenate([pair[part][:, ACTION_INDEX[name]] for pair in shapes]) for part in (0, 1))
            results[language][name] = float(np.corrcoef(given, true)[0, 1]) if true.std() > 1e-3 else float("nan")
        if len(results) == 1:
            names = ["language"] + list(results[language])
            print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
        print_row(language + (" (new)" if unseen else ""), results[language])
    for name, rows in groups.items():
        results[name] = measures(rows, fps)
        print_row(name, results[name])
    return results


def render_speaker(body, name: str, motion, actions: np.ndarray) -> np.ndarray:
    """
    A bundled avatar's true frames `(F, H, W, 3)`: head as in `motion`, mouth as in `actions (F, 52)`, idle blinks.

    Raises:
        ValueError: the body was packed of other people than the one that the bundled pictures show.
    """
    from avatar_appearance import AvatarAppearance
    from avatar_clip import Avatar
    from avatar_motion import AvatarMotion, with_expression
    from avatar_view import HEAD_AXES, Camera
    from bundle_demo import AVATARS, HEAD_CHAIN, frontal
    from make_talking_heads import EYES_WIDE

    from diffusers_dreamactor.checkpoints import bundled_avatars
    from diffusers_dreamactor.motion.idle import idle_blinks
    from diffusers_dreamactor.motion.sequence import MotionSequence

    person, scale, seed = AVATARS[name]
    avatar = Avatar(body, AvatarAppearance.random(np.random.default_rng([person, 1]), body))
    camera = Camera.random(np.random.default_rng(seed), scale).framed_for(avatar)
    still = frontal(body, camera, scale, seed)
    pose = MotionSequence.load(bundled_avatars()[name].with_suffix(".safetensors"))
    if not np.allclose(avatar.pose(still).motion(camera).face.boxes, pose.face.boxes, atol=0.05):
        raise ValueError(
            "`--body` makes other people than the bundled ones, which `avatar_body.py --num_people 500` makes."
        )
    neck = np.eye(3)
    for bone in HEAD_CHAIN[:-1]:
        neck = neck @ still.rotations[0, body.bone_index[bone]]
    rotations = np.repeat(still.rotations, len(actions), axis=0)
    rotations[:, body.bone_index["head"]] = neck.T @ camera.rotation.T @ motion.head.rotation @ HEAD_AXES
    actions, blinks = actions.copy(), idle_blinks(np.arange(len(actions)) / motion.fps)
    for side in ("Left", "Right"):
        actions[:, ACTION_INDEX[f"eyeBlink{side}"]] = blinks
        actions[:, ACTION_INDEX[f"eyeWide{side}"]] = EYES_WIDE * (1 - blinks)
    actions = actions[:, [ARKIT_BLENDSHAPES.index(action) for action in body.action_names]]
    posed = AvatarMotion(rotations, np.repeat(still.translation, len(actions), axis=0), actions, scale)
    posed = avatar.pose(with_expression(posed, actions, body))
    return posed.render(camera)[0]


def evaluate_drawing(synthesizer, count: int, seconds: float, sheet: str | None, body_file: str | None) -> dict:
    """Clips of the bundled model: speech, and for comparison the true actions, drawn and read off the frames again."""
    import PIL.Image
    from avatar_body import AvatarBody

    from diffusers_dreamactor import DreamActorPipeline
    from diffusers_dreamactor.checkpoints import bundled_avatars, bundled_model
    from diffusers_dreamactor.motion.sequence import MotionSequence
    from diffusers_dreamactor.speech import add_blinks
    from diffusers_dreamactor.training.action_tokens import ActionTokens

    folder = Path(bundled_model())
    action_tokens = ActionTokens.load(folder / "action_tokens.safetensors")
    weight, bias = (values.numpy() for values in token_map(action_tokens))
    jaw = ACTION_INDEX["jawOpen"]
    row = action_tokens.used.tolist().index(jaw)
    body = AvatarBody(body_file) if body_file else None
    pipe = DreamActorPipeline.from_pretrained(bundled_model())
    pipe.set_progress_bar_config(disable=True)
    fps = pipe.config.fps

    def opening(frames, box):
        """What the face motion encoder sees of the mouth's opening `(F,)`, on a line of its own in each picture."""
        crops = np.stack([pipe.motion_processor.face_motion.crop(frame, box) for frame in frames])
        with torch.no_grad():
            pixels = torch.from_numpy(crops).float()[None] / 127.5 - 1
            seen = pipe.face_motion_encoder(pixels.to(pipe.face_motion_encoder.dtype))[0].float().numpy()
        return (seen[:, row] - bias[row]) / weight[row, jaw]

    def calibrated(seen, truth):
        return (seen - seen.mean()) / seen.std() * truth.std() + truth.mean()

    def autoencoded(frames):
        video = torch.from_numpy(frames[: (len(frames) - 1) // 4 * 4 + 1]).permute(3, 0, 1, 2)[None]
        with torch.no_grad():
            latents = pipe.vae.encode(video.to(pipe.vae.dtype) / 127.5 - 1).latent_dist.mode()
            video = pipe.vae.decode(latents).sample[0].float().clamp(-1, 1)
        return ((video.permute(1, 2, 3, 0) + 1) * 127.5).round().byte().numpy()

    hearing = speech_to_actions()
    avatars = bundled_avatars()
    poses = {name: MotionSequence.load(path.with_suffix(".safetensors")) for name, path in avatars.items()}
    portraits = [name for name, pose in poses.items() if pose.head.radius[0] > 15]
    languages = [*HELD_OUT_LANGUAGES, "en-us", "de", "fr", "es", "it", "pl"]
    rows, sheets = {"encoder": []}, []
    for number in range(count):
        language = languages[number % len(languages)]
        utterance, sound = held_out_clip(synthesizer, language, 500_000 + number, seconds)
        name = portraits[number % len(portraits)]
        inputs = pipe.prepare(avatars[name], audio=sound, reference_motion=poses[name])
        tokens, box = inputs.motion_tokens, inputs.references[0].motion.face.boxes[0]
        actions = sample_at(speech_actions(utterance), (np.arange(len(tokens)) + 0.5) / fps)
        truth = actions[:, jaw]
        heard = np.concatenate(list(iterate_speech_tokens((sound, SAMPLING_RATE), fps, *hearing)))[:, jaw]
        rows["encoder"].append((heard[: len(truth)], truth, utterance))

        line = None
        if body is not None and name in RENDERED:
            rendered = render_speaker(body, name, inputs.motion, actions)
            line = np.polyfit(truth, opening(rendered, box), 1)
            for kind, frames in (("rendered", rendered), ("autoencoder", autoencoded(rendered))):
                seen = opening(frames, box)
                there = truth[: len(seen)]
                rows.setdefault(kind, []).append((calibrated(seen, there), there, utterance))

        true_tokens = add_blinks((actions @ weight.T + bias).astype(np.float32), pipe.audio_motion_encoder, fps)
        for kind, given in (("drawn from speech", tokens), ("drawn from the truth", true_tokens)):
            inputs.motion_tokens = given
            result = pipe(inputs, generator=torch.Generator().manual_seed(number), output_type="np")
            frames = (np.asarray(result.frames[0]) * 255).round().astype(np.uint8)
            seen = opening(frames, box)
            rows.setdefault(kind, []).append((calibrated(seen, truth), truth, utterance))
            if kind == "drawn from speech":
                rows.setdefault("drawn against heard", []).append((calibrated(seen, truth), heard, utterance))
            if line is not None:
                known = (seen - line[1]) / line[0]
                rows.setdefault(f"{kind}, known openings", []).append((known, truth, utterance))
            sheets.append(frames)
    print("| | " + " | ".join(measures(rows["encoder"], fps)) + " |\n|" + "---|" * 6)
    results = {name: measures(clips, fps) for name, clips in rows.items()}
    for name, figures in results.items():
        print_row(name, figures)
    if sheet:
        strips = [np.concatenate(list(frames[6:46]), axis=1) for frames in sheets]
        width = min(strip.shape[1] for strip in strips)
        PIL.Image.fromarray(np.concatenate([strip[:, :width] for strip in strips])).save(sheet)
    return results


def evaluate_avatar(synthesizer, count: int, seconds: float, capture_models: str) -> dict:
    """The talking face through MediaPipe: is it found, and does it open the mouth as intended?"""
    from diffusers_dreamactor import MediaPipeCapture
    from diffusers_dreamactor.motion.idle import idle_head_rotation
    from diffusers_dreamactor.talking_face import iterate_speech_actions

    capture, face, fps = MediaPipeCapture.from_pretrained(capture_models), TalkingFace(), 25.0
    results = {}
    for number in range(count):
        language = (*HELD_OUT_LANGUAGES, "en-us", "de")[number % 8]
        _, sound = held_out_clip(synthesizer, language, 700_000 + number, seconds)
        actions = np.concatenate(list(iterate_speech_actions((sound, SAMPLING_RATE), fps, seed=number)))
        rotations = idle_head_rotation(np.arange(len(actions)) / fps, seed=number)
        frames = [face.draw(action, rotation) for action, rotation in zip(actions, rotations)]
        motion = capture.capture(np.stack(frames), fps=fps, progress=False)
        seen, intended = (values[:, ACTION_INDEX["jawOpen"]] for values in (motion.face.blendshapes, actions))
        blinked = motion.face.blendshapes[:, ACTION_INDEX["eyeBlinkLeft"]]
        results[f"{language} {number}"] = figures = {
            "jawOpen r": float(np.corrcoef(seen, intended)[0, 1]),
            "lag": float(best_lag(seen, intended)),
            "face found": float((motion.face.confidence > 0).mean()),
            "eyeBlinkLeft r": float(np.corrcoef(blinked, actions[:, ACTION_INDEX["eyeBlinkLeft"]])[0, 1]),
        }
        if number == 0:
            print("| | " + " | ".join(figures) + " |\n|" + "---|" * 5)
        print_row(f"{language} {number}", figures)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--fps", type=float, default=25.0)
    parser.add_argument("--clips", type=int, default=3, help="of each language")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--drawing", type=int, help="clips to draw with the bundled model, instead")
    parser.add_argument("--body", help="the packed body, to render true frames of what is drawn")
    parser.add_argument("--sheet", help="picture of the frames that are drawn")
    parser.add_argument("--avatar", type=int, help="clips of the talking face to capture, instead")
    parser.add_argument("--capture_models", help="folder of MediaPipe's models")
    parser.add_argument("--output", help="JSON file of the figures")
    arguments = parser.parse_args()
    synthesizer = SpeechSynthesizer()
    if arguments.drawing:
        results = evaluate_drawing(synthesizer, arguments.drawing, arguments.seconds, arguments.sheet, arguments.body)
    elif arguments.avatar:
        results = evaluate_avatar(synthesizer, arguments.avatar, arguments.seconds, arguments.capture_models)
    else:
        results = evaluate_encoder(synthesizer, arguments.fps, arguments.clips, arguments.seconds)
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
