"""The api process: a client of the engine that speaks OpenAI's JSON and server-sent events over HTTP.

Owns client connections and nothing else: tokens, queues and prompts live behind `quartet.client.async_engine`.

    app      every route of this process
    openai   OpenAI's bodies: parsing a request into a ResponseTask, rendering its output
    admin    queries to the scheduler, health, the process table, metrics
    server   HTTP mechanics: keys, bodies, errors, server-sent events, open requests, what is counted

`app` imports `openai` and `admin`, which import `server` and not each other.
"""
