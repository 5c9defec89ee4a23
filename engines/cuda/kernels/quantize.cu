// Weights and activations in fewer bits.

// e4m3 and an f32 scale for each row: value = e4m3 x scale, scale = max|row| / 448. One block a row.
extern "C" __global__ void rows_to_fp8(const T* x, u8* z, float* scales, int size) {
  __shared__ float room[33];
  let_next_begin();
  wait_for_previous();
  const T* row = x + (i64)blockIdx.x * size;
  float largest = 0.f;
  for (int i = threadIdx.x; i < size; i += blockDim.x) largest = fmaxf(largest, fabsf(wide(row[i])));
  largest = fmaxf(block_max(largest, room), 1e-12f);
  float scale = largest / 448.f, inverse = 448.f / largest;
  if (threadIdx.x == 0) scales[blockIdx.x] = scale;
  for (int i = threadIdx.x; i < size; i += blockDim.x) {
    __nv_fp8_e4m3 q(wide(row[i]) * inverse);
    z[(i64)blockIdx.x * size + i] = q.__x;
  }
}

// The same of rms_norm(x, weight), rounded to T in between as the norm alone would.
extern "C" __global__ void rms_norm_to_fp8(
    const T* x, const T* weight, u8* z, float* scales, int size, float eps) {
  __shared__ float room[33];
  extern __shared__ float values[];
  let_next_begin();
  wait_for_previous();
  const T* row = x + (i64)blockIdx.x * size;
  float sum = 0.f;
  for (int i = threadIdx.x; i < size; i += blockDim.x) {
    float y = wide(row[i]);
    values[i] = y;
    sum += y * y;
  }
  float inverse = rsqrtf(block_sum(sum, room) / size + eps), largest = 0.f;
  for (int i = threadIdx.x; i < size; i += blockDim.x) {
    float y = wide(narrow<T>(values[i] * inverse * wide(weight[i])));
    values[i] = y;
    largest = fmaxf(largest, fabsf(y));
  }
  largest = fmaxf(block_max(largest, room), 1e-12f);
  if (threadIdx.x == 0) scales[blockIdx.x] = largest / 448.f;
  float up = 448.f / largest;
  for (int i = threadIdx.x; i < size; i += blockDim.x) {
    __nv_fp8_e4m3 q(values[i] * up);
    z[(i64)blockIdx.x * size + i] = q.__x;
  }
}

// The same of act(x[:, :size]) * x[:, size:].
extern "C" __global__ void gated_to_fp8(
    const T* x, u8* z, float* scales, int size, int kind) {
  __shared__ float room[33];
  extern __shared__ float values[];
  let_next_begin();
  wait_for_previous();
  const T* row = x + (i64)blockIdx.x * 2 * size;
  float largest = 0.f;
  for (int i = threadIdx.x; i < size; i += blockDim.x) {
    float y = wide(narrow<T>(activate(kind, wide(row[i])) * wide(row[size + i])));
    values[i] = y;
    largest = fmaxf(largest, fabsf(y));
  }
  largest = fmaxf(block_max(largest, room), 1e-12f);
  if (threadIdx.x == 0) scales[blockIdx.x] = largest / 448.f;
  float up = 448.f / largest;
  for (int i = threadIdx.x; i < size; i += blockDim.x) {
    __nv_fp8_e4m3 q(values[i] * up);
    z[(i64)blockIdx.x * size + i] = q.__x;
  }
}

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
