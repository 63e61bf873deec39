"""Repairing and smoothing tracks: outliers, left/right swaps, gaps and jitter, offline over a whole clip.

Pure functions on arrays, time first. All smoothing is symmetric in time (zero phase), so nothing lags behind the video,
and weighs each frame by its confidence. Frames before and after a cut must be given separately.
"""

import itertools

import numpy as np
from scipy.ndimage import correlate1d
from scipy.spatial.transform import Rotation, Slerp


# Gaussian widths in seconds of the two smoothers that `smooth` blends: the wide one where a track holds still or moves
# slowly, the narrow one where it does something that noise does not explain.
WIDE_SECONDS = 0.13
NARROW_SECONDS = 0.035


def find_outliers(
    values: np.ndarray, confidence: np.ndarray, threshold: float = 5.0, floor: float = 0.0, window: int = 7
) -> np.ndarray:
    """
    Frames whose value jumps away from its neighbours' median and back (a Hampel identifier).

    Args:
        values (`np.ndarray` of shape `(F, N, D)`): tracks of N points.
        confidence (`np.ndarray` of shape `(F, N)`): in [0, 1]; frames at 0 are not looked at.
        threshold (`float`): how far from the median is too far, in robust standard deviations of the track's own jitter.
        floor (`float`): a deviation under this is never an outlier, in the unit of `values`.
        window (`int`): frames in the median, odd; jumps of up to `(window - 1) // 2` frames are found.

    Returns:
        `(F, N)` bool. Steady motion, however fast, is none: the median of a monotone stretch is its middle.
    """
    values = np.asarray(values, dtype=np.float64)
    seen = np.asarray(confidence) > 0
    num_frames = len(values)
    if num_frames < 3:
        return np.zeros(values.shape[:2], dtype=bool)
    half = min(window, num_frames if num_frames % 2 else num_frames - 1) // 2
    known = fill_gaps(values, confidence, fps=1.0)[0]
    # Odd reflection keeps a steady motion steady across the ends, so that the first frames are not outliers.
    before = 2 * known[:1] - known[half:0:-1]
    after = 2 * known[-1:] - known[-2 : -half - 2 : -1]
    padded = np.concatenate([before, known, after])
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1, axis=0)
    deviation = np.linalg.norm(values - np.median(windows, axis=-1), axis=-1)
    deviation_seen = np.where(seen, deviation, np.nan)
    scale = np.zeros(values.shape[1])
    any_seen = seen.any(axis=0)
    if any_seen.any():
        scale[any_seen] = 1.4826 * np.nanmedian(deviation_seen[:, any_seen], axis=0)
    return seen & (deviation > np.maximum(threshold * scale, floor)) & (deviation > 0)


# What a person costs whose shoulders face the other way than the hips, for each size that they are apart beyond `_NARROW`.
_TWIST = 0.25
_NARROW = 0.04
# What it costs to begin or to end exchanging.
_CHANGE = 0.02


