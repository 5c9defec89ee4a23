// Products of a few rows with a weight that is read once: y = f(norm(x) W^T + bias) + residual.
//
// A warp makes two outputs of every row of x: neighbours, or, with a gate, gate row n and up row n,
// of which act(gate) x up is stored. Lanes read 16 bytes of a weight row at a time, several ahead of
// their use; the first of them before the kernel ahead has ended, for weights never change
// (programmatic dependent launch). x is kept in shared memory, normed there if asked.
//
//   -DROWS=1|2|4      rows of x
//   -DFORMAT=0|1|2|3  the weight's: as T, e4m3 with a scale a row, i8 and i4 with scales a group
//
// T has 16 bits. The inputs (columns of W) are a multiple of what 16 bytes hold, and a group is one
// of 32, so that no lane's 32 values straddle two.

#if FORMAT == 0
const int PER = 8;
#elif FORMAT == 3
const int PER = 32;
#else
const int PER = 16;
#endif
#ifndef AHEAD
#define AHEAD 4  // 16-byte reads of each weight row in flight
#endif
#ifndef THREADS
#define THREADS 256
#endif
#ifndef PREFETCH
#define PREFETCH 1
#endif
#ifndef LOAD
#define LOAD(p) __ldcs(p)
#endif

// One 16-byte piece of a weight row times the same columns of each row of x.
__device__ __forceinline__ void piece(
    const uint4& w, const T* x, int inputs, float scale, float* sums) {
  const u32 words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
  for (int part = 0; part < PER / 8; part++) {
    float v[8];
#if FORMAT == 0
    const T* t = (const T*)words;
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = wide(t[j]);
#elif FORMAT == 1
#pragma unroll
    for (int j = 0; j < 4; j++) {
      unsigned short two = (unsigned short)(words[part * 2 + j / 2] >> (j % 2 * 16));
      __half2_raw h = __nv_cvt_fp8x2_to_halfraw2(two, __NV_E4M3);
      float2 f = __half22float2(*(__half2*)&h);
      v[2 * j] = f.x;
      v[2 * j + 1] = f.y;
    }
#elif FORMAT == 2
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = (float)(i8)(words[part * 2 + j / 4] >> (j % 4 * 8));
#else
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = (float)((int)(words[part] << (28 - 4 * j)) >> 28);
#endif
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      uint4 u = *(const uint4*)(x + r * inputs + part * 8);
      const T* a = (const T*)&u;
      float sum = 0.f;
#pragma unroll
      for (int j = 0; j < 8; j++) sum += v[j] * wide(a[j]);
#if FORMAT >= 2
      sums[r] += sum * scale;
#else
      sums[r] += sum;
#endif
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) few_rows(
    const T* x, const u8* weight, const void* scales, const T* norm_weight, float eps,
    const T* bias, const T* residual, void* y, int rows, int outputs, int inputs, int groups,
    int gate, int y_is_f32) {
  extern __shared__ uint4 shared[];
  __shared__ float room[33];
  T* held = (T*)shared;
  const int warp = (blockIdx.x * blockDim.x + threadIdx.x) >> 5, lane = threadIdx.x & 31;
  const int made = gate >= 0 ? outputs / 2 : outputs;  // columns of y
  const int first = gate >= 0 ? warp : 2 * warp;
  const int second = gate >= 0 ? warp + made : 2 * warp + 1;
  const bool has_first = first < made, has_second = has_first && second < outputs;
  const int pieces = inputs / PER;
  const uint4* row0 = (const uint4*)weight + (i64)(has_first ? first : 0) * pieces;
  const uint4* row1 = (const uint4*)weight + (i64)(has_second ? second : 0) * pieces;
  uint4 w0[AHEAD], w1[AHEAD];
#pragma unroll
  for (int i = 0; i < AHEAD; i++) {
    int at = lane + 32 * i;
    if (at < pieces) {
      w0[i] = LOAD(row0 + at);
      w1[i] = LOAD(row1 + at);
    }
  }
  // What comes next goes into the L2 cache meanwhile: a line of 128 bytes for each lane.
#pragma unroll
  for (int i = 0; i < PREFETCH; i++) {
    int at = 32 * AHEAD + (lane + 32 * i) * 8;
    if (at < pieces) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(row0 + at));
      asm volatile("prefetch.global.L2 [%0];" ::"l"(row1 + at));
    }
  }
  let_next_begin();
  wait_for_previous();

#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const uint4* from = (const uint4*)(x + (i64)r * inputs);
    uint4* to = (uint4*)(held + r * inputs);
    float squares = 0.f;
    for (int i = threadIdx.x; i < inputs / 8; i += blockDim.x) {
      uint4 v = r < rows ? from[i] : make_uint4(0, 0, 0, 0);
      to[i] = v;
      if (norm_weight) {
        const T* a = (const T*)&v;
#pragma unroll
        for (int j = 0; j < 8; j++) squares += wide(a[j]) * wide(a[j]);
      }
    }
    if (norm_weight) {
      float inverse = rsqrtf(block_sum(squares, room) / inputs + eps);
      for (int i = threadIdx.x; i < inputs / 8; i += blockDim.x) {
        uint4 v = to[i], n = ((const uint4*)norm_weight)[i], o;
        const T *a = (const T*)&v, *b = (const T*)&n;
        T* c = (T*)&o;
#pragma unroll
        for (int j = 0; j < 8; j++) c[j] = narrow<T>(wide(a[j]) * inverse * wide(b[j]));
        to[i] = o;
      }
    }
  }
  __syncthreads();

  float sums0[ROWS], sums1[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) sums0[r] = sums1[r] = 0.f;
#if FORMAT >= 2
  const int group = inputs / groups;
  const __half* scales0 = (const __half*)scales + (i64)(has_first ? first : 0) * groups;
  const __half* scales1 = (const __half*)scales + (i64)(has_second ? second : 0) * groups;
#endif
  for (int start = 0; start < pieces; start += 32 * AHEAD) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      int at = start + 32 * i + lane;
      if (at < pieces) {
        float scale0 = 1.f, scale1 = 1.f;
#if FORMAT >= 2
        int g = at * PER / group;
        scale0 = __half2float(scales0[g]);
        scale1 = __half2float(scales1[g]);
#endif
        piece(w0[i], held + at * PER, inputs, scale0, sums0);
        piece(w1[i], held + at * PER, inputs, scale1, sums1);
        int next = at + 32 * AHEAD;
        if (next < pieces) {
          w0[i] = LOAD(row0 + next);
          w1[i] = LOAD(row1 + next);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    float a = warp_sum(sums0[r]), b = warp_sum(sums1[r]);
    if (lane != 0 || r >= rows || !has_first) continue;
#if FORMAT == 1
    a *= ((const float*)scales)[first];
    if (has_second) b *= ((const float*)scales)[second];
#endif
    if (bias) {
      a += wide(bias[first]);
      if (has_second) b += wide(bias[second]);
    }
    if (gate >= 0) a = activate(gate, a) * b;
    i64 at = (i64)r * made + first;
    if (residual) {
      a += wide(residual[at]);
      if (gate < 0 && has_second) b += wide(residual[at + 1]);
    }
    if (y_is_f32) {
      ((float*)y)[at] = a;
      if (gate < 0 && has_second) ((float*)y)[at + 1] = b;
    } else {
      ((T*)y)[at] = narrow<T>(a);
      if (gate < 0 && has_second) ((T*)y)[at + 1] = narrow<T>(b);
    }
  }
}
