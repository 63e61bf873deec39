"""What a perfect capture says of posed avatars, and the guidance that is drawn of it, in PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from avatar_view import CROP_SCALE, CROP_SHIFT, HEAD_AXES, HEAD_RADIUS, JOINT_BONES, face_edges
from batch_body import BatchBody
from batch_render import BatchCamera

from diffusers_dreamactor.motion.skeleton import BODY, JOINT_INDEX, LEFT_HAND, NUM_JOINTS, RIGHT_HAND


FACE_SEEN = 0.2
"""A face counts as seen from this cosine of the angle between where it looks and the camera."""
_HEAD_MIDDLE = (0.0, -0.035, 0.01)
"""From the middle between the ears to the middle of the head, in the head bone's axes."""


@dataclass
class BatchMotion:
    """
    Motion of F frames, as `MotionSequence` holds it.

    Attributes:
        joints `(F, 62, 3)`, keypoints `(F, 62, 2)`, seen `(F, 62)` bool; rotation `(F, 3, 3)`, center `(F, 2)`, radius
        `(F,)` of the head; boxes `(F, 4)`, face_seen `(F,)` bool, actions `(F, 52)` of the face.
    """

    joints: torch.Tensor
    keypoints: torch.Tensor
    seen: torch.Tensor
    rotation: torch.Tensor
    center: torch.Tensor
    radius: torch.Tensor
    boxes: torch.Tensor
    face_seen: torch.Tensor
    actions: torch.Tensor


def _joint_sources(body: BatchBody) -> tuple[list[int], list[int], list[int], list[int]]:
    """Joints that are bone heads with their bones, and joints that are vertices with their vertices."""
    bones, vertices = {}, {"nose": body.names["landmarks"]["nose"]}
    for side, letter in (("left", "L"), ("right", "R")):
        for joint, bone in JOINT_BONES.items():
            bones[f"{side}_{joint}"] = body.bone_index[f"{bone}.{letter}"]
        vertices[f"{side}_ear"] = body.names["landmarks"][f"{side}_ear"]
        bones[f"{side}_hand_wrist"] = body.bone_index[f"wrist.{letter}"]
        for number, finger in enumerate(("thumb", "index", "middle", "ring", "little"), 1):
            for knuckle in (1, 2, 3):
                bones[f"{side}_hand_{finger}_{knuckle}"] = body.bone_index[f"finger{number}-{knuckle}.{letter}"]
            vertices[f"{side}_hand_{finger}_4"] = body.names["landmarks"][f"{side}_{finger}_tip"]
    joints = [[JOINT_INDEX[name] for name in group] for group in (bones, vertices)]
    return joints[0], list(bones.values()), joints[1], list(vertices.values())


def capture(
    body: BatchBody,
    camera: BatchCamera,
    clip: torch.Tensor,
    vertices: torch.Tensor,
    rotations: torch.Tensor,
    heads: torch.Tensor,
    actions: torch.Tensor,
) -> BatchMotion:
    """
    What a perfect capture would say of F frames: `avatar_clip.PosedAvatar.motion` in batches.

    Args:
        clip `(F,)`: which camera sees each frame.
        vertices `(F, V, 3)`, rotations `(F, J, 3, 3)`, heads `(F, J, 3)`: from `BatchBody.posed`.
        actions `(F, 52)`: in the order of `ARKIT_BLENDSHAPES`.
    """
    bone_joints, bones, vertex_joints, points = _joint_sources(body)
    joints = vertices.new_zeros(len(vertices), NUM_JOINTS, 3)
    joints[:, bone_joints], joints[:, vertex_joints] = heads[:, bones], vertices[:, points]
    shoulders = [JOINT_INDEX["left_shoulder"], JOINT_INDEX["right_shoulder"]]
    joints[:, JOINT_INDEX["neck"]] = joints[:, shoulders].mean(dim=1)
    joints = camera.to_camera(joints, clip)
    keypoints = camera.project(joints, clip)[..., :2]
    limit = keypoints.new_tensor([camera.width + 2, camera.height + 2])
    seen = ((keypoints > -2) & (keypoints < limit)).all(dim=-1)

    axes = torch.from_numpy(HEAD_AXES).to(vertices)
    head = rotations[:, body.bone_index["head"]]
    rotation = camera.rotation[clip] @ head @ axes.T
    ears = [body.names["landmarks"][name] for name in ("left_ear", "right_ear")]
    middle = vertices[:, ears].mean(dim=1) + head @ vertices.new_tensor(_HEAD_MIDDLE)
    center = camera.to_camera(middle[:, None], clip)
    pixels = camera.project(center, clip)[:, 0, :2]
    scale = camera.focal_length[clip] / center[:, 0, 2]
    boxes = torch.stack(face_edges(pixels, rotation, scale), dim=1)
    return BatchMotion(
        joints, keypoints, seen, rotation, pixels, HEAD_RADIUS * scale, boxes, rotation[:, 2, 2] > FACE_SEEN, actions
    )


