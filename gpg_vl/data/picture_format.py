"""Identifies, by its first bytes, a file that should be an image but cannot be read as one."""

import re

HEAD_BYTES = 512
_CONVERT = "Convert it to PNG, for example with `magick OLD NEW.png`"
_FETCH = "Fetch the picture again"

_SIGNATURES = (
    (rb"....ftyp(avif|avis)", "an AVIF picture", _CONVERT),
    (rb"....ftyp(hei[cfsxm]|hev[cx]|mif1|msf1)", "a HEIC or HEIF picture", _CONVERT),
    (rb"....ftyp", "a film (MP4 or QuickTime), not a picture", "Export its frames as PNG"),
    (rb"\x1aE\xdf\xa3", "a film (Matroska or WebM), not a picture", "Export its frames as PNG"),
    (rb"RIFF....AVI ", "a film (AVI), not a picture", "Export its frames as PNG"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 picture", _CONVERT),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "a JPEG XL picture", _CONVERT),
    (rb"P[1-7][ \t\r\n#]|P[fF]\n", "a PPM, PGM, PBM, PAM or PFM picture", _CONVERT),
    (rb"\0\0[\1\2]\0[^\0]\0", "a Windows icon", _CONVERT),
    (rb"8BPS", "a Photoshop file", _CONVERT),
    (rb"DDS |DDS\x20", "a DDS texture", _CONVERT),
    (rb"qoif", "a QOI picture", _CONVERT),
    (rb"\x76\x2f\x31\x01", "an OpenEXR picture", _CONVERT),
    (rb"#\?RADIANCE|#\?RGBE", "a Radiance HDR picture", _CONVERT),
    (rb"SIMPLE  =", "a FITS file", _CONVERT),
    (rb".{128}DICM", "a DICOM file", _CONVERT),
    (rb"gimp xcf", "a GIMP file", _CONVERT),
    (rb"%PDF", "a PDF document", "Export its page as PNG"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript file, which is a program", "Export it as PNG"),
    (rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!DOCTYPE svg|<svg)", "an SVG drawing", "Export it as PNG"),
    (rb"(\xef\xbb\xbf)?\s*<", "a web page or XML, as a failed download leaves it", _FETCH),
    (rb"\s*[{\[]\s*[\"{\[]", "JSON text, not a picture", _FETCH),
    (rb"version https://git-lfs", "a Git LFS pointer, not the picture itself", "Fetch it with `git lfs pull`"),
    (rb"\x1f\x8b", "compressed with gzip", "Unpack it"),
    (rb"PK\x03\x04", "a ZIP archive", "Unpack it"),
    (rb"\x93NUMPY", "a NumPy array, not a picture", "Save it as PNG"),
    (rb"\x80[\2-\5]", "a pickle, which is never opened", "Save the picture as PNG"),
    (rb"(data:image/|iVBORw0KGgo|/9j/|R0lGOD|UklGR)", "base64 text, not the bytes of a picture", "Decode it"),
    (rb"\0+\Z", "zero bytes alone, as a copy that broke off leaves them", _FETCH),
)  # fmt: skip
_PATTERNS = tuple(
    (re.compile(signature, re.DOTALL | re.IGNORECASE), what, remedy)
    for signature, what, remedy in _SIGNATURES
)


def name_content(head: bytes) -> tuple[str, str] | None:
    """The type of a file and what to do with it, by its first `HEAD_BYTES`; None if unknown."""
    for pattern, what, remedy in _PATTERNS:
        if pattern.match(head):
            return what, remedy
    return None
