"""The head in a picture from MediaPipe's landmarks: rotation, ball and face box, with or without a visible face."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from ..camera import best_rotations, normalized, ray_rotation, weak_perspective


# MediaPipe's face geometry assumes a camera with this vertical field of view, whatever picture it is given.
_FACE_GEOMETRY_FOV = np.radians(63.0)
# The ball that holds the skull, in the frame of MediaPipe's canonical face (centimetres, x to the person's left, y up,
# z out of the face; its chin is at y = -9.4, the forehead's top at 8.3 and the ears at z = -2.4): from chin to vertex
# a head is about 22 cm high and 20 cm deep.
_BALL_CENTRE = np.array([0.0, 1.5, -3.0])
_BALL_RADIUS = 11.0
# The middle of the face's surface: where its size in the picture is that of the landmarks.
_FACE_CENTRE = np.array([0.0, 0.0, 3.5])
# A pose's face further than this from the face, in sides of the face, and one of the two is wrong.
_POSE_FACE_ERROR = 0.35
# A pose's head turned further than this from the face, in degrees, and one of the two is wrong.
_POSE_TURN_ERROR = 35.0
# A pose's difference to the face changes slowly: the weight of a frame falls by a factor e in so many seconds, and the clip's
# mean counts as much as so many frames.
_NEARBY_SECONDS = 0.5
_USUAL_WEIGHT = 1.0
# A face is alone if in so many seconds before and after it fewer than this share of the frames have one.
_ALONE_SECONDS = 0.25
_ALONE_SHARE = 0.25
# Degrees a second: in eight real drivers no head is seen to turn faster; and by how much two faces may be off besides.
_FASTEST_TURN = 500.0
_TURN_ERROR = 10.0
# After so long a head may look anywhere.
_TURN_SECONDS = 1.0
# A head that is held level looks 7 degrees down to MediaPipe: the median over 37 rendered heads of known pose. No
# measurement of real heads went into it.
_LEVEL = Rotation.from_euler("x", -7.0, degrees=True).as_matrix()
# OpenGL's camera axes (y up, z towards the camera) to ours (y down, z away).
_FLIP = np.diag([1.0, -1.0, -1.0])

# Points of the face mesh between brows and chin, ear to ear: the extent of the 68-point face that Wan-Animate crops by.
_BROWS_TO_CHIN = [
    70,
    63,
    105,
    66,
    107,
    336,
    296,
    334,
    293,
    300,
    127,
    234,
    93,
    132,
    58,
    172,
    136,
    150,
    149,
    176,
    148,
    152,
]
_BROWS_TO_CHIN += [377, 400, 378, 379, 365, 397, 288, 361, 323, 454, 356]
# The same points in the mesh and in the pose: nose, eyes (left, right), corners of the mouth (left, right), ears (left,
# right; the mesh ends just before them).
_MESH_POINTS = ([1], [263, 362], [33, 133], [291], [61], [454], [234])
POSE_POINTS_OF_LOOK = [0, 2, 5, 9, 10, 7, 8]
# Where the pose's face points (nose, left eye, right eye, left ear, right ear, mouth corners) are in the head's frame
# (metres, x to the person's left, y down, z to the back of the head; the canonical face, ears at its rim).
_POSE_FACE = [0, 2, 5, 7, 8, 9, 10]
_TRUNK = [11, 12, 23, 24]
_POSE_FACE_IN_HEAD = (
    np.array(
        [
            [0.0, 1.1, -7.5],
            [3.1, -2.6, -3.5],
            [-3.1, -2.6, -3.5],
            [7.4, -0.7, 3.0],
            [-7.4, -0.7, 3.0],
            [2.5, 4.3, -4.3],
            [-2.5, 4.3, -4.3],
        ]
    )
    / 100
)


def can_turn(turn: np.ndarray | float, seconds: np.ndarray | float) -> np.ndarray:
    """Whether a head can turn by `turn` radians in `seconds`, as far as faces tell its turn."""
    return np.degrees(turn) <= _FASTEST_TURN * seconds + _TURN_ERROR


@dataclass
class FaceLook:
    """
    A face found in one frame, in pixels of the frame.

    Args:
        box (`(4,)`): around brows, chin and ears, tight, not square.
        points (`(7, 2)`): nose, left and right eye, left and right corner of the mouth, left and right ear.
        rotation (`(3, 3)`): head to camera, as in `HeadTrack`, still relative to the ray through `ray_through`.
        ray_through (`(2,)`): the middle of the crop that the face was found in.
        center (`(2,)`), radius (`float`): of the head's ball.
        blendshapes (`(52,)`): ARKit's, in [0, 1].
    """

    box: np.ndarray
    points: np.ndarray
    rotation: np.ndarray
    ray_through: np.ndarray
    center: np.ndarray
    radius: float
    blendshapes: np.ndarray

    @property
    def side(self) -> float:
        """The longer side of the face's box."""
        return float(max(self.box[2] - self.box[0], self.box[3] - self.box[1]))

    @property
    def middle(self) -> np.ndarray:
        """The middle of the face's box."""
        return (self.box[:2] + self.box[2:]) / 2

    def pose_error(self, keypoints: np.ndarray) -> float:
        """How far nose, eyes and mouth of a pose `(33, 2)` lie from this face's, in sides of the face."""
        distance = np.linalg.norm(keypoints[POSE_POINTS_OF_LOOK] - self.points, axis=1)
        # Without the ears, which hair hides.
        return float(distance[:5].mean() / self.side)

    def can_follow(self, earlier: "FaceLook", seconds: float) -> bool:
        """Whether a head that looked as `earlier` can look so after `seconds`."""
        return bool(can_turn(Rotation.from_matrix(earlier.rotation.T @ self.rotation).magnitude(), seconds))

    def fits(self, keypoints: np.ndarray) -> bool:
        """Whether a pose `(33, 2)` has its face here and its shoulders where the neck must be."""
        down = self.rotation[:2, 1]
        neck = keypoints[[11, 12]].mean(axis=0) - self.middle
        # Seen from above or below the head's own down points into the picture, and says nothing.
        below = np.linalg.norm(down) < 0.5 or neck @ down / np.linalg.norm(down) > 0.35 * self.side
        return bool(below and self.pose_error(keypoints) < _POSE_FACE_ERROR)


