"""Which joints of a clip count as seen, without flicker: confidence steadied in time, and limbs that hang together."""

import numpy as np
from scipy.ndimage import gaussian_filter1d

from .skeleton import JOINT_INDEX, LEFT_HAND, RIGHT_HAND


# Confidence from which a joint counts as seen, and is drawn.
SEEN = 0.5
# A joint that is on stays on down to this (hysteresis).
STAYS_SEEN = 0.35
# Seconds over which confidence is smoothed, and the shortest time for which a joint is on, or off between two times on.
SMOOTH_SECONDS = 0.12
SHORTEST_SECONDS = 0.25

# From the trunk outwards: a joint is drawn with the one before it or not at all.
_CHAINS = [
    [JOINT_INDEX[f"{side}_{name}"] for name in names]
    for side in ("right", "left")
    for names in (("shoulder", "elbow", "wrist"), ("hip", "knee", "ankle", "toe"))
]


def _runs(mask: np.ndarray) -> np.ndarray:
    """Start and stop `(N, 2)` of the stretches of a `(F,)` bool that are True."""
    return np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]]))).reshape(-1, 2)


def without_isolated(seen: np.ndarray, fps: float, seconds: float = SHORTEST_SECONDS) -> np.ndarray:
    """
    `seen` `(F, N)` bool without stretches shorter than `seconds`. A clip that is itself shorter stays as it is.
    """
    shortest = seconds * fps
    if len(seen) < shortest:
        return seen.copy()
    lasting = seen.copy()
    for joint in np.flatnonzero(seen.any(axis=0) & ~seen.all(axis=0)):
        for start, stop in _runs(seen[:, joint]):
            if stop - start < shortest:
                lasting[start:stop, joint] = False
    return lasting


def steady_confidence(confidence: np.ndarray, fps: float) -> np.ndarray:
    """
    Confidence `(F, N)` whose crossings of `SEEN` are events, not noise: smoothed over `SMOOTH_SECONDS`, on from `SEEN` and off
    below `STAYS_SEEN`, stretches on or between two of them off lasting `SHORTEST_SECONDS` at least. Values are moved to
    the side of `SEEN` that this says; frames at 0, in which there is nobody, stay 0.
    """
    confidence = np.asarray(confidence, dtype=np.float64)
    if len(confidence) < 3:
        return confidence.copy()
    there = confidence > 0
    sigma = SMOOTH_SECONDS * fps / 2
    weight = gaussian_filter1d(there.astype(np.float64), sigma, axis=0, mode="nearest")
    smoothed = gaussian_filter1d(confidence, sigma, axis=0, mode="nearest") / np.maximum(weight, 1e-6)
    on = np.zeros(there.shape, dtype=bool)
    state = smoothed[0] >= (SEEN + STAYS_SEEN) / 2
    for frame in range(len(on)):
        state = there[frame] & ((smoothed[frame] >= SEEN) | (state & (smoothed[frame] >= STAYS_SEEN)))
        on[frame] = state
    # A joint goes off when it is last seen, however long its smoothed confidence lingers; short gaps are closed first.
    closed = ~without_isolated(~on, fps)
    for joint in range(on.shape[1]):
        stretches = _runs(on[:, joint])
        if len(stretches):
            closed[: stretches[0, 0], joint] = closed[stretches[-1, 1] :, joint] = False
    on = without_isolated((closed | on) & there, fps)
    steady = np.where(on, np.maximum(smoothed, SEEN), np.minimum(smoothed, SEEN - 0.05))
    return np.where(there, np.clip(steady, 0, 1), 0.0)


def believe_before(confidence: np.ndarray, middle: bool) -> np.ndarray:
    """
    Confidence `(F, 62)` in which a joint that a seen limb hangs on is believed as much as that limb, up to `SEEN`: a shoulder
    just outside the picture for its arm, a hip for its leg; with `middle` also elbows and knees between two seen joints, and
    ankles.
    """
    believed = np.array(confidence)
    for chain in _CHAINS:
        for before, joint in reversed(list(zip(chain, chain[1:]))):
            if middle or before == chain[0]:
                enough = np.minimum(believed[:, joint], SEEN)
                believed[:, before] = np.maximum(believed[:, before], enough)
    neck = JOINT_INDEX["neck"]
    shoulders = believed[:, [_CHAINS[0][0], _CHAINS[2][0]]].max(axis=1)
    believed[:, neck] = np.maximum(believed[:, neck], np.minimum(shoulders, SEEN))
    return believed


def connected(visible: np.ndarray) -> np.ndarray:
    """
    `visible` `(F, 62)` bool without what hangs on nothing: forearms without upper arms, shins without thighs, feet without
    shins, fingers without forearms.
    """
    visible = np.array(visible)
    for chain in _CHAINS:
        for before, joint in zip(chain, chain[1:]):
            visible[:, joint] &= visible[:, before]
    for side, hand in (("left", LEFT_HAND), ("right", RIGHT_HAND)):
        visible[:, hand] &= visible[:, [JOINT_INDEX[f"{side}_wrist"]]]
    return visible
