import dataclasses
import json
import types
from typing import Any, Literal

import pytest

from diffdepth_jax import config
from diffdepth_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Encoder:
    name: Literal["swin"] = "swin"
    depths: tuple[int, ...] = (2, 2)
    rate: float = 0.0


@dataclasses.dataclass(frozen=True)
class Crop:
    size: tuple[int, int]
    mode: Literal["random", "centre"] = "random"

    def __post_init__(self):
        if min(self.size) < 1:
            raise ValueError(f"size is {self.size}; sides must be positive")


@dataclasses.dataclass(frozen=True)
class Experiment:
    batch_size: int
    name: str = ""
    crop: Crop = Crop((4, 4))
    encoder: Any = config.choice("encoder", default=Encoder())
    limit: float | None = None
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


def resolve(kind, name):
    if (kind, name) != ("encoder", "swin"):
        raise ValueError(f"no {kind} named {name!r}")
    return types.SimpleNamespace(Config=Encoder, VARIANTS={"large": Encoder(depths=(2, 18))})


def read(**mapping):
    return config.from_mapping(Experiment, mapping, resolve=resolve)


def test_nested_mapping_round_trips_through_json():
    experiment = read(
        batch_size=4,
        crop={"size": [8, 6]},
        encoder={"name": "swin", "variant": "large", "rate": 1},
        limit=80,
    )
    assert experiment.crop == Crop((8, 6))
    assert experiment.encoder == Encoder(depths=(2, 18), rate=1.0)
    assert isinstance(experiment.limit, float)
    saved = json.loads(json.dumps(config.to_mapping(experiment)))
    assert read(**saved) == experiment


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"batchsize": 4}, r"config\.batchsize does not exist; did you mean 'batch_size'\?"),
        ({"batch_size": 4, "a": 1, "b": 2}, r"config\.a does not exist.*config\.b does not exist"),
        ({}, r"config\.batch_size is missing"),
        ({"batch_size": "4"}, r"config\.batch_size is '4' \(str\); it must be int"),
        ({"batch_size": True}, r"config\.batch_size is True \(bool\); it must be int"),
        ({"batch_size": 4.0}, r"config\.batch_size is 4\.0 \(float\); it must be int"),
        ({"batch_size": 1, "limit": "x"}, r"config\.limit is 'x' \(str\); it must be float"),
        ({"batch_size": 1, "crop": {"size": (4, 4, 4)}}, r"config\.crop\.size .* 2 elements"),
        ({"batch_size": 1, "crop": {"size": (4, "4")}}, r"config\.crop\.size\[1\] is '4'"),
        ({"batch_size": 1, "crop": {"size": (0, 4)}}, r"config\.crop: size is \(0, 4\)"),
        (
            {"batch_size": 1, "crop": {"size": (4, 4), "mode": "center"}},
            r"config\.crop\.mode is 'center'.*did you mean 'centre'",
        ),
        ({"batch_size": 1, "limit": float("nan")}, r"config\.limit is nan"),
        ({"batch_size": 2**63}, rf"config\.batch_size is {2**63} .*64 bits"),
        ({"batch_size": -(10**5000)}, r"config\.batch_size is .*64 bits"),
        ({"batch_size": 1, "limit": 10**400}, r"config\.limit is 1000.*64 bits"),
        ({"batch_size": "a" * 1000}, r"config\.batch_size is 'a{199}\.\.\. \(str\)"),
        ({"batch_size": 1, "crop": 3}, r"config\.crop must be a mapping"),
        ({"batch_size": 1, "encoder": {"depths": (1,)}}, r"config\.encoder\.name is missing"),
        ({"batch_size": 1, "encoder": {"name": "vit"}}, r"config\.encoder\.name: no encoder"),
        (
            {"batch_size": 1, "encoder": {"name": "swin", "variant": "larg"}},
            r"config\.encoder\.variant: .*did you mean 'large'",
        ),
        (
            {
                "batch_size": 1,
                "encoder": {"name": "swin", "variant": "large", "depths": (2, 2), "rate": 0.0},
            },
            r"config\.encoder\.variant: 'large' has no effect.*depths",
        ),
    ],
)
def test_errors_name_the_field_and_the_remedy(mapping, message):
    with pytest.raises(ConfigError, match=message):
        read(**mapping)


def test_a_variant_keeps_fields_that_nested_overrides_do_not_set():
    module = types.SimpleNamespace(
        Config=Experiment,
        VARIANTS={"v": Experiment(batch_size=1, crop=Crop((8, 8), "centre"))},
    )
    table = {("network", "n"): module, ("encoder", "swin"): resolve("encoder", "swin")}
    named = {"name": "n", "variant": "v", "crop": {"size": (2, 2)}, "encoder": {"depths": (1,)}}
    experiment = config.chosen(
        "network", named, resolve=lambda *key: table[key], path="config.model"
    )
    assert experiment.crop == Crop((2, 2), "centre")
    assert experiment.encoder == Encoder(depths=(1,))


def test_differences_name_the_changed_fields():
    one = config.to_mapping(read(batch_size=4))
    other = config.to_mapping(read(batch_size=4, crop={"size": (4, 5)}))
    assert config.differences(one, one) == []
    assert config.differences(one, other) == ["config.crop.size: [4, 4] -> [4, 5]"]
