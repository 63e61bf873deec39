"""The camera behind a picture of a person: a pinhole with its principal point at the image centre.

Coordinates are those of `MotionSequence`: metres in the camera frame, x to the right, y down, z away from the camera.
Every function is pure and works on a batch of frames `(F, ...)`.
"""

import numpy as np
from scipy.spatial.transform import Rotation


# Keeps divisions by scales and weights finite.
_EPSILON = 1e-6
# A joint further off than this many times the estimator's noise is wrong, and how wrong it is says nothing about the camera.
_MOST_ERROR = 3.0


def default_focal_length(width: int, height: int) -> float:
    """
    The focal length in pixels to assume when nothing is known: the image diagonal, a 53 degree field of view over the
    diagonal. It is the guess of CLIFF (arXiv 2208.00571) and of 4DHumans for pictures from the wild.
    """
    return float(np.hypot(width, height))


def back_project(keypoints: np.ndarray, depth: np.ndarray, focal_length: float, width: int, height: int) -> np.ndarray:
    """
    Points in the camera frame from pixels `keypoints` (..., 2) and `depth` (...) along the optical axis.

    Returns (..., 3) in the unit of `depth`; projecting them gives `keypoints` again.
    """
    centre = np.array([width / 2, height / 2])
    lateral = (np.asarray(keypoints) - centre) / focal_length * np.asarray(depth)[..., None]
    return np.concatenate([lateral, np.asarray(depth)[..., None]], axis=-1)


def ray_rotation(keypoints: np.ndarray, focal_length: float, width: int, height: int) -> np.ndarray:
    """
    Rotations (..., 3, 3) that turn the optical axis onto the rays through the pixels `keypoints` (..., 2), by the
    shortest way (no roll).

    An estimator that sees a crop reports orientation relative to the ray through the crop's centre. Multiplying with
    this rotation from the left expresses it in the camera frame.
    """
    centre = np.array([width / 2, height / 2])
    offset = (np.asarray(keypoints, dtype=np.float64) - centre) / focal_length
    rays = np.concatenate([offset, np.ones_like(offset[..., :1])], axis=-1)
    return shortest_rotation(np.array([0.0, 0.0, 1.0]), rays)


