import json
from typing import NamedTuple

import numpy as np
import pytest
from diffusers.utils import logging
from scipy.spatial.transform import Rotation

from diffusers_dreamactor.motion.capture.openpose import load_openpose_motion
from diffusers_dreamactor.motion.lifting import estimate_heads, estimate_scale, lift_keypoints
from diffusers_dreamactor.motion.sequence import project
from diffusers_dreamactor.motion.skeleton import BODY, BONES, JOINT_INDEX, LEFT_HAND, RIGHT_HAND

from .stick_figure import StickFigure


SIZE = (640, 480)


@pytest.fixture
def warnings(caplog):
    logging.enable_propagation()
    yield caplog
    logging.disable_propagation()


def film(motion="wave", num_frames=12, **kwargs):
    return StickFigure().film(motion, num_frames, width=SIZE[0], height=SIZE[1], **kwargs)


def triplets(keypoints, confidence):
    """x, y, score of points, flat; all zero where nothing was found, as OpenPose writes it."""
    points = np.concatenate([keypoints, confidence[:, None]], axis=1) * (confidence[:, None] > 0)
    return [float(value) for value in points.ravel()]


def openpose_person(motion, frame, points=18, shift=0.0, face=False, hands=True):
    keypoints, confidence = motion.body.keypoints[frame] + [shift, 0], motion.body.confidence[frame]
    body, score = keypoints[:18], confidence[:18]
    if points == 25:
        toes = keypoints[[18, 18, 18, 19, 19, 19]] + [[-2, 1], [2, -1], [0, 0], [-2, 1], [2, -1], [0, 0]]
        hips = keypoints[[8, 11]].mean(axis=0, keepdims=True)
        body = np.concatenate([keypoints[:8], hips, keypoints[8:18], toes])
        score = np.concatenate([confidence[:8], [1], confidence[8:18], confidence[[18, 18, 18, 19, 19, 19]]])
    person = {"pose_keypoints_2d": triplets(body, score)}
    if hands:
        person["hand_left_keypoints_2d"] = triplets(keypoints[LEFT_HAND], confidence[LEFT_HAND])
        person["hand_right_keypoints_2d"] = triplets(keypoints[RIGHT_HAND], confidence[RIGHT_HAND])
    if face:
        angles = np.linspace(0, 2 * np.pi, 70)
        points = motion.head.center[frame] + [shift, 0] + 20 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        person["face_keypoints_2d"] = triplets(points, np.ones(70))
    return person


def write_folder(folder, frames):
    folder.mkdir()
    for index, people in enumerate(frames):
        text = json.dumps({"version": 1.3, "people": people})
        (folder / f"clip_{index:012d}_keypoints.json").write_text(text)
    return folder


@pytest.mark.parametrize("points", [18, 25])
def test_a_folder_of_openpose_files(tmp_path, points):
    truth = film()
    folder = write_folder(
        tmp_path / "json", [[openpose_person(truth, frame, points, face=True)] for frame in range(12)]
    )
    motion = load_openpose_motion(folder, 24, *SIZE, focal_length=truth.focal_length, smoothed=False)
    motion.validate()
    assert len(motion) == 12 and motion.fps == 24 and (motion.width, motion.height) == SIZE
    seen = motion.body.confidence >= 0.5
    toes = [JOINT_INDEX["left_toe"], JOINT_INDEX["right_toe"]]
    assert seen[:, toes].all() == (points == 25)
    np.testing.assert_array_equal(np.delete(seen, toes, axis=1), np.delete(truth.body.confidence > 0, toes, axis=1))
    np.testing.assert_allclose(motion.body.keypoints[seen], truth.body.keypoints[seen], atol=1e-2)
    np.testing.assert_allclose(
        project(motion.body.joints, motion.focal_length, *SIZE), motion.body.keypoints, atol=1e-2
    )
    error = Rotation.from_matrix(motion.head.rotation).inv() * Rotation.from_matrix(truth.head.rotation)
    assert np.degrees(error.magnitude()).max() < 6
    np.testing.assert_allclose(motion.head.center, truth.head.center, atol=0.5 * truth.head.radius.max())
    np.testing.assert_allclose(motion.head.radius, truth.head.radius, rtol=0.35)
    # The crop is around the face points, square, and higher than they reach.
    width, height = (
        motion.face.boxes[:, 2] - motion.face.boxes[:, 0],
        motion.face.boxes[:, 3] - motion.face.boxes[:, 1],
    )
    np.testing.assert_allclose(width, height, rtol=1e-3)
    assert (motion.face.boxes[:, 1] < truth.head.center[:, 1] - 20).all() and (height < 70).all()


