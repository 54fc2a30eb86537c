// AdamW: see ops/adamw. A thread takes eight elements; every operation is rounded apart, so the bits are the host's.

struct Factors {
    float scale, one_less_beta1, beta2, one_less_beta2, keep, rate, root, eps;
};

INLINE void update(const Factors& f, float& w, float g, float& m, float& v) {
    g = __fmul_rn(f.scale, g);
    m = __fadd_rn(m, __fmul_rn(f.one_less_beta1, __fsub_rn(g, m)));
    v = __fadd_rn(__fmul_rn(f.beta2, v), __fmul_rn(f.one_less_beta2, __fmul_rn(g, g)));
    float by = __fadd_rn(__fmul_rn(__fsqrt_rn(v), f.root), f.eps);
    w = __fsub_rn(__fmul_rn(f.keep, w), __fmul_rn(f.rate, __fdiv_rn(m, by)));
}

// `out` may be null: no bf16 copy is kept. `zero`: the gradient is left at zero.
extern "C" __global__ void __launch_bounds__(256)
    adamw_step(float* w, float* g, float* m, float* v, bf16* out, u64 len, Factors f, int zero) {
    u64 i = ((u64)blockIdx.x * 256 + threadIdx.x) * 8;
    if (i >= len) return;
    int n = len - i < 8 ? (int)(len - i) : 8;
    bool whole = n == 8;
    Eight a = load_eight(w + i, n, whole), b = load_eight(g + i, n, whole);
    Eight c = load_eight(m + i, n, whole), d = load_eight(v + i, n, whole);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        update(f, a.at[j], b.at[j], c.at[j], d.at[j]);
        b.at[j] = 0.0f;
    }
    store_eight(w + i, a, n, whole);
    store_eight(m + i, c, n, whole);
    store_eight(v + i, d, n, whole);
    if (zero) store_eight(g + i, b, n, whole);
    if (out) store_eight(out + i, a, n, whole);
}

// Masters in two halves: `high` is the weight that ops read, rounded to nearest with ties up, and `low` what it lacks, as
// a signed number of steps of the f32: bits = high · 2^16 + low. So a master costs two bytes beside the weight.
extern "C" __global__ void __launch_bounds__(256)
    adamw_step_split(u16* high, u16* low, float* g, float* m, float* v, u64 len, Factors f, int zero) {
    u64 i = ((u64)blockIdx.x * 256 + threadIdx.x) * 8;
    if (i >= len) return;
    int n = len - i < 8 ? (int)(len - i) : 8;
    bool whole = n == 8;
    Eight b = load_eight(g + i, n, whole), c = load_eight(m + i, n, whole), d = load_eight(v + i, n, whole);
    Words h, l;
    if (whole) {
        h = load_words(high + i);
        l = load_words(low + i);
    } else {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            h.at[j] = (2 * j < n ? high[i + 2 * j] : 0) | (u32)(2 * j + 1 < n ? high[i + 2 * j + 1] : 0) << 16;
            l.at[j] = (2 * j < n ? low[i + 2 * j] : 0) | (u32)(2 * j + 1 < n ? low[i + 2 * j + 1] : 0) << 16;
        }
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
        int shift = j % 2 * 16;
        u32 top = h.at[j / 2] >> shift & 0xffff;
        int rest = (int)(short)(l.at[j / 2] >> shift);
        float w = __uint_as_float((top << 16) + rest);
        update(f, w, b.at[j], c.at[j], d.at[j]);
        b.at[j] = 0.0f;
        u32 bits = __float_as_uint(w), keep = 0xffffu << (16 - shift);
        h.at[j / 2] = (h.at[j / 2] & keep) | (bits + 0x8000) >> 16 << shift;
        l.at[j / 2] = (l.at[j / 2] & keep) | (bits & 0xffff) << shift;
    }
    store_eight(m + i, c, n, whole);
    store_eight(v + i, d, n, whole);
    if (zero) store_eight(g + i, b, n, whole);
    if (whole) {
        store_words(high + i, h);
        store_words(low + i, l);
        return;
    }
#pragma unroll
    for (int j = 0; j < 8; j++)
        if (j < n) {
            high[i + j] = (u16)(h.at[j / 2] >> j % 2 * 16);
            low[i + j] = (u16)(l.at[j / 2] >> j % 2 * 16);
        }
}
