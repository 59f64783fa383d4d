"""The wire schema against frames.schema: every Struct, the unions of the inboxes, and the header.

A changed wire schema needs a raised codec VERSION: receivers tell schemas apart by the version alone. Names of fields
do not travel, so a renamed field changes the snapshot and leaves VERSION as it is. After either change write the
snapshot again: `python -m tests.unit.quartet.wire.test_schema`.
"""

import difflib
import pkgutil
import types
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec
import pytest

from quartet.wire import codec, frames, ids
from quartet.wire.codec import Encoder, Source
from quartet.wire.ids import Epoch, Rid, Role

SNAPSHOT = Path(__file__).with_name("frames.schema")
NOT_STRUCTS = {"Frame", "LastEnd", "RunnerMethod"}
MODULES = [import_module(f"{frames.__name__}.{module.name}") for module in pkgutil.iter_modules(frames.__path__)]
RULE = """The wire schema differs from the snapshot (- snapshot, + code).
A changed wire schema needs a raised VERSION in quartet/wire/codec.py; a renamed field alone does not.
Write the snapshot again: python -m tests.unit.quartet.wire.test_schema"""


def test_the_wire_schema_is_that_of_the_snapshot() -> None:
    difference = changes(schema())
    assert not difference, f"{RULE}\n\n{difference}"


def test_the_snapshot_holds_every_struct_and_every_inbox() -> None:
    lines = SNAPSHOT.read_text().splitlines()
    exported = {name for name in frames.__all__ if isinstance(getattr(frames, name), type)}
    assert {line.split()[0] for line in lines if line.endswith(")") and "tag" in line} == exported - NOT_STRUCTS
    assert sum("Inbound = " in line for line in lines) == 8


class Before(frames.Frame, frozen=True, tag=90):
    rid: Rid
    count: int
    logprobs: list[frames.TokenLogprobs] | None = None


class Retagged(Before, frozen=True, tag=91):
    pass


class Retyped(frames.Frame, frozen=True, tag=90):
    rid: Rid
    count: float
    logprobs: list[frames.TokenLogprobs] | None = None


class Reordered(frames.Frame, frozen=True, tag=90):
    count: int
    rid: Rid
    logprobs: list[frames.TokenLogprobs] | None = None


class Renamed(frames.Frame, frozen=True, tag=90):
    rid: Rid
    total: int
    logprobs: list[frames.TokenLogprobs] | None = None


class Extended(Before, frozen=True, tag=90):
    is_last: bool = False


class Defaulted(frames.Frame, frozen=True, tag=90):
    rid: Rid
    count: int
    logprobs: list[frames.TokenLogprobs] | None = msgspec.field(default_factory=list)


@pytest.mark.parametrize("after", [Retagged, Retyped, Reordered, Renamed, Extended, Defaulted])
def test_a_changed_struct_has_another_schema(after: type[msgspec.Struct]) -> None:
    assert struct_lines(Before, "X") == ["X (tag 90)", "    rid: Rid", "    count: int",
                                         "    logprobs: list[TokenLogprobs] | None = None"]  # fmt: skip
    assert struct_lines(after, "X") != struct_lines(Before, "X")


def test_the_difference_names_what_has_changed() -> None:
    current = schema()
    assert changes(current) == ""
    changed = changes(current.replace("    steps_issued: int\n", "    steps_issued: int\n    steps_done: int = 0\n"))
    assert [line for line in changed.splitlines() if line[0] in "+-"] == [
        "--- frames.schema", "+++ code", "+    steps_done: int = 0"
    ]  # fmt: skip
    assert " HeldRequest (untagged)" in changed.splitlines()


def changes(current: str) -> str:
    """Return the unified difference from the snapshot to `current`; empty if there is none."""
    before = SNAPSHOT.read_text().splitlines() if SNAPSHOT.exists() else []
    return "\n".join(difflib.unified_diff(before, current.splitlines(), "frames.schema", "code", lineterm="", n=6))


def schema() -> str:
    """Return the readable schema of everything on the wire."""
    source = Source(Role.API, 3, Epoch(65))
    header = codec.HEADER.unpack_from(Encoder(source, boot_id=7).encode(frames.Drained()))
    inboxes = [(name, getattr(frames, name)) for name in frames.__all__ if name.endswith("Inbound")]
    names = [(name, kind) for name, kind in vars(ids).items() if hasattr(kind, "__supertype__")]
    sections = [
        [f"VERSION {codec.VERSION}, at most {codec.MAX_FRAME_BYTES} bytes a frame"],
        [
            f"header {codec.HEADER.format}, {codec.HEADER.size} bytes",
            f"    of Drained from {Role.API!r}, rank 3, epoch 65, boot id 7: {header}",
        ],
        [f"ids are little-endian, {frames.ID_BYTES} bytes each: [1, 258] is {frames.pack_ids([1, 258]).hex()}"],
        ["roles " + ", ".join(f"{role.name} {role.value}" for role in Role)],
        [f"{name} = {kind.__supertype__.__name__}" for name, kind in names],
        [f"{name} = {type_name(kind)}" for name, kind in inboxes],
    ]
    for module in MODULES:
        structs = [kind for kind in vars(module).values() if is_struct_of(module, kind)]
        sections += [[f"== {module.__name__}"]] if structs else []
        sections += [struct_lines(kind, kind.__name__) for kind in structs]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def is_struct_of(module: types.ModuleType, kind: Any) -> bool:
    is_struct = isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not frames.Frame
    return is_struct and kind.__module__ == module.__name__


def struct_lines(kind: type[msgspec.Struct], name: str) -> list[str]:
    """Return the tag and the fields of one Struct, in the order in which they travel."""
    config = kind.__struct_config__
    tag = "untagged" if config.tag is None else f"tag {config.tag}"
    assert config.array_like and config.forbid_unknown_fields and config.frozen
    return [f"{name} ({tag})", *(field_line(field) for field in msgspec.structs.fields(kind))]


def field_line(field: msgspec.structs.FieldInfo) -> str:
    line = f"    {field.encode_name}: {type_name(field.type)}"
    if field.default is not msgspec.NODEFAULT:
        return f"{line} = {field.default!r}"
    if field.default_factory is not msgspec.NODEFAULT:
        return f"{line} = {field.default_factory.__name__}()"
    return line


def type_name(kind: Any) -> str:
    """Return the name of a type without its modules."""
    arguments = get_args(kind)
    if kind is Ellipsis:
        return "..."
    if get_origin(kind) is Annotated:
        bound = f"at most {arguments[1].le}" if arguments[1].pattern is None else f"like {arguments[1].pattern}"
        return f"{type_name(arguments[0])} {bound}"
    if get_origin(kind) in (Union, types.UnionType):
        return " | ".join(type_name(argument) for argument in arguments)
    if arguments:
        return f"{get_origin(kind).__name__}[{', '.join(type_name(argument) for argument in arguments)}]"
    return "None" if kind is type(None) else str(kind.__name__)


if __name__ == "__main__":
    SNAPSHOT.write_text(schema())
