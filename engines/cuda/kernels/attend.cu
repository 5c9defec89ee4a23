// Causal attention over the paged cache with tensor cores: after FlashAttention-2 (Dao 2023,
// arxiv.org/abs/2307.08691) and Flash-Decoding (Dao et al. 2023), keys read through the block table
// (Kwon et al. 2023, arxiv.org/abs/2309.06180).
//
//   -DSIZE=n   the size of a head of q, k and v: a multiple of 16, up to 256
//   -DMODE=0   causal over the cache; 1: within the step's own sequences, whose keys and values are
//              packed as queries are; 2: over all of a source that lies in the cache (`attend_tiles`)
//   -DCACHE8=1 keys and values are e4m3: they come to shared memory as they are, and are widened
//              there before they are used
//
// T has 16 bits; a block holds 2^block_bits tokens; caches are [blocks, kv heads, block, SIZE].
// Rows are (token, query head of one kv head), packed, so that one read of a key serves all the
// queries that share it.

const int STRIDE = SIZE + 8;  // an odd number of 16 bytes: ldmatrix meets no bank twice
#if CACHE8
const int RAW = SIZE + 16;  // of a token as it comes; an odd number of 16 bytes, too, or near it
#else
const int RAW = STRIDE;
#endif
const float LOG2E = 1.4426950408889634f;

__device__ __forceinline__ void load_transposed(u32* r, const T* from) {
  u32 at = (u32)__cvta_generic_to_shared(from);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
}
__device__ __forceinline__ u32 pack(float low, float high) {
  T pair[2] = {narrow<T>(low), narrow<T>(high)};
  return *(u32*)pair;
}

// `count` tokens from `first` on of one kv head into shared memory; from `end` on, zeros.
template <int COUNT>
__device__ __forceinline__ void load_tokens(
    C* to, const C* cache, const int* blocks, int first, int end, int kv, int kv_heads,
    int block_bits, int lane, int lanes) {
  const int PER = 16 / sizeof(C), pieces = SIZE / PER;
  for (int i = lane; i < COUNT * pieces; i += lanes) {
    int row = i / pieces, piece = i - row * pieces, token = first + row;
    bool there = token < end;
#if MODE == 1
    const C* from = cache + ((i64)token * kv_heads + kv) * SIZE + piece * PER;
#else
    int block = there ? blocks[token >> block_bits] : 0;
    int inside = token & ((1 << block_bits) - 1);
    const C* from =
        cache + (((((i64)block * kv_heads + kv) << block_bits) + inside) * SIZE + piece * PER);
#endif
    copy16(to + row * RAW + piece * PER, there ? from : cache, there);
  }
}

#if CACHE8
// `COUNT` tokens that came as e4m3, as T.
template <int COUNT>
__device__ __forceinline__ void widen_tokens(T* to, const C* from, int lane, int lanes) {
  for (int i = lane; i < COUNT * (SIZE / 16); i += lanes) {
    int row = i / (SIZE / 16), piece = i - row * (SIZE / 16);
    uint4 v = *(const uint4*)(from + row * RAW + piece * 16), out[2];
    const unsigned short* two = (const unsigned short*)&v;
    u32* pairs = (u32*)out;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      __half2_raw h = __nv_cvt_fp8x2_to_halfraw2(two[j], __NV_E4M3);
#if TYPE == 1
      pairs[j] = *(u32*)&h;
#else
      float2 f = __half22float2(*(__half2*)&h);
      pairs[j] = pack(f.x, f.y);
#endif
    }
    uint4* at = (uint4*)(to + row * STRIDE + piece * 16);
    at[0] = out[0];
    at[1] = out[1];
  }
}
#endif

