// Normalisation over the last axis. One block a row; rows are contiguous.
//
//   -DWEIGHT=0|1|2   the element type of weights: f32, f16, bf16 (`layer_norm`'s bias is a T)
#if WEIGHT == 0
typedef float W;
#elif WEIGHT == 1
typedef __half W;
#else
typedef __nv_bfloat16 W;
#endif

// z = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, arxiv.org/abs/1910.07467).
// `vector`: W is T, and size is a multiple of 16 bytes' worth of elements.
extern "C" __global__ void rms_norm(
    const T* x, const W* weight, T* z, int size, float eps, int vector) {
  __shared__ float room[33];
  let_next_begin();
  wait_for_previous();
  const T* row = x + (i64)blockIdx.x * size;
  T* out = z + (i64)blockIdx.x * size;
  float sum = 0.f;
  const int V = 16 / sizeof(T);
  if (vector) {
    for (int i = threadIdx.x; i < size / V; i += blockDim.x) {
      uint4 v = ((const uint4*)row)[i];
      const T* a = (const T*)&v;
#pragma unroll
      for (int j = 0; j < V; j++) sum += wide(a[j]) * wide(a[j]);
    }
  } else {
    for (int i = threadIdx.x; i < size; i += blockDim.x) sum += wide(row[i]) * wide(row[i]);
  }
  float inverse = rsqrtf(block_sum(sum, room) / size + eps);
  if (vector) {
    for (int i = threadIdx.x; i < size / V; i += blockDim.x) {
      uint4 v = ((const uint4*)row)[i], w = ((const uint4*)weight)[i], o;
      const T *a = (const T*)&v, *b = (const T*)&w;
      T* c = (T*)&o;
#pragma unroll
      for (int j = 0; j < V; j++) c[j] = narrow<T>(wide(a[j]) * inverse * wide(b[j]));
      ((uint4*)out)[i] = o;
    }
  } else {
    for (int i = threadIdx.x; i < size; i += blockDim.x)
      out[i] = narrow<T>(wide(row[i]) * inverse * wide(weight[i]));
  }
}

// z = (x - mean) / sqrt(variance + eps) * weight + bias (Ba et al. 2016, arxiv.org/abs/1607.06450).
extern "C" __global__ void layer_norm(
    const T* x, const W* weight, const T* bias, T* z, int size, float eps) {
  __shared__ float room[33];
  let_next_begin();
  wait_for_previous();
  const T* row = x + (i64)blockIdx.x * size;
  T* out = z + (i64)blockIdx.x * size;
  float sum = 0.f, squares = 0.f;
  for (int i = threadIdx.x; i < size; i += blockDim.x) sum += wide(row[i]);
  float mean = block_sum(sum, room) / size;
  for (int i = threadIdx.x; i < size; i += blockDim.x) {
    float centred = wide(row[i]) - mean;
    squares += centred * centred;
  }
  float inverse = rsqrtf(block_sum(squares, room) / size + eps);
  for (int i = threadIdx.x; i < size; i += blockDim.x) {
    float y = (wide(row[i]) - mean) * inverse * wide(weight[i]);
    out[i] = narrow<T>(bias ? y + wide(bias[i]) : y);
  }
}
