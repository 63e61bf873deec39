"""What each pixel sees of a triangle mesh: a z-buffer in plain PyTorch."""

import torch


_INDEX_BITS = 20
_DEPTH_STEPS = 1 << 22


def rasterize(
    points: torch.Tensor, triangles: torch.Tensor, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Finds the nearest triangle at the middle of every pixel.

    Each triangle offers itself to the pixels of its bounding box that it covers; of all offers for a pixel, the
    smallest pair of depth and triangle number wins, so that the result does not depend on the order.

    Args:
        points (`torch.Tensor` of shape `(V, 3)`):
            Projected vertices: x and y in pixels (0 is the left or upper edge of the picture), z the depth, positive,
            growing away from the viewer.
        triangles (`torch.Tensor` of shape `(T, 3)`):
            Indices of their corners, at most 2^20 triangles. Those that turn clockwise in the picture (y down) face
            the viewer; others are not drawn.
        height (`int`), width (`int`): of the picture.

    Returns:
        Triangle of each pixel `(height, width)` int64, -1 where there is none, and the barycentric weights `(height,
        width, 3)` float32 of its corners, in the picture's plane.
    """
    corners = points[triangles].float()
    a, b, c = corners.unbind(dim=1)
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    low = torch.ceil(corners[..., :2].amin(dim=1) - 0.5).clamp(min=0)
    limit = torch.tensor([width - 1.0, height - 1.0], device=points.device)
    high = torch.minimum(torch.floor(corners[..., :2].amax(dim=1) - 0.5), limit)
    size = (high - low + 1).clamp(min=0).long()
    shown = torch.nonzero((area < -1e-9) & (size.prod(dim=1) > 0)).flatten()
    a, b, c, area, low, size = (values[shown] for values in (a, b, c, area, low, size))

    # weights of the first two corners and depth are planes over the picture: value at the box's first pixel, slopes in
    # x and y
    slopes = (
        torch.stack([b[:, 1] - c[:, 1], c[:, 0] - b[:, 0], c[:, 1] - a[:, 1], a[:, 0] - c[:, 0]], dim=1)
        / area[:, None]
    )
    start = low + 0.5 - c[:, :2]
    first = torch.stack([(slopes[:, :2] * start).sum(dim=1), (slopes[:, 2:] * start).sum(dim=1)], dim=1)
    toward = torch.stack([a[:, 2] - c[:, 2], b[:, 2] - c[:, 2]], dim=1)
    nearest, furthest = points[:, 2].min(), points[:, 2].max()
    scale = (_DEPTH_STEPS - 1) / (furthest - nearest).clamp(min=1e-9)
    depth = torch.stack(
        [
            c[:, 2] - nearest + (first * toward).sum(dim=1),
            slopes[:, 0] * toward[:, 0] + slopes[:, 2] * toward[:, 1],
            slopes[:, 1] * toward[:, 0] + slopes[:, 3] * toward[:, 1],
        ],
        dim=1,
    )
    planes = torch.cat([first[:, :1], slopes[:, :2], first[:, 1:], slopes[:, 2:], depth * scale], dim=1)

    # one row for each pixel of each bounding box
    count = size.prod(dim=1)
    owner = torch.repeat_interleave(torch.arange(len(count), device=points.device), count)
    within = torch.arange(len(owner), device=points.device) - (count.cumsum(0) - count)[owner]
    box_width = size[:, 0][owner]
    y = torch.div(within, box_width, rounding_mode="floor")
    x = within - y * box_width
    pixel = (low[:, 1].long() * width + low[:, 0].long())[owner] + y * width + x
    x, y = x.float(), y.float()
    rows = planes.index_select(0, owner)
    first = torch.addcmul(torch.addcmul(rows[:, 0], rows[:, 1], x), rows[:, 2], y)
    second = torch.addcmul(torch.addcmul(rows[:, 3], rows[:, 4], x), rows[:, 5], y)
    # a hair's breadth more, so that rounding leaves no cracks between neighbours
    inside = torch.nonzero((first >= -1e-5) & (second >= -1e-5) & (first + second <= 1 + 1e-5)).flatten()
    rows, owner = rows[inside], owner[inside]
    depth = torch.addcmul(torch.addcmul(rows[:, 6], rows[:, 7], x[inside]), rows[:, 8], y[inside])

    none = torch.iinfo(torch.long).max
    offers = torch.full((height * width,), none, dtype=torch.long, device=points.device)
    steps = depth.clamp(0, _DEPTH_STEPS - 1).long()
    offers.scatter_reduce_(0, pixel[inside], (steps << _INDEX_BITS) | owner, reduce="amin")
    pixel = torch.nonzero(offers != none).flatten()
    owner = offers[pixel] & ((1 << _INDEX_BITS) - 1)
    seen = torch.full((height * width,), -1, dtype=torch.long, device=points.device)
    seen[pixel] = shown[owner]
    rows = planes[owner]
    x = (pixel % width).float() - low[owner, 0]
    y = torch.div(pixel, width, rounding_mode="floor").float() - low[owner, 1]
    first = torch.addcmul(torch.addcmul(rows[:, 0], rows[:, 1], x), rows[:, 2], y)
    second = torch.addcmul(torch.addcmul(rows[:, 3], rows[:, 4], x), rows[:, 5], y)
    barycentric = torch.zeros(height * width, 3, device=points.device)
    barycentric[pixel] = torch.stack([first, second, 1 - first - second], dim=1)
    return seen.view(height, width), barycentric.view(height, width, 3)