def rotation_from_face_matrix(matrix: np.ndarray) -> np.ndarray:
    """
    Head rotation (3, 3) in our convention from MediaPipe's facial transformation matrix (4, 4), which takes the canonical
    face (y up, z out of the face) to an OpenGL camera (y up, z towards the viewer).
    """
    u, _, vt = np.linalg.svd(np.asarray(matrix, dtype=np.float64)[:3, :3])
    return _FLIP @ (u @ vt) @ _FLIP


def read_face(landmarks, matrix: np.ndarray, blendshapes: np.ndarray, x0: float, y0: float, side: float) -> FaceLook:
    """
    Brings a face found in a square crop into the frame.

    Args:
        landmarks (`(478, 2)`): in [0, 1] of the crop.
        matrix (`(4, 4)`): the facial transformation matrix.
        blendshapes (`(52,)`): ARKit's.
        x0, y0, side (`float`): the crop's corner and side in pixels of the frame.
    """
    points = landmarks * side + np.array([x0, y0])
    contour = points[_BROWS_TO_CHIN]
    matrix = np.asarray(matrix, dtype=np.float64)
    focal_length = side / 2 / np.tan(_FACE_GEOMETRY_FOV / 2)
    middle = np.array([x0 + side / 2, y0 + side / 2])
    # In the crop's assumed camera the face is very near. Real cameras are further away, so perspective within the head
    # is left out: the ball is placed at the scale of the face's surface.
    surface = matrix[:3, :3] @ _FACE_CENTRE + matrix[:3, 3]
    scale = focal_length / -surface[2]
    ball = surface + matrix[:3, :3] @ (_BALL_CENTRE - _FACE_CENTRE)
    return FaceLook(
        box=np.concatenate([contour.min(axis=0), contour.max(axis=0)]),
        points=np.stack([points[indices].mean(axis=0) for indices in _MESH_POINTS]),
        rotation=rotation_from_face_matrix(matrix),
        ray_through=middle,
        center=middle + scale * ball[:2] * np.array([1, -1]),
        radius=float(_BALL_RADIUS * np.cbrt(np.linalg.det(matrix[:3, :3])) * scale),
        blendshapes=blendshapes,
    )


def face_box(tight: np.ndarray, scale: float = 1.3) -> np.ndarray:
    """
    The square crop boxes (F, 4) for tight face boxes (F, 4) from the brows to the chin: `scale` times the area, three
    quarters of what is added in height above the brows (Wan-Animate's preprocessing), squared by widening.
    """
    low, high = tight[:, :2], tight[:, 2:]
    size = high - low
    added = (np.sqrt(scale) - 1) * size
    top = low[:, 1] - 0.75 * added[:, 1]
    bottom = high[:, 1] + 0.25 * added[:, 1]
    side = np.maximum(size[:, 0] + added[:, 0], bottom - top)
    centre = np.stack([(low[:, 0] + high[:, 0]) / 2, (top + bottom) / 2], axis=1)
    return np.concatenate([centre - side[:, None] / 2, centre + side[:, None] / 2], axis=1)


