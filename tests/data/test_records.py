"""TFRecord files of tf.train.Example are what TensorFlow writes and reads, and one bad byte costs one record."""

import concurrent.futures
import contextlib
import os
import pickle
import struct

import numpy as np
import pytest

from alexnet_resnet.data import records
from alexnet_resnet.data.examples import Unreadable

PAYLOADS = [bytes([i]) * (7 * i) for i in range(20)]  # the first is empty


def make(path, payloads):
    """A file and where each of its records begins, with the end."""
    starts = [0]
    with open(path, "wb") as file:
        for payload in payloads:
            starts.append(starts[-1] + records.write(file, payload))
    assert os.path.getsize(path) == starts[-1]
    return str(path), starts


def damage(path, position):
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x10]))


def unreadable(reader):
    """The rows that cannot be read; all others are as they were written."""
    bad = []
    for row in range(len(reader)):
        try:
            assert reader.read(row) == PAYLOADS[row]
        except Unreadable:
            bad.append(row)
    return bad


def test_tensorflow_reads_what_is_written(tmp_path):
    import tensorflow as tf

    path, _ = make(tmp_path / "a", PAYLOADS)
    assert [r.numpy() for r in tf.data.TFRecordDataset(path)] == PAYLOADS


def test_what_tensorflow_writes_is_read_in_any_order(tmp_path):
    import tensorflow as tf

    paths = [str(tmp_path / name) for name in "abcd"]
    parts = [PAYLOADS[:7], PAYLOADS[7:8], [], PAYLOADS[8:]]
    for path, part in zip(paths, parts, strict=True):
        with tf.io.TFRecordWriter(path) as file:
            for payload in part:
                file.write(payload)
    reader = records.Records(paths, [len(part) for part in parts])
    assert len(reader) == 20
    order = np.random.default_rng(0).permutation(20).tolist()
    assert [reader.read(row) for row in order] == [PAYLOADS[row] for row in order]
    assert reader.name_of(7) == f"{paths[1]} record 0" and reader.name_of(8) == f"{paths[3]} record 0"
    for row in (-1, 20):
        with pytest.raises(IndexError):
            reader.read(row)


def test_nothing_is_opened_until_a_record_is_asked_for_and_few_files_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_OPEN", 3)
    paths = [make(tmp_path / f"{i:02}", [payload])[0] for i, payload in enumerate(PAYLOADS)]
    opened = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    reader = records.Records(paths, [1] * 20)
    assert not unreadable(reader) and not unreadable(reader)
    if opened is not None:
        assert len(os.listdir("/proc/self/fd")) - opened == 3
        del reader
        assert len(os.listdir("/proc/self/fd")) == opened
    missing = records.Records([str(tmp_path / "missing")] * 1024, [1251] * 1024)
    assert len(missing) == 1024 * 1251


def test_threads_read_at_once_while_files_are_closed_under_them(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_OPEN", 2)
    random = np.random.default_rng(0)
    payloads = [random.bytes(5000 + i) for i in range(64)]
    paths = [make(tmp_path / f"{i}", payloads[8 * i : 8 * i + 8])[0] for i in range(8)]
    reader = records.Records(paths, [8] * 8)
    rows = random.integers(0, 64, 4000).tolist()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        read = list(pool.map(reader.read, rows))
    assert all(payload == payloads[row] for payload, row in zip(read, rows, strict=True))


def test_a_reader_can_be_sent_to_another_process(tmp_path):
    reader = records.Records([make(tmp_path / "a", PAYLOADS)[0]], [20])
    reader.read(3)
    assert not unreadable(pickle.loads(pickle.dumps(reader)))


@pytest.mark.parametrize("place", ["payload", "payload's checksum"])
def test_a_damaged_payload_costs_one_record_and_is_named(tmp_path, place):
    path, starts = make(tmp_path / "a", PAYLOADS)
    damage(path, starts[5] + 12 if place == "payload" else starts[6] - 1)
    reader = records.Records([path], [20])
    assert unreadable(reader) == [5]
    with pytest.raises(Unreadable, match=r"a record 5: its bytes are not those that were written \(CRC32C\)"):
        reader.read(5)


@pytest.mark.parametrize("byte", [0, 7, 8, 11])
def test_a_damaged_header_costs_the_rest_of_its_file_only(tmp_path, byte):
    first, starts = make(tmp_path / "a", PAYLOADS[:10])
    second, _ = make(tmp_path / "b", PAYLOADS[10:])
    damage(first, starts[4] + byte)
    reader = records.Records([first, second], [10, 10])
    assert unreadable(reader) == [4, 5, 6, 7, 8, 9]
    with pytest.raises(Unreadable, match=r"a record 8: the header of record 4 is damaged \(CRC32C\)"):
        reader.read(8)


@pytest.mark.parametrize("cut", [1, 3, 5, 14, 15])
def test_a_file_cut_within_a_record_costs_what_is_gone(tmp_path, cut):
    path, starts = make(tmp_path / "a", PAYLOADS)
    os.truncate(path, starts[2] + cut)  # the third record is 12 + 14 + 4 bytes
    reader = records.Records([path], [20])
    assert unreadable(reader) == list(range(2, 20))
    with pytest.raises(Unreadable, match="a record 9: the file ends within record 2 of 20"):
        reader.read(9)


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path):
    path, starts = make(tmp_path / "a", PAYLOADS)
    reader = records.Records([path], [20])
    reader.read(0)
    os.truncate(path, starts[19])
    assert unreadable(reader) == [19]


@pytest.mark.parametrize(("count", "found"), [(19, "more"), (21, "20"), (1, "more")])
def test_a_file_with_another_number_of_records_is_refused(tmp_path, count, found):
    path, _ = make(tmp_path / "a", PAYLOADS)
    reader = records.Records([path], [count])
    with pytest.raises(Unreadable, match=f"a record 0: expected {count} records in the file, found {found}"):
        reader.read(0)


