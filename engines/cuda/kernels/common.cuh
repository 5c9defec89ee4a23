// What all kernels share. NVRTC compiles them with
//   -DTYPE=0|1|2      the element type of activations: f32, f16, bf16
// Floats narrower than f32 are widened, computed on in f32, and rounded once when they are stored.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#if TYPE == 0
typedef float T;
#elif TYPE == 1
typedef __half T;
#else
typedef __nv_bfloat16 T;
#endif

#ifndef INFINITY  // NVRTC has no math.h
#define INFINITY __int_as_float(0x7f800000)
#endif

typedef unsigned int u32;
typedef unsigned char u8;

// The element type of cached keys and values: T, or, with -DCACHE8=1, e4m3 without a scale.
#if CACHE8
typedef __nv_fp8_e4m3 C;
#else
typedef T C;
#endif
typedef signed char i8;
typedef long long i64;

__device__ __forceinline__ float wide(float x) { return x; }
__device__ __forceinline__ float wide(__half x) { return __half2float(x); }
__device__ __forceinline__ float wide(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float wide(i64 x) { return (float)x; }
__device__ __forceinline__ float wide(int x) { return (float)x; }

__device__ __forceinline__ float wide(__nv_fp8_e4m3 x) { return (float)x; }

template <typename To> __device__ __forceinline__ To narrow(float x);
template <> __device__ __forceinline__ __nv_fp8_e4m3 narrow<__nv_fp8_e4m3>(float x) {
  return __nv_fp8_e4m3(x);  // what is beyond 448 becomes 448
}
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ __half narrow<__half>(float x) { return __float2half_rn(x); }
template <> __device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Programmatic dependent launch (CUDA programming guide, "Programmatic Dependent Launch"): a kernel
// that was launched with the attribute may begin before the one ahead of it has ended, and must not
// touch what that one makes before `wait_for_previous`. Every thread calls it, so that the end of a
// kernel implies the end of all before it.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int o = 16; o; o >>= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, o));
  return x;
}

// Over all threads of the block (a multiple of 32, up to 1024); `room` holds 33 floats.
__device__ __forceinline__ float block_sum(float x, float* room) {
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  x = warp_sum(x);
  __syncthreads();
  if (lane == 0) room[warp] = x;
  __syncthreads();
  if (warp == 0) {
    float y = lane < (blockDim.x >> 5) ? room[lane] : 0.f;
    y = warp_sum(y);
    if (lane == 0) room[32] = y;
  }
  __syncthreads();
  return room[32];
}
__device__ __forceinline__ float block_max(float x, float* room) {
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  x = warp_max(x);
  __syncthreads();
  if (lane == 0) room[warp] = x;
  __syncthreads();
  if (warp == 0) {
    float y = lane < (blockDim.x >> 5) ? room[lane] : -INFINITY;
    y = warp_max(y);
    if (lane == 0) room[32] = y;
  }
  __syncthreads();
  return room[32];
}

// The nonlinearities of `paddock.graph.ops.ACTIVATIONS`, numbered in that order.
__device__ __forceinline__ float activate(int kind, float x) {
  switch (kind) {
    case 0: return __fdividef(x, 1.f + __expf(-x));
    case 1: return 0.5f * x * (1.f + erff(x * 0.70710678118654752f));
    case 2: return 0.5f * x * (1.f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
    case 3: return fmaxf(x, 0.f);
    case 4: return __fdividef(1.f, 1.f + __expf(-x));
    case 5: return tanhf(x);
    default: return fmaxf(x, 0.f) + log1pf(__expf(-fabsf(x)));
  }
}

// The sequence that owns token t: the last s with starts[s] <= t, or -1 for a token of padding.
__device__ __forceinline__ int sequence_of(const int* starts, int sequences, int t) {
  if (t >= starts[sequences]) return -1;
  int low = 0, high = sequences;
  while (high - low > 1) {
    int middle = (low + high) >> 1;
    if (starts[middle] <= t) low = middle; else high = middle;
  }
  return low;
}
