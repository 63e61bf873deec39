"""Choosing one of several people in a video, and saying what happened to them."""

from numbers import Integral, Real

import numpy as np
from diffusers.utils import logging

from .tracking import Person, Track, overlap


class NoPersonError(ValueError):
    """A video or picture shows nobody."""


logger = logging.get_logger(__name__)


def frame_ranges(mask: np.ndarray, limit: int = 4) -> str:
    """Frames where `mask` is True in words: "frames 3-7, 20 (6 of 100)"."""
    frames = np.flatnonzero(mask)
    runs = np.split(frames, np.flatnonzero(np.diff(frames) > 1) + 1)
    words = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs[:limit]]
    more = ", ..." if len(runs) > limit else ""
    return f"frame{'s' if len(frames) > 1 else ''} {', '.join(words)}{more} ({len(frames)} of {len(mask)})"


def _by_size(tracks: list[Track], width: int, height: int, within: slice) -> list[Track]:
    """Tracks with the largest first: area inside the picture, added up over the frames `within`."""

    def total(track: Track) -> float:
        boxes = [person.box for frame, person in track.detections.items() if within.start <= frame < within.stop]
        if not boxes:
            return 0.0
        clipped = np.clip(np.array(boxes), 0, [width, height, width, height])
        return float(np.prod(clipped[:, 2:] - clipped[:, :2], axis=1).sum())

    return sorted((track for track in tracks if total(track) > 0), key=total, reverse=True)


def _pick(tracks: list[Track], person, width: int, height: int, whole: slice) -> Track:
    if person is None:
        return tracks[0]
    if isinstance(person, Integral):
        if not 0 <= person < len(tracks):
            raise ValueError(
                f"`person` is {person}, but {len(tracks)} {'person was' if len(tracks) == 1 else 'people were'} found; "
                f"the largest is 0."
            )
        return tracks[person]
    numbers = tuple(person) if isinstance(person, (tuple, list, np.ndarray)) else ()
    if len(numbers) not in (2, 4) or not all(isinstance(number, Real) for number in numbers):
        raise ValueError(
            f"`person` must be None, an index, a point (x, y) or a box (x0, y0, x1, y1), but is {person!r}."
        )
    # Where each was first seen: somebody may be found later than the others.
    starts = [next(iter(track.detections)) for track in tracks]
    boxes = [track.detections[start].box for track, start in zip(tracks, starts)]
    seen = "; ".join(f"({', '.join(f'{value:.0f}' for value in box)}) in frame {f}" for box, f in zip(boxes, starts))
    if len(numbers) == 4:
        fits = [overlap(box, np.asarray(numbers, dtype=np.float64)) for box in boxes]
        inside = [fit >= 0.05 for fit in fits]
    else:
        point = np.asarray(numbers, dtype=np.float64)
        # Landmarks end at the eyes and the fingers; hair and clothes around them are the person's, too.
        reach = [0.3 * (box[2:] - box[:2]) for box in boxes]
        inside = [bool(((point > b[:2] - r) & (point < b[2:] + r)).all()) for b, r in zip(boxes, reach)]
        fits = [-np.linalg.norm((box[:2] + box[2:]) / 2 - point) for box in boxes]
    if not any(inside):
        what = "box" if len(numbers) == 4 else "point"
        raise ValueError(f"`person` is the {what} {numbers}, but people were first seen at {seen}.")
    # Of those there the ones seen at the start come first, then those who are nearest.
    first = min(start for start, there in zip(starts, inside) if there)
    there = [index for index in range(len(tracks)) if inside[index]]
    return tracks[max(there, key=lambda index: (starts[index] == first, fits[index]))]


def _lasting(tracks: list[Track], num_frames: int) -> list[Track]:
    """Tracks that are no false alarms of a frame or two."""
    return [track for track in tracks if len(track.detections) >= min(4, num_frames)] or tracks


def select_person(
    tracks: list[Track], shots: list[slice], person, width: int, height: int
) -> list[tuple[int, Person] | None]:
    """
    Who is followed: for each frame the number and the detection of the person, or None where it is not seen.

    Args:
        tracks: everybody found in the video.
        shots: stretches between cuts. A shot without the person goes on with its largest.
        person: None for the largest, an index by size, a point or a box where the person is first seen.
        width, height: of the picture.

    Raises:
        ValueError: `person` is not there, or is none of these.
    """
    num_frames = shots[-1].stop
    chosen: list[tuple[int, Person] | None] = [None] * num_frames
    tracks = _by_size(_lasting(tracks, num_frames), width, height, slice(0, num_frames))
    if not tracks:
        return chosen
    main = _pick(tracks, person, width, height, slice(0, num_frames))
    for shot in shots:
        track = main
        if not any(shot.start <= frame < shot.stop for frame in main.detections):
            others = _by_size(tracks, width, height, shot)
            if not others:
                continue
            track = others[0]
        for frame, detection in track.detections.items():
            if shot.start <= frame < shot.stop:
                chosen[frame] = (track.id, detection)
    return chosen


def describe_people(
    tracks: list[Track],
    overlaps: list[tuple[int, int, int]],
    chosen: list[tuple[int, Person] | None],
    shots: list[slice],
    person,
    lost: list[int],
    argument: str = "person",
) -> None:
    """
    Warns of what a user should know about the people in a video: several, in contact, cuts to somebody else. `overlaps` is
    `PersonTracker`'s; `lost` holds the frames in which parts of the person were left out since they may be another's; `argument` names what chooses another one.
    """
    num_frames = len(chosen)
    lasting = _lasting(tracks, num_frames)
    followed = {each[0] for each in chosen if each is not None}
    if len(lasting) > 1 and person is None and len(followed) == 1:
        logger.warning(
            f"{len(lasting)} people were found; the largest is followed. Choose another with `{argument}`: an index by size "
            f"(0 to {len(lasting) - 1}), a point, or a box where it is first seen."
        )
    numbers = {track.id for track in lasting}
    mask = np.zeros(num_frames, dtype=bool)
    mask[[frame for frame, *pair in overlaps if followed & set(pair) and set(pair) <= numbers]] = True
    left_out = np.zeros(num_frames, dtype=bool)
    left_out[lost] = True
    if (mask | left_out).any():
        first, last = np.flatnonzero(mask | left_out)[[0, -1]]
        parts = f", and what is not surely its own is left out in {frame_ranges(left_out)}" if left_out.any() else ""
        logger.warning(
            f"People overlap or cross in frames {first}-{last}; the person followed is told apart by place, motion and "
            f"colours{parts}. Check the preview there."
        )
    if len(shots) > 1:
        cuts = [shot.start for shot in shots[1:]]
        mask = np.zeros(num_frames, dtype=bool)
        mask[cuts] = True
        goes_on = "the person is found again in each" if len(followed) <= 1 else "not the same person throughout"
        logger.warning(
            f"The video cuts to another scene at {frame_ranges(mask)}: {goes_on}. Nothing is smoothed across a cut; a "
            "driving video is best without any."
        )
