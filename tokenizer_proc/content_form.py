"""Finds the form in which a template takes the content of messages: as text, as a list of parts, or either.

Clients send both, and a template that meets the other one may lose the text without an error: a loop over parts finds
none in a string. The form is found by rendering small conversations, once, when the template is loaded; each role has
its own, since templates often treat one role differently.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from tokenizer_proc.messages import Content, Message, text_parts

Attempt = Callable[[list[Message]], str | None]
"""Renders a conversation; None if the template does not accept it."""

# No filter changes digits.
_FIRST, _SECOND, _UNREAD = "50288419716939937510", "58209749445923078164", "06286208998628034825"
_PARTS: list[dict[str, str]] = [{"type": "text", "text": text, "unread": _UNREAD} for text in (_FIRST, _SECOND)]
_ROLES = ("user", "system", "developer", "assistant", "tool")
_CALL = {"id": "call00001", "type": "function", "function": {"name": "probe", "arguments": {}}}


class ContentForm(NamedTuple):
    """What a template takes as the content of a message."""

    takes_text: bool
    takes_parts: bool

    def shape(self, content: Content) -> Content:
        """Return `content` as text or as parts, unchanged if the template takes it as it is."""
        if not content:
            return "" if self.takes_text else []
        if isinstance(content, str):
            return content if self.takes_text else text_parts([content])
        return content if self.takes_parts else "\n".join(part["text"] for part in content)


class ContentForms:
    """The form of each role's content.

    Args:
        attempt: renders with the template.
    """

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._forms: dict[str, ContentForm] = {}
        for role in _ROLES:
            self._forms[role] = self._find(role)

    def shape(self, message: Message) -> Message:
        """Return `message` with its content in the form of its role; an unusual role is treated as the user's."""
        return {**message, "content": self._of(message["role"]).shape(message["content"])}

    def _of(self, role: str) -> ContentForm:
        return self._forms.get(role) or self._forms.get("user") or ContentForm(True, False)

    def _find(self, role: str) -> ContentForm:
        text = self._rendered(role, _FIRST)
        parts = self._rendered(role, _PARTS)
        # A template that prints the list itself shows all of it.
        form = ContentForm(_FIRST in text, _FIRST in parts and _SECOND in parts and _UNREAD not in parts)
        return form if any(form) else self._of(role)

    def _rendered(self, role: str, content: Content) -> str:
        """Return the first conversation with such a message that the template accepts, rendered; "" if none."""
        return next((text for each in self._conversations(role, content) if (text := self._attempt(each))), "")

    def _conversations(self, role: str, content: Content) -> Iterator[list[Message]]:
        """Yield conversations of increasing length. Other messages have the form that is known, or the same one."""
        tried = ContentForm(isinstance(content, str), isinstance(content, list))

        def other(role: str) -> Message:
            return {"role": role, "content": self._forms.get(role, tried).shape("-")}

        message = {"role": role, "content": content}
        start = [other("system")]
        if role in ("system", "developer"):
            yield [message, other("user")]
        elif role == "user":
            yield from ([message], [*start, message])
        elif role == "assistant":
            turns = [other("user"), message]
            yield from (turns, [*turns, other("user")], [*start, *turns])
        else:
            call = {**other("assistant"), "tool_calls": [_CALL]}
            turns = [other("user"), call, {**message, "tool_call_id": _CALL["id"], "name": "probe"}]
            yield from (turns, [*start, *turns])
