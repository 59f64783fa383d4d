"""The detokenizer process: loads the vocabulary, then serves its core."""

from detok_proc.core import DetokCore
from detok_proc.incremental import DecoderFactory
from quartet.checkpoint.tokenizer_files import tokenizer_folder
from quartet.runtime.context import Context
from quartet.runtime.shell import Shell


async def main(context: Context) -> None:
    """Serve until a drain is over. Raises ModelError for a vocabulary that is missing or damaged."""
    factory = DecoderFactory(tokenizer_folder(context.config))
    family = factory.vocabulary.family
    await Shell(context, DetokCore(factory)).serve({"decoder": family.value if family else "general"})
