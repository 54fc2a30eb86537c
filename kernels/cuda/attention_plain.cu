// Attention for any head size up to HEAD, f32 or bf16, by plain multiply-adds in f32: see ops/attention for the formulas.
// Compiled for a few HEADs; `narrow` says that tensors are bf16. What f32 runs use, and heads that attention_mma cannot
// take.
//
// A block of 128 threads owns 16 rows (queries, or keys for dk and dv), eight threads a row; thread `part` of a row holds
// columns part, part + 8, ... of its sums. The other side comes in tiles through shared memory, in f32, with rows of
// HEAD + 1 numbers so that eight rows lie in different banks. Every number has one writer and one order.

constexpr int THREADS = 128;
constexpr int ROWS = 16;
constexpr int TILE = HEAD <= 256 ? 32 : 16;
constexpr int PAD = HEAD + 1;
constexpr int OWN = HEAD / 8;
constexpr float NONE = -1e30f;

extern __shared__ float memory[];

struct Head {
    const void* at;
    u64 start, stride;
    int dim;
    u32 narrow;
};

INLINE Head head_of(const void* t, int b, int seq, int heads, int h, int dim, u32 narrow) {
    return {t, ((u64)b * seq * heads + h) * dim, (u64)heads * dim, dim, narrow};
}

INLINE float number(const void* t, u64 at, u32 narrow) {
    return narrow ? wide(((const bf16*)t)[at]) : ((const float*)t)[at];
}

// Rows from..from + count of a head; rows past `end` and columns past dim are zero.
template <int COUNT> INLINE void bring(float* to, const Head& m, int from, int end) {
    for (int id = threadIdx.x; id < COUNT * HEAD; id += THREADS) {
        int row = id / HEAD, c = id % HEAD;
        bool inside = from + row < end && c < m.dim;
        to[row * PAD + c] = inside ? number(m.at, m.start + (from + row) * m.stride + c, m.narrow) : 0.0f;
    }
}

// Σ_d own_d · tile_nd for the rows n = part, part + 8, ... of a tile.
INLINE void scores(float (&s)[TILE / 8], const float* own, const float* tile, int part, int dim) {
#pragma unroll
    for (int n = 0; n < TILE / 8; n++) s[n] = 0.0f;
#pragma unroll 2
    for (int d = 0; d < dim; d++) {
        float x = own[d];
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) s[n] = fmaf(x, tile[(part + n * 8) * PAD + d], s[n]);
    }
}

// The eight threads of a row show each other their shares of p, then sum += p·tile.
INLINE void apply(float (&sum)[OWN], const float (&p)[TILE / 8], float* shared_p, const float* tile, int part) {
    float* row = shared_p + threadIdx.x / 8 * (TILE + 1);
    __syncwarp();
#pragma unroll
    for (int n = 0; n < TILE / 8; n++) row[part + n * 8] = p[n];
    __syncwarp();
#pragma unroll 1
    for (int n = 0; n < TILE; n++) {
        float x = row[n];
#pragma unroll
        for (int c = 0; c < OWN; c++) sum[c] = fmaf(x, tile[n * PAD + part + c * 8], sum[c]);
    }
}

INLINE void write(const float (&sum)[OWN], void* t, const Head& like, int row, int end, int part, float factor) {
    if (row >= end) return;
#pragma unroll
    for (int c = 0; c < OWN; c++) {
        int col = part + c * 8;
        if (col >= like.dim) continue;
        u64 at = like.start + row * like.stride + col;
        if (like.narrow)
            narrow(((bf16*)t)[at], sum[c] * factor);
        else
            ((float*)t)[at] = sum[c] * factor;
    }
}

template <int N> INLINE void clear(float (&sum)[N]) {
#pragma unroll
    for (int c = 0; c < N; c++) sum[c] = 0.0f;
}

// Over the eight threads of a row.
INLINE float row_max(float x) {
#pragma unroll
    for (int lane = 4; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, lane));
    return x;
}

