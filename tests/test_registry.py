import pytest

from diffdepth_jax import registry


def test_an_unknown_name_lists_what_is_known():
    with pytest.raises(ValueError, match=r"no encoder named 'swim'; did you mean 'swin'\?"):
        registry.module("encoder", "swim")


def test_weights_of_no_known_network_are_refused_with_the_candidates():
    with pytest.raises(ValueError, match=r"fc\.weight.*Known networks: diffusion_depth"):
        registry.match_network(["fc.weight", "fc.bias"])


@pytest.mark.parametrize("kind", sorted(registry.MODULES))
def test_every_registered_file_offers_what_its_kind_promises(kind):
    promised = {
        "network": ("Config", "VARIANTS", "INPUT", "OUTPUT", "build", "rules", "infer"),
        "encoder": ("Config", "VARIANTS", "Encoder", "rules", "infer", "LAYOUTS"),
        "source": ("source", "DEPTH_RANGE"),
        "objective": ("Config", "build"),
    }[kind]
    for name in registry.names(kind):
        module = registry.module(kind, name)
        assert module.__doc__
        missing = [attribute for attribute in promised if not hasattr(module, attribute)]
        assert not missing, f"{module.__name__} lacks {missing}"
