// What a SparseLoCo round sends, in the compact form: see ops/chunk_topk, and ops/chunk_topk/record.rs for the bits.
//
// A block of 256 threads owns one chunk of up to 4096 elements, in shared memory from the first read to the last write.
// Every operation on floats is rounded apart and in the page's order, so the bytes are the host's.

constexpr int THREADS = 256;
constexpr int CHUNK = 4096;
constexpr int GROUP = 64;
constexpr int LARGER = 4;

// How a tensor is cut, and how long the records of its whole, right, bottom and corner chunks are.
struct Cut {
    u64 rows, cols, head;
    int tile_rows, tile_cols, k;
    int bytes, right, bottom, corner;
    // Chunks side by side.
    int across;
};

// One chunk: where it begins, its sides, and its record.
struct Tile {
    u64 at, record;
    int rows, cols, count, kept, bytes;
};

INLINE Tile tile_of(const Cut& c, u32 chunk) {
    u64 down = chunk / c.across, over = chunk % c.across;
    u64 row = down * c.tile_rows, col = over * c.tile_cols;
    Tile t;
    t.rows = c.rows - row < c.tile_rows ? (int)(c.rows - row) : c.tile_rows;
    t.cols = c.cols - col < c.tile_cols ? (int)(c.cols - col) : c.tile_cols;
    t.at = row * c.cols + col;
    t.count = t.rows * t.cols;
    t.kept = (int)(((u64)c.k * t.count + CHUNK - 1) / CHUNK);
    t.kept = most(1, least(t.kept, t.count));
    bool low = t.rows < c.tile_rows, edge = t.cols < c.tile_cols;
    u64 whole = c.cols / c.tile_cols, line = whole * c.bytes + (c.across > whole ? c.right : 0);
    t.record = c.head + down * line + over * (low ? c.bottom : c.bytes);
    t.bytes = low ? (edge ? c.corner : c.bottom) : (edge ? c.right : c.bytes);
    return t;
}

INLINE u64 element(const Cut& c, const Tile& t, int i) { return t.at + (u64)(i / t.cols) * c.cols + i % t.cols; }

