// Products of 2 to 8 rows with a weight in e4m3, a scale a row, that streams through shared memory:
// y = f(norm(x) W^T + bias) + residual.
//
// One block a processor takes neighbouring tiles of 16 rows of W; with a gate, 8 gate rows and the up
// rows of the same numbers, of which act(gate) x up is stored. Four warps of their own have the bulk copy
// engine (cp.async.bulk) bring them into a ring, past registers and L1: the first before the kernel ahead
// has ended, for weights never change (programmatic dependent launch). Eight warps share the columns of a
// tile and multiply on tensor cores, where W is the operand of 16 rows. Which columns an instruction takes
// as its k is free as long as both operands agree: a lane takes 16 neighbouring bytes of a row.
//
//   -DROWS=2|4|8    rows of x, rounded up
//   -DNORM=0|1      whether x is normed
//   -DSTAGES=n      pieces in the ring
//   -DPIECE=n       bytes of each of the 16 rows of a piece: a multiple of 128
//
// T has 16 bits; columns of W are a multiple of 64. x is f16 times a power of two that lets its largest
// element fit; products and sums are f32.

const int COPIERS = 4;                // warps; a copy of a row takes one about 50 cycles to ask for
const int STRIDE = PIECE + 64;        // neighbouring rows meet other banks
const int PAD = 8;                    // elements between rows of x, for the same reason
const int WARPS = 8 / ROWS;           // that prepare a row of x
typedef unsigned long long Barrier;

__device__ __forceinline__ u32 at(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void set_up(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at(barrier)), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at(barrier)) : "memory");
}
__device__ __forceinline__ void expect(Barrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at(barrier)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void await(Barrier* barrier, u32 parity) {
  u32 done;
  do {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done) : "r"(at(barrier)), "r"(parity) : "memory");
  } while (!done);
}
__device__ __forceinline__ void bring(void* to, const void* from, int bytes, Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          at(to)),
      "l"(from), "r"(bytes), "r"(at(barrier))
      : "memory");
}
// Of the 256 threads that multiply.
__device__ __forceinline__ void meet() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

__device__ __forceinline__ u32 two(u32 word, int half) {  // two of e4m3 as f16
  __half2_raw h = __nv_cvt_fp8x2_to_halfraw2((unsigned short)(word >> (16 * half)), __NV_E4M3);
  return *(u32*)&h;
}
__device__ __forceinline__ void multiply_f16(float* c, const u32* a, const u32* b) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

