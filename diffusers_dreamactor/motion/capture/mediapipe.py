"""`MediaPipeCapture`: the motion of a person in a video or a picture, on the CPU, with MediaPipe's landmarkers."""

import os
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from diffusers.utils import logging
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from PIL import Image
from tqdm.auto import tqdm

from ...media import VideoReader
from ..face_crops import cut_square, square_around
from ..sequence import MotionSequence
from .body_pose import PoseObservations
from .contact import Contact
from .download import CAPTURE_MODELS, CAPTURE_MODELS_VARIABLE, check_capture_model, default_capture_folder
from .faces import SEARCH_SECONDS, Scene, agree, expected_heads, face_guesses, look_back
from .hands import HandFinder
from .head_pose import FaceLook
from .landmarkers import PEOPLE_WORKERS, SURE, Landmarkers
from .segmentation import PersonSegmenter
from .selection import NoPersonError, describe_people, select_person
from .to_motion import to_motion
from .tracking import CutDetector, Person, PersonTracker, Track, drop_duplicates


logger = logging.get_logger(__name__)

# how much of the picture is kept with a face, as a multiple of the face box's side
_CROP_SCALE = 2.0


@dataclass
class _Survey:
    """What the first look at a video found: everybody's poses, and the shots."""

    tracker: PersonTracker
    num_frames: int = 0
    cuts: list[int] = field(default_factory=list)

    @property
    def tracks(self) -> list[Track]:
        """Everybody found, without what only looks like a person to the pose landmarker."""
        return [track for track in self.tracker.tracks if track.confirmed]

    @property
    def shots(self) -> list[slice]:
        edges = [0, *self.cuts, self.num_frames]
        return [slice(start, stop) for start, stop in zip(edges[:-1], edges[1:])]

    def followed(self, chosen: list[tuple[int, Person] | None], shot: slice) -> Track | None:
        """The track of whom `chosen` follows in a shot; None where that is a face only."""
        numbers = [each[0] for each in chosen[shot] if each is not None]
        return self.tracker.tracks[numbers[0]] if numbers else None


