// Attention for any type and head size: slow and simple.
//
//   -DMODE=0  causal over the paged cache: a token at position i sees i - window < j <= i
//   -DMODE=1  within the step's own sequences, keys packed as queries are: i - window <= j <= i + window
//   -DMODE=2  over a source that lies in the paged cache: all of it
//
// One block of 128 threads for each token (blockIdx.x) and head (blockIdx.y), which goes over the
// keys 128 at a time with a running maximum and sum (Milakov and Gimelshein 2018,
// arxiv.org/abs/1805.02867). `lengths` are those of the past, none, or those of the sources. `window`
// < 0 sees everything. These may be null: `slopes` [heads] (ALiBi), `sinks` [heads], scores of a key
// whose value is 0, and `biases` [buckets, heads] by the bucket of a distance j - i, which
// `buckets` [2 reach + 1] holds from -reach on.

extern "C" __global__ void __launch_bounds__(128) attend_any(
    const T* q, const C* keys, const C* values, T* z, const int* sequence_starts,
    const int* lengths, const int* block_table, const int* block_starts, int sequences, int heads,
    int kv_heads, int size, int value_size, int block_size, float scale, int window, float soft_cap,
    const float* slopes, const T* sinks, const T* biases, const int* buckets, int reach) {
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
  const int start = sequence_starts[s], inside = t - start;
  const int position = MODE == 0 ? lengths[s] + inside : inside;
  int begin = 0, end = position + 1;
  if (MODE == 1) end = sequence_starts[s + 1] - start;
  if (MODE == 2) end = lengths[s];
  if (MODE == 0 && window >= 0) begin = max(0, position - window + 1);
  if (MODE == 1 && window >= 0) {
    begin = max(0, position - window);
    end = min(end, position + window + 1);
  }
  const int* blocks = MODE == 1 ? nullptr : block_table + block_starts[s];
  auto row = [&](int j) -> i64 {  // of token j in keys and values
    if (MODE == 1) return (i64)(start + j) * kv_heads + kv;
    return ((i64)blocks[j / block_size] * kv_heads + kv) * block_size + j % block_size;
  };
  float largest = -INFINITY, total = 0.f;
  if (sinks) {
    largest = wide(sinks[head]);
    total = 1.f;
  }
  __syncthreads();
  for (int from = begin; from < end; from += 128) {
    int j = from + threadIdx.x;
    float score = -INFINITY;
    if (j < end) {
      const C* key = keys + row(j) * size;
      score = 0.f;
      for (int i = 0; i < size; i++) score += held[i] * wide(key[i]);
      score *= scale;
      if (soft_cap > 0.f) score = soft_cap * tanhf(score / soft_cap);
      if (slopes) score += slopes[head] * (j - position);
      if (biases) {
        int distance = min(max(j - position, -reach), reach);
        score += wide(biases[buckets[distance + reach] * heads + head]);
      }
    }
    float peak = fmaxf(largest, block_max(score, room));
    float weight = j < end ? expf(score - peak) : 0.f;
    float shrink = expf(largest - peak);
    weights[threadIdx.x] = weight;
    total = total * shrink + block_sum(weight, room);
    largest = peak;
    int count = min(128, end - from);
    for (int i = threadIdx.x; i < value_size; i += 128) {
      float y = sum[i] * shrink;
      for (int n = 0; n < count; n++) y += weights[n] * wide(values[row(from + n) * value_size + i]);
      sum[i] = y;
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < value_size; i += 128) out[i] = narrow<T>(sum[i] / total);
}
