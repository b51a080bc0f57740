"""A small trained network and its data, for measuring curvature: the same for every method, made in seconds."""

import torch
from torch import Tensor, nn


def bright_spots(count: int, seed: int, pixels: int = 16) -> tuple[Tensor, Tensor]:
    """Noisy images (count, 1, pixels, pixels), float32; label 1 has a blurred spot somewhere, label 0 has none."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, pixels, pixels, generator=generator)
    labels = torch.arange(count) % 2
    center = torch.rand(count, 2, generator=generator) * (pixels - 8) + 4
    axis = torch.arange(pixels)
    distance = (axis[None, :, None] - center[:, :1, None]) ** 2 + (axis[None, None, :] - center[:, 1:, None]) ** 2
    images[:, 0] += labels[:, None, None] * 1.6 * torch.exp(-distance / 8)
    return images, labels


def trained_network(images: Tensor, labels: Tensor, epochs: int = 15, seed: int = 0) -> nn.Module:
    """A three-stage convolutional classifier with batch norm, about 6,000 parameters, fitted by Adam."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after in ((1, 8), (8, 16), (16, 32)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if after < 32 else [nn.AdaptiveAvgPool2d(1)]
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 2))
        adam = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-4)
        for _ in range(epochs):
            for picked in torch.randperm(len(images)).split(32):
                adam.zero_grad()
                nn.functional.cross_entropy(model(images[picked]), labels[picked]).backward()
                adam.step()
    return model.eval()
