// Puts the new rows of keys and values behind those in the KV cache.
//
// A step yields rows [batch, heads, rows, head_dim] of each tensor (keys and values of every layer); a sequence's cache
// is [heads, stride, head_dim], and the sequences of a batch lie one behind the other. The position is read from memory,
// so that a captured launch is valid for every step. One thread copies 16 bytes:
//
//     x: vectors of a head's rows    y: batch * heads    z: tensors

#ifdef EDGEKIT_HOST
#include "host.h"
#endif

typedef unsigned int u32;
typedef unsigned long long u64;

extern "C" __global__ void scatter_kv_rows(const u64 *sources, const u64 *caches, const long long *starts, u64 offset,
                                           u32 rows, u32 vectors, u32 heads, u32 stride) {
  const u32 index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= rows * vectors) return;
  const u32 row = index / vectors, vector = index - row * vectors;
  const u32 head = blockIdx.y;  // of all sequences
  const long long position = starts[head / heads] + row;
  if (position < 0 || position >= stride) return;
  const uint4 *source = (const uint4 *)sources[blockIdx.z];
  uint4 *cache = (uint4 *)(caches[blockIdx.z] + offset);
  cache[((u64)head * stride + (u64)position) * vectors + vector] = source[(u64)head * rows * vectors + index];
}
