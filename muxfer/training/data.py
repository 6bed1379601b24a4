"""Pictures in memory, and the stream of batches that training draws from them.

Every batch, with its times, noise and dropped labels, is a function of (study seed, replicate, step), computed on a CPU
generator: all settings of a study see the same, and a resume needs no generator state. Refuses a folder that can't
be read completely: a picture that is silently left out would make another study.

Axes: N pictures, B batch, C channels, H and W pixels.
"""

import dataclasses
import gzip
import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from muxfer.errors import BadInput
from muxfer.task import Data, Digits, ImageFolder, Planned
from muxfer.trial import content_hash

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""By content: of the others some are programs (EPS), whatever the name of the file."""
MIN_PICTURES = 10
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS_VALIDATION_EVERY = 6
"""Of each digit's scans, in their order, every 6th is kept for validation: 1,493 train, 304 validate."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Pictures as whole numbers 0..levels (uint8) and their labels."""

    pixels_NCHW: torch.Tensor
    labels_N: torch.Tensor
    levels: int

    def __len__(self) -> int:
        return len(self.labels_N)

    def images(self, index: torch.Tensor | slice) -> torch.Tensor:
        """These pictures as float32 in [-1, 1]."""
        return self.pixels_NCHW[index].float().mul_(2 / self.levels).sub_(1)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """`fingerprint` is a hash of the content, the same under every path and on every host."""

    train: Split
    validation: Split
    class_names: tuple[str, ...]
    captions: tuple[str, ...]
    """One a class, for models that read text."""
    fingerprint: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        channels, height, width = self.train.pixels_NCHW.shape[1:]
        return channels, height, width


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's material: u is the quantile of the time (float64), y has dropped labels replaced by num_classes.

    `index` says which pictures of the split these are.
    """

    x_BCHW: torch.Tensor
    y_B: torch.Tensor
    u_B: torch.Tensor
    noise_BCHW: torch.Tensor
    index_B: torch.Tensor


class Stream:
    """Batches by step: epoch after epoch in an order of its own, a batch may span two of them."""

    def __init__(
        self, split: Split, *, num_classes: int, batch_size: int, label_dropout: float, seed: int, replicate: int
    ) -> None:
        self._split = split
        self._null_label = num_classes
        self._batch_size = batch_size
        self._label_dropout = label_dropout
        self._source = (seed, replicate)
        self._orders: dict[int, torch.Tensor] = {}

    def batch(self, step: int) -> Batch:
        index_B = self._index(step)
        generator = generator_of(*self._source, "step", step)
        u_B = torch.rand(len(index_B), generator=generator, dtype=torch.float64)
        drop_B = torch.rand(len(index_B), generator=generator) < self._label_dropout
        x_BCHW = self._split.images(index_B)
        return Batch(
            x_BCHW=x_BCHW,
            y_B=self._split.labels_N[index_B].masked_fill_(drop_B, self._null_label),
            u_B=u_B,
            noise_BCHW=torch.randn(x_BCHW.shape, generator=generator),
            index_B=index_B,
        )

    def _index(self, step: int) -> torch.Tensor:
        num_pictures = len(self._split)
        start, stop = step * self._batch_size, (step + 1) * self._batch_size
        parts = []
        for epoch in range(start // num_pictures, (stop - 1) // num_pictures + 1):
            first = epoch * num_pictures
            parts.append(self._order(epoch)[max(start - first, 0) : stop - first])
        return torch.cat(parts)

    def _order(self, epoch: int) -> torch.Tensor:
        if epoch not in self._orders:
            while len(self._orders) >= 2:
                self._orders.pop(next(iter(self._orders)))
            generator = generator_of(*self._source, "epoch", epoch)
            self._orders[epoch] = torch.randperm(len(self._split), generator=generator)
        return self._orders[epoch]


def generator_of(*content: int | str) -> torch.Generator:
    """A CPU generator seeded by the content of the arguments."""
    digest = hashlib.blake2b(repr(content).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


_loaded: dict[Any, Dataset] = {}


@dataclass(frozen=True, kw_only=True)
class About:
    """What a plan needs to know of data."""

    num_classes: int
    captions: tuple[str, ...]
    """One a class; of planned data a single one, as long as theirs."""
    fingerprint: str


def about(data: Data) -> About:
    """The data as a plan sees them: read where they are here, taken at their word where they are only planned."""
    if isinstance(data, Planned):
        caption = " ".join(["word"] * ((data.text_tokens or 1) - 1))
        fingerprint = content_hash(["planned", dataclasses.asdict(data)])
        return About(num_classes=data.num_classes, captions=(caption,), fingerprint=fingerprint)
    loaded = load(data)
    return About(num_classes=loaded.num_classes, captions=loaded.captions, fingerprint=loaded.fingerprint)


def load(data: Data) -> Dataset:
    """The data in memory; a process keeps what it loaded last, for the next trial. Raises BadInput."""
    if isinstance(data, Planned):
        raise BadInput(
            f"the data are planned, {data.num_samples:,} pictures of {data.channels}x{data.image_size}x"
            f"{data.image_size}, and not on this machine: plan and --dry-run need no more; to train give your own,"
            " data=image_folder data.path=FOLDER"
        )
    pictures = [] if isinstance(data, Digits) else _find_pictures(data)
    stamps = tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for _, path in pictures)
    if (data, stamps) not in _loaded:
        _loaded.clear()
        _loaded[data, stamps] = _read_digits() if isinstance(data, Digits) else _read_folder(data, pictures)
    return _loaded[data, stamps]


def _read_digits() -> Dataset:
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


def _find_pictures(data: ImageFolder) -> list[tuple[str, Path]]:
    """(class name, file) of every picture, in the order of their paths."""
    folder = Path(os.path.expanduser(data.path))
    if not folder.is_dir():
        raise BadInput(f"data.path {data.path}: there is no such folder")
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        flat = [("all", entry) for entry in entries if _is_picture(entry)]
        classes = {entry.name: _pictures_below(entry) for entry in entries if entry.is_dir()}
    except OSError as error:
        raise BadInput(f"data.path {data.path} can't be read: {error.strerror} ({error.filename})") from None
    empty = [name for name, files in classes.items() if not files]
    if flat and len(empty) < len(classes):
        raise BadInput(
            f"data.path {data.path} has pictures both of its own and in sub-folders: expected one sub-folder a class,"
            " or a flat folder; move one kind away"
        )
    if not flat and empty and len(empty) < len(classes):
        raise BadInput(f"data.path {data.path}: sub-folder {empty[0]} holds no pictures; remove it")
    found = flat or [(name, file) for name, files in classes.items() for file in files]
    if len(found) < MIN_PICTURES:
        kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise BadInput(
            f"data.path {data.path} holds {len(found)} pictures: expected at least {MIN_PICTURES}"
            f" ({kinds}), flat or in one sub-folder a class"
        )
    return found


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def _pictures_below(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise error

    found = []
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [file for name in names if _is_picture(file := Path(root) / name)]
    return sorted(found)


def _read_folder(data: ImageFolder, pictures: list[tuple[str, Path]]) -> Dataset:
    """Order and split follow the content of the files, not their names."""
    try:
        hashed = sorted((hashlib.sha256(file.read_bytes()).hexdigest(), name, file) for name, file in pictures)
    except OSError as error:
        raise BadInput(f"picture {error.filename} can't be read ({error.strerror})") from None
    class_names = tuple(sorted({name for _, name, _ in hashed}))
    pixels_NCHW = torch.empty(len(hashed), data.channels, data.image_size, data.image_size, dtype=torch.uint8)
    for i, (_, _, file) in enumerate(hashed):
        pixels_NCHW[i] = _decode(file, data.image_size, data.channels)
    labels_N = torch.tensor([class_names.index(name) for _, name, _ in hashed])
    digests = [digest for digest, _, _ in hashed]
    cut = max(1, round(data.validation_fraction * len(digests)))
    while cut < len(digests) and digests[cut] == digests[cut - 1]:  # never the same picture on both sides
        cut += 1
    if cut == len(digests):
        raise BadInput(
            f"data.path {data.path}: nothing is left to train on after validation took {cut} of {len(digests)}"
            " pictures; give more different ones, or lower data.validation_fraction"
        )
    return Dataset(
        train=Split(pixels_NCHW=pixels_NCHW[cut:], labels_N=labels_N[cut:], levels=255),
        validation=Split(pixels_NCHW=pixels_NCHW[:cut], labels_N=labels_N[:cut], levels=255),
        class_names=class_names,
        captions=tuple(f"a picture of {name}" for name in class_names),
        fingerprint=content_hash(["image_folder", [[digest, name] for digest, name, _ in hashed]]),
    )


def _decode(file: Path, image_size: int, channels: int) -> torch.Tensor:
    """The picture upright, its centre square resized with antialiasing, on white where it is transparent: [C, H, W]."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file, formats=FORMATS) as opened:
            # A JPEG decodes faster at a half or a quarter; twice the size wanted keeps the antialiasing.
            opened.draft(None, (2 * image_size, 2 * image_size))
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith("I"):  # 16 bits a pixel: conversion would clip instead of scale
                picture = Image.fromarray((np.asarray(picture, dtype=np.float64) / 257).round().astype(np.uint8))
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            picture = picture.convert("L" if channels == 1 else "RGB")
            picture = ImageOps.fit(picture, (image_size, image_size), Image.Resampling.BICUBIC)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadInput(f"picture {file} can't be read ({error}); repair or remove it") from None
    return torch.from_numpy(np.array(picture)).reshape(image_size, image_size, channels).permute(2, 0, 1)