def find_side_swaps(
    values: np.ndarray,
    confidence: np.ndarray,
    groups: list[list[tuple[int, int]]],
    size: np.ndarray | float,
) -> np.ndarray:
    """
    Frames in which an estimator took a person's left for the right.

    A swap shows as both points of many pairs jumping to each other's place at once. The path of least movement through
    the choices "as given" and "swapped" of each group is found by dynamic programming over the clip; a swapped frame has a
    small cost of its own, so that what is given stays unless swapping moves clearly less. A person who turns around moves
    through all angles between and is left alone. Nobody's groups are turned against each other (shoulders one way, hips the
    other): seen from the side legs may go on either way, and the arms decide.

    Args:
        values (`np.ndarray` of shape `(F, N, D)`): points.
        confidence (`np.ndarray` of shape `(F, N)`): in [0, 1], weights.
        groups: lists of index pairs (left, right) that swap together, such as arms and legs; the first pair of each says
            which way the person faces.
        size (`float` or `np.ndarray` of shape `(F,)`): size of the person in the unit of `values`.

    Returns:
        `(F, G)` bool, True where left and right of a group should be exchanged.
    """
    confidence = np.asarray(confidence)
    values = np.asarray(values, dtype=np.float64) / np.reshape(size, (-1, 1, 1))
    swapped = np.zeros((len(values), len(groups)), dtype=bool)
    # Across frames without the person, too, sides go on: else they could be exchanged there for nothing.
    seen = np.flatnonzero(confidence[:, np.ravel([pair for group in groups for pair in group])].any(axis=1))
    if len(seen) == 0:
        return swapped
    values, confidence = values[seen], confidence[seen]
    states = np.array(list(itertools.product([0, 1], repeat=len(groups))))

    # Where the sides nearly coincide (seen from the side) either choice moves as little, and the bias decides.
    bias = 0.005
    standing = np.tile(bias * states.sum(axis=1), (len(seen), 1))
    moving = np.zeros((len(seen) - 1, len(states), len(states)))
    across, sureness = [], []
    for number, group in enumerate(groups):
        left, right = (np.asarray(side) for side in zip(*group))
        a, b = values[:, left], values[:, right]
        weight = np.minimum(confidence[:, left], confidence[:, right])
        both = np.minimum(weight[1:], weight[:-1])

        def moved(to_a, to_b):
            distance = np.linalg.norm(a[:-1] - to_a, axis=-1) + np.linalg.norm(b[:-1] - to_b, axis=-1)  # noqa: B023
            return (both * np.minimum(distance, 1.0)).sum(axis=1) / np.maximum(both.sum(axis=1), 1e-6)  # noqa: B023

        stays = states[:, None, number] == states[None, :, number]
        crossed = moved(b[1:], a[1:]) + _CHANGE
        moving += np.where(stays, moved(a[1:], b[1:])[:, None, None], crossed[:, None, None])
        across.append(a[:, 0] - b[:, 0])
        sureness.append(weight[:, 0])
    for first, second in itertools.combinations(range(len(groups)), 2):
        widest = np.maximum(np.linalg.norm(across[first], axis=-1), np.linalg.norm(across[second], axis=-1))
        alike = np.einsum("fd,fd->f", across[first], across[second]) / np.maximum(widest, 1e-6)
        same = states[:, first] == states[:, second]
        against = np.where(same, -alike[:, None], alike[:, None])
        # Only what is clearly so: seen from the side both are narrow, and what they say is noise.
        sure = np.minimum(sureness[first], sureness[second])[:, None]
        standing += _TWIST * sure * np.maximum(against - _NARROW, 0)

    cost = standing[0]
    came_from = np.zeros(standing.shape, dtype=np.int64)
    for frame in range(1, len(seen)):
        options = cost[:, None] + moving[frame - 1]
        came_from[frame] = options.argmin(axis=0)
        cost = options.min(axis=0) + standing[frame]
    state = int(cost.argmin())
    for frame in range(len(seen) - 1, -1, -1):
        swapped[seen[frame]] = states[state]
        state = came_from[frame, state]
    return swapped