// Scores of 16 rows against NT x 8 tokens -> weights, with the running maximum and sum of two rows.
// The scores' first token is `first`; rows see tokens in (position - window, limit].
template <int NT>
__device__ __forceinline__ void soften(
    float (*s)[4], float* peak, float* total, float* shrink, int first, const int* position,
    const int* limit, float scale, int window, float soft_cap, bool mask, int lane) {
#pragma unroll
  for (int n = 0; n < NT; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      float y = s[n][e] * scale;
      if (soft_cap > 0.f) y = soft_cap * tanhf(y / soft_cap);
      y *= LOG2E;
      if (mask) {
        int j = first + n * 8 + (lane & 3) * 2 + (e & 1), i = position[e >> 1];
        if (j > limit[e >> 1] || (window > 0 && j <= i - window)) y = -INFINITY;
      }
      s[n][e] = y;
    }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float most = peak[h];
#pragma unroll
    for (int n = 0; n < NT; n++) most = fmaxf(most, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
    float base = most == -INFINITY ? 0.f : most;
    shrink[h] = exp2f(peak[h] - base);
    peak[h] = most;
    float sum = 0.f;
#pragma unroll
    for (int n = 0; n < NT; n++) {
      s[n][2 * h] = exp2f(s[n][2 * h] - base);
      s[n][2 * h + 1] = exp2f(s[n][2 * h + 1] - base);
      sum += s[n][2 * h] + s[n][2 * h + 1];
    }
    total[h] = total[h] * shrink[h] + sum;  // of this lane's tokens; joined at the end
  }
}

