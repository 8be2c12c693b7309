"""Prefix cache: KV cache of prompt prefixes, kept in memory and on disk, restored where recomputing would be slower.

    fingerprint = model_fingerprint(bundle.manifest, runner)
    store = DiskStore(folder, max_bytes=4 << 30, fingerprint=fingerprint)       # or None
    cache = PrefixCache(store, memory_bytes=256 << 20, fingerprint=fingerprint,
                        kv_bytes_per_token=runner.limits.kv_bytes_per_token)

    start = cache.restore(runner, slot, prompt, tenant)      # into an empty slot; part of the prompt, never all
    for chunk in split(prompt[start:]):                      # Chunk(..., exact=True)
        started = time.monotonic()
        runner.run([chunk])
        cache.computed(len(chunk.tokens), time.monotonic() - started)
    cache.save(runner, slot, prompt, tenant, upto=len(prompt))
    ...
    cache.close()                                            # writes queued blocks

Only KV cache that was computed exactly may be saved. `stats()` returns the counters.
"""

from edgekit.generation.prefix.cache import BLOCK_TOKENS, PrefixCache, PrefixStats
from edgekit.generation.prefix.disk import QUEUE_BYTES, DiskStats, DiskStore
from edgekit.generation.prefix.keys import model_fingerprint

__all__ = ["BLOCK_TOKENS", "QUEUE_BYTES", "DiskStats", "DiskStore", "PrefixCache", "PrefixStats", "model_fingerprint"]
