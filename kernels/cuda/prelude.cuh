// What every kernel stands on: number types, 16-byte accesses, sums over a warp or a block, and the three instructions
// by which sm_80 and later multiply matrices. No header of NVIDIA's is needed.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// The upper half of an f32.
struct bf16 {
    u16 bits;
};

struct alignas(16) Words {
    u32 at[4];
};

#define INLINE __device__ __forceinline__

constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2 = 0.6931471805599453f;

INLINE float wide(float x) { return x; }
INLINE float wide(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

// Two floats, each rounded to the nearest bf16, ties to even; `low` in the low half.
INLINE u32 pack(float low, float high) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

INLINE float low_half(u32 both) { return __uint_as_float(both << 16); }
INLINE float high_half(u32 both) { return __uint_as_float(both & 0xffff0000u); }

INLINE void narrow(float& to, float x) { to = x; }
INLINE void narrow(bf16& to, float x) { to.bits = (u16)pack(x, 0.0f); }

// What a number becomes once it has been stored as a T.
template <class T> INLINE float stored(float x);
template <> INLINE float stored<float>(float x) { return x; }
template <> INLINE float stored<bf16>(float x) { return low_half(pack(x, 0.0f)); }

// 2^x, e^x and the logarithm, within 2 ulp or so of their results; denormal results are zero.
INLINE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

INLINE float exp_fast(float x) { return exp2_fast(x * LOG2E); }

INLINE float log_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y * LN2;
}

// Eight neighbouring elements of a row, in f32 whatever their dtype.
struct Eight {
    float at[8];
};

INLINE Words load_words(const void* from) { return *(const Words*)from; }
INLINE void store_words(void* to, const Words& words) { *(Words*)to = words; }

INLINE Eight load_whole(const float* from) {
    Words a = load_words(from), b = load_words(from + 4);
    Eight x;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x.at[i] = __uint_as_float(a.at[i]);
        x.at[i + 4] = __uint_as_float(b.at[i]);
    }
    return x;
}

INLINE Eight load_whole(const bf16* from) {
    Words a = load_words(from);
    Eight x;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x.at[2 * i] = low_half(a.at[i]);
        x.at[2 * i + 1] = high_half(a.at[i]);
    }
    return x;
}

INLINE void store_whole(float* to, const Eight& x) {
    Words a, b;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        a.at[i] = __float_as_uint(x.at[i]);
        b.at[i] = __float_as_uint(x.at[i + 4]);
    }
    store_words(to, a);
    store_words(to + 4, b);
}

INLINE void store_whole(bf16* to, const Eight& x) {
    Words a;
#pragma unroll
    for (int i = 0; i < 4; i++) a.at[i] = pack(x.at[2 * i], x.at[2 * i + 1]);
    store_words(to, a);
}

// The first `n` of eight, the others zero. `whole`: n is 8 and the address is a multiple of 16 bytes.
template <class T> INLINE Eight load_eight(const T* from, int n, bool whole) {
    if (whole) return load_whole(from);
    Eight x;
#pragma unroll
    for (int i = 0; i < 8; i++) x.at[i] = i < n ? wide(from[i]) : 0.0f;
    return x;
}

template <class T> INLINE void store_eight(T* to, const Eight& x, int n, bool whole) {
    if (whole) {
        store_whole(to, x);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (i < n) narrow(to[i], x.at[i]);
}

INLINE int least(int a, int b) { return a < b ? a : b; }
INLINE int most(int a, int b) { return a > b ? a : b; }

// The sum over the 32 lanes, the same bits in each.
INLINE float warp_sum(float x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(~0u, x, lane);
    return x;
}

// The sum over the `warps` warps of a block, in the order of warps; every thread must come here.
INLINE float block_sum(float x, float* shared, int warps) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
    for (int w = 0; w < warps; w++) sum += shared[w];
    __syncthreads();
    return sum;
}

INLINE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Copies 16 bytes to shared memory while the thread goes on; of the source only the first `bytes`, the rest is zero.
INLINE void copy_async(u32 to, const void* from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)), "r"(bytes)
                 : "memory");
}

INLINE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `LEFT` of the groups committed last are under way.
template <int LEFT> INLINE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

// Four 8x8 tiles: lane l gives the address of row l % 8 of tile l / 8, and gets elements 2·(l % 4) and the next of row
// l / 4 of each; with `turned`, of each tile's transpose.
INLINE void load_tiles(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

INLINE void load_tiles_turned(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// c += a·b for a 16x16, b 16x8, c 16x8. Lane l holds of c: row l / 4 and that plus 8, columns 2·(l % 4) and the next.
INLINE void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
