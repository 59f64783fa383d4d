"""The api process: a client of the engine that speaks OpenAI's and Anthropic's JSON and server-sent events over HTTP.

Owns client connections and nothing else: tokens, queues and prompts live behind `quartet.client.async_engine`.

    app        every route of this process
    shapes     every shape of a response, as the records of streams hold them
    anthropic  Anthropic's messages: bodies become chats, their output becomes blocks and events
    responses  OpenAI's responses: bodies become chats, their output becomes items and events
    openapi    the routes as a document, with the types of their bodies
    native     routes of SGLang and vLLM: generation, tokenizing, aborts, loads, information
    openai     OpenAI's bodies: parsing a request into a ResponseTask, rendering its output
    admin      queries to the scheduler, health, the process table, metrics
    server     HTTP mechanics: keys, bodies, errors, server-sent events, open requests, what is counted

`app` imports all of them; `anthropic`, `responses`, `native` and `admin` import `openai`; `openai` imports `server`.
"""
