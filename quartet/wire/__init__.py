"""What crosses process boundaries: ids, errors, configuration, frames, and the codec. Depends on msgspec alone."""
