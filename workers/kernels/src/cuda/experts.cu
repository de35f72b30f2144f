// Mixtures of experts on a GPU, over the rows of a step. `experts.rs` launches what stands here.
//
// Nothing is asked of the processor: a row's experts are chosen here, and the pairs of a row and an expert are sorted by
// expert, so that each expert's weights are read once for all of its pairs. Weights may be packed as MXFP4 (Open Compute
// Project, 2023): codes of four bits, of which 32 share a scale that is a power of two.

#include "common.cuh"

#define THREADS 128
#define WARPS (THREADS / 32)
#define EXPERTS_MAX 512
// Pairs that share what was read of an expert's weights.
#define PAIRS 8
// Weights that a thread reads at once, and codes that share a scale.
#define EACH 8
#define GROUP 32

// Of each row the experts with the highest scores, and how much each of them counts. A warp takes a row.
template <typename T>
__device__ void choose(const T *scores, const T *bias, uint32_t *chosen, float *weights, int rows, int experts, int each,
                       int normalized) {
    const int lane = threadIdx.x % 32, row = blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= rows) return;
    scores += (size_t)row * experts, chosen += (size_t)row * each, weights += (size_t)row * each;
    float own[EXPERTS_MAX / 32], most = -INFINITY, all = 0, best = 0;
#pragma unroll
    for (int at = 0; at < EXPERTS_MAX / 32; at++) {
        const int expert = at * 32 + lane;
        own[at] = -INFINITY;
        if (expert < experts) own[at] = to_float(scores[expert]) + (bias == nullptr ? 0 : to_float(bias[expert]));
        most = fmaxf(most, own[at]);
    }
    most = warp_max(most);
#pragma unroll
    for (int at = 0; at < EXPERTS_MAX / 32; at++) all += expf(own[at] - most);
    all = warp_sum(all);
    for (int place = 0; place < each; place++) {
        float score = -INFINITY;
        int expert = EXPERTS_MAX;
#pragma unroll
        for (int at = 0; at < EXPERTS_MAX / 32; at++) {
            if (own[at] > score) score = own[at], expert = at * 32 + lane;
        }
        // Of equal ones the first.
        for (int step = 16; step > 0; step /= 2) {
            const float other = __shfl_xor_sync(FULL, score, step);
            const int other_expert = __shfl_xor_sync(FULL, expert, step);
            if (other > score || (other == score && other_expert < expert)) score = other, expert = other_expert;
        }
#pragma unroll
        for (int at = 0; at < EXPERTS_MAX / 32; at++) {
            if (at * 32 + lane == expert) own[at] = -INFINITY;
        }
        const float weight = expf(score - most);
        best += weight;
        if (lane == 0) chosen[place] = expert, weights[place] = weight;
    }
    const float whole = normalized ? best : all;
    if (lane == 0) {
        for (int place = 0; place < each; place++) weights[place] /= whole;
    }
}

// Sorts pairs by their experts, and tells where those of each begin. One thread block does it.
__device__ inline void sort(const uint32_t *chosen, uint32_t *sorted, uint32_t *starts, int pairs, int experts) {
    __shared__ uint32_t begins[EXPERTS_MAX + 1];
    for (int expert = threadIdx.x; expert < experts; expert += blockDim.x) {
        uint32_t count = 0;
        for (int pair = 0; pair < pairs; pair++) count += chosen[pair] == expert;
        begins[expert + 1] = count;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        begins[0] = 0;
        for (int expert = 0; expert < experts; expert++) begins[expert + 1] += begins[expert];
    }
    __syncthreads();
    for (int expert = threadIdx.x; expert <= experts; expert += blockDim.x) {
        uint32_t at = begins[expert];
        starts[expert] = at;
        for (int pair = 0; expert < experts && pair < pairs; pair++) {
            if (chosen[pair] == expert) sorted[at++] = pair;
        }
    }
}

// The number that a code stands for: with its lowest bits as an exponent and half a mantissa it is an f32 but for a factor.
__device__ inline float number(uint32_t code) {
    return __uint_as_float((code & 7) << 22 | (code & 8) << 28) * 0x1p126f;
}

__device__ inline float power(uint8_t scale) {
    return __uint_as_float(scale == 0 ? 0x00400000 : (uint32_t)scale << 23);
}

template <typename T> __device__ inline void read(const T *from, float to[EACH]) {
    constexpr int COUNT = 16 / sizeof(T);
#pragma unroll
    for (int at = 0; at < EACH; at += COUNT) {
        const uint4 loaded = *reinterpret_cast<const uint4 *>(from + at);
        T part[COUNT];
        *reinterpret_cast<uint4 *>(part) = loaded;
#pragma unroll
        for (int i = 0; i < COUNT; i++) to[at + i] = to_float(part[i]);
    }
}

// A matrix of every expert, `[experts, outputs, inputs]`.
template <typename T> struct Whole {
    const T *weights;

    __device__ void read_at(size_t at, float to[EACH]) const { read(weights + at, to); }
};

struct Packed {
    // The first of two values has the lower half of a byte.
    const uint8_t *codes, *scales;

