// Encoders on a GPU, over the packed rows of sequences. `cuda.rs` launches what stands here.
//
// Attention is computed as in FlashAttention-2 (Dao, 2023): scores of a tile of queries with one block of keys after the
// other stay in registers, and sums are scaled as their greatest score becomes known.

#include "tensor.cuh"

// Queries of a tile: 16 for each of 4 warps. Keys of a block.
#define QUERIES 64
#define KEYS 64
#define THREADS 128
// Values of a head, at most, where `plain` is used.
#define HEAD_MAX 256

struct Tile {
    // The row of the sequence's first token, its tokens, and the first query of the tile among them.
    uint32_t first, length, query;
};

struct Sight {
    int causal;
    // How far a query sees to each side; negative without limit.
    int window;
    float scale;
    // `[heads, bias_length]`, by the distance of key and query; may be null.
    const float *bias;
    int bias_length;

    __device__ bool sees(int query, int key, int length) const {
        return key < length && query < length && (!causal || key <= query) &&
               (window < 0 || abs(query - key) <= window);
    }

    __device__ float score(float product, int head, int query, int key) const {
        float score = product * scale;
        return bias == nullptr ? score : score + bias[head * bias_length + bias_length / 2 - query + key];
    }

    // The keys that any query of a tile sees.
    __device__ int begin(const Tile &tile) const {
        return window < 0 ? 0 : max(0, (int)tile.query - window) / KEYS * KEYS;
    }

    __device__ int end(const Tile &tile) const {
        int last = tile.query + QUERIES;
        int end = tile.length;
        if (causal) end = min(end, last);
        return window < 0 ? end : min(end, last + window);
    }
};

// On tensor cores, for heads of D values.
template <typename T, int D>
__device__ void tensor(const T *queries, const T *keys, const T *values, T *output, const Tile *tiles, int query_stride,
                       int key_stride, int value_stride, int output_stride, int group, const Sight &sight) {
    // Rows stand so far apart that the rows a warp reads at once lie in different banks.
    constexpr int PITCH = D + 8;
    __shared__ __align__(16) T key_block[KEYS * PITCH];
    __shared__ __align__(16) T value_block[KEYS * PITCH];
    const Tile tile = tiles[blockIdx.x];
    const int head = blockIdx.y, lane = threadIdx.x % 32, length = tile.length;
    // A thread holds two rows of each product, 8 apart, and of each 8 columns the two from `column` on.
    const int row = tile.query + threadIdx.x / 32 * 16 + lane / 4, column = lane % 4 * 2;
    queries += (size_t)tile.first * query_stride + head * D + column;
    keys += (size_t)tile.first * key_stride + head / group * D;
    values += (size_t)tile.first * value_stride + head / group * D;

    uint32_t a[D / 16][4];
#pragma unroll
    for (int part = 0; part < D / 16; part++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int query = row + i % 2 * 8;
            const T *at = queries + (size_t)query * query_stride + part * 16 + i / 2 * 8;
            a[part][i] = query < length ? *reinterpret_cast<const uint32_t *>(at) : 0;
        }
    }
    float mixed[D / 8][4] = {}, most[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};

    const int end = sight.end(tile);
    for (int start = sight.begin(tile); start < end; start += KEYS) {
        __syncthreads();
        for (int i = threadIdx.x; i < KEYS * D / 8; i += THREADS) {
            int at = i / (D / 8), part = i % (D / 8) * 8;
            uint4 key = make_uint4(0, 0, 0, 0), value = key;
            if (start + at < length) {
                key = *reinterpret_cast<const uint4 *>(keys + (size_t)(start + at) * key_stride + part);
                value = *reinterpret_cast<const uint4 *>(values + (size_t)(start + at) * value_stride + part);
            }
            *reinterpret_cast<uint4 *>(&key_block[at * PITCH + part]) = key;
            *reinterpret_cast<uint4 *>(&value_block[at * PITCH + part]) = value;
        }
        __syncthreads();

        float scores[KEYS / 8][4] = {};
#pragma unroll
        for (int part = 0; part < D / 16; part++) {
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) {
                const T *at = &key_block[(j * 8 + lane / 4) * PITCH + part * 16 + column];
                multiply<T>(scores[j], a[part], *reinterpret_cast<const uint32_t *>(at),
                            *reinterpret_cast<const uint32_t *>(at + 8));
            }
        }
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int query = row + i / 2 * 8, key = start + j * 8 + column + i % 2;
                bool sees = sight.sees(query, key, length);
                scores[j][i] = sees ? sight.score(scores[j][i], head, query, key) : -INFINITY;
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float now = most[half];
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) now = fmaxf(now, fmaxf(scores[j][half * 2], scores[j][half * 2 + 1]));
            now = fmaxf(now, __shfl_xor_sync(~0u, now, 1));
            now = fmaxf(now, __shfl_xor_sync(~0u, now, 2));
            // A row may have seen nothing yet.
            float base = now == -INFINITY ? 0 : now, factor = __expf(most[half] - base), sum = 0;
            most[half] = now;
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
                for (int i = half * 2; i < half * 2 + 2; i++) {
                    scores[j][i] = __expf(scores[j][i] - base);
                    sum += scores[j][i];
                }
            }
            total[half] = total[half] * factor + sum;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                mixed[n][half * 2] *= factor;
                mixed[n][half * 2 + 1] *= factor;
            }
        }
