"""Bad weights and images, for every published network."""

import re

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from diffdepth_jax import inference, registry
from diffdepth_jax.errors import DataError, WeightsError
from diffdepth_jax.inference import DepthModel
from diffdepth_jax.models.networks.network import Published
from diffdepth_jax.weights import rules
from tests.models.networks.test_contract import small

PUBLISHED = [
    name
    for name in registry.names("network")
    if issubclass(registry.module("network", name).Config, Published)
]
every_published_network = pytest.mark.parametrize("name", PUBLISHED)
every_network = pytest.mark.parametrize("name", registry.names("network"))
EXAMPLES = 4  # entries that are damaged, one at a time


@pytest.fixture
def weights(name, monkeypatch):
    """A small network's state dict, and the fields that it does not determine."""
    # Small variants to compare with: the published ones take seconds to trace.
    tiny = {other: small(other)[1].config for other in registry.names("network")}
    for other, config in tiny.items():
        monkeypatch.setattr(registry.module("network", other), "VARIANTS", {"tiny": config})
    file, model, variables = small(name)
    table = file.rules(model.config)
    state_dict = rules.export(variables, table, rules.names(variables, table))
    return state_dict, {field: getattr(model.config, field) for field in file.UNDETERMINED}


def examples(name, state_dict):
    """Some of the entries that fill a leaf, from the first to the last."""
    file, model, _ = small(name)
    table = [row.pattern for row in file.rules(model.config) if isinstance(row, rules.Rule)]
    names = [key for key in state_dict if any(re.fullmatch(pattern, key) for pattern in table)]
    return names[:: max(1, (len(names) - 1) // (EXAMPLES - 1))]


@every_published_network
def test_a_missing_entry_is_named(name, weights):
    state_dict, fields = weights
    for key in examples(name, state_dict):
        rest = {other: array for other, array in state_dict.items() if other != key}
        with pytest.raises(WeightsError, match=rf"(no|missing \(1\):) {key}\b"):
            inference.load(rest, **fields)


@every_published_network
def test_a_wrong_shape_is_named(name, weights):
    state_dict, fields = weights
    for key, of_other_rank in zip(examples(name, state_dict), ((2, 2), (0,), ()), strict=False):
        shape = state_dict[key].shape
        for wrong in ((shape[0] + 1, *shape[1:]), of_other_rank):
            with pytest.raises(WeightsError) as error:
                inference.load(state_dict | {key: np.ones(wrong, np.float32)}, **fields)
            assert key in str(error.value), (key, wrong)


@every_published_network
def test_an_extra_entry_is_named(name, weights):
    state_dict, fields = weights
    for key in ("surprise", "depth_head.surprise.weight", f"{next(iter(state_dict))}.surprise"):
        with pytest.raises(WeightsError, match=rf"keys without a rule \(1\):\n +{key}$"):
            inference.load(state_dict | {key: np.ones(2, np.float32)}, **fields)


@every_published_network
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_of_other_precisions_are_accepted(name, weights, dtype):
    state_dict, fields = weights
    other = {
        key: array.astype(dtype) if array.dtype == np.float32 else array
        for key, array in state_dict.items()
    }
    model = inference.load(other, **fields)
    file = registry.module("network", name)
    found = rules.export(model.variables, file.rules(model.config), state_dict)
    for key in examples(name, state_dict):
        assert found[key].dtype == np.float32
        np.testing.assert_array_equal(found[key], other[key].astype(np.float32))


@every_published_network
def test_integers_are_not_weights(name, weights):
    state_dict, fields = weights
    key = examples(name, state_dict)[-1]
    with pytest.raises(WeightsError, match=rf"the wrong kind \(1\):\n +{key}: int32"):
        inference.load(state_dict | {key: state_dict[key].astype(np.int32)}, **fields)


@every_published_network
def test_nan_and_infinity_are_warned_about(name, weights):
    state_dict, fields = weights
    first, *_, last = examples(name, state_dict)
    bad = {key: state_dict[key].copy() for key in (first, last)}
    bad[first].flat[-1], bad[last].flat[0] = np.nan, np.inf
    with pytest.warns(UserWarning, match=rf"NaN or infinity in 2 .*: ({first}|{last}), ") as found:
        inference.load(state_dict | bad, **fields)
    assert len(found) == 1 and first in str(found[0].message) and last in str(found[0].message)


@every_network
def test_an_image_in_any_mode_gets_the_depth_of_its_colours(name):
    _, module, variables = small(name)
    model = DepthModel(module, variables, module.config)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8))
    want = model.predict(picture)
    assert np.isfinite(want).all() and want.shape == (24, 36)
    transparent = picture.copy()
    transparent.putalpha(0)
    np.testing.assert_array_equal(model.predict(transparent), want)
    for mode in ("L", "CMYK"):
        image = picture.convert(mode)
        depth = model.predict(image)
        np.testing.assert_array_equal(depth, model.predict(np.asarray(image.convert("RGB"))))
    with pytest.raises(DataError, match="more than 8 bits per pixel"):
        model.predict(Image.fromarray(np.ones((24, 36), np.uint16)))
    for array in (np.ones((24, 36), np.uint8), np.ones((24, 36, 4), np.uint8)):
        with pytest.raises(ValueError, match="must be uint8 RGB"):
            model.predict(array)


@every_network
def test_an_image_of_one_pixel_gets_depth(name):
    _, module, variables = small(name)
    model = DepthModel(module, variables, module.config)
    depth = model.predict(np.full((1, 1, 3), 200, np.uint8))
    assert depth.shape == (1, 1) and np.isfinite(depth).all()
