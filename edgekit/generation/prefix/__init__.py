"""KV cache of prompts' beginnings, kept in memory and on disk and put back where computing them again would be slower.

    fingerprint = model_fingerprint(bundle.manifest, runner)
    store = DiskStore(folder, max_bytes=4 << 30, fingerprint=fingerprint)       # or None
    cache = PrefixCache(store, memory_bytes=256 << 20, fingerprint=fingerprint,
                        kv_bytes_per_token=runner.limits.kv_bytes_per_token)

    start = cache.restore(runner, slot, prompt, tenant)      # into an empty slot; a part of the prompt, never all
    for chunk in cut(prompt[start:]):                        # Chunk(..., exact=True)
        began = time.monotonic()
        runner.run([chunk])
        cache.computed(len(chunk.tokens), time.monotonic() - began)
    cache.save(runner, slot, prompt, tenant, upto=len(prompt))
    ...
    cache.close()                                            # writes what is queued

Save only what was computed exactly. `stats()` has the counters.
"""

from edgekit.generation.prefix.cache import BLOCK_TOKENS, PrefixCache, PrefixStats
from edgekit.generation.prefix.disk import QUEUE_BYTES, DiskStats, DiskStore
from edgekit.generation.prefix.keys import model_fingerprint

__all__ = ["BLOCK_TOKENS", "QUEUE_BYTES", "DiskStats", "DiskStore", "PrefixCache", "PrefixStats", "model_fingerprint"]
