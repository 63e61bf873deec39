"""
How exact capture and retargeting are, on rendered people whose joints are known.

    python examples/benchmark/capture_accuracy.py [--models FOLDER] [--body FILE] [--scenes desk crossing ...] [--seeds 2]
        [--pictures FOLDER] [--motions FOLDER] [--against FOLDER]

People of `examples/synthetic` (extra `synthetic`) are rendered at 640x480 and 24 frames/s: behind a desk, entering and
leaving, gesturing fast, turning right round, crossing, in contact and hugging. Each scene is captured by `MediaPipeCapture`,
retargeted, and compared with the truth; one row of the table for each scene, the mean over seeds:

- `body %`, `hand %`: median distance of keypoints that the picture shows, in per cent of the person's stature.
- `PCK`: share of shown body joints drawn within 5 % of the stature; `hand PCK`: of hand joints within 2 %.
- `wrists off %`, `wrists lost %`: of all wrists that the picture shows, the share drawn more than 5 % of the stature away, and
  the share not drawn. Of the two versions of a capture the one that draws less is not the better one, so both are of all.
- `switches`: how often a body joint is switched on or off, beyond what the truth does.
- `head deg`: median angle between head rotations, where the head is drawn and shown.
- `exchanged %`: share of frames in which the neck or the head is nearer to another person's, and more than 5 % of the stature
  from its own (people who cross coincide for a moment).
- `ghosts %`: share of frames without the person (of a truth beyond 0.5 s around) in which a body is drawn.
- `head out %`: share of frames with the head's middle outside the picture, retargeted onto a close portrait.
- `feet %`: greatest way that an ankle goes, retargeted onto a standing person, in per cent of the stature; where the driver's
  legs are hidden this is 0 at best.

Where the click is refused the person is taken by index, as a user would have to; a line says so. `--motions` keeps what was captured, and `--against`
compares with what another version kept, where both versions draw a thing (there / here): the share of wrists off, the median
distance of hands, the median angle between head rotations.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.ndimage import maximum_filter1d
from scipy.spatial.transform import Rotation, Slerp


sys.path.insert(0, str(Path(__file__).parents[1] / "synthetic"))
from avatar_appearance import AvatarAppearance  # noqa: E402
from avatar_body import AvatarBody  # noqa: E402
from avatar_clip import Avatar  # noqa: E402
from avatar_motion import AvatarMotion, random_motion  # noqa: E402
from avatar_view import FPS, Camera  # noqa: E402

from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture  # noqa: E402
from diffusers_dreamactor.motion.retarget import retarget  # noqa: E402
from diffusers_dreamactor.motion.sequence import MotionSequence  # noqa: E402
from diffusers_dreamactor.motion.skeleton import BODY, JOINT_INDEX, LEFT_HAND, RIGHT_HAND  # noqa: E402


HEIGHT, WIDTH, RATE, NUM_FRAMES = 480, 640, 24, 72
SCENES = ("desk", "entering", "fast", "turning", "crossing", "contact", "hug")
COLUMNS = (
    "body %",
    "PCK",
    "hand %",
    "hand PCK",
    "wrists off %",
    "wrists lost %",
    "switches",
    "head deg",
    "exchanged %",
    "ghosts %",
    "head out %",
    "feet %",
)
# With `--against`
BOTH = ("off there %", "off here %", "hand there %", "hand here %", "head there deg", "head here deg")
WRISTS = [JOINT_INDEX["right_wrist"], JOINT_INDEX["left_wrist"]]
ANKLES = [JOINT_INDEX["right_ankle"], JOINT_INDEX["left_ankle"]]
HANDS = [*range(LEFT_HAND.start, LEFT_HAND.stop), *range(RIGHT_HAND.start, RIGHT_HAND.stop)]
DESK = (96, 66, 44)


def load_body(path: str | None) -> AvatarBody:
    """A packed body; packed anew, which takes a minute, where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(path or Path(folder) / "body.npz")
        if not path.is_file():
            AvatarBody.pack(path, num_people=60)
        return AvatarBody(path)


def camera_for(middle: float, shown: float) -> Camera:
    """A camera that shows `shown` metres of height around `middle` metres above the hips."""
    focal_length = 1.3 * np.hypot(HEIGHT, WIDTH)
    return Camera(HEIGHT, WIDTH, focal_length, focal_length * shown / HEIGHT, 0.0, middle)


