"""The encoders: the release's stem-less ResNet, and Swin with mmcv's arithmetic and names."""

import torch
from torch import nn
from torch.nn import functional


class ResNet(nn.Module):
    """Four stages of BasicBlocks; features at strides 2, 4, 8 and 16."""

    def __init__(self, depths: tuple[int, ...] = (2, 2, 2, 2)):
        super().__init__()
        self.channels = (64, 128, 256, 512)
        inputs, stages = 3, []
        for depth, width in zip(depths, self.channels, strict=True):
            blocks = [BasicBlock(inputs, width, 2)]
            blocks += [BasicBlock(width, width, 1) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
            inputs = width
        self.layers = nn.ModuleList(stages)

    def forward(self, features):
        outputs = []
        for stage in self.layers:
            features = stage(features)
            outputs.append(features)
        return outputs


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = nn.Conv2d(inputs, width, 3, stride, 1) if stride > 1 else nn.Identity()

    def forward(self, inputs):
        hidden = functional.relu(self.bn1(self.conv1(inputs)), inplace=True)
        hidden = self.bn2(self.conv2(hidden))
        return functional.relu(hidden + self.downsample(inputs), inplace=True)


class Swin(nn.Module):
    """Swin Transformer; features at strides 4, 8, 16 and 32, normalised."""

    def __init__(
        self,
        embed_dim: int,
        depths: tuple[int, ...],
        num_heads: tuple[int, ...],
        drop_path_rate: float = 0.1,
    ):
        super().__init__()
        self.channels = tuple(embed_dim * 2**stage for stage in range(len(depths)))
        self.patch_embed = PatchEmbed(embed_dim)
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths)).tolist())
        self.stages = nn.ModuleList()
        for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            width = self.channels[stage]
            module = nn.Module()
            module.blocks = nn.ModuleList(
                SwinBlock(width, heads, 3 * (block % 2), next(rates)) for block in range(depth)
            )
            if stage < len(depths) - 1:
                module.downsample = PatchMerging(width)
            self.stages.append(module)
            self.add_module(f"norm{stage}", nn.LayerNorm(width))

    def forward(self, image):
        tokens = self.patch_embed(image)
        outputs = []
        for index, stage in enumerate(self.stages):
            for block in stage.blocks:
                tokens = block(tokens)
            features = self.get_submodule(f"norm{index}")(tokens)
            # Channels are already last in memory: a view.
            outputs.append(features.permute(0, 3, 1, 2))
            if hasattr(stage, "downsample"):
                tokens = stage.downsample(tokens)
        return outputs


class PatchEmbed(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.projection = nn.Conv2d(3, width, 4, 4)
        self.norm = nn.LayerNorm(width)

    def forward(self, image):
        image = functional.pad(image, (0, -image.shape[3] % 4, 0, -image.shape[2] % 4))
        return self.norm(self.projection(image).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Merges 2x2 tokens; channel c of neighbour k, row by row, goes to 4 c + k."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, tokens):
        tokens = functional.pad(tokens, (0, 0, 0, tokens.shape[2] % 2, 0, tokens.shape[1] % 2))
        neighbours = [tokens[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        return self.reduction(self.norm(torch.stack(neighbours, -1).flatten(3)))


class SwinBlock(nn.Module):
    def __init__(self, width: int, heads: int, shift: int, drop_path_rate: float):
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.Module()
        self.attn.w_msa = WindowAttention(width, heads, shift)
        self.ffn = nn.Module()
        first = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU())
        self.ffn.layers = nn.Sequential(first, nn.Linear(4 * width, width))

    def forward(self, tokens):
        tokens = tokens + self.drop_path(self.attn.w_msa(self.norm1(tokens)))
        return tokens + self.drop_path(self.ffn.layers(self.norm2(tokens)))

    def drop_path(self, tokens):
        if not self.training or self.drop_path_rate == 0:
            return tokens
        keep = 1 - self.drop_path_rate
        return tokens * tokens.new_empty(len(tokens), 1, 1, 1).bernoulli_(keep) / keep


class WindowAttention(nn.Module):
    """Attention inside 7x7 windows of the map, which is rolled up and left by `shift` tokens."""

    size = 7

    def __init__(self, width: int, heads: int, shift: int):
        super().__init__()
        self.heads, self.shift = heads, shift
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        side = 2 * self.size - 1
        self.relative_position_bias_table = nn.Parameter(torch.zeros(side**2, heads))
        index = torch.zeros(self.size**2, self.size**2, dtype=torch.int64)
        self.register_buffer("relative_position_index", index)
        self.masks = {}

    def forward(self, tokens):
        batch, height, width, channels = tokens.shape
        bottom, right = -height % self.size, -width % self.size
        tokens = functional.pad(tokens, (0, 0, 0, right, 0, bottom))
        padded = tokens.shape[1:3]
        if self.shift:
            tokens = tokens.roll((-self.shift, -self.shift), (1, 2))
        windows = split(tokens, self.size)
        query, key, value = (
            self.qkv(windows).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        table = self.relative_position_bias_table[self.relative_position_index]
        mask = table.permute(2, 0, 1)[None]
        if self.shift:
            mask = mask + self.shift_mask(*padded, tokens.device).repeat(batch, 1, 1, 1)
        windows = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        windows = self.proj(windows.transpose(1, 2).flatten(2))
        grid = (batch, padded[0] // self.size, padded[1] // self.size, self.size, self.size)
        tokens = windows.view(*grid, channels).transpose(2, 3).reshape(batch, *padded, channels)
        if self.shift:
            tokens = tokens.roll((self.shift, self.shift), (1, 2))
        return tokens[:, :height, :width]

    def shift_mask(self, height: int, width: int, device):
        """-100 between tokens that share a window only because the roll wraps around."""
        if (height, width) not in self.masks:
            region = torch.zeros(1, height, width, 1, device=device)
            parts = slice(0, -self.size), slice(-self.size, -self.shift), slice(-self.shift, None)
            for row, rows in enumerate(parts):
                for column, columns in enumerate(parts):
                    region[:, rows, columns] = 3 * row + column
            region = split(region, self.size)[..., 0]
            apart = region[:, None, :] != region[:, :, None]
            self.masks[height, width] = apart[:, None] * -100.0
        return self.masks[height, width]


def split(tokens, size: int):
    """[b, h, w, c] to [b * windows, size * size, c]."""
    batch, height, width, channels = tokens.shape
    grid = tokens.view(batch, height // size, size, width // size, size, channels)
    return grid.transpose(2, 3).reshape(-1, size * size, channels)
