// Root-mean-square norm: see ops/rmsnorm for the formula.
//
// A row belongs to one warp (`warps` 1: heads and narrow streams, eight rows a block) or to a block of eight warps. A
// thread holds the groups of eight columns lane, lane + lanes, ... of its row, in every pass: so it alone touches them.

constexpr int THREADS = 256;

struct Place {
    int row_step, lane, lanes, warp;
};

INLINE Place place(int warps) {
    int warp = threadIdx.x / 32;
    if (warps == 1) return {8, (int)threadIdx.x % 32, 32, warp};
    return {1, (int)threadIdx.x, THREADS, 0};
}

INLINE float row_sum(float x, int warps) {
    __shared__ float sums[8];
    return warps == 1 ? warp_sum(x) : block_sum(x, sums, 8);
}

template <class X, class Y, bool ADD>
INLINE void forward(const X* x, const Y* delta, float* sum, const float* w, Y* y, float* r, int rows, int cols, float eps,
                    int warps) {
    Place p = place(warps);
    int row = blockIdx.x * p.row_step + p.warp;
    if (row >= rows) return; // Only whole warps leave, and only where no block sum follows.
    bool whole = cols % 8 == 0;
    u64 at = (u64)row * cols;
    float squares = 0.0f;
    for (int c = p.lane * 8; c < cols; c += p.lanes * 8) {
        Eight v = load_eight(x + at + c, cols - c, whole);
        if (ADD) {
            Eight d = load_eight(delta + at + c, cols - c, whole);
#pragma unroll
            for (int i = 0; i < 8; i++) v.at[i] += d.at[i];
            store_eight(sum + at + c, v, cols - c, whole);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) squares += v.at[i] * v.at[i];
    }
    squares = row_sum(squares, warps);
    float scale = 1.0f / sqrtf(squares / cols + eps);
    for (int c = p.lane * 8; c < cols; c += p.lanes * 8) {
        Eight v = ADD ? load_eight(sum + at + c, cols - c, whole) : load_eight(x + at + c, cols - c, whole);
        Eight g = load_eight(w + c, cols - c, whole);
#pragma unroll
        for (int i = 0; i < 8; i++) v.at[i] = v.at[i] * scale * g.at[i];
        store_eight(y + at + c, v, cols - c, whole);
    }
    if (p.lane == 0) r[row] = scale;
}

// Block s takes `slab` rows (fewer at the end of a grain) and leaves its share of dw in row s of `partial`. In shared
// memory every thread sums its own columns; where rows belong to warps, each warp has a row of its own there.
template <class X, class Y, bool ADD>
INLINE void backward(const X* x, const float* w, const float* r, const Y* dy, X* dx, float* partial, int cols, int grain,
                     int slab, int warps) {
    extern __shared__ float dw[];
    Place p = place(warps);
    bool whole = cols % 8 == 0;
    int per = (grain + slab - 1) / slab;
    int start = blockIdx.x / per * grain, from = start + blockIdx.x % per * slab;
    int to = least(from + slab, start + grain);
    float* mine = dw + p.warp * cols;
    for (int c = p.lane * 8; c < cols; c += p.lanes * 8)
        for (int i = 0; i < 8; i++)
            if (c + i < cols) mine[c + i] = 0.0f;
    for (int row = from + p.warp; row < to; row += p.row_step) {
        u64 at = (u64)row * cols;
        float scale = r[row], gx = 0.0f;
        for (int c = p.lane * 8; c < cols; c += p.lanes * 8) {
            Eight v = load_eight(x + at + c, cols - c, whole), d = load_eight(dy + at + c, cols - c, whole);
            Eight g = load_eight(w + c, cols - c, whole);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                gx += d.at[i] * g.at[i] * v.at[i];
                if (c + i < cols) mine[c + i] += d.at[i] * v.at[i] * scale;
            }
        }
        float mean = row_sum(gx, warps) / cols * scale * scale;
        for (int c = p.lane * 8; c < cols; c += p.lanes * 8) {
            Eight v = load_eight(x + at + c, cols - c, whole), d = load_eight(dy + at + c, cols - c, whole);
            Eight g = load_eight(w + c, cols - c, whole), was;
            if (ADD) was = load_eight(dx + at + c, cols - c, whole);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float slope = scale * (d.at[i] * g.at[i] - v.at[i] * mean);
                v.at[i] = ADD ? was.at[i] + slope : slope;
            }
            store_eight(dx + at + c, v, cols - c, whole);
        }
    }
    __syncthreads();
    for (int c = threadIdx.x; c < cols; c += THREADS) {
        float sum = 0.0f;
        for (int part = 0; part < (warps == 1 ? 8 : 1); part++) sum += dw[part * cols + c];
        partial[(u64)blockIdx.x * cols + c] = sum;
    }
}

// A thread a column: the slabs' shares are added to dw in order.
extern "C" __global__ void __launch_bounds__(THREADS) rmsnorm_fold(const float* partial, float* dw, int slabs, int cols) {
    int c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= cols) return;
    float sum = dw[c];
#pragma unroll 8
    for (int s = 0; s < slabs; s++) sum += partial[(u64)s * cols + c];
    dw[c] = sum;
}

#define FORWARD(NAME, X, Y)                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        rmsnorm_forward_##NAME(const X* x, const float* w, Y* y, float* r, int rows, int cols, float eps, int warps) { \
        forward<X, Y, false>(x, (const Y*)0, (float*)0, w, y, r, rows, cols, eps, warps);                              \
    }
FORWARD(f32_f32, float, float)
FORWARD(f32_bf16, float, bf16)
FORWARD(bf16_bf16, bf16, bf16)

#define ADD_FORWARD(NAME, Y)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        rmsnorm_add_forward_##NAME(const float* x, const Y* delta, float* sum, const float* w, Y* y, float* r,         \
                                   int rows, int cols, float eps, int warps) {                                         \
        forward<float, Y, true>(x, delta, sum, w, y, r, rows, cols, eps, warps);                                       \
    }
ADD_FORWARD(f32, float)
ADD_FORWARD(bf16, bf16)

#define BACKWARD(NAME, X, Y, ADD)                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
        rmsnorm_backward_##NAME(const X* x, const float* w, const float* r, const Y* dy, X* dx, float* partial,        \
                                int cols, int grain, int slab, int warps) {                                            \
        backward<X, Y, ADD>(x, w, r, dy, dx, partial, cols, grain, slab, warps);                                       \
    }
BACKWARD(f32_f32_set, float, float, false)
BACKWARD(f32_f32_add, float, float, true)
BACKWARD(f32_bf16_set, float, bf16, false)
BACKWARD(f32_bf16_add, float, bf16, true)
BACKWARD(bf16_bf16_set, bf16, bf16, false)
