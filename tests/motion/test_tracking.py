from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from diffusers_dreamactor.motion.capture.appearance import head_outline, part_colours
from diffusers_dreamactor.motion.capture.contact import Contact
from diffusers_dreamactor.motion.capture.tracking import CutDetector, Person, PersonTracker, colour_histogram

from .standing_person import STANDING, standing_at


def person(x, colour, rng) -> Person:
    histogram = np.zeros(216)
    histogram[colour : colour + 20] = rng.uniform(0.5, 1, 20)
    return Person(
        keypoints=STANDING[:, :2] * 200 + [x, 300] + rng.normal(0, 1.5, (33, 2)),
        world=STANDING,
        visibility=np.full(33, 0.95),
        appearance=histogram / np.linalg.norm(histogram),
    )


def test_people_who_cross_keep_their_numbers():
    rng = np.random.default_rng(0)
    tracker = PersonTracker(fps=30)
    numbers = []
    for frame in range(90):
        red, blue = person(100 + 8 * frame, 0, rng), person(820 - 8 * frame, 100, rng)
        people = [blue, red] if frame % 3 else [red, blue]
        if abs(frame - 45) < 8:
            # In the middle blue hides red.
            people = [blue]
        found = tracker.update(frame, people)
        numbers.append([found[people.index(red)] if red in people else None, found[people.index(blue)]])
    reds = {red for red, _ in numbers if red is not None}
    blues = {blue for _, blue in numbers}
    assert len(tracker.tracks) == 2 and len(reds) == len(blues) == 1 and reds != blues
    assert tracker.overlaps


def test_somebody_who_comes_back_is_known_and_a_stranger_is_not():
    rng = np.random.default_rng(1)
    tracker = PersonTracker(fps=30)
    for frame in range(20):
        tracker.update(frame, [person(400 + 20 * frame, 0, rng)])
    for frame in range(20, 80):
        tracker.update(frame, [])
    assert tracker.update(80, [person(100, 0, rng)]) == [0]
    for frame in range(81, 140):
        tracker.update(frame, [])
    assert tracker.update(140, [person(100, 100, rng)]) == [1]


def test_who_comes_out_from_behind_somebody_in_another_light_is_known_unless_others_are_as_much_alike():
    def dressed(x, mixture):
        histogram = np.zeros(216)
        for colour, share in mixture.items():
            histogram[colour : colour + 20] = np.sqrt(share / 20)
        return replace(person(x, 0, np.random.default_rng(3)), appearance=histogram)

    for other, number in ((100, 0), (0, 2)):
        tracker = PersonTracker(fps=30)
        for frame in range(20):
            tracker.update(frame, [dressed(100, {0: 1.0}), dressed(900, {other: 1.0})])
        for frame in range(20, 60):
            tracker.update(frame, [dressed(900, {other: 1.0})])
        found = tracker.update(60, [dressed(900, {other: 1.0}), dressed(400, {0: 0.4, 50: 0.6})])
        assert found == [1, number]