def shortest_rotation(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """
    Rotations `(..., 3, 3)` that turn directions `start` onto `end`, `(..., 3)` each of any length, by the shortest way. Where
    they are opposite any half turn is one; where one of them is zero, nothing turns.
    """
    start, end = np.broadcast_arrays(normalized(start), normalized(end))
    # Twice the rotation's half angle is the angle between them: (1 + cosine, axis * sine) is along its quaternion.
    axis, real = np.cross(start, end), 1 + np.sum(start * end, axis=-1)
    opposite = real < 1e-12
    if opposite.any():
        across = np.eye(3)[np.abs(start[opposite]).argmin(axis=-1)]
        axis[opposite] = np.cross(start[opposite], across)
    quaternions = np.concatenate([axis, real[..., None]], axis=-1).reshape(-1, 4)
    return Rotation.from_quat(quaternions).as_matrix().reshape(*start.shape, 3)


def best_rotations(template: np.ndarray, points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """
    The rotations (F, 3, 3) that bring `template` (N, 3) nearest to `points` (F, N, 3) under `weights` (F, N), wherever the
    two are (Kabsch's algorithm).
    """
    weights = weights / weights.sum(axis=1, keepdims=True)
    # with the points centred the template's place falls out
    points = points - np.einsum("fn,fnd->fd", weights, points)[:, None]
    u, _, vt = np.linalg.svd(np.einsum("fn,fni,nj->fij", weights, points, template))
    u[:, :, 2] *= np.linalg.det(u @ vt)[:, None]
    return u @ vt


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Vectors `(..., D)` at length 1; zero stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def weak_perspective(points: np.ndarray, keypoints: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    The scaled orthographic camera that best maps `points` (F, N, 3) onto `keypoints` (F, N, 2) under `weights` (F, N).

    Returns the scale (F,) in pixels per unit of `points` and the offset (F, 2) in pixels, so that
    `keypoints ~ scale * points[..., :2] + offset`.
    """
    weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), _EPSILON)
    mean_point = np.einsum("fn,fnd->fd", weights, points[..., :2])
    mean_keypoint = np.einsum("fn,fnd->fd", weights, keypoints)
    centred_points = points[..., :2] - mean_point[:, None]
    centred_keypoints = keypoints - mean_keypoint[:, None]
    covariance = np.einsum("fn,fnd,fnd->f", weights, centred_points, centred_keypoints)
    variance = np.einsum("fn,fnd,fnd->f", weights, centred_points, centred_points)
    scale = covariance / np.maximum(variance, _EPSILON**2)
    return scale, mean_keypoint - scale[:, None] * mean_point


def solve_translation(
    points: np.ndarray, keypoints: np.ndarray, weights: np.ndarray, focal_length: float, width: int, height: int
) -> np.ndarray:
    """
    Where the person stands: the translation (F, 3) with which `points` (F, N, 3), already turned as the camera sees
    them, project onto `keypoints` (F, N, 2) pixels under `weights` (F, N).

    A linear least-squares problem in the translation (every pair gives `f (X + tx) = u (Z + tz)`), solved twice so that
    the second time each equation is divided by its depth and the error is the one in the image. Depth stays in front
    of the camera: where the pairs ask for less, it is put at the weak-perspective depth.
    """
    centred = (np.asarray(keypoints, dtype=np.float64) - np.array([width / 2, height / 2])) / focal_length
    points = np.asarray(points, dtype=np.float64)
    scale, offset = weak_perspective(points, keypoints, weights)
    depth = focal_length / np.maximum(scale, _EPSILON * focal_length)
    fallback = np.concatenate(
        [(offset - np.array([width / 2, height / 2])) / focal_length * depth[:, None], depth[:, None]], axis=-1
    )
    translation = fallback
    for _ in range(3):
        row_weights = weights / np.maximum(points[..., 2] + translation[:, 2:3], 0.1 * depth[:, None]) ** 2
        total = row_weights.sum(axis=1)
        design = np.zeros((len(points), 3, 3))
        design[:, 0, 0] = design[:, 1, 1] = total
        design[:, :2, 2] = design[:, 2, :2] = -np.einsum("fn,fnd->fd", row_weights, centred)
        design[:, 2, 2] = np.einsum("fn,fnd,fnd->f", row_weights, centred, centred)
        residual = centred * points[..., 2:3] - points[..., :2]
        right = np.concatenate(
            [
                np.einsum("fn,fnd->fd", row_weights, residual),
                -np.einsum("fn,fnd,fnd->f", row_weights, centred, residual)[:, None],
            ],
            axis=-1,
        )
        design += _EPSILON * np.eye(3) * np.maximum(total, _EPSILON)[:, None, None] * 1e-3
        solved = np.linalg.solve(design, right[..., None])[..., 0]
        nearest = -points[..., 2].min(axis=1)
        sane = np.isfinite(solved).all(axis=1) & (solved[:, 2] > nearest + 0.05) & (solved[:, 2] > 0.3 * depth)
        translation = np.where(sane[:, None], solved, fallback)
    return translation


def solve_pnp(
    points: np.ndarray,
    keypoints: np.ndarray,
    weights: np.ndarray,
    focal_length: float,
    width: int,
    height: int,
    iterations: int = 15,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Perspective-n-point for every frame: rotation (F, 3, 3) and translation (F, 3) with which `points` (F, N, 3) project
    onto `keypoints` (F, N, 2) pixels under `weights` (F, N).

    Levenberg-Marquardt on the reprojection error from the identity rotation, so `points` should be turned roughly as
    seen (within some 60 degrees), as pose estimators give them.
    """
    from scipy.spatial.transform import Rotation

    points = np.asarray(points, dtype=np.float64)
    target = (np.asarray(keypoints, dtype=np.float64) - np.array([width / 2, height / 2])) / focal_length
    num_frames = len(points)
    rotation = np.broadcast_to(np.eye(3), (num_frames, 3, 3)).copy()
    translation = solve_translation(points, keypoints, weights, focal_length, width, height)
    damping = np.full(num_frames, 1e-3)

    def residuals(rotation: np.ndarray, translation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        turned = np.einsum("fij,fnj->fni", rotation, points)
        placed = turned + translation[:, None]
        depth = np.maximum(placed[..., 2:], 1e-3)
        return turned, placed[..., :2] / depth - target

    turned, error = residuals(rotation, translation)
    cost = np.einsum("fn,fnd,fnd->f", weights, error, error)
    for _ in range(iterations):
        placed = turned + translation[:, None]
        inverse_depth = 1 / np.maximum(placed[..., 2], 1e-3)
        by_point = np.zeros((*points.shape[:2], 2, 3))
        by_point[..., 0, 0] = by_point[..., 1, 1] = inverse_depth
        by_point[..., :, 2] = -placed[..., :2] * inverse_depth[..., None] ** 2
        cross = np.zeros((*points.shape[:2], 3, 3))
        cross[..., 0, 1], cross[..., 0, 2] = turned[..., 2], -turned[..., 1]
        cross[..., 1, 0], cross[..., 1, 2] = -turned[..., 2], turned[..., 0]
        cross[..., 2, 0], cross[..., 2, 1] = turned[..., 1], -turned[..., 0]
        jacobian = np.concatenate([by_point @ cross, by_point], axis=-1)
        normal = np.einsum("fn,fnia,fnib->fab", weights, jacobian, jacobian)
        gradient = np.einsum("fn,fnia,fni->fa", weights, jacobian, error)
        diagonal = np.einsum("faa->fa", normal)
        lifted = normal + (damping[:, None] * diagonal + 1e-12)[..., None] * np.eye(6)
        step = -np.linalg.solve(lifted, gradient[..., None])[..., 0]
        new_rotation = Rotation.from_rotvec(step[:, :3]).as_matrix() @ rotation
        new_translation = translation + step[:, 3:]
        new_turned, new_error = residuals(new_rotation, new_translation)
        new_cost = np.einsum("fn,fnd,fnd->f", weights, new_error, new_error)
        better = new_cost < cost
        rotation = np.where(better[:, None, None], new_rotation, rotation)
        translation = np.where(better[:, None], new_translation, translation)
        turned = np.where(better[:, None, None], new_turned, turned)
        error = np.where(better[:, None, None], new_error, error)
        cost = np.where(better, new_cost, cost)
        damping = np.where(better, damping * 0.3, damping * 5)
    return rotation, translation


def estimate_focal_length(
    points: np.ndarray,
    keypoints: np.ndarray,
    weights: np.ndarray,
    width: int,
    height: int,
    prior_strength: float = 1.0,
    noise: float = 0.02,
) -> float:
    """
    The focal length in pixels that explains a whole clip of pairs `points` (F, N, 3) and `keypoints` (F, N, 2) best,
    one for all frames.

    How much nearer parts look bigger tells the focal length, but only weakly for a person a few metres away, and pose
    estimators err by some `noise` (relative to the person's size in the picture). So candidates between 0.5 and 4 times
    the diagonal are scored by their reprojection error in units of that noise, plus a prior: log-normal around
    `default_focal_length` with a standard deviation of 0.35, times `prior_strength`; the mean of their logarithms, weighted by
    how likely they are, is taken. With exact pairs of a person with some depth the data decides; with a flat or noisy one
    the prior does.

    Source of the least-squares part: `solve_translation`.
    """
    prior = default_focal_length(width, height)
    seen = weights.sum(axis=1) > 0
    if not seen.any():
        return prior
    # A hundred frames tell as much as a thousand, and keep the cost of a long clip bounded.
    chosen = np.flatnonzero(seen)
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(len(chosen), 100)).astype(int)]
    points, keypoints, weights = points[chosen], keypoints[chosen], weights[chosen]
    scale, offset = weak_perspective(points, keypoints, weights)
    spread = np.sqrt(
        np.einsum("fn,fnd->f", weights, (keypoints - offset[:, None]) ** 2) / np.maximum(weights.sum(axis=1), 1e-6)
    )
    candidates = prior * np.exp(np.linspace(np.log(0.5), np.log(4.0), 61))
    scores = []
    for focal_length in candidates:
        translation = solve_translation(points, keypoints, weights, focal_length, width, height)
        placed = points + translation[:, None]
        projected = placed[..., :2] / np.maximum(placed[..., 2:], 1e-3) * focal_length + np.array(
            [width / 2, height / 2]
        )
        error = np.linalg.norm(projected - keypoints, axis=-1) / np.maximum(spread[:, None], 1e-6) / noise
        # Joints of one frame, and frames of one clip, err together: the mean over them counts as a few independent
        # observations, not as thousands.
        data = 10 * np.mean(
            (weights * np.minimum(error, _MOST_ERROR) ** 2).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-6)
        )
        scores.append(data + prior_strength * (np.log(focal_length / prior) / 0.35) ** 2)
    likely = np.exp((min(scores) - np.array(scores)) / 2)
    return float(np.exp(np.average(np.log(candidates), weights=likely)))