INLINE float row_sum(float x) {
#pragma unroll
    for (int lane = 4; lane > 0; lane /= 2) x += __shfl_xor_sync(~0u, x, lane);
    return x;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_plain_forward(const void* q, const void* k, const void* v, const u32* first, void* o, float* lse, int seq,
                            int heads, int kv_heads, int dim, float scale, u32 narrow) {
    float *qs = memory, *tile = qs + ROWS * PAD, *shared_p = tile + TILE * PAD;
    int i0 = (gridDim.x - 1 - blockIdx.x) * ROWS, h = blockIdx.y, b = blockIdx.z, kv = h / (heads / kv_heads);
    int part = threadIdx.x % 8, i = i0 + threadIdx.x / 8;
    const u32* starts = first ? first + (u64)b * seq : 0;
    Head qh = head_of(q, b, seq, heads, h, dim, narrow), kh = head_of(k, b, seq, kv_heads, kv, dim, narrow);
    int low = starts && i < seq ? (int)starts[i] : 0, last = least(i0 + ROWS, seq) - 1;
    bring<ROWS>(qs, qh, i0, seq);
    float top = NONE, sum = 0.0f, out[OWN], s[TILE / 8];
    clear(out);
    for (int j0 = (starts ? (int)starts[i0] : 0) / TILE * TILE; j0 <= last; j0 += TILE) {
        __syncthreads();
        bring<TILE>(tile, kh, j0, seq);
        __syncthreads();
        scores(s, qs + threadIdx.x / 8 * PAD, tile, part, dim);
        __syncthreads();
        kh.at = v;
        bring<TILE>(tile, kh, j0, seq);
        kh.at = k;
        float high = top;
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
            int key = j0 + part + n * 8;
            s[n] = key <= i && key >= low ? s[n] * scale : NONE;
            high = fmaxf(high, s[n]);
        }
        high = row_max(high);
        float fade = exp_fast(top - high), share = 0.0f;
        top = high;
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
            s[n] = s[n] == NONE ? 0.0f : exp_fast(s[n] - high);
            share += s[n];
        }
        sum = sum * fade + row_sum(share);
#pragma unroll
        for (int c = 0; c < OWN; c++) out[c] *= fade;
        __syncthreads();
        apply(out, s, shared_p, tile, part);
    }
    if (part == 0 && i < seq) lse[((u64)b * heads + h) * seq + i] = top + log_fast(sum);
    write(out, o, qh, i, seq, part, 1.0f / sum);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_plain_backward_q(const void* q, const void* k, const void* v, const u32* first, const float* lse,
                               const void* dout, const float* delta, void* dq, int seq, int heads, int kv_heads, int dim,
                               float scale, u32 narrow) {
    float *qs = memory, *ds = qs + ROWS * PAD, *tile = ds + ROWS * PAD, *shared_p = tile + TILE * PAD;
    int i0 = (gridDim.x - 1 - blockIdx.x) * ROWS, h = blockIdx.y, b = blockIdx.z, kv = h / (heads / kv_heads);
    int row = threadIdx.x / 8, part = threadIdx.x % 8, i = i0 + row;
    const u32* starts = first ? first + (u64)b * seq : 0;
    Head qh = head_of(q, b, seq, heads, h, dim, narrow), dh = head_of(dout, b, seq, heads, h, dim, narrow);
    Head kh = head_of(k, b, seq, kv_heads, kv, dim, narrow), vh = head_of(v, b, seq, kv_heads, kv, dim, narrow);
    int low = i >= seq ? seq : starts ? (int)starts[i] : 0, last = least(i0 + ROWS, seq) - 1;
    u64 at = ((u64)b * heads + h) * seq + i;
    float log_sum = i < seq ? lse[at] : 0.0f, rest = i < seq ? delta[at] : 0.0f;
    bring<ROWS>(qs, qh, i0, seq);
    bring<ROWS>(ds, dh, i0, seq);
    float sum[OWN], p[TILE / 8], t[TILE / 8];
    clear(sum);
    for (int j0 = (starts ? (int)starts[i0] : 0) / TILE * TILE; j0 <= last; j0 += TILE) {
        __syncthreads();
        bring<TILE>(tile, vh, j0, seq);
        __syncthreads();
        scores(t, ds + row * PAD, tile, part, dim);
        __syncthreads();
        bring<TILE>(tile, kh, j0, seq);
        __syncthreads();
        scores(p, qs + row * PAD, tile, part, dim);
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
            int key = j0 + part + n * 8;
            float x = key <= i && key >= low ? exp_fast(p[n] * scale - log_sum) : 0.0f;
            t[n] = x * (t[n] - rest) * scale;
        }
        apply(sum, t, shared_p, tile, part);
    }
    write(sum, dq, qh, i, seq, part, 1.0f);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_plain_backward_kv(const void* q, const void* k, const void* v, const u32* first, const float* lse,
                                const void* dout, const float* delta, void* dk, void* dv, int seq, int heads, int kv_heads,
                                int dim, float scale, u32 narrow) {
    float *ks = memory, *vs = ks + ROWS * PAD, *tile = vs + ROWS * PAD, *shared_p = tile + TILE * PAD;
    int j0 = blockIdx.x * ROWS, kv = blockIdx.y, b = blockIdx.z, group = heads / kv_heads;
    int row = threadIdx.x / 8, part = threadIdx.x % 8, j = j0 + row;
    const u32* starts = first ? first + (u64)b * seq : 0;
    Head kh = head_of(k, b, seq, kv_heads, kv, dim, narrow), vh = head_of(v, b, seq, kv_heads, kv, dim, narrow);
    bring<ROWS>(ks, kh, j0, seq);
    bring<ROWS>(vs, vh, j0, seq);
    float sum_k[OWN], sum_v[OWN], p[TILE / 8], t[TILE / 8];
    clear(sum_k);
    clear(sum_v);
    for (int h = kv * group; h < (kv + 1) * group; h++) {
        Head qh = head_of(q, b, seq, heads, h, dim, narrow), dh = head_of(dout, b, seq, heads, h, dim, narrow);
        u64 rows = ((u64)b * heads + h) * seq;
        for (int i0 = j0; i0 < seq; i0 += TILE) {
            if (starts && (int)starts[i0] >= j0 + ROWS) break;
            __syncthreads();
            bring<TILE>(tile, qh, i0, seq);
            __syncthreads();
            scores(p, ks + row * PAD, tile, part, dim);
            __syncthreads();
            bring<TILE>(tile, dh, i0, seq);
            __syncthreads();
            scores(t, vs + row * PAD, tile, part, dim);
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) {
                int i = i0 + part + n * 8;
                bool seen = i < seq && j <= i && (!starts || j >= (int)starts[i]);
                p[n] = seen ? exp_fast(p[n] * scale - lse[rows + i]) : 0.0f;
                t[n] = seen ? p[n] * (t[n] - delta[rows + i]) * scale : 0.0f;
            }
            apply(sum_v, p, shared_p, tile, part);
            __syncthreads();
            bring<TILE>(tile, qh, i0, seq);
            __syncthreads();
            apply(sum_k, t, shared_p, tile, part);
        }
    }
    write(sum_k, dk, kh, j, seq, part, 1.0f);
    write(sum_v, dv, vh, j, seq, part, 1.0f);
}
