import json
import re
import subprocess
import sys

import pytest

from diffdepth_jax.adverse import prompts
from diffdepth_jax.errors import ConfigError, FileError

ROAD = ("night", "rain", "night-rain", "fog", "snow", "glare", "dust")
MATERIALS = ("scene", "glass", "mirror")


@pytest.fixture(scope="module")
def bank():
    return prompts.read()


@pytest.mark.parametrize("condition", [*ROAD, *MATERIALS])
def test_a_condition_has_many_prompts_in_every_scene(bank, condition):
    scenes = ["tabletop"] if condition in MATERIALS else list(bank.scenes)
    for scene in scenes:
        bank.check([condition], scene)
        drawn = {bank.draw(0, f"frame {n}", condition, 0, scene).text for n in range(200)}
        assert len(drawn) >= 40
        assert not any("{" in text or "  " in text for text in drawn)
        # CLIP reads 77 tokens; a word is one or two.
        negative = bank.draw(0, "", condition, 0, scene).negative
        assert max(len(re.findall(r"\w+|,", text)) for text in (*drawn, negative)) < 50
        assert bank.count(condition, scene) >= len(drawn)


def test_every_source_has_a_scene(bank):
    from diffdepth_jax import registry

    assert set(bank.sources) - {"default"} <= set(registry.names("source"))
    for source in registry.names("source"):
        bank.check(ROAD, bank.scene_of(source))
    assert bank.scene_of("nuscenes") == "city" and bank.scene_of("folder") == "street"
    assert bank.scene_of("nuscenes", "room") == "room"
    with pytest.raises(ConfigError, match="did you mean 'suburb'"):
        bank.scene_of("kitti", "suburbs")


def test_a_prompt_depends_only_on_seed_id_condition_and_variant(bank):
    places = [
        (seed, frame, condition, variant)
        for seed in (0, 1)
        for frame in ("a", "b")
        for condition in ("night", "fog")
        for variant in (0, 1)
    ]
    drawn = [bank.draw(*place, "street").text for place in places]
    assert len(set(drawn)) > len(drawn) / 2
    seeds = [prompts.noise_seed(*place) for place in places]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    code = (
        "import json\nfrom diffdepth_jax.adverse import prompts\nbank = prompts.read()\n"
        f"places = {places[::-1]!r}\n"
        "print(json.dumps([[bank.draw(*p, 'street').text, prompts.noise_seed(*p)]"
        " for p in places]))"
    )
    other = json.loads(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert other == [list(pair) for pair in zip(drawn, seeds, strict=True)][::-1]


def test_seeds_are_those_of_earlier_versions():
    """A workdir started with one version can be continued with another."""
    assert prompts.noise_seed(0, "a", "night", 0) == 4965637845143827919


def test_scene_words_of_a_table_top_are_drawn_once_per_frame(bank):
    for number in range(20):
        frame = f"scene_{number}"
        scene = bank.draw(0, frame, "scene", 0, "tabletop").text
        objects = next(
            text for text, _ in bank.scenes["tabletop"].words["objects"] if text in scene
        )
        for condition in ("glass", "mirror"):
            for variant in (0, 1, 2):
                text = bank.draw(0, frame, condition, variant, "tabletop").text
                assert objects in text.lower()


def test_a_custom_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'negative = "nothing"\n'
        '[conditions.hail]\ntemplates = ["{hail} on a {place}"]\n'
        '[conditions.hail.words]\nhail = [{text = "big", weight = 3}, "small", '
        '{text = "no", weight = 0}]\n'
        '[scenes.street.words]\nplace = ["bridge"]\n'
    )
    bank = prompts.read([str(path)])
    drawn = [bank.draw(0, str(n), "hail", 0, "street") for n in range(400)]
    assert {prompt.negative for prompt in drawn} == {"nothing"}
    texts = [prompt.text for prompt in drawn]
    assert set(texts) == {"Big on a bridge", "Small on a bridge"}
    assert 260 < texts.count("Big on a bridge") < 340
    assert "night" in bank.conditions and bank.fingerprint() != prompts.read().fingerprint()


@pytest.mark.parametrize(
    "text, message",
    [
        ("a = ", "is not valid TOML"),
        ("[condition.night]\n", "did you mean 'conditions'"),
        ("[conditions.night]\ntemplate = ['a']\n", "did you mean 'templates'"),
        ("[conditions.hail]\n", "conditions.hail.templates is None"),
        ("[conditions.night]\ntemplates = []\n", "non-empty list of texts"),
        ("[conditions.night]\ntemplates = [3]\n", "3"),
        ("[conditions.night]\ntemplates = [{text = 'a', wieght = 2}]\n", "wieght"),
        ("[conditions.night]\ntemplates = [{text = 'a', weight = -1}]\n", "weight"),
        ("[conditions.night]\ntemplates = [{text = 'a', weight = 0}]\n", "all weights are 0"),
        ("[conditions.night.words]\nlight = 'lamp'\n", "conditions.night.words.light"),
        ("[conditions.'../x']\ntemplates = ['a']\n", "names may only contain letters"),
        ("[conditions]\nnight = 3\n", "must be a table"),
        ("[sources]\nkitti = 3\n", "sources.kitti"),
        ("negative = 3\n", "negative is 3"),
    ],
)
def test_a_mistake_in_a_file_is_located(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        prompts.read([str(path)])
    assert message in str(error.value) and "mine.toml" in str(error.value)


def test_an_unfilled_slot_and_a_missing_file(bank, tmp_path):
    with pytest.raises(ConfigError, match=r"'glass' use \{objects\}.*scene 'street'"):
        bank.check(["glass"], "street")
    with pytest.raises(ConfigError, match="did you mean 'night'"):
        bank.check(["nihgt"], "street")
    with pytest.raises(FileError, match="gone"):
        prompts.read([str(tmp_path / "gone.toml")])
