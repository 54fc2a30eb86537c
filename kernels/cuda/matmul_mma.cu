// bf16 products on tensor cores, sums in f32: see ops/matmul for the formulas.
//
// A block of eight warps owns a 128x128 tile of c, a warp 64x32 of it. k goes 32 at a time through four stages of shared
// memory, filled by cp.async: while one is multiplied, three are on their way. An operand lies in a stage as it lies in
// memory, either k-major (64 bytes a row of the tile) or outer-major (256 bytes a k); 16-byte pieces of a row are permuted
// by its number so that the eight rows of an ldmatrix lie in different banks. k-major operands are read as they are,
// outer-major ones turned: no transpose is ever made in memory.
//
// Each element has one writer and takes k in order.

constexpr int ROWS = 128;
constexpr int COLS = 128;
constexpr int DEPTH = 32;
constexpr int STAGES = 4;
constexpr int OPERAND_BYTES = 128 * DEPTH * 2;
constexpr int STAGE_BYTES = 2 * OPERAND_BYTES;

enum Form { NT, NN, TN };

extern __shared__ __align__(128) u8 stages[];

// Byte of piece `piece` (eight numbers) of row `row`: k-major tiles have 4 pieces a row, outer-major ones 16.
template <bool K_MAJOR> INLINE u32 swizzled(int row, int piece) {
    return K_MAJOR ? row * 64 + ((piece ^ (row >> 1 & 3)) << 4) : row * 256 + ((piece ^ (row & 7)) << 4);
}

// An operand: `count` rows of c's side, k up to `end`, `ld` numbers from one row to the next.
struct Operand {
    const bf16* at;
    int ld, count;
};

// Starts the copies of one tile: a thread brings two pieces.
template <bool K_MAJOR> INLINE void bring(u32 to, const Operand& o, int from, int k, int end) {
#pragma unroll
    for (int j = 0; j < 2; j++) {
        int id = threadIdx.x + j * 256;
        int row = K_MAJOR ? id / 4 : id / 16, piece = K_MAJOR ? id % 4 : id % 16;
        int outer = from + (K_MAJOR ? row : piece * 8), depth = k + (K_MAJOR ? piece * 8 : row);
        int left = K_MAJOR ? end - depth : o.count - outer;
        int bytes = outer < o.count && depth < end ? least(left * 2, 16) : 0;
        u64 at = K_MAJOR ? (u64)outer * o.ld + depth : (u64)depth * o.ld + outer;
        copy_async(to + swizzled<K_MAJOR>(row, piece), bytes > 0 ? o.at + at : o.at, bytes);
    }
}

// The 16x16 tile of a at row `row`, k `depth` of a stage.
template <bool K_MAJOR> INLINE void left_tile(u32 (&r)[4], u32 stage, int row, int depth) {
    int lane = threadIdx.x % 32;
    if (K_MAJOR)
        load_tiles(r, stage + swizzled<true>(row + lane % 16, depth / 8 + lane / 16));
    else
        load_tiles_turned(r, stage + swizzled<false>(depth + lane % 8 + lane / 16 * 8, row / 8 + (lane / 8 & 1)));
}

// Two neighbouring 16x8 tiles of b at column `col`: words 0, 1 are the first, 2, 3 the second.
template <bool K_MAJOR> INLINE void right_tiles(u32 (&r)[4], u32 stage, int col, int depth) {
    int lane = threadIdx.x % 32;
    if (K_MAJOR)
        load_tiles(r, stage + swizzled<true>(col + lane % 8 + lane / 16 * 8, depth / 8 + (lane / 8 & 1)));
    else
        load_tiles_turned(r, stage + swizzled<false>(depth + lane % 8 + (lane / 8 & 1) * 8, col / 8 + lane / 16));
}

// Tiles in super-rows of eight, so that the blocks that run together share operands in the second-level cache.
INLINE void place(int m, int n, int& row, int& col) {
    int down = (m + ROWS - 1) / ROWS, across = (n + COLS - 1) / COLS;
    int group = blockIdx.x / (8 * across), first = group * 8, height = least(8, down - first);
    int within = blockIdx.x - first * across;
    row = (first + within % height) * ROWS;
    col = within / height * COLS;
}

// sum += a·b over all of k. bring_b(stage, k) starts the copies of b.
template <bool A_K, bool B_K, class Bring>
INLINE void multiply_all(float (&sum)[4][4][4], u32 memory, const Operand& a, int row, int k, Bring bring_b) {
    int warp = threadIdx.x / 32, warp_row = warp / 4 * 64, warp_col = warp % 4 * 32;
    int steps = (k + DEPTH - 1) / DEPTH;
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) {
            bring<A_K>(memory + s * STAGE_BYTES, a, row, s * DEPTH, k);
            bring_b(memory + s * STAGE_BYTES + OPERAND_BYTES, s * DEPTH);
        }
        copies_commit();
    }
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        int next = step + STAGES - 1;
        if (next < steps) {
            u32 stage = memory + next % STAGES * STAGE_BYTES;
            bring<A_K>(stage, a, row, next * DEPTH, k);
            bring_b(stage + OPERAND_BYTES, next * DEPTH);
        }
        copies_commit();
        u32 stage = memory + step % STAGES * STAGE_BYTES;