// One step of a warp: its 16 rows against COUNT tokens that lie in shared memory.
template <int COUNT>
__device__ __forceinline__ void attend_tokens(
    const T* queries, const T* keys, const T* values, float (*o)[4], float* peak, float* total,
    int first, const int* position, const int* limit, float scale, int window, float soft_cap,
    bool mask, int lane) {
  float s[COUNT / 8][4];
#pragma unroll
  for (int n = 0; n < COUNT / 8; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.f;
  const int matrix = lane >> 3, row = lane & 7;
#pragma unroll
  for (int k = 0; k < SIZE; k += 16) {
    u32 a[4];
    load_matrices(a, queries + ((matrix & 1) * 8 + row) * STRIDE + k + (matrix >> 1) * 8);
#pragma unroll
    for (int n = 0; n < COUNT / 16; n++) {
      u32 b[4];
      load_matrices(b, keys + (n * 16 + (matrix >> 1) * 8 + row) * STRIDE + k + (matrix & 1) * 8);
      multiply(s[2 * n], a, b);
      multiply(s[2 * n + 1], a, b + 2);
    }
  }
  float shrink[2];
  soften<COUNT / 8>(
      s, peak, total, shrink, first, position, limit, scale, window, soft_cap, mask, lane);
#pragma unroll
  for (int d = 0; d < SIZE / 8; d++) {
    o[d][0] *= shrink[0];
    o[d][1] *= shrink[0];
    o[d][2] *= shrink[1];
    o[d][3] *= shrink[1];
  }
#pragma unroll
  for (int k = 0; k < COUNT / 16; k++) {
    u32 a[4] = {pack(s[2 * k][0], s[2 * k][1]), pack(s[2 * k][2], s[2 * k][3]),
                pack(s[2 * k + 1][0], s[2 * k + 1][1]), pack(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
    for (int d = 0; d < SIZE / 16; d++) {
      u32 b[4];
      load_transposed(
          b, values + (k * 16 + (matrix & 1) * 8 + row) * STRIDE + d * 16 + (matrix >> 1) * 8);
      multiply(o[2 * d], a, b);
      multiply(o[2 * d + 1], a, b + 2);
    }
  }
}

// Steps of any shape. A block of 4 warps takes 64 rows of one sequence (blockIdx.x counts the tiles
// of all sequences, the last ones of a prompt first) and one kv head (blockIdx.y); keys and values
// come 64 tokens at a time, the next ones while these are used. `lengths` are those of the past, none,
// or those of the sources; `sinks` [heads], scores of a key whose value is 0, may be null.
extern "C" __global__ void __launch_bounds__(128) attend_tiles(
    const T* q, const C* key_cache, const C* value_cache, T* z, const int* sequence_starts,
    const int* lengths, const int* block_table, const int* block_starts, int sequences, int heads,
    int kv_heads, int block_bits, float scale, int window, int ahead, float soft_cap,
    const T* sinks, int singles) {
  extern __shared__ uint4 shared[];
  T* queries = (T*)shared;
#if CACHE8
  T *wide_keys = queries + 64 * STRIDE, *wide_values = wide_keys + 64 * STRIDE;
  C* keys = (C*)(wide_values + 64 * STRIDE);
#else
  C* keys = queries + 64 * STRIDE;
#endif
  C* values = keys + 2 * 64 * RAW;
  let_next_begin();
  wait_for_previous();
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, kv = blockIdx.y;
  const int sharing = heads / kv_heads;
  // Which sequence's tile this is: every warp finds out for itself.
  int tile = gridDim.x - 1 - blockIdx.x, before = 0, s = -1;
  for (int base = 0; base < sequences && s < 0; base += 32) {
    int mine = base + lane, tiles = 0;
    if (mine < sequences)
      tiles = ((sequence_starts[mine + 1] - sequence_starts[mine]) * sharing + 63) / 64;
    if (mine < singles && sequence_starts[mine] == mine && sequence_starts[mine + 1] == mine + 1)
      tiles = 0;  // `attend_singles` has it
    int upto = tiles;
#pragma unroll
    for (int o = 1; o < 32; o <<= 1) {
      int y = __shfl_up_sync(~0u, upto, o);
      if (lane >= o) upto += y;
    }
    u32 beyond = __ballot_sync(~0u, before + upto > tile);
    if (beyond) {
      int l = __ffs(beyond) - 1;
      s = base + l;
      tile -= before + __shfl_sync(~0u, upto - tiles, l);
    }
    before += __shfl_sync(~0u, upto, 31);
  }
  if (s < 0) {
    return;
  }
  const int begin = sequence_starts[s], rows = (sequence_starts[s + 1] - begin) * sharing;
  const int first_row = tile * 64, last_row = min(rows, first_row + 64) - 1;
#if MODE == 0
  const int past = lengths[s], end = past + last_row / sharing + 1;
  const int* blocks = block_table + block_starts[s];
#elif MODE == 1
  const int past = 0, end = min(rows / sharing, last_row / sharing + 1 + ahead);
  const int* blocks = nullptr;
  key_cache += (i64)begin * kv_heads * SIZE;
  value_cache += (i64)begin * kv_heads * SIZE;
#else
  const int past = 0, end = lengths[s];
  const int* blocks = block_table + block_starts[s];
#endif
  int start = window > 0 ? max(0, past + first_row / sharing - window + 1) : 0;
  start &= ~63;

  for (int i = threadIdx.x; i < 64 * (SIZE / 8); i += 128) {
    int row = i / (SIZE / 8), piece = i - row * (SIZE / 8), at = first_row + row;
    bool there = at < rows;
    i64 from = there ? (i64)(begin + at / sharing) * heads + kv * sharing + at % sharing : 0;
    copy16(queries + row * STRIDE + piece * 8, q + from * SIZE + piece * 8, there);
  }
  load_tokens<64>(keys, key_cache, blocks, start, end, kv, kv_heads, block_bits, threadIdx.x, 128);
  commit();
  load_tokens<64>(values, value_cache, blocks, start, end, kv, kv_heads, block_bits, threadIdx.x, 128);
  commit();

  float o[SIZE / 8][4], peak[2] = {-INFINITY, -INFINITY}, total[2] = {0.f, 0.f};
#pragma unroll
  for (int d = 0; d < SIZE / 8; d++) o[d][0] = o[d][1] = o[d][2] = o[d][3] = 0.f;
  int position[2], limit[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    position[h] = past + min(first_row + warp * 16 + (lane >> 2) + 8 * h, rows - 1) / sharing;
    limit[h] = min(position[h] + ahead, end - 1);
  }
  const int sure = min(past + first_row / sharing + ahead, end - 1);  // every row sees up to here

  for (int at = start, stage = 0; at < end; at += 64, stage ^= 1) {
    if (at + 64 < end) {
      C* k = keys + (stage ^ 1) * 64 * RAW;
      C* v = values + (stage ^ 1) * 64 * RAW;
      load_tokens<64>(k, key_cache, blocks, at + 64, end, kv, kv_heads, block_bits, threadIdx.x, 128);
      load_tokens<64>(v, value_cache, blocks, at + 64, end, kv, kv_heads, block_bits, threadIdx.x, 128);
      commit();
      arrived<1>();
    } else {
      arrived<0>();
    }
    __syncthreads();
    bool mask = at + 63 > sure || window > 0;
#if CACHE8
    widen_tokens<64>(wide_keys, keys + stage * 64 * RAW, threadIdx.x, 128);
    widen_tokens<64>(wide_values, values + stage * 64 * RAW, threadIdx.x, 128);
    __syncthreads();
    const T *k_now = wide_keys, *v_now = wide_values;
#else
    const T *k_now = keys + stage * 64 * RAW, *v_now = values + stage * 64 * RAW;
#endif
    attend_tokens<64>(queries + warp * 16 * STRIDE, k_now, v_now, o, peak, total, at, position, limit, scale,
                      window, soft_cap, mask, lane);
    __syncthreads();
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float sum = total[h];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    int row = first_row + warp * 16 + (lane >> 2) + 8 * h;
    if (row >= rows) continue;
    if (sinks) sum += exp2f(wide(sinks[kv * sharing + row % sharing]) * LOG2E - peak[h]);
    float inverse = sum > 0.f ? 1.f / sum : 0.f;
    i64 to = (i64)(begin + row / sharing) * heads + kv * sharing + row % sharing;
#pragma unroll
    for (int d = 0; d < SIZE / 8; d++)
      *(u32*)(z + to * SIZE + d * 8 + (lane & 3) * 2) =
          pack(o[d][2 * h] * inverse, o[d][2 * h + 1] * inverse);
  }
}

// Steps of one token a sequence. blockIdx.x is the sequence, blockIdx.y the kv head and 16 of its
// query heads, blockIdx.z a share of the tokens. Each of the 4 warps goes over every fourth 16 tokens
// of the share, STAGES of them under way, and waits for nobody but itself; then the warps' sums are
// joined. Of several shares, the block that ends last joins all (`counters` are 0 before and after).
// In a step of others, too, only the leading sequences of one token are taken: `attend_tiles` knows.
const int STAGES = SIZE > 128 ? 2 : 3;

extern "C" __global__ void __launch_bounds__(128) attend_singles(
    const T* q, const C* key_cache, const C* value_cache, T* z, float* partial, float* partial_sums,
    int* counters, const int* sequence_starts, const int* past_lengths, const int* block_table,
    const int* block_starts, int heads, int kv_heads, int block_bits, float scale, int window,
    float soft_cap, const T* sinks) {
  extern __shared__ uint4 shared[];
  __shared__ float warp_peak[4][16], warp_total[4][16];
  __shared__ int is_last;
  T* queries = (T*)shared;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, s = blockIdx.x;
#if CACHE8
  T* wide_keys = queries + 16 * STRIDE + warp * 2 * 16 * STRIDE;
  C* keys = (C*)(queries + (16 + 4 * 2 * 16) * STRIDE) + warp * STAGES * 2 * 16 * RAW;
#else
  C* keys = queries + 16 * STRIDE + warp * STAGES * 2 * 16 * RAW;
#endif
  const int sharing = heads / kv_heads, tiles = (sharing + 15) / 16;
  const int kv = blockIdx.y / tiles, first_head = kv * sharing + blockIdx.y % tiles * 16;
  const int rows = min(16, (kv + 1) * sharing - first_head);
  const int splits = gridDim.z, split = blockIdx.z;
  let_next_begin();
  // The step's arrays, and the keys and values of tokens before it, are there already: only this
  // step's own token is made by the kernel ahead.
  const int t = sequence_starts[s];
  const int at_position = past_lengths[s], length = at_position + 1;
  const int* blocks = block_table + block_starts[s];
  int start = window > 0 ? max(0, length - window) & ~15 : 0;
  // Shares are whole numbers of 64 tokens; how many are not empty follows from the length alone.
  int share = ((length - start + splits - 1) / splits + 63) & ~63;
  const int shares = (length - start + share - 1) / share;
  if (t != s || sequence_starts[s + 1] != t + 1 || split >= shares) {  // not ours, or nothing left
    wait_for_previous();
    return;
  }
  start += split * share;
  const int end = min(length, start + share);
  const int begin = start + warp * 16;
  bool late[STAGES];
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) {
    const int at = begin + 64 * i;
    late[i] = at < end && at + 16 > at_position;
    if (at < end && !late[i]) {
      C* k = keys + i * 2 * 16 * RAW;
      load_tokens<16>(k, key_cache, blocks, at, end, kv, kv_heads, block_bits, lane, 32);
      load_tokens<16>(k + 16 * RAW, value_cache, blocks, at, end, kv, kv_heads, block_bits, lane,
                      32);
    }
  }
  wait_for_previous();
  for (int i = threadIdx.x; i < 16 * (SIZE / 8); i += 128) {
    int row = i / (SIZE / 8), piece = i - row * (SIZE / 8);
    bool there = row < rows;
    i64 from = (i64)t * heads + first_head + (there ? row : 0);
    copy16(queries + row * STRIDE + piece * 8, q + from * SIZE + piece * 8, there);
  }
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) {
    if (late[i]) {
      C* k = keys + i * 2 * 16 * RAW;
      load_tokens<16>(k, key_cache, blocks, begin + 64 * i, end, kv, kv_heads, block_bits, lane, 32);
      load_tokens<16>(k + 16 * RAW, value_cache, blocks, begin + 64 * i, end, kv, kv_heads,
                      block_bits, lane, 32);
    }
  }
  commit();
  arrived<0>();
  __syncthreads();  // for the queries, which all warps brought

  float o[SIZE / 8][4], peak[2] = {-INFINITY, -INFINITY}, total[2] = {0.f, 0.f};
#pragma unroll
  for (int d = 0; d < SIZE / 8; d++) o[d][0] = o[d][1] = o[d][2] = o[d][3] = 0.f;
  const int position[2] = {at_position, at_position};
  int stage = 0;
  for (int at = begin; at < end; at += 64) {
    int next = at + 64 * (STAGES - 1), next_stage = (stage + STAGES - 1) % STAGES;
    if (next < end) {
      C* k = keys + next_stage * 2 * 16 * RAW;
      load_tokens<16>(k, key_cache, blocks, next, end, kv, kv_heads, block_bits, lane, 32);
      load_tokens<16>(k + 16 * RAW, value_cache, blocks, next, end, kv, kv_heads, block_bits,
                      lane, 32);
    }
    commit();
    if (at > begin) arrived<STAGES - 1>();  // the first stages arrived before the loop
    __syncwarp();
#if CACHE8
    const C* raw = keys + stage * 2 * 16 * RAW;
    widen_tokens<16>(wide_keys, raw, lane, 32);
    widen_tokens<16>(wide_keys + 16 * STRIDE, raw + 16 * RAW, lane, 32);
    __syncwarp();
    const T* k = wide_keys;
#else
    const T* k = keys + stage * 2 * 16 * RAW;
#endif
    attend_tokens<16>(queries, k, k + 16 * STRIDE, o, peak, total, at, position, position, scale,
                      window, soft_cap, at + 16 > end || window > 0, lane);
    __syncwarp();
    stage = (stage + 1) % STAGES;
  }
  arrived<0>();

  // Join the warps: row r of the 16 is that of lane 4 r, and of 4 (r - 8) for the second half.
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float sum = total[h];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    if ((lane & 3) == 0) {
      warp_peak[warp][(lane >> 2) + 8 * h] = peak[h];
      warp_total[warp][(lane >> 2) + 8 * h] = sum;
    }
  }
  __syncthreads();
  float* sums = (float*)(queries + 16 * STRIDE);  // [4 warps, 16 rows, SIZE], over the tokens
#pragma unroll
  for (int d = 0; d < SIZE / 8; d++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float* to = sums + (warp * 16 + (lane >> 2) + 8 * h) * SIZE + d * 8 + (lane & 3) * 2;
      to[0] = o[d][2 * h];
      to[1] = o[d][2 * h + 1];
    }
  __syncthreads();
  for (int i = threadIdx.x; i < rows * SIZE; i += 128) {
    int row = i / SIZE, d = i - row * SIZE;
    float most = -INFINITY, sum = 0.f, y = 0.f;
#pragma unroll
    for (int w = 0; w < 4; w++) most = fmaxf(most, warp_peak[w][row]);
#pragma unroll
    for (int w = 0; w < 4; w++) {
      float part = exp2f(warp_peak[w][row] - most);
      sum += warp_total[w][row] * part;
      y += sums[(w * 16 + row) * SIZE + d] * part;
    }
    i64 head = (i64)t * heads + first_head + row;
    if (shares == 1) {
      if (sinks) sum += exp2f(wide(sinks[first_head + row]) * LOG2E - most);
      z[head * SIZE + d] = narrow<T>(y / sum);
    } else {
      partial[(head * splits + split) * SIZE + d] = y;
      if (d == 0) {
        partial_sums[(head * splits + split) * 2] = most;
        partial_sums[(head * splits + split) * 2 + 1] = sum;
      }
    }
  }
  if (shares == 1) return;
  __threadfence();
  __syncthreads();
  int* counter = counters + s * gridDim.y + blockIdx.y;
  if (threadIdx.x == 0) is_last = atomicAdd(counter, 1) == shares - 1;
  __syncthreads();
  if (!is_last) return;
  if (threadIdx.x == 0) *counter = 0;
  __threadfence();
  // What each share weighs, a thread for each; then their sums, several under way.
  float* parts = sums;  // [rows, shares], and their sum behind them [rows]
  float* totals = sums + 16 * gridDim.z;
  for (int i = threadIdx.x; i < rows * shares; i += 128) {
    int row = i / shares, p = i - row * shares;
    const float* about = partial_sums + ((i64)t * heads + first_head + row) * splits * 2;
    parts[i] = about[2 * p];
    totals[16 + i] = about[2 * p + 1];
  }
  __syncthreads();
  for (int row = threadIdx.x; row < rows; row += 128) {
    float most = -INFINITY, sum = 0.f;
    for (int p = 0; p < shares; p++) most = fmaxf(most, parts[row * shares + p]);
    for (int p = 0; p < shares; p++) {
      float part = exp2f(parts[row * shares + p] - most);
      parts[row * shares + p] = part;
      sum += totals[16 + row * shares + p] * part;
    }
    if (sinks) sum += exp2f(wide(sinks[first_head + row]) * LOG2E - most);
    totals[row] = 1.f / sum;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < rows * SIZE; i += 128) {
    int row = i / SIZE, d = i - row * SIZE;
    i64 head = (i64)t * heads + first_head + row;
    float y = 0.f;
#pragma unroll 8
    for (int p = 0; p < shares; p++)
      y += partial[(head * splits + p) * SIZE + d] * parts[row * shares + p];
    z[head * SIZE + d] = narrow<T>(y * totals[row]);
  }
}
