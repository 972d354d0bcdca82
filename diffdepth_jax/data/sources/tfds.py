"""Any source as written by `tools/prepare_data.py`: fewer, larger files.

Each source and split becomes a tensorflow-datasets data set in ArrayRecord format, with frames in
the source's order and equal to the source's, bit for bit:

    root/diffdepth/kitti_eigen_train/1.0.0/source.json            (what it was written from)
                                           dataset_info.json, features.json
                                           diffdepth-eigen_train.array_record-00000, -00001, ...

Images are PNG; depth and other maps are zlib-compressed float32 or uint8. Neither writing nor
reading needs TensorFlow (`tfds.features.Image` encodes arrays with TensorFlow, so it is given PNG
bytes; the usual builders buffer data above 1 GB in TensorFlow's files, so
`tfds.core.SequentialWriter` is used). Other programs can open them with
`tfds.builder_from_directory`.
"""

import contextlib
import dataclasses
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import grain
import numpy as np
from PIL import Image
from tqdm import tqdm

from diffdepth_jax import atomic
from diffdepth_jax.data import listing
from diffdepth_jax.data.io import read_json
from diffdepth_jax.data.sources import Sample, Source
from diffdepth_jax.errors import DataError, FileError, MissingFileError, naming_file

DEPTH_RANGE = (1e-3, 1e3)  # metres; the original source may have a different range
VERSION = "1.0.0"
NAME = "diffdepth"
_RECORD = "source.json"
_IMAGES = ("image", "clean_image")
_TEXTS = ("id", "condition")


@dataclasses.dataclass(frozen=True)
class Config:
    """Which prepared source to read.

    Attributes:
        root: the `--output` of `tools/prepare_data.py`.
        dataset: the name of the source that was prepared.
        split: its split; for a list file, its name without folders and `.txt`.
        check_files: check on opening that every file exists; otherwise reading a missing file
            fails.
    """

    name: Literal["tfds"] = "tfds"
    root: str = "data/tfds"
    dataset: str = "kitti"
    split: str = "train"
    check_files: bool = True

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+", self.split):
            raise ValueError(
                f"split is {self.split!r}; it must be one word: the split of the prepared source, "
                "or the name of its list file without folders and .txt"
            )


def source(split: str, root: str | Path, **options: Any) -> Source:
    """Opens a prepared source; `options` are other fields of `Config`. Errors as in `build`."""
    return build(Config(split=split, root=str(root), **options))


def build(config: Config) -> Source:
    """Opens the prepared source selected by a config.

    Raises:
        MissingFileError: if the folder or a file is missing.
        DataError: if the files are not such a data set.
    """
    root = listing.require_folder(
        Path(config.root), "set root to the --output of tools/prepare_data.py"
    )
    folder = directory(root, config.dataset, config.split)
    if not folder.is_dir():
        found = sorted(path.parent.name for path in root.glob(f"{NAME}/*/{VERSION}"))
        raise MissingFileError(
            f"{folder} does not exist: write it with tools/prepare_data.py {config.dataset}; "
            f"existing data sets (DATASET_SPLIT): {', '.join(found) or 'none'}"
        )
    return Prepared(folder, config.split, check_files=config.check_files)


class Prepared:
    """The frames of one folder."""

    def __init__(self, folder: Path, split: str, *, check_files: bool = True):
        import tensorflow_datasets as tfds  # imported here, as it takes half a second

        self._folder = folder
        # For damaged or unsuitable files, errors of four libraries can occur.
        try:
            builder = tfds.builder_from_directory(folder)
            files = [str(path) for path in builder.info.splits[split].filepaths]
        except Exception as error:
            raise DataError(f"{folder} cannot be read ({error}): {_AGAIN}") from error
        if check_files:
            listing.require_files(files, str(folder), _AGAIN)
        # tensorflow-datasets prefers OpenCV if it is installed; here Pillow is always used.
        images = [name for name in _IMAGES if name in builder.info.features]
        decoders = {name: tfds.decode.SkipDecoding() for name in images}
        self._frames = builder.as_data_source(split, decoders=decoders)

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        try:
            return decode(self._frames[index])
        except Exception as error:
            raise DataError(
                f"{self._folder}, frame {index} cannot be read ({error}): {_AGAIN}"
            ) from error


_AGAIN = "truncated or damaged, delete the folder and prepare it again"


def directory(root: Path, dataset: str, split: str) -> Path:
    """Folder of a prepared source; `split` may be the path of a list file."""
    return root / NAME / f"{dataset}_{split_name(split)}" / VERSION


def split_name(split: str) -> str:
    """A split as one word: for a list file, its name without folders and suffix."""
    return re.sub(r"\W", "_", Path(split).stem if split.endswith(".txt") else split)


