"""Speech to face motion tokens of any length, in constant memory: features and tokens are made window by window."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers.utils.torch_utils import get_module_execution_device

from .motion.idle import idle_blinks
from .sound import Sound, check_samples


WINDOW_SECONDS = 20.0
"""Speech that is encoded at a time."""
ENCODER_CONTEXT_SECONDS = 2.0
"""What a speech encoder hears before and after a window, beyond the context of `AudioMotionEncoder`."""


def feature_hop(feature_extractor, audio_encoder: torch.nn.Module | None = None) -> int:
    """Samples from one feature of `extract_speech_features` to the next."""
    if audio_encoder is not None:
        return audio_encoder.config.inputs_to_logits_ratio
    # log-mel features come every 10 ms, or every `hop_length` samples where the extractor has one
    return getattr(feature_extractor, "hop_length", feature_extractor.sampling_rate // 100)


def extract_speech_features(
    samples: np.ndarray, feature_extractor, audio_encoder: torch.nn.Module | None = None
) -> torch.Tensor:
    """
    What `AudioMotionEncoder` reads of a piece of speech.

    Args:
        samples (`np.ndarray` of shape `(n,)`): A mono waveform in [-1, 1] at the feature extractor's sampling rate.
        feature_extractor: A `transformers` feature extractor of speech.
        audio_encoder (*optional*): The speech encoder that follows it; without one, its features are used themselves.

    Returns:
        Features `(1, L, feature_dim)`.
    """
    features = feature_extractor(samples, sampling_rate=feature_extractor.sampling_rate, return_tensors="pt")
    features = features[feature_extractor.model_input_names[0]]
    if audio_encoder is not None:
        features = features.to(get_module_execution_device(audio_encoder), audio_encoder.dtype)
        features = audio_encoder(features).last_hidden_state
    return features


def iterate_speech_tokens(
    audio,
    fps: float,
    audio_motion_encoder: torch.nn.Module,
    feature_extractor,
    audio_encoder: torch.nn.Module | None = None,
    num_frames: int | None = None,
    start: float = 0.0,
) -> Iterator[np.ndarray]:
    """
    Face motion tokens from speech, as it is read: memory does not grow with its length.

    Log-mel features of a window are those of the whole, and so are the tokens. A speech encoder attends to all that it
    is given; its windows overlap by two seconds and more on either side, which leaves small differences.

    Args:
        audio: A sound or video file, or `(samples, rate)`: `(n,)`, `(1, n)` or `(2, n)`, floating-point in [-1, 1] or
            int16, at any rate; channels are averaged. Silence follows its end.
        fps (`float`): Frames per second of the video.
        audio_motion_encoder (`AudioMotionEncoder`), feature_extractor, audio_encoder: as in the pipeline.
        num_frames (`int`, *optional*): Frames to make; as many as begin before the sound ends when `None`.
        start (`float`): Seconds of the sound at which the video begins.

    Returns:
        An iterator of `np.ndarray` of shape `(n, motion_dim)`, float32: the tokens of the next n frames. The sound is
        opened before it is returned.

    Raises:
        FileNotFoundError, IsADirectoryError: no such file, or a folder.
        ValueError: the file cannot be read or has no sound; samples of another shape or type; `fps` or `num_frames` is
            not positive.
    """
    if not fps > 0:
        raise ValueError(f"`fps` must be a positive number, but is {fps!r}.")
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"`num_frames` must be at least 1, but is {num_frames}.")
    rate = feature_extractor.sampling_rate
    source = check_samples(*audio) if isinstance(audio, tuple) else Path(audio)
    chunks = Sound(source, rate, start).chunks()
    first = next(chunks, None)
    if first is None:
        raise ValueError(f"`audio` has no sound: {'0 samples' if isinstance(source, tuple) else source}")
    chunks = itertools.chain([first], chunks)
    return _iterate_windows(chunks, fps, audio_motion_encoder, feature_extractor, audio_encoder, num_frames)


@torch.no_grad()
def _iterate_windows(chunks, fps, audio_motion_encoder, feature_extractor, audio_encoder, num_frames):
    device, dtype = get_module_execution_device(audio_motion_encoder), audio_motion_encoder.dtype
    rate, stride = feature_extractor.sampling_rate, audio_motion_encoder.config.stride
    hop, context = feature_hop(feature_extractor, audio_encoder), audio_motion_encoder.context
    if audio_encoder is not None:
        context += int(ENCODER_CONTEXT_SECONDS * rate / hop)
    features_per_frame = rate / hop / fps
    window = max(1, int(WINDOW_SECONDS * fps))

    # samples from `heard` on; what no window needs any more is dropped
    buffer, heard, ended, frame = np.zeros(0, dtype=np.float32), 0, False, 0
    while num_frames is None or frame < num_frames:
        stop = frame + window if num_frames is None else min(frame + window, num_frames)
        first = max(0, int(frame * features_per_frame - context)) // stride * stride
        last = math.ceil(stop * features_per_frame + context)
        # a window of features reaches over its hop: half a second more, of which the surplus is cut off
        wanted = last * hop + rate // 2
        buffer, heard = buffer[first * hop - heard :], first * hop
        pieces, length = [buffer], heard + len(buffer)
        while not ended and length < wanted:
            chunk = next(chunks, None)
            if chunk is None:
                ended = True
            else:
                # the mean of two channels, since the resampler's own mix is 1.4 times as loud and clips
                pieces.append(np.clip(chunk.mean(axis=0), -1, 1))
                length += chunk.shape[1]
        buffer = np.concatenate(pieces)
        if ended and num_frames is None:
            num_frames = max(1, int(length / rate * fps + 1e-6))
            stop = min(stop, num_frames)
            if frame >= num_frames:
                return
        samples = buffer[: wanted - heard]
        samples = np.pad(samples, (0, wanted - heard - len(samples)))
        features = extract_speech_features(samples, feature_extractor, audio_encoder)
        features = features[:, : last - first].to(device, dtype)
        tokens = audio_motion_encoder(
            features, stop - frame, features_per_frame, first_frame=frame - first / features_per_frame
        )
        yield tokens[0].float().cpu().numpy()
        frame = stop


def add_blinks(
    tokens: np.ndarray, audio_motion_encoder: torch.nn.Module, fps: float, first_frame: int = 0, seed: int = 0
) -> np.ndarray:
    """
    Tokens of speech, which cannot tell when eyes blink, with blinks at random moments.

    Args:
        tokens (`np.ndarray` of shape `(F, motion_dim)`): of `iterate_speech_tokens`.
        audio_motion_encoder (`AudioMotionEncoder`): the one that made them; its config's `blink` says what closed eyes
            add to a token. Without one, the tokens stay as they are.
        fps (`float`): frames per second.
        first_frame (`int`): the video's frame that the first token is of.
        seed (`int`): of the blinks, see `motion.idle.idle_blinks`.

    Returns:
        `np.ndarray` of shape `(F, motion_dim)`.
    """
    blink = audio_motion_encoder.config.blink
    if blink is None:
        return tokens
    closed = idle_blinks((first_frame + np.arange(len(tokens))) / fps, seed)
    return tokens + closed[:, None] * np.asarray(blink, dtype=np.float32)


def mix_by_interval(
    sources: dict[str, np.ndarray], intervals: list[tuple[float, str]], fps: float, fade: float = 0.16
) -> np.ndarray:
    """
    The face of one driver until a moment, and of another one after it.

    Args:
        sources (`dict[str, np.ndarray]`): face motion tokens `(F, motion_dim)`, or weights of faces `(F,)`, of each
            driver by a name; all of one shape.
        intervals (`list[tuple[float, str]]`): seconds from which on a driver is taken, the first at 0, in rising
            order: `[(0, "video"), (3, "speech")]`.
        fps (`float`): frames per second.
        fade (`float`): seconds, around each moment, in which one passes into the other.

    Returns:
        `np.ndarray` like each of the sources.

    Raises:
        ValueError: sources of several shapes, an unknown name, moments that do not rise from 0.
    """
    shapes = {name: values.shape for name, values in sources.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"`sources` have shapes {shapes}, but one shape is needed.")
    starts = [start for start, _ in intervals]
    if not starts or starts[0] != 0 or any(b <= a for a, b in zip(starts, starts[1:])):
        raise ValueError(f"`intervals` begin at {starts} seconds, but have to rise from 0.")
    unknown = sorted({name for _, name in intervals} - sources.keys())
    if unknown:
        raise ValueError(f"`intervals` name {unknown}, but `sources` are {sorted(sources)}.")
    mixed = sources[intervals[0][1]].astype(np.float32)
    times = (np.arange(len(mixed)) + 0.5) / fps
    for start, name in intervals[1:]:
        share = np.clip((times - start) / max(fade, 1e-6) + 0.5, 0, 1).reshape((-1,) + (1,) * (mixed.ndim - 1))
        mixed = mixed * (1 - share) + sources[name] * share
    return mixed.astype(np.float32)
