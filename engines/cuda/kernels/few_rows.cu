// Products of a few rows with a weight that is read once: y = f(norm(x) W^T + bias) + residual.
//
// A warp makes two outputs of every row of x: neighbours, or, with a gate, gate row n and up row n,
// of which act(gate) x up is stored. Lanes read 16 bytes of a weight row at a time, several ahead of
// their use; the first of them before the kernel ahead has ended, for weights never change
// (programmatic dependent launch). x that is to be normed is kept in shared memory, normed; other x
// is read where it is, and no warp waits for another.
//
//   -DROWS=1|2|4      rows of x
//   -DFORMAT=0|1|2|3  the weight's: as T, e4m3 with a scale a row, i8 and i4 with scales a group
//   -DNORM=0|1        whether x is normed
//   -DAHEAD=n         16-byte reads of each weight row in flight
//   -DTHREADS=n       of a block
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

// Weights pass through; what is in L1 is left to x.
__device__ __forceinline__ uint4 stream(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

// 8 weights of part `part` of a 16-byte piece, as f32.
__device__ __forceinline__ void unpack(const uint4& w, int part, float* v) {
  const u32 words[4] = {w.x, w.y, w.z, w.w};
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
}

extern "C" __global__ void __launch_bounds__(THREADS) few_rows(
    const T* x, const u8* weight, const void* scales, const T* norm_weight, float eps,
    const T* bias, const T* residual, void* y, int rows, int outputs, int inputs, int groups,
    int gate, int y_is_f32) {
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
      w0[i] = stream(row0 + at);
      w1[i] = stream(row1 + at);
    }
  }
  let_next_begin();
  wait_for_previous();

#if NORM
  extern __shared__ uint4 shared[];
  __shared__ float room[33];
  T* held = (T*)shared;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const uint4* from = (const uint4*)(x + (i64)r * inputs);
    uint4* to = (uint4*)(held + r * inputs);
    float squares = 0.f;
    for (int i = threadIdx.x; i < inputs / 8; i += THREADS) {
      uint4 v = r < rows ? from[i] : make_uint4(0, 0, 0, 0);
      to[i] = v;
      const T* a = (const T*)&v;
#pragma unroll
      for (int j = 0; j < 8; j++) squares += wide(a[j]) * wide(a[j]);
    }
    float inverse = rsqrtf(block_sum(squares, room) / inputs + eps);
    for (int i = threadIdx.x; i < inputs / 8; i += THREADS) {
      uint4 v = to[i], n = ((const uint4*)norm_weight)[i], o;
      const T *a = (const T*)&v, *b = (const T*)&n;
      T* c = (T*)&o;
#pragma unroll
      for (int j = 0; j < 8; j++) c[j] = narrow<T>(wide(a[j]) * inverse * wide(b[j]));
      to[i] = o;
    }
  }
  __syncthreads();
  x = held;
#endif

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
      const int at = start + 32 * i + lane;
      if (at >= pieces) continue;
      float scale0 = 1.f, scale1 = 1.f;
#if FORMAT >= 2
      scale0 = __half2float(scales0[at * PER / group]);
      scale1 = __half2float(scales1[at * PER / group]);
#endif
#pragma unroll
      for (int part = 0; part < PER / 8; part++) {
        const int column = at * PER + part * 8;
        float a[8], b[8];
        unpack(w0[i], part, a);
        unpack(w1[i], part, b);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          if (r >= rows) break;
          uint4 u = *(const uint4*)(x + (i64)r * inputs + column);
          const T* v = (const T*)&u;
          float p = 0.f, q = 0.f;
#pragma unroll
          for (int j = 0; j < 8; j++) {
            float value = wide(v[j]);
            p += a[j] * value;
            q += b[j] * value;
          }
          sums0[r] += p * scale0;
          sums1[r] += q * scale1;
        }
      }
      const int next = at + 32 * AHEAD;
      if (next < pieces) {
        w0[i] = stream(row0 + next);
        w1[i] = stream(row1 + next);
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
