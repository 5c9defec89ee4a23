// Mixtures of experts: the choice of experts, products with the weights of each, and their sum.

// A score that compares as the definition sorts: larger first, of equals the lower number.
__device__ __forceinline__ bool precedes(float x, int i, float y, int j) {
  return x > y || (x == y && i < j);
}

// One block of 128 threads a token. `scoring`: 0 softmax, 1 sigmoid, 2 softmax over the chosen,
// 3 sparsemixer (`paddock.graph.ops.Route` defines each). bias [experts] may be null.
extern "C" __global__ void __launch_bounds__(128) route(
    const T* logits, const void* bias, int bias_is_f32, float* weights, i64* ids, int experts,
    int chosen, int scoring, int normalize, float epsilon, float factor, int groups,
    int kept_groups, int group_best, float jitter) {
  extern __shared__ float held[];  // scores [experts], preferred [experts], groups' sums [groups]
  __shared__ float room[33], warp_best[4];
  __shared__ int warp_at[4], found;
  let_next_begin();
  wait_for_previous();
  const int t = blockIdx.x, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  float *scores = held, *preferred = held + experts, *sums = held + 2 * experts;
  const T* row = logits + (i64)t * experts;
  float most = -INFINITY;
  for (int e = threadIdx.x; e < experts; e += 128) {
    scores[e] = wide(row[e]);
    most = fmaxf(most, scores[e]);
  }
  most = block_max(most, room);
  if (scoring == 0) {
    float sum = 0.f;
    for (int e = threadIdx.x; e < experts; e += 128) sum += scores[e] = expf(scores[e] - most);
    sum = block_sum(sum, room);
    for (int e = threadIdx.x; e < experts; e += 128) scores[e] /= sum;
  } else if (scoring == 1) {
    for (int e = threadIdx.x; e < experts; e += 128) scores[e] = 1.f / (1.f + expf(-scores[e]));
  }
  for (int e = threadIdx.x; e < experts; e += 128) {
    float extra = 0.f;
    if (bias) extra = bias_is_f32 ? ((const float*)bias)[e] : wide(((const T*)bias)[e]);
    preferred[e] = scores[e] + extra;
  }
  __syncthreads();
  if (kept_groups < groups) {
    const int size = experts / groups;
    for (int g = threadIdx.x; g < groups; g += 128) {  // each next one behind the one before
      float sum = 0.f, last = INFINITY;
      int last_at = -1;
      for (int n = 0; n < group_best; n++) {
        float best = -INFINITY;
        int at = size;
        for (int i = 0; i < size; i++) {
          float x = preferred[g * size + i];
          if (precedes(last, last_at, x, i) && precedes(x, i, best, at)) best = x, at = i;
        }
        sum += best;
        last = best;
        last_at = at;
      }
      sums[g] = sum;
    }
    __syncthreads();
    for (int e = threadIdx.x; e < experts; e += 128) {
      int before = 0;
      for (int g = 0; g < groups; g++) before += precedes(sums[g], g, sums[e / size], e / size);
      if (before >= kept_groups) preferred[e] = -INFINITY;
    }
    __syncthreads();
  }
  float total = 0.f;
  for (int c = 0; c < chosen; c++) {
    float best = -INFINITY;
    int at = experts;
    for (int e = threadIdx.x; e < experts; e += 128)
      if (precedes(preferred[e], e, best, at)) best = preferred[e], at = e;
#pragma unroll
    for (int o = 16; o; o >>= 1) {
      float other = __shfl_xor_sync(~0u, best, o);
      int other_at = __shfl_xor_sync(~0u, at, o);
      if (precedes(other, other_at, best, at)) best = other, at = other_at;
    }
    if (lane == 0) warp_best[warp] = best, warp_at[warp] = at;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int w = 1; w < 4; w++)
        if (precedes(warp_best[w], warp_at[w], best, at)) best = warp_best[w], at = warp_at[w];
      found = at < experts ? at : c;  // logits that are no numbers must still name an expert
    }
    __syncthreads();
    const int expert = found;
    float weight = scores[expert];
    if (scoring == 3) {
      // Softmax over those within 2 x jitter of the best of what is left.
      const float peak = weight;
      float sum = 0.f;
      for (int e = threadIdx.x; e < experts; e += 128) {
        float x = scores[e];
        bool far = (peak - x) / fmaxf(fabsf(x), peak) > 2.f * jitter;
        if (!far && preferred[e] > -INFINITY) sum += expf(x - peak);
      }
      weight = 1.f / block_sum(sum, room);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      preferred[expert] = -INFINITY;
      weights[(i64)t * chosen + c] = weight;
      ids[(i64)t * chosen + c] = expert;
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    float* mine = weights + (i64)t * chosen;
    if (scoring == 2) {
      float peak = mine[0];
      for (int c = 1; c < chosen; c++) peak = fmaxf(peak, mine[c]);
      for (int c = 0; c < chosen; c++) total += mine[c] = expf(mine[c] - peak);
      for (int c = 0; c < chosen; c++) mine[c] /= total;
      total = 0.f;
    }
    for (int c = 0; c < chosen; c++) total += mine[c];
    for (int c = 0; c < chosen; c++)
      mine[c] = (normalize ? mine[c] / (total + epsilon) : mine[c]) * factor;
  }
}

