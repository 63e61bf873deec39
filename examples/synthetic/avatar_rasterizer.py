"""A z-buffer on the CPU: which triangle a pixel sees and where on it. Written as a Warp kernel (Warp comes with Anny)."""

from __future__ import annotations

import numpy as np
import warp as wp


wp.config.quiet = True


@wp.kernel
def _draw_triangles(
    points: wp.array(dtype=wp.vec3, ndim=2),
    faces: wp.array(dtype=wp.int32, ndim=2),
    depth: wp.array(dtype=wp.float32, ndim=3),
    triangle: wp.array(dtype=wp.int32, ndim=3),
    weights: wp.array(dtype=wp.vec3, ndim=3),
):
    # one thread draws one frame, so that no two threads write the same pixel
    frame = wp.tid()
    height = depth.shape[1]
    width = depth.shape[2]
    for index in range(faces.shape[0]):
        a = points[frame, faces[index, 0]]
        b = points[frame, faces[index, 1]]
        c = points[frame, faces[index, 2]]
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        # pictures have y down: a triangle that faces the camera turns clockwise there, and its area is negative
        if area < -1.0e-9 and wp.min(wp.min(a[2], b[2]), c[2]) > 0.05:
            left = wp.max(int(wp.ceil(wp.min(wp.min(a[0], b[0]), c[0]) - 0.5)), 0)
            right = wp.min(int(wp.floor(wp.max(wp.max(a[0], b[0]), c[0]) - 0.5)), width - 1)
            top = wp.max(int(wp.ceil(wp.min(wp.min(a[1], b[1]), c[1]) - 0.5)), 0)
            bottom = wp.min(int(wp.floor(wp.max(wp.max(a[1], b[1]), c[1]) - 0.5)), height - 1)
            for y in range(top, bottom + 1):
                for x in range(left, right + 1):
                    px = float(x) + 0.5
                    py = float(y) + 0.5
                    wa = ((b[0] - px) * (c[1] - py) - (b[1] - py) * (c[0] - px)) / area
                    wb = ((c[0] - px) * (a[1] - py) - (c[1] - py) * (a[0] - px)) / area
                    wc = 1.0 - wa - wb
                    if wa >= 0.0 and wb >= 0.0 and wc >= 0.0:
                        z = wa * a[2] + wb * b[2] + wc * c[2]
                        if z < depth[frame, y, x]:
                            depth[frame, y, x] = z
                            triangle[frame, y, x] = index
                            weights[frame, y, x] = wp.vec3(wa, wb, wc)


def rasterize(points: np.ndarray, faces: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Find what each pixel sees.

    Args:
        points (`np.ndarray` of shape `(F, V, 3)`): projected vertices: x and y in pixels (0 is the left or upper
            edge of the picture), z the distance from the camera in metres.
        faces (`np.ndarray` of shape `(T, 3)`): triangles; those that turn their back are not drawn.
        height, width: of the picture.

    Returns:
        triangle `(F, height, width)` int32, -1 where there is none, and barycentric weights
        `(F, height, width, 3)` float32 of its three corners.
    """
    num_frames = len(points)
    depth = np.full((num_frames, height, width), np.inf, dtype=np.float32)
    triangle = np.full((num_frames, height, width), -1, dtype=np.int32)
    weights = np.zeros((num_frames, height, width, 3), dtype=np.float32)
    arrays = [
        wp.array(np.ascontiguousarray(points, dtype=np.float32), dtype=wp.vec3, device="cpu", copy=False),
        wp.array(np.ascontiguousarray(faces, dtype=np.int32), dtype=wp.int32, device="cpu", copy=False),
        wp.array(depth, dtype=wp.float32, device="cpu", copy=False),
        wp.array(triangle, dtype=wp.int32, device="cpu", copy=False),
        wp.array(weights, dtype=wp.vec3, device="cpu", copy=False),
    ]
    wp.launch(_draw_triangles, dim=num_frames, inputs=arrays, device="cpu")
    return triangle, weights
