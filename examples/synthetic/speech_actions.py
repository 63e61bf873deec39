"""
What a face does while it talks: phonemes with their times -> the 52 ARKit facial actions.

Each phoneme asks for a shape of the mouth, more or less firmly; a blend of neighbours, weighted by how firmly and how
near, gives anticipation and carry-over (dominance functions: Cohen and Massaro, "Modeling coarticulation in synthetic
visual speech", 1993). What speech cannot do without is imposed afterwards: lips meet for p, b, m; the lower lip meets
the teeth for f, v.
"""

from __future__ import annotations

import numpy as np
from speech_synthesis import SAMPLING_RATE, Utterance

from diffusers_dreamactor.motion.skeleton import ARKIT_BLENDSHAPES


ACTION_INDEX = {name: index for index, name in enumerate(ARKIT_BLENDSHAPES)}

# openness of the jaw, spread (negative: none), rounding with closed lips (u), rounding with open lips (o)
_VOWELS = {
    **dict.fromkeys("aäaɐ", (0.72, 0.10, 0.0, 0.0)),
    **dict.fromkeys("ɑɒ", (0.74, 0.0, 0.0, 0.12)),
    **dict.fromkeys("æ", (0.66, 0.28, 0.0, 0.0)),
    **dict.fromkeys("ʌɜ", (0.48, 0.05, 0.0, 0.0)),
    **dict.fromkeys("ɛ", (0.46, 0.26, 0.0, 0.0)),
    **dict.fromkeys("e", (0.34, 0.36, 0.0, 0.0)),
    **dict.fromkeys("əɘᵻɚɝ", (0.28, 0.05, 0.0, 0.0)),
    **dict.fromkeys("ɪ", (0.24, 0.34, 0.0, 0.0)),
    **dict.fromkeys("i", (0.16, 0.52, 0.0, 0.0)),
    **dict.fromkeys("ɨɯ", (0.18, 0.20, 0.0, 0.0)),
    **dict.fromkeys("ɔ", (0.52, 0.0, 0.0, 0.55)),
    **dict.fromkeys("o", (0.36, 0.0, 0.35, 0.40)),
    **dict.fromkeys("œɞ", (0.42, 0.0, 0.0, 0.50)),
    **dict.fromkeys("øɵ", (0.28, 0.0, 0.40, 0.35)),
    **dict.fromkeys("ʊ", (0.22, 0.0, 0.55, 0.10)),
    **dict.fromkeys("uʉ", (0.14, 0.0, 0.85, 0.0)),
    **dict.fromkeys("yʏ", (0.13, 0.0, 0.80, 0.0)),
}
# the same, and how firmly it is asked for of the jaw and of the lips' corners
_CONSONANTS = {
    **dict.fromkeys("tdnɳʈɖɗ", (0.12, 0.10, 0.0, 0.0, 0.55, 0.10)),
    **dict.fromkeys("lɭɫɬʎ", (0.20, 0.10, 0.0, 0.0, 0.45, 0.10)),
    **dict.fromkeys("sz", (0.05, 0.22, 0.0, 0.0, 0.90, 0.25)),
    **dict.fromkeys("ʃʒʂʐ", (0.10, 0.0, 0.20, 0.55, 0.80, 0.80)),
    **dict.fromkeys("ɕʑç", (0.10, 0.25, 0.0, 0.10, 0.70, 0.40)),
    **dict.fromkeys("θð", (0.14, 0.10, 0.0, 0.0, 0.75, 0.20)),
    **dict.fromkeys("kɡgŋqɢcɟ", (0.20, 0.05, 0.0, 0.0, 0.35, 0.05)),
    **dict.fromkeys("xχɣʁħʕ", (0.26, 0.0, 0.0, 0.0, 0.40, 0.05)),
    **dict.fromkeys("hʔɦ", (0.25, 0.0, 0.0, 0.0, 0.08, 0.03)),
    **dict.fromkeys("ɹɻ", (0.16, 0.0, 0.25, 0.25, 0.50, 0.50)),
    **dict.fromkeys("rɾɽ", (0.18, 0.08, 0.0, 0.0, 0.40, 0.10)),
    **dict.fromkeys("jɲɥ", (0.14, 0.40, 0.0, 0.0, 0.55, 0.45)),
    **dict.fromkeys("wʍ", (0.10, 0.0, 0.90, 0.0, 0.80, 1.0)),
    **dict.fromkeys("pbm", (0.02, 0.05, 0.0, 0.0, 0.90, 0.15)),
    **dict.fromkeys("βɸ", (0.08, 0.05, 0.10, 0.0, 0.80, 0.15)),
    **dict.fromkeys("fvʋɱ", (0.06, 0.08, 0.0, 0.0, 0.90, 0.20)),
}
_REST_FIRMNESS = 1.2
_REACH = 0.055
"""Seconds in which the pull of a phoneme on its neighbours falls to 1/e."""
_LONGEST_ARTICULATION_GAP = 0.12
"""Seconds; longer gaps between phonemes are pauses, in which the mouth comes to rest."""


