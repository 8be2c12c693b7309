"""The daemon: one generation core behind two doors, HTTP and MQTT."""
