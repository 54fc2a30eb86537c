// Σ t² in f64: see ops/global_norm. A block sums 16,384 elements; a second launch of one block adds the blocks' sums.

constexpr int THREADS = 256;
constexpr int PER_BLOCK = 16384;

// The sum over a block, joined by halves: one order. The first thread gets it, the others zero.
INLINE double join(double x) {
    __shared__ double sums[THREADS];
    sums[threadIdx.x] = x;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    return threadIdx.x == 0 ? sums[0] : 0.0;
}

extern "C" __global__ void __launch_bounds__(THREADS) global_norm_squares(const float* t, double* sums, u64 len) {
    u64 from = (u64)blockIdx.x * PER_BLOCK;
    double sum = 0.0;
#pragma unroll 2
    for (int g = 0; g < PER_BLOCK / THREADS / 8; g++) {
        u64 i = from + (g * THREADS + threadIdx.x) * 8;
        if (i >= len) break;
        int n = len - i < 8 ? (int)(len - i) : 8;
        Eight x = load_eight(t + i, n, n == 8);
#pragma unroll
        for (int j = 0; j < 8; j++) sum += (double)x.at[j] * (double)x.at[j];
    }
    sum = join(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) global_norm_join(const double* sums, double* total, int count) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < count; i += THREADS) sum += sums[i];
    sum = join(sum);
    if (threadIdx.x == 0) total[0] = sum;
}
