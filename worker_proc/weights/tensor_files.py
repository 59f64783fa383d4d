"""The open weights files of a checkpoint, and the part of each tensor that a rank holds."""

from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from quartet.checkpoint.spec import ModelSpec
from quartet.checkpoint.weight_files import check_tensors, find_tensors
from quartet.wire.errors import ModelError
from worker_proc.weights.tensors import Shard


class TensorFiles:
    """The tensors of `folder`, which are those of `spec`; the files are closed with `stack`. Raises ModelError."""

    def __init__(self, folder: Path, spec: ModelSpec, shard: Shard, stack: ExitStack) -> None:
        self._shard = shard
        self._found = find_tensors(folder, spec)
        check_tensors(self._found, spec)
        paths = {tensor.path for tensor in self._found.values()}
        try:
            self._files = {path: stack.enter_context(safe_open(path, framework="pt")) for path in paths}
        except SafetensorError as error:
            raise ModelError(f"the weights in {folder} cannot be read: {error}") from error

    def rows(self, name: str, sizes: tuple[int, ...]) -> list[Tensor]:
        """Return the shard's rows of each of the tensors of `sizes` rows that `name` holds one after another."""
        if self._shard.size == 1:
            return [*self.view(name).split(sizes)]
        spans = [(end - size, *self._shard.span(size)) for size, end in zip(sizes, accumulate(sizes), strict=True)]
        return [self.view(name, span=(first + start, first + stop)) for first, start, stop in spans]

    def view(self, name: str, split: int | None = None, span: tuple[int, int] | None = None) -> Tensor:
        """Return a tensor on the host, the shard's part of its extent `split`, or a span of its rows."""
        path, stored, shape, _, part = self._found[name]
        try:
            if part is None and span is None and (split is None or self._shard.size == 1):
                tensor: Tensor = self._files[path].get_tensor(stored)
                return tensor
            spans = [self._shard.span(extent) if at == split else (0, extent) for at, extent in enumerate(shape)]
            spans[0] = span or spans[0]
            held = self._files[path].get_slice(stored)
            if part is not None:
                matrix, row = part
                spans = [(matrix, matrix + 1), (row + spans[0][0], row + spans[0][1]), spans[1]]
            view: Tensor = held[tuple(slice(*span) for span in spans)]
            return view if part is None else view.squeeze(0)
        except (SafetensorError, ValueError) as error:
            raise ModelError(f"tensor {name} in {path.name} cannot be read: {error}") from error
