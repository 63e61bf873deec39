"""Preparing what is performed: from a picture and its drivers to `AnimationInputs`."""

import dataclasses

import numpy as np
import PIL.Image
import torch
from diffusers.utils import logging

from diffusers_dreamactor.arguments import positive_number, whole_number
from diffusers_dreamactor.frame_sources import frame_index, iterate_frames
from diffusers_dreamactor.masks import mask_frames
from diffusers_dreamactor.media import VideoReader
from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture
from diffusers_dreamactor.motion.capture.selection import NoPersonError
from diffusers_dreamactor.motion.idle import idle_motion
from diffusers_dreamactor.motion.retarget import check_fit, resize_motion
from diffusers_dreamactor.motion.retarget import retarget as retarget_motion
from diffusers_dreamactor.motion.sequence import MotionSequence
from diffusers_dreamactor.motion.skeleton import BONE_GROUPS
from diffusers_dreamactor.pictures import load_picture
from diffusers_dreamactor.pipelines.animation_inputs import AnimationInputs
from diffusers_dreamactor.processors.drawn_skeleton import looks_like_drawn_skeleton
from diffusers_dreamactor.processors.guidance import MotionGuidance
from diffusers_dreamactor.processors.reference import Reference
from diffusers_dreamactor.processors.replacement import CellMasks, Silhouette, replacement_masks
from diffusers_dreamactor.sound import sound_source
from diffusers_dreamactor.speech import add_blinks, mix_by_interval
from diffusers_dreamactor.talking_face import speak


logger = logging.get_logger(__name__)

PARTS = ("face", "head", "body")
EXTEND = ("hold", "loop", "stop")
MODES = ("animate", "replace")


