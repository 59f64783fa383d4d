"""Quartet: a serving engine for large language models, built of small processes that exchange frames."""

__version__ = "0.1.0"
