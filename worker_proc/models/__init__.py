"""The decoder-only transformer, built from the spec that config.json describes."""
