"""Digests of a checkpoint, to find out whether it has changed."""

import hashlib
from pathlib import Path

_WHOLE_FILE = 1 << 24
"""Bytes; larger files are sampled."""
_SAMPLES = 256
_SAMPLE = 1 << 14


def model_sha(folder: Path) -> str:
    """Digest of a checkpoint folder's names, sizes and contents, so that changed weights are noticed.

    Files above 16 MB are sampled at 256 evenly spaced places; training changes every weight. 16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.iterdir() if p.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            if size <= _WHOLE_FILE:
                digest.update(stream.read())
                continue
            for i in range(_SAMPLES):
                stream.seek(i * (size - _SAMPLE) // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()[:16]