// The sum of x over the threads before this one, and over all.
INLINE int scan(int x, int& total) {
    __shared__ int sums[THREADS / 32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, up = x;
#pragma unroll
    for (int by = 1; by < 32; by *= 2) {
        int other = __shfl_up_sync(~0u, up, by);
        if (lane >= by) up += other;
    }
    if (lane == 31) sums[warp] = up;
    __syncthreads();
    int before = 0;
    total = 0;
#pragma unroll
    for (int w = 0; w < THREADS / 32; w++) {
        if (w < warp) before += sums[w];
        total += sums[w];
    }
    __syncthreads();
    return before + up - x;
}

INLINE u32 magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

// Bits from the lowest on.
INLINE int low_bits(int n, int k) { return 31 - __clz(n / k); }
INLINE int mark_bits(int n, int k) { return k + ((n - 1) >> low_bits(n, k)); }
INLINE int place_bits(int n, int k) { return k == n ? 0 : mark_bits(n, k) + k * low_bits(n, k); }

// Bits of the rank of a group of `size`; `choose` holds C(n, r) at n · 17 + r.
INLINE int rank_bits(const u64* choose, int size) {
    return 64 - __clzll((long long)(choose[size * 17 + size / LARGER] - 1));
}

// Where the levels of group g begin: all groups before it are whole.
INLINE int group_at(const u64* choose, int n, int k, int g) {
    return place_bits(n, k) + k + g * (rank_bits(choose, GROUP) + 16);
}

INLINE void put_bits(u32* words, int at, u64 bits, int count) {
    for (int done = 0; done < count;) {
        int word = (at + done) / 32, shift = (at + done) % 32, take = least(32 - shift, count - done);
        u32 part = (u32)(bits >> done) & (take == 32 ? ~0u : (1u << take) - 1);
        if (part) atomicOr(&words[word], part << shift);
        done += take;
    }
}

INLINE u64 take_bits(const u32* words, int at, int count) {
    u64 bits = 0;
    for (int done = 0; done < count;) {
        int word = (at + done) / 32, shift = (at + done) % 32, take = least(32 - shift, count - done);
        u64 part = words[word] >> shift & (take == 32 ? ~0u : (1u << take) - 1);
        bits |= part << done;
        done += take;
    }
    return bits;
}

INLINE u32 level_byte(float magnitude) {
    u32 bits = __float_as_uint(magnitude);
    u32 rounded = (bits + (1u << 19) - 1 + (bits >> 20 & 1)) >> 20;
    u32 byte = rounded < 98 * 8 ? 0 : rounded - 98 * 8;
    return byte < 255 ? byte : 255;
}

INLINE float level(u32 byte) { return byte == 0 ? 0.0f : __uint_as_float((byte + 98 * 8) << 20); }

// The larger values of a group as a set: a warp, two values a lane; of equals the first.
INLINE u64 larger_of(const float* values, int size, int h) {
    int lane = threadIdx.x % 32;
    u32 a = lane < size ? magnitude(values[lane]) : 0, b = lane + 32 < size ? magnitude(values[lane + 32]) : 0;
    int above_a = 0, above_b = 0;
    for (int j = 0; j < 32; j++) {
        u32 x = __shfl_sync(~0u, a, j), y = __shfl_sync(~0u, b, j);
        if (j < size) {
            above_a += x > a || (x == a && j < lane);
            above_b += x >= b;
        }
        if (j + 32 < size) {
            above_a += y > a;
            above_b += y > b || (y == b && j < lane);
        }
    }
    u32 low = __ballot_sync(~0u, lane < size && above_a < h);
    u32 high = __ballot_sync(~0u, lane + 32 < size && above_b < h);
    return (u64)high << 32 | low;
}

// The mean magnitude of the values inside (`within`) or outside of a set, in the order of the page: eight lanes, then
// their sums. A warp comes here; every lane gets it.
INLINE float mean_of(const float* values, int size, u64 set, int within) {
    int lane = threadIdx.x % 32, count = __popcll(set);
    float sum = 0.0f;
    if (lane < 8)
        for (int i = lane; i < size; i += 8)
            if ((int)(set >> i & 1) == within) sum = __fadd_rn(sum, fabsf(values[i]));
    sum = __fadd_rn(sum, __shfl_down_sync(~0u, sum, 4));
    sum = __fadd_rn(sum, __shfl_down_sync(~0u, sum, 2));
    sum = __fadd_rn(sum, __shfl_down_sync(~0u, sum, 1));
    sum = __shfl_sync(~0u, sum, 0);
    count = within ? count : size - count;
    if (count == 0 || magnitude(sum) >= 0x7f800000u) return 0.0f;
    return __fdiv_rn(sum, (float)count);
}

struct Memory {
    float x[CHUNK];
    float values[CHUNK];
    u16 places[CHUNK];
    u32 words[1024];
};

// The k-th largest magnitude of x[..n], digit by digit of eight bits; `left` becomes how many equal to it are wanted.
INLINE u32 kth_largest(const float* x, int n, int& left) {
    __shared__ u32 counts[256];
    __shared__ u32 found[2];
    u32 prefix = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        counts[threadIdx.x] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < n; i += THREADS) {
            u32 m = magnitude(x[i]);
            if (shift == 24 || m >> (shift + 8) == prefix) atomicAdd(&counts[m >> shift & 255], 1u);
        }
        __syncthreads();
        // Threads go from the largest digit down: the one in whose digit the k-th lies says so.
        int total, own = (int)counts[255 - threadIdx.x], before = scan(own, total);
        if (before < left && left <= before + own) {
            found[0] = 255 - threadIdx.x;
            found[1] = left - before;
        }
        __syncthreads();
        prefix = prefix << 8 | found[0];
        left = (int)found[1];
        __syncthreads();
    }
    return prefix;
}

// Places and values of what is kept, ascending.
INLINE void pick(Memory& m, int n, int kept) {
    int left = kept;
    u32 kth = kth_largest(m.x, n, left);
    int from = threadIdx.x * (CHUNK / THREADS), above = 0, equal = 0, total;
    for (int i = from; i < from + CHUNK / THREADS && i < n; i++) {
        u32 v = magnitude(m.x[i]);
        above += v > kth;
        equal += v == kth;
    }
    above = scan(above, total);
    equal = scan(equal, total);
    for (int i = from; i < from + CHUNK / THREADS && i < n; i++) {
        u32 v = magnitude(m.x[i]);
        bool take = v > kth || (v == kth && equal < left);
        if (take) {
            int at = above + least(equal, left);
            m.places[at] = (u16)i;
            m.values[at] = m.x[i];
        }
        above += v > kth;
        equal += v == kth;
    }
    __syncthreads();
}

