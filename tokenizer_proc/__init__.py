"""The tokenizer process: messages, text or ids in, checked prompt ids out."""
