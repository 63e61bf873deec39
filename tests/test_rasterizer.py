import torch

from diffusers_dreamactor.rasterizer import rasterize, rasterize_frames


FAR = [[0, 0, 2.0], [0, 8, 2.0], [8, 0, 2.0]]
NEAR = [[0, 0, 1.0], [0, 4, 1.0], [4, 0, 1.0]]


def test_the_nearer_triangle_is_seen():
    points, triangles = torch.tensor(FAR + NEAR), torch.tensor([[0, 1, 2], [3, 4, 5]])
    seen, weights = rasterize(points, triangles, 8, 8)
    assert seen[0, 0] == 1 and seen[0, 6] == 0 and seen[7, 7] == -1
    torch.testing.assert_close(weights[seen >= 0].sum(dim=1), torch.ones(int((seen >= 0).sum())))
    # the middle of the pixel, from the corners and their weights
    middle = (points[triangles[seen[0, 6]], :2] * weights[0, 6, :, None]).sum(dim=0)
    torch.testing.assert_close(middle, torch.tensor([6.5, 0.5]), atol=1e-4, rtol=0)
    # the order does not matter
    swapped, _ = rasterize(points, triangles.flip(0), 8, 8)
    torch.testing.assert_close(torch.where(swapped >= 0, 1 - swapped, swapped), seen)


def test_backs_and_what_lies_outside_are_not_drawn():
    points = torch.tensor(FAR)
    assert (rasterize(points, torch.tensor([[2, 1, 0]]), 8, 8)[0] == -1).all()
    assert (rasterize(points + torch.tensor([20.0, 0, 0]), torch.tensor([[0, 1, 2]]), 8, 8)[0] == -1).all()
    partly = rasterize(points - torch.tensor([3.0, 2.0, 0]), torch.tensor([[0, 1, 2]]), 8, 8)[0]
    assert partly[0, 0] == 0 and (partly == 0).sum() == 6


def test_a_random_mesh_agrees_with_asking_every_triangle():
    random = torch.Generator().manual_seed(0)
    points = torch.rand(60, 3, generator=random) * torch.tensor([20.0, 16.0, 3.0]) + torch.tensor([-2.0, -2.0, 1.0])
    triangles = torch.randint(60, (80, 3), generator=random)
    triangles = triangles[(triangles[:, 0] != triangles[:, 1]) & (triangles[:, 1] != triangles[:, 2])]
    seen, _ = rasterize(points, triangles, 12, 16)
    y, x = torch.meshgrid(torch.arange(12) + 0.5, torch.arange(16) + 0.5, indexing="ij")
    nearest, expected = torch.full((12, 16), torch.inf), torch.full((12, 16), -1)
    for index, (a, b, c) in enumerate(points[triangles]):
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        first = ((b[0] - x) * (c[1] - y) - (b[1] - y) * (c[0] - x)) / area
        second = ((c[0] - x) * (a[1] - y) - (c[1] - y) * (a[0] - x)) / area
        depth = first * a[2] + second * b[2] + (1 - first - second) * c[2]
        hit = (area < 0) & (first >= 0) & (second >= 0) & (first + second <= 1) & (depth < nearest)
        nearest, expected = torch.where(hit, depth, nearest), torch.where(hit, index, expected)
    assert (expected >= 0).float().mean() > 0.5
    assert torch.equal(seen, expected)


def test_neighbours_leave_no_cracks():
    side = torch.linspace(0.3, 63.1, 23)
    y, x = torch.meshgrid(side, side, indexing="ij")
    points = torch.stack([x + 0.3 * torch.sin(y), y + 0.3 * torch.cos(x), torch.full_like(x, 2.0)], dim=-1).view(-1, 3)
    corner = (torch.arange(22)[:, None] * 23 + torch.arange(22)).flatten()
    triangles = torch.cat(
        [torch.stack([corner, corner + 23, corner + 1], 1), torch.stack([corner + 1, corner + 23, corner + 24], 1)]
    )
    seen, _ = rasterize(points, triangles, 64, 64)
    assert (seen[2:62, 2:62] >= 0).all()


def test_frames_drawn_together_are_what_each_is_on_its_own():
    random = torch.Generator().manual_seed(1)
    scale, shift = torch.tensor([20.0, 16.0, 3.0]), torch.tensor([-2.0, -2.0, 1.0])
    points = torch.rand(5, 60, 3, generator=random) * scale + shift
    # depth of other orders of magnitude in another frame, and one that shows nothing
    points[1, :, 2] *= 1000
    points[3, :, 0] += 100
    triangles = torch.randint(60, (80, 3), generator=random)
    seen, weights = rasterize_frames(points, triangles, 12, 16)
    assert (seen[3] == -1).all() and (seen[[0, 1, 2, 4]] >= 0).float().mean() > 0.5
    for frame in range(5):
        alone_seen, alone_weights = rasterize(points[frame], triangles, 12, 16)
        assert torch.equal(seen[frame], alone_seen) and torch.equal(weights[frame], alone_weights)


def test_what_is_nearer_than_the_near_plane_is_not_drawn():
    points, triangles = torch.tensor(FAR + NEAR)[None], torch.tensor([[0, 1, 2], [3, 4, 5]])
    assert (rasterize_frames(points, triangles, 8, 8, near=0.5)[0] == 1).any()
    seen, _ = rasterize_frames(points, triangles, 8, 8, near=1.0)
    assert not (seen == 1).any() and seen[0, 0, 0] == 0