#pragma unroll
        for (int depth = 0; depth < DEPTH; depth += 16) {
            u32 x[4][4], y[2][4];
#pragma unroll
            for (int i = 0; i < 4; i++) left_tile<A_K>(x[i], stage, warp_row + i * 16, depth);
#pragma unroll
            for (int j = 0; j < 2; j++) right_tiles<B_K>(y[j], stage + OPERAND_BYTES, warp_col + j * 16, depth);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) multiply(sum[i][j], x[i], y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]);
        }
    }
    copies_wait<0>();
    __syncthreads();
}

INLINE void clear(float (&sum)[4][4][4]) {
#pragma unroll
    for (int i = 0; i < 64; i++) sum[i / 16][i / 4 % 4][i % 4] = 0.0f;
}

// Calls `f(at, left, x, y)` for each pair of neighbours that this thread holds: `at` in c, `left` columns from there on.
template <class F> INLINE void each_pair(const float (&sum)[4][4][4], int row, int col, int m, int n, F f) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    row += warp / 4 * 64 + lane / 4;
    col += warp % 4 * 32 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int r = row + i * 16 + half * 8, q = col + j * 8;
                if (r < m && q < n) f((u64)r * n + q, n - q, sum[i][j][half * 2], sum[i][j][half * 2 + 1]);
            }
}

INLINE void put_bf16(bf16* c, u64 at, int left, float x, float y, bool even) {
    if (even) {
        *(u32*)(c + at) = pack(x, y);
        return;
    }
    narrow(c[at], x);
    if (left >= 2) narrow(c[at + 1], y);
}

INLINE void write(const float (&sum)[4][4][4], void* to, const float* added, int row, int col, int m, int n, bool narrow_c) {
    // Where n is even a pair is either wholly inside or wholly outside, and aligned.
    bool even = n % 2 == 0;
    if (narrow_c) {
        each_pair(sum, row, col, m, n,
                  [&](u64 at, int left, float x, float y) { put_bf16((bf16*)to, at, left, x, y, even); });
        return;
    }
    float* c = (float*)to;
    each_pair(sum, row, col, m, n, [&](u64 at, int left, float x, float y) {
        if (even) {
            float2 was = {0.0f, 0.0f};
            if (added) was = *(const float2*)(added + at);
            *(float2*)(c + at) = {was.x + x, was.y + y};
            return;
        }
        c[at] = added ? added[at] + x : x;
        if (left >= 2) c[at + 1] = added ? added[at + 1] + y : y;
    });
}

// c = the product plus what `added` holds, f32 (which may be c, or null: nothing); `narrow_c`: c is bf16.
template <Form FORM>
INLINE void product(Operand a, Operand b, void* c, const float* added, int k, u32 narrow_c) {
    const bool A_K = FORM != TN, B_K = FORM == NT;
    u32 memory = shared_address(stages);
    int row, col;
    place(a.count, b.count, row, col);
    float sum[4][4][4];
    clear(sum);
    multiply_all<A_K, B_K>(sum, memory, a, row, k, [&](u32 to, int d) { bring<B_K>(to, b, col, d, k); });
    write(sum, c, added, row, col, a.count, b.count, narrow_c);
}

#define PRODUCT(NAME, FORM)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256)                                                             \
        matmul_mma_##NAME(Operand a, Operand b, void* c, const float* added, int k, u32 narrow_c) {            \
        product<FORM>(a, b, c, added, k, narrow_c);                                                               \
    }
PRODUCT(nt, NT)
PRODUCT(nn, NN)
PRODUCT(tn, TN)

// g = a·gateᵀ, u = a·upᵀ, h = silu(g)·u in one pass: of a tile's 128 columns of b, each run of 32 has 16 of the gate and
// the same 16 of up, so that a thread holds g and u of the same elements. g and u are rounded before h is made, which
// gives the bits of three calls. A block owns 128 rows and 64 columns of g, u and h.
extern "C" __global__ void __launch_bounds__(256)
    matmul_mma_gated(Operand a, Operand gate, const bf16* up, bf16* g, bf16* u, bf16* h, int k) {
    u32 memory = shared_address(stages);
    int row, wide_col, n = gate.count;
    place(a.count, 2 * n, row, wide_col);
    int col = wide_col / 2;
    float sum[4][4][4];
    clear(sum);
    multiply_all<true, true>(sum, memory, a, row, k, [&](u32 to, int d) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            int id = threadIdx.x + j * 256, line = id / 4, piece = id % 4, depth = d + piece * 8;
            int outer = col + line / 32 * 16 + line % 16;
            int bytes = outer < n && depth < k ? least((k - depth) * 2, 16) : 0;
            const bf16* base = line / 16 % 2 ? up : gate.at;
            copy_async(to + swizzled<true>(line, piece), bytes > 0 ? base + (u64)outer * gate.ld + depth : base, bytes);
        }
    });
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    bool even = n % 2 == 0;
    row += warp / 4 * 64 + lane / 4;
    col += warp % 4 * 16 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int r = row + i * 16 + half * 8, q = col + j * 8;
                if (r >= a.count || q >= n) continue;
                float x[2], y[2], out[2];
                u64 at = (u64)r * n + q;
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    x[e] = stored<bf16>(sum[i][j][half * 2 + e]);
                    y[e] = stored<bf16>(sum[i][j + 2][half * 2 + e]);
                    out[e] = x[e] * (1.0f / (1.0f + exp_fast(-x[e]))) * y[e];
                }
                put_bf16(g, at, n - q, x[0], x[1], even);
                put_bf16(u, at, n - q, y[0], y[1], even);
                put_bf16(h, at, n - q, out[0], out[1], even);
            }
}
