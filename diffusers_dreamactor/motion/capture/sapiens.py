"""`SapiensCapture`: the motion of a person with Sapiens2 of `transformers`, for quality on a GPU.

Sapiens2's pose model finds 308 points of a person in a crop around it; its pointmap model gives every pixel's place in
space, from which the joints' depth and the focal length are read; its segmentation model cuts the person out. The weights are
Meta's, under the Sapiens2 licence: `facebook/sapiens2-pose-0.4b`, `facebook/sapiens2-pointmap-0.4b`,
`facebook/sapiens2-seg-0.4b` and larger ones.

The pictures are prepared here rather than by the library's image processor, which needs torchvision: a crop of 1.25 times
the box at the model's aspect for pose and segmentation, the whole picture with its aspect kept for the pointmap.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers.utils import logging
from PIL import Image
from scipy.ndimage import gaussian_filter, label, map_coordinates
from tqdm.auto import tqdm

from ...media import VideoReader
from ..camera import default_focal_length
from ..sequence import MotionSequence
from ..skeleton import (
    AVERAGE_TORSO_LENGTH,
    BODY,
    BODY_PROPORTIONS,
    BONES,
    GOLIATH_FACE,
    GOLIATH_MAPPING,
    JOINT_NAMES,
    NUM_JOINTS,
    map_joints,
)
from .from_keypoints import confidence_from_scores, motion_from_keypoints
from .segmentation import points_inside, reached_points
from .selection import NoPersonError


logger = logging.get_logger(__name__)

# What Sapiens2's image processor is configured with.
_MEAN, _STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
_BOX_PADDING = 1.25
_NUM_POINTS = 308
# The score from which a point is drawn.
_THRESHOLD = 0.3
# A pointmap has the surface; joints lie about so many metres behind it, by the ends of their names.
_FLESH = {"shoulder": 0.06, "elbow": 0.04, "wrist": 0.025, "hip": 0.10, "knee": 0.06, "ankle": 0.04, "neck": 0.06}


def padded_box(box: np.ndarray, height: int, width: int) -> np.ndarray:
    """
    The region x0, y0, width, height in pixels that a model of input size `height` x `width` sees for a person's box
    `(x0, y0, x1, y1)`: 1.25 times as large, grown to the model's aspect.
    """
    size = np.maximum(_BOX_PADDING * (box[2:] - box[:2]), 1.0)
    size = np.maximum(size, np.array([size[1] * width / height, size[0] * height / width]))
    middle = (box[:2] + box[2:]) / 2
    return np.concatenate([middle - size / 2, size])


def crop_person(frame: np.ndarray, region: np.ndarray, height: int, width: int) -> np.ndarray:
    """The region (x0, y0, width, height) of a picture `(H, W, 3)` resampled to `height` x `width`, black outside."""
    # The first and the last pixel's middles lie on the region's edges (the "unbiased" convention of pose models).
    step_x, step_y = region[2] / (width - 1), region[3] / (height - 1)
    matrix = (step_x, 0, region[0] + 0.5 - 0.5 * step_x, 0, step_y, region[1] + 0.5 - 0.5 * step_y)
    picture = Image.fromarray(frame)
    return np.asarray(picture.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))


def uncrop_mask(mask: np.ndarray, region: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask `(h, w)` of the region that `crop_person` cut out, in the `height` x `width` picture, 0 outside."""
    step_x, step_y = region[2] / (mask.shape[1] - 1), region[3] / (mask.shape[0] - 1)
    matrix = (1 / step_x, 0, 0.5 - (region[0] + 0.5) / step_x, 0, 1 / step_y, 0.5 - (region[1] + 0.5) / step_y)
    picture = Image.fromarray(mask.astype(np.float32))
    return np.asarray(picture.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))


