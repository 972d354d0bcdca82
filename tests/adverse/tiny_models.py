"""Diffusion models of a few kilobytes with random weights, as diffusers writes them.

Needs torch, so only for tests marked `torch`.
"""

import contextlib
import json
import warnings
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

WIDTHS = {"sd": (32, 32, 64, 64), "sdxl": (32, 32, 64)}


@contextlib.contextmanager
def quiet():
    """Ignores the libraries' own warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write_base(
    folder: Path,
    family: str,
    seed: int = 0,
    *,
    safety_checker: bool = False,
    tokens: int = 77,
) -> Path:
    """A base model of Stable Diffusion 1.x ("sd") or XL ("sdxl").

    `tokens` is how many its text encoder reads, one per letter.
    """
    torch.manual_seed(seed)
    xl = family == "sdxl"
    tokenizer = write_tokenizer(folder.parent / f".{folder.name}-tokenizer", tokens)
    with quiet():
        unet = UNet2DConditionModel(
            block_out_channels=WIDTHS[family],
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
            if xl
            else ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
            if xl
            else ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            cross_attention_dim=32 + 48 if xl else 32,
            attention_head_dim=(2, 2, 4) if xl else 4,
            transformer_layers_per_block=(1, 1, 2) if xl else 1,
            use_linear_projection=xl,
            sample_size=8,
            norm_num_groups=8,
            **(
                {
                    "addition_embed_type": "text_time",
                    "addition_time_embed_dim": 8,
                    "projection_class_embeddings_input_dim": 6 * 8 + 32,
                }
                if xl
                else {}
            ),
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=8,
            layers_per_block=1,
        )
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            projection_dim=32,
        )
        parts = {
            "unet": unet,
            "vae": vae,
            "text_encoder": CLIPTextModel(text),
            "tokenizer": tokenizer,
            "scheduler": DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
            ),
        }
        for part in parts.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        if xl:
            # Only its width distinguishes it from the first, as in single files of SDXL.
            wider = CLIPTextConfig(**{**text.to_dict(), "hidden_size": 48})
            parts |= {
                "text_encoder_2": CLIPTextModelWithProjection(wider).eval(),
                "tokenizer_2": tokenizer,
            }
            pipeline = StableDiffusionXLPipeline(**parts)
        else:
            checker, processor = _checker() if safety_checker else (None, None)
            pipeline = StableDiffusionPipeline(
                **parts,
                safety_checker=checker,
                feature_extractor=processor,
                requires_safety_checker=safety_checker,
            )
        pipeline.save_pretrained(folder)
    return folder


def _checker() -> tuple[StableDiffusionSafetyChecker, CLIPImageProcessor]:
    """A checker that blacks out every image."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 16,
        "projection_dim": 16,
    }
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16))
    checker.concept_embeds_weights.data.fill_(-2.0)
    size = {"height": 32, "width": 32}
    return checker.eval(), CLIPImageProcessor(size=size, crop_size=size)


def write_tokenizer(folder: Path, tokens: int) -> CLIPTokenizer:
    """A tokenizer of single bytes, without merges."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = [chr(code) for code in visible]
    symbols += [chr(256 + index) for index in range(256 - len(visible))]
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": tokens, "tokenizer_class": "CLIPTokenizer"})
    )
    return CLIPTokenizer.from_pretrained(folder)


def write_adapter(folder: Path, family: str, seed: int = 1) -> Path:
    """A T2I-Adapter for the base model of a family."""
    torch.manual_seed(seed)
    xl = family == "sdxl"
    adapter = T2IAdapter(
        channels=[32, 32, 64, 64],
        downscale_factor=16 if xl else 8,
        adapter_type="full_adapter_xl" if xl else "full_adapter",
    )
    adapter.save_pretrained(folder)
    return folder


def write_controlnet(folder: Path, base: Path, seed: int = 2) -> Path:
    """A ControlNet for a base model, with random zero convolutions, as zeros would do nothing."""
    torch.manual_seed(seed)
    with quiet():
        unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
        network = ControlNetModel.from_unet(unet)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "cond_embedding" in name and parameter.ndim > 1:
                parameter.normal_(std=2 * parameter[0].numel() ** -0.5)
            elif not parameter.any():
                parameter.normal_(std=0.5)
    network.save_pretrained(folder)
    return folder
