"""How long a person's bones are: measured where they are seen, else from the other side, else from proportions.

A bone is named by the joint it ends in, as in `skeleton.BONE_GROUPS`; arrays of lengths are `(62,)` with 0 for the root.
Lengths are in the unit of the positions: metres in 3D, pixels in the image plane.
"""

import numpy as np
from scipy.ndimage import gaussian_filter1d, median_filter

from .skeleton import (
    AVERAGE_TORSO_LENGTH,
    BODY_PROPORTIONS,
    BONE_GROUPS,
    JOINT_INDEX,
    JOINT_NAMES,
    MIRROR,
    NUM_JOINTS,
    PARENTS,
    ROOT,
)


PARENT_INDICES = np.array([ROOT if parent < 0 else parent for parent in PARENTS])
PROPORTIONS = np.array([BODY_PROPORTIONS[name] for name in JOINT_NAMES])

# Bones whose sizes hang together. Stylised people have big heads and small hands, so a length that was not seen is
# filled in from its own region first.
REGIONS = {
    "head": np.array([*BONE_GROUPS["neck"], *BONE_GROUPS["face"]]),
    "left_hand": np.arange(20, 41),
    "right_hand": np.arange(41, 62),
    "body": np.array(
        [joint for joint in range(20) if joint not in (*BONE_GROUPS["neck"], *BONE_GROUPS["face"], ROOT)]
    ),
}
# The least and the greatest length, relative to the region's average proportion, that is believed.
SANE_RANGE = {"head": (0.4, 2.5), "left_hand": (0.4, 2.5), "right_hand": (0.4, 2.5), "body": (0.5, 2.0)}
# From this ratio on between the two sides of one person, one of them is taken to be a wrong depth.
SIDE_TOLERANCE = 1.25
# A change of size over a video by about this share or less is noise, and not followed.
STEADY_SIZE = 0.02
# The share of its length with which a bone lies in the picture that counts as stretched.
STRETCHED = 0.8
# Seconds over which the distance from the camera is smoothed.
STEADY_DISTANCE = 0.08

# How much a bone says about the size of the whole body: the trunk does not bend, limbs foreshorten.
_SIZE_WEIGHTS = np.zeros(NUM_JOINTS)
for _group, _weight in {"torso": 3, "shoulder": 2, "neck": 1, "arm": 1, "forearm": 1, "thigh": 1, "shin": 1}.items():
    _SIZE_WEIGHTS[list(BONE_GROUPS[_group])] = _weight
del _group, _weight


def bone_vectors(positions: np.ndarray) -> np.ndarray:
    """From parent to joint, for every joint of `positions` `(..., 62, D)`; zero for the root."""
    return positions - positions[..., PARENT_INDICES, :]


def seen_bones(seen: np.ndarray) -> np.ndarray:
    """Bones with both ends seen, `(..., 62)` bool; the root has no bone."""
    both = seen & seen[..., PARENT_INDICES]
    both[..., ROOT] = False
    return both


def measure_lengths(positions: np.ndarray, seen: np.ndarray, percentile: float = 50.0) -> np.ndarray:
    """
    Bone lengths over a clip, each from all frames in which the bone is seen stretched: lying in the picture to 80 % of its
    length, or if it seldom does, from the quarter of the frames in which it does most. How far a bone reaches to the camera is
    what captures know least.

    Args:
        positions (`(F, 62, D)`): joints.
        seen (`(F, 62)` bool): which of them were seen.
        percentile (`float`): which length over the frames counts: the median for 3D lengths, which err both ways; a high
            one in the image plane, where a bone that points at the camera looks short.

    Returns:
        `(62,)`: NaN for bones that were never seen whole.
    """
    vectors = bone_vectors(positions)
    lengths = np.linalg.norm(vectors, axis=-1)
    flat = np.linalg.norm(vectors[..., :2], axis=-1) / np.maximum(lengths, 1e-9)
    bones = seen_bones(seen)
    result = np.full(NUM_JOINTS, np.nan)
    result[ROOT] = 0.0
    for joint in np.flatnonzero(bones.any(axis=0)):
        length, share = lengths[bones[:, joint], joint], flat[bones[:, joint], joint]
        stretched = share >= min(STRETCHED, np.percentile(share, 75))
        result[joint] = np.percentile(length[stretched], percentile)
    return result


