"""Clips for training, rendered while training goes on: a batch is a function of the seed and the clips' numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from avatar_view import FACE_SIZE, SIZES, SUPERSAMPLING
from batch_appearance import Looks, random_looks
from batch_body import BatchBody, rotation_matrices
from batch_guidance import BatchMotion, capture, draw_maps, face_weights, held_frames, jittered_crops
from batch_random import Draws, clip_keys
from batch_render import BatchCamera, render
from batch_texture import backgrounds
from motion_bank import MotionBank


NUM_REFERENCES = 3
GAZE_DEGREES = (26.0, 16.0)
"""How far eyes turn sideways and up or down (`avatar_motion.with_expression`)."""
_FAR_FRAME = 1000
"""Where references' frame numbers begin: their grain is not that of the video's."""


@dataclass
class Pose:
    """Bone rotations `(F, J, 3, 3)`, translation `(F, 3)` and facial actions `(F, 52)`, in the body's order."""

    rotations: torch.Tensor
    translation: torch.Tensor
    actions: torch.Tensor


@dataclass
class People:
    """P people: their looks, rest meshes `(P, V, 3)`, bones `(P, J, 3)`, normals `(P, V, 3)`."""

    looks: Looks
    vertices: torch.Tensor
    bones: torch.Tensor
    normals: torch.Tensor


def _in_full_precision(method: Callable) -> Callable:
    """Renders without gradients, and in float32 where models run in half precision: it would move people by centimetres."""

    @functools.wraps(method)
    def render_in_full_precision(self, *arguments, **options):
        with torch.no_grad(), torch.autocast(self.body.device.type, enabled=False):
            return method(self, *arguments, **options)

    return render_in_full_precision


