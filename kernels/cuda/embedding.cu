// Token embedding: see ops/embedding.

constexpr int THREADS = 256;

// A warp a token.
template <class W> INLINE void forward(const u32* ids, const W* w, float* x, int rows, int cols) {
    int row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    bool whole = cols % 8 == 0;
    u64 from = (u64)ids[row] * cols, to = (u64)row * cols;
#pragma unroll 2
    for (int c = threadIdx.x % 32 * 8; c < cols; c += 256)
        store_eight(x + to + c, load_eight(w + from + c, cols - c, whole), cols - c, whole);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_forward_f32(const u32* ids, const float* w, float* x, int rows, int cols) {
    forward(ids, w, x, rows, cols);
}
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_forward_bf16(const u32* ids, const bf16* w, float* x, int rows, int cols) {
    forward(ids, w, x, rows, cols);
}

// A block a token; it does nothing unless no token before it has the same id. It then adds the rows of all tokens with
// that id to the table's, in the order of tokens: one writer an element and one order, so no float atomics and no sort. A
// thread holds columns threadIdx.x, + 256, ... The scan of ids costs rows / 256 coalesced loads a token.
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_backward(const u32* ids, const float* dx, float* dw, int rows, int cols) {
    __shared__ int seen;
    __shared__ int counts[THREADS / 32], found[THREADS];
    int row = blockIdx.x, thread = threadIdx.x, warp = thread / 32;
    u32 id = ids[row];
    if (thread == 0) seen = 0;
    __syncthreads();
    for (int i = thread; i < row; i += THREADS) {
        if (ids[i] == id) {
            atomicOr(&seen, 1);
            break;
        }
    }
    __syncthreads();
    if (seen) return;
    for (int from = row; from < rows; from += THREADS) {
        // Where a warp's matches start in the list is the number of matches before it: the list ascends.
        int i = from + thread;
        bool match = i < rows && ids[i] == id;
        u32 marks = __ballot_sync(~0u, match);
        if (thread % 32 == 0) counts[warp] = __popc(marks);
        __syncthreads();
        int at = __popc(marks & ((1u << thread % 32) - 1)), total = 0;
        for (int w = 0; w < THREADS / 32; w++) {
            at += w < warp ? counts[w] : 0;
            total += counts[w];
        }
        if (match) found[at] = i;
        __syncthreads();
        for (int c = thread; c < cols && total > 0; c += THREADS) {
            float sum = dw[(u64)id * cols + c];
#pragma unroll 4
            for (int m = 0; m < total; m++) sum += dx[(u64)found[m] * cols + c];
            dw[(u64)id * cols + c] = sum;
        }
        __syncthreads();
    }
}
