"""Splits, statistics, checks and augmentation: laws, on digits and random images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_precision import data
from dual_precision.data.images import channel_statistics, split_off

augment = jax.jit(data.augment, static_argnames=("padding", "flip"))


@pytest.fixture(scope="module")
def digits_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    data.load("digits", data_dir=path)
    return path


def _random(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _numbered(n, size):
    """Images in which every pixel of an image differs and none is 0."""
    pixels = np.arange(1, size * size + 1, dtype=np.uint8).reshape(1, size, size, 1)
    return np.tile(pixels, (n, 1, 1, 1))


def _rows(images):
    return {row.tobytes() for row in images.reshape(len(images), -1)}


# --- load ---------------------------------------------------------------------------------------


def test_digits_has_the_documented_shape(digits_dir):
    digits = data.load("digits", data_dir=digits_dir)
    assert digits.image_shape == (8, 8, 1)
    assert [len(s) for s in (digits.train, digits.validation, digits.test)] == [1222, 215, 360]
    assert (digits.num_classes, digits.padding, digits.flip) == (10, 1, False)
    assert digits.class_names == tuple("0123456789")
    assert digits.train.images.dtype == np.uint8
    assert digits.train.labels.dtype == np.int32


def test_digits_are_scikit_learns_digits(digits_dir):
    from sklearn.datasets import load_digits

    digits = data.load("digits", data_dir=digits_dir)
    splits = (digits.train, digits.validation, digits.test)
    ours = np.concatenate([s.images for s in splits]).reshape(-1, 64)
    theirs = np.rint(load_digits().data * (255 / 16) + 1e-9).astype(np.uint8)
    order, expected = np.lexsort(ours.T), np.lexsort(theirs.T)
    np.testing.assert_array_equal(ours[order], theirs[expected])
    labels = np.concatenate([s.labels for s in splits])
    np.testing.assert_array_equal(labels[order], load_digits().target[expected])


def test_digits_test_split_holds_every_class_in_proportion(digits_dir):
    counts = np.bincount(data.load("digits", data_dir=digits_dir).test.labels)
    assert counts.min() >= 34
    assert counts.max() <= 38


def test_splits_are_disjoint_and_fixed(digits_dir):
    first, again = (data.load("digits", data_dir=digits_dir) for _ in range(2))
    parts = [_rows(s.images) for s in (first.train, first.validation, first.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797
    np.testing.assert_array_equal(first.train.images, again.train.images)
    np.testing.assert_array_equal(first.validation.labels, again.validation.labels)


def test_the_split_seed_chooses_the_validation_images_and_leaves_the_test_alone(digits_dir):
    a, b = (data.load("digits", data_dir=digits_dir, split_seed=seed) for seed in (0, 1))
    assert _rows(a.validation.images) != _rows(b.validation.images)
    np.testing.assert_array_equal(a.test.images, b.test.images)


def test_validation_may_be_empty_but_training_may_not(digits_dir):
    everything = data.load("digits", data_dir=digits_dir, validation=0)
    assert (len(everything.train), len(everything.validation)) == (1437, 0)
    for count in (-1, 1437):
        with pytest.raises(ValueError, match=f"validation: got {count}, expected 0 to 1436"):
            data.load("digits", data_dir=digits_dir, validation=count)


def test_statistics_are_those_of_train_alone(digits_dir):
    digits = data.load("digits", data_dir=digits_dir)
    pixels = digits.train.images.astype(np.float64) / 255
    np.testing.assert_allclose(digits.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(digits.std, pixels.std(axis=(0, 1, 2)), rtol=1e-12)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=r"got 'cifar', expected one of cifar10, .*digits"):
        data.load("cifar")


def test_nothing_is_drawn_and_nothing_printed_off_a_terminal(tmp_path, capfd):
    data.load("digits", data_dir=tmp_path)
    assert capfd.readouterr() == ("", "")


def test_progress_draws_bars_on_stderr(digits_dir, capfd):
    data.load("digits", data_dir=digits_dir, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "read digits train" in err


def test_split_off_keeps_every_example_once():
    images = data.Images(_random((20, 2, 2, 1)), np.arange(20, dtype=np.int32))
    rest, held_out = split_off(images, 6, seed=3)
    assert sorted([*rest.labels, *held_out.labels]) == list(range(20))
    for part in (rest, held_out):
        np.testing.assert_array_equal(part.images, images.images[part.labels])


def test_channel_statistics_over_several_blocks_and_the_extreme_value():
    images = np.full((700, 128, 2, 3), 255, np.uint8)
    images[:350, :, :, 1] = 0
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, [1, 0.5, 1])
    np.testing.assert_allclose(std, [0, 0.5, 0], atol=1e-12)


# --- checks -------------------------------------------------------------------------------------

BAD_IMAGES = [
    (np.zeros((2, 4, 4, 1), np.float32), r"got float32 \[2, 4, 4, 1\], expected uint8"),
    (np.zeros((2, 4, 4), np.uint8), r"got uint8 \[2, 4, 4\], expected uint8 \[N, H, W, C\]"),
    ([[1, 2]], "got list, expected a uint8 array"),
]


@pytest.mark.parametrize(("images", "message"), BAD_IMAGES)
def test_an_image_batch_of_wrong_shape_or_dtype_is_refused(images, message):
    with pytest.raises(ValueError, match=message):
        data.augment(jax.random.key(0), images, padding=1, flip=True)
    with pytest.raises(ValueError, match=message):
        data.Images(images, np.zeros(2, np.int32))


def test_one_int32_label_for_each_image():
    images = np.zeros((2, 4, 4, 1), np.uint8)
    for labels in (np.zeros(3, np.int32), np.zeros(2, np.int64)):
        with pytest.raises(ValueError, match=r"labels: got int\d\d .*expected int32 \[2\]"):
            data.Images(images, labels)


# --- augment ------------------------------------------------------------------------------------


def _windows(image, padding, flip):
    """Every result that augmenting one image may have, by plain numpy."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    spread = range(2 * padding + 1)
    crops = [padded[i : i + height, j : j + width] for i in spread for j in spread]
    return [c[:, ::step].tobytes() for c in crops for step in ((1, -1) if flip else (1,))]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_each_result_is_a_window_of_its_own_image_and_every_window_occurs(padding, flip):
    count = 1500
    image = _random((5, 7, 3), seed=1)  # not square
    images = jnp.asarray(np.broadcast_to(image, (count, *image.shape)))
    out = augment(jax.random.key(2), images, padding=padding, flip=flip)
    assert out.shape == images.shape
    assert out.dtype == jnp.uint8
    seen = {row.tobytes() for row in np.asarray(out)}
    assert seen == set(_windows(image, padding, flip))


