import colorsys

import numpy as np
import pytest

from diffusers_dreamactor.motion.sequence import BodyTrack, MotionSequence
from diffusers_dreamactor.motion.skeleton import BODY, JOINT_INDEX, LEFT_HAND, NUM_JOINTS, RIGHT_HAND
from diffusers_dreamactor.processors.body_skeleton import (
    DREAMACTOR_LIMBS,
    HAND_EDGES,
    WAN_COLORS,
    WAN_LIMBS,
    BodySkeletonProcessor,
)


def points_motion(points: dict[str, tuple], height: int, width: int) -> MotionSequence:
    """One frame with only the named joints: (x, y) or (x, y, depth)."""
    keypoints = np.zeros((1, NUM_JOINTS, 2))
    joints = np.ones((1, NUM_JOINTS, 3))
    confidence = np.zeros((1, NUM_JOINTS))
    for name, point in points.items():
        keypoints[0, JOINT_INDEX[name]] = point[:2]
        joints[0, JOINT_INDEX[name], 2] = point[2] if len(point) == 3 else 1
        confidence[0, JOINT_INDEX[name]] = 1
    return MotionSequence(24, width, height, 500, body=BodyTrack(joints, keypoints, confidence))


def draw_with_opencv(cv2, keypoints: np.ndarray, visible: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pose picture as the source model's format describes it, by the library that it was made with."""
    canvas = np.zeros((height, width, 3), dtype=np.uint8)
    stick = max(int(min(height, width) / 200) - 1, 1)
    for (a, b), color in zip(WAN_LIMBS, WAN_COLORS):
        if visible[a] and visible[b]:
            (xa, ya), (xb, yb) = keypoints[a], keypoints[b]
            length = np.hypot(xa - xb, ya - yb)
            angle = np.degrees(np.arctan2(ya - yb, xa - xb))
            axes = (int(length / 2), stick)
            polygon = cv2.ellipse2Poly((int((xa + xb) / 2), int((ya + yb) / 2)), axes, int(angle), 0, 360, 1)
            cv2.fillConvexPoly(canvas, polygon, [int(0.6 * channel) for channel in color])
    for joint in range(20):
        if visible[joint]:
            cv2.circle(canvas, [int(value) for value in keypoints[joint]], stick, WAN_COLORS[joint], thickness=-1)
    line = max(stick // 2, 1)
    for hand in (LEFT_HAND, RIGHT_HAND):
        points = [[int(value) for value in point] for point in keypoints[hand]]
        for edge, (a, b) in enumerate(HAND_EDGES):
            color = [255 * channel for channel in colorsys.hsv_to_rgb(edge / 20, 1, 1)]
            cv2.line(canvas, points[a], points[b], color, thickness=line)
        for point in points:
            cv2.circle(canvas, point, line, (0, 0, 255), thickness=-1)
    return canvas


@pytest.mark.parametrize(("height", "width"), [(480, 832), (720, 1280), (96, 96), (1280, 720)])
def test_wan_style_is_opencvs_drawing(stick_figure, height, width):
    cv2 = pytest.importorskip("cv2", reason="the drawing to compare with is OpenCV's (it comes with mediapipe)")
    motion = stick_figure(5, height, width)
    pictures = BodySkeletonProcessor(style="wan")(motion, height, width)
    for index in range(5):
        expected = draw_with_opencv(cv2, motion.body.keypoints[index], np.ones(NUM_JOINTS, bool), height, width)
        drawn = (expected > 0).any(axis=-1).sum()
        wrong = (pictures[index].transpose(1, 2, 0) != expected).any(axis=-1).sum()
        assert drawn > 200
        assert wrong == 0


def test_wan_style_colours_and_widths():
    height, width = 1000, 1200  # stick width int(1000 / 200) - 1 = 4
    points = {"neck": (600.0, 300.0), "right_shoulder": (400.0, 300.0), "left_toe": (100.0, 900.0)}
    picture = BodySkeletonProcessor(style="wan")(points_motion(points, height, width), height, width)[0]
    assert tuple(picture[:, 300, 500]) == (153, 0, 0)  # the first limb's (255, 0, 0) times 0.6
    assert (picture[0, :, 500] > 0).sum() == 9  # half width 4 around the centre row
    assert tuple(picture[:, 300, 600]) == (255, 85, 0)  # joint 2, over the limb
    assert tuple(picture[:, 296, 600]) == (255, 85, 0) and not picture[:, 295, 600].any()
    assert tuple(picture[:, 900, 100]) == (200, 200, 0)  # joint 19
    assert tuple(picture[:, 900, 104]) == (200, 200, 0) and not picture[:, 900, 105].any()


def test_wan_style_hand_edges_and_points():
    height, width = 480, 832
    points = {"left_hand_wrist": (100.0, 100.0), "left_hand_index_1": (140.0, 100.0)}
    picture = BodySkeletonProcessor(style="wan")(points_motion(points, height, width), height, width)[0]
    hue = tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(4 / 20, 1, 1))
    assert tuple(picture[:, 100, 120]) == hue
    assert not picture[:, 101, 120].any()  # one pixel wide
    for x in (100, 140):
        assert tuple(picture[:, 100, x]) == (0, 0, 255) and tuple(picture[:, 99, x]) == (0, 0, 255)
    without = BodySkeletonProcessor(style="wan", draw_hands=False)(points_motion(points, height, width), height, width)
    assert not without.any()


@pytest.mark.parametrize("style", ["dreamactor", "wan"])
def test_joints_under_the_threshold_are_not_drawn(stick_figure, style):
    motion = stick_figure(1)
    motion.body.confidence[:] = 0.49
    assert not BodySkeletonProcessor(style)(motion, 480, 832).any()
    assert BodySkeletonProcessor(style, threshold=0.4)(motion, 480, 832).any()
    motion.body.confidence[:, [JOINT_INDEX["neck"], JOINT_INDEX["left_hip"]]] = 0.5
    picture = BodySkeletonProcessor(style)(motion, 480, 832)[0]
    ends = motion.body.keypoints[0, [JOINT_INDEX["neck"], JOINT_INDEX["left_hip"]]]
    rows, columns = np.nonzero(picture.any(axis=0))
    low, high = ends.min(axis=0) - 8, ends.max(axis=0) + 8
    assert len(rows) and rows.min() >= low[1] and rows.max() <= high[1]
    assert columns.min() >= low[0] and columns.max() <= high[0]


def test_nearer_limb_covers_the_farther_one():
    arms = {
        "left_elbow": (20.0, 20.0, 2.0), "left_wrist": (80.0, 80.0, 2.0),
        "right_elbow": (80.0, 20.0, 1.0), "right_wrist": (20.0, 80.0, 1.0),
    }  # fmt: skip
    colors = {(a, b): color for a, b, color, _ in DREAMACTOR_LIMBS}
    left = colors[JOINT_INDEX["left_elbow"], JOINT_INDEX["left_wrist"]]
    right = colors[JOINT_INDEX["right_elbow"], JOINT_INDEX["right_wrist"]]
    processor = BodySkeletonProcessor(stick_width=8)
    assert tuple(processor(points_motion(arms, 100, 100), 100, 100)[0, :, 50, 50]) == right
    nearer_left = {k: (*v[:2], 0.5) if k.startswith("left") else v for k, v in arms.items()}
    assert tuple(processor(points_motion(nearer_left, 100, 100), 100, 100)[0, :, 50, 50]) == left
    # Unknown depth: drawn all the same, in a fixed order.
    flat = points_motion(arms, 100, 100)
    flat.body.joints[..., 2] = np.nan
    assert tuple(processor(flat, 100, 100)[0, :, 50, 50]) in (left, right)


def test_dreamactor_colours_are_distinct():
    colors = np.array([color for a, _, color, _ in DREAMACTOR_LIMBS if a < BODY.stop], dtype=float)
    distance = np.linalg.norm(colors[:, None] - colors[None], axis=-1) + 1e3 * np.eye(len(colors))
    assert distance.min() > 50
    fingers = {(a >= RIGHT_HAND.start, color) for a, _, color, _ in DREAMACTOR_LIMBS if a >= LEFT_HAND.start}
    assert len(fingers) == 10 and len({color for _, color in fingers}) == 10
    assert min(max(color) for _, _, color, _ in DREAMACTOR_LIMBS) >= 150  # none is lost on black


@pytest.mark.parametrize(("height", "width"), [(96, 96), (480, 832), (960, 640)])
def test_width_grows_with_the_picture(height, width):
    points = {"left_elbow": (0.2 * width, height / 2), "left_wrist": (0.8 * width, height / 2)}
    picture = BodySkeletonProcessor()(points_motion(points, height, width), height, width)[0]
    thickness = picture[0, :, width // 2].astype(float).sum() / 255
    assert thickness == pytest.approx(0.022 * min(height, width), rel=0.02)


def test_drawing_is_sub_pixel_exact():
    processor = BodySkeletonProcessor(stick_width=4)
    for y in (50.0, 50.25, 50.6):
        points = {"left_elbow": (20.0, y), "left_wrist": (80.0, y)}
        column = processor(points_motion(points, 100, 100), 100, 100)[0, 0, :, 50].astype(float)
        assert (column * (np.arange(100) + 0.5)).sum() / column.sum() == pytest.approx(y, abs=0.02)
        assert column.sum() / 255 == pytest.approx(4, abs=0.02)


def test_left_and_right_are_told_apart(stick_figure):
    front = stick_figure(1, 200, 200, turn=0)
    mirrored = stick_figure(1, 200, 200, turn=0)
    mirrored.body.keypoints[..., 0] = 200 - mirrored.body.keypoints[..., 0]
    processor = BodySkeletonProcessor(draw_hands=False)
    a = processor(front, 200, 200)[0].astype(int)
    b = processor(mirrored, 200, 200)[0].astype(int)
    assert np.abs(a - b[:, :, ::-1]).max() <= 1  # the same drawing, mirrored ...
    shape_only = a.max(axis=0) > 40
    assert np.abs(a - a[:, :, ::-1])[:, shape_only].max(axis=0).mean() > 80  # ... which is not the drawing itself


@pytest.mark.parametrize("style", ["dreamactor", "wan"])
def test_joints_far_outside_or_not_finite_do_no_harm(stick_figure, style):
    motion = stick_figure(2, 96, 96)
    expected = BodySkeletonProcessor(style)(motion, 96, 96)
    hidden = stick_figure(2, 96, 96)
    hidden.body.confidence[:, JOINT_INDEX["left_toe"]] = 0
    motion.body.keypoints[0, JOINT_INDEX["left_toe"]] = np.nan
    motion.body.keypoints[1] += 1e7
    pictures = BodySkeletonProcessor(style)(motion, 96, 96)
    np.testing.assert_array_equal(pictures[0], BodySkeletonProcessor(style)(hidden, 96, 96)[0])
    assert not pictures[1].any() and expected[1].any()


def test_no_body_is_black(stick_figure):
    motion = stick_figure(3, 64, 64)
    motion.body = None
    pictures = BodySkeletonProcessor()(motion, 64, 64)
    assert pictures.shape == (3, 3, 64, 64) and pictures.dtype == np.uint8 and not pictures.any()


def test_bad_arguments():
    with pytest.raises(ValueError, match="`style` is 'openpose'.*dreamactor, wan"):
        BodySkeletonProcessor(style="openpose")
    with pytest.raises(ValueError, match="`stick_width` is 0"):
        BodySkeletonProcessor(stick_width=0)


def test_config_round_trip(tmp_path):
    BodySkeletonProcessor("wan", stick_width=3, draw_hands=False, threshold=0.3).save_pretrained(tmp_path)
    loaded = BodySkeletonProcessor.from_pretrained(tmp_path)
    config = {name: loaded.config[name] for name in ("style", "stick_width", "draw_hands", "threshold")}
    assert config == {"style": "wan", "stick_width": 3, "draw_hands": False, "threshold": 0.3}
