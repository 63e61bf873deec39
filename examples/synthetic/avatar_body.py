"""The body of the synthetic avatars: Anny (https://github.com/naver/anny, Apache-2.0) packed into one small file.

Anny takes seconds to construct and more than a gigabyte of caches. Rendering many clips needs only a low-rank basis of
its shapes, its facial actions, its skin weights and the mesh, so `AvatarBody.pack` stores these once (about 6 MB) and
every worker reads them in a moment. Axes are Anny's: metres, z up, the person faces -y, the person's left is +x; the
origin is the root bone, between the hips.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse


SHAPE_RANK = 24
MAX_INFLUENCES = 4
"""Skin weights kept for one vertex; the rest is dropped and the sum normalised."""
ENLARGED_FEATURES = (
    # centre in the rest pose (metres), scale, reach (metres)
    ((0.0315, -0.112, 0.7175), 1.5, 0.024),
    ((-0.0315, -0.112, 0.7175), 1.5, 0.024),
    ((0.0, -0.125, 0.645), 1.4, 0.032),
)
"""Eyes and mouth are drawn larger than life, as cartoons do, so that they are several pixels wide in small pictures."""


class AvatarBody:
    """
    A posable, shapeable human mesh.

    Attributes:
        rest (`np.ndarray` of shape `(V, 3)`): the mean person's vertices.
        paint (`np.ndarray` of shape `(V, 3)`): the coordinates that colours are painted in, so that paint sticks to
            the skin: `rest` before `ENLARGED_FEATURES`.
        faces (`np.ndarray` of shape `(T, 3)`): triangles, wound counter-clockwise seen from outside.
        part (`np.ndarray` of shape `(T,)`): index into `part_names` of the piece of anatomy that a triangle is of.
        bone_names (`list[str]`), parents (`np.ndarray` of shape `(J,)`): the bone tree; the root's parent is -1.
        dominant_bone (`np.ndarray` of shape `(V,)`): the bone that moves a vertex most.
        action_names (`list[str]`): the 52 ARKit facial actions.
        shape_samples (`np.ndarray` of shape `(S, SHAPE_RANK)`): shape coefficients of people drawn from Anny's
            phenotypes.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with np.load(path) as data:
            self.rest = data["rest"].astype(np.float32)
            self.rest_bones = data["rest_bones"].astype(np.float32)
            self.shape_basis = data["shape_basis"].astype(np.float32)
            self.bone_basis = data["bone_basis"].astype(np.float32)
            self.shape_samples = data["shape_samples"].astype(np.float32)
            self.faces = data["faces"].astype(np.int32)
            self.part = data["part"].astype(np.int32)
            self.part_names = [str(name) for name in data["part_names"]]
            self.bone_names = [str(name) for name in data["bone_names"]]
            self.parents = data["parents"].astype(np.int64)
            self.action_names = [str(name) for name in data["action_names"]]
            self.action_vertices = data["action_vertices"].astype(np.int64)
            self.action_basis = data["action_basis"].astype(np.float32)
            weights, indices = data["skin_weights"].astype(np.float32), data["skin_indices"].astype(np.int64)
        self.paint = self.rest.copy()
        for center, scale, reach in ENLARGED_FEATURES:
            offset = self.paint - np.array(center, dtype=np.float32)
            growth = (scale - 1) * np.exp(-((np.linalg.norm(offset, axis=1, keepdims=True) / reach) ** 4))
            self.rest += growth * offset
            self.action_basis *= 1 + growth[self.action_vertices]
        rows = np.repeat(np.arange(len(weights)), weights.shape[1])
        self.skin = scipy.sparse.csr_matrix(
            (weights.reshape(-1), (rows, indices.reshape(-1))), shape=(len(weights), len(self.bone_names))
        )
        self.dominant_bone = indices[np.arange(len(indices)), weights.argmax(axis=1)]
        self.bone_index = {name: index for index, name in enumerate(self.bone_names)}
        self.action_index = {name: index for index, name in enumerate(self.action_names)}

    def shaped(self, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        The rest mesh of one person.

        Args:
            coefficients (`np.ndarray` of shape `(SHAPE_RANK,)`): a row of `shape_samples`, or a mixture of rows.

        Returns:
            vertices `(V, 3)` and bone heads `(J, 3)` in metres.
        """
        vertices = self.rest + np.tensordot(coefficients, self.shape_basis, axes=1)
        return vertices, self.rest_bones + np.tensordot(coefficients, self.bone_basis, axes=1)

    def posed(
        self,
        vertices: np.ndarray,
        bones: np.ndarray,
        rotations: np.ndarray,
        translation: np.ndarray,
        actions: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Linear blend skinning of a person over a clip.

        Args:
            vertices, bones: from `shaped` (vertices may have hair grown on them).
            rotations (`np.ndarray` of shape `(F, J, 3, 3)`): each bone's turn relative to its parent, in the
                world-aligned axes of the rest pose.
            translation (`np.ndarray` of shape `(F, 3)`): of the root, metres.
            actions (`np.ndarray` of shape `(F, 52)`): facial actions in [0, 1] (a little more exaggerates).

        Returns:
            vertices `(F, V, 3)`, bone rotations `(F, J, 3, 3)` and bone heads `(F, J, 3)` in the world.
        """
        num_frames, num_bones = rotations.shape[:2]
        world = np.empty_like(rotations)
        heads = np.empty((num_frames, num_bones, 3), dtype=np.float32)
        for bone, parent in enumerate(self.parents):
            if parent < 0:
                world[:, bone] = rotations[:, bone]
                heads[:, bone] = bones[bone] + translation
            else:
                world[:, bone] = world[:, parent] @ rotations[:, bone]
                heads[:, bone] = heads[:, parent] + world[:, parent] @ (bones[bone] - bones[parent])
        offsets = heads - np.einsum("fjab,jb->fja", world, bones)
        transforms = np.concatenate([world, offsets[..., None]], axis=-1)
        transforms = transforms.transpose(1, 0, 2, 3).reshape(num_bones, -1)
        blended = (self.skin @ transforms).reshape(len(vertices), num_frames, 3, 4)
        rest = np.broadcast_to(vertices[:, None], (len(vertices), num_frames, 3)).copy()
        rest[self.action_vertices] += np.tensordot(self.action_basis, actions, axes=([0], [1])).transpose(0, 2, 1)
        posed = np.einsum("vfab,vfb->fva", blended[..., :3], rest, optimize=True)
        posed += blended[..., 3].transpose(1, 0, 2)
        return posed, world, heads

    @staticmethod
    def pack(path: str | Path, num_people: int = 600, seed: int = 0) -> None:
        """
        Build Anny once (needs the extra `synthetic`; over a minute the first time) and write the packed body to
        `path` (.npz).

        Args:
            num_people: how many random adults the shape basis is made of.
            seed: of these people.
        """
        import torch
        from anny import Anny
        from anny.face_segmentation import get_face_segmentation_mask

        model = Anny(facial_actions="all").to(torch.float32)
        generator = torch.Generator().manual_seed(seed)
        phenotypes = torch.rand(num_people, len(model.phenotype_labels), generator=generator)
        # 1/3 is a child and 1 is old age on Anny's scale: adults only, so that bodies are of comparable size
        age = model.phenotype_labels.index("age")
        phenotypes[:, age] = 0.55 + 0.4 * phenotypes[:, age]
        vertices, bones = [], []
        for person in phenotypes:
            output = model(phenotype_kwargs=person[None])
            vertices.append(output["rest_vertices"][0].numpy())
            bones.append(output["rest_bone_heads"][0].numpy())
        vertices, bones = np.stack(vertices), np.stack(bones)
        vertices, bones = vertices - bones[:, :1], bones - bones[:, :1]
        num_vertices = vertices.shape[1]
        both = np.concatenate([vertices, bones], axis=1).reshape(num_people, -1)
        mean = both.mean(axis=0)
        scores, strengths, basis = np.linalg.svd(both - mean, full_matrices=False)
        samples = (scores * strengths)[:, :SHAPE_RANK]
        basis = basis[:SHAPE_RANK].reshape(SHAPE_RANK, -1, 3)
        mean = mean.reshape(-1, 3)

        labels = list(model.blendshape_labels)
        actions = [label.split(":", 1)[1] for label in labels if label.startswith("facial_action:")]
        action_basis = np.stack([model.blendshapes[labels.index(f"facial_action:{name}")].numpy() for name in actions])
        action_vertices = np.flatnonzero(np.abs(action_basis).max(axis=(0, 2)) > 1e-5)

        weights, indices = model.vertex_bone_weights.numpy(), model.vertex_bone_indices.numpy()
        order = np.argsort(-weights, axis=1)[:, :MAX_INFLUENCES]
        weights = np.take_along_axis(weights, order, axis=1)
        indices = np.take_along_axis(indices, order, axis=1)
        weights = weights / weights.sum(axis=1, keepdims=True)

        part_names = ["body", "head", "eye_back.L", "eye_front.L", "eye_back.R", "eye_front.R"]
        part_names += [
            "eye_cavity.L",
            "eye_cavity.R",
            "mouth_cavity",
            "tongue",
            "hand.L",
            "hand.R",
            "foot.L",
            "foot.R",
        ]
        part = np.zeros(len(model.faces), dtype=np.uint8)
        for index, name in enumerate(part_names):
            part[get_face_segmentation_mask(model, [name]).numpy()] = index
        np.savez_compressed(
            path,
            rest=mean[:num_vertices].astype(np.float32),
            rest_bones=mean[num_vertices:].astype(np.float32),
            shape_basis=basis[:, :num_vertices].astype(np.float16),
            bone_basis=basis[:, num_vertices:].astype(np.float32),
            shape_samples=samples.astype(np.float32),
            faces=model.faces.numpy().astype(np.uint16),
            part=part,
            part_names=np.array(part_names),
            bone_names=np.array(model.bone_labels),
            parents=np.array(model.bone_parents, dtype=np.int16),
            action_names=np.array(actions),
            action_vertices=action_vertices.astype(np.uint16),
            action_basis=action_basis[:, action_vertices].astype(np.float16),
            skin_weights=weights.astype(np.float16),
            skin_indices=indices.astype(np.uint8),
        )


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description="Pack Anny into the small file that the renderer reads.")
    parser.add_argument("output", help="the .npz to write")
    parser.add_argument("--num_people", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    AvatarBody.pack(arguments.output, arguments.num_people, arguments.seed)
