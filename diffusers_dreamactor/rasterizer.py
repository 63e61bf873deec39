"""What each pixel sees of a triangle mesh: a z-buffer in plain PyTorch."""

import torch


_INDEX_BITS = 20
_DEPTH_STEPS = 1 << 22


def rasterize(
    points: torch.Tensor, triangles: torch.Tensor, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Finds the nearest triangle at the middle of every pixel.

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
    seen, barycentric = rasterize_frames(points[None], triangles, height, width)
    return seen[0], barycentric[0]


def rasterize_frames(
    points: torch.Tensor, triangles: torch.Tensor, height: int, width: int, near: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    `rasterize` for many frames of one mesh at once, on the device of `points`; each frame is what it would be on its own.

    Each triangle offers itself to the pixels of its bounding box that it covers; of all offers for a pixel, the
    smallest pair of depth and triangle number wins, so that the result does not depend on the order.

    Args:
        points (`torch.Tensor` of shape `(F, V, 3)`): of each frame, as for `rasterize`.
        triangles (`torch.Tensor` of shape `(T, 3)`): of all frames.
        height (`int`), width (`int`): of the pictures.
        near (`float`): triangles with a corner of no more depth are not drawn.

    Returns:
        Triangles `(F, height, width)` int64 and barycentric weights `(F, height, width, 3)` float32.
    """
    num_frames, device = len(points), points.device
    a, b, c = (points.index_select(1, triangles[:, corner]).float().flatten(0, 1) for corner in range(3))
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    least, most = torch.minimum(torch.minimum(a, b), c), torch.maximum(torch.maximum(a, b), c)
    low = torch.ceil(least[:, :2] - 0.5).clamp(min=0)
    limit = torch.tensor([width - 1.0, height - 1.0], device=device)
    size = (torch.minimum(torch.floor(most[:, :2] - 0.5), limit) - low + 1).clamp(min=0)
    drawn = torch.nonzero((area < -1e-9) & (size[:, 0] * size[:, 1] > 0) & (least[:, 2] > near)).flatten()
    a, b, c, area, low, size = (values.index_select(0, drawn) for values in (a, b, c, area, low, size))
    size = size.long()
    frame = torch.div(drawn, len(triangles), rounding_mode="floor")
    shown = drawn - frame * len(triangles)

    # weights of the first two corners and depth are planes over the picture: value at the box's first pixel, slopes in
    # x and y
    slopes = (
        torch.stack([b[:, 1] - c[:, 1], c[:, 0] - b[:, 0], c[:, 1] - a[:, 1], a[:, 0] - c[:, 0]], dim=1)
        / area[:, None]
    )
    start = low + 0.5 - c[:, :2]
    first = torch.stack([(slopes[:, :2] * start).sum(dim=1), (slopes[:, 2:] * start).sum(dim=1)], dim=1)
    toward = torch.stack([a[:, 2] - c[:, 2], b[:, 2] - c[:, 2]], dim=1)
    nearest, furthest = points[..., 2].float().amin(dim=1), points[..., 2].float().amax(dim=1)
    scale = ((_DEPTH_STEPS - 1) / (furthest - nearest).clamp(min=1e-9))[frame]
    depth = torch.stack(
        [
            c[:, 2] - nearest[frame] + (first * toward).sum(dim=1),
            slopes[:, 0] * toward[:, 0] + slopes[:, 2] * toward[:, 1],
            slopes[:, 1] * toward[:, 0] + slopes[:, 3] * toward[:, 1],
        ],
        dim=1,
    )
    planes = torch.cat([first[:, :1], slopes[:, :2], first[:, 1:], slopes[:, 2:], depth * scale[:, None]], dim=1)

    # one row for each pixel of each bounding box
    count = size.prod(dim=1)
    owner = torch.repeat_interleave(torch.arange(len(count), device=device), count)
    within = torch.arange(len(owner), device=device) - (count.cumsum(0) - count).index_select(0, owner)
    box_width = size[:, 0].index_select(0, owner)
    y = torch.div(within, box_width, rounding_mode="floor")
    x = within - y * box_width
    corner = (frame * height + low[:, 1].long()) * width + low[:, 0].long()
    pixel = corner.index_select(0, owner) + y * width + x
    x, y = x.float(), y.float()
    rows = planes.index_select(0, owner)
    first = torch.addcmul(torch.addcmul(rows[:, 0], rows[:, 1], x), rows[:, 2], y)
    second = torch.addcmul(torch.addcmul(rows[:, 3], rows[:, 4], x), rows[:, 5], y)
    # a hair's breadth more, so that rounding leaves no cracks between neighbours
    inside = torch.nonzero((first >= -1e-5) & (second >= -1e-5) & (first + second <= 1 + 1e-5)).flatten()
    rows, owner, x, y, pixel = (values.index_select(0, inside) for values in (rows, owner, x, y, pixel))
    depth = torch.addcmul(torch.addcmul(rows[:, 6], rows[:, 7], x), rows[:, 8], y)

    none = torch.iinfo(torch.long).max
    offers = torch.full((num_frames * height * width,), none, dtype=torch.long, device=device)
    steps = depth.clamp(0, _DEPTH_STEPS - 1).long()
    # a triangle is numbered within its frame, so that there is room for its depth whatever the number of frames
    frame_start = torch.searchsorted(frame, torch.arange(num_frames, device=device))
    number = owner - frame_start[frame[owner]]
    offers.scatter_reduce_(0, pixel, (steps << _INDEX_BITS) | number, reduce="amin")
    pixel = torch.nonzero(offers != none).flatten()
    pixel_frame = torch.div(pixel, height * width, rounding_mode="floor")
    owner = (offers[pixel] & ((1 << _INDEX_BITS) - 1)) + frame_start[pixel_frame]
    seen = torch.full((num_frames * height * width,), -1, dtype=torch.long, device=device)
    seen[pixel] = shown[owner]
    rows = planes[owner]
    x = (pixel % width).float() - low[owner, 0]
    y = (torch.div(pixel, width, rounding_mode="floor") % height).float() - low[owner, 1]
    first = torch.addcmul(torch.addcmul(rows[:, 0], rows[:, 1], x), rows[:, 2], y)
    second = torch.addcmul(torch.addcmul(rows[:, 3], rows[:, 4], x), rows[:, 5], y)
    barycentric = torch.zeros(num_frames * height * width, 3, device=device)
    barycentric[pixel] = torch.stack([first, second, 1 - first - second], dim=1)
    return seen.view(num_frames, height, width), barycentric.view(num_frames, height, width, 3)