def test_one_file_with_a_canvas_and_normalised_points(tmp_path):
    truth = film(num_frames=3)
    frames = []
    for frame in range(3):
        person = openpose_person(truth, frame)
        for key, values in person.items():
            points = np.reshape(values, (-1, 3)) / [*SIZE, 1]
            person[key] = points.ravel().tolist()
        frames.append({"people": [person], "canvas_width": SIZE[0], "canvas_height": SIZE[1]})
    (tmp_path / "poses.json").write_text(json.dumps(frames))
    motion = load_openpose_motion(tmp_path / "poses.json", 10, smoothed=False)
    assert (motion.width, motion.height, len(motion)) == (*SIZE, 3) and motion.face is None
    seen = motion.body.confidence >= 0.5
    np.testing.assert_allclose(motion.body.keypoints[seen], truth.body.keypoints[seen], atol=1e-2)


class Keypoint(NamedTuple):
    """As in `controlnet_aux`."""

    x: float
    y: float
    score: float = 1.0
    id: int = -1


class BodyResult(NamedTuple):
    """As in `controlnet_aux`."""

    keypoints: list
    total_score: float = 0.0
    total_parts: int = 0


class PoseResult(NamedTuple):
    """As in `controlnet_aux`."""

    body: BodyResult
    left_hand: list | None
    right_hand: list | None
    face: list | None


def test_controlnet_aux_pose_results():
    truth = film(num_frames=4)
    frames = []
    for frame in range(4):
        points = [Keypoint(*(point / SIZE)) for point in truth.body.keypoints[frame].astype(float)]
        body = [point if found > 0 else None for point, found in zip(points[:18], truth.body.confidence[frame])]
        left = points[LEFT_HAND]
        left[7] = Keypoint(-1 / SIZE[0], -1 / SIZE[1])  # how it marks a point that was not found
        frames.append([PoseResult(BodyResult(body), left, None, None)])
    motion = load_openpose_motion(frames, 24, *SIZE, smoothed=False)
    np.testing.assert_allclose(motion.body.keypoints[:, :18], truth.body.keypoints[:, :18], atol=1e-2)
    assert (motion.body.confidence[:, RIGHT_HAND] == 0).all()
    assert np.flatnonzero((motion.body.confidence[:, LEFT_HAND] == 0).all(axis=0)).tolist() == [7]


def test_controlnet_aux_dwpose_and_the_threshold():
    truth = film(num_frames=4)
    points = np.zeros((4, 1, 134, 2))
    points[:, 0, :18] = truth.body.keypoints[:, :18]
    points[:, 0, 18:21], points[:, 0, 21:24] = truth.body.keypoints[:, [18]], truth.body.keypoints[:, [19]]
    points[:, 0, 92:113] = truth.body.keypoints[:, LEFT_HAND]
    points[:, 0, 113:] = truth.body.keypoints[:, RIGHT_HAND]
    scores = np.full((4, 1, 134), 0.9)
    scores[:, 0, 7] = 0.29  # left wrist
    scores[:, 0, 4] = 0.3  # right wrist
    motion = load_openpose_motion(list(zip(points, scores)), 24, *SIZE, smoothed=False)
    np.testing.assert_allclose(motion.body.keypoints, truth.body.keypoints, atol=1e-2)
    assert (motion.body.confidence[:, JOINT_INDEX["left_wrist"]] < 0.5).all()
    np.testing.assert_allclose(motion.body.confidence[:, JOINT_INDEX["right_wrist"]], 0.5, atol=1e-6)
    assert motion.body.confidence[:, 0] == pytest.approx(1)
    strict = load_openpose_motion(list(zip(points, scores)), 24, *SIZE, threshold=0.95, smoothed=False)
    assert (strict.body.confidence < 0.5).all()


