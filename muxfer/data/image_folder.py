"""Read a folder of pictures: one sub-folder a class, or a flat folder that is one class.

A folder that can't be read completely is refused: leaving out a picture without a word would change the study.

Axes: N pictures, C channels, H and W pixels.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from muxfer.config.task import ImageFolder
from muxfer.data.dataset import Dataset, Split
from muxfer.errors import BadInput
from muxfer.trial import content_hash

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""The formats that are decoded, by content. Some others are programs (EPS), whatever the file's name says."""
MIN_PICTURES = 10
FLAT_CLASS = "all"


def find_pictures(data: ImageFolder) -> list[tuple[str, Path]]:
    """(class name, file) of every picture, in the order of their paths. Raises BadInput for an unclear layout."""
    folder = Path(os.path.expanduser(data.path))
    if not folder.is_dir():
        raise BadInput(f"data.path {data.path}: there is no such folder")
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        flat = [(FLAT_CLASS, entry) for entry in entries if _is_picture(entry)]
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
    pictures = flat or [(name, file) for name, files in classes.items() for file in files]
    if len(pictures) < MIN_PICTURES:
        suffixes = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        expected = f"at least {MIN_PICTURES} ({suffixes}), flat or in one sub-folder a class"
        raise BadInput(f"data.path {data.path} holds {len(pictures)} pictures: expected {expected}")
    return pictures


def read_folder(data: ImageFolder, pictures: list[tuple[str, Path]]) -> Dataset:
    """Decode the pictures. Their order, and so the split, follows the files' content, not their names. Copies of one
    picture are all on one side of the split. Raises BadInput for a picture that can't be read, and when none is left to
    train on.
    """
    try:
        hashed = sorted((hashlib.sha256(file.read_bytes()).hexdigest(), name, file) for name, file in pictures)
    except OSError as error:
        raise BadInput(f"picture {error.filename} can't be read ({error.strerror})") from None
    class_names = tuple(sorted({name for _, name, _ in hashed}))
    pixels_NCHW = torch.empty(len(hashed), data.channels, data.image_size, data.image_size, dtype=torch.uint8)
    for i, (_, _, file) in enumerate(hashed):
        pixels_NCHW[i] = decode_picture(file, data.image_size, data.channels)
    labels_N = torch.tensor([class_names.index(name) for _, name, _ in hashed])
    num_validation = _num_validation(data, [digest for digest, _, _ in hashed])
    return Dataset(
        train=Split(pixels_NCHW=pixels_NCHW[num_validation:], labels_N=labels_N[num_validation:], levels=255),
        validation=Split(pixels_NCHW=pixels_NCHW[:num_validation], labels_N=labels_N[:num_validation], levels=255),
        class_names=class_names,
        captions=tuple(f"a picture of {name}" for name in class_names),
        fingerprint=content_hash(["image_folder", [[digest, name] for digest, name, _ in hashed]]),
    )


def decode_picture(file: Path, image_size: int, channels: int) -> torch.Tensor:
    """Decode a picture [C, H, W], uint8: upright, its centre square, resized with antialiasing. Transparent pixels
    become white. Raises BadInput when the picture can't be read.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file, formats=FORMATS) as opened:
            # A JPEG decodes faster at a half or a quarter. Twice the final size keeps the antialiasing.
            opened.draft(None, (2 * image_size, 2 * image_size))
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith("I"):  # 16 bits a pixel: Pillow's conversion would clip instead of scale
                picture = Image.fromarray((np.asarray(picture, dtype=np.float64) / 257).round().astype(np.uint8))
            if picture.has_transparency_data:
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
            picture = picture.convert("L" if channels == 1 else "RGB")
            picture = ImageOps.fit(picture, (image_size, image_size), Image.Resampling.BICUBIC)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadInput(f"picture {file} can't be read ({error}); repair or remove it") from None
    return torch.from_numpy(np.array(picture)).reshape(image_size, image_size, channels).permute(2, 0, 1)


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def _pictures_below(folder: Path) -> list[Path]:
    """The pictures in a folder and its sub-folders, without hidden ones. Raises OSError for an unreadable folder."""

    def refuse(error: OSError) -> None:
        raise error

    pictures = []
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        pictures += [file for name in names if _is_picture(file := Path(root) / name)]
    return sorted(pictures)


def _num_validation(data: ImageFolder, digests: list[str]) -> int:
    """How many of the first pictures validate. Copies of a picture, which follow each other, are not separated."""
    num = max(1, round(data.validation_fraction * len(digests)))
    while num < len(digests) and digests[num] == digests[num - 1]:
        num += 1
    if num == len(digests):
        raise BadInput(
            f"data.path {data.path}: nothing is left to train on after validation took {num} of {len(digests)}"
            " pictures; give more different ones, or lower data.validation_fraction"
        )
    return num