#pragma unroll
        for (int part = 0; part < KEYS / 16; part++) {
            float *left = scores[part * 2], *right = scores[part * 2 + 1];
            uint32_t shares[4] = {pair<T>(left[0], left[1]), pair<T>(left[2], left[3]), pair<T>(right[0], right[1]),
                                  pair<T>(right[2], right[3])};
#pragma unroll
            for (int n = 0; n < D / 16; n++) {
                const T *at = &value_block[(part * 16 + lane % 16) * PITCH + n * 16 + lane / 16 * 8];
                uint32_t b[4];
                load_columns(b, at);
                multiply<T>(mixed[n * 2], shares, b[0], b[1]);
                multiply<T>(mixed[n * 2 + 1], shares, b[2], b[3]);
            }
        }
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        int query = row + half * 8;
        float sum = total[half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (query >= length) continue;
        T *to = output + (size_t)(tile.first + query) * output_stride + head * D + column;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            uint32_t two = pair<T>(mixed[n][half * 2] / sum, mixed[n][half * 2 + 1] / sum);
            *reinterpret_cast<uint32_t *>(to + n * 8) = two;
        }
    }
}

// One query at a time by each warp, exact in f32 and for heads of any size.
template <typename T>
__device__ void plain(const T *queries, const T *keys, const T *values, T *output, const Tile *tiles, int query_stride,
                      int key_stride, int value_stride, int output_stride, int group, int size, const Sight &sight) {
    __shared__ float all[THREADS / 32][HEAD_MAX];
    const Tile tile = tiles[blockIdx.x];
    const int head = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32, length = tile.length;
    float *query_values = all[warp];
    keys += (size_t)tile.first * key_stride + head / group * size;
    values += (size_t)tile.first * value_stride + head / group * size;
    const int begin = sight.begin(tile), end = sight.end(tile);
    for (int query = tile.query + warp; query < min(length, (int)tile.query + QUERIES); query += THREADS / 32) {
        const T *from = queries + (size_t)(tile.first + query) * query_stride + head * size;
        __syncwarp();
        for (int i = lane; i < size; i += 32) query_values[i] = to_float(from[i]);
        __syncwarp();
        float mixed[HEAD_MAX / 32] = {}, most = -INFINITY, total = 0;
        for (int start = begin; start < end; start += 32) {
            int key = start + lane;
            float score = -INFINITY;
            if (sight.sees(query, key, length)) {
                const T *at = keys + (size_t)key * key_stride;
                float product = 0;
                for (int i = 0; i < size; i++) product += query_values[i] * to_float(at[i]);
                score = sight.score(product, head, query, key);
            }
            float now = score;
            for (int step = 16; step > 0; step /= 2) now = fmaxf(now, __shfl_xor_sync(~0u, now, step));
            now = fmaxf(now, most);
            float base = now == -INFINITY ? 0 : now, factor = expf(most - base), share = expf(score - base);
            most = now;
            total = total * factor + share;
            for (int i = 0; i < HEAD_MAX / 32; i++) mixed[i] *= factor;
            for (int j = 0; j < min(32, end - start); j++) {
                float weight = __shfl_sync(~0u, share, j);
                const T *at = values + (size_t)(start + j) * value_stride;
                for (int i = 0; i * 32 + lane < size; i++) mixed[i] += weight * to_float(at[i * 32 + lane]);
            }
        }
        for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(~0u, total, step);
        T *to = output + (size_t)(tile.first + query) * output_stride + head * size;
        for (int i = 0; i * 32 + lane < size; i++) store(to + i * 32 + lane, mixed[i] / total);
    }
}

