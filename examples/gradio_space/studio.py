"""What the Space does, without its page: inputs of a visitor to a prepared performance, and that to films."""

import contextlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffusers_dreamactor import (
    AnimationInputs,
    DreamActorPipeline,
    DreamActorWanAnimatePipeline,
    MotionSequence,
    plan_memory,
    use_few_steps,
)
from diffusers_dreamactor.checkpoints import bundled_avatars, bundled_model, bundled_motions, bundled_speech
from diffusers_dreamactor.frame_sources import iterate_frames
from diffusers_dreamactor.loaders.wan_animate import PUBLIC_WEIGHTS
from diffusers_dreamactor.media import VideoReader, VideoWriter
from diffusers_dreamactor.motion.capture.download import (
    CAPTURE_MODELS,
    default_capture_folder,
    download_capture_models,
)
from diffusers_dreamactor.pictures import load_picture
from diffusers_dreamactor.processors.reference import Reference
from diffusers_dreamactor.sound import Sound


logger = logging.getLogger(__name__)

SOUND_RATE = 48_000
# What a plan for a GPU's memory is made for, when the pictures are not known yet: 480p, a segment.
PLANNED = {"height": 480, "width": 832, "num_frames": 77}
# A Space on shared GPUs has none until it is called; then it has one of this many GiB to itself.
SHARED_GPU = 60
# Pixels; smaller pictures are enlarged to be looked at.
SHOWN = 256
PARTS = ("face", "head", "body")
DRIVERS = ("Bundled motion", "Video", "Speech")
# A sentence of the library names its arguments; a visitor knows the page's fields.
FIELDS = {
    "image": "the picture",
    "video": "the driving video",
    "face_video": "the video of the face",
    "audio": "the speech",
    "person": "the person chosen in the video",
    "reference_person": "the person chosen in the picture",
    "drive": "the driven parts",
    "num_frames": "the length",
    "num_inference_steps": "the number of steps",
    "guidance_scale": "the guidance scale",
    "face_scale": "the strength of the face",
    "pose_scale": "the strength of the pose",
}


class VisitorError(Exception):
    """A sentence for the visitor."""


@dataclass
class Request:
    """What a visitor chose: files as paths, points in pixels of the picture and of the video's first frame."""

    picture: str | None
    driver: str = DRIVERS[0]
    motion: str = "talk"
    video: str | None = None
    speech: str | None = None
    face_video: str | None = None
    reference_person: tuple[float, float] | None = None
    person: tuple[float, float] | None = None
    drive: tuple[str, ...] = PARTS
    seconds: float = 4.0
    consent: bool = False
    replace: bool = False


@dataclass
class Sampling:
    """How it is drawn."""

    steps: int
    guidance_scale: float
    face_scale: float = 1.0
    pose_scale: float = 1.0
    seed: int = 0


@dataclass
class Film:
    """What has been made: the newest segment as an animated picture, and at the end the films."""

    done: float
    note: str
    newest: Path | None = None
    film: Path | None = None
    side_by_side: Path | None = None


