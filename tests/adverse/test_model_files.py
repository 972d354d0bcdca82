"""Model folders and files are checked before PyTorch starts, and no pickle is passed on."""

import json
import os
import pickle

import numpy as np
import pytest
import safetensors.numpy

from diffdepth_jax.adverse import model_files
from diffdepth_jax.errors import ConfigError, MissingFileError, WeightsError
from diffdepth_jax.weights import files
from tests.adverse import model_folders


def prepare(path, into, configs=None, safety_checker=True):
    return model_files.prepare_base(str(path), path, configs, into, safety_checker=safety_checker)


@pytest.fixture
def base(tmp_path):
    return prepare(model_folders.write_base(tmp_path / "sd"), tmp_path / "into")


@pytest.fixture
def base_xl(tmp_path):
    return prepare(model_folders.write_base(tmp_path / "sdxl", "sdxl"), tmp_path / "into_xl")


def control(path, base, into, pipeline="t2i_adapter"):
    return model_files.prepare_control(str(path), path, pipeline, base, into)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_diffusers_folder_is_linked_with_its_family(tmp_path, family):
    folder = model_folders.write_base(tmp_path / "model", family)
    (folder / "unet" / "model.py").write_text("raise SystemExit")
    (folder / "pipeline.py").write_text("raise SystemExit")

    base = prepare(folder, tmp_path / "into")

    assert (base.family, base.file, base.safety_checker) == (family, None, False)
    assert (base.folder / "unet" / "config.json").read_bytes()
    assert (base.folder / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert (base.folder / "text_encoder_2").exists() == (family == "sdxl")
    assert not list(base.folder.rglob("*.py"))  # no code is linked


def test_code_in_a_pickle_is_not_run(tmp_path):
    folder = model_folders.write_base(tmp_path / "model")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    touched = tmp_path / "touched"

    class Touch:
        def __reduce__(self):
            return os.mkdir, (str(touched),)

    for index, value in enumerate(({"weight": Touch()}, Touch())):
        weights.with_suffix(".bin").write_bytes(pickle.dumps(value, 2))
        with pytest.raises(WeightsError, match="diffusion_pytorch_model"):
            prepare(folder, tmp_path / f"into-{index}")
    assert not touched.exists()


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(tmp_path, part):
    folder = model_folders.write_base(tmp_path / "model")
    (folder / part).rename(tmp_path / "elsewhere")
    with pytest.raises((MissingFileError, ConfigError), match=part):
        prepare(folder, tmp_path / "into")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_missing_and_damaged_weights_are_named(tmp_path, part):
    folder = model_folders.write_base(tmp_path / "model")
    (weights,) = (folder / part).glob("*.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(WeightsError, match=r"damaged|truncated"):
        prepare(folder, tmp_path / "one")
    weights.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(WeightsError, match="LFS"):
        prepare(folder, tmp_path / "two")
    weights.unlink()
    with pytest.raises(MissingFileError, match=f"{part}.*no weights"):
        prepare(folder, tmp_path / "three")


def test_weights_in_several_files_and_in_half_precision_are_found(tmp_path):
    folder = model_folders.write_base(tmp_path / "model")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("part-1.safetensors"))
    index = {"weight_map": {"weight": "part-1.safetensors"}}
    model_folders.write_json(weights.with_name(f"{weights.name}.index.json"), index)
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    vae.rename(vae.with_name("diffusion_pytorch_model.fp16.safetensors"))

    base = prepare(folder, tmp_path / "into")

    linked = {path.name for path in (base.folder / "unet").iterdir()}
    assert linked == {"config.json", "part-1.safetensors", f"{weights.name}.index.json"}
    assert (base.folder / "vae" / vae.name).exists()
    index["weight_map"]["weight"] = "../vae/config.json"
    model_folders.write_json(weights.with_name(f"{weights.name}.index.json"), index)
    with pytest.raises(WeightsError, match="not a file next to it"):
        prepare(folder, tmp_path / "again")


def test_a_safety_checker_without_its_weights_is_left_out(tmp_path):
    """Otherwise diffusers would refuse the whole folder."""
    folder = model_folders.write_base(tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    model_folders.write_json(folder / "model_index.json", index)
    model_folders.write_json(folder / "safety_checker" / "config.json", {})
    model_folders.write_json(folder / "feature_extractor" / "preprocessor_config.json", {})
    assert not prepare(folder, tmp_path / "one").safety_checker
    model_folders.write_weights(folder / "safety_checker" / "model.safetensors")
    assert prepare(folder, tmp_path / "two").safety_checker
    assert not prepare(folder, tmp_path / "three", safety_checker=False).safety_checker


@pytest.mark.parametrize("library", ["my_pipeline", "os", "../evil"])
def test_a_folder_that_needs_custom_code_is_refused(tmp_path, library):
    folder = model_folders.write_base(tmp_path / "model")
    model_folders.write_json(folder / "model_index.json", {"unet": [library, "Net"]})
    with pytest.raises(ConfigError, match="custom code"):
        prepare(folder, tmp_path / "into")


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"in_channels": 9}, "inpainting"),
        ({"_class_name": "FluxTransformer2DModel"}, "FluxTransformer2DModel"),
    ],
)
def test_models_of_another_kind_are_refused(tmp_path, change, complaint):
    folder = model_folders.write_base(tmp_path / "model")
    config = json.loads((folder / "unet" / "config.json").read_text())
    model_folders.write_json(folder / "unet" / "config.json", config | change)
    with pytest.raises(ConfigError, match=complaint):
        prepare(folder, tmp_path / "into")


