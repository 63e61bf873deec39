"""The real thing: MediaPipe on real video."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.spatial.transform import Rotation

from diffusers_dreamactor.media import VideoReader
from diffusers_dreamactor.motion.sequence import head_yaw_pitch_roll, project
from diffusers_dreamactor.motion.skeleton import JOINT_INDEX, LEFT_HAND, RIGHT_HAND


@pytest.fixture(scope="module")
def capture(capture_models):
    from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture

    return MediaPipeCapture.from_pretrained(capture_models)


@pytest.fixture(scope="module")
def man(media):
    """Frames of a talking man, 504 x 616."""
    return [np.asarray(Image.fromarray(frame).resize((616, 504))) for frame in VideoReader(media / "carphone.mp4")]


@pytest.fixture(scope="module")
def boy(media):
    """Frames of an animated boy near the camera, 720 x 570."""
    return [frame[:, 330:900] for frame in VideoReader(media / "cartoon_character.mp4").frames(80, 140)]


def scene(*pictures) -> np.ndarray:
    """A grey picture 720 x 1280 with `(picture, x)` standing on its lower edge, as far as they are inside."""
    canvas = np.full((720, 1280, 3), (96, 110, 120), np.uint8)
    for picture, x in pictures:
        height, width = picture.shape[:2]
        left, right = max(x, 0), min(x + width, 1280)
        if right > left:
            canvas[720 - height :, left:right] = picture[:, left - x : right - x]
    return canvas


def test_every_frame_of_the_talking_man_has_a_face_and_a_head(capture, media):
    motion = capture.capture(media / "carphone.mp4", progress=False)
    motion.validate()
    assert len(motion) == 120 and motion.fps == pytest.approx(30000 / 1001)
    assert (motion.head.confidence >= 0.5).all() and (motion.face.confidence >= 0.5).all()
    assert (motion.people == motion.people[0]).all()
    confidence = motion.body.confidence
    assert (
        confidence[:, [JOINT_INDEX["nose"], JOINT_INDEX["left_shoulder"], JOINT_INDEX["right_shoulder"]]] >= 0.5
    ).all()
    # Legs and hands are out of the picture.
    assert (confidence[:, [JOINT_INDEX["left_knee"], JOINT_INDEX["right_ankle"]]] < 0.5).all()
    assert (confidence[:, 20:] < 0.5).all()
    # The nose lies in the face box, the box within about the head, and he hardly turns.
    nose = motion.body.keypoints[:, JOINT_INDEX["nose"]]
    assert ((nose > motion.face.boxes[:, :2]) & (nose < motion.face.boxes[:, 2:])).all()
    side = motion.face.boxes[:, 2] - motion.face.boxes[:, 0]
    assert (np.linalg.norm(motion.head.center - nose, axis=1) < motion.head.radius).all()
    assert np.abs(side / (2 * motion.head.radius) - 0.8).max() < 0.15
    assert np.abs(motion.yaw()).max() < 30
    error = np.abs(
        project(motion.body.joints, motion.focal_length, motion.width, motion.height) - motion.body.keypoints
    )
    assert error.max() < 1e-2
    # Smooth: heads do not jump by more than a few degrees from frame to frame.
    steps = Rotation.from_matrix(motion.head.rotation[:-1].transpose(0, 2, 1) @ motion.head.rotation[1:]).magnitude()
    assert np.degrees(steps).max() < 6
    # He opens his mouth wide near the end.
    jaw = motion.face.blendshapes[:, 24]
    assert jaw.max() > 0.3 and jaw.min() < 0.05


def test_the_walking_boy_has_a_body_and_a_head_from_the_start(capture, media):
    motion = capture.capture(VideoReader(media / "cartoon_character.mp4", fps=12), progress=False)
    motion.validate()
    assert len(motion) == 82 and motion.fps == 12
    shoulders = [JOINT_INDEX["left_shoulder"], JOINT_INDEX["right_shoulder"]]
    has_body = (motion.body.confidence[:, shoulders] >= 0.5).all(axis=1)
    has_head = motion.head.confidence >= 0.5
    assert has_body.mean() >= 0.95 and has_head.mean() >= 0.90 and (motion.face.confidence >= 0.5).mean() >= 0.9
    # He walks towards the camera: nearer and bigger. In the first frames he is small and the pose must be redone.
    assert motion.head.radius[75] > 1.6 * motion.head.radius[0]
    assert motion.body.joints[0, 1, 2] > 1.4 * motion.body.joints[75, 1, 2]
    below = motion.body.keypoints[:, shoulders, 1].min(axis=1) - motion.head.center[:, 1]
    assert (below > 0.8 * motion.head.radius).all()
    # He looks to the right of the picture at the end.
    assert motion.yaw()[75:].min() > 8
    # He holds up his right hand in the second half, which is on the left of the picture; the left one is out of it.
    right, left = motion.body.confidence[55:, RIGHT_HAND.start], motion.body.confidence[55:, LEFT_HAND.start]
    assert (right >= 0.5).mean() > 0.9 and (left < 0.5).all()
    wrist = motion.body.keypoints[65, RIGHT_HAND.start]
    assert 400 < wrist[0] < 560 and 520 < wrist[1] < 720


@pytest.mark.parametrize("name", ["elf", "scholar"])
def test_a_picture_gives_one_frame(capture, media, name):
    picture = Image.open(media / f"reference_{name}.jpeg")
    motion = capture.capture(picture, progress=False, face_size=64)
    motion.validate()
    assert len(motion) == 1 and (motion.width, motion.height) == picture.size
    assert motion.head.confidence[0] >= 0.5 and abs(motion.yaw()[0]) < 15
    # Both figures face the camera and hold their heads about level.
    assert abs(head_yaw_pitch_roll(motion.head.rotation)[0, 1]) < 6
    assert motion.face.crops.shape == (1, 64, 64, 3)
    assert (motion.body.confidence[0, [2, 3, 4, 5, 6, 7]] >= 0.5).all()
    # Both hands can be seen in both pictures.
    assert motion.body.confidence[0, RIGHT_HAND.start] >= 0.5 and motion.body.confidence[0, LEFT_HAND.start] >= 0.5
    x = motion.body.keypoints[0, :, 0]
    assert x[RIGHT_HAND.start] < x[JOINT_INDEX["neck"]] < x[LEFT_HAND.start]


def test_a_mirrored_picture_gives_the_mirrored_pose(capture, media):
    picture = Image.open(media / "reference_scholar.jpeg")
    motion = capture.capture(picture, progress=False)
    mirrored = capture.capture(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), progress=False)
    assert mirrored.yaw()[0] == pytest.approx(-motion.yaw()[0], abs=4)
    assert mirrored.head.center[0, 0] == pytest.approx(picture.width - motion.head.center[0, 0], abs=8)


def test_the_person_asked_for_is_followed(capture, man, boy, warned):
    frames = [scene((man[i], 12), (boy[i], 670)) for i in range(6)]
    largest = capture.capture(frames, progress=False)
    assert (largest.head.center[:, 0] > 670).all()
    assert "2 people were found; the largest is followed" in warned.text
    for choice in (1, (330, 450), (40, 230, 620, 715)):
        other = capture.capture(frames, person=choice, progress=False)
        assert (other.head.center[:, 0] < 600).all() and (other.head.confidence >= 0.5).all()


def test_bad_choices_are_named(capture, man):
    frames = [scene((man[i], 12)) for i in range(2)]
    for choice, message in [
        (1, "`person` is 1, but 1 person was found"),
        ((1200, 20), r"`person` is the point \(1200, 20\), but people were first seen at"),
        ((900, 0, 1200, 300), r"`person` is the box"),
        ("him", "`person` must be None, an index"),
    ]:
        with pytest.raises(ValueError, match=message):
            capture.capture(frames, person=choice, progress=False)


def test_people_who_cross_are_not_swapped(capture, man, boy, warned):
    steps = 18
    frames = []
    for i in range(steps):
        t = i / (steps - 1)
        frames.append(scene((boy[2 * i][:, 50:550], int(20 + 700 * t)), (man[2 * i][:, 80:560], int(740 - 720 * t))))
    motion = capture.capture(frames, fps=6, person=(250, 300), progress=False)
    # The boy is behind; he walks from the left to the right, and there is no frame in which the man stands in for him.
    path = np.linspace(20, 720, steps) + 220
    seen = motion.head.confidence >= 0.5
    assert seen[:4].all() and seen[-3:].all() and not seen.all()
    assert np.abs(motion.head.center[seen, 0] - path[seen]).max() < 130
    assert "People overlap or cross" in warned.text


def test_a_person_who_leaves_and_returns_is_said(capture, man, warned):
    place = [300, 320, 700, *[1300] * 8, 700, 320, 300]
    frames = [scene((man[i], x)) for i, x in enumerate(place)]
    motion = capture.capture(frames, fps=6, progress=False)
    assert (motion.people[3:11] == -1).all()
    assert motion.people[0] == motion.people[-1] >= 0
    assert motion.head.confidence[0] >= 0.5 and motion.head.confidence[-1] >= 0.5
    assert motion.head.confidence[6] < 0.5 and (motion.body.confidence[6] < 0.5).all()
    assert "The person left the picture or was not found in frames 3-10 (8 of 14)" in warned.text


def test_a_cut_is_said_and_nothing_is_smoothed_across(capture, man, boy, warned):
    frames = [scene((boy[i], 350)) for i in range(8)] + [np.ascontiguousarray(man[i]) for i in range(0)]
    room = np.full((720, 1280, 3), (30, 20, 160), np.uint8)
    for i in range(8):
        room[216:, 40:656] = man[i]
        frames.append(room.copy())
    motion = capture.capture(frames, progress=False)
    assert "The video cuts to another scene at frame 8" in warned.text
    x = motion.head.center[:, 0]
    assert (x[:8] > 500).all() and (x[8:] < 450).all()
    assert (motion.head.confidence >= 0.5).all()


def test_a_face_lost_midway_is_said(capture, boy, warned):
    frames = [frame.copy() for frame in boy[:24]]
    for frame in frames[8:17]:
        frame[230:430, 130:380] = frame[230:430, 130:380].mean(axis=(0, 1))
    motion = capture.capture(frames, fps=12, progress=False)
    said = warned.text
    assert "The face was lost in frame" in said or "was not found in frame" in said
    assert (motion.face.confidence[:8] >= 0.5).all() and (motion.face.confidence[-5:] >= 0.5).all()
    assert motion.face.confidence[12] < 0.5


def test_nobody_is_an_error(capture):
    with pytest.raises(ValueError, match="`video` shows no person"):
        capture.capture([scene()] * 3, progress=False)
    with pytest.raises(ValueError, match="`image` shows no person"):
        capture.capture(Image.new("RGB", (320, 240), "grey"), progress=False)
    with pytest.raises(ValueError, match="`face_size` must be"):
        capture.capture([scene()], face_size=0)


def test_fps_and_face_crops(capture, media):
    motion = capture.capture(VideoReader(media / "carphone.mp4", fps=5), progress=False, face_size=48)
    assert motion.fps == 5 and len(motion) == 21
    assert motion.face.crops.shape == (21, 48, 48, 3)
    # The crop is the picture inside its box, which is the face's box and as much again around it.
    x0, y0, x1, y1 = motion.face.boxes[3]
    box = motion.face.crop_boxes[3]
    half = (x1 - x0) / 2
    np.testing.assert_allclose(box, [x0 - half, y0 - half, x1 + half, y1 + half], atol=0.1)
    frame = list(VideoReader(media / "carphone.mp4", fps=5))[3]
    shown = np.pad(frame, ((100, 100), (100, 100), (0, 0)), mode="edge")
    expected = Image.fromarray(shown).crop([100 + round(float(v)) for v in box]).resize((48, 48))
    assert np.abs(motion.face.crops[3].astype(float) - np.asarray(expected)).mean() < 8


def test_saved_and_loaded(capture, tmp_path):
    from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture

    capture.save_pretrained(tmp_path / "capture")
    again = MediaPipeCapture.from_pretrained(tmp_path / "capture")
    assert sorted(path.name for path in again.folder.iterdir()) == [
        "face_landmarker.task",
        "hand_landmarker.task",
        "pose_landmarker_full.task",
    ]


def test_missing_models_are_named_with_both_ways_to_get_them(monkeypatch, tmp_path):
    pytest.importorskip("mediapipe")
    from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture

    monkeypatch.setenv("DREAMACTOR_CAPTURE_MODELS", str(tmp_path))
    with pytest.raises(OSError) as error:
        MediaPipeCapture.from_pretrained()
    for words in ("pose_landmarker_full.task", "hand_landmarker.task", "face_landmarker.task"):
        assert words in str(error.value)
    assert "dreamactor capture --download" in str(error.value) and "DREAMACTOR_CAPTURE_MODELS" in str(error.value)
    with pytest.raises(OSError, match="neither a folder nor a Hub repository"):
        MediaPipeCapture.from_pretrained("nobody/no-such-repository")


@pytest.mark.parametrize("brief", [[], [14, 15]])
def test_a_body_seen_briefly_does_not_keep_a_face_from_being_found(capture, man, monkeypatch, brief):
    """Bodies of drawn people are found in a few frames or none, their faces in all of them."""
    from diffusers_dreamactor.motion.capture.landmarkers import Landmarkers

    frames = [np.asarray(Image.fromarray(frame).crop((60, 0, 560, 504))) for frame in man[:20]]
    numbers = {frame[::40, ::40].tobytes(): index for index, frame in enumerate(frames)}
    find = Landmarkers.find_people

    def find_in_few(self, frame, worker=0):
        return find(self, frame, worker) if numbers[frame[::40, ::40].tobytes()] in brief else []

    monkeypatch.setattr(Landmarkers, "find_people", find_in_few)
    monkeypatch.setattr(Landmarkers, "find_person", lambda *arguments: None)
    motion = capture.capture(frames, fps=10, progress=False)
    assert (motion.face.confidence >= 0.5).all()


def test_in_a_hug_body_head_and_face_stay_one_persons(capture, media, warned):
    """The man in black, whose head the pose takes for the other's from the 6th frame on, and the one in grey."""
    reader = VideoReader(media / "drivers" / "two_in_contact.mp4")
    frames = [frame[180:980, 600:1240] for frame in list(reader)[8:72:4]]
    # Where the black and the grey man's heads are, by hand: frame, x of each.
    truth = {0: (428, 128), 4: (437, 156), 7: (405, 224), 10: (388, 285), 13: (386, 302), 15: (382, 299)}
    # Places in the trunk and the trousers of each.
    inside = {
        0: (((430, 280), (420, 480)), ((110, 294), (130, 480))),
        7: (((400, 280), (400, 520)), ((189, 282), (150, 520))),
        10: (((394, 270), (390, 520)), ((205, 300), (150, 540))),
        13: (((404, 294), (400, 540)), ((190, 345), (130, 560))),
    }
    for click, column in (((400, 400), 0), ((130, 400), 1)):
        warned.clear()
        motion = capture.capture(frames, fps=7.5, person=click, progress=False)
        for frame, places in truth.items():
            if motion.head.confidence[frame] >= 0.5:
                assert abs(motion.head.center[frame, 0] - places[column]) < 45
            body = motion.body.confidence[frame] >= 0.5
            shown = motion.body.keypoints[frame, [1, 2, 5], 0][body[[1, 2, 5]]]
            if len(shown):
                error = np.abs(shown - places[column])
                assert (error < np.abs(shown - places[1 - column])).all()
        assert (motion.head.confidence >= 0.5).mean() > 0.8
        said = [record.getMessage() for record in warned.records if "People overlap or cross" in record.getMessage()]
        assert len(said) == 1 and "is left out in frames" in said[0]

        # Who is lost in part is not made up of the other.
        masks = list(capture.segment(frames, motion, progress=False))
        for frame, places in inside.items():
            own, other = (
                [masks[frame][y - 10 : y + 10, x - 10 : x + 10] for x, y in each]
                for each in (places[column], places[1 - column])
            )
            assert np.mean(np.array(other) >= 0.5) < 0.1
            assert column == 1 and frame > 7 or min((patch >= 0.5).mean() for patch in own) > 0.9
    # Of a head alone it is not known what is another's.
    motion.body.confidence[:], motion.head.radius = 0.0, 4 * motion.head.radius
    assert len(list(capture.segment(frames[:6], motion[:6], progress=False))) == 6


