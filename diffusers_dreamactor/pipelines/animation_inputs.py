"""`AnimationInputs`: what is performed, and by whom, apart from how it is sampled."""

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
from diffusers.utils import logging

from diffusers_dreamactor.frame_sources import hold_index, iterate_frames, reflect_index
from diffusers_dreamactor.media import VideoReader
from diffusers_dreamactor.motion.sequence import FaceTrack, MotionSequence
from diffusers_dreamactor.motion.tensor_file import read_arrays, write_arrays
from diffusers_dreamactor.pictures import cover
from diffusers_dreamactor.pipelines.conditioning import Segment
from diffusers_dreamactor.processors.guidance import MotionGuidance, MotionGuidanceProcessor
from diffusers_dreamactor.processors.preview import Preview
from diffusers_dreamactor.processors.reference import Reference
from diffusers_dreamactor.processors.replacement import CellMasks


logger = logging.get_logger(__name__)

FORMAT_NAME = "diffusers_dreamactor.inputs"
FORMAT_VERSION = "1"

_PICTURES = ("image", "picture", "face_crop")
_VIDEOS = ("driver", "background_video", "mask_video")


@dataclass
class AnimationInputs:
    """
    A picture and what it shall perform, captured, composed and fitted to the picture, as `pipe.prepare` makes it. Nothing
    is drawn yet: guidance is drawn segment by segment while it is sampled, or to be looked at with `preview`.

    To edit it, replace its `motion` by another one in the same pixels, or draw it, change the guidance and set that as
    `guidance`.

    Args:
        references (`list[Reference]`): The person at the generation size, the identity first; each keeps its source
            picture.
        index (`np.ndarray` of shape `(F,)`): Which frame of the driver each of the F frames of the video takes.
        fps (`float`): Frames per second of the video.
        motion_processor (`MotionGuidanceProcessor`): Draws the motion.
        motion (`MotionSequence`, *optional*): The driver's motion, in pixels of the generation size.
        guidance (`MotionGuidance`, *optional*): Guidance that is drawn already, which then takes the motion's place.
        face_video (`VideoReader`, *optional*): Where face crops are cut from, when the motion has none.
        face_index (`np.ndarray` of shape `(F,)`, *optional*): Which frame of `face_video` each frame of the video takes,
            when it is another than `index` says.
        face_crop (`PIL.Image.Image`, *optional*): The reference's own face, held when the face is not driven.
        motion_tokens (`np.ndarray` of shape `(F, motion_dim)`, *optional*): Face motion tokens from speech.
        driver (`VideoReader`, *optional*): The driving video, to be looked at beside its guidance.
        sound (*optional*): What is heard with the video, as `media.VideoWriter` takes it.
        mode (`str`): `"animate"`, or `"replace"` to put the person into a scene.
        background_video (`VideoReader`, *optional*): The scene, a frame for each of the video; the driver when it is None.
        mask_video (`VideoReader`, *optional*): Where in it (white) the person goes, a frame for each of the video.
        hide_person (`bool`): Whether the scene is made black there; one that was given with its mask is as it shall be.
    """

    references: list[Reference]
    index: np.ndarray
    fps: float
    motion_processor: MotionGuidanceProcessor
    motion: MotionSequence | None = None
    guidance: MotionGuidance | None = None
    face_video: VideoReader | None = None
    face_index: np.ndarray | None = None
    face_crop: PIL.Image.Image | None = None
    motion_tokens: np.ndarray | None = None
    driver: VideoReader | None = None
    sound: Any = None
    mode: str = "animate"
    background_video: VideoReader | None = None
    mask_video: VideoReader | None = None
    hide_person: bool = False

    @property
    def picture(self) -> PIL.Image.Image:
        """The upright source picture of the identity, as it was given."""
        return self.references[0].picture

    @property
    def height(self) -> int:
        """Height of the video in pixels."""
        return self.references[0].height

    @property
    def width(self) -> int:
        """Width of the video in pixels."""
        return self.references[0].width

    def __len__(self) -> int:
        return len(self.index)

    def check(self) -> None:
        """
        Checks that the parts fit each other, also after they were edited.

        Raises:
            ValueError: The first part that does not fit, by its name.
        """
        if len(self) == 0:
            raise ValueError("`inputs` have no frames, but at least one is needed.")
        for reference in self.references:
            if (reference.height, reference.width) != (self.height, self.width):
                raise ValueError(
                    f"`references` are of several sizes, {self.width}x{self.height} and {reference.width}x"
                    f"{reference.height}: prepare all of them at one size."
                )
        if self.guidance is not None:
            self.guidance.check(self.height, self.width)
            driver_frames = len(self.guidance)
        elif self.motion is not None:
            if (self.motion.height, self.motion.width) != (self.height, self.width):
                raise ValueError(
                    f"`motion` is in pixels of a {self.motion.width}x{self.motion.height} picture, but the video is "
                    f"{self.width}x{self.height}: `retarget` or `resize_motion` brings it there."
                )
            driver_frames = len(self.motion)
        else:
            raise ValueError("`inputs` have neither a `motion` nor a `guidance`, but one of them drives the video.")
        if self.mode == "replace" and (self.mask_video is None or (self.shows_driver and self.driver is None)):
            raise ValueError(
                "`inputs` of a replacement need a `mask_video` and a scene, which is the `background_video` or the `driver`."
            )
        for name in ("background_video", "mask_video"):
            video = getattr(self, name)
            if video is not None and len(video) < len(self):
                raise ValueError(f"`{name}` has {len(video)} frames, but the video has {len(self)}.")
        if self.index.min() < 0 or self.index.max() >= driver_frames:
            raise ValueError(
                f"`index` spans {self.index.min()} to {self.index.max()}, but the driver has {driver_frames} frames."
            )

    def stream(self, segments: list[Segment], beyond: str = "hold") -> Iterator[MotionGuidance]:
        """
        Draws the guidance segment by segment, in the memory of one.

        Args:
            segments (`list[Segment]`): Consecutive ranges that share one frame; the last may end after the video.
            beyond (`str`): What frames after the video's end show: `"hold"` the last one, or `"reflect"` the video.

        Yields:
            `MotionGuidance`: One for each segment.
        """
        position = (hold_index if beyond == "hold" else reflect_index)(segments[-1].stop, len(self))
        index = self.index[position]
        if self.guidance is not None:
            for segment in segments:
                yield self.guidance.take(index[segment.start : segment.stop])
            return

        motion, crops, frames = self.motion, None, None
        if motion.face is not None and motion.face.crops is not None:
            # pictures are taken one by one: a looped motion would else hold them many times
            stored = motion.face.crops
            crops = (stored[i] for i in index)
            motion = dataclasses.replace(motion, face=dataclasses.replace(motion.face, crops=None))
        elif self.face_video is not None:
            frames = iterate_frames(self.face_video, index if self.face_index is None else self.face_index[position])
        drawn = self.motion_processor.stream(
            motion.take(index),
            self.height,
            self.width,
            frames=frames,
            crops=crops,
            segment_frames=segments[0].num_frames,
            overlap=int(len(segments) > 1),
        )
        for segment, guidance in zip(segments, drawn):
            if self.motion_tokens is not None:
                guidance.motion_tokens = self.motion_tokens[position[segment.start : segment.stop]]
                guidance.face_weight = np.ones(segment.num_frames, dtype=np.float32)
            elif self.face_crop is not None:
                crop = np.asarray(self.face_crop).transpose(2, 0, 1)
                guidance.face = np.broadcast_to(crop, (segment.num_frames, *crop.shape))
                guidance.face_weight = np.ones(segment.num_frames, dtype=np.float32)
            yield guidance

    @property
    def shows_driver(self) -> bool:
        """Whether the driving video is the scene."""
        return self.mode == "replace" and self.background_video is None

    def scene(self, position: np.ndarray | None = None) -> Iterator[tuple[PIL.Image.Image, PIL.Image.Image]]:
        """
        The scene of a replacement and where in it (white) the person goes.

        Args:
            position (`np.ndarray`, *optional*): Which frames of the video, in any order; all when `None`.

        Yields:
            Two `PIL.Image.Image`, RGB: of the video's size where they come from the driver, else of their own.
        """
        position = np.arange(len(self)) if position is None else position
        if self.background_video is None:
            frames = (
                cover(PIL.Image.fromarray(frame), self.height, self.width)
                for frame in iterate_frames(self.driver, self.index[position])
            )
        else:
            frames = (PIL.Image.fromarray(frame) for frame in iterate_frames(self.background_video, position))
        for frame, mask in zip(frames, iterate_frames(self.mask_video, position)):
            mask = PIL.Image.fromarray(mask)
            if self.hide_person:
                hidden = mask.convert("L").resize(frame.size, PIL.Image.Resampling.NEAREST)
                frame.paste((0, 0, 0), mask=hidden.point(lambda grey: 255 * (grey >= 128)))
            yield frame, mask

    def draw(self) -> MotionGuidance:
        """The guidance of all frames at once: to be edited, saved, or given as `guidance` later. Its memory grows with the
        length; `preview` looks at it in little."""
        return next(self.stream([Segment(0, len(self))]))

    def pieces(self, num_frames: int = 32) -> Iterator[MotionGuidance]:
        """
        The guidance of all frames in pieces, each drawn when it is asked for and forgotten after.

        Args:
            num_frames (`int`, defaults to 32): Frames in a piece, at most.
        """
        edges = [*range(0, len(self) - 1, num_frames), len(self) - 1]
        segments = [Segment(start, stop + 1) for start, stop in zip(edges[:-1], edges[1:])] or [Segment(0, 1)]
        for i, guidance in enumerate(self.stream(segments)):
            # neighbours share a frame
            yield guidance[int(i > 0) :]

    def preview(self) -> Preview:
        """
        What the model will see: the driver, the skeleton over the dimmed reference, head sphere and face, and the scene of a
        replacement with the person's place in it tinted, side by side, drawn while it is shown, in memory that does not grow
        with the length.

        Returns:
            `Preview`: `.save("look.mp4")` (or `.gif`, or `.png` for a contact sheet), or iterate over its PIL frames.
        """
        return Preview(self, driver=self.driver, reference=self.references[0], index=self.index)

    def save(self, path: str | os.PathLike) -> None:
        """
        Writes one safetensors file, from which the same video is made without the picture, the driver or the capture: face
        crops are cut out of the driver for it. The file names the driver, the sound and the scene by their paths; of those
        that are in memory, the scene and the sound are stored.

        Raises:
            ValueError: The inputs are not valid (see `check`).
        """
        self.check()
        arrays = {"index": np.asarray(self.index)}
        values = {"fps": self.fps, "mode": self.mode, "motion_processor": dict(self.motion_processor.config)}
        values["hide_person"] = self.hide_person
        motion = self.motion
        if self.guidance is None and self.face_video is not None and motion.face is not None:
            motion = dataclasses.replace(motion, face=self._with_crops(motion))
        for name, part in (("motion", motion), ("guidance", self.guidance)):
            if part is not None:
                own, values[name] = part.to_arrays()
                arrays |= {f"{name}.{key}": value for key, value in own.items()}
        values["references"] = []
        for i, reference in enumerate(self.references):
            for name in _PICTURES:
                if getattr(reference, name) is not None:
                    arrays[f"references.{i}.{name}"] = np.asarray(getattr(reference, name))
            described = {
                "height": reference.height,
                "width": reference.width,
                "scale": reference.scale,
                "motion": None,
            }
            if reference.motion is not None:
                own, described["motion"] = reference.motion.to_arrays()
                arrays |= {f"references.{i}.motion.{key}": value for key, value in own.items()}
            values["references"].append(described)
        for name in ("face_crop", "motion_tokens"):
            if getattr(self, name) is not None:
                arrays[name] = np.asarray(getattr(self, name))
        for name in _VIDEOS:
            video = getattr(self, name)
            if video is None:
                continue
            if video.path is not None:
                values[name] = {"path": os.path.abspath(video.path), "fps": video.fps, "num_frames": len(video)}
            elif isinstance(video.source, CellMasks):
                values[name] = {"fps": video.fps, "height": video.height, "width": video.width}
                arrays[name] = video.source.cells
            elif name != "driver" or self.shows_driver:
                arrays[name], values[name] = np.stack(list(video)), {"fps": video.fps}
        if isinstance(self.sound, tuple):
            arrays["sound"], values["sound"] = np.asarray(self.sound[0]), self.sound[1]
        elif self.sound is not None:
            values["sound"] = os.path.abspath(self.sound)
        metadata = {"format": FORMAT_NAME, "version": FORMAT_VERSION, "values": json.dumps(values)}
        write_arrays(path, arrays, metadata)

    def _with_crops(self, motion: MotionSequence) -> FaceTrack:
        """The face track with the crops that the model will see, one for each frame of the motion."""
        processor, face = self.motion_processor.face_motion, motion.face
        index = np.arange(len(motion)) if self.face_index is None else self.face_index
        crops = processor.iter_crops(iterate_frames(self.face_video, index), face.boxes, face.confidence)
        return dataclasses.replace(face, crops=np.stack([crop.transpose(1, 2, 0) for crop in crops]), crop_boxes=None)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "AnimationInputs":
        """
        Reads what `save` wrote. A driver or a sound that is no longer where it was is left out with a warning.

        Raises:
            FileNotFoundError: There is no such file, or not the scene that it names.
            ValueError: The file holds no inputs, is of another format version, or holds values that are not valid.
        """
        arrays, metadata = read_arrays(path, FORMAT_NAME, FORMAT_VERSION, "animation")
        values = json.loads(metadata["values"])

        def part(prefix: str, kind: type, described: dict[str, str] | None):
            if described is None:
                return None
            own = {k.removeprefix(prefix): value for k, value in arrays.items() if k.startswith(prefix)}
            return kind.from_arrays(own, described)

        references = []
        for i, described in enumerate(values["references"]):
            pictures = {name: arrays.get(f"references.{i}.{name}") for name in _PICTURES}
            pictures = {k: None if v is None else PIL.Image.fromarray(v) for k, v in pictures.items()}
            pose = part(f"references.{i}.motion.", MotionSequence, described.pop("motion"))
            references.append(Reference(**pictures, **described, motion=pose))
        videos = {}
        for name in _VIDEOS:
            source = values.get(name)
            if source is None:
                continue
            is_scene = values["mode"] == "replace" and values.get("background_video") is None
            if name == "driver" and name not in arrays and not os.path.exists(source["path"]) and not is_scene:
                logger.warning(f"The driving video {source['path']} is gone: the preview goes without it.")
                continue
            video = arrays[name] if name in arrays else source["path"]
            if "height" in source:
                video = CellMasks(video, source["height"], source["width"])
            videos[name] = VideoReader(video, source["fps"], source.get("num_frames"))
        sound = (arrays["sound"], values["sound"]) if "sound" in arrays else values.get("sound")
        if isinstance(sound, str) and not os.path.exists(sound):
            logger.warning(f"The sound {sound} is gone: the video goes without it.")
            sound = None
        inputs = cls(
            references,
            arrays["index"],
            values["fps"],
            MotionGuidanceProcessor.from_config(values["motion_processor"]),
            motion=part("motion.", MotionSequence, values.get("motion")),
            guidance=part("guidance.", MotionGuidance, values.get("guidance")),
            face_crop=PIL.Image.fromarray(arrays["face_crop"]) if "face_crop" in arrays else None,
            motion_tokens=arrays.get("motion_tokens"),
            sound=sound,
            mode=values["mode"],
            hide_person=values.get("hide_person", False),
            **videos,
        )
        inputs.check()
        return inputs