// The vectors of each sequence's tokens to one; `kind` counts as `Pooling` does.
template <typename T>
__device__ void pool(const T *rows, float *output, const uint32_t *offsets, int width, int output_stride, int kind) {
    int column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= width) return;
    uint32_t first = offsets[blockIdx.x], length = offsets[blockIdx.x + 1] - first;
    rows += (size_t)first * width + column;
    const int CLS = 0, MEAN = 1, MAX = 2, MEAN_SQRT_LENGTH = 3, WEIGHTED_MEAN = 4, LAST = 5;
    float pooled = to_float(rows[kind == LAST ? (size_t)(length - 1) * width : 0]);
    if (kind != CLS && kind != LAST) {
        for (uint32_t token = 1; token < length; token++) {
            float value = to_float(rows[(size_t)token * width]);
            pooled = kind == MAX ? fmaxf(pooled, value) : pooled + (kind == WEIGHTED_MEAN ? (token + 1) * value : value);
        }
    }
    if (kind == MEAN) pooled /= length;
    if (kind == MEAN_SQRT_LENGTH) pooled /= sqrtf(length);
    if (kind == WEIGHTED_MEAN) pooled /= (float)length * (length + 1) / 2;
    output[(size_t)blockIdx.x * output_stride + column] = pooled;
}

// Two values next to each other, which are read and written at once.
template <typename T> struct __align__(2 * sizeof(T)) Two {
    T low, high;
};

// `f(x + bias)` of each row; where it is gated, times the other half of the row.
template <typename T>
__device__ void activate(const T *rows, const T *bias, T *output, int width, int activation, int gated) {
    const int output_width = gated ? width / 2 : width;
    rows += (size_t)blockIdx.x * width;
    output += (size_t)blockIdx.x * output_width;
    for (int column = threadIdx.x * 2; column < output_width; column += blockDim.x * 2) {
        Two<T> two = *reinterpret_cast<const Two<T> *>(rows + column);
        float low = to_float(two.low), high = to_float(two.high);
        if (bias != nullptr) low += to_float(bias[column]), high += to_float(bias[column + 1]);
        low = activated(low, activation), high = activated(high, activation);
        if (gated) {
            two = *reinterpret_cast<const Two<T> *>(rows + output_width + column);
            float low_gate = to_float(two.low), high_gate = to_float(two.high);
            if (bias != nullptr) {
                low_gate += to_float(bias[output_width + column]), high_gate += to_float(bias[output_width + column + 1]);
            }
            low *= low_gate, high *= high_gate;
        }
        store(&two.low, low), store(&two.high, high);
        *reinterpret_cast<Two<T> *>(output + column) = two;
    }
}

