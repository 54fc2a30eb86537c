// δ of attention's backward: see ops/attention. Its own file, as it does not depend on the head size.

// δ of each query: a warp a token and head.
extern "C" __global__ void __launch_bounds__(256)
    attention_delta(const void* o, const void* dout, float* delta, int count, int seq, int heads, int dim, u32 narrow) {
    int id = blockIdx.x * 8 + threadIdx.x / 32;
    if (id >= count) return;
    float sum = 0.0f;
    bool whole = dim % 8 == 0;
    for (int c = threadIdx.x % 32 * 8; c < dim; c += 256) {
        u64 at = (u64)id * dim + c;
        Eight x, y;
        if (narrow) {
            x = load_eight((const bf16*)o + at, dim - c, whole);
            y = load_eight((const bf16*)dout + at, dim - c, whole);
        } else {
            x = load_eight((const float*)o + at, dim - c, whole);
            y = load_eight((const float*)dout + at, dim - c, whole);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) sum += x.at[i] * y.at[i];
    }
    sum = warp_sum(sum);
    int token = id / heads;
    if (threadIdx.x % 32 == 0) delta[((u64)(token / seq) * heads + id % heads) * seq + token % seq] = sum;
}
