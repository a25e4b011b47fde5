"""A damaged TensorFlow checkpoint gives an error or the values that were written: no crash, and no memory beyond it."""

import random
import shutil
import tracemalloc

import numpy as np
import pytest
from tensorflow_checkpoints import DATA, as_tensorflow_reads
from tensorflow_tables import block, entry, field, header, joined, sealed, table, varint

from jaxspec._src.checkpoint.tensorflow import snappy
from jaxspec._src.checkpoint.tensorflow.damage import DamageError
from jaxspec._src.checkpoint.tensorflow.slice_keys import slice_key
from jaxspec._src.checkpoint.tensorflow.snappy import decompress
from jaxspec._src.checkpoint.tensorflow.table import read_table
from jaxspec.checkpoint import DamagedCheckpointError, tf

_FIXTURES = {
    "dtypes": "model",
    "snappy": "model",
    "slices": "model",
    "saver": "model.ckpt-12",
}


def copied(name, directory):
    """The prefix of a copy of a checkpoint, and its values."""
    shutil.copytree(DATA / name, directory, dirs_exist_ok=True)
    return directory / _FIXTURES[name], as_tensorflow_reads(name)


def read_all(checkpoint):
    """The values that can be read, by name, and the errors of the others."""
    values, errors = {}, {}
    for name in checkpoint.names():
        try:
            values[name] = checkpoint.read(name)
        except DamagedCheckpointError as error:
            errors[name] = error
    return values, errors


def assert_right_or_damaged(prefix, right):
    """Whether there was an error. Every value that is read is a right one."""
    try:
        values, errors = read_all(tf.load_checkpoint(prefix))
    except DamagedCheckpointError:
        return True
    assert {*values, *errors} == set(right)
    for name, value in values.items():
        assert value.dtype == right[name].dtype
        assert value.shape == right[name].shape
        assert value.tobytes() == right[name].tobytes() or value.tolist() == right[name].tolist(), name
    return bool(errors)


def test_the_undamaged_copies_are_right(tmp_path):
    for name in _FIXTURES:
        prefix, right = copied(name, tmp_path / name)
        assert not assert_right_or_damaged(prefix, right)


@pytest.mark.parametrize("name", _FIXTURES)
def test_no_flipped_byte_of_an_index_is_believed(name, tmp_path):
    prefix, right = copied(name, tmp_path)
    index = prefix.with_name(f"{prefix.name}.index")
    data = index.read_bytes()
    unnoticed = []
    for place in range(len(data)):
        for mask in (0x01, 0x80, 0xFF) if name == "slices" else (random.Random(place).randrange(1, 256),):
            damaged = bytearray(data)
            damaged[place] ^= mask
            index.write_bytes(damaged)
            if not assert_right_or_damaged(prefix, right):
                unnoticed.append(place - len(data))
    assert all(place >= -48 for place in unnoticed)  # a number in the footer may be written in several ways
    assert len(unnoticed) < 4


@pytest.mark.parametrize("name", _FIXTURES)
def test_no_index_that_is_cut_or_longer_is_believed(name, tmp_path):
    prefix, right = copied(name, tmp_path)
    index = prefix.with_name(f"{prefix.name}.index")
    data = index.read_bytes()
    for length in range(len(data)):
        index.write_bytes(data[:length])
        with pytest.raises(DamagedCheckpointError, match=r"\.index is damaged: it does not end as an index does"):
            tf.load_checkpoint(prefix)
    for longer in (data + b"\0", b"\0" + data, data[:-48] + b"\0" + data[-48:], data + data):
        index.write_bytes(longer)
        assert assert_right_or_damaged(prefix, right)


def test_the_bytes_of_the_data_are_checked_where_they_are_read(tmp_path):
    prefix, right = copied("dtypes", tmp_path)
    file = tmp_path / "model.data-00000-of-00001"
    data, checkpoint = file.read_bytes(), tf.load_checkpoint(prefix)
    for place in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[place] ^= random.Random(place).randrange(1, 256)
        file.write_bytes(damaged)
        values, errors = read_all(checkpoint)
        [error] = errors.values()
        assert "model.data-00000-of-00001 is damaged: " in str(error)
        for name, value in values.items():
            np.testing.assert_array_equal(value, right[name])
    for length in range(0, len(data), 7):
        file.write_bytes(data[:length])
        values, errors = read_all(checkpoint)
        assert errors
        for name, value in values.items():
            np.testing.assert_array_equal(value, right[name])


