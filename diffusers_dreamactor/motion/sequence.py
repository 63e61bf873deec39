"""`MotionSequence`: how a person moves in a video, frame by frame, apart from who it is and how it is drawn."""

import math
import os
from dataclasses import dataclass, fields, replace

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from ..frame_sources import hold_index, reflect_index
from .skeleton import ARKIT_BLENDSHAPES, NUM_JOINTS
from .tensor_file import compress_pictures, decompress_pictures, read_arrays, write_arrays


FORMAT_NAME = "diffusers_dreamactor.motion"
# Version 1 has face crops as they are.
FORMAT_VERSION, READ_VERSIONS = "2", ("1", "2")

# Dimensions after the frames; `None` is free.
_SHAPES = {
    ("body", "joints"): (NUM_JOINTS, 3),
    ("body", "keypoints"): (NUM_JOINTS, 2),
    ("body", "confidence"): (NUM_JOINTS,),
    ("head", "rotation"): (3, 3),
    ("head", "center"): (2,),
    ("head", "radius"): (),
    ("head", "confidence"): (),
    ("face", "boxes"): (4,),
    ("face", "confidence"): (),
    ("face", "crops"): (None, None, 3),
    ("face", "crop_boxes"): (4,),
    ("face", "motion_tokens"): (None,),
    ("face", "blendshapes"): (len(ARKIT_BLENDSHAPES),),
}
_OPTIONAL = {("face", name) for name in ("boxes", "crops", "crop_boxes", "motion_tokens", "blendshapes")}


def _to_array(value, dtype) -> np.ndarray | None:
    if value is None:
        return None
    if hasattr(value, "detach"):
        value = value.detach().cpu().float().numpy() if dtype is np.float32 else value.detach().cpu().numpy()
    return np.ascontiguousarray(value, dtype=dtype)


@dataclass
class BodyTrack:
    """
    Body and hand joints in the order of `skeleton.JOINT_NAMES`; torch tensors are converted to numpy.

    Args:
        joints (`(F, 62, 3)` float32): metres in the camera frame: x right, y down, z away from the camera.
        keypoints (`(F, 62, 2)` float32): pixels of the source picture.
        confidence (`(F, 62)` float32): in [0, 1]; a joint is drawn from 0.5 on, and 0 marks one that was not seen (its
            values are held or interpolated, always finite).
    """

    joints: np.ndarray
    keypoints: np.ndarray
    confidence: np.ndarray

    def __post_init__(self):
        self.joints = _to_array(self.joints, np.float32)
        self.keypoints = _to_array(self.keypoints, np.float32)
        self.confidence = _to_array(self.confidence, np.float32)


@dataclass
class HeadTrack:
    """
    Where the head is and where it looks; torch tensors are converted to numpy.

    Args:
        rotation (`(F, 3, 3)` float32): head to camera; the columns are the head's axes in camera axes. Identity looks
            straight into the camera: x to the right of the picture, y down, z away from the camera, out of the back of
            the head.
        center (`(F, 2)` float32): pixels of the source picture.
        radius (`(F,)` float32): pixels of the source picture.
        confidence (`(F,)` float32): in [0, 1].
    """

    rotation: np.ndarray
    center: np.ndarray
    radius: np.ndarray
    confidence: np.ndarray

    def __post_init__(self):
        self.rotation = _to_array(self.rotation, np.float32)
        self.center = _to_array(self.center, np.float32)
        self.radius = _to_array(self.radius, np.float32)
        self.confidence = _to_array(self.confidence, np.float32)


@dataclass
class FaceTrack:
    """
    What the face does; torch tensors are converted to numpy.

    Args:
        boxes (`(F, 4)` float32, *optional*): square boxes `x0, y0, x1, y1` in pixels of the source picture; they may leave
            it. `None` where there is no picture, as for a face that speech drives.
        confidence (`(F,)` float32): in [0, 1].
        crops (`(F, S, S, 3)` uint8, *optional*): RGB pictures of the face.
        crop_boxes (`(F, 4)` float32, *optional*): what `crops` show, as `boxes`: the face with so much around it that a
            model's own crop can be cut out. `None` where they are such crops already, to be taken as they are.
        motion_tokens (`(F, D)` float32, *optional*): ready face motion tokens.
        blendshapes (`(F, 52)` float32, *optional*): `skeleton.ARKIT_BLENDSHAPES`, in [0, 1].
    """

    boxes: np.ndarray | None
    confidence: np.ndarray
    crops: np.ndarray | None = None
    motion_tokens: np.ndarray | None = None
    blendshapes: np.ndarray | None = None
    crop_boxes: np.ndarray | None = None

    def __post_init__(self):
        self.boxes = _to_array(self.boxes, np.float32)
        self.confidence = _to_array(self.confidence, np.float32)
        self.crops = _to_array(self.crops, np.uint8)
        self.crop_boxes = _to_array(self.crop_boxes, np.float32)
        self.motion_tokens = _to_array(self.motion_tokens, np.float32)
        self.blendshapes = _to_array(self.blendshapes, np.float32)


