"""Speech with known phoneme times: espeak-ng through its library, and recordings of it in rooms, at distances, in
noise.

espeak-ng (https://github.com/espeak-ng/espeak-ng, GPL-3.0; Debian package `espeak-ng`) speaks more than a hundred
languages by formant synthesis and says when each phoneme begins. It is loaded at run time and is no dependency of the
package.
"""

from __future__ import annotations

import ctypes
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft
import scipy.signal


SAMPLING_RATE = 16000
HELD_OUT_LANGUAGES = ("fi", "el", "hu", "ja", "id", "ro")
"""Never trained on."""
HELD_OUT_VOICES = ("m7", "f4", "klatt4", "steph", "Michael", "linda")
VOICES = (
    *(
        "m1",
        "m2",
        "m3",
        "m4",
        "m5",
        "m6",
        "m8",
        "f1",
        "f2",
        "f3",
        "f5",
        "klatt",
        "klatt2",
        "klatt3",
        "klatt5",
        "klatt6",
    ),
    *("Andy", "Annie", "Gene", "Gene2", "Alex", "Alicia", "Lee", "Mario", "Marco", "Denis", "Diogo", "Jacky", "Hugo"),
    *(
        "adam",
        "anika",
        "antonio",
        "aunty",
        "belinda",
        "benjamin",
        "boris",
        "david",
        "ed",
        "edward",
        "grandma",
        "grandpa",
    ),
    *("john", "max", "michel", "miguel", "norbert", "paul", "pablo", "pedro", "quincy", "rob", "robert", "sandro"),
    *("shelby", "travis", "victor", "zac", "croak", "marcelo", "caleb", "iven", "kaukovalta", "gustave"),
)
"""Variants of espeak-ng's voices: other formants, breath and pitch."""
HELD_OUT_SENTENCES = 3
"""The last sentences of each language are for evaluation."""


@dataclass(frozen=True)
class Phoneme:
    """An IPA symbol as espeak-ng names it, and when it begins and ends, in seconds."""

    name: str
    start: float
    end: float


@dataclass
class Utterance:
    """
    Spoken text.

    Attributes:
        samples (`np.ndarray` of shape `(n,)`): float32 in [-1, 1] at `SAMPLING_RATE`.
        phonemes (`list[Phoneme]`): in order; what lies between them is silent.
    """

    samples: np.ndarray
    phonemes: list[Phoneme]


def load_sentences() -> dict[str, list[str]]:
    """Sentences by language; written for this project, in the public domain."""
    return json.loads((Path(__file__).parent / "sentences.json").read_text(encoding="utf-8"))


class _EventValue(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventValue),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_RETRIEVAL, _PHONEME_EVENTS, _IPA, _UTF8 = 1, 1, 2, 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_LIST_END, _PHONEME = 0, 7


