// The gated unit: see ops/swiglu. A thread takes two groups of eight elements, loaded before any is stored.

constexpr int GROUPS = 2;

INLINE float sigmoid(float g) { return 1.0f / (1.0f + exp_fast(-g)); }

INLINE u64 group_start(int k) { return ((u64)(blockIdx.x * GROUPS + k) * 256 + threadIdx.x) * 8; }
INLINE int left(u64 len, u64 i) { return i >= len ? 0 : len - i < 8 ? (int)(len - i) : 8; }

template <class T> INLINE void forward(const T* g, const T* u, T* h, u64 len) {
    Eight a[GROUPS], b[GROUPS];
#pragma unroll
    for (int k = 0; k < GROUPS; k++) {
        u64 i = group_start(k);
        int n = left(len, i);
        a[k] = load_eight(g + i, n, n == 8);
        b[k] = load_eight(u + i, n, n == 8);
    }
#pragma unroll
    for (int k = 0; k < GROUPS; k++) {
        u64 i = group_start(k);
        int n = left(len, i);
#pragma unroll
        for (int j = 0; j < 8; j++) a[k].at[j] = a[k].at[j] * sigmoid(a[k].at[j]) * b[k].at[j];
        store_eight(h + i, a[k], n, n == 8);
    }
}

template <class T> INLINE void backward(const T* g, const T* u, const T* dh, T* dg, T* du, u64 len) {
    Eight a[GROUPS], b[GROUPS], d[GROUPS];
#pragma unroll
    for (int k = 0; k < GROUPS; k++) {
        u64 i = group_start(k);
        int n = left(len, i);
        a[k] = load_eight(g + i, n, n == 8);
        b[k] = load_eight(u + i, n, n == 8);
        d[k] = load_eight(dh + i, n, n == 8);
    }
#pragma unroll
    for (int k = 0; k < GROUPS; k++) {
        u64 i = group_start(k);
        int n = left(len, i);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float x = a[k].at[j], s = sigmoid(x), dh = d[k].at[j];
            a[k].at[j] = dh * b[k].at[j] * s * (1.0f + x * (1.0f - s));
            b[k].at[j] = dh * x * s;
        }
        store_eight(dg + i, a[k], n, n == 8);
        store_eight(du + i, b[k], n, n == 8);
    }
}

extern "C" __global__ void __launch_bounds__(256) swiglu_forward_f32(const float* g, const float* u, float* h, u64 len) {
    forward(g, u, h, len);
}
extern "C" __global__ void __launch_bounds__(256) swiglu_forward_bf16(const bf16* g, const bf16* u, bf16* h, u64 len) {
    forward(g, u, h, len);
}
extern "C" __global__ void __launch_bounds__(256)
    swiglu_backward_f32(const float* g, const float* u, const float* dh, float* dg, float* du, u64 len) {
    backward(g, u, dh, dg, du, len);
}
extern "C" __global__ void __launch_bounds__(256)
    swiglu_backward_bf16(const bf16* g, const bf16* u, const bf16* dh, bf16* dg, bf16* du, u64 len) {
    backward(g, u, dh, dg, du, len);
}