def test_a_data_file_that_is_missing_is_named(tmp_path):
    prefix, _ = copied("saver", tmp_path)
    (tmp_path / "model.ckpt-12.data-00001-of-00003").unlink()
    values, errors = read_all(tf.load_checkpoint(prefix))
    assert set(values) == {"dense/kernel", "narrow", "global_step", "wide"}
    assert "the file " in str(errors["embedding"])
    assert "model.ckpt-12.data-00001-of-00003 is missing" in str(errors["embedding"])


_DATA = bytes(range(24))
_HALF = (2, 3)


def parts(*extents, whole=(4, 3), **half):
    """A partitioned variable of two halves, and what is different about it."""
    places = [((0, 2), (0, 3)), ((2, 2), (0, 3))]
    extents = extents or places
    entries = {
        slice_key(b"x", place): entry(_HALF, _DATA, **{"offset": 24 * number, **half})
        for number, place in enumerate(extents)
    }
    return {b"x": entry(whole, b"", slices=extents, size=0, crc=0), **entries}


_LIES = {
    "more bytes than the file has": ({b"x": entry((12,), _DATA * 2, size=48, offset=1)}, "'x': it ends at byte 49, and the file has 48"),
    "an offset beyond the file": ({b"x": entry((6,), _DATA, offset=1 << 62)}, "it ends at byte 4611686018427387928"),
    "a size that the shape has not": ({b"x": entry((5,), _DATA)}, r"its shape \[5\] does not fit its 24 bytes"),
    "a shape as large as the memory": ({b"x": entry((1 << 40,), _DATA)}, r"its shape \[1099511627776\] does not fit its 24 bytes"),
    "a shape and a size as large as the memory": ({b"x": entry((1 << 40,), _DATA, size=1 << 42)}, "it ends at byte 4398046511104"),
    "a shape that overflows": ({b"x": entry((1 << 32, 1 << 32), _DATA, size=0)}, r"a tensor has the shape \[4294967296, 4294967296\]"),
    "a shape that is empty and too large": ({b"x": entry((0, 1 << 62), b"")}, "a tensor has the shape"),
    "too many dimensions": ({b"x": entry((1,) * 65, b"abcd")}, "a tensor has the shape"),
    "a negative size": ({b"x": entry((6,), _DATA, size=-24)}, "a number in it is negative"),
    "a negative offset": ({b"x": entry((6,), _DATA, offset=-1)}, "a number in it is negative"),
    "a negative dimension": ({b"x": entry((-1,), _DATA)}, "a number in it is negative"),
    "an unknown rank": ({b"x": field(1, 1) + field(2, field(3, 1))}, "a tensor has no known rank"),
    "a data file that there is not": ({b"x": entry((6,), _DATA, shard=1)}, "says that 'x' is in data file 1 of 1"),
    "a message for a number": ({b"x": entry((6,), _DATA) + field(4, b"abc")}, "a number in it is negative, or is no number"),
    "a number for a message": ({b"x": field(1, 1) + field(2, 3)}, "a field of another kind than expected"),
    "a message that breaks off": ({b"x": b"\x12\x7f"}, "a message in it breaks off"),
    "a number that breaks off": ({b"x": b"\x08\x80"}, "a number in it breaks off, or is too large"),
    "a number of 70 bits": ({b"x": b"\x08" + b"\xff" * 9 + b"\x7f"}, "a number in it breaks off, or is too large"),
    "a number of 11 bytes": ({b"x": b"\x08" + b"\x80" * 10 + b"\0"}, "a number in it breaks off, or is too large"),
    "a number without end": ({b"x": b"\x08" + b"\x80" * 50}, "a number in it breaks off, or is too large"),
    "a group": ({b"x": b"\x0b"}, "a field of an unknown kind"),
    "a name in another encoding": ({b"\xff": entry((6,), _DATA)}, "a name in it is not in UTF-8"),
    "many strings": ({b"x": entry((1 << 50,), _DATA, dtype=7)}, "does not fit its 24 bytes"),
    "strings that are too long": ({b"x": entry((1,), b"\x7f" + _DATA[1:], dtype=7)}, "its strings do not fill its bytes", b"\x7f"),
    "a slice that is missing": ({b"x": entry((4, 3), b"", slices=[[(0, 4), (0, 3)]], size=0)}, "a slice of 'x' is missing"),
    "a slice of fewer dimensions": ({b"x": entry((4, 3), b"", slices=[[(0, 4)]]), slice_key(b"x", [(0, 4)]): entry((4,), b"")}, "a slice of 'x' is missing"),
    "a slice beyond the whole": (parts(((0, 2), (0, 3)), ((3, 2), (0, 3))), "a slice of 'x' does not fit the whole"),
    "a slice of another dtype": (parts(dtype=3), "a slice of 'x' does not fit the whole"),
    "slices of slices": (parts(slices=[[(0, 2), (0, 3)]]), "a slice of 'x' does not fit the whole"),
    "slices that overlap": (parts(((0, 2), (0, 3)), ((1, 2), (0, 3))), "the slices of 'x' overlap"),
    "slices that leave a part out": (parts(whole=(5, 3)), "the slices of 'x' are not as large as the whole"),
    "a slice again and again": ({**parts(), b"x": entry((4000, 3), b"", slices=[((0, 2), (0, 3))] * 2000)}, "the slices of 'x' are not as large as the whole"),
    "slices in the same bytes": (parts(*(((2 * n, 2), (0, 3)) for n in range(500)), whole=(1000, 3), offset=0), "the slices of 'x' are not as large as the whole"),
}  # fmt: skip


