// z [tokens, size]: every token gets the mean of its sequence. A thread a sequence (blockIdx.y) and
// column.
extern "C" __global__ void sequence_mean(
    const T* x, T* z, const int* sequence_starts, int size) {
  let_next_begin();
  wait_for_previous();
  const int s = blockIdx.y, c = blockIdx.x * blockDim.x + threadIdx.x;
  const int begin = sequence_starts[s], end = sequence_starts[s + 1];
  if (c >= size || begin == end) return;
  float sum = 0.f;
  for (int t = begin; t < end; t++) sum += wide(x[(i64)t * size + c]);
  const T mean = narrow<T>(sum / (end - begin));
  for (int t = begin; t < end; t++) z[(i64)t * size + c] = mean;
}
