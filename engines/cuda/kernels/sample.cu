// Choosing the next token of each row of f32 logits [rows, vocabulary], without sorting it.
//
// Weights are exp((logit - largest) / temperature) as 40-bit fixed-point numbers, whose sums do not
// depend on the order in which they are added: a row yields the same token whatever the batch.
// Thresholds (the k-th largest, the least of those that make up a mass) are found by a radix search
// over the order-preserving bits of the logits, 2048 bins at a time. See `paddock.engines.choosing`.

typedef unsigned long long u64;

// Floats as unsigned integers of the same order.
__device__ __forceinline__ u32 ordered(float x) {
  u32 bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// best[row] = the largest logit with the lowest id, as ordered bits above inverted id. NaN is
// larger than any number, so that it is seen. `best` is 0 before.
extern "C" __global__ void __launch_bounds__(256) likeliest(
    const float* logits, u64* best, int vocabulary) {
  __shared__ u64 of_warp[8];
  let_next_begin();
  wait_for_previous();
  const float* row = logits + (i64)blockIdx.y * vocabulary;
  u64 mine = 0;
  for (int i = blockIdx.x * 256 + threadIdx.x; i < vocabulary; i += gridDim.x * 256) {
    float x = row[i];
    u32 key = x != x ? 0xffffffffu : ordered(x);
    u64 found = (u64)key << 32 | (u32)~i;
    mine = found > mine ? found : mine;
  }
#pragma unroll
  for (int o = 16; o; o >>= 1) {
    u64 other = __shfl_xor_sync(~0u, mine, o);
    mine = other > mine ? other : mine;
  }
  if ((threadIdx.x & 31) == 0) of_warp[threadIdx.x >> 5] = mine;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < 8; w++) mine = of_warp[w] > mine ? of_warp[w] : mine;
    atomicMax(best + blockIdx.y, mine);
  }
}

__device__ __forceinline__ u64 weight_of(float logit, float peak, float temperature) {
  float w = expf((logit - peak) / temperature);
  return w != w ? 0 : (u64)((double)w * 1099511627776.0);  // 2^40
}

__device__ u64 block_total(u64 x, u64* room) {
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
#pragma unroll
  for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
  __syncthreads();
  if (lane == 0) room[warp] = x;
  __syncthreads();
  u64 y = 0;
  for (int w = 0; w < (int)(blockDim.x >> 5); w++) y += room[w];
  return y;
}

// The largest key such that the tokens with keys from it on, of those with keys from `floor` on,
// number `count` at least (count > 0) or weigh `mass` at least. `above` becomes what the tokens with
// larger keys number or weigh.
__device__ u32 threshold(
    const float* row, int vocabulary, u32 floor, u64 wanted, bool by_count, float peak,
    float temperature, u64* bins, u64* room, u64* above) {
  u32 prefix = 0;
  u64 beyond = 0;
  for (int level = 0; level < 3; level++) {
    const int shift = level == 0 ? 21 : level == 1 ? 10 : 0;
    const int bits = level == 2 ? 10 : 11;
    const u32 mask = (1u << bits) - 1;
    for (int i = threadIdx.x; i < 2048; i += blockDim.x) bins[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) {
      float x = row[i];
      u32 key = ordered(x);
      if (key < floor) continue;
      if (level > 0 && key >> (shift + bits) != prefix) continue;
      u64 amount = by_count ? 1 : weight_of(x, peak, temperature);
      if (amount) atomicAdd(bins + ((key >> shift) & mask), amount);
    }
    __syncthreads();
    // From the highest bin down: thread 0 over the sums of 64 bins, then over 64 bins.
    if (threadIdx.x < 32) {
      u64 sum = 0;
      for (int i = 0; i < 64; i++) sum += bins[threadIdx.x * 64 + i];
      room[threadIdx.x] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      u64 so_far = beyond;
      int group = 31;
      while (group > 0 && so_far + room[group] < wanted) so_far += room[group--];
      int bin = group * 64 + 63;
      while (bin > group * 64 && so_far + bins[bin] < wanted) so_far += bins[bin--];
      room[33] = so_far;
      room[34] = (u64)bin;
    }
    __syncthreads();
    beyond = room[33];
    prefix = level == 0 ? (u32)room[34] : prefix << bits | (u32)room[34];
    __syncthreads();
  }
  *above = beyond;
  return prefix;
}

