"""Source for a folder of image files, at any depth, without captions and boxes."""

import os
import pathlib
from collections.abc import Iterable

from regionclip_jax.data.sources.image_files import ENDINGS, read_image
from regionclip_jax.data.sources.records import ImageTextRecord, PackedTexts


class ImageFolderSource:
    """Images of a folder and its folders, by name; links to folders are not followed.

    Attributes:
        report: number of files with other endings.

    Args:
        path: of the folder.

    Raises:
        ValueError: not a folder, or one without image files.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = pathlib.Path(path)
        if not self._path.is_dir():
            raise ValueError(f"path: {self._path} is a file, expected a folder of image files")
        names, others = [], 0
        for folder, _, files in os.walk(self._path):
            for file in files:
                if not file.lower().endswith(ENDINGS):
                    others += 1
                    continue
                names.append(pathlib.Path(folder, file).relative_to(self._path).as_posix())
        if not names:
            raise ValueError(
                f"path: {self._path} has no image file, expected files that end in "
                f"{', '.join(ENDINGS)}; correct path"
            )
        self._names = PackedTexts(sorted(names))
        self.report = {"images": len(names), "other_files": others}

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> ImageTextRecord:
        name = self._names[index]
        return ImageTextRecord(name, read_image(self._path / name, repr(self), name), ())

    def index_parts(self) -> Iterable[bytes]:
        """Yield the names; see ``fingerprint``."""
        return self._names.index_parts()

    def sizes(self) -> None:
        """Return None: the sizes are unknown without opening the images."""
        return None

    def __repr__(self) -> str:
        return f"ImageFolderSource({str(self._path)!r})"
