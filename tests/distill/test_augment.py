import numpy as np

from pocketlens.distill import augment


def _picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, 20, 30, 3), dtype=np.uint8)


def test_the_first_view_is_the_picture_itself() -> None:
    picture = _picture()
    params = augment.parameters(7, 3, 0)
    assert np.array_equal(augment.apply(picture, params[None]), picture)


def test_parameters_depend_on_seed_picture_and_view_alone() -> None:
    assert np.array_equal(augment.parameters(1, 2, 3), augment.parameters(1, 2, 3))
    others = [augment.parameters(*key) for key in ((2, 2, 3), (1, 3, 3), (1, 2, 4))]
    assert all(not np.array_equal(augment.parameters(1, 2, 3), other) for other in others)


def test_a_shift_moves_pixels_and_repeats_the_edge() -> None:
    picture = _picture()
    down_by_two = np.array([augment.View(top=-0.1)], dtype=np.float32)
    shifted = augment.apply(picture, down_by_two)
    assert np.array_equal(shifted[0, 2:], picture[0, :-2])
    assert np.array_equal(shifted[0, 0], picture[0, 0])


def test_gain_and_offset_saturate_instead_of_wrapping() -> None:
    picture = np.array([[[[0, 100, 250]]]], dtype=np.uint8)
    brighter = np.array([augment.View(gain=1.2, offset=10.0)], dtype=np.float32)
    assert augment.apply(picture, brighter)[0, 0, 0].tolist() == [10, 130, 255]


def test_a_photo_view_shows_a_part_enlarged_and_maybe_mirrored() -> None:
    ramp = np.broadcast_to(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (60, 60, 3))[None].copy()
    part = np.array([augment.View(left=0.5, width=0.5, height=0.5)], dtype=np.float32)
    shown = augment.apply(ramp, part)[0, 30, :, 0].astype(int)
    assert abs(shown[0] - 120) <= 4
    assert abs(shown[-1] - 236) <= 4
    mirrored = np.array([augment.View(left=0.5, width=0.5, height=0.5, flip=1.0)], dtype=np.float32)
    assert np.array_equal(augment.apply(ramp, mirrored)[0], augment.apply(ramp, part)[0, :, ::-1])


def test_photo_views_stay_inside_the_picture_and_are_reproducible() -> None:
    views = [augment.View(*map(float, augment.parameters(3, 1, view, policy="photo"))) for view in range(1, 200)]
    for view in views:
        assert 0.0 <= view.top <= view.top + view.height <= 1.0 + 1e-6
        assert 0.0 <= view.left <= view.left + view.width <= 1.0 + 1e-6
        assert 0.35 < view.height * view.width <= 1.0
    assert 60 < sum(view.flip for view in views) < 140
    again = augment.parameters(3, 1, 5, policy="photo")
    assert np.array_equal(again, augment.parameters(3, 1, 5, policy="photo"))
    assert np.array_equal(augment.parameters(3, 1, 0, policy="photo"), augment.IDENTITY)
