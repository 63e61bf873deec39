"""SMPL-X parameters of other systems (AMASS, 4DHumans with HaMeR, ...) as a `MotionSequence`.

The joints come from the user's own SMPL-X model files through the `smplx` package, or from Anny, a body that needs no
licence. A file is one `.npz` without pickled objects, in one of two layouts:

- **AMASS**: `poses` `(F, 165)` (SMPL-X: root, 21 body joints, jaw, eyes, hands) or `(F, 156)` (SMPL-H, without jaw and
  eyes) axis-angle, `trans` `(F, 3)`, `betas`, `gender`, `mocap_framerate` or `mocap_frame_rate`. The world is z up and
  there is no camera: one is put in front of the person.
- **Estimators in the camera frame** (4DHumans' HMR2 and its relatives): `global_orient`, `body_pose` (23 joints of SMPL or
  21 of SMPL-X), `betas`, and the translation as `pred_cam_t_full`, `cam_t`, `camera` or `transl`; rotations as matrices
  `(F, J, 3, 3)` or axis-angle. Optional: `left_hand_pose`, `right_hand_pose` (15 joints), `focal_length` or
  `scaled_focal_length`, `width` and `height` or `img_size` (width, height), `fps`.

Hands that HaMeR found can be given in a second file, one row for each hand: `frame` `(N,)`, `is_right` `(N,)`,
`hand_pose` `(N, 15, 3, 3)`, `global_orient` `(N, 3, 3)`, as its demo computes them.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from ..camera import default_focal_length
from ..sequence import MotionSequence
from ..skeleton import JOINT_INDEX, LEFT_HAND, NUM_JOINTS, RIGHT_HAND, SMPLX_MAPPING, map_joints
from .from_joints import motion_from_joints, place_camera
from .smplx_anny import anny_joints


NUM_BODY_JOINTS = 21
NUM_HAND_JOINTS = 15
# The body joints' parents in SMPL-X's tree, joint 0 being the pelvis.
BODY_PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19)
_HEAD = 15
_WRISTS = {"left": 20, "right": 21}
# SMPL's axes at rest (x to the person's left, y up, z out of the face) to those of `HeadTrack`.
_SMPL_TO_HEAD = np.diag([1.0, -1.0, -1.0])
_TRANSLATION_KEYS = ("pred_cam_t_full", "cam_t", "camera", "transl")
_FRAMES_AT_A_TIME = 32
# Where the neutral templates have their pelvis. A translation counts from the template's origin, so that the same numbers
# put SMPL's and SMPL-X's pelvis at different places.
_SMPL_PELVIS = np.array([-0.002, -0.241, 0.029])
_SMPLX_PELVIS = np.array([0.003, -0.351, 0.012])


@dataclass
class BodyParameters:
    """
    SMPL-X parameters of a clip; rotations are axis-angle in radians, relative to the parent joint.

    Args:
        root (`(F, 3)`), body (`(F, 21, 3)`), left_hand, right_hand (`(F, 15, 3)`): rotations.
        translation (`(F, 3)`): metres.
        betas (`(B,)`): SMPL-X shape; empty for the average.
        hand_confidence (`(F, 2)`): left, right.
        in_camera (`bool`): the frame is the camera's (x right, y down, z away); else a world that is z up.
        is_smpl (`bool`): made for SMPL's or SMPL-H's body, not for SMPL-X's.
        gender (`str`), fps, focal_length (`float` or `None`), size (`(width, height)` or `None`).
    """

    root: np.ndarray
    body: np.ndarray
    left_hand: np.ndarray
    right_hand: np.ndarray
    translation: np.ndarray
    betas: np.ndarray
    hand_confidence: np.ndarray
    in_camera: bool
    is_smpl: bool
    gender: str = "neutral"
    fps: float | None = None
    focal_length: float | None = None
    size: tuple[int, int] | None = None


def _rotvec(value: np.ndarray, num_joints: int, name: str, num_frames: int | None = None) -> np.ndarray:
    """`(F, num_joints, 3)` axis-angle from matrices or axis-angle in any of the usual shapes."""
    value = np.asarray(value, dtype=np.float64)
    num_frames = len(value) if num_frames is None else num_frames
    if value.shape[-2:] == (3, 3) and value.size == num_frames * num_joints * 9:
        return Rotation.from_matrix(value.reshape(-1, 3, 3)).as_rotvec().reshape(num_frames, num_joints, 3)
    if value.size == num_frames * num_joints * 3:
        return value.reshape(num_frames, num_joints, 3)
    raise ValueError(
        f"`{name}` has shape {value.shape}, but {num_joints} rotations for each of {num_frames} frames are needed, as "
        "matrices or axis-angle."
    )


def _read_npz(path: str | os.PathLike, name: str) -> dict[str, np.ndarray]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`{name}` names no file: {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, OSError, AttributeError, EOFError) as error:
        raise ValueError(f"`{name}` is not an .npz file of plain arrays ({error}): {path}") from error
    for key, value in arrays.items():
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            raise ValueError(f"`{name}` has values in `{key}` that are not finite: {path}")
    return arrays


def _read_amass(arrays: dict[str, np.ndarray], path) -> BodyParameters:
    poses = np.asarray(arrays["poses"], dtype=np.float64)
    hands_start = {165: 75, 156: 66}.get(poses.shape[-1] if poses.ndim == 2 else None)
    if hands_start is None:
        raise ValueError(f"`poses` has shape {poses.shape}, but (F, 165) or (F, 156) is needed: {path}")
    num_frames = len(poses)
    rate = arrays.get("mocap_framerate", arrays.get("mocap_frame_rate"))
    return BodyParameters(
        root=poses[:, :3],
        body=poses[:, 3:66].reshape(num_frames, NUM_BODY_JOINTS, 3),
        left_hand=poses[:, hands_start : hands_start + 45].reshape(num_frames, NUM_HAND_JOINTS, 3),
        right_hand=poses[:, hands_start + 45 : hands_start + 90].reshape(num_frames, NUM_HAND_JOINTS, 3),
        translation=np.asarray(arrays["trans"], dtype=np.float64).reshape(num_frames, 3),
        # SMPL-H's shape space is another one than SMPL-X's.
        betas=np.ravel(arrays.get("betas", ())) if poses.shape[1] == 165 else np.zeros(0),
        hand_confidence=np.ones((num_frames, 2)),
        in_camera=False,
        is_smpl=poses.shape[1] == 156,
        gender=str(arrays.get("gender", "neutral")),
        fps=None if rate is None else float(rate),
    )


def _read_estimate(arrays: dict[str, np.ndarray], path) -> BodyParameters:
    num_frames = len(arrays["global_orient"])
    root = _rotvec(arrays["global_orient"], 1, "global_orient")[:, 0]
    body = arrays["body_pose"]
    is_smpl = body.size in (num_frames * 69, num_frames * 207)
    body = _rotvec(body, 23 if is_smpl else NUM_BODY_JOINTS, "body_pose", num_frames)[:, :NUM_BODY_JOINTS]
    translation = next((arrays[key] for key in _TRANSLATION_KEYS if key in arrays), None)
    if translation is None:
        raise ValueError(f"`path` has none of the translations {', '.join(_TRANSLATION_KEYS)}: {path}")
    hands, confidence = [], np.zeros((num_frames, 2))
    for side, key in enumerate(("left_hand_pose", "right_hand_pose")):
        confidence[:, side] = key in arrays
        hand = arrays.get(key, np.zeros((num_frames, NUM_HAND_JOINTS, 3)))
        hands.append(_rotvec(hand, NUM_HAND_JOINTS, key, num_frames))
    betas = np.asarray(arrays.get("betas", ()), dtype=np.float64)
    focal_length = arrays.get("focal_length", arrays.get("scaled_focal_length"))
    size = (arrays["width"], arrays["height"]) if "width" in arrays and "height" in arrays else arrays.get("img_size")
    return BodyParameters(
        root=root,
        body=body,
        left_hand=hands[0],
        right_hand=hands[1],
        translation=np.asarray(translation, dtype=np.float64).reshape(num_frames, 3),
        # One person has one shape; SMPL's is not SMPL-X's.
        betas=np.zeros(0)
        if is_smpl
        else np.median(betas.reshape(-1, betas.shape[-1]), axis=0)
        if betas.size
        else betas,
        hand_confidence=confidence,
        in_camera=True,
        is_smpl=is_smpl,
        gender=str(arrays.get("gender", "neutral")),
        fps=None if "fps" not in arrays else float(arrays["fps"]),
        focal_length=None if focal_length is None else float(np.median(focal_length)),
        size=None if size is None else tuple(int(np.ravel(side)[0]) for side in np.reshape(size, (-1, 2))[0]),
    )


def _add_hamer_hands(parameters: BodyParameters, path: str | os.PathLike) -> BodyParameters:
    """Puts HaMeR's hands on the arms: fingers as they are, and the wrist turned so that the hand points as it was seen."""
    arrays = _read_npz(path, "hands")
    missing = {"frame", "is_right", "hand_pose", "global_orient"} - set(arrays)
    if missing:
        raise ValueError(f"`hands` lacks {', '.join(sorted(missing))}: {path}")
    frames = np.asarray(arrays["frame"], dtype=np.int64).ravel()
    num_frames, num_hands = len(parameters.root), len(frames)
    if num_hands and (frames.min() < 0 or frames.max() >= num_frames):
        raise ValueError(
            f"`hands` has frames {frames.min()} to {frames.max()}, but the body has 0 to {num_frames - 1}."
        )
    is_right = np.ravel(arrays["is_right"]).astype(bool)
    fingers = _rotvec(arrays["hand_pose"], NUM_HAND_JOINTS, "hand_pose", num_hands)
    orient = _rotvec(arrays["global_orient"], 1, "global_orient", num_hands)[:, 0]
    # HaMeR sees left hands in a mirror: mirrored in x, a rotation keeps its x and changes the sign of y and z.
    mirror = np.where(is_right[:, None], 1.0, np.array([1.0, -1.0, -1.0]))
    fingers, orient = fingers * mirror[:, None], orient * mirror
    chain = global_body_rotations(parameters.root, parameters.body)
    body, confidence = parameters.body.copy(), np.zeros((num_frames, 2))
    hands = {"left": parameters.left_hand.copy(), "right": parameters.right_hand.copy()}
    for row, frame in enumerate(frames):
        side = "right" if is_right[row] else "left"
        wrist = _WRISTS[side]
        elbow = chain[frame, BODY_PARENTS[wrist]]
        body[frame, wrist - 1] = Rotation.from_matrix(
            elbow.T @ Rotation.from_rotvec(orient[row]).as_matrix()
        ).as_rotvec()
        hands[side][frame] = fingers[row]
        confidence[frame, int(is_right[row])] = 1.0
    return replace(
        parameters, body=body, left_hand=hands["left"], right_hand=hands["right"], hand_confidence=confidence
    )


