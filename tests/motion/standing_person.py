"""A person who stands before the camera, as MediaPipe's pose and face landmarkers would see it."""

import numpy as np
from scipy.spatial.transform import Rotation

from diffusers_dreamactor.motion.capture.body_pose import PoseObservations
from diffusers_dreamactor.motion.capture.head_pose import FaceLook
from diffusers_dreamactor.motion.capture.tracking import Person
from diffusers_dreamactor.motion.sequence import project


WIDTH, HEIGHT, FOCAL_LENGTH = 640, 480, 800.0

# An upright person facing the camera, MediaPipe's 33 points in metres about the hips (x right, y down, z away).
STANDING = np.zeros((33, 3))
STANDING[:11] = [
    [0.0, -0.62, -0.105],
    *[[0.016, -0.657, -0.068], [0.031, -0.657, -0.065], [0.046, -0.657, -0.06]],
    *[[-0.016, -0.657, -0.068], [-0.031, -0.657, -0.065], [-0.046, -0.657, -0.06]],
    *[[0.074, -0.638, 0.0], [-0.074, -0.638, 0.0]],
    *[[0.025, -0.588, -0.073], [-0.025, -0.588, -0.073]],
]
for _left, _point in {
    11: (0.18, -0.48, 0.0), 13: (0.22, -0.2, 0.0), 15: (0.24, 0.02, -0.05), 17: (0.25, 0.08, -0.05),
    19: (0.24, 0.1, -0.06), 21: (0.22, 0.07, -0.06), 23: (0.1, 0.0, 0.0), 25: (0.11, 0.42, 0.0),
    27: (0.11, 0.82, 0.05), 29: (0.11, 0.86, 0.08), 31: (0.13, 0.88, -0.08),
}.items():  # fmt: skip
    STANDING[_left] = _point
    STANDING[_left + 1] = np.array(_point) * [-1, 1, 1]


def observations(world, translation=(0.0, 0.0, 3.0)) -> PoseObservations:
    """What a perfect estimator would see of `world` (F, 33, 3)."""
    observed = PoseObservations.empty(len(world))
    observed.world[:] = world
    observed.keypoints[:] = project(world + np.array(translation), FOCAL_LENGTH, WIDTH, HEIGHT)
    observed.visibility[:] = 0.99
    return observed


def turned(yaw_degrees) -> np.ndarray:
    """The standing person turned by yaws (F,), positive to the right of the picture."""
    rotation = Rotation.from_euler("Y", -np.reshape(yaw_degrees, (-1, 1)), degrees=True).as_matrix()
    return np.einsum("fij,nj->fni", rotation, STANDING)


def standing_at(x: float) -> Person:
    """Somebody as the pose landmarker finds them, at `x` pixels."""
    return Person(STANDING[:, :2] * 200 + [x, 250], STANDING, np.full(33, 0.95))


class Reader:
    """Size and rate of a video."""

    width, height, fps = WIDTH, HEIGHT, 30.0


def face_look(yaw, middle=(320.0, 100.0)) -> FaceLook:
    middle = np.array(middle)
    return FaceLook(
        box=np.concatenate([middle - 20, middle + 20]),
        points=middle + np.array([[0, 3], [8, -6], [-8, -6], [6, 12], [-6, 12], [20, 0], [-20, 0]]),
        rotation=Rotation.from_euler("Y", -yaw, degrees=True).as_matrix(),
        ray_through=np.array([WIDTH / 2, HEIGHT / 2]),
        center=middle,
        radius=32.0,
        blendshapes=np.full(52, 0.3),
    )
