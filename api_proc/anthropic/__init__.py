"""Anthropic's Messages API: a body becomes a chat request, its output Anthropic's events and bodies."""
