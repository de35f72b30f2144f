// Decoders on a GPU, over the packed rows of a step. `decoder.rs` launches what stands here.
//
// Keys and values are kept in blocks of tokens (Kwon et al., 2023, "PagedAttention"): a layer has a tensor of keys and one
// of values, `[blocks, key heads, tokens of a block, values of a head]`. Attention goes over a sequence's blocks once, with
// the greatest score so far (Dao, 2023); where there are few queries, several thread blocks share the blocks of a sequence
// and what they made is put together afterwards (Dao et al., 2023, "Flash-Decoding").

#include "common.cuh"

// Tokens of a block of keys: one for each lane.
#define BLOCK 32
#define THREADS 128
#define WARPS (THREADS / 32)
#define HEAD_MAX 256

// Some tokens of a sequence that come one after the other.
struct Tile {
    // The first one's row in the step, how many they are, the first one's position, and where the sequence's blocks begin
    // in the table.
    uint32_t row, count, position, table;
};

// What is the same in all of a model's heads.
struct Heads {
    int heads, key_heads, size;
};

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

struct Sight {
    // How many tokens back a query sees, itself counted; 0 without limit.
    int window;
    float scale;
    // What no score can exceed, by tanh; 0 without.
    float cap;
};

// What a share of a sequence's blocks came to, for one query and head: the greatest score and the sum of weights.
struct Share {
    float most, sum;
};

// Of 16 bytes.
template <typename T> struct Vector {
    static constexpr int COUNT = 16 / sizeof(T);
};

// `[tiles, heads of a tile, shares]` thread blocks. A warp takes rows `warp, warp + 4, …` of the tile; in scores a lane stands
// for a key, in sums for some of a head's values. `SIZE` is what a head is padded to in the loops, `OWN` a warp's rows.
template <typename T, int SIZE, int OWN>
__device__ void attend(const T *queries, const T *keys, const T *values, const Tile *tiles, const uint32_t *tables,
                       const float *sinks, T *output, float *partial, Share *shares, int rows, Heads all, Sight sight) {
    constexpr int EACH = Vector<T>::COUNT;
    constexpr int STRIDE = SIZE + EACH;
    constexpr int LOADS = (BLOCK * SIZE / EACH + THREADS - 1) / THREADS;
    constexpr int SUMS = SIZE / 32;
    __shared__ __align__(16) T kept[BLOCK * STRIDE];
    __shared__ float asked[OWN * WARPS][SIZE];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, size = all.size;
    const Tile tile = tiles[blockIdx.x];
    const int group = all.heads / all.key_heads;
    // As many heads of a group as a tile has room for.
    const int part = min(group, OWN * WARPS), parts = (group + part - 1) / part;
    const int key_head = blockIdx.y / parts, first_head = key_head * group + blockIdx.y % parts * part;
    const int heads = min(part, (key_head + 1) * group - first_head);
    const int asking = tile.count * heads;
    const int last = tile.position + tile.count;
    const int first = sight.window == 0 ? 0 : max(0, (int)tile.position + 1 - sight.window);
    const int share = (last - first / BLOCK * BLOCK + BLOCK * gridDim.z - 1) / (BLOCK * gridDim.z);
    const int begin = first / BLOCK + blockIdx.z * share, end = min((last + BLOCK - 1) / BLOCK, begin + share);

    for (int at = threadIdx.x; at < asking * SIZE; at += THREADS) {
        const int row = at / SIZE, column = at % SIZE;
        const size_t from = (tile.row + row / heads) * all.heads + first_head + row % heads;
        asked[row][column] = column < size ? to_float(queries[from * size + column]) * sight.scale : 0;
    }
    float sums[OWN][SUMS], most[OWN], total[OWN];
#pragma unroll
    for (int own = 0; own < OWN; own++) {
        most[own] = -INFINITY, total[own] = 0;
#pragma unroll
        for (int at = 0; at < SUMS; at++) sums[own][at] = 0;
    }
    const int vectors = BLOCK * size / EACH;
    auto fetch = [&](const T *from, int block, uint4 loaded[LOADS]) {
        const uint4 *page = reinterpret_cast<const uint4 *>(
            from + ((size_t)tables[tile.table + block] * all.key_heads + key_head) * BLOCK * size);
#pragma unroll
        for (int at = 0; at < LOADS; at++) {
            const int vector = at * THREADS + threadIdx.x;
            if (vector < vectors) loaded[at] = page[vector];
        }
    };
    auto keep = [&](const uint4 loaded[LOADS]) {
#pragma unroll
        for (int at = 0; at < LOADS; at++) {
            const int vector = at * THREADS + threadIdx.x;
            const int row = vector * EACH / size, column = vector * EACH % size;
            if (vector < vectors) *reinterpret_cast<uint4 *>(kept + row * STRIDE + column) = loaded[at];
        }
    };
    uint4 next_keys[LOADS], next_values[LOADS];
    if (begin < end) fetch(keys, begin, next_keys);
    for (int block = begin; block < end; block++) {
        __syncthreads();
        keep(next_keys);
        fetch(values, block, next_values);
        __syncthreads();
        float scores[OWN];
#pragma unroll
        for (int own = 0; own < OWN; own++) scores[own] = 0;
        for (int column = 0; column < size; column += EACH) {
            T part[EACH];
            *reinterpret_cast<uint4 *>(part) = *reinterpret_cast<const uint4 *>(kept + lane * STRIDE + column);
#pragma unroll
            for (int own = 0; own < OWN; own++) {
                const float *query = asked[own * WARPS + warp] + column;
#pragma unroll
                for (int at = 0; at < EACH; at++) scores[own] += query[at] * to_float(part[at]);
            }
        }
        const int key = block * BLOCK + lane;
#pragma unroll
        for (int own = 0; own < OWN; own++) {
            const int row = own * WARPS + warp;
            if (row < asking) {
                const int query = tile.position + row / heads;
                float score = sight.cap == 0 ? scores[own] : tanhf(scores[own] / sight.cap) * sight.cap;
                if (key > query || (sight.window != 0 && key + sight.window <= query)) score = -INFINITY;
                const float greatest = fmaxf(most[own], warp_max(score));
                // Nothing may have been seen yet.
                const float factor = greatest == -INFINITY ? 1 : __expf(most[own] - greatest);
                scores[own] = greatest == -INFINITY ? 0 : __expf(score - greatest);
                most[own] = greatest;
                total[own] = total[own] * factor + warp_sum(scores[own]);
#pragma unroll
                for (int at = 0; at < SUMS; at++) sums[own][at] *= factor;
            } else {
                scores[own] = 0;
            }
        }
        __syncthreads();
        keep(next_values);
        if (block + 1 < end) fetch(keys, block + 1, next_keys);
        __syncthreads();
        // What lies behind the last token belongs to nobody.
        const int filled = min(BLOCK, last - block * BLOCK);
        for (int token = 0; token < filled; token++) {
            float value[SUMS];
#pragma unroll
            for (int at = 0; at < SUMS; at++) {
                const int column = at * 32 + lane;
                value[at] = column < size ? to_float(kept[token * STRIDE + column]) : 0;
            }
#pragma unroll
            for (int own = 0; own < OWN; own++) {
                const float weight = __shfl_sync(FULL, scores[own], token);
#pragma unroll
                for (int at = 0; at < SUMS; at++) sums[own][at] += weight * value[at];
            }
        }
    }
#pragma unroll
    for (int own = 0; own < OWN; own++) {
        const int row = own * WARPS + warp;
        if (row >= asking) continue;
        const int head = first_head + row % heads;
        const size_t to = (size_t)(tile.row + row / heads) * all.heads + head;
        float whole = 1;
        if (partial == nullptr) {
            const float sink = sinks == nullptr ? -INFINITY : sinks[head];
            const float greatest = fmaxf(most[own], sink);
            const float factor = __expf(most[own] - greatest);
            whole = factor / (total[own] * factor + __expf(sink - greatest));
        } else if (lane == 0) {
            shares[(size_t)blockIdx.z * rows * all.heads + to] = Share{most[own], total[own]};
        }
#pragma unroll
        for (int at = 0; at < SUMS; at++) {
            const int column = at * 32 + lane;
            if (column >= size) continue;
            if (partial == nullptr) {
                store(output + to * size + column, sums[own][at] * whole);
            } else {
                partial[((size_t)blockIdx.z * rows * all.heads + to) * size + column] = sums[own][at];
            }
        }
    }
}

