"""
How fast `MediaPipeCapture` is, and how much memory it takes, on a video and on the same video many times as long.

    python examples/benchmark/capture_speed.py VIDEO [--frames 100] [--times 10] [--height 720] [--models FOLDER]

The video's frames are scaled to `--height` and played forth and back to fill `--frames` frames, and `--times` as many.
Each length is captured in a process of its own, so that the peak resident memory is that length's. Prints one line of JSON
for each: frames/s by the wall clock and by the processor's clock (all cores together), and peak memory in MiB, of which
`models` is what is taken before the first frame.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image


def write_video(source: str, path: Path, num_frames: int, height: int) -> None:
    """A video of exactly `num_frames` frames of `source`, forth and back, `height` pixels high."""
    from diffusers_dreamactor.media import VideoReader, VideoWriter

    reader = VideoReader(source)
    width = round(reader.width * height / reader.height / 2) * 2
    period = max(1, 2 * (len(reader) - 1))
    with VideoWriter(path, fps=reader.fps) as writer:
        written = 0
        while written < num_frames:
            forth = list(range(min(len(reader), num_frames - written)))
            for frame in reader.frames(0, len(forth)):
                writer.write(np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR)))
            written += len(forth)
            # Backwards in short pieces, so that this script holds few frames, too.
            back = [period - i for i in range(len(reader), period)][: max(0, num_frames - written)]
            for start in range(0, len(back), 16):
                piece = back[start : start + 16]
                frames = list(reader.frames(piece[-1], piece[0] + 1))[::-1]
                for frame in frames:
                    writer.write(np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR)))
            written += len(back)


def peak_mebibytes() -> float:
    """Peak resident memory of this process (Linux counts in KiB, macOS in bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def measure(path: str, models: str | None) -> None:
    """Captures one video and prints what it took."""
    from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture

    capture = MediaPipeCapture.from_pretrained(models)
    start_memory = peak_mebibytes()
    wall, processor = time.perf_counter(), time.process_time()
    motion = capture.capture(path, progress=False)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    result = {
        "frames": len(motion),
        "size": f"{motion.width}x{motion.height}",
        "frames_per_second": round(len(motion) / wall, 2),
        "frames_per_processor_second": round(len(motion) / processor, 2),
        "peak_mebibytes": round(peak_mebibytes()),
        "models_mebibytes": round(start_memory),
        "frames_with_head": int((motion.head.confidence >= 0.5).sum()),
    }
    print(json.dumps(result), flush=True)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--models", default=None)
    parser.add_argument("--measure-only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure_only:
        measure(arguments.video, arguments.models)
        return
    with tempfile.TemporaryDirectory() as folder:
        for times in (1, arguments.times):
            path = Path(folder) / f"times_{times}.mp4"
            write_video(arguments.video, path, arguments.frames * times, arguments.height)
            command = [sys.executable, __file__, str(path), "--measure-only"]
            subprocess.run(command + (["--models", arguments.models] if arguments.models else []), check=True)


if __name__ == "__main__":
    main()
