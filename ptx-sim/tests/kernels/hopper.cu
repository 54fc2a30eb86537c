// A product by warpgroups, fed by the TMA: every part of an sm_90a kernel, small. hopper.ptx beside it is made by make.py.
//
// C[m, n] = A[m, k] B[n, k]^T, bf16 in and out. A cluster of two blocks makes 128 by 64; a block its 64 rows. Warpgroup 0
// multiplies, thread 128 copies: its 64 by 64 of A, and half of B's 64 by 64 to both blocks.
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;
struct alignas(64) Map { char bytes[128]; };

#define STAGES 2
#define TILE 8192

__device__ __forceinline__ u32 at(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void wait(u32 bar, u32 parity) {
    asm volatile("{\n.reg .pred p;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra AGAIN;\n}" ::"r"(bar), "r"(parity) : "memory");
}
__device__ __forceinline__ void load(u32 to, const Map* map, u32 bar, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to), "l"(map), "r"(bar), "r"(x), "r"(y) : "memory");
}
__device__ __forceinline__ void load_both(u32 to, const Map* map, u32 bar, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to), "l"(map), "r"(bar), "r"(x), "r"(y), "h"((u16)3) : "memory");
}
// 128 bytes a row, eight rows of them 1024 bytes apart, swizzled over 128 bytes.
__device__ __forceinline__ u64 matrix(u32 a) { return (u64)((a & 0x3FFFF) >> 4) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62; }

__device__ __forceinline__ void multiply(float (&d)[32], u64 a, u64 b, int add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, p, 1, 1, 0, 0;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]),
          "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
          "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "l"(a), "l"(b), "r"(add));
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(256) gemm(const __grid_constant__ Map a, const __grid_constant__ Map b, const __grid_constant__ Map c, int k) {
    extern __shared__ __align__(1024) unsigned char tiles[];
    __shared__ u64 full[STAGES], empty[STAGES];
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    u32 sa = at(tiles), sb = sa + STAGES * TILE, out = sb + STAGES * TILE;
    int row0 = blockIdx.x * 64, col0 = blockIdx.y * 64, steps = k / 64, t = threadIdx.x;
    if (t == 0) {
        for (int s = 0; s < STAGES; s++) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(at(&full[s])) : "memory");
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 2;" ::"r"(at(&empty[s])) : "memory");
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
    if (t >= 128) {
        if (t == 128) {
            for (int i = 0; i < steps; i++) {
                int s = i % STAGES;
                wait(at(&empty[s]), (i / STAGES & 1) ^ 1);
                asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at(&full[s])), "r"(2 * TILE) : "memory");
                load(sa + s * TILE, &a, at(&full[s]), i * 64, row0);
                load_both(sb + s * TILE + rank * (TILE / 2), &b, at(&full[s]), i * 64, col0 + rank * 32);
            }
        }
    } else {
        float d[32];
        for (int i = 0; i < steps; i++) {
            int s = i % STAGES;
            wait(at(&full[s]), i / STAGES & 1);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int kk = 0; kk < 4; kk++) multiply(d, matrix(sa + s * TILE + kk * 32), matrix(sb + s * TILE + kk * 32), (i | kk) != 0);
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            if (t < 2) {
                u32 there;
                asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at(&empty[s])), "r"(t));
                asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(there) : "memory");
            }
        }
        int row = t / 32 * 16 + t % 32 / 4;
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                u32 two, r = row + 8 * h, to = out + r * 128 + ((j ^ (r & 7)) << 4) + t % 4 * 4;
                asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(two) : "f"(d[4 * j + 2 * h + 1]), "f"(d[4 * j + 2 * h]));
                asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(two) : "memory");
            }
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        asm volatile("bar.sync 1, 128;" ::: "memory");
        if (t == 0) {
            asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&c), "r"(out), "r"(col0), "r"(row0) : "memory");
            asm volatile("cp.async.bulk.commit_group;" ::: "memory");
            asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
        }
    }
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// out[i] += x[i] over 1024 floats a block, through shared memory: a bulk copy in, a bulk reduction out.
extern "C" __global__ void __launch_bounds__(32) add_bulk(float* out, const float* x) {
    __shared__ __align__(128) float tile[1024];
    __shared__ u64 bar;
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(at(&bar)) : "memory");
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 4096;" ::"r"(at(&bar)) : "memory");
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 4096, [%2];" ::"r"(at(tile)), "l"(x + blockIdx.x * 1024), "r"(at(&bar)) : "memory");
        wait(at(&bar), 0);
        asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], 4096;" ::"l"(out), "r"(at(tile)) : "memory");
        asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;" ::: "memory");
    }
}
