"""What a launch needs of the machine's memory, before anything is spawned. The worker sizes its KV pool by the same."""