def test_sdxl_refiner_is_refused(tmp_path):
    folder = model_folders.write_base(tmp_path / "model", "sdxl")
    (folder / "text_encoder").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="refiner"):
        prepare(folder, tmp_path / "into")


def test_a_control_network_is_not_a_base_model(tmp_path):
    folder = model_folders.write_controlnet(tmp_path / "model")
    with pytest.raises(ConfigError, match="ControlNetModel, not a whole pipeline"):
        prepare(folder, tmp_path / "into")
    with pytest.raises(MissingFileError, match="save_pretrained"):
        prepare(tmp_path, tmp_path / "into")


def test_a_single_file_needs_a_folder_of_configs(tmp_path):
    file = tmp_path / "v1-5.safetensors"
    model_folders.write_weights(file)
    with pytest.raises(ConfigError, match="base_config"):
        prepare(file, tmp_path / "into")
    configs = model_folders.write_base(tmp_path / "configs", weights=False)
    base = prepare(file, tmp_path / "into", configs)
    assert base.file.read_bytes() == file.read_bytes()
    assert not list(base.folder.rglob("*/*.safetensors"))


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("pipeline", ["t2i_adapter", "controlnet", "controlnet_img2img"])
def test_networks_of_the_same_family_fit(tmp_path, family, pipeline):
    base = prepare(model_folders.write_base(tmp_path / "model", family), tmp_path / "into")
    write = (
        model_folders.write_adapter if pipeline == "t2i_adapter" else model_folders.write_controlnet
    )
    prepared = control(write(tmp_path / "control", family), base, tmp_path / "into", pipeline)
    assert (prepared.folder / "diffusion_pytorch_model.safetensors").exists()


def test_adapters_and_controlnets_are_not_confused(tmp_path, base):
    """diffusers would load either as the other, with random weights throughout."""
    adapter = model_folders.write_adapter(tmp_path / "adapter")
    with pytest.raises(ConfigError, match=r"T2IAdapter.*set pipeline to 't2i_adapter'"):
        control(adapter, base, tmp_path / "one", "controlnet")
    network = model_folders.write_controlnet(tmp_path / "network")
    with pytest.raises(ConfigError, match=r"ControlNetModel.*set pipeline to 'controlnet'"):
        control(network, base, tmp_path / "two", "t2i_adapter")
    config = {"_class_name": "MultiAdapter"}
    model_folders.write_json(adapter / "config.json", config)
    with pytest.raises(ConfigError, match="MultiAdapter"):
        control(adapter, base, tmp_path / "three")


@pytest.mark.parametrize("pipeline", ["t2i_adapter", "controlnet"])
def test_networks_of_another_family_do_not_fit(tmp_path, base, base_xl, pipeline):
    write = (
        model_folders.write_adapter if pipeline == "t2i_adapter" else model_folders.write_controlnet
    )
    for theirs, mine in (("sdxl", base), ("sd", base_xl)):
        folder = write(tmp_path / theirs, theirs)
        with pytest.raises(ConfigError, match="does not fit base"):
            control(folder, mine, tmp_path / f"into-{theirs}", pipeline)