def read_heatmaps(heatmaps: np.ndarray, region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Points `(N, 2)` in pixels of the frame and scores `(N,)` from heatmaps `(N, h, w)` of a region (see `crop_person`).

    The maximum, moved to the peak of the parabola through the blurred heatmap's logarithm there (DARK, arXiv
    1910.06278).
    """
    count, height, width = heatmaps.shape
    flat = heatmaps.reshape(count, -1)
    scores = flat.max(axis=1)
    y, x = np.divmod(flat.argmax(axis=1), width)
    # A blur of 11 pixels.
    log = np.log(np.clip(gaussian_filter(heatmaps, (0, 2.0, 2.0), mode="constant"), 1e-3, None))
    log = np.pad(log, ((0, 0), (1, 1), (1, 1)), mode="edge")
    each = np.arange(count)

    def value(dx: int, dy: int) -> np.ndarray:
        return log[each, y + 1 + dy, x + 1 + dx]

    centre = value(0, 0)
    gradient = 0.5 * np.stack([value(1, 0) - value(-1, 0), value(0, 1) - value(0, -1)], axis=-1)
    cross = 0.25 * (value(1, 1) - value(1, -1) - value(-1, 1) + value(-1, -1))
    hessian = np.stack(
        [
            np.stack([value(1, 0) - 2 * centre + value(-1, 0), cross], axis=-1),
            np.stack([cross, value(0, 1) - 2 * centre + value(0, -1)], axis=-1),
        ],
        axis=-2,
    )
    curved = (hessian[:, 0, 0] < -1e-6) & (np.linalg.det(hessian) > 1e-9)
    hessian[~curved] = -np.eye(2)
    move = -np.linalg.solve(hessian, gradient[..., None])[..., 0]
    move = np.where(curved[:, None], np.clip(move, -1, 1), 0.0)
    points = np.stack([x, y], axis=-1) + move
    points = points / np.array([width - 1, height - 1]) * region[2:] + region[:2]
    # The middle of the first pixel is at 0.5 in a `MotionSequence`.
    return points + 0.5, np.clip(scores, 0, 1)


def fit_picture(frame: np.ndarray, height: int, width: int) -> tuple[np.ndarray, float, np.ndarray]:
    """
    A picture scaled to fit `height` x `width`, black around it; with the scale, and the offset `(2,)` x, y in pixels, that
    take a point of the frame to it.
    """
    scale = min(height / frame.shape[0], width / frame.shape[1])
    size = max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale))
    offset = np.array([(width - size[0]) // 2, (height - size[1]) // 2])
    fitted = np.zeros((height, width, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))
    fitted[offset[1] : offset[1] + size[1], offset[0] : offset[0] + size[0]] = picture
    return fitted, scale, offset


def sample_pointmap(pointmap: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The pointmap `(3, h, w)` at points `(N, 2)` in its pixels, bilinear, `(N, 3)`; at its edge beyond it."""
    coordinates = np.stack([points[:, 1], points[:, 0]]) - 0.5
    return np.stack([map_coordinates(channel, coordinates, order=1, mode="nearest") for channel in pointmap], axis=-1)


def focal_length_of(points: np.ndarray, keypoints: np.ndarray, width: int, height: int) -> float:
    """
    The focal length in pixels that projects points in space `(N, 3)` onto keypoints `(N, 2)` best, in the least-squares
    sense; NaN when no camera does.
    """
    seen = points[:, 2] > 1e-6
    rays = points[seen, :2] / points[seen, 2:]
    across = keypoints[seen] - np.array([width / 2, height / 2])
    weight = float((rays**2).sum())
    focal_length = float((rays * across).sum()) / weight if weight > 0 else 0.0
    return focal_length if focal_length > 0 else float("nan")


def steady_depth(keypoints: np.ndarray, depth: np.ndarray, focal_length: float) -> np.ndarray:
    """
    Depth `(62,)` of one frame's joints without those that a bone cannot have: a joint hidden behind something has that
    thing's depth in a pointmap. No bone is longer than 1.4 times an average adult's.
    """
    depth = depth.copy()
    for child, parent in BONES:
        longest = 1.4 * BODY_PROPORTIONS[JOINT_NAMES[child]] * AVERAGE_TORSO_LENGTH
        across = np.linalg.norm(keypoints[child] - keypoints[parent]) / focal_length * depth[parent]
        reach = np.sqrt(max(longest**2 - across**2, 0.0))
        depth[child] = np.clip(depth[child], depth[parent] - reach, depth[parent] + reach)
    return depth


