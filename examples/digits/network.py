"""Handwritten digits and a small network that reads them, in NumPy alone.

All parameters lie in one vector, so that one all-reduce averages the whole gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

SIZES = (64, 256, 128, 10)  # pixels, two hidden layers, classes
TEST_SHARE = 0.2


class Digits(NamedTuple):
    """Images (examples x 64, from 0 to 1) and labels (0 to 9)."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load() -> Digits:
    """The digits that come with scikit-learn, split alike in every process."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = np.split(order, [int(TEST_SHARE * len(labels))])
    images = (images / 16).astype(np.float32)
    return Digits(images[train], labels[train], images[test], labels[test])


def parameter_count(sizes: tuple[int, ...] = SIZES) -> int:
    return sum((rows + 1) * columns for rows, columns in pairwise(sizes))


def layers(vector: np.ndarray, sizes: tuple[int, ...] = SIZES) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Weights and biases of each layer: views of `vector`."""
    start = 0
    for rows, columns in pairwise(sizes):
        middle, end = start + rows * columns, start + (rows + 1) * columns
        yield vector[start:middle].reshape(rows, columns), vector[middle:end]
        start = end


def initial_parameters(
    seed: int, sizes: tuple[int, ...] = SIZES, dtype: type[np.floating] = np.float32
) -> np.ndarray:
    """The same in every process that has the same seed (weights after He et al., 2015; zero biases)."""
    random = np.random.default_rng(seed)
    vector = np.zeros(parameter_count(sizes), dtype)
    for weights, _ in layers(vector, sizes):
        weights[:] = random.normal(0, np.sqrt(2 / len(weights)), weights.shape)
    return vector


def forward(
    vector: np.ndarray, images: np.ndarray, sizes: tuple[int, ...] = SIZES
) -> tuple[list[np.ndarray], np.ndarray]:
    """What goes into each layer, and what comes out of the last one."""
    inputs, values = [], images
    for weights, biases in layers(vector, sizes):
        inputs.append(values)
        outputs = values @ weights + biases
        values = np.maximum(outputs, 0)
    return inputs, outputs


def loss_and_gradient(
    vector: np.ndarray, images: np.ndarray, labels: np.ndarray, sizes: tuple[int, ...] = SIZES
) -> tuple[float, np.ndarray]:
    """Mean cross-entropy, and its gradient as one vector."""
    inputs, logits = forward(vector, images, sizes)
    logits = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    rows = np.arange(len(labels))
    loss = -float(log_probabilities[rows, labels].mean())

    # What the loss changes by with the output of a layer, from the last layer to the first.
    slope = np.exp(log_probabilities)
    slope[rows, labels] -= 1
    slope /= len(labels)
    gradient = np.empty_like(vector)
    backwards = zip(
        reversed(list(layers(vector, sizes))),
        reversed(list(layers(gradient, sizes))),
        reversed(inputs),
        strict=True,
    )
    for (weights, _), (weights_gradient, biases_gradient), layer_inputs in backwards:
        np.matmul(layer_inputs.T, slope, out=weights_gradient)
        slope.sum(axis=0, out=biases_gradient)
        slope = (slope @ weights.T) * (layer_inputs > 0)
    return loss, gradient


def accuracy(
    vector: np.ndarray, images: np.ndarray, labels: np.ndarray, sizes: tuple[int, ...] = SIZES
) -> float:
    """The share of images whose digit the network tells."""
    _, logits = forward(vector, images, sizes)
    return float((logits.argmax(axis=1) == labels).mean())