// z [tokens, features] = sum over c of y [tokens, chosen, features] x weights [tokens, chosen].
extern "C" __global__ void weighted_sum(
    const T* y, const void* weights, int weights_are_f32, T* z, i64 tokens, int chosen,
    i64 features) {
  let_next_begin();
  wait_for_previous();
  i64 n = tokens * features;
  for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x) {
    i64 t = i / features, f = i - t * features;
    float sum = 0.f;
    for (int c = 0; c < chosen; c++) {
      i64 at = t * chosen + c;
      float w = weights_are_f32 ? ((const float*)weights)[at] : wide(((const T*)weights)[at]);
      sum += wide(y[at * features + f]) * w;
    }
    z[i] = narrow<T>(sum);
  }
}

// y [pairs, outputs] = x W[expert of the pair]^T + bias: for few pairs, whose weights are read once
// each. A pair is a token and one of its `chosen` experts; x has a row for each pair (`own`) or for
// each token. Experts below `first` or beyond `held` are another rank's: zeros. A warp an output,
// blockIdx.y is the pair.
extern "C" __global__ void __launch_bounds__(256) grouped_rows(
    const T* x, const T* weight, const i64* ids, const T* bias, T* y, int outputs, int inputs,
    int chosen, int own, int first, int held, int vector) {
  let_next_begin();
  wait_for_previous();
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, pair = blockIdx.y;
  const int expert = (int)ids[pair] - first;
  const T* row = x + (i64)(own ? pair : pair / chosen) * inputs;
  for (int o = blockIdx.x * 8 + warp; o < outputs; o += gridDim.x * 8) {
    if (expert < 0 || expert >= held) {
      if (lane == 0) y[(i64)pair * outputs + o] = narrow<T>(0.f);
      continue;
    }
    const T* w = weight + ((i64)expert * outputs + o) * inputs;
    float sum = 0.f;
    if (vector) {
      const int V = 16 / sizeof(T);
#pragma unroll 4
      for (int i = lane; i < inputs / V; i += 32) {
        uint4 a = ((const uint4*)w)[i], b = ((const uint4*)row)[i];
        const T *p = (const T*)&a, *q = (const T*)&b;
#pragma unroll
        for (int j = 0; j < V; j++) sum += wide(p[j]) * wide(q[j]);
      }
    } else {
      for (int i = lane; i < inputs; i += 32) sum += wide(w[i]) * wide(row[i]);
    }
    sum = warp_sum(sum);
    if (lane == 0) {
      if (bias) sum += wide(bias[(i64)expert * outputs + o]);
      y[(i64)pair * outputs + o] = narrow<T>(sum);
    }
  }
}

// Pairs by expert: starts [held + 1], and order [pairs], the pairs of expert 0, then of 1, ... One
// block of 1024 threads; shared memory holds `held` numbers. Other ranks' pairs are left out.
extern "C" __global__ void __launch_bounds__(1024) sort_pairs(
    const i64* ids, int* starts, int* order, int pairs, int first, int held) {
  extern __shared__ int counts[];
  let_next_begin();
  wait_for_previous();
  for (int e = threadIdx.x; e < held; e += 1024) counts[e] = 0;
  __syncthreads();
  for (int p = threadIdx.x; p < pairs; p += 1024) {
    int e = (int)ids[p] - first;
    if (e >= 0 && e < held) atomicAdd(counts + e, 1);
  }
  __syncthreads();
  if (threadIdx.x < 32) {  // a warp adds up, 32 experts at a time
    int before = 0;
    for (int base = 0; base < held; base += 32) {
      int e = base + threadIdx.x, mine = e < held ? counts[e] : 0, upto = mine;
#pragma unroll
      for (int o = 1; o < 32; o <<= 1) {
        int y = __shfl_up_sync(~0u, upto, o);
        if ((int)threadIdx.x >= o) upto += y;
      }
      if (e < held) {
        starts[e] = before + upto - mine;
        counts[e] = before + upto - mine;
      }
      before += __shfl_sync(~0u, upto, 31);
    }
    if (threadIdx.x == 0) starts[held] = before;
  }
  __syncthreads();
  for (int p = threadIdx.x; p < pairs; p += 1024) {
    int e = (int)ids[p] - first;
    if (e >= 0 && e < held) order[atomicAdd(counts + e, 1)] = p;
  }
}