def features(sample: Sample) -> Any:
    """The `tfds.features.FeaturesDict` for frames with the fields of `sample`."""
    import tensorflow_datasets as tfds

    def of(name: str, value: Any) -> Any:
        if name in _IMAGES:
            return tfds.features.Image(shape=(None, None, 3), encoding_format="png")
        if name in _TEXTS:
            return tfds.features.Text()
        value = np.asarray(value)
        # As bytes: a tf.Example list of numbers would be slower, and is float32 only.
        encoding = "zlib" if value.ndim == 2 else "bytes"
        sides = value.shape if name == "intrinsics" else (None,) * value.ndim
        return tfds.features.Tensor(shape=sides, dtype=value.dtype, encoding=encoding)

    return tfds.features.FeaturesDict({name: of(name, value) for name, value in sample.items()})


def encode(sample: Sample) -> dict[str, Any]:
    """Encodes a frame for writing with `features`."""

    def of(name: str, value: Any) -> Any:
        if name in _TEXTS:
            return value
        if name not in _IMAGES:
            return np.asarray(value)
        file = io.BytesIO()
        Image.fromarray(value).save(file, "PNG")
        file.seek(0)
        return file

    return {name: of(name, value) for name, value in sample.items()}


def decode(frame: dict[str, Any]) -> Sample:
    """Decodes what tensorflow-datasets reads, with images still as PNG, to the source's frame."""

    def of(name: str, value: Any) -> Any:
        if name in _TEXTS:
            return value.decode()
        if name in _IMAGES:
            return np.asarray(Image.open(io.BytesIO(value)))
        if name == "baseline":
            return float(value)
        return value

    return cast(Sample, {name: of(name, value) for name, value in frame.items()})


def write(
    source: Source,
    folder: Path,
    split: str,
    record: dict[str, Any],
    *,
    frames_per_file: int = 1000,
    num_threads: int = 2,
    progress: bool = False,
) -> None:
    """Writes the frames of a source, resuming after an interrupted call.

    The data set is built next to `folder` and renamed at the end, so `folder` is complete or
    absent.

    Args:
        source: any source.
        folder: as returned by `directory`; must not exist.
        split: name of the split.
        record: JSON-compatible description of the frames, stored in the folder. An interrupted call
            is only resumed if this is unchanged.
        frames_per_file: frames per file; after an interruption, an unfinished file is written
            again.
        num_threads: threads that read and encode.
        progress: whether to show a progress bar.

    Raises:
        DataError: if frames differ in their fields, or the folder was begun with something else.
        DataError, FileError: as raised by the source, or if writing fails.
    """
    import tensorflow_datasets as tfds

    started = folder.with_name(f"incomplete_{folder.name}")
    with naming_file(started, "written"):
        started.mkdir(parents=True, exist_ok=True)
    atomic.remove_leftovers(started)
    if (started / _RECORD).exists():
        require_same(started, record)
    else:
        atomic.write_text(started / _RECORD, json.dumps(record, indent=2) + "\n")
    first = source[0]
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=NAME,
        config_name=folder.parent.name,
        version=tfds.core.Version(folder.name),
        data_dir=str(started),
        module_name="",
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features(first), disable_shuffling=True)
    writer = tfds.core.SequentialWriter(
        info, frames_per_file, overwrite=False, file_format="array_record"
    )
    writer.initialize_splits([split], fail_if_exists=False)
    done = info.splits[split].num_examples  # of finished files
    options = grain.ReadOptions(num_threads, prefetch_buffer_size=2 * num_threads)
    encoded = grain.MapDataset.range(done, len(source)).map(lambda index: encode(source[index]))
    frames = encoded.to_iter_dataset(options) if done < len(source) else ()
    bar = tqdm(frames, initial=done, total=len(source), unit=" frames", disable=not progress)
    for frame in bar:
        if frame.keys() != first.keys():
            raise DataError(
                f"frame {frame['id']} has fields {sorted(frame)}, but the first has "
                f"{sorted(first)}: prepare frames of one kind at a time, using list files"
            )
        with _writing(started):
            writer.add_examples({split: [frame]})
    with _writing(started):
        writer.close_all()
    with naming_file(folder, "written"):
        os.rename(started, folder)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Converts write errors; ArrayRecord reports a full disk as a RuntimeError."""
    try:
        with naming_file(folder, "written"):
            yield
    except RuntimeError as error:
        raise FileError(f"{folder} cannot be written: {error}") from error


def require_same(folder: Path, record: dict[str, Any]) -> None:
    """Rejects a folder that was written from something else.

    Raises:
        DataError: with the remedy.
    """
    written = read_json(folder / _RECORD)
    if written != record:
        raise DataError(
            f"{folder} was written from {written}, not from {record}: choose another --output or "
            "delete it"
        )
