"""Features of pretrained encoders against live PyTorch models with random weights.

Hugging Face's Swin comes from `transformers`. Microsoft's and timm's Swin and torchvision's ResNet
are written out here as published, with their names, so their packages are not needed.
Maps smaller than a window are left out: Hugging Face and timm shrink the window there, while ours
pads, as the release does. timm and Microsoft also roll a map before padding it to whole windows,
ours and Hugging Face afterwards, so they are compared on maps of whole windows.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdepth_jax.models.encoders import swin, torchvision_resnet
from diffdepth_jax.training import pretrained

torch = pytest.importorskip("torch")
nn = torch.nn
functional = torch.nn.functional
pytestmark = pytest.mark.torch

SWIN = swin.Config(embed_dim=8, depths=(2, 2, 2), num_heads=(2, 4, 4), window_size=4, mlp_ratio=2.0)


def randomised(module):
    """Random weights and statistics, scaled to keep the size of features."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, array in module.state_dict().items():
            if not array.is_floating_point() or name.endswith("attn_mask"):
                continue
            draws = torch.randn(array.shape, generator=generator)
            if array.ndim > 1 and "bias_table" not in name:
                array.copy_(draws * array[0].numel() ** -0.5)
            elif name.endswith(("running_var", "weight")):
                array.copy_(1 + 0.3 * draws.abs())
            else:
                array.copy_(0.5 * draws)
    return module.eval()


def errors(path, module, config, image, want) -> list[float]:
    """Relative L2 error of each stage of our encoder with weights from a file."""
    encoder = module.Encoder(config)
    inputs = jnp.asarray(image.numpy().transpose(0, 2, 3, 1))
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), inputs)
    # The file lacks only norms, which start as 1 and 0.
    fresh = jax.tree_util.tree_map_with_path(
        lambda at, leaf: jnp.full(leaf.shape, 1.0 if at[-1].key == "scale" else 0.0), shapes
    )
    variables = pretrained.overlay(fresh, pretrained.load_encoder(path, config))
    features = jax.jit(encoder.apply)(variables, inputs)
    assert len(features) == len(want)
    return [
        float(np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs))
        for ours, theirs in zip(features, want, strict=True)
    ]


def channels_last(features) -> list[np.ndarray]:
    return [array.detach().numpy().transpose(0, 2, 3, 1) for array in features]


def normalised(features) -> list[np.ndarray]:
    """What the fresh norms of our stages return."""
    return [functional.layer_norm(array, array.shape[-1:]).detach().numpy() for array in features]


