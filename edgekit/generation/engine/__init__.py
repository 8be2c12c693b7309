"""Continuous batching: worker (thread), engine (one step), step plan (batching policy), request state and slots."""
