"""Short digests of what a tokenizer makes of a request. Imported in both environments."""

import hashlib


def digests(prompt: str, ids: list[int], text_ids: list[int]) -> str:
    """Return the digests of a prompt, of its ids and of a text's ids, with the numbers of ids."""
    numbers = (",".join(map(str, each)) for each in (ids, text_ids))
    prompt_digest, ids_digest, text_digest = map(_digest, (prompt, *numbers))
    return f"{prompt_digest} {len(ids)}:{ids_digest} {len(text_ids)}:{text_digest}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