_TRACKS = {"body": BodyTrack, "head": HeadTrack, "face": FaceTrack}


@dataclass
class MotionSequence:
    """
    The motion of one person over a clip.

    Args:
        fps (`float`): frames in a second.
        width, height (`int`): size in pixels of the picture that keypoints, head and face boxes refer to.
        focal_length (`float`): pixels; the camera is a pinhole with its principal point in the middle of the picture.
        body, head, face (`BodyTrack`, `HeadTrack`, `FaceTrack`, *optional*): the tracks, all of one length.
        people (`(F,)` int64, *optional*): which tracked person each frame is of.
    """

    fps: float
    width: int
    height: int
    focal_length: float
    body: BodyTrack | None = None
    head: HeadTrack | None = None
    face: FaceTrack | None = None
    people: np.ndarray | None = None

    def __post_init__(self):
        self.fps = float(self.fps)
        self.width, self.height = int(self.width), int(self.height)
        self.focal_length = float(self.focal_length)
        self.people = _to_array(self.people, np.int64)

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        for name in _TRACKS:
            track = getattr(self, name)
            if track is not None:
                return len(track.confidence)
        return 0 if self.people is None else len(self.people)

    def __len__(self) -> int:
        return self.num_frames

    def __getitem__(self, index: slice) -> "MotionSequence":
        """The frames of a slice, e.g. `motion[10:20]`. A step other than 1 would change the speed: use `resample`."""
        if not isinstance(index, slice) or index.step not in (None, 1):
            raise TypeError(f"A `MotionSequence` is indexed by a slice with step 1, not by {index!r}.")
        return self.take(np.arange(self.num_frames)[index])

    def _map_tracks(self, function) -> "MotionSequence":
        changes = {"people": None if self.people is None else function(("people",), self.people)}
        for name in _TRACKS:
            track = getattr(self, name)
            if track is None:
                continue
            arrays = {field.name: getattr(track, field.name) for field in fields(track)}
            arrays = {key: None if value is None else function((name, key), value) for key, value in arrays.items()}
            changes[name] = type(track)(**arrays)
        return replace(self, **changes)

    def take(self, indices: np.ndarray) -> "MotionSequence":
        """The frames `indices` (`(N,)` integers, in any order, with repeats), copied."""
        return self._map_tracks(lambda key, value: value[indices])

    def validate(self) -> None:
        """
        Checks shapes, lengths and values.

        Raises:
            ValueError: no track, no frame, a wrong shape, tracks of different lengths, a value that is not finite, a
                confidence outside [0, 1], a matrix that is no rotation, or a camera that cannot be.
        """
        for name in ("fps", "focal_length", "width", "height"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"`{name}` of a motion must be a positive number, but is {value}.")
        if all(getattr(self, name) is None for name in _TRACKS):
            raise ValueError("A motion needs at least one track of `body`, `head` and `face`, but has none.")
        num_frames = self.num_frames
        if num_frames == 0:
            raise ValueError("A motion needs at least one frame, but has none.")
        for (name, key), shape in _SHAPES.items():
            track = getattr(self, name)
            if track is None:
                continue
            value = getattr(track, key)
            if value is None:
                if (name, key) in _OPTIONAL:
                    continue
                raise ValueError(
                    f"`{name}.{key}` is missing: only {sorted('.'.join(k) for k in _OPTIONAL)} may be `None`."
                )
            expected = (num_frames,) + shape
            if value.ndim != len(expected) or any(b is not None and a != b for a, b in zip(value.shape, expected)):
                wanted = ", ".join("any" if size is None else str(size) for size in expected)
                raise ValueError(f"`{name}.{key}` has shape {value.shape}, but ({wanted}) is needed.")
            if not np.isfinite(value).all():
                frame = int(np.argwhere(~np.isfinite(value))[0, 0])
                raise ValueError(f"`{name}.{key}` has a value that is not finite, first in frame {frame}.")
            if key == "confidence" and (value.min() < 0 or value.max() > 1):
                raise ValueError(f"`{name}.confidence` must be in [0, 1], but spans {value.min()} to {value.max()}.")
        if self.people is not None and self.people.shape != (num_frames,):
            raise ValueError(f"`people` has shape {self.people.shape}, but ({num_frames},) is needed.")
        if self.head is not None:
            rotation = self.head.rotation.astype(np.float64)
            error = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
            bad = np.flatnonzero((error > 1e-2) | (np.linalg.det(rotation) < 0))
            if len(bad):
                raise ValueError(f"`head.rotation` of frame {bad[0]} is not a rotation matrix.")

    def resample(self, fps: float) -> "MotionSequence":
        """
        The same motion at another frame rate and of the same duration: `ceil(num_frames * fps / self.fps)` frames, frame i
        at time `i / fps`. Values are interpolated linearly, head rotations by slerp; crops and people are the nearest
        frame's. Times after the last frame hold it.

        Raises:
            ValueError: `fps` is not a positive number.
        """
        fps = float(fps)
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"`fps` must be a positive number, but is {fps}.")
        num_frames = self.num_frames
        if fps == self.fps or num_frames == 0:
            return replace(self)
        ratio = self.fps / fps
        # 1e-6: 25 -> 50 -> 25 must not gain a frame from rounding.
        positions = np.arange(max(1, math.ceil(num_frames / ratio - 1e-6))) * ratio
        positions = np.minimum(positions, num_frames - 1)
        low = np.floor(positions).astype(np.int64)
        high = np.minimum(low + 1, num_frames - 1)
        weight = positions - low
        nearest = np.where(weight < 0.5, low, high)

        def interpolate(key, value):
            if key in (("people",), ("face", "crops"), ("face", "crop_boxes")):
                return value[nearest]
            if key == ("head", "rotation") and num_frames > 1:
                return Slerp(np.arange(num_frames), Rotation.from_matrix(value))(positions).as_matrix()
            blend = weight.reshape((-1,) + (1,) * (value.ndim - 1))
            return value[low] * (1 - blend) + value[high] * blend

        return replace(self._map_tracks(interpolate), fps=fps)

    def hold(self, num_frames: int) -> "MotionSequence":
        """Exactly `num_frames` frames: the last one is held to the end (a longer motion is cut)."""
        self._check_num_frames(num_frames)
        return self.take(hold_index(num_frames, self.num_frames))

    def loop(self, num_frames: int) -> "MotionSequence":
        """Exactly `num_frames` frames: played forth and back, so that nothing jumps (a longer motion is cut)."""
        self._check_num_frames(num_frames)
        return self.take(reflect_index(num_frames, self.num_frames))

    def _check_num_frames(self, num_frames: int) -> None:
        if int(num_frames) != num_frames or num_frames < 1:
            raise ValueError(f"`num_frames` must be a positive whole number, but is {num_frames}.")
        if self.num_frames == 0:
            raise ValueError("A motion without frames cannot be made longer.")

    @classmethod
    def compose(
        cls,
        face: "MotionSequence | None" = None,
        head: "MotionSequence | None" = None,
        body: "MotionSequence | None" = None,
    ) -> "MotionSequence":
        """
        One motion out of the parts of several drivers, e.g. the face of one video and the body of another.

        The picture size, camera, people and frame rate are those of `body`'s motion, else `head`'s, else `face`'s; the
        others are resampled to that rate, and all are cut to the shortest. A head from a picture of another size is scaled
        to fit (aspect kept, middle on middle). Face boxes stay in pixels of the face driver's own picture, which is
        where the crops are cut from.

        Raises:
            ValueError: nothing was given, or a motion lacks the part it was given for.
        """
        parts = {"body": body, "head": head, "face": face}
        parts = {name: motion for name, motion in parts.items() if motion is not None}
        if not parts:
            raise ValueError("`compose` needs at least one of `face`, `head` and `body`, but got none.")
        for name, motion in parts.items():
            if getattr(motion, name) is None:
                raise ValueError(f"The motion given as `{name}` has no {name} track.")
        base = next(iter(parts.values()))
        parts = {name: motion.resample(base.fps) for name, motion in parts.items()}
        num_frames = min(len(motion) for motion in parts.values())
        parts = {name: motion[:num_frames] for name, motion in parts.items()}
        people = next(iter(parts.values())).people
        tracks = {name: getattr(motion, name) for name, motion in parts.items()}
        if "head" in parts:
            source = parts["head"]
            scale = min(base.width / source.width, base.height / source.height)
            middle = np.array([source.width, source.height]) / 2
            center = (source.head.center - middle) * scale + np.array([base.width, base.height]) / 2
            tracks["head"] = replace(source.head, center=center, radius=source.head.radius * scale)
        return cls(base.fps, base.width, base.height, base.focal_length, people=people, **tracks)

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """
        What `save` stores: arrays by `track.name`, and the rest as strings.

        Raises:
            ValueError: the motion is not valid (see `validate`).
        """
        self.validate()
        arrays = {} if self.people is None else {"people": self.people}
        for name in _TRACKS:
            track = getattr(self, name)
            for field in fields(track) if track is not None else ():
                value = getattr(track, field.name)
                if value is not None:
                    arrays[f"{name}.{field.name}"] = value
        return arrays, {name: repr(getattr(self, name)) for name in ("fps", "width", "height", "focal_length")}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], values: dict[str, str]) -> "MotionSequence":
        """
        The inverse of `to_arrays`.

        Raises:
            ValueError: values that are not valid.
        """
        tracks = {}
        for name, track_class in _TRACKS.items():
            own = {key.split(".")[1]: value for key, value in arrays.items() if key.startswith(f"{name}.")}
            if own:
                required = [key for track, key in _SHAPES if track == name]
                tracks[name] = track_class(**{key: own.get(key) for key in required})
        motion = cls(
            fps=float(values["fps"]),
            width=int(values["width"]),
            height=int(values["height"]),
            focal_length=float(values["focal_length"]),
            people=arrays.get("people"),
            **tracks,
        )
        motion.validate()
        return motion

    def save(self, path: str | os.PathLike) -> None:
        """
        Writes one safetensors file (aside, then renamed), with the format's name and version in its metadata. Face crops
        are compressed as JPEG of quality 95.

        Raises:
            ValueError: the motion is not valid (see `validate`).
        """
        arrays, values = self.to_arrays()
        # JPEG needs pixels.
        if arrays.get("face.crops", np.empty(0)).size:
            crops = arrays.pop("face.crops")
            arrays["face.crop_files"], arrays["face.crop_file_ends"] = compress_pictures(crops)
        write_arrays(path, arrays, {"format": FORMAT_NAME, "version": FORMAT_VERSION, **values})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "MotionSequence":
        """
        Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no motion, is of a newer format, or holds values that are not valid.
        """
        arrays, values = read_arrays(path, FORMAT_NAME, READ_VERSIONS, "motion")
        if "face.crop_files" in arrays:
            arrays["face.crops"] = decompress_pictures(
                arrays.pop("face.crop_files"), arrays.pop("face.crop_file_ends")
            )
        return cls.from_arrays(arrays, values)

    def yaw(self) -> np.ndarray:
        """
        Head yaw of every frame, `(F,)` degrees; positive when the face is turned towards the right of the picture.

        Raises:
            ValueError: the motion has no head track.
        """
        if self.head is None:
            raise ValueError("The motion has no head track, which head yaw is read from.")
        return head_yaw_pitch_roll(self.head.rotation)[:, 0]

    def extreme_yaw_frames(self) -> tuple[int, int, int]:
        """
        The frames of least, median and greatest head yaw (DreamActor-M1's complementary references), among those whose
        head confidence is at least 0.5, or among all if there is none.

        Raises:
            ValueError: the motion has no head track.
        """
        yaw = self.yaw()
        candidates = np.flatnonzero(self.head.confidence >= 0.5)
        if len(candidates) == 0:
            candidates = np.arange(len(yaw))
        order = candidates[np.argsort(yaw[candidates], kind="stable")]
        return int(order[0]), int(order[len(order) // 2]), int(order[-1])


def project(joints: np.ndarray, focal_length: float, width: int, height: int) -> np.ndarray:
    """
    Pinhole projection with the principal point in the middle of the picture.

    Args:
        joints (`(..., 3)`): camera frame (x right, y down, z away from the camera), in any unit.
        focal_length (`float`): pixels.
        width, height (`int`): size of the picture in pixels.

    Returns:
        `(..., 2)` float32 pixels; the middle of the picture is `(width / 2, height / 2)`. Points at or behind the camera
        are taken to be 1e-3 before it, so that the result is finite.
    """
    joints = np.asarray(joints, dtype=np.float64)
    depth = np.maximum(joints[..., 2:], 1e-3)
    pixels = joints[..., :2] / depth * focal_length + np.array([width / 2, height / 2])
    return pixels.astype(np.float32)


def head_yaw_pitch_roll(rotation: np.ndarray) -> np.ndarray:
    """
    Angles of head rotations as `HeadTrack` has them: yaw about the vertical, then pitch, then roll (intrinsic YXZ).

    Args:
        rotation (`(..., 3, 3)`): head to camera.

    Returns:
        `(..., 3)` float32 degrees: yaw (positive: towards the right of the picture), pitch (positive: up), roll (positive:
        clockwise in the picture).
    """
    rotation = np.asarray(rotation, dtype=np.float64)
    yaw = np.arctan2(-rotation[..., 0, 2], rotation[..., 2, 2])
    pitch = np.arcsin(np.clip(rotation[..., 1, 2], -1.0, 1.0))
    roll = np.arctan2(rotation[..., 1, 0], rotation[..., 1, 1])
    return np.degrees(np.stack([yaw, pitch, roll], axis=-1)).astype(np.float32)
