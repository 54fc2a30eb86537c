// Between the dtypes of a run, sums of gradients, filling and copying: see ops/cast.
//
// A block of 256 threads owns 8192 elements (or 16 KiB); a thread takes four groups of 16 or 32 bytes, all loaded before
// any is stored. What is left over at the end goes to the first threads of the last block, one element each.

constexpr int GROUPS = 4;

// A NaN keeps its sign and the upper half of its payload, and is made quiet; `pack` would lose them.
INLINE u32 round_bits(float x) {
    u32 b = __float_as_uint(x);
    if ((b & 0x7fffffffu) > 0x7f800000u) return b >> 16 | 0x40;
    return (b + 0x7fff + (b >> 16 & 1)) >> 16;
}

// First element of this thread's group g, where groups have SIZE elements.
template <int SIZE> INLINE u64 group(int g) { return ((u64)(blockIdx.x * GROUPS + g) * 256 + threadIdx.x) * SIZE; }

// The element past the last whole group that this thread takes, or `len`.
template <int SIZE> INLINE u64 rest(u64 len) {
    u64 i = len / SIZE * SIZE + threadIdx.x;
    return blockIdx.x == gridDim.x - 1 && i < len ? i : len;
}

extern "C" __global__ void __launch_bounds__(256) cast_f32_bf16(const float* from, bf16* to, u64 len) {
    Eight x[GROUPS];
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
        if (group<8>(g) + 8 <= len) x[g] = load_whole(from + group<8>(g));
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
        if (group<8>(g) + 8 <= len) {
            Words w;
#pragma unroll
            for (int j = 0; j < 4; j++) w.at[j] = round_bits(x[g].at[2 * j]) | round_bits(x[g].at[2 * j + 1]) << 16;
            store_words(to + group<8>(g), w);
        }
    u64 i = rest<8>(len);
    if (i < len) to[i].bits = (u16)round_bits(from[i]);
}

extern "C" __global__ void __launch_bounds__(256) cast_bf16_f32(const bf16* from, float* to, u64 len) {
    Eight x[GROUPS];
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
        if (group<8>(g) + 8 <= len) x[g] = load_whole(from + group<8>(g));
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
        if (group<8>(g) + 8 <= len) store_whole(to + group<8>(g), x[g]);
    u64 i = rest<8>(len);
    if (i < len) to[i] = wide(from[i]);
}

extern "C" __global__ void __launch_bounds__(256) cast_add(const float* from, float* to, u64 len) {
    Eight x[GROUPS], y[GROUPS];
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
        if (group<8>(g) + 8 <= len) {
            x[g] = load_whole(from + group<8>(g));
            y[g] = load_whole(to + group<8>(g));
        }
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
        if (group<8>(g) + 8 <= len) {
#pragma unroll
            for (int j = 0; j < 8; j++) y[g].at[j] += x[g].at[j];
            store_whole(to + group<8>(g), y[g]);
        }
    u64 i = rest<8>(len);
    if (i < len) to[i] += from[i];
}

// Sets `len` bytes to those of `word`, over and over.
extern "C" __global__ void __launch_bounds__(256) cast_fill(u8* to, u32 word, u64 len) {
    Words w = {{word, word, word, word}};
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
        if (group<16>(g) + 16 <= len) store_words(to + group<16>(g), w);
    u64 i = rest<16>(len);
    if (i < len) to[i] = (u8)(word >> 8 * (i % 4));
}

// Copies `len` bytes.
extern "C" __global__ void __launch_bounds__(256) cast_copy(const u8* from, u8* to, u64 len) {
    Words w[GROUPS];
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
        if (group<16>(g) + 16 <= len) w[g] = load_words(from + group<16>(g));
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
        if (group<16>(g) + 16 <= len) store_words(to + group<16>(g), w[g]);
    u64 i = rest<16>(len);
    if (i < len) to[i] = from[i];
}