def head_guess(keypoints: np.ndarray) -> tuple[np.ndarray, float]:
    """Where the face should be by the pose `(33, 2)`: its middle (2,) and side in pixels."""
    face = keypoints[:11]
    extent = np.ptp(face, axis=0).max()
    shoulders = np.linalg.norm(keypoints[11] - keypoints[12])
    # Seen from the side the eyes, nose and ears are close together; a head is never much smaller than 0.4 shoulders.
    return face.mean(axis=0), float(max(extent, 0.35 * shoulders, 4.0))


def head_rotation_from_pose(world: np.ndarray, keypoints: np.ndarray, visibility: np.ndarray) -> np.ndarray:
    """
    Head rotations (F, 3, 3), relative to the viewing ray, from nose, eyes, ears and mouth of a pose: first the best rotation
    of an average head onto the world landmarks `world` (F, 33, 3), then, three times, onto where the picture has the points,
    `keypoints` (F, 33, 2), at the depths that the last rotation gives them (DeMenthon and Davis 1995, scaled orthographic).
    What the pose guesses of depth is too flat: in profile it alone is 25 to 45 degrees off. `visibility` (F, 33) weighs.
    """
    weights, places = visibility[:, _POSE_FACE] + 0.05, keypoints[:, _POSE_FACE]
    rotation = best_rotations(_POSE_FACE_IN_HEAD, world[:, _POSE_FACE], weights)
    for _ in range(3):
        turned = np.einsum("fij,nj->fni", rotation, _POSE_FACE_IN_HEAD)
        scale, offset = weak_perspective(turned, places, weights)
        # Points that fall together, or lie the other way round, show no rotation.
        shown = scale > 1e-3
        across = (places[shown] - offset[shown, None]) / scale[shown, None, None]
        seen = np.concatenate([across, turned[shown, :, 2:]], axis=-1)
        rotation[shown] = best_rotations(_POSE_FACE_IN_HEAD, seen, weights[shown])
    return rotation


def _longest_series(rotations: np.ndarray, frames: np.ndarray, fps: float) -> list[int]:
    """The most of `rotations` (N, 3, 3), at ascending `frames` (N,), from one to the next of which a head can turn: indices."""
    lengths, before = np.ones(len(frames), dtype=int), np.full(len(frames), -1)
    longest_far, near = -1, 0
    for last, frame in enumerate(frames):
        # After longer than that a head looks anywhere.
        while frame - frames[near] > _TURN_SECONDS * fps:
            longest_far = near if longest_far < 0 or lengths[near] > lengths[longest_far] else longest_far
            near += 1
        turn = Rotation.from_matrix(rotations[near:last].swapaxes(1, 2) @ rotations[last]).magnitude()
        can_follow = near + np.flatnonzero(can_turn(turn, (frame - frames[near:last]) / fps))
        earlier = [longest_far] * (longest_far >= 0) + can_follow.tolist()
        if earlier:
            before[last] = max(earlier, key=lambda index: lengths[index])
            lengths[last] += lengths[before[last]]
    series, link = [], int(lengths.argmax())
    while link >= 0:
        series.append(link)
        link = before[link]
    return series[::-1]


def believable_looks(
    looks: list[FaceLook | None],
    keypoints: np.ndarray,
    world: np.ndarray,
    visibility: np.ndarray,
    body_seen: np.ndarray,
    shots: list[slice],
    fps: float,
) -> list[FaceLook | None]:
    """
    `looks` without those of faces half covered, or of none: in each of `shots` the longest series in which the head turns no
    faster than heads do, and of that no face that is alone and looks elsewhere than the pose's. Arguments as in `estimate_heads`.
    """
    by_pose = head_rotation_from_pose(world, keypoints, visibility)
    believable: list[FaceLook | None] = [None] * len(looks)
    reach = round(_ALONE_SECONDS * fps)
    for shot in shots:
        frames = np.array([index for index in range(shot.start, shot.stop) if looks[index] is not None])
        if len(frames) == 0:
            continue
        rotations = np.stack([looks[index].rotation for index in frames])
        series = _longest_series(rotations, frames, fps)
        frames, rotations = frames[series], rotations[series]
        turn = Rotation.from_matrix(by_pose[frames].swapaxes(1, 2) @ rotations).magnitude()
        others = np.searchsorted(frames, frames + reach, side="right") - np.searchsorted(frames, frames - reach) - 1
        around = np.minimum(frames + reach, shot.stop - 1) - np.maximum(frames - reach, shot.start)
        wrong = body_seen[frames] & (np.degrees(turn) > _POSE_TURN_ERROR) & (others < _ALONE_SHARE * around)
        for index in frames[~wrong]:
            believable[index] = looks[index]
    return believable


