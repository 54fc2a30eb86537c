// Kernels the simulator's own tests run: plain, each of one idea. portable.ptx beside it is made by make.py.
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// y += a x. One thread an element.
extern "C" __global__ void axpy(float* y, const float* x, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += a * x[i];
}

// sum over a block's 256 elements: shuffles in a warp, shared memory between warps. One block 256 elements.
extern "C" __global__ void __launch_bounds__(256) block_sum(float* out, const float* x, int n) {
    __shared__ float part[8];
    int i = blockIdx.x * 256 + threadIdx.x;
    float s = i < n ? x[i] : 0.f;
    for (int o = 16; o > 0; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = s;
    __syncthreads();
    if (threadIdx.x == 0) {
        s = 0.f;
        for (int w = 0; w < 8; w++) s += part[w];
        out[blockIdx.x] = s;
    }
}

// Histogram of bytes by shared atomics. One block of 256 threads, hist[256].
extern "C" __global__ void __launch_bounds__(256) histogram(u32* hist, const unsigned char* x, int n) {
    __shared__ u32 bins[256];
    bins[threadIdx.x] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += 256) atomicAdd(&bins[x[i]], 1u);
    __syncthreads();
    hist[threadIdx.x] = bins[threadIdx.x];
}

// The last block to end adds what all blocks left in part, in order: a fence and a counter.
extern "C" __global__ void __launch_bounds__(128) last_block(float* out, float* part, u32* counter, const float* x, int n) {
    __shared__ float s[128];
    __shared__ u32 last;
    int t = threadIdx.x;
    int i = blockIdx.x * 128 + t;
    s[t] = i < n ? x[i] : 0.f;
    __syncthreads();
    for (int o = 64; o > 0; o >>= 1) {
        if (t < o) s[t] += s[t + o];
        __syncthreads();
    }
    if (t == 0) {
        part[blockIdx.x] = s[0];
        __threadfence();
        last = atomicAdd(counter, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && t == 0) {
        __threadfence();
        float sum = 0.f;
        for (int b = 0; b < gridDim.x; b++) sum += part[b];
        *out = sum;
    }
}

#define BM 64
#define BN 64
#define BK 32

#define STAGES 3

// C[m, n] = A[m, k] B[n, k]^T, bf16 in, f32 out; k a multiple of 32. 128 threads make 64 by 64, a warp 32 by 32; rows of
// 64 bytes in shared memory, their 16-byte pieces moved by the row so that ldmatrix meets no bank twice.
__device__ __forceinline__ u32 place(int row, int piece) { return row * 64 + ((piece ^ (row >> 1 & 3)) << 4); }

__device__ __forceinline__ void stage_in(u32 to, const u16* from, int row0, int rows, int k0, int k) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int c = threadIdx.x + 128 * i, row = c / 4, piece = c % 4;
        const u16* src = from + (u64)(row0 + row) * k + k0 + piece * 8;
        int bytes = row0 + row < rows ? 16 : 0;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to + place(row, piece)), "l"(bytes ? src : from), "r"(bytes));
    }
}

extern "C" __global__ void __launch_bounds__(128) gemm(float* c, const u16* a, const u16* b, int m, int n, int k) {
    __shared__ __align__(128) unsigned char tile[STAGES][2][BM * BK * 2];
    int row0 = blockIdx.y * BM, col0 = blockIdx.x * BN, steps = k / BK;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, wm = warp / 2 * 32, wn = warp % 2 * 32;
    float acc[2][4][4] = {};
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) {
            stage_in(shared_address(tile[s][0]), a, row0, m, s * BK, k);
            stage_in(shared_address(tile[s][1]), b, col0, n, s * BK, k);
        }
        asm volatile("cp.async.commit_group;");
    }
    for (int s = 0; s < steps; s++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2));
        __syncthreads();
        int next = s + STAGES - 1;
        if (next < steps) {
            stage_in(shared_address(tile[next % STAGES][0]), a, row0, m, next * BK, k);
            stage_in(shared_address(tile[next % STAGES][1]), b, col0, n, next * BK, k);
        }
        asm volatile("cp.async.commit_group;");
        u32 ta = shared_address(tile[s % STAGES][0]), tb = shared_address(tile[s % STAGES][1]);
#pragma unroll
        for (int kk = 0; kk < 2; kk++) {
            u32 fa[2][4], fb[4][2];
#pragma unroll
            for (int i = 0; i < 2; i++)
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                             : "=r"(fa[i][0]), "=r"(fa[i][1]), "=r"(fa[i][2]), "=r"(fa[i][3])
                             : "r"(ta + place(wm + i * 16 + lane % 16, kk * 2 + lane / 16)));
#pragma unroll
            for (int j = 0; j < 2; j++)
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                             : "=r"(fb[2 * j][0]), "=r"(fb[2 * j][1]), "=r"(fb[2 * j + 1][0]), "=r"(fb[2 * j + 1][1])
                             : "r"(tb + place(wn + j * 16 + lane % 8 + lane / 16 * 8, kk * 2 + lane / 8 % 2)));
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                                 : "+f"(acc[i][j][0]), "+f"(acc[i][j][1]), "+f"(acc[i][j][2]), "+f"(acc[i][j][3])
                                 : "r"(fa[i][0]), "r"(fa[i][1]), "r"(fa[i][2]), "r"(fa[i][3]), "r"(fb[j][0]), "r"(fb[j][1]));
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int row = row0 + wm + i * 16 + lane / 4 + e / 2 * 8, col = col0 + wn + j * 8 + lane % 4 * 2 + e % 2;
                if (row < m && col < n) c[(u64)row * n + col] = acc[i][j][e];
            }
}
