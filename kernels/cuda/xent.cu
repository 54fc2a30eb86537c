// The softmax half of the head: see ops/xent. A block of 512 threads a row of logits; a thread holds groups of eight.

constexpr int THREADS = 512;
constexpr int WARPS = THREADS / 32;
constexpr u32 IGNORE = ~0u;
constexpr float LOWEST = -3.402823466e38f;

// Σ exp(z − max) and that max, over the lanes seen so far.
struct Running {
    float max, sum;
};

INLINE Running join(Running a, Running b) {
    float max = fmaxf(a.max, b.max);
    return {max, a.sum * exp_fast(a.max - max) + b.sum * exp_fast(b.max - max)};
}

// log Σ exp of a row, in every thread. A NaN anywhere makes it NaN: the sum keeps what the maximum drops.
INLINE float log_sum_exp(const float* z, int vocab, bool whole) {
    __shared__ Running parts[WARPS];
    Running r = {LOWEST, 0.0f};
    for (int v = threadIdx.x * 8; v < vocab; v += THREADS * 8) {
        Eight x = load_eight(z + v, vocab - v, whole);
        float max = r.max;
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (v + i < vocab) max = fmaxf(max, x.at[i]);
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (v + i < vocab) sum += exp_fast(x.at[i] - max);
        r = {max, r.sum * exp_fast(r.max - max) + sum};
    }
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) {
        Running other = {__shfl_xor_sync(~0u, r.max, lane), __shfl_xor_sync(~0u, r.sum, lane)};
        // The lower lane stands first, so that both lanes get the same bits.
        r = threadIdx.x & lane ? join(other, r) : join(r, other);
    }
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = r;
    __syncthreads();
    r = parts[0];
    for (int w = 1; w < WARPS; w++) r = join(r, parts[w]);
    __syncthreads();
    return r.max + log_fast(r.sum);
}

// nll, and the gradient of the logits to `g`, whose rows are `ldg` apart: columns vocab..ldg become zero. g may be z.
template <class G>
INLINE void gradient(const float* logits, const u32* targets, float* nll, G* g, int vocab, int ldg, float scale) {
    const float* z = logits + (u64)blockIdx.x * vocab;
    g += (u64)blockIdx.x * ldg;
    u32 target = targets[blockIdx.x];
    bool whole = vocab % 8 == 0, counted = target != IGNORE;
    float lse = 0.0f, hit = 0.0f;
    if (counted) {
        lse = log_sum_exp(z, vocab, whole);
        hit = z[target];
    }
    __syncthreads();
    if (threadIdx.x == 0) nll[blockIdx.x] = counted ? lse - hit : 0.0f;
    for (int v = threadIdx.x * 8; v < ldg; v += THREADS * 8) {
        Eight x = load_eight(z + v, vocab - v, whole && v < vocab);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float p = exp_fast(x.at[i] - lse) - ((u32)(v + i) == target ? 1.0f : 0.0f);
            x.at[i] = counted && v + i < vocab ? scale * p : 0.0f;
        }
        store_eight(g + v, x, ldg - v, ldg % 8 == 0);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    xent_gradient_f32(float* z, const u32* targets, float* nll, int vocab, float scale) {
    gradient(z, targets, nll, z, vocab, vocab, scale);
}
extern "C" __global__ void __launch_bounds__(THREADS)
    xent_gradient_bf16(const float* z, const u32* targets, float* nll, bf16* g, int vocab, int ldg, float scale) {
    gradient(z, targets, nll, g, vocab, ldg, scale);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    xent_loss(const float* logits, const u32* targets, float* nll, int vocab) {
    const float* z = logits + (u64)blockIdx.x * vocab;
    u32 target = targets[blockIdx.x];
    float loss = target == IGNORE ? 0.0f : log_sum_exp(z, vocab, vocab % 8 == 0) - z[target];
    if (threadIdx.x == 0) nll[blockIdx.x] = loss;
}

// log Σ exp, and the largest with the lowest place.
extern "C" __global__ void __launch_bounds__(THREADS) xent_rank(const float* logits, float* lse, u32* best, int vocab) {
    __shared__ float tops[WARPS];
    __shared__ u32 places[WARPS];
    const float* z = logits + (u64)blockIdx.x * vocab;
    bool whole = vocab % 8 == 0;
    float sum = log_sum_exp(z, vocab, whole);
    float top = -__int_as_float(0x7f800000);
    u32 place = ~0u;
    for (int v = threadIdx.x; v < vocab; v += THREADS)
        if (z[v] > top || place == ~0u) {
            top = z[v];
            place = v;
        }
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) {
        float t = __shfl_xor_sync(~0u, top, lane);
        u32 p = __shfl_xor_sync(~0u, place, lane);
        if (p != ~0u && (place == ~0u || t > top || (t == top && p < place))) {
            top = t;
            place = p;
        }
    }
    if (threadIdx.x % 32 == 0) {
        tops[threadIdx.x / 32] = top;
        places[threadIdx.x / 32] = place;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < WARPS; w++)
        if (places[w] != ~0u && (tops[w] > top || (tops[w] == top && places[w] < place))) {
            top = tops[w];
            place = places[w];
        }
    // A sum that is infinite was +∞ somewhere.
    lse[blockIdx.x] = sum;
    best[blockIdx.x] = place;
}
