"""Random textures and backgrounds with the statistics of photographs: 1/f noise, gradients, shapes, fabrics."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from batch_random import Draws


FABRICS = ("plain", "cloudy", "stripes", "plaid", "dots", "patches", "gradient", "knit")
_FABRIC_WEIGHTS = (3.0, 1.5, 2.0, 1.5, 1.2, 1.2, 1.0, 1.0)


def hsv_to_rgb(hue: torch.Tensor, saturation: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Colours `(..., 3)` in [0, 1]; hue in turns."""
    sector = (hue[..., None] + torch.tensor([1.0, 2 / 3, 1 / 3], device=hue.device)) % 1
    pure = ((sector * 6 - 3).abs() - 1).clamp(0, 1)
    return value[..., None] * (1 + saturation[..., None] * (pure - 1))


def random_colors(draws: Draws, name: str, *shape: int, greys: float = 0.3) -> torch.Tensor:
    """Colours `(N, *shape, 3)`: any hue, pale to strong, dark to bright; a share of them `greys`."""
    saturation = draws.uniform(f"{name} saturation", *shape) ** 0.7
    saturation = torch.where(draws.chance(f"{name} grey", greys, *shape), 0.06 * saturation, saturation)
    value = 0.06 + 0.94 * draws.uniform(f"{name} value", *shape) ** 0.8
    return hsv_to_rgb(draws.uniform(f"{name} hue", *shape), saturation, value)


def fractal_noise(
    draws: Draws, name: str, layers: int, height: int, width: int, slope: torch.Tensor | float = 1.0
) -> torch.Tensor:
    """
    Noise whose amplitude falls as 1 / frequency^slope, as in photographs (Field 1987: slope 1), periodic, with zero mean
    and unit variance.

    Returns:
        `(N, layers, height, width)`; `slope` is a number or `(N, layers)`.
    """
    white = draws.normal(name, layers, height, width)
    y = torch.fft.fftfreq(height, 1 / max(height, width), device=white.device)[:, None] * (max(height, width) / height)
    x = torch.fft.rfftfreq(width, 1 / max(height, width), device=white.device) * (max(height, width) / width)
    frequency = (x**2 + y**2).sqrt()
    frequency[0, 0] = math.inf
    if torch.is_tensor(slope):
        slope = slope[..., None, None]
    noise = torch.fft.irfft2(torch.fft.rfft2(white) * frequency**-slope, s=(height, width))
    return noise / noise.std(dim=(2, 3), keepdim=True).clamp(min=1e-6)


