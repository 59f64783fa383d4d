"""The scheduler process: queue, batch, pages, radix tree, ratio, retraction. No torch, no model, no text."""
