import inspect
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest
import torch
from PIL import Image

from diffusers_dreamactor import DreamActorPipeline, MotionSequence, list_memory_plans, plan_memory, use_few_steps
from diffusers_dreamactor.checkpoints import (
    bundled_avatars,
    bundled_model,
    bundled_motions,
    bundled_speech,
    save_random_pipeline,
)
from diffusers_dreamactor.cli import main
from diffusers_dreamactor.cli.animate import animate
from diffusers_dreamactor.cli.arguments import build_parser, parse_parts, parse_person, parse_scales, parse_size
from diffusers_dreamactor.cli.messages import OPTIONS, name_options
from diffusers_dreamactor.media import VideoReader, save_video
from diffusers_dreamactor.processors.guidance import MotionGuidanceProcessor

from .processes import ScriptProcess


QUICK = ["--size", "64x64", "--frames", "5", "--steps", "1", "--guidance-scale", "1", "--device", "cpu"]


def probe(path):
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return len(frames), container.streams.video[0].average_rate, len(container.streams.audio)


@pytest.fixture
def avatar():
    return next(iter(bundled_avatars().values()))


def test_demo_writes_a_video_and_its_preview(tmp_path, capsys):
    output = tmp_path / "demo.mp4"
    assert main(["demo", "--output", str(output), "--preview", *QUICK]) == 0
    count, rate, sounds = probe(output)
    motion = MotionSequence.load(bundled_motions()["talk"])
    assert (count, sounds) == (5, 0) and float(rate) == pytest.approx(motion.fps)
    assert probe(tmp_path / "demo.preview.mp4")[0] == 5
    assert "5 frames" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.mp4", "demo.preview.mp4"]


@pytest.mark.parametrize("picture", bundled_avatars().values(), ids=lambda path: path.stem)
def test_avatars_are_animated_at_the_size_that_was_trained(picture):
    processor = MotionGuidanceProcessor.from_pretrained(bundled_model(), subfolder="motion_processor")
    width, height = Image.open(picture).size
    assert processor.reference.generation_size(height, width) == (height, width)


