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
    down_by_two = np.array([[0.1, 0.0, 1.0, 0.0]], dtype=np.float32)
    shifted = augment.apply(picture, down_by_two)
    assert np.array_equal(shifted[0, 2:], picture[0, :-2])
    assert np.array_equal(shifted[0, 0], picture[0, 0])


def test_gain_and_offset_saturate_instead_of_wrapping() -> None:
    picture = np.array([[[[0, 100, 250]]]], dtype=np.uint8)
    brighter = np.array([[0.0, 0.0, 1.2, 10.0]], dtype=np.float32)
    assert augment.apply(picture, brighter)[0, 0, 0].tolist() == [10, 130, 255]
