import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from muxfer.config.task import Digits, ImageFolder
from muxfer.data.image_folder import decode_picture
from muxfer.data.source import load_dataset
from muxfer.data.stream import Stream
from tests.refusals import refused


def stream(digits, **changes):
    options = {"num_classes": 10, "batch_size": 64, "label_dropout": 0.1, "seed": 0, "replicate": 0}
    return Stream(digits.train, **(options | changes))


def equal(left, right) -> bool:
    return all(
        torch.equal(getattr(left, name), getattr(right, name)) for name in ("x_BCHW", "y_B", "u_B", "noise_BCHW")
    )


def test_the_digits_equal_scikit_learns(digits):
    from sklearn.datasets import load_digits

    theirs = load_digits()
    pixels = torch.cat([digits.train.pixels_NCHW, digits.validation.pixels_NCHW]).reshape(-1, 64).tolist()
    labels = torch.cat([digits.train.labels_N, digits.validation.labels_N]).tolist()
    ours = sorted([*row, label] for row, label in zip(pixels, labels, strict=True))
    assert ours == sorted(
        [*row, label] for row, label in zip(theirs.data.tolist(), theirs.target.tolist(), strict=True)
    )


def test_digits_are_split_by_class_and_scaled(digits):
    assert (len(digits.train), len(digits.validation), digits.num_classes) == (1493, 304, 10)
    assert digits.image_shape == (1, 8, 8)
    assert torch.bincount(digits.validation.labels_N).min() >= 29
    images = digits.train.images(slice(None))
    assert (images.min().item(), images.max().item(), images.dtype) == (-1, 1, torch.float32)


def test_the_digits_fingerprint_is_pinned(digits):
    """Every trial key holds it: another value here means other trials everywhere."""
    assert digits.fingerprint == "e5a7a14269ce98ec"


def test_data_is_read_once_a_process(digits):
    assert load_dataset(Digits(name="digits")) is load_dataset(Digits(name="digits"))


def test_every_epoch_contains_every_picture_once(digits):
    batches = stream(digits)
    index = torch.cat([batches.index(step) for step in range(50)])
    first, second = index[:1493], index[1493:2986]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(1493))
    assert first.tolist() != second.tolist()


def test_a_batch_may_span_epochs_or_exceed_the_data(digits):
    batches = stream(digits, batch_size=4000)
    index = torch.cat([batches.index(step) for step in range(2)])
    assert torch.bincount(index).tolist() == [5 + (i in index[5 * 1493 :].tolist()) for i in range(1493)]


def test_a_batch_depends_on_its_step_alone(digits):
    visited = stream(digits)
    for step in (3, 100, 1, 57):
        visited.batch(step)
    assert equal(visited.batch(57), stream(digits).batch(57))


@pytest.mark.parametrize("changes", [{"seed": 1}, {"replicate": 1}])
def test_another_seed_or_replicate_gives_other_batches(digits, changes):
    left, right = stream(digits).batch(5), stream(digits, **changes).batch(5)
    for name in ("x_BCHW", "u_B", "noise_BCHW"):
        assert not torch.equal(getattr(left, name), getattr(right, name))


def test_label_dropout_changes_only_labels_at_its_rate(digits):
    kept, dropped = stream(digits, label_dropout=0.0), stream(digits, label_dropout=0.25)
    share = []
    for step in range(100):
        left, right = kept.batch(step), dropped.batch(step)
        assert torch.equal(left.noise_BCHW, right.noise_BCHW)
        assert left.y_B.max() < 10
        null = right.y_B == 10
        assert torch.equal(left.y_B[~null], right.y_B[~null])
        share.append(null.double().mean().item())
    assert sum(share) / len(share) == pytest.approx(0.25, abs=0.02)
    assert digits.train.labels_N.max() == 9


# --- folders of pictures


