"""TFRecord files of tf.train.Example, read by place without TensorFlow.

A file is a row of records, each of which is framed as the payload's length (8 bytes, little endian), the masked CRC32C
of those 8 bytes, the payload, and the masked CRC32C of the payload. Example is the protocol buffer
`Example{Features features=1}`, `Features{map<string, Feature> feature=1}`, where a Feature is a list of bytes (1),
floats (2) or int64 (3). Only this much of both formats is written here; unknown fields are passed over.
"""

import bisect
import collections
import dataclasses
import itertools
import os
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import google_crc32c
import numpy as np

from alexnet_resnet.data.examples import Unreadable

MAX_OPEN = 256  # files of one set that are open at a time; a process may often have no more than 1,024
_HEADER, _FOOTER = 12, 4


class Records:
    """The records of several files one after another, to be read by place from any number of threads.

    Nothing is opened until a record is asked for. The places of a file's records are then found by walking over their
    headers, once.
    """

    def __init__(self, paths: Sequence[str], counts: Sequence[int]):
        """
        Args:
          paths: the files, in order.
          counts: how many records each has.
        """
        if len(paths) != len(counts):
            raise ValueError(f"{len(paths)} files and {len(counts)} counts.")
        self._paths, self._counts = list(paths), list(map(int, counts))
        self._firsts = [0, *itertools.accumulate(self._counts)]
        self._indices: list[_Index | None] = [None] * len(self._paths)
        self._locks = [threading.Lock() for _ in self._paths]
        self._open: collections.OrderedDict[int, _File] = collections.OrderedDict()
        self._open_lock = threading.Lock()

    def __reduce__(self):
        return Records, (self._paths, self._counts)

    def __len__(self) -> int:
        return self._firsts[-1]

    def read(self, row: int) -> bytes:
        """The payload of a record, with one system call and without a copy once its file is known.

        Raises:
          Unreadable: its bytes are not those that were written, a header before it in its file is damaged, or the
            file is missing or has another number of records than it should. All other records stay readable.
        """
        shard, record = self._locate(row)
        file = self._file(shard)
        index = self._index(shard, file)
        if record >= len(index.crcs):
            raise Unreadable(f"{self.name_of(row)}: {index.reason}")
        start, end = index.starts[record : record + 2].tolist()
        try:
            payload = os.pread(file.descriptor, end - start - _HEADER - _FOOTER, start + _HEADER)
        except OSError as error:
            raise Unreadable(f"{self.name_of(row)}: {error.strerror}") from error
        if _masked_crc(payload) != index.crcs[record]:
            raise Unreadable(f"{self.name_of(row)}: its bytes are not those that were written (CRC32C)")
        return payload

    def name_of(self, row: int) -> str:
        """The file of a record and its number there, from 0."""
        shard, record = self._locate(row)
        return f"{self._paths[shard]} record {record}"

    def _locate(self, row: int) -> tuple[int, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"record {row} of {len(self)}")
        # Of files that begin at the same place all but the last are empty.
        shard = bisect.bisect_right(self._firsts, row) - 1
        return shard, row - self._firsts[shard]

    def _file(self, shard: int) -> "_File":
        """The open file; it is closed when it is neither among the last used nor in anyone's hands."""
        with self._open_lock:
            file = self._open.get(shard)
            if file is not None:
                self._open.move_to_end(shard)
                return file
        # Opened outside the lock, since on a network this takes as long as reading does.
        try:
            file = _File(self._paths[shard])
        except OSError as error:
            raise Unreadable(f"{self._paths[shard]}: {error.strerror}") from error
        with self._open_lock:
            file = self._open.setdefault(shard, file)
            last = self._open.popitem(last=False)[1] if len(self._open) > MAX_OPEN else None
        del last  # closed here, where nobody waits for it
        return file

    def _index(self, shard: int, file: "_File") -> "_Index":
        index = self._indices[shard]
        if index is None:
            with self._locks[shard]:
                index = self._indices[shard]
                if index is None:
                    try:
                        index = self._indices[shard] = _walk(file.descriptor, self._counts[shard])
                    except OSError as error:
                        raise Unreadable(f"{self._paths[shard]}: {error.strerror}") from error
        return index


@dataclasses.dataclass(frozen=True, eq=False)
class _Index:
    """What a walk over a file found: its readable records, and what ails those that are not among them.

    Attributes:
      starts: where each begins and the last one ends [N + 1].
      crcs: what each payload's masked CRC32C should be [N].
      reason: why there are no more.
    """

    starts: np.ndarray
    crcs: np.ndarray
    reason: str


class _File:
    """A file descriptor that closes itself when nobody holds it any more."""

    def __init__(self, path: str):
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self, close=os.close):  # `os` may be gone before the last file is
        if hasattr(self, "descriptor"):
            close(self.descriptor)


def write(file: BinaryIO, payload: bytes) -> int:
    """Appends one record to an open file; the number of bytes written."""
    length = _UINT64.pack(len(payload))
    file.write(length + _UINT32.pack(_masked_crc(length)))
    file.write(payload)
    file.write(_UINT32.pack(_masked_crc(payload)))
    return _HEADER + len(payload) + _FOOTER


_UINT32, _UINT64 = struct.Struct("<I"), struct.Struct("<Q")


