// Rotary position embedding, in place: see ops/rope.
//
// A thread turns eight neighbouring pairs of one head: columns c..c+8 of its left half with those of its right.

template <class X>
INLINE void rotate(X* x, const float* cos, const float* sin, u32 groups, int seq, int heads, int half, int start, float sign) {
    u32 id = blockIdx.x * 256 + threadIdx.x;
    if (id >= groups) return;
    u32 across = (half + 7) / 8;
    u32 head = id / across, c = id % across * 8;
    int n = half - (int)c, position = start + (int)(head / heads % seq);
    bool whole = half % 8 == 0;
    X* left = x + (u64)head * 2 * half + c;
    u64 at = (u64)position * half + c;
    Eight l = load_eight(left, n, whole), r = load_eight(left + half, n, whole);
    Eight co = load_eight(cos + at, n, whole), si = load_eight(sin + at, n, whole);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float a = l.at[i], b = r.at[i], s = sign * si.at[i];
        // Rounded apart, as the page says: the bits of the host.
        l.at[i] = __fsub_rn(__fmul_rn(a, co.at[i]), __fmul_rn(b, s));
        r.at[i] = __fadd_rn(__fmul_rn(b, co.at[i]), __fmul_rn(a, s));
    }
    store_eight(left, l, n, whole);
    store_eight(left + half, r, n, whole);
}

extern "C" __global__ void __launch_bounds__(256)
    rope_f32(float* x, const float* cos, const float* sin, u32 groups, int seq, int heads, int half, int start, float sign) {
    rotate(x, cos, sin, groups, seq, heads, half, start, sign);
}

extern "C" __global__ void __launch_bounds__(256)
    rope_bf16(bf16* x, const float* cos, const float* sin, u32 groups, int seq, int heads, int half, int start, float sign) {
    rotate(x, cos, sin, groups, seq, heads, half, start, sign);
}
