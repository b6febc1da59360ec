"""WebDataset: tar files in which neighbours of one name, up to its first dot, are a sample: 7.jpg, 7.txt or 7.json."""

import tarfile
from collections.abc import Iterator

from vlm_data.image_folder import ImageFolder
from vlm_data.request import Request
from vlm_data.schema import DataError, Rejected
from vlm_data.streams.tar_shard import TarShard


def read(asked: Request) -> Iterator[dict | Rejected]:
    """One row for each sample of a shard or a folder of shards; its texts are its .txt (a caption) or its .json's.

    Of a shard that is damaged somewhere, what comes before is read; one that is no tar at all raises DataError.
    """
    for path in asked.files(".tar"):
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        try:
            shard = TarShard(path, asked.columns, ImageFolder(asked.image_dir or path.parent).root)
        except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError) as error:
            raise DataError(f"{path}: not readable as tar ({str(error)[:200]})") from error
        yield from shard.read(range(len(shard)))