def draw_skeletons(motion: BatchMotion, limbs: list, height: int, width: int) -> torch.Tensor:
    """
    Body and hands on black, what `BodySkeletonProcessor` (style `dreamactor`) draws of what `MotionGuidanceProcessor`
    shows it.

    Args:
        limbs: `DREAMACTOR_LIMBS`: first and second joint, colour, relative width.

    Returns:
        `(F, 3, height, width)` float32 in [0, 255], not rounded.
    """
    points, device, number = motion.keypoints, motion.keypoints.device, len(motion.keypoints)
    first, second = (torch.tensor([limb[end] for limb in limbs], device=device) for end in (0, 1))
    color = torch.tensor([limb[2] for limb in limbs], dtype=torch.float32, device=device)
    relative = torch.tensor([limb[3] for limb in limbs], device=device)
    seen = _connected(motion.seen)
    shown = seen[:, first] & seen[:, second]
    stick = 0.022 * min(height, width)
    limb_width = (relative * stick).clamp(min=1).expand(number, -1).clone()
    for hand in (LEFT_HAND, RIGHT_HAND):
        palm = (points[:, hand][:, [5, 9, 13, 17]] - points[:, hand.start, None]).norm(dim=-1).amax(dim=1)
        finger = torch.minimum((0.2 * palm).clamp(min=1), palm.new_tensor(0.45 * stick))
        of_hand = (first >= max(hand.start, BODY.stop)) & (first < hand.stop)
        limb_width[:, of_hand] = finger[:, None]
    # the farther limbs first
    depth = motion.joints[:, first, 2] + motion.joints[:, second, 2]
    order = torch.argsort(-depth, dim=1, stable=True)
    canvas = torch.zeros(number * height * width, 3, device=device)
    size = torch.tensor([width, height], device=device)
    rows = torch.arange(number, device=device)
    for place in range(len(limbs)):
        limb = order[:, place]
        frame = torch.nonzero(shown[rows, limb]).flatten()
        limb = limb[frame]
        start, end = points[frame, first[limb]], points[frame, second[limb]]
        radius = limb_width[frame, limb] / 2
        low = (torch.minimum(start, end) - radius[:, None] - 1).floor().clamp(min=0).long()
        high = torch.minimum((torch.maximum(start, end) + radius[:, None] + 1).ceil().long(), size)
        extent = (high - low).clamp(min=0)
        count = extent.prod(dim=1)
        owner = torch.repeat_interleave(torch.arange(len(count), device=device), count)
        within = torch.arange(len(owner), device=device) - (count.cumsum(0) - count)[owner]
        y = torch.div(within, extent[owner, 0], rounding_mode="floor")
        x = within - y * extent[owner, 0] + low[owner, 0]
        y = y + low[owner, 1]
        offset = torch.stack([x, y], dim=1) + 0.5 - start[owner]
        along = (end - start)[owner]
        share = (offset * along).sum(dim=1) / along.square().sum(dim=1).clamp(min=1e-6)
        distance = (offset - share.clamp(0, 1)[:, None] * along).norm(dim=1)
        coverage = (radius[owner] + 0.5 - distance).clamp(0, 1)[:, None]
        pixel = (frame[owner] * height + y) * width + x
        # a frame has one limb in each place of the order, so no pixel occurs twice
        canvas[pixel] = torch.lerp(canvas[pixel], color[limb[owner]], coverage)
    return canvas.view(number, height, width, 3).permute(0, 3, 1, 2)


