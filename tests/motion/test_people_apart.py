import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from diffusers_dreamactor.motion.capture.people_apart import Figure, Owners
from diffusers_dreamactor.motion.skeleton import JOINT_INDEX, NUM_JOINTS


HEIGHT, WIDTH = 120, 160
# A person who stands with hanging arms, in trunks from the neck.
STANDING = {
    "neck": (0, 0),
    "nose": (0, -0.35),
    "right_shoulder": (-0.3, 0),
    "left_shoulder": (0.3, 0),
    "right_hip": (-0.2, 1),
    "left_hip": (0.2, 1),
    "right_knee": (-0.2, 1.7),
    "left_knee": (0.2, 1.7),
}


def standing(x: float, scale: float = 40.0) -> Figure:
    keypoints, seen = np.zeros((NUM_JOINTS, 2)), np.zeros(NUM_JOINTS, dtype=bool)
    for name, place in STANDING.items():
        keypoints[JOINT_INDEX[name]] = np.array([x, 30.0]) + scale * np.array(place)
        seen[JOINT_INDEX[name]] = True
    return Figure(keypoints, seen, HEIGHT, WIDTH)


def paint(figures: dict[int, Figure], colours: dict[int, tuple]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """People in their colours, the first in front; and the pixels of each."""
    picture = np.full((HEIGHT, WIDTH, 3), 90, dtype=np.uint8)
    owner = np.full((HEIGHT, WIDTH), -1)
    for number in reversed(list(figures)):
        owner[figures[number].away < 0.05] = number
    for number in figures:
        picture[owner == number] = colours[number]
    return picture, {number: owner == number for number in figures}


@pytest.mark.parametrize("own", [0, 1])
def test_who_was_seen_alone_is_known_by_its_colours_where_another_stands_in_front(own):
    colours = {0: (200, 60, 50), 1: (40, 90, 200)}
    owners = Owners()
    apart = {0: standing(40), 1: standing(120)}
    picture, pixels = paint(apart, colours)
    owners.learn(picture, {number: mask.astype(np.float32) for number, mask in pixels.items()})

    together = {0: standing(72), 1: standing(88)}
    picture, pixels = paint(together, colours)
    # where everybody is is only roughly known
    rough = {0: standing(78), 1: standing(82)}
    odds = owners.odds(picture, rough, own)
    inner = {number: binary_erosion(mask, iterations=2) for number, mask in pixels.items()}
    assert (odds[inner[own]] > 0).mean() > 0.97
    assert (odds[inner[1 - own]] > 0).mean() < 0.03


def test_places_tell_people_apart_who_wear_the_same():
    colours = {0: (60, 60, 60), 1: (60, 60, 60)}
    owners = Owners()
    figures = {0: standing(66), 1: standing(96)}
    picture, pixels = paint(figures, colours)
    owners.learn(picture, {number: mask.astype(np.float32) for number, mask in pixels.items()})
    odds = owners.odds(picture, figures, 0)
    assert (odds[:, :60][pixels[0][:, :60]] > 0).all()
    assert (odds[:, 105:][pixels[1][:, 105:]] < 0).all()


def test_a_figure_of_which_nothing_is_known_is_nowhere():
    figure = Figure(np.zeros((NUM_JOINTS, 2)), np.zeros(NUM_JOINTS, dtype=bool), HEIGHT, WIDTH)
    assert np.isinf(figure.away).all()
    odds = Owners().odds(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8), {0: figure, 1: standing(80)}, 0)
    assert np.isfinite(odds).all() and odds[60, 80] < 0
