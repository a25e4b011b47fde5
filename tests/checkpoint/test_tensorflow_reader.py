"""TensorFlow's checkpoints are read as TensorFlow reads them, and no more of them than is needed."""

import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from tensorflow_checkpoints import DATA, as_tensorflow_reads
from tensorflow_tables import block, entry, field, header, joined, table, varint

from jaxspec._src.base import buckets
from jaxspec._src.checkpoint.tensorflow import reader as reader_module
from jaxspec._src.checkpoint.tensorflow.find import is_tensorflow_checkpoint
from jaxspec._src.checkpoint.tensorflow.slice_keys import slice_key
from jaxspec._src.checkpoint.tensorflow.snappy import decompress
from jaxspec.checkpoint import DamagedCheckpointError, tf

_PREFIXES = {
    "dtypes": "dtypes/model",
    "saver": "saver/model.ckpt-12",
    "slices": "slices/model",
    "snappy": "snappy/model",
}


def write(directory, entries, data=b"", shards=1):
    """A checkpoint of given entries; its prefix."""
    path = directory / "made"
    (directory / "made.index").write_bytes(table({b"": header(shards), **entries}))
    (directory / f"made.data-00000-of-{shards:05d}").write_bytes(data)
    return path


@pytest.mark.parametrize("name", _PREFIXES)
def test_every_value_is_what_tensorflow_reads(name):
    values = as_tensorflow_reads(name)
    checkpoint = tf.load_checkpoint(DATA / _PREFIXES[name])
    assert tf.list_variables(DATA / _PREFIXES[name]) == sorted(
        (key, list(value.shape)) for key, value in values.items()
    )
    assert checkpoint.get_variable_to_dtype_map() == {key: value.dtype for key, value in values.items()}
    assert checkpoint.get_variable_to_shape_map() == dict(tf.list_variables(DATA / _PREFIXES[name]))
    assert checkpoint.names() == {key: (value.shape, value.dtype) for key, value in values.items()}
    for key, value in values.items():
        read = checkpoint.get_tensor(key)
        np.testing.assert_array_equal(read, value, strict=True)
        assert read.flags.writeable
        assert checkpoint.has_tensor(key)
        np.testing.assert_array_equal(tf.load_variable(DATA / _PREFIXES[name], key), value)
    assert not checkpoint.has_tensor("nothing")


def test_the_fixtures_have_what_they_are_for():
    assert "bfloat16" in as_tensorflow_reads("dtypes")
    assert len(as_tensorflow_reads("dtypes")) >= 30
    assert {file.name[-19:] for file in (DATA / "saver").glob("*-12.data*")} == {
        f"data-0000{number}-of-00003" for number in range(3)
    }


def test_compressed_blocks_are_decompressed(monkeypatch):
    sizes = []

    def counting(data):
        sizes.append((len(data), len(decompress(data))))
        return decompress(data)

    monkeypatch.setattr("jaxspec._src.checkpoint.tensorflow.table.decompress", counting)
    tf.load_checkpoint(DATA / "dtypes" / "model")
    assert sizes == []
    tf.load_checkpoint(DATA / "snappy" / "model")
    assert len(sizes) > 3
    assert sum(compressed for compressed, _ in sizes) < sum(plain for _, plain in sizes)
    streams = np.load(DATA / "snappy" / "streams.npz")
    for name in streams["names"]:
        assert decompress(streams[f"{name} compressed"].tobytes()) == streams[name].tobytes()
    far = b"\x0a" + b"\x10abcde" + b"\x13\x05\0\0\0"  # a copy whose distance has 4 bytes; no compressor writes it
    assert decompress(far) == b"abcdeabcde"


def test_keys_of_an_object_graph_are_listed_as_they_are():
    names = dict(tf.list_variables(DATA / "resnet"))
    assert names["model/depthwise/depthwise_kernel/.ATTRIBUTES/VARIABLE_VALUE"] == [3, 3, 8, 2]
    assert names["step/.ATTRIBUTES/VARIABLE_VALUE"] == []
    graph = tf.load_variable(DATA / "resnet", "_CHECKPOINTABLE_OBJECT_GRAPH")
    assert b"depthwise_kernel" in graph.item()


def test_a_directory_stands_for_its_latest_checkpoint(tmp_path):
    assert tf.load_checkpoint(DATA / "saver").path == str(DATA / "saver" / "model.ckpt-12")
    assert tf.load_variable(DATA / "saver", "global_step") == 12
    assert tf.load_variable(DATA / "saver" / "model.ckpt-3", "global_step") == 3
    shutil.copytree(DATA / "saver", tmp_path / 'with "quotes" ü')
    state = tmp_path / 'with "quotes" ü' / "checkpoint"
    # As TensorFlow writes an absolute path.
    state.write_bytes(
        b'model_checkpoint_path: "' + os.fsencode(tmp_path) + b'/with \\"quotes\\" \\303\\274/model.ckpt-3"\n'
        b'all_model_checkpoint_paths: "other"\n'
    )
    assert tf.load_variable(state.parent, "global_step") == 3


