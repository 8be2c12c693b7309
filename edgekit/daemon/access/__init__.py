"""Who may ask: API keys, their limits, and the audit log. Both transports use it."""