def seen_around(seen: np.ndarray, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """
    For each of `num_frames` the last of the ascending frames `seen` (N,) before it, and the first that is not: `(F,)` each.
    Beyond the ends both are the nearest.
    """
    position = np.searchsorted(seen, np.arange(num_frames))
    return seen[np.maximum(position - 1, 0)], seen[np.minimum(position, len(seen) - 1)]


def fill_gaps(
    values: np.ndarray, confidence: np.ndarray, fps: float, max_seconds: float = 0.5, decay_seconds: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """
    Values for frames whose confidence is 0: linear between the frames around a gap, held before the first and after the
    last. A track that is 0 throughout keeps its values.

    Args:
        values (`np.ndarray` of shape `(F, N, D)`), confidence (`np.ndarray` of shape `(F, N)`): the tracks.
        fps (`float`): frames in a second.
        max_seconds (`float`): a gap up to this long is bridged: its frames get the lesser confidence of the two around it.
        decay_seconds (`float`): in longer gaps and beyond the ends, confidence falls from the nearest seen frame's by a
            factor e in this time, and is 0 once under 0.1.

    Returns:
        Filled values `(F, N, D)` and confidence `(F, N)`, float64.
    """
    values = np.array(values, dtype=np.float64)
    confidence = np.array(confidence, dtype=np.float64)
    frames = np.arange(len(values))
    for point in range(values.shape[1]):
        seen = np.flatnonzero(confidence[:, point] > 0)
        if len(seen) == 0 or len(seen) == len(frames):
            continue
        for dimension in range(values.shape[2]):
            values[:, point, dimension] = np.interp(frames, seen, values[seen, point, dimension])
        before, after = seen_around(seen, len(frames))
        gone = confidence[:, point] <= 0
        bridged = gone & (before < frames) & (after > frames) & ((after - before - 1) / fps <= max_seconds)
        nearest = np.where(np.abs(frames - before) <= np.abs(after - frames), before, after)
        distance = np.abs(frames - nearest) / fps
        faded = confidence[nearest, point] * np.exp(-distance / decay_seconds)
        faded[faded < 0.1] = 0
        least = np.minimum(confidence[before, point], confidence[after, point])
        confidence[:, point] = np.where(bridged, least, np.where(gone, faded, confidence[:, point]))
    return values, confidence


def fill_rotations(rotations: np.ndarray, known: np.ndarray) -> np.ndarray:
    """
    Rotations `(F, 3, 3)` for the frames that are not `known` (F,) bool: slerp between the known ones around a gap, held
    beyond the first and the last. Without any known frame they stay as they are.
    """
    frames = np.arange(len(rotations))
    anchors = np.flatnonzero(known)
    if len(anchors) == 0:
        return np.array(rotations, dtype=np.float64)
    if len(anchors) == 1:
        return np.repeat(np.asarray(rotations[anchors], dtype=np.float64), len(frames), axis=0)
    slerp = Slerp(anchors, Rotation.from_matrix(rotations[anchors]))
    return slerp(np.clip(frames, anchors[0], anchors[-1])).as_matrix()


def _gaussian(seconds: float, fps: float) -> np.ndarray:
    sigma = max(seconds * fps, 0.3)
    reach = max(2, int(np.ceil(3 * sigma)))
    offsets = np.arange(-reach, reach + 1)
    return np.exp(-0.5 * (offsets / sigma) ** 2)


def _fit_parabolas(weights: np.ndarray, kernel: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """
    At each frame, the value of the parabola fitted to the frames around it (Savitzky-Golay with a Gaussian window and
    weights per frame). A parabola, not a mean, so that peaks keep their height.

    Args:
        weights (`(F, N)`): of each frame.
        kernel (`(2 R + 1,)`): of each frame's neighbours.
        targets (`(F, N, 3, D)`): what the neighbours say, summed with both weights and `_powers(kernel)`.

    Returns:
        `(F, N, D)`.
    """
    powers = _powers(kernel, 5)
    moments = np.stack([correlate1d(weights, kernel * power, axis=0, mode="constant") for power in powers], axis=-1)
    design = moments[..., np.arange(3)[:, None] + np.arange(3)[None]]
    # A ridge on slope and curvature: with fewer than three weighty frames the fit turns into a mean.
    ridge = np.diag([1e-9, 1e-5, 1e-5]) * np.maximum(moments[..., 0], 1e-9)[..., None, None]
    return np.linalg.solve(design + ridge, targets)[..., 0, :]


def _powers(kernel: np.ndarray, count: int = 3) -> np.ndarray:
    """Powers 0, 1, ... `(count, 2 R + 1)` of the neighbours' distance in time, as a share of the kernel's reach."""
    reach = len(kernel) // 2
    return (np.arange(-reach, reach + 1) / reach) ** np.arange(count)[:, None]


def _local_quadratic(values: np.ndarray, weights: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """`_fit_parabolas` to tracks `values` (F, N, D) with `weights` (F, N)."""
    weighted = weights[..., None] * values
    targets = [correlate1d(weighted, kernel * power, axis=0, mode="constant") for power in _powers(kernel)]
    return _fit_parabolas(weights, kernel, np.stack(targets, axis=-2))


def _impulse_response(kernel: np.ndarray) -> np.ndarray:
    impulse = np.zeros((4 * len(kernel) + 1, 1, 1))
    impulse[len(impulse) // 2] = 1
    return _local_quadratic(impulse, np.ones(impulse.shape[:2]), kernel)[:, 0, 0]


def _detail_gain(detail: np.ndarray, noise_variance: np.ndarray, fps: float, strength: float) -> np.ndarray:
    """
    How much of the detail between the narrow and the wide smoother to keep, (F, N, 1): a Wiener gain, one less the share
    that noise explains of the detail's local energy.
    """
    narrow, wide = _gaussian(NARROW_SECONDS, fps), _gaussian(WIDE_SECONDS * strength, fps)
    responses = [_impulse_response(kernel) for kernel in (narrow, wide)]
    length = max(len(response) for response in responses)
    difference = np.zeros(length)
    for response, sign in zip(responses, (1, -1)):
        start = (length - len(response)) // 2
        difference[start : start + len(response)] += sign * response
    expected = noise_variance * (difference**2).sum()
    window = _gaussian(WIDE_SECONDS, fps)
    energy = correlate1d((detail**2).sum(axis=-1), window / window.sum(), axis=0, mode="nearest")
    return np.clip(1 - 2 * expected / np.maximum(energy, 1e-12), 0, 1)[..., None]


def _third_difference_variance(difference: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """
    Noise variance summed over dimensions (N,), from third differences (F - 3, N, D): smooth motion hardly shows in them,
    and white noise does with 20 times its variance. The median over the clip keeps bursts of motion out.
    """
    magnitude = np.where(weights > 0, np.abs(difference).mean(axis=-1), np.nan)
    known = np.isfinite(magnitude).any(axis=0)
    deviation = np.zeros(difference.shape[1])
    if known.any():
        deviation[known] = np.nanmedian(magnitude[:, known], axis=0)
    # The mean absolute value of a normal variable is sqrt(2 / pi) of its standard deviation.
    return difference.shape[2] * (deviation / np.sqrt(2 / np.pi)) ** 2 / 20


def smooth(values: np.ndarray, confidence: np.ndarray, fps: float, strength: float = 1.0) -> np.ndarray:
    """
    Takes the jitter out of tracks without delay and with little loss of amplitude.

    Two zero-phase smoothers (local parabolas, see `WIDE_SECONDS` and `NARROW_SECONDS`) are blended per frame: the wide
    one, plus as much of the finer detail as exceeds the noise that the track itself shows.

    Args:
        values (`np.ndarray` of shape `(F, N, D)`), confidence (`np.ndarray` of shape `(F, N)`): the tracks; frames with
            confidence 0 should be filled (`fill_gaps`), and count a little.
        fps (`float`): frames in a second.
        strength (`float`): scales the wide smoother's width; 1 is the default.

    Returns:
        `(F, N, D)` float64.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 5:
        return values.copy()
    weights = np.maximum(np.asarray(confidence, dtype=np.float64), 0.02)
    # The level is taken out first so that coordinates of thousands of pixels keep their digits.
    level = values.mean(axis=0, keepdims=True)
    centred = values - level
    wide = _local_quadratic(centred, weights, _gaussian(WIDE_SECONDS * strength, fps))
    narrow = _local_quadratic(centred, weights, _gaussian(NARROW_SECONDS, fps))
    third = np.diff(centred, n=3, axis=0)
    noise = _third_difference_variance(third, np.asarray(confidence)[3:])
    detail = narrow - wide
    return level + wide + _detail_gain(detail, noise, fps, strength) * detail


def smooth_rotations(rotations: np.ndarray, confidence: np.ndarray, fps: float, strength: float = 1.0) -> np.ndarray:
    """
    `smooth` on the rotation group: rotations `(F, 3, 3)` with confidence `(F,)`.

    Around every frame the neighbours are taken into the tangent space at that frame (rotation vectors of
    `R_i^T R_j`), where the parabolas are fitted; the fitted value is taken back. No matrix or angle is ever averaged
    entrywise, so the result is a rotation, also across +-180 degrees.
    """
    rotations = np.asarray(rotations, dtype=np.float64)
    num_frames = len(rotations)
    if num_frames < 5:
        return rotations.copy()
    weights = np.maximum(np.asarray(confidence, dtype=np.float64), 0.02)
    kernels = [_gaussian(WIDE_SECONDS * strength, fps), _gaussian(NARROW_SECONDS, fps)]
    reach = max(len(kernel) for kernel in kernels) // 2
    neighbour = np.arange(num_frames)[:, None] + np.arange(-reach, reach + 1)[None]
    inside = (neighbour >= 0) & (neighbour < num_frames)
    neighbour = np.clip(neighbour, 0, num_frames - 1)
    relative = np.einsum("fji,fwjk->fwik", rotations, rotations[neighbour])
    tangent = Rotation.from_matrix(relative.reshape(-1, 3, 3)).as_rotvec().reshape(num_frames, -1, 3)
    fitted = []
    for kernel in kernels:
        half = len(kernel) // 2
        part = slice(reach - half, reach + half + 1)
        weight = kernel * np.where(inside[:, part], weights[neighbour[:, part]], 0)
        target = np.einsum("fw,aw,fwd->fad", weight, _powers(kernel), tangent[:, part])
        fitted.append(_fit_parabolas(weights[:, None], kernel, target[:, None])[:, 0])
    wide, narrow = fitted
    third = tangent[1:-2, reach + 2] - 3 * tangent[1:-2, reach + 1] - tangent[1:-2, reach - 1]
    noise = _third_difference_variance(third[:, None], np.asarray(confidence)[3:, None])
    detail = (narrow - wide)[:, None]
    step = wide + (_detail_gain(detail, noise, fps, strength) * detail)[:, 0]
    return rotations @ Rotation.from_rotvec(step).as_matrix()


def smooth_boxes(boxes: np.ndarray, confidence: np.ndarray, fps: float, seconds: float = WIDE_SECONDS) -> np.ndarray:
    """
    Steadies face boxes, to be done once, by what captures or reads them: centre and logarithm of the side follow local
    parabolas. Unlike in `smooth` no detail is given back, since a crop that trembles or breathes shows as motion of the
    face, and one that is a little off does not. Where a box jumps by more than its side, or its side doubles or halves (a
    cut to another scene), smoothing starts anew.

    Args:
        boxes (`np.ndarray` of shape `(F, 4)`): `x0, y0, x1, y1` in pixels.
        confidence (`np.ndarray` of shape `(F,)`): in [0, 1].
        fps (`float`): frames in a second.
        seconds (`float`): standard deviation of the window.

    Returns:
        `np.ndarray` of shape `(F, 4)`, float64: square boxes.
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    side = np.log(np.maximum((boxes[:, 2:] - boxes[:, :2]).mean(axis=1), 1e-3))
    step = np.linalg.norm(np.diff(centre, axis=0), axis=1) / np.exp(np.maximum(side[1:], side[:-1]))
    jumps = 1 + np.flatnonzero((step > 1) | (np.abs(np.diff(side)) > np.log(2)))
    track = np.column_stack([centre, side])[:, None]
    weights = np.maximum(np.asarray(confidence, dtype=np.float64), 0.02)[:, None]
    for run in np.split(np.arange(len(boxes)), jumps):
        if len(run) >= 5:
            level = track[run].mean(axis=0)
            track[run] = level + _local_quadratic(track[run] - level, weights[run], _gaussian(seconds, fps))
    centre, side = track[:, 0, :2], track[:, 0, 2]
    half = np.exp(side)[:, None] / 2
    return np.concatenate([centre - half, centre + half], axis=1)
