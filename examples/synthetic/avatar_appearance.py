"""What an avatar looks like: shape, skin, hair, face paint and clothes, painted by rules over the rest pose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from avatar_body import AvatarBody


REGIONS = ("background", "body", "head", "eyes_and_mouth")
"""What the value of a region map means, by index."""

_SKIN = ((246, 214, 190), (232, 190, 158), (205, 155, 118), (165, 113, 78), (120, 78, 52), (86, 56, 40))
_HAIR = ((28, 22, 20), (62, 40, 26), (110, 70, 36), (176, 130, 66), (226, 196, 122), (150, 60, 28), (150, 150, 155))
_IRIS = ((60, 110, 170), (80, 130, 70), (90, 60, 35), (40, 30, 25))
_BRIGHT = (
    (214, 48, 49),
    (9, 132, 227),
    (0, 148, 100),
    (253, 203, 60),
    (108, 72, 200),
    (240, 130, 40),
    (235, 235, 235),
    (45, 52, 60),
    (0, 170, 190),
    (225, 100, 150),
    (120, 90, 60),
    (150, 190, 60),
)


@dataclass
class AvatarAppearance:
    """
    One person's looks. Colours are RGB in [0, 1].

    `hair` is the thickness of the hair in metres by vertex, to be grown along the normals.
    """

    shape: np.ndarray
    hair: np.ndarray
    colors: dict[str, np.ndarray]
    choices: dict[str, float]
    background: tuple[np.ndarray, np.ndarray, float]

    @classmethod
    def random(cls, random: np.random.Generator, body: AvatarBody) -> AvatarAppearance:
        """A random person, drawn from `random`."""

        def color(palette, spread=0.05):
            value = np.array(palette[random.integers(len(palette))], dtype=np.float32) / 255
            return np.clip(value + random.uniform(-spread, spread, 3), 0, 1).astype(np.float32)

        people = body.shape_samples[random.integers(len(body.shape_samples), size=2)]
        mix = random.random()
        shape = mix * people[0] + (1 - mix) * people[1]
        skin = color(_SKIN, 0.03)
        top = color(_BRIGHT)
        # the back of the clothes is another colour: what a single frontal picture does not show
        back = color(_BRIGHT) if random.random() < 0.6 else top * 0.75
        colors = {
            "skin": skin,
            "hair": color(_HAIR, 0.03),
            "iris": color(_IRIS, 0.02),
            "lips": np.clip(skin * 0.55 + np.array([0.38, 0.02, 0.06]) * random.uniform(0.6, 1.2), 0, 1),
            "top": top,
            "top_back": back,
            "pattern": color(_BRIGHT),
            "bottom": color(_BRIGHT),
            "shoes": color(_BRIGHT),
            "band": color(_BRIGHT),
            "glasses": np.array([0.08, 0.08, 0.1]),
        }
        choices = {
            "sleeve": random.choice([0.25, 0.6, 1.1]),
            "leg": random.choice([0.5, 1.1, 1.1]),
            "pattern": random.integers(0, 5),
            "stripe": random.uniform(0.05, 0.11),
            "glasses": random.random() < 0.12,
            "beard": random.random() < 0.15,
            "band": random.random() < 0.15,
            "hair": random.choice([0, 1, 1, 2, 2, 3, 3]),
            "neckline": random.uniform(0.44, 0.5),
        }
        scalp = hair_mask(body.paint, choices["hair"])
        thickness = scalp * random.uniform(0.008, 0.022) if choices["hair"] else scalp * 0.0
        thickness[body.faces[body.part > 1].reshape(-1)] = 0.0
        low, high = color(_BRIGHT, 0.1), color(_BRIGHT, 0.1)
        gray = random.uniform(0.3, 0.9)
        mix = random.uniform(0.3, 0.8)
        background = (low * (1 - mix) + gray * mix, high * (1 - mix) + gray * mix, random.uniform(0.55, 1.1))
        return cls(shape, thickness.astype(np.float32), colors, choices, background)

    def paint(self, position: np.ndarray, part: np.ndarray, bone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Colours of points of the surface.

        Args:
            position (`np.ndarray` of shape `(N, 3)`): in the paint coordinates of the rest pose.
            part (`np.ndarray` of shape `(N,)`): index into the body's `part_names`.
            bone (`np.ndarray` of shape `(N,)`): piece of the body: 0 trunk and head, 1 arm, 2 leg.

        Returns:
            RGB `(N, 3)` in [0, 1] and region `(N,)` uint8, an index into `REGIONS`.
        """
        x, y, z = position.T
        side, colors, choices = np.abs(x), self.colors, self.choices
        color = np.empty((len(position), 3), dtype=np.float32)
        color[:] = colors["skin"]
        region = np.where((part >= 1) & (part <= 9), 2, 1).astype(np.uint8)

        # clothes
        trunk = (bone == 0) & (part == 0) & (z < choices["neckline"] + 0.55 * np.maximum(side - 0.05, 0))
        arm = (bone == 1) & (part == 0) & ((side - 0.16) / 0.29 < choices["sleeve"])
        leg = (bone == 2) & (part == 0) & ((0.05 - z) / 0.9 < choices["leg"])
        shirt = (trunk & (z > -0.02)) | arm
        trousers = (trunk & (z <= -0.02)) | leg
        behind = y > 0.015
        color[shirt] = colors["top"]
        pattern = np.zeros(len(position), dtype=bool)
        if choices["pattern"] == 1:
            pattern = (z / choices["stripe"]) % 1 < 0.45
        elif choices["pattern"] == 2:
            pattern = (x / choices["stripe"]) % 1 < 0.4
        elif choices["pattern"] == 3:
            pattern = (x**2 + (z - 0.33) ** 2) < 0.085**2
        elif choices["pattern"] == 4:
            pattern = z < 0.24
        color[shirt & pattern] = colors["pattern"]
        color[shirt & behind & (bone == 0)] = colors["top_back"]
        color[shirt & behind & ((x**2 + (z - 0.33) ** 2) < 0.075**2)] = colors["pattern"]
        color[trousers] = colors["bottom"]
        color[(part == 12) | (part == 13)] = colors["shoes"]

        # head
        face = (part == 1) & (y < -0.045)
        if choices["beard"]:
            color[face & (z < 0.658) & (z > 0.585)] = colors["hair"]
        lips = face & ((x / 0.027) ** 2 + ((z - 0.6435) / 0.0135) ** 2 < 1)
        color[lips] = colors["lips"]
        arch = 0.7385 - 6.0 * (side - 0.032) ** 2
        brow = face & (side > 0.012) & (side < 0.053) & (np.abs(z - arch) < 0.0045)
        color[brow] = colors["hair"] * 0.7
        color[(part == 1) & (hair_mask(position, choices["hair"]) > 0)] = colors["hair"]
        if choices["hair"] == 3:
            color[(part == 0) & (bone == 0) & (y > 0.005) & (z > 0.44) & (side < 0.13)] = colors["hair"]
        if choices["band"]:
            color[(part == 1) & (np.abs(z - 0.782 - 0.12 * y) < 0.011)] = colors["band"]
        eye_distance = np.hypot(side - 0.0315, z - 0.7175)
        if choices["glasses"]:
            color[face & (np.abs(np.hypot(side - 0.032, (z - 0.714) * 1.15) - 0.026) < 0.0032)] = colors["glasses"]
            color[face & (side < 0.008) & (np.abs(z - 0.718) < 0.003)] = colors["glasses"]
        eyeball = (part >= 2) & (part <= 5)
        color[eyeball] = 0.96
        color[eyeball & (eye_distance < 0.0078) & (y < -0.105)] = colors["iris"]
        color[eyeball & (eye_distance < 0.0036) & (y < -0.105)] = 0.03
        cavity = (part == 6) | (part == 7)
        color[cavity] = colors["skin"] * 0.6
        mouth = part == 8
        color[mouth] = (0.25, 0.03, 0.05)
        color[mouth & (z > 0.648) & (y < -0.1)] = 0.93
        color[part == 9] = (0.8, 0.3, 0.33)
        near_mouth = (x / 0.036) ** 2 + ((z - 0.640) / 0.027) ** 2 < 1
        near_eyes = ((side - 0.0315) / 0.026) ** 2 + ((z - 0.722) / 0.024) ** 2 < 1
        region[((part == 1) & (y < -0.07) & (near_mouth | near_eyes)) | ((part >= 2) & (part <= 9))] = 3
        return color, region


def hair_mask(position: np.ndarray, style: int) -> np.ndarray:
    """1 where hair grows on the skull, 0 elsewhere; `style` 0: bald, 1: short, 2: covering the ears, 3: long."""
    if style == 0:
        return np.zeros(len(position), dtype=np.float32)
    x, y, z = position.T
    crown = (z > 0.775 + 0.25 * np.minimum(y + 0.10, 0)) & (y > -0.15)
    sides = (y > (-0.015 if style == 1 else -0.05)) & (z > (0.725 if style == 1 else 0.66))
    back = (y > 0.02) & (z > (0.64 if style == 1 else 0.59))
    return (crown | sides | back).astype(np.float32)