def smooth_motion(random: np.random.Generator, body: AvatarBody, scale: str, speed: float = 1.0) -> AvatarMotion:
    """A random motion at `RATE` frames/s, `speed` times as fast as the data set's."""
    step = speed * FPS / RATE
    times = step * np.arange(NUM_FRAMES)
    motion = random_motion(random, body, int(np.ceil(times[-1])) + 1, scale, liveliness=0.5, turning=0.0)
    keys = np.arange(len(motion.translation))
    rotations = np.tile(np.eye(3, dtype=np.float32), (NUM_FRAMES, motion.rotations.shape[1], 1, 1))
    for bone in range(rotations.shape[1]):
        rotations[:, bone] = Slerp(keys, Rotation.from_matrix(motion.rotations[:, bone]))(times).as_matrix()

    def between(values: np.ndarray) -> np.ndarray:
        return np.stack([np.interp(times, keys, column) for column in values.T], axis=1).astype(np.float32)

    return AvatarMotion(rotations, between(motion.translation), between(motion.actions), scale)


def turned(motion: AvatarMotion, yaw: np.ndarray) -> AvatarMotion:
    """The motion with the root turned by `yaw` (F,) degrees about the vertical."""
    rotations = motion.rotations.copy()
    rotations[:, 0] = Rotation.from_euler("z", yaw[:, None], degrees=True).as_matrix() @ rotations[:, 0]
    return replace(motion, rotations=rotations)


def moved(motion: AvatarMotion, x: np.ndarray | float = 0.0, y: np.ndarray | float = 0.0) -> AvatarMotion:
    """The motion shifted by `x` metres to image right and `y` away from the camera, numbers or `(F,)`."""
    translation = motion.translation.copy()
    translation[:, 0] += x
    translation[:, 1] += y
    return replace(motion, translation=translation)


def embracing(motion: AvatarMotion, body: AvatarBody, amount: np.ndarray) -> AvatarMotion:
    """The motion with the arms round somebody who stands before the person, by `amount` (F,) in [0, 1]."""
    rotations = motion.rotations.copy()
    x, y, z = np.eye(3)
    for side, sign in (("L", 1), ("R", -1)):
        upper = Slerp([0, 1], Rotation.from_rotvec([0 * x, np.deg2rad(-70) * x]))(amount)
        inward = Slerp([0, 1], Rotation.from_rotvec([0 * z, np.deg2rad(25 * sign) * z]))(amount)
        elbow = Slerp([0, 1], Rotation.from_rotvec([0 * y, np.deg2rad(25) * np.array([-0.75, 0, -0.66 * sign])]))
        rotations[:, body.bone_index[f"upperarm01.{side}"]] = (inward * upper).as_matrix()
        rotations[:, body.bone_index[f"lowerarm01.{side}"]] = elbow(amount).as_matrix()
    return replace(motion, rotations=rotations)


def scene_of(name: str, random: np.random.Generator, body: AvatarBody) -> tuple[Camera, list[AvatarMotion]]:
    """The camera and everybody's motion, the person who is followed first."""
    time = np.linspace(0, 1, NUM_FRAMES)
    if name == "desk":
        return camera_for(0.35, 1.25), [smooth_motion(random, body, "half_body")]
    if name == "fast":
        return camera_for(-0.1, 2.4), [smooth_motion(random, body, "full_body", speed=1.5)]
    if name == "turning":
        return camera_for(-0.1, 2.3), [turned(smooth_motion(random, body, "full_body"), 360 * time)]
    if name == "entering":
        # From beyond the left edge to the middle, a stop, and back out.
        way = np.interp(time, [0, 0.15, 0.4, 0.65, 0.9, 1], [-2.4, -2.4, 0, 0, -2.4, -2.4])
        heading = np.interp(time, [0, 0.35, 0.42, 0.63, 0.7, 1], [60, 60, 0, 0, -60, -60])
        return camera_for(-0.1, 2.3), [moved(turned(smooth_motion(random, body, "full_body"), heading), x=way)]
    first, second = (smooth_motion(random, body, "full_body") for _ in range(2))
    if name == "crossing":
        way = np.linspace(-1.1, 1.1, NUM_FRAMES)
        return camera_for(-0.1, 2.3), [
            moved(turned(first, np.full(NUM_FRAMES, 50.0)), x=way),
            moved(turned(second, np.full(NUM_FRAMES, -50.0)), -way, -0.6),
        ]
    if name == "hug":
        # Face to face, seen from the side; together they take each other into their arms, and part again.
        apart = np.interp(time, [0, 0.1, 0.35, 0.75, 1], [0.6, 0.55, 0.16, 0.16, 0.5])
        amount = np.interp(time, [0, 0.15, 0.4, 0.75, 0.95], [0, 0, 1, 1, 0])
        yaw = np.full(NUM_FRAMES, 65.0)
        return camera_for(-0.1, 2.3), [
            moved(turned(embracing(first, body, amount), yaw), x=-apart),
            moved(turned(embracing(second, body, amount), -yaw), apart, -0.05),
        ]
    # Side by side, shoulders touching, one before the other and swaying together.
    apart = np.interp(time, [0, 0.25, 0.75, 1], [0.55, 0.2, 0.2, 0.55])
    return camera_for(0.25, 1.6), [moved(first, x=-apart), moved(second, apart, -0.35)]