def test_what_is_a_tensorflow_checkpoint(tmp_path):
    assert is_tensorflow_checkpoint(DATA / "saver")
    assert is_tensorflow_checkpoint(DATA / "saver" / "model.ckpt-3")
    assert not is_tensorflow_checkpoint(DATA)
    assert not is_tensorflow_checkpoint(tmp_path / "nothing")
    (tmp_path / "v1").write_bytes(table({b"a": b"b"}))
    assert is_tensorflow_checkpoint(tmp_path / "v1")  # of the format V1, which is refused later
    (tmp_path / "checkpoint").mkdir()
    assert not is_tensorflow_checkpoint(tmp_path)


def test_a_listing_reads_the_index_alone_and_a_variable_its_own_bytes(tmp_path, monkeypatch):
    values = {f"layer_{number:02d}": np.full(1000, number, np.float32) for number in range(50)}
    data = b"".join(value.tobytes() for value in values.values())
    entries = {
        name.encode(): entry((1000,), value.tobytes(), offset=4000 * number)
        for number, (name, value) in enumerate(values.items())
    }
    path, reads = write(tmp_path, entries, data), []

    def counting(original):
        def read(path, *place):
            got = original(path, *place)
            reads.append((os.path.basename(path), *place, len(got)))
            return got

        return read

    for name in ("read_file", "read_range"):
        monkeypatch.setattr(reader_module, name, counting(getattr(reader_module, name)))
    assert len(tf.list_variables(path)) == 50
    index = ("made.index", os.path.getsize(f"{path}.index"))
    assert reads == [index]
    np.testing.assert_array_equal(tf.load_variable(path, "layer_07"), values["layer_07"])
    assert reads == [index, index, ("made.data-00000-of-00001", 28000, 4000, 4000)]


def test_a_listing_needs_no_data_files(tmp_path):
    shutil.copy(DATA / "saver" / "model.ckpt-12.index", tmp_path / "a.index")
    assert dict(tf.list_variables(tmp_path / "a"))["embedding"] == [100, 3]
    with pytest.raises(DamagedCheckpointError, match=r"a is damaged: the file .*a.data-0000.-of-00003 is missing"):
        tf.load_variable(tmp_path / "a", "embedding")


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, None), (0, 63), (64, 1), (8191, 8192), (1 << 20, 3), (1 << 40, 1 << 55), (1 << 62, 1 << 62)],
)
def test_the_key_of_a_slice_has_numbers_of_all_lengths(start, length):
    key = slice_key("a\0ü".encode(), [(start, length)])
    assert key.startswith(b"\0a\0\xff\xc3\xbc\0\1\1\1")
    numbers, rest = [], key[len(b"\0a\0\xff\xc3\xbc\0\1\1\1") :]
    while rest:  # the number of ones that a number begins with, or zeros if it is negative, is its length in bytes
        bits = "".join(f"{byte:08b}" for byte in rest)
        size = len(bits) - len(bits.lstrip(bits[0]))
        size = min(size, 10)
        digits = ("1" if bits[0] == "0" else "0") * size + bits[size : 8 * size]
        numbers.append(int(digits, 2) - (1 << 8 * size if digits[0] == "1" else 0))
        rest = rest[size:]
    assert numbers == [start, -1 if length is None else length]


def test_an_index_of_many_blocks_is_read(tmp_path):
    entries = {f"variable_{number}".encode(): entry((), b"abcd") for number in range(3000)}
    path = write(tmp_path, entries, b"abcd")
    assert len(tf.list_variables(path)) == 3000
    assert tf.load_variable(path, "variable_2999").tobytes() == b"abcd"


_MISSING = {
    "nothing": ("nothing", r"there is no TensorFlow checkpoint at .*nothing\. Expected a prefix such as .*\. Those near it: \['.*/other'\]"),
    "an index": ("other.index", r"Those near it: \['.*/other'\]"),
    "a directory": ("empty", r"a directory with a file `checkpoint` that names the latest\. Those near it: \[\]\."),
    "a SavedModel": ("saved_model", r"Those near it: \['.*saved_model/variables/variables'\]"),
    "a directory that was moved": ("moved", r"the file .*moved/checkpoint names the checkpoint /gone/x, and /gone/x.index does not exist\. Give .* Those near it: \['.*/moved/x'\]"),
    "a directory of the format V1": ("old", r"/old/v1 is a checkpoint in TensorFlow's format V1, which this reader does not know"),
    "the format V1": ("v1", r"v1 is a checkpoint in TensorFlow's format V1, which this reader does not know\. Restore it .* tf.compat.v1.train.Saver"),
    "a file": ("model.h5", r"there is no TensorFlow checkpoint at .*model.h5"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "message"), _MISSING.values(), ids=_MISSING)
