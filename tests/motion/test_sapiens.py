import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_dreamactor.cli import main
from diffusers_dreamactor.media import save_video
from diffusers_dreamactor.motion.capture import sapiens
from diffusers_dreamactor.motion.capture.sapiens import SapiensCapture
from diffusers_dreamactor.motion.sequence import MotionSequence, project
from diffusers_dreamactor.motion.skeleton import BODY, GOLIATH_MAPPING, JOINT_INDEX, JOINT_NAMES


transformers = pytest.importorskip("transformers", minversion="5.0")
if not hasattr(transformers, "Sapiens2ForPoseEstimation"):
    pytest.skip("this version of transformers has no Sapiens2", allow_module_level=True)


def config(num_labels, scale=False, image_size=(64, 48)):
    head = transformers.Sapiens2HeadConfig(
        upsample_out_channels=[16, 16],
        conv_out_channels=[16],
        scale_conv_out_channels=[8] if scale else None,
        scale_final_hidden_sizes=[8, 8] if scale else None,
    )
    return transformers.Sapiens2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        image_size=list(image_size),
        patch_size=16,
        num_register_tokens=0,
        num_labels=num_labels,
        head_config=head,
    )


@pytest.fixture(scope="module")
def capture():
    """A tiny random Sapiens2; its heatmaps are raised so that points count as found, its pointmap is 3 m away."""
    torch.manual_seed(0)
    pose = transformers.Sapiens2ForPoseEstimation(config(308))
    pointmap = transformers.Sapiens2ForPointmapEstimation(config(3, scale=True))
    with torch.no_grad():
        pose.decode_head.predictor.bias.fill_(0.7)
        pointmap.decode_head.predictor.weight.mul_(0.01)
        pointmap.decode_head.predictor.bias[2] = 3.0
        pointmap.scale_head.predictor.proj.weight.zero_()
        pointmap.scale_head.predictor.proj.bias.fill_(0.5)
    return SapiensCapture(pose, pointmap)


def noise_video(num_frames=4, width=96, height=80):
    return np.random.default_rng(0).integers(0, 255, (num_frames, height, width, 3), dtype=np.uint8)


def test_mapping_is_of_the_308_points():
    assert set(GOLIATH_MAPPING) == set(JOINT_NAMES)
    assert GOLIATH_MAPPING["right_hand_thumb_4"] == (21,) and GOLIATH_MAPPING["right_hand_thumb_1"] == (24,)
    assert GOLIATH_MAPPING["right_hand_index_1"] == (28,) and GOLIATH_MAPPING["right_hand_little_1"] == (40,)
    assert GOLIATH_MAPPING["left_hand_thumb_4"] == (42,) and GOLIATH_MAPPING["left_hand_little_1"] == (61,)
    assert GOLIATH_MAPPING["right_wrist"] == (41,) and GOLIATH_MAPPING["left_wrist"] == (62,)
    used = sorted({index for name, indices in GOLIATH_MAPPING.items() for index in indices})
    assert used == [index for index in range(63) if index not in (17, 20)]  # all but the heels


def test_heatmaps_are_read_to_a_fraction_of_a_pixel():
    rng = np.random.default_rng(0)
    truth = rng.uniform([8, 8], [39, 55], (20, 2))
    y, x = np.mgrid[:64, :48]
    heatmaps = np.exp(-((x - truth[:, :1, None]) ** 2 + (y - truth[:, 1:, None]) ** 2) / (2 * 2.0**2)) * 0.8
    region = np.array([0.0, 0.0, 47.0, 63.0])
    points, scores = sapiens.read_heatmaps(heatmaps, region)
    np.testing.assert_allclose(points - 0.5, truth, atol=0.02)
    assert (np.abs(scores - 0.8) < 0.06).all()
    flat, score = sapiens.read_heatmaps(np.full((1, 64, 48), -0.2), region)
    assert np.isfinite(flat).all() and score == 0


@pytest.mark.parametrize("box", [(20, 30, 120, 160), (-40, 10, 60, 90), (100, 100, 110, 190)])
def test_crops_and_heatmaps_agree_about_places(box):
    region = sapiens.padded_box(np.array(box, dtype=float), 256, 192)
    assert region[2] / region[3] == pytest.approx(192 / 256)
    assert region[2] >= 1.25 * (box[2] - box[0]) - 1e-9 and region[3] >= 1.25 * (box[3] - box[1]) - 1e-9
    y, x = np.mgrid[:200, :160]
    spot = np.array([(max(box[0], 0) + min(box[2], 159)) / 2, (box[1] + box[3]) / 2])
    bright = 255 * np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / (2 * 3.0**2))
    frame = np.repeat(bright[..., None], 3, axis=-1).astype(np.uint8)
    crop = sapiens.crop_person(frame, region, 256, 192)
    points, _ = sapiens.read_heatmaps(crop[None, ..., 0] / 255, region)
    np.testing.assert_allclose(points[0], spot + 0.5, atol=0.15)


