"""The MQTT API: requests and replies over MQTT 5, from callers with MQTT 5 or 3.1.1."""
