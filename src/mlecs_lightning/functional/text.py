"""Conversion between texts and tensors of bytes, so that text can be a modality like any other.

Batches hold tensors, and each client may use another tokenizer. So tables and batches hold UTF-8
bytes, and each encoder tokenizes them itself. Our choice.
"""

import torch
from torch import Tensor


def text_to_bytes(text: str, length: int) -> Tensor:
    """Return the UTF-8 bytes of a text, padded with zeros.

    A longer text is cut off at the end, between two characters.

    Args:
        text: Any text without a null character.
        length: Number of bytes L.

    Returns:
        (L,) float32 with values 0..255, since the inputs of all modalities are float32.

    Raises:
        ValueError: If the text has a null character, which would be taken for padding.

    Example:
        >>> text_to_bytes("hé", 2), text_to_bytes("hé", 4)
        (tensor([104.,   0.]), tensor([104., 195., 169.,   0.]))
    """
    if "\0" in text:
        raise ValueError("the text has a null character")
    kept = text.encode()[:length].decode(errors="ignore").encode()
    return torch.tensor([*kept, *[0] * (length - len(kept))], dtype=torch.float32)


def bytes_to_text(rows: Tensor) -> list[str]:
    """Invert `text_to_bytes` for several rows; a row of zeros is an empty text.

    Args:
        rows: (B, L) with values 0..255.

    Example:
        >>> bytes_to_text(torch.stack([text_to_bytes(t, 5) for t in ("hé", "")]))
        ['hé', '']
    """
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows.int().tolist()]
