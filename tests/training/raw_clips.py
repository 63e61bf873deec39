"""Raw clips of known motion: a video with sound of a drawn figure, and folders of rendered clips."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from stick_figure import StickFigure

from diffusers_dreamactor.media import VideoReader, VideoWriter
from diffusers_dreamactor.motion.sequence import MotionSequence
from diffusers_dreamactor.processors.guidance import MotionGuidanceProcessor


class FigureCapture:
    """Captures `write_video`'s figure exactly: its motion is known."""

    def capture(self, video: VideoReader, progress: bool = True) -> MotionSequence:
        return film(len(video), video.height, video.width, video.fps)


def film(num_frames: int, height: int, width: int, fps: float, zoom: float = 1.0) -> MotionSequence:
    """The motion of somebody who talks, half of the body in the picture."""
    return StickFigure().film("talk", num_frames, "half_body", width, height, fps, zoom=zoom)


def draw(motion: MotionSequence, brightness: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """The figure before a grey wall `(F, H, W, 3)` uint8, and where body and head are, `(F, H, W)` uint8 1 and 2."""
    processor = MotionGuidanceProcessor(face_size=64)
    guidance = processor(MotionSequence.compose(head=motion, body=motion), motion.height, motion.width)
    skeleton, sphere = guidance.skeleton.transpose(0, 2, 3, 1), guidance.sphere.transpose(0, 2, 3, 1)
    regions = np.where(sphere.max(axis=-1) > 0, 2, (skeleton.max(axis=-1) > 0).astype(np.uint8)).astype(np.uint8)
    video = np.where(skeleton > 0, skeleton, np.where(sphere > 0, sphere, brightness)).astype(np.uint8)
    return video, regions


def write_video(path: Path, num_frames: int = 25, size: tuple[int, int] = (64, 64), fps: float = 25.0) -> np.ndarray:
    """A video with sound, a tone that rises and whose loudness beats; returns its samples at 16 kHz."""
    time = np.arange(round(16000 * num_frames / fps)) / 16000
    sound = 0.4 * np.sin(2 * np.pi * (200 + 1500 * time) * time) * (1 + np.sin(2 * np.pi * 3 * time)) / 2
    with VideoWriter(path, fps, audio=(sound.astype(np.float32), 16000)) as writer:
        writer.write(draw(film(num_frames, *size, fps))[0])
    return sound


def write_rendered_clip(folder: Path, num_frames: int, brightness: int, zoom: float) -> None:
    """A clip with known motion and random faces, as `examples/synthetic/make_dataset.py` writes it."""
    folder.mkdir(parents=True)
    motion = film(num_frames, 64, 64, 12.0, zoom)
    motion.face.crops = np.random.default_rng(brightness).integers(0, 256, (num_frames, 64, 64, 3), dtype=np.uint8)
    video, regions = draw(motion, brightness)
    eyes_and_mouth = motion.head.center.round().astype(int)
    for frame, (x, y) in zip(regions, eyes_and_mouth):
        frame[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = 3
    motion.save(folder / "motion.safetensors")
    picks = np.array([num_frames // 2, 0, num_frames - 1])
    references = motion.take(picks)
    references.face.crops = None
    references.save(folder / "reference_motion.safetensors")
    tensors = {"video": video, "regions": regions, "references": video[picks]}
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(tensors, folder / "clip.safetensors", metadata={"scale": "half_body", "identity": "0", "fps": "12.0"})
