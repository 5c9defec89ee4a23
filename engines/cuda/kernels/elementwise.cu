// Ops that treat each element, or each row, alone. Rows are contiguous.

// z = x + y or x * y; y has `period` elements and repeats.
extern "C" __global__ void combine(const T* x, const T* y, T* z, i64 n, i64 period, int multiply) {
  let_next_begin();
  wait_for_previous();
  for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x) {
    float a = wide(x[i]), b = wide(y[i % period]);
    z[i] = narrow<T>(multiply ? a * b : a + b);
  }
}

// The same of whole numbers.
extern "C" __global__ void combine_integers(
    const i64* x, const i64* y, i64* z, i64 n, i64 period, int multiply) {
  let_next_begin();
  wait_for_previous();
  for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x)
    z[i] = multiply ? x[i] * y[i % period] : x[i] + y[i % period];
}

extern "C" __global__ void scale(const T* x, T* z, i64 n, float factor) {
  let_next_begin();
  wait_for_previous();
  for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x)
    z[i] = narrow<T>(wide(x[i]) * factor);
}

extern "C" __global__ void clamp(const T* x, T* z, i64 n, float low, float high) {
  let_next_begin();
  wait_for_previous();
  for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x)
    z[i] = narrow<T>(fminf(fmaxf(wide(x[i]), low), high));
}

extern "C" __global__ void activation(const T* x, T* z, i64 n, int kind) {
  let_next_begin();
  wait_for_previous();
  for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x)
    z[i] = narrow<T>(activate(kind, wide(x[i])));
}

// z[row, i] = act(x[row, i]) * x[row, inner + i]. `inner` is a multiple of 8, or `vector` is 0.
extern "C" __global__ void gated(const T* x, T* z, i64 rows, i64 inner, int kind, int vector) {
  let_next_begin();
  wait_for_previous();
  if (vector) {
    const int V = 16 / sizeof(T);
    i64 per_row = inner / V, n = rows * per_row;
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x) {
      i64 row = i / per_row, at = (i - row * per_row) * V;
      const T* gate = x + row * 2 * inner + at;
      uint4 g = *(const uint4*)gate, u = *(const uint4*)(gate + inner), out;
      const T *a = (const T*)&g, *b = (const T*)&u;
      T* c = (T*)&out;
#pragma unroll
      for (int j = 0; j < V; j++) c[j] = narrow<T>(activate(kind, wide(a[j])) * wide(b[j]));
      *(uint4*)(z + row * inner + at) = out;
    }
  } else {
    i64 n = rows * inner;
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x) {
      i64 row = i / inner, at = i - row * inner;
      const T* gate = x + row * 2 * inner + at;
      z[i] = narrow<T>(activate(kind, wide(gate[0])) * wide(gate[inner]));
    }
  }
}

template <typename A, typename B> __device__ void convert(const A* x, B* z, i64 n) {
  let_next_begin();
  wait_for_previous();
  for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x)
    z[i] = narrow<B>(wide(x[i]));
}
extern "C" __global__ void to_f32(const T* x, float* z, i64 n) { convert(x, z, n); }
extern "C" __global__ void from_f32(const float* x, T* z, i64 n) { convert(x, z, n); }

// Bytes [rows, size] of x from column `from` on (its rows are `stride` bytes apart), into z at
// column `to`.
extern "C" __global__ void copy_columns(
    const u8* x, u8* z, i64 rows, i64 size, i64 x_stride, i64 from, i64 z_stride, i64 to) {
  let_next_begin();
  wait_for_previous();
  i64 n = rows * size;
  for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x) {
    i64 row = i / size, at = i - row * size;
    z[row * z_stride + to + at] = x[row * x_stride + from + at];
  }
}

// z[i] = x[rows[i]], rows of `size` bytes, a multiple of `width` (16, 4, 2 or 1). One block a row.
// A row number outside 0..count - 1 cannot be read: the row becomes zeros.
template <typename W, typename I>
__device__ void take(const u8* x, const I* rows, u8* z, i64 size, i64 count) {
  let_next_begin();
  wait_for_previous();
  i64 row = (i64)rows[blockIdx.x];
  const W* from = (const W*)(x + row * size);
  W* to = (W*)(z + blockIdx.x * size);
  bool there = row >= 0 && row < count;
  for (i64 i = threadIdx.x; i < size / (i64)sizeof(W); i += blockDim.x) to[i] = there ? from[i] : W{};
}
extern "C" __global__ void gather(
    const u8* x, const void* rows, u8* z, i64 size, i64 count, int wide_rows, int width) {
  if (width == 16) {
    if (wide_rows) take<uint4>(x, (const i64*)rows, z, size, count);
    else take<uint4>(x, (const int*)rows, z, size, count);
  } else {
    if (wide_rows) take<unsigned short>(x, (const i64*)rows, z, size, count);
    else take<unsigned short>(x, (const int*)rows, z, size, count);
  }
}

// z[i] = y[rows[i]] where there is such a row of y, else x[i]; rows of `size` bytes, a multiple of 2.
// One block a row.
extern "C" __global__ void replace_rows(
    const u8* x, const u8* y, const void* rows, u8* z, i64 size, i64 count, int wide_rows) {
  let_next_begin();
  wait_for_previous();
  const i64 i = blockIdx.x;
  const i64 row = wide_rows ? ((const i64*)rows)[i] : (i64)((const int*)rows)[i];
  const unsigned short* from =
      (const unsigned short*)(row >= 0 && row < count ? y + row * size : x + i * size);
  unsigned short* to = (unsigned short*)(z + i * size);
  for (i64 j = threadIdx.x; j < size / 2; j += blockDim.x) to[j] = from[j];
}

// f32 tables [tokens, 2 x pairs]: cosines and sines of position x frequency, halves alike.
extern "C" __global__ void rotary_angles(
    const void* positions, const float* frequencies, float* cosines, float* sines, int tokens,
    int pairs, float factor, int wide_positions) {
  let_next_begin();
  wait_for_previous();
  int n = tokens * pairs;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    int t = i / pairs, p = i - t * pairs;
    float position = wide_positions ? (float)((const i64*)positions)[t]
                                    : (float)((const int*)positions)[t];
    float angle = position * frequencies[p], s, c;
    sincosf(angle, &s, &c);
    float* cos_row = cosines + (i64)t * 2 * pairs;
    float* sin_row = sines + (i64)t * 2 * pairs;
    cos_row[p] = cos_row[p + pairs] = c * factor;
    sin_row[p] = sin_row[p + pairs] = s * factor;
  }
}

// x [tokens, heads, size] turned by the tables [tokens, rotated]; one block a token.
extern "C" __global__ void rotary(
    const T* x, const float* cosines, const float* sines, T* z, int heads, int size, int rotated,
    int interleaved) {
  let_next_begin();
  wait_for_previous();
  int t = blockIdx.x, half = rotated / 2;
  const float* cos_row = cosines + (i64)t * rotated;
  const float* sin_row = sines + (i64)t * rotated;
  for (int i = threadIdx.x; i < heads * size; i += blockDim.x) {
    int at = i % size;
    i64 base = (i64)t * heads * size + i - at;
    float y = wide(x[base + at]);
    if (at < rotated) {
      int pair = interleaved ? at / 2 : at % half;
      bool first = interleaved ? at % 2 == 0 : at < half;
      int other = interleaved ? at ^ 1 : (first ? at + half : at - half);
      float c = cos_row[pair], s = sin_row[pair], o = wide(x[base + other]);
      y = first ? y * c - o * s : y * c + o * s;
    }
    z[base + at] = narrow<T>(y);
  }
}
