"""Point clouds, read back."""

import numpy as np


def read_ply(content):
    """Vertices and comments of a binary PLY file, read according to its header."""
    header, _, body = content.partition(b"end_header\n")
    magic, form, *lines = header.decode("ascii").splitlines()
    assert (magic, form) == ("ply", "format binary_little_endian 1.0")
    words = [line.split() for line in lines if not line.startswith("comment ")]
    (_, name, count), *properties = words
    assert name == "vertex" and {each[0] for each in properties} == {"property"}
    kinds = {"float": "<f4", "uchar": "u1"}
    vertices = np.frombuffer(body, [(name, kinds[kind]) for _, kind, name in properties])
    assert len(vertices) == int(count)
    return vertices, [line.removeprefix("comment ") for line in lines if line not in words]
