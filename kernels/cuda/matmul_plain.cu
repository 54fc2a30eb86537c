// Products of any shape, layout, alignment and dtype, by plain multiply-adds in f32: see ops/matmul for the formulas.
//
// A block owns a 64x64 tile of c, a thread 4x4 of it; k goes 16 at a time through shared memory. In a bf16 product an f32
// input is rounded on its way in. This is what f32 runs use, and every bf16 product that matmul_mma cannot take.

constexpr int TILE = 64;
constexpr int DEPTH = 16;

// How an operand lies: element (i, k) at i · outer + k · depth.
struct Operand {
    const void* at;
    u64 outer, depth;
    // 1: bf16.
    u32 narrow;
    // 1: round to bf16.
    u32 rounded;
};

INLINE float element(const Operand& o, u64 i) {
    if (o.narrow) return wide(((const bf16*)o.at)[i]);
    float x = ((const float*)o.at)[i];
    return o.rounded ? stored<bf16>(x) : x;
}

// Elements (from.., k..) of an operand, zero outside of it; neighbouring threads read neighbouring addresses.
INLINE void fill(float (&tile)[DEPTH][TILE + 4], const Operand& o, int from, int count, int k, int end) {
#pragma unroll
    for (int j = 0; j < TILE * DEPTH / 256; j++) {
        int id = threadIdx.x + j * 256;
        int i = o.depth == 1 ? id / DEPTH : id % TILE, d = o.depth == 1 ? id % DEPTH : id / TILE;
        bool inside = from + i < count && k + d < end;
        tile[d][i] = inside ? element(o, (from + i) * o.outer + (k + d) * o.depth) : 0.0f;
    }
}

// c = the product plus what `added` holds (which may be c, or null: nothing). `narrow_c`: c is bf16. k is summed `grain`
// at a time, each grain onto what the one before left.
extern "C" __global__ void __launch_bounds__(256, 1)
    matmul_plain(Operand a, Operand b, void* c, const float* added, int m, int n, int k, int grain, u32 narrow_c) {
    __shared__ float as[DEPTH][TILE + 4], bs[DEPTH][TILE + 4];
    int row = blockIdx.y * TILE, col = blockIdx.x * TILE;
    int ty = threadIdx.x / 16 * 4, tx = threadIdx.x % 16 * 4;
    int from = 0;
    do {
        int end = least(k, from + grain);
        float sum[4][4] = {};
        for (int d = from; d < end; d += DEPTH) {
            fill(as, a, row, m, d, end);
            fill(bs, b, col, n, d, end);
            __syncthreads();
#pragma unroll
            for (int i = 0; i < DEPTH; i++) {
                float x[4], y[4];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    x[j] = as[i][ty + j];
                    y[j] = bs[i][tx + j];
                }
#pragma unroll
                for (int p = 0; p < 4; p++)
#pragma unroll
                    for (int q = 0; q < 4; q++) sum[p][q] = fmaf(x[p], y[q], sum[p][q]);
            }
            __syncthreads();
        }
#pragma unroll
        for (int p = 0; p < 4; p++)
#pragma unroll
            for (int q = 0; q < 4; q++) {
                int i = row + ty + p, j = col + tx + q;
                if (i >= m || j >= n) continue;
                u64 at = (u64)i * n + j;
                if (narrow_c) {
                    narrow(((bf16*)c)[at], sum[p][q]);
                } else {
                    float was = from > 0 ? ((const float*)c)[at] : added ? added[at] : 0.0f;
                    ((float*)c)[at] = from > 0 || added ? was + sum[p][q] : sum[p][q];
                }
            }
        from = end;
    } while (from < k);
}