def test_the_chosen_person_is_followed(warnings):
    truth = film(num_frames=10)
    near, far = film(num_frames=10, zoom=0.5), film(num_frames=10, zoom=0.3)

    def people(frame):
        both = [openpose_person(far, frame, shift=200.0), openpose_person(near, frame, shift=-150.0)]
        # The order of the list changes from frame to frame; in one frame nobody was found.
        return {"people": [] if frame == 5 else both[:: -1 if frame % 2 else 1]}

    frames = [people(frame) for frame in range(10)]
    motion = load_openpose_motion(frames, 24, *SIZE, smoothed=False)
    np.testing.assert_allclose(motion.body.keypoints[8, BODY], near.body.keypoints[8, BODY] - [150, 0], atol=20)
    np.testing.assert_allclose(motion.body.keypoints[9, 1], near.body.keypoints[9, 1] - [150, 0], atol=1e-2)
    assert motion.people.tolist() == [0] * 5 + [-1] + [0] * 4
    assert "Several people were found" in warnings.text
    # The frame without people is bridged.
    between = (motion.body.keypoints[4] + motion.body.keypoints[6]) / 2
    np.testing.assert_allclose(motion.body.keypoints[5], between, atol=1e-2)
    assert (motion.body.confidence[5, :8] > 0.5).all()
    x, y = far.body.keypoints[0, 1] + [200, 0]
    for person in (1, (x, y), (x - 20, y - 20, x + 20, y + 20)):
        chosen = load_openpose_motion(frames, 24, *SIZE, person=person, smoothed=False)
        np.testing.assert_allclose(chosen.body.keypoints[9, 1], far.body.keypoints[9, 1] + [200, 0], atol=1e-2)
    with pytest.raises(ValueError, match="`person` is 2, but 2 were found"):
        load_openpose_motion(frames, 24, *SIZE, person=2)
    assert len(truth) == 10


def test_jitter_is_taken_out():
    truth = film(num_frames=48)
    rng = np.random.default_rng(0)
    noisy = film(num_frames=48)
    noisy.body.keypoints = noisy.body.keypoints + rng.normal(size=noisy.body.keypoints.shape) * 2
    frames = [{"people": [openpose_person(noisy, frame)]} for frame in range(48)]
    motion = load_openpose_motion(frames, 24, *SIZE)
    still = [JOINT_INDEX[name] for name in ("neck", "left_hip", "right_knee", "nose")]
    error = np.std(motion.body.keypoints[:, still] - truth.body.keypoints[:, still])
    assert error < 0.5 * np.std(noisy.body.keypoints[:, still] - truth.body.keypoints[:, still])