@pytest.mark.parametrize("lie", _LIES.values(), ids=_LIES)
def test_lengths_that_lie_are_found_before_memory_is_taken(lie, tmp_path):
    entries, message, *start = lie
    index = table({b"": header(), **entries})
    (tmp_path / "a.index").write_bytes(index)
    data = b"".join(start) + _DATA * 2
    (tmp_path / "a.data-00000-of-00001").write_bytes(data[:48])
    tracemalloc.start()
    try:
        with pytest.raises(DamagedCheckpointError, match=message):
            tf.load_variable(tmp_path / "a", "x")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000 + 100 * len(index)


def a_block(content):
    return sealed(content + b"\0")


_TABLES = {
    "an unknown compression": (joined([sealed(block([(b"", header())])[:-5] + b"\2")], [b""]), "compressed in an unknown way"),
    "a block without a restart": (joined([a_block(b"")], [b""]), "a block of it is too short"),
    "a number of restarts that lies": (joined([a_block(b"\0\0\0\0\xff\xff\xff\xff")], [b""]), "a block of it is too short"),
    "a key that shares what is not there": (joined([a_block(b"\5\1\0k" + b"\0\0\0\0\1\0\0\0")], [b""]), "an entry of it is longer than its block"),
    "a value that is too long": (joined([a_block(b"\0\1\xff\xff\xff\xff\x0fk" + b"\0\0\0\0\1\0\0\0")], [b""]), "an entry of it is longer than its block"),
    "keys that are not sorted": (joined([block([(b"b", b""), (b"a", b"")])], [b"b"]), "its keys are not sorted"),
    "a key twice": (joined([block([(b"a", b"")]), block([(b"a", b"")])], [b"a", b"a"]), "its keys are not sorted"),
    "a block that is not listed": (joined([block([(b"", header())]), block([(b"a", b"")]), block([(b"b", b"")])], [b"", b"a", b"b"], left_out=[1]), "its blocks do not follow each other"),
    "bytes before the footer": (table({b"": header()})[:-48] + bytes(9) + table({b"": header()})[-48:], "its blocks do not fill it"),
    "no header": (table({b"a": entry((), b"abcd")}), "it has no header"),
    "no entries": (table({}), "it has no header"),
    "a header of no files": (table({b"": header(shards=0)}), "its header speaks of 0 data files"),
    "a header of too many files": (table({b"": header(shards=1 << 31)}), "its header speaks of 2147483648 data files"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "message"), _TABLES.values(), ids=_TABLES)
def test_tables_that_are_not_well_formed_are_found(data, message, tmp_path):
    (tmp_path / "a.index").write_bytes(data)
    with pytest.raises(DamagedCheckpointError, match=rf"a\.index is damaged: .*{message}"):
        tf.load_checkpoint(tmp_path / "a")