// tokens[row] and last_tokens[slots[row]] = the token that is chosen; -1 where no logit is a number.
// Rows whose temperature is 0 take the likeliest. `best` is made 0 again.
extern "C" __global__ void __launch_bounds__(1024) choose(
    const float* logits, u64* best, const float* temperatures, const int* top_ks,
    const float* top_ps, const float* min_ps, const double* chances, const int* slots, int* tokens,
    int* last_tokens, int vocabulary) {
  __shared__ u64 bins[2048], room[36];
  __shared__ int chosen;
  let_next_begin();
  wait_for_previous();
  const int r = blockIdx.x;
  const float* row = logits + (i64)r * vocabulary;
  const u64 found = best[r];
  const u32 peak_key = (u32)(found >> 32);
  const int likeliest_id = (int)~(u32)found;
  const float temperature = temperatures[r];
  const float peak = row[likeliest_id];
  __syncthreads();
  if (threadIdx.x == 0) best[r] = 0;
  int token = likeliest_id;
  if (peak_key == 0xffffffffu || isinf(peak)) token = -1;
  if (token >= 0 && temperature > 0.f) {
    const int top_k = top_ks[r];
    const float top_p = top_ps[r], min_p = min_ps[r];
    u64 above = 0;
    u32 floor = 1;
    if (top_k > 0 && top_k < vocabulary)
      floor = threshold(row, vocabulary, 1, top_k, true, peak, temperature, bins, room, &above);
    int equals = vocabulary;  // how many of those at the threshold of top-p are kept, by id
    u32 equal_key = 0;
    if (top_p < 1.f) {
      u64 sum = 0;
      for (int i = threadIdx.x; i < vocabulary; i += blockDim.x)
        if (ordered(row[i]) >= floor) sum += weight_of(row[i], peak, temperature);
      u64 wanted = (u64)((double)block_total(sum, room) * (double)top_p);
      if (wanted == 0) wanted = 1;
      __syncthreads();
      floor = threshold(row, vocabulary, floor, wanted, false, peak, temperature, bins, room, &above);
      u32 bits = floor & 0x80000000u ? floor ^ 0x80000000u : ~floor;
      u64 each = weight_of(__uint_as_float(bits), peak, temperature);
      u64 missing = wanted > above ? wanted - above : 0;
      equals = each ? (int)max((u64)1, (missing + each - 1) / each) : vocabulary;
      equal_key = floor;
    }
    const float lowest = min_p;  // the likeliest weighs 1
    // Each thread owns neighbouring ids. Sums of kept weights, and of ids at the threshold.
    const int per = (vocabulary + blockDim.x - 1) / blockDim.x;
    const int begin = min((int)threadIdx.x * per, vocabulary), end = min(begin + per, vocabulary);
    u64* counts = bins + 1024;  // by thread; bins[0..1023] hold the weights
    u64 same = 0;
    for (int i = begin; i < end; i++) same += ordered(row[i]) == equal_key;
    __syncthreads();
    counts[threadIdx.x] = same;
    __syncthreads();
    if (threadIdx.x == 0) {
      u64 before = 0;
      for (int t = 0; t < (int)blockDim.x; t++) {
        u64 mine = counts[t];
        counts[t] = before;
        before += mine;
      }
    }
    __syncthreads();
    u64 rank = counts[threadIdx.x], sum = 0;
    for (int i = begin; i < end; i++) {
      u32 key = ordered(row[i]);
      if (key < floor || (key == equal_key && rank++ >= (u64)equals)) continue;
      if (min_p > 0.f && expf((row[i] - peak) / temperature) < lowest) continue;
      sum += weight_of(row[i], peak, temperature);
    }
    bins[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      u64 total = 0;
      for (int t = 0; t < (int)blockDim.x; t++) total += bins[t];
      u64 wanted = (u64)((double)total * chances[r]), before = 0;
      if (wanted >= total) wanted = total - 1;
      int t = 0;
      while (before + bins[t] <= wanted) before += bins[t++];
      chosen = t;
      room[0] = before;
      room[1] = wanted;
    }
    __syncthreads();
    if ((int)threadIdx.x == chosen) {
      u64 before = room[0], wanted = room[1];
      rank = counts[threadIdx.x];
      token = begin;
      for (int i = begin; i < end; i++) {
        u32 key = ordered(row[i]);
        if (key < floor || (key == equal_key && rank++ >= (u64)equals)) continue;
        if (min_p > 0.f && expf((row[i] - peak) / temperature) < lowest) continue;
        u64 weight = weight_of(row[i], peak, temperature);
        if (weight) token = i;
        before += weight;
        if (before > wanted) break;
      }
      tokens[r] = token;
      if (slots[r] >= 0) last_tokens[slots[r]] = token;
    }
  } else if (threadIdx.x == 0) {
    tokens[r] = token;
    if (slots[r] >= 0) last_tokens[slots[r]] = token;
  }
}

// Token ids below 0 stand for what a slot's sequence was given last: -1 - slot.
extern "C" __global__ void fill_in(i64* token_ids, const int* last_tokens, int tokens) {
  let_next_begin();
  wait_for_previous();
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < tokens && token_ids[i] < 0) {
    int token = last_tokens[-1 - token_ids[i]];
    token_ids[i] = token < 0 ? 0 : token;
  }
}
