"""
How well the person to replace is cut out, on rendered people whose outlines are known.

    python examples/benchmark/replacement_masks.py [--models FOLDER] [--body FILE] [--pictures FOLDER]

The scenes of `capture_accuracy.py` (extra `synthetic`), two of each: the person is captured, cut out by
`MediaPipeCapture.segment`, and compared with what was rendered. One row of the table for each clip:

- `IoU`: intersection over union of the cut-out (at 0.5) and the person, the median over frames in which the person is shown.
- `covered %`: the share of the person that the mask of a replacement (grown, in blocks) holds, the mean and the least frame.
- `marked %`: the share of the picture that it marks, and the share that the person takes.
"""

import argparse
import sys
from pathlib import Path

import numpy as np


sys.path.insert(0, str(Path(__file__).parent))
from capture_accuracy import HEIGHT, RATE, SCENES, WIDTH, load_body, references, render_scene  # noqa: E402

from diffusers_dreamactor.media import VideoReader  # noqa: E402
from diffusers_dreamactor.motion.capture.mediapipe import MediaPipeCapture  # noqa: E402
from diffusers_dreamactor.motion.retarget import retarget  # noqa: E402
from diffusers_dreamactor.motion.skeleton import JOINT_INDEX  # noqa: E402
from diffusers_dreamactor.processors.replacement import Silhouette, replacement_masks  # noqa: E402


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="folder with MediaPipe's bundles")
    parser.add_argument("--body", help="packed body (`avatar_body.py`); packed anew by default")
    parser.add_argument("--pictures", help="folder for a contact sheet of each clip")
    arguments = parser.parse_args()
    body = load_body(arguments.body)
    capture = MediaPipeCapture.from_pretrained(arguments.models)
    figure = references(body)[1]
    print("| clip | IoU | covered %, least | marked %, person % |\n|---|---|---|---|", flush=True)
    for name in SCENES:
        for seed in range(2):
            video, truths, _, outlines = render_scene(name, seed, body)
            truth = outlines[0]
            person = None
            if len(truths) > 1:
                person = tuple(float(value) for value in truths[0].body.keypoints[0, JOINT_INDEX["neck"]])
            motion = capture.capture(list(video), fps=RATE, person=person, progress=False)
            cut = list(capture.segment(list(video), motion, progress=False))
            placed = retarget(motion, figure, HEIGHT, WIDTH, align="none")
            masks = VideoReader(replacement_masks(cut, placed, Silhouette.measure(None, figure)), fps=RATE)
            marked = np.stack([mask[..., 0] > 0 for mask in masks])
            found = np.stack([np.zeros((HEIGHT, WIDTH), bool) if mask is None else mask >= 0.5 for mask in cut])
            shown = truth.mean(axis=(1, 2)) > 0.01
            union = (found | truth).sum(axis=(1, 2))[shown]
            iou = (found & truth).sum(axis=(1, 2))[shown] / union
            covered = 100 * (marked & truth).sum(axis=(1, 2))[shown] / truth.sum(axis=(1, 2))[shown]
            print(
                f"| {name} {seed} | {np.median(iou):.3f} | {covered.mean():.1f}, {covered.min():.1f} | "
                f"{100 * marked.mean():.1f}, {100 * truth.mean():.1f} |",
                flush=True,
            )
            if arguments.pictures:
                from PIL import Image

                shown = video // 2
                shown[..., 0] = np.where(marked, 200, shown[..., 0])
                shown[..., 1] = np.where(found, 200, shown[..., 1])
                sheet = np.concatenate(list(shown[:: len(shown) // 6][:6, ::2, ::2]), axis=1)
                Path(arguments.pictures).mkdir(parents=True, exist_ok=True)
                Image.fromarray(sheet).save(Path(arguments.pictures) / f"{name}_{seed}.png")


if __name__ == "__main__":
    main()
