"""The HTTP endpoint: a client of the engine that speaks OpenAI's JSON and server-sent events.

Owns client connections and nothing else: tokens, queues and prompts live behind `quartet.client.engine.Engine`.
"""
