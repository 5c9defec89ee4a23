// A product for each head: x [tokens, heads, inputs] with W [heads, rows, columns], of which `count`
// rows from `first` on. blockIdx.y is the head, blockIdx.z counts groups of 8 tokens, which share
// one reading of the weight.
const int GROUP = 8;

// y [tokens, heads, count] = x W^T: a warp for each row of W.
extern "C" __global__ void __launch_bounds__(256) head_linear(
    const T* x, const T* weight, T* y, int tokens, int heads, int rows, int columns, int first,
    int count) {
  let_next_begin();
  wait_for_previous();
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, head = blockIdx.y;
  const int r = blockIdx.x * 8 + warp, begin = blockIdx.z * GROUP;
  if (r >= count) return;
  const T* w = weight + ((i64)head * rows + first + r) * columns;
  float sums[GROUP];
#pragma unroll
  for (int g = 0; g < GROUP; g++) sums[g] = 0.f;
  for (int c = lane; c < columns; c += 32) {
    float v = wide(w[c]);
#pragma unroll
    for (int g = 0; g < GROUP; g++)
      if (begin + g < tokens) sums[g] += v * wide(x[((i64)(begin + g) * heads + head) * columns + c]);
  }
#pragma unroll
  for (int g = 0; g < GROUP; g++) {
    float v = warp_sum(sums[g]);
    if (lane == 0 && begin + g < tokens)
      y[((i64)(begin + g) * heads + head) * count + r] = narrow<T>(v);
  }
}

// y [tokens, heads, columns] = x W: a thread for each column of W; x is held in shared memory.
extern "C" __global__ void __launch_bounds__(128) head_linear_turned(
    const T* x, const T* weight, T* y, int tokens, int heads, int rows, int columns, int first,
    int count) {
  extern __shared__ float held[];  // [count, GROUP]
  let_next_begin();
  wait_for_previous();
  const int head = blockIdx.y, begin = blockIdx.z * GROUP, c = blockIdx.x * 128 + threadIdx.x;
  for (int i = threadIdx.x; i < count * GROUP; i += 128) {
    int r = i / GROUP, g = i % GROUP;
    bool there = begin + g < tokens;
    held[i] = there ? wide(x[((i64)(begin + g) * heads + head) * count + r]) : 0.f;
  }
  __syncthreads();
  if (c >= columns) return;
  const T* w = weight + ((i64)head * rows + first) * columns + c;
  float sums[GROUP];
#pragma unroll
  for (int g = 0; g < GROUP; g++) sums[g] = 0.f;
#pragma unroll 4
  for (int r = 0; r < count; r++) {
    float v = wide(w[(i64)r * columns]);
#pragma unroll
    for (int g = 0; g < GROUP; g++) sums[g] += v * held[r * GROUP + g];
  }
#pragma unroll
  for (int g = 0; g < GROUP; g++)
    if (begin + g < tokens) y[((i64)(begin + g) * heads + head) * columns + c] = narrow<T>(sums[g]);
}
