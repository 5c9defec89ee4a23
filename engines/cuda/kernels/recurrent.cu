// Ops that carry a state along each sequence (`paddock.graph.ops.recurrent` defines them). Padding
// is sequences of no tokens, which leave every state alone.
//
//   -DSTATE=0|1|2   the element type of states: f32, f16, bf16
#if STATE == 0
typedef float S;
#elif STATE == 1
typedef __half S;
#else
typedef __nv_bfloat16 S;
#endif

// A state of `n` numbers is spread over a warp, `EACH` a lane.
const int EACH = 8;

// y_t = sum over i of w_i x_(t - width + 1 + i) + b, one thread a token and channel. What lies before
// the step's tokens is in the state [slots, channels, width], oldest first.
extern "C" __global__ void causal_conv(
    const T* x, const T* weight, const T* bias, const S* state, T* y, const int* sequence_starts,
    const int* past_lengths, const int* sequence_slots, int sequences, int tokens, int channels,
    int width) {
  let_next_begin();
  wait_for_previous();
  i64 n = (i64)tokens * channels;
  for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x) {
    int t = (int)(i / channels), c = (int)(i - (i64)t * channels);
    int s = sequence_of(sequence_starts, sequences, t);
    float sum = bias ? wide(bias[c]) : 0.f;
    if (s >= 0) {
      const int begin = sequence_starts[s];
      const S* kept = state + ((i64)sequence_slots[s] * channels + c) * width;
      for (int k = 0; k < width; k++) {
        int at = t - width + 1 + k;
        float v = 0.f;
        if (at >= begin) v = wide(x[(i64)at * channels + c]);
        else if (past_lengths[s]) v = wide(kept[width + at - begin]);
        sum += wide(weight[c * width + k]) * v;
      }
    }
    y[i] = narrow<T>(sum);
  }
}

// The last `width` inputs of each channel, behind `causal_conv`; a thread a sequence and channel.
extern "C" __global__ void keep_inputs(
    const T* x, S* state, const int* sequence_starts, const int* past_lengths,
    const int* sequence_slots, int channels, int width) {
  let_next_begin();
  wait_for_previous();
  const int s = blockIdx.y, c = blockIdx.x * blockDim.x + threadIdx.x;
  const int begin = sequence_starts[s], end = sequence_starts[s + 1];
  if (c >= channels || begin == end) return;
  S* kept = state + ((i64)sequence_slots[s] * channels + c) * width;
  for (int k = 0; k < width; k++) {  // what is read lies behind what was written
    int at = end - width + k;
    float v = 0.f;
    if (at >= begin) v = wide(x[(i64)at * channels + c]);
    else if (past_lengths[s]) v = wide(kept[width + at - begin]);
    kept[k] = narrow<S>(v);
  }
}

// S_t = exp(dt_t A) S_(t-1) + dt_t x_t B_t^T, y_t = S_t C_t + D x_t: a warp a sequence (blockIdx.y), head
// and row of the head's state, tokens one after the other.
extern "C" __global__ void __launch_bounds__(128) selective_scan(
    const T* x, const T* dt, const T* a, const T* b, const T* c, const T* d, S* state, T* y,
    const int* sequence_starts, const int* past_lengths, const int* sequence_slots, int heads,
    int size, int groups, int n, int rates) {
  let_next_begin();
  wait_for_previous();
  const int s = blockIdx.y, lane = threadIdx.x & 31;
  const int begin = sequence_starts[s], end = sequence_starts[s + 1];
  const int row = blockIdx.x * 4 + (threadIdx.x >> 5);
  if (row >= heads * size || begin == end) return;
  const int head = row / size, group = head / (heads / groups);
  S* kept = state + ((i64)sequence_slots[s] * heads * size + row) * n;
  float held[EACH], rate[EACH];
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    int i = lane + 32 * j;
    held[j] = i < n && past_lengths[s] ? wide(kept[i]) : 0.f;
    rate[j] = i < n ? wide(a[rates == 1 ? head : head * n + i]) : 0.f;
  }
  const float through = wide(d[head]);
  for (int t = begin; t < end; t++) {
    const float step = wide(dt[(i64)t * heads + head]);
    const float value = wide(x[(i64)t * heads * size + row]);
    float sum = 0.f;
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      int i = lane + 32 * j;
      if (i >= n) continue;
      i64 at = ((i64)t * groups + group) * n + i;
      held[j] = expf(rate[j] * step) * held[j] + step * value * wide(b[at]);
      sum += held[j] * wide(c[at]);
    }
    sum = warp_sum(sum);
    if (lane == 0) y[(i64)t * heads * size + row] = narrow<T>(sum + through * value);
  }
