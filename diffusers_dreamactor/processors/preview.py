"""`Preview`: motion guidance side by side with what it was made from, as frames, a video or a contact sheet."""

import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..frame_sources import iterate_frames
from ..media import VIDEO_SUFFIXES, VideoReader, VideoWriter
from ..pictures import to_rgb


REFERENCE_BRIGHTNESS = 0.35
MAX_PANEL_HEIGHT = 480
_GAP = 4
_BACKGROUND = (32, 32, 32)
_PERSON_TINT = (200, 40, 40)


class Shown(Protocol):
    """What a preview can be made of: `MotionGuidance`, or `AnimationInputs`, which draws while it is shown."""

    height: int
    width: int
    fps: float

    def __len__(self) -> int: ...

    def pieces(self) -> Iterator[Any]:
        """Consecutive pieces of `MotionGuidance`, together as long as this."""
        ...


class Preview:
    """
    Panels for every frame: the driver (where given), the skeleton over the dimmed reference (without one over the dimmed
    driver, else on black), the head sphere over the same (where there is one), the face crop with its weight (where there is
    one) and the scene of a replacement, tinted where the person goes. Frames are drawn when they are asked for, in memory that does not grow with their number.

    Args:
        guidance (`MotionGuidance` or `AnimationInputs`): what is shown.
        driver (*optional*): the driving frames, as `VideoReader` takes them.
        reference (`PIL.Image.Image` or `Reference`, *optional*): the reference; resized to the guidance's size.
        panel_height (`int`, *optional*): height of the panels in pixels; the guidance's, within 192 to 480, when `None`.
        index (`np.ndarray` of shape `(F,)`, *optional*): which frame of the driver each frame of the guidance takes, such as
            `frame_sources.frame_index(len(driver), len(guidance), extend)`; one after the other when `None`.

    Raises:
        ValueError: the driver has fewer frames than the guidance, without an `index`; an `index` of another length than the
            guidance, or of frames that the driver does not have.
    """

    def __init__(
        self,
        guidance: Shown,
        driver=None,
        reference: Any = None,
        panel_height: int | None = None,
        index: np.ndarray | None = None,
    ):
        self.guidance = guidance
        self.panel_height = panel_height or min(max(guidance.height, 192), MAX_PANEL_HEIGHT)
        self.panel_height += self.panel_height % 2
        self.driver = None if driver is None else VideoReader(driver)
        if self.driver is not None and index is None and len(self.driver) < len(guidance):
            raise ValueError(
                f"`driver` has {len(self.driver)} frames, but the guidance has {len(guidance)}: pass the `index` of the "
                "driver's frame that each takes, or a longer driver."
            )
        self.index = np.arange(len(guidance)) if index is None else np.asarray(index)
        if len(self.index) != len(guidance):
            raise ValueError(f"`index` has {len(self.index)} frames, but the guidance has {len(guidance)}.")
        if self.driver is not None and not 0 <= self.index.min() <= self.index.max() < len(self.driver):
            raise ValueError(
                f"`index` spans {self.index.min()} to {self.index.max()}, but the driver has {len(self.driver)} frames."
            )
        self._background = None
        if reference is not None:
            picture = reference if isinstance(reference, Image.Image) else reference.image
            self._background = self._dimmed(to_rgb(picture))
        self._font = ImageFont.load_default(size=max(10, self.panel_height // 24))

    def __len__(self) -> int:
        return len(self.guidance)

    def __iter__(self) -> Iterator[Image.Image]:
        return self._draw_frames(range(len(self)))

    def _draw_frames(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        frames = None if self.driver is None else iterate_frames(self.driver, self.index[indices])
        wanted, start = set(indices), 0
        scene = None
        if getattr(self.guidance, "mode", "animate") == "replace":
            scene = self.guidance.scene(np.asarray(indices))
        for piece in self.guidance.pieces():
            for offset in range(len(piece)):
                if start + offset in wanted:
                    frame = None if frames is None else next(frames)
                    yield self._draw(piece, offset, start + offset, frame, scene and _tinted(*next(scene)))
            start += len(piece)

    @property
    def frames(self) -> list[Image.Image]:
        """All frames, `PIL.Image.Image` of one size."""
        return list(self)

    def save(self, path: str | os.PathLike) -> None:
        """
        Writes a video (.mp4, .mkv, .mov), an animation (.gif), or a contact sheet of up to 12 frames (.png, .jpg).

        Raises:
            ValueError: another suffix.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix in VIDEO_SUFFIXES:
            with VideoWriter(path, self.guidance.fps) as writer:
                for frame in self:
                    writer.write(frame)
            return
        if suffix not in (".gif", ".png", ".jpg", ".jpeg"):
            accepted = ", ".join((*VIDEO_SUFFIXES, ".gif", ".png", ".jpg"))
            raise ValueError(f"`path` must end in one of {accepted}, but is {path.name!r}.")
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.part{suffix}")
        try:
            if suffix == ".gif":
                frames = iter(self)
                duration = round(1000 / self.guidance.fps)
                next(frames).save(aside, save_all=True, append_images=frames, duration=duration, loop=0)
            else:
                self.contact_sheet().save(aside)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)

    def contact_sheet(self, num_frames: int = 12) -> Image.Image:
        """Up to `num_frames` frames, evenly spread over the clip, in one picture."""
        shown = np.linspace(0, len(self) - 1, min(num_frames, len(self))).round().astype(int).tolist()
        pictures = list(self._draw_frames(shown))
        width, height = pictures[0].size
        columns = max(1, min(len(pictures), round((len(pictures) * height / width) ** 0.5)))
        rows = -(-len(pictures) // columns)
        sheet = Image.new("RGB", (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP), color=_BACKGROUND)
        for index, picture in enumerate(pictures):
            sheet.paste(picture, (index % columns * (width + _GAP), index // columns * (height + _GAP)))
        return sheet

    def _draw(
        self, guidance: Any, index: int, position: int, driver: np.ndarray | None, scene: Image.Image | None
    ) -> Image.Image:
        panels = [] if driver is None else [(Image.fromarray(driver), f"driver {self.index[position]}")]
        background = self._background
        if background is None and driver is not None:
            background = self._dimmed(Image.fromarray(driver))
        panels.append((_over(background, guidance.skeleton[index]), "skeleton"))
        if guidance.sphere is not None:
            panels.append((_over(background, guidance.sphere[index]), "head"))
        if guidance.face is not None:
            face = np.ascontiguousarray(guidance.face[index].transpose(1, 2, 0))
            panels.append((Image.fromarray(face), f"face {guidance.face_weight[index]:.2f}"))
        if scene is not None:
            panels.append((scene, "scene"))
        pictures = []
        for picture, label in panels:
            width = max(2, round(picture.width * self.panel_height / picture.height))
            picture = picture.resize((width, self.panel_height), Image.Resampling.LANCZOS)
            ImageDraw.Draw(picture).text(
                (4, 2), label, font=self._font, fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0)
            )
            pictures.append(picture)
        width = sum(picture.width for picture in pictures) + _GAP * (len(pictures) - 1)
        frame = Image.new("RGB", (width + width % 2, self.panel_height), color=_BACKGROUND)
        left = 0
        for picture in pictures:
            frame.paste(picture, (left, 0))
            left += picture.width + _GAP
        return frame

    def _dimmed(self, picture: Image.Image) -> np.ndarray:
        size = (self.guidance.width, self.guidance.height)
        return np.asarray(picture.resize(size, Image.Resampling.LANCZOS), dtype=np.float32) * REFERENCE_BRIGHTNESS


def _tinted(scene: Image.Image, mask: Image.Image) -> Image.Image:
    """A scene with the person's place in it red."""
    mask = mask.convert("L").resize(scene.size, Image.Resampling.NEAREST)
    tint = Image.blend(scene, Image.new("RGB", scene.size, _PERSON_TINT), 0.6)
    return Image.composite(tint, scene, mask.point(lambda grey: 255 * (grey >= 128)))


def _over(background: np.ndarray | None, drawing: np.ndarray) -> Image.Image:
    drawing = drawing.transpose(1, 2, 0)
    if background is not None:
        # Drawings are on black and nowhere dark, so that the brightest channel tells where they are.
        opacity = (drawing.max(axis=-1, keepdims=True) / 100.0).clip(0, 1)
        drawing = np.rint(drawing + (1 - opacity) * background).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(drawing))