extern __shared__ __align__(16) u8 raw[];

// e <- beta·e + (anchor - theta) (or e alone, where anchor is null), its largest sent and taken out again. `finite`
// becomes 0 if a number sent is not.
extern "C" __global__ void __launch_bounds__(THREADS)
    chunk_topk_compress(Cut cut, float* e, const float* anchor, const float* theta, u8* update, const u64* choose,
                        u32* finite, float beta) {
    Memory& m = *(Memory*)raw;
    Tile t = tile_of(cut, blockIdx.x);
    int n = t.count, k = t.kept, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int i = threadIdx.x; i < n; i += THREADS) {
        u64 at = element(cut, t, i);
        float x = e[at];
        if (anchor) {
            x = __fadd_rn(__fmul_rn(beta, x), __fsub_rn(anchor[at], theta[at]));
            e[at] = x;
        }
        m.x[i] = x;
    }
    for (int i = threadIdx.x; i < 1024; i += THREADS) m.words[i] = 0;
    __syncthreads();
    pick(m, n, k);

    int places = place_bits(n, k), l = low_bits(n, k), marks = mark_bits(n, k);
    for (int j = threadIdx.x; j < k; j += THREADS) {
        u32 place = m.places[j];
        if (k < n) {
            put_bits(m.words, (place >> l) + j, 1, 1);
            put_bits(m.words, marks + j * l, place & ((1u << l) - 1), l);
        }
        put_bits(m.words, places + j, __float_as_uint(m.values[j]) >> 31, 1);
        if (magnitude(m.values[j]) >= 0x7f800000u) atomicAnd(finite, 0u);
    }
    // Values change now: every sign and every number that is not finite has been seen.
    __syncthreads();
    for (int g = warp; g * GROUP < k; g += THREADS / 32) {
        float* values = m.values + g * GROUP;
        int size = least(GROUP, k - g * GROUP), h = size / LARGER;
        u64 set = larger_of(values, size, h);
        u32 low = level_byte(mean_of(values, size, set, 0)), high = level_byte(mean_of(values, size, set, 1));
        high = h == 0 ? 0 : high > low ? high : low;
        if (lane == 0) {
            u64 rank = 0, rest = set;
            for (int r = 1; rest; r++, rest &= rest - 1) rank += choose[(__ffsll((long long)rest) - 1) * 17 + r];
            int at = group_at(choose, n, k, g), bits = rank_bits(choose, size);
            put_bits(m.words, at, rank, bits);
            put_bits(m.words, at + bits, low, 8);
            put_bits(m.words, at + bits + 8, high, 8);
        }
        __syncwarp();
        for (int i = lane; i < size; i += 32) {
            u32 sign = __float_as_uint(values[i]) & 0x80000000u;
            values[i] = __uint_as_float(__float_as_uint(level(set >> i & 1 ? high : low)) | sign);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < t.bytes; i += THREADS) update[t.record + i] = (u8)(m.words[i / 4] >> i % 4 * 8);
    for (int j = threadIdx.x; j < k; j += THREADS)
        e[element(cut, t, m.places[j])] = __fsub_rn(m.x[m.places[j]], m.values[j]);
    // What fills the last word up.
    if (blockIdx.x == gridDim.x - 1 && threadIdx.x < 3) {
        u64 end = t.record + t.bytes;
        if (end + threadIdx.x < (end + 3) / 4 * 4) update[end + threadIdx.x] = 0;
    }
}