class SpeechSynthesizer:
    """
    espeak-ng's library. It keeps its state in globals: make one in a process.

    Raises:
        OSError: the library is not installed (Debian: `apt-get install espeak-ng`).
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libespeak-ng.so.1")
        self._rate = self._library.espeak_Initialize(_RETRIEVAL, 200, None, _PHONEME_EVENTS | _IPA)
        self._chunks, self._events = [], []

        def receive(samples, count, events):
            if samples and count:
                self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
            index = 0
            while events[index].type != _LIST_END:
                if events[index].type == _PHONEME:
                    name = bytes(events[index].id.string).split(b"\0")[0].decode("utf-8", "ignore")
                    self._events.append((events[index].sample / self._rate, name))
                index += 1
            return 0

        self._callback = _CALLBACK(receive)
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(
        self,
        text: str,
        language: str,
        voice: str | None = None,
        speed: int = 165,
        pitch: int = 50,
        pitch_range: int = 50,
    ) -> Utterance:
        """
        Args:
            text: to say.
            language: an espeak-ng language (`espeak-ng --voices`).
            voice: one of `VOICES`, or espeak-ng's own.
            speed: words a minute.
            pitch, pitch_range: 0 to 100.

        Raises:
            ValueError: espeak-ng has no such language or voice, or makes no sound of the text.
        """
        name = language if voice is None else f"{language}+{voice}"
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise ValueError(f"`language` and `voice` are {name}, which espeak-ng does not have.")
        for parameter, value in ((_RATE, speed), (_VOLUME, 90), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, int(value), 0)
        self._chunks.clear()
        self._events.clear()
        encoded = text.encode("utf-8")
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        if not self._chunks:
            raise ValueError(f"`text` {text!r} has nothing that can be said in {language}.")
        samples = np.concatenate(self._chunks).astype(np.float32) / 32768
        end = len(samples) / self._rate
        times = [time for time, _ in self._events] + [end]
        phonemes = [Phoneme(name, times[i], times[i + 1]) for i, (_, name) in enumerate(self._events) if name]
        up, down = SAMPLING_RATE // np.gcd(SAMPLING_RATE, self._rate), self._rate // np.gcd(SAMPLING_RATE, self._rate)
        return Utterance(scipy.signal.resample_poly(samples, up, down).astype(np.float32), phonemes)


def speak_at_random(
    synthesizer: SpeechSynthesizer,
    random: np.random.Generator,
    language: str,
    sentences: list[str],
    voices: tuple[str, ...] = VOICES,
    seconds: float = 20.0,
    shuffle_words: float = 0.5,
) -> Utterance:
    """
    About `seconds` of one person talking: sentences (now and then their words in any order, so that sounds meet that
    never do in so few sentences) with pauses between them, at a speed, pitch and loudness of their own.
    """
    voice = str(random.choice(voices))
    speed, pitch = random.integers(110, 240), random.integers(15, 85)
    pitch_range = random.integers(20, 90)
    words = [word for sentence in sentences for word in sentence.split()]
    pieces, phonemes = [np.zeros(int(random.uniform(0.1, 0.8) * SAMPLING_RATE), dtype=np.float32)], []
    length = len(pieces[0])
    while length < seconds * SAMPLING_RATE:
        text = str(random.choice(sentences))
        if random.random() < shuffle_words:
            text = " ".join(random.choice(words, size=random.integers(2, 9)))
        spoken = synthesizer.speak(text, language, voice, speed + random.integers(-15, 16), pitch, pitch_range)
        start = length / SAMPLING_RATE
        phonemes += [Phoneme(p.name, start + p.start, start + p.end) for p in spoken.phonemes]
        pause = np.zeros(int(random.choice([0.05, 0.3, 0.7, 1.5]) * random.uniform(0.7, 1.3) * SAMPLING_RATE))
        pieces += [spoken.samples * random.uniform(0.6, 1.0), pause.astype(np.float32)]
        length += len(spoken.samples) + len(pause)
    return Utterance(np.concatenate(pieces), phonemes)


def make_noise(random: np.random.Generator, length: int) -> np.ndarray:
    """Noise `(length,)` of unit RMS: between white and brown, steady or in gusts, with or without hum."""
    padded = scipy.fft.next_fast_len(length)
    spectrum = np.fft.rfft(random.standard_normal(padded))
    frequencies = np.maximum(np.fft.rfftfreq(padded, 1 / SAMPLING_RATE), 20.0)
    noise = np.fft.irfft(spectrum * frequencies ** -random.uniform(0, 1), padded)[:length]
    time = np.arange(length) / SAMPLING_RATE
    if random.random() < 0.4:
        noise = noise * (1 + 0.9 * np.sin(2 * np.pi * random.uniform(0.1, 1.5) * time + random.uniform(0, 6)))
    noise = noise / noise.std()
    if random.random() < 0.3:
        base = random.choice([50, 60, 120])
        hum = sum(np.sin(2 * np.pi * base * k * time + random.uniform(0, 6)) / k for k in (1, 2, 3, 5))
        noise = noise + random.uniform(0.2, 1.5) * hum
    return (noise / noise.std()).astype(np.float32)


def record(samples: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """
    What a microphone hears: a room (echoes that decay; the direct sound stays where it is), a coloured channel, at
    times a telephone's band, loudness from far to close, noise from none to loud. Same length, in [-1, 1].
    """
    recorded = samples
    if random.random() < 0.5:
        decay = random.uniform(0.05, 0.4)
        tail = random.standard_normal(int(decay * SAMPLING_RATE)) * np.exp(
            -6.9 * np.arange(int(decay * SAMPLING_RATE)) / (decay * SAMPLING_RATE)
        )
        tail[: int(0.002 * SAMPLING_RATE)] = 0
        room = random.uniform(0.05, 0.6) * tail / np.linalg.norm(tail)
        room[0] = 1.0
        recorded = scipy.signal.fftconvolve(recorded, room)[: len(samples)]
    if random.random() < 0.7:
        # peaks and dips of an octave and more, as microphones, loudspeakers and other vocal tracts make them
        frequencies = np.array([0, 200, 500, 1000, 2000, 4000, 8000]) / (SAMPLING_RATE / 2)
        gains = 10 ** (random.uniform(-8, 8, 7) / 20)
        recorded = scipy.signal.fftconvolve(recorded, scipy.signal.firwin2(129, frequencies, gains), mode="same")
    if random.random() < 0.12:
        band = scipy.signal.butter(3, [300, 3400], "bandpass", fs=SAMPLING_RATE, output="sos")
        recorded = scipy.signal.sosfilt(band, recorded)
    spoken = np.abs(recorded) > 0.02 * np.abs(recorded).max()
    level = np.sqrt(np.mean(recorded[spoken] ** 2)) if spoken.any() else 1.0
    recorded = recorded / level * 10 ** (random.uniform(-42, -12) / 20)
    kind = random.random()
    if kind > 0.2:
        signal_to_noise = random.uniform(4, 20) if kind > 0.75 else random.uniform(20, 55)
        level = np.sqrt(np.mean(recorded[spoken] ** 2)) if spoken.any() else 10 ** (random.uniform(-60, -20) / 20)
        recorded = recorded + level * 10 ** (-signal_to_noise / 20) * make_noise(random, len(samples))
    return np.clip(recorded, -1, 1).astype(np.float32)
