"""Collects the pieces that one push of text yields."""

from collections.abc import Collection

from api_proc.parsing.pieces import CallArguments, CallStart, Content, Piece, Reasoning


class PieceWriter:
    """Numbers the calls and joins neighbouring texts.

    Args:
        names: of the tools that can be called.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.names = names
        self.calls = 0
        self._pieces: list[Piece] = []

    def content(self, text: str) -> None:
        """Add text for the user."""
        last = self._pieces[-1] if self._pieces else None
        if isinstance(last, Content):
            self._pieces[-1] = Content(last.text + text)
        elif text:
            self._pieces.append(Content(text))

    def reasoning(self, text: str) -> None:
        """Add text of the model's thinking."""
        last = self._pieces[-1] if self._pieces else None
        if isinstance(last, Reasoning):
            self._pieces[-1] = Reasoning(last.text + text)
        elif text:
            self._pieces.append(Reasoning(text))

    def start(self, name: str) -> None:
        """Begin a call; `name` is one of the names."""
        self._pieces.append(CallStart(self.calls, name))
        self.calls += 1

    def arguments(self, text: str) -> None:
        """Add to the arguments of the call that began last."""
        last = self._pieces[-1] if self._pieces else None
        if isinstance(last, CallArguments):
            self._pieces[-1] = CallArguments(last.call, last.text + text)
        elif text:
            self._pieces.append(CallArguments(self.calls - 1, text))

    def take(self) -> list[Piece]:
        """Return the pieces since the last take."""
        pieces, self._pieces = self._pieces, []
        return pieces
