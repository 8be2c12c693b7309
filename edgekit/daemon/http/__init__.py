"""The HTTP API: the dialects of OpenAI and Ollama, health and metrics."""
