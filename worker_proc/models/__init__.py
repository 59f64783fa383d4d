"""The decoder-only transformer and the spec, read from config.json, that says which variant a model is."""
