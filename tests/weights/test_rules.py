"""Rule tables: layouts against literal loops, and one error that lists all faults."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from diffdepth_jax.errors import WeightsError
from diffdepth_jax.weights import rules
from diffdepth_jax.weights.rules import (
    Derived,
    Fresh,
    Rule,
    Skip,
    convert,
    export,
    names,
    prefix,
)

TABLE = (
    Rule(r"layers\.(\d+)\.conv\.weight", r"params/stage\1/conv/kernel", rules.conv),
    Rule(r"layers\.(\d+)\.(?:conv|norm)\.bias", r"params/stage\1/conv/bias"),
    Rule(r"layers\.(?P<n>\d+)\.mean", r"batch_stats/stage\g<n>/mean"),
    Rule(r"head\.weight", "params/head/kernel", rules.linear),
    Rule(r"up\.weight", "params/up/kernel", rules.conv_transpose),
    Skip(r".*\.num_batches_tracked", "a counter"),
)


def expected(dtype=jnp.float32):
    shapes = {
        "params": {
            "stage0": {"conv": {"kernel": (3, 2, 4, 5), "bias": (5,)}},
            "head": {"kernel": (5, 7)},
            "up": {"kernel": (2, 3, 6, 4)},
        },
        "batch_stats": {"stage0": {"mean": ()}},
        "empty": {},
    }
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype), shapes, is_leaf=lambda s: type(s) is tuple
    )


def state_dict():
    rng = np.random.default_rng(0)
    shapes = {
        "layers.0.conv.weight": (5, 4, 3, 2),
        "layers.0.conv.bias": (5,),
        "layers.0.mean": (),
        "head.weight": (7, 5),
        "up.weight": (6, 4, 2, 3),
        "layers.0.num_batches_tracked": (),
    }
    return {name: np.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def message(call, *args) -> str:
    with pytest.raises(WeightsError) as info:
        call(*args)
    return str(info.value)


def test_convert_fills_the_expected_tree_with_its_dtype():
    given = state_dict()
    variables = convert(given, TABLE, expected(jnp.bfloat16))
    assert jax.tree.structure(variables) == jax.tree.structure(expected())
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(jnp.bfloat16)}
    kernel = convert(given, TABLE, expected())["params"]["stage0"]["conv"]["kernel"]
    weight = given["layers.0.conv.weight"]
    assert kernel[2, 1, 3, 4] == np.float32(weight[4, 3, 2, 1])
    kernel = convert(given, TABLE, expected())["params"]["up"]["kernel"]
    assert kernel[0, 2, 5, 3] == np.float32(given["up.weight"][5, 3, 1, 0])


def test_convert_shares_no_memory_with_the_state_dict():
    given = {name: array.astype(np.float32) for name, array in state_dict().items()}
    variables = convert(given, TABLE, expected())
    given["layers.0.conv.bias"][:] = 99
    assert not np.any(variables["params"]["stage0"]["conv"]["bias"] == 99)


def test_export_is_the_inverse():
    given = state_dict()
    del given["layers.0.num_batches_tracked"]
    variables = convert(given, TABLE, expected(jnp.float64))
    names = [*given, "layers.0.num_batches_tracked"]
    back = export(variables, TABLE, names)
    assert back.keys() == given.keys()
    for name, array in given.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].flags.c_contiguous and back[name].shape == array.shape


def test_prefix_reroots_keys_and_paths():
    table = prefix(prefix(TABLE, "b.", "inner"), "a.", "outer")
    given = {f"a.b.{name}": array for name, array in state_dict().items()}
    tree = {
        collection: {"outer": {"inner": leaves}} if leaves else {}
        for collection, leaves in expected().items()
    }
    variables = convert(given, table, tree)
    plain = convert(state_dict(), TABLE, expected())
    np.testing.assert_array_equal(
        variables["batch_stats"]["outer"]["inner"]["stage0"]["mean"],
        plain["batch_stats"]["stage0"]["mean"],
    )
    # The dot of a prefix is literal, and alternatives stay inside the prefixed pattern.
    (rule,) = prefix((Rule("x|y", "params/x"),), "a.", "")
    assert "without a rule" in message(convert, {"y": np.ones(1)}, (rule,), {})
    assert "without a rule" in message(convert, {"abx": np.ones(1)}, (rule,), {})
    assert rule.path == "params/x"


def test_one_error_lists_all_faults():
    given = state_dict()
    given["layers.0.norm.bias"] = np.ones(5)  # the same leaf as layers.0.conv.bias
    given["layers.1.mean"] = np.ones(())  # a leaf that the model lacks
    given["head.weight"] = np.ones((5, 7))  # not transposed
    given["up.weight"] = np.ones((6, 4))  # a different rank
    given["stranger"] = np.ones(1)
    del given["layers.0.mean"]
    table = (*TABLE, Skip(r"layers\.0\.num_.*", "claimed twice"))
    text = message(convert, given, table, expected())
    for part in (
        "keys without a rule (1)",
        "stranger",
        "keys with several rules (1)",
        "layers.0.num_batches_tracked: .*",
        "params/stage0/conv/bias <- layers.0.conv.bias, layers.0.norm.bias",
        "layers.1.mean -> batch_stats/stage1/mean",
        "head.weight -> params/head/kernel: (5, 7) becomes (7, 5), but the model has (5, 7)",
        "up.weight (6, 4) -> params/up/kernel (2, 3, 6, 4)",
        "leaves that no key fills (1)",
        "batch_stats/stage0/mean ()",
    ):
        assert part in text, part


def test_long_lists_of_faults_are_truncated_and_counted():
    text = message(convert, {f"key{i:03}": np.ones(1) for i in range(100)}, (), {})
    assert "(100)" in text and "key000" in text and "key099" not in text and "and 92 more" in text


def test_arrays_of_text_are_refused():
    table, tree = (Rule("a", "params/a"),), {"params": {"a": np.zeros(2)}}
    assert "<U1" in message(convert, {"a": np.array(["x", "y"])}, table, tree)


def test_export_reports_names_and_leaves_without_a_partner():
    variables = {"params": {"a": np.ones(2), "b": np.ones(2)}}
    text = message(export, variables, (Rule("(.)", r"params/\1"),), ["a", "c", "long"])
    assert "c -> params/c" in text and "params/b" in text and "long" in text


def test_conv_matches_torchs_correlation():
    """Grouped: an OIHW weight and its HWIO kernel against a literal loop."""
    rng = np.random.default_rng(1)
    image, weight, groups = rng.normal(size=(1, 5, 6, 4)), rng.normal(size=(6, 2, 3, 3)), 2
    want = np.zeros((1, 3, 4, 6))
    for o in range(6):
        first = o // 3 * 2  # input channels of the output's group
        for y in range(3):
            for x in range(4):
                patch = image[0, y : y + 3, x : x + 3, first : first + 2]
                want[0, y, x, o] = np.sum(patch.transpose(2, 0, 1) * weight[o])
    got = lax.conv_general_dilated(
        jnp.asarray(image, jnp.float32),
        jnp.asarray(rules.conv.forward(weight), jnp.float32),
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(("size", "stride", "padding"), [(2, 2, 0), (4, 2, 1), (3, 2, 1)])
def test_conv_transpose_matches_torchs_scatter(size, stride, padding):
    rng = np.random.default_rng(2)
    image, weight = rng.normal(size=(1, 3, 4, 2)), rng.normal(size=(2, 5, size, size))
    height, width = (stride * (n - 1) + size for n in (3, 4))
    full = np.zeros((1, height, width, 5))
    for y in range(3):
        for x in range(4):
            top, left = y * stride, x * stride
            full[0, top : top + size, left : left + size] += np.einsum(
                "i,iohw->hwo", image[0, y, x], weight
            )
    want = full[:, padding : height - padding, padding : width - padding]
    got = lax.conv_general_dilated(
        jnp.asarray(image, jnp.float32),
        jnp.asarray(rules.conv_transpose.forward(weight), jnp.float32),
        (1, 1),
        [(size - 1 - padding, size - 1 - padding)] * 2,
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_parts_of_a_leaf_are_joined_and_split():
    table = tuple(
        Rule(rf"{name}\.weight", "params/qkv/kernel", rules.linear, part=(index, 3))
        for index, name in enumerate("qkv")
    )
    rng = np.random.default_rng(0)
    given = {f"{name}.weight": rng.normal(size=(4, 2)) for name in "vkq"}
    tree = {"params": {"qkv": {"kernel": np.zeros((2, 12))}}}
    kernel = convert(given, table, tree)["params"]["qkv"]["kernel"]
    want = np.concatenate([given[f"{name}.weight"] for name in "qkv"]).T
    np.testing.assert_array_equal(kernel, want)
    variables = {"params": {"qkv": {"kernel": kernel}}}
    back = export(variables, table, names(variables, table))
    assert back.keys() == given.keys()
    for name, array in given.items():
        np.testing.assert_array_equal(back[name], array)

    part = {"q.weight": given["q.weight"], "k.weight": given["k.weight"]}
    assert "partially filled leaves (1)" in message(convert, part, table, tree)
    uneven = given | {"q.weight": np.ones((8, 2)), "v.weight": np.ones((0, 2))}
    assert "(8, 2) becomes (2, 8), but the model has (2, 4)" in message(
        convert, uneven, table, tree
    )


def test_fresh_leaves_may_stay_empty_and_no_others():
    table = prefix(
        (Rule("a", "params/a"), Rule("b", "params/b"), Fresh("params/(b|c)", "new")), "x.", "in"
    )
    tree = {"params": {"in": {name: np.zeros(2) for name in "abc"}}}
    found = convert({"x.a": np.ones(2)}, table, tree)
    assert found["params"]["in"].keys() == {"a"}
    assert convert({"x.a": np.ones(2), "x.b": np.ones(2)}, table, tree)["params"]["in"].keys() == {
        "a",
        "b",
    }
    text = message(convert, {"x.b": np.ones(2)}, table, tree)
    assert "leaves that no key fills (1)" in text and "params/in/a" in text


def test_derived_entries_are_skipped_and_written():
    double = rules.Transform(lambda array: array, lambda array: 2 * array)
    table = prefix((Rule("a", "params/a"), Derived("b", "twice a", "params/a", double)), "x.", "in")
    variables = convert(
        {"x.a": np.ones(2), "x.b": np.zeros(7)}, table, {"params": {"in": {"a": np.ones(2)}}}
    )
    back = export(variables, table, names(variables, table))
    np.testing.assert_array_equal(back["x.b"], [2, 2])
    assert back.keys() == {"x.a", "x.b"}


def test_a_table_can_be_inverted():
    table = prefix(
        (
            Rule(r"layers\.(\d+)\.(conv|norm)(\d)\.weight", r"params/s\1/\2\3/kernel"),
            Rule(r"layers\.(\d+)\.bias", r"params/s\1/all\1/bias"),
            Rule(r"head\.0", "params/head"),
            Rule(r"unused", "params/unused"),
            Skip(r"any.*(thing)?", "not checked"),
        ),
        "net.",
    )
    leaves = {"s3": {"conv1": {"kernel": 0}, "all3": {"bias": 0}, "all4": {"bias": 0}}, "head": 0}
    assert set(names({"params": leaves}, table)) == {
        "net.layers.3.conv1.weight",
        "net.layers.3.bias",
        "net.head.0",
    }
    for pattern, path in ((r"a(?:b)", "params/a"), (r"a(\d)", "params/a"), (r"a\d", "params/a")):
        assert "cannot be inverted" in message(names, {"params": {"a": 0}}, (Rule(pattern, path),))
    twice = (Rule("a", "params/a"), Rule("b", "params/a"))
    assert "params/a -> a, b" in message(names, {"params": {"a": 0}}, twice)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.complex64, "U1"])
def test_numbers_of_another_kind_are_refused(dtype):
    table, tree = (Rule("a", "params/a"),), {"params": {"a": np.zeros(2, np.float32)}}
    assert "a: " + str(np.dtype(dtype)) in message(convert, {"a": np.ones(2, dtype)}, table, tree)
    assert "numbers of the wrong kind" in message(
        rules.check, {"params": {"a": np.ones(2, dtype)}}, tree, "The title"
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float64, jnp.bfloat16, jnp.float8_e4m3fn])
def test_floats_of_any_width_are_accepted(dtype):
    table, tree = (Rule("a", "params/a"),), {"params": {"a": np.zeros(2, np.float32)}}
    got = convert({"a": np.ones(2, dtype)}, table, tree)["params"]["a"]
    assert got.dtype == np.float32 and (got == 1).all()
    rules.check({"params": {"a": np.ones(2, dtype)}}, tree, "The title")


def test_counters_that_are_skipped_may_be_integers():
    table = (Rule("a", "params/a"), Skip(".*num_batches_tracked", "a counter"))
    state_dict = {"a": np.ones(2), "num_batches_tracked": np.array(3), "b.num_batches_tracked": 5}
    found = convert(state_dict, table, {"params": {"a": np.zeros(2)}})
    assert found["params"].keys() == {"a"} and (found["params"]["a"] == 1).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_weights_that_are_not_finite_are_named_in_a_warning(value):
    table = (Rule(r"(\w)", r"params/\1"), Skip("mask", "unused"))
    tree = {"params": {name: np.zeros(2, np.float32) for name in "abc"}}
    state_dict = {"a": np.ones(2), "b": np.array([1, value]), "c": np.array([value, 1])}
    with pytest.warns(UserWarning, match=r"NaN or infinity in 2 of 3 entries: b, c\."):
        convert(state_dict | {"mask": np.full(2, -np.inf)}, table, tree)
    convert({name: np.ones(2) for name in "abc"} | {"mask": np.array(value)}, table, tree)


def test_names_are_shown_without_control_characters():
    name, tree = "\x1b[31ma\n", {"params": {"a": np.zeros(2)}}
    text = message(convert, {name: np.ones(2)}, (Rule("a", "params/a"),), tree)
    assert r"\x1b[31ma\n" in text and "\x1b" not in text
    with pytest.warns(UserWarning, match="NaN") as caught:
        convert({name: np.full(2, np.nan)}, (Rule("(?s).*a.", "params/a"),), tree)
    assert r"\x1b[31ma\n" in str(caught[0].message) and "\x1b" not in str(caught[0].message)


def test_a_leaf_filled_twice_is_reported_wherever_it_comes():
    given = {"layers.0.norm.bias": np.zeros(5)} | state_dict()
    assert "leaves filled more than once (1)" in message(convert, given, TABLE, expected())