class PreparationMixin:
    """
    `prepare`, for a pipeline with the components `motion_processor`, `capture` and, for speech, an audio encoder.
    """

    # Whether the reference's own pose is a condition; otherwise it is only looked for where retargeting needs it.
    _reads_reference_pose = False
    _default_capture = None

    @torch.no_grad()
    def prepare(
        self,
        image,
        video=None,
        motion: MotionSequence | None = None,
        guidance: MotionGuidance | None = None,
        audio=None,
        face_video=None,
        drive: tuple[str, ...] = PARTS,
        person=None,
        reference_person=None,
        reference_motion: MotionSequence | None = None,
        retarget: bool = True,
        align: str | None = None,
        bone_scale: dict[str, float] | float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        fps: float | None = None,
        extend: str | None = None,
        mode: str = "animate",
        background_video=None,
        mask_video=None,
        idle: bool = True,
        speech_from: float = 0.0,
    ) -> AnimationInputs:
        """
        Captures, composes and retargets what is performed; nothing is drawn and nothing is generated yet.

        Args:
            image (`PIL.Image.Image`, `str`, `Path`, `np.ndarray`, `Reference` or a list of them):
                The reference picture. Of a list, the first is the identity and the others complement it.
            video (path, `list[PIL.Image.Image]`, `np.ndarray`, `torch.Tensor` or `VideoReader`, *optional*):
                The driving video.
            motion (`MotionSequence`, *optional*): A captured motion, instead of `video`.
            guidance (`MotionGuidance`, *optional*): Guidance drawn before, at the generation size, instead of both.
            audio (path, `(samples, rate)` or samples, *optional*):
                Speech that drives the face; samples alone are at the rate of the feature extractor. Weights without an
                `audio_motion_encoder` are shown a drawn face that says it, as a `face_video` (`speak` makes it).
            face_video (as `video`, *optional*):
                Another driver for the face, brought to the rate of `video` or `motion`, which decides the length: a
                longer face video is cut, a shorter one needs `num_frames` or `extend`.
            drive (`tuple[str, ...]`, defaults to `("face", "head", "body")`):
                The parts that follow the driver; the rest stays as in the reference. With `retarget=False`, head and
                body follow the driver together.
            person (*optional*): Which person drives: an index by size, a click `(x, y)` or a box `(x0, y0, x1, y1)` in
                pixels of the driver's first frame; the largest when `None`. Of a `face_video` beside another driver it
                is always the largest.
            reference_person (*optional*):
                Which person of the (first) picture is animated, given as `person` is; the largest when `None`.
            reference_motion (`MotionSequence`, *optional*):
                The person's pose in the (first) picture when it is known, one frame in the picture's own pixels; the
                capture finds it otherwise.
            retarget (`bool`, defaults to `True`):
                Whether the motion is fitted to the reference's proportions and framing; otherwise it is drawn where
                the driver has it.
            align (`str`, *optional*):
                How it is fitted, see [`~motion.retarget.retarget`]: `"framing"` when `None`, and `"none"` in a replacement,
                where the person stands where the driver does.
            bone_scale (`dict[str, float]` or `float`, *optional*):
                Length factors of groups of bones, e.g. `{"arm": 1.2}`, or one for all.
            height (`int`, *optional*), width (`int`, *optional*):
                The generation size in pixels; by default the aspect of the picture (in a replacement, of the scene) at the
                repository's area, or the size of a ready `Reference`, which cannot be another.
            num_frames (`int`, *optional*): Frames to make; the driver's when `None`.
            fps (`float`, *optional*):
                Frames per second; the driver's when `None`, else the driver is resampled, which `guidance` cannot be.
            extend (`str`, *optional*):
                What to do when the driver, or the `face_video`, has too few frames: `"hold"`, `"loop"` or `"stop"`.
            mode (`str`, defaults to `"animate"`):
                `"replace"` (Wan-Animate weights) puts the person into a scene in place of the driver's person.
            background_video (as `video`, or a picture, *optional*): The scene; the driving `video` when `None`.
            mask_video (as `video`, a picture, or what [`~masks.mask_frames`] takes, *optional*):
                White where the person goes. When `None`, the capture cuts the driver's person out, and what is cut out
                is grown to hold the reference's figure ([`~processors.replacement.replacement_masks`]). Unless both were
                given, the scene is made black there, as Wan-Animate was trained.
            idle (`bool`, defaults to `True`):
                Whether the head sways a little where nothing drives it, and the eyes blink where speech drives the face.
            speech_from (`float`, defaults to 0.0):
                Seconds from which on `audio` drives the face; before, the face of `video` or `motion` does.

        Returns:
            [`AnimationInputs`]: To be looked at, saved, edited, and given to the pipeline or to `stream`.

        Raises:
            ValueError, OSError: On input that cannot be used, before it is captured.
        """
        # 1. What can be said before anything is read
        self.check_driver(video, motion, guidance, audio, face_video, drive)
        self.check_mode(mode, video, background_video, mask_video)
        align = align or ("none" if mode == "replace" else "framing")
        if bone_scale is not None and not isinstance(bone_scale, dict):
            bone_scale = dict.fromkeys(BONE_GROUPS, positive_number("bone_scale", bone_scale))
        check_fit(align, bone_scale or {})
        fitting = {
            "align": (align, "none" if mode == "replace" else "framing"),
            "bone_scale": (bone_scale or None, None),
        }
        chosen = {"drive": (tuple(drive), PARTS), "retarget": (retarget, True), "person": (person, None)}
        for name, (value, default) in (chosen | fitting | {"fps": (fps, None)}).items():
            if guidance is not None and value != default:
                raise ValueError(
                    f"`{name}` is {value!r}, but `guidance` is already drawn, at its own {guidance.fps:g} frames/s: give it "
                    "to the `prepare` that draws it instead."
                )
        for name, (value, default) in fitting.items():
            if not retarget and value != default:
                raise ValueError(
                    f"`{name}` is {value!r}, but says how the motion is fitted: `retarget` then has to be True."
                )
        own_pose = video is None and motion is None and guidance is None
        if not retarget and not own_pose and guidance is None and not {"head", "body"} <= set(drive):
            raise ValueError(
                f"`drive` is {drive!r}, but `retarget=False` draws the driver's whole person: `drive` then has to have"
                ' "head" and "body"; `align="none"` keeps the driver\'s place and size with any `drive`.'
            )
        num_frames = None if num_frames is None else whole_number("num_frames", num_frames)
        fps = None if fps is None else positive_number("fps", fps)
        if speech_from and (audio is None or own_pose or self.audio_motion_encoder is None):
            raise ValueError(
                f"`speech_from` is {speech_from}, but needs `audio`, a `video` or `motion` whose face is shown before, and weights"
                " with an `audio_motion_encoder`."
            )
        if extend is not None and extend not in EXTEND:
            raise ValueError(f"`extend` is {extend!r}, but has to be None or one of {EXTEND}.")

        # 2. The person
        driver, is_drawing = None, False
        if video is not None:
            driver = VideoReader(video, fps=fps, num_frames=num_frames)
            # too few frames are an error before they are captured
            frame_index(len(driver), num_frames, extend)
            shown = np.linspace(0, len(driver) - 1, min(len(driver), 5)).astype(int)
            is_drawing = looks_like_drawn_skeleton(iterate_frames(driver, shown))
        need_pose = guidance is None and not is_drawing and (retarget or own_pose)
        if mode == "replace":
            if mask_video is None and (is_drawing or not hasattr(self.find_capture(), "segment")):
                why = "`video` is a drawing" if is_drawing else f"{type(self.capture).__name__} cuts nobody out"
                raise ValueError(f"`mask_video` was not given, but is needed: {why}.")
            scene = driver if background_video is None else VideoReader(background_video)
            height, width = self.scene_size(scene, image, height, width)
        references = self.prepare_references(image, height, width, reference_motion, reference_person, need_pose)
        height, width = references[0].height, references[0].width
        inputs = AnimationInputs(references, None, None, self.motion_processor, mode=mode)

        # 3. The driver of body, head and face
        if is_drawing:
            guidance = self.take_drawing(driver, height, width)
            inputs.driver, inputs.sound = driver, driver.path if driver.has_audio else None
        if guidance is not None:
            guidance.check(height, width)
            inputs.index = frame_index(len(guidance), num_frames, extend)
            inputs.fps, inputs.guidance = guidance.fps, guidance
        else:
            if video is not None:
                inputs.face_video = inputs.driver = driver
                captured = motion = self.find_capture().capture(
                    inputs.driver, person=person, progress=self.show_progress
                )
                inputs.sound = inputs.driver.path if inputs.driver.has_audio else None
            elif motion is not None:
                motion.validate()
                motion = motion if fps is None else motion.resample(fps)
            if face_video is not None:
                who = person if own_pose else None
                motion, num_frames = self.take_face(inputs, motion, face_video, who, num_frames, fps, extend)
            if audio is not None:
                sound = sound_source(audio, self.sampling_rate)
                rate = fps or (self.config.fps if motion is None else motion.fps)
                if self.audio_motion_encoder is None:
                    length = num_frames if motion is None else motion.num_frames
                    spoken = np.stack(list(speak(sound, rate, num_frames=length, idle=idle)))
                    motion, num_frames = self.take_face(inputs, motion, spoken, None, num_frames, rate, extend)
                else:
                    length = num_frames or (None if motion is None else motion.num_frames)
                    inputs.motion_tokens = self.encode_audio(sound, rate, length)
                    if idle:
                        inputs.motion_tokens = add_blinks(inputs.motion_tokens, self.audio_motion_encoder, rate)
                if motion is None:
                    motion = dataclasses.replace(references[0].motion, fps=rate, face=None)
                    motion = motion.hold(len(inputs.motion_tokens))
                if own_pose and idle:
                    motion = idle_motion(motion)
                inputs.sound = sound
            if "face" not in drive:
                inputs.face_video, inputs.face_crop = None, references[0].face_crop
                motion = dataclasses.replace(motion, face=None)
            inputs.index = frame_index(motion.num_frames, num_frames, extend)
            inputs.fps = motion.fps
            if inputs.sound is not None and audio is None and len(inputs) > motion.num_frames:
                logger.warning(
                    f"The driver's sound ends after {motion.num_frames / motion.fps:.1f} s; the video goes on in silence to"
                    f" {len(inputs) / motion.fps:.1f} s."
                )
            # what is not shown is not fitted either, as of a video that is read no further
            motion = motion[: int(inputs.index.max()) + 1]

            # 4. The motion in the picture
            if not own_pose and retarget:
                pose = references[0].motion
                motion = retarget_motion(motion, pose, height, width, align, bone_scale, drive=tuple(drive))
            elif not own_pose:
                motion = resize_motion(motion, height, width)
            inputs.motion = motion
            if speech_from:
                inputs.motion_tokens = self.mix_speech(inputs, speech_from)

        # 5. The scene
        if mode == "replace":
            inputs.hide_person = background_video is None or mask_video is None
            if mask_video is None:
                mask_video = self.find_masks(inputs, captured)
        for name, scene in (("background_video", background_video), ("mask_video", mask_video)):
            if scene is not None:
                reader = VideoReader(mask_frames(scene) if name == "mask_video" else scene, fps=inputs.fps)
                if len(reader) == 1:
                    # a picture is the scene throughout
                    frame = next(iter(reader))
                    reader = VideoReader(np.broadcast_to(frame, (len(inputs), *frame.shape)), fps=inputs.fps)
                if len(reader) < len(inputs):
                    raise ValueError(
                        f"`{name}` has {len(reader)} frames at {inputs.fps:g} frames/s, but the video has {len(inputs)}."
                    )
                setattr(inputs, name, reader)
        return inputs

    def check_driver(self, video, motion, guidance, audio, face_video, drive) -> None:
        """Raises `ValueError` for drivers that are missing, of a wrong type, or exclude each other."""
        if isinstance(drive, str) or not drive or set(drive) - set(PARTS):
            raise ValueError(f"`drive` is {drive!r}, but has to be a non-empty tuple of parts out of {PARTS}.")
        drivers = {"video": video, "motion": motion, "guidance": guidance}
        given = [name for name, value in drivers.items() if value is not None]
        if len(given) > 1:
            raise ValueError(
                f"`{given[0]}` and `{given[1]}` were both given, but the driver is one of `video`, `motion` and `guidance`."
            )
        for name, value, kind in (("motion", motion, MotionSequence), ("guidance", guidance, MotionGuidance)):
            if value is not None and not isinstance(value, kind):
                raise ValueError(
                    f"`{name}` is a {type(value).__name__}, but has to be a {kind.__name__}, as `{kind.__name__}.load` gives it."
                )
        if not given and audio is None and face_video is None:
            raise ValueError(
                "No driver was given: pass one of `video`, `motion`, `guidance`, `audio` and `face_video`."
            )
        if guidance is not None and (audio is not None or face_video is not None):
            raise ValueError("`guidance` is already drawn, so `audio` and `face_video` cannot be combined with it.")
        if audio is not None and face_video is not None:
            raise ValueError("`audio` and `face_video` were both given, but the face has one driver.")
        for name, value in (("audio", audio), ("face_video", face_video)):
            if value is not None and "face" not in drive:
                raise ValueError(f'`{name}` drives the face, but `drive` is {drive!r}: it then has to have "face".')

    def mix_speech(self, inputs: AnimationInputs, start: float) -> np.ndarray:
        """Face motion tokens `(F, motion_dim)`: of the driver's face until `start` seconds, of speech after."""
        silent = dataclasses.replace(inputs, motion_tokens=None)
        shown = [self.encode_face(piece, 1) for piece in silent.pieces()]
        if shown[0] is None:
            raise ValueError(f"`speech_from` is {start}, but the driver shows no face before.")
        shown = np.concatenate([tokens[0].float().cpu().numpy() for tokens in shown])
        sources = {"video": shown, "speech": inputs.motion_tokens[: len(shown)]}
        return mix_by_interval(sources, [(0, "video"), (start, "speech")], inputs.fps)

    def take_drawing(self, driver: VideoReader, height: int, width: int) -> MotionGuidance:
        """Guidance from a video that shows drawn skeletons; `ValueError` for weights that read other drawings."""
        raise ValueError(
            "`video` shows drawn skeletons, not a person: these weights read drawings of another kind; pass a video of a"
            " person, or pictures in their kind as `guidance=MotionGuidance.from_frames(skeleton=[...])`."
        )

    def check_mode(self, mode: str, video, background_video, mask_video) -> None:
        """Raises `ValueError` for a mode that these weights do not have, a scene without it, or no scene."""
        if mode not in MODES:
            raise ValueError(f'`mode` is {mode!r}, but has to be "animate" or "replace".')
        if mode == "animate" and (background_video is not None or mask_video is not None):
            raise ValueError('`background_video` and `mask_video` are for `mode="replace"` only.')
        for name, given, of in (("background_video", background_video, "is"), ("mask_video", mask_video, "shows")):
            if mode == "replace" and given is None and video is None:
                what = "the scene" if name == "background_video" else "where the person goes"
                raise ValueError(f'`mode="replace"` needs `{name}`, or a driving `video`, which {of} {what}.')

    def scene_size(self, scene: VideoReader, image, height: int | None, width: int | None) -> tuple:
        """The generation size in a scene: what is asked for or a ready reference has, else the scene's aspect."""
        image = image[0] if isinstance(image, list | tuple) and image else image
        if isinstance(image, Reference) or (height is not None and width is not None):
            return height, width
        height, width = (
            None if value is None else whole_number(name, value)
            for name, value in (("height", height), ("width", width))
        )
        return self.motion_processor.reference.generation_size(scene.height, scene.width, height, width)

    def find_masks(self, inputs: AnimationInputs, captured: MotionSequence) -> CellMasks:
        """
        Where the person goes in each frame of the video: the driver's person, cut out by the capture, and the reference's
        figure.

        Args:
            inputs (`AnimationInputs`): With the motion in the picture.
            captured (`MotionSequence`): The driver's own motion, in its pixels.
        """
        capture = self.find_capture()
        motion, reference = inputs.motion, inputs.references[0]
        own = None
        if reference.motion is not None:
            own = next(capture.segment(reference.image, reference.motion, progress=False))
        silhouette = Silhouette.measure(own, reference.motion if reference.motion is not None else motion[:1])
        masks = capture.segment(inputs.driver, captured[: motion.num_frames], progress=self.show_progress)
        found = replacement_masks(masks, motion, silhouette, self.vae_scale_factor_spatial)
        return CellMasks(found.cells[inputs.index], found.height, found.width)

    def take_face(
        self, inputs: AnimationInputs, motion: MotionSequence | None, face_video, person, num_frames, fps, extend
    ) -> tuple[MotionSequence, int | None]:
        """
        Takes the face of a video into a motion, or, without one, into the reference's pose.

        Returns:
            The motion with that face, and the number of frames to make.
        """
        index = None
        if motion is None:
            reader = VideoReader(face_video, fps=fps, num_frames=num_frames)
            frame_index(len(reader), num_frames, extend)
            inputs.driver = reader
            inputs.sound = reader.path if reader.has_audio else None
        else:
            index = frame_index(motion.num_frames, num_frames, extend)
            reader = VideoReader(face_video, fps=motion.fps, num_frames=len(index))
            if len(reader) < len(index) and extend is None:
                raise ValueError(
                    f"`face_video` has {len(reader)} frames at {motion.fps:g} frames/s, but the video has"
                    f" {len(index)}: pass a longer one, `num_frames` of at most {len(reader)}, or `extend`."
                )
            inputs.face_index = frame_index(len(reader), len(index), extend)
        try:
            face_motion = self.find_capture().capture(reader, person=person, progress=self.show_progress)
        except NoPersonError as error:
            raise ValueError("`face_video` shows nobody, but is given to drive the face.") from error
        if face_motion.face is None:
            raise ValueError("`face_video` shows no face, but is given to drive the face.")
        inputs.face_video = reader
        if motion is None:
            pose = inputs.references[0].motion
            motion = dataclasses.replace(pose, fps=face_motion.fps).hold(face_motion.num_frames)
        else:
            num_frames = len(inputs.face_index)
            motion, face_motion = motion.take(index[:num_frames]), face_motion.take(inputs.face_index)
        return dataclasses.replace(motion, face=face_motion.face), num_frames

    def prepare_references(
        self,
        image,
        height: int | None = None,
        width: int | None = None,
        reference_motion: MotionSequence | None = None,
        reference_person=None,
        need_pose: bool = True,
    ) -> list[Reference]:
        """
        The reference pictures at the generation size, with the person's own pose.

        The arguments are those of `prepare`; `need_pose` says whether it is an error when the first picture's pose is not
        found.

        Raises:
            ValueError: When the pose is needed and there is no person in the first picture or no pose in a ready
                `Reference`, or when a `Reference` has another size than is asked for.
        """
        images = list(image) if isinstance(image, list | tuple) else [image]
        if not images:
            raise ValueError("`image` is an empty list, but at least one reference picture is needed.")
        height, width = (
            None if value is None else whole_number(name, value)
            for name, value in (("height", height), ("width", width))
        )
        for name, value in (("height", height), ("width", width)):
            if value is not None and (value < self.size_multiple or value % self.size_multiple):
                raise ValueError(
                    f"`{name}` is {value}, but has to be a positive multiple of {self.size_multiple}, the VAE's scale"
                    " times the transformer's patch."
                )
        references = []
        for i, picture in enumerate(images):
            if isinstance(picture, Reference):
                size = (height or picture.height, width or picture.width)
                if (picture.height, picture.width) != size:
                    raise ValueError(
                        f"`image` has a reference of {picture.width}x{picture.height} pixels, but the generation size is"
                        f" {size[1]}x{size[0]}: prepare all references at that size."
                    )
                reference = picture
            else:
                pose = reference_motion if i == 0 else None
                if pose is None and (need_pose or self._reads_reference_pose):
                    person = reference_person if i == 0 else None
                    pose = self.find_pose(load_picture(picture), person, required=need_pose and i == 0)
                reference = self.motion_processor.reference(picture, pose, height, width)
            height, width = reference.height, reference.width
            references.append(reference)
        if need_pose and references[0].motion is None:
            raise ValueError(
                "`image` is a reference without a known pose, but retargeting and a face driven alone need one: pass a"
                " picture, with `reference_motion` when the capture finds nobody in it."
            )
        return references

    def find_pose(self, picture: PIL.Image.Image, person=None, required: bool = True) -> MotionSequence | None:
        """
        The pose of the person in a picture.

        Args:
            picture (`PIL.Image.Image`): The picture.
            person (*optional*): An index by size, a click or a box; the largest when `None`.
            required (`bool`): Whether it is an error when there is no person, or no capture; otherwise it is a warning.

        Returns:
            `MotionSequence` of one frame in the picture's pixels, or `None`.
        """
        try:
            return self.find_capture().capture(picture, person=person, progress=False)
        except NoPersonError as error:
            if required:
                raise ValueError(
                    "No person was found in `image`: pass another picture, the pose in it as `reference_motion`, or, to"
                    " draw a driver's motion where it is, `retarget=False`."
                ) from error
            logger.warning("No person was found in `image`: the reference goes without its pose, which costs quality.")
        except (ImportError, OSError) as error:
            if required:
                raise
            logger.warning(f"The reference goes without its pose, which costs quality: {error}")
        return None

    def find_capture(self):
        """The pipeline's `capture`; a [`MediaPipeCapture`] where the repository brings none."""
        if self.capture is not None:
            return self.capture
        if self._default_capture is None:
            self._default_capture = MediaPipeCapture.from_pretrained()
        return self._default_capture