// Reads the record of a chunk: places and values, by all threads.
INLINE void decode(Memory& m, const Tile& t, const u8* update, const u64* choose) {
    int n = t.count, k = t.kept, lane = threadIdx.x % 32, total;
    for (int w = threadIdx.x; w < 1024; w += THREADS) {
        u32 word = 0;
        for (int b = 0; b < 4; b++)
            if (w * 4 + b < t.bytes) word |= (u32)update[t.record + w * 4 + b] << b * 8;
        m.words[w] = word;
    }
    __syncthreads();
    int places = place_bits(n, k), l = low_bits(n, k), marks = mark_bits(n, k);
    if (k == n) {
        for (int j = threadIdx.x; j < k; j += THREADS) m.places[j] = (u16)j;
    } else {
        // A mark at bit b, the i-th of all, stands for a place whose high bits are b - i. A thread takes two words.
        u32 part[2];
        for (int w = 0; w < 2; w++) {
            int at = (threadIdx.x * 2 + w) * 32, bits = most(0, least(32, marks - at));
            part[w] = bits == 0 ? 0 : m.words[threadIdx.x * 2 + w] & (bits == 32 ? ~0u : (1u << bits) - 1);
        }
        int i = scan(__popc(part[0]) + __popc(part[1]), total);
        for (int w = 0; w < 2; w++)
            for (u32 rest = part[w]; rest; rest &= rest - 1, i++) {
                int high = (threadIdx.x * 2 + w) * 32 + __ffs(rest) - 1 - i;
                m.places[i] = (u16)((u32)high << l | (u32)take_bits(m.words, marks + i * l, l));
            }
    }
    for (int g = threadIdx.x / 32; g * GROUP < k; g += THREADS / 32) {
        int size = least(GROUP, k - g * GROUP), h = size / LARGER;
        int at = group_at(choose, n, k, g), bits = rank_bits(choose, size);
        u64 set = 0;
        if (lane == 0) {
            u64 rank = take_bits(m.words, at, bits);
            for (int i = size - 1, r = h; i >= 0 && r > 0; i--) {
                u64 below = choose[i * 17 + r];
                if (rank >= below) {
                    rank -= below;
                    r--;
                    set |= 1ull << i;
                }
            }
        }
        set = __shfl_sync(~0u, set, 0);
        float low = level((u32)take_bits(m.words, at + bits, 8)), high = level((u32)take_bits(m.words, at + bits + 8, 8));
        for (int i = lane; i < size; i += 32) {
            u32 sign = (u32)take_bits(m.words, places + g * GROUP + i, 1) << 31;
            m.values[g * GROUP + i] = __uint_as_float(__float_as_uint(set >> i & 1 ? high : low) | sign);
        }
    }
    __syncthreads();
}

// One peer's part.
struct Peer {
    const u8* update;
    float factor;
    u32 unused;
};

// anchor <- anchor - alpha · mean over peers (or, with `senders`, over those that sent it), theta <- anchor.
extern "C" __global__ void __launch_bounds__(THREADS)
    chunk_topk_fold(Cut cut, float* anchor, float* theta, const Peer* peers, const u64* choose, int count, float alpha,
                    u32 senders) {
    Memory& m = *(Memory*)raw;
    u32* seen = (u32*)(raw + sizeof(Memory));
    Tile t = tile_of(cut, blockIdx.x);
    for (int i = threadIdx.x; i < t.count; i += THREADS) {
        m.x[i] = 0.0f;
        seen[i] = 0;
    }
    for (int p = 0; p < count; p++) {
        __syncthreads();
        decode(m, t, peers[p].update, choose);
        float factor = peers[p].factor;
        for (int j = threadIdx.x; j < t.kept; j += THREADS) {
            int i = m.places[j];
            m.x[i] = __fadd_rn(m.x[i], __fmul_rn(factor, m.values[j]));
            seen[i]++;
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < t.count; i += THREADS) {
        u64 at = element(cut, t, i);
        float over = (float)most(1, senders ? (int)seen[i] : count);
        float a = __fsub_rn(anchor[at], __fmul_rn(alpha, __fdiv_rn(m.x[i], over)));
        anchor[at] = a;
        theta[at] = a;
    }
}

// Σ d² of each chunk, in f64 and in the order of places.
extern "C" __global__ void __launch_bounds__(THREADS)
    chunk_topk_squares(Cut cut, const u8* update, const u64* choose, double* sums) {
    Memory& m = *(Memory*)raw;
    Tile t = tile_of(cut, blockIdx.x);
    decode(m, t, update, choose);
    if (threadIdx.x != 0) return;
    double sum = 0.0;
    for (int j = 0; j < t.kept; j++) sum = __dadd_rn(sum, __dmul_rn((double)m.values[j], (double)m.values[j]));
    sums[blockIdx.x] = sum;
}
