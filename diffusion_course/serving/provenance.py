"""Where a picture comes from, written into its PNG file and signed.

The signature shows that neither the note nor the pixels were changed by anybody without the secret.
It does not show that a picture without a note is real: saving it anew takes the note away.
"""

import hashlib
import hmac
import io
import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

FIELD = "diffusion-course:provenance"


class Provenance(NamedTuple):
    """What a PNG file says of itself.

    Attributes:
      verdict: "valid"; "altered" if note, pixels and secret do not belong together; "missing".
      note: what was written, or None.
    """

    verdict: str
    note: dict | None


def sign(pixels: np.ndarray, note: Mapping, secret: bytes) -> bytes:
    """A PNG file with a note about its origin, and a signature of both.

    Args:
      pixels: uint8 [H, W, 3] or [H, W].
      note: what JSON can hold, such as the model's hash, the time and the seed.
      secret: known to who signs and who checks, at least 16 bytes. (Anybody who can check can also
        sign. Public-key signatures part the two; C2PA uses them.)

    Returns: the content of the file.
    Raises: ValueError for other pixels, another note or a short secret.
    Source: HMAC-SHA256, RFC 2104; the idea of a signed manifest: C2PA specification.
    """
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or pixels.shape[2:] == (3,)):
        raise ValueError(
            f"pixels must be uint8 [H, W] or [H, W, 3], got {pixels.dtype} {list(pixels.shape)}"
        )
    _long_enough(secret)
    try:
        signature = _signature(pixels, dict(note), secret)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"note must hold what JSON can: {error}") from None
    told = {"note": dict(note), "signature": signature}
    extra = PngImagePlugin.PngInfo()
    extra.add_itxt(FIELD, json.dumps(told, ensure_ascii=False, sort_keys=True))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=extra)
    return buffer.getvalue()


def check(content: bytes, secret: bytes) -> Provenance:
    """Reads a PNG file's note and checks it.

    Args:
      content: of the file.
      secret: as in `sign`.

    Raises: ValueError for a short secret; Pillow's error for what is no picture.
    """
    _long_enough(secret)
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()
        pixels, text = np.asarray(picture), picture.info.get(FIELD)
    if text is None:
        return Provenance("missing", None)
    try:  # what strangers wrote may be no text that UTF-8 can hold, or nested without end
        told = json.loads(text)
        note, signature = told["note"], str(told["signature"]).encode()
        expected = _signature(pixels, note, secret).encode()
    except (ValueError, KeyError, TypeError, RecursionError):
        return Provenance("altered", None)
    # In constant time: how long a comparison takes must not say how much was right.
    valid = hmac.compare_digest(expected, signature)
    return Provenance("valid" if valid else "altered", note)


def _signature(pixels: np.ndarray, note, secret: bytes) -> str:
    # The shape too: the same bytes as 2×8 and as 4×4 are two pictures.
    head = json.dumps([list(pixels.shape), note], ensure_ascii=False, sort_keys=True)
    message = hashlib.sha256(head.encode()).digest() + pixels.tobytes()
    return hmac.new(_long_enough(secret), message, hashlib.sha256).hexdigest()


def _long_enough(secret: bytes) -> bytes:
    if not isinstance(secret, bytes) or len(secret) < 16:
        raise ValueError("secret must be at least 16 bytes")
    return secret
