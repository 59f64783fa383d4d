"""OpenAI's API: request bodies become ResponseTasks, output becomes OpenAI's events and bodies."""
