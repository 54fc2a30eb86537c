// Attention in bf16 on tensor cores: see ops/attention for the formulas. Compiled once for each head size HEAD, a multiple
// of 16; smaller heads, multiples of 8, are filled up with zeros.
//
// Scores live in registers alone: the layout of an accumulator of one product is that of the left operand of the next.
// Tiles of q, k, v and do lie in shared memory by rows of HEAD + 8 numbers, so that the eight rows of an ldmatrix lie in
// different banks.
//
// Forward: a block owns 64 queries of one head, a warp 16 of them; tiles of keys come in order under a running maximum
// and sum. Backward makes the scores twice, once for dk and dv (a block owns 64 keys of one key head and goes over all
// queries that see them, head by head) and once for dq (a block owns 64 queries): seven products in place of five, but
// each number has one writer and one order, with no atomics and no waiting of blocks on each other.
//
// `first` (or null) gives for each token the first token of its document; documents follow one another, so it never falls.

constexpr int PAD = HEAD + 8;
constexpr int QUERIES = 64;
constexpr int THREADS = 128;
constexpr float NONE = -1e30f;

// Rows of one head in memory: row i at i · stride.
template <class T> struct Head {
    T* at;
    u64 stride;
};

template <class T> INLINE Head<T> head_of(T* t, int b, int seq, int heads, int h, int dim) {
    return {t + ((u64)b * seq * heads + h) * dim, (u64)heads * dim};
}

// Starts the copies of `ROWS` rows from `from` on; rows past `end` and columns past `dim` become zero.
template <int ROWS> INLINE void bring(bf16* to, Head<const bf16> m, int from, int end, int dim) {
    u32 base = shared_address(to);
    for (int id = threadIdx.x; id < ROWS * (HEAD / 8); id += THREADS) {
        int row = id / (HEAD / 8), c = id % (HEAD / 8) * 8;
        bool inside = from + row < end && c < dim;
        copy_async(base + (row * PAD + c) * 2, inside ? m.at + (from + row) * m.stride + c : m.at, inside ? 16 : 0);
    }
}

// The 16x16 left operand at (row, col) of a tile.
INLINE void left_tile(u32 (&r)[4], const bf16* tile, int row, int col) {
    int lane = threadIdx.x % 32;
    load_tiles(r, shared_address(tile + (row + lane % 16) * PAD + col + lane / 16 * 8));
}

// Right operands for 16 columns: from a tile whose rows are these columns, or (turned) whose rows are summed over.
INLINE void right_tiles(u32 (&r)[4], const bf16* tile, int row, int col) {
    int lane = threadIdx.x % 32;
    load_tiles(r, shared_address(tile + (row + lane % 8 + lane / 16 * 8) * PAD + col + (lane / 8 & 1) * 8));
}

INLINE void right_tiles_turned(u32 (&r)[4], const bf16* tile, int row, int col) {
    int lane = threadIdx.x % 32;
    load_tiles_turned(r, shared_address(tile + (row + lane % 8 + (lane / 8 & 1) * 8) * PAD + col + lane / 16 * 8));
}

// sum = rows `row`.. of a times the rows of b, over HEAD.
template <int N> INLINE void scores(float (&sum)[N / 8][4], const bf16* a, int row, const bf16* b) {
#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) sum[j][e] = 0.0f;
#pragma unroll
    for (int d = 0; d < HEAD; d += 16) {
        u32 x[4], y[4];
        left_tile(x, a, row, d);
#pragma unroll
        for (int j = 0; j < N / 16; j++) {
            right_tiles(y, b, j * 16, d);
            multiply(sum[2 * j], x, y[0], y[1]);
            multiply(sum[2 * j + 1], x, y[2], y[3]);
        }
    }
}

