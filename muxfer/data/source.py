"""Load the data set that a study names, or describe it where a plan needs no pixels. A process reads it once."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from muxfer.config.task import Data, DescribedData, Digits
from muxfer.data.dataset import Dataset
from muxfer.data.digits import read_digits
from muxfer.data.image_folder import find_pictures, read_folder
from muxfer.errors import BadInput
from muxfer.trial import content_hash

_loaded: dict[Any, Dataset] = {}  # the data set that was loaded last


@dataclass(frozen=True, kw_only=True)
class DataDescription:
    """The facts about data that a plan needs."""

    num_classes: int
    captions: tuple[str, ...]
    """One caption a class. Describe-only data have one caption, with as many tokens as they are said to have."""
    fingerprint: str


def describe_data(data: Data) -> DataDescription:
    """Describe data without their pixels. Describe-only data are taken as configured, others are loaded."""
    if isinstance(data, DescribedData):
        caption = " ".join(["word"] * ((data.text_tokens or 1) - 1))
        fingerprint = content_hash(["planned", dataclasses.asdict(data)])
        return DataDescription(num_classes=data.num_classes, captions=(caption,), fingerprint=fingerprint)
    loaded = load_dataset(data)
    return DataDescription(num_classes=loaded.num_classes, captions=loaded.captions, fingerprint=loaded.fingerprint)


def load_dataset(data: Data) -> Dataset:
    """Load data; BadInput for describe-only or unreadable ones. A process keeps the last set until a file changes."""
    if isinstance(data, DescribedData):
        raise BadInput(
            f"the data are planned, {data.num_samples:,} pictures of {data.channels}x{data.image_size}x"
            f"{data.image_size}, and not on this machine: plan and --dry-run need no more; to train give your own,"
            " data=image_folder data.path=FOLDER"
        )
    pictures = [] if isinstance(data, Digits) else find_pictures(data)
    stamps = tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for _, path in pictures)
    if (data, stamps) not in _loaded:
        _loaded.clear()
        _loaded[data, stamps] = read_digits() if isinstance(data, Digits) else read_folder(data, pictures)
    return _loaded[data, stamps]
