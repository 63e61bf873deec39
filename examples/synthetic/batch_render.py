"""Draws posed avatars with PyTorch: projection, z-buffer, paint, light, and the style of the picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from avatar_view import DRIFT, FOCAL_LENGTHS, MEAN_HEAD_HEIGHT, SUPERSAMPLING, VIEWS, YAW_DEGREES
from batch_appearance import MATERIALS, STYLES, Looks, paint
from batch_body import BatchBody
from batch_random import Draws
from batch_texture import shrink

from diffusers_dreamactor.rasterizer import rasterize_frames


NEAR = 0.05
"""Metres: what is nearer to the camera is not drawn."""
PIXELS_AT_ONCE = {"cpu": 2**21, "cuda": 2**24}
"""Supersampled pixels that are drawn in one go: bounds the memory, to about 3 GB on a GPU."""
_LUMA = (0.299, 0.587, 0.114)


@dataclass
class BatchCamera:
    """
    `avatar_view.Camera` for P clips of one size.

    Attributes:
        height, width (`int`); focal_length, distance, x, z, yaw `(P,)`: as there.
    """

    height: int
    width: int
    focal_length: torch.Tensor
    distance: torch.Tensor
    x: torch.Tensor
    z: torch.Tensor
    yaw: torch.Tensor

    @property
    def rotation(self) -> torch.Tensor:
        """World to camera `(P, 3, 3)`."""
        c, s, zero = self.yaw.cos(), self.yaw.sin(), torch.zeros_like(self.yaw)
        rows = [c, -s, zero, zero, zero, zero - 1, s, c, zero]
        return torch.stack(rows, dim=1).view(-1, 3, 3)

    def to_camera(self, points: torch.Tensor, clip: torch.Tensor) -> torch.Tensor:
        """World points `(F, N, 3)` of frames of the clips `(F,)` in camera axes, metres."""
        offset = torch.stack([-self.x, self.z, self.distance], dim=1)
        return points @ self.rotation[clip].transpose(1, 2) + offset[clip][:, None]

    def project(self, points: torch.Tensor, clip: torch.Tensor) -> torch.Tensor:
        """Camera points `(F, N, 3)` -> pixels and depth `(F, N, 3)`."""
        middle = points.new_tensor([self.width / 2, self.height / 2])
        depth = points[..., 2:]
        pixels = points[..., :2] * self.focal_length[clip, None, None] / depth.clamp(min=NEAR) + middle
        return torch.cat([pixels, depth], dim=-1)

    def framed_for(self, bones: torch.Tensor, body: BatchBody) -> BatchCamera:
        """The same pictures of people with other bones `(P, J, 3)`: height and distance follow the person's."""
        ratio = bones[:, body.bone_index["head"], 2] / MEAN_HEAD_HEIGHT
        z, distance = self.z * ratio, self.distance * ratio
        return BatchCamera(self.height, self.width, self.focal_length, distance, self.x, z, self.yaw)

    @classmethod
    def random(cls, draws: Draws, scale: str, height: int, width: int) -> BatchCamera:
        """Cameras that show people at one of `avatar_motion.SCALES`."""
        focal_length = (height**2 + width**2) ** 0.5 * draws.uniform(
            "focal length", low=FOCAL_LENGTHS[0], high=FOCAL_LENGTHS[1]
        )
        near, middle = VIEWS[scale]
        per_metre = height * draws.uniform("per metre", low=near[0], high=near[1])
        drift = DRIFT * width / per_metre
        degrees = draws.uniform("camera yaw", low=-YAW_DEGREES, high=YAW_DEGREES)
        x = drift * draws.uniform("drift", low=-1, high=1)
        z = draws.uniform("middle", low=middle[0], high=middle[1])
        return cls(height, width, focal_length, focal_length / per_metre, x, z, torch.deg2rad(degrees))