def picture(seed: int, size=(20, 12), mode="RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def folder(tmp_path):
    """Two classes of ten pictures each, of several formats."""
    root = tmp_path / "pictures"
    for label, name in enumerate(("cats", "dogs")):
        (root / name).mkdir(parents=True)
        for i in range(10):
            picture(100 * label + i).save(root / name / f"{i}.{('png', 'jpg', 'webp', 'bmp')[i % 4]}")
    return root


def config(path, **changes):
    options = {"image_size": 8, "channels": 3, "validation_fraction": 0.2}
    return ImageFolder(name="image_folder", path=str(path), **(options | changes))


def test_sub_folders_are_classes(folder):
    loaded = load_dataset(config(folder))
    assert (len(loaded.train), len(loaded.validation)) == (16, 4)
    assert loaded.class_names == ("cats", "dogs")
    assert loaded.image_shape == (3, 8, 8)
    assert sorted(torch.cat([loaded.train.labels_N, loaded.validation.labels_N]).tolist()) == [0] * 10 + [1] * 10


def test_a_flat_folder_is_one_class(folder):
    loaded = load_dataset(config(folder / "cats", channels=1))
    assert (loaded.num_classes, loaded.image_shape) == (1, (1, 8, 8))


def test_the_fingerprint_depends_on_content_and_classes_not_on_names_or_times(folder, tmp_path):
    before = load_dataset(config(folder))
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    for i, file in enumerate(sorted((moved / "cats").iterdir())):
        file.rename(file.with_name(f"z{99 - i}{file.suffix}"))
        os.utime(moved / "cats" / f"z{99 - i}{file.suffix}", (0, 0))
    after = load_dataset(config(moved))
    assert after.fingerprint == before.fingerprint
    assert torch.equal(after.train.pixels_NCHW, before.train.pixels_NCHW)
    assert torch.equal(after.validation.labels_N, before.validation.labels_N)

    picture(999).save(moved / "cats" / "z99.png")
    changed = load_dataset(config(moved)).fingerprint
    (moved / "cats").rename(moved / "lions")
    assert len({before.fingerprint, changed, load_dataset(config(moved)).fingerprint}) == 3


def test_a_picture_is_upright_cropped_to_its_centre_and_converted(folder):
    bars = np.zeros((8, 24, 3), dtype=np.uint8)
    bars[:, 8:16] = (255, 0, 0)
    Image.fromarray(bars).save(folder / "wide.png")
    pixels = decode_picture(folder / "wide.png", 4, 3)
    assert pixels[0, :, 1:3].min() > 240
    assert pixels[1:].max() == 0

    turned = Image.fromarray(np.repeat(np.array([[255, 0]], dtype=np.uint8), 8, axis=0).repeat(4, axis=1))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter clockwise: its left side becomes the top
    turned.save(folder / "turned.jpg", exif=exif, quality=100)
    pixels = decode_picture(folder / "turned.jpg", 8, 1)
    assert pixels[0, 0].float().mean() > 240
    assert pixels[0, -1].float().mean() < 15


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK", "LA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_is_converted(tmp_path, mode, channels):
    file = tmp_path / f"picture.{'tif' if mode == 'CMYK' else 'png'}"
    picture(0, mode=mode).save(file)
    assert decode_picture(file, 8, channels).shape == (channels, 8, 8)


def test_sixteen_bits_are_scaled_and_transparency_is_white(tmp_path):
    Image.fromarray(np.full((8, 8), 32768, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert decode_picture(tmp_path / "deep.png", 8, 1).unique().tolist() == [128]
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert decode_picture(tmp_path / "clear.png", 8, 3).unique().tolist() == [255]


def test_copies_of_a_picture_are_on_one_side_of_the_split(folder):
    for i in range(30):
        shutil.copy(folder / "cats" / "0.png", folder / "cats" / f"copy{i}.png")
    loaded = load_dataset(config(folder, validation_fraction=0.5))
    sides = [set(map(bytes, split.pixels_NCHW.flatten(1).numpy())) for split in (loaded.train, loaded.validation)]
    assert not sides[0] & sides[1]


def test_a_missing_folder_or_one_without_or_with_too_few_pictures_is_refused(tmp_path, folder):
    with refused("no such folder"):
        load_dataset(config(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    with refused("0 pictures"):
        load_dataset(config(tmp_path / "empty"))
    shutil.rmtree(folder / "dogs")
    (folder / "cats" / "0.png").unlink()
    with refused("9 pictures: expected at least 10"):
        load_dataset(config(folder))


def test_an_unreadable_picture_is_named(folder):
    file = folder / "dogs" / "1.jpg"
    for broken in (file.read_bytes()[:400], b"", b"not a picture"):
        file.write_bytes(broken)
        with refused("dogs/1.jpg"):
            load_dataset(config(folder))


def test_an_empty_class_and_a_mixed_folder_are_refused(folder):
    (folder / "birds").mkdir()
    with refused("birds"):
        load_dataset(config(folder))
    (folder / "birds").rmdir()
    picture(5).save(folder / "stray.png")
    with refused("sub-folders"):
        load_dataset(config(folder))


def test_hidden_files_are_no_pictures(folder):
    before = load_dataset(config(folder)).fingerprint
    for hidden in (folder / ".thumbnails", folder / "cats" / ".thumbnails"):
        hidden.mkdir()
        picture(1).save(hidden / "a.png")
    (folder / "cats" / "._0.png").write_bytes(b"resource fork")
    assert load_dataset(config(folder)).fingerprint == before