def global_body_rotations(root: np.ndarray, body: np.ndarray) -> np.ndarray:
    """Rotations `(F, 22, 3, 3)` of pelvis and body joints in the parameters' frame, from root `(F, 3)` and body `(F, 21, 3)`."""
    local = Rotation.from_rotvec(np.concatenate([root[:, None], body], axis=1).reshape(-1, 3)).as_matrix()
    rotations = local.reshape(len(root), 22, 3, 3)
    for joint, parent in enumerate(BODY_PARENTS):
        if parent >= 0:
            rotations[:, joint] = rotations[:, parent] @ rotations[:, joint]
    return rotations


def _smplx_joints(parameters: BodyParameters, model_path: str | os.PathLike, gender: str) -> np.ndarray:
    """Our joints `(F, 62, 3)` in the parameters' frame, from the `smplx` package and the user's model file."""
    try:
        import smplx
        import torch
    except ImportError as error:
        raise ImportError(
            "Reading SMPL-X parameters needs the package `smplx`: pip install diffusers-dreamactor[smplx]"
        ) from error
    model_path = Path(model_path)
    names = [f"SMPLX_{gender.upper()}{suffix}" for suffix in (".npz", ".pkl")]
    folders = [model_path, model_path / "smplx"]
    candidates = [model_path] if model_path.is_file() else [folder / name for folder in folders for name in names]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"`model_path` has no {names[0]} or {names[1]}: {model_path}. SMPL-X's model files are under a licence of their "
            "own and come from https://smpl-x.is.tue.mpg.de; body_model='anny' needs none."
        )
    num_frames = len(parameters.root)
    model = smplx.SMPLX(
        str(file),
        ext=file.suffix[1:],
        gender=gender,
        use_pca=False,
        flat_hand_mean=True,
        num_betas=max(1, len(parameters.betas)),
        batch_size=_FRAMES_AT_A_TIME,
    )
    betas = torch.zeros(_FRAMES_AT_A_TIME, model.num_betas)
    known = min(len(parameters.betas), model.num_betas)
    betas[:, :known] = torch.as_tensor(parameters.betas[:known], dtype=torch.float32)
    joints = np.zeros((num_frames, NUM_JOINTS, 3))
    for start in range(0, num_frames, _FRAMES_AT_A_TIME):
        # The package's batch size is fixed: the last piece is filled up by repeating its last frame.
        frames = np.minimum(np.arange(start, start + _FRAMES_AT_A_TIME), num_frames - 1)

        def piece(value: np.ndarray, frames=frames) -> "torch.Tensor":
            return torch.as_tensor(value[frames], dtype=torch.float32).reshape(_FRAMES_AT_A_TIME, -1)

        with torch.no_grad():
            output = model(
                betas=betas,
                global_orient=piece(parameters.root),
                body_pose=piece(parameters.body),
                left_hand_pose=piece(parameters.left_hand),
                right_hand_pose=piece(parameters.right_hand),
                transl=piece(parameters.translation),
                return_verts=False,
                return_shaped=False,
            )
        points = output.joints.numpy()
        if parameters.is_smpl:
            points = points - points[:, :1] + (_SMPL_PELVIS + parameters.translation[frames])[:, None]
        found, _ = map_joints(points, None, SMPLX_MAPPING)
        joints[start : start + _FRAMES_AT_A_TIME] = found[: num_frames - start]
    return joints


