"""From a data configuration to a data set: read once a process."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from muxfer.config.task import Data, DescribedData, Digits
from muxfer.data.dataset import Dataset
from muxfer.data.digits import read_digits
from muxfer.data.image_folder import find_pictures, read_folder
from muxfer.errors import BadInput
from muxfer.trial import content_hash

_loaded: dict[Any, Dataset] = {}


@dataclass(frozen=True, kw_only=True)
class DataDescription:
    """What a plan needs to know of data."""

    num_classes: int
    captions: tuple[str, ...]
    """One a class; of planned data a single one, as long as theirs."""
    fingerprint: str


def describe_data(data: Data) -> DataDescription:
    """The data as a plan sees them: read where they are here, taken at their word where they are only planned."""
    if isinstance(data, DescribedData):
        caption = " ".join(["word"] * ((data.text_tokens or 1) - 1))
        fingerprint = content_hash(["planned", dataclasses.asdict(data)])
        return DataDescription(num_classes=data.num_classes, captions=(caption,), fingerprint=fingerprint)
    loaded = load_dataset(data)
    return DataDescription(num_classes=loaded.num_classes, captions=loaded.captions, fingerprint=loaded.fingerprint)


def load_dataset(data: Data) -> Dataset:
    """The data in memory; a process keeps what it loaded last, for the next trial. Raises BadInput."""
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