@pytest.mark.parametrize("form", ["saved", "modules", "classifier"])
def test_hugging_faces_swin(form, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        image_size=64,
        embed_dim=SWIN.embed_dim,
        depths=SWIN.depths,
        num_heads=SWIN.num_heads,
        window_size=SWIN.window_size,
        mlp_ratio=SWIN.mlp_ratio,
    )
    if form == "classifier":
        classifier = randomised(transformers.SwinForImageClassification(config))
        model = classifier.swin
    else:
        model = randomised(transformers.SwinModel(config))
    if form == "modules":
        path = tmp_path / "model.pth"
        torch.save(model.state_dict(), path)
    else:
        (classifier if form == "classifier" else model).save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
    image = torch.randn(2, 3, 75, 109, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():  # All of its "hidden states" but the first are taken after merging.
        outputs = []
        hidden, size = model.embeddings(image, interpolate_pos_encoding=True)
        for stage in model.encoder.layers:
            for block in stage.blocks:
                hidden = block(hidden, size)
                hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            outputs.append(hidden.reshape(len(image), *size, -1))
            if stage.downsample is not None:
                hidden = stage.downsample(hidden, size)
                size = tuple((side + 1) // 2 for side in size)
    assert [array.shape[1:3] for array in outputs] == [(19, 28), (10, 14), (5, 7)]
    assert max(errors(path, swin, SWIN, image, normalised(outputs))) <= 1e-5


class Window(nn.Module):
    def __init__(self, channels, heads, size):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * size - 1) ** 2, heads))
        places = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
        offsets = (places.flatten(1)[:, :, None] - places.flatten(1)[:, None]) + size - 1
        self.register_buffer("relative_position_index", offsets[0] * (2 * size - 1) + offsets[1])

    def forward(self, windows, mask):
        count, area, channels = windows.shape
        qkv = self.qkv(windows).reshape(count, area, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = qkv[0] @ qkv[1].transpose(-1, -2) * (channels // self.heads) ** -0.5
        scores += self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask is not None:
            scores += mask.repeat(count // len(mask), 1, 1)[:, None]
        mixed = scores.softmax(-1) @ qkv[2]
        return self.proj(mixed.transpose(1, 2).reshape(count, area, channels))


class Block(nn.Module):
    def __init__(self, channels, heads, size, shift, hidden, resolution):
        super().__init__()
        self.size, self.shift = size, shift
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = Window(channels, heads, size)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        mask = None
        if shift:
            regions, number = torch.zeros(1, *resolution, 1), 0
            parts = (slice(0, -size), slice(-size, -shift), slice(-shift, None))
            for rows in parts:
                for columns in parts:
                    regions[:, rows, columns], number = number, number + 1
            regions = self.split(regions)[..., 0]
            apart = regions[:, None] != regions[:, :, None]
            mask = torch.where(apart, -100.0, 0.0)
        self.register_buffer("attn_mask", mask)

    def split(self, tokens):
        batch, height, width, channels = tokens.shape
        size = self.size
        tokens = tokens.reshape(batch, height // size, size, width // size, size, channels)
        return tokens.transpose(2, 3).reshape(-1, size**2, channels)

    def forward(self, tokens):
        batch, height, width, channels = tokens.shape
        size = self.size
        hidden = self.norm1(tokens).roll((-self.shift, -self.shift), (1, 2))
        hidden = self.attn(self.split(hidden), self.attn_mask)
        hidden = hidden.reshape(batch, height // size, width // size, size, size, channels)
        hidden = hidden.transpose(2, 3).reshape(tokens.shape)
        tokens = tokens + hidden.roll((self.shift, self.shift), (1, 2))
        hidden = functional.gelu(self.mlp.fc1(self.norm2(tokens)))
        return tokens + self.mlp.fc2(hidden)


class Merging(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(4 * channels)

    def forward(self, tokens):
        pairs = [tokens[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(pairs, -1)))


class Swin(nn.Module):
    """Microsoft's; timm's merges at the start of a stage and stores no buffers."""

    def __init__(self, config, resolution, timm):
        super().__init__()
        self.timm = timm
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, config.embed_dim, 4, 4)
        self.patch_embed.norm = nn.LayerNorm(config.embed_dim)
        self.layers = nn.ModuleList()
        last = len(config.depths) - 1
        for index, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
            width, stage = config.channels[index], nn.Module()
            if timm and index > 0:
                stage.downsample = Merging(width // 2)
            elif not timm and index < last:
                stage.downsample = Merging(width)
            stage.blocks = nn.ModuleList(
                Block(
                    width,
                    heads,
                    config.window_size,
                    config.window_size // 2 * (block % 2),
                    int(config.mlp_ratio * width),
                    tuple(side // 2**index for side in resolution),
                )
                for block in range(depth)
            )
            self.layers.append(stage)
        self.norm = nn.LayerNorm(width)
        classifier = nn.Linear(width, 3)
        self.head = nn.ModuleDict({"fc": classifier}) if timm else classifier

    def forward(self, image):
        tokens = self.patch_embed.norm(self.patch_embed.proj(image).permute(0, 2, 3, 1))
        outputs = []
        for stage in self.layers:
            if self.timm and hasattr(stage, "downsample"):
                tokens = stage.downsample(tokens)
            for block in stage.blocks:
                tokens = block(tokens)
            outputs.append(tokens)
            if not self.timm and hasattr(stage, "downsample"):
                tokens = stage.downsample(tokens)
        return outputs


@pytest.mark.parametrize("timm", [False, True], ids=["microsoft", "timm"])
def test_microsofts_and_timms_swin(timm, tmp_path):
    model = randomised(Swin(SWIN, (16, 32), timm))
    image = torch.randn(2, 3, 64, 128, generator=torch.Generator().manual_seed(1))
    state_dict = model.state_dict()
    if timm:
        buffers = {name for name, _ in model.named_buffers()}
        state_dict = {name: array for name, array in state_dict.items() if name not in buffers}
    path = tmp_path / "model.pth"
    torch.save(state_dict if timm else {"model": state_dict}, path)
    with torch.no_grad():
        want = normalised(model(image))
    assert max(errors(path, swin, SWIN, image, want)) <= 1e-5


class ResNetBlock(nn.Module):
    def __init__(self, inputs, width, stride, bottleneck):
        super().__init__()
        features = 4 * width if bottleneck else width
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        if bottleneck:
            self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.conv3 = nn.Conv2d(width, features, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(features)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or inputs != features:
            shortcut = nn.Conv2d(inputs, features, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(features))

    def forward(self, inputs):
        hidden = self.bn2(self.conv2(self.bn1(self.conv1(inputs)).relu()))
        if hasattr(self, "conv3"):
            hidden = self.bn3(self.conv3(hidden.relu()))
        return (hidden + (self.downsample(inputs) if self.downsample else inputs)).relu()


class ResNet(nn.Module):
    def __init__(self, config):
        super().__init__()
        inputs, bottleneck = config.widths[0], config.block == "bottleneck"
        self.conv1 = nn.Conv2d(3, inputs, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True), 1):
            blocks = []
            for block in range(depth):
                stride = 2 if stage > 1 and block == 0 else 1
                blocks.append(ResNetBlock(inputs, width, stride, bottleneck))
                inputs = config.channels[stage - 1]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, 3)

    def forward(self, image):
        hidden = functional.max_pool2d(self.bn1(self.conv1(image)).relu(), 3, 2, 1)
        outputs = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            hidden = stage(hidden)
            outputs.append(hidden)
        return outputs


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_torchvisions_resnet(block, tmp_path):
    config = torchvision_resnet.Config(block=block, depths=(2, 1, 2, 1), widths=(4, 6, 8, 10))
    model = randomised(ResNet(config))
    image = torch.randn(2, 3, 75, 109, generator=torch.Generator().manual_seed(1))
    path = tmp_path / "model.pth"
    torch.save(model.state_dict(), path)
    with torch.no_grad():
        want = channels_last(model(image))
    assert max(errors(path, torchvision_resnet, config, image, want)) <= 1e-5
