from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from scipy.spatial.transform import Rotation

from diffusers_dreamactor.motion.sequence import (
    BodyTrack,
    FaceTrack,
    HeadTrack,
    MotionSequence,
    head_yaw_pitch_roll,
    project,
)
from diffusers_dreamactor.motion.tensor_file import write_arrays


def smooth_pictures(num_frames, size):
    """Pictures such as faces are: without noise, different in each frame."""
    y, x = np.mgrid[:size, :size] * 16 / size
    shades = [[127 + 100 * np.sin(x / 5 + i), 127 + 90 * np.cos(y / 6 - i), 90 + 5 * x + i] for i in range(num_frames)]
    return np.array(shades).transpose(0, 2, 3, 1).astype(np.uint8)


def make_motion(num_frames=9, fps=25.0, seed=0, width=640, height=480):
    rng = np.random.default_rng(seed)
    angles = np.linspace(-40, 40, num_frames)
    joints = rng.normal(size=(num_frames, 62, 3)) * 0.3 + [0, 0, 3]
    return MotionSequence(
        fps=fps,
        width=width,
        height=height,
        focal_length=600.0,
        body=BodyTrack(joints, project(joints, 600.0, width, height), rng.uniform(size=(num_frames, 62))),
        head=HeadTrack(
            Rotation.from_euler("Y", -angles[:, None], degrees=True).as_matrix(),
            rng.uniform(100, 300, (num_frames, 2)),
            np.full(num_frames, 40.0),
            np.ones(num_frames),
        ),
        face=FaceTrack(
            boxes=rng.uniform(0, 400, (num_frames, 4)),
            confidence=np.ones(num_frames),
            crops=smooth_pictures(num_frames, 8),
            motion_tokens=rng.normal(size=(num_frames, 5)),
            blendshapes=rng.uniform(size=(num_frames, 52)),
        ),
        people=np.full(num_frames, 3),
    )


def arrays(motion):
    found = {"people": motion.people}
    for name in ("body", "head", "face"):
        track = getattr(motion, name)
        found |= {} if track is None else {f"{name}.{key}": value for key, value in vars(track).items()}
    return {key: value for key, value in found.items() if value is not None}


def assert_same(a, b):
    assert (a.fps, a.width, a.height, a.focal_length) == (b.fps, b.width, b.height, b.focal_length)
    a, b = arrays(a), arrays(b)
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype
        if key == "face.crops":
            assert np.abs(a[key].astype(int) - b[key]).max() <= 12
        else:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_save_and_load_give_the_same_motion(tmp_path):
    motion = make_motion(fps=30000 / 1001)
    motion.save(tmp_path / "folder" / "motion.safetensors")
    assert_same(MotionSequence.load(tmp_path / "folder" / "motion.safetensors"), motion)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["motion.safetensors"]


def test_a_stored_motion_is_small_and_has_the_usual_permissions(tmp_path):
    motion = make_motion(num_frames=6)
    rng = np.random.default_rng(0)
    pictures = smooth_pictures(6, 320)
    noisy = (pictures + rng.normal(0, 2, pictures.shape)).clip(0, 255).astype(np.uint8)
    motion = replace(motion, face=replace(motion.face, crops=noisy))
    path = tmp_path / "motion.safetensors"
    motion.save(path)
    assert path.stat().st_size / 6 < 60_000  # 309 kB as they are
    error = MotionSequence.load(path).face.crops.astype(float) - noisy
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 40
    (tmp_path / "new").touch()
    assert path.stat().st_mode == (tmp_path / "new").stat().st_mode
    assert sorted(file.name for file in tmp_path.iterdir()) == ["motion.safetensors", "new"]


def test_files_of_version_1_load(tmp_path):
    motion = make_motion()
    stored, values = motion.to_arrays()
    assert stored["face.crops"] is motion.face.crops
    metadata = {"format": "diffusers_dreamactor.motion", "version": "1", **values}
    write_arrays(tmp_path / "old.safetensors", stored, metadata)
    loaded = MotionSequence.load(tmp_path / "old.safetensors")
    assert_same(loaded, motion)
    np.testing.assert_array_equal(loaded.face.crops, motion.face.crops)


def test_save_and_load_keep_absent_tracks_absent(tmp_path):
    motion = replace(
        make_motion(), body=None, people=None, face=FaceTrack(None, np.ones(9), motion_tokens=np.ones((9, 4)))
    )
    motion.save(tmp_path / "motion.safetensors")
    loaded = MotionSequence.load(tmp_path / "motion.safetensors")
    assert loaded.body is None and loaded.people is None and loaded.face.boxes is None and loaded.face.crops is None
    assert_same(loaded, motion)