# Nobody


def chart() -> np.ndarray:
    picture = Image.new("RGB", (640, 480), "white")
    draw = ImageDraw.Draw(picture)
    for index, height in enumerate((120, 260, 180, 340, 90)):
        draw.rectangle(
            [90 + 100 * index, 430 - height, 150 + 100 * index, 430], fill=(40 * index, 90, 220 - 40 * index)
        )
    draw.ellipse([430, 20, 560, 150], fill=(240, 200, 40), outline="black")
    return np.asarray(picture)


def test_hands_a_headless_torso_and_a_chart_are_nobody(capture, media):
    turns = list(VideoReader(media / "drivers" / "fashion_turns.mp4"))
    sitting = list(VideoReader(media / "drivers" / "sitting.mp4"))[48:60:2]
    elf = np.asarray(Image.open(media / "reference_elf.jpeg").convert("RGB"))
    nobody = {
        "headless, standing": [frame[190:] for frame in turns[:12:2]],
        "headless, arms up": [frame[190:] for frame in turns[-12::2]],
        "hands in a lap": [frame[760:1100, 200:560] for frame in sitting],
        "one hand": [elf[380:580, 1000:1200]],
        "chart": [chart()] * 6,
    }
    for what, frames in nobody.items():
        with pytest.raises(ValueError, match="shows no person"):
            capture.capture(frames if len(frames) > 1 else Image.fromarray(frames[0]), progress=False)
            pytest.fail(what)


