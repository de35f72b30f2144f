// Decoders on a GPU, over the packed rows of a step. `decoder.rs` launches what stands here.

#include "attention.cuh"
#include "draw.cuh"

// A norm's weights; there is none where `weight` is null.
struct Norm {
    const float *weight, *bias;
    float epsilon;
    int centred;
};

__device__ inline float block_sum(float value) {
    __shared__ float sums[32];
    value = warp_sum(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
    __syncthreads();
    float total = 0;
    for (int warp = 0; warp < blockDim.x / 32; warp++) total += sums[warp];
    return total;
}

// The vectors of words, as many as there are rows, with those of their positions.
template <typename T>
__device__ void embed(const T *words, const T *places, const uint32_t *tokens, const uint32_t *positions, float *hidden,
                      int width, float scale) {
    const int row = blockIdx.x;
    const T *word = words + (size_t)tokens[row] * width;
    const T *place = places == nullptr ? nullptr : places + (size_t)positions[row] * width;
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
        float value = to_float(word[column]) * scale;
        hidden[(size_t)row * width + column] = place == nullptr ? value : value + to_float(place[column]);
    }
}

// `hidden += first(made + bias)`, and `output = second(hidden)`, a row for each thread block.
template <typename T>
__device__ void join(float *hidden, const T *made, const T *bias, Norm first, Norm second, T *output, int width) {
    hidden += (size_t)blockIdx.x * width;
    output += (size_t)blockIdx.x * width;
    if (made != nullptr) {
        made += (size_t)blockIdx.x * width;
        float mean = 0, factor = 1;
        if (first.weight != nullptr) {
            float total = 0, squares = 0;
            for (int column = threadIdx.x; column < width; column += blockDim.x) {
                float value = to_float(made[column]) + (bias == nullptr ? 0 : to_float(bias[column]));
                total += value, squares += value * value;
            }
            squares = block_sum(squares) / width;
            mean = first.centred ? block_sum(total) / width : 0;
            factor = rsqrtf(squares - mean * mean + first.epsilon);
        }
        for (int column = threadIdx.x; column < width; column += blockDim.x) {
            float value = to_float(made[column]) + (bias == nullptr ? 0 : to_float(bias[column]));
            if (first.weight != nullptr) {
                value = (value - mean) * factor * first.weight[column] + (first.bias == nullptr ? 0 : first.bias[column]);
            }
            hidden[column] += value;
        }
    }
    // A thread reads again what it has written itself.
    float mean = 0;
    if (second.centred) {
        float total = 0;
        for (int column = threadIdx.x; column < width; column += blockDim.x) total += hidden[column];
        mean = block_sum(total) / width;
    }
    float squares = 0;
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
        float value = hidden[column] - mean;
        squares += value * value;
    }
    const float factor = rsqrtf(block_sum(squares) / width + second.epsilon);
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
        float value = (hidden[column] - mean) * factor * second.weight[column];
        store(output + column, second.bias == nullptr ? value : value + second.bias[column]);
    }
}

// Heads of queries and keys are normed and turned; queries are written in rows, keys and values to their blocks. A warp
// takes a head.
template <typename T>
__device__ void place(const T *rows, const T *bias, Norm query_norm, Norm key_norm, const float *cosines, const float *sines,
                      const uint32_t *positions, const uint32_t *slots, T *queries, T *keys, T *values, Heads all) {
    __shared__ float buffers[WARPS][HEAD_MAX];
    const int lane = threadIdx.x % 32, row = blockIdx.x, head = blockIdx.y * WARPS + threadIdx.x / 32;
    const int size = all.size, count = all.heads + 2 * all.key_heads;
    if (head >= count) return;
    float *buffer = buffers[threadIdx.x / 32];
    const T *from = rows + ((size_t)row * count + head) * size;
    const T *added = bias == nullptr ? nullptr : bias + head * size;
    const bool is_query = head < all.heads, is_value = head >= all.heads + all.key_heads;
    const Norm norm = is_query ? query_norm : key_norm;
    float total = 0;
    for (int at = lane; at < size; at += 32) {
        float value = to_float(from[at]) + (added == nullptr ? 0 : to_float(added[at]));
        total += value;
        buffer[at] = value;
    }
    if (!is_value && norm.weight != nullptr) {
        const float mean = norm.centred ? warp_sum(total) / size : 0;
        float squares = 0;
        for (int at = lane; at < size; at += 32) squares += (buffer[at] - mean) * (buffer[at] - mean);
        const float factor = rsqrtf(warp_sum(squares) / size + norm.epsilon);
        for (int at = lane; at < size; at += 32) {
            float value = (buffer[at] - mean) * factor * norm.weight[at];
            buffer[at] = norm.bias == nullptr ? value : value + norm.bias[at];
        }
    }
    __syncwarp();
    T *to;
    if (is_query) {
        to = queries + ((size_t)row * all.heads + head) * size;
    } else {
        const int kept = (head - all.heads) % all.key_heads;
        const size_t block = slots[row] / BLOCK, token = slots[row] % BLOCK;
        to = (is_value ? values : keys) + ((block * all.key_heads + kept) * BLOCK + token) * size;
    }
    const int half = size / 2;
    for (int at = lane; at < size; at += 32) {
        float value = buffer[at];
        if (!is_value && cosines != nullptr) {
            const size_t angle = (size_t)positions[row] * half + at % half;
            const float other = at < half ? -buffer[at + half] : buffer[at - half];
            value = value * cosines[angle] + other * sines[angle];
        }
        store(to + at, value);
    }
}

