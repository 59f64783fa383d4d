"""How clients name requests: by the id of the answer, by an id of their own, or all of them at once."""

from quartet.wire.ids import Rid


class RequestName:
    """What a client says of requests in a query.

    Args:
        text: the hexadecimal id, with or without the prefix that answers give it (`chatcmpl-`, `msg_`), or the client's
            own id; "": every request.
        tenant: whose requests are meant; None: those of all tenants.
    """

    __slots__ = ("_rid", "_tenant", "_text")

    def __init__(self, text: str, tenant: str | None) -> None:
        self._text = text
        self._rid = text.replace("_", "-").rpartition("-")[2].lower()
        self._tenant = tenant

    def fits(self, rid: Rid | bytes, tenant: str, request_id: str) -> bool:
        """Say whether a request is meant; `request_id` is the client's own id."""
        if self._tenant not in (None, tenant):
            return False
        return not self._text or self._text == request_id or self._rid == rid.hex()