def test_an_empty_file_is_refused_unless_it_should_be_empty(tmp_path):
    empty, (full, _) = make(tmp_path / "a", [])[0], make(tmp_path / "b", PAYLOADS)
    assert not unreadable(records.Records([empty, full, empty], [0, 20, 0]))
    with pytest.raises(Unreadable, match="a record 2: expected 3 records in the file, found 0"):
        records.Records([empty], [3]).read(2)


def test_a_missing_file_is_named_and_the_others_stay_readable(tmp_path):
    path, _ = make(tmp_path / "a", PAYLOADS[:10])
    reader = records.Records([path, str(tmp_path / "gone")], [10, 10])
    assert unreadable(reader) == list(range(10, 20))
    with pytest.raises(Unreadable, match="gone: No such file"):
        reader.read(10)
    folder = records.Records([str(tmp_path)], [1])
    with pytest.raises(Unreadable, match="Is a directory"):
        folder.read(0)


def test_files_and_counts_belong_together():
    with pytest.raises(ValueError, match="2 files and 1 counts"):
        records.Records(["a", "b"], [1])


NUMBERS = [0, 1, 127, 128, 300, -1, -(2**63), 2**63 - 1]


@pytest.mark.parametrize("number", NUMBERS)
def test_examples_are_tensorflows_in_both_directions(number):
    import tensorflow as tf

    features = {"file_name": b"n01440764_10026.JPEG", "image": os.urandom(70_000), "label": number, "empty": b""}
    theirs = tf.train.Example.FromString(records.encode_example(features))
    assert {k: (v.bytes_list.value or v.int64_list.value)[0] for k, v in theirs.features.feature.items()} == features
    for payload in (theirs.SerializeToString(), records.encode_example(features)):
        assert records.decode_example(payload) == features
        assert records.image_and_label(payload, "image", "label") == (features["image"], number)


def test_lists_floats_and_missing_values_are_read_as_tensorflow_wrote_them():
    import tensorflow as tf

    def feature(**lists):
        return tf.train.Feature(**lists)

    example = tf.train.Example(
        features=tf.train.Features(
            feature={
                "numbers": feature(int64_list=tf.train.Int64List(value=NUMBERS)),
                "floats": feature(float_list=tf.train.FloatList(value=[0.5, -2.25, 3])),
                "float": feature(float_list=tf.train.FloatList(value=[7.5])),
                "words": feature(bytes_list=tf.train.BytesList(value=[b"a", b"", b"cd"])),
                "none": feature(int64_list=tf.train.Int64List(value=[])),
                "nothing": feature(),
            }
        )
    )
    assert records.decode_example(example.SerializeToString()) == {
        "numbers": NUMBERS,
        "floats": [0.5, -2.25, 3],
        "float": 7.5,
        "words": [b"a", b"", b"cd"],
        "none": [],
        "nothing": [],
    }


def enclose(number, *parts):
    content = b"".join(parts)
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def test_unpacked_numbers_and_unknown_fields_are_read():
    unknown = b"\x48\x96\x01" + b"\x51" + bytes(8) + b"\x5d" + bytes(4) + enclose(12, b"later")
    listed = b"\x08\x96\x01" + unknown + b"\x08" + b"\xff" * 9 + b"\x01" + enclose(1, b"\x05\x06")  # both at once
    floats = b"\x0d" + struct.pack("<f", 1.5) + b"\x0d" + struct.pack("<f", -4)
    entries = [
        enclose(1, enclose(1, name), unknown, enclose(2, enclose(kind, content), unknown))
        for name, kind, content in ((b"n", 3, listed), (b"f", 2, floats))
    ]
    payload = unknown + enclose(1, unknown, entries[0]) + enclose(1, entries[1])
    assert records.decode_example(payload) == {"n": [150, -1, 5, 6], "f": [1.5, -4]}


def test_what_is_no_example_is_refused():
    whole = records.encode_example({"image": b"12345678", "label": 300})
    for end in range(1, len(whole)):
        with pytest.raises(Unreadable):
            records.image_and_label(whole[:end])
    # The lengths of the inner fields do not lead out of the outer ones.
    with pytest.raises(Unreadable, match="cut off"):
        records.decode_example(enclose(1, b"\x0a\x7f") + bytes(200))
    for bad in (b"\x0b", b"\xff" * 20, enclose(1, enclose(1, enclose(2, enclose(3, enclose(1, b"\x80")))))):
        with pytest.raises(Unreadable, match=r"no tf\.train\.Example"):
            records.decode_example(bad)
    with pytest.raises(Unreadable, match="broken size"):
        records.decode_example(enclose(1, enclose(1, enclose(2, enclose(2, enclose(1, b"abc"))))))


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_is_refused_or_read_but_never_breaks(seed):
    random = np.random.default_rng(seed)
    whole = records.encode_example({"image": b"12345678", "label": 300, "file_name": b"x.JPEG"})
    for _ in range(500):
        bad = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            bad[place] = random.integers(256)
        with contextlib.suppress(Unreadable):
            records.decode_example(bytes(bad))


@pytest.mark.parametrize(
    "features", [{"image": b"a"}, {"label": 3}, {"image": 3, "label": 3}, {"image": b"", "label": b""}]
)
def test_an_example_without_an_image_and_a_label_is_refused(features):
    with pytest.raises(Unreadable, match="one image 'image' and one label 'label'"):
        records.image_and_label(records.encode_example(features))


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
def test_numbers_that_are_no_int64_are_refused(number):
    with pytest.raises(ValueError, match="no int64"):
        records.encode_example({"label": number})
