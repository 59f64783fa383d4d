"""POST /tokenize and /detokenize, also under /v1: what the tokenizer makes of a prompt, without generating."""

from typing import Any

import msgspec
from aiohttp import web

from api_proc.openai.chat_messages import chat_prompt
from api_proc.openai.completions import check_ids
from api_proc.openai.models import check_model
from api_proc.openai.response_task import MAX_CHOICES
from api_proc.openai.routing import tenant_of
from api_proc.openai.schema import ChatRequest, Message, Tool
from api_proc.openai.tools import tool_use
from api_proc.openai.unsupported import refuse_unsupported
from api_proc.server.bodies import decode_body, json_response, read_body
from api_proc.server.errors import invalid, unsupported
from api_proc.server.service import SERVICE, Service
from quartet.client.request import GenerateRequest
from quartet.wire.frames import ChatPrompt, Encoded, IdsPrompt, SamplingParams, TextPrompt, pack_ids, unpack_ids

Prompt = TextPrompt | IdsPrompt | ChatPrompt


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """Body of POST /tokenize: either `prompt`, one or several, or `messages` with what else makes a chat prompt."""

    model: str | None = None
    prompt: str | list[str] | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    chat_template: Any = None
    media_io_kwargs: Any = None
    mm_processor_kwargs: Any = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """Body of POST /detokenize: the ids of one text or of several."""

    model: str | None = None
    tokens: list[int | list[int]]
    skip_special_tokens: bool | None = None


_tokenize = msgspec.json.Decoder(TokenizeRequest)
_detokenize = msgspec.json.Decoder(DetokenizeRequest)


async def tokenize(request: web.Request) -> web.Response:
    """Give the ids of a prompt, exactly as a request with it would be computed."""
    service = request.app[SERVICE]
    with service.admission.enter(tenant_of(request, service)) as place:
        body = await read_body(request, service.max_body_bytes, service.timeouts.body_s, place.hold)
        wanted = decode_body(_tokenize, body)
        prompts = _prompts(service, wanted)
        place.claim(len(prompts), None)
        encoded = [await _encode(service, one, place.tenant, bool(wanted.return_token_strs)) for one in prompts]
    ids = [unpack_ids(one.ids) for one in encoded]
    is_list = isinstance(wanted.prompt, list)
    tokens = [one.tokens for one in encoded]
    answer = {
        "count": [len(one) for one in ids] if is_list else len(ids[0]),
        "max_model_len": service.config.require_model().context_length,
        "tokens": ids if is_list else ids[0],
        "token_strs": (tokens if is_list else tokens[0]) if wanted.return_token_strs else None,
    }
    return json_response(answer)


async def detokenize(request: web.Request) -> web.Response:
    """Give the text of ids: as `prompt` for clients of vLLM, as `text` for those of SGLang."""
    service = request.app[SERVICE]
    with service.admission.enter(tenant_of(request, service)) as place:
        body = await read_body(request, service.max_body_bytes, service.timeouts.body_s, place.hold)
        wanted = decode_body(_detokenize, body)
        check_model(service, wanted.model)
        is_list = bool(wanted.tokens) and isinstance(wanted.tokens[0], list)
        given: list[Any] = list(wanted.tokens) if is_list else [wanted.tokens]
        prompts = [_ids_prompt(service, ids, bool(wanted.skip_special_tokens)) for ids in given]
        place.claim(len(prompts), None)
        texts = [(await _encode(service, one, place.tenant, False)).text if one.ids else "" for one in prompts]
    text = texts if is_list else texts[0]
    return json_response({"prompt": text, "text": text})


async def _encode(service: Service, prompt: Prompt, tenant: str, names_tokens: bool) -> Encoded:
    request = GenerateRequest(prompt=prompt, params=SamplingParams(), tenant=tenant, names_tokens=names_tokens)
    return await service.engine.encode(request)


def _prompts(service: Service, wanted: TokenizeRequest) -> list[Prompt]:
    """Return what is to be tokenized; raises RequestError with the field at fault."""
    check_model(service, wanted.model)
    if (wanted.prompt is None) == (wanted.messages is None):
        raise invalid("prompt", "exactly one of prompt and messages is required")
    for name in ("media_io_kwargs", "mm_processor_kwargs"):
        if getattr(wanted, name):
            raise unsupported(name)
    if wanted.messages is not None:
        return [_chat_prompt(wanted, wanted.messages)]
    texts = [wanted.prompt] if isinstance(wanted.prompt, str) else wanted.prompt or []
    if not texts or not all(texts):
        raise invalid("prompt", "prompt must not be empty")
    if len(texts) > MAX_CHOICES:
        raise invalid("prompt", f"prompt has more than {MAX_CHOICES} entries")
    return [TextPrompt(text, wanted.add_special_tokens is not False) for text in texts]


def _chat_prompt(wanted: TokenizeRequest, messages: list[Message]) -> ChatPrompt:
    if wanted.add_special_tokens:
        raise invalid("add_special_tokens", "add_special_tokens needs prompt: a chat template adds them by itself")
    chat = ChatRequest(
        messages=messages,
        tools=wanted.tools,
        tool_choice=wanted.tool_choice,
        add_generation_prompt=wanted.add_generation_prompt,
        continue_final_message=wanted.continue_final_message,
        chat_template_kwargs=wanted.chat_template_kwargs,
        chat_template=wanted.chat_template,
        reasoning_effort=wanted.reasoning_effort,
    )
    refuse_unsupported(chat)
    use = tool_use(chat)
    return chat_prompt(chat, use.described() if use else None)


def _ids_prompt(service: Service, ids: Any, skips_special_tokens: bool) -> IdsPrompt:
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        raise invalid("tokens", "tokens must be token ids, or lists of token ids, and not a mixture")
    if ids:
        check_ids(service.config.require_model(), ids, "tokens")
    return IdsPrompt(pack_ids(ids), True, skips_special_tokens)
