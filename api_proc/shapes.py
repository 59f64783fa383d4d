"""Every shape of a response, as the records of streams hold them."""

import msgspec

from api_proc.anthropic.rendering import MessageShape
from api_proc.openai.annotations import AnnotatedShape
from api_proc.openai.chat_rendering import ChatShape
from api_proc.openai.completion_rendering import CompletionShape
from api_proc.openai.parsed_rendering import ParsedChatShape
from api_proc.responses.rendering import ResponseShape
from api_proc.server.rendering import Shape

AnyShape = ChatShape | ParsedChatShape | CompletionShape | AnnotatedShape | MessageShape | ResponseShape

_decode_shape = msgspec.msgpack.Decoder(AnyShape).decode


def read_shape(shape: msgspec.Raw) -> Shape:
    """Return what a record says of how a response is written."""
    read: AnyShape = _decode_shape(shape)
    return read
