"""
The avatars' body in plain PyTorch: many people and frames at once, on any device.

`BatchBody.pack` turns the packed body of `avatar_body.py` into one file of tensors, which is read with PyTorch, NumPy
and safetensors alone.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file


class BatchBody:
    """
    The mesh of `AvatarBody`, with its bones' tree in levels and what `Avatar` knows of it.

    Attributes (of V vertices, T triangles, J bones, S shape coefficients, A vertices that facial actions move):
        rest, paint `(V, 3)`, rest_bones `(J, 3)`, shape_basis `(S, V, 3)`, bone_basis `(S, J, 3)`, shape_samples `(N, S)`,
        faces `(T, 3)`, part `(T,)`, skin_weights `(V, 4)`, skin_indices `(V, 4)`, action_vertices `(A,)`, action_basis
        `(52, A, 3)`: as there.
        group `(V,)`: 0 trunk and head, 1 arm, 2 leg.
        names (`dict`): `bones`, `parents`, `parts`, `actions` as lists, and `landmarks`: vertex by name.
    """

    TENSORS = (
        "rest",
        "paint",
        "rest_bones",
        "shape_basis",
        "bone_basis",
        "shape_samples",
        "faces",
        "part",
        "skin_weights",
        "skin_indices",
        "action_vertices",
        "action_basis",
        "group",
    )

    def __init__(self, tensors: dict[str, torch.Tensor], names: dict, device: torch.device | str = "cpu"):
        self.device, self.names = torch.device(device), names
        for name in self.TENSORS:
            tensor = tensors[name].to(self.device)
            setattr(self, name, tensor.float() if tensor.is_floating_point() else tensor.long())
        self.bone_index = {name: index for index, name in enumerate(names["bones"])}
        self.action_index = {name: index for index, name in enumerate(names["actions"])}
        # bones by their depth in the tree: all of a level are posed at once
        parents, depth = names["parents"], []
        for parent in parents:
            depth.append(0 if parent < 0 else depth[parent] + 1)
        self.levels = []
        for level in range(1, max(depth) + 1):
            bones = [bone for bone, value in enumerate(depth) if value == level]
            own_parents = [parents[bone] for bone in bones]
            self.levels.append(tuple(torch.tensor(values, device=self.device) for values in (bones, own_parents)))
        # corners in the order of their vertex, to sum over the triangles at a vertex always in the same order
        corner_order = torch.argsort(self.faces.flatten(), stable=True)
        self._corner_triangle = torch.div(corner_order, 3, rounding_mode="floor")
        counts = torch.bincount(self.faces.flatten(), minlength=len(self.rest))
        self._corner_ends = counts.cumsum(0)

    @classmethod
    def pack(cls, body_path: str | Path, path: str | Path) -> None:
        """Write `path` (.safetensors) from the .npz that `AvatarBody.pack` wrote."""
        import numpy as np
        from avatar_appearance import AvatarAppearance
        from avatar_body import AvatarBody
        from avatar_clip import Avatar

        body = AvatarBody(body_path)
        avatar = Avatar(body, AvatarAppearance.random(np.random.default_rng(0), body))
        with np.load(body_path) as data:
            # what `AvatarBody` enlarges is taken from it, the rest as it was packed
            arrays = {name: data[name] for name in ("skin_weights", "skin_indices", "shape_basis", "bone_basis")}
            arrays |= {name: data[name] for name in ("rest_bones", "shape_samples", "part", "action_vertices")}
        arrays |= {"rest": body.rest, "paint": body.paint, "action_basis": body.action_basis.astype(np.float16)}
        arrays |= {"faces": body.faces.astype(np.int16), "group": avatar.vertex_group.astype(np.uint8)}
        arrays["action_vertices"] = arrays["action_vertices"].astype(np.int16)
        names = {
            "bones": body.bone_names,
            "parents": body.parents.tolist(),
            "parts": body.part_names,
            "actions": body.action_names,
            "landmarks": avatar.landmarks,
        }
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        save_file(tensors, path, metadata={"names": json.dumps(names)})

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> BatchBody:
        """Read what `pack` wrote."""
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return cls(tensors, json.loads(file.metadata()["names"]), device)

    def shaped(
        self, coefficients: torch.Tensor, hair: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Rest meshes of people.

        Args:
            coefficients (`(P, S)`): mixtures of `shape_samples`.
            hair (`(P, V)`): how far hair stands out, metres.

        Returns:
            vertices `(P, V, 3)`, bone heads `(P, J, 3)`, metres, and the normals `(P, V, 3)` that hair stands out along.
        """
        vertices = self.rest + torch.einsum("ps,svx->pvx", coefficients, self.shape_basis)
        bones = self.rest_bones + torch.einsum("ps,sjx->pjx", coefficients, self.bone_basis)
        normals = self.vertex_normals(vertices)
        return vertices + hair[..., None] * normals, bones, normals

    def vertex_normals(self, vertices: torch.Tensor) -> torch.Tensor:
        """Unit normals `(N, V, 3)` of meshes `(N, V, 3)`: means of the triangles around, weighted by their areas."""
        a, b, c = vertices[:, self.faces].unbind(dim=2)
        # running sums in double precision: what is added and taken away again must not leave a trace
        sums = torch.linalg.cross(b - a, c - a)[:, self._corner_triangle].double().cumsum(dim=1)
        ends = sums[:, self._corner_ends - 1]
        normals = torch.cat([ends[:, :1], ends[:, 1:] - ends[:, :-1]], dim=1).float()
        return normals / (normals.norm(dim=-1, keepdim=True) + 1e-12)

    def posed(
        self,
        vertices: torch.Tensor,
        bones: torch.Tensor,
        normals: torch.Tensor,
        person: torch.Tensor,
        rotations: torch.Tensor,
        translation: torch.Tensor,
        actions: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Linear blend skinning of F frames of P people.

        Args:
            vertices `(P, V, 3)`, bones `(P, J, 3)`: from `shaped`.
            normals `(P, V, 3)`: of `vertices`; they turn with the bones.
            person `(F,)`: whom each frame shows.
            rotations `(F, J, 3, 3)`, translation `(F, 3)`, actions `(F, 52)`: as `AvatarBody.posed`.

        Returns:
            vertices and normals `(F, V, 3)`, bone rotations `(F, J, 3, 3)` and bone heads `(F, J, 3)` in the world.
        """
        own_bones = bones[person]
        world, heads = rotations.clone(), own_bones.clone()
        heads[:, 0] += translation
        for level, parents in self.levels:
            turned = world[:, parents]
            world[:, level] = turned @ rotations[:, level]
            arm = (own_bones[:, level] - own_bones[:, parents])[..., None]
            heads[:, level] = heads[:, parents] + (turned @ arm)[..., 0]
        offsets = heads - (world @ own_bones[..., None])[..., 0]
        transforms = torch.cat([world, offsets[..., None]], dim=-1).flatten(2)
        rest = vertices[person]
        moved = rest[:, self.action_vertices] + torch.einsum("fa,avx->fvx", actions, self.action_basis)
        rest = rest.index_copy(1, self.action_vertices, moved)
        blended = None
        for influence in range(self.skin_indices.shape[1]):
            part = transforms.index_select(1, self.skin_indices[:, influence]) * self.skin_weights[:, influence, None]
            blended = part if blended is None else blended + part
        turn, shift = blended.unflatten(-1, (3, 4)).split((3, 1), dim=-1)
        posed = (turn * rest[..., None, :]).sum(dim=-1) + shift[..., 0]
        normals = F.normalize((turn * normals[person][..., None, :]).sum(dim=-1), dim=-1)
        return posed, normals, world, heads


def rotation_matrices(vectors: torch.Tensor) -> torch.Tensor:
    """Rotation vectors `(..., 3)`, radians, to matrices `(..., 3, 3)` (Rodrigues' formula)."""
    angle = vectors.norm(dim=-1, keepdim=True)
    x, y, z = (vectors / angle.clamp(min=1e-8)).unbind(dim=-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    angle = angle[..., None]
    eye = torch.eye(3, device=vectors.device)
    return eye + angle.sin() * cross + (1 - angle.cos()) * (cross @ cross)