def test_cuts_are_noticed_and_motion_and_light_are_not():
    rng = np.random.default_rng(2)
    texture = rng.integers(0, 256, (24, 60, 3)).repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
    other = (texture[::-1, :, ::-1] // 2).astype(np.uint8)
    detector = CutDetector()
    scene = [texture[:, 4 * i : 4 * i + 320] for i in range(20)]
    brighter = [np.clip(scene[-1] * (1 + 0.02 * i), 0, 255).astype(np.uint8) for i in range(10)]
    cuts = [detector.update(frame) for frame in [*scene, *brighter, *[other[:, :320]] * 5, scene[0]]]
    assert [index for index, cut in enumerate(cuts) if cut] == [30, 35]


def test_a_head_is_what_goes_on_above_the_shoulders():
    world, keypoints = np.zeros((33, 3)), np.zeros((33, 2))
    world[[11, 12, 23, 24], :2] = [[0.2, -0.5], [-0.2, -0.5], [0.1, 0], [-0.1, 0]]
    y, x = np.mgrid[:300, :200]
    trunk = (np.abs(x - 100) < 50) & (y > 140) & (y < 240)
    head = np.hypot((x - 100) / 16, (y - 95) / 24) < 1
    for turn in (0, 90):
        turned = Rotation.from_euler("z", turn, degrees=True).as_matrix()[:2, :2]
        keypoints[:] = 200 * world[:, :2] @ turned.T + ([100, 240] if turn == 0 else [60, 100])
        for shape, area in ((trunk, 0.0), (trunk | head, np.pi * 0.08 * 0.12)):
            mask = np.where(shape, 1.0, 0.5)
            mask = mask if turn == 0 else np.rot90(mask, -1)
            assert abs(head_outline(mask, keypoints, world) - area) < 0.003


# People in contact


def dressed(picture: np.ndarray, person: Person, trunk, face, limbs) -> Person:
    """Paints a person into `picture` in flat colours, with a textured face; returns it with its colours."""
    points = person.keypoints.round().astype(int)

    def box(point, half, colour):
        y, x = np.maximum(point[1] - half, 0), np.maximum(point[0] - half, 0)
        picture[y : point[1] + half, x : point[0] + half] = colour

    low, high = points[[12, 11, 24, 23]].min(axis=0), points[[12, 11, 24, 23]].max(axis=0)
    picture[low[1] - 8 : high[1] + 8, low[0] - 8 : high[0] + 8] = trunk
    for start, end in ((11, 13), (12, 14), (13, 15), (14, 16), (23, 25), (24, 26), (25, 27), (26, 28)):
        for share in np.linspace(0, 1, 30):
            box((points[start] + share * (points[end] - points[start])).astype(int), 7, limbs)
    middle = points[:11].mean(axis=0).astype(int)
    size = face.shape[0] // 2
    picture[middle[1] - size : middle[1] + size, middle[0] - size : middle[0] + size] = face
    return replace(
        person,
        appearance=colour_histogram(picture, person),
        colours=part_colours(picture, person.keypoints, person.visibility),
    )


def test_of_people_who_touch_every_part_is_the_persons_own_or_lost():
    """The landmarks that a detection takes from the other person are left out, and the other's face is not taken."""
    rng = np.random.default_rng(5)
    # Two faces of the same colours: only place tells them apart.
    faces = [rng.permutation(np.repeat([200, 60], 50))[:, None].repeat(3, 1).reshape(10, 10, 3) for _ in range(2)]
    faces = [face.repeat(4, axis=0).repeat(4, axis=1).astype(np.uint8) for face in faces]
    tracker = PersonTracker(fps=10)
    frames, clothes = [], ((180, 30, 30), (30, 30, 180))
    for index in range(16):
        apart = max(150 - 12 * index, 55)
        frame = np.full((480, 640, 3), 128, np.uint8)
        people = [
            dressed(frame, standing_at(320 + sign * apart), clothes[i], faces[i], clothes[i])
            for i, sign in enumerate((-1, 1))
        ]
        frames.append(frame)
        # From contact on the detector finds only one of them, with the other's head and right forearm.
        if index >= 9:
            mixed = people[0].keypoints.copy()
            mixed[:11] = people[1].keypoints[:11]
            mixed[[14, 16, 18, 20, 22]] = people[1].keypoints[[14, 16, 18, 20, 22]]
            people = [replace(people[0], keypoints=mixed)]
        tracker.update(index, people)
    red = tracker.tracks[0]
    assert len(tracker.tracks) == 2 and len(red.detections) == 16
    contact = Contact(red, tracker.tracks, tracker.near)
    for index, frame in enumerate(frames):
        contact.next_frame(frame, index)
        person = contact.own_parts(frame, red.detections[index])
        apart = max(150 - 12 * index, 55)
        own, other = (np.array([320 + sign * apart, 250 - 126]) for sign in (-1, 1))
        lost = person.visibility == 0
        if index < 9:
            assert not lost.any() and not contact.parts_lost
        else:
            assert contact.doubtful and contact.parts_lost
            assert lost[:11].all() and lost[[16, 18, 20, 22]].all()
            assert not lost[[11, 13, 15, 23, 24, 25, 26, 27, 28]].any()
            assert contact.is_own_head(own, 30.0) and contact.is_own_head(other, 30.0) is False
            np.testing.assert_allclose(contact.head_place()[0], own, atol=4)
    # All of it the other's: nobody.
    assert contact.own_parts(frames[-1], standing_at(320 + 55)) is None


def test_who_is_hidden_behind_a_face_like_its_own_is_not_taken_for_it():
    """Blue walks past before red, and then nobody is found for some frames."""
    rng = np.random.default_rng(7)
    face = rng.permutation(np.repeat([200, 60], 50))
    alike = np.where(rng.uniform(size=100) < 0.12, 260 - face, face)
    faces = [each.astype(np.uint8).reshape(10, 10, 1).repeat(3, 2).repeat(4, 0).repeat(4, 1) for each in (face, alike)]
    tracker = PersonTracker(fps=10)
    frames, clothes = [], ((180, 30, 30), (30, 30, 180))
    places = [(280.0, 520.0 - 12 * index) for index in range(40)]
    for index, ends in enumerate(places):
        frame = np.full((480, 640, 3), 128, np.uint8)
        people = [dressed(frame, standing_at(x), clothes[i], faces[i], clothes[i]) for i, x in enumerate(ends)]
        frames.append(frame)
        hidden = abs(ends[0] - ends[1]) < 80
        tracker.update(index, [] if 22 <= index < 25 else people[1:] if hidden else people)
    red = tracker.tracks[0]
    contact = Contact(red, tracker.tracks, tracker.near, tracker.max_gap)
    hidden = 0
    for index, (frame, (own, other)) in enumerate(zip(frames, places)):
        contact.next_frame(frame, index)
        if index in red.detections:
            continue
        hidden += 1
        assert contact.doubtful
        # The face's middle is a little lower than where the head was followed to.
        for down in (0, 10):
            assert not contact.is_own_head(np.array([other, 250 - 126 + down]), 30.0)
        if contact.head_place() is not None:
            assert abs(contact.head_place()[0][0] - own) < 10
    assert hidden > 10 and 22 not in red.detections


def test_who_is_hidden_behind_another_stays_near_until_somebody_is_seen_apart_again():
    tracker = PersonTracker(fps=10)
    rng = np.random.default_rng(6)
    both = [person(300, 0, rng), person(420, 100, rng)]
    for index in range(4):
        tracker.update(index, both)
    for index in range(4, 60):
        tracker.update(index, both[:1])
    tracker.update(60, [both[0], person(900, 100, rng)])
    assert sorted(tracker.near) == list(range(60)) and len(tracker.tracks) == 2
    tracker.update(61, [], cut=True)
    tracker.update(62, both[:1])
    assert 62 not in tracker.near
