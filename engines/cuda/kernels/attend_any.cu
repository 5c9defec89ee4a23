// Causal attention over the paged cache for any type and head size: slow and simple.
//
// One block of 128 threads for each token (blockIdx.x) and head (blockIdx.y), which goes over the
// keys 128 at a time with a running maximum and sum (Milakov and Gimelshein 2018,
// arxiv.org/abs/1805.02867). A token at position i sees i - window < j <= i;
// `slopes` [heads] may be null (ALiBi).

extern "C" __global__ void __launch_bounds__(128) attend_any(
    const T* q, const T* key_cache, const T* value_cache, T* z, const int* sequence_starts,
    const int* past_lengths, const int* block_table, const int* block_starts, int sequences,
    int heads, int kv_heads, int size, int value_size, int block_size, float scale, int window,
    float soft_cap, const float* slopes) {
  extern __shared__ float held[];  // the query [size], then the sum of values [value_size]
  __shared__ float weights[128], room[33];
  let_next_begin();
  wait_for_previous();
  const int t = blockIdx.x, head = blockIdx.y, kv = head / (heads / kv_heads);
  int s = sequence_of(sequence_starts, sequences, t);
  T* out = z + ((i64)t * heads + head) * value_size;
  if (s < 0) {  // a token of padding: nobody reads it, but what it holds must be numbers
    for (int i = threadIdx.x; i < value_size; i += 128) out[i] = narrow<T>(0.f);
    return;
  }
  float* sum = held + size;
  for (int i = threadIdx.x; i < size; i += 128)
    held[i] = wide(q[((i64)t * heads + head) * size + i]);
  for (int i = threadIdx.x; i < value_size; i += 128) sum[i] = 0.f;
  const int position = past_lengths[s] + t - sequence_starts[s];
  const int* blocks = block_table + block_starts[s];
  float largest = -INFINITY, total = 0.f;
  int begin = window > 0 ? max(0, position - window + 1) : 0;
  __syncthreads();
  for (int start = begin; start <= position; start += 128) {
    int j = start + threadIdx.x;
    float score = -INFINITY;
    if (j <= position) {
      const T* key =
          key_cache + (((i64)blocks[j / block_size] * kv_heads + kv) * block_size + j % block_size) * size;
      score = 0.f;
      for (int i = 0; i < size; i++) score += held[i] * wide(key[i]);
      score *= scale;
      if (soft_cap > 0.f) score = soft_cap * tanhf(score / soft_cap);
      if (slopes) score += slopes[head] * (j - position);
    }
    float peak = fmaxf(largest, block_max(score, room));
    float weight = j <= position ? expf(score - peak) : 0.f;
    float shrink = expf(largest - peak);
    weights[threadIdx.x] = weight;
    total = total * shrink + block_sum(weight, room);
    largest = peak;
    int count = min(128, position - start + 1);
    for (int i = threadIdx.x; i < value_size; i += 128) {
      float y = sum[i] * shrink;
      for (int n = 0; n < count; n++) {
        int at = start + n;
        y += weights[n] *
             wide(value_cache[(((i64)blocks[at / block_size] * kv_heads + kv) * block_size +
                               at % block_size) * value_size + i]);
      }
      sum[i] = y;
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < value_size; i += 128) out[i] = narrow<T>(sum[i] / total);
}
