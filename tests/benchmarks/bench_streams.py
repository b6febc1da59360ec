"""Streams and tables of a million rows: rows a second, memory, and whether a stream that is resumed goes on exactly.

uv run python tests/benchmarks/bench_streams.py [rows]
"""

import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import high_water
from PIL import Image

import vlm_data

BATCH = 256


def main(rows: int = 1_000_000) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Image.new("RGB", (32, 32), "red").save(folder / "0.png")
        write_json_lines(folder / "rows.jsonl", rows)
        write_tar(folder / "rows.tar", (folder / "0.png").read_bytes(), rows // 50)
        write_csv(folder / "rows.csv", rows)
        for file in ("rows.jsonl", "rows.tar"):
            read(folder / file)
        # In a process of its own, whose memory nothing else has used.
        subprocess.run([sys.executable, __file__, "csv", str(folder / "rows.csv")], check=True)


def read(path: Path) -> None:
    started = time.perf_counter()
    stream = vlm_data.stream(path)
    opened = time.perf_counter() - started
    loader = stream.loader(BATCH, collate=lambda rows: [row["id"] for row in rows])
    middle, ids, early = len(loader) // 3, [], high_water.reset()
    started = time.perf_counter()
    for number, batch in enumerate(loader):
        if number == middle:
            state = json.dumps(loader.state())
            early = high_water.mark()
        elif number > middle:
            ids.append(batch)
    rate = len(stream) / (time.perf_counter() - started)
    # The list of what followed, kept to compare, is not the stream's.
    grown = high_water.mark() - early - sys.getsizeof(ids) - sum(map(size, ids))
    again = vlm_data.stream(path).loader(BATCH, collate=lambda rows: [row["id"] for row in rows])
    again.restore(json.loads(state))
    exact = all(one == other for one, other in zip(again, ids, strict=True))
    print(
        f"{path.suffix:6} {len(stream):>9,} rows: opened in {opened:.1f} s, {rate:,.0f} rows/s in one process, "
        f"{grown / 2**20:.0f} MiB more at the end than after a third, resumed from {len(state)} bytes "
        f"{'exactly' if exact else 'WITH OTHER ROWS'}"
    )


def size(batch: list[str]) -> int:
    return sys.getsizeof(batch) + sum(map(sys.getsizeof, batch))


def table(path: str) -> None:
    before = high_water.reset()
    started = time.perf_counter()
    rows = vlm_data.open(path)
    seconds = time.perf_counter() - started
    more = (high_water.mark() - before) / 2**20
    print(f".csv   {len(rows):>9,} rows: read in {seconds:.1f} s, {more:.0f} MiB at most (300 are asked for)")


def write_json_lines(path: Path, rows: int) -> None:
    with path.open("w") as file:
        for number in range(rows):
            file.write(json.dumps({"image": "0.png", "caption": f"text of row number {number}"}) + "\n")


def write_csv(path: Path, rows: int) -> None:
    with path.open("w") as file:
        file.write("image_name,question,answer\n")
        for number in range(rows):
            file.write(f"0.png,what is to be seen in number {number}?,text of row number {number}\n")


def write_tar(path: Path, image: bytes, rows: int) -> None:
    with tarfile.open(path, "w") as tar:
        for number in range(rows):
            for name, data in ((f"{number}.png", image), (f"{number}.txt", b"a red square")):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


if __name__ == "__main__":
    if sys.argv[1:2] == ["csv"]:
        table(sys.argv[2])
    else:
        main(*map(int, sys.argv[1:2]))