def mutated(data, source):
    """Bytes of which a few are others, more or fewer."""
    data = bytearray(data)
    for _ in range(source.randrange(1, 4)):
        place = source.randrange(len(data) + 1)
        kind = source.randrange(4)
        if kind == 0:
            data[place : place + 1] = bytes([source.randrange(256)])
        elif kind == 1:
            del data[place : place + source.randrange(1, 9)]
        elif kind == 2:
            data[place:place] = varint(source.choice([0, 1, -1, 1 << 31, 1 << 40, (1 << 63) - 1]))
        else:
            data[place:place] = data[: source.randrange(20)]
    return bytes(data)


@pytest.mark.parametrize("name", ["dtypes", "slices", "saver"])
def test_random_changes_under_right_checksums_give_values_or_errors(name, tmp_path):
    prefix, _ = copied(name, tmp_path)
    index = prefix.with_name(f"{prefix.name}.index")
    entries = read_table(index.read_bytes())
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    source, refused = random.Random(13), 0
    tracemalloc.start()
    try:
        for _ in range(300):
            key = source.choice(sorted(entries))
            index.write_bytes(table(entries | {key: mutated(entries[key], source)}))
            try:
                _, errors = read_all(tf.load_checkpoint(prefix))
            except ValueError:
                errors = {key: None}
            refused += bool(errors)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused > 150
    assert peak < 10 * size + 1_000_000


def test_keys_that_share_a_long_one_take_no_more_memory_than_such_a_file_may_need():
    long = b"k" * 20_000
    entries = b"\0" + varint(len(long)) + b"\0" + long
    for number in range(20_000):
        entries += varint(len(long) + number) + b"\1\0k"
    data = joined([a_block(entries + b"\0\0\0\0\1\0\0\0")], [long])
    tracemalloc.start()
    try:
        with pytest.raises(DamageError, match="its keys share more than TensorFlow lets them share"):
            read_table(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 * len(data)


def test_copies_from_far_back_take_no_more_than_their_own_bytes(monkeypatch):
    copied_bytes = []

    class Counting(bytearray):
        def __getitem__(self, place):
            got = super().__getitem__(place)
            copied_bytes.append(len(got))
            return got

    monkeypatch.setattr(snappy, "bytearray", Counting, raising=False)
    literal = bytes(100_000)
    stream = b"\xf8" + (len(literal) - 1).to_bytes(3, "little") + literal
    stream += (b"\x03" + len(literal).to_bytes(4, "little")) * 100
    assert len(decompress(varint(len(literal) + 100) + stream)) == len(literal) + 100
    assert sum(copied_bytes) == 100


@pytest.mark.parametrize(
    "data",
    [
        b"\4" + b"\x10abcde",
        b"\6" + b"\x10abcde",
        b"\5" + b"\x10abc",
        b"\5" + b"\xf0",
        b"\x09" + b"\0a" + b"\x11",
        b"\6" + b"\4ab" + b"\x0e\2",
        b"\5" + b"\0a" + b"\x01\0",
        b"\5" + b"\0a" + b"\x01\2",
        b"\5" + b"\0a" + b"\xfe\1\0" * 10000,
    ],
    ids=[
        "longer",
        "shorter",
        "cut bytes",
        "cut length",
        "cut copy",
        "cut distance",
        "no distance",
        "too far",
        "much longer",
    ],
)
def test_a_compressed_stream_that_lies_is_found(data):
    tracemalloc.start()
    try:
        with pytest.raises(DamageError, match="a compressed block of it (has another size|refers to bytes)"):
            decompress(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000


def test_random_blocks_and_compressed_streams_give_bytes_or_errors():
    source = random.Random(7)
    plain = block([(b"key_%d" % number, b"value" * number) for number in range(20)])[:-5]
    streams = np.load(DATA / "snappy" / "streams.npz")
    compressed = [streams[f"{name} compressed"].tobytes() for name in streams["names"]]
    for _ in range(3000):
        for call, data in (
            (read_table, joined([a_block(mutated(plain, source))], [b"z"])),
            (decompress, mutated(source.choice(compressed), source)),
        ):
            try:
                out = call(data)
            except DamageError:
                continue
            if call is decompress:
                assert len(out) <= 64 * len(data)