def test_a_headless_figure_within_the_picture_is_nobody(capture, media):
    """The pose landmarker sees it as surely as a person; from behind, people have no face either."""
    turns = list(VideoReader(media / "drivers" / "fashion_turns.mp4"))
    for frames in (turns[20:32:2], turns[-12::2]):
        headless = [frame.copy() for frame in frames]
        for frame in headless:
            # the wall, down to the collarbones
            frame[:215, 265:455] = np.median(frame[:215, :20], axis=1, keepdims=True)
        with pytest.raises(ValueError, match="shows no person"):
            capture.capture(headless, fps=12, progress=False)
    back = np.asarray(Image.open(media / "drivers" / "reference_full_body.png").convert("RGB"))
    motion = capture.capture([back] * 6, fps=12, progress=False)
    assert (motion.body.confidence[:, [1, 2, 5]] >= 0.5).all()


def test_a_pattern_that_looks_like_a_face_for_once_is_nobody(capture, media, monkeypatch):
    """The mirrored picture has to give the face as well; and one frame of many is no person."""
    from diffusers_dreamactor.motion.capture.landmarkers import Landmarkers

    frames = [np.full((256, 256, 3), 90 + index, np.uint8) for index in range(12)]
    frames[5] = next(iter(VideoReader(media / "drivers" / "cartoon_woman.gif")))
    with pytest.raises(ValueError, match="shows no person"):
        capture.capture(frames, fps=12, progress=False)
    find = Landmarkers._look_at_face

    def see_one_side(self, frame, middle, side):
        return None if frame.strides[1] < 0 else find(self, frame, middle, side)

    woman = list(VideoReader(media / "drivers" / "cartoon_woman.gif"))[:8]
    assert (capture.capture(woman, progress=False).face.confidence >= 0.5).all()
    monkeypatch.setattr(Landmarkers, "_look_at_face", see_one_side)
    with pytest.raises(ValueError, match="shows no person"):
        capture.capture(woman, progress=False)


