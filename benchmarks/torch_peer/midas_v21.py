"""MiDaS v2.1 large under the names of its published file (intel-isl/MiDaS, midas_net.py)."""

import torch
from torch import nn
from torch.nn import functional


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=32, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        if stride > 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, inputs):
        hidden = functional.relu(self.bn1(self.conv1(inputs)), inplace=True)
        hidden = functional.relu(self.bn2(self.conv2(hidden)), inplace=True)
        hidden = self.bn3(self.conv3(hidden))
        shortcut = self.downsample(inputs) if hasattr(self, "downsample") else inputs
        return functional.relu(hidden + shortcut, inplace=True)


def stage(inputs: int, width: int, outputs: int, depth: int, stride: int) -> nn.Sequential:
    first = Bottleneck(inputs, width, outputs, stride)
    return nn.Sequential(first, *[Bottleneck(outputs, width, outputs, 1) for _ in range(depth - 1)])


class Unit(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(256, 256, 3, 1, 1) for _ in range(2))

    def forward(self, inputs):
        inputs = functional.relu(inputs)
        return self.conv2(functional.relu(self.conv1(inputs))) + inputs


class Fusion(nn.Module):
    def __init__(self):
        super().__init__()
        self.resConfUnit1, self.resConfUnit2 = Unit(), Unit()

    def forward(self, level, coarser=None):
        fused = level if coarser is None else coarser + self.resConfUnit1(level)
        fused = self.resConfUnit2(fused)
        return functional.interpolate(fused, scale_factor=2, mode="bilinear", align_corners=True)


class MidasV21(nn.Module):
    def __init__(self):
        super().__init__()
        stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.pretrained = nn.Module()
        self.pretrained.layer1 = nn.Sequential(
            stem,
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
            stage(64, 256, 256, 3, 1),
        )
        self.pretrained.layer2 = stage(256, 512, 512, 4, 2)
        self.pretrained.layer3 = stage(512, 1024, 1024, 23, 2)
        self.pretrained.layer4 = stage(1024, 2048, 2048, 3, 2)
        self.scratch = nn.Module()
        for index, channels in enumerate((256, 512, 1024, 2048), 1):
            conv = nn.Conv2d(channels, 256, 3, 1, 1, bias=False)
            setattr(self.scratch, f"layer{index}_rn", conv)
            setattr(self.scratch, f"refinenet{index}", Fusion())
        self.scratch.output_conv = nn.Sequential(
            nn.Conv2d(256, 128, 3, 1, 1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(128, 32, 3, 1, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 1, 1),
            nn.ReLU(inplace=True),
        )

    def forward(self, image):
        levels = []
        for index in range(1, 5):
            image = getattr(self.pretrained, f"layer{index}")(image)
            levels.append(getattr(self.scratch, f"layer{index}_rn")(image))
        fused = None
        for index in (4, 3, 2, 1):
            fused = getattr(self.scratch, f"refinenet{index}")(levels[index - 1], fused)
        return self.scratch.output_conv(fused)


def build() -> MidasV21:
    """A model with random weights, and a last bias that keeps the result from being 0."""
    net = MidasV21()
    with torch.no_grad():
        net.scratch.output_conv[4].bias.fill_(1.0)
    return net
