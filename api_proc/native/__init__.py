"""The routes that SGLang's and vLLM's own clients and routers use beside OpenAI's."""
