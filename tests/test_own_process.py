"""What shows only in a process of its own: memory that does not grow with a film's length, and what is left open at its exit."""

import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = """
import builtins, os, resource, sys
import numpy as np
import PIL.Image
from diffusers_dreamactor import MotionGuidance
from diffusers_dreamactor.checkpoints.random_pipeline import random_pipeline
from diffusers_dreamactor.media import VideoReader, VideoWriter, save_video

os.chdir(sys.argv[1])
picture = np.add.outer(np.arange(180), np.arange(320)).astype(np.uint8)[..., None].repeat(3, axis=-1)
for count in (30, 330):
    with VideoWriter("long.mp4", 25, audio=(np.zeros(48000 * 20, np.float32), 48000)) as writer:
        for index in range(count):
            writer.write(np.roll(picture, index, axis=1))
    assert sum(1 for _ in VideoReader("long.mp4")) == count
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

frames, sound = np.zeros((30, 64, 64, 3), np.uint8), (np.zeros(20000, np.float32), 16000)
save_video(frames, "whole.mp4", 24, audio=sound)
writer = VideoWriter("open.mp4", 24, audio=sound)
writer.write(frames)
iterator = VideoReader("whole.mp4").frames()
next(iterator)

pipe = random_pipeline()
skeleton = np.zeros((9, 3, 64, 64), np.uint8)
reference = pipe.motion_processor.reference(PIL.Image.new("RGB", (64, 64)), None, 64, 64)
inputs = pipe.prepare(reference, guidance=MotionGuidance(skeleton=skeleton))
segments = pipe.stream(inputs, num_inference_steps=1, segment_frames=5, guidance_scale=1.0)
print(len(next(segments).frames[0]))
# what lies there is finalised last, when nothing can be imported any more
builtins.segments = segments
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """The folder of a process that has ended, and what it wrote."""
    folder = tmp_path_factory.mktemp("ended")
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    return folder, subprocess.run(command, capture_output=True, text=True, check=True)


def test_memory_does_not_grow_with_the_length_of_a_film(ended):
    short, long, _ = (int(line) for line in ended[1].stdout.split())
    # The 300 more frames are 49 MiB of pixels.
    assert long - short < 20 * 1024


def test_readers_writers_and_streams_left_open_at_exit_say_and_leave_nothing(ended):
    folder, result = ended
    assert result.stdout.split()[2] == "5"
    assert "Traceback" not in result.stderr and "ignored" not in result.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["long.mp4", "whole.mp4"]
