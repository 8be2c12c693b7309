"""The MQTT door: requests and replies over MQTT 5 (and 3.1.1). It knows nothing about models."""