class ClipGenerator:
    """
    Renders clips of random people in random motion, with everything that training needs to know of them.

    Args:
        body (`BatchBody`), bank (`MotionBank`): on the device that renders.
        size (`int`): width of the pictures; those of full bodies are one and a half times as high.
        seed (`int`): of all clips.
        held_out (`bool`): whether to show the motions that are held out, on people who are never trained on.
        styles: names of `batch_appearance.STYLES`; those for training by default.
        liveliness (`float`): factor of the motions of trunk and limbs; the face does all it does.
        face_size (`int`): side of the face crops.
    """

    def __init__(
        self,
        body: BatchBody,
        bank: MotionBank,
        size: int = 128,
        seed: int = 0,
        held_out: bool = False,
        styles: tuple[str, ...] | None = None,
        liveliness: float = 1.0,
        face_size: int = FACE_SIZE,
    ):
        if size % 16:
            raise ValueError(f"`size` is {size}, but has to be a multiple of 16.")
        self.body, self.bank, self.size, self.seed = body, bank, size, seed
        self.held_out, self.styles, self.liveliness, self.face_size = held_out, styles, liveliness, face_size

    def picture_size(self, scale: str) -> tuple[int, int]:
        """Height and width of the clips of a scale."""
        height, width = SIZES[scale]
        return height * self.size // width, self.size

    def draws(self, numbers: torch.Tensor) -> Draws:
        """What follows from the clips' numbers `(N,)`; held-out clips have nothing in common with those of training."""
        keys = clip_keys(2 * self.seed + self.held_out, numbers.to(self.body.device))
        return Draws(keys)

    def people(self, draws: Draws, height: int, width: int) -> People:
        """Random people, to be drawn in pictures of this size."""
        place = backgrounds(draws, height * SUPERSAMPLING, width * SUPERSAMPLING)
        looks = random_looks(draws, self.body, place, self.styles)
        return People(looks, *self.body.shaped(looks.shape, looks.hair))

    def poses(self, draws: Draws, scale: str, num_frames: int, expression: int = 0) -> tuple[Pose, Pose]:
        """
        What N people do: poses of `N num_frames` frames, and of `N NUM_REFERENCES` references, taken from another motion: facing
        the camera most, and turned to either side most. Other numbers of `expression` differ in nothing but the face.
        """
        bank = self.bank
        pool = bank.pool(scale, self.held_out)
        motion = pool[draws.integers("motion", len(pool))]
        start = draws.integers("start", bank.yaw.shape[1] - num_frames + 1)
        frame = start[:, None] + torch.arange(num_frames, device=start.device)
        backwards = draws.chance("backwards", 0.5)[:, None]
        frame = torch.where(backwards, frame.flip(1), frame)
        mirrored = draws.chance("mirrored", 0.5)
        # as often as not the face is of another motion
        pool = bank.pool("portrait", self.held_out)
        face = pool[(draws.integers("expression", len(pool)) + expression) % len(pool)]
        face = torch.where(draws.chance("own expression", 0.4) & (expression == 0), motion, face)
        pose = self._pose(motion, frame, face, mirrored)

        # who is seen from behind is so in references, too
        pools = [bank.pool(scale, self.held_out, turns) for turns in (False, True)]
        pools = [pool if len(pool) else bank.pool(scale, self.held_out) for pool in pools]
        others = [pool[draws.integers("other motion", len(pool))] for pool in pools]
        other = torch.where(bank.turns[motion], others[1], others[0])
        yaw = torch.where(mirrored[:, None], -bank.yaw[other], bank.yaw[other])
        picks = torch.stack([yaw.abs().argmin(dim=1), yaw.argmin(dim=1), yaw.argmax(dim=1)], dim=1)
        still = self._pose(other, picks, other, mirrored)
        # the first picture is calm
        still.actions[::NUM_REFERENCES] *= 0.3
        return pose, still

    def _pose(self, motion: torch.Tensor, frame: torch.Tensor, face: torch.Tensor, mirrored: torch.Tensor) -> Pose:
        bank, body = self.bank, self.body
        vectors = torch.cat([bank.tracks[motion[:, None], frame], bank.tracks.new_zeros(*frame.shape, 1, 3)], dim=2)
        vectors = vectors[:, :, bank.track] * self.liveliness
        translation = bank.translation[motion[:, None], frame] * self.liveliness
        actions = bank.actions[face[:, None], frame]
        # in a mirror left is right, and turns go round the other way
        flip = mirrored[:, None, None]
        reflected = vectors[:, :, bank.mirror_bones] * vectors.new_tensor([1, -1, -1])
        vectors = torch.where(flip[..., None], reflected, vectors)
        translation = torch.where(flip, translation * translation.new_tensor([-1, 1, 1]), translation)
        actions = torch.where(flip, actions[:, :, bank.mirror_actions], actions)
        vectors, translation, actions = vectors.flatten(0, 1), translation.flatten(0, 1), actions.flatten(0, 1)
        rotations = rotation_matrices(vectors)

        def action(name):
            return actions[:, body.action_index[name]]

        for letter, side, sign in (("L", "Left", 1), ("R", "Right", -1)):
            outward = sign * (action(f"eyeLookOut{side}") - action(f"eyeLookIn{side}"))
            upward = action(f"eyeLookUp{side}") - action(f"eyeLookDown{side}")
            zero = torch.zeros_like(outward)
            sideways = torch.stack([zero, zero, torch.deg2rad(GAZE_DEGREES[0] * outward)], dim=1)
            upwards = torch.stack([torch.deg2rad(-GAZE_DEGREES[1] * upward), zero, zero], dim=1)
            rotations[:, body.bone_index[f"eye.{letter}"]] = rotation_matrices(sideways) @ rotation_matrices(upwards)
        return Pose(rotations, translation, actions)

    def show(
        self, people: People, camera: BatchCamera, pose: Pose, first_frame: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor, BatchMotion]:
        """Frames `(N F, 3, H, W)` in [0, 1], regions `(N F, H, W)` and captured motion of N people in F poses each."""
        clip = torch.arange(len(people.looks), device=self.body.device)
        clip = clip.repeat_interleave(len(pose.actions) // len(people.looks))
        vertices, normals, world, heads = self._posed(people, pose, clip)
        points = camera.project(camera.to_camera(vertices, clip), clip)
        size = camera.height, camera.width
        frames, regions = render(self.body, people.looks, vertices, normals, points, clip, *size, first_frame)
        actions = pose.actions[:, self.bank.arkit_order].clamp(0, 1)
        return frames, regions, capture(self.body, camera, clip, vertices, world, heads, actions)

    def _posed(self, people: People, pose: Pose, clip: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rest = (people.vertices, people.bones, people.normals, clip)
        return self.body.posed(*rest, pose.rotations, pose.translation, pose.actions)

    def face_crops(self, draws: Draws, camera: BatchCamera, pose: Pose, smoothing: int = 5) -> torch.Tensor:
        """Face crops `(N F, 3, S, S)` uint8 of other people who do the same."""
        size = self.face_size
        actors = self.people(draws, size, size)
        camera = camera.framed_for(actors.bones, self.body)
        clip = torch.arange(len(draws), device=self.body.device).repeat_interleave(len(pose.actions) // len(draws))
        vertices, normals, world, heads = self._posed(actors, pose, clip)
        motion = capture(self.body, camera, clip, vertices, world, heads, pose.actions)
        boxes = motion.boxes.unflatten(0, (len(draws), -1))
        shift = draws.uniform("crop shift", 2, low=-0.1, high=0.1)
        boxes = jittered_crops(boxes, shift, draws.uniform("crop scale", low=0.85, high=1.15), smoothing).flatten(0, 1)
        points = camera.project(camera.to_camera(vertices, clip), clip)
        scale = size / (boxes[:, 2:] - boxes[:, :2])
        points = torch.cat([(points[..., :2] - boxes[:, None, :2]) * scale[:, None], points[..., 2:]], dim=-1)
        crops, _ = render(self.body, actors.looks, vertices, normals, points, clip, size, size)
        return (crops * 255).round().byte()

    @_in_full_precision
    def videos(self, numbers: torch.Tensor, scale: str, num_frames: int) -> dict[str, torch.Tensor]:
        """Pictures alone: `video (N, 3, F, H, W)` in [-1, 1] and `regions (N, F, H, W)` uint8."""
        draws = self.draws(numbers)
        people = self.people(draws, *self.picture_size(scale))
        camera = BatchCamera.random(draws, scale, *self.picture_size(scale)).framed_for(people.bones, self.body)
        frames, regions, _ = self.show(people, camera, self.poses(draws, scale, num_frames)[0])
        return {"video": _as_video(frames, len(draws)), "regions": regions.unflatten(0, (len(draws), -1))}

    @_in_full_precision
    def faces(self, numbers: torch.Tensor, frames_each: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Crops `(N, frames_each, 3, S, S)` uint8 of N people in portraits, and their actions `(N, frames_each, 52)`."""
        draws = self.draws(numbers)
        step = max(1, self.bank.yaw.shape[1] // frames_each)
        pose = self.poses(draws, "portrait", step * (frames_each - 1) + 1)[0]
        index = torch.arange(0, len(pose.actions) // len(draws), step, device=self.body.device)
        pose = Pose(*(_frames(value, len(draws))[:, index].flatten(0, 1) for value in vars(pose).values()))
        camera = BatchCamera.random(draws, "portrait", *self.picture_size("portrait"))
        crops = self.face_crops(draws.other("actor"), camera, pose, smoothing=1)
        actions = pose.actions[:, self.bank.arkit_order].clamp(0, 1)
        return _frames(crops, len(draws)), _frames(actions, len(draws))

    @_in_full_precision
    def clips(
        self, numbers: torch.Tensor, scale: str, num_frames: int, crops: bool = True, expression: int = 0
    ) -> dict[str, torch.Tensor | BatchMotion]:
        """
        Clips with all that drives them.

        Args:
            numbers (`(N,)`): of the clips.
            scale (`str`): one of `motion_bank.SCALES`.
            crops (`bool`): whether face crops are rendered.
            expression (`int`): other numbers give clips that differ in nothing but the face.

        Returns:
            `video (N, 3, F, H, W)` and `references (N, 3, R, H, W)` in [-1, 1], `regions (N, F, H, W)` uint8, `maps (N, 6, F,
            H, W)` and `reference_maps (N, 6, R, H, W)` uint8, `face (N, F, 3, S, S)` uint8 of other people, `face_weight
            (N, F)`, `actions (N, F, 52)`, and as `motion` and `reference_motion` what was captured, `N F` and `N R` frames.
        """
        draws, (height, width) = self.draws(numbers), self.picture_size(scale)
        people = self.people(draws, height, width)
        camera = BatchCamera.random(draws, scale, height, width)
        pose, still = self.poses(draws, scale, num_frames, expression)
        own_camera = camera.framed_for(people.bones, self.body)
        frames, regions, motion = self.show(people, own_camera, pose)
        references, _, reference_motion = self.show(people, own_camera, still, _FAR_FRAME)
        seen = _frames(motion.face_seen, len(draws))
        result = {
            "video": _as_video(frames, len(draws)),
            "regions": _frames(regions, len(draws)),
            "references": _as_video(references, len(draws)),
            "maps": _frames(draw_maps(motion, self.bank.limbs, height, width), len(draws)).transpose(1, 2),
            "reference_maps": _frames(draw_maps(reference_motion, self.bank.limbs, height, width), len(draws)).transpose(1, 2),
            "face_weight": face_weights(seen),
            "actions": _frames(motion.actions, len(draws)),
            "motion": motion,
            "reference_motion": reference_motion,
        }  # fmt: skip
        held = held_frames(seen)[..., None]
        result["actions"] = result["actions"].gather(1, held.expand(-1, -1, result["actions"].shape[2]))
        if crops:
            face = _frames(self.face_crops(draws.other("actor"), camera, pose), len(draws))
            result["face"] = face.gather(1, held[..., None, None].expand_as(face))
        return result


def _frames(values: torch.Tensor, clips: int) -> torch.Tensor:
    return values.unflatten(0, (clips, -1))


def _as_video(frames: torch.Tensor, clips: int) -> torch.Tensor:
    # rounded as files are, so that training sees what evaluation measures
    return ((frames * 255).round() / 127.5 - 1).unflatten(0, (clips, -1)).transpose(1, 2).contiguous()