class SapiensCapture:
    """
    Captures body, hands and head of one person with Sapiens2, with depth when a pointmap model is given and lifted from 2D
    (`motion.lifting`) when not. The person is followed by its own points from frame to frame.

    Args:
        pose_model (`transformers.Sapiens2ForPoseEstimation`): of 308 points.
        pointmap_model (`transformers.Sapiens2ForPointmapEstimation`, *optional*)
        detector (`Callable`, *optional*):
            A person detector, `detector(frame) -> (N, 4)` boxes x0, y0, x1, y1 in pixels for a frame `(H, W, 3)` uint8;
            called on the first frame, and when the person was lost. Without one the whole picture is searched.
        segmentation_model (`transformers.Sapiens2ForSemanticSegmentation`, *optional*):
            of the parts of people, label 0 the background: what `segment` needs.
    """

    def __init__(
        self,
        pose_model,
        pointmap_model=None,
        detector: Callable[[np.ndarray], np.ndarray] | None = None,
        segmentation_model=None,
    ):
        if pose_model.config.num_labels != _NUM_POINTS:
            raise ValueError(
                f"`pose_model` gives {pose_model.config.num_labels} points, but Sapiens2's {_NUM_POINTS} are needed."
            )
        self.pose_model, self.pointmap_model, self.detector = pose_model.eval(), pointmap_model, detector
        self.segmentation_model = segmentation_model
        for model in (pointmap_model, segmentation_model):
            if model is not None:
                model.eval()

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike = "facebook/sapiens2-pose-0.4b",
        pointmap: str | os.PathLike | None = None,
        detector: Callable[[np.ndarray], np.ndarray] | None = None,
        segmentation: str | os.PathLike | None = None,
        **kwargs,
    ) -> "SapiensCapture":
        """
        Loads the models.

        Args:
            folder_or_hub_id (`str` or `os.PathLike`):
                A folder that `save_pretrained` wrote, with `pose` and perhaps `pointmap` and `segmentation` in it, or the
                Hub id or folder of a pose model. With a Hub id that has "-pose-" in it, the pointmap model of the same size
                is loaded, too.
            pointmap (`str` or `os.PathLike`, *optional*): Hub id or folder of another pointmap model.
            detector (`Callable`, *optional*): see the class.
            segmentation (`str` or `os.PathLike`, *optional*):
                Hub id or folder of a segmentation model, e.g. `"facebook/sapiens2-seg-0.4b"`, for `segment`.
            kwargs: for `transformers`' `from_pretrained`, e.g. `dtype`, `device_map`.

        Raises:
            OSError: a model cannot be found.
        """
        from transformers import (
            Sapiens2ForPointmapEstimation,
            Sapiens2ForPoseEstimation,
            Sapiens2ForSemanticSegmentation,
        )

        pose = str(folder_or_hub_id)
        if (Path(pose) / "pose").is_dir():
            if pointmap is None and (Path(pose) / "pointmap").is_dir():
                pointmap = Path(pose) / "pointmap"
            if segmentation is None and (Path(pose) / "segmentation").is_dir():
                segmentation = Path(pose) / "segmentation"
            pose = Path(pose) / "pose"
        elif pointmap is None and not Path(pose).is_dir() and "-pose-" in pose:
            pointmap = pose.replace("-pose-", "-pointmap-")
        pose_model = Sapiens2ForPoseEstimation.from_pretrained(pose, **kwargs)
        pointmap_model = (
            None if pointmap is None else Sapiens2ForPointmapEstimation.from_pretrained(pointmap, **kwargs)
        )
        segmentation_model = (
            None if segmentation is None else Sapiens2ForSemanticSegmentation.from_pretrained(segmentation, **kwargs)
        )
        return cls(pose_model, pointmap_model, detector, segmentation_model)

    @property
    def _models(self) -> dict:
        """The models that are there, by the names of their folders."""
        models = {
            "pose": self.pose_model,
            "pointmap": self.pointmap_model,
            "segmentation": self.segmentation_model,
        }
        return {name: model for name, model in models.items() if model is not None}

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Writes the models into a folder that `from_pretrained` reads."""
        for name, model in self._models.items():
            model.save_pretrained(Path(save_directory) / name)

    def to(self, *args, **kwargs) -> "SapiensCapture":
        """Moves the models, as `torch.nn.Module.to` does."""
        for model in self._models.values():
            model.to(*args, **kwargs)
        return self

    @torch.no_grad()
    def capture(
        self,
        video,
        fps: float | None = None,
        person: int | tuple[float, ...] | None = None,
        progress: bool = True,
        smooth: bool = True,
    ) -> MotionSequence:
        """
        The motion of one person.

        Args:
            video: whatever `VideoReader` takes, or one PIL image, which gives one frame.
            fps (`float`, *optional*): resample to this rate (default: the video's own).
            person (*optional*): whom: a box `(x0, y0, x1, y1)` in the first frame that shows somebody; with a detector
                also an index by size or a point `(x, y)`. Default: the detector's largest, else whoever fills the
                picture most.
            progress (`bool`): show a progress bar.
            smooth (`bool`): remove jitter.

        Raises:
            ValueError: there is nobody in the video, or not the person asked for.
        """
        is_image = isinstance(video, Image.Image)
        reader = VideoReader([video] if is_image else video, fps=fps)
        num_frames, size = len(reader), (reader.width, reader.height)
        keypoints, scores = np.zeros((num_frames, NUM_JOINTS, 2)), np.zeros((num_frames, NUM_JOINTS))
        faces, face_confidence = np.zeros((num_frames, 4)), np.zeros(num_frames)
        depth, focal_lengths = np.zeros((num_frames, NUM_JOINTS)), []
        box, found_once = None, False
        for index, frame in enumerate(tqdm(reader, desc="Sapiens2", unit="frame", disable=None if progress else True)):
            searched = self._first_box(frame, None if found_once else person) if box is None else box
            points, point_scores = self._find_points(frame, searched)
            if box is None:
                # The first box is rough: look again where the person was found.
                points, point_scores = self._find_points(frame, _box_around(points, point_scores, size, searched))
            joints, joint_scores = map_joints(points, point_scores, GOLIATH_MAPPING)
            if (joint_scores[BODY] >= _THRESHOLD).sum() < 3:
                box = None
                continue
            box, found_once = _box_around(points, point_scores, size, searched), True
            keypoints[index], scores[index] = joints, joint_scores
            face = points[GOLIATH_FACE][point_scores[GOLIATH_FACE] >= _THRESHOLD]
            if len(face) >= 20:
                # A few points astray must not stretch the box.
                faces[index] = np.concatenate([np.percentile(face, 2, axis=0), np.percentile(face, 98, axis=0)])
                face_confidence[index] = 1.0
            if self.pointmap_model is not None:
                place = self._find_places(frame, joints)
                seen = joint_scores >= _THRESHOLD
                focal_lengths.append(focal_length_of(place[seen], joints[seen], *size))
                depth[index] = place[:, 2]
        if not (scores > 0).any():
            raise NoPersonError(
                f"`{'image' if is_image else 'video'}` shows no person: no body was found in any of its {num_frames} frames."
            )
        known = np.isfinite(focal_lengths)
        usual = default_focal_length(*size)
        focal_length = float(np.median(np.array(focal_lengths)[known])) if known.any() else usual
        focal_length = float(np.clip(focal_length, 0.4 * usual, 5 * usual))
        if self.pointmap_model is not None:
            flesh = np.array(
                [_FLESH.get(name.split("_")[-1] if "_hand_" not in name else "", 0.01) for name in JOINT_NAMES]
            )
            depth = np.maximum(depth + flesh, 0.2)
            for index in range(num_frames):
                depth[index] = steady_depth(keypoints[index], depth[index], focal_length)
        return motion_from_keypoints(
            keypoints,
            confidence_from_scores(scores, _THRESHOLD),
            faces,
            face_confidence,
            reader.fps,
            *size,
            focal_length,
            depth=None if self.pointmap_model is None else depth,
            smoothed=smooth,
        )

    def segment(self, video, motion: MotionSequence, progress: bool = True) -> Iterator[np.ndarray | None]:
        """
        Where the captured person is, frame by frame, pixel by pixel. Of people who touch, all are taken: the parts of people
        are told from the background, not from each other's.

        Args:
            video: what was captured: whatever `VideoReader` takes, or one PIL image.
            motion (`MotionSequence`): its motion, in pixels of the video; as many masks come as it has frames.
            progress (`bool`): show a progress bar.

        Yields:
            `np.ndarray` of shape `(H, W)`, float32 in [0, 1], of zeros where the motion has nobody; `None` where it has
            somebody whom the segmentation does not find.

        Raises:
            ValueError: there is no `segmentation_model`.
        """
        if self.segmentation_model is None:
            raise ValueError(
                "`segmentation_model` is None, but cutting a person out needs one: load the capture with"
                ' `segmentation="facebook/sapiens2-seg-0.4b"`.'
            )
        reader = VideoReader([video] if isinstance(video, Image.Image) else video, num_frames=motion.num_frames)
        bar = tqdm(reader, desc="Cutting out", unit="frame", disable=None if progress else True)
        return (self._cut_out(frame, motion, index) for index, frame in enumerate(bar))

    @torch.no_grad()
    def _cut_out(self, frame: np.ndarray, motion: MotionSequence, index: int) -> np.ndarray | None:
        drawn, held = reached_points(motion, index)
        if len(drawn) == 0:
            return np.zeros(frame.shape[:2], dtype=np.float32)
        points = np.concatenate([drawn, held])
        height, width = _input_size(self.segmentation_model)
        region = padded_box(np.concatenate([points.min(axis=0), points.max(axis=0)]), height, width)
        pixels = _pixel_values(crop_person(frame, region, height, width), self.segmentation_model)
        logits = self.segmentation_model(pixel_values=pixels).logits[0].float()
        people = uncrop_mask(1 - logits.softmax(dim=0)[0].cpu().numpy(), region, *frame.shape[:2])
        # Who stands apart is somebody else.
        figures, _ = label(people >= 0.5)
        inside = points_inside(motion, index)
        inside = inside[((inside >= 0) & (inside < frame.shape[1::-1])).all(axis=1)].astype(int)
        own = np.setdiff1d(figures[inside[:, 1], inside[:, 0]], 0)
        return np.where(np.isin(figures, own) | (figures == 0), people, 0).astype(np.float32) if len(own) else None

    def _first_box(self, frame: np.ndarray, person) -> np.ndarray:
        """Where to look for a person that is not followed yet."""
        height, width = frame.shape[:2]
        where = np.asarray(person if isinstance(person, (tuple, list)) else (), dtype=np.float64)
        if where.shape == (4,):
            return where
        if self.detector is None:
            if person not in (None, 0):
                raise ValueError(
                    f"`person` must be None or a box (x0, y0, x1, y1) without a detector, but is {person!r}."
                )
            return np.array([0.0, 0.0, width, height])
        boxes = np.asarray(self.detector(frame), dtype=np.float64).reshape(-1, 4)
        if len(boxes) == 0:
            return np.array([0.0, 0.0, width, height])
        if where.shape == (2,):
            middles = (boxes[:, :2] + boxes[:, 2:]) / 2
            return boxes[np.argmin(np.linalg.norm(middles - where, axis=1))]
        order = np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable")
        index = 0 if person is None else person
        if not isinstance(index, int) or not 0 <= index < len(boxes):
            raise ValueError(
                f"`person` is {person!r}, but {len(boxes)} were found in the first frame that shows people; the largest is 0."
            )
        return boxes[order[index]]

    def _find_points(self, frame: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, width = _input_size(self.pose_model)
        region = padded_box(box, height, width)
        pixels = _pixel_values(crop_person(frame, region, height, width), self.pose_model)
        heatmaps = self.pose_model(pixel_values=pixels).heatmaps[0].float().cpu().numpy()
        return read_heatmaps(heatmaps, region)

    def _find_places(self, frame: np.ndarray, joints: np.ndarray) -> np.ndarray:
        """Where in space `(62, 3)` the pixels of the joints are, metres."""
        height, width = _input_size(self.pointmap_model)
        fitted, scale, offset = fit_picture(frame, height, width)
        output = self.pointmap_model(pixel_values=_pixel_values(fitted, self.pointmap_model))
        pointmap = output.pointmaps
        if output.scales is not None:
            # From the canonical focal length that the model thinks in to the real one.
            pointmap = pointmap / output.scales[:, :, None, None]
        pointmap = pointmap[0].float().cpu().numpy()
        points = (joints * scale + offset) * np.array([pointmap.shape[2] / width, pointmap.shape[1] / height])
        return sample_pointmap(pointmap, points)


def _input_size(model) -> tuple[int, int]:
    size = model.config.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def _pixel_values(picture: np.ndarray, model) -> torch.Tensor:
    values = (picture / 255 - _MEAN) / _STD
    return torch.from_numpy(values.transpose(2, 0, 1)[None]).to(model.device, model.dtype)


def _box_around(points: np.ndarray, scores: np.ndarray, size: tuple[int, int], otherwise: np.ndarray) -> np.ndarray:
    """The box of the points that were found, within the picture; `otherwise` when there are too few."""
    found = points[scores >= _THRESHOLD]
    if len(found) < 3:
        return otherwise
    box = np.concatenate([found.min(axis=0), found.max(axis=0)])
    box = np.clip(box, 0, [*size, *size])
    return box if (box[2:] - box[:2] > 4).all() else otherwise
