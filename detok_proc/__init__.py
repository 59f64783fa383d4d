"""The detokenizer process: output ids in, text out."""
