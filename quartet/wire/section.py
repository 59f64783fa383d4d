"""What a section of the configuration is (quartet.wire.config)."""

import msgspec


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the sections; also travels in frames."""