// sum += p·b, where p is 16 x N and b has N rows; columns `col`.. + WIDE of b.
template <int N, int WIDE>
INLINE void apply(float (&sum)[WIDE / 8][4], const float (&p)[N / 8][4], const bf16* b, int col) {
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        u32 x[4], y[4];
        x[0] = pack(p[2 * k][0], p[2 * k][1]);
        x[1] = pack(p[2 * k][2], p[2 * k][3]);
        x[2] = pack(p[2 * k + 1][0], p[2 * k + 1][1]);
        x[3] = pack(p[2 * k + 1][2], p[2 * k + 1][3]);
#pragma unroll
        for (int j = 0; j < WIDE / 16; j++) {
            right_tiles_turned(y, b, k * 16, col + j * 16);
            multiply(sum[2 * j], x, y[0], y[1]);
            multiply(sum[2 * j + 1], x, y[2], y[3]);
        }
    }
}

template <int N> INLINE void clear(float (&sum)[N][4]) {
#pragma unroll
    for (int j = 0; j < N; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) sum[j][e] = 0.0f;
}

// Writes a warp's 16 x WIDE to rows `row`.. of m, columns `col`.., times `factor` of each half.
template <int WIDE>
INLINE void write(const float (&sum)[WIDE / 8][4], Head<bf16> m, int row, int end, int col, int dim, float low, float high) {
    int lane = threadIdx.x % 32;
    row += lane / 4;
    col += lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < WIDE / 8; j++) {
        if (col + j * 8 >= dim) continue;
        if (row < end) *(u32*)(m.at + row * m.stride + col + j * 8) = pack(sum[j][0] * low, sum[j][1] * low);
        if (row + 8 < end) *(u32*)(m.at + (row + 8) * m.stride + col + j * 8) = pack(sum[j][2] * high, sum[j][3] * high);
    }
}

// Over the four lanes that share a row.
INLINE float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

INLINE float quad_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

extern __shared__ __align__(128) bf16 tiles[];

constexpr int KEYS = HEAD <= 128 ? 64 : 32;

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_mma_forward(const bf16* q, const bf16* k, const bf16* v, const u32* first, bf16* o, float* lse, int seq,
                          int heads, int kv_heads, int dim, float scale) {
    bf16 *qs = tiles, *ks = qs + QUERIES * PAD, *vs = ks + KEYS * PAD;
    // The last queries see most keys: they start first.
    int i0 = (gridDim.x - 1 - blockIdx.x) * QUERIES, h = blockIdx.y, b = blockIdx.z;
    int kv = h / (heads / kv_heads);
    Head<const bf16> qh = head_of(q, b, seq, heads, h, dim);
    Head<const bf16> kh = head_of(k, b, seq, kv_heads, kv, dim), vh = head_of(v, b, seq, kv_heads, kv, dim);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int row = i0 + warp * 16 + lane / 4;
    const u32* starts = first ? first + (u64)b * seq : 0;
    int low[2];
#pragma unroll
    for (int r = 0; r < 2; r++) low[r] = starts && row + 8 * r < seq ? (int)starts[row + 8 * r] : 0;
    int j0 = (starts ? (int)starts[i0] : 0) / KEYS, last = least(i0 + QUERIES, seq) - 1, j1 = last / KEYS + 1;

    bring<QUERIES>(qs, qh, i0, seq, dim);
    bring<KEYS>(ks, kh, j0 * KEYS, seq, dim);
    copies_commit();
    float c = scale * LOG2E, top[2] = {NONE, NONE}, sum[2] = {0.0f, 0.0f}, out[HEAD / 8][4];
    clear(out);
    for (int j = j0; j < j1; j++) {
        bring<KEYS>(vs, vh, j * KEYS, seq, dim);
        copies_commit();
        copies_wait<1>();
        __syncthreads();
        float s[KEYS / 8][4];
        scores<KEYS>(s, qs, warp * 16, ks);
        __syncthreads();
        if (j + 1 < j1) bring<KEYS>(ks, kh, (j + 1) * KEYS, seq, dim);
        copies_commit();

        if (starts || (j + 1) * KEYS > i0) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int key = j * KEYS + n * 8 + lane % 4 * 2 + e % 2;
                    if (key > row + e / 2 * 8 || key < low[e / 2]) s[n][e] = NONE;
                }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float high = top[r];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) high = fmaxf(high, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
            high = quad_max(high);
            float fade = exp2_fast((top[r] - high) * c), part = 0.0f;
            top[r] = high;
            // Where a query has seen no key yet, all is NONE, and what exp makes of NONE - NONE must not count.
            float shift = high * c;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 2 * r; e < 2 * r + 2; e++) {
                    s[n][e] = s[n][e] == NONE ? 0.0f : exp2_fast(s[n][e] * c - shift);
                    part += s[n][e];
                }
            sum[r] = sum[r] * fade + part;