// `f(x + bias)` of each row; where it is gated (1), times the other half of the row; where it is clamped (2), as gpt-oss does.
template <typename T>
__device__ void activate(const T *rows, const T *bias, T *output, int width, int activation, int gated, float alpha,
                         float limit) {
    const int output_width = gated ? width / 2 : width;
    rows += (size_t)blockIdx.x * width;
    output += (size_t)blockIdx.x * output_width;
    const int column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= output_width) return;
    auto input = [&](int at) { return to_float(rows[at]) + (bias == nullptr ? 0 : to_float(bias[at])); };
    float value = input(column);
    if (gated == 2) {
        value = fminf(value, limit);
        value = value / (1 + __expf(-alpha * value)) * (fminf(fmaxf(input(output_width + column), -limit), limit) + 1);
    } else {
        value = activated(value, activation);
        if (gated == 1) value *= input(output_width + column);
    }
    store(output + column, value);
}

// Scores of rows for each token, in f32. Where there is a cap none exceeds it, by tanh.
template <typename T>
__device__ void score(const T *rows, const T *bias, float *scores, int width, float cap) {
    const int column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const size_t at = (size_t)blockIdx.x * width + column;
    const float value = to_float(rows[at]) + (bias == nullptr ? 0 : to_float(bias[column]));
    scores[at] = cap == 0 ? value : tanhf(value / cap) * cap;
}

extern "C" __global__ void draw_f32(const float *scores, const Draw *draws, uint32_t *tokens, int width) {
    draw(scores, draws, tokens, width);
}

#define ATTEND(T, NAME, SIZE, OWN) ATTEND_BY((attend<T, SIZE, OWN>), T, attend_##NAME##_##SIZE##_##OWN)
#define ATTEND_MANY(T, NAME, SIZE) ATTEND_BY((attend_many<T, SIZE>), T, attend_##NAME##_##SIZE##_16)
#define ATTEND_BY(WAY, T, NAME)                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(                                                        \
        const T *queries, const T *keys, const T *values, const Tile *tiles, const uint32_t *tables,                   \
        const float *sinks, T *output, float *partial, Share *shares, int rows, int heads, int key_heads, int size,    \
        int window, float scale, float cap) {                                                                          \
        WAY(queries, keys, values, tiles, tables, sinks, output, partial, shares, rows,                                \
            Heads{heads, key_heads, size}, Sight{window, scale, cap});                                                 \
    }
#define ALL(T, NAME)                                                                                                   \
    extern "C" __global__ void embed_##NAME(const T *words, const T *places, const uint32_t *tokens,                   \
                                            const uint32_t *positions, float *hidden, int width, float scale) {        \
        embed<T>(words, places, tokens, positions, hidden, width, scale);                                              \
    }                                                                                                                  \
    extern "C" __global__ void join_##NAME(float *hidden, const T *made, const T *bias, const float *first,            \
                                           const float *first_bias, float first_epsilon, int first_centred,            \
                                           const float *second, const float *second_bias, float second_epsilon,        \
                                           int second_centred, T *output, int width) {                                 \
        join<T>(hidden, made, bias, Norm{first, first_bias, first_epsilon, first_centred},                             \
                Norm{second, second_bias, second_epsilon, second_centred}, output, width);                             \
    }                                                                                                                  \
    extern "C" __global__ void place_##NAME(                                                                           \
        const T *rows, const T *bias, const float *query, const float *query_bias, float query_epsilon,                \
        int query_centred, const float *key, const float *key_bias, float key_epsilon, int key_centred,                \
        const float *cosines, const float *sines, const uint32_t *positions, const uint32_t *slots, T *queries,        \
        T *keys, T *values, int heads, int key_heads, int size) {                                                      \
        place<T>(rows, bias, Norm{query, query_bias, query_epsilon, query_centred},                                    \
                 Norm{key, key_bias, key_epsilon, key_centred}, cosines, sines, positions, slots, queries, keys,       \
                 values, Heads{heads, key_heads, size});                                                               \
    }                                                                                                                  \
    extern "C" __global__ void gather_##NAME(const float *partial, const Share *shares, const float *sinks,            \
                                             T *output, int count, int heads, int size) {                              \
        gather<T>(partial, shares, sinks, output, count, heads, size);                                                 \
    }                                                                                                                  \
    extern "C" __global__ void activate_##NAME(const T *rows, const T *bias, T *output, int width, int activation,     \
                                               int gated, float alpha, float limit) {                                  \
        activate<T>(rows, bias, output, width, activation, gated, alpha, limit);                                       \
    }                                                                                                                  \
    extern "C" __global__ void score_##NAME(const T *rows, const T *bias, float *scores, int width, float cap) {       \
        score<T>(rows, bias, scores, width, cap);                                                                      \
    }                                                                                                                  \
    ATTEND(T, NAME, 64, 1)                                                                                             \
    ATTEND(T, NAME, 64, 2)                                                                                             \
    ATTEND(T, NAME, 64, 4)                                                                                             \
    ATTEND(T, NAME, 128, 1)                                                                                            \
    ATTEND(T, NAME, 128, 2)                                                                                            \
    ATTEND(T, NAME, 128, 4)                                                                                            \
    ATTEND(T, NAME, 256, 1)
#define HALF(T, NAME)                                                                                                  \
    ALL(T, NAME)                                                                                                       \
    ATTEND_MANY(T, NAME, 64)                                                                                           \
    ATTEND_MANY(T, NAME, 128)                                                                                          \
    ATTEND_MANY(T, NAME, 256)
ALL(float, f32)
HALF(__half, f16)
HALF(__nv_bfloat16, bf16)
