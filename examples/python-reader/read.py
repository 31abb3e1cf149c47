#!/usr/bin/env python3
"""Prints offset and length of every extent of a Binary list, if the list is whole: read.py changed-blocks.cbl"""
import hashlib, sys
from google.protobuf.internal.decoder import _DecodeVarint32 as varint
from blocklist_pb2 import Record

raw, at, extents, record = open(sys.argv[1], "rb").read(), 8, [], Record()
while not record.HasField("trailer"):
    start, (size, at) = at, varint(raw, at)
    record, at = Record.FromString(raw[at : at + size]), at + size
    if record.header.format_version > 1:
        sys.exit("this list has a format version that is unknown here")
    end, shift, numbers = record.chunk.first_offset, record.chunk.unit_shift, iter(record.chunk.extents)
    for v in numbers:  # twice the gap to the extent before, plus one if a new length follows
        length = next(numbers) << shift if v & 1 else length
        extents.append((end + (v >> 1 << shift), length))
        end = sum(extents[-1])
found = (True, hashlib.sha256(raw[:start]).digest(), len(extents), sum(length for _, length in extents))
if found != (record.trailer.complete, record.trailer.sha256, record.trailer.entry_count, record.trailer.changed_bytes):
    sys.exit("this list is damaged")
for offset, length in extents:
    print(f"{offset}\t{length}")