def render(
    body: BatchBody,
    looks: Looks,
    vertices: torch.Tensor,
    normals: torch.Tensor,
    points: torch.Tensor,
    clip: torch.Tensor,
    height: int,
    width: int,
    first_frame: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Draw F frames of P people.

    Args:
        looks (`Looks` of P): `background` is `SUPERSAMPLING` times as large as the picture.
        vertices, normals (`(F, V, 3)`): in the world.
        points (`(F, V, 3)`): the vertices in pixels of the picture, and their depth.
        clip (`(F,)`): whom each frame shows, in ascending order.
        height, width: of the pictures.
        first_frame (`int`): number of each person's first frame; a frame's grain follows from its number.

    Returns:
        frames `(F, 3, height, width)` in [0, 1] and regions `(F, height, width)` uint8, indices into
        `avatar_appearance.REGIONS`.
    """
    step = max(1, PIXELS_AT_ONCE[points.device.type] // (height * width * SUPERSAMPLING**2))
    number = first_frame + torch.arange(len(clip), device=clip.device) - torch.searchsorted(clip, clip)
    frames, regions = [], []
    for start in range(0, len(points), step):
        part = slice(start, start + step)
        picture, region = _draw(
            body,
            looks,
            vertices[part],
            normals[part],
            points[part],
            clip[part],
            height * SUPERSAMPLING,
            width * SUPERSAMPLING,
        )
        frames.append(_finish(shrink(picture, SUPERSAMPLING), looks, clip[part], number[part]))
        regions.append(F.max_pool2d(region[:, None].float(), SUPERSAMPLING)[:, 0].byte())
    return torch.cat(frames), torch.cat(regions)


def _draw(body, looks, vertices, normals, points, clip, height, width):
    """Supersampled pictures `(F, 3, height, width)` and regions `(F, height, width)`."""
    scaled = torch.cat([points[..., :2] * SUPERSAMPLING, points[..., 2:]], dim=-1)
    seen, weights = rasterize_frames(scaled, body.faces, height, width, near=NEAR)
    picture = looks.background[clip].permute(0, 2, 3, 1).reshape(-1, 3)
    hit = torch.nonzero(seen.flatten() >= 0).flatten()
    frame = torch.div(hit, height * width, rounding_mode="floor")
    triangle, weights = seen.flatten()[hit], weights.view(-1, 3)[hit]
    corners, person = body.faces[triangle], clip[frame]
    a, b, c = (body.paint.index_select(0, corners[:, i]) * weights[:, i, None] for i in range(3))
    position = a + b + c
    color, material, region = paint(
        looks, person, position, body.part[triangle], body.group[corners[:, 0]], body.names["parts"]
    )

    # light
    corner_index = frame[:, None] * vertices.shape[1] + corners
    a, b, c = (vertices.reshape(-1, 3).index_select(0, corner_index[:, i]) for i in range(3))
    facet = F.normalize(torch.linalg.cross(b - a, c - a), dim=1)
    a, b, c = (normals.reshape(-1, 3).index_select(0, corner_index[:, i]) * weights[:, i, None] for i in range(3))
    smooth = F.normalize(a + b + c, dim=1)
    number = {name: value[person] for name, value in looks.numbers.items()}
    style = number["style"]
    normal = torch.where((style == STYLES.index("facets"))[:, None], facet, smooth)
    lit = (normal * looks.light[person]).sum(dim=1)
    lit = torch.maximum(lit, -number["dark"])
    levels = number["levels"].float()
    stepped = ((lit.clamp(0, 0.999) * levels).floor() + 0.5) / levels
    drawn = (style == STYLES.index("toon")) | (style == STYLES.index("halftone"))
    lit = torch.where(drawn, stepped, lit)
    flat = style == STYLES.index("flat")
    lit = torch.where(flat, torch.full_like(lit, 0.6), lit)
    filled = (normal * looks.fill[person]).sum(dim=1).clamp(min=0) * ~flat
    light = number["ambient"][:, None] + (number["key"] * lit)[:, None] * looks.light_color[person]
    color = color * (light + filled[:, None] * looks.fill_color[person])
    # eyes, lips and hair are wet or smooth: the key light glints, seen by an eye in front of the person
    half = F.normalize(looks.light[person] + light.new_tensor([0.0, -1.0, 0.0]), dim=1)
    glint = (
        (normal * half).sum(dim=1).clamp(min=0) ** 40
        * number["gloss"]
        * ((style == 0) | (style == STYLES.index("painted")))
    )
    glint = glint * torch.where(
        (material >= MATERIALS.index("lips")) & (material <= MATERIALS.index("pupil")), 2.0, 0.6
    )
    picture[hit] = color + glint[:, None]

    # outlines: where a picture element is of something else than its neighbour
    thing = torch.zeros(len(picture), dtype=torch.long, device=picture.device)
    thing[hit] = 1 + material + len(MATERIALS) * body.group[corners[:, 0]]
    thing = thing.view(-1, height, width)
    edge = torch.zeros_like(thing, dtype=torch.bool)
    edge[:, :, 1:] |= thing[:, :, 1:] != thing[:, :, :-1]
    edge[:, 1:] |= thing[:, 1:] != thing[:, :-1]
    own_style, outline = looks.numbers["style"][clip], looks.numbers["outline"][clip]
    outlined = own_style == STYLES.index("toon")
    outlined |= (own_style == STYLES.index("flat")) | (own_style == STYLES.index("halftone"))
    strength = (outline * outlined)[:, None, None] * edge
    picture = picture.view(-1, height, width, 3) * (1 - strength[..., None])
    regions = torch.zeros(len(seen.flatten()), dtype=torch.uint8, device=picture.device)
    regions[hit] = region.byte()
    return picture.permute(0, 3, 1, 2), regions.view(seen.shape)


def _finish(picture: torch.Tensor, looks: Looks, clip: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
    """What is done to whole pictures `(F, 3, H, W)`: strokes, dots, tints, grain, grading."""
    number = {name: value[clip] for name, value in looks.numbers.items()}
    style = number["style"]

    def where(name, changed, picture):
        return torch.where((style == STYLES.index(name))[:, None, None, None], changed, picture)

    height, width = picture.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=picture.device), torch.arange(width, device=picture.device), indexing="ij"
    )
    luma = (picture * picture.new_tensor(_LUMA)[:, None, None]).sum(dim=1, keepdim=True)
    if (style == STYLES.index("painted")).any():
        picture = where("painted", _strokes(picture, Draws(looks.numbers["seed"]), clip), picture)
    if (style >= STYLES.index("sepia")).any():
        picture = where("sepia", luma * picture.new_tensor([1.05, 0.86, 0.62])[:, None, None], picture)
        dots = 0.5 + 0.25 * (torch.sin(1.6 * (x + y)) + torch.sin(1.6 * (x - y)))
        picture = where("halftone", (picture * 3).round() / 3 * (0.75 + 0.35 * (dots < luma * 1.2)), picture)
        picture = where("inverted", 1 - picture, picture)
    if (number["blur"] > 0).any():
        kernel = picture.new_tensor([0.25, 0.5, 0.25])
        kernel = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
        soft = F.conv2d(F.pad(picture, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
        picture = torch.lerp(picture, soft, number["blur"][:, None, None, None])
    plain = style == STYLES.index("facets")
    contrast, saturation, exposure = (
        torch.where(plain, torch.full_like(number[name], neutral), number[name])[:, None, None, None]
        for name, neutral in (("contrast", 1.0), ("saturation", 1.0), ("exposure", 0.0))
    )
    picture = torch.lerp(
        luma, picture, torch.where((style < STYLES.index("sepia"))[:, None, None, None], saturation, 1.0)
    )
    picture = (picture - 0.5) * contrast + 0.5 + exposure
    grain = number["grain"] * ~plain
    if (grain > 0).any():
        # fresh in every frame, as a camera's
        noise = Draws(number["seed"] + 7919 * (frame + 1)).uniform("grain", 1, height, width, low=-1.7, high=1.7)
        picture = picture + grain[:, None, None, None] * noise
    return picture.clamp(0, 1)


def _strokes(picture: torch.Tensor, draws: Draws, clip: torch.Tensor, layers: int = 3) -> torch.Tensor:
    """Brush strokes: from coarse to fine, patches of canvas take the colour of a place nearby and lean to one side."""
    height, width = picture.shape[-2:]
    base = max(height, width) // 32
    painted = F.interpolate(F.avg_pool2d(picture, 2), size=(height, width), mode="bilinear", align_corners=False)
    y, x = torch.meshgrid(
        torch.arange(height, device=picture.device), torch.arange(width, device=picture.device), indexing="ij"
    )
    for layer in range(layers):
        cell = max(2, 2 * base // 2**layer + 1)
        lean = draws.uniform(f"lean {layer}", 1, 1, low=-1.0, high=1.0)
        u, v = x + lean * y, (y - 0.5 * lean * x) / 2.2
        rows, columns = height * 2 // cell + 2, width * 4 // cell + 2
        row = (v / cell).floor().long() % rows
        # strokes of a row are laid like bricks
        offset = draws.uniform(f"offset {layer}", rows, high=3.0)
        shift = offset.gather(1, row.flatten(1)).view_as(row)
        column = (u / (2.2 * cell) + shift).floor().long() % columns
        jitter = draws.uniform(f"jitter {layer}", rows * columns, 3, low=-0.9, high=0.9)
        chosen = (row * columns + column).flatten(1)
        jitter = jitter.gather(1, chosen[..., None].expand(-1, -1, 3)).view(-1, height, width, 3)[clip]
        grid_x = (x + cell * jitter[..., 0] + 0.5) / width * 2 - 1
        grid_y = (y + 0.6 * cell * jitter[..., 1] + 0.5) / height * 2 - 1
        source = F.avg_pool2d(F.pad(picture, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        grid = torch.stack([grid_x, grid_y], dim=-1)
        strokes = F.grid_sample(source, grid, mode="nearest", padding_mode="border", align_corners=False)
        strokes = strokes * (1 + 0.10 * jitter[..., 2][:, None])
        # fine strokes only where there is detail
        detail = (picture - painted).abs().amax(dim=1, keepdim=True)
        painted = strokes if layer == 0 else torch.lerp(painted, strokes, (detail * 6).clamp(0.15, 0.85))
    return painted
