"""predict() with several samples: their mean and spread."""

import dataclasses

import numpy as np
import pytest

from diffdepth_jax.errors import ConfigError
from diffdepth_jax.inference import DepthModel, sampling
from diffdepth_jax.models.networks import diffusion_depth, regression
from tests.inference.small_model import CONFIG, image

PICTURE = image(21, 32)  # odd height


def one_by_one(model, picture, num_samples, seed=0, **options):
    """Mean and sample standard deviation of predictions with one seed each."""
    seeds = sampling.sample_seeds(seed, num_samples)
    depths = np.stack([model.predict(picture, seed=each, **options) for each in seeds])
    depths = depths.astype(np.float64)
    return depths.mean(0), depths.std(0, ddof=1)


def assert_close(found, expected):
    assert isinstance(found, sampling.Sampled) and found.spread.dtype == np.float32
    for ours, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, want, rtol=1e-3, atol=1e-4 * expected[0].max())
    assert np.median(found.spread) > 1e-3 * np.median(found.mean)  # there is something to compare


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 2, "seed": 5},
        {"batch_size": 8, "flip_tta": True},
        {"flip_tta": True, "flip_average": "inverse_depth", "num_inference_steps": 2},
    ],
)
@pytest.mark.filterwarnings("ignore:the checkpoint has decoder")
def test_samples_are_predictions_with_several_seeds(model, options):
    found = model.predict(PICTURE, num_samples=3, **options)
    options = {name: value for name, value in options.items() if name != "batch_size"}
    assert_close(found, one_by_one(model, PICTURE, 3, **options))


def test_samples_of_a_sampler_that_adds_noise(model):
    noisy = dataclasses.replace(CONFIG.diffusion, eta=0.5)
    config = dataclasses.replace(CONFIG, diffusion=noisy)
    other = DepthModel(diffusion_depth.build(config), model.variables, config)
    pictures = [image(16, 24, seed=index) for index in range(2)]
    mean, spread = other.predict(pictures, num_samples=4, batch_size=4)
    for index, picture in enumerate(pictures):
        expected = one_by_one(other, picture, 4)
        assert_close(sampling.Sampled(mean[index], spread[index]), expected)


def test_samples_of_several_images_are_returned_like_predictions(model):
    pictures = [image(21, 32, seed=1), image(16, 24), image(21, 32, seed=2)]
    alone = [model.predict(picture, num_samples=3) for picture in pictures]
    for batch_size in (2, 7):
        mean, spread = model.predict(pictures, num_samples=3, batch_size=batch_size)
        for index, expected in enumerate(alone):
            assert_close(sampling.Sampled(mean[index], spread[index]), expected)
    stacked = model.predict(np.stack([pictures[0], pictures[2]]), num_samples=3)
    assert stacked.mean.shape == stacked.spread.shape == (2, 21, 32)
    np.testing.assert_array_equal(stacked.spread[1], alone[2].spread)


@pytest.mark.parametrize(
    ("batch_size", "count", "calls"), [(1, 1, 5), (2, 1, 3), (4, 1, 2), (4, 2, 3), (9, 1, 1)]
)
def test_one_program_serves_all_samples_within_the_batch_size(
    model, monkeypatch, batch_size, count, calls
):
    sizes, encoded = [], []
    of_noise, conditions = sampling._of_noise, sampling._conditions
    monkeypatch.setattr(
        sampling,
        "_of_noise",
        lambda *given: sizes.append(given[2].shape[1] * len(given[3])) or of_noise(*given),
    )
    monkeypatch.setattr(
        sampling, "_conditions", lambda *given: encoded.append(given[2]) or conditions(*given)
    )
    of_noise.clear_cache()
    pictures = [image(16, 24, seed=index) for index in range(count)]
    model.predict(pictures, num_samples=5, batch_size=batch_size)
    assert len(sizes) == calls and max(sizes) <= batch_size and of_noise._cache_size() == 1
    assert len(encoded) == 1 and len(encoded[0]) == count


def test_every_sample_is_clipped_before_averaging(model):
    median = float(np.median(model.predict(PICTURE)))
    clipped = dataclasses.replace(model, config=dataclasses.replace(CONFIG, max_depth=median))
    found = clipped.predict(PICTURE, num_samples=3)
    assert_close(found, one_by_one(clipped, PICTURE, 3))
    after = np.minimum(model.predict(PICTURE, num_samples=3).mean, median)
    assert found.mean.max() <= median and (found.mean < after).any()


def test_seeds_of_samples():
    seeds = sampling.sample_seeds(3, 8)
    assert seeds[:5] == sampling.sample_seeds(3, 5) and len(set(seeds)) == 8
    assert not set(seeds) & set(sampling.sample_seeds(4, 8))
    assert all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds)


def test_moments_equal_numpys():
    arrays = np.random.default_rng(0).normal(1e4, 1, (7, 3, 4)).astype(np.float32)
    moments = sampling.Moments()
    for array in arrays:
        moments.add(array)
    mean, spread = moments.result()
    np.testing.assert_allclose(mean, arrays.mean(0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(spread, arrays.std(0, ddof=1, dtype=np.float64), rtol=1e-6)
    moments = sampling.Moments()
    for depth in (1.0, np.inf, np.inf):
        moments.add(np.array([depth, 2.0], np.float32))
    assert moments.result().spread.tolist() == pytest.approx([np.nan, 0], nan_ok=True)


def test_impossible_sampling_is_refused(model):
    for number in (1, 0, -3):
        with pytest.raises(ConfigError, match=f"num_samples is {number}; .* at least 2"):
            model.predict(image(), num_samples=number)
    with pytest.raises(ConfigError, match="noise is for a single sample"):
        model.predict(image(), np.zeros((19, 25, 4), np.float32), num_samples=2)
    config = regression.Config(encoder=CONFIG.encoder, neck=CONFIG.neck)
    plain = DepthModel(regression.build(config), {}, config)
    with pytest.raises(
        ConfigError, match="'regression' uses no noise, so all samples would be equal"
    ):
        plain.predict(image(), num_samples=2)


def test_the_mean_is_infinite_where_any_sample_is():
    moments = sampling.Moments()
    for values in ([1.0, np.inf, np.inf], [3.0, 2.0, np.inf], [2.0, 5.0, np.inf]):
        moments.add(np.array(values, np.float32))
    mean, spread = moments.result()
    np.testing.assert_array_equal(mean, [2.0, np.inf, np.inf])
    np.testing.assert_array_equal(spread, [1.0, np.nan, np.nan])