@dataclass
class Visit:
    """
    A visitor's folder. Each performance that was asked for has a ticket in it, a file, so that a process on a shared GPU sees,
    too, when it is void: once the visitor cancels, or leaves.
    """

    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="dreamactor-")))

    def ask(self) -> Path:
        """A ticket for another performance."""
        ticket = self.path("ticket")
        ticket.touch()
        return ticket

    def cancel(self) -> None:
        """Voids the tickets of everything that was asked for until now."""
        for ticket in self.folder.glob("*/ticket"):
            ticket.unlink(missing_ok=True)

    def path(self, name: str) -> Path:
        """A new path in the folder."""
        if not self.folder.is_dir():
            raise VisitorError("This visit has ended.")
        return Path(tempfile.mkdtemp(dir=self.folder)) / name

    def close(self) -> None:
        """Voids all tickets and removes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Studio:
    """
    The weights and what visitors may ask of them.

    Args:
        model (`str`, *optional*): a repository; with a GPU the public weights when `None`, else the bundled ones.
        few_steps (`str`, *optional*): a step-distillation LoRA for them; the public one with the public weights when `None`.
        most_seconds (`float`): of film.
        most_megabytes (`int`): of a file.
    """

    def __init__(
        self,
        model: str | None = None,
        few_steps: str | None = None,
        most_seconds: float | None = None,
        most_megabytes: int = 200,
    ):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = model or (PUBLIC_WEIGHTS if self.device == "cuda" else bundled_model())
        self.is_bundled = self.model == bundled_model()
        self.most_seconds = most_seconds or (4.0 if self.device == "cpu" and not self.is_bundled else 10.0)
        self.most_megabytes = most_megabytes
        self.avatars, self.motions, self.speech = bundled_avatars(), bundled_motions(), bundled_speech()
        self._poses = {
            name: MotionSequence.load(path.with_suffix(".safetensors")) for name, path in self.avatars.items()
        }
        self._pictures = {name: load_picture(path) for name, path in self.avatars.items()}
        if self.device == "cuda":
            plan = plan_memory(self.model, **PLANNED, memory=SHARED_GPU if "SPACES_ZERO_GPU" in os.environ else "auto")
            self.pipe = plan.load(place=False)
        else:
            self.pipe = DreamActorPipeline.from_pretrained(self.model)
        # arguments of sampling that the page does not ask for
        self.recipe = {}
        if few_steps or self.model == PUBLIC_WEIGHTS:
            self.recipe = use_few_steps(self.pipe, few_steps)
        if self.device == "cuda":
            plan.apply(self.pipe)
        self.pipe.set_progress_bar_config(disable=True)
        self.can_replace = isinstance(self.pipe, DreamActorWanAnimatePipeline)
        self.missing = self._fetch_landmarkers()

    def _fetch_landmarkers(self) -> str | None:
        """Fetches what the capture of videos and pictures needs, once; what is wrong, else None."""
        folder = default_capture_folder()
        if all((folder / name).is_file() for name in CAPTURE_MODELS):
            return None
        try:
            download_capture_models(folder)
        except (OSError, ValueError) as error:
            logger.warning(f"The landmarkers were not fetched: {error}")
            return "This Space could not fetch MediaPipe's landmarkers: only its own avatars, motions and speech work now."
        return None

    def avatar_of(self, picture: str) -> str | None:
        """The name of the bundled avatar that a picture is, if it is one."""
        given = load_picture(picture)
        for name, avatar in self._pictures.items():
            if avatar.size == given.size and avatar.tobytes() == given.tobytes():
                return name
        return None

    def check_file(self, path: str | None, what: str) -> None:
        """Raises `VisitorError` for a file that is missing or too large."""
        if path is None:
            raise VisitorError(f"Please give {what} first.")
        if os.path.getsize(path) > self.most_megabytes * 2**20:
            raise VisitorError(f"{what[0].upper()}{what[1:]} is larger than {self.most_megabytes} MB.")

    def reference(self, picture: str | None, person: tuple[float, float] | None) -> tuple[Reference, str]:
        """The picture as it is animated (cut to what the weights draw), and a notice about it (may be empty)."""
        self.check_file(picture, "a picture")
        with visitor_errors():
            avatar = self.avatar_of(picture)
            pose = self._poses.get(avatar)
            if pose is None and self.missing:
                raise VisitorError(self.missing)
            reference = self.pipe.prepare_references(picture, reference_motion=pose, reference_person=person)[0]
        notice = ""
        if self.is_bundled and avatar is None:
            notice = (
                "This Space runs the small bundled model, which knows only its own avatars: your picture will come out blurred."
                f" On a GPU it runs {PUBLIC_WEIGHTS}, which knows real people."
            )
        elif reference.scale == "portrait":
            notice = "A portrait: the body below the shoulders stays outside the picture."
        return reference, notice

    def first_frame(self, video: str | None) -> np.ndarray | None:
        """The driver's first frame, in which a person can be chosen."""
        if video is None:
            return None
        self.check_file(video, "a driving video")
        with visitor_errors():
            return next(iter(VideoReader(video)))

    def prepare(self, request: Request, reference: Reference | None = None) -> AnimationInputs:
        """What is performed; `VisitorError` for what cannot be."""
        if reference is None:
            reference, _ = self.reference(request.picture, request.reference_person)
        with visitor_errors():
            own = self.avatar_of(request.picture) is not None and request.driver != "Video"
            if not (own or request.consent):
                raise VisitorError("Please confirm that you may use this picture and this driver.")
            if not request.drive:
                raise VisitorError("Please choose at least one part that is driven: face, head or body.")
            seconds = min(max(request.seconds, 0.1), self.most_seconds)
            driver = {"drive": tuple(request.drive)}
            if request.face_video:
                self.check_file(request.face_video, "a video of the face")
                driver |= {"face_video": request.face_video, "extend": "hold"}
            if request.driver == "Speech":
                self.check_file(request.speech, "speech")
                if request.face_video:
                    raise VisitorError("Speech and a video of the face were both given: the face has one driver.")
                return self.pipe.prepare(reference, audio=_beginning(request.speech, seconds), **driver)
            if request.driver == "Bundled motion":
                motion = MotionSequence.load(self.motions[request.motion])
                count = min(len(motion), max(1, round(seconds * motion.fps)))
                return self.pipe.prepare(reference, motion=motion, num_frames=count, **driver)
            self.check_file(request.video, "a driving video")
            if self.missing:
                raise VisitorError(self.missing)
            reader = VideoReader(request.video)
            count = min(len(reader), max(1, round(seconds * reader.fps)))
            picture = reference
            if request.replace:
                # the video decides the size, not the picture
                picture = request.picture
                driver |= {"mode": "replace", "reference_person": request.reference_person}
            return self.pipe.prepare(picture, request.video, person=request.person, num_frames=count, **driver)

    def look(self, inputs: AnimationInputs, visit: Visit) -> Path:
        """The guidance as a video to look at."""
        path = visit.path("guidance.mp4")
        with visitor_errors():
            inputs.preview().save(path)
        return path

    def steps(self, sampling: Sampling) -> int:
        """How many steps a segment takes."""
        return len(self.recipe["sigmas"]) if self.recipe else sampling.steps

    def seconds_needed(self, num_frames: int, sampling: Sampling) -> int:
        """About how long a GPU is needed, for the Space's scheduler: a segment of 77 frames is given 6 seconds a step."""
        segments = -(-num_frames // max(self.pipe.config.segment_frames - 1, 1))
        passes = 1 if self.recipe or sampling.guidance_scale <= 1 else 2
        return int(20 + 6 * segments * self.steps(sampling) * passes)

    def animate(
        self,
        inputs: AnimationInputs,
        sampling: Sampling,
        visit: Visit,
        ticket: Path,
        tell: Callable[[float, str], None],
    ) -> Iterator[Film]:
        """
        Draws the performance segment by segment.

        Args:
            inputs ([`AnimationInputs`]): what `prepare` made.
            sampling (`Sampling`): how.
            visit (`Visit`), ticket (`Path`): whose folder the films go to; once the ticket is void, this ends after its
                step.
            tell: is told the share that is done and a sentence, step by step.
        """
        started, total = time.monotonic(), len(inputs)
        segment_frames = min(self.pipe.config.segment_frames, total)
        num_segments = max(1, -(-(total - 1) // max(segment_frames - 1, 1)))
        made = {"frames": 0, "segments": 0}
        steps = self.steps(sampling)
        how = self.recipe or {"num_inference_steps": steps, "guidance_scale": sampling.guidance_scale}

        def after_step(pipe, step: int, timestep, state: dict) -> dict:
            if not ticket.exists():
                pipe._interrupt = True
            done = (made["segments"] + (step + 1) / steps) / num_segments
            left = (time.monotonic() - started) * (1 - done) / max(done, 1e-6)
            segment = min(made["segments"] + 1, num_segments)
            tell(min(done, 1.0), f"segment {segment} of {num_segments}, about {max(left, 0):.0f} s left")
            return state

        try:
            if not ticket.exists():
                raise Stopped
            film, beside = visit.path("film.mp4"), visit.path("side-by-side.mp4")
            sides = _left_sides(inputs)
            generator = torch.Generator().manual_seed(int(sampling.seed))
            writing = {"fps": inputs.fps, "audio": inputs.sound, "provenance": self.pipe.provenance(generator)}
            with visitor_errors():
                segments = self.pipe.stream(
                    inputs,
                    **how,
                    face_scale=sampling.face_scale,
                    pose_scale=sampling.pose_scale,
                    generator=generator,
                    callback_on_step_end=after_step,
                )
            with (
                visitor_errors(),
                contextlib.closing(segments),
                VideoWriter(film, **writing) as writer,
                VideoWriter(beside, **writing) as both,
            ):
                for segment in segments:
                    if not ticket.exists():
                        raise Stopped
                    frames = segment.frames[0]
                    for frame in frames:
                        writer.write(frame)
                        both.write(_beside(next(sides), frame))
                    made["segments"] += 1
                    made["frames"] += len(frames)
                    newest = visit.path("newest.webp")
                    _save_moving([_enlarge(frame, max(SHOWN, frame.height)) for frame in frames], inputs.fps, newest)
                    note = f"{made['frames']} of {total} frames are ready."
                    yield Film(made["frames"] / total, note, newest)
        except Stopped:
            yield Film(0.0, "Cancelled.")
            return
        seconds = time.monotonic() - started
        yield Film(1.0, f"{total} frames in {seconds:.0f} s.", newest, film, beside)


class Stopped(Exception):
    """The visitor cancelled, or left."""


class visitor_errors:
    """What goes wrong with a visitor's input inside becomes a `VisitorError` in the page's words, without server paths."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, (ValueError, OSError)):
            raise VisitorError(in_the_page_s_words(str(error))) from error


def in_the_page_s_words(sentence: str) -> str:
    """An error of the library with the page's fields for its arguments, and names of files for their paths."""
    sentence = re.sub(r"(?<![\w.])(?:/[^\s/'\"`,;:]+)+/([^\s/'\"`,;:]+)", r"\1", sentence)
    sentence = re.sub(r"`(\w+)(?:=[^`]*)?`", lambda match: FIELDS.get(match.group(1), match.group(1)), sentence)
    return sentence[:1].upper() + sentence[1:]


def _beginning(path: str, seconds: float) -> tuple[np.ndarray, int]:
    """The first seconds of a sound, and its rate: what is not said is not read either."""
    count, chunks = round(seconds * SOUND_RATE), []
    for chunk in Sound(Path(path), SOUND_RATE, 0.0).chunks():
        chunks.append(chunk)
        if sum(chunk.shape[1] for chunk in chunks) >= count:
            break
    if not chunks:
        raise VisitorError("The speech has no sound.")
    return np.concatenate(chunks, axis=1)[:, :count], SOUND_RATE


def _left_sides(inputs: AnimationInputs) -> Iterator[Image.Image]:
    """The driver's frames, or the picture where there is no driving video."""
    if inputs.driver is None:
        while True:
            yield inputs.references[0].image
    for frame in iterate_frames(inputs.driver, inputs.index):
        yield Image.fromarray(frame)


def _enlarge(picture: Image.Image, height: int) -> Image.Image:
    """A picture of that height, and of an even width."""
    width = 2 * round(picture.width * height / picture.height / 2)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures of one height."""
    pictures = [_enlarge(picture, max(SHOWN, right.height)) for picture in (left, right)]
    height = pictures[0].height
    both = Image.new("RGB", (pictures[0].width + pictures[1].width, height))
    both.paste(pictures[0])
    both.paste(pictures[1], (pictures[0].width, 0))
    return both


def _save_moving(frames: list[Image.Image], fps: float, path: Path) -> None:
    """An animated WebP that repeats."""
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0, quality=85)