def test_an_ear_that_is_taken_for_a_face_turns_no_head_over(capture, media, monkeypatch):
    """What does not fit the pose has to be found in the mirrored picture, too; otherwise the pose says where the head looks."""
    from diffusers_dreamactor.motion.capture.landmarkers import Landmarkers

    frames = list(VideoReader(media / "drivers" / "fashion_turns.mp4").frames(20, 32))
    expected = capture.capture(frames, fps=24, progress=False)
    find = Landmarkers._look_at_face
    marks = {frame[::16, ::16].tobytes() for frame in frames[4:7]}

    def find_upside_down(self, frame, middle, side):
        look = find(self, frame, middle, side)
        if look is None or frame[::16, ::16].tobytes() not in marks:
            return look
        return replace(
            look,
            points=2 * look.middle - look.points,
            rotation=np.diag([-1.0, -1.0, 1.0]) @ look.rotation,
        )

    monkeypatch.setattr(Landmarkers, "_look_at_face", find_upside_down)
    motion = capture.capture(frames, fps=24, progress=False)
    turned = np.einsum("fij,fij->f", motion.head.rotation, expected.head.rotation)
    assert (np.degrees(np.arccos(np.clip((turned - 1) / 2, -1, 1))) < 30).all()
    assert (motion.body.confidence[:, [1, 2, 5]] >= 0.5).all() and (motion.head.confidence >= 0.5).all()
    np.testing.assert_allclose(motion.body.keypoints[:, 1], expected.body.keypoints[:, 1], atol=8)


