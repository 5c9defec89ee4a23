// The product of one row with a weight that is read once: y = f(norm(x) W^T + bias) + residual.
//
// A block takes neighbouring rows of W one after the other, all of its threads together on each, so
// that the memory is read in long runs; a thread meets the same columns in every row and keeps their
// part of x in registers. Rows are read ahead of their use, the first of them before the kernel ahead
// has ended, for weights never change (programmatic dependent launch). With a gate, gate row n and up
// row n follow each other, and act(gate) x up is stored.
//
//   -DFORMAT=0|1  the weight's: as T, or e4m3 with a scale a row
//   -DPIECES=n    16-byte pieces of a row for each of the 256 threads, rounded up: 1 to 8, or 4 of e4m3
//   -DNORM=0|1    whether x is normed
//
// T has 16 bits; a row of W is a whole number of pieces.

const int PER = FORMAT == 0 ? 8 : 16;                            // elements of a piece
const int HELD = PIECES * (FORMAT == 0 ? 1 : 2);                 // registers of x, by fours
const int LINES = HELD >= 5 ? 1 : HELD >= 3 ? 2 : 4;             // rows in flight, twice

__device__ __forceinline__ uint4 stream(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

__device__ __forceinline__ float dot(const uint4& w, const uint4* x) {
  float sum = 0.f;
#if FORMAT == 0
  const T *a = (const T*)&w, *b = (const T*)x;
#pragma unroll
  for (int j = 0; j < 8; j++) sum += wide(a[j]) * wide(b[j]);
#else
  const unsigned short* a = (const unsigned short*)&w;
  const T* b = (const T*)x;
#pragma unroll
  for (int j = 0; j < 8; j++) {
    __half2_raw h = __nv_cvt_fp8x2_to_halfraw2(a[j], __NV_E4M3);
    float2 f = __half22float2(*(__half2*)&h);
    sum += f.x * wide(b[2 * j]) + f.y * wide(b[2 * j + 1]);
  }
#endif
  return sum;
}

extern "C" __global__ void __launch_bounds__(256, 2) one_row(
    const T* x, const u8* weight, const float* scales, const T* norm_weight, float eps,
    const T* bias, const T* residual, void* y, int outputs, int inputs, int gate, int y_is_f32) {
  extern __shared__ float partial[];  // [lines, 8 warps]
  __shared__ float room[33];
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int made = gate >= 0 ? outputs / 2 : outputs, twice = gate >= 0 ? 2 : 1;
  const int per = (made + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * per;
  const int count = max(0, min(made, begin + per) - begin), lines = count * twice;
  const int pieces = inputs / PER;
  const uint4* rows = (const uint4*)weight;

  uint4 w[LINES][PIECES], next[LINES][PIECES];
  auto load = [&](uint4 (*to)[PIECES], int first) {
#pragma unroll
    for (int l = 0; l < LINES; l++) {
      int line = min(first + l, lines - 1);
      i64 row = twice == 2 ? (line & 1) * made + begin + line / 2 : begin + line;
#pragma unroll
      for (int p = 0; p < PIECES; p++) {
        int at = p * 256 + threadIdx.x;
        to[l][p] = at < pieces ? stream(rows + row * pieces + at) : make_uint4(0, 0, 0, 0);
      }
    }
  };
  if (lines > 0) load(w, 0);
  let_next_begin();
  wait_for_previous();

  uint4 held[PIECES][PER / 8];
#pragma unroll
  for (int p = 0; p < PIECES; p++)
#pragma unroll
    for (int h = 0; h < PER / 8; h++) {
      int at = (p * 256 + threadIdx.x) * (PER / 8) + h;
      held[p][h] = at * 8 < inputs ? ((const uint4*)x)[at] : make_uint4(0, 0, 0, 0);
    }
#if NORM
  float squares = 0.f;
#pragma unroll
  for (int p = 0; p < PIECES; p++)
#pragma unroll
    for (int h = 0; h < PER / 8; h++) {
      const T* a = (const T*)&held[p][h];
#pragma unroll
      for (int j = 0; j < 8; j++) squares += wide(a[j]) * wide(a[j]);
    }
  const float inverse = rsqrtf(block_sum(squares, room) / inputs + eps);
#pragma unroll
  for (int p = 0; p < PIECES; p++)
#pragma unroll
    for (int h = 0; h < PER / 8; h++) {
      int at = (p * 256 + threadIdx.x) * (PER / 8) + h;
      if (at * 8 >= inputs) continue;
      uint4 n = ((const uint4*)norm_weight)[at];
      const T* b = (const T*)&n;
      T* a = (T*)&held[p][h];
#pragma unroll
      for (int j = 0; j < 8; j++) a[j] = narrow<T>(wide(a[j]) * inverse * wide(b[j]));
    }
#endif

  for (int first = 0; first < lines; first += LINES) {
    if (first + LINES < lines) load(next, first + LINES);
#pragma unroll
    for (int l = 0; l < LINES; l++) {
      float sum = 0.f;
#pragma unroll
      for (int p = 0; p < PIECES; p++) sum += dot(w[l][p], held[p]);
      sum = warp_sum(sum);
      if (lane == 0 && first + l < lines) partial[(first + l) * 8 + warp] = sum;
    }
#pragma unroll
    for (int l = 0; l < LINES; l++)
#pragma unroll
      for (int p = 0; p < PIECES; p++) w[l][p] = next[l][p];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += 256) {
    const int n = begin + i;
    float v = 0.f, u = 0.f;
#pragma unroll
    for (int s = 0; s < 8; s++) v += partial[i * twice * 8 + s];
#if FORMAT == 1
    v *= scales[n];
#endif
    if (bias) v += wide(bias[n]);
    if (twice == 2) {
#pragma unroll
      for (int s = 0; s < 8; s++) u += partial[(i * 2 + 1) * 8 + s];
#if FORMAT == 1
      u *= scales[made + n];
#endif
      if (bias) u += wide(bias[made + n]);
      v = activate(gate, v) * u;
    }
    if (residual) v += wide(residual[n]);
    if (y_is_f32) ((float*)y)[n] = v;
    else ((T*)y)[n] = narrow<T>(v);
  }
}
