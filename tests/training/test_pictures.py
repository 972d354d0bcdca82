import jax
import numpy as np

from diffdepth_jax import config as config_lib
from diffdepth_jax import registry
from diffdepth_jax.inference import DepthModel
from diffdepth_jax.training import pictures

CONFIG = {
    "name": "diffusion_depth",
    "encoder": {"name": "resnet", "depths": (1, 1), "widths": (4, 8)},
    "neck": {"features": 8},
    "codec": {"latent_channels": 4, "initial_depth": 10.0},
    "denoiser": {"hidden_features": 4, "num_groups": 2},
    "diffusion": {"num_inference_steps": 3, "eta": 0.5},
}


def test_the_last_denoising_step_is_the_prediction():
    network = registry.module("network", "diffusion_depth")
    config = config_lib.chosen("network", CONFIG, resolve=registry.module, path="model")
    model = network.build(config)
    variables = jax.jit(model.init_variables)(jax.random.key(0))
    image = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    depth_model = DepthModel(model, variables, config, network.INPUT)
    depths = pictures.denoising_steps(depth_model, image)
    assert depths.shape == (3, 8, 12)
    np.testing.assert_allclose(depths[-1], depth_model.predict(image), rtol=1e-4)
    assert np.abs(depths[0] - depths[-1]).max() > 1e-2
    recalibrated = depth_model.recalibrate([image], 2)
    depths = pictures.denoising_steps(recalibrated, image, 2)
    want = recalibrated.predict(image, num_inference_steps=2)
    np.testing.assert_allclose(depths[-1], want, rtol=1e-4)