def test_who_is_first_seen_with_a_wrong_pose_is_somebody(capture, media):
    """The boy is small in his first frames, and the pose is found too large, on his trunk; his face says where it is."""
    frames = list(VideoReader(media / "cartoon_character.mp4").frames(0, 5))
    motion = capture.capture(frames, fps=24, progress=False)
    assert (motion.head.confidence >= 0.5).all() and (motion.body.confidence[:, [1, 2, 5]] >= 0.5).all()


def test_somebody_without_a_face_and_a_painting_are_people(capture, media):
    for name in ("reference_full_body.png", "reference_painting_arms.jpg"):
        motion = capture.capture(Image.open(media / "drivers" / name).convert("RGB"), progress=False)
        assert (motion.body.confidence[0, [1, 2, 5]] >= 0.5).all()


def test_nothing_of_mediapipe_reaches_stderr(capture_models, media, tmp_path):
    """From a process's first use on, also where a landmarker gives its first result late."""
    code = (
        "import sys; from diffusers_dreamactor.media import VideoReader\n"
        "from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture\n"
        "frames = list(VideoReader(sys.argv[1]))\n"
        "MediaPipeCapture.from_pretrained(sys.argv[2]).capture(frames[18:40:3], fps=8, progress=False)\n"
    )
    command = [sys.executable, "-c", code, str(media / "drivers" / "cartoon_woman.gif"), str(capture_models)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if re.match(r"[IWEF]\d{4} |WARNING: All log|INFO: ", line)]
    assert lines == []


