// Weights and activations in fewer bits.

//   -DTURNS=n   a row is held by its block of up to 1024 threads, 8 elements a thread and turn: rows are
//               a multiple of 8, and no longer than 32768 elements in 4 turns
//   -DGATE=n    the activation of the kernel with a gate, a number of `activate`

struct alignas(16) Eight {
  T x[8];
};

// The calling thread's elements of turn n begin here.
__device__ __forceinline__ int place(int n) { return (n * blockDim.x + threadIdx.x) * 8; }

// e4m3 of the row that the threads hold, and its scale: value = e4m3 x scale, scale = max / 448.
__device__ __forceinline__ void store_fp8(
    const Eight* held, u8* row, float* scale, int size, float* room) {
  float largest = 0.f;
#pragma unroll
  for (int n = 0; n < TURNS; n++)
#pragma unroll
    for (int j = 0; j < 8; j++) largest = fmaxf(largest, fabsf(wide(held[n].x[j])));
  largest = fmaxf(block_max(largest, room), 1e-12f);
  if (threadIdx.x == 0) *scale = largest / 448.f;
  const float up = 448.f / largest;
#pragma unroll
  for (int n = 0; n < TURNS; n++) {
    if (place(n) >= size) break;
    unsigned short pairs[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float2 two = {wide(held[n].x[2 * j]) * up, wide(held[n].x[2 * j + 1]) * up};
      pairs[j] = __nv_cvt_float2_to_fp8x2(two, __NV_SATFINITE, __NV_E4M3);
    }
    *(uint2*)(row + place(n)) = make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
  }
}

template <typename A> __device__ __forceinline__ void load8(const A* from, float* x) {
  if (sizeof(A) == 2) {
    uint4 v = *(const uint4*)from;
    const A* a = (const A*)&v;
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] = wide(a[j]);
  } else {
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] = wide(from[j]);
  }
}

__device__ __forceinline__ void load_row(const T* row, Eight* held, int size) {
#pragma unroll
  for (int n = 0; n < TURNS; n++) {
    held[n] = Eight{};
    if (place(n) < size) held[n] = *(const Eight*)(row + place(n));
  }
}

// As T for good: else the compiler keeps what was widened in twice the registers.
__device__ __forceinline__ void settle(Eight* held) {
#pragma unroll
  for (int n = 0; n < TURNS; n++)
#pragma unroll
    for (int w = 0; w < sizeof(Eight) / 4; w++) asm volatile("" : "+r"(((u32*)&held[n])[w]));
}

// One block a row.
extern "C" __global__ void __launch_bounds__(1024) rows_to_fp8(
    const T* x, u8* z, float* scales, int size) {
  __shared__ float room[33];
  let_next_begin();
  wait_for_previous();
  Eight held[TURNS];
  load_row(x + (i64)blockIdx.x * size, held, size);
  store_fp8(held, z + (i64)blockIdx.x * size, scales + blockIdx.x, size, room);
}

// The same of rms_norm(x, weight), rounded to T in between as the norm alone would.
extern "C" __global__ void __launch_bounds__(1024) rms_norm_to_fp8(
    const T* x, const T* weight, u8* z, float* scales, int size, float eps) {
  __shared__ float room[33];
  let_next_begin();
  wait_for_previous();
  Eight held[TURNS];
  float sum = 0.f;
  load_row(x + (i64)blockIdx.x * size, held, size);
#pragma unroll
  for (int n = 0; n < TURNS; n++)
#pragma unroll
    for (int j = 0; j < 8; j++) sum += wide(held[n].x[j]) * wide(held[n].x[j]);
  const float inverse = rsqrtf(block_sum(sum, room) / size + eps);
#pragma unroll
  for (int n = 0; n < TURNS; n++) {
    if (place(n) >= size) break;
    float w[8];
    load8(weight + place(n), w);
#pragma unroll
    for (int j = 0; j < 8; j++) held[n].x[j] = narrow<T>(wide(held[n].x[j]) * inverse * w[j]);
  }
  store_fp8(held, z + (i64)blockIdx.x * size, scales + blockIdx.x, size, room);
}

