"""Decoding of single pictures: 16 bits, and files made to do harm."""

import io
import struct
import zlib

import numpy as np
from hostile_files import refusal_of
from PIL import Image

from utils.data.decoding import decode_image


def test_sixteen_bit_pictures_keep_their_content():
    ramp = (np.arange(32 * 32).reshape(32, 32) * 64).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, format="png")
    decoded = decode_image(buffer.getvalue())
    assert np.abs(decoded[0].astype(int) - (ramp >> 8)).max() <= 1


def png(width, height, body) -> bytes:
    chunk = lambda kind, content: (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_picture_bombs_are_refused(tmp_path, capfd):
    for size in ((100_000, 100_000), (2**31 - 1, 1), (20_000, 5_000)):
        (tmp_path / "picture.png").write_bytes(png(*size, zlib.compress(b"\0" * 10_000)))
        assert refusal_of(tmp_path / "picture.png")
    packed = zlib.compress(b"\0" * 10**7)
    (tmp_path / "picture.png").write_bytes(png(32, 32, packed))  # more pixels than its header says
    refusal_of(tmp_path / "picture.png")
    text = io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n(touch boom) run\nshowpage\n%%EOF\n")
    (tmp_path / "picture.png").write_bytes(text.getvalue())  # Pillow would pass it to Ghostscript
    assert refusal_of(tmp_path / "picture.png")
    assert capfd.readouterr().err == ""
