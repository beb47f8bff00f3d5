"""Recognises images and videos by the name of a file, column or key.

Pure functions of names and values; no file is opened.
"""

import re

_PICTURE_ENDINGS = "png jpg jpeg jpe jfif webp gif bmp tif tiff avif heic heif jp2 ppm pgm"
_VIDEO_ENDINGS = "mp4 avi mov mkv webm m4v mpg mpeg"
_ENDINGS = "|".join(f"{_PICTURE_ENDINGS} {_VIDEO_ENDINGS}".split())
_MEDIA_PATH = re.compile(rf"\S{{1,1000}}\.(?:{_ENDINGS})", re.IGNORECASE)
_LONGEST_PATH = 1000

_MAGIC = re.compile(
    rb"\x89PNG|\xff\xd8\xff|GIF8|BM|II\*\x00|MM\x00\*|\x00\x00\x00.ftyp|\x00\x00\x00\x0cjP|\x1aE\xdf\xa3"
    rb"|RIFF....(?:WEBP|AVI )",
    re.DOTALL,
)
_ENCODED = re.compile(r"data:(?:image|video)/|iVBORw0KGgo|/9j/4|R0lGOD|UklGR")

_MEDIA_WORDS = frozenset(
    "image images img imgs picture pictures pic pics photo photos video videos frame frames clip".split()  # noqa: SIM905
)
_OTHER_WORDS = frozenset(
    """id ids idx index size sizes width height shape count num number caption captions description desc type kind format
    mode source license category class label labels hash md5 sha sha1 sha256 prompt question text ocr tags title split has
    is rate fps duration aspect resolution""".split()  # noqa: SIM905
)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")


def is_media_path(text: str) -> bool:
    """True for one word that ends like the name of a picture or video file."""
    return _MEDIA_PATH.fullmatch(text) is not None


def is_encoded(data: str | bytes) -> bool:
    """True for the bytes of an image or video, and for their base64."""
    pattern_matches = _ENCODED.match(data) if isinstance(data, str) else _MAGIC.match(data)
    return pattern_matches is not None


def names_media(name: str) -> bool:
    """True for `img`, `image_1`, `imagePath`; not for `image_size` or `image_id`, which are about a picture."""
    words = {word.casefold() for word in _WORD.findall(name.rpartition(".")[2])}
    return bool(words & _MEDIA_WORDS) and not words & _OTHER_WORDS


def may_be_path(text: str) -> bool:
    """True for a single word that has a dot or a slash and is not a number."""
    is_word = len(text) <= _LONGEST_PATH and not any(sign in text for sign in " \n")
    return is_word and ("." in text or "/" in text) and not text.replace(".", "").isdigit()


def looks_like_media(name: str, value: object) -> bool:
    """Whether a value below a key is a picture or video, or a list or struct that holds one.

    Example: `looks_like_media("image_path", "a.png")` and `looks_like_media("files", [{"path":
    "a.png"}])` are True; `looks_like_media("name", "Ada")` is not.
    """
    if isinstance(value, bytes):
        return is_encoded(value)
    if isinstance(value, str):
        by_name = names_media(name) and may_be_path(value)
        return is_encoded(value) or is_media_path(value) or by_name
    if isinstance(value, list):
        return any(looks_like_media(name, item) for item in value)
    if isinstance(value, dict):
        return any(looks_like_media(f"{name}.{key}", item) for key, item in value.items())
    return False
