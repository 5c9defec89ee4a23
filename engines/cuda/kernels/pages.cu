// The step's sequences as cuDNN takes them: a table of blocks with a row for each, query counts,
// lengths, and offsets of the packed queries.
//
// The first sequences of a step, as far as they have one token each, are one batch (`singles` rows,
// padded by empty ones); the others the second (`prompts` rows). One block of threads a row.
extern "C" __global__ void pages(
    const int* sequence_starts, const int* past_lengths, const int* block_table,
    const int* block_starts, int sequences, int singles, int prompts, int max_blocks, i64 row,
    int* tables, int* queries, int* lengths, i64* offsets) {
  let_next_begin();
  wait_for_previous();
  int low = 0, high = sequences;  // the largest n with starts[n] == n: so many lead with one token
  while (low < high) {
    int middle = (low + high + 1) / 2;
    if (sequence_starts[middle] == middle) low = middle; else high = middle - 1;
  }
  const int r = blockIdx.x;
  const bool leads = r < singles;
  const int s = leads ? r : low + r - singles;
  const bool there = s < sequences && (leads ? s < low : true);
  const int begin = there ? sequence_starts[s] : 0;
  const int count = there ? sequence_starts[s + 1] - begin : 0;
  const int first = there ? block_starts[s] : 0;
  const int held = there ? block_starts[s + 1] - first : 0;
  for (int i = threadIdx.x; i < max_blocks; i += blockDim.x)
    tables[(i64)r * max_blocks + i] = i < held ? block_table[first + i] : 0;
  if (threadIdx.x == 0) {
    queries[r] = count;
    lengths[r] = count ? past_lengths[s] + count : 0;
    if (!leads) {
      int p = r - singles, end = sequence_starts[sequences];
      offsets[p] = (i64)(there ? begin : end) * row;
      if (p == prompts - 1) offsets[prompts] = (i64)(there ? begin + count : end) * row;
    }
  }
}
