"""`FaceMotionProcessor`: the driving face as steady square crops, which the face motion encoder turns into tokens."""

from collections.abc import Iterable, Iterator

import numpy as np
from diffusers.configuration_utils import register_to_config
from PIL import Image

from ..motion.face_crops import cut_square, square_around
from .processor_mixin import ProcessorMixin


class FaceMotionProcessor(ProcessorMixin):
    r"""
    Cuts square face crops out of the frames of a video (paper section 3.1, implicit facial representation).

    A box that trembles or cuts off a chin looks like an expression to the encoder. So boxes have to come steady, as captures
    give them (`motion.filtering.smooth_boxes`), and are widened here; where no face is seen, the last crop is held and its
    weight decays.

    Args:
        size (`int`): side of the crops in pixels.
        scale (`float`): side of a crop as a multiple of the face box's side. Boxes of our captures reach from above the
            brows to the chin, framed as in Wan-Animate's preprocessing: 1 is what its weights were trained on.
        shift (`float`): how far a crop is moved up, as a share of the face box's side.
        threshold (`float`): a face with less confidence counts as not seen.
        hold_decay (`float`): what is left of a held crop's weight after each frame without a face, in [0, 1].

    Raises:
        ValueError: an argument out of its range.
    """

    @register_to_config
    def __init__(
        self,
        size: int = 512,
        scale: float = 1.15,
        shift: float = 0.0,
        threshold: float = 0.5,
        hold_decay: float = 0.9,
    ):
        if size < 1 or int(size) != size:
            raise ValueError(f"`size` is {size}, but it has to be a positive whole number of pixels.")
        if not scale > 0:
            raise ValueError(f"`scale` is {scale}, but it has to be positive.")
        if not 0 <= hold_decay <= 1:
            raise ValueError(f"`hold_decay` is {hold_decay}, but it has to be in [0, 1].")

    def __call__(
        self, frames: Iterable[np.ndarray], boxes: np.ndarray, confidence: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Crops of a whole clip. `iter_crops` gives them one at a time, for clips of any length.

        Args:
            frames (iterable of `np.ndarray` of shape `(H, W, 3)`): uint8 RGB; read one by one.
            boxes (`np.ndarray` of shape `(F, 4)`): face boxes `x0, y0, x1, y1` in pixels of the frames.
            confidence (`np.ndarray` of shape `(F,)`): in [0, 1].

        Returns:
            Crops `(F, 3, size, size)`, uint8 RGB, and their weights `(F,)`, float32 in [0, 1].

        Raises:
            ValueError: fewer frames than boxes.
        """
        size = self.config.size
        crops = np.empty((len(boxes), 3, size, size), dtype=np.uint8)
        for index, crop in enumerate(self.iter_crops(frames, boxes, confidence)):
            crops[index] = crop
        return crops, self.weights(confidence)

    def seen(self, confidence: np.ndarray) -> np.ndarray:
        """Which frames show a face: `(F,)` bool."""
        return np.asarray(confidence) >= self.config.threshold

    def weights(self, confidence: np.ndarray) -> np.ndarray:
        """
        How far each frame's crop is to be believed, for a whole clip: 1 where a face is seen, decaying by `hold_decay` a
        frame while the last crop is held, 0 before the first face. Returns `(F,)`, float32.
        """
        last = _last_seen(self.seen(confidence))
        held = np.arange(len(last)) - last
        return np.where(last >= 0, np.float64(self.config.hold_decay) ** held, 0).astype(np.float32)

    def iter_crops(
        self, frames: Iterable[np.ndarray], boxes: np.ndarray, confidence: np.ndarray
    ) -> Iterator[np.ndarray]:
        """
        Crops one after the other, with no more than one frame in memory.

        Args:
            frames (iterable of `np.ndarray` of shape `(H, W, 3)`): uint8 RGB.
            boxes (`np.ndarray` of shape `(F, 4)`): face boxes in pixels of the frames.
            confidence (`np.ndarray` of shape `(F,)`): in [0, 1].

        Yields:
            `np.ndarray` of shape `(3, size, size)`, uint8 RGB: while no face is seen the last crop; before the first face
            the place where it will appear.

        Raises:
            ValueError: fewer frames than boxes.
        """
        seen = self.seen(confidence)
        first = int(np.argmax(seen))
        frames = iter(frames)
        crop = None
        for index in range(len(boxes)):
            frame = next(frames, None)
            if frame is None:
                raise ValueError(f"`frames` ended after {index} frames, but the motion has {len(boxes)}.")
            if seen[index] or index < first or crop is None:
                crop = self.crop(frame, boxes[max(index, first)])
            yield crop

    def iter_stored_crops(
        self,
        crops: Iterable[np.ndarray],
        confidence: np.ndarray,
        boxes: np.ndarray | None = None,
        crop_boxes: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """
        `iter_crops` for pictures of the face that are stored with a motion: where it is known what they show, the same part
        is cut out of them as out of the frames.

        Args:
            crops (iterable of `np.ndarray` of shape `(S, S, 3)`): uint8 RGB.
            confidence (`np.ndarray` of shape `(F,)`): in [0, 1].
            boxes (`np.ndarray` of shape `(F, 4)`, *optional*): face boxes in pixels of the frames.
            crop_boxes (`np.ndarray` of shape `(F, 4)`, *optional*): the squares that `crops` show, in pixels of the
                frames. Without the two, crops are only resized.

        Yields:
            `np.ndarray` of shape `(3, size, size)`, uint8 RGB: while no face is seen the last crop.
        """
        seen = self.seen(confidence)
        held = None
        for index, crop in enumerate(crops):
            if seen[index] or held is None or not seen[:index].any():
                if boxes is not None and crop_boxes is not None:
                    left, top, right, _ = crop_boxes[index]
                    held = self.crop(crop, (boxes[index] - [left, top, left, top]) * len(crop) / (right - left))
                else:
                    picture = Image.fromarray(crop)
                    if len(crop) != self.config.size:
                        picture = picture.resize((self.config.size,) * 2, Image.Resampling.LANCZOS)
                    held = np.asarray(picture).transpose(2, 0, 1)
            yield held

    def crop(self, frame: np.ndarray, box: np.ndarray) -> np.ndarray:
        """
        One crop. What lies outside the picture is filled with its edge.

        Args:
            frame (`np.ndarray` of shape `(H, W, 3)`): uint8 RGB.
            box (`np.ndarray` of shape `(4,)`): the face's box in pixels, before `scale` and `shift`.

        Returns:
            `np.ndarray` of shape `(3, size, size)`, uint8 RGB.
        """
        return cut_square(frame, self.crop_box(box), self.config.size).transpose(2, 0, 1)

    def crop_box(self, box: np.ndarray) -> tuple[float, float, float, float]:
        """The square that is cut out for a face box: `x0, y0, x1, y1` in pixels; it may leave the picture."""
        return square_around(box, self.config.scale, self.config.shift)


def _last_seen(seen: np.ndarray) -> np.ndarray:
    """For every frame the last one up to it in which a face is seen, -1 before the first."""
    return np.maximum.accumulate(np.where(seen, np.arange(len(seen)), -1))