def test_adapters_of_other_widths_and_for_sketches_do_not_fit(tmp_path, base):
    folder = model_folders.write_adapter(tmp_path / "a", channels=[32, 32, 64, 64])
    with pytest.raises(ConfigError, match="channels"):
        control(folder, base, tmp_path / "one")
    folder = model_folders.write_adapter(tmp_path / "b", in_channels=1)
    with pytest.raises(ConfigError, match="sketches"):
        control(folder, base, tmp_path / "two")


def _original_adapter(factor=8, channels=(320, 640, 1280, 1280)):
    """Names and shapes of the authors' file, without the kernel sizes."""
    shapes = {"conv_in.weight": (channels[0], 3 * factor**2, 1, 1), "conv_in.bias": (channels[0],)}
    for block in range(8):
        width, before = channels[block // 2], channels[max(0, block // 2 - 1)]
        if block % 2 == 0 and block and width != before:
            shapes[f"body.{block}.in_conv.weight"] = (width, before, 1, 1)
        for conv in ("block1", "block2"):
            shapes[f"body.{block}.{conv}.weight"] = (width, width, 1, 1)
    return {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}


def test_an_original_adapter_file_becomes_a_folder(tmp_path, base):
    path = tmp_path / "t2iadapter_depth.safetensors"
    safetensors.numpy.save_file(_original_adapter(), path)

    prepared = control(path, base, tmp_path / "into")

    config = json.loads((prepared.folder / "config.json").read_text())
    assert config["channels"] == [320, 640, 1280, 1280]
    assert (config["downscale_factor"], config["adapter_type"]) == (8, "full_adapter")
    names = set(files.read(prepared.folder / "diffusion_pytorch_model.safetensors").state_dict)
    assert {
        "adapter.conv_in.weight",
        "adapter.body.1.in_conv.weight",
        "adapter.body.3.resnets.1.block2.weight",
    } <= names
    with pytest.raises(ConfigError, match="T2IAdapter"):
        control(path, base, tmp_path / "again", "controlnet")


def test_files_that_are_not_adapters_are_refused(tmp_path, base):
    arrays = _original_adapter()
    path = tmp_path / "adapter.safetensors"
    safetensors.numpy.save_file(arrays | {"extra": np.zeros(1, np.float32)}, path)
    with pytest.raises(WeightsError, match="extra"):
        control(path, base, tmp_path / "one")
    safetensors.numpy.save_file(
        {name: array for name, array in arrays.items() if not name.startswith("body.0")}, path
    )
    with pytest.raises(WeightsError, match="not a complete"):
        control(path, base, tmp_path / "two")
    for name in ("body.0.in_conv.weight", "unet.weight"):
        safetensors.numpy.save_file({name: np.zeros(1, np.float32)}, path)
        with pytest.raises(ConfigError, match=r"light|neither"):
            control(path, base, tmp_path / name)


def test_a_controlnet_file_must_match_the_text_width_of_the_base(tmp_path, base):
    path = tmp_path / "control_sd15_depth.safetensors"
    name = "control_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    safetensors.numpy.save_file({name: np.zeros((320, 1024), np.float16)}, path)
    with pytest.raises(ConfigError, match="width 1024, but the base to 768"):
        control(path, base, tmp_path / "one", "controlnet")
    safetensors.numpy.save_file({name: np.zeros((320, 768), np.float16)}, path)
    assert control(path, base, tmp_path / "two", "controlnet").file.exists()


def test_fingerprints_depend_only_on_the_content(tmp_path):
    folders = [model_folders.write_base(tmp_path / name) for name in ("one", "two", "three")]
    model_folders.write_weights(
        folders[2] / "vae" / "diffusion_pytorch_model.safetensors",
        weight=np.full(1, 2, np.float32),
    )
    one, two, three = (
        prepare(folder, tmp_path / f"into-{folder.name}").fingerprint for folder in folders
    )
    assert one == two != three


@pytest.mark.parametrize(
    "name, repository",
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", True),
        ("/models/sd15", False),
        ("./models/sd15", False),
        ("models/sd15/folder", False),
        ("sd15.safetensors", False),
    ],
)
def test_hub_repositories_are_told_apart_from_paths(name, repository):
    assert model_files.is_repository(name) == repository
    if not repository:
        with pytest.raises(MissingFileError, match=r"base is .*no such file"):
            model_files.find("base", name)
