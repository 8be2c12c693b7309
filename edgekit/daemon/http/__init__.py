"""The HTTP door: the OpenAI dialect, health and metrics. It knows nothing about models."""
