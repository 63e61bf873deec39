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
from .hands import HandFinder
from .head_pose import FaceLook, head_guess
from .landmarkers import FACE_CROP, PEOPLE_WORKERS, SURE, Landmarkers
from .segmentation import PersonSegmenter
from .selection import NoPersonError, describe_people, select_person
from .to_motion import to_motion
from .tracking import CutDetector, Person, PersonTracker, Track, drop_duplicates


logger = logging.get_logger(__name__)

# Likeness of colours (Bhattacharyya) from which somebody found by looking again can be the person followed.
_ALIKE = 0.5
# How long after (or before) it was seen a person is looked for where it was.
_SEARCH_SECONDS = 1.0
# As many frames as are held when faces are looked for backwards.
_PIECE = 8
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
        expected = _expected_heads(chosen, survey.shots, reader.fps)
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
                    numbers = {each[0] for each in chosen[starts[index]] if each is not None}
                    own = survey.tracker.tracks[numbers.pop()] if numbers else None
                    contact = Contact(own, tracks, survey.tracker.near, survey.tracker.max_gap)
                contact.next_frame(frame, index)
                if index - look_frame > _SEARCH_SECONDS * reader.fps:
                    last_look = None
                if index - person_frame > _SEARCH_SECONDS * reader.fps:
                    last_person = None
                scene = _Scene(
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
                guesses = _face_guesses(frame, person, last_look, expected[index], not scene.others, contact)

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
                look, person = _agree(landmarkers, frame, look, person, last_look, scene)
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
        _look_back(reader, landmarkers, survey, chosen, looks, observed)
        return looks, observed, lost


def _look_back(
    reader: VideoReader,
    landmarkers: Landmarkers,
    survey: _Survey,
    chosen: list[tuple[int, Person] | None],
    looks: list[FaceLook | None],
    observed: PoseObservations,
) -> None:
    """
    Looks for the face backwards in time from where it was first found, or found again, into `looks`: who was small, turned or
    among others before is found from where they come out. Where people touch nobody is looked for.
    """
    near = survey.tracker.near
    longest_miss = max(2, round(0.1 * reader.fps))
    for shot in survey.shots:
        numbers = {each[0] for each in chosen[shot] if each is not None}
        own = survey.tracker.tracks[numbers.pop()] if numbers else None
        for found in range(shot.stop - 1, shot.start, -1):
            look, missed, index = looks[found], 0, found - 1
            if look is None or looks[index] is not None:
                continue
            while index >= shot.start and looks[index] is None and index not in near and missed <= longest_miss:
                # Piece by piece: a file is only read forwards.
                start = max(shot.start, index - _PIECE + 1)
                for frame in reversed(list(reader.frames(start, index + 1))):
                    if looks[index] is not None or index in near or missed > longest_miss:
                        break
                    others = [t.detections[index] for t in survey.tracks if t is not own and index in t.detections]
                    scene = _Scene(own, Contact(own, [], {}), others)
                    person = _person_of(observed, index)
                    again = landmarkers.find_face(
                        frame,
                        [(look.middle, look.side)],
                        lambda each: scene.face_may_be_own(each, person),  # noqa: B023
                    )
                    if again is not None and (person is None or again.fits(person.keypoints)):
                        looks[index], look, missed = again, again, 0
                    else:
                        missed += 1
                    index -= 1
                else:
                    continue
                break


def _person_of(observed: PoseObservations, index: int) -> Person | None:
    """The pose of frame `index`, None where there is none."""
    if not observed.seen[index]:
        return None
    return Person(observed.keypoints[index], observed.world[index], observed.visibility[index])


def _cut_faces(reader: VideoReader, boxes: np.ndarray, size: int, progress: bool) -> tuple[np.ndarray, np.ndarray]:
    """Pictures `(F, size, size, 3)` of the faces with what is around them, and the squares `(F, 4)` that they show."""
    squares = [square_around(box, _CROP_SCALE) for box in boxes]
    crops = np.empty((len(boxes), size, size, 3), dtype=np.uint8)
    for index, frame in enumerate(
        tqdm(reader, desc="Cutting faces", unit="frame", disable=None if progress else True)
    ):
        crops[index] = cut_square(frame, squares[index], size)
    return crops, np.array(squares)


def _expected_heads(
    chosen: list[tuple[int, Person] | None], shots: list[slice], fps: float
) -> list[tuple[np.ndarray, float] | None]:
    """
    Where the face should be in each frame, by the poses around it in the same shot: middle and side, or None where the
    person is not seen within a second.
    """
    expected: list[tuple[np.ndarray, float] | None] = [None] * len(chosen)
    for shot in shots:
        frames = np.arange(shot.start, shot.stop)
        known = np.array([frame for frame in frames if chosen[frame] is not None])
        if len(known) == 0:
            continue
        guesses = [head_guess(chosen[frame][1].keypoints) for frame in known]
        x, y, side = (
            np.interp(frames, known, values)
            for values in (*np.stack([middle for middle, _ in guesses]).T, [side for _, side in guesses])
        )
        reach = (
            np.abs(frames[:, None] - known[None]).min(axis=1) if len(known) < len(frames) else np.zeros(len(frames))
        )
        for offset, frame in enumerate(frames):
            if reach[offset] <= _SEARCH_SECONDS * fps:
                expected[frame] = (np.array([x[offset], y[offset]]), float(side[offset]))
    return expected


def _face_guesses(
    frame: np.ndarray,
    person: Person | None,
    last_look: FaceLook | None,
    expected: tuple[np.ndarray, float] | None,
    alone: bool,
    contact: Contact,
) -> Iterator[tuple[np.ndarray, float]]:
    """
    Middles and sides of the face to try, the most likely first; where nothing tells where it is, and nobody else is there
    (`alone`), the whole picture.
    """
    if contact.head_place() is not None:
        yield contact.head_place()
    if last_look is not None:
        yield last_look.middle, last_look.side
    if person is not None:
        middle, side = head_guess(person.keypoints)
        yield middle, side
        yield middle, 1.8 * side
    elif expected is not None:
        middle, side = expected
        yield middle, side
        yield middle, 1.8 * side
    if alone and person is None and last_look is None and expected is None:
        height, width = frame.shape[:2]
        yield np.array([width / 2, height / 2]), max(width, height) / FACE_CROP


@dataclass
class _Scene:
    """Who is in one frame: the track of the person who is followed, and the other people."""

    own: Track | None
    contact: Contact
    others: list[Person]

    def may_be_own(self, person: Person) -> bool:
        """Whether a pose found by looking again is the one followed: not somebody else there, and dressed alike."""
        if any(person.distance(other) < 0.3 for other in self.others):
            return False
        return self.own is None or float(person.appearance @ self.own.appearance) > _ALIKE

    def face_may_be_own(self, look: FaceLook, person: Person | None) -> bool:
        """Whether a face is not that of somebody else."""
        own_head = self.contact.is_own_head(look.middle, look.side)
        if own_head is not None:
            return own_head
        theirs = min((look.pose_error(other.keypoints) for other in self.others), default=np.inf)
        ours = 0.8 if person is None else look.pose_error(person.keypoints)
        return theirs >= ours


def _agree(
    landmarkers: Landmarkers,
    frame: np.ndarray,
    look: FaceLook | None,
    person: Person | None,
    last_look: FaceLook | None,
    scene: _Scene,
) -> tuple[FaceLook | None, Person | None]:
    """
    Face and pose of one frame made to fit: where they do not, or there is no pose, the pose is done again on a crop
    around the person that the face belongs to; if that does not help, the one that fits the last frame is kept.
    """
    if look is None or (person is not None and look.fits(person.keypoints)):
        return look, person
    for again in landmarkers.poses_below(frame, look):
        if look.fits(again.keypoints) and scene.may_be_own(again):
            again = scene.contact.own_parts(frame, again)
            if again is not None:
                return look, again
    if person is not None and not landmarkers.confirms_face(frame, look):
        # Ears and cheeks of a head in profile are taken for faces now and then.
        return None, person
    if person is not None and not person.visibility[:11].any():
        # Its head was taken for another's; the face is where the head was followed to.
        return look, person
    steady = last_look is not None and np.linalg.norm(look.middle - last_look.middle) < last_look.side
    steady = steady or bool(scene.contact.is_own_head(look.middle, look.side))
    # With nobody else there a face without a body is the person's, too: MediaPipe finds bodies of drawn people only now and then.
    alone = scene.own is None or not scene.others
    if (person is None and alone) or steady:
        return look, None
    return None, person