def render_scene(name: str, seed: int, body: AvatarBody) -> tuple:
    """
    Frames `(F, H, W, 3)`, everybody's true motion, which joints `(F, 62)` the picture shows of each (those that another
    person or the desk may hide are left out), and everybody's outline `(F, H, W)`, as far as it is shown.
    """
    random = np.random.default_rng([seed, SCENES.index(name)])
    camera, motions = scene_of(name, random, body)
    people = [
        Avatar(body, AvatarAppearance.random(np.random.default_rng([seed, 7 + i]), body)) for i in range(len(motions))
    ]
    cameras = [camera.framed_for(people[0])] * len(people)
    order = sorted(range(len(people)), key=lambda i: -motions[i].translation[:, 1].mean())
    video, truths, shown, outlines = None, [None] * len(people), [None] * len(people), [None] * len(people)
    for index in order:
        frames, regions = [], []
        for start in range(0, NUM_FRAMES, 12):
            piece, region = people[index].pose(motions[index], slice(start, start + 12)).render(cameras[index])
            frames.append(piece)
            regions.append(region)
        truth = people[index].pose(motions[index]).motion(cameras[index])
        truth.fps = RATE
        mask = np.concatenate(regions) > 0
        frames = np.concatenate(frames)
        video = frames if video is None else np.where(mask[..., None], frames, video)
        pixels = truth.body.keypoints.round().astype(int)
        inside = ((pixels >= 0) & (pixels < [WIDTH, HEIGHT])).all(axis=-1)
        truths[index], shown[index], outlines[index] = truth, inside, mask
        for other in order[: order.index(index)]:
            others = truths[other].body.keypoints.round().astype(int)
            across, down = others[..., 0].clip(0, WIDTH - 1), others[..., 1].clip(0, HEIGHT - 1)
            outlines[other] = outlines[other] & ~mask
            shown[other] &= ~mask[np.arange(NUM_FRAMES)[:, None], down, across]
    if name == "desk":
        edge = int(0.74 * HEIGHT)
        video[:, edge:] = DESK
        outlines[0][:, edge:] = False
        shown[0] &= truths[0].body.keypoints[..., 1] < edge
    return video, truths, shown, outlines


def references(body: AvatarBody) -> tuple[MotionSequence, MotionSequence]:
    """A close portrait and a standing full figure, as a perfect capture would see them."""
    avatar = Avatar(body, AvatarAppearance.random(np.random.default_rng(99), body))
    rotations = np.tile(np.eye(3, dtype=np.float32), (1, len(body.bone_names), 1, 1))
    still = AvatarMotion(rotations, np.zeros((1, 3), np.float32), np.zeros((1, 52), np.float32), "full_body")
    cameras = camera_for(0.62, 0.62), camera_for(-0.1, 2.2)
    return tuple(avatar.pose(still).motion(camera.framed_for(avatar)) for camera in cameras)


def switches(drawn: np.ndarray) -> int:
    """How often `(F, N)` bool turns on or off."""
    return int(np.abs(np.diff(drawn.astype(int), axis=0)).sum())


def stature_of(truth: MotionSequence) -> float:
    """A person's height in pixels."""
    return float(np.percentile(np.ptp(truth.body.keypoints[..., 1], axis=1), 90))


