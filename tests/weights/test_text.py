import pytest

from diffdepth_jax.errors import WeightsError
from diffdepth_jax.weights.text import parse_json, shown


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("layers.0.weight", "layers.0.weight"),
        ("\x1b[2Jred\x07\n\r\x9b", r"\x1b[2Jred\x07\n\r\x9b"),
        ("жар-птица \udc80\u202e", r"жар-птица \udc80\u202e"),
        ("abcdef", "abcde ..."),
    ],
)
def test_shown_text_is_printable_and_short(text, want):
    got = shown(text, 5) if text == "abcdef" else shown(text)
    assert got == want and got.isprintable()


def test_json_is_read_or_named_in_an_error():
    assert parse_json('{"a": [1]}', "x.json") == {"a": [1]}
    for text, part in (
        ("[" * 100_000, "deeply"),
        ("{", "not valid JSON"),
        ("9" * 5000, "not valid JSON"),
    ):
        with pytest.raises(WeightsError, match=part) as caught:
            parse_json(text, "x.json")
        assert "x.json" in str(caught.value)