#pragma unroll
  for (int j = 0; j < EACH; j++)
    if (lane + 32 * j < n) kept[lane + 32 * j] = narrow<S>(held[j]);
}

// h_t = a_t h_(t-1) + sqrt(1 - a_t^2) x_t, a_t = exp(gate_t rate); the first x of a sequence without a
// past counts whole. A thread a sequence (blockIdx.y) and channel.
extern "C" __global__ void __launch_bounds__(128) real_gated_recurrence(
    const T* x, const T* gate, const T* rates, S* state, T* y, const int* sequence_starts,
    const int* past_lengths, const int* sequence_slots, int channels) {
  let_next_begin();
  wait_for_previous();
  const int s = blockIdx.y, c = blockIdx.x * 128 + threadIdx.x;
  const int begin = sequence_starts[s], end = sequence_starts[s + 1];
  if (c >= channels || begin == end) return;
  S* kept = state + (i64)sequence_slots[s] * channels + c;
  const bool fresh = past_lengths[s] == 0;
  const float rate = wide(rates[c]);
  float h = fresh ? 0.f : wide(*kept);
  for (int t = begin; t < end; t++) {
    const float exponent = wide(gate[(i64)t * channels + c]) * rate;
    const float value = wide(x[(i64)t * channels + c]);
    const float added = fresh && t == begin ? 1.f : sqrtf(-expm1f(2.f * exponent));
    h = expf(exponent) * h + added * value;
    y[(i64)t * channels + c] = narrow<T>(h);
  }
  *kept = narrow<S>(h);
}

// S = exp(g_t) S_(t-1); S_t = S + b_t (v_t - S k_t) k_t^T; y_t = S_t q_t / sqrt(key size): a warp a sequence
// (blockIdx.y), head and row of the head's state.
extern "C" __global__ void __launch_bounds__(128) gated_delta_rule(
    const T* q, const T* k, const T* v, const T* gate, const T* beta, S* state, T* y,
    const int* sequence_starts, const int* past_lengths, const int* sequence_slots, int heads,
    int value_size, int key_heads, int key_size) {
  let_next_begin();
  wait_for_previous();
  const int s = blockIdx.y, lane = threadIdx.x & 31;
  const int begin = sequence_starts[s], end = sequence_starts[s + 1];
  const int row = blockIdx.x * 4 + (threadIdx.x >> 5);
  if (row >= heads * value_size || begin == end) return;
  const int head = row / value_size, key_head = head / (heads / key_heads);
  S* kept = state + ((i64)sequence_slots[s] * heads * value_size + row) * key_size;
  const float scale = rsqrtf((float)key_size);
  float held[EACH];
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    int i = lane + 32 * j;
    held[j] = i < key_size && past_lengths[s] ? wide(kept[i]) : 0.f;
  }
  for (int t = begin; t < end; t++) {
    const float decay = expf(wide(gate[(i64)t * heads + head]));
    const i64 from = ((i64)t * key_heads + key_head) * key_size;
    float keys[EACH], found = 0.f, sum = 0.f;
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      int i = lane + 32 * j;
      keys[j] = i < key_size ? wide(k[from + i]) : 0.f;
      held[j] *= decay;
      found += held[j] * keys[j];
    }
    found = warp_sum(found);
    const i64 at = (i64)t * heads * value_size + row;
    const float missing = wide(beta[(i64)t * heads + head]) * (wide(v[at]) - found);
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      int i = lane + 32 * j;
      held[j] += missing * keys[j];
      if (i < key_size) sum += held[j] * wide(q[from + i]) * scale;
    }
    sum = warp_sum(sum);
    if (lane == 0) y[at] = narrow<T>(sum);
  }
#pragma unroll
  for (int j = 0; j < EACH; j++)
    if (lane + 32 * j < key_size) kept[lane + 32 * j] = narrow<S>(held[j]);
}
