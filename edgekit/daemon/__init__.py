"""The daemon: one model served over HTTP and MQTT."""
