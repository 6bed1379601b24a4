"""The digits that scikit-learn ships: 1,797 real grayscale images of 8 x 8 pixels."""

import gzip
import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import torch

from muxfer.data.dataset import Dataset, Split
from muxfer.errors import BadInput
from muxfer.trial import content_hash

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS_VALIDATION_EVERY = 6
"""Of each digit's scans, in their order, every 6th is kept for validation: 1,493 train, 304 validate."""


def read_digits() -> Dataset:
    table = _digits_table()
    pixels_NCHW = torch.from_numpy(table[:, :64].astype(np.uint8)).reshape(-1, 1, 8, 8)
    labels_N = torch.from_numpy(table[:, 64].astype(np.int64))
    rank_N = torch.zeros_like(labels_N)
    for label in range(10):
        rank_N[labels_N == label] = torch.arange(int((labels_N == label).sum()))
    held_out = rank_N % DIGITS_VALIDATION_EVERY == 0
    content = hashlib.sha256(pixels_NCHW.numpy().tobytes() + labels_N.to(torch.uint8).numpy().tobytes()).hexdigest()
    return Dataset(
        train=Split(pixels_NCHW=pixels_NCHW[~held_out], labels_N=labels_N[~held_out], levels=16),
        validation=Split(pixels_NCHW=pixels_NCHW[held_out], labels_N=labels_N[held_out], levels=16),
        class_names=tuple(str(label) for label in range(10)),
        captions=tuple(f"a scan of the digit {word}" for word in DIGIT_WORDS),
        fingerprint=content_hash(["digits", content]),
    )


def _digits_table() -> np.ndarray:
    """Rows of 64 pixels and a label. `import sklearn` takes 1.2 s, its table 6 ms: read the file where it lies."""
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise BadInput("data=digits needs scikit-learn, which has the scans: pip install scikit-learn")
    file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if file.exists():
        with gzip.open(file, "rt") as lines:
            return np.loadtxt(lines, delimiter=",")
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return np.column_stack([loaded.data, loaded.target])