@pytest.mark.parametrize("size", [(80, 96), (200, 90), (64, 48)])
def test_fitted_picture_and_pointmap_agree_about_places(size):
    height, width = size
    y, x = np.mgrid[:height, :width]
    frame = np.stack([x * 255 / width, y * 255 / height, np.full(size, 255)], axis=-1).astype(np.uint8)
    fitted, scale, offset = sapiens.fit_picture(frame, 64, 48)
    assert fitted.shape == (64, 48, 3)
    points = np.array([[0.3 * width, 0.4 * height], [0.7 * width, 0.6 * height]])
    found = sapiens.sample_pointmap(fitted.transpose(2, 0, 1).astype(float), points * scale + offset)
    np.testing.assert_allclose(found[:, :2] / 255, points / [width, height], atol=0.03)
    np.testing.assert_allclose(found[:, 2], 255)
    outside = fitted[:, : offset[0]].size + fitted[: offset[1]].size
    assert (outside > 0) == (height / width != 64 / 48)


def test_focal_length_from_points():
    rng = np.random.default_rng(0)
    points = rng.uniform([-1, -1, 2], [1, 1, 4], (30, 3))
    keypoints = project(points, 900, 640, 480)
    assert sapiens.focal_length_of(points, keypoints, 640, 480) == pytest.approx(900, rel=1e-5)
    assert np.isnan(sapiens.focal_length_of(-points, keypoints, 640, 480))
    assert np.isnan(sapiens.focal_length_of(points * [-1, -1, 1], keypoints, 640, 480))


def test_depth_of_what_hides_a_joint_is_not_taken():
    depth = np.full(62, 3.0)
    keypoints = np.zeros((62, 2))
    wrist, elbow = JOINT_INDEX["left_wrist"], JOINT_INDEX["left_elbow"]
    depth[wrist] = 1.0  # a table in front of it
    depth[elbow] = 2.9
    steady = sapiens.steady_depth(keypoints, depth, 800.0)
    assert steady[elbow] == 2.9 and 2.5 < steady[wrist] < 2.7
    np.testing.assert_array_equal(np.delete(steady[:20], wrist), np.delete(depth[:20], wrist))


def test_capture_gives_a_consistent_motion(capture):
    motion = capture.capture(noise_video(), fps=12, progress=False)
    motion.validate()
    assert len(motion) == 4 and motion.fps == 12 and (motion.width, motion.height) == (96, 80)
    np.testing.assert_allclose(
        project(motion.body.joints, motion.focal_length, 96, 80), motion.body.keypoints, atol=1e-2
    )
    assert (motion.body.confidence > 0.5).all() and motion.people.tolist() == [0] * 4
    assert motion.face is not None and motion.head is not None
    # The pointmap is about 3 m away for half the canonical focal length: 6 m.
    assert np.median(motion.body.joints[..., 2]) == pytest.approx(6, abs=0.5)


def test_capture_of_a_picture_and_without_pointmap(capture):
    lifted = SapiensCapture(capture.pose_model)
    motion = lifted.capture(Image.fromarray(noise_video(1)[0]), progress=False)
    assert len(motion) == 1 and np.isfinite(motion.body.joints).all()
    with_depth = capture.capture(Image.fromarray(noise_video(1)[0]), progress=False)
    np.testing.assert_allclose(with_depth.body.keypoints, motion.body.keypoints, atol=1e-3)
    assert np.abs(with_depth.body.joints[..., 2] - motion.body.joints[..., 2]).max() > 0.1


def test_save_and_load(capture, tmp_path):
    capture.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pointmap", "pose"]
    loaded = SapiensCapture.from_pretrained(tmp_path)
    video = noise_video(2)
    a, b = capture.capture(video, progress=False), loaded.capture(video, progress=False)
    np.testing.assert_allclose(a.body.joints, b.body.joints, atol=1e-4)
    assert SapiensCapture.from_pretrained(tmp_path / "pose").pointmap_model is None
    with pytest.raises(OSError):
        SapiensCapture.from_pretrained(tmp_path / "absent")


def test_the_person_is_chosen_by_box_or_detector(capture):
    video = noise_video(1, 200, 100)
    left = capture.capture(video, person=(0, 0, 60, 100), progress=False)
    assert left.body.keypoints[..., 0].max() < 100
    boxes = np.array([[120.0, 10, 160, 90], [10, 10, 90, 95]])
    detected = SapiensCapture(capture.pose_model, detector=lambda frame: boxes)
    for person, expected in ((None, 1), (0, 1), (1, 0), ((140.0, 50.0), 0)):
        reference = capture.capture(video, person=tuple(boxes[expected]), progress=False)
        motion = detected.capture(video, person=person, progress=False)
        np.testing.assert_allclose(motion.body.keypoints, reference.body.keypoints, atol=1e-3)
    with pytest.raises(ValueError, match="`person` is 2, but 2 were found"):
        detected.capture(video, person=2, progress=False)
    with pytest.raises(ValueError, match="without a detector"):
        capture.capture(video, person=1, progress=False)