def fabrics(draws: Draws, name: str, layers: int, size: int, palette: torch.Tensor) -> torch.Tensor:
    """
    Periodic textures of cloth.

    Args:
        palette (`(N, layers, 3, 3)`): three colours of each; a plain fabric has the first.

    Returns:
        `(N, layers, 3, size, size)`, RGB in [0, 1].
    """
    device = palette.device
    kind = draws.choice(f"{name} kind", _FABRIC_WEIGHTS, layers)[..., None, None]
    noise = fractal_noise(draws, f"{name} noise", 2 * layers, size, size, slope=1.2).unflatten(1, (2, layers))
    position = (torch.arange(size, device=device) + 0.5) / size
    v, u = torch.meshgrid(position, position, indexing="ij")

    def wave(label, highest):
        """Stripes in a random direction, in [-1, 1]; whole periods, so that the texture repeats without a seam."""
        along = draws.integers(f"{name} {label} u", highest + 1, layers)[..., None, None]
        across = draws.integers(f"{name} {label} v", highest + 1, layers)[..., None, None]
        across = torch.where((along == 0) & (across == 0), torch.ones_like(across), across)
        return torch.sin(2 * math.pi * (along * u + across * v + draws.uniform(f"{name} {label} phase", layers, 1, 1)))

    count = (2 + draws.integers(f"{name} count", 6, layers))[..., None, None]
    level = draws.uniform(f"{name} level", layers, 1, 1, low=-0.6, high=0.6)
    grid = torch.sin(2 * math.pi * count * u), torch.sin(2 * math.pi * count * v)
    fine = torch.sin(2 * math.pi * (size // 4) * u + 4 * grid[1]) * torch.sin(2 * math.pi * (size // 4) * v)
    # how much of the second and of the third colour
    second = [
        torch.zeros_like(noise[:, 0]),
        0.5 + 0.5 * noise[:, 0],
        (wave("stripe", 6) - level) * 4,
        0.5 * (grid[0] > level).float() + 0.5 * (grid[1] > level).float(),
        (grid[0] * grid[1] - 0.3 - 0.4 * level) * 6,
        (noise[:, 0] - 0.3) * 6,
        (0.5 - 0.5 * torch.cos(2 * math.pi * v)).expand_as(noise[:, 0]),
        0.5 + 0.5 * fine,
    ]
    third = [
        torch.zeros_like(noise[:, 0]),
        (noise[:, 1] - 0.8) * 0.5,
        (wave("second stripe", 6) - 0.85) * 6,
        ((grid[0] + grid[1]).abs() > 1.8).float(),
        torch.zeros_like(noise[:, 0]),
        (noise[:, 1] - 0.3) * 6,
        (noise[:, 1] - 1.5) * 0.5,
        torch.zeros_like(noise[:, 0]),
    ]
    second, third = (torch.stack(values, dim=2).clamp(0, 1) for values in (second, third))
    pick = kind[:, :, None].expand(-1, -1, 1, size, size)
    second, third = second.gather(2, pick), third.gather(2, pick)
    colors = palette[..., None, None]
    texture = torch.lerp(torch.lerp(colors[:, :, 0], colors[:, :, 1], second), colors[:, :, 2], third)
    worn = draws.uniform(f"{name} worn", layers, 1, 1, 1, low=0.0, high=0.12)
    return (texture * (1 + worn * noise[:, 1, :, None])).clamp(0, 1)


def backgrounds(draws: Draws, height: int, width: int, shapes: int = 10) -> torch.Tensor:
    """
    Pictures to stand before: a wall and a floor, or a sky; clouds of 1/f noise; discs, boxes and stripes, sharp or out of
    focus; light that falls off.

    Returns:
        `(N, 3, height, width)`, RGB in [0, 1].
    """
    device, longer = draws.keys.device, max(height, width)
    y = ((torch.arange(height, device=device) + 0.5) / longer)[:, None].expand(height, width)
    x = ((torch.arange(width, device=device) + 0.5) / longer).expand(height, width)
    colors = random_colors(draws, "background", 3, greys=0.4)[..., None, None]
    angle = draws.normal("background slope", 1, 1) * 0.5
    along = (y - 0.5) * angle.cos() + (x - 0.5) * angle.sin() + 0.5
    picture = torch.lerp(
        colors[:, 0], colors[:, 1], (along * draws.uniform("background steep", 1, 1)).clamp(0, 1)[:, None]
    )
    floor = (along > draws.uniform("floor", 1, 1, low=0.55, high=1.6)).float()[:, None]
    picture = torch.lerp(picture, colors[:, 2].expand_as(picture), floor)

    # as often as not the picture holds many things, else hardly any
    crowded = draws.uniform("crowded", 1, 1)
    hues = random_colors(draws, "shape", shapes)
    center = draws.uniform("shape center", shapes, 2, low=-0.1, high=1.1)
    extent = 0.04 + 0.4 * draws.uniform("shape extent", shapes, 2) ** 2
    turn = draws.uniform("shape turn", shapes, high=math.pi)
    power = torch.tensor([2.0, 8.0], device=device)[draws.integers("shape kind", 2, shapes)]
    sharpness = 1.5 + 30 * draws.uniform("shape sharpness", shapes) ** 3
    shown = draws.uniform("shape shown", shapes)
    for index in range(shapes):

        def of(values, index=index):
            return values[:, index, None, None]

        cos, sin = of(turn.cos()), of(turn.sin())
        dx, dy = x - of(center[..., 0]), y - of(center[..., 1])
        u, v = (cos * dx + sin * dy) / of(extent[..., 0]), (cos * dy - sin * dx) / of(extent[..., 1])
        distance = (u.abs() ** of(power) + v.abs() ** of(power) + 1e-12) ** (1 / of(power))
        cover = ((1 - distance) * of(sharpness)).clamp(0, 1) * (of(shown) < crowded) * 0.9
        picture = torch.lerp(picture, hues[:, index, :, None, None].expand_as(picture), cover[:, None])

    stripes = 2 * math.pi * (draws.uniform("wallpaper", 1, 1, low=3, high=30) * (x * angle.cos() - y * angle.sin()))
    stripes = 0.12 * draws.chance("wallpaper shown", 0.15, 1, 1) * torch.sin(stripes).sign()
    light = fractal_noise(
        draws, "background light", 1, height, width, draws.uniform("roughness", 1, low=0.8, high=1.8)
    )
    tint = fractal_noise(draws, "background tint", 3, height, width, 1.3)
    strength = 0.25 * draws.uniform("background noise", 1, 1, 1) ** 1.5
    picture = picture * (1 + strength * light + stripes[:, None]) + 0.4 * strength * tint
    corner = draws.uniform("vignette", 1, 1, 1, high=0.9) ** 2
    return (picture * (1 - corner * ((x - 0.5) ** 2 + (y - 0.5) ** 2))).clamp(0, 1)


def sample_periodic(textures: torch.Tensor, layer: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """
    Bilinear look-up in textures that repeat.

    Args:
        textures (`(L, size, size, 3)`): all layers.
        layer, u, v (`(M,)`): which of them, and where, in periods.

    Returns:
        `(M, 3)`.
    """
    size = textures.shape[1]
    flat = textures.reshape(-1, 3)
    x, y = u * size - 0.5, v * size - 0.5
    left, top = x.floor(), y.floor()
    right_share, low_share = (x - left)[:, None], (y - top)[:, None]
    columns = [(left + step).long() % size for step in (0, 1)]
    rows = [layer * size + (top + step).long() % size for step in (0, 1)]
    upper, lower = (
        torch.lerp(flat[row * size + columns[0]], flat[row * size + columns[1]], right_share) for row in rows
    )
    return torch.lerp(upper, lower, low_share)


def shrink(pictures: torch.Tensor, factor: int) -> torch.Tensor:
    """Pictures `(N, C, H, W)` with squares of `factor` pixels averaged."""
    return F.avg_pool2d(pictures, factor)