def errors(motion: MotionSequence, truth: MotionSequence) -> tuple[np.ndarray, np.ndarray]:
    """Which joints `(F, 62)` are drawn, and how far they are from the truth, in statures."""
    distance = np.linalg.norm(motion.body.keypoints - truth.body.keypoints, axis=-1)
    return motion.body.confidence >= 0.5, distance / stature_of(truth)


def heads_drawn(motion: MotionSequence, visible: np.ndarray) -> np.ndarray:
    """Frames `(F,)` bool with a head that is drawn and shown."""
    return (motion.head.confidence >= 0.5) & visible[:, JOINT_INDEX["nose"]]


def head_angles(motion: MotionSequence, truth: MotionSequence) -> np.ndarray:
    """Angles `(F,)` in degrees between the rotations of heads."""
    turn = np.einsum("fij,fij->f", motion.head.rotation, truth.head.rotation)
    return np.degrees(np.arccos(np.clip((turn - 1) / 2, -1, 1)))


def captured(capture: MediaPipeCapture, video: np.ndarray, truths: list[MotionSequence], label: str) -> MotionSequence:
    """The motion of the first person, chosen by the place in the first frame: the largest may be another one."""
    if len(truths) == 1:
        return capture.capture(list(video), fps=RATE, progress=False)
    neck = truths[0].body.keypoints[:, JOINT_INDEX["neck"]]
    try:
        person = tuple(float(value) for value in neck[0])
        return capture.capture(list(video), fps=RATE, person=person, progress=False)
    except ValueError as error:
        print(f"{label}: {error} The nearest is taken.", file=sys.stderr)
    motions = [capture.capture(list(video), fps=RATE, person=index, progress=False) for index in range(len(truths))]
    return min(
        motions,
        key=lambda each: np.median(np.linalg.norm(each.body.keypoints[:, JOINT_INDEX["neck"]] - neck, axis=1)),
    )


def compare(
    motion: MotionSequence, truths: list[MotionSequence], shown: list[np.ndarray], stills: tuple, desk: bool
) -> dict[str, float]:
    """One row of the table."""
    truth, visible = truths[0], shown[0]
    stature = stature_of(truth)
    drawn, error = errors(motion, truth)
    both = drawn & visible
    row = {
        "body %": 100 * np.median(error[:, BODY][both[:, BODY]]),
        "PCK": 100 * np.mean((error < 0.05)[:, BODY][visible[:, BODY]] & drawn[:, BODY][visible[:, BODY]]),
        "hand %": 100 * np.median(error[:, HANDS][both[:, HANDS]]) if both[:, HANDS].any() else np.nan,
        "hand PCK": 100 * np.mean(((error < 0.02) & drawn)[:, HANDS][visible[:, HANDS]]),
        "wrists off %": 100 * np.mean((drawn & (error > 0.05))[:, WRISTS][visible[:, WRISTS]]),
        "wrists lost %": 100 * np.mean(~drawn[:, WRISTS][visible[:, WRISTS]]),
        "switches": max(0, switches(drawn[:, BODY]) - switches(visible[:, BODY])),
    }
    heads = heads_drawn(motion, visible)
    row["head deg"] = np.median(head_angles(motion, truth)[heads]) if heads.any() else np.nan
    row["exchanged %"] = 0.0
    neck = JOINT_INDEX["neck"]
    if len(truths) > 1:

        def nearer(points: np.ndarray, places: list[np.ndarray]) -> np.ndarray:
            own, other = (np.linalg.norm(points - place, axis=-1) for place in places[:2])
            return (other < own) & (own > 0.05 * stature)

        by_body = nearer(motion.body.keypoints[:, neck], [each.body.keypoints[:, neck] for each in truths])
        by_head = nearer(motion.head.center, [each.head.center for each in truths])
        wrong = (by_body & drawn[:, neck]) | (by_head & (motion.head.confidence >= 0.5))
        row["exchanged %"] = 100 * wrong.mean()
    around = maximum_filter1d(visible.any(axis=1).astype(int), RATE + 1) > 0
    row["ghosts %"] = 100 * np.mean(drawn[~around].any(axis=1)) if (~around).any() else 0.0
    portrait, figure = stills
    close = retarget(motion, portrait, HEIGHT, WIDTH)
    outside = ((close.head.center < 0) | (close.head.center > [WIDTH, HEIGHT])).any(axis=1)
    there = close.head.confidence >= 0.5
    row["head out %"] = 100 * outside[there].mean() if there.any() else np.nan
    standing = retarget(motion, figure, HEIGHT, WIDTH)
    feet = standing.body.keypoints[:, ANKLES] - figure.body.keypoints[:, ANKLES]
    tall = np.ptp(figure.body.keypoints[0, BODY, 1])
    row["feet %"] = 100 * np.linalg.norm(feet, axis=-1).max() / tall if desk else np.nan
    return row


