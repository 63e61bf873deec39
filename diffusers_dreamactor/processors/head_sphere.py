"""`HeadSphereProcessor`: where the head is and how it is turned, as a sphere whose colours are its normals."""

import numpy as np
from diffusers.configuration_utils import register_to_config

from ..motion.sequence import MotionSequence
from .processor_mixin import ProcessorMixin


class HeadSphereProcessor(ProcessorMixin):
    r"""
    Draws the 3D head sphere (paper section 3.1) on black: position and turn of the driving head, size of the reference's.

    The colour of a point is its outward normal `n` in the head's own frame (x right, y down, z out of the back of the
    head, seen by a camera the head looks into), `(n + 1) / 2` as RGB. A turned head shows another part of the same
    coloured sphere, so that every rotation gives another picture; no colour of the sphere is as dark as the background.

    Args:
        threshold (`float`): frames whose head has less confidence stay black.
    """

    @register_to_config
    def __init__(self, threshold: float = 0.5):
        pass

    def __call__(self, motion: MotionSequence, height: int, width: int) -> np.ndarray:
        """
        Args:
            motion (`MotionSequence`): head centre and radius in pixels of the picture that is drawn.
            height, width (`int`): size of the pictures.

        Returns:
            `np.ndarray` of shape `(F, 3, height, width)`, uint8 RGB; all black where the motion has no head.
        """
        pictures = np.zeros((len(motion), 3, height, width), dtype=np.uint8)
        if motion.head is None:
            return pictures
        rotation = np.asarray(motion.head.rotation, dtype=np.float32)
        center = np.asarray(motion.head.center, dtype=np.float32)
        radius = np.asarray(motion.head.radius, dtype=np.float32)
        drawn = np.asarray(motion.head.confidence) >= self.config.threshold
        drawn &= np.isfinite(rotation).all(axis=(1, 2)) & np.isfinite(center).all(axis=1) & np.isfinite(radius)
        for index in np.flatnonzero(drawn & (radius > 0)):
            _draw_sphere(pictures[index], rotation[index], center[index], radius[index])
        return pictures

    @staticmethod
    def decode_orientation(image: np.ndarray) -> np.ndarray:
        """
        Reads the head's rotation off a picture of a sphere, whole or cut by the picture's edge.

        A visible point of the sphere lies at `x = cx + r * (R[0] . n)`, `y = cy + r * (R[1] . n)` with its normal `n` in
        the head's frame: linear in the colours, so two least-squares fits give the first two rows of the rotation `R`
        (and the circle), their cross product the third, and the nearest rotation is taken.

        Args:
            image (`np.ndarray` of shape `(3, H, W)` or `(H, W, 3)`): uint8 RGB.

        Returns:
            `np.ndarray` of shape `(3, 3)`, float64: rotation from the head's frame to the camera's.

        Raises:
            ValueError: there is no sphere in the picture, or too little of it.
        """
        image = np.asarray(image)
        if image.ndim != 3 or 3 not in (image.shape[0], image.shape[-1]):
            raise ValueError(f"`image` has shape {image.shape}, but it has to be (3, H, W) or (H, W, 3).")
        if image.shape[0] == 3:
            image = image.transpose(1, 2, 0)
        normals = image.astype(np.float64) / 127.5 - 1
        # On the sphere a colour is a unit vector, on the background it is longer. At the rim, where both are mixed, any
        # length can come out, so that pixels count only if their neighbours are on the sphere too.
        sphere = np.abs(np.linalg.norm(normals, axis=-1) - 1) < 0.02
        padded = np.pad(sphere, 1, mode="edge")
        sphere &= padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        y, x = np.nonzero(sphere)
        if len(x) < 8:
            raise ValueError(f"`image` shows {len(x)} pixels of a head sphere, but at least 8 are needed.")
        equations = np.concatenate([normals[y, x], np.ones((len(x), 1))], axis=1)
        solution = np.linalg.lstsq(equations, np.stack([x, y], axis=1).astype(np.float64), rcond=None)[0]
        first, second = solution[0:3, 0], solution[0:3, 1]
        scaled = np.stack([first, second, np.cross(first, second) / np.linalg.norm(first)])
        u, _, vh = np.linalg.svd(scaled)
        return u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vh))]) @ vh


def _draw_sphere(picture: np.ndarray, rotation: np.ndarray, center: np.ndarray, radius: float) -> None:
    """Draws one sphere into a uint8 `(3, H, W)` picture, its rim anti-aliased against black."""
    height, width = picture.shape[1:]
    left, top = np.floor(center - radius - 1).clip(0, (width, height)).astype(int)
    right, bottom = np.ceil(center + radius + 1).clip(0, (width, height)).astype(int)
    if left >= right or top >= bottom:
        return
    x = (np.arange(left, right, dtype=np.float32)[None, :] + 0.5 - center[0]) / radius  # pixel i covers [i, i + 1)
    y = (np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5 - center[1]) / radius
    x, y = np.broadcast_arrays(x, y)
    distance = np.hypot(x, y)
    coverage = ((1 - distance) * radius + 0.5).clip(0, 1)
    inside = np.maximum(distance, 1)  # the rim's outer half takes the normal at the rim
    x, y = x / inside, y / inside
    z = -np.sqrt((1 - x**2 - y**2).clip(0, 1))  # the visible half faces the camera, which looks along +z
    normals = np.einsum("ji,jhw->ihw", rotation, np.stack([x, y, z]))  # camera to head: the transpose
    picture[:, top:bottom, left:right] = np.rint((normals + 1) * 127.5 * coverage).clip(0, 255).astype(np.uint8)
