"""OpenAI's API: request bodies become GenerationTasks, output becomes OpenAI's events and bodies."""
