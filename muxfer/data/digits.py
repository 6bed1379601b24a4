"""Read the digits that scikit-learn ships: 1,797 real grayscale scans of 8 x 8 pixels. Axes: N pictures, C channels, H
and W pixels.
"""

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
LEVELS = 16
NUM_PIXELS = 64
VALIDATION_EVERY = 6
"""Every 6th scan of each digit, in scikit-learn's order, is for validation: 1,493 train, 304 validate."""


def read_digits() -> Dataset:
    """The digits, split by class. Raises BadInput when scikit-learn is not installed."""
    table = _read_table()
    pixels_NCHW = torch.from_numpy(table[:, :NUM_PIXELS].astype(np.uint8)).reshape(-1, 1, 8, 8)
    labels_N = torch.from_numpy(table[:, NUM_PIXELS].astype(np.int64))
    validates_N = _rank_within_class(labels_N) % VALIDATION_EVERY == 0
    content = hashlib.sha256(pixels_NCHW.numpy().tobytes() + labels_N.to(torch.uint8).numpy().tobytes()).hexdigest()
    return Dataset(
        train=Split(pixels_NCHW=pixels_NCHW[~validates_N], labels_N=labels_N[~validates_N], levels=LEVELS),
        validation=Split(pixels_NCHW=pixels_NCHW[validates_N], labels_N=labels_N[validates_N], levels=LEVELS),
        class_names=tuple(str(label) for label in range(len(DIGIT_WORDS))),
        captions=tuple(f"a scan of the digit {word}" for word in DIGIT_WORDS),
        fingerprint=content_hash(["digits", content]),
    )


def _read_table() -> np.ndarray:
    """Rows of 64 pixels and a label. Read directly, because `import sklearn` takes 1.2 s and the file 6 ms."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise BadInput("data=digits needs scikit-learn, which has the scans: pip install scikit-learn")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if file.exists():
        with gzip.open(file, "rt") as lines:
            return np.loadtxt(lines, delimiter=",")
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return np.column_stack([loaded.data, loaded.target])


def _rank_within_class(labels_N: torch.Tensor) -> torch.Tensor:
    """The number of earlier pictures with the same label [N]."""
    rank_N = torch.zeros_like(labels_N)
    for label in range(len(DIGIT_WORDS)):
        rank_N[labels_N == label] = torch.arange(int((labels_N == label).sum()))
    return rank_N
