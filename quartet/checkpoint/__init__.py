"""From what the user named as a model to a folder in Hugging Face layout that every process can read."""
