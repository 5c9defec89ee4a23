// Queries, keys and values of new tokens: normed and turned by their positions where asked; keys
// and values go into their cache blocks [blocks, kv heads, block size, head size], queries into z.
//
// One warp a head; a block has 8 warps, blockIdx.x is the token. Rows of q, k and v are `stride`
// elements apart, so that the three may lie side by side in one row of a fused projection. q may be
// null: then only keys and values are stored, as they are. So may `past_lengths`: nothing is past.

template <typename Z> __device__ __forceinline__ void head_row(
    const T* x, Z* z, float* held, int size, const T* norm, float eps, const float* cosines,
    const float* sines, int rotated, int interleaved, int lane) {
  float squares = 0.f;
  for (int i = lane; i < size; i += 32) {
    float y = wide(x[i]);
    held[i] = y;
    squares += y * y;
  }
  __syncwarp();
  if (norm) {
    float inverse = rsqrtf(warp_sum(squares) / size + eps);
    for (int i = lane; i < size; i += 32)
      held[i] = wide(narrow<T>(held[i] * inverse * wide(norm[i])));
    __syncwarp();
  }
  int half = rotated / 2;
  for (int i = lane; i < size; i += 32) {
    float y = held[i];
    if (i < rotated) {
      int pair = interleaved ? i / 2 : i % half;
      bool first = interleaved ? i % 2 == 0 : i < half;
      float other = held[interleaved ? i ^ 1 : (first ? i + half : i - half)];
      float c = cosines[pair], s = sines[pair];
      y = first ? y * c - other * s : y * c + other * s;
    }
    z[i] = narrow<Z>(wide(narrow<T>(y)));
  }
}

// The same for heads of 64, 128 or 256 that turn whole, in halves, or not at all: SIZE / 8 lanes a
// head with 16 bytes each. `blockIdx.x` counts groups of (token, head).
#ifdef SIZE
extern "C" __global__ void __launch_bounds__(256) store_fast(
    const T* q, const T* k, const T* v, i64 q_stride, i64 k_stride, i64 v_stride, const T* q_norm,
    const T* k_norm, float eps, const float* cosines, const float* sines, T* z, C* key_cache,
    C* value_cache, const int* sequence_starts, const int* past_lengths, const int* block_table,
    const int* block_starts, int sequences, int heads, int kv_heads, int tokens, int block_bits) {
  const int LANES = SIZE / 8;
  let_next_begin();
  wait_for_previous();
  const int all = (q ? heads : 0) + 2 * kv_heads;
  const int group = (blockIdx.x * 256 + threadIdx.x) / LANES, lane = threadIdx.x % LANES;
  const int t = group / all, head = group - t * all;
  // All lanes of a warp stay to the end, for the exchanges below.
  const int s = t < tokens ? sequence_of(sequence_starts, sequences, t) : -1;
  const int queries = q ? heads : 0;
  const bool is_query = head < queries, is_value = head >= queries + kv_heads;
  const int kv = is_query ? 0 : is_value ? head - queries - kv_heads : head - queries;
  uint4 packed = make_uint4(0, 0, 0, 0);
  if (s >= 0) {
    const T* from = is_query   ? q + t * q_stride + head * SIZE
                    : is_value ? v + t * v_stride + kv * SIZE
                               : k + t * k_stride + kv * SIZE;
    packed = ((const uint4*)from)[lane];
  }
  float x[8];
  const T* values = (const T*)&packed;
#pragma unroll
  for (int j = 0; j < 8; j++) x[j] = wide(values[j]);
  if (q_norm) {
    float squares = 0.f;
#pragma unroll
    for (int j = 0; j < 8; j++) squares += x[j] * x[j];
#pragma unroll
    for (int o = LANES / 2; o; o >>= 1) squares += __shfl_xor_sync(~0u, squares, o);
    float inverse = rsqrtf(squares / SIZE + eps);
    if (!is_value) {
      uint4 w = ((const uint4*)(is_query ? q_norm : k_norm))[lane];
      const T* b = (const T*)&w;
#pragma unroll
      for (int j = 0; j < 8; j++) x[j] = wide(narrow<T>(x[j] * inverse * wide(b[j])));
    }
  }
  if (cosines) {
    const bool first = lane < LANES / 2;
    const int at = (lane % (LANES / 2)) * 8;
    float other[8];
#pragma unroll
    for (int j = 0; j < 8; j++) other[j] = __shfl_xor_sync(~0u, x[j], LANES / 2);
    if (!is_value && s >= 0) {
#pragma unroll
      for (int j = 0; j < 8; j++) {
        float c = cosines[(i64)t * SIZE + at + j], n = sines[(i64)t * SIZE + at + j];
        x[j] = first ? x[j] * c - other[j] * n : x[j] * c + other[j] * n;
      }
    }
  }
  if (s < 0) return;
  uint4 out;
  T* result = (T*)&out;
#pragma unroll
  for (int j = 0; j < 8; j++) result[j] = narrow<T>(x[j]);
  if (is_query) {
    ((uint4*)(z + ((i64)t * heads + head) * SIZE))[lane] = out;
  } else {
    int position = (past_lengths ? past_lengths[s] : 0) + t - sequence_starts[s];
    i64 block = block_table[block_starts[s] + (position >> block_bits)];
    int inside = position & ((1 << block_bits) - 1);
    C* to = (is_value ? value_cache : key_cache) +
            (((block * kv_heads + kv) << block_bits) + inside) * SIZE;
#if CACHE8
    C eighths[8];
#pragma unroll
    for (int j = 0; j < 8; j++) eighths[j] = narrow<C>(wide(result[j]));
    ((uint2*)to)[lane] = *(const uint2*)eighths;
#else
    ((uint4*)to)[lane] = out;
#endif
  }
}
#endif

