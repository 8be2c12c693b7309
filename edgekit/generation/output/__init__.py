"""Token ids in, text out: detokenization, whole characters, reasoning and tool calls separated from the answer."""
