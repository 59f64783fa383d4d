"""What a model's text means: reasoning, content and tool calls. Sans-IO; imports nothing of the api process.

A parser is a state machine that is fed text as it comes, in pieces of any size: the joined pieces it gives do not
depend on where the text was cut. What it cannot read as a call is content, never lost.
"""