#ifdef GATE
// The same of act(first half of y) x second half, rounded to T in between: y [rows, 2 x size] is a
// product.
extern "C" __global__ void __launch_bounds__(1024) gated_to_fp8(
    const T* y, u8* z, float* scales, int size) {
  __shared__ float room[33];
  let_next_begin();
  wait_for_previous();
  const T* row = y + (i64)blockIdx.x * 2 * size;
  Eight held[TURNS], up[TURNS];
  load_row(row, held, size);
  load_row(row + size, up, size);
  settle(held);
  settle(up);
#pragma unroll
  for (int n = 0; n < TURNS; n++)
#pragma unroll
    for (int j = 0; j < 8; j++)
      held[n].x[j] = narrow<T>(activate(GATE, wide(held[n].x[j])) * wide(up[n].x[j]));
  settle(held);
  store_fp8(held, z + (i64)blockIdx.x * size, scales + blockIdx.x, size, room);
}
#endif

// Integers [rows, columns] (i8, or i4 packed two a byte, low half first) times f16 scales
// [rows, groups] -> T [rows, columns].
extern "C" __global__ void dequantize(
    const u8* integers, const __half* scales, T* z, i64 rows, i64 columns, i64 groups, int bits) {
  let_next_begin();
  wait_for_previous();
  i64 n = rows * columns, group = columns / groups;
  for (i64 i = (blockIdx.x * (i64)blockDim.x + threadIdx.x) * 2; i < n;
       i += (i64)gridDim.x * blockDim.x * 2) {
    float a, b;
    if (bits == 4) {
      u8 pair = integers[i / 2];
      a = (float)((i8)(pair << 4) >> 4);
      b = (float)((i8)pair >> 4);
    } else {
      a = (float)(i8)integers[i];
      b = i + 1 < n ? (float)(i8)integers[i + 1] : 0.f;
    }
    i64 row = i / columns, next = (i + 1) / columns;
    z[i] = narrow<T>(a * __half2float(scales[row * groups + (i - row * columns) / group]));
    if (i + 1 < n)
      z[i + 1] = narrow<T>(b * __half2float(scales[next * groups + (i + 1 - next * columns) / group]));
  }
}

// y x row scale x column scale, for products of e4m3 whose scales were left out: z = that + residual
// [rows, columns], or, with a gate, act(first half) x second half [rows, columns / 2]. T has 16 bits
// and columns are a multiple of 16.
extern "C" __global__ void apply_scales(
    const T* y, const float* row_scales, const float* column_scales, const T* bias,
    const T* residual, void* z, int columns, int gate, int z_is_f32) {
  let_next_begin();
  wait_for_previous();
  const i64 r = blockIdx.y;
  const float scale = row_scales[r];
  const int made = gate >= 0 ? columns / 2 : columns;
  for (int c = (blockIdx.x * blockDim.x + threadIdx.x) * 8; c < made;
       c += gridDim.x * blockDim.x * 8) {
    float v[8], s[8];
    load8(y + r * columns + c, v);
    load8(column_scales + c, s);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = v[j] * scale * s[j] + (bias ? wide(bias[c + j]) : 0.f);
    if (gate >= 0) {
      float u[8];
      load8(y + r * columns + made + c, u);
      load8(column_scales + made + c, s);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        float up = u[j] * scale * s[j] + (bias ? wide(bias[made + c + j]) : 0.f);
        v[j] = activate(gate, v[j]) * up;
      }
    }
    if (residual) {
      float more[8];
      load8(residual + r * made + c, more);
#pragma unroll
      for (int j = 0; j < 8; j++) v[j] += more[j];
    }
    if (z_is_f32) {
#pragma unroll
      for (int j = 0; j < 8; j++) ((float*)z)[r * made + c + j] = v[j];
    } else {
      uint4 out;
#pragma unroll
      for (int j = 0; j < 8; j++) ((T*)&out)[j] = narrow<T>(v[j]);
      *(uint4*)((T*)z + r * made + c) = out;
    }
  }
}