extern "C" __global__ void __launch_bounds__(256) store(
    const T* q, const T* k, const T* v, i64 q_stride, i64 k_stride, i64 v_stride, const T* q_norm,
    const T* k_norm, float eps, const float* cosines, const float* sines, int rotated,
    int interleaved, T* z, C* key_cache, C* value_cache, const int* sequence_starts,
    const int* past_lengths, const int* block_table, const int* block_starts, int sequences,
    int heads, int kv_heads, int size, int value_size, int block_size) {
  extern __shared__ float room[];
  let_next_begin();
  wait_for_previous();
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, t = blockIdx.x;
  const int queries = q ? heads : 0;
  const int head = blockIdx.y * 8 + warp;
  float* held = room + warp * max(size, value_size);
  int s = sequence_of(sequence_starts, sequences, t);
  const float* cos_row = rotated ? cosines + (i64)t * rotated : nullptr;
  const float* sin_row = rotated ? sines + (i64)t * rotated : nullptr;
  if (s >= 0 && head < queries) {
    head_row(q + t * q_stride + head * size, z + ((i64)t * heads + head) * size, held, size, q_norm,
             eps, cos_row, sin_row, rotated, interleaved, lane);
  } else if (s >= 0 && head < queries + 2 * kv_heads) {
    int position = (past_lengths ? past_lengths[s] : 0) + t - sequence_starts[s];
    i64 block = block_table[block_starts[s] + position / block_size];
    int inside = position % block_size, kv = head - queries;
    if (kv < kv_heads) {
      C* to = key_cache + ((block * kv_heads + kv) * block_size + inside) * size;
      head_row(k + t * k_stride + kv * size, to, held, size, k_norm, eps, cos_row, sin_row, rotated,
               interleaved, lane);
    } else {
      kv -= kv_heads;
      C* to = value_cache + ((block * kv_heads + kv) * block_size + inside) * value_size;
      head_row(v + t * v_stride + kv * value_size, to, held, value_size, nullptr, eps, nullptr,
               nullptr, 0, 0, lane);
    }
  }
}