def compare_both(
    motion: MotionSequence, other: MotionSequence, truth: MotionSequence, visible: np.ndarray
) -> dict[str, float]:
    """`BOTH`: of what is shown and both motions draw, how far off each of them is."""
    (drawn, error), (drawn_there, error_there) = errors(motion, truth), errors(other, truth)
    both = drawn & drawn_there & visible
    wrists, hands = both[:, WRISTS], both[:, HANDS]
    heads = heads_drawn(motion, visible) & heads_drawn(other, visible)
    row = dict.fromkeys(BOTH, np.nan)
    for where, each, distance in (("there", other, error_there), ("here", motion, error)):
        if wrists.any():
            row[f"off {where} %"] = 100 * np.mean(distance[:, WRISTS][wrists] > 0.05)
        if hands.any():
            row[f"hand {where} %"] = 100 * np.median(distance[:, HANDS][hands])
        if heads.any():
            row[f"head {where} deg"] = np.median(head_angles(each, truth)[heads])
    return row


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="folder with MediaPipe's bundles")
    parser.add_argument("--body", help="packed body (`avatar_body.py`); packed anew by default")
    parser.add_argument("--scenes", nargs="+", choices=SCENES, default=SCENES)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--pictures", help="folder for a contact sheet of each scene, with what was captured")
    parser.add_argument("--motions", help="folder to keep the captured motions in")
    parser.add_argument("--against", help="folder with the motions that another version kept, to be compared with")
    arguments = parser.parse_args()
    columns = COLUMNS + (BOTH if arguments.against else ())
    body = load_body(arguments.body)
    capture = MediaPipeCapture.from_pretrained(arguments.models)
    stills = references(body)
    print("| scene | " + " | ".join(columns) + " |\n|---" + "|---" * len(columns) + "|", flush=True)
    for name in arguments.scenes:
        rows = []
        for seed in range(arguments.seeds):
            video, truths, shown, _ = render_scene(name, seed, body)
            motion = captured(capture, video, truths, f"{name}, seed {seed}")
            row = compare(motion, truths, shown, stills, name == "desk")
            kept = f"{name}_{seed}.safetensors"
            if arguments.against:
                other = MotionSequence.load(Path(arguments.against) / kept)
                row |= compare_both(motion, other, truths[0], shown[0])
            rows.append(row)
            if arguments.motions:
                Path(arguments.motions).mkdir(parents=True, exist_ok=True)
                motion.save(Path(arguments.motions) / kept)
            if arguments.pictures:
                save_picture(Path(arguments.pictures) / f"{name}_{seed}.png", video, motion)
        means = [
            np.nanmean([row[c] for row in rows]) if np.isfinite([row[c] for row in rows]).any() else None
            for c in columns
        ]
        print(f"| {name} | " + " | ".join("" if mean is None else f"{mean:.2f}" for mean in means) + " |", flush=True)


def save_picture(path: Path, video: np.ndarray, motion: MotionSequence) -> None:
    """A contact sheet of the captured skeletons over the dimmed frames."""
    from PIL import Image

    from diffusers_dreamactor.processors.body_skeleton import BodySkeletonProcessor

    drawn = BodySkeletonProcessor()(motion, HEIGHT, WIDTH).transpose(0, 2, 3, 1)
    frames = np.where(drawn.max(axis=-1, keepdims=True) > 0, drawn, video // 2)[:: NUM_FRAMES // 12][:12, ::2, ::2]
    sheet = frames.reshape(3, 4, *frames.shape[1:]).transpose(0, 2, 1, 3, 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(sheet).reshape(3 * HEIGHT // 2, 4 * WIDTH // 2, 3)).save(path)


if __name__ == "__main__":
    main()
