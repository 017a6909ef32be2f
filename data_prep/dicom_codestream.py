"""The size that a compressed picture declares of itself, read before any decoder sees it.

In: the bytes of one JPEG, JPEG-LS or JPEG 2000 codestream. Out: rows, columns and components by its own header
(ITU-T T.81 B.2.2, T.87 C.2.2, T.800 A.5.1), and whether its end marker is there. A decoder allocates what the
codestream declares, whatever the DICOM tags say, and most of them fill a cut-off picture with grey without a word.
"""

import dataclasses
import struct

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"  # JPEG 2000 ends with the same two bytes
_J2K_START = b"\xff\x4f\xff\x51"  # SOC, then SIZ
_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "
_START_OF_SCAN = 0xDA
# Start-of-frame markers; 0xF7 is that of JPEG-LS. DHT, JPG and DAC stand among their numbers.
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_HEADER_BYTES = 65536


@dataclasses.dataclass(frozen=True)
class CodestreamSize:
    """What a codestream's header declares, in pixels and components a pixel."""

    rows: int
    columns: int
    components: int


def codestream_size(frame: bytes) -> CodestreamSize | None:
    """The declared size, or None if these bytes are the start of no JPEG, JPEG-LS or JPEG 2000 picture."""
    try:
        if frame[:2] == _SOI:
            return _jpeg_size(frame)
        start = frame[:_HEADER_BYTES].find(_J2K_START)
        if start == 0 or (start > 0 and frame.startswith(_JP2_SIGNATURE)):
            return _jpeg2000_size(frame, start)
    except (struct.error, IndexError):
        pass
    return None


def is_whole(frame: bytes) -> bool:
    """Whether the end marker is the last thing in the frame, padding to an even length apart."""
    return frame[-64:].rstrip(b"\x00\xff").endswith(_EOI) or frame.endswith(_EOI)


def _jpeg_size(frame: bytes) -> CodestreamSize | None:
    at = 2
    while frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in _FRAME_MARKERS:
            rows, columns, components = struct.unpack_from(">HHB", frame, at + 5)
            return CodestreamSize(rows, columns, components)
        if marker == _START_OF_SCAN:
            return None
        at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    return None


def _jpeg2000_size(frame: bytes, start: int) -> CodestreamSize:
    width, height, left, top = struct.unpack_from(">4I", frame, start + 8)
    (components,) = struct.unpack_from(">H", frame, start + 40)
    return CodestreamSize(height - top, width - left, components)
