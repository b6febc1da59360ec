"""Malformed input of every source gives rows, rejected rows or one clear error: no traceback, no hang, nothing read
outside of the folder. 500 inputs here; VLM_DATA_FUZZ sets another number, as `nox -s fuzz` does."""

import io
import json
import os
import random
import tarfile
import threading
from contextlib import contextmanager
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import vlm_data
from vlm_data import DataError, ImageError, Rejected
from vlm_data.opening import READERS

INPUTS = int(os.environ.get("VLM_DATA_FUZZ", 500))
SECONDS = 120  # for one input: far more than any takes, so that only a hang reaches it

PNG = io.BytesIO()
Image.new("RGB", (4, 4), "red").save(PNG, "PNG")
SECRET = io.BytesIO()
Image.new("RGB", (5, 3), "blue").save(SECRET, "PNG")

NAMES = ["a.png", "../secret.png", "/etc/passwd", "link.png", "loop/a.png", "out/secret.png", "a\0.png", "", "pipe.png"]
NAMES += [".", "..", "a.png/b.png", "https://example.org/a.png", "x" * 300 + ".png", "a\ud800.png"]


def mostly(right, wrong):
    """Seldom the wrong one. (Unlike one_of, which would flatten the choices within choices to thousands.)"""
    return st.integers(0, 15).flatmap(lambda roll: wrong if roll == 15 else right)


name = mostly(st.sampled_from(["a.png", "b.png", "c.png", "sub/c.png"]), st.sampled_from(NAMES))
odd_text = st.sampled_from(["", " ", "<image>", "a,b", '"', "x" * 200_000, "\0", "\ud800", "é\u2028"])
text = mostly(st.sampled_from(["a dog", "two cats", "what is it?"]), st.one_of(odd_text, st.text(max_size=8)))
scalar = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), name, text)
KEYS = [
    "image",
    "images",
    "image_id",
    "file_name",
    "question",
    "answers",
    "caption",
    "messages",
    "role",
    "content",
    "type",
]
value = st.recursive(
    scalar,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
        st.dictionaries(text, inner, max_size=2),
    ),
    max_leaves=12,
)


def put(**right):
    """An object with mostly the values that belong there, seldom others, and seldom without some."""
    fields = {key: mostly(values, value) for key, values in right.items()}
    return mostly(st.fixed_dictionaries(fields), st.fixed_dictionaries({}, optional=fields))


def some(strategy):
    return st.lists(strategy, min_size=1, max_size=4)


number = st.integers(0, 2)
part = st.one_of(put(type=st.just("text"), text=text), st.just({"type": "image"}), put(type=name, image_url=name))
said = st.one_of(text, text, some(part))
exchange = st.tuples(
    st.one_of(put(**{"from": st.just("human"), "value": text}), put(role=st.just("user"), content=said)),
    st.one_of(put(**{"from": st.just("gpt"), "value": text}), put(role=st.just("assistant"), content=said)),
).map(list)
record = st.one_of(
    put(image=name, question=text, answer=text),
    put(image=name, caption=text),
    put(image=name, conversations=exchange),
    put(images=some(name), messages=st.one_of(exchange, some(exchange).map(lambda pairs: sum(pairs, [])))),
)
images = some(put(id=number, file_name=name))
captions = some(put(image_id=number, caption=text))
questions = some(put(question_id=number, image_id=name, question=text))
answers = some(put(question_id=number, answers=some(st.one_of(text, put(answer=text))), answer_type=text))
document = st.one_of(put(images=images, annotations=captions), put(questions=questions, annotations=answers), value)
json_text = st.one_of(some(record), some(record), document, document).map(json.dumps)
lines = some(mostly(record.map(json.dumps), st.text(max_size=20))).map("\n".join)
separator = st.sampled_from([",", ";", "\t"])
cells = mostly(st.tuples(name, text), st.one_of(st.tuples(name, text, text), st.tuples(text)))


def csv_text(header, rows, separator, quote, line_end):
    """A table that is right where the texts are harmless."""
    quoted = ([f'"{cell}"' if quote else cell for cell in row] for row in rows)
    return line_end.join([header.replace(",", separator), *map(separator.join, quoted)])


