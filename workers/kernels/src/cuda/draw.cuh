// Draws of tokens.

#pragma once
#include "common.cuh"

// How a row's next token is drawn, as `sampling.rs` does it: not at all (0), as the one with the highest score (1), or by
// weights (2), of which those below `least` are nothing, where a part of all of them ends.
struct Draw {
    uint32_t way;
    float inverse_temperature, least;
    uint32_t unused;
    double part;

    __device__ float weight(float score, float most) const {
        const float weight = __expf((score - most) * inverse_temperature);
        return weight >= least ? weight : 0;
    }
};

// Weights whose sum is made at once, by a warp, and the most that there are of them.
#define CHUNK 512
#define CHUNKS_MAX 1024

// A thread block draws for a row.
__device__ void draw(const float *scores, const Draw *draws, uint32_t *tokens, int width) {
    __shared__ float highest[32];
    __shared__ int places[32];
    __shared__ double sums[CHUNKS_MAX];
    __shared__ float weights[CHUNK];
    __shared__ int chosen;
    __shared__ double left;
    const Draw how = draws[blockIdx.x];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    if (how.way == 0) return;
    scores += (size_t)blockIdx.x * width;

    float most = -INFINITY;
    int place = 0;
    auto take = [&](float score, int at) {
        if (score > most || (score == most && at < place)) most = score, place = at;
    };
    for (int at = threadIdx.x; at < width; at += blockDim.x) take(scores[at], at);
    for (int step = 16; step > 0; step /= 2) {
        const float score = __shfl_xor_sync(FULL, most, step);
        take(score, __shfl_xor_sync(FULL, place, step));
    }
    if (lane == 0) highest[warp] = most, places[warp] = place;
    __syncthreads();
    for (int other = 0; other < warps; other++) take(highest[other], places[other]);
    if (how.way == 1) {
        if (threadIdx.x == 0) tokens[blockIdx.x] = place;
        return;
    }

    const int chunks = (width + CHUNK - 1) / CHUNK;
    for (int chunk = warp; chunk < chunks; chunk += warps) {
        double sum = 0;
        for (int at = chunk * CHUNK + lane; at < min(width, (chunk + 1) * CHUNK); at += 32) {
            sum += how.weight(scores[at], most);
        }
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(FULL, sum, step);
        if (lane == 0) sums[chunk] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double whole = 0;
        for (int chunk = 0; chunk < chunks; chunk++) whole += sums[chunk];
        left = whole * how.part;
        int at = 0, last = 0;
        double before = 0;
        for (; at < chunks && left >= sums[at]; at++) {
            if (sums[at] > 0) last = at, before = left;
            left -= sums[at];
        }
        // Sums in another order are not quite the same: then it is the last one that there is.
        if (at == chunks) at = last, left = before;
        chosen = at;
    }
    __syncthreads();
    const int first = chosen * CHUNK, count = min(CHUNK, width - first);
    for (int at = threadIdx.x; at < count; at += blockDim.x) weights[at] = how.weight(scores[first + at], most);
    __syncthreads();
    if (threadIdx.x == 0) {
        int token = 0;
        double rest = left;
        for (int at = 0; at < count && rest >= 0; at++) {
            if (weights[at] > 0) token = at;
            rest -= weights[at];
        }
        tokens[blockIdx.x] = first + token;
    }
}
