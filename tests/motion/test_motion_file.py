import av
import numpy as np
import pytest

from diffusers_dreamactor import MotionSequence
from diffusers_dreamactor.cli import main
from diffusers_dreamactor.motion.capture.bvh import load_bvh_motion
from diffusers_dreamactor.motion.capture.motion_file import is_motion_file, load_motion_file
from diffusers_dreamactor.motion.capture.openpose import load_openpose_motion

from .test_bvh import write_bvh
from .test_openpose import film, openpose_person, write_folder


def test_what_is_a_motion_file(tmp_path):
    assert all(is_motion_file(name) for name in (tmp_path, "a.bvh", "a.BVH", "a.json", "a.npz"))
    assert not any(is_motion_file(name) for name in ("a.mp4", "a.gif", "a.safetensors"))


def test_capture_takes_bvh(tmp_path):
    write_bvh(tmp_path / "walk.bvh", num_frames=8)
    command = ["capture", str(tmp_path / "walk.bvh"), "--output", str(tmp_path / "out.safetensors")]
    assert main([*command, "--size", "480x640", "--frames", "5", "--preview"]) == 0
    motion = MotionSequence.load(tmp_path / "out.safetensors")
    expected = load_bvh_motion(tmp_path / "walk.bvh", width=480, height=640)[:5]
    assert (motion.width, motion.height, len(motion)) == (480, 640, 5)
    np.testing.assert_allclose(motion.body.keypoints, expected.body.keypoints, atol=0.1)
    with av.open(str(tmp_path / "out.preview.mp4")) as container:
        assert len(list(container.decode(video=0))) == 5


def test_capture_takes_keypoints_of_openpose(tmp_path, capsys):
    filmed = film(num_frames=4)
    people = [[openpose_person(filmed, frame)] for frame in range(4)]
    folder = write_folder(tmp_path / "keypoints", people)
    command = ["capture", str(folder), "--output", str(tmp_path / "out.safetensors"), "--size", "640x480"]
    assert main([*command, "--fps", "12"]) == 0
    motion = MotionSequence.load(tmp_path / "out.safetensors")
    expected = load_openpose_motion(folder, 12, 640, 480)
    np.testing.assert_allclose(motion.body.keypoints, expected.body.keypoints, atol=0.1)
    (tmp_path / "out.safetensors").unlink()
    assert main(command) == 1
    assert "`--fps` is needed" in capsys.readouterr().err and not (tmp_path / "out.safetensors").exists()


def test_arguments_of_another_format(tmp_path):
    write_bvh(tmp_path / "walk.bvh")
    with pytest.raises(
        ValueError, match="`smplx` was given, but it is for an .npz file of SMPL-X, and this is walk.bvh"
    ):
        load_motion_file(tmp_path / "walk.bvh", smplx="models")


def test_capture_takes_smplx(tmp_path):
    pytest.importorskip("anny")
    zeros = np.zeros((4, 3))
    arrays = {"poses": np.zeros((4, 165)), "trans": zeros, "betas": np.zeros(16), "mocap_frame_rate": np.array(30.0)}
    np.savez(tmp_path / "amass.npz", gender="neutral", surface_model_type="smplx", **arrays)
    command = ["capture", str(tmp_path / "amass.npz"), "--output", str(tmp_path / "out.safetensors")]
    assert main([*command, "--size", "480x640"]) == 0
    motion = MotionSequence.load(tmp_path / "out.safetensors")
    assert (len(motion), motion.fps, motion.width) == (4, 30, 480)
    head, ankle = motion.head.center[0], motion.body.keypoints[0, 10]
    assert 0 < head[1] < ankle[1] < 640
