"""What many people look like: shapes, hair, clothes, faces, light and drawing styles, painted by rules in PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from batch_body import BatchBody
from batch_random import Draws
from batch_texture import fabrics, fractal_noise, hsv_to_rgb, random_colors, sample_periodic


MATERIALS = (
    "skin",
    "hair",
    "top",
    "top_back",
    "pattern",
    "bottom",
    "shoes",
    "band",
    "lips",
    "iris",
    "white",
    "pupil",
    "mouth",
    "teeth",
    "tongue",
    "brow",
    "glasses",
    "lens",
    "shade",
)
"""What a pixel of a person can be of, by index; the first `TEXTURED` have textures, `shade` is the skin in the eye's cavity."""
TEXTURED = 8
TEXTURE_SIZE = 64
_MATERIAL = {name: index for index, name in enumerate(MATERIALS)}

TRAINED_STYLES = ("photo", "facets", "flat", "toon", "painted")
HELD_OUT_STYLES = ("sepia", "halftone", "inverted")
STYLES = TRAINED_STYLES + HELD_OUT_STYLES
"""How a picture is drawn, by index; training never sees the held-out ones, the evaluation measures them."""
_STYLE_WEIGHTS = (5.0, 1.0, 1.2, 1.4, 1.4)

_TONES = ((0.98, 0.87, 0.79), (0.89, 0.70, 0.56), (0.70, 0.48, 0.33), (0.44, 0.28, 0.19), (0.24, 0.15, 0.11))
_HAIR_TONES = ((0.07, 0.06, 0.06), (0.24, 0.15, 0.10), (0.46, 0.30, 0.16), (0.80, 0.63, 0.38), (0.92, 0.86, 0.72))


