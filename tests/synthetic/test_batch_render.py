"""The avatars drawn with PyTorch against those drawn with NumPy and Warp."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch


pytest.importorskip("anny", reason="the extra `synthetic` is not installed")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "synthetic"))

from avatar_appearance import AvatarAppearance  # noqa: E402
from avatar_body import AvatarBody  # noqa: E402
from avatar_clip import Avatar  # noqa: E402
from avatar_motion import random_motion  # noqa: E402
from avatar_view import SUPERSAMPLING, Camera, crop_boxes  # noqa: E402
from batch_appearance import HELD_OUT_STYLES, MATERIALS, STYLES, TEXTURED, TRAINED_STYLES, Looks, random_looks  # noqa: E402
from batch_random import Draws, clip_keys  # noqa: E402
from batch_render import BatchCamera, render  # noqa: E402
from batch_texture import backgrounds, fractal_noise  # noqa: E402


def as_looks(body: AvatarBody, appearance: AvatarAppearance, height: int, width: int) -> Looks:
    """The looks of the NumPy renderer, said in the words of the other one."""
    colors, choices = dict(appearance.colors), appearance.choices
    colors |= {"white": [0.96] * 3, "pupil": [0.03] * 3, "mouth": [0.25, 0.03, 0.05], "teeth": [0.93] * 3}
    colors |= {
        "tongue": [0.8, 0.3, 0.33],
        "brow": colors["hair"] * 0.7,
        "shade": colors["skin"] * 0.6,
        "lens": [0] * 3,
    }
    table = torch.stack([torch.tensor(np.asarray(colors[name]), dtype=torch.float32) for name in MATERIALS])
    names = ("sleeve", "leg", "pattern", "stripe", "glasses", "beard", "band", "hair", "neckline")
    numbers = {name: choices[name] for name in names}
    numbers |= {"waist": -0.02, "frame": 0.0032, "lens_height": 1.15, "fringe": 0.775, "hair_length": 0.59}
    numbers |= {
        "brow": 0.0045,
        "brow_height": 0,
        "lip_height": 0.0135,
        "iris": 0.0078,
        "iris_x": 0.0315,
        "iris_z": 0.7175,
        "blush": 0,
        "jacket": 1,
    }
    numbers |= {
        "ambient": 0.62,
        "key": 0.42,
        "dark": 0.4,
        "gloss": 0,
        "levels": 2,
        "outline": 0,
        "grain": 0,
        "blur": 0,
    }
    numbers |= {"contrast": 1, "saturation": 1, "exposure": 0}
    numbers = {name: torch.tensor([float(value)]) for name, value in numbers.items()}
    numbers["style"] = torch.tensor([STYLES.index("facets")])
    numbers["levels"] = numbers["levels"].long()
    numbers["seed"] = torch.zeros(1, dtype=torch.int64)
    low, high, split = appearance.background
    rows = ((np.arange(height) + 0.5) / height)[:, None]
    wall = np.where(rows < split, low + (high - low) * rows * 0.6, high * 0.8)
    wall = torch.from_numpy(wall.T.astype(np.float32))[None, :, :, None].expand(1, 3, height, width)
    light = torch.tensor([[-0.45, -0.75, 0.5]])
    return Looks(
        shape=torch.tensor(appearance.shape, dtype=torch.float32)[None],
        hair=torch.from_numpy(appearance.hair)[None],
        colors=table[None],
        textures=table[None, :TEXTURED, None, None].expand(1, TEXTURED, 4, 4, 3),
        texture_scale=torch.ones(1, TEXTURED),
        numbers=numbers,
        background=wall,
        light=light / light.norm(),
        fill=light,
        light_color=torch.ones(1, 3),
        fill_color=torch.zeros(1, 3),
    )


@pytest.mark.parametrize("seed, scale", [(3, "portrait"), (11, "half_body"), (12, "full_body")])
def test_pictures_equal_those_of_the_numpy_renderer(bodies, seed, scale):
    body, batch_body = bodies
    random = np.random.default_rng(seed)
    avatar = Avatar(body, AvatarAppearance.random(random, body))
    motion = random_motion(random, body, 3, scale)
    camera = Camera.random(random, scale).framed_for(avatar)
    posed = avatar.pose(motion)
    boxes = crop_boxes(posed.motion(camera).face.boxes)
    expected, expected_regions = posed.render(camera)
    expected_crops, _ = posed.render(camera, boxes, (64, 64))

    looks = as_looks(body, avatar.appearance, camera.height * SUPERSAMPLING, camera.width * SUPERSAMPLING)
    vertices, bones, normals = batch_body.shaped(looks.shape, looks.hair)
    clip = torch.zeros(3, dtype=torch.long)
    tensors = (torch.from_numpy(np.float32(a)) for a in (motion.rotations, motion.translation, motion.actions))
    vertices, normals, world, heads = batch_body.posed(vertices, bones, normals, clip, *tensors)
    np.testing.assert_allclose(vertices.numpy(), posed.vertices, atol=2e-5)
    np.testing.assert_allclose(heads.numpy(), posed.bones, atol=1e-5)
    values = (camera.focal_length, camera.distance, camera.x, camera.z, camera.yaw)
    batch_camera = BatchCamera(camera.height, camera.width, *(torch.tensor([float(value)]) for value in values))
    points = batch_camera.project(batch_camera.to_camera(vertices, clip), clip)

    frames, regions = render(batch_body, looks, vertices, normals, points, clip, camera.height, camera.width)
    scale = torch.tensor(64 / (boxes[:, 2:] - boxes[:, :2]), dtype=torch.float32)
    left_top = torch.tensor(boxes[:, None, :2], dtype=torch.float32)
    cropped = torch.cat([(points[..., :2] - left_top) * scale[:, None], points[..., 2:]], dim=-1)
    looks = as_looks(body, avatar.appearance, 64 * SUPERSAMPLING, 64 * SUPERSAMPLING)
    crops, _ = render(batch_body, looks, vertices, normals, cropped, clip, 64, 64)
    for drawn, truth in ((frames, expected), (crops, expected_crops)):
        difference = (drawn.permute(0, 2, 3, 1) * 255 - torch.from_numpy(truth)).abs()
        # rounding moves a few pixels at the edges of what is painted or seen; all others are equal
        assert (difference.amax(dim=-1) > 2).float().mean() < 0.001
        assert 10 * torch.log10(255**2 / difference.square().mean()) > 50
    assert (regions != torch.from_numpy(expected_regions)).float().mean() < 0.001


def random_people(body, keys, height=32, width=32, styles=None):
    draws = Draws(keys)
    looks = random_looks(draws, body, backgrounds(draws, height * SUPERSAMPLING, width * SUPERSAMPLING), styles)
    vertices, bones, normals = body.shaped(looks.shape, looks.hair)
    clip, number = torch.arange(len(keys)), len(keys)
    still = torch.eye(3).expand(number, len(body.names["bones"]), 3, 3)
    vertices, normals, _, _ = body.posed(
        vertices, bones, normals, clip, still, torch.zeros(number, 3), torch.zeros(number, 52)
    )
    camera = BatchCamera.random(draws, "portrait", height, width).framed_for(bones, body)
    points = camera.project(camera.to_camera(vertices, clip), clip)
    return render(body, looks, vertices, normals, points, clip, height, width)[0]


def test_people_do_not_depend_on_who_else_is_in_the_batch(bodies):
    keys = clip_keys(0, torch.arange(6))
    together = random_people(bodies[1], keys)
    for index in (0, 5):
        alone = random_people(bodies[1], keys[index : index + 1])[0]
        torch.testing.assert_close(together[index], alone, atol=1e-3, rtol=0)
    assert torch.equal(together, random_people(bodies[1], keys))
    assert (together[0] - together[1]).abs().mean() > 0.05


def test_every_style_is_drawn_and_the_held_out_ones_are_not_trained(bodies):
    keys = clip_keys(1, torch.arange(40))
    styles = random_looks(Draws(keys), bodies[1], torch.zeros(40, 3, 2, 2)).numbers["style"]
    assert set(styles.tolist()) == {STYLES.index(name) for name in TRAINED_STYLES}
    one = clip_keys(2, torch.arange(2))
    pictures = [random_people(bodies[1], one, styles=(style,)) for style in STYLES]
    for index, picture in enumerate(pictures):
        assert all((picture - other).abs().mean() > 0.003 for other in pictures[:index])
    assert len(HELD_OUT_STYLES) == 3


def test_noise_falls_with_frequency_as_asked_for():
    noise = fractal_noise(Draws(clip_keys(3, torch.arange(24))), "test", 1, 64, 64, slope=1.0)[:, 0]
    power = torch.fft.rfft2(noise).abs().square().mean(dim=0)
    frequency = torch.hypot(torch.fft.fftfreq(64, 1 / 64)[:, None], torch.fft.rfftfreq(64, 1 / 64))
    rings = [power[(frequency >= low) & (frequency < 1.5 * low)].mean() for low in (2, 6, 18)]
    slopes = [torch.log(first / second) / (2 * np.log(3)) for first, second in zip(rings, rings[1:])]
    assert all(abs(slope - 1) < 0.15 for slope in slopes)
    assert abs(noise.mean()) < 1e-4 and abs(noise.std() - 1) < 0.01