extern "C" __global__ void __launch_bounds__(256 + 32 * COPIERS, 2) streamed(
    const T* x, const u8* weight, const float* scales, const T* norm_weight, float eps,
    const T* bias, const T* residual, void* y, int rows, int outputs, int inputs, int gate,
    int y_is_f32) {
  extern __shared__ uint4 shared[];
  __shared__ Barrier full[STAGES], empty[STAGES];
  __shared__ float partial[2][16 * ROWS * 8];  // [row of W, row of x, warp]
  __shared__ float squares_of[8], peak_of[8], shrunk[ROWS];
  u8* ring = (u8*)shared;                            // [STAGES, 16, STRIDE]
  __half* held = (__half*)(ring + STAGES * 16 * STRIDE);  // [ROWS, inputs + PAD]
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int twice = gate >= 0 ? 2 : 1, made = outputs / twice;  // columns of y
  const int columns = 16 / twice, tiles = (made + columns - 1) / columns;
  const int begin = (int)((i64)blockIdx.x * tiles / gridDim.x);
  const int end = (int)((i64)(blockIdx.x + 1) * tiles / gridDim.x);
  int stage = 0;
  u32 parity = 0;
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) {
      set_up(&full[s], 1);
      set_up(&empty[s], 8);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  let_next_begin();

  if (warp >= 8) {
    const int first = (warp - 8) * (16 / COPIERS), row = first + lane;  // of the tile
    for (int tile = begin; tile < end; tile++) {
      const int n = min(tile * columns + row % columns, made - 1);
      const u8* from = weight + (i64)(n + row / columns * made) * inputs;
      for (int b = 0; b < inputs; b += PIECE) {
        const int size = min(PIECE, inputs - b);
        await(&empty[stage], parity ^ 1);
        if (warp == 8 && lane == 0) expect(&full[stage], 16 * size);
        if (lane < 16 / COPIERS)
          bring(ring + (stage * 16 + row) * STRIDE, from + b, size, &full[stage]);
        if (++stage == STAGES) {
          stage = 0;
          parity ^= 1;
        }
      }
    }
    wait_for_previous();
    return;
  }

  wait_for_previous();
  {
    const int r = warp / WARPS, first = warp % WARPS * 32 + lane;
    const uint4* from = (const uint4*)(x + (i64)min(r, rows - 1) * inputs);
    float squares = 0.f, peak = 0.f;
#pragma unroll 4
    for (int i = first; i < inputs / 8; i += WARPS * 32) {
      const uint4 v = from[i];
      const T* a = (const T*)&v;
#if NORM
      const uint4 n = ((const uint4*)norm_weight)[i];
      const T* b = (const T*)&n;
#endif
#pragma unroll
      for (int j = 0; j < 8; j++) {
        float value = wide(a[j]);
        squares += value * value;
#if NORM
        value *= wide(b[j]);
#endif
        peak = fmaxf(peak, fabsf(value));
      }
    }
    squares = warp_sum(squares);
    peak = warp_max(peak);
    if (lane == 0) {
      squares_of[warp] = squares;
      peak_of[warp] = peak;
    }
    meet();
    squares = peak = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      squares += squares_of[r * WARPS + w];
      peak = fmaxf(peak, peak_of[r * WARPS + w]);
    }
#if NORM
    const float inverse = rsqrtf(squares / inputs + eps);
    peak *= inverse;
#endif
    // peak < 2^(e - 126) with its exponent's bits e: times 2^(141 - e), it is below 2^15.
    const int e = __float_as_int(peak) >> 23 & 255;
    const int bits = min(max(268 - e, 1), 253);
    const float up = __int_as_float(bits << 23);
    if (first == 0) shrunk[r] = __int_as_float((254 - bits) << 23);
#pragma unroll 4
    for (int i = first; i < inputs / 8; i += WARPS * 32) {
      const uint4 v = from[i];
      const T* a = (const T*)&v;
      uint4 out;
      __half* o = (__half*)&out;
#if NORM
      const uint4 n = ((const uint4*)norm_weight)[i];
      const T* b = (const T*)&n;
#endif
#pragma unroll
      for (int j = 0; j < 8; j++) {
#if NORM
        const T value = narrow<T>(wide(a[j]) * inverse * wide(b[j]));
#else
        const T value = a[j];
#endif
        o[j] = narrow<__half>(wide(value) * up);
      }
      *(uint4*)(held + r * (inputs + PAD) + i * 8) = out;
    }
  }
  meet();

  const int g = lane >> 2, t = lane & 3;
  const __half* mine = held + (g < ROWS ? g : 0) * (inputs + PAD) + t * 16;
  for (int tile = begin; tile < end; tile++) {
    float c[2][4] = {};
    for (int b = 0; b < inputs; b += PIECE) {
      const int chunks = min(PIECE, inputs - b) / 64;
      const u8* low = ring + (stage * 16 + g) * STRIDE + t * 16;
      await(&full[stage], parity);
#pragma unroll 2
      for (int k = warp; k < chunks; k += 8) {
        const uint4 w[2] = {*(const uint4*)(low + k * 64), *(const uint4*)(low + 8 * STRIDE + k * 64)};
        const u32 *p = (const u32*)&w[0], *q = (const u32*)&w[1];
        const uint4* from = (const uint4*)(mine + b + k * 64);
        const uint4 v[2] = {from[0], from[1]};
        const u32* u = (const u32*)v;
#pragma unroll
        for (int m = 0; m < 4; m++) {
          const u32 a[4] = {two(p[m], 0), two(q[m], 0), two(p[m], 1), two(q[m], 1)};
          multiply_f16(c[m & 1], a, u + 2 * m);
        }
      }
      __syncwarp();
      if (lane == 0) arrive(&empty[stage]);
      if (++stage == STAGES) {
        stage = 0;
        parity ^= 1;
      }
    }
    float* sums = partial[(tile - begin) & 1];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int column = 2 * t + (j & 1);
      if (column < ROWS) sums[((g + (j >> 1) * 8) * ROWS + column) * 8 + warp] = c[0][j] + c[1][j];
    }
    meet();  // what is read below is written again two tiles on, behind the next of these
    if (warp != tile % 8) continue;
    for (int i = lane; i < columns * ROWS; i += 32) {
      const int r = i % ROWS, n = tile * columns + i / ROWS;
      if (r >= rows || n >= made) continue;
      float v = 0.f, u = 0.f;
#pragma unroll
      for (int s = 0; s < 8; s++) v += sums[i * 8 + s];
      v *= shrunk[r] * scales[n];
      if (bias) v += wide(bias[n]);
      if (twice == 2) {
#pragma unroll
        for (int s = 0; s < 8; s++) u += sums[(8 * ROWS + i) * 8 + s];
        u *= shrunk[r] * scales[made + n];
        if (bias) u += wide(bias[made + n]);
        v = activate(gate, v) * u;
      }
      const i64 where = (i64)r * made + n;
      if (residual) v += wide(residual[where]);
      if (y_is_f32) ((float*)y)[where] = v;
      else ((T*)y)[where] = narrow<T>(v);
    }
  }
}