    __device__ void read_at(size_t at, float to[EACH]) const {
        const uint32_t eight = *reinterpret_cast<const uint32_t *>(codes + at / 2);
        const float scale = power(scales[at / GROUP]);
#pragma unroll
        for (int i = 0; i < EACH; i++) to[i] = number(eight >> 4 * i) * scale;
    }
};

// For each pair its row, which is the one of `rows` that `each` pairs share, times the matrix of its expert. A warp takes a
// column; `[columns / WARPS, experts]` thread blocks.
template <typename T, typename M>
__device__ void multiply(const T *rows, M matrices, const T *bias, const uint32_t *sorted, const uint32_t *starts, T *output,
                         int inputs, int outputs, int each) {
    const int lane = threadIdx.x % 32, column = blockIdx.x * WARPS + threadIdx.x / 32, expert = blockIdx.y;
    if (column >= outputs) return;
    const uint32_t begin = starts[expert], end = starts[expert + 1];
    const size_t matrix = ((size_t)expert * outputs + column) * inputs;
    const float added = bias == nullptr ? 0 : to_float(bias[(size_t)expert * outputs + column]);
    for (uint32_t first = begin; first < end; first += PAIRS) {
        const T *from[PAIRS];
        float sums[PAIRS];
#pragma unroll
        for (int pair = 0; pair < PAIRS; pair++) {
            // Those that are not there are computed as the last one, and not written.
            from[pair] = rows + (size_t)(sorted[min(first + pair, end - 1)] / each) * inputs;
            sums[pair] = 0;
        }
        const int count = min((int)(end - first), PAIRS);
        for (int at = lane * EACH; at < inputs; at += 32 * EACH) {
            float weights[EACH];
            matrices.read_at(matrix + at, weights);
#pragma unroll
            for (int pair = 0; pair < PAIRS; pair++) {
                if (pair >= count) break;
                float values[EACH];
                read(from[pair] + at, values);
#pragma unroll
                for (int i = 0; i < EACH; i++) sums[pair] += weights[i] * values[i];
            }
        }
#pragma unroll
        for (int pair = 0; pair < PAIRS; pair++) {
            const float sum = warp_sum(sums[pair]);
            if (lane == 0 && pair < count) store(output + (size_t)sorted[first + pair] * outputs + column, sum + added);
        }
    }
}

// The weights of one matrix, which is packed.
template <typename T> __device__ void unpack(Packed matrix, T *output, int count) {
    const size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * EACH;
    if (at >= count) return;
    float weights[EACH];
    matrix.read_at(at, weights);
#pragma unroll
    for (int i = 0; i < EACH; i++) store(output + at + i, weights[i]);
}

// The sum of what a row's experts made, as far as each of them counts.
template <typename T> __device__ void combine(const T *made, const float *weights, T *output, int each, int width) {
    made += (size_t)blockIdx.x * each * width, weights += (size_t)blockIdx.x * each;
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
        float sum = 0;
        for (int place = 0; place < each; place++) sum += weights[place] * to_float(made[(size_t)place * width + column]);
        store(output + (size_t)blockIdx.x * width + column, sum);
    }
}

#define EXPERTS(T, NAME)                                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS) choose_##NAME(                                               \
        const T *scores, const T *bias, uint32_t *chosen, float *weights, int rows, int experts, int each,             \
        int normalized) {                                                                                              \
        choose<T>(scores, bias, chosen, weights, rows, experts, each, normalized);                                     \
    }                                                                                                                  \
    extern "C" __global__ void sort_##NAME(const uint32_t *chosen, uint32_t *sorted, uint32_t *starts, int pairs,      \
                                           int experts) {                                                              \
        sort(chosen, sorted, starts, pairs, experts);                                                                  \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) multiply_##NAME(                                             \
        const T *rows, const T *weights, const uint8_t *scales, const T *bias, const uint32_t *sorted,                 \
        const uint32_t *starts, T *output, int inputs, int outputs, int each) {                                        \
        multiply<T>(rows, Whole<T>{weights}, bias, sorted, starts, output, inputs, outputs, each);                     \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) multiply_##NAME##_packed(                                    \
        const T *rows, const uint8_t *codes, const uint8_t *scales, const T *bias, const uint32_t *sorted,             \
        const uint32_t *starts, T *output, int inputs, int outputs, int each) {                                        \
        multiply<T>(rows, Packed{codes, scales}, bias, sorted, starts, output, inputs, outputs, each);                 \
    }                                                                                                                  \
    extern "C" __global__ void unpack_##NAME(const uint8_t *codes, const uint8_t *scales, T *output, int count) {      \
        unpack<T>(Packed{codes, scales}, output, count);                                                               \
    }                                                                                                                  \
    extern "C" __global__ void combine_##NAME(const T *made, const float *weights, T *output, int each, int width) {   \
        combine<T>(made, weights, output, each, width);                                                                \
    }
EXPERTS(float, f32)
EXPERTS(__half, f16)
EXPERTS(__nv_bfloat16, bf16)
