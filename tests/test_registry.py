import pytest

from diffdepth_jax import registry


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no encoder named 'swim'; did you mean 'swin'\?"):
        registry.module("encoder", "swim")


def test_a_signature_of_keys_determines_the_family():
    keys = ["depth_backbone.layers.0.0.conv1.weight", "depth_head.model.time_embedding.weight"]
    assert registry.matching("network", keys) == ("diffusion_depth",)
    assert registry.matching("network", keys[:1]) == ()
    assert registry.matching("encoder", ["layers.0.0.downsample.weight"]) == ("resnet",)


@pytest.mark.parametrize("kind", sorted(registry.MODULES))
def test_every_registered_file_offers_what_its_kind_promises(kind):
    promised = {
        "network": (),  # see tests/models/networks/test_contract.py
        "encoder": (),  # see tests/models/encoders/test_contract.py
        "source": ("Config", "build", "DEPTH_RANGE"),  # see tests/data/sources/test_contract.py
        "objective": ("Config", "build"),
        "backend": ("Config", "CONDITIONS", "USES_PROMPTS", "title", "open"),
    }[kind]
    for name in registry.names(kind):
        module = registry.module(kind, name)
        assert module.__doc__
        missing = [attribute for attribute in promised if not hasattr(module, attribute)]
        assert not missing, f"{module.__name__} lacks {missing}"
