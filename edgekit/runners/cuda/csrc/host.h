// Compiles kernel sources as C++ that runs on the CPU, for tests: -DEDGEKIT_HOST -x c++.
//
// The threads of a launch run one after the other, so a kernel must not need __syncthreads() or shuffles.
//
// `edgekit_launch` is what the tests call.
#pragma once

struct dim3 {
  unsigned int x, y, z;
};
struct alignas(16) uint4 {
  unsigned int x, y, z, w;
};

static thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;

#define __global__
#define __device__ static

template <class Kernel, class... Arguments>
static void edgekit_launch(dim3 grid, dim3 block, Kernel kernel, Arguments... arguments) {
  gridDim = grid;
  blockDim = block;
  for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
    for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
      for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++)
        for (threadIdx.z = 0; threadIdx.z < block.z; threadIdx.z++)
          for (threadIdx.y = 0; threadIdx.y < block.y; threadIdx.y++)
            for (threadIdx.x = 0; threadIdx.x < block.x; threadIdx.x++) kernel(arguments...);
}