// Puts the shares of each query and head together.
template <typename T>
__device__ void gather(const float *partial, const Share *shares, const float *sinks, T *output, int count, int heads,
                       int size) {
    const size_t one = blockIdx.x, all = gridDim.x;
    const float sink = sinks == nullptr ? -INFINITY : sinks[one % heads];
    float most = sink, total = 0;
    for (int share = 0; share < count; share++) most = fmaxf(most, shares[share * all + one].most);
    for (int share = 0; share < count; share++) {
        total += shares[share * all + one].sum * __expf(shares[share * all + one].most - most);
    }
    total += __expf(sink - most);
    for (int column = threadIdx.x; column < size; column += blockDim.x) {
        float sum = 0;
        for (int share = 0; share < count; share++) {
            sum += partial[(share * all + one) * size + column] * __expf(shares[share * all + one].most - most);
        }
        store(output + one * size + column, sum / total);
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

#define ATTEND(T, NAME, SIZE, OWN)                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS) attend_##NAME##_##SIZE##_##OWN(                              \
        const T *queries, const T *keys, const T *values, const Tile *tiles, const uint32_t *tables,                   \
        const float *sinks, T *output, float *partial, Share *shares, int rows, int heads, int key_heads, int size,    \
        int window, float scale, float cap) {                                                                          \
        attend<T, SIZE, OWN>(queries, keys, values, tiles, tables, sinks, output, partial, shares, rows,               \
                             Heads{heads, key_heads, size}, Sight{window, scale, cap});                                \
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
ALL(float, f32)
ALL(__half, f16)
ALL(__nv_bfloat16, bf16)
