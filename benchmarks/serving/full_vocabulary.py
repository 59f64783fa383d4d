"""A tokenizer that has text for every id of a model.

The models below benchmarks/models have no tokenizer, and the one that launches use has text for 512 ids: the text of
nearly every output id would be empty, and an id without text makes no server-sent event.
"""

import itertools
import json
import shutil
import string
from pathlib import Path

LETTERS_EACH = 4


def write_tokenizer(source: Path, vocab_size: int, folder: Path) -> None:
    """Copy the tokenizer of `source` into `folder`, with words of a space and four letters up to `vocab_size` ids."""
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    words = ("Ġ" + "".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=LETTERS_EACH))
    for word in words:
        if len(vocab) >= vocab_size:
            break
        vocab.setdefault(word, len(vocab))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    shutil.copy(source / "tokenizer_config.json", folder)