def _bump(times: np.ndarray, start: float, end: float, attack: float, release: float) -> np.ndarray:
    """1 from `start` to `end`, with smooth flanks before and after."""
    rise = np.clip((times - (start - attack)) / attack, 0, 1)
    fall = np.clip(((end + release) - times) / release, 0, 1)
    value = np.minimum(rise, fall)
    return value * value * (3 - 2 * value)


def closures(utterance: Utterance) -> list[tuple[str, float, float]]:
    """
    When lips are closed: the base symbol of each p, b, m and the seconds from when to when.

    espeak-ng dates a stop by its burst; the closure is the quiet before it, or where there is none (a voiced stop),
    the first half of it.
    """
    step = SAMPLING_RATE // 200
    frames = utterance.samples[: len(utterance.samples) // step * step].reshape(-1, step)
    energy = np.sqrt((frames**2).mean(axis=1))
    quiet = energy < 0.12 * np.percentile(energy[energy > 1e-4], 90) if (energy > 1e-4).any() else energy < 1
    found = []
    previous_end = 0.0
    for phoneme in utterance.phonemes:
        symbol = phoneme.name[0]
        if symbol == "m":
            found.append((symbol, phoneme.start, phoneme.end))
        elif symbol in "pb":
            burst = min(int(phoneme.start * 200), len(quiet))
            first = burst
            # not into the phoneme before the previous one's middle, nor further than a closure lasts
            while first > max(0, burst - 18) and quiet[first - 1] and (first - 1) / 200 >= previous_end - 0.06:
                first -= 1
            if burst - first >= 4:
                found.append((symbol, first / 200, phoneme.start + 0.008))
            else:
                found.append((symbol, phoneme.start, phoneme.start + 0.55 * (phoneme.end - phoneme.start)))
        previous_end = phoneme.end
    return found


def speech_actions(utterance: Utterance, rate: float = 100.0) -> np.ndarray:
    """
    Facial actions `(n, 52)` in [0, 1] at `rate` a second, value i at the time `i / rate`: what can be heard in the
    speech, and nothing else (no blinks: see `motion.idle`).
    """
    length = int(len(utterance.samples) / SAMPLING_RATE * rate) + 1
    times = np.arange(length) / rate

    # 1. Loudness by phoneme, relative to the loud ones: stressed vowels open wider
    def loudness(start, end):
        part = utterance.samples[
            int(start * SAMPLING_RATE) : max(int(end * SAMPLING_RATE), int(start * SAMPLING_RATE) + 1)
        ]
        return float(np.sqrt(np.mean(part**2))) if len(part) else 0.0

    levels = np.array([loudness(p.start, p.end) for p in utterance.phonemes])
    loud = np.percentile(levels, 90) if len(levels) else 1.0

    # 2. What each phoneme asks for: start, end, (jaw, spread, pucker, funnel), firmness of jaw and of lips
    segments = []
    stressed = []
    end = 0.0
    for phoneme, level in zip(utterance.phonemes, levels):
        if phoneme.start - end > _LONGEST_ARTICULATION_GAP:
            segments.append((end, phoneme.start, np.zeros(4), _REST_FIRMNESS, _REST_FIRMNESS))
        end = phoneme.end
        vowels = [symbol for symbol in phoneme.name if symbol in _VOWELS]
        if vowels and phoneme.name[0] not in _CONSONANTS:
            strength = 0.72 + 0.4 * min(1.0, level / max(loud, 1e-6))
            # a diphthong spends more time on its first vowel
            shares = np.cumsum([0.0] + [1.5 if i == 0 else 1.0 for i in range(len(vowels))])
            shares = phoneme.start + (phoneme.end - phoneme.start) * shares / shares[-1]
            for index, vowel in enumerate(vowels):
                target = np.array(_VOWELS[vowel]) * np.array([strength, 1, 1, 1])
                segments.append((shares[index], shares[index + 1], target, 0.75, 0.75))
            stressed.append((level * np.sqrt(phoneme.end - phoneme.start), phoneme))
        elif phoneme.name[0] in _CONSONANTS:
            *target, jaw, lips = _CONSONANTS[phoneme.name[0]]
            segments.append((phoneme.start, phoneme.end, np.array(target), jaw, lips))
    segments.append((end, times[-1] + 1, np.zeros(4), _REST_FIRMNESS, _REST_FIRMNESS))
    if segments[0][0] > 0:
        segments.insert(0, (-1.0, segments[0][0], np.zeros(4), _REST_FIRMNESS, _REST_FIRMNESS))

    # 3. The blend
    total, weight = np.zeros((length, 4)), np.full((length, 4), 1e-6)
    for start, stop, target, jaw, lips in segments:
        core = 0.25 * (stop - start)
        first, last = start + core, stop - core
        if stop - start > 0.3:
            # a long rest is a rest soon after its beginning, and until shortly before its end
            first, last = start + 0.08, stop - 0.06
        near = slice(max(0, int((first - 0.4) * rate)), max(0, int((last + 0.4) * rate) + 2))
        distance = np.maximum(0, np.maximum(first - times[near], times[near] - last))
        # rounding is prepared early, as lips are slower and free while the tongue works
        pull = np.exp(-distance / _REACH)[:, None] * np.array([jaw, lips, lips, lips])
        pull[:, 2:] = np.exp(-distance / (1.4 * _REACH))[:, None] * lips
        total[near] += pull * target
        weight[near] += pull
    jaw, spread, pucker, funnel = (total / weight).T

    # 4. What must be: closed lips, teeth on the lip
    closed, bitten, tongue = np.zeros(length), np.zeros(length), np.zeros(length)
    for _, start, stop in closures(utterance):
        closed = np.maximum(closed, _bump(times, start, stop, 0.055, 0.05))
    for phoneme in utterance.phonemes:
        if phoneme.name[0] in "fvɱʋ":
            bitten = np.maximum(bitten, _bump(times, phoneme.start + 0.01, phoneme.end - 0.01, 0.05, 0.05))
        elif phoneme.name[0] in "θðl":
            part = 1.0 if phoneme.name[0] != "l" else 0.4
            tongue = np.maximum(tongue, part * _bump(times, phoneme.start, phoneme.end, 0.04, 0.04))
    opened = (1 - closed) * (1 - 0.75 * bitten)
    jaw = jaw * opened
    active = np.clip(jaw / 0.3, 0, 1)

    # 5. Brows rise where a phrase is stressed most
    brows = np.zeros(length)
    stressed.sort(key=lambda item: -item[0])
    taken: list[float] = []
    for _, phoneme in stressed[: max(1, len(stressed) // 6)]:
        middle = (phoneme.start + phoneme.end) / 2
        if all(abs(middle - other) > 0.9 for other in taken):
            taken.append(middle)
            brows = np.maximum(brows, 0.45 * _bump(times, middle - 0.05, middle + 0.12, 0.16, 0.35))

    actions = np.zeros((length, len(ARKIT_BLENDSHAPES)), dtype=np.float32)

    def put(value, *names):
        for name in names:
            actions[:, ACTION_INDEX[name]] = value

    put(jaw, "jawOpen")
    put(pucker * (1 - 0.5 * bitten), "mouthPucker")
    put(funnel * opened, "mouthFunnel")
    put(0.8 * spread, "mouthSmileLeft", "mouthSmileRight")
    put(0.35 * spread, "mouthStretchLeft", "mouthStretchRight")
    put(0.45 * closed, "mouthPressLeft", "mouthPressRight")
    put(0.35 * closed + 0.75 * bitten, "mouthRollLower")
    put(0.25 * closed, "mouthRollUpper")
    put(0.35 * bitten + 0.15 * active * spread, "mouthUpperUpLeft", "mouthUpperUpRight")
    put(0.30 * active * (1 - bitten) * (1 - pucker), "mouthLowerDownLeft", "mouthLowerDownRight")
    put(0.25 * tongue * active, "tongueOut")
    put(brows, "browInnerUp")
    put(0.7 * brows, "browOuterUpLeft", "browOuterUpRight")
    return np.clip(actions, 0, 1)