def test_a_face_is_looked_for_backwards_from_where_it_is_found(capture, man, boy, monkeypatch):
    """He comes across the picture among others, and his body is only found at the end."""
    from diffusers_dreamactor.motion.capture.landmarkers import Landmarkers

    place = np.linspace(640, 20, 20).astype(int)
    frames = [scene((boy[i], 700), (man[i][:, 80:540], place[i] // 2)) for i in range(20)]
    numbers = {frame[::16, ::16].tobytes(): index for index, frame in enumerate(frames)}
    find = Landmarkers.find_people

    def find_late(self, frame, worker=0):
        index = numbers[frame[::16, ::16].tobytes()]
        return [each for each in find(self, frame, worker) if index >= 16 or each.keypoints[0, 0] > 800]

    monkeypatch.setattr(Landmarkers, "find_people", find_late)
    motion = capture.capture(frames, fps=4, person=(230, 400), progress=False)
    assert (motion.face.confidence >= 0.5).all()
    middle = (motion.face.boxes[:, 0] + motion.face.boxes[:, 2]) / 2
    assert np.ptp(middle - place // 2) < 60


def test_after_a_cut_faces_are_looked_for_anew(capture, media, monkeypatch):
    """A drawn woman, whose body is not found, elsewhere and smaller after the cut."""
    woman = list(VideoReader(media / "drivers" / "cartoon_woman.gif"))[:8]
    frames = []
    for index, picture in enumerate(woman + woman):
        after = index >= len(woman)
        canvas = np.full((512, 512, 3), (30, 60, 120) if after else (220, 200, 160), np.uint8)
        size = 320 if after else 256
        picture = np.asarray(Image.fromarray(picture).resize((size, size)))
        corner = (190, 180) if after else (0, 20)
        canvas[corner[1] : corner[1] + size, corner[0] : corner[0] + size] = picture
        frames.append(canvas)
    motion = capture.capture(frames, fps=12, progress=False)
    assert (motion.face.confidence >= 0.5).all()
    x = motion.face.boxes[:, ::2].mean(axis=1)
    assert (x[: len(woman)] < 190).all() and (x[len(woman) :] > 250).all()
