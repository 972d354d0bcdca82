"""A teacher that labels clean images during training."""

import json
from dataclasses import dataclass, replace
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_parts

from diffdepth_jax import inference
from diffdepth_jax.errors import ConfigError, WeightsError
from diffdepth_jax.inference import DepthModel
from diffdepth_jax.models.networks.network import (
    Denoises,
    JudgesBatch,
    NetworkConfig,
    PredictsScales,
)
from diffdepth_jax.training import experiment, loop, sharding, teacher
from diffdepth_jax.training.sharding import MeshConfig
from diffdepth_jax.training.teacher import Teacher, TeacherConfig, check_fits, make_labels
from diffdepth_jax.typing import InputSpec

KEY = jax.random.key(3)


@dataclass(frozen=True, kw_only=True)
class FakeConfig(NetworkConfig):
    """Config of a network without a module; provides what the module would."""

    name: str = "fake"
    kind: Literal["metric_depth", "relative_disparity"] = "metric_depth"
    spec: InputSpec = InputSpec()

    @property
    def output(self):
        return self.kind

    @property
    def input_spec(self):
        return self.spec


class First(nn.Module):
    """Predicts the first channel, times a parameter."""

    config: FakeConfig

    @nn.compact
    def __call__(self, image, train=False):
        assert not train
        return self.param("gain", nn.initializers.ones, ()) * image[..., :1]


class OfBatch(First, JudgesBatch):
    """Predicts how much brighter an image is than the others in the batch."""

    def __call__(self, image, train=False):
        return image[..., :1] - image.mean()


class Noisy(First, Denoises):
    """Predicts its noise plus the number of steps and a number drawn from its key."""

    num_inference_steps = 4
    num_train_timesteps = 100

    def latent_shape(self, image_shape):
        return (*image_shape[:3], 1)

    def __call__(self, image, noise, train=False, num_inference_steps=None, key=None):
        return (
            noise
            + 10 * (num_inference_steps or 4)
            + jax.vmap(jax.random.uniform)(key)[:, None, None, None]
        )


def fake(module=First, **fields):
    config = FakeConfig(**fields)
    return DepthModel(module(config), {"params": {"gain": jnp.ones(())}}, config)


IMAGE = jnp.asarray(np.random.default_rng(0).uniform(-0.5, 3.0, (2, 3, 4, 3)).astype(np.float32))
INSIDE = jnp.ones((2, 3, 4, 1), bool).at[0, 0].set(False)


def labels_of(model, step=1, **options):
    function = jax.jit(make_labels(model, **options))
    return function(model.variables, IMAGE, INSIDE, KEY, np.uint32(step))


def test_metric_labels_are_valid_inside_the_frame_and_the_range():
    found = labels_of(fake(max_depth=2.5), depth_range=(0.5, 2.0))
    assert found.keys() == {"depth", "valid_mask"}
    depth = np.clip(IMAGE[..., :1], 0, 2.5)
    np.testing.assert_array_equal(found["depth"], np.where(INSIDE, depth, 0))
    np.testing.assert_array_equal(found["valid_mask"], INSIDE & (depth > 0.5) & (depth < 2.0))
    without = labels_of(fake())
    np.testing.assert_array_equal(without["valid_mask"], INSIDE & (IMAGE[..., :1] > 0))


def test_relative_labels_are_valid_whatever_the_sign():
    found = labels_of(fake(kind="relative_disparity"))
    disparity = np.where(INSIDE, IMAGE[..., :1], 0)
    assert (disparity < 0).any()
    np.testing.assert_array_equal(found["relative_disparity"], disparity)
    np.testing.assert_array_equal(found["valid_mask"], INSIDE)
    with np.errstate(divide="ignore"):
        inverse = np.where(disparity > 0, 1 / disparity, 0)
    np.testing.assert_allclose(found["depth"], inverse, rtol=1e-6)


class OfScales(First, PredictsScales):
    """Inverse depth at two scales."""

    num_scales = 2

    @nn.nowrap
    def inverse_depths(self, image, train=False):
        assert not train
        return tuple(1 / (4 + image[:, ::step, ::step, :1]) for step in (1, 2))


def test_a_teacher_with_several_scales_labels_each():
    found = labels_of(fake(OfScales))
    assert found.keys() == {"depth", "valid_mask", "inverse_depths"}
    for step, inverse in zip((1, 2), found["inverse_depths"], strict=True):
        np.testing.assert_allclose(inverse, 1 / (4 + IMAGE[:, ::step, ::step, :1]), rtol=1e-6)


