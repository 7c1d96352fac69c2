"""Text as a tensor: its bytes, so that a text can be a modality like any other.

A batch holds tensors, and every party may read text with a tokenizer of its own. So what travels
through tables and batches are the bytes of UTF-8, and each encoder makes its tokens of them. Our
choice.
"""

import torch
from torch import Tensor


def text_to_bytes(text: str, length: int) -> Tensor:
    """Return the bytes of a text, zeros behind them.

    A longer text is cut at its end, between two characters.

    Args:
        text: Any text without a null character.
        length: Number of bytes L.

    Returns:
        (L,) float32 of 0..255, as the inputs of all modalities are.

    Raises:
        ValueError: If the text has a null character, which means the end here.

    Example:
        >>> text_to_bytes("hé", 2), text_to_bytes("hé", 4)
        (tensor([104.,   0.]), tensor([104., 195., 169.,   0.]))
    """
    if "\0" in text:
        raise ValueError("has a null character")
    kept = text.encode()[:length].decode(errors="ignore").encode()
    return torch.tensor([*kept, *[0] * (length - len(kept))], dtype=torch.float32)


def bytes_to_text(rows: Tensor) -> list[str]:
    """Return the texts of rows that `text_to_bytes` made; empty for a row of zeros.

    Args:
        rows: (B, L) of 0..255.

    Example:
        >>> bytes_to_text(torch.stack([text_to_bytes(t, 5) for t in ("hé", "")]))
        ['hé', '']
    """
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows.int().tolist()]