def test_load_declines_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        MotionSequence.load(tmp_path / "absent.safetensors")
    (tmp_path / "text.safetensors").write_text("not a motion at all")
    with pytest.raises(ValueError, match="not a safetensors file"):
        MotionSequence.load(tmp_path / "text.safetensors")
    save_file({"weight": np.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="is not a motion file"):
        MotionSequence.load(tmp_path / "weights.safetensors")
    metadata = {"format": "diffusers_dreamactor.motion", "version": "99"}
    save_file({"people": np.zeros(3)}, tmp_path / "newer.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match="version 99"):
        MotionSequence.load(tmp_path / "newer.safetensors")


def test_a_bad_motion_is_not_written(tmp_path):
    motion = make_motion()
    motion.body.joints[4, 2, 1] = np.nan
    with pytest.raises(ValueError, match=r"`body.joints` has a value that is not finite, first in frame 4"):
        motion.save(tmp_path / "motion.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_torch_tensors_are_taken():
    joints = torch.zeros(2, 62, 3, dtype=torch.bfloat16, requires_grad=True)
    body = BodyTrack(joints, torch.zeros(2, 62, 2), torch.ones(2, 62))
    assert isinstance(body.joints, np.ndarray) and body.joints.dtype == np.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: replace(m, fps=0), "`fps`"),
        (lambda m: replace(m, focal_length=float("nan")), "`focal_length`"),
        (lambda m: replace(m, body=None, head=None, face=None), "at least one track"),
        (lambda m: m[:0], "at least one frame"),
        (lambda m: replace(m, head=m[:5].head), r"`head.rotation` has shape \(5, 3, 3\), but \(9, 3, 3\)"),
        (lambda m: replace(m, body=replace(m.body, joints=m.body.keypoints)), r"`body.joints` has shape"),
        (lambda m: replace(m, body=replace(m.body, keypoints=None)), "`body.keypoints` is missing"),
        (lambda m: replace(m, body=replace(m.body, confidence=m.body.confidence * 2)), r"must be in \[0, 1\]"),
        (lambda m: replace(m, head=replace(m.head, rotation=m.head.rotation * [1, 1, -1])), "not a rotation"),
        (lambda m: replace(m, people=np.zeros(4)), r"`people` has shape \(4,\)"),
        (lambda m: replace(m, face=replace(m.face, crops=m.face.crops[..., 0])), "`face.crops` has shape"),
    ],
)
def test_validate_names_what_is_wrong(change, message):
    motion = make_motion()
    motion.validate()
    with pytest.raises(ValueError, match=message):
        change(motion).validate()


def test_slices():
    motion = make_motion()
    part = motion[2:5]
    assert len(part) == part.num_frames == 3 and part.fps == motion.fps
    for key, value in arrays(part).items():
        np.testing.assert_array_equal(value, arrays(motion)[key][2:5])
    assert len(motion[-2:]) == 2
    for index in (3, slice(0, 9, 2)):
        with pytest.raises(TypeError, match="step 1"):
            motion[index]


def test_resample_doubles_and_returns():
    motion = make_motion()
    double = motion.resample(50)
    assert len(double) == 18 and double.fps == 50
    np.testing.assert_allclose(double.body.joints[::2], motion.body.joints, atol=1e-6)
    np.testing.assert_allclose(double.body.joints[1], motion.body.joints[:2].mean(0), atol=1e-6)
    # The head turns by 10 degrees a frame: half a frame later it has turned by 5.
    np.testing.assert_allclose(double.yaw()[:17], np.linspace(-40, 40, 17), atol=1e-3)
    np.testing.assert_array_equal(double.face.crops[::2], motion.face.crops)
    back = double.resample(25)
    assert len(back) == 9 and back.people.dtype == np.int64
    np.testing.assert_allclose(back.body.keypoints, motion.body.keypoints, atol=1e-3)
    double.validate()


def test_resample_keeps_rotations_on_the_short_way_through_the_back():
    rotation = Rotation.from_euler("Y", [[170.0], [190.0]], degrees=True).as_matrix()
    head = HeadTrack(rotation, np.zeros((2, 2)), np.ones(2), np.ones(2))
    motion = MotionSequence(10, 64, 64, 64, head=head).resample(20)
    expected = Rotation.from_euler("Y", [[170.0], [180.0], [190.0], [190.0]], degrees=True).as_matrix()
    np.testing.assert_allclose(motion.head.rotation, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new", "expected"), [(30, 25, 250), (30000 / 1001, 30, 301), (24, 30, 375), (30, 15, 150)]
)
def test_resample_keeps_the_duration(old, new, expected):
    assert len(make_motion(300, fps=old).resample(new)) == expected