def test_labels_have_no_gradient():
    model = fake()

    def total(variables):
        return make_labels(model)(variables, IMAGE, INSIDE, KEY, jnp.uint32(1))["depth"].sum()

    assert total(model.variables) > 0
    assert jax.grad(total)(model.variables)["params"]["gain"] == 0


def test_values_that_are_not_finite_are_not_labels():
    model = fake()
    image = IMAGE.at[1, 1, 1, 0].set(jnp.nan)
    found = make_labels(model)(model.variables, image, INSIDE, KEY, jnp.uint32(1))
    assert not found["valid_mask"][1, 1, 1, 0] and found["depth"][1, 1, 1, 0] == 0


@pytest.mark.parametrize("kind", ["metric_depth", "relative_disparity"])
def test_a_constant_prediction_is_not_a_label(kind):
    model = fake(kind=kind)
    image = IMAGE.at[1].set(2.0)
    found = make_labels(model)(model.variables, image, INSIDE, KEY, jnp.uint32(1))
    assert found["valid_mask"][0].any() and not found["valid_mask"][1].any()
    assert all(np.isfinite(leaf).all() for leaf in found.values())


def test_each_image_is_judged_separately():
    found = labels_of(fake(OfBatch, kind="relative_disparity"))["relative_disparity"]
    alone = IMAGE[..., :1] - IMAGE.mean((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(found, np.where(INSIDE, alone, 0), atol=1e-6)


def test_noise_is_a_function_of_the_step():
    model = fake(Noisy, kind="relative_disparity")
    one, again, two = (labels_of(model, step)["relative_disparity"] for step in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (np.abs(one - two) > 1e-3)[INSIDE].all()
    # Each image of a batch gets different noise, and a different key.
    assert (np.abs(one[0] - one[1]) > 1e-3)[1:].all()
    more = labels_of(model, num_inference_steps=7)["relative_disparity"]
    np.testing.assert_allclose((more - one)[INSIDE], 30, rtol=1e-5)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"name": "other"}, "it is a 'other', not a 'fake'"),
        ({"kind": "relative_disparity"}, "it predicts relative_disparity, config.model metric_d"),
        ({"spec": InputSpec(multiple=14)}, r"other images \(input_spec.multiple: 1 -> 14\)"),
    ],
)
def test_a_teacher_of_another_kind_is_refused(fields, message):
    student = FakeConfig()
    check_fits(replace(student, max_depth=3.0), student, "FILE")
    with pytest.raises(ConfigError, match=rf"^config\.teacher\.checkpoint: FILE .*{message}"):
        check_fits(replace(student, **fields), student, "FILE")


def test_a_range_in_metres_does_not_go_with_relative_labels(monkeypatch):
    model = fake(kind="relative_disparity")
    monkeypatch.setattr(teacher, "open_network", lambda *arguments: model)
    mesh = sharding.make_mesh(MeshConfig())
    with pytest.raises(ConfigError, match=r"depth_range is \(0\.1, 80\.0\) metres"):
        Teacher(TeacherConfig("FILE"), model.config, mesh, depth_range=(0.1, 80.0))


def test_steps_seed_and_type_of_the_teacher_come_from_the_config(monkeypatch):
    model = fake(Noisy, kind="relative_disparity")
    model = replace(model, variables={**model.variables, "batch_stats": {}}, recalibrated={7: {}})
    asked = []
    monkeypatch.setattr(teacher, "open_network", lambda *given: asked.append(given) or model)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])

    def labels(steps=None, **options):
        built = Teacher(TeacherConfig("FILE", {"a": 1}, steps), model.config, mesh, **options)
        return built.label({"clean_image": IMAGE, "inside": INSIDE}, 1)["relative_disparity"]

    four, seven = labels(), labels(7, dtype=jnp.bfloat16)
    np.testing.assert_allclose((seven - four)[INSIDE], 30, rtol=1e-5)
    assert (np.abs(labels(seed=1) - four) > 1e-3)[INSIDE].all()
    field = "config.teacher.checkpoint"
    assert asked[:2] == [("FILE", {"a": 1}, field, dtype) for dtype in (jnp.float32, jnp.bfloat16)]


def test_steps_without_a_checkpoint_are_refused(tiny):
    with pytest.raises(
        ConfigError, match=r"config\.teacher: num_inference_steps is 3, but checkpoint"
    ):
        experiment.from_mapping(tiny | {"teacher": {"num_inference_steps": 3}})
    assert not experiment.from_mapping(tiny | {"teacher": {"checkpoint": None}}).labels_online
    assert not experiment.from_mapping(tiny).labels_online


