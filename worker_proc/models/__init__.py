"""The decoder-only transformer, and the spec, read from config.json, of its variants."""