@pytest.mark.parametrize(
    ("source", "kwargs", "message"),
    [
        ([], {}, "no frames"),
        ([{"people": []}], {}, "no person"),
        ([{"people": [{"pose_keypoints_2d": [1.0, 2.0, 1.0] * 17}]}], {}, "of frame 0 has 17 points, but 18 or 25"),
        ([{"people": [{"pose_keypoints_2d": [1.0] * 20}]}], {}, "has 20 values"),
        ([{"people": [{"pose_keypoints_2d": [float("nan")] * 54}]}], {}, "all finite"),
        ([{"persons": []}], {}, "frame 0 that is neither"),
        ([(np.zeros((1, 133, 2)), np.zeros((1, 133)))], {}, r"\(1, 133, 2\)"),
        ([{"people": []}], {"threshold": 0}, "`threshold`"),
        ([{"people": []}], {"width": None}, "`width` and `height`"),
    ],
)
def test_bad_sources_are_named(source, kwargs, message):
    with pytest.raises(ValueError, match=message):
        load_openpose_motion(source, 24, **{"width": 640, "height": 480, **kwargs})


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="names no file or folder"):
        load_openpose_motion(tmp_path / "absent", 24, 640, 480)
    with pytest.raises(FileNotFoundError, match="without .json files"):
        load_openpose_motion(tmp_path, 24, 640, 480)
    (tmp_path / "broken.json").write_text("{people:")
    with pytest.raises(ValueError, match="not JSON.*broken.json"):
        load_openpose_motion(tmp_path, 24, 640, 480)


@pytest.mark.parametrize("motion", ["stand", "talk", "wave", "turn", "sit", "walk"])
def test_lifting_keeps_the_picture_and_comes_near_the_truth(motion):
    truth = film(motion, 48)
    keypoints, confidence = truth.body.keypoints, truth.body.confidence
    rotation, head_confidence = estimate_heads(keypoints, confidence, truth.focal_length, *SIZE)
    joints = lift_keypoints(keypoints, confidence, *SIZE, truth.focal_length, rotation)
    np.testing.assert_allclose(project(joints, truth.focal_length, *SIZE), keypoints, atol=1e-3)
    scale = estimate_scale(keypoints, confidence)
    np.testing.assert_allclose(scale, truth.focal_length / truth.body.joints[:, 1, 2], rtol=0.12)
    error = np.degrees((Rotation.from_matrix(rotation).inv() * Rotation.from_matrix(truth.head.rotation)).magnitude())
    assert np.median(error) < 6
    directions = []
    for child, parent in BONES:
        ok = (np.minimum(confidence[:, child], confidence[:, parent]) > 0) & (child < 20)
        if ok.any() and child < 14:
            ours, true = (
                joints[ok, child] - joints[ok, parent],
                truth.body.joints[ok, child] - truth.body.joints[ok, parent],
            )
            cosine = (ours * true).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(true, axis=-1)
            directions.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean())
    assert np.mean(directions) < 12


def test_a_limb_towards_the_camera_keeps_its_length():
    truth = film("stand", 20)
    keypoints, confidence = truth.body.keypoints.copy(), truth.body.confidence
    # The right forearm swings up to the camera: it looks shorter and shorter.
    elbow, wrist = JOINT_INDEX["right_elbow"], JOINT_INDEX["right_wrist"]
    full = keypoints[:, wrist] - keypoints[:, elbow]
    angle = np.radians(np.linspace(0, 80, 20))
    keypoints[:, wrist] = keypoints[:, elbow] + full * np.cos(angle)[:, None]
    rotation, _ = estimate_heads(keypoints, confidence, truth.focal_length, *SIZE)
    joints = lift_keypoints(keypoints, confidence, *SIZE, truth.focal_length, rotation)
    forearm = joints[:, wrist] - joints[:, elbow]
    length = np.linalg.norm(forearm, axis=-1)
    assert length.max() / length.min() < 1.15
    toward = np.degrees(np.arcsin(-forearm[:, 2] / length))
    assert abs(toward[-1] - 80) < 8 and abs(toward[0]) < 30 and (np.diff(toward) > -1e-6).all()


def test_nobody_seen_gives_no_head():
    rotation, confidence = estimate_heads(np.zeros((3, 62, 2)), np.zeros((3, 62)), 500, *SIZE)
    assert (confidence == 0).all() and np.isfinite(rotation).all()
    assert np.isfinite(estimate_scale(np.zeros((3, 62, 2)), np.zeros((3, 62)))).all()
