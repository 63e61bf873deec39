import tracemalloc

import numpy as np

from diffusers_dreamactor.motion.capture.faces import expected_heads

from .standing_person import standing_at


def test_heads_are_expected_between_the_poses_and_a_second_beyond():
    """The person is seen in frames 20 to 24, 20 pixels further in each, and 34 of the second of three shots."""
    chosen = [None] * 90
    for frame in (20, 21, 22, 23, 24, 34):
        chosen[frame] = (0, standing_at(10.0 * frame))
    expected = expected_heads(chosen, [slice(0, 10), slice(10, 50), slice(50, 90)], fps=8.0)
    there = [frame for frame, head in enumerate(expected) if head is not None]
    assert there == [*range(12, 43)]
    middles = np.array([expected[frame][0] for frame in there])
    np.testing.assert_allclose(np.diff(middles[8:23, 0]), 10.0, atol=1e-9)
    np.testing.assert_allclose(middles[:8], middles[[8]].repeat(8, axis=0))


def test_a_long_film_takes_no_more_memory_for_a_frame_without_a_pose():
    chosen = [(0, standing_at(300.0))] * 20_000
    chosen[700] = None
    tracemalloc.start()
    expected = expected_heads(chosen, [slice(0, 20_000)], fps=24.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert all(head is not None for head in expected)
    assert peak < 2_000 * 20_000