def test_who_was_chosen_is_waited_for(capture):
    boxes = np.array([[120.0, 10, 160, 90], [10, 10, 90, 95]])
    video = noise_video(3, 200, 100)
    video[0] = 0

    def see_nobody_in_the_dark(module, args, kwargs, output):
        if kwargs["pixel_values"].flatten(2).std(dim=2).max() < 1e-3:
            output.heatmaps.zero_()

    detected = SapiensCapture(capture.pose_model, detector=lambda frame: boxes)
    handle = capture.pose_model.register_forward_hook(see_nobody_in_the_dark, with_kwargs=True)
    motion = detected.capture(video, person=(140.0, 50.0), progress=False, smooth=False)
    handle.remove()
    expected = capture.capture(video[1:], person=tuple(boxes[0]), progress=False, smooth=False)
    np.testing.assert_allclose(motion.body.keypoints[1:], expected.body.keypoints, atol=1e-3)


def bright_is_somebody(module, args, kwargs, output):
    """The segmentation of a picture of white people on black."""
    brightness = torch.nn.functional.interpolate(
        kwargs["pixel_values"].mean(dim=1, keepdim=True), output.logits.shape[2:]
    )
    output.logits.fill_(-100.0)
    output.logits[:, 0:2] = torch.cat([-brightness, brightness], dim=1)


def test_masks_lie_where_the_person_is(capture, tmp_path):
    torch.manual_seed(0)
    segmentation = transformers.Sapiens2ForSemanticSegmentation(config(29, image_size=(256, 192)))
    both = SapiensCapture(capture.pose_model, segmentation_model=segmentation)
    both.save_pretrained(tmp_path)
    loaded = SapiensCapture.from_pretrained(tmp_path)
    assert loaded.pointmap_model is None and loaded.segmentation_model.config.num_labels == 29

    video = np.zeros((2, 160, 200, 3), dtype=np.uint8)
    video[:, 40:120, 60:100] = 255
    # somebody else, who stands apart, but in the same crop
    video[:, 50:110, 110:118] = 255
    motion = loaded.capture(noise_video(2, 200, 160), progress=False)
    motion.head = None
    motion.body.keypoints[:, BODY] = np.linspace([63, 43], [97, 117], 20)
    motion.body.confidence[:] = 1.0
    motion.body.confidence[1] = 0.0
    loaded.segmentation_model.register_forward_hook(bright_is_somebody, with_kwargs=True)
    mask, nobody = loaded.segment(video, motion, progress=False)
    truth = np.zeros((160, 200), dtype=bool)
    truth[40:120, 60:100] = True
    assert mask.shape == truth.shape and mask.dtype == np.float32
    assert ((mask >= 0.5) & truth).sum() / ((mask >= 0.5) | truth).sum() > 0.93
    assert mask[50:110, 112:116].max() < 0.5
    assert not nobody.any()
    motion.body.confidence[1] = 1.0
    video[1] = 0
    assert list(loaded.segment(video, motion, progress=False))[1] is None


def test_masks_without_a_model_are_refused_before_the_work(capture):
    motion = capture.capture(noise_video(1), progress=False)
    with pytest.raises(ValueError, match="`segmentation_model` is None"):
        capture.segment(noise_video(1), motion)


def test_nobody_and_other_models_are_named(capture):
    torch.manual_seed(0)
    blind = transformers.Sapiens2ForPoseEstimation(config(308))
    with torch.no_grad():
        blind.decode_head.predictor.bias.fill_(-1.0)
    with pytest.raises(ValueError, match="shows no person: no body was found in any of its 2 frames"):
        SapiensCapture(blind).capture(noise_video(2), progress=False)
    with pytest.raises(ValueError, match="gives 17 points, but Sapiens2's 308"):
        SapiensCapture(transformers.Sapiens2ForPoseEstimation(config(17)))


def test_the_command_captures_with_sapiens(tmp_path, capture):
    capture.save_pretrained(tmp_path / "sapiens")
    frames = np.random.default_rng(0).integers(0, 255, (3, 96, 72, 3), dtype=np.uint8)
    save_video(frames, tmp_path / "dance.mp4", 12)
    command = ["capture", str(tmp_path / "dance.mp4"), "--output", str(tmp_path / "out.safetensors")]
    assert main([*command, "--sapiens", str(tmp_path / "sapiens"), "--device", "cpu"]) == 0
    motion = MotionSequence.load(tmp_path / "out.safetensors")
    expected = capture.capture(tmp_path / "dance.mp4", progress=False)
    assert (len(motion), motion.fps) == (3, 12)
    np.testing.assert_allclose(motion.body.keypoints, expected.body.keypoints, atol=0.1)