def _connected(seen: torch.Tensor) -> torch.Tensor:
    # `motion.visibility.connected`: no forearm without an upper arm, no fingers without a forearm
    seen = seen.clone()
    for side, hand in (("left", LEFT_HAND), ("right", RIGHT_HAND)):
        for names in (("shoulder", "elbow", "wrist"), ("hip", "knee", "ankle", "toe")):
            chain = [JOINT_INDEX[f"{side}_{name}"] for name in names]
            for before, joint in zip(chain, chain[1:]):
                seen[:, joint] &= seen[:, before]
        seen[:, hand] &= seen[:, JOINT_INDEX[f"{side}_wrist"], None]
    return seen


def draw_spheres(motion: BatchMotion, height: int, width: int) -> torch.Tensor:
    """Head spheres as `HeadSphereProcessor` draws them: `(F, 3, height, width)` float32 in [0, 255], not rounded."""
    device = motion.center.device
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    radius = motion.radius[:, None, None]
    x = (x + 0.5 - motion.center[:, 0, None, None]) / radius
    y = (y + 0.5 - motion.center[:, 1, None, None]) / radius
    distance = torch.hypot(x, y)
    coverage = ((1 - distance) * radius + 0.5).clamp(0, 1)
    inside = distance.clamp(min=1)
    x, y = x / inside, y / inside
    z = -(1 - x**2 - y**2).clamp(0, 1).sqrt()
    normals = torch.einsum("fji,fjhw->fihw", motion.rotation, torch.stack([x, y, z], dim=1))
    return ((normals + 1) * 127.5 * coverage[:, None]).clamp(0, 255)


def draw_maps(motion: BatchMotion, limbs: list, height: int, width: int) -> torch.Tensor:
    """Skeleton and sphere `(F, 6, height, width)` uint8, as training reads them."""
    maps = [draw_skeletons(motion, limbs, height, width), draw_spheres(motion, height, width)]
    return torch.cat(maps, dim=1).round().byte()


def face_weights(seen: torch.Tensor, decay: float = 0.9) -> torch.Tensor:
    """How far each frame's crop is to be believed, as `FaceMotionProcessor.weights`: `(N, F)` for clips `(N, F)`."""
    index = torch.arange(seen.shape[1], device=seen.device).expand(seen.shape)
    last = torch.where(seen, index, -1).cummax(dim=1).values
    return torch.where(last >= 0, decay ** (index - last).float(), 0.0)


def held_frames(seen: torch.Tensor) -> torch.Tensor:
    """Which frame's crop each frame shows: its own, or the last before it with a face; `(N, F)` for clips `(N, F)`."""
    index = torch.arange(seen.shape[1], device=seen.device).expand(seen.shape)
    last = torch.where(seen, index, -1).cummax(dim=1).values
    return torch.where(last >= 0, last, index)


def jittered_crops(boxes: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, smoothing: int = 5) -> torch.Tensor:
    """
    Squares around face boxes, smoothed over some frames and off by a little, as those of a real detector are
    (`avatar_view.crop_boxes` and `jitter_boxes`).

    Args:
        boxes `(N, F, 4)`; shift `(N, 2)`: in half sides; scale `(N,)`: of the side.
    """
    side = boxes[..., 2:] - boxes[..., :2]
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2 - side * side.new_tensor([0, CROP_SHIFT])
    boxes = torch.cat([middle - CROP_SCALE / 2 * side, middle + CROP_SCALE / 2 * side], dim=-1)
    reach = smoothing // 2
    padded = torch.nn.functional.pad(boxes.transpose(1, 2), (reach, reach), mode="replicate")
    boxes = torch.nn.functional.avg_pool1d(padded, smoothing, stride=1).transpose(1, 2)
    middle, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2
    middle, half = middle + half * shift[:, None], half * scale[:, None, None]
    return torch.cat([middle - half, middle + half], dim=-1)