// The norm of each row of `rows + bias + added`, or the sum alone where there is no weight. A warp takes a row.
template <typename T>
__device__ void sum(const T *rows, const T *added, const T *bias, const T *weight, const T *norm_bias, T *output, int count,
                    int width, float epsilon, int centred) {
    const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= count) return;
    rows += (size_t)row * width;
    output += (size_t)row * width;
    float total = 0;
    for (int column = lane * 2; column < width; column += 64) {
        Two<T> two = *reinterpret_cast<const Two<T> *>(rows + column);
        float low = to_float(two.low), high = to_float(two.high);
        if (bias != nullptr) low += to_float(bias[column]), high += to_float(bias[column + 1]);
        if (added != nullptr) {
            two = *reinterpret_cast<const Two<T> *>(added + (size_t)row * width + column);
            low += to_float(two.low), high += to_float(two.high);
        }
        store(&two.low, low), store(&two.high, high);
        *reinterpret_cast<Two<T> *>(output + column) = two;
        total += to_float(two.low) + to_float(two.high);
    }
    if (weight == nullptr) return;
    // A thread reads again what it has written itself.
    for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(~0u, total, step);
    const float mean = centred ? total / width : 0;
    float squares = 0;
    for (int column = lane * 2; column < width; column += 64) {
        Two<T> two = *reinterpret_cast<const Two<T> *>(output + column);
        float low = to_float(two.low) - mean, high = to_float(two.high) - mean;
        squares += low * low + high * high;
    }
    for (int step = 16; step > 0; step /= 2) squares += __shfl_xor_sync(~0u, squares, step);
    const float scale = rsqrtf(squares / width + epsilon);
    for (int column = lane * 2; column < width; column += 64) {
        Two<T> two = *reinterpret_cast<const Two<T> *>(output + column);
        float low = (to_float(two.low) - mean) * scale * to_float(weight[column]);
        float high = (to_float(two.high) - mean) * scale * to_float(weight[column + 1]);
        if (norm_bias != nullptr) low += to_float(norm_bias[column]), high += to_float(norm_bias[column + 1]);
        store(&two.low, low), store(&two.high, high);
        *reinterpret_cast<Two<T> *>(output + column) = two;
    }
}

#define ARGUMENTS(T)                                                                                                   \
    const T *queries, const T *keys, const T *values, T *output, const Tile *tiles, int query_stride, int key_stride,  \
        int value_stride, int output_stride, int group, int size, int causal, int window, float scale,                 \
        const float *bias, int bias_length
#define SIGHT (Sight{causal, window, scale, bias, bias_length})
#define TENSOR(T, NAME, D)                                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_##NAME##_##D(ARGUMENTS(T)) {                       \
        tensor<T, D>(queries, keys, values, output, tiles, query_stride, key_stride, value_stride, output_stride,      \
                     group, SIGHT);                                                                                    \
    }
#define PLAIN(T, NAME)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_##NAME(ARGUMENTS(T)) {                             \
        plain<T>(queries, keys, values, output, tiles, query_stride, key_stride, value_stride, output_stride, group,   \
                 size, SIGHT);                                                                                         \
    }                                                                                                                  \
    extern "C" __global__ void pool_##NAME(const T *rows, float *output, const uint32_t *offsets, int width,           \
                                           int output_stride, int kind) {                                              \
        pool<T>(rows, output, offsets, width, output_stride, kind);                                                    \
    }                                                                                                                  \
    extern "C" __global__ void activate_##NAME(const T *rows, const T *bias, T *output, int width, int activation,     \
                                               int gated) {                                                            \
        activate<T>(rows, bias, output, width, activation, gated);                                                     \
    }                                                                                                                  \
    extern "C" __global__ void sum_##NAME(const T *rows, const T *added, const T *bias, const T *weight,               \
                                          const T *norm_bias, T *output, int count, int width, float epsilon,          \
                                          int centred) {                                                               \
        sum<T>(rows, added, bias, weight, norm_bias, output, count, width, epsilon, centred);                          \
    }
#define HALF(T, NAME)                                                                                                  \
    PLAIN(T, NAME)                                                                                                     \
    TENSOR(T, NAME, 32)                                                                                                \
    TENSOR(T, NAME, 64)                                                                                                \
    TENSOR(T, NAME, 96)                                                                                                \
    TENSOR(T, NAME, 128)
PLAIN(float, f32)
HALF(__half, f16)
HALF(__nv_bfloat16, bf16)
