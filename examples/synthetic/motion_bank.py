"""Many random motions in one small file: curves of the bones that move, and of the facial actions."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


SCALES = ("portrait", "half_body", "full_body")
HELD_OUT = 0.1
"""Share of the motions of each scale that training never sees: the last ones."""


class MotionBank:
    """
    N motions of L frames, of the bones' K different curves (all joints of the spine bend alike, those of a finger curl
    alike).

    Attributes:
        tracks `(N, L, K, 3)`: rotation vectors in radians, each a bone's turn relative to its parent.
        track `(J,)`: a bone's curve, -1 where it never turns; eyes are turned by the facial actions.
        translation `(N, L, 3)`: of the root, metres. actions `(N, L, 52)`: facial actions.
        yaw `(N, L)`: of the head in the world, radians, 0 to the front. scale `(N,)`: index into `SCALES`.
        turns `(N,)`: whether the back comes into view.
        limbs, arkit_order, mirror: how skeletons are drawn; where in `actions` the actions of `ARKIT_BLENDSHAPES` are;
            the bones' and actions' indices seen in a mirror, as `bones` and `actions`.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], values: dict, device: torch.device | str = "cpu"):
        self.tracks, self.translation, self.yaw = (
            tensors[name].float().to(device) for name in ("tracks", "translation", "yaw")
        )
        self.track, self.scale = (tensors[name].long().to(device) for name in ("track", "scale"))
        self.turns = tensors["turns"].bool().to(device)
        used = torch.tensor(values["used_actions"], device=device)
        self.actions = torch.zeros(*self.yaw.shape, values["num_actions"], device=device)
        self.actions[..., used] = tensors["actions"].float().to(device)
        self.limbs = values["limbs"]
        self.arkit_order = torch.tensor(values["arkit_order"], device=device)
        self.mirror_bones = torch.tensor(values["mirror_bones"], device=device)
        self.mirror_actions = torch.tensor(values["mirror_actions"], device=device)
        self._pools = {}
        for index, name in enumerate(SCALES):
            for turns in (False, True):
                pool = torch.nonzero((self.scale == index) & (self.turns == turns)).flatten()
                split = len(pool) - (max(1, round(HELD_OUT * len(pool))) if len(pool) > 1 else 0)
                self._pools[name, turns, False], self._pools[name, turns, True] = pool[:split], pool[split:]

    def pool(self, scale: str, held_out: bool, turns: bool | None = None) -> torch.Tensor:
        """Indices of the motions of a scale, of those that turn round or not (both by default)."""
        kinds = (False, True) if turns is None else (turns,)
        return torch.cat([self._pools[scale, kind, held_out] for kind in kinds])

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> MotionBank:
        """Read what `pack` wrote."""
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return cls(tensors, json.loads(file.metadata()["values"]), device)

    @classmethod
    def pack(
        cls, body_path: str | Path, path: str | Path, number: int = 3000, num_frames: int = 33, seed: int = 0
    ) -> None:
        """
        Make `number` motions with `avatar_motion.random_motion` (25 ms each) and write them to `path` (.safetensors).
        Half are portraits, from hardly moving to lively; a quarter half, a quarter full bodies.
        """
        import numpy as np
        from avatar_body import AvatarBody
        from avatar_motion import random_motion
        from scipy.spatial.transform import Rotation

        from diffusers_dreamactor.motion.skeleton import ARKIT_BLENDSHAPES
        from diffusers_dreamactor.processors.body_skeleton import DREAMACTOR_LIMBS

        body = AvatarBody(body_path)
        still = {body.bone_index["eye.L"], body.bone_index["eye.R"]}
        chain, bone = [], body.bone_index["head"]
        while bone >= 0:
            chain.insert(0, bone)
            bone = int(body.parents[bone])
        vectors, translation, actions, yaw, scale = [], [], [], [], []
        for index in range(number):
            random = np.random.default_rng([seed, index])
            name = ("portrait", "half_body", "portrait", "full_body")[index % 4]
            liveliness = random.uniform(0.25, 1.0) if name == "portrait" else 1.0
            motion = random_motion(random, body, num_frames, name, liveliness, turning=0.3)
            turned = Rotation.from_matrix(motion.rotations.reshape(-1, 3, 3)).as_rotvec()
            vectors.append(turned.reshape(num_frames, -1, 3).astype(np.float32))
            translation.append(motion.translation)
            actions.append(motion.actions)
            scale.append(SCALES.index(name))
            head = np.broadcast_to(np.eye(3), (num_frames, 3, 3))
            for bone in chain:
                head = head @ motion.rotations[:, bone]
            look = head @ np.array([0.0, -1.0, 0.0])
            yaw.append(np.arctan2(look[:, 0], -look[:, 1]))
        vectors = np.stack(vectors)
        vectors[:, :, list(still)] = 0
        curves, track = [], np.full(vectors.shape[2], -1)
        for bone in np.flatnonzero(np.abs(vectors).max(axis=(0, 1, 3)) > 1e-4):
            alike = [i for i, other in enumerate(curves) if np.abs(vectors[:, :, bone] - other).max() < 1e-4]
            if not alike:
                curves.append(vectors[:, :, bone])
            track[bone] = alike[0] if alike else len(curves) - 1
        actions, yaw = np.stack(actions), np.stack(yaw)
        used = np.flatnonzero(actions.max(axis=(0, 1)) > 0)

        def mirrored(names):
            swaps = ((".L", ".R"), ("Left", "Right"))
            other = list(names)
            for left, right in swaps:
                other = [name.replace(left, "@").replace(right, left).replace("@", right) for name in other]
            return [names.index(name) for name in other]

        values = {
            "used_actions": used.tolist(),
            "num_actions": len(body.action_names),
            "limbs": DREAMACTOR_LIMBS,
            "arkit_order": [body.action_names.index(name) for name in ARKIT_BLENDSHAPES],
            "mirror_bones": mirrored(body.bone_names),
            "mirror_actions": mirrored(body.action_names),
        }
        arrays = {
            "tracks": np.stack(curves, axis=2).astype(np.float16),
            "track": track.astype(np.int16),
            "translation": np.stack(translation).astype(np.float16),
            "actions": actions[..., used].astype(np.float16),
            "yaw": yaw.astype(np.float16),
            "scale": np.array(scale, dtype=np.uint8),
            "turns": (np.abs(yaw).max(axis=1) > np.deg2rad(100)),
        }
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        save_file(tensors, path, metadata={"values": json.dumps(values)})