@dataclass
class Looks:
    """
    P people, each with a place, light and style to be drawn in.

    Attributes:
        shape `(P, S)`: of the body. hair `(P, V)`: how far it stands out, metres.
        colors `(P, M, 3)`: of `MATERIALS`. textures `(P, TEXTURED, size, size, 3)`: in place of the first colours.
        texture_scale `(P, TEXTURED)`: periods a metre.
        numbers (`dict` of `(P,)`): the rules' parameters: where clothes end, what is worn on the head, light and style.
        background `(P, 3, H, W)`: as large as it is drawn.
        light, fill `(P, 3)`: directions to the lights, unit vectors in the world. light_color, fill_color `(P, 3)`.
    """

    shape: torch.Tensor
    hair: torch.Tensor
    colors: torch.Tensor
    textures: torch.Tensor
    texture_scale: torch.Tensor
    numbers: dict[str, torch.Tensor]
    background: torch.Tensor
    light: torch.Tensor
    fill: torch.Tensor
    light_color: torch.Tensor
    fill_color: torch.Tensor

    def __len__(self) -> int:
        return len(self.shape)

    def take(self, index: torch.Tensor) -> Looks:
        """Some of the people, or one of them several times."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["numbers"] = {name: value[index] for name, value in self.numbers.items()}
        return Looks(**{name: value if name == "numbers" else value[index] for name, value in values.items()})


def random_looks(
    draws: Draws, body: BatchBody, background: torch.Tensor, styles: tuple[str, ...] | None = None
) -> Looks:
    """
    Random people.

    Args:
        draws (`Draws` of P): everything follows from them.
        background (`(P, 3, H, W)`): to stand before.
        styles: only these of `STYLES`; the `TRAINED_STYLES` by default.
    """
    device = draws.keys.device

    def between(name, low, high):
        return draws.uniform(name, low=low, high=high)

    def grey(name, low, high):
        return between(name, low, high)[:, None].expand(-1, 3)

    def tone(name, tones, spread):
        position = draws.uniform(name) * (len(tones) - 1)
        table = torch.tensor(tones, device=device)
        lower = position.long().clamp(max=len(tones) - 2)
        color = torch.lerp(table[lower], table[lower + 1], (position - lower)[:, None])
        return color + draws.uniform(f"{name} spread", 3, low=-spread, high=spread)

    samples = body.shape_samples
    first, second = (samples[draws.integers(f"parent {i}", len(samples))] for i in (0, 1))
    shape = torch.lerp(first, second, draws.uniform("likeness", 1, low=-0.15, high=1.15))

    fantastic = draws.chance("fantastic", 0.07)[:, None]
    skin = torch.where(fantastic, random_colors(draws, "fantastic skin"), tone("skin", _TONES, 0.035))
    dyed = draws.chance("dyed", 0.15)[:, None]
    hair_color = torch.where(dyed, random_colors(draws, "dye"), tone("hair", _HAIR_TONES, 0.04))
    hair_color = torch.where(draws.chance("old", 0.12)[:, None], grey("grey hair", 0.4, 0.9), hair_color)
    made_up = draws.chance("made up", 0.12)[:, None]
    redness = between("lips", 0.3, 1.1)[:, None] * (0.25 + 0.75 * skin.mean(dim=1, keepdim=True))
    flesh = skin * 0.66 + torch.tensor([0.27, 0.02, 0.06], device=device) * redness
    lips = torch.where(
        made_up,
        hsv_to_rgb(
            between("lipstick", -0.08, 0.04),
            between("lipstick strength", 0.5, 1),
            between("lipstick value", 0.4, 0.95),
        ),
        flesh,
    )
    iris = hsv_to_rgb(draws.uniform("iris"), between("iris saturation", 0.1, 0.8), between("iris value", 0.1, 0.65))
    colors = {
        "skin": skin,
        "hair": hair_color,
        "lips": lips,
        "iris": iris,
        "white": grey("white", 0.82, 1.0),
        "pupil": grey("pupil", 0.0, 0.06),
        "mouth": torch.tensor([0.25, 0.03, 0.05], device=device) * between("mouth", 0.5, 1.3)[:, None],
        "teeth": grey("teeth", 0.8, 0.98) * torch.tensor([1.0, 0.98, 0.93], device=device),
        "tongue": torch.tensor([0.8, 0.3, 0.33], device=device).expand(len(draws), 3),
        "brow": hair_color * between("brow", 0.4, 0.9)[:, None],
        "glasses": random_colors(draws, "glasses", greys=0.6) * 0.6,
        "lens": grey("lens", 0.03, 0.25),
        "shade": skin * between("shade", 0.45, 0.75)[:, None],
    }
    palette = random_colors(draws, "cloth", TEXTURED, 3)
    # a back of the same cloth as often as not
    same = draws.chance("same back", 0.5)[:, None, None]
    back = _MATERIAL["top_back"]
    palette[:, back] = torch.where(same, 0.85 * palette[:, _MATERIAL["top"]], palette[:, back])
    textures = fabrics(draws, "cloth", TEXTURED, TEXTURE_SIZE, palette)
    pores = (
        fractal_noise(draws, "pores", 1, TEXTURE_SIZE, TEXTURE_SIZE, 0.8)
        * between("pores", 0, 0.05)[:, None, None, None]
    )
    textures[:, _MATERIAL["skin"]] = skin[..., None, None] * (1 + pores)
    strands = fractal_noise(draws, "strands", 1, TEXTURE_SIZE, TEXTURE_SIZE, 0.6).mean(dim=2, keepdim=True)
    strands = strands / strands.std(dim=3, keepdim=True).clamp(min=1e-6)
    shine = between("shine", 0.03, 0.3)[:, None, None, None]
    textures[:, _MATERIAL["hair"]] = hair_color[..., None, None] * (1 + shine * strands)
    table = torch.stack(
        [colors.get(name, palette[:, min(i, TEXTURED - 1), 0]) for i, name in enumerate(MATERIALS)], dim=1
    )

    hair_style = draws.choice("hair style", (1.0, 2.0, 2.0, 2.0))
    styles = styles or TRAINED_STYLES
    weights = [dict(zip(TRAINED_STYLES, _STYLE_WEIGHTS)).get(style, 1.0) for style in styles]
    style = torch.tensor([STYLES.index(name) for name in styles], device=device)[draws.choice("style", weights)]
    numbers = {
        "sleeve": torch.tensor([0.2, 0.45, 0.8, 1.1], device=device)[draws.integers("sleeve", 4)] + between("cuff", -0.05, 0.05),
        "leg": torch.tensor([0.35, 0.7, 1.1, 1.1], device=device)[draws.integers("leg", 4)],
        "pattern": draws.choice("pattern", (3, 1, 1, 1, 1, 1)),
        "stripe": between("stripe", 0.03, 0.13),
        "neckline": between("neckline", 0.40, 0.52),
        "waist": between("waist", -0.10, 0.06),
        "glasses": draws.choice("glasses", (6, 1, 0.6, 0.5)),
        "frame": between("frame", 0.0018, 0.0045),
        "lens_height": between("lens height", 0.9, 1.5),
        "beard": draws.choice("beard", (4.5, 0.6, 0.5)),
        "band": draws.chance("band", 0.12).long(),
        "hair": hair_style,
        "fringe": between("fringe", 0.755, 0.795),
        "hair_length": between("hair length", 0.52, 0.66),
        "brow": between("brow width", 0.0025, 0.0065),
        "brow_height": between("brow height", -0.004, 0.006),
        "lip_height": between("lip height", 0.011, 0.016),
        "iris": between("iris size", 0.0066, 0.0088),
        # the middle of the eyeballs; higher, and the person looks up
        "iris_x": torch.full_like(skin[:, 0], 0.0307),
        "iris_z": between("iris height", 0.7112, 0.7128),
        "blush": between("blush", -0.1, 0.35).clamp(min=0),
        "jacket": torch.where(draws.chance("jacket", 0.2), between("jacket edge", 0.03, 0.1), torch.ones_like(skin[:, 0])),
        "ambient": between("ambient", 0.35, 0.75),
        "key": between("key", 0.25, 0.75),
        "dark": torch.zeros_like(skin[:, 0]),
        "gloss": draws.uniform("gloss") ** 3 * 0.5,
        "style": style,
        "levels": 2 + draws.integers("levels", 3),
        "outline": torch.where(draws.chance("outlined", 0.5), between("outline", 0.4, 1.0), torch.zeros_like(skin[:, 0])),
        "grain": draws.uniform("grain") ** 2 * 0.03,
        "blur": torch.where(draws.chance("blurred", 0.2), draws.uniform("blur"), torch.zeros_like(skin[:, 0])),
        "contrast": between("contrast", 0.75, 1.25),
        "saturation": between("saturation", 0.6, 1.3),
        "exposure": between("exposure", -0.12, 0.12),
    }  # fmt: skip
    numbers["seed"] = draws.keys
    hair = hair_mask(body.paint, hair_style[:, None], numbers["fringe"][:, None], numbers["hair_length"][:, None])
    hair = hair.float() * between("thickness", 0.006, 0.03)[:, None] * (hair_style > 0)[:, None]
    hair[:, body.faces[body.part > 1].flatten()] = 0

    direction = draws.normal("light", 3)
    # from before the person, more often from above
    direction[:, 1] = -direction[:, 1].abs() - 0.4
    direction[:, 2] = direction[:, 2] * 0.7 + 0.4
    fill = draws.normal("fill", 3)
    warmth = draws.normal("warmth", 1) * torch.tensor([0.08, 0.0, -0.1], device=device)
    tinted = draws.chance("tinted", 0.5)[:, None]
    fill_color = (
        torch.where(tinted, random_colors(draws, "fill"), torch.full_like(skin, 0.5))
        * between("fill", 0, 0.35)[:, None]
    )
    return Looks(
        shape=shape,
        hair=hair,
        colors=table.clamp(0, 1),
        textures=textures.clamp(0, 1).permute(0, 1, 3, 4, 2).contiguous(),
        texture_scale=draws.uniform("texture scale", TEXTURED, low=2.0, high=6.0),
        numbers=numbers,
        background=background,
        light=torch.nn.functional.normalize(direction, dim=1),
        fill=torch.nn.functional.normalize(fill, dim=1),
        light_color=1 + warmth,
        fill_color=fill_color,
    )  # fmt: skip


def hair_mask(
    position: torch.Tensor, style: torch.Tensor, fringe: torch.Tensor, hair_length: torch.Tensor
) -> torch.Tensor:
    """Where hair grows on the skull; `style` 0: bald, 1: short, 2: covering the ears, 3: long. Other arguments: heights."""
    x, y, z = position.unbind(dim=-1)
    short = style == 1
    crown = (z > fringe + 0.25 * (y + 0.10).clamp(max=0)) & (y > -0.15)
    sides = (y > torch.where(short, -0.015, -0.05)) & (z > torch.where(short, 0.725, 0.66))
    back = (y > 0.02) & (z > torch.where(short, 0.64, hair_length))
    return (crown | sides | back) & (style > 0)


def paint(
    looks: Looks,
    person: torch.Tensor,
    position: torch.Tensor,
    part: torch.Tensor,
    group: torch.Tensor,
    parts: list[str],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Colours of points of the surface.

    Args:
        person (`(M,)`): whose surface.
        position (`(M, 3)`): in the paint coordinates of the rest pose.
        part (`(M,)`): index into `parts`, the body's. group (`(M,)`): 0 trunk and head, 1 arm, 2 leg.

    Returns:
        RGB `(M, 3)` in [0, 1], material `(M,)` and region `(M,)`, an index into `avatar_appearance.REGIONS`.
    """
    x, y, z = position.unbind(dim=1)
    side = x.abs()
    number = {name: value[person] for name, value in looks.numbers.items()}
    head, eyes = part == parts.index("head"), (part >= 2) & (part <= 5)
    trunk, skin = group == 0, part == 0
    material = torch.zeros_like(part)

    def lay(name, where):
        material.masked_fill_(where, _MATERIAL[name])

    # clothes
    shirt = trunk & skin & (z < number["neckline"] + 0.55 * (side - 0.05).clamp(min=0))
    trousers = shirt & (z <= number["waist"])
    shirt = (shirt & ~trousers) | ((group == 1) & skin & ((side - 0.16) / 0.29 < number["sleeve"]))
    trousers = trousers | ((group == 2) & skin & ((0.05 - z) / 0.9 < number["leg"]))
    lay("top", shirt)
    kind = number["pattern"]
    disc = x**2 + (z - 0.33) ** 2
    pattern = (kind == 1) & ((z / number["stripe"]) % 1 < 0.45)
    pattern |= (kind == 2) & ((x / number["stripe"]) % 1 < 0.4)
    pattern |= ((kind == 3) & (disc < 0.085**2)) | ((kind == 4) & (z < 0.24))
    pattern |= (kind == 5) & (side + (z - 0.33).abs() < 0.09)
    lay("pattern", shirt & pattern)
    lay("top_back", shirt & (((y > 0.015) & trunk) | (side > number["jacket"])))
    lay("pattern", shirt & (y > 0.015) & (disc < 0.075**2))
    lay("bottom", trousers)
    lay("shoes", part >= parts.index("foot.L"))

    # head
    face = head & (y < -0.045)
    beard = face & (z < 0.658) & (z > 0.585) & (number["beard"] == 1)
    beard |= face & (z < 0.670) & (z > 0.6535) & (side < 0.03) & (number["beard"] == 2)
    lay("hair", beard)
    lay("lips", face & ((x / 0.027) ** 2 + ((z - 0.6435) / number["lip_height"]) ** 2 < 1))
    arch = 0.7385 + number["brow_height"] - 6.0 * (side - 0.032) ** 2
    lay("brow", face & (side > 0.012) & (side < 0.053) & ((z - arch).abs() < number["brow"]))
    lay("hair", head & hair_mask(position, number["hair"], number["fringe"], number["hair_length"]))
    lay("hair", (number["hair"] == 3) & skin & trunk & (y > 0.005) & (z > 0.44) & (side < 0.13))
    lay("band", (number["band"] == 1) & head & ((z - 0.782 - 0.12 * y).abs() < 0.011))
    # 1: round glasses, 2: angular ones, 3: dark round ones
    worn, height = face & (number["glasses"] > 0), (z - 0.714) * number["lens_height"]
    angular = torch.maximum((side - 0.032).abs(), 1.2 * height.abs()) + 0.002
    rim = torch.where(number["glasses"] == 2, angular, torch.hypot(side - 0.032, height)) - 0.026
    lay("lens", worn & (number["glasses"] == 3) & (rim < 0))
    lay("glasses", worn & ((rim.abs() < number["frame"]) | ((side < 0.008) & ((z - 0.718).abs() < 0.003))))
    lay("white", eyes)
    eye_distance = torch.hypot(side - number["iris_x"], z - number["iris_z"])
    lay("iris", eyes & (eye_distance < number["iris"]) & (y < -0.105))
    lay("pupil", eyes & (eye_distance < 0.46 * number["iris"]) & (y < -0.105))
    lay("lens", eyes & (number["glasses"] == 3))
    lay("shade", (part == 6) | (part == 7))
    lay("mouth", part == parts.index("mouth_cavity"))
    lay("teeth", (part == parts.index("mouth_cavity")) & (z > 0.648) & (y < -0.1))
    lay("tongue", part == parts.index("tongue"))

    color = looks.colors[person, material]
    cloth = torch.nonzero(material < TEXTURED).flatten()
    owner = person[cloth] * TEXTURED + material[cloth]
    scale = looks.texture_scale.flatten()[owner]
    # slanted planes, so that no side of the body looks along the texture
    u, v = (x + 0.7 * y)[cloth] * scale, -(z + 0.3 * y)[cloth] * scale
    textured = sample_periodic(looks.textures.flatten(0, 1), owner, u, v)
    color = color.index_copy(0, cloth, textured)
    cheek = (
        torch.exp(-((side - 0.045) ** 2 + (z - 0.675) ** 2) / 0.018**2) * number["blush"] * (face & (material == 0))
    )
    color = torch.lerp(color, color.new_tensor([0.85, 0.3, 0.3]).expand_as(color), cheek[:, None])

    region = torch.where((part >= 1) & (part <= 9), 2, 1)
    near_mouth = (x / 0.036) ** 2 + ((z - 0.640) / 0.027) ** 2 < 1
    near_eyes = ((side - 0.0315) / 0.026) ** 2 + ((z - 0.722) / 0.024) ** 2 < 1
    lively = (head & (y < -0.07) & (near_mouth | near_eyes)) | ((part >= 2) & (part <= 9))
    return color, material, torch.where(lively, 3, region)