def length_sources(measured: np.ndarray) -> dict[str, str]:
    """
    Where `complete_lengths` has the length of every part from: by the names of `skeleton.BONE_GROUPS`, "measured",
    "mirrored" (one side was measured and counts for both) or "proportions" (of an average person).

    Args:
        measured (`(62,)`): from `measure_lengths`.
    """
    sources = {}
    for group, bones in BONE_GROUPS.items():
        known = np.isfinite(measured[list(bones)])
        other = np.isfinite(measured[[MIRROR[bone] for bone in bones]])
        # A finger or two may be hidden.
        share = known.mean()
        sources[group] = "measured" if share >= 0.8 else "mirrored" if (known | other).mean() >= 0.8 else "proportions"
    return sources


def describe_sources(sources: dict[str, str]) -> str:
    """`length_sources` in words: "measured: arm, torso; mirrored: forearm; from average proportions: shin, foot"."""
    names = {"measured": "measured", "mirrored": "mirrored", "proportions": "from average proportions"}
    words = {source: [part for part, own in sources.items() if own == source] for source in names}
    return "; ".join(f"{names[source]}: {', '.join(parts)}" for source, parts in words.items() if parts)


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """The value at which half of the weight is reached; between two values where it is reached exactly."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order]) / weights.sum()
    low, high = np.searchsorted(cumulative, [0.5 - 1e-9, 0.5 + 1e-9])
    return float((values[order[low]] + values[order[min(high, len(order) - 1)]]) / 2)


def steady_size(positions: np.ndarray, seen: np.ndarray, head_radius: np.ndarray | None, fps: float) -> np.ndarray:
    """
    A person of steady size at a steady distance. From one camera it is hard to tell how large, and so how far away, somebody
    is; but bones and head do not grow in a video. How much they seem to (the weighted median over the bones, and over a
    second) is taken back, and the distance smoothed, by moving every joint along its ray: the projection stays.

    Args:
        positions (`(F, 62, 3)`): joints in metres.
        seen (`(F, 62)` bool): which of them were seen.
        head_radius (`(F,)`, *optional*): in metres, NaN where not known.
        fps (`float`): frames in a second.

    Returns:
        `(F, 62, 3)`: new positions with the same projection.
    """
    weights = np.where(np.arange(NUM_JOINTS) == JOINT_INDEX["nose"], 0.0, _SIZE_WEIGHTS)
    used = np.flatnonzero(weights)
    lengths = np.linalg.norm(bone_vectors(positions)[:, used], axis=-1)
    lengths[~seen_bones(seen)[:, used]] = np.nan
    weights = weights[used]
    if head_radius is not None:
        lengths = np.concatenate([lengths, head_radius[:, None]], axis=1)
        weights = np.append(weights, 2.0)
    known = np.isfinite(lengths)
    # What is only seen now and then has no typical length to compare with.
    weights = known * weights * known.mean(axis=0) ** 2
    frames = np.flatnonzero(weights.any(axis=1))
    if len(frames) == 0:
        return positions
    typical = np.array([np.median(column[mask]) if mask.any() else 1.0 for column, mask in zip(lengths.T, known.T)])
    ratios = np.where(known, lengths / np.maximum(typical, 1e-9), np.inf)[frames]
    order = np.argsort(ratios, axis=1, kind="stable")
    cumulative = np.cumsum(np.take_along_axis(weights[frames], order, axis=1), axis=1)
    middle = np.argmax(cumulative >= 0.5 * cumulative[:, -1:], axis=1)
    ratio = np.take_along_axis(ratios, np.take_along_axis(order, middle[:, None], axis=1), axis=1)[:, 0]
    logarithm = np.interp(np.arange(len(positions)), frames, np.log(np.clip(ratio, 0.5, 2.0)))
    # The median first: where a capture changes its mind, it does so from one frame to the next.
    logarithm = median_filter(logarithm, 2 * int(round(0.5 * fps)) + 1, mode="nearest")
    logarithm = logarithm**3 / (logarithm**2 + STEADY_SIZE**2)
    distance = positions[:, ROOT, 2] / np.exp(logarithm)
    # Continued point-symmetrically at both ends, so that somebody who comes nearer is not slowed down there.
    margin = min(int(4 * STEADY_DISTANCE * fps) + 1, len(distance) - 1)
    padded = np.pad(distance, margin, mode="reflect", reflect_type="odd")
    distance = gaussian_filter1d(padded, STEADY_DISTANCE * fps)[margin : margin + len(distance)]
    return positions * (distance / positions[:, ROOT, 2])[:, None, None]


def body_scale(lengths: np.ndarray) -> float:
    """
    The person's torso length as all measured bones together suggest it: the weighted median of length over average
    proportion. NaN when no bone of the body, the head or a hand was measured.
    """
    shares = np.divide(lengths, PROPORTIONS, out=np.full(NUM_JOINTS, np.nan), where=PROPORTIONS > 0)
    for weights in (_SIZE_WEIGHTS, np.ones(NUM_JOINTS)):
        usable = np.isfinite(shares) & (weights > 0)
        if usable.any():
            return weighted_median(shares[usable], weights[usable])
    return float("nan")


def size_ratio(lengths: np.ndarray, other: np.ndarray, bones: tuple[int, ...] | None = None) -> float:
    """
    How many times larger the person with `lengths` is than the one with `other`: the weighted median over the bones that
    were measured of both (of `bones`, when given), else the ratio of their `body_scale`; NaN when one has none.
    """
    weights = _SIZE_WEIGHTS if bones is None else np.isin(np.arange(NUM_JOINTS), bones).astype(float)
    usable = np.isfinite(lengths) & np.isfinite(other) & (other > 0) & (lengths > 0) & (weights > 0)
    if usable.any():
        return weighted_median(lengths[usable] / other[usable], weights[usable])
    return body_scale(lengths) / body_scale(other)


def complete_lengths(measured: np.ndarray) -> np.ndarray:
    """
    A length for every bone of a person.

    Where the two sides disagree by more than `SIDE_TOLERANCE`, which a wrong depth causes, the one nearer to average
    proportions counts for both. A bone that was not measured takes the length of its mirror image, else the average
    proportion times the size of its region (head, hand, body), else of the whole body. In the end every length is
    clamped to `SANE_RANGE` around the average proportion for the region's size.

    Args:
        measured (`(62,)`): from `measure_lengths`, NaN where not seen.

    Returns:
        `(62,)`, finite. With nothing measured at all: an average adult's, in metres.
    """
    lengths = measured.copy()
    mirror = np.array(MIRROR)
    scale = body_scale(lengths)
    if not np.isfinite(scale):
        scale = AVERAGE_TORSO_LENGTH
    region_scale = np.full(NUM_JOINTS, scale)
    low, high = np.zeros(NUM_JOINTS), np.zeros(NUM_JOINTS)
    for name, joints in REGIONS.items():
        known = joints[np.isfinite(lengths[joints]) & (PROPORTIONS[joints] > 0)]
        if name != "body" and len(known):
            shares = lengths[known] / PROPORTIONS[known]
            region_scale[joints] = np.clip(weighted_median(shares, PROPORTIONS[known]), 0.4 * scale, 2.5 * scale)
        low[joints], high[joints] = SANE_RANGE[name]
    if not np.isfinite(lengths[REGIONS["left_hand"][1:]]).any():
        region_scale[REGIONS["left_hand"]] = region_scale[REGIONS["right_hand"][0]]
    elif not np.isfinite(lengths[REGIONS["right_hand"][1:]]).any():
        region_scale[REGIONS["right_hand"]] = region_scale[REGIONS["left_hand"][0]]

    average = PROPORTIONS * region_scale
    for joint in range(NUM_JOINTS):
        other = mirror[joint]
        if joint < other and average[joint] > 0 and np.isfinite(lengths[joint]) and np.isfinite(lengths[other]):
            pair = np.maximum(lengths[[joint, other]], 1e-9)
            if pair.max() > SIDE_TOLERANCE * pair.min():
                error = np.abs(np.log(pair / average[[joint, other]]))
                lengths[[joint, other]] = pair[np.argmin(error)]
    lengths = np.where(np.isfinite(lengths), lengths, lengths[mirror])
    lengths = np.where(np.isfinite(lengths), lengths, average)
    # A hand's wrist lies on the body's: whatever small distance a capture gives is kept.
    return np.where(average > 0, np.clip(lengths, low * average, high * average), np.minimum(lengths, 0.2 * scale))


def scale_offsets(offsets: np.ndarray, bone_scale: dict[str, float]) -> np.ndarray:
    """
    Bone vectors `(..., 62, D)` with the groups of `bone_scale` lengthened. The two bones from the neck to the hips
    consist of the spine ("torso") and the way from its end to each hip ("hip").
    """
    offsets = offsets.copy()
    for group, factor in bone_scale.items():
        if group not in ("torso", "hip"):
            offsets[..., list(BONE_GROUPS[group]), :] *= factor
    hips = [JOINT_INDEX["right_hip"], JOINT_INDEX["left_hip"]]
    spine = offsets[..., hips, :].mean(axis=-2, keepdims=True)
    across = offsets[..., hips, :] - spine
    offsets[..., hips, :] = spine * bone_scale.get("torso", 1.0) + across * bone_scale.get("hip", 1.0)
    return offsets