def torso_rotation(world: np.ndarray) -> np.ndarray:
    """
    Orientation (F, 3, 3) of the trunk, relative to the viewing ray, in the head's convention: x from the right to the left
    shoulder, y from the shoulders to the hips, z out of the back.
    """
    x = world[:, 11] - world[:, 12]
    down = world[:, [23, 24]].mean(axis=1) - world[:, [11, 12]].mean(axis=1)
    x = normalized(x)
    z = normalized(np.cross(x, down))
    return np.stack([x, np.cross(z, x), z], axis=-1)


def _place_in_head(rotation: np.ndarray, offset: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """
    The point (3,) in the head's frame that is seen at `offset` (F, 2) from its origin under `rotation` (F, 3, 3); the depth,
    which a head that does not turn does not show, is drawn to the `usual` point.
    """
    seen = rotation[:, :2]
    weight = 0.05 * len(seen)
    normal = np.einsum("fai,faj->ij", seen, seen) + weight * np.eye(3)
    return np.linalg.solve(normal, np.einsum("fai,fa->i", seen, offset) + weight * usual)


def _nearby_means(rotations: Rotation, frames: np.ndarray, num_frames: int, fps: float) -> np.ndarray:
    """
    Means `(num_frames, 3, 3)` of `rotations`, which belong to ascending `frames`, for every frame: the nearer, the more they
    count.
    """
    usual = rotations.mean()
    means = np.tile(usual.as_matrix(), (num_frames, 1, 1))
    reach, every = 4 * _NEARBY_SECONDS * fps, np.arange(num_frames)
    starts, stops = np.searchsorted(frames, every - reach), np.searchsorted(frames, every + reach)
    for index in np.flatnonzero(stops > starts):
        near = slice(starts[index], stops[index])
        weights = np.exp(-np.abs(frames[near] - index) / (_NEARBY_SECONDS * fps))
        means[index] = (
            Rotation.concatenate([usual, rotations[near]]).mean(np.append(_USUAL_WEIGHT, weights)).as_matrix()
        )
    return means


@dataclass
class HeadEstimate:
    """
    Heads of a clip, one person: as in `HeadTrack`, and the face's tight boxes.

    Args:
        rotation (`(F, 3, 3)`), center (`(F, 2)`), radius (`(F,)`), confidence (`(F,)`): as in `HeadTrack`.
        box (`(F, 4)`): tight face boxes.
        face_confidence (`(F,)`): that of the face itself.
    """

    rotation: np.ndarray
    center: np.ndarray
    radius: np.ndarray
    confidence: np.ndarray
    box: np.ndarray
    face_confidence: np.ndarray


def estimate_heads(
    looks: list[FaceLook | None],
    keypoints: np.ndarray,
    world: np.ndarray,
    visibility: np.ndarray,
    body_seen: np.ndarray,
    focal_length: float,
    width: int,
    height: int,
    fps: float,
) -> HeadEstimate:
    """
    One head per frame: from the face where it was found, else carried on from the pose.

    Without a face the rotation is that of the pose's ears, eyes, nose and mouth, drawn towards the shoulders' where those
    are hardly seen; its difference to the face's rotation is learned from the frames that have both, most from the nearest, and
    so are the ball's place and size. Confidence: 1 for a face, less near the profile; at most 0.7 from the pose, 0 with neither.

    Args:
        looks (`list` of length F): the face found in each frame, or None.
        keypoints (`(F, 33, 2)`), world (`(F, 33, 3)`), visibility (`(F, 33)`): the pose, in pixels and metres.
        body_seen (`(F,)` bool): frames that have a pose.
        focal_length (`float`), width, height (`int`): the camera.
        fps (`float`): frames in a second.
    """
    num_frames = len(looks)
    found = np.array([look is not None for look in looks])
    template = _POSE_FACE_IN_HEAD

    # Frames without the person get an average head and an upright trunk, so that everything below is defined.
    standing = np.zeros((33, 3))
    standing[_POSE_FACE], standing[[11, 12]] = _POSE_FACE_IN_HEAD, [[0.2, 0.2, 0.0], [-0.2, 0.2, 0.0]]
    standing[[23, 24]] = [[0.1, 0.7, 0.0], [-0.1, 0.7, 0.0]]
    world = np.where(body_seen[:, None, None], world, standing)
    by_pose = head_rotation_from_pose(world, keypoints, visibility)
    sight = visibility[:, _POSE_FACE].mean(axis=1)
    trunk = torso_rotation(world)
    # Under about half visibility the face points are guesses, and the shoulders tell more about where a head can look.
    to_trunk = Rotation.from_matrix(np.swapaxes(by_pose, 1, 2) @ trunk).as_rotvec()
    by_pose = by_pose @ Rotation.from_rotvec(to_trunk * np.clip(1 - sight / 0.5, 0, 0.7)[:, None]).as_matrix()
    face_points = keypoints[:, _POSE_FACE]
    by_pose = ray_rotation(face_points.mean(axis=1), focal_length, width, height) @ by_pose

    rotation, center, radius = by_pose.copy(), np.zeros((num_frames, 2)), np.ones(num_frames)
    box, confidence, face_confidence = np.zeros((num_frames, 4)), np.zeros(num_frames), np.zeros(num_frames)
    for frame in np.flatnonzero(found):
        look = looks[frame]
        rotation[frame] = ray_rotation(look.ray_through, focal_length, width, height) @ look.rotation
        center[frame], radius[frame], box[frame] = look.center, look.radius, look.box
        # cos(yaw): the mesh is a guess for the hidden half of a profile.
        frontal = np.clip(look.rotation[2, 2], 0, 1)
        confidence[frame] = face_confidence[frame] = np.clip(0.6 + 0.8 * (frontal - 0.2), 0.5, 1.0)

    both = found & body_seen
    if both.any():
        bias = Rotation.from_matrix(np.swapaxes(by_pose[both], 1, 2) @ rotation[both])
        # Where the two disagree the pose's face was wrong, or the face; it must not teach.
        trusted = bias.magnitude() < np.radians(_POSE_TURN_ERROR)
        if trusted.any():
            taught = np.flatnonzero(both)[trusted]
            by_pose = by_pose @ _nearby_means(bias[trusted], taught, num_frames, fps)
    turned = np.einsum("fij,nj->fni", by_pose, template)
    weights = np.ones(turned.shape[:2])
    scale, offset = weak_perspective(turned, face_points, weights)
    if not both.any():
        # Face points that are guessed lie too close together; shoulders and hips show how large a head is.
        body_scale, _ = weak_perspective(world[:, _TRUNK], keypoints[:, _TRUNK], visibility[:, _TRUNK] + 0.05)
        scale = np.maximum(scale, body_scale)
        offset = face_points.mean(axis=1) - scale[:, None] * turned.mean(axis=1)[:, :2]
    scale = np.maximum(scale, 1e-3)
    # Radius, and sides of the face's box, in metres; places of the ball and of the box in the head's frame.
    ratio, shift = _BALL_RADIUS / 100, _FLIP @ _BALL_CENTRE / 100
    box_size, box_shift = np.array([0.155, 0.155]), np.array([0.0, 0.022, -0.035])
    if both.any():
        ratio = float(np.median(radius[both] / scale[both]))
        box_size = np.median((box[both, 2:] - box[both, :2]) / scale[both, None], axis=0)
        shift = _place_in_head(by_pose[both], (center[both] - offset[both]) / scale[both, None], shift)
        middle = (box[both, :2] + box[both, 2:]) / 2
        box_shift = _place_in_head(by_pose[both], (middle - offset[both]) / scale[both, None], box_shift)
    carried = body_seen & ~found
    rotation[carried] = by_pose[carried]
    center[carried] = offset[carried] + scale[carried, None] * (by_pose[carried] @ shift)[:, :2]
    radius[carried] = scale[carried] * ratio
    middle = offset[carried] + scale[carried, None] * (by_pose[carried] @ box_shift)[:, :2]
    half = scale[carried, None] * box_size / 2
    box[carried] = np.concatenate([middle - half, middle + half], axis=1)
    # The ears and the trunk still place a head that looks away, so a well seen body is enough for 0.5 and more.
    steady = visibility[:, [0, 7, 8, 11, 12]].mean(axis=1)
    confidence[carried] = np.clip(0.7 * steady[carried], 0, 0.7)
    inside = ((center > 0) & (center < [width, height])).all(axis=1)
    confidence[carried & ~inside] *= 0.5
    confidence[carried & ~visibility[:, :11].any(axis=1)] = 0.0
    return HeadEstimate(rotation @ _LEVEL, center, radius, confidence, box, face_confidence)