class MediaPipeCapture:
    """
    Captures body, hands, head and face of one person with MediaPipe's pose, hand and face landmarkers (extra `capture`).

    The video is read twice. First every person's pose is found and followed, and one person is chosen. Then that person is
    looked at closely: the face landmarker and the hand landmarker run on crops that the pose gives, so that small
    faces and hands are found, and a pose that does not fit the face is done again on a crop around the person. Gaps
    and outliers are repaired, everything is smoothed without delay, and the joints are placed in one camera frame in metres.
    Memory holds a few frames, whatever the video's length.

    Args:
        folder (`str` or `os.PathLike`): holds `pose_landmarker_full.task`, `hand_landmarker.task` and
            `face_landmarker.task`.

    Raises:
        OSError: files are missing or are not these bundles.
        ImportError: `mediapipe` is not installed.
    """

    def __init__(self, folder: str | os.PathLike):
        try:
            import mediapipe  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "`MediaPipeCapture` needs MediaPipe: install it with `pip install 'diffusers-dreamactor[capture]'`."
            ) from error
        self.folder = Path(folder)
        missing = [name for name in CAPTURE_MODELS if not (self.folder / name).is_file()]
        if missing:
            raise OSError(
                f"Capture needs {', '.join(CAPTURE_MODELS)}, but {self.folder} lacks {', '.join(missing)}. Fetch them "
                f"with `dreamactor capture --download`, or set {CAPTURE_MODELS_VARIABLE} to a folder that has them."
            )
        for name in CAPTURE_MODELS:
            check_capture_model(self.folder / name)

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | os.PathLike | None = None) -> "MediaPipeCapture":
        """
        Loads the three bundles from a folder or a Hub repository; by default from the folder that
        `DREAMACTOR_CAPTURE_MODELS` names, else from where `dreamactor capture --download` puts them.

        Raises:
            OSError: files are missing, are not these bundles, or the repository cannot be read.
            ImportError: `mediapipe` is not installed.
        """
        if folder_or_hub_id is None:
            return cls(default_capture_folder())
        if Path(folder_or_hub_id).is_dir() or len(Path(folder_or_hub_id).parts) != 2:
            return cls(folder_or_hub_id)
        try:
            return cls(snapshot_download(str(folder_or_hub_id), allow_patterns=list(CAPTURE_MODELS)))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
            raise OSError(
                f"{str(folder_or_hub_id)!r} is neither a folder nor a Hub repository that can be read, where "
                f"{', '.join(CAPTURE_MODELS)} were looked for. Fetch them with `dreamactor capture --download`, or set "
                f"{CAPTURE_MODELS_VARIABLE} to a folder that has them."
            ) from error

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Copies the three bundles to a folder that `from_pretrained` reads."""
        save_directory = Path(save_directory)
        save_directory.mkdir(parents=True, exist_ok=True)
        for name in CAPTURE_MODELS:
            if not (save_directory / name).is_file():
                shutil.copyfile(self.folder / name, save_directory / name)

    def capture(
        self,
        video,
        fps: float | None = None,
        person: int | tuple | None = None,
        progress: bool = True,
        face_size: int | None = None,
        smooth: bool = True,
    ) -> MotionSequence:
        """
        The motion of one person.

        Args:
            video: whatever `VideoReader` takes, or one PIL image (a reference), which gives one frame.
            fps (`float`, *optional*): resample to this rate (default: the video's own).
            person (*optional*): whom, if there are several: an index by size, `(x, y)` pixels where the person is first
                seen, or a box `(x0, y0, x1, y1)`. Default: the largest over the video.
            progress (`bool`): show progress bars.
            face_size (`int`, *optional*): also keep a picture of this many pixels of the face and as much again around it
                (in memory), so that the face can be driven without the video.
            smooth (`bool`): remove jitter.

        Returns:
            A `MotionSequence` with body, head and face; `body` is None where only a face can be seen. `people` holds the
            person's number, -1 in frames without the person; there, confidence fades to 0.

        Raises:
            ValueError: there is nobody in the video, or not the person asked for; bad arguments.
        """
        if face_size is not None and face_size < 1:
            raise ValueError(f"`face_size` must be a positive number of pixels or None, but is {face_size}.")
        is_image = isinstance(video, Image.Image)
        reader = VideoReader([video] if is_image else video, fps=fps)
        what = "picture" if is_image else "video"
        with Landmarkers(self.folder) as landmarkers:
            survey = self._survey(reader, landmarkers, progress)
            chosen = select_person(survey.tracks, survey.shots, person, reader.width, reader.height)
            looks, observed, lost = self._look_closer(reader, landmarkers, survey, chosen, progress)
        argument = "reference_person" if is_image else "person"
        describe_people(survey.tracks, survey.tracker.overlaps, chosen, survey.shots, person, lost, argument)
        if not observed.seen.any() and sum(look is not None for look in looks) < min(4, survey.num_frames):
            raise NoPersonError(
                f"`{'image' if is_image else 'video'}` shows no person: neither a body nor a face was found in "
                f"{'the picture' if is_image else f'any of its {survey.num_frames} frames'}."
            )
        people = np.array([-1 if each is None else each[0] for each in chosen], dtype=np.int64)
        motion = to_motion(looks, observed, people, survey.shots, reader, what, smooth)
        if face_size is not None:
            motion.face.crops, motion.face.crop_boxes = _cut_faces(reader, motion.face.boxes, face_size, progress)
        motion.validate()
        return motion

    def segment(self, video, motion: MotionSequence, progress: bool = True) -> Iterator[np.ndarray | None]:
        """
        Where the captured person is, frame by frame, pixel by pixel.

        Args:
            video: what was captured: whatever `VideoReader` takes, or one PIL image.
            motion (`MotionSequence`): its motion, in pixels of the video; as many masks come as it has frames.
            progress (`bool`): show a progress bar.

        Yields:
            `np.ndarray` of shape `(H, W)`, float32 in [0, 1], of zeros where the motion has nobody; `None` where it has
            somebody whom the segmentation does not find.
        """
        reader = VideoReader([video] if isinstance(video, Image.Image) else video, num_frames=motion.num_frames)
        bar = tqdm(reader, desc="Cutting out", unit="frame", disable=None if progress else True)
        with PersonSegmenter(self.folder, motion.fps) as segmenter:
            for index, frame in enumerate(bar):
                yield segmenter.segment(frame, motion, index)

    def _survey(self, reader: VideoReader, landmarkers: Landmarkers, progress: bool) -> _Survey:
        """First look: everybody's pose in every frame, followed from frame to frame."""
        survey = _Survey(PersonTracker(reader.fps))
        cuts = CutDetector()
        bar = tqdm(total=len(reader), desc="Finding people", unit="frame", disable=None if progress else True)
        with ThreadPoolExecutor(PEOPLE_WORKERS) as executor, bar:
            pending = deque()

            def take_in() -> None:
                frame, found = pending.popleft()
                cut = cuts.update(frame)
                if cut:
                    survey.cuts.append(survey.num_frames)
                index = survey.num_frames
                people = drop_duplicates(found.result())
                for number, person in zip(survey.tracker.update(index, people, cut), people):
                    track = survey.tracker.tracks[number]
                    tries = len(track.detections)
                    # Now and then until it is sure: somebody may come in headless, or be hidden at first.
                    if track.votes < SURE and (tries & (tries - 1) == 0 or tries % 64 == 0):
                        track.votes += landmarkers.confirms_person(frame, person)
                survey.num_frames += 1
                bar.update()

            for index, frame in enumerate(reader):
                worker = index % PEOPLE_WORKERS
                if len(reader) == 1:
                    search = executor.submit(landmarkers.find_people_in_picture, frame)
                else:
                    search = executor.submit(landmarkers.find_people, frame, worker)
                pending.append((frame, search))
                # Each worker has one frame at a time; the next ones are decoded meanwhile.
                if len(pending) == PEOPLE_WORKERS:
                    take_in()
            while pending:
                take_in()
        return survey

    def _look_closer(
        self,
        reader: VideoReader,
        landmarkers: Landmarkers,
        survey: _Survey,
        chosen: list[tuple[int, Person] | None],
        progress: bool,
    ) -> tuple[list[FaceLook | None], PoseObservations, list[int]]:
        """
        Second look: the face and the hands of the chosen person, and its pose again where it does not fit the face. Also returns
        the frames in which parts are left out that are not surely the person's.
        """
        observed = PoseObservations.empty(survey.num_frames)
        looks: list[FaceLook | None] = [None] * survey.num_frames
        expected = expected_heads(chosen, survey.shots, reader.fps)
        tracks = survey.tracks
        starts = {shot.start: shot for shot in survey.shots}
        last_look, look_frame = None, -1
        last_person, last_frame, person_frame = None, None, -1
        own, following = None, False
        contact, lost = None, []
        hands, pending = HandFinder(landmarkers, observed, reader.fps), deque()
        bar = tqdm(total=survey.num_frames, desc="Looking closer", unit="frame", disable=None if progress else True)
        with ThreadPoolExecutor(1) as executor, bar:
            for index, frame in enumerate(reader):
                if index in starts:
                    pending.append(executor.submit(hands.start_anew))
                    last_look = last_person = None
                    own = survey.followed(chosen, starts[index])
                    contact = Contact(own, tracks, survey.tracker.near, survey.tracker.max_gap)
                contact.next_frame(frame, index)
                if index - look_frame > SEARCH_SECONDS * reader.fps:
                    last_look = None
                if index - person_frame > SEARCH_SECONDS * reader.fps:
                    last_person = None
                scene = Scene(
                    own, contact, [t.detections[index] for t in tracks if t is not own and index in t.detections]
                )
                person = None if chosen[index] is None else chosen[index][1]
                if person is None and last_person is not None:
                    person = landmarkers.follow(frame, last_person, None if following else last_frame)
                    person = person if person is not None and scene.may_be_own(person) else None
                    following = person is not None
                else:
                    following = False
                person = None if person is None else contact.own_parts(frame, person)
                guesses = face_guesses(frame, person, last_look, expected[index], not scene.others, contact)

                def accept(look: FaceLook) -> bool:
                    # Where people touch, a face is often half hidden, or another's.
                    since = (index - look_frame) / reader.fps  # noqa: B023
                    if contact.doubtful and last_look is not None and not look.can_follow(last_look, since):  # noqa: B023
                        return False
                    # A face where there is no body, and was none before, has nothing but itself to show that it is one.
                    # Where people touch, the pose's head may be another's.
                    known = person is not None and person.visibility[:11].any()  # noqa: B023
                    known = known or (last_look is not None and not contact.doubtful)  # noqa: B023
                    return scene.face_may_be_own(look, person) and (  # noqa: B023
                        known or landmarkers.confirms_face(frame, look)  # noqa: B023
                    )

                look = landmarkers.find_face(frame, guesses, accept)
                look, person = agree(landmarkers, frame, look, person, last_look, scene)
                if contact.parts_lost or (contact.doubtful and person is None):
                    lost.append(index)
                if look is not None:
                    looks[index], last_look, look_frame = look, look, index
                if person is not None:
                    last_person, last_frame, person_frame = person, frame, index
                    observed.keypoints[index] = person.keypoints
                    observed.world[index] = person.world
                    observed.visibility[index] = person.visibility
                if last_person is not None:
                    # Hands of this frame are found while the next frame's face is.
                    pending.append(executor.submit(hands.find, frame, person, scene.others, index))
                while len(pending) > 3:
                    pending.popleft().result()
                bar.update()
            for each in pending:
                each.result()
        for shot in survey.shots:
            own = survey.followed(chosen, shot)
            look_back(reader, landmarkers, shot, own, tracks, survey.tracker.near, looks, observed)
        return looks, observed, lost


def _cut_faces(reader: VideoReader, boxes: np.ndarray, size: int, progress: bool) -> tuple[np.ndarray, np.ndarray]:
    """Pictures `(F, size, size, 3)` of the faces with what is around them, and the squares `(F, 4)` that they show."""
    squares = [square_around(box, _CROP_SCALE) for box in boxes]
    crops = np.empty((len(boxes), size, size, 3), dtype=np.uint8)
    for index, frame in enumerate(
        tqdm(reader, desc="Cutting faces", unit="frame", disable=None if progress else True)
    ):
        crops[index] = cut_square(frame, squares[index], size)
    return crops, np.array(squares)