// The same product for many pairs with tensor cores, after they were sorted: a block of 4 warps
// makes 64 pairs of one expert x 128 outputs, two warps along each; blockIdx.x counts the tiles of
// all experts. T has 16 bits, inputs are a multiple of 8. What other ranks' pairs get is not
// written here.
#if TYPE != 0
const int DEEP = 64, LINE = DEEP + 8;  // columns at a time; an odd number of 16 bytes a line

extern "C" __global__ void __launch_bounds__(128) grouped_tiles(
    const T* x, const T* weight, const int* starts, const int* order, const T* bias, T* y,
    int outputs, int inputs, int chosen, int own, int held) {
  extern __shared__ uint4 shared[];
  T* stages = (T*)shared;  // [2, 64 + 128, LINE]
  let_next_begin();
  wait_for_previous();
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  int tile = blockIdx.x, before = 0, expert = -1;  // every warp finds out for itself
  for (int base = 0; base < held && expert < 0; base += 32) {
    int e = base + lane, tiles = e < held ? (starts[e + 1] - starts[e] + 63) / 64 : 0, upto = tiles;
#pragma unroll
    for (int o = 1; o < 32; o <<= 1) {
      int up = __shfl_up_sync(~0u, upto, o);
      if (lane >= o) upto += up;
    }
    u32 beyond = __ballot_sync(~0u, before + upto > tile);
    if (beyond) {
      int l = __ffs(beyond) - 1;
      expert = base + l;
      tile -= before + __shfl_sync(~0u, upto - tiles, l);
    }
    before += __shfl_sync(~0u, upto, 31);
  }
  if (expert < 0) return;
  const int begin = starts[expert] + tile * 64, count = min(64, starts[expert + 1] - begin);
  const int first_output = blockIdx.y * 128;
  const T* w = weight + ((i64)expert * outputs + first_output) * inputs;

  // Each thread brings the same 16 bytes' column of 12 lines: 4 of x and 8 of the weight.
  const int column = threadIdx.x % 8 * 8, line = threadIdx.x / 8;
  const T* from[4];
  bool is_pair[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int r = line + 16 * i;
    is_pair[i] = r < count;
    int pair = is_pair[i] ? order[begin + r] : 0;
    from[i] = x + (i64)(own ? pair : pair / chosen) * inputs;
  }
  auto bring = [&](int stage, int at) {
    T* to = stages + stage * 192 * LINE;
    const bool inside = at + column < inputs;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      bool there = inside && is_pair[i];
      copy16(to + (line + 16 * i) * LINE + column, there ? from[i] + at + column : x, there);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
      int r = line + 16 * i;
      bool there = inside && first_output + r < outputs;
      copy16(to + (64 + r) * LINE + column, there ? w + (i64)r * inputs + at + column : x, there);
    }
    commit();
  };
  float sums[2][8][4];
#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int n = 0; n < 8; n++) sums[m][n][0] = sums[m][n][1] = sums[m][n][2] = sums[m][n][3] = 0.f;
  const int down = warp / 2 * 32, across = warp % 2 * 64, matrix = lane >> 3, row = lane & 7;
  bring(0, 0);
  for (int at = 0, stage = 0; at < inputs; at += DEEP, stage ^= 1) {
    if (at + DEEP < inputs) {
      bring(stage ^ 1, at + DEEP);
      arrived<1>();
    } else {
      arrived<0>();
    }
    __syncthreads();
    const T* rows = stages + stage * 192 * LINE;
    const T* columns = rows + 64 * LINE;
#pragma unroll
    for (int k = 0; k < DEEP; k += 16) {
      u32 a[2][4];
#pragma unroll
      for (int m = 0; m < 2; m++)
        load_matrices(a[m], rows + (down + m * 16 + (matrix & 1) * 8 + row) * LINE + k + (matrix >> 1) * 8);
#pragma unroll
      for (int n = 0; n < 4; n++) {
        u32 b[4];
        load_matrices(b, columns + (across + n * 16 + (matrix >> 1) * 8 + row) * LINE + k + (matrix & 1) * 8);
#pragma unroll
        for (int m = 0; m < 2; m++) {
          multiply(sums[m][2 * n], a[m], b);
          multiply(sums[m][2 * n + 1], a[m], b + 2);
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int r = down + m * 16 + (lane >> 2) + 8 * h;
      if (r >= count) continue;
      T* to = y + (i64)order[begin + r] * outputs;
#pragma unroll
      for (int n = 0; n < 8; n++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
          int o = first_output + across + n * 8 + (lane & 3) * 2 + j;
          if (o >= outputs) continue;
          float v = sums[m][n][2 * h + j];
          if (bias) v += wide(bias[(i64)expert * outputs + o]);
          to[o] = narrow<T>(v);
        }
    }
}
#endif