#pragma unroll
            for (int n = 0; n < HEAD / 8; n++) {
                out[n][2 * r] *= fade;
                out[n][2 * r + 1] *= fade;
            }
        }
        copies_wait<1>();
        __syncthreads();
        apply<KEYS, HEAD>(out, s, vs, 0);
        __syncthreads();
    }
    copies_wait<0>();
    float by[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] = quad_sum(sum[r]);
        by[r] = 1.0f / sum[r];
        if (lane % 4 == 0 && row + 8 * r < seq) lse[((u64)b * heads + h) * seq + row + 8 * r] = top[r] * scale + log_fast(sum[r]);
    }
    write<HEAD>(out, head_of(o, b, seq, heads, h, dim), i0 + warp * 16, seq, 0, dim, by[0], by[1]);
}

// Queries of a step, and in how many parts of its columns dk and dv are made: both must fit in registers.
constexpr int STEP = HEAD <= 128 ? 32 : 16;
constexpr int PARTS = HEAD <= 128 ? 1 : 2;
constexpr int PART = HEAD / PARTS;
constexpr int OWN_KEYS = 64;

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_mma_backward_kv(const bf16* q, const bf16* k, const bf16* v, const u32* first, const float* lse,
                              const bf16* dout, const float* delta, bf16* dk, bf16* dv, int seq, int heads, int kv_heads,
                              int dim, float scale) {
    bf16 *ks = tiles, *vs = ks + OWN_KEYS * PAD, *qs = vs + OWN_KEYS * PAD, *ds = qs + STEP * PAD;
    __shared__ float lses[STEP], deltas[STEP];
    __shared__ int lows[STEP];
    int j0 = blockIdx.x * OWN_KEYS, kv = blockIdx.y / PARTS, part = blockIdx.y % PARTS * PART, b = blockIdx.z;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = heads / kv_heads;
    const u32* starts = first ? first + (u64)b * seq : 0;
    bring<OWN_KEYS>(ks, head_of(k, b, seq, kv_heads, kv, dim), j0, seq, dim);
    bring<OWN_KEYS>(vs, head_of(v, b, seq, kv_heads, kv, dim), j0, seq, dim);
    float sum_k[PART / 8][4], sum_v[PART / 8][4];
    clear(sum_k);
    clear(sum_v);
    for (int h = kv * group; h < (kv + 1) * group; h++) {
        Head<const bf16> qh = head_of(q, b, seq, heads, h, dim), dh = head_of(dout, b, seq, heads, h, dim);
        u64 rows = ((u64)b * heads + h) * seq;
        for (int i0 = j0; i0 < seq; i0 += STEP) {
            // From here on documents start after the last of these keys.
            if (starts && (int)starts[i0] >= j0 + OWN_KEYS) break;
            __syncthreads();
            bring<STEP>(qs, qh, i0, seq, dim);
            bring<STEP>(ds, dh, i0, seq, dim);
            copies_commit();
            if (threadIdx.x < STEP) {
                int i = i0 + threadIdx.x;
                lses[threadIdx.x] = i < seq ? lse[rows + i] * LOG2E : 0.0f;
                deltas[threadIdx.x] = i < seq ? delta[rows + i] : 0.0f;
                // A query past the end sees no key.
                lows[threadIdx.x] = i >= seq ? seq : starts ? (int)starts[i] : 0;
            }
            copies_wait<0>();
            __syncthreads();
            float p[STEP / 8][4], t[STEP / 8][4];
            scores<STEP>(p, ks, warp * 16, qs);
            scores<STEP>(t, vs, warp * 16, ds);
#pragma unroll
            for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int key = j0 + warp * 16 + lane / 4 + e / 2 * 8, i = n * 8 + lane % 4 * 2 + e % 2;
                    bool seen = key <= i0 + i && key >= lows[i];
                    p[n][e] = seen ? exp2_fast(p[n][e] * (scale * LOG2E) - lses[i]) : 0.0f;
                    t[n][e] = p[n][e] * (t[n][e] - deltas[i]) * scale;
                }
            apply<STEP, PART>(sum_v, p, ds, part);
            apply<STEP, PART>(sum_k, t, qs, part);
        }
    }
    copies_wait<0>();
    int row = j0 + warp * 16;
    write<PART>(sum_k, head_of(dk, b, seq, kv_heads, kv, dim), row, seq, part, dim, 1.0f, 1.0f);
    write<PART>(sum_v, head_of(dv, b, seq, kv_heads, kv, dim), row, seq, part, dim, 1.0f, 1.0f);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_mma_backward_q(const bf16* q, const bf16* k, const bf16* v, const u32* first, const float* lse,
                             const bf16* dout, const float* delta, bf16* dq, int seq, int heads, int kv_heads, int dim,
                             float scale) {
    bf16 *qs = tiles, *ds = qs + QUERIES * PAD, *ks = ds + QUERIES * PAD, *vs = ks + STEP * PAD;
    int i0 = (gridDim.x - 1 - blockIdx.x) * QUERIES, h = blockIdx.y, b = blockIdx.z, kv = h / (heads / kv_heads);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = i0 + warp * 16 + lane / 4;
    const u32* starts = first ? first + (u64)b * seq : 0;
    Head<const bf16> kh = head_of(k, b, seq, kv_heads, kv, dim), vh = head_of(v, b, seq, kv_heads, kv, dim);
    bring<QUERIES>(qs, head_of(q, b, seq, heads, h, dim), i0, seq, dim);
    bring<QUERIES>(ds, head_of(dout, b, seq, heads, h, dim), i0, seq, dim);
    float log_sum[2], rest[2], sum[HEAD / 8][4];
    int low[2];
    clear(sum);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int i = row + 8 * r;
        bool inside = i < seq;
        log_sum[r] = inside ? lse[((u64)b * heads + h) * seq + i] * LOG2E : 0.0f;
        rest[r] = inside ? delta[((u64)b * heads + h) * seq + i] : 0.0f;
        low[r] = !inside ? seq : starts ? (int)starts[i] : 0;
    }
    int last = least(i0 + QUERIES, seq) - 1;
    for (int j0 = (starts ? (int)starts[i0] : 0) / STEP * STEP; j0 <= last; j0 += STEP) {
        __syncthreads();
        bring<STEP>(ks, kh, j0, seq, dim);
        bring<STEP>(vs, vh, j0, seq, dim);
        copies_commit();
        copies_wait<0>();
        __syncthreads();
        float p[STEP / 8][4], t[STEP / 8][4];
        scores<STEP>(p, qs, warp * 16, ks);
        scores<STEP>(t, ds, warp * 16, vs);
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int key = j0 + n * 8 + lane % 4 * 2 + e % 2;
                bool seen = key <= row + e / 2 * 8 && key >= low[e / 2];
                float x = seen ? exp2_fast(p[n][e] * (scale * LOG2E) - log_sum[e / 2]) : 0.0f;
                t[n][e] = x * (t[n][e] - rest[e / 2]) * scale;
            }
        apply<STEP, HEAD>(sum, t, ks, 0);
    }
    write<HEAD>(sum, head_of(dq, b, seq, heads, h, dim), i0 + warp * 16, seq, 0, dim, 1.0f, 1.0f);
}