def test_resample_of_one_frame_and_bad_rates():
    motion = make_motion(1)
    assert len(motion.resample(50)) == 2
    np.testing.assert_array_equal(motion.resample(50).head.rotation[1], motion.head.rotation[0])
    for fps in (0, -5, float("nan")):
        with pytest.raises(ValueError, match="`fps`"):
            motion.resample(fps)


def test_hold_and_loop():
    motion = make_motion(4)
    held = motion.hold(7)
    assert len(held) == 7
    for frame in (4, 5, 6):
        np.testing.assert_array_equal(held.body.joints[frame], motion.body.joints[3])
    looped = motion.loop(11)
    order = [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2]
    np.testing.assert_array_equal(looped.face.crops, motion.face.crops[order])
    assert len(motion.hold(2)) == 2 and len(make_motion(1).loop(5)) == 5
    for call in (motion.hold, motion.loop):
        with pytest.raises(ValueError, match="`num_frames`"):
            call(0)


def test_compose_takes_each_part_from_its_driver():
    body, head, face = make_motion(9, 25, 1), make_motion(40, 50, 2, 1280, 960), make_motion(12, 25, 3)
    motion = MotionSequence.compose(face=face, head=head, body=body)
    motion.validate()
    assert len(motion) == 9 and motion.fps == 25 and (motion.width, motion.height) == (640, 480)
    np.testing.assert_array_equal(motion.body.joints, body.body.joints)
    np.testing.assert_allclose(motion.head.rotation, head.head.rotation[:18:2], atol=1e-6)
    np.testing.assert_allclose(motion.head.center, head.head.center[:18:2] / 2, atol=1e-4)
    np.testing.assert_allclose(motion.head.radius, 20.0)
    np.testing.assert_array_equal(motion.face.boxes, face.face.boxes[:9])
    only_face = MotionSequence.compose(face=face)
    assert only_face.body is None and only_face.head is None and len(only_face) == 12


def test_compose_declines_missing_parts():
    with pytest.raises(ValueError, match="at least one"):
        MotionSequence.compose()
    with pytest.raises(ValueError, match="given as `head` has no head track"):
        MotionSequence.compose(head=replace(make_motion(), head=None))


def test_yaw_pitch_roll_signs():
    # Identity looks at the camera; x right, y down, z away from the camera.
    np.testing.assert_array_equal(head_yaw_pitch_roll(np.eye(3)), 0)

    def angles(forward_and_top):
        forward, top = (np.array(v, dtype=float) / np.linalg.norm(v) for v in forward_and_top)
        return head_yaw_pitch_roll(np.stack([np.cross(-top, -forward), -top, -forward], axis=-1))

    np.testing.assert_allclose(angles(([1, 0, -1], [0, -1, 0])), [45, 0, 0], atol=1e-4)  # towards the right
    np.testing.assert_allclose(angles(([0, -1, -1], [0, -1, 1])), [0, 45, 0], atol=1e-4)  # up
    np.testing.assert_allclose(angles(([0, 0, -1], [1, -1, 0])), [0, 0, 45], atol=1e-4)  # top to the right: clockwise
    rng = np.random.default_rng(0)
    wanted = rng.uniform([-170, -80, -170], [170, 80, 170], (50, 3))
    rotation = Rotation.from_euler("YXZ", wanted * [-1, -1, 1], degrees=True).as_matrix()
    np.testing.assert_allclose(head_yaw_pitch_roll(rotation), wanted, atol=1e-3)


def test_extreme_yaw_frames():
    yaw = np.array([5.0, -60.0, 80.0, 0.0, 30.0, -20.0, 10.0])
    rotation = Rotation.from_euler("Y", -yaw[:, None], degrees=True).as_matrix()
    confidence = np.array([1, 1, 0.2, 1, 1, 1, 1])
    motion = MotionSequence(25, 64, 64, 64, head=HeadTrack(rotation, np.zeros((7, 2)), np.ones(7), confidence))
    assert motion.extreme_yaw_frames() == (1, 0, 4)
    motion.head.confidence[:] = 0
    assert motion.extreme_yaw_frames() == (1, 0, 2)
    with pytest.raises(ValueError, match="no head track"):
        replace(motion, head=None).yaw()


def test_project():
    np.testing.assert_allclose(project([0, 0, 2.0], 500, 640, 480), [320, 240])
    np.testing.assert_allclose(project([[0.5, 0.25, 2.0]], 500, 640, 480), [[445, 302.5]])
    assert np.isfinite(project([0.1, 0.1, 0.0], 500, 640, 480)).all()