def load_smplx_motion(
    path: str | os.PathLike,
    model_path: str | os.PathLike | None = None,
    fps: float | None = None,
    width: int | None = None,
    height: int | None = None,
    focal_length: float | None = None,
    hands: str | os.PathLike | None = None,
    gender: str | None = None,
    body_model: str = "smplx",
    camera_yaw: float = 0.0,
) -> MotionSequence:
    """
    A motion from a file of SMPL-X parameters; this module's docstring lists the layouts.

    Args:
        path (`str` or `os.PathLike`): the `.npz` file.
        model_path (`str` or `os.PathLike`, *optional*):
            SMPL-X's model file, or a folder with `SMPLX_NEUTRAL.npz` and so on (also inside `smplx/`). Needed for
            `body_model="smplx"`.
        fps (`float`, *optional*): the rate of the result; default the file's own. Needed when the file does not say.
        width, height (`int`, *optional*):
            Size of the picture; default the file's, else 720 x 1280.
        focal_length (`float`, *optional*): pixels; default the file's, else the picture's diagonal.
        hands (`str` or `os.PathLike`, *optional*): HaMeR's hands. Frames without a hand have hand confidence 0.
        gender (`str`, *optional*): "neutral", "female" or "male"; default the file's.
        body_model (`str`, defaults to `"smplx"`):
            "smplx", or "anny" for an average adult from the package `anny`: bone lengths are Anny's then, not those of
            the file's shape.
        camera_yaw (`float`, defaults to 0.0):
            For files without a camera: degrees by which the camera stands to the left of the person's front.

    Returns:
        `MotionSequence` with body (hands included) and head.

    Raises:
        FileNotFoundError: no such file or model file.
        ValueError: a layout that is not known, values that are not finite, or no frame rate.
        ImportError: the package is missing; the message names the extra.
    """
    if body_model not in ("smplx", "anny"):
        raise ValueError(f"`body_model` must be 'smplx' or 'anny', but is {body_model!r}.")
    if body_model == "smplx" and model_path is None:
        raise ValueError("`model_path` is needed for body_model='smplx': SMPL-X's model file, or the folder it is in.")
    arrays = _read_npz(path, "path")
    if "poses" in arrays and "trans" in arrays:
        parameters = _read_amass(arrays, path)
    elif "global_orient" in arrays and "body_pose" in arrays:
        parameters = _read_estimate(arrays, path)
    else:
        raise ValueError(
            "`path` is neither AMASS (`poses`, `trans`) nor an estimate in the camera (`global_orient`, `body_pose`); it "
            f"has {', '.join(sorted(arrays)) or 'nothing'}: {path}"
        )
    if len(parameters.root) == 0:
        raise ValueError(f"`path` has no frames: {path}")
    source_fps = parameters.fps or fps
    if source_fps is None:
        raise ValueError(f"`fps` is needed, since the file does not say its frame rate: {path}")
    if hands is not None:
        parameters = _add_hamer_hands(parameters, hands)

    rotations = global_body_rotations(parameters.root, parameters.body)
    if body_model == "anny":
        pelvis = parameters.translation + (_SMPL_PELVIS if parameters.is_smpl else _SMPLX_PELVIS)
        joints = anny_joints(rotations, parameters.left_hand, parameters.right_hand, pelvis)
    else:
        joints = _smplx_joints(parameters, model_path, gender or parameters.gender)
    confidence = np.ones((len(joints), NUM_JOINTS))
    confidence[:, LEFT_HAND] = parameters.hand_confidence[:, :1]
    confidence[:, RIGHT_HAND] = parameters.hand_confidence[:, 1:]
    for side, joint in (("left", LEFT_HAND), ("right", RIGHT_HAND)):
        # The hand's wrist is the arm's, whether fingers are known or not.
        confidence[:, joint.start] = confidence[:, JOINT_INDEX[f"{side}_wrist"]]

    file_width, file_height = parameters.size or (720, 1280)
    width, height = width or file_width, height or file_height
    head = rotations[:, _HEAD] @ _SMPL_TO_HEAD
    if parameters.in_camera:
        focal_length = focal_length or parameters.focal_length or default_focal_length(width, height)
    else:
        up = np.array([0.0, 0.0, 1.0])
        camera, translation, focal_length = place_camera(joints, up, width, height, focal_length, camera_yaw)
        joints, head = joints @ camera.T + translation, camera @ head
    motion = motion_from_joints(joints, confidence, source_fps, width, height, focal_length, head)
    return motion if fps is None else motion.resample(fps)