def test_what_is_no_checkpoint_is_said(name, message, tmp_path):
    (tmp_path / "other.index").write_bytes(table({b"": header()}))
    (tmp_path / "empty").mkdir()
    (tmp_path / "saved_model" / "variables").mkdir(parents=True)
    (tmp_path / "saved_model" / "variables" / "variables.index").write_bytes(b"")
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "x.index").write_bytes(b"")
    (tmp_path / "moved" / "checkpoint").write_text('model_checkpoint_path: "/gone/x"\n')
    (tmp_path / "v1").write_bytes(table({b"a": b"b"}))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "v1").write_bytes(table({b"a": b"b"}))
    (tmp_path / "old" / "checkpoint").write_text('model_checkpoint_path: "v1"\n')
    (tmp_path / "model.h5").write_bytes(b"\x89HDF")
    with pytest.raises(ValueError, match=message):
        tf.load_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", ["model.ckpt", "model.ckpt-12.index"])
def test_a_wrong_prefix_is_answered_with_the_right_ones_where_any_weights_may_be(name):
    init_fn = tf.init_from_checkpoint(DATA / "saver" / name, {"narrow": "narrow"})
    with pytest.raises(
        ValueError, match=r"a checkpoint of TensorFlow\. Those of TensorFlow near it: .*/model.ckpt-12'"
    ):
        init_fn({"narrow": np.zeros(5)})


def test_a_name_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(ValueError, match=r"text/ckpt-1 has no variable 'dense'; the names are \['_CHECKPOINTABLE"):
        tf.load_variable(DATA / "text", "dense")


def test_of_very_many_names_only_similar_ones_are_listed(tmp_path):
    path = write(tmp_path, {f"layer_{number}/kernel".encode(): entry((), b"abcd") for number in range(3000)})
    with pytest.raises(
        ValueError, match=r"'layer_77/kernal'; of its 3000 names these are similar: .*'layer_77/kernel'"
    ) as raised:
        tf.load_variable(path, "layer_77/kernal")
    assert len(str(raised.value)) < 1000


_FOREIGN = {
    "a newer version": (header(version=field(1, 9) + field(2, 2)), "a.index is of a newer version .* need version 2.* knows version 1"),
    "a version for others": (header(version=field(1, 1) + field(3, 1)), "a.index is of a newer version of TensorFlow's format"),
    "a version for others, packed": (header(version=field(1, 1) + field(3, varint(300) + b"\1")), "a.index is of a newer version of TensorFlow's format"),
    "big-endian numbers": (header(endianness=1), "a.index says that the numbers are big-endian, which this reader does not know"),
}  # fmt: skip


@pytest.mark.parametrize(("head", "message"), _FOREIGN.values(), ids=_FOREIGN)
def test_formats_that_are_not_known_are_refused(head, message, tmp_path):
    (tmp_path / "a.index").write_bytes(table({b"": head}))
    with pytest.raises(ValueError, match=message) as raised:
        tf.load_checkpoint(tmp_path / "a")
    assert not isinstance(raised.value, DamagedCheckpointError)


def test_variants_are_listed_and_cannot_be_read(tmp_path):
    path = write(tmp_path, {b"iterator": entry((), b"abc", dtype=21)}, b"abc")
    assert tf.list_variables(path) == [("iterator", [])]
    with pytest.raises(ValueError, match=r"'iterator' of the TensorFlow checkpoint .* is a resource or a variant .*21"):
        tf.load_variable(path, "iterator")


def test_fields_that_a_later_tensorflow_may_add_are_skipped(tmp_path):
    added = b"".join([field(99, 7), field(98, b"more"), b"\xfd\x06abcd", b"\xf9\x06abcdefgh"])
    path = write(tmp_path, {b"a": entry((), b"abcd") + added}, b"abcd")
    assert tf.load_variable(path, "a").tobytes() == b"abcd"


def test_blocks_of_one_entry_are_read(tmp_path):
    blocks = [block([(b"", header())]), block([(b"a", entry((2,), b"abcdefgh"))])]
    (tmp_path / "a.index").write_bytes(joined(blocks, [b"", b"a"]))
    (tmp_path / "a.data-00000-of-00001").write_bytes(b"abcdefgh")
    assert tf.load_variable(tmp_path / "a", "a").dtype == jnp.float32


def test_a_checkpoint_in_a_bucket_is_read_in_ranges(bucket):
    for file in (DATA / "saver").glob("*"):
        buckets.write(f"{bucket.directory}/run/{file.name}", file.read_bytes())
    assert is_tensorflow_checkpoint(f"{bucket.directory}/run")
    assert not is_tensorflow_checkpoint(bucket.directory)
    checkpoint = tf.load_checkpoint(f"{bucket.directory}/run")
    assert checkpoint.path == f"{bucket.directory}/run/model.ckpt-12"
    for name, value in as_tensorflow_reads("saver").items():
        np.testing.assert_array_equal(checkpoint.read(name), value, strict=True)
    with pytest.raises(
        ValueError, match=r"there is no TensorFlow checkpoint at .*/run/nothing\. .*/run/model.ckpt-12'"
    ):
        tf.load_checkpoint(f"{bucket.directory}/run/nothing")
