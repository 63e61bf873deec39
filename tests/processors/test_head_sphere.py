import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from diffusers_dreamactor.motion.sequence import HeadTrack, MotionSequence
from diffusers_dreamactor.processors.head_sphere import HeadSphereProcessor


def heads(rotation: np.ndarray, center: np.ndarray, radius: np.ndarray, size: int = 96) -> MotionSequence:
    head = HeadTrack(rotation=rotation, center=center, radius=radius, confidence=np.ones(len(rotation)))
    return MotionSequence(24, size, size, 100, head=head)


def angle_between(a: np.ndarray, b: np.ndarray) -> float:
    return np.degrees(np.linalg.norm(Rotation.from_matrix(a @ b.T).as_rotvec()))


def test_any_rotation_is_read_back_within_two_degrees():
    count = 300
    rng = np.random.default_rng(0)
    rotation = Rotation.random(count, rng=rng).as_matrix()
    motion = heads(rotation, rng.uniform(40, 56, (count, 2)), rng.uniform(12, 36, count))
    pictures = HeadSphereProcessor()(motion, 96, 96)
    decoded = [HeadSphereProcessor.decode_orientation(picture) for picture in pictures]
    errors = [angle_between(a, b) for a, b in zip(decoded, rotation)]
    assert max(errors) < 0.5
    np.testing.assert_allclose(np.linalg.det(decoded), 1, atol=1e-9)


def test_small_and_cut_spheres_are_readable():
    rotation = Rotation.random(50, rng=np.random.default_rng(1)).as_matrix()
    small = HeadSphereProcessor()(heads(rotation, np.full((50, 2), 20.3), np.full(50, 6.0)), 96, 96)
    cut = HeadSphereProcessor()(heads(rotation, np.full((50, 2), -2.0), np.full(50, 30.0)), 96, 96)
    for index in range(50):
        assert angle_between(HeadSphereProcessor.decode_orientation(small[index]), rotation[index]) < 2
        assert angle_between(HeadSphereProcessor.decode_orientation(cut[index]), rotation[index]) < 2


def test_colours_are_normals_in_the_heads_frame():
    facing = heads(np.eye(3)[None], np.array([[48.0, 48.0]]), np.array([30.0]))
    picture = HeadSphereProcessor()(facing, 96, 96)[0]
    # The nearest point's normal is (0, 0, -1); to the right x grows, downwards y does.
    np.testing.assert_allclose(picture[:, 48, 48], [128, 128, 0], atol=3)
    np.testing.assert_allclose(picture[:, 48, 48 + 24], [127.5 * 1.8, 128, 127.5 * 0.4], atol=6)
    np.testing.assert_allclose(picture[:, 48 + 24, 48], [128, 127.5 * 1.8, 127.5 * 0.4], atol=6)
    # Seen from behind (half a turn about the vertical), the middle shows the back of the head: (0, 0, 1).
    behind = heads(Rotation.from_euler("y", 180, degrees=True).as_matrix()[None], *[np.array([[48, 48]]), [30]])
    np.testing.assert_allclose(HeadSphereProcessor()(behind, 96, 96)[0, :, 48, 48], [128, 128, 255], atol=3)


def test_place_and_size():
    motion = heads(np.eye(3)[None], np.array([[40.25, 60.75]]), np.array([17.5]))
    picture = HeadSphereProcessor()(motion, 96, 96)[0]
    inside = picture.any(axis=0)
    y, x = np.nonzero(inside)
    assert x.mean() + 0.5 == pytest.approx(40.25, abs=0.3) and y.mean() + 0.5 == pytest.approx(60.75, abs=0.3)
    assert inside.sum() == pytest.approx(np.pi * 17.5**2, rel=0.07)
    full = HeadSphereProcessor()(heads(np.eye(3)[None], np.array([[48.0, 48.0]]), np.array([200.0])), 96, 96)[0]
    assert full.any(axis=0).all()


def test_frames_without_a_sure_head_are_black(stick_figure):
    motion = stick_figure(3, 96, 96)
    motion.head.confidence[:] = [1, 0.4, 0.5]
    drawn = HeadSphereProcessor()(motion, 96, 96).any(axis=(1, 2, 3))
    assert drawn.tolist() == [True, False, True]
    motion.head = None
    assert not HeadSphereProcessor()(motion, 96, 96).any()


def test_either_layout_is_decoded_and_no_sphere_is_an_error(stick_figure):
    picture = HeadSphereProcessor()(stick_figure(1), 480, 832)[0]
    a = HeadSphereProcessor.decode_orientation(picture)
    np.testing.assert_array_equal(a, HeadSphereProcessor.decode_orientation(picture.transpose(1, 2, 0)))
    with pytest.raises(ValueError, match="0 pixels of a head sphere"):
        HeadSphereProcessor.decode_orientation(np.zeros_like(picture))
    with pytest.raises(ValueError, match="`image` has shape"):
        HeadSphereProcessor.decode_orientation(np.zeros((5, 5), dtype=np.uint8))


def test_config_round_trip(tmp_path):
    HeadSphereProcessor(threshold=0.25).save_pretrained(tmp_path)
    assert HeadSphereProcessor.from_pretrained(tmp_path).config.threshold == 0.25