def test_demo_lists_what_is_bundled(capsys):
    assert main(["demo", "--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*bundled_avatars(), *bundled_motions()])


def test_animate_by_a_motion_file(tmp_path, avatar):
    motion = MotionSequence.load(bundled_motions()["walk"])[:9]
    motion.save(tmp_path / "motion.safetensors")
    output = tmp_path / "out.mp4"
    command = ["animate", str(avatar), "--reference-motion", str(avatar.with_suffix(".safetensors"))]
    command += ["--driving", str(tmp_path / "motion.safetensors"), "--output", str(output), "--drive", "head,body"]
    assert main([*command, *QUICK, "--fps", "12"]) == 0
    assert probe(output)[:2] == (5, 12)


def test_animate_real_videos_with_their_sound(tmp_path, media):
    for name, rate, sounds in (("carphone", 30000 / 1001, 0), ("cartoon_character", 24, 1)):
        output = tmp_path / f"{name}.mp4"
        command = ["animate", str(media / "reference_scholar.jpeg"), "--driving", str(media / f"{name}.mp4")]
        assert main([*command, "--output", str(output), *QUICK]) == 0
        count, measured, audio = probe(output)
        assert (count, audio) == (5, sounds) and float(measured) == pytest.approx(rate)


def test_speech_needs_a_person_in_the_picture(tmp_path, media, capsys):
    save_random_pipeline(tmp_path / "model")
    Image.new("RGB", (64, 64), "gray").save(tmp_path / "gray.png")
    command = ["animate", str(tmp_path / "gray.png"), "--audio", str(media / "talk.wav"), "--no-retarget"]
    command += ["--model", str(tmp_path / "model")]
    assert main([*command, "--output", str(tmp_path / "out.mp4"), *QUICK]) == 1
    assert "dreamactor: error: No person was found in the picture" in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()


def test_capture_writes_a_motion(tmp_path, media, capture_models):
    output = tmp_path / "motion.safetensors"
    command = ["capture", str(media / "carphone.mp4"), "--output", str(output), "--models", str(capture_models)]
    assert main([*command, "--frames", "4", "--face-size", "64", "--preview"]) == 0
    motion = MotionSequence.load(output)
    assert len(motion) == 4 and motion.face.crops.shape == (4, 64, 64, 3)
    assert probe(tmp_path / "motion.preview.mp4")[0] == 4


@pytest.mark.parametrize("extend", ["hold", "loop"])
def test_preview_of_a_driver_that_is_extended(tmp_path, media, extend):
    short = tmp_path / "short.mp4"
    save_video(list(VideoReader(media / "carphone.mp4", num_frames=3)), short, 12)
    output = tmp_path / "out.mp4"
    command = ["animate", str(media / "reference_scholar.jpeg"), "--driving", str(short), "--output", str(output)]
    assert main([*command, *QUICK, "--extend", extend, "--preview-only"]) == 0
    assert probe(tmp_path / "out.preview.mp4")[0] == 5


@pytest.mark.parametrize("need", ["--pseudo-references", "--audio"])
def test_a_pose_that_is_needed_without_retargeting(tmp_path, capsys, media, need):
    save_random_pipeline(tmp_path / "model")
    Image.new("RGB", (64, 64), "gray").save(tmp_path / "nobody.png")
    command = ["animate", str(tmp_path / "nobody.png"), "--output", str(tmp_path / "out.mp4"), "--no-retarget"]
    if need == "--audio":
        command += ["--audio", str(media / "talk.wav")]
    else:
        command += ["--driving", str(bundled_motions()["talk"]), "--pseudo-references", "1"]
    assert main([*command, "--model", str(tmp_path / "model"), *QUICK]) == 1
    error = capsys.readouterr().err
    assert (
        "`--pseudo-references` is 1, but" if need == "--pseudo-references" else "No person was found in the picture"
    ) in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "nobody.png"]


@pytest.mark.parametrize(
    "command, output, message",
    [
        (["demo"], "out.gif", "`--output` must end in one of .mp4, .m4v, .mov, .mkv, but is 'out.gif'"),
        (["demo"], "nowhere/out.mp4", "`--output` is nowhere/out.mp4, but the folder nowhere does not exist"),
        (["capture", "missing.mp4"], "out.mp4", "`--output` must end in one of .safetensors, but is 'out.mp4'"),
        (
            ["capture", "missing.mp4"],
            "nowhere/out.safetensors",
            "`--output` is nowhere/out.safetensors, but the folder nowhere does not exist",
        ),
    ],
)
def test_where_to_write_is_checked_first(tmp_path, monkeypatch, capsys, command, output, message):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--output", output]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_doctor_names_what_is_there(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "diffusers-dreamactor" in printed and "pose_landmarker_full.task" in printed and "torch" in printed


@pytest.mark.parametrize(
    "change, message",
    [
        ({"--driving": "missing.mp4"}, "missing.mp4"),
        ({"--driving": "text.mp4"}, "text.mp4"),
        ({"--driving": "text.safetensors"}, "text.safetensors"),
        ({"--output": "nowhere/out.mp4"}, "nowhere"),
        (
            {"--output": "out.gif", "--model": "no/such/folder"},
            "`--output` must end in one of .mp4, .m4v",
        ),
        ({"--size": "60x64"}, "`--size` is 60"),
        ({"--frames": "-1"}, "`--frames` is -1"),
        ({"--frames": "500"}, "`--extend hold`"),
        ({"--drive": "legs"}, "legs"),
        ({"--model": "no/such/folder"}, "no/such/folder"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys, avatar, change, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "text.safetensors").write_text("no motion")
    before = sorted(path.name for path in tmp_path.iterdir())
    options = {
        "--reference-motion": str(avatar.with_suffix(".safetensors")),
        "--driving": str(bundled_motions()["talk"]),
        "--output": "out.mp4",
        **dict(zip(QUICK[::2], QUICK[1::2])),
        **change,
    }
    command = ["animate", str(avatar), *(part for option in options.items() for part in option)]
    assert main(command) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dreamactor: error:")]
    assert len(error) == 1 and message in error[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == before


# the installed command
COMMAND = Path(sys.executable).parent / "dreamactor"


def test_help_and_version_load_nothing():
    code = (
        "import sys; from pathlib import Path; sys.argv = [str(Path(sys.executable).parent / 'dreamactor'), '--version'];"
        "from diffusers_dreamactor.cli.arguments import build_parser; build_parser();"
        "print(sorted({'torch', 'numpy', 'diffusers', 'av'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0


@pytest.mark.parametrize(
    "stop, code, said", [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_command_that_is_stopped_says_one_line_and_leaves_nothing(tmp_path, stop, code, said):
    output = tmp_path / "out.mp4"
    words = ["demo", "--output", output, "--frames", 2000, "--extend", "loop", "--device", "cpu"]
    process = ScriptProcess(COMMAND, *words)
    for _ in range(1200):
        if list(tmp_path.iterdir()) or not process.runs:
            break
        time.sleep(0.1)
    assert process.runs and list(tmp_path.iterdir()), process.finish(timeout=0)
    process.send_signal(stop)
    assert process.finish(code).splitlines() == [f"dreamactor: {said}"]
    assert not list(tmp_path.iterdir())


def test_a_command_prints_what_it_wrote_and_nothing_else(tmp_path):
    output = tmp_path / "out.mp4"
    words = [str(COMMAND), "demo", "--output", str(output), *map(str, QUICK)]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    assert result.stdout == f"dreamactor: wrote {output} (5 frames at 29.97 frames/s)\n"
    assert result.stderr == ""


@pytest.mark.parametrize("replace", [False, True])
def test_memory_is_planned_for_the_picture_or_the_scene(tmp_path, avatar, replace):
    """A replacement is as large as its video, whatever the picture."""
    save_video([Image.new("RGB", (96, 48))] * 2, tmp_path / "scene.mp4", 12)
    words = ["animate", str(avatar), "--driving", str(tmp_path / "scene.mp4"), "--output", str(tmp_path / "out.mp4")]
    args = build_parser().parse_args([*words, *["--replace"] * replace])
    asked = []

    def load(args, shaped_as):
        asked.append(shaped_as)
        raise ValueError("enough is known")

    with pytest.raises(ValueError, match="enough is known"):
        animate(args, load)
    picture = Image.open(avatar)
    assert asked == [(48, 96) if replace else (picture.height, picture.width)]


def test_an_input_is_not_overwritten(tmp_path, media, capsys):
    video = tmp_path / "driver.mp4"
    save_video(list(VideoReader(media / "carphone.mp4", num_frames=3)), video, 12)
    before = video.read_bytes()
    command = ["animate", str(media / "reference_scholar.jpeg"), "--driving", str(video), "--output", str(video)]
    assert main([*command, *QUICK]) == 1
    assert "`--output` is also an input" in capsys.readouterr().err and video.read_bytes() == before


def test_the_bundled_model_says_whom_it_does_not_know(tmp_path, capsys, media, avatar):
    (tmp_path / "mine.png").write_bytes(avatar.read_bytes())
    motion = str(bundled_motions()["talk"])
    pose = ["--reference-motion", str(avatar.with_suffix(".safetensors"))]
    for picture, extra, noticed in (
        (media / "reference_scholar.jpeg", [], True),
        (tmp_path / "mine.png", pose, False),
    ):
        command = ["animate", str(picture), "--driving", motion, "--output", str(tmp_path / "out.mp4"), *extra]
        assert main([*command, *QUICK]) == 0
        notice = [line for line in capsys.readouterr().err.splitlines() if "knows only its own avatars" in line]
        assert len(notice) == noticed
        assert not notice or "--model Wan-AI/Wan2.2-Animate-14B-Diffusers" in notice[0]


def test_a_motion_is_heard_with_the_sound_that_is_named(tmp_path, media):
    output = tmp_path / "out.mp4"
    assert main(["demo", "--output", str(output), "--sound", str(media / "talk.wav"), *QUICK]) == 0
    assert probe(output)[2] == 1


def test_a_device_that_is_not_there(tmp_path, capsys):
    for device in ("gpu", "cuda"):
        if device == "cuda" and torch.cuda.is_available():
            continue
        assert main(["demo", "--output", str(tmp_path / "out.mp4"), "--device", device]) == 1
        assert f"`--device` is {device}, but this machine's best device is" in capsys.readouterr().err


def test_convert_is_the_scripts_of_the_checkout(tmp_path, capsys):
    assert (
        main(["convert", "lora", "--source", str(tmp_path / "no.safetensors"), "--output", str(tmp_path / "out")]) == 1
    )
    assert "dreamactor: error: `--source`" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["convert", "wan-animate", "--help"])
    assert stopped.value.code == 0 and "--reverse" in capsys.readouterr().out


def test_demo_speaks(tmp_path):
    output = tmp_path / "say.mp4"
    assert main(["demo", "--audio", "--output", str(output), *QUICK]) == 0
    assert probe(output)[::2] == (5, 1)


def test_speech_becomes_the_video_of_a_face(tmp_path, capsys):
    output = tmp_path / "face.mp4"
    command = ["speak", str(bundled_speech()), "--output", str(output), "--size", "96", "--frames", "6"]
    assert main(command) == 0
    assert probe(output) == (6, 25, 1)
    assert main([*command[:-2], "--frames", "0"]) == 1
    assert "`--frames` must be at least 1" in capsys.readouterr().err


def test_errors_name_options():
    assert name_options("`num_frames` is 3") == "`--frames` is 3"
    assert name_options('or `extend="hold"`, `extend="loop"`') == "or `--extend hold`, `--extend loop`"
    assert name_options("`retarget=False` draws") == "`--no-retarget` draws"
    assert name_options("was found in `image`.") == "was found in the picture."
    assert name_options("`capture` stays") == "`capture` stays"
    # every name is an argument of the library
    functions = (DreamActorPipeline.__call__, plan_memory, list_memory_plans, use_few_steps)
    known = {name for function in functions for name in inspect.signature(function).parameters}
    assert set(OPTIONS) <= known


def test_argument_forms():
    assert parse_size("832x480") == (480, 832)
    assert parse_parts("head, body") == ("head", "body")
    assert parse_person("1") == 1
    assert parse_person("640,300") == (640.0, 300.0)
    assert parse_scales("arm=1.2, leg=0.9") == {"arm": 1.2, "leg": 0.9}
    wrong = (
        (parse_size, "480p"),
        (parse_person, "left"),
        (parse_person, "1,2,3"),
        (parse_person, "1.5"),
        (parse_scales, "arm"),
    )
    for parse, text in wrong:
        with pytest.raises(Exception, match="is not"):
            parse(text)