def _walk(descriptor: int, count: int) -> _Index:
    """Finds the records of a file: each payload's checksum comes with the next one's header, in one call."""
    end = os.fstat(descriptor).st_size
    starts, crcs, reason = [0], [], ""
    header = os.pread(descriptor, _HEADER, 0)
    while header and len(crcs) <= count:
        length = _UINT64.unpack_from(header)[0] if len(header) == _HEADER else end
        if len(header) == _HEADER and _masked_crc(header[:8]) != _UINT32.unpack_from(header, 8)[0]:
            reason = f"the header of record {len(crcs)} is damaged (CRC32C), and with it the way to what follows"
            break
        position = starts[-1] + _HEADER + length
        tail = os.pread(descriptor, _FOOTER + _HEADER, position) if position < end else b""
        if len(tail) < _FOOTER:
            reason = f"the file ends within record {len(crcs)} of {count:,}"
            break
        crcs.append(_UINT32.unpack_from(tail)[0])
        starts.append(position + _FOOTER)
        header = tail[_FOOTER:]
    if len(crcs) > count or (len(crcs) < count and not reason):
        # Not the file that was described: what stands at a place of it may be another example altogether.
        found = "more" if len(crcs) > count else f"{len(crcs):,}"
        starts, crcs, reason = [0], [], f"expected {count:,} records in the file, found {found}"
    return _Index(np.asarray(starts, np.int64), np.asarray(crcs, np.uint32), reason)


def _masked_crc(content: bytes) -> int:
    crc = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def encode_example(features: Mapping[str, bytes | int]) -> bytes:
    """A tf.train.Example with one value a feature, in the order given."""
    entries = []
    for name, value in features.items():
        kind, content = (3, _varint(value)) if isinstance(value, int) else (1, value)
        value_in_list = [*_tag(1, len(content)), content]
        feature = _enclose(2, _enclose(kind, value_in_list))
        key = name.encode()
        entries += _enclose(1, [*_tag(1, len(key)), key, *feature])
    return b"".join(_enclose(1, entries))


def decode_example(payload: bytes) -> dict[str, bytes | int | float | list]:
    """The features of a tf.train.Example: the value of those that have one, a list of the others.

    Raises:
      Unreadable: the payload is none; the message does not say which.
    """
    return {str(name, "utf-8", "replace"): _value(payload, *place) for name, *place in _features(payload)}


def image_and_label(payload: bytes, image_key: str = "image", label_key: str = "label") -> tuple[bytes, int]:
    """An image's bytes and its label out of a tf.train.Example.

    Raises:
      Unreadable: the payload is none, or has not one such image and label; the message does not say which.
    """
    image = label = None
    image_name, label_name = image_key.encode(), label_key.encode()
    for name, start, end in _features(payload):
        if name == image_name:
            image = _value(payload, start, end)
        elif name == label_name:
            label = _value(payload, start, end)
    if not isinstance(image, bytes) or not isinstance(label, int):
        raise Unreadable(f"no tf.train.Example with one image {image_key!r} and one label {label_key!r}")
    return image, label


def _features(payload: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The name of each feature and where its value begins and ends."""
    for number, features, features_end in _fields(payload, 0, len(payload)):
        if number != 1:
            continue
        for number, entry, entry_end in _fields(payload, features, features_end):
            if number != 1:
                continue
            name, value = b"", (0, 0)
            for number, start, end in _fields(payload, entry, entry_end):
                if number == 1:
                    name = payload[start:end]
                elif number == 2:
                    value = (start, end)
            yield name, *value


def _value(payload: bytes, start: int, end: int) -> bytes | int | float | list:
    values = []
    for kind, first, last in _fields(payload, start, end):
        for number, a, b in _fields(payload, first, last) if kind in (1, 2, 3) else ():
            if number != 1:
                continue
            if kind == 1:
                values.append(payload[a:b])
            elif kind == 2:  # as int64 below: packed, or one by one
                if (b - a) % 4:
                    raise Unreadable("no tf.train.Example: floats of a broken size")
                values += struct.unpack_from(f"<{(b - a) // 4}f", payload, a)
            else:
                while a < b:
                    value, a = _read_varint(payload, a)
                    values.append(value - (value >> 63 << 64))
                if a > b:
                    raise Unreadable("no tf.train.Example: a number is cut off")
    return values[0] if len(values) == 1 else values


def _fields(message: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The number of each field of a protocol buffer and where its content begins and ends."""
    while position < end:
        tag, position = _read_varint(message, position)
        kind = tag & 7
        if kind == 2:
            size, position = _read_varint(message, position)
        elif kind == 0:
            size = _read_varint(message, position)[1] - position
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise Unreadable(f"no tf.train.Example: a field of kind {kind}")
        start, position = position, position + size
        if position > end:
            raise Unreadable("no tf.train.Example: a field is cut off")
        yield tag >> 3, start, position


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    try:
        while (byte := message[position]) > 0x7F and shift < 63:
            value |= (byte & 0x7F) << shift
            shift, position = shift + 7, position + 1
    except IndexError:
        raise Unreadable("no tf.train.Example: a number is cut off") from None
    return (value | byte << shift) & _ALL_64, position + 1


_ALL_64 = (1 << 64) - 1


def _varint(value: int) -> bytes:
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"{value} is no int64.")
    value &= _ALL_64  # two's complement, as int64 is written
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _tag(number: int, size: int) -> tuple[bytes, bytes]:
    return _varint(number << 3 | 2), _varint(size)


def _enclose(number: int, parts: list[bytes]) -> list[bytes]:
    """A field that holds the parts one after another; they are joined once, at the end."""
    return [*_tag(number, sum(map(len, parts))), *parts]