headers = st.sampled_from(
    ["image_name,caption", "image,question", "image_id,question,answer", "caption,caption", "a,b", ""]
)
line_ends = st.sampled_from(["\n", "\r\n", "\r"])
table = st.builds(csv_text, headers, some(cells), separator, st.booleans(), line_ends)
encoding = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252"])


def shard(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, content, kind in members:
            info = tarfile.TarInfo(path.replace("\0", "").encode("utf-8", "ignore").decode()[:90] or "x")
            info.type, info.linkname = kind, "../secret.png"
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


picture = mostly(st.just(PNG.getvalue()), st.binary(max_size=40))
words = st.one_of(text, record.map(json.dumps)).map(lambda content: content.encode("utf-8", "replace"))
kinds = st.sampled_from([tarfile.REGTYPE] * 12 + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
pair = st.tuples(st.tuples(st.just("png"), picture, kinds), st.tuples(st.sampled_from(["txt", "json"]), words, kinds))
odd_sample = st.tuples(st.tuples(st.sampled_from(["png", "txt", "json", "", "a.b"]), picture, kinds))
sample = mostly(pair, odd_sample)
named = st.tuples(mostly(st.sampled_from(["1", "2", "sub/3", "../4"]), name), sample)
tar = some(named).map(lambda all: shard((f"{key}.{end}", *rest) for key, members in all for end, *rest in members))


def parquet_bytes(columns):
    buffer = io.BytesIO()
    try:
        pq.write_table(pa.table(columns), buffer)
    except (pa.ArrowException, UnicodeError, ValueError, TypeError, OverflowError):
        pq.write_table(pa.table({"image": ["a.png"], "caption": ["x"]}), buffer)
    return buffer.getvalue()


def two(strategy):
    return st.lists(mostly(strategy, st.none()), min_size=2, max_size=2)


struct = st.fixed_dictionaries({"bytes": st.one_of(picture, st.none()), "path": st.one_of(name, st.none())})
shown = st.one_of(two(name), two(picture), two(struct), two(number))
texts = st.one_of(two(text), two(st.lists(text, max_size=2)), two(number))
columns = st.fixed_dictionaries({"image": shown, "caption": texts}, optional={"question": texts, "x": texts})
parquet = mostly(columns, st.dictionaries(st.sampled_from(KEYS), texts, max_size=3)).map(parquet_bytes)


def damage(content, seed):
    """The bytes with some of them changed, left out or repeated."""
    rng, content = random.Random(seed), bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(content) + 1)
        match rng.randrange(4):
            case 0:
                content[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del content[at:]
            case 2:
                del content[at : at + rng.choice([1, 7, 512])]
            case 3:
                content[at:at] = content[max(0, at - rng.choice([1, 512])) : at]
    return bytes(content)


def files(name, content):
    plain = st.tuples(st.just(name), content)
    damaged = st.builds(lambda file, seed: (file[0], damage(file[1], seed)), plain, st.integers(0, 2**32))
    return st.one_of(plain, plain, plain, damaged)


def encoded(strategy):
    return st.builds(lambda text, encoding: text.encode(encoding, "replace"), strategy, encoding)


SINGLE = {
    "csv": files("t.csv", encoded(table)),
    "json": files("t.json", encoded(json_text)),
    "jsonl": files("t.jsonl", encoded(lines)),
    "tar": files("t.tar", tar),
    "parquet": files("t.parquet", parquet),
    "bytes": st.tuples(st.sampled_from(["t.csv", "t.json", "t.jsonl", "t.tar", "t.parquet"]), st.binary(max_size=200)),
}
anything = st.one_of(*SINGLE.values())
# Files of a folder, at the places where a source looks for them.
PLACES = [
    "caption/a.txt",
    "caption/a.json",
    "Image/a/1.png",
    "Image/a/2.png",
    "metadata.csv",
    "metadata.jsonl",
    "a_dog.png",
]
PLACES += [
    "metadata.parquet",
    "train/a.png",
    "test/a.png",
    "captions.csv",
    "train.csv",
    "train-0.tar",
    "dataset_info.json",
]
PLACES += ["x_questions.json", "x_annotations.json", "state.json", "dataset_dict.json", "test/t.jsonl", ".hidden.csv"]
tree = st.dictionaries(st.sampled_from(PLACES), anything.map(lambda file: file[1]), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder whose outside must not be read, and the links that lead there or in a circle."""
    root = tmp_path_factory.mktemp("world")
    (root / "secret.png").write_bytes(SECRET.getvalue())
    (root / "secret.txt").write_text("the secret")
    return root


def furnish(folder):
    for path in ("a.png", "b.png", "sub/c.png"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(PNG.getvalue())
    (folder / "link.png").symlink_to("../secret.png")
    (folder / "out").symlink_to("..")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe.png")


def read(data, folder, **options):
    """Open, and look at every image; fails if it takes too long, raises what it should not, or reads the secret."""
    outcome = []

    def work():
        try:
            rejected = []
            rows = vlm_data.open(data, rejected=rejected, **options)
            assert set(vlm_data.FEATURES) <= set(rows.features)
            assert all(isinstance(one, Rejected) and one.reason and isinstance(one.source, str) for one in rejected)
            for row in rows:
                path = row["image"]["path"]
                assert path is None or Path(path).resolve().is_relative_to(folder.resolve()), path
                assert "the secret" not in "".join(row["references"])
                assert row["references"] or row["prompt"] or options.get("format") == "images-csv"
            good = vlm_data.verify(rows, rejected)
            assert all(vlm_data.decode(image).size == (4, 4) for image in good["image"])
            outcome.append(None)
        except (DataError, ImageError) as error:
            # one line, which names the data
            outcome.append(None if str(error).strip() else AssertionError("an error without a message"))
        except BaseException as error:  # whatever it is, it is this test's to report
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert not thread.is_alive(), "it hangs"
    if outcome[0] is not None:
        raise outcome[0]


def inputs(share):
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(max_examples=max(1, round(INPUTS * share)), deadline=None, suppress_health_check=checks)


FORMATS = st.sampled_from(["auto"] * 3 * len(READERS) + list(READERS))
COLUMNS = st.sampled_from([None] * 12 + ["image=image,references=caption", "image=x", "prompt=text,references="])


@contextmanager
def placed(folder, file):
    """The path of a file among good ones, while it is there."""
    if not folder.exists():
        folder.mkdir()
        furnish(folder)
    path = folder / file[0]
    path.write_bytes(file[1])
    try:
        yield path
    finally:
        path.unlink()


@pytest.mark.slow
@inputs(0.5)
@given(file=anything, format=FORMATS, columns=COLUMNS)
def test_files(world, file, format, columns):
    with placed(world / "files", file) as path:
        read(path, path.parent, format=format, columns=columns)


@inputs(0.2)
@given(file=anything.filter(lambda file: file[0].endswith((".jsonl", ".tar", ".parquet"))), columns=COLUMNS)
def test_streams(world, file, columns):
    """A stream gives each sample or rejects it; its shards are damaged, it never is."""
    rejected = []
    with placed(world / "streams", file) as path:
        try:
            stream = vlm_data.stream(path, columns=columns, window=3)
            rows = [row for batch in stream.loader(2, rejected=rejected) for row in batch]
        except DataError as error:
            assert "there are no rows in it" in str(error) or "columns" in str(error)
        else:
            assert len(rows) + len(rejected) == len(stream)
            assert all(vlm_data.decode(row["image"]).size == (4, 4) for row in rows)
            assert all(one.reason and one.source.startswith(str(path)) for one in rejected)


@inputs(0.3)
@given(tree=tree, format=FORMATS, linked=st.booleans(), split=st.sampled_from([None] * 6 + ["train", "test"]))
def test_folders(world, tree, format, linked, split):
    folder = world / f"tree-{len(list(world.iterdir()))}"
    folder.mkdir()
    for path, content in tree.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(PNG.getvalue() if path.endswith(".png") else content)
    if linked:
        furnish(folder)
        (folder / "caption").mkdir(exist_ok=True)
        for name, target in (("caption/b.txt", "../../secret.txt"), ("Image", ".."), ("validation", "..")):
            if not (folder / name).exists():
                (folder / name).symlink_to(target)
    if format != "datasets" or any((folder / name).exists() for name in ("dataset_info.json", "dataset_dict.json")):
        datasets.disable_progress_bars()
        read(folder, folder, format=format, split=split)