def test_images_of_a_batch_stay_in_place_and_draw_for_themselves():
    images = _random((64, 6, 6, 1), seed=2)
    out = np.asarray(augment(jax.random.key(0), jnp.asarray(images), padding=2, flip=True))
    where = []
    for image, result in zip(images, out, strict=True):
        where.append(_windows(image, 2, True).index(result.tobytes()))
    assert len(set(where)) > 20  # of 50


def test_without_padding_and_flip_it_is_the_identity():
    images = _random((4, 5, 5, 3))
    out = augment(jax.random.key(0), jnp.asarray(images), padding=0, flip=False)
    np.testing.assert_array_equal(out, images)


def test_a_flip_alone_keeps_the_pixels():
    images = _numbered(40, 4)
    out = np.asarray(augment(jax.random.key(1), jnp.asarray(images), padding=0, flip=True))
    np.testing.assert_array_equal(np.sort(out.reshape(40, -1)), images.reshape(40, -1))
    mirrored = (out != images).any(axis=(1, 2, 3))
    assert 8 < mirrored.sum() < 32
    np.testing.assert_array_equal(out[mirrored], images[mirrored][:, :, ::-1])


def test_a_crop_adds_only_zeros_and_repeats_no_pixel():
    out = np.asarray(
        augment(jax.random.key(3), jnp.asarray(_numbered(30, 5)), padding=2, flip=True)
    )
    for image in out:
        kept = image[image > 0]
        assert len(np.unique(kept)) == len(kept) >= 9


def test_it_runs_inside_a_scan_and_the_key_alone_decides():
    images = jnp.asarray(_random((8, 6, 6, 3)))
    keys = jax.random.split(jax.random.key(5), 3)

    @jax.jit
    def run(keys):
        def step(carry, key):
            return carry, augment(key, images, padding=1, flip=True)

        return jax.lax.scan(step, (), keys)[1]

    out = run(keys)
    for key, result in zip(keys, out, strict=True):
        expected = augment(key, images, padding=1, flip=True)
        np.testing.assert_array_equal(result, expected)
    assert not np.array_equal(out[0], out[1])


def test_a_negative_padding_is_refused():
    with pytest.raises(ValueError, match="padding: got -1, expected 0 or more"):
        data.augment(jax.random.key(0), jnp.zeros((1, 4, 4, 1), jnp.uint8), padding=-1, flip=False)