@pytest.fixture
def distilled(tiny, tmp_path):
    """An experiment whose teacher is a trained run of the tiny network."""
    alone = tiny_parts.EXPERIMENT | {"seed": 9}
    loop.train(experiment.from_mapping(alone), tmp_path / "teacher")
    tiny["data"]["train"] = {
        "source": {"name": "tiny", "pairs": True},
        "augmentation": {"crop": (12, 16), "flip": 0, "rotation": 0, "jitter": 0}
        | {"scale": (1.0, 1.0)},
    }
    network = str(tmp_path / "teacher")
    return tiny | {
        "init": {"network": network, "options": {"step": None}},
        "teacher": {"checkpoint": network, "options": {"step": None}},
        "ema_decay": 0.5,
        "optimizer": {"learning_rate": 1e-2, "multipliers": {"Conv_0": 0.0}},
    }


def test_the_student_learns_the_teachers_depth_of_the_clean_image(distilled, tmp_path, monkeypatch):
    distilled["teacher"]["options"] = {"step": 3}
    model = inference.load(tmp_path / "teacher", step=3)
    seen = []
    label = Teacher.label

    def watching(self, batch, step):
        found = label(self, batch, step)
        seen.append((batch, found))
        return found

    monkeypatch.setattr(Teacher, "label", watching)
    distilled["data"]["train"]["depth_range"] = (0.5, 4.0)
    loop.train(experiment.from_mapping(distilled), tmp_path / "run")
    assert len(seen) == 6
    for batch, found in seen:
        assert found.keys() == {"image", "depth", "valid_mask", "intrinsics"}
        np.testing.assert_array_equal(found["image"], batch["image"])
        np.testing.assert_allclose(batch["clean_image"], batch["image"][:, ::-1], atol=1e-6)
        expected = model.model.apply(model.variables, batch["clean_image"])
        np.testing.assert_allclose(found["depth"], expected, rtol=1e-5)
        assert (found["valid_mask"] == (found["depth"] > 0.5) & (found["depth"] < 4)).all()
    # The student starts from the later step and changes, except for what is frozen.
    student = inference.load(tmp_path / "run").variables["params"]
    start = inference.load(tmp_path / "teacher").variables["params"]
    np.testing.assert_array_equal(student["Conv_0"]["kernel"], start["Conv_0"]["kernel"])
    assert np.abs(student["Conv_1"]["kernel"] - start["Conv_1"]["kernel"]).max() > 1e-4


def test_a_teacher_that_was_trained_further_is_noticed(distilled, tmp_path):
    exp = experiment.from_mapping(distilled)
    loop.train(exp, tmp_path / "run")
    note = json.loads((tmp_path / "run" / "teacher.json").read_text())
    assert note["checkpoint"] == str(tmp_path / "teacher")
    longer = tiny_parts.EXPERIMENT | {"seed": 9, "num_steps": 7}
    loop.train(experiment.from_mapping(longer), tmp_path / "teacher")
    longer = experiment.from_mapping(distilled | {"num_steps": 8})
    with pytest.raises(ConfigError, match=r"teacher holds other weights .*options"):
        loop.train(longer, tmp_path / "run")
    assert loop.train(longer, tmp_path / "run", allow_config_changes=True) == 8
    assert json.loads((tmp_path / "run" / "teacher.json").read_text()) != note
    loop.train(experiment.from_mapping(distilled | {"num_steps": 9}), tmp_path / "run")


def test_a_damaged_note_of_the_teacher_is_named(tmp_path, monkeypatch):
    model = fake()
    monkeypatch.setattr(teacher, "open_network", lambda *given: model)
    built = Teacher(TeacherConfig("FILE"), model.config, sharding.make_mesh(MeshConfig()))
    built.check_same(tmp_path)  # There is no note yet.
    built.note(tmp_path)
    built.check_same(tmp_path)
    for content, error in (("{", WeightsError), ("[]", ConfigError)):
        (tmp_path / "teacher.json").write_text(content)
        with pytest.raises(error, match=str(tmp_path)):
            built.check_same(tmp_path)


def test_a_source_without_clean_images_is_refused(distilled, tmp_path):
    distilled["data"]["train"]["source"] = {"name": "tiny"}
    with pytest.raises(ConfigError, match="source 'tiny' has no clean image"):
        loop.train(experiment.from_mapping(distilled), tmp_path / "run")
    assert not (tmp_path / "run").exists()
